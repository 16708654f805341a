//! A file or a folder as a tar stream, in GNU's form: long names and sizes beyond 8 GiB have their place.

use super::{CHUNK, DEEPEST, FilesError, at, errno, join, kind, names, open, open_folder};
use crate::worker::Line;
use firn_protocol::{ArchiveSummary, FileKind};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, fstat, fstatat};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use tar::{EntryType, Header};

/// Everything in a tar stream begins at a multiple of this.
const BLOCK: usize = 512;

/// The longest name that fits into a header.
const SHORT: usize = 100;

struct Packer<'l> {
    line: &'l mut Line,
    buffer: Vec<u8>,
    summary: ArchiveSummary,
}

/// Packs it under its own name.
pub(super) fn pack(path: &Path, line: &mut Line) -> Result<ArchiveSummary, FilesError> {
    let mut packer = Packer { line, buffer: Vec::new(), summary: ArchiveSummary::default() };
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            let parent_fd = open(AT_FDCWD, parent, flags).map_err(at("open", path))?;
            let entry = CString::new(name.as_bytes()).map_err(|_nul| FilesError::Path(path.to_owned()))?;
            packer.add(parent_fd.as_fd(), &entry, name.as_bytes(), path, DEEPEST)?;
        }
        // The root has no name.
        _ => {
            let root = open(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(at("open", path))?;
            packer.add(root.as_fd(), c".", b".", path, DEEPEST)?;
        }
    }
    packer.write(&[0; 2 * BLOCK])?;
    packer.flush()?;
    Ok(packer.summary)
}

impl Packer<'_> {
    fn add(
        &mut self,
        parent: BorrowedFd<'_>,
        entry: &CStr,
        name: &[u8],
        path: &Path,
        depth: usize,
    ) -> Result<(), FilesError> {
        let stat = fstatat(parent, entry, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(at("look at", path))?;
        match kind(&stat) {
            FileKind::File => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW;
                let file = open(parent, entry, flags).map_err(at("open", path))?;
                // It may be another by now.
                let stat = fstat(&file).map_err(at("look at", path))?;
                if kind(&stat) != FileKind::File {
                    return Err(FilesError::NoFile(path.to_owned()));
                }
                self.header(EntryType::Regular, name, b"", &stat)?;
                self.content(File::from(file), stat.st_size.unsigned_abs(), path)?;
                self.summary.files += 1;
            }
            FileKind::Folder => {
                if depth == 0 {
                    return Err(FilesError::TooDeep(path.to_owned()));
                }
                let folder = open_folder(parent, entry).map_err(at("open", path))?;
                let stat = fstat(&folder).map_err(at("look at", path))?;
                self.header(EntryType::Directory, &[name, b"/"].concat(), b"", &stat)?;
                self.summary.folders += 1;
                let (names, _) = names(folder.as_fd(), usize::MAX).map_err(at("list", path))?;
                for below in names {
                    let name = [name, b"/", below.to_bytes()].concat();
                    match self.add(folder.as_fd(), &below, &name, &join(path, &below), depth - 1) {
                        // It is gone meanwhile.
                        Err(FilesError::File {
                            what: "look at", errno: nix::errno::Errno::ENOENT, ..
                        }) => {}
                        result => result?,
                    }
                }
            }
            FileKind::Link => {
                let target = readlinkat(parent, entry).map_err(at("look at", path))?;
                self.header(EntryType::Symlink, name, target.as_bytes(), &stat)?;
                self.summary.links += 1;
            }
            FileKind::Other => self.summary.left_out += 1,
        }
        Ok(())
    }

    fn header(
        &mut self,
        kind: EntryType,
        name: &[u8],
        target: &[u8],
        stat: &FileStat,
    ) -> Result<(), FilesError> {
        for (text, kind) in [(name, EntryType::GNULongName), (target, EntryType::GNULongLink)] {
            if text.len() > SHORT {
                let mut header = Header::new_gnu();
                fill(&mut header.as_old_mut().name, b"././@LongLink");
                header.set_entry_type(kind);
                header.set_size(text.len() as u64 + 1);
                header.set_cksum();
                self.write(header.as_bytes())?;
                self.write(text)?;
                self.write(&[0])?;
                self.pad(text.len() as u64 + 1)?;
            }
        }
        let mut header = Header::new_gnu();
        fill(&mut header.as_old_mut().name, name);
        fill(&mut header.as_old_mut().linkname, target);
        header.set_entry_type(kind);
        header.set_size(if kind == EntryType::Regular { stat.st_size.unsigned_abs() } else { 0 });
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        // Before 1970 there is no time that every reader would understand.
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_cksum();
        self.write(header.as_bytes())
    }

    /// Exactly as much as the header says, whatever becomes of the file meanwhile.
    fn content(&mut self, mut file: File, size: u64, path: &Path) -> Result<(), FilesError> {
        let mut left = size;
        let mut chunk = vec![0; CHUNK];
        while left > 0 {
            let most = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let read = match file.read(&mut chunk[..most]) {
                Ok(0) => {
                    chunk.fill(0);
                    most
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(at("read", path)(errno(&error))),
            };
            self.write(&chunk[..read])?;
            left -= read as u64;
        }
        self.summary.bytes += size;
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> Result<(), FilesError> {
        let over = (size % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.write(&[0; BLOCK][over..]) }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), FilesError> {
        for chunk in self.buffer.chunks(CHUNK) {
            self.line.send_output(chunk).map_err(FilesError::Line)?;
        }
        self.buffer.clear();
        Ok(())
    }
}

/// As much of the text as there is room for.
fn fill(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}
