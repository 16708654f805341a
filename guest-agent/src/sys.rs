//! The system calls that have no safe wrapper.
//!
//! Owns every `unsafe` block of the agent. Each function is the smallest step that can be given a
//! safe signature; what the steps are for is written where they are called.
#![allow(
    unsafe_code,
    reason = "fork, clone, wait4, ioctls and pidfds have no safe interface; this module gives them one"
)]

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{ForkResult, Pid};
use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::process::abort;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

mod ioctl {
    nix::ioctl_write_int_bad!(make_controlling_terminal, libc::TIOCSCTTY);
    nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_write_int_bad!(open_terminal_peer, libc::TIOCGPTPEER);
    nix::ioctl_write_ptr_bad!(unlock_terminal, libc::TIOCSPTLCK, libc::c_int);
    nix::ioctl_read_bad!(bytes_readable, libc::FIONREAD, libc::c_int);
    nix::ioctl_write_ptr!(add_entropy, b'R', 0x03, [libc::c_int; 2]);
    nix::ioctl_none!(reseed, b'R', 0x07);
    nix::ioctl_read_bad!(interface_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);
}

/// Runs `child` in a copy of this process. `child` ends the copy itself; should it panic, the copy
/// is aborted rather than let loose as a second agent.
///
/// The agent has one thread, so the copy is complete and may allocate.
pub(crate) fn fork(child: impl FnOnce() -> std::convert::Infallible) -> Result<Pid, Errno> {
    // SAFETY: the process has a single thread (a current-thread runtime without a blocking pool),
    // so no lock can be held by a thread that does not exist in the copy.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => match std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)) {
            Ok(never) => match never {},
            Err(_) => abort(),
        },
    }
}

/// Ends this process now, without running anything that belongs to the process it was copied from.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: _exit is always safe to call.
    unsafe { libc::_exit(code) }
}

/// The stack of a process started by [`vfork`].
const VFORK_STACK: usize = 256 * 1024;

/// Runs `child` in a new process on the memory of this one, which waits until the new one has
/// called `execve` or ended. Nothing is copied, so this costs the same however large the agent is,
/// and `child` can leave word of a failure in its captured variables.
pub(crate) fn vfork(child: &mut dyn FnMut() -> c_int) -> Result<Pid, Errno> {
    extern "C" fn enter(argument: *mut c_void) -> c_int {
        // SAFETY: `argument` is the pointer to `child` below, alive because the caller is suspended.
        let child = unsafe { &mut *argument.cast::<&mut dyn FnMut() -> c_int>() };
        child()
    }
    let mut child = child;
    let mut stack = Vec::<u8>::with_capacity(VFORK_STACK);
    let argument: *mut &mut dyn FnMut() -> c_int = &mut child;
    // SAFETY: the address stays inside (one past) the allocation.
    let top = unsafe { stack.as_mut_ptr().add(VFORK_STACK) };
    // Rounded down to the 16 bytes the ABI asks for.
    let top = top.map_addr(|address| address & !15);
    // SAFETY: the stack is large enough, unused and outlives the call, because CLONE_VFORK suspends
    // this thread until the child has left this memory. Signals that have a handler here stay
    // blocked or do not exist (the agent installs none). The descriptor table is the child's own.
    let pid = unsafe {
        libc::clone(
            enter,
            top.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            argument.cast::<c_void>(),
        )
    };
    drop(stack);
    Errno::result(pid).map(Pid::from_raw)
}

/// Which user and groups to become, with the kernel's calls: glibc's wrappers would tell every
/// thread of the process, and in a [`vfork`] child that is the parent's memory.
pub(crate) fn set_groups(groups: &[libc::gid_t]) -> Result<(), Errno> {
    // SAFETY: pointer and length describe one slice.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// See [`set_groups`].
pub(crate) fn set_gid(gid: libc::gid_t) -> Result<(), Errno> {
    // SAFETY: takes integers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// See [`set_groups`].
pub(crate) fn set_uid(uid: libc::uid_t) -> Result<(), Errno> {
    // SAFETY: takes integers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Makes `fd` this process's descriptor `number`, which is kept across `execve`.
pub(crate) fn place(fd: BorrowedFd<'_>, number: RawFd) -> Result<(), Errno> {
    // SAFETY: dup2 on two numbers; whatever `number` was is meant to be replaced.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// Closes the descriptors `first..=last`. Only for a process that is about to be something else:
/// whoever owns them in this process must never touch them again.
pub(crate) fn close_between(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: the caller gives the descriptors up. It cannot fail on a valid range.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Gives every signal its default action, but for SIGPIPE, which stays ignored: a closed
/// connection is an error to be handled. By the kernel's call: glibc's refuses the two signals it
/// keeps for itself, and whoever started the agent may have left them ignored.
pub(crate) fn reset_signals() {
    // The kernel's struct sigaction, larger than on any machine: SIG_DFL, no flags, empty mask.
    let default = [0_u64; 8];
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| *signal != libc::SIGPIPE) {
        // SAFETY: installs no handler. Rust's guard-page handler goes too: PID 1 has no use for it.
        // It fails for SIGKILL and SIGSTOP, which have no other action anyway.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<c_void>(),
                size_of::<u64>(),
            )
        };
    }
}

/// Undoes what Rust's runtime did to SIGPIPE, so that a command gets it as usual.
pub(crate) fn restore_sigpipe() {
    // SAFETY: installs no handler.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// A child that changed state.
pub(crate) struct Waited {
    pub(crate) pid: Pid,
    /// As in `waitpid(2)`.
    pub(crate) status: c_int,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    pub(crate) max_rss_bytes: u64,
}

/// The next child that ended (or, with WUNTRACED in `flags`, stopped). `None`: none of them yet.
pub(crate) fn wait_any(flags: c_int) -> Result<Option<Waited>, Errno> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to live variables of the right type.
    let pid = Errno::result(unsafe {
        libc::wait4(-1, &mut status, flags | libc::WNOHANG | libc::__WALL, usage.as_mut_ptr())
    })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: zeroed is a valid rusage, and wait4 has filled it in.
    let usage = unsafe { usage.assume_init() };
    let duration = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Ok(Some(Waited {
        pid: Pid::from_raw(pid),
        status,
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        max_rss_bytes: usage.ru_maxrss.unsigned_abs() * 1024,
    }))
}

/// Sends a signal by number, real-time ones too, to a process or (negative) a process group.
pub(crate) fn kill(pid: libc::pid_t, signal: c_int) -> Result<(), Errno> {
    // SAFETY: takes integers only.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Whether this process runs before all ordinary ones.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precedence {
    Ordinary,
    First,
}

/// Sets it. Only a privileged process may go first.
pub(crate) fn set_precedence(precedence: Precedence) -> Result<(), Errno> {
    let (policy, priority) = match precedence {
        Precedence::Ordinary => (libc::SCHED_OTHER, 0),
        Precedence::First => (libc::SCHED_FIFO, 1),
    };
    // The kernel's struct sched_param, and its own call: musl's refuses to make it.
    let priority: c_int = priority;
    // SAFETY: `priority` lives across the call; 0 is this process.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) })
        .map(drop)
}

/// A descriptor that stays with this very process, whoever gets its number afterwards.
pub(crate) fn open_process(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes integers only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    Ok(own(fd))
}

/// Signals the process behind [`open_process`].
pub(crate) fn signal_process(process: &OwnedFd, signal: Signal) -> Result<(), Errno> {
    // SAFETY: a null siginfo asks for the one kill(2) would make.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal as c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

fn own(fd: c_long) -> OwnedFd {
    // SAFETY: a system call has just returned it to us: it is open and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// Watches a descriptor for being ready.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one descriptor from its beginning to its end.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Takes over a descriptor the agent was started with.
pub(crate) fn inherited(fd: RawFd) -> Result<OwnedFd, Errno> {
    nix::fcntl::fcntl(
        // SAFETY: only looked at; a number that is not open is an error.
        unsafe { BorrowedFd::borrow_raw(fd) },
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )?;
    Ok(own(fd.into()))
}

/// The family of a socket.
pub(crate) fn socket_family(socket: impl AsFd) -> Result<c_int, Errno> {
    let mut family: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `family` and its length live across the call.
    Errno::result(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut family).cast(),
            &mut length,
        )
    })?;
    Ok(family)
}

/// Makes the terminal the controlling one of this session.
pub(crate) fn control_terminal(terminal: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the argument is an integer: do not steal it from another session.
    unsafe { ioctl::make_controlling_terminal(terminal.as_fd().as_raw_fd(), 0) }.map(drop)
}

/// Tells the terminal its size; the kernel tells the programs on it.
pub(crate) fn set_terminal_size(terminal: impl AsFd, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` lives across the call.
    unsafe { ioctl::set_window_size(terminal.as_fd().as_raw_fd(), &size) }.map(drop)
}

/// Lets the other end of a pseudo-terminal's master be opened.
pub(crate) fn unlock_terminal(master: impl AsFd) -> Result<(), Errno> {
    let locked = 0;
    // SAFETY: `locked` lives across the call.
    unsafe { ioctl::unlock_terminal(master.as_fd().as_raw_fd(), &locked) }.map(drop)
}

/// The other end of a pseudo-terminal's master, by descriptor: no path that could be replaced.
pub(crate) fn open_terminal_peer(master: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is an integer; the result is a new descriptor.
    let fd = unsafe { ioctl::open_terminal_peer(master.as_fd().as_raw_fd(), flags) }?;
    Ok(own(fd.into()))
}

/// How many bytes can be read from a pipe without waiting.
pub(crate) fn bytes_readable(pipe: impl AsFd) -> Result<u64, Errno> {
    let mut bytes = 0;
    // SAFETY: `bytes` lives across the call.
    unsafe { ioctl::bytes_readable(pipe.as_fd().as_raw_fd(), &mut bytes) }?;
    Ok(bytes.unsigned_abs().into())
}

/// Mixes `entropy` into the kernel's random pool and reseeds the generator from it: without the
/// second step two clones of one snapshot still draw equal numbers.
pub(crate) fn seed_randomness(random: impl AsFd, entropy: &[u8]) -> Result<(), Errno> {
    // struct rand_pool_info: bits of entropy, bytes, then the bytes.
    let mut info = vec![0 as c_int; 2 + entropy.len().div_ceil(4)];
    info[0] = c_int::try_from(entropy.len() * 8).unwrap_or(c_int::MAX);
    info[1] = c_int::try_from(entropy.len()).map_err(|_too_long| Errno::EINVAL)?;
    for (word, bytes) in info[2..].iter_mut().zip(entropy.chunks(4)) {
        let mut padded = [0; 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = c_int::from_ne_bytes(padded);
    }
    let fd = random.as_fd().as_raw_fd();
    // SAFETY: `info` has the layout above and as many bytes as it says.
    unsafe { ioctl::add_entropy(fd, info.as_ptr().cast()) }?;
    // SAFETY: takes no argument.
    unsafe { ioctl::reseed(fd) }.map(drop)
}

/// An extended attribute of a file, if it has one that is as short as a flag.
pub(crate) fn attribute(path: &CStr, name: &CStr) -> Option<Vec<u8>> {
    let mut value = vec![0_u8; 16];
    // SAFETY: both strings are terminated; pointer and length describe one buffer.
    let length = Errno::result(unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    });
    value.truncate(usize::try_from(length.ok()?).ok()?);
    Some(value)
}

/// Brings a network interface up.
pub(crate) fn bring_up(socket: impl AsFd, interface: &str) -> Result<(), Errno> {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `request` lives across the call, its name is terminated.
    unsafe { ioctl::interface_flags(fd, &mut request) }?;
    // SAFETY: the call above has filled the flags in; the union has no other view that matters.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: as above.
    unsafe { ioctl::set_interface_flags(fd, &request) }.map(drop)
}

/// Takes away this process's environment, also as `/proc` shows it. The kernel gives its first process
/// some variables, and others may have been left by whoever started this one; neither is the sandbox's
/// business. The variables are gone in any case. That nothing is left to be seen, not even their room,
/// is for root alone to arrange.
pub(crate) fn clear_environment() -> Result<(), Errno> {
    unsafe extern "C" {
        // POSIX's; the libc crate does not have it for every C library.
        static mut environ: *mut *mut c_char;
    }
    // SAFETY: one thread runs, so nobody else looks at the list or changes it.
    let mut entry = unsafe { environ };
    if entry.is_null() {
        return Ok(());
    }
    // SAFETY: the list ends with a null pointer; the first is null if it is empty.
    let first = unsafe { *entry };
    if first.is_null() {
        return Ok(());
    }
    // SAFETY: each is a terminated string on this process's own stack, where the kernel put it: nothing
    // has added any. The list is ended before them, so nobody finds them afterwards.
    unsafe {
        while !(*entry).is_null() {
            std::ptr::write_bytes(*entry, 0, libc::strlen(*entry));
            *entry = std::ptr::null_mut();
            entry = entry.add(1);
        }
    }
    // SAFETY: moves a mark that only `/proc/PID/environ` looks at to where the environment begins.
    let result = unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_ENV_END, first, 0, 0) };
    Errno::result(result).map(drop)
}
