//! MicroVMs: a guest that booted, was configured, and takes commands.
//!
//! ```text
//!   exports (virtiofsd) ─┐                                     ┌─ exports, if they were not there
//!                        ├─▶ VMM ─▶ guest boots ─▶ agent dials ─┴▶ Guest ─▶ Configure ─▶ Vm
//!   ready listener ──────┘
//! ```
//!
//! A guest that has booted knows nothing of the sandbox it will be, so it may wait for one.
//! Everything is started at once and waited for together: whatever ends first, when it should not
//! have, is the error.

pub(crate) mod image;
pub(crate) mod vmm;

use crate::env::Environment;
use crate::guest::{Connection, Dialer, GuestError, vsock};
use crate::spec::Spec;
use crate::sys::cgroup::{Cgroup, PauseError};
use crate::sys::identity::Identity;
use crate::sys::limits::Cpus;
use crate::sys::process::{ProcessError, ProcessId};
use crate::sys::socket;
use crate::view::View;
pub(crate) use crate::view::export::Exporter;
use crate::view::export::{self, BASE_TAG, Export, ExportError};
use firn_protocol::{Configure, READY_PORT, Root, Text};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use image::{GuestKind, Image};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::net::UnixListener;
use vmm::{Backend, Confinement, Machine, Vmm, VmmError};

/// How many connections of a guest that has not said hello are listened to.
const MOST_DIALS: usize = 8;

/// How long the guest may take to mount what it is told.
const CONFIGURE_PATIENCE: Duration = Duration::from_secs(60);

/// How long the guest may take to write everything back.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(30);

/// How long the VMM may take to end after a virtiofsd that it ended.
const REASON_PATIENCE: Duration = Duration::from_secs(2);

/// How many fresh random bytes a guest gets: what Linux's generator is seeded with.
const ENTROPY: usize = 64;

/// A guest that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// A share of the view could not be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A `virtiofsd` ended.
    #[error(transparent)]
    Helper(#[from] ProcessError),
    /// The VMM failed.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The host's end of the first connection could not be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The guest did not come up.
    #[error("the guest did not boot within {}{}", humantime::format_duration(*patience), after(console))]
    NotReady {
        /// How long it was waited for.
        patience: Duration,
        /// The last of its console.
        console: String,
    },
    /// It cannot be paused, or go on.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// The agent does not behave.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// No random bytes for the guest.
    #[error("cannot get random bytes for the guest")]
    Entropy(#[source] getrandom::Error),
}

fn after(console: &str) -> String {
    if console.trim().is_empty() { String::new() } else { format!("; its console:\n{}", console.trim_end()) }
}

/// How far a guest has come, for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The VMM and its helpers are being started.
    Starting,
    /// The guest's kernel boots.
    Booting,
    /// The exports are connected to a guest that waited.
    Attaching,
    /// The agent mounts what it is told.
    Configuring,
}

/// What a guest boots with.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// The kernel and initramfs.
    pub(crate) image: &'a Image,
    /// Its size.
    pub(crate) spec: &'a Spec,
    /// The VMM.
    pub(crate) backend: &'a Backend,
    /// Where and as whom the VMM runs.
    pub(crate) confinement: Confinement<'a>,
}

/// A guest that has booted and is nobody's: it knows no share and no name. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Guest {
    vmm: Box<dyn Vmm>,
    exports: Vec<Export>,
    agent: Connection,
    sockets: PathBuf,
}

/// A guest that takes commands. Dropping it kills it, [`Vm::release`] does not.
#[derive(Debug)]
pub(crate) struct Vm {
    vmm: Box<dyn Vmm>,
    exports: Vec<Export>,
    dialer: Dialer,
}

/// What has to be known of a guest to take it over, beside its folders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remains {
    vmm: vmm::Remains,
    /// By socket.
    exports: Vec<(String, ProcessId)>,
}

/// Exports all that a sandbox sees of the host.
pub(crate) fn exports(exporter: &Exporter<'_>, spec: &Spec, view: &View) -> Result<Vec<Export>, VmError> {
    let mut exports = match &spec.environment {
        Environment::Guest(guest) => {
            guest.store.iter().map(|store| exporter.store(view, &store.tag)).collect::<Result<_, _>>()?
        }
        _ => vec![exporter.base(view)?],
    };
    let (user, _) = spec.user.as_deref().and_then(crate::view::ids).unwrap_or((0, 0));
    exports.extend(exporter.shares(view, user)?);
    Ok(exports)
}

/// The most that [`exports`] gives.
const MOST_EXPORTS: u8 = 2;

impl Boot<'_> {
    /// Boots a guest with these exports. One without is to get them later: see [`Guest::attach`].
    pub(crate) async fn run(
        self,
        exports: Vec<Export>,
        progress: &mut (dyn FnMut(Phase) + Send),
    ) -> Result<Guest, VmError> {
        progress(Phase::Starting);
        let Confinement { identity, sockets, .. } = self.confinement;
        let listener = listen(&vsock::listening_path(&sockets.join(vmm::VSOCK), READY_PORT), identity)?;
        let manifest = &self.image.manifest;
        let lean = manifest.kind == GuestKind::Lean;
        let machine = Machine {
            kernel: self.image.dir.join(&manifest.kernel),
            initrd: self.image.dir.join(&manifest.initrd),
            cmdline: manifest.cmdline.clone(),
            vcpus: self
                .spec
                .cpus
                .and_then(Cpus::whole)
                .unwrap_or_else(|| if lean { self.backend.usual_vcpus() } else { manifest.vcpus }),
            memory: self.spec.memory.0,
            exports: exports.iter().map(|export| (export.tag.clone(), export.socket.to_owned())).collect(),
            spare_exports: if exports.is_empty() && lean { MOST_EXPORTS } else { 0 },
        };
        let starting = self.backend.start(&machine, self.confinement);
        let mut vmm = tokio::select! {
            vmm = starting => vmm?,
            failure = any_ended(&exports) => return Err(failure.into()),
        };

        progress(Phase::Booting);
        let patience = self.backend.boot_patience();
        let ready = async {
            let accept = async || match listener.accept().await {
                Ok((stream, _)) => Ok(stream),
                Err(source) => Err(VmError::Listen {
                    path: vsock::listening_path(&sockets.join(vmm::VSOCK), READY_PORT),
                    source,
                }),
            };
            // On a slow host the guest's kernel may give a connection up that we have accepted by then
            // (vsock allows two seconds), and need not tell: the agent dials again, and the first that
            // says hello is the one.
            let mut dialled = FuturesUnordered::new();
            loop {
                tokio::select! {
                    biased;
                    Some(established) = dialled.next() => match established {
                        Err(GuestError::Closed { .. }) => {}
                        established => return Ok::<_, VmError>(established?),
                    },
                    stream = accept(), if dialled.len() < MOST_DIALS => dialled.push(Connection::establish(stream?)),
                }
            }
        };
        let connected = tokio::select! {
            // In this order: an agent that answers proves more than a helper's words.
            biased;
            agent = tokio::time::timeout(patience, ready) => match agent {
                Ok(connected) => connected,
                Err(_elapsed) => return Err(VmError::NotReady { patience, console: vmm.console() }),
            },
            failure = why_ended(&mut *vmm, &exports) => return Err(failure),
        };
        // Whoever else in the guest dials this port reaches nobody.
        drop(listener);
        let agent = match connected {
            Err(VmError::Guest(error)) => return Err(error.or_end(why_ended(&mut *vmm, &exports)).await),
            connected => connected?,
        };
        Ok(Guest { vmm, exports, agent, sockets: sockets.to_owned() })
    }
}

impl Guest {
    /// Connects exports to a guest that booted without.
    pub(crate) async fn attach(&mut self, exports: Vec<Export>) -> Result<(), VmError> {
        let attached = async {
            for export in &exports {
                self.vmm.attach(&export.tag, export.socket).await?;
            }
            Ok::<_, VmError>(())
        };
        tokio::select! {
            attached = attached => attached,
            // The VMM waits for who does not answer.
            failure = any_ended(&exports) => Err(failure.into()),
        }?;
        self.exports.extend(exports);
        Ok(())
    }

    /// Makes it a sandbox.
    pub(crate) async fn configure(
        mut self,
        spec: &Spec,
        view: &View,
        hostname: String,
    ) -> Result<Vm, VmError> {
        let configure = configuration(spec, view, hostname)?;
        let configured = tokio::select! {
            biased;
            configured = self.agent.configure(configure, CONFIGURE_PATIENCE) => configured,
            failure = why_ended(&mut *self.vmm, &self.exports) => return Err(failure),
        };
        if let Err(error) = configured {
            return Err(error.or_end(why_ended(&mut *self.vmm, &self.exports)).await);
        }
        let Guest { vmm, exports, agent, sockets } = self;
        Ok(Vm { vmm, exports, dialer: Dialer::guest(sockets.join(vmm::VSOCK), Some(agent)) })
    }

    /// Waits until it is no more, and says why. May be called again, and dropped at any time.
    pub(crate) async fn ended(&mut self) -> VmError {
        why_ended(&mut *self.vmm, &self.exports).await
    }

    /// Ends it at once and waits until no process is left.
    pub(crate) async fn destroy(mut self) {
        end(&mut *self.vmm, &self.exports).await;
    }
}

fn listen(path: &Path, identity: Identity) -> Result<UnixListener, VmError> {
    let failed = |source| VmError::Listen { path: path.to_owned(), source };
    let listener = socket::listen(path, identity).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    UnixListener::from_std(listener).map_err(failed)
}

/// What ended the guest. virtiofsd and the VMM end each other: when it is virtiofsd that is seen
/// first, the VMM may still have the better reason.
async fn why_ended(vmm: &mut dyn Vmm, exports: &[Export]) -> VmError {
    tokio::select! {
        failure = vmm.ended() => failure.into(),
        failure = any_ended(exports) => {
            match tokio::time::timeout(REASON_PATIENCE, vmm.ended()).await {
                Ok(reason @ VmmError::GuestEnded { .. }) => reason.into(),
                _ => failure.into(),
            }
        }
    }
}

async fn any_ended(exports: &[Export]) -> ProcessError {
    if exports.is_empty() {
        return std::future::pending().await;
    }
    let ended = exports.iter().map(|export| Box::pin(export.helper.failed()));
    futures::future::select_all(ended).await.0
}

fn configuration(spec: &Spec, view: &View, hostname: String) -> Result<Configure, VmError> {
    let mut entropy = vec![0; ENTROPY];
    getrandom::fill(&mut entropy).map_err(VmError::Entropy)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Configure {
        hostname,
        unix_time_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        entropy: Text::from(std::ffi::OsString::from_vec(entropy)),
        root: match &spec.environment {
            Environment::Guest(_) => None,
            _ => Some(Root { tag: BASE_TAG.to_owned(), writable_bytes: spec.disk.0 }),
        },
        mounts: export::mounts(view),
        processes: Some(spec.processes),
    })
}

impl Vm {
    /// Takes over what was started from here or by a process that is gone, with its files in `folder` and
    /// its sockets in `sockets`. `None`: it has ended, and what was left of it is killed.
    pub(crate) async fn adopt(
        remains: &Remains,
        folder: &Path,
        sockets: &Path,
    ) -> Result<Option<Vm>, VmError> {
        let mut exports = Vec::new();
        let mut complete = true;
        for (socket, process) in &remains.exports {
            let export = Export::adopt(socket, *process, folder)?;
            complete &= export.is_some();
            exports.extend(export);
        }
        let vmm = remains.vmm.adopt(folder, sockets).await?;
        let dialer = Dialer::guest(sockets.join(vmm::VSOCK), None);
        Ok(vmm.filter(|_| complete).map(|vmm| Vm { vmm, exports, dialer }))
    }

    /// What [`Vm::adopt`] needs.
    pub(crate) fn remains(&self) -> Remains {
        let exports = self.exports.iter().map(|export| (export.socket.to_owned(), export.helper.id()));
        Remains { vmm: self.vmm.remains(), exports: exports.collect() }
    }

    /// Lets it live on without us.
    pub(crate) fn release(self) {
        self.vmm.release();
        self.exports.into_iter().for_each(|export| export.helper.release());
    }

    /// The way to its agent.
    pub(crate) fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }

    /// The processes that all others of it are below.
    pub(crate) fn processes(&self) -> Vec<ProcessId> {
        let exports = self.exports.iter().map(|export| export.helper.id());
        self.vmm.remains().processes().into_iter().chain(exports).collect()
    }

    /// Waits until the guest is no more, and says why. May be called again, and dropped at any time.
    pub(crate) async fn ended(&mut self) -> VmError {
        why_ended(&mut *self.vmm, &self.exports).await
    }

    /// Stops the guest where it is, with the VMM and all that serves it. `cgroup` is their group. Where it
    /// cannot be frozen only the guest's processors are stopped, and nothing may be sent to the guest until
    /// they go on: QEMU then stops its devices, and vhost-device-vsock 0.3 makes no connection any more
    /// after one was asked for meanwhile.
    pub(crate) async fn pause(&mut self, cgroup: &Cgroup) -> Result<(), VmError> {
        match cgroup.freeze().await {
            Err(PauseError::Unsupported) => Ok(self.vmm.pause().await?),
            frozen => Ok(frozen?),
        }
    }

    /// Lets it go on.
    pub(crate) async fn resume(&mut self, cgroup: &Cgroup) -> Result<(), VmError> {
        match cgroup.thaw() {
            Err(PauseError::Unsupported) => Ok(self.vmm.resume().await?),
            thawed => Ok(thawed?),
        }
    }

    /// The VMM that runs it.
    pub(crate) fn vmm(&self) -> &dyn Vmm {
        &*self.vmm
    }

    /// The last of its console.
    pub(crate) fn console(&self) -> String {
        self.vmm.console()
    }

    /// Has the guest write everything back.
    pub(crate) async fn sync(&mut self) -> Result<(), VmError> {
        let dialer = self.dialer();
        let asked = async { dialer.dial().await?.shutdown(SHUTDOWN_PATIENCE).await };
        let mut ended = std::pin::pin!(self.ended());
        let done = tokio::select! {
            biased;
            done = asked => done,
            failure = &mut ended => return Err(failure),
        };
        match done {
            Ok(()) => Ok(()),
            Err(error) => Err(error.or_end(ended).await),
        }
    }

    /// Ends it at once and waits until no process is left. `cgroup` is its group.
    pub(crate) async fn destroy(mut self, cgroup: &Cgroup) {
        // With version 1 what is frozen cannot be killed.
        let _ = cgroup.thaw();
        end(&mut *self.vmm, &self.exports).await;
    }
}

async fn end(vmm: &mut dyn Vmm, exports: &[Export]) {
    vmm.destroy().await;
    for export in exports {
        export.helper.kill().await;
    }
}
