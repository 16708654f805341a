//! An archive out of a sandbox becomes files of the host's.
//!
//! The archive is an adversary's: it may name anything. Every name is walked from the folder that was
//! opened at the start, one component at a time and following no link, so nothing outside is reached,
//! whatever was unpacked before or lies there. A file is written under a name of its own and gets its
//! own at the end, so nothing that exists is written into, and nothing half-written is ever seen under
//! a name that was asked for. Files belong to the caller; of the permissions the set-id bits, the sticky
//! bit and those to write for others are dropped. What is neither file, folder nor link is left out.

mod destination;
mod made;
#[cfg(test)]
mod tests;

use crate::tar::{Entry, Kind, Reader, TarError};
pub(super) use destination::Destination;
use made::{OF_FOLDERS, PERMISSIONS, link, make_folder, symlink, write};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How many files are remembered, to be linked to: a bound for memory, not for what is copied.
const MOST_LINKABLE: usize = 1 << 20;

/// What is in the archive was not unpacked, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// The archive cannot be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// There is nothing in it.
    #[error("the sandbox sent nothing")]
    Empty,
    /// A name that leads elsewhere.
    #[error("the sandbox sent {0:?}, which is not within what was asked for: nothing more was copied")]
    Outside(OsString),
    /// A link to what this copy did not make.
    #[error("the sandbox sent {0:?} as another name of a file that it did not send")]
    Stray(OsString),
    /// A folder where a file should go, or the other way round.
    #[error("cannot replace {path:?} by {new}")]
    Replace {
        /// What is there.
        path: PathBuf,
        /// What was to be there.
        new: &'static str,
    },
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
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> UnpackError {
    move |errno| UnpackError::File { action, path: path.to_owned(), source: errno.into() }
}

/// Unpacks `archive` where `land` says when it is told what the archive holds, and tells of what is left
/// out.
pub(super) fn unpack(
    archive: impl Read,
    land: impl FnOnce(&Kind) -> Result<Destination, UnpackError>,
    left_out: &mut dyn FnMut(&OsStr),
) -> Result<(), UnpackError> {
    let mut archive = Reader::new(archive);
    let first = archive.next()?.ok_or(UnpackError::Empty)?;
    let top = components(&first)?;
    if top.len() > 1 {
        return Err(UnpackError::Outside(shown(&first)));
    }
    let to = land(&first.kind)?;
    let mut unpacking = Unpacking { to: &to, linkable: HashSet::new(), last: None };
    let mut next = Some(first);
    while let Some(entry) = next {
        let below = below(components(&entry)?, &top).ok_or_else(|| UnpackError::Outside(shown(&entry)))?;
        unpacking.entry(&entry, below, &top, &mut archive, left_out)?;
        next = archive.next()?;
    }
    Ok(())
}

/// The parts of an entry's name.
fn components(entry: &Entry) -> Result<Vec<OsString>, UnpackError> {
    parts(&entry.name).ok_or_else(|| UnpackError::Outside(shown(entry)))
}

/// The parts of a name. None: it is absolute, or leads upwards.
fn parts(name: &[u8]) -> Option<Vec<OsString>> {
    if name.starts_with(b"/") {
        return None;
    }
    let parts = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    // No kernel takes a NUL in a name, and it would say so with an error about something else.
    let sound =
        |part: &[u8]| (part != b".." && !part.contains(&0)).then(|| OsString::from_vec(part.to_vec()));
    parts.map(sound).collect()
}

/// What follows `top`.
fn below(mut parts: Vec<OsString>, top: &[OsString]) -> Option<Vec<OsString>> {
    parts.starts_with(top).then(|| parts.split_off(top.len()))
}

fn shown(entry: &Entry) -> OsString {
    OsString::from_vec(entry.name.clone())
}

/// An unpacking under way.
#[derive(Debug)]
struct Unpacking<'a> {
    to: &'a Destination,
    /// The files that were made.
    linkable: HashSet<(u64, u64)>,
    /// The folder that was written to last: mostly the next one too.
    last: Option<(Vec<OsString>, OwnedFd)>,
}

impl Unpacking<'_> {
    fn entry(
        &mut self,
        entry: &Entry,
        below: Vec<OsString>,
        top: &[OsString],
        content: &mut impl Read,
        left_out: &mut dyn FnMut(&OsStr),
    ) -> Result<(), UnpackError> {
        let mut parts: Vec<OsString> = self.to.name.iter().cloned().chain(below).collect();
        let path = self.path(&parts);
        let Some(name) = parts.pop() else {
            // The folder itself, which is there.
            return match entry.kind {
                Kind::Folder => Ok(()),
                _ => Err(UnpackError::Replace { path, new: "a file" }),
            };
        };
        if entry.kind == Kind::Special {
            left_out(&shown(entry));
            return Ok(());
        }
        let made = match &entry.kind {
            Kind::HardLink { target } => {
                let stray = || UnpackError::Stray(shown(entry));
                let target =
                    self::parts(target).and_then(|parts| self::below(parts, top)).ok_or_else(stray)?;
                Some(self.linkable_file(target)?.ok_or_else(stray)?)
            }
            _ => None,
        };
        let folder = self.folder(parts)?;
        match &entry.kind {
            Kind::Folder => {
                let mode = Mode::from_bits_truncate(entry.mode & PERMISSIONS | OF_FOLDERS);
                make_folder(folder, &name, mode, &path)?;
            }
            Kind::Symlink { target } => symlink(folder, &name, OsStr::from_bytes(target), entry, &path)?,
            Kind::File { .. } => {
                let file = write(folder, &name, content, entry, &path)?;
                if self.linkable.len() < MOST_LINKABLE {
                    self.linkable.insert(file);
                }
            }
            Kind::HardLink { .. } | Kind::Special => {
                if let Some((from, old)) = made {
                    link(&from, &old, folder, &name, &path)?;
                }
            }
        }
        Ok(())
    }

    fn path(&self, parts: &[OsString]) -> PathBuf {
        self.to.path.iter().chain(parts.iter().map(OsString::as_os_str)).collect()
    }

    /// The folder of this name, opened. What is missing of it is made.
    fn folder(&mut self, parts: Vec<OsString>) -> Result<&OwnedFd, UnpackError> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != parts) {
            let mut folder = self.to.folder.try_clone().map_err(|source| UnpackError::File {
                action: "open",
                path: self.to.path.clone(),
                source,
            })?;
            for (index, part) in parts.iter().enumerate() {
                let path = self.path(&parts[..=index]);
                folder = make_folder(&folder, part, Mode::from_bits_truncate(PERMISSIONS), &path)?;
            }
            self.last = None;
            return Ok(&self.last.insert((parts, folder)).1);
        }
        match &self.last {
            Some((_, folder)) => Ok(folder),
            None => Ok(&self.to.folder),
        }
    }

    /// The folder and the name of a file that this unpacking made: nothing else may get another name.
    fn linkable_file(&mut self, below: Vec<OsString>) -> Result<Option<(OwnedFd, OsString)>, UnpackError> {
        let mut parts: Vec<OsString> = self.to.name.iter().cloned().chain(below).collect();
        let path = self.path(&parts);
        let Some(name) = parts.pop() else { return Ok(None) };
        let folder = self.folder(parts)?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let about = match openat(folder, name.as_os_str(), flags, Mode::empty()) {
            Ok(file) => File::from(file).metadata(),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => Err(errno.into()),
        };
        let folder = folder.try_clone();
        let in_vain = |source| UnpackError::File { action: "look at", path, source };
        let (about, folder) = about.and_then(|about| Ok((about, folder?))).map_err(in_vain)?;
        let ours = about.is_file() && self.linkable.contains(&(about.dev(), about.ino()));
        Ok(ours.then_some((folder, name)))
    }
}
