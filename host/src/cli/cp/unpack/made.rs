//! One file, folder or link, made in a folder that is open.

use super::{UnpackError, failed};
use crate::tar::Entry;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The permissions that are kept.
pub(super) const PERMISSIONS: u32 = 0o755;

/// The permissions that folders have in any case: what is in them has to be written.
pub(super) const OF_FOLDERS: u32 = 0o700;

/// Makes a folder, if it is not there, and opens it.
pub(super) fn make_folder(
    within: &OwnedFd,
    name: &OsStr,
    mode: Mode,
    path: &Path,
) -> Result<OwnedFd, UnpackError> {
    match mkdirat(within, name, mode) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(failed("make the folder", path)(errno)),
    }
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(within, name, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOTDIR | Errno::ELOOP => UnpackError::Replace { path: path.to_owned(), new: "a folder" },
        errno => failed("open the folder", path)(errno),
    })
}

/// A name that nobody else has, until it is [given up](Temporary::becomes). Dropping it removes what
/// has it.
#[derive(Debug)]
struct Temporary<'a> {
    folder: &'a OwnedFd,
    name: OsString,
}

impl<'a> Temporary<'a> {
    fn new(folder: &'a OwnedFd, path: &Path) -> Result<Temporary<'a>, UnpackError> {
        let random = getrandom::u64().map_err(|error| UnpackError::File {
            action: "choose a name beside",
            path: path.to_owned(),
            source: io::Error::other(error),
        })?;
        Ok(Temporary { folder, name: format!(".firn-{random:016x}").into() })
    }

    /// Gives what has this name its own, which takes the place of a file or link that had it.
    fn becomes(self, name: &OsStr, new: &'static str, path: &Path) -> Result<(), UnpackError> {
        renameat(self.folder, self.name.as_os_str(), self.folder, name).map_err(|errno| match errno {
            Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST => {
                UnpackError::Replace { path: path.to_owned(), new }
            }
            errno => failed("write", path)(errno),
        })
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // Renaming one name of a file to another name of the same file does nothing: both stay
        // (rename(2)). So this is done in any case.
        let _ = unlinkat(self.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
    }
}

pub(super) fn write(
    folder: &OwnedFd,
    name: &OsStr,
    content: &mut impl Read,
    entry: &Entry,
    path: &Path,
) -> Result<(u64, u64), UnpackError> {
    let temporary = Temporary::new(folder, path)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(folder, temporary.name.as_os_str(), flags, Mode::from_bits_truncate(0o600))
        .map_err(failed("write", path))?;
    let mut file = File::from(file);
    let writing = |source| UnpackError::File { action: "write", path: path.to_owned(), source };
    io::copy(content, &mut file).map_err(writing)?;
    let about = file.metadata().map_err(writing)?;
    fchmod(&file, Mode::from_bits_truncate(entry.mode & PERMISSIONS)).map_err(failed("write", path))?;
    let time = TimeSpec::new(entry.modified, 0);
    // A file system that has no such time loses nothing that matters.
    let _ = futimens(file.as_fd(), &time, &time);
    // What a network's file system could not write it says now.
    nix::unistd::close(file).map_err(failed("write", path))?;
    temporary.becomes(name, "a file", path)?;
    Ok((about.dev(), about.ino()))
}

pub(super) fn symlink(
    folder: &OwnedFd,
    name: &OsStr,
    target: &OsStr,
    entry: &Entry,
    path: &Path,
) -> Result<(), UnpackError> {
    let temporary = Temporary::new(folder, path)?;
    symlinkat(target, folder, temporary.name.as_os_str()).map_err(failed("make the link", path))?;
    let time = TimeSpec::new(entry.modified, 0);
    let flags = UtimensatFlags::NoFollowSymlink;
    let _ = utimensat(folder, temporary.name.as_os_str(), &time, &time, flags);
    temporary.becomes(name, "a link", path)
}

pub(super) fn link(
    from: &OwnedFd,
    old: &OsStr,
    folder: &OwnedFd,
    name: &OsStr,
    path: &Path,
) -> Result<(), UnpackError> {
    let temporary = Temporary::new(folder, path)?;
    linkat(from, old, folder, temporary.name.as_os_str(), AtFlags::empty())
        .map_err(failed("make the link", path))?;
    temporary.becomes(name, "a file", path)
}
