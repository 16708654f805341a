//! The process between the agent and a command.
//!
//! Each exec has one, a copy of the agent that never becomes anything else:
//!
//! ```text
//!   agent ──fork──▶ supervisor ──vfork, execve──▶ command ──▶ its children …
//!     ◀── Report ───┤  subreaper: whatever loses its parent below becomes its child
//!     ─── Order ───▶┘
//! ```
//!
//! It is why a command and all it started can be found and killed with certainty: nothing below a
//! subreaper gets out from under it. A cgroup per command would do the same in a guest only, and
//! making, joining and removing one costs each exec more than the rare walk through `/proc`. It alone waits for the command, so a
//! signal is never sent to a number that has been given to somebody else, and the agent as PID 1 can
//! reap whatever turns up. It ends when nothing is left below it, and at the latest when the agent
//! has gone (its end of the socket pair closes).

use super::command::{Command, Resolved};
use super::report::{Ended, Order, PACKET, Report, Stage, StartFailure};
use super::tree::{self, Tree};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

/// What the agent hands to a supervisor.
pub(crate) struct Brief {
    pub(crate) command: Command,
    pub(crate) stdio: Stdio,
    /// More descriptors for the command, in the order of their numbers, without a gap.
    pub(crate) beyond: Vec<Beyond>,
    /// The supervisor's end of the socket pair.
    pub(crate) control: OwnedFd,
}

/// What a supervisor uses of the agent's.
pub(crate) struct Inherited<'a> {
    /// The agent's own descriptor for SIGCHLD: a signalfd tells of the signals of whoever reads it.
    pub(crate) signals: &'a SignalFd,
    /// Where a command enters its cgroup.
    pub(crate) entrance: Option<BorrowedFd<'a>>,
    /// Where programs are, for a command that does not say.
    pub(crate) search_path: &'a OsStr,
}

/// The command's ends of its streams.
pub(crate) enum Stdio {
    /// Stdin, stdout, stderr.
    Pipes([OwnedFd; 3]),
    /// All three.
    Terminal(OwnedFd),
}

/// A descriptor for a command besides its streams.
pub(crate) struct Beyond {
    pub(crate) fd: OwnedFd,
    /// Its number in the command: above its limit on descriptors if need be, which is for those it opens.
    pub(crate) number: RawFd,
}

impl Stdio {
    fn each(&self) -> [&OwnedFd; 3] {
        match self {
            Stdio::Pipes([stdin, stdout, stderr]) => [stdin, stdout, stderr],
            Stdio::Terminal(terminal) => [terminal; 3],
        }
    }
}

/// The life of a supervisor.
pub(crate) fn run(brief: Brief, inherited: &Inherited<'_>) -> Infallible {
    let Inherited { signals, entrance, search_path } = inherited;
    let Brief { command, stdio, beyond, control } = brief;
    let report = |report: Report| {
        let _ = send(control.as_raw_fd(), &report.to_packet(), MsgFlags::MSG_NOSIGNAL);
    };
    let mut kept = vec![control.as_raw_fd(), signals.as_fd().as_raw_fd()];
    kept.extend(entrance.map(|entrance| entrance.as_raw_fd()));
    kept.extend(stdio.each().map(|stream| stream.as_raw_fd()));
    kept.extend(beyond.iter().map(|beyond| beyond.fd.as_raw_fd()));
    close_all_but(&mut kept);
    // The agent is one too, but that does not pass to its children.
    let adopted = prctl::set_child_subreaper(true);
    let _ = prctl::set_name(c"firn-supervisor");

    let started = adopted
        .map_err(|errno| StartFailure { stage: Stage::Process, errno: errno as i32 })
        .and_then(|()| command.resolve(search_path))
        .and_then(|command| start(&command, &stdio, &beyond, *entrance));
    drop((stdio, beyond));
    match started {
        Err(failure) => report(Report::Failed(failure)),
        Ok(pid) => {
            let since = Instant::now();
            report(Report::Started { pid: pid.as_raw() });
            report(Report::Ended(watch(pid, since, &control, signals)));
        }
    }
    sys::exit_now(0)
}

/// Closes every descriptor of the agent's but these.
pub(crate) fn close_all_but(kept: &mut [RawFd]) {
    kept.sort_unstable();
    let mut next = 0;
    for fd in kept {
        sys::close_between(next, *fd - 1);
        next = *fd + 1;
    }
    sys::close_between(next, RawFd::MAX);
}

/// Makes the command's process. On success `execve` is done.
fn start(
    command: &Resolved,
    stdio: &Stdio,
    beyond: &[Beyond],
    entrance: Option<BorrowedFd<'_>>,
) -> Result<Pid, StartFailure> {
    let mut failure = None;
    let mut marked = false;
    let mut child = || {
        marked = mark_for_death(c"self/oom_score_adj");
        failure = Some(become_command(command, stdio, beyond, entrance));
        127
    };
    let pid = sys::vfork(&mut child)
        .map_err(|errno| StartFailure { stage: Stage::Process, errno: errno as i32 })?;
    // The child has run on this memory: what it wrote is here.
    match failure {
        None => {
            // What an ordinary user's process may not do to itself while it is no more dumpable than
            // the agent, its parent may do to it now that it is a program of its own.
            if !marked && let Ok(path) = CString::new(format!("{pid}/oom_score_adj")) {
                mark_for_death(&path);
            }
            Ok(pid)
        }
        Some(failure) => Err(failure),
    }
}

/// Has the kernel kill this process, and what it starts, before all others when there is no memory left.
/// Else it might be the agent or a supervisor: what fills the memory need not be in a process, a file in
/// memory does as well. The highest value that there is (`proc(5)`), because it outweighs any size; among
/// commands the largest still goes first. Whether it was possible.
pub(crate) fn mark_for_death(path: &CStr) -> bool {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    nix::fcntl::open(path, flags, Mode::empty()).and_then(|file| nix::unistd::write(file, b"1000")).is_ok()
}

/// Lowers limits, soft and hard, where they are higher.
fn limit(limits: &[(Resource, u64)]) -> Result<(), Errno> {
    for (resource, value) in limits {
        let (_, hard) = getrlimit(*resource)?;
        let value = hard.min(*value);
        setrlimit(*resource, value, value)?;
    }
    Ok(())
}

/// The command's process up to `execve`. It shares the supervisor's memory: no lock, no handler and
/// nothing that must be undone.
fn become_command(
    command: &Resolved,
    stdio: &Stdio,
    beyond: &[Beyond],
    entrance: Option<BorrowedFd<'_>>,
) -> StartFailure {
    let at = |stage: Stage| move |errno: Errno| StartFailure { stage, errno: errno as i32 };
    let prepare = || {
        nix::unistd::setsid().map_err(at(Stage::Process))?;
        if let Some(entrance) = entrance {
            // A command with all rights may have taken the cgroup away. That is its own loss.
            let _ = nix::unistd::write(entrance, b"0");
        }
        if let Stdio::Terminal(terminal) = stdio {
            sys::control_terminal(terminal).map_err(at(Stage::Terminal))?;
        }
        for (number, stream) in (0..).zip(stdio.each()) {
            sys::place(stream.as_fd(), number).map_err(at(Stage::Stdio))?;
        }
        let mut next = 3;
        if let (Some(first), Some(last)) = (beyond.first(), beyond.last()) {
            place_beyond(beyond, last.number).map_err(at(Stage::Stdio))?;
            sys::close_between(next, first.number - 1);
            next = last.number + 1;
        }
        sys::close_between(next, RawFd::MAX);
        if let Some(identity) = &command.identity {
            identity.assume(command.own_identity).map_err(at(Stage::Identity))?;
        }
        // After the change of user, which clears it. A second net: should the supervisor be killed,
        // the command at least goes with it at once.
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Stage::Process))?;
        nix::unistd::chdir(command.cwd.as_c_str()).map_err(at(Stage::Directory))?;
        // After the change of user: who is one process too many as another user could not execute.
        limit(&command.limits).map_err(at(Stage::Limits))?;
        sys::restore_sigpipe();
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
            .map_err(at(Stage::Process))
    };
    match prepare() {
        Ok(()) => execute(command),
        Err(failure) => failure,
    }
}

/// Gives descriptors their numbers. A process may not have one above its soft limit, but may keep it when the
/// limit is lowered.
fn place_beyond(beyond: &[Beyond], last: RawFd) -> Result<(), Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = u64::from(last.unsigned_abs()) + 1;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(needed).min(hard), hard)?;
    for Beyond { fd, number } in beyond {
        sys::place(fd.as_fd(), *number)?;
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
}

/// Tries the candidates in order, as `execvp(3)` does, but never falls back to a shell.
fn execute(command: &Resolved) -> StartFailure {
    let mut kept = StartFailure { stage: Stage::Program, errno: Errno::ENOENT as i32 };
    for program in &command.candidates {
        let Err(errno) = nix::unistd::execve(program, &command.argv, &command.env);
        let failure = StartFailure { stage: Stage::Program, errno: errno as i32 };
        match errno {
            Errno::ENOENT if is_there(program) => {
                return StartFailure { stage: Stage::Interpreter, ..failure };
            }
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Another folder may hold one that can be executed. If none does, this is the answer.
            Errno::EACCES => kept = failure,
            _ => return failure,
        }
    }
    kept
}

fn is_there(program: &CString) -> bool {
    nix::unistd::access(program.as_c_str(), nix::unistd::AccessFlags::F_OK).is_ok()
}

/// Waits for the command to end, doing what the agent says meanwhile; then ends all it started.
fn watch(command: Pid, since: Instant, control: &OwnedFd, signals: &SignalFd) -> Ended {
    let mut killed = false;
    let mut ended = loop {
        if let Some(ended) = reap(command, since) {
            break ended;
        }
        let mut ready = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
        ];
        match nix::poll::poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => killed = true,
        }
        let [child, order] = ready.map(|ready| ready.any().unwrap_or(true));
        if child {
            let _ = signals.read_signal();
        }
        // An order is carried out only while the command has not been waited for: see `reap`.
        if let Some(ended) = reap(command, since) {
            break ended;
        }
        if order {
            let mut packet = [0; PACKET];
            match recv(control.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Ok(length) => match Order::from_packet(&packet[..length]) {
                    Some(Order::Signal(signal)) => send_signal(command, signal),
                    // Nothing at all: the agent has gone.
                    Some(Order::Kill) | None => killed = true,
                },
                Err(_) => killed = true,
            }
        }
        if killed {
            // The command first and by its own number: it counts as killed only if this, and not
            // its own end, is what happens to it.
            let _ = sys::kill(command.as_raw(), libc::SIGSTOP);
            if let Some(ended) = reap(command, since) {
                killed = false;
                break ended;
            }
            let tree = Tree::below(Pid::this());
            tree.stop();
            let _ = sys::kill(command.as_raw(), libc::SIGKILL);
            let _ = sys::kill(-command.as_raw(), libc::SIGKILL);
            break wait_for_death(command, since, signals);
        }
    };
    ended.killed = killed;
    ended.leftovers = tree::end_all(signals);
    ended
}

/// Waits for every child that has ended. The command's end is the answer when it is among them.
fn reap(command: Pid, since: Instant) -> Option<Ended> {
    let mut ended = None;
    while let Ok(Some(waited)) = sys::wait_any(0) {
        if waited.pid == command {
            ended = Some(Ended {
                status: waited.status,
                killed: false,
                duration: since.elapsed(),
                user: waited.user,
                system: waited.system,
                max_rss_bytes: waited.max_rss_bytes,
                leftovers: 0,
            });
        }
    }
    ended
}

/// Waits for a command that has been sent SIGKILL. One that cannot die (it hangs in the kernel) is
/// reported as killed after a while; it is counted among the leftovers then.
fn wait_for_death(command: Pid, since: Instant, signals: &SignalFd) -> Ended {
    let deadline = Instant::now() + tree::PATIENCE;
    loop {
        if let Some(ended) = reap(command, since) {
            return ended;
        }
        if Instant::now() > deadline {
            return Ended { status: libc::SIGKILL, duration: since.elapsed(), ..Ended::default() };
        }
        tree::pause(signals);
    }
}

fn send_signal(command: Pid, signal: i32) {
    // The group is the command's own since its setsid. A command may have left it; then the signal
    // is for the command alone.
    if sys::kill(-command.as_raw(), signal) == Err(Errno::ESRCH) {
        let _ = sys::kill(command.as_raw(), signal);
    }
}
