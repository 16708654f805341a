//! Helper processes: the VMM and those that serve it, or a jail.
//!
//! A helper belongs to the sandbox that started it and never outlives this process: the kernel
//! kills it when we die (`PR_SET_PDEATHSIG`), and the handle kills it when it is dropped. bubblewrap
//! passes the death signal on, but not from its first moment: killed before, it leaves a child behind.
//! So root's helpers have a pid namespace around bubblewrap, which the kernel ends with it. What it
//! says on stderr is kept, the last of it, for the error that tells why it failed.
//!
//! `PR_SET_PDEATHSIG` is about the *thread* that forked. All helpers are started from the thread
//! that runs the (single-threaded) runtime, which is the main thread.
#![allow(unsafe_code, reason = "what happens between fork and exec has no safe wrapper")]

use crate::sys::cgroup::{Cgroup, Wrapped};
use crate::sys::identity::Identity;
use crate::sys::idmap::{self, Staged};
pub(crate) use crate::sys::spawn::Pids;
use crate::sys::spawn::{Process, Program};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::pipe::Receiver;

/// How long bubblewrap may take to follow the program it watched.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How much of a helper's output is kept, in bytes.
const TAIL: usize = 16 * 1024;

/// A helper that has not been started.
#[derive(Debug)]
pub(crate) struct HelperCommand {
    /// What it is called in messages.
    pub(crate) name: &'static str,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// Who it runs as.
    pub(crate) identity: Identity,
    /// Descriptors it inherits under the same numbers. All others stay ours.
    pub(crate) fds: Vec<OwnedFd>,
    /// What is mounted for it alone before it starts.
    pub(crate) staged: Vec<Staged>,
    /// Its working directory: where it belongs, not where the caller happens to be.
    pub(crate) folder: PathBuf,
    /// Its place among processes. For what looks into `/proc` of the host only [`Pids::Shared`] will do.
    pub(crate) pids: Pids,
}

/// A helper could not be started or did not stay up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// `fork` or `exec` failed.
    #[error("cannot start {name} ({})", program.display())]
    Start {
        /// The helper.
        name: &'static str,
        /// What was executed.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ended while it was needed.
    #[error("{name} ended unexpectedly ({status}){}", said(output))]
    Ended {
        /// The helper.
        name: &'static str,
        /// How.
        status: String,
        /// The last of what it wrote.
        output: String,
    },
}

fn said(output: &str) -> String {
    let output = output.trim_end();
    if output.is_empty() { String::new() } else { format!(":\n{output}") }
}

/// A running helper.
#[derive(Debug)]
pub(crate) struct Helper {
    name: &'static str,
    process: Process,
    output: Tail,
}

impl HelperCommand {
    /// Starts it in `cgroup`.
    pub(crate) fn start(self, cgroup: &Cgroup) -> Result<Helper, ProcessError> {
        let HelperCommand { name, program, args, identity, fds, staged, folder, pids } = self;
        let Wrapped { program, args, variable } = cgroup.wrap(program, args);
        let failed = |source| ProcessError::Start { name, program: program.clone(), source };
        let entry = cgroup.entry().map_err(failed)?;
        let staged: Vec<_> =
            staged.into_iter().map(Staged::prepare).collect::<io::Result<_>>().map_err(failed)?;
        let folder =
            CString::new(folder.into_os_string().into_vec()).map_err(io::Error::other).map_err(failed)?;
        let inherited: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let null = File::open("/dev/null").map_err(failed)?;
        let (stdout, to_stdout) = io::pipe().map_err(failed)?;
        let (stderr, to_stderr) = io::pipe().map_err(failed)?;
        let env = variable.map(|(name, value)| {
            let mut variable = OsString::from(name);
            variable.push("=");
            variable.push(value);
            variable
        });
        let start = Program {
            path: program.clone(),
            args,
            env: env.into_iter().collect(),
            stdio: [null.into(), to_stdout.into(), to_stderr.into()],
            pids,
        };
        // SAFETY: only system calls are made, on values that were prepared before.
        let process = unsafe {
            start.start(entry.folder(), |born| {
                // In this order: a cgroup is joined with the rights we give up next, and giving
                // them up clears the death signal.
                entry.join(born)?;
                if libc::chdir(folder.as_ptr()) != 0 {
                    return Err(io::Error::last_os_error());
                }
                idmap::attach(&staged)?;
                raise_file_limit();
                forbid_core_files();
                become_identity(identity)?;
                // Out of the terminal's foreground: Ctrl-C is for us, and we decide who ends.
                if libc::setsid() < 0 {
                    return Err(io::Error::last_os_error());
                }
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                keep_descriptors()?;
                for fd in &inherited {
                    if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            })
        };
        let process = process.map_err(failed)?;
        drop(fds);
        let output = Tail::default();
        for stream in [OwnedFd::from(stdout), OwnedFd::from(stderr)] {
            output.follow(Receiver::from_owned_fd(stream).map_err(failed)?);
        }
        Ok(Helper { name, process, output })
    }
}

/// How many descriptors a helper may have: virtiofsd, which here may not use file handles, keeps
/// one for each file the guest's kernel remembers. The kernel's own bound (`fs.nr_open`) is this.
const DESCRIPTORS: libc::rlim_t = 1 << 20;

/// Takes as many descriptors as we may have. Fewer are no failure. Async-signal-safe.
fn raise_file_limit() {
    let most = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
    let mut given = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls on values that outlive them.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const most) != 0
            && libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut given) == 0
        {
            given.rlim_cur = given.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const given);
        }
    }
}

/// A core file would be written where the process happens to be, or handed to a program of the
/// host's. 1 forbids both: 0 forbids only the file (`core`(5)). Async-signal-safe.
fn forbid_core_files() {
    let none = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: a plain system call on a value that outlives it.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
}

/// Has every descriptor above stderr closed by the exec to come: ours already are, but whoever started
/// us may have passed some on. Async-signal-safe.
fn keep_descriptors() -> io::Result<()> {
    /// Of linux/close_range.h.
    const CLOEXEC: libc::c_uint = 4;
    /// Before Linux 5.11 they are gone through one by one, to the usual limit.
    const USUAL_LIMIT: RawFd = 1024;
    // SAFETY: plain system calls on numbers.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOEXEC) == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {
                for fd in 3..USUAL_LIMIT {
                    libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                }
                Ok(())
            }
            error => Err(error),
        }
    }
}

/// Gives up root for another identity. Async-signal-safe.
fn become_identity(identity: Identity) -> io::Result<()> {
    let Identity::Stranger { id, group } = identity else { return Ok(()) };
    let group = group.unwrap_or(id);
    // Not the C library's functions, which act on all threads that it remembers (`nptl`(7)).
    // SAFETY: plain system calls; `group` outlives the call that reads it.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, 1, &raw const group) == 0
            && libc::syscall(libc::SYS_setresgid, id, id, id) == 0
            && libc::syscall(libc::SYS_setresuid, id, id, id) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Helper {
    /// The last of what it wrote to stdout and stderr.
    pub(crate) fn output(&self) -> String {
        self.output.text()
    }

    /// Waits until it has ended. May be called again, and dropped at any time.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// Waits until it has ended, which it should not have.
    pub(crate) async fn failed(&mut self) -> ProcessError {
        let status = match self.process.wait().await {
            Ok(status) => describe(status),
            Err(error) => error.to_string(),
        };
        // What it said last may still be on its way to us.
        tokio::task::yield_now().await;
        ProcessError::Ended { name: self.name, status, output: self.output() }
    }

    /// Its process and those directly below: with bubblewrap, the monitor outside and the program.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let Some(pid) = self.process.id() else { return Vec::new() };
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        std::iter::once(pid)
            .chain(children.split_whitespace().filter_map(|child| child.parse().ok()))
            .collect()
    }

    /// Kills it, if it still runs, and waits until it is gone: the program first, whose end its
    /// monitor waits for, so that both are gone when this returns.
    pub(crate) async fn kill(&mut self) {
        for program in self.processes().into_iter().skip(1) {
            let _ = kill(Pid::from_raw(program.cast_signed()), Signal::SIGKILL);
        }
        let _ = tokio::time::timeout(KILL_PATIENCE, self.process.wait()).await;
        self.process.kill();
        let _ = self.process.wait().await;
    }
}

/// A process, told from a later one with the same number by when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pid: u32,
    /// In clock ticks since the host booted: field 22 of `/proc/PID/stat` (`proc(5)`).
    start_time: u64,
}

impl ProcessId {
    /// This process.
    pub(crate) fn ours() -> ProcessId {
        let pid = std::process::id();
        ProcessId { pid, start_time: start_time(pid).unwrap_or_default() }
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything: count behind it. A zombie
    // has ended.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(18)?.parse().ok() }
}

/// An exit status in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.to_string())
        }
        (None, None) => "unknown status".to_owned(),
    }
}

/// The last bytes of a stream that somebody hostile may be writing: bounded, however much comes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// Reads `stream` to its end in the background.
    pub(crate) fn follow(&self, mut stream: impl AsyncRead + Unpin + Send + 'static) {
        let tail = self.clone();
        tokio::spawn(async move {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut chunk).await {
                let mut kept = tail.0.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&chunk[..read]);
                let excess = kept.len().saturating_sub(TAIL);
                kept.drain(..excess);
            }
        });
    }

    /// What was kept, as text that a terminal can be shown.
    pub(crate) fn text(&self) -> String {
        let kept: Vec<u8> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        String::from_utf8_lossy(&kept)
            .chars()
            .filter(|character| *character == '\n' || !character.is_control())
            .collect()
    }
}
