//! Jails: the agent under bubblewrap, on the host's own kernel.
//!
//! ```text
//!   firn ──spawn──▶ bwrap ──clone──▶ firn-agent (PID 1 of the jail) ──▶ command
//!     └───── socket pair, through which connections are handed over ─────┘
//! ```
//!
//! There is no socket that code in the jail could connect to: the agent's end of each connection is
//! a descriptor it was given, and it passes none on.

use crate::env::{Artifact, Wrapper};
use crate::guest::{Connection, GuestError};
use crate::sandbox::Spec;
use crate::sys::bubblewrap::Bubblewrap;
use crate::sys::cgroup::Cgroup;
use crate::sys::door::Door;
use crate::sys::identity::Identity;
use crate::sys::process::{Helper, HelperCommand, Pids, ProcessError};
use crate::view::View;
use crate::view::jail::{JailViewError, Occupant, Stage};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// What a jail's processes are called in messages.
const NAME: &str = "the jail";

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
    /// The socket pairs cannot be made.
    #[error("cannot make a socket pair")]
    Socket(#[source] io::Error),
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
    /// The group of its processes.
    pub(crate) cgroup: &'a Cgroup,
    /// A folder of the sandbox's.
    pub(crate) folder: &'a Path,
}

/// A jail that takes commands. Dropping it kills everything in it.
#[derive(Debug)]
pub(crate) struct Jail {
    agent: Connection,
    helper: Helper,
    boundary: Boundary,
    /// Closing it ends the agent, and with it the jail.
    _door: Door,
}

/// What holds a jail's processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boundary {
    /// The agent is PID 1 of their namespace: they end with it.
    Namespace,
    /// A wrapper that the agent started.
    Wrapper,
}

/// How long the agent may take to end a wrapper.
const WRAPPER_PATIENCE: Duration = Duration::from_secs(15);

impl Bringup<'_> {
    /// Starts one that sees `view`. Whether it comes up shows with the first operation: waiting for the
    /// agent's hello would make every command wait for it.
    pub(crate) fn run(self, view: &View) -> Result<Jail, JailError> {
        let (uid, gid) = self.spec.user.as_deref().and_then(crate::view::ids).unwrap_or((0, 0));
        let mut namespace = Bubblewrap::empty(self.bwrap, self.identity, self.hostname, Some((uid, gid)));
        namespace.in_folder(self.folder);
        let occupant = Occupant {
            identity: self.identity,
            home: crate::view::home(uid),
            disk: self.spec.disk.0,
            staging: self.folder,
        };
        view.enter(&mut namespace, occupant)?;
        let (door, agents_end) = Door::pair().map_err(JailError::Socket)?;
        let args = ["--door-fd".into(), namespace.pass(agents_end).to_string().into()];
        let helper = namespace.agent(NAME, self.open_agent()?, &args)?;
        self.start(door, helper, Boundary::Namespace)
    }

    /// Starts the agent for a wrapper that makes the jail itself: under the same limits and the same
    /// identity, but where the wrapper needs it, outside.
    pub(crate) fn wrapped(self, artifact: &Artifact) -> Result<(Jail, Wrapper), JailError> {
        let (door, agents_end) = Door::pair().map_err(JailError::Socket)?;
        let agent = self.open_agent()?;
        // What the wrapper leaves at home (jail.nix keeps a passwd file there) is gone with the
        // sandbox.
        let home = self.folder.join("home");
        let made = std::fs::DirBuilder::new().mode(0o700).create(&home);
        made.and_then(|()| self.identity.own(&home))
            .map_err(|source| JailError::Home { path: home.clone(), source })?;
        let mut variables = vec![("HOME", home.into_os_string())];
        let mut all_staged = Vec::new();
        if let Some(stage) = Stage::new(&self.spec.shares, self.identity, self.folder)? {
            for (index, share) in self.spec.shares.iter().enumerate() {
                let (project, staged) = stage.set(index, share)?;
                all_staged.extend(staged);
                variables.extend(artifact.project(&project, &share.target));
            }
        }
        let helper = HelperCommand {
            name: NAME,
            program: format!("/proc/self/fd/{}", agent.as_raw_fd()).into(),
            args: vec!["--door-fd".into(), agents_end.as_raw_fd().to_string().into()],
            identity: self.identity,
            fds: vec![agent, agents_end],
            staged: all_staged,
            folder: self.folder.to_owned(),
            // The agent finds what a command has left by the numbers in `/proc`, which is the host's here.
            pids: Pids::Shared,
        };
        Ok((self.start(door, helper, Boundary::Wrapper)?, artifact.wrapper(variables)))
    }

    fn open_agent(&self) -> Result<OwnedFd, JailError> {
        let failed = |source| JailError::Agent { path: self.agent.to_owned(), source };
        File::open(self.agent).map(OwnedFd::from).map_err(failed)
    }

    fn start(self, door: Door, helper: HelperCommand, boundary: Boundary) -> Result<Jail, JailError> {
        let agent = Connection::begin(connect(&door)?)?;
        let helper = helper.start(self.cgroup)?;
        Ok(Jail { agent, helper, boundary, _door: door })
    }
}

/// Hands the agent one more connection. It need not run yet.
fn connect(door: &Door) -> Result<UnixStream, JailError> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(JailError::Socket)?;
    ours.set_nonblocking(true).map_err(JailError::Socket)?;
    door.hand_over(theirs.into()).map_err(JailError::Socket)?;
    UnixStream::from_std(ours).map_err(JailError::Socket)
}

impl Jail {
    /// The connection to its agent, and a future that is ready when the jail is no more.
    pub(crate) fn parts(&mut self) -> (&mut Connection, impl Future<Output = JailError>) {
        let Jail { agent, helper, .. } = self;
        (agent, async { helper.failed().await.into() })
    }

    /// Ends it at once and waits until no process is left.
    pub(crate) async fn destroy(mut self) {
        if self.boundary == Boundary::Wrapper {
            // Killed at once, it would leave what it started to the control group, if there is one.
            let _ = self.agent.shutdown(WRAPPER_PATIENCE).await;
        }
        self.helper.kill().await;
    }
}
