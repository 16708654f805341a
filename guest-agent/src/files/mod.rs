//! Files of the sandbox, for the requests of `firn_protocol`'s `files`.
//!
//! All of it runs in a worker, which has become the user first: what it may do the kernel decides. Folders
//! are gone through by descriptor and one name at a time, and no symbolic link is followed on the way
//! down: what is moved meanwhile cannot lead anywhere else.

mod pack;
mod unpack;

use crate::connection::failure;
use crate::exec::Accounts;
use crate::worker::Line;
use firn_protocol::{
    FailureCode, FileEntry, FileInfo, FileKind, FileList, FileRead, FileRemove, FileTarget, MAX_FILES, Reply,
    Request, Text,
};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// How much is read and sent at once, in bytes.
const CHUNK: usize = 128 * 1024;

/// How long a list may be, in bytes of JSON.
const LONGEST_LIST: usize = 768 * 1024;

/// How deep folders may be within one another: each takes a descriptor and a part of the stack.
const DEEPEST: usize = 200;

/// Why a request about files could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum FilesError {
    #[error("{0:?} is no absolute path")]
    Path(PathBuf),
    #[error("no such user in the sandbox")]
    User,
    #[error("cannot become the user: {}", .0.desc())]
    Identity(Errno),
    #[error("cannot {what} {path:?}: {}", .errno.desc())]
    File { what: &'static str, path: PathBuf, errno: Errno },
    #[error("{0:?} is no ordinary file")]
    NoFile(PathBuf),
    #[error("{0:?} is no folder")]
    NoFolder(PathBuf),
    #[error("{0:?} cannot be removed")]
    Unremovable(PathBuf),
    #[error("{0:?} is too deep")]
    TooDeep(PathBuf),
    #[error("the name {0:?} in the archive leads out of the folder")]
    Outside(PathBuf),
    #[error("the archive cannot be read: {0}")]
    Archive(io::Error),
    #[error("the host is gone: {0}")]
    Line(io::Error),
}

impl FilesError {
    fn code(&self) -> FailureCode {
        match self {
            FilesError::File { errno: Errno::ENOENT | Errno::ENOTDIR, .. } => FailureCode::NotFound,
            FilesError::File { errno: Errno::EACCES | Errno::EPERM | Errno::EROFS, .. } => {
                FailureCode::Denied
            }
            FilesError::File { .. }
            | FilesError::Identity(_)
            | FilesError::TooDeep(_)
            | FilesError::Line(_) => FailureCode::Failed,
            FilesError::Path(_)
            | FilesError::User
            | FilesError::NoFile(_)
            | FilesError::NoFolder(_)
            | FilesError::Unremovable(_)
            | FilesError::Outside(_)
            | FilesError::Archive(_) => FailureCode::Invalid,
        }
    }
}

/// An error about this file.
fn at(what: &'static str, path: &Path) -> impl Fn(Errno) -> FilesError {
    let path = path.to_owned();
    move |errno| FilesError::File { what, path: path.clone(), errno }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Serves a request, in a worker.
pub(crate) fn work(request: Request, line: &mut Line) -> Reply {
    serve(request, line).unwrap_or_else(|error| failure(error.code(), error.to_string()))
}

fn serve(request: Request, line: &mut Line) -> Result<Reply, FilesError> {
    match request {
        Request::FileStat(target) => {
            let path = become_user(&target)?;
            Ok(Reply::FileInfo(look(AT_FDCWD, &path).map_err(at("look at", &path))?))
        }
        Request::FileList(target) => Ok(Reply::FileList(list(&become_user(&target)?)?)),
        Request::FileRead(read) => {
            let path = become_user(&read.target)?;
            Ok(Reply::FileSent { bytes: send(&path, &read, line)? })
        }
        Request::FileRemove(FileRemove { target, recursive }) => {
            remove(&become_user(&target)?, recursive)?;
            Ok(Reply::FileRemoved)
        }
        Request::ArchiveRead(target) => {
            let path = become_user(&target)?;
            Ok(Reply::ArchiveSent(pack::pack(&path, line)?))
        }
        Request::ArchiveWrite(write) => {
            let folder = become_user(&write.folder)?;
            let summary = unpack::unpack(&folder, write.name.as_ref(), line)?;
            Ok(Reply::ArchiveUnpacked(summary))
        }
        _ => Ok(failure(FailureCode::Unsupported, "this is not about files".into())),
    }
}

/// Gives up all rights but the user's, for good. The path, if it is one.
fn become_user(target: &FileTarget) -> Result<PathBuf, FilesError> {
    let path = target.path.as_path();
    if !path.is_absolute() || target.path.as_bytes().contains(&0) {
        return Err(FilesError::Path(path.to_owned()));
    }
    if let Some(user) = &target.user {
        let identity = Accounts::read(true).identity(user).map_err(|_unknown| FilesError::User)?;
        let own = crate::exec::is_own(&identity);
        identity.assume(own).map_err(FilesError::Identity)?;
        // The change of user has undone both, and this is a copy of the agent's memory.
        let _ = prctl::set_dumpable(false);
        let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    }
    Ok(path.to_owned())
}

fn kind(stat: &FileStat) -> FileKind {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => FileKind::File,
        SFlag::S_IFDIR => FileKind::Folder,
        SFlag::S_IFLNK => FileKind::Link,
        _ => FileKind::Other,
    }
}

/// What a file is itself.
fn look(folder: impl AsFd, name: &(impl nix::NixPath + ?Sized)) -> Result<FileInfo, Errno> {
    let stat = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = kind(&stat);
    let target = match kind {
        FileKind::Link => Some(Text::from(readlinkat(&folder, name)?)),
        _ => None,
    };
    Ok(FileInfo {
        kind,
        mode: stat.st_mode & 0o7777,
        size: stat.st_size.unsigned_abs(),
        user: stat.st_uid,
        group: stat.st_gid,
        modified_s: stat.st_mtime,
        target,
    })
}

fn open(folder: impl AsFd, name: &(impl nix::NixPath + ?Sized), flags: OFlag) -> Result<OwnedFd, Errno> {
    // Not blocking: a FIFO would wait for a writer. What is ordinary does not care.
    openat(folder, name, flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, Mode::empty())
}

fn open_folder(folder: impl AsFd, name: &(impl nix::NixPath + ?Sized)) -> Result<OwnedFd, Errno> {
    open(folder, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)
}

/// The names in a folder, at most this many, without `.` and `..`, and whether there are more.
fn names(folder: BorrowedFd<'_>, most: usize) -> Result<(Vec<CString>, bool), Errno> {
    let mut folder =
        Dir::openat(folder, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in folder.iter() {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() == c"." || name.as_c_str() == c".." {
            continue;
        }
        if names.len() == most {
            return Ok((names, true));
        }
        names.push(name);
    }
    names.sort_unstable();
    Ok((names, false))
}

fn join(path: &Path, name: &CStr) -> PathBuf {
    path.join(OsStr::from_bytes(name.to_bytes()))
}

fn list(path: &Path) -> Result<FileList, FilesError> {
    let folder = open(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(at("open", path))?;
    let (mut names, mut truncated) = names(folder.as_fd(), MAX_FILES).map_err(at("list", path))?;
    names.sort_unstable();
    let mut entries = Vec::new();
    let mut length = 0;
    for name in names {
        // It may be gone meanwhile.
        let Ok(info) = look(&folder, name.as_c_str()) else { continue };
        let entry = FileEntry { name: Text::from_bytes(name.to_bytes()), info };
        length += serde_json::to_vec(&entry).map_or(0, |json| json.len() + 1);
        if length > LONGEST_LIST {
            truncated = true;
            break;
        }
        entries.push(entry);
    }
    Ok(FileList { entries, truncated })
}

fn send(path: &Path, read: &FileRead, line: &mut Line) -> Result<u64, FilesError> {
    let file = open(AT_FDCWD, path, OFlag::O_RDONLY).map_err(at("open", path))?;
    let stat = fstat(&file).map_err(at("look at", path))?;
    if kind(&stat) != FileKind::File {
        return Err(FilesError::NoFile(path.to_owned()));
    }
    let mut file = File::from(file);
    let failed = |error: io::Error| at("read", path)(errno(&error));
    if read.offset > 0 {
        file.seek(SeekFrom::Start(read.offset)).map_err(failed)?;
    }
    let mut content = file.take(read.length.unwrap_or(u64::MAX));
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    loop {
        let length = content.read(&mut chunk).map_err(failed)?;
        if length == 0 {
            return Ok(sent);
        }
        line.send_output(&chunk[..length]).map_err(FilesError::Line)?;
        sent += length as u64;
    }
}

fn remove(path: &Path, recursive: bool) -> Result<(), FilesError> {
    // Without a name of its own it is the root, or a folder as seen from below.
    let (Some(parent), Some(_)) = (path.parent(), path.file_name()) else {
        return Err(FilesError::Unremovable(path.to_owned()));
    };
    let name = path.file_name().and_then(|name| CString::new(name.as_bytes()).ok());
    let name = name.ok_or_else(|| FilesError::Path(path.to_owned()))?;
    let parent_fd = open(AT_FDCWD, parent, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(at("open", path))?;
    remove_entry(parent_fd.as_fd(), &name, path, recursive, DEEPEST)
}

fn remove_entry(
    parent: BorrowedFd<'_>,
    name: &CStr,
    path: &Path,
    recursive: bool,
    depth: usize,
) -> Result<(), FilesError> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) => return Ok(()),
        Err(Errno::EISDIR) => {}
        // How POSIX has it; also said where there is no right to.
        Err(Errno::EPERM)
            if fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| kind(&stat) == FileKind::Folder) => {}
        Err(errno) => return Err(at("remove", path)(errno)),
    }
    if recursive {
        if depth == 0 {
            return Err(FilesError::TooDeep(path.to_owned()));
        }
        let folder = open_folder(parent, name).map_err(at("open", path))?;
        let (names, _) = names(folder.as_fd(), usize::MAX).map_err(at("list", path))?;
        for name in names {
            match remove_entry(folder.as_fd(), &name, &join(path, &name), true, depth - 1) {
                // Somebody else was faster.
                Err(FilesError::File { errno: Errno::ENOENT, .. }) => {}
                result => result?,
            }
        }
    }
    unlinkat(parent, name, UnlinkatFlags::RemoveDir).map_err(at("remove", path))
}
