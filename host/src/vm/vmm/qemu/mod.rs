//! QEMU: the portable VMM, with KVM or in software.
//!
//! ```text
//!   firn ── UNIX `qmp.sock`, `console.sock` ──▶ qemu ── vhost-user ── virtiofsd (the exports)
//!    └───── UNIX `vsock` ──▶ vhost-device-vsock ── vhost-user ──┘
//! ```
//!
//! vsock comes from `vhost-device-vsock`, a process of its own, so that it works without the
//! kernel's vhost module and looks from the host as cloud-hypervisor's does.

mod arguments;
mod monitor;

use super::{
    Accelerator, Confinement, GUEST_CID, KVM, Machine, Remains, SOCKETS, VSOCK, Vmm, VmmError, role,
};
use crate::sys::bubblewrap::Bubblewrap;
use crate::sys::identity::Identity;
use crate::sys::process::{End, Helper, ProcessError, ProcessId, Role};
use crate::sys::socket;
use crate::sys::tail::Tail;
use arguments::Arguments;
use async_trait::async_trait;
use monitor::Monitor;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the vsock device may take until it listens.
const VSOCK_PATIENCE: Duration = Duration::from_secs(20);

/// The socket between QEMU and its vsock device.
const VSOCK_DEVICE: &str = "vsock-device";

/// Its sockets, in the folder that it does not see.
const MONITOR: &str = "qmp.sock";
const CONSOLE: &str = "console.sock";

const QEMU: Role = role("qemu");
const DEVICE: Role = Role { id: "vsock", name: "vhost-device-vsock" };

/// What QEMU is started from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Programs<'a> {
    /// `qemu-system-x86_64`.
    pub(crate) qemu: &'a Path,
    /// `vhost-device-vsock`.
    pub(crate) vsock: &'a Path,
}

/// How QEMU runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acceleration {
    /// With KVM.
    Kvm,
    /// In software.
    Software {
        /// The frequency of the host's time stamp counter, in kHz. The guest cannot calibrate
        /// against a clock on a loaded host: it would hang.
        tsc_khz: u32,
    },
}

/// A running QEMU.
#[derive(Debug)]
pub(crate) struct Qemu {
    qemu: Helper,
    vsock: Helper,
    monitor: Monitor,
    console: Tail,
    accelerator: Accelerator,
    /// How many ports for exports are taken.
    attached: u8,
}

impl Qemu {
    /// Starts the vsock device, then QEMU, which starts the guest at once.
    pub(crate) async fn start(
        programs: Programs<'_>,
        acceleration: Acceleration,
        machine: &Machine,
        confinement: Confinement<'_>,
    ) -> Result<Qemu, VmmError> {
        let vsock = start_vsock(programs.vsock, confinement).await?;
        let asked = match acceleration {
            Acceleration::Kvm => Accelerator::Kvm,
            Acceleration::Software { .. } => Accelerator::Software,
        };
        let mut namespace = Bubblewrap::new(confinement.bwrap, confinement.identity);
        namespace.in_folder(confinement.sockets);
        namespace.read_write(confinement.sockets, Path::new(SOCKETS));
        if asked == Accelerator::Kvm {
            namespace.device(Path::new(KVM));
        }
        let folder = confinement.station.folder;
        let arguments = Arguments {
            machine,
            acceleration,
            kernel: inherit(&mut namespace, &machine.kernel)?,
            initrd: inherit(&mut namespace, &machine.initrd)?,
            monitor: listen(&mut namespace, &folder.join(MONITOR))?,
            console: listen(&mut namespace, &folder.join(CONSOLE))?,
        };
        // Connected before it runs, so that no word is lost.
        let console = follow(folder).await?;
        let qemu = namespace.command(QEMU, programs.qemu, &arguments.render())?.start(confinement.station)?;
        let starting = Qemu::take_up(qemu, vsock, console, folder).await?;
        if starting.accelerator == asked {
            return Ok(starting);
        }
        let reason = format!("{asked:?} was asked for, it uses {:?}", starting.accelerator);
        Err(VmmError::Refused { vmm: QEMU.name, request: "the accelerator", reason })
    }

    /// Takes over what runs. `None`: it has ended, or its device has.
    pub(crate) async fn adopt(
        process: ProcessId,
        vsock: ProcessId,
        folder: &Path,
    ) -> Result<Option<Qemu>, VmmError> {
        let (qemu, vsock) = (Helper::adopt(QEMU, process, folder)?, Helper::adopt(DEVICE, vsock, folder)?);
        let (Some(qemu), Some(vsock)) = (qemu, vsock) else { return Ok(None) };
        Qemu::take_up(qemu, vsock, follow(folder).await?, folder).await.map(Some)
    }

    /// Asks QEMU what it does, or finds out why it does not answer.
    async fn take_up(qemu: Helper, vsock: Helper, console: Tail, folder: &Path) -> Result<Qemu, VmmError> {
        let path = folder.join(MONITOR);
        let answer = tokio::select! {
            answer = Monitor::open(&path) => answer,
            failure = qemu.failed() => return Err(failure.into()),
            failure = vsock.failed() => return Err(failure.into()),
        };
        match answer {
            Ok((monitor, accelerator)) => {
                Ok(Qemu { qemu, vsock, monitor, console, accelerator, attached: 0 })
            }
            // A closed monitor is a QEMU that is ending: its own words say more.
            Err(silent) => match tokio::time::timeout(Duration::from_secs(2), qemu.failed()).await {
                Ok(failure) => Err(failure.into()),
                Err(_still_runs) => Err(silent),
            },
        }
    }
}

/// Hands a listening socket to the process, which does not see its path.
fn listen(namespace: &mut Bubblewrap, path: &Path) -> Result<i32, VmmError> {
    match socket::listen(path, Identity::Caller) {
        Ok(listener) => Ok(namespace.pass(listener.into())),
        Err(source) => Err(VmmError::Open { path: path.to_owned(), source }),
    }
}

async fn follow(folder: &Path) -> Result<Tail, VmmError> {
    let path: PathBuf = folder.join(CONSOLE);
    let connected = async { Tail::follow(socket::connect(&path).await?.into_std()?.into()) };
    connected.await.map_err(|source| VmmError::Open { path, source })
}

/// Hands a file to the process by descriptor: no path of the host has to exist in its namespace.
fn inherit(namespace: &mut Bubblewrap, path: &Path) -> Result<String, VmmError> {
    let file = File::open(path).map_err(|source| VmmError::Open { path: path.to_owned(), source })?;
    Ok(format!("/proc/self/fd/{}", namespace.pass(OwnedFd::from(file))))
}

async fn start_vsock(program: &Path, confinement: Confinement<'_>) -> Result<Helper, VmmError> {
    let mut namespace = Bubblewrap::new(confinement.bwrap, confinement.identity);
    namespace.in_folder(confinement.sockets);
    namespace.read_write(confinement.sockets, Path::new(SOCKETS));
    let args: Vec<OsString> = [
        format!("--guest-cid={GUEST_CID}"),
        format!("--socket={SOCKETS}/{VSOCK_DEVICE}"),
        format!("--uds-path={SOCKETS}/{VSOCK}"),
    ]
    .map(OsString::from)
    .to_vec();
    let helper = namespace.command(DEVICE, program, &args)?.start(confinement.station)?;
    // The device says nowhere that it is ready, and QEMU does not wait for it.
    let socket = confinement.sockets.join(VSOCK_DEVICE);
    let listening = async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        waited = tokio::time::timeout(VSOCK_PATIENCE, listening) => match waited {
            Ok(()) => Ok(helper),
            Err(_elapsed) => Err(ProcessError::Ended {
                name: DEVICE.name,
                status: "it runs but does not listen".to_owned(),
                output: helper.output(),
            }.into()),
        },
        failure = helper.failed() => Err(failure.into()),
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        QEMU.name
    }

    fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    async fn ended(&mut self) -> VmmError {
        tokio::select! {
            failure = self.vsock.failed() => failure.into(),
            status = self.qemu.ended() => match status {
                // QEMU exits by itself, without complaint, when the guest does.
                Ok(End::Code(0)) => VmmError::GuestEnded {
                    how: self.monitor.shutdown_reason().await,
                    console: self.console(),
                },
                _ => self.qemu.failed().await.into(),
            },
        }
    }

    async fn attach(&mut self, tag: &str, socket: &str) -> Result<(), VmmError> {
        let port = arguments::port(self.attached);
        self.attached += 1;
        let socket = format!("{SOCKETS}/{socket}");
        self.monitor.add_export(&arguments::export_id(tag), tag, socket, port).await
    }

    async fn pause(&mut self) -> Result<(), VmmError> {
        self.monitor.stop().await
    }

    async fn resume(&mut self) -> Result<(), VmmError> {
        self.monitor.go_on().await
    }

    fn remains(&self) -> Remains {
        Remains::Qemu { process: self.qemu.id(), vsock: self.vsock.id() }
    }

    fn release(self: Box<Self>) {
        self.qemu.release();
        self.vsock.release();
    }

    async fn destroy(&mut self) {
        tokio::join!(self.qemu.kill(), self.vsock.kill());
    }

    fn console(&self) -> String {
        self.console.text()
    }
}
