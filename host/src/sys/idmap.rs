//! Folders of one user, shown as another's (ID-mapped mounts, Linux 5.12).
//!
//! Root's sandboxes run as an id that owns nothing, and yet what they write into a folder of root's
//! has to be root's. An ID-mapped mount says so where it belongs, in the mount: what is root's on
//! the disk is the sandbox's there, and the other way round, and what is anybody else's is nobody's.
//! (`mount_setattr`(2); Documentation/filesystems/idmappings.rst)
#![allow(unsafe_code, reason = "system calls without a wrapper, and a process that only lends its namespace")]

use super::staging::{c_string, owned};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// From the user and group on the disk to those that the mount shows.
#[derive(Debug)]
pub(crate) struct Mapping {
    namespace: OwnedFd,
}

impl Mapping {
    /// Shows files of the user and group `from` as those of `to`. Needs root.
    pub(crate) fn new(from: (u32, u32), to: (u32, u32)) -> io::Result<Mapping> {
        // A user namespace is made with a process. Ours does nothing and is gone at the end of this.
        let lender = Lender::new()?;
        let proc = PathBuf::from(format!("/proc/{}", lender.0));
        fs::write(proc.join("uid_map"), format!("{} {} 1\n", from.0, to.0))?;
        fs::write(proc.join("gid_map"), format!("{} {} 1\n", from.1, to.1))?;
        Ok(Mapping { namespace: File::open(proc.join("ns/user"))?.into() })
    }

    /// `source` and everything mounted below it, with this mapping, not attached yet. Set-id bits and device
    /// nodes in it mean nothing.
    pub(crate) fn mount(&self, source: &Path) -> io::Result<OwnedFd> {
        let source = c_string(source)?;
        // Of linux/mount.h; AT_RECURSIVE of linux/fcntl.h.
        const AT_RECURSIVE: libc::c_uint = 0x8000;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | AT_RECURSIVE;
        // SAFETY: a plain system call; the string outlives it. The descriptor it gives is ours alone.
        let mount = unsafe {
            let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags);
            owned(fd)?
        };
        // SAFETY: all zeros are a valid value of it: nothing to set, nothing to clear.
        let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
        attributes.attr_set = libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        attributes.userns_fd = u64::try_from(self.namespace.as_raw_fd()).unwrap_or(u64::MAX);
        // SAFETY: a plain system call; what it points to outlives it, and the size is the structure's.
        let set = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH.cast_unsigned() | AT_RECURSIVE,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(mount)
    }
}

/// A file cannot be shown as another user's on every file system.
pub(crate) fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP))
}

/// A process in a user namespace of its own that waits to be killed.
struct Lender(libc::pid_t);

impl Lender {
    fn new() -> io::Result<Lender> {
        let flags = libc::c_ulong::from((libc::CLONE_NEWUSER | libc::SIGCHLD).cast_unsigned());
        // SAFETY: a plain system call.
        let parent = unsafe { libc::getpid() };
        // SAFETY: without a stack of its own this is fork(2). The child makes a few system calls and
        // never returns: it uses no memory of ours but its copy of a number.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => loop {
                // SAFETY: plain system calls.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    // Of one that died before there is no signal.
                    if libc::getppid() != parent {
                        libc::_exit(1);
                    }
                    libc::pause();
                }
            },
            pid => libc::pid_t::try_from(pid).map(Lender).map_err(io::Error::other),
        }
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        // SAFETY: plain system calls on our own child, which has not been waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}
