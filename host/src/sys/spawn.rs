//! Starting a process in a control group.
//!
//! `std` can start a process and let it move itself. Into a group of version 2 that takes a moment in
//! which no process on the host may be made or end (see [`super::cgroup::Entry`]): up to 20 ms, a jail
//! several times over. A process that is *made* in its group (`CLONE_INTO_CGROUP` of clone3(2), Linux
//! 5.7) costs what any process costs.
#![allow(unsafe_code, reason = "what happens between fork and exec has no safe wrapper")]

use std::ffi::{CString, OsString, c_char};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Of linux/sched.h; the `libc` crate has it for one C library only.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of linux/sched.h, in its size since Linux 5.7.
#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Whether a process and all below it are in a pid namespace of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pids {
    /// They are: when the process ends, the kernel ends all of them, at any moment of their lives. Only
    /// root can have it so.
    Own,
    /// They are not.
    Shared,
}

impl Pids {
    /// The better of the two that we can have.
    pub(crate) fn best() -> Pids {
        if nix::unistd::Uid::effective().is_root() { Pids::Own } else { Pids::Shared }
    }
}

/// What is to be executed.
#[derive(Debug)]
pub(super) struct Program {
    /// Its file, which is also its name.
    pub(super) path: PathBuf,
    /// Its arguments, without its name.
    pub(super) args: Vec<OsString>,
    /// All of its environment, as `NAME=VALUE`.
    pub(super) env: Vec<OsString>,
    /// Its stdin, stdout and stderr.
    pub(super) stdio: [OwnedFd; 3],
    /// Its place among processes.
    pub(super) pids: Pids,
}

/// Whether a new process is in its group already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Born {
    /// It is.
    InGroup,
    /// The kernel cannot do that: it has to move.
    Outside,
}

/// A process of ours. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    pid: libc::pid_t,
    /// Ready to be read when the process has ended (pidfd_open(2), Linux 5.3).
    pidfd: AsyncFd<OwnedFd>,
    status: Option<ExitStatus>,
}

impl Program {
    /// Starts it, in `group` (a folder of version 2) if there is one. The new process calls `prepare`
    /// before it executes the program.
    ///
    /// # Safety
    ///
    /// `prepare` runs in a copy of this process that has one thread, whatever locks others held: it may
    /// make system calls on values made before, and nothing else. Not even `setuid` as the C library has
    /// it, which asks all threads that it believes to be there.
    pub(super) unsafe fn start(
        self,
        group: Option<BorrowedFd<'_>>,
        prepare: impl FnOnce(Born) -> io::Result<()>,
    ) -> io::Result<Process> {
        let Program { path, args, env, stdio, pids } = self;
        let path = c_string(path.into())?;
        let args: Vec<CString> = args.into_iter().map(c_string).collect::<io::Result<_>>()?;
        let env: Vec<CString> = env.into_iter().map(c_string).collect::<io::Result<_>>()?;
        let end = std::iter::once(std::ptr::null());
        let argv: Vec<*const c_char> =
            std::iter::once(&path).chain(&args).map(|arg| arg.as_ptr()).chain(end.clone()).collect();
        let envp: Vec<*const c_char> = env.iter().map(|variable| variable.as_ptr()).chain(end).collect();
        let (complaint, complain) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;

        // SAFETY: what the child does is said below.
        let (pid, born) = unsafe { fork_into(group, pids)? };
        if pid == 0 {
            // From here on there are only system calls on what was made above; `prepare` keeps to the
            // same by contract.
            drop(complaint);
            let prepare = || {
                prepare(born)?;
                // Whoever died before `prepare` asked for a death signal is not noticed by that.
                if heard(&complain) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPIPE)) }
            };
            // SAFETY: as said.
            let failure = unsafe { become_program(&path, &argv, &envp, &stdio, prepare) };
            // SAFETY: as before; the descriptor is open until this process ends, which is now.
            unsafe {
                let errno = failure.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
                libc::write(complain.as_raw_fd(), errno.as_ptr().cast(), errno.len());
                libc::_exit(127)
            }
        }
        // Until it is watched, dropping this reaps it.
        let newborn = Newborn(pid);
        drop((complain, stdio));
        let mut errno = [0; 4];
        if let 4 = read_all(&complaint, &mut errno)? {
            return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)));
        }
        // SAFETY: an owned descriptor is what it says, at any time, and the only one that closes it.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd_open(pid)?, Interest::READABLE) };
        let pidfd = pidfd.map_err(io::Error::from)?;
        std::mem::forget(newborn);
        Ok(Process { pid, pidfd, status: None })
    }
}

/// Ends a process that nobody got to know.
struct Newborn(libc::pid_t);

impl Drop for Newborn {
    fn drop(&mut self) {
        end(self.0);
    }
}

fn end(pid: libc::pid_t) -> Option<ExitStatus> {
    let mut status = 0;
    // SAFETY: plain system calls on our own child, which has not been waited for.
    let waited = unsafe {
        libc::kill(pid, libc::SIGKILL);
        loop {
            let waited = libc::waitpid(pid, &raw mut status, 0);
            if waited != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break waited;
            }
        }
    };
    (waited == pid).then(|| ExitStatus::from_raw(status))
}

/// A copy of this process (0: we are the copy), made in `group` if there is one and the kernel can do it.
///
/// # Safety
/// The copy may only do what [`Program::start`] says.
unsafe fn fork_into(group: Option<BorrowedFd<'_>>, pids: Pids) -> io::Result<(libc::pid_t, Born)> {
    let (into, born) = if group.is_some() { (CLONE_INTO_CGROUP, Born::InGroup) } else { (0, Born::Outside) };
    let own = match pids {
        Pids::Own => u64::from(libc::CLONE_NEWPID.cast_unsigned()),
        Pids::Shared => 0,
    };
    if into | own != 0 {
        let args = CloneArgs {
            flags: into | own,
            exit_signal: u64::try_from(libc::SIGCHLD).unwrap_or_default(),
            cgroup: group.and_then(|group| u64::try_from(group.as_raw_fd()).ok()).unwrap_or_default(),
            ..CloneArgs::default()
        };
        // SAFETY: without CLONE_VM the child has a copy of everything, this stack included.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        if pid >= 0 {
            return Ok((libc::pid_t::try_from(pid).map_err(io::Error::other)?, born));
        }
        match io::Error::last_os_error() {
            // An older kernel, or a filter that forbids what it cannot look into.
            error
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOSYS | libc::EINVAL | libc::E2BIG | libc::EPERM)
                ) => {}
            error => return Err(error),
        }
    }
    // SAFETY: by this function's contract.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok((pid, Born::Outside)),
    }
}

/// Whether the other end of a pipe is still open. Async-signal-safe.
fn heard(pipe: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: a plain system call on a value that outlives it.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    poll.revents & libc::POLLERR == 0
}

/// What the new process does. Gives the reason why it is not the program.
///
/// # Safety
/// In a new process only; the pointers are to strings and end with a null.
unsafe fn become_program(
    path: &CString,
    argv: &[*const c_char],
    envp: &[*const c_char],
    stdio: &[OwnedFd; 3],
    prepare: impl FnOnce() -> io::Result<()>,
) -> io::Error {
    for (number, fd) in (0..).zip(stdio) {
        // SAFETY: a plain system call. All of ours are above 2, which are always open.
        if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
            return io::Error::last_os_error();
        }
    }
    // SAFETY: plain system calls, on a set that `sigemptyset` has filled.
    unsafe {
        // Rust ignores it, and what is ignored stays so.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    if let Err(error) = prepare() {
        return error;
    }
    // SAFETY: by this function's contract.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor it gives is ours alone, and close-on-exec.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(io::Error::other)?)),
        }
    }
}

/// Reads until `room` is full or there is no more.
fn read_all(from: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < room.len() {
        match nix::unistd::read(from, &mut room[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(filled)
}

fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec()).map_err(io::Error::other)
}

impl Process {
    /// Its number, until it has been waited for.
    pub(super) fn id(&self) -> Option<u32> {
        self.status.is_none().then(|| self.pid.cast_unsigned())
    }

    /// Waits until it has ended. May be called again, and dropped at any time.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            let mut ended = self.pidfd.readable().await?;
            let mut status = 0;
            // SAFETY: a plain system call on our own child, which has not been waited for.
            match unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) } {
                0 => ended.clear_ready(),
                -1 => return Err(io::Error::last_os_error()),
                _ => self.status = Some(ExitStatus::from_raw(status)),
            }
        }
    }

    /// Kills it.
    pub(super) fn kill(&mut self) {
        if self.status.is_none() {
            // SAFETY: a plain system call on our own child, which has not been waited for.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.status = end(self.pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;

    fn program(path: &str, args: &[&str]) -> (Program, std::io::PipeReader) {
        let (read, write) = std::io::pipe().unwrap();
        let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        let program = Program {
            path: path.into(),
            args: args.iter().map(OsString::from).collect(),
            env: vec!["A=b c".into()],
            stdio: [null(), write.into(), null()],
            pids: Pids::Shared,
        };
        (program, read)
    }

    #[tokio::test]
    async fn a_program_has_its_arguments_its_variables_and_nothing_else() {
        let script = "echo $0 $1 \"$A\"; ls /proc/self/fd | wc -l; exit 7";
        let (program, mut output) = program("/bin/sh", &["-c", script, "name", "one"]);
        // SAFETY: nothing is done.
        let mut process = unsafe { program.start(None, |_| Ok(())) }.unwrap();
        let status = process.wait().await.unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(process.wait().await.unwrap(), status);
        assert_eq!(process.id(), None);
        let mut text = String::new();
        io::Read::read_to_string(&mut output, &mut text).unwrap();
        // No more descriptors than any other child of ours has.
        let theirs = std::process::Command::new("/bin/sh").args(["-c", "ls /proc/self/fd | wc -l"]).output();
        let theirs = String::from_utf8(theirs.unwrap().stdout).unwrap();
        assert_eq!(text, format!("name one b c\n{theirs}"));
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_an_error_and_no_process() {
        let (absent, _output) = program("/no/such/program", &[]);
        // SAFETY: nothing is done.
        let error = unsafe { absent.start(None, |_| Ok(())) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let (unprepared, _output) = program("/bin/true", &[]);
        // SAFETY: nothing is done.
        let error =
            unsafe { unprepared.start(None, |_| Err(io::Error::from_raw_os_error(libc::EDOM))) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EDOM));
    }

    #[tokio::test]
    async fn a_process_that_is_dropped_is_gone() {
        let (program, _output) = program("/bin/sleep", &["60"]);
        // SAFETY: nothing is done.
        let process = unsafe { program.start(None, |_| Ok(())) }.unwrap();
        let pid = process.id().unwrap();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        drop(process);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[tokio::test]
    async fn what_is_below_a_process_with_its_own_pids_ends_with_it() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        // A child that nothing would end, and that holds the pipe.
        let (mut program, mut output) =
            program("/bin/sh", &["-c", "setsid sleep 600 & echo $$; exec sleep 600"]);
        program.pids = Pids::Own;
        // SAFETY: nothing is done.
        let process = unsafe { program.start(None, |_| Ok(())) }.unwrap();
        let mut byte = [0; 2];
        io::Read::read_exact(&mut output, &mut byte).unwrap();
        assert_eq!(&byte, b"1\n");
        drop(process);
        // The end of the file is the end of both.
        io::Read::read_to_end(&mut output, &mut Vec::new()).unwrap();
    }

    #[tokio::test]
    async fn a_process_is_made_in_its_group() {
        // Any writable group of version 2 will do, be it without a controller.
        let Some(mount) = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .find(|mount| std::path::Path::new(mount).join("cgroup.subtree_control").exists())
        else {
            return;
        };
        let dir = PathBuf::from(mount).join(format!("firn-test-spawn-{}", std::process::id()));
        if std::fs::create_dir(&dir).is_err() {
            return;
        }
        let group = File::open(&dir).unwrap();
        let (program, mut output) = program("/bin/cat", &["/proc/self/cgroup"]);
        let (mut told, tell) = std::io::pipe().unwrap();
        let started = {
            let tell = tell.as_raw_fd();
            // SAFETY: a write of a byte on the stack.
            unsafe {
                program.start(Some(group.as_fd()), move |born| {
                    let byte = [u8::from(born == Born::InGroup)];
                    libc::write(tell, byte.as_ptr().cast(), 1);
                    Ok(())
                })
            }
        };
        let status = started.unwrap().wait().await.unwrap();
        drop(tell);
        let (mut groups, mut born) = (String::new(), Vec::new());
        io::Read::read_to_string(&mut output, &mut groups).unwrap();
        io::Read::read_to_end(&mut told, &mut born).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        assert!(status.success());
        let name = dir.file_name().unwrap().to_str().unwrap();
        assert_eq!(born == [1], groups.lines().any(|line| line.starts_with("0::") && line.ends_with(name)));
    }
}
