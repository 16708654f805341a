//! A socket that whoever started us has opened for us.
#![allow(unsafe_code, reason = "a descriptor that is known by its number only")]

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt};
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor after stdin, stdout and stderr (`SD_LISTEN_FDS_START` of `sd_listen_fds`(3)).
const FIRST: i32 = 3;

/// Whether it was taken.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Closes what else whoever started us has left open: it is not for us, and less for those we start. To be
/// called before anything is opened.
pub(crate) fn close_inherited() {
    // SAFETY: a plain system call. Nothing of ours is open above stderr yet.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
}

/// Takes the first socket that was passed on: one that listens. Once; to be called before anything else
/// is opened, and only if the environment says that there is one.
pub(crate) fn take_listener() -> io::Result<UnixListener> {
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::Error::other("the socket is taken"));
    }
    // SAFETY: the number is that of a descriptor which was opened for us, or of none (which the next call
    // finds out), and nobody else in this process has it: it was not opened here, and is taken once.
    let fd = unsafe { OwnedFd::from_raw_fd(FIRST) };
    if !getsockopt(&fd, sockopt::AcceptConn)? {
        return Err(io::Error::other("the descriptor that was passed on is no listening socket"));
    }
    // It is not for our own children.
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(UnixListener::from(fd))
}
