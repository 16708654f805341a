//! The way into a group.

use crate::sys::spawn::Born;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

/// The ways into a group for a process that is being made.
///
/// In version 1 it goes through the file `tasks`, for a reason of time: what is written to
/// `cgroup.procs` moves a whole process, for which the kernel stops every fork and exit on the host,
/// which takes until all processors have passed through the scheduler (5 to 20 ms on an idle host).
/// A thread that moves only itself need not wait for that (`cgroup_procs_write_start` in
/// kernel/cgroup/cgroup.c), and a process that was just forked has one thread. In version 2, where
/// threads cannot be apart, the process is made in the group ([`crate::sys::spawn`]).
#[derive(Debug, Default)]
pub(crate) struct Entry {
    tasks: Vec<OwnedFd>,
    /// Of version 2, to be made in.
    folder: Option<OwnedFd>,
    /// The same group, to move into where that cannot be done.
    procs: Option<OwnedFd>,
}

impl Entry {
    /// The way into the group in this folder too.
    pub(super) fn add(&mut self, dir: &Path) -> io::Result<()> {
        let open = |file| OpenOptions::new().write(true).open(dir.join(file)).map(OwnedFd::from);
        match open("tasks") {
            Ok(tasks) => self.tasks.push(tasks),
            // Only version 1 has it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.folder = Some(OwnedFd::from(File::open(dir)?));
                self.procs = Some(open("cgroup.procs")?);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The folder of version 2 that the process should be made in.
    pub(in crate::sys) fn folder(&self) -> Option<BorrowedFd<'_>> {
        self.folder.as_ref().map(OwnedFd::as_fd)
    }

    /// Moves the calling process, which has one thread, into the group, as far as it is not in it.
    /// Async-signal-safe.
    #[allow(unsafe_code, reason = "write(2) between fork and exec")]
    pub(in crate::sys) fn join(&self, born: Born) -> io::Result<()> {
        let procs = self.procs.as_ref().filter(|_| born == Born::Outside);
        for file in self.tasks.iter().chain(procs) {
            let fd: RawFd = file.as_raw_fd();
            // SAFETY: the descriptor is open and the buffer is one constant byte; "0" is the writer.
            let written = unsafe { libc::write(fd, c"0".as_ptr().cast(), 1) };
            if written != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}
