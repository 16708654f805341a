//! Starting a process that outlives us, in a control group.
//!
//! ```text
//!   starter ─vfork──▶ intermediate ──clone3──▶ newborn, in its group, prepares itself
//!      │                   └ ends                │
//!      │◀─────────────────── who it is ──────────┤
//!    record                                      │ (parent: init)
//!      ├──────────────────── go ────────────────▶│
//!      │◀─────────────────── end of file ────────┴ exec
//! ```
//!
//! Its parent ends before it becomes the program, so to the program it is the host's init (or the nearest
//! subreaper) that is its parent, as it will be for the rest of its life: bubblewrap asks to die with its
//! parent. And it becomes the program only when it has been recorded: a starter that is killed at any
//! instant leaves no program that nobody knows of, because the newborn sees the starter end (its pidfd)
//! and ends too.
//!
//! `std` can start a process and let it move itself. Into a group of version 2 that takes a moment in
//! which no process on the host may be made or end (see [`super::cgroup::Entry`]): up to 20 ms, a jail
//! several times over. A process that is *made* in its group (`CLONE_INTO_CGROUP` of clone3(2), Linux
//! 5.7) costs what any process costs.
#![allow(unsafe_code, reason = "what happens between fork and exec has no safe wrapper")]

use super::pidfd::{Process, ProcessId, pidfd_open};
use std::ffi::{CString, OsString, c_char};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

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
    /// Its descriptor 3, if it is to have one.
    pub(super) third: Option<OwnedFd>,
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

/// What a process says of itself before it is told to go on: who it is, or why it cannot be.
const REPORT: usize = ProcessId::BYTES;

/// What it is told.
const GO: u8 = 1;

impl Program {
    /// Starts it, in `group` (a folder of version 2) if there is one. The new process calls `prepare`
    /// before it executes the program, which it does only once `record` has written down who it is.
    ///
    /// # Safety
    ///
    /// `prepare` runs in a copy of this process that has one thread, whatever locks others held: it may
    /// make system calls on values made before, and nothing else. Not even `setuid` as the C library has
    /// it, which asks all threads that it believes to be there.
    pub(super) unsafe fn start(
        self,
        group: Option<BorrowedFd<'_>>,
        record: impl FnOnce(ProcessId) -> io::Result<()>,
        prepare: impl FnOnce(Born) -> io::Result<()>,
    ) -> io::Result<Process> {
        let Program { path, args, env, stdio, third, pids } = self;
        let path = c_string(path.into())?;
        let args: Vec<CString> = args.into_iter().map(c_string).collect::<io::Result<_>>()?;
        let env: Vec<CString> = env.into_iter().map(c_string).collect::<io::Result<_>>()?;
        let end = std::iter::once(std::ptr::null());
        let argv: Vec<*const c_char> =
            std::iter::once(&path).chain(&args).map(|arg| arg.as_ptr()).chain(end.clone()).collect();
        let envp: Vec<*const c_char> = env.iter().map(|variable| variable.as_ptr()).chain(end).collect();
        let (line, theirs) = line()?;
        let starter = pidfd_open(std::process::id())?;

        let bear = || {
            // From here on there are only system calls on what was made above; `prepare` keeps to the
            // same by contract.
            // SAFETY: as said.
            match unsafe { fork_into(group, pids) } {
                Ok((0, born)) => {
                    let prepare = || {
                        let id = ProcessId::read_own().ok_or_else(io::Error::last_os_error)?;
                        send(&theirs, &id.to_bytes())?;
                        prepare(born)?;
                        wait_for_go(&theirs, &starter)
                    };
                    // SAFETY: as said.
                    let failure =
                        unsafe { become_program(&path, &argv, &envp, (&stdio, third.as_ref()), prepare) };
                    let _ = send(&theirs, &errno(&failure));
                }
                Ok(_newborn) => {}
                Err(failure) => {
                    let _ = send(&theirs, &errno(&failure));
                }
            }
        };
        // SAFETY: what it does is said above.
        let intermediate = unsafe { in_passing(bear)? };
        drop((theirs, stdio, third));
        collect(intermediate);
        let mut report = [0; REPORT];
        match read_all(&line, &mut report)? {
            REPORT => {}
            read => return Err(failure(&report[..read])),
        }
        // The same way that a process of somebody else's start is taken over.
        let Some(process) = Process::adopt(ProcessId::from_bytes(report))? else {
            // Gone already: it could not even prepare itself, and has said why.
            let read = read_all(&line, &mut report)?;
            return Err(failure(&report[..read]));
        };
        let newborn = Newborn(Some(process));
        if let Some(process) = &newborn.0 {
            record(process.id())?;
        }
        // A newborn that has ended by now has said why.
        let _ = send(&line, &[GO]);
        match read_all(&line, &mut report)? {
            0 => newborn.grown(),
            read => Err(failure(&report[..read])),
        }
    }
}

/// Ends a process that did not become what it should.
struct Newborn(Option<Process>);

impl Newborn {
    fn grown(mut self) -> io::Result<Process> {
        self.0.take().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.end();
        }
    }
}

/// Both ends of the conversation with a new process, which its exec ends.
fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Async-signal-safe.
fn send(line: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: a plain system call on a buffer of that length.
    let sent =
        unsafe { libc::send(line.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    if usize::try_from(sent) == Ok(bytes.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn errno(error: &io::Error) -> [u8; 4] {
    error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes()
}

/// What was said instead of what should have been.
fn failure(said: &[u8]) -> io::Error {
    match said.try_into() {
        Ok(errno) => io::Error::from_raw_os_error(i32::from_ne_bytes(errno)),
        // Killed before it could say anything.
        Err(_not_an_errno) => io::ErrorKind::BrokenPipe.into(),
    }
}

/// Async-signal-safe. An error: nobody will ever say so. That the line's other end is closed does not show
/// it, since whoever else is being started at this moment has a copy.
fn wait_for_go(line: &OwnedFd, starter: &OwnedFd) -> io::Result<()> {
    let watched = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut polled = [watched(line), watched(starter)];
    let mut said = 0_u8;
    // SAFETY: plain system calls on values that outlive them, and on a buffer of one byte.
    unsafe {
        while libc::poll(polled.as_mut_ptr(), 2, -1) < 0 {}
        // What was said is said, whatever became of the starter since.
        if libc::recv(line.as_raw_fd(), (&raw mut said).cast(), 1, libc::MSG_DONTWAIT) == 1 && said == GO {
            return Ok(());
        }
    }
    Err(io::Error::from_raw_os_error(libc::EPIPE))
}

/// Waits for a child that ends at once.
fn collect(child: libc::pid_t) {
    // SAFETY: a plain system call on our own child, which nobody else waits for.
    while unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// The stack of an intermediate, in bytes, and of the newborn, which has a copy of it.
const STACK: usize = 64 * 1024;

/// A piece of a stack, aligned as stacks are.
#[repr(C, align(16))]
struct Piece([u8; 16]);

/// Does `work` in a child of ours that ends with it, and gives the child's number. It has our memory itself
/// and no copy of it, which takes longer to make than all that it does; as with vfork(2) the caller waits
/// until it has ended.
///
/// # Safety
/// `work` may make system calls on values made before, and nothing else, and owns nothing: it would be given
/// back in the wrong process. It may return in a copy that it makes of its process: that ends too.
unsafe fn in_passing<F: FnOnce()>(work: F) -> io::Result<libc::pid_t> {
    extern "C" fn enter<F: FnOnce()>(work: *mut libc::c_void) -> libc::c_int {
        // SAFETY: it is what is passed below, whose owner waits for us.
        if let Some(work) = unsafe { &mut *work.cast::<Option<F>>() }.take() {
            work();
        }
        // SAFETY: ends this process, and runs nothing that the other has to do at its end.
        unsafe { libc::_exit(127) }
    }
    let mut work = Some(work);
    let mut stack: Vec<Piece> = Vec::with_capacity(STACK / size_of::<Piece>());
    let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
    // SAFETY: plain system calls on values that outlive them. The child has a stack of its own and has ended,
    // as has its use of all that is ours, when `clone` returns. No handler of ours runs in it: signals wait
    // until it has ended, and its copy takes none before it is another program.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let child = libc::clone(enter::<F>, top.cast(), flags, (&raw mut work).cast());
        let failure = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        drop(stack);
        if child < 0 { Err(failure) } else { Ok(child) }
    }
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
    // Not the C library's, which acts on what belongs to the original.
    // SAFETY: by this function's contract. With nothing but a signal it is fork(2).
    match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok((libc::pid_t::try_from(pid).map_err(io::Error::other)?, Born::Outside)),
    }
}

/// What the new process does. Gives the reason why it is not the program.
///
/// # Safety
/// In a new process only; the pointers are to strings and end with a null.
unsafe fn become_program(
    path: &CString,
    argv: &[*const c_char],
    envp: &[*const c_char],
    (stdio, third): (&[OwnedFd; 3], Option<&OwnedFd>),
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
    if let Some(third) = third
        && let Err(error) = become_third(third)
    {
        return error;
    }
    // SAFETY: by this function's contract.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Makes it descriptor 3, whatever that is: all that had to be said on it is said. Async-signal-safe.
fn become_third(fd: &OwnedFd) -> io::Result<()> {
    const THIRD: libc::c_int = 3;
    // SAFETY: plain system calls on numbers. The copy is open in the program; what is it already, is not copied.
    let done = unsafe {
        match fd.as_raw_fd() {
            THIRD => libc::fcntl(THIRD, libc::F_SETFD, 0),
            other => libc::dup2(other, THIRD),
        }
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads until `room` is full or there is no more.
fn read_all(from: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < room.len() {
        match nix::unistd::read(from, &mut room[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(nix::errno::Errno::EINTR) => {}
            // Closed before it has read all that it was told.
            Err(nix::errno::Errno::ECONNRESET) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(filled)
}

fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec()).map_err(io::Error::other)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::path::Path;
    use std::time::Duration;

    fn program(path: &str, args: &[&str]) -> (Program, std::io::PipeReader) {
        let (read, write) = std::io::pipe().unwrap();
        let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        let program = Program {
            path: path.into(),
            args: args.iter().map(OsString::from).collect(),
            env: vec!["A=b c".into()],
            stdio: [null(), write.into(), null()],
            third: None,
            pids: Pids::Shared,
        };
        (program, read)
    }

    fn start(program: Program) -> io::Result<Process> {
        // SAFETY: nothing is done.
        unsafe { program.start(None, |_| Ok(()), |_| Ok(())) }
    }

    fn rest(mut output: impl io::Read) -> String {
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        text
    }

    #[tokio::test]
    async fn a_program_has_its_arguments_its_variables_and_nothing_else() {
        let script = "echo $0 $1 \"$A\"; ls /proc/self/fd | wc -l; exit 7";
        let (program, output) = program("/bin/sh", &["-c", script, "name", "one"]);
        let process = start(program).unwrap();
        process.ended().await.unwrap();
        assert!(process.has_ended() && !process.id().is_alive());
        // No more descriptors than any other child of ours has.
        let theirs = std::process::Command::new("/bin/sh").args(["-c", "ls /proc/self/fd | wc -l"]).output();
        let theirs = String::from_utf8(theirs.unwrap().stdout).unwrap();
        assert_eq!(rest(output), format!("name one b c\n{theirs}"));
    }

    #[tokio::test]
    async fn it_is_nobodys_child_that_could_end() {
        let (program, output) = program("/bin/sh", &["-c", "echo $PPID"]);
        let process = start(program).unwrap();
        process.ended().await.unwrap();
        assert_ne!(rest(output).trim(), std::process::id().to_string());
        // Whoever the intermediate was, it has been waited for.
        let waited = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        assert_eq!(waited, Err(nix::errno::Errno::ECHILD));
    }

    #[tokio::test]
    async fn it_runs_after_it_was_recorded_and_not_without() {
        let ran = tempfile::tempdir().unwrap();
        let file = ran.path().join("ran");
        let touch = || program("/bin/touch", &[file.to_str().unwrap()]).0;
        let record = |id: ProcessId| {
            assert!(id.is_alive());
            // Long enough for one that does not wait.
            std::thread::sleep(Duration::from_millis(50));
            assert!(!file.exists());
            Err(io::Error::from_raw_os_error(libc::EDOM))
        };
        // SAFETY: nothing is done.
        let error = unsafe { touch().start(None, record, |_| Ok(())) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EDOM));
        assert!(!file.exists());
        start(touch()).unwrap().ended().await.unwrap();
        assert!(file.exists());
    }

    /// A starter that is killed before it has recorded what it starts, in the working directory.
    #[tokio::test]
    #[ignore = "another test starts it"]
    async fn starter_that_is_killed() {
        let (touch, _output) = program("/bin/touch", &["ran"]);
        let record = |id: ProcessId| {
            std::fs::write("started", serde_json::to_vec(&id)?)?;
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: nothing is done.
        let _ = unsafe { touch.start(None, record, |_| Ok(())) };
    }

    /// Runs an ignored test of this program in `folder`, in a process of its own.
    pub(in crate::sys) fn run_ignored(test: &str, folder: &Path) -> std::process::ExitStatus {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", test]).current_dir(folder).stdout(std::process::Stdio::null());
        command.status().unwrap()
    }

    #[test]
    fn what_a_killed_starter_has_not_recorded_runs_nothing() {
        use std::os::unix::process::ExitStatusExt as _;
        let dir = tempfile::tempdir().unwrap();
        let status = run_ignored("sys::spawn::tests::starter_that_is_killed", dir.path());
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        let id: ProcessId =
            serde_json::from_slice(&std::fs::read(dir.path().join("started")).unwrap()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while id.is_alive() {
            assert!(std::time::Instant::now() < deadline, "it waits for ever");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(!dir.path().join("ran").exists());
    }

    #[tokio::test]
    async fn a_program_finds_what_it_is_handed_as_descriptor_3() {
        let (mut cat, output) = program("/bin/sh", &["-c", "cat <&3"]);
        let (read, mut write) = std::io::pipe().unwrap();
        io::Write::write_all(&mut write, b"handed").unwrap();
        drop(write);
        cat.third = Some(read.into());
        start(cat).unwrap().ended().await.unwrap();
        assert_eq!(rest(output), "handed");
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_an_error_and_no_process() {
        let (absent, _output) = program("/no/such/program", &[]);
        assert_eq!(start(absent).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let (unprepared, _output) = program("/bin/true", &[]);
        let refuse = |_| Err(io::Error::from_raw_os_error(libc::EDOM));
        // SAFETY: nothing is done.
        let error = unsafe { unprepared.start(None, |_| Ok(()), refuse) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EDOM));
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
        let process = start(program).unwrap();
        let mut byte = [0; 2];
        io::Read::read_exact(&mut output, &mut byte).unwrap();
        assert_eq!(&byte, b"1\n");
        process.end();
        // The end of the file is the end of both.
        rest(output);
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
        let (program, output) = program("/bin/cat", &["/proc/self/cgroup"]);
        let (mut told, tell) = std::io::pipe().unwrap();
        let started = {
            let tell = tell.as_raw_fd();
            // SAFETY: a write of a byte on the stack.
            unsafe {
                program.start(
                    Some(group.as_fd()),
                    |_| Ok(()),
                    move |born| {
                        let byte = [u8::from(born == Born::InGroup)];
                        libc::write(tell, byte.as_ptr().cast(), 1);
                        Ok(())
                    },
                )
            }
        };
        started.unwrap().ended().await.unwrap();
        drop(tell);
        let (groups, mut born) = (rest(output), Vec::new());
        io::Read::read_to_end(&mut told, &mut born).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        let name = dir.file_name().unwrap().to_str().unwrap();
        assert_eq!(born == [1], groups.lines().any(|line| line.starts_with("0::") && line.ends_with(name)));
    }
}
