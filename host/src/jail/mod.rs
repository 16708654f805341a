//! Jails: the agent under bubblewrap, on the host's own kernel.
//!
//! ```text
//!   firn ──start──▶ bwrap ──clone──▶ firn-agent (PID 1 of the jail) ──▶ command
//!     └── connect ──▶ agent.sock ───────── inherited ──┘
//! ```
//!
//! The agent listens on a socket whose path is not in the jail: it was given the descriptor, and passes
//! none on. Connections can be made, and used, before it runs.

use crate::env::{Artifact, Variables, Wrapper};
use crate::guest::{Dialer, GuestError};
use crate::spec::Spec;
use crate::sys::bubblewrap::Bubblewrap;
use crate::sys::cgroup::{Cgroup, PauseError};
use crate::sys::identity::Identity;
use crate::sys::process::{
    Helper, HelperCommand, Mounts, Pids, ProcessError, ProcessId, Reports, Role, Station, Unmounting,
};
use crate::sys::socket;
use crate::sys::staging::Staged;
use crate::view::View;
use crate::view::jail::{JailViewError, Occupant, Stage};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a jail's processes are.
const ROLE: Role = Role { id: "jail", name: "the jail" };

/// The agent's socket in the sandbox's folder.
const SOCKET: &str = "agent.sock";

/// A jail that cannot be had, or that ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JailError {
    /// The agent cannot be read.
    #[error("cannot open {}", path.display())]
    Agent {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A folder for a wrapper could not be made.
    #[error("cannot make {}", path.display())]
    Home {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What it should see cannot be shown.
    #[error(transparent)]
    View(#[from] JailViewError),
    /// The agent's socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// bubblewrap did not start, or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The agent does not behave.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// What a jail is made with.
#[derive(Debug)]
pub(crate) struct Bringup<'a> {
    /// `bwrap`.
    pub(crate) bwrap: &'a Path,
    /// `firn-agent`.
    pub(crate) agent: &'a Path,
    /// What was asked for.
    pub(crate) spec: &'a Spec,
    /// Its host name.
    pub(crate) hostname: &'a str,
    /// Who it is on the host.
    pub(crate) identity: Identity,
    /// Where it is started, in a folder of the sandbox's.
    pub(crate) station: Station<'a>,
}

/// A jail that takes commands. Dropping it kills everything in it, [`Jail::release`] does not.
#[derive(Debug)]
pub(crate) struct Jail {
    helper: Helper,
    socket: PathBuf,
    boundary: Boundary,
}

/// What has to be known of a jail to take it over, beside its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remains {
    process: ProcessId,
    boundary: Boundary,
}

/// What holds a jail's processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Boundary {
    /// The agent is PID 1 of their namespace: they end with it.
    Namespace,
    /// A wrapper, which the agent started or which started it.
    Wrapper,
}

/// See [`Bringup::surroundings`].
struct Surroundings {
    variables: Variables,
    staged: Vec<Staged>,
}

/// Where a wrapper finds programs, if it does not know: as the agent has it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long the agent may take to end a wrapper.
const WRAPPER_PATIENCE: Duration = Duration::from_secs(15);

impl Bringup<'_> {
    /// Starts one that sees `view`. Whether it comes up shows with the first operation: waiting for the
    /// agent's hello would make every command wait for it.
    pub(crate) fn run(self, view: &View) -> Result<Jail, JailError> {
        let (uid, gid) = self.spec.user.as_deref().and_then(crate::view::ids).unwrap_or((0, 0));
        let mut namespace = Bubblewrap::empty(self.bwrap, self.identity, self.hostname, Some((uid, gid)));
        namespace.in_folder(self.station.folder);
        let occupant = Occupant {
            identity: self.identity,
            home: crate::view::home(uid),
            disk: self.spec.disk.0,
            staging: self.station.folder,
        };
        view.enter(&mut namespace, occupant)?;
        let (socket, listener) = self.listen()?;
        let args = ["--listen-fd".into(), namespace.pass(listener).to_string().into()];
        let command = namespace.agent(ROLE, self.open_agent()?, &args)?;
        let helper = command.start(self.station)?;
        Ok(Jail { helper, socket, boundary: Boundary::Namespace })
    }

    /// Starts the agent for a wrapper that makes the jail itself: under the same limits and the same
    /// identity, but where the wrapper needs it, outside.
    pub(crate) fn wrapped(self, artifact: &Artifact) -> Result<(Jail, Wrapper), JailError> {
        let (socket, listener) = self.listen()?;
        let agent = self.open_agent()?;
        let Surroundings { variables, staged } = self.surroundings(artifact)?;
        let command = HelperCommand {
            role: ROLE,
            program: format!("/proc/self/fd/{}", agent.as_raw_fd()).into(),
            args: vec!["--listen-fd".into(), listener.as_raw_fd().to_string().into()],
            variables: Vec::new(),
            identity: self.identity,
            fds: vec![agent, listener],
            third: None,
            staged,
            folder: self.station.folder.to_owned(),
            // The agent finds what a command has left by the numbers in `/proc`, which is the host's here.
            pids: Pids::Shared,
            reports: Reports::Nothing,
        };
        let helper = command.start(self.station)?;
        Ok((Jail { helper, socket, boundary: Boundary::Wrapper }, artifact.wrapper(variables)))
    }

    /// Starts the wrapper of an environment that makes a jail with an agent in it, which serves the socket that
    /// is its descriptor 3.
    pub(crate) fn serving(self, artifact: &Artifact) -> Result<Jail, JailError> {
        let program = artifact.session_run.clone().unwrap_or_else(|| artifact.folder.join("bin/session-run"));
        let (socket, listener) = self.listen()?;
        let Surroundings { mut variables, staged } = self.surroundings(artifact)?;
        // What a wrapper is given by an agent: jail.nix's fail where one of them is not set.
        let usual = [("PATH", PATH), ("SHELL", "/bin/sh"), ("LANG", "C.UTF-8"), ("TERM", "dumb")];
        variables.extend(usual.map(|(name, value)| (name, value.into())));
        let command = HelperCommand {
            role: ROLE,
            program,
            args: Vec::new(),
            variables,
            identity: self.identity,
            fds: Vec::new(),
            third: Some(listener),
            staged,
            folder: self.station.folder.to_owned(),
            pids: Pids::best(),
            reports: Reports::Nothing,
        };
        let helper = command.start(self.station)?;
        Ok(Jail { helper, socket, boundary: Boundary::Wrapper })
    }

    /// What a wrapper finds where it makes its jail: a home, and the caller's folder as its project.
    fn surroundings(&self, artifact: &Artifact) -> Result<Surroundings, JailError> {
        // What the wrapper leaves at home (jail.nix keeps a passwd file there) is gone with the
        // sandbox.
        let home = self.station.folder.join("home");
        let made = std::fs::DirBuilder::new().mode(0o700).create(&home);
        made.and_then(|()| self.identity.own(&home))
            .map_err(|source| JailError::Home { path: home.clone(), source })?;
        let mut found = Surroundings { variables: vec![("HOME", home.into_os_string())], staged: Vec::new() };
        if let Some(stage) = Stage::new(&self.spec.shares, self.identity, self.station.folder)? {
            for (index, share) in self.spec.shares.iter().enumerate() {
                let (project, staged) = stage.set(index, share)?;
                found.staged.extend(staged);
                found.variables.extend(artifact.project(&project, &share.target));
            }
        }
        Ok(found)
    }

    fn open_agent(&self) -> Result<OwnedFd, JailError> {
        let failed = |source| JailError::Agent { path: self.agent.to_owned(), source };
        File::open(self.agent).map(OwnedFd::from).map_err(failed)
    }

    fn listen(&self) -> Result<(PathBuf, OwnedFd), JailError> {
        let path = self.station.folder.join(SOCKET);
        // Ours alone: what the jail's identity could connect to, code in a jail of the same one could.
        match socket::listen(&path, Identity::Caller) {
            Ok(listener) => Ok((path, listener.into())),
            Err(source) => Err(JailError::Listen { path, source }),
        }
    }
}

impl Jail {
    /// Takes over what was started from here or by a process that is gone, with its files in `folder`.
    /// `None`: it has ended too.
    pub(crate) fn adopt(remains: &Remains, folder: &Path) -> Result<Option<Jail>, JailError> {
        let Remains { process, boundary } = *remains;
        let helper = Helper::adopt(ROLE, process, folder)?;
        Ok(helper.map(|helper| Jail { helper, socket: folder.join(SOCKET), boundary }))
    }

    /// What [`Jail::adopt`] needs.
    pub(crate) fn remains(&self) -> Remains {
        Remains { process: self.helper.id(), boundary: self.boundary }
    }

    /// Lets it live on without us.
    pub(crate) fn release(self) {
        self.helper.release();
    }

    /// The way to its agent.
    pub(crate) fn dialer(&self) -> Dialer {
        Dialer::jail(self.socket.clone())
    }

    /// Whether all files in its folder are ours: few, and soon removed.
    pub(crate) fn is_lean(&self) -> bool {
        self.boundary == Boundary::Namespace
    }

    /// The processes that all others of it are below.
    pub(crate) fn processes(&self) -> Vec<ProcessId> {
        vec![self.helper.id()]
    }

    /// Waits until it is no more, and says why. May be called again, and dropped at any time.
    pub(crate) async fn ended(&self) -> JailError {
        self.helper.failed().await.into()
    }

    /// Stops everything in it where it is. `cgroup` is its group.
    pub(crate) async fn pause(&self, cgroup: &Cgroup) -> Result<(), PauseError> {
        cgroup.freeze().await
    }

    /// Lets it go on.
    pub(crate) fn resume(&self, cgroup: &Cgroup) -> Result<(), PauseError> {
        cgroup.thaw()
    }

    /// Ends it at once and waits until no process is left; before it waits it does something else. `cgroup`
    /// is its group. What is not yet unmounted is the result's to unmount.
    pub(crate) async fn destroy(
        self,
        cgroup: &Cgroup,
        unmounting: Unmounting,
        meanwhile: impl FnOnce(),
    ) -> Mounts {
        let mounts = match self.boundary {
            Boundary::Namespace => self.helper.begin_kill(unmounting),
            Boundary::Wrapper => Mounts::default(),
        };
        // What is frozen cannot be asked, and with version 1 not even be killed.
        let _ = cgroup.thaw();
        if self.boundary == Boundary::Wrapper {
            // Killed at once, it would leave what it started to the control group, if there is one.
            let asked = async { self.dialer().dial().await?.shutdown(WRAPPER_PATIENCE).await };
            let _ = tokio::time::timeout(WRAPPER_PATIENCE, asked).await;
        }
        meanwhile();
        self.helper.kill().await;
        mounts
    }
}
