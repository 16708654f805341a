//! The agent's state: what all connections share.
//!
//! Owns the register of supervisors and the reaping of children. Lives as long as the process, on
//! its only thread. Connections call it; it knows nothing of the protocol.

use crate::exec::{self, Order, Tree};
use crate::guest::{Guest, Tally};
use crate::kept::Register;
use crate::session::Sessions;
use crate::sys;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::Pid;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// How long commands may take to die at shutdown. Longer than a supervisor tries.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(12);

/// How long to look for processes whose supervisor was killed.
const STRAY_PATIENCE: Duration = Duration::from_secs(10);

/// Why the agent cannot run here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AgentError {
    #[error("cannot open {path}")]
    Open {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot make /proc the working directory")]
    EnterProc(#[source] Errno),
    #[error("cannot become the parent of orphans")]
    Subreaper(#[source] Errno),
    #[error("cannot receive SIGCHLD")]
    Signals(#[source] Errno),
    #[error("cannot watch for signals")]
    Watch(#[source] io::Error),
}

/// Which process the agent is.
pub(crate) enum Role {
    /// A process among others: in a jail, in a test.
    Plain {
        /// Where commands are looked for, when nobody says.
        path: OsString,
    },
    /// What makes a guest a sandbox: PID 1 of a lean guest, a service of one with an init of its own.
    Guest(Guest),
}

/// See the module.
pub(crate) struct Agent {
    pub(crate) role: Role,
    /// `/dev/null` from before anybody could replace it.
    null: File,
    signals: SignalFd,
    /// The same, to wait for.
    signalled: AsyncFd<OwnedFd>,
    /// Supervisors and workers that have not been reaped, and the way to talk to each supervisor.
    supervisors: RefCell<BTreeMap<i32, Weak<AsyncFd<OwnedFd>>>>,
    commands: Cell<u32>,
    pub(crate) kept: Register,
    pub(crate) sessions: Sessions,
    /// Told whenever a supervisor was reaped or a command is over.
    changed: Notify,
    shutting_down: Cell<bool>,
}

/// Prepares the process itself: nothing of how it was started may reach a command. Before the
/// runtime exists.
pub(crate) fn prepare_process() -> Result<(), AgentError> {
    // First: a process of the same user could otherwise attach to the agent or read its memory.
    let _ = prctl::set_dumpable(false);
    sys::reset_signals();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // Orphans whose supervisor was killed come here rather than get away.
    prctl::set_child_subreaper(true).map_err(AgentError::Subreaper)?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).map_err(AgentError::Signals)
}

/// Lets go of what came from whoever started this process, which may have been careless: variables, and
/// all descriptors but `kept`. Before anything is opened. Stdin, stdout and stderr stay; Rust's runtime
/// has put `/dev/null` where one of them was closed.
///
/// Gives where commands are to be looked for: a wrapper that hands a socket on knows where the programs of its
/// jail are, which may be in none of the usual folders.
pub(crate) fn forget_start(kept: Option<RawFd>) -> OsString {
    #[allow(clippy::disallowed_methods, reason = "the agent has no configuration but this")]
    let path = kept.and_then(|_| std::env::var_os("PATH")).unwrap_or_else(|| exec::USUAL_PATH.into());
    // The variables are gone; that their room shows is of no importance.
    let _ = sys::clear_environment();
    match kept {
        Some(kept) => {
            sys::close_between(3, kept - 1);
            sys::close_between(kept.saturating_add(1), RawFd::MAX);
        }
        None => sys::close_between(3, RawFd::MAX),
    }
    path
}

/// Makes `/proc` the working directory, for [`Tree`] and statistics.
pub(crate) fn enter_proc() -> Result<(), AgentError> {
    nix::unistd::chdir("/proc").map_err(AgentError::EnterProc)
}

impl Agent {
    /// The state of an agent in this role. Inside the runtime, after [`prepare_process`].
    pub(crate) fn new(role: Role) -> Result<Rc<Agent>, AgentError> {
        const NULL: &str = "/dev/null";
        let null = File::options()
            .read(true)
            .write(true)
            .open(NULL)
            .map_err(|source| AgentError::Open { path: NULL, source })?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(AgentError::Signals)?;
        let signalled = signals
            .as_fd()
            .try_clone_to_owned()
            .and_then(|signals| sys::watch(signals, Interest::READABLE))
            .map_err(AgentError::Watch)?;
        Ok(Rc::new(Agent {
            role,
            null,
            signals,
            signalled,
            supervisors: RefCell::default(),
            commands: Cell::new(0),
            kept: Register::default(),
            sessions: Sessions::default(),
            changed: Notify::new(),
            shutting_down: Cell::new(false),
        }))
    }

    /// Waits for every child that ends, for ever.
    pub(crate) async fn reap(&self) {
        loop {
            if let Ok(mut ready) = self.signalled.readable().await {
                while matches!(self.signals.read_signal(), Ok(Some(_))) {}
                ready.clear_ready();
            }
            while let Ok(Some(waited)) = sys::wait_any(libc::WUNTRACED) {
                let pid = waited.pid.as_raw();
                if libc::WIFSTOPPED(waited.status) {
                    // Only a command can have done that, and nobody would end it any more.
                    if self.supervisors.borrow().contains_key(&pid) {
                        let _ = sys::kill(pid, libc::SIGKILL);
                    }
                } else if self.supervisors.borrow_mut().remove(&pid).is_some() {
                    self.changed.notify_waiters();
                }
            }
        }
    }

    /// `/dev/null`, to be a command's stdin.
    pub(crate) fn null(&self) -> io::Result<OwnedFd> {
        self.null.try_clone().map(OwnedFd::from)
    }

    /// The descriptor that tells of SIGCHLD, for a supervisor: it tells whoever reads it of their own.
    pub(crate) fn signals(&self) -> &SignalFd {
        &self.signals
    }

    /// Where commands enter their cgroup, if they have one.
    pub(crate) fn entrance(&self) -> Option<BorrowedFd<'_>> {
        match &self.role {
            Role::Plain { .. } => None,
            Role::Guest(guest) => guest.entrance(),
        }
    }

    /// How often limits were hit so far that the agent's own system counts.
    pub(crate) fn tally(&self) -> Tally {
        match &self.role {
            Role::Plain { .. } => Tally::default(),
            Role::Guest(guest) => guest.tally(),
        }
    }

    /// Where commands are looked for, when nobody says.
    pub(crate) fn search_path(&self) -> &OsStr {
        match &self.role {
            Role::Plain { path } => path,
            Role::Guest(guest) => OsStr::new(guest.search_path()),
        }
    }

    /// How many commands run.
    pub(crate) fn commands(&self) -> u32 {
        self.commands.get()
    }

    /// Whether no further command may start.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shutting_down.get()
    }

    /// Enters a supervisor in the register.
    pub(crate) fn register(&self, supervisor: Pid, control: &Rc<AsyncFd<OwnedFd>>) {
        self.supervisors.borrow_mut().insert(supervisor.as_raw(), Rc::downgrade(control));
        self.commands.set(self.commands.get() + 1);
    }

    /// Enters a worker in the register: it is no command, but neither is it a stray.
    pub(crate) fn register_worker(&self, worker: Pid) {
        self.supervisors.borrow_mut().insert(worker.as_raw(), Weak::new());
    }

    /// The numbers of the agent's own processes.
    pub(crate) fn own_processes(&self) -> BTreeSet<i32> {
        let supervisors = self.supervisors.borrow();
        supervisors.keys().copied().chain([Pid::this().as_raw()]).collect()
    }

    /// A command is over.
    pub(crate) fn command_over(&self) {
        self.commands.set(self.commands.get().saturating_sub(1));
        self.changed.notify_waiters();
    }

    /// Kills a supervisor unless it has been reaped.
    pub(crate) fn kill_supervisor(&self, supervisor: Pid) {
        if self.supervisors.borrow().contains_key(&supervisor.as_raw()) {
            let _ = sys::kill(supervisor.as_raw(), libc::SIGKILL);
        }
    }

    /// Ends what a supervisor that died has left behind. Its children become the agent's when it is
    /// reaped, not sooner.
    pub(crate) async fn end_strays_of(&self, supervisor: Pid) {
        self.kill_supervisor(supervisor);
        let ended = async {
            loop {
                let changed = self.changed.notified();
                if !self.supervisors.borrow().contains_key(&supervisor.as_raw()) {
                    break;
                }
                changed.await;
            }
            loop {
                let spared = self.supervisors.borrow().keys().copied().collect();
                let strays = Tree::below(Pid::this()).sparing(spared);
                strays.stop();
                if strays.kill() == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(STRAY_PATIENCE, ended).await.is_err() {
            crate::log::error("processes whose supervisor was killed would not die");
        }
    }

    /// Ends all commands, for good.
    pub(crate) async fn end_commands(&self) {
        self.shutting_down.set(true);
        for control in self.supervisors.borrow().values().filter_map(Weak::upgrade) {
            let packet = Order::Kill.to_packet();
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let _ = send(control.get_ref().as_raw_fd(), &packet, flags);
        }
        let ended = async {
            loop {
                let changed = self.changed.notified();
                if self.commands.get() == 0 {
                    break;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(SHUTDOWN_PATIENCE, ended).await.is_err() {
            crate::log::error("commands would not die at shutdown");
        }
    }
}
