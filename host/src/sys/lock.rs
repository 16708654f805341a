//! Advisory locks that say who is alive: the kernel drops them with their process, however it
//! ends.

use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A held lock. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}

impl Lock {
    /// Waits until the lock is ours.
    pub(crate) fn wait(path: &Path) -> io::Result<Lock> {
        Flock::lock(open(path)?, FlockArg::LockExclusive)
            .map(|file| Lock { _file: file })
            .map_err(|(_, errno)| errno.into())
    }

    /// Takes the lock if nobody holds it.
    pub(crate) fn attempt(path: &Path) -> io::Result<Option<Lock>> {
        match Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Lock { _file: file })),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}
