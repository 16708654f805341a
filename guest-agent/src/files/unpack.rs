//! A tar stream into a folder, and nowhere else.
//!
//! Each name is gone down part by part from the folder's descriptor, and a part that is no folder (a symbolic
//! link to one is none) ends the whole. Files are always made anew, never written through what was there.

use super::{FilesError, at, errno, kind, open};
use crate::worker::Line;
use bytes::{Buf as _, Bytes};
use firn_protocol::{ArchiveSummary, FileKind, Text};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use tar::{Archive, Entry, EntryType};

/// The bits that are kept of a mode.
const MODE: u32 = 0o777;

/// The mode of a folder while things are put into it, and of one that is not in the archive.
const OWN: Mode = Mode::S_IRWXU;

/// A folder's mode and time, which are set when all is in it.
struct Finish {
    parts: Vec<CString>,
    mode: Mode,
    modified: TimeSpec,
}

struct Unpacker<'f> {
    path: &'f Path,
    folder: OwnedFd,
    name: Option<CString>,
    summary: ArchiveSummary,
    finish: Vec<Finish>,
}

/// Unpacks what comes.
pub(super) fn unpack(
    path: &Path,
    name: Option<&Text>,
    line: &mut Line,
) -> Result<ArchiveSummary, FilesError> {
    let name = name.map(|name| only_part(name.as_bytes())).transpose()?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let folder = open(AT_FDCWD, path, flags).map_err(at("open", path))?;
    let mut unpacker =
        Unpacker { path, folder, name, summary: ArchiveSummary::default(), finish: Vec::new() };
    let mut stream = Stream { line, chunk: Bytes::new(), ended: false };
    let mut archive = Archive::new(&mut stream);
    for entry in archive.entries().map_err(FilesError::Archive)? {
        unpacker.add(entry.map_err(FilesError::Archive)?)?;
    }
    unpacker.finish();
    // What follows the archive is of no interest, but the host wants to be rid of it.
    io::copy(&mut stream, &mut io::sink()).map_err(FilesError::Line)?;
    Ok(unpacker.summary)
}

/// The one part of a name that has no more.
fn only_part(name: &[u8]) -> Result<CString, FilesError> {
    let mut parts = parts(name)?;
    match (parts.pop(), parts.is_empty()) {
        (Some(part), true) => Ok(part),
        _ => Err(FilesError::Outside(PathBuf::from(OsStr::from_bytes(name)))),
    }
}

/// The parts of a name that leads nowhere but down.
fn parts(name: &[u8]) -> Result<Vec<CString>, FilesError> {
    let outside = || FilesError::Outside(PathBuf::from(OsStr::from_bytes(name)));
    if name.first() == Some(&b'/') {
        return Err(outside());
    }
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(outside()),
            part => parts.push(CString::new(part).map_err(|_nul| outside())?),
        }
    }
    Ok(parts)
}

impl Unpacker<'_> {
    fn parts(&self, name: &[u8]) -> Result<Vec<CString>, FilesError> {
        let mut parts = parts(name)?;
        if let Some(name) = &self.name {
            match parts.first_mut() {
                Some(first) => first.clone_from(name),
                None => parts.push(name.clone()),
            }
        }
        Ok(parts)
    }

    fn shown(&self, parts: &[CString]) -> PathBuf {
        parts.iter().fold(self.path.to_owned(), |path, part| super::join(&path, part))
    }

    fn add(&mut self, mut entry: Entry<'_, impl Read>) -> Result<(), FilesError> {
        let header = entry.header();
        let kind = header.entry_type();
        let mode = Mode::from_bits_truncate(header.mode().map_err(FilesError::Archive)? & MODE);
        let modified = header.mtime().map_err(FilesError::Archive)?;
        let modified = TimeSpec::new(i64::try_from(modified).unwrap_or(0), 0);
        let parts = self.parts(&entry.path_bytes())?;
        if !(kind.is_file()
            || kind.is_contiguous()
            || kind.is_gnu_sparse()
            || kind.is_dir()
            || kind.is_symlink()
            || kind.is_hard_link())
        {
            // A header for all that follows says nothing about files.
            if kind != EntryType::XGlobalHeader {
                self.summary.left_out += 1;
            }
            return Ok(());
        }
        let path = self.shown(&parts);
        let Some((name, above)) = parts.split_last() else {
            // The folder itself stays as it is.
            return if kind.is_dir() { Ok(()) } else { Err(FilesError::Outside(path)) };
        };
        let parent = self.descend(above)?;
        if kind.is_dir() {
            match mkdirat(&parent, name.as_c_str(), OWN) {
                Ok(()) => {}
                Err(Errno::EEXIST) => {
                    self.descend(&parts)?;
                }
                Err(errno) => return Err(at("make", &path)(errno)),
            }
            self.finish.push(Finish { parts, mode, modified });
            self.summary.folders += 1;
            return Ok(());
        }
        make_room(&parent, name, &path)?;
        let failed = at("make", &path);
        if kind.is_symlink() {
            let target = entry.link_name_bytes().unwrap_or_default();
            symlinkat(OsStr::from_bytes(&target), &parent, name.as_c_str()).map_err(failed)?;
            // Not everywhere possible, and not of importance.
            let _ = utimensat(
                &parent,
                name.as_c_str(),
                &TimeSpec::UTIME_OMIT,
                &modified,
                UtimensatFlags::NoFollowSymlink,
            );
            self.summary.links += 1;
        } else if kind.is_hard_link() {
            let target = self.parts(&entry.link_name_bytes().unwrap_or_default())?;
            let Some((target_name, above)) = target.split_last() else {
                return Err(FilesError::Outside(self.shown(&target)));
            };
            let folder = self.descend(above)?;
            // No flag: of a symbolic link the link itself.
            linkat(&folder, target_name.as_c_str(), &parent, name.as_c_str(), AtFlags::empty())
                .map_err(failed)?;
            self.summary.files += 1;
        } else {
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file =
                openat(&parent, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
            let mut file = File::from(file);
            self.summary.bytes += copy(&mut entry, &mut file, &path)?;
            self.summary.files += 1;
            fchmod(&file, mode).map_err(at("set the mode of", &path))?;
            let _ = futimens(&file, &TimeSpec::UTIME_OMIT, &modified);
        }
        Ok(())
    }

    /// The folder below the folder that has this name. Made where it is missing.
    fn descend(&self, parts: &[CString]) -> Result<OwnedFd, FilesError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let mut folder = self.folder.try_clone().map_err(|error| at("open", self.path)(errno(&error)))?;
        for (index, part) in parts.iter().enumerate() {
            let below = match open(&folder, part.as_c_str(), flags) {
                Err(Errno::ENOENT) => {
                    let mode = OWN | Mode::from_bits_truncate(0o055);
                    mkdirat(&folder, part.as_c_str(), mode)
                        .and_then(|()| open(&folder, part.as_c_str(), flags))
                }
                result => result,
            };
            let path = || self.shown(&parts[..=index]);
            folder = match below {
                Ok(below) => below,
                Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(FilesError::NoFolder(path())),
                Err(errno) => return Err(at("open", &path())(errno)),
            };
        }
        Ok(folder)
    }

    /// Gives folders their modes and times, those below first: a mode may forbid to go there.
    fn finish(&self) {
        for Finish { parts, mode, modified } in self.finish.iter().rev() {
            let Some((name, above)) = parts.split_last() else { continue };
            // One that was there before may belong to somebody else: then it stays as it is.
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            if let Ok(parent) = self.descend(above)
                && let Ok(folder) = open(&parent, name.as_c_str(), flags)
            {
                let _ = fchmod(&folder, *mode);
                let _ = futimens(&folder, &TimeSpec::UTIME_OMIT, modified);
            }
        }
    }
}

/// Removes what is in the way of something that is no folder.
fn make_room(parent: &OwnedFd, name: &CString, path: &Path) -> Result<(), FilesError> {
    match unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => {
            let stat = fstatat(parent.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
            if stat.is_ok_and(|stat| kind(&stat) == FileKind::Folder) {
                return Err(FilesError::NoFile(path.to_owned()));
            }
            Err(at("replace", path)(errno))
        }
    }
}

fn copy(from: &mut impl Read, to: &mut File, path: &Path) -> Result<u64, FilesError> {
    let mut chunk = vec![0; super::CHUNK];
    let mut copied = 0;
    loop {
        let read = from.read(&mut chunk).map_err(FilesError::Archive)?;
        if read == 0 {
            return Ok(copied);
        }
        io::Write::write_all(to, &chunk[..read]).map_err(|error| at("write", path)(errno(&error)))?;
        copied += read as u64;
    }
}

/// Stdin.
struct Stream<'l> {
    line: &'l mut Line,
    chunk: Bytes,
    ended: bool,
}

impl Read for Stream<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() && !self.ended {
            match self.line.receive_input()? {
                Some(chunk) => self.chunk = chunk,
                None => self.ended = true,
            }
        }
        let length = room.len().min(self.chunk.len());
        room[..length].copy_from_slice(&self.chunk[..length]);
        self.chunk.advance(length);
        Ok(length)
    }
}
