//! Files of the host's become an archive for a sandbox.
//!
//! A folder may be one that a sandbox writes to at this moment, so it is walked by descriptors, and no
//! link below what the caller named is followed: a folder that is replaced by a link while it is
//! copied gives nothing away. Owners stay behind: who owns the copies is decided in the sandbox.

use crate::tar::{Entry, Kind, LONGEST_NAME, Writer};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::vec;

/// What was to be copied was not, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// A step failed.
    #[error("cannot {action} {path:?}")]
    File {
        /// What was done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The sandbox could not name it.
    #[error("{0:?} has too long a path")]
    TooLong(PathBuf),
    /// Neither file, folder nor link.
    #[error("{0:?} is neither a file, a folder nor a link")]
    Special(PathBuf),
    /// Where it was is not known any more.
    #[error("{0:?} was moved while it was copied")]
    Moved(PathBuf),
    /// The archive cannot be sent.
    #[error("cannot send {path:?}")]
    Send {
        /// What was to be sent.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> PackError {
    move |errno| PackError::File { action, path: path.to_owned(), source: errno.into() }
}

/// Writes what is at `source`, called `name`, to `to`, and tells of what is left out. A link is copied
/// as a link unless `source` ends with a slash.
pub(super) fn pack(
    source: &Path,
    name: &OsStr,
    to: impl Write,
    left_out: &mut dyn FnMut(&OsStr),
) -> Result<(), PackError> {
    let mut packing = Packing { archive: Writer::new(to), left_out };
    let about = fstatat(AT_FDCWD, source, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("look at", source))?;
    if !matches!(kind(&about), SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFLNK) {
        return Err(PackError::Special(source.to_owned()));
    }
    if kind(&about) == SFlag::S_IFDIR {
        packing.tree(source, &about, name.as_bytes().to_vec())?;
    } else {
        packing.leaf(AT_FDCWD, source.as_os_str(), &about, name.as_bytes().to_vec(), source)?;
    }
    packing
        .archive
        .finish()
        .map(drop)
        .map_err(|error| PackError::Send { path: source.to_owned(), source: error })
}

fn kind(about: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT
}

/// Which file it is, whatever its name.
fn id(about: &FileStat) -> (u64, u64) {
    (about.st_dev, about.st_ino)
}

/// A folder that is being packed.
struct Level {
    name: Vec<u8>,
    path: PathBuf,
    id: (u64, u64),
    /// What of it is still to be packed.
    children: vec::IntoIter<OsString>,
}

struct Packing<'a, W> {
    archive: Writer<W>,
    left_out: &'a mut dyn FnMut(&OsStr),
}

impl<W: Write> Packing<'_, W> {
    /// Packs a folder and all that is in it. However deep that is, only the folder that is looked at is open:
    /// from there it goes up again by `..`, if that still is where it came from.
    fn tree(&mut self, source: &Path, about: &FileStat, name: Vec<u8>) -> Result<(), PackError> {
        let mut folder = open_folder(AT_FDCWD, source.as_os_str(), source)?;
        let mut levels = vec![self.enter(&folder, about, name, source.to_owned())?];
        while let Some(level) = levels.last_mut() {
            let Some(child) = level.children.next() else {
                levels.pop();
                if let Some(above) = levels.last() {
                    folder = up(&folder, above)?;
                }
                continue;
            };
            let path = level.path.join(&child);
            let about = fstatat(&folder, child.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(failed("look at", &path))?;
            let name = [level.name.as_slice(), b"/", child.as_bytes()].concat();
            if kind(&about) == SFlag::S_IFDIR {
                let below = open_folder(&folder, &child, &path)?;
                levels.push(self.enter(&below, &about, name, path)?);
                folder = below;
            } else {
                self.leaf(&folder, &child, &about, name, &path)?;
            }
        }
        Ok(())
    }

    fn enter(
        &mut self,
        folder: &OwnedFd,
        about: &FileStat,
        name: Vec<u8>,
        path: PathBuf,
    ) -> Result<Level, PackError> {
        if name.len() >= LONGEST_NAME {
            return Err(PackError::TooLong(path));
        }
        self.bare(&entry(name.clone(), Kind::Folder, about), &path)?;
        let id = id(&fstat(folder).map_err(failed("look at", &path))?);
        let children = children(folder, &path)?.into_iter();
        Ok(Level { name, path, id, children })
    }

    /// Packs `file` of the folder `within`, which is no folder.
    fn leaf(
        &mut self,
        within: impl AsFd,
        file: &OsStr,
        about: &FileStat,
        name: Vec<u8>,
        path: &Path,
    ) -> Result<(), PackError> {
        if name.len() >= LONGEST_NAME {
            return Err(PackError::TooLong(path.to_owned()));
        }
        match kind(about) {
            SFlag::S_IFREG => self.file(within, file, name, path),
            SFlag::S_IFLNK => {
                let target = readlinkat(within, file).map_err(failed("read the link", path))?.into_vec();
                self.bare(&entry(name, Kind::Symlink { target }, about), path)
            }
            _ => {
                (self.left_out)(path.as_os_str());
                Ok(())
            }
        }
    }

    fn bare(&mut self, entry: &Entry, path: &Path) -> Result<(), PackError> {
        self.archive.entry(entry).map_err(|source| PackError::Send { path: path.to_owned(), source })
    }

    fn file(&mut self, within: impl AsFd, file: &OsStr, name: Vec<u8>, path: &Path) -> Result<(), PackError> {
        // Should it be a pipe by now, opening it would wait for a writer.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(within, file, flags, Mode::empty()).map_err(failed("open", path))?;
        let about = fstat(&file).map_err(failed("look at", path))?;
        if kind(&about) != SFlag::S_IFREG {
            (self.left_out)(path.as_os_str());
            return Ok(());
        }
        let size = u64::try_from(about.st_size).unwrap_or_default();
        let mut content = Source { file: File::from(file), error: None };
        let sent = self.archive.file(&entry(name, Kind::File { size }, &about), size, &mut content);
        match content.error {
            Some(source) => Err(PackError::File { action: "read", path: path.to_owned(), source }),
            None => sent.map_err(|source| PackError::Send { path: path.to_owned(), source }),
        }
    }
}

fn open_folder(within: impl AsFd, folder: &OsStr, path: &Path) -> Result<OwnedFd, PackError> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(within, folder, flags, Mode::empty()).map_err(failed("open the folder", path))
}

/// The folder that `folder` is in, which has to be that of the level `above`.
fn up(folder: &OwnedFd, above: &Level) -> Result<OwnedFd, PackError> {
    let parent = open_folder(folder, OsStr::new(".."), &above.path)?;
    let about = fstat(&parent).map_err(failed("look at", &above.path))?;
    if id(&about) == above.id { Ok(parent) } else { Err(PackError::Moved(above.path.clone())) }
}

/// The names in a folder, in order.
fn children(folder: &OwnedFd, path: &Path) -> Result<Vec<OsString>, PackError> {
    let reading = failed("read the folder", path);
    // A description of its own: reading it to its end moves the descriptor's position.
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let names = || -> Result<Vec<OsString>, Errno> {
        let mut folder = Dir::openat(folder, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in folder.iter() {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    };
    let mut names = names().map_err(reading)?;
    names.sort_unstable();
    Ok(names)
}

fn entry(name: Vec<u8>, kind: Kind, about: &FileStat) -> Entry {
    Entry { name, kind, mode: about.st_mode & 0o777, modified: about.st_mtime }
}

/// A file that is read, which remembers whether reading failed or what was read could not be sent.
struct Source {
    file: File,
    error: Option<io::Error>,
}

impl io::Read for &mut Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.file.read(into).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return error;
            }
            self.error = Some(error);
            io::ErrorKind::Other.into()
        })
    }
}
