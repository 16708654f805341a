//! Where runs leave files.
//!
//! All of it is in one folder of the agent's, which is made with the first session and held open: what is
//! mounted over it or moved there later changes nothing. In it each run has a folder of its own, if the run
//! before has left something in its. What is in them belongs to whoever runs code, and so it is looked at and
//! removed by a worker.

use crate::agent::Agent;
use crate::connection::Connection;
use crate::{files, worker};
use firn_protocol::{
    Artifact, Artifacts, FileKind, FileList, FileRemove, FileTarget, MAX_ARTIFACT_RUNS, MAX_ARTIFACTS, Reply,
    Request, Text,
};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, fstatat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, mkfifoat, unlinkat};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

/// Where the agent's folder may be.
const PLACES: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// The longest name of an artifact, in bytes.
const LONGEST_NAME: usize = 255;

/// When nothing has been put into a folder since it was made.
const LONG_AGO: TimeSpec = TimeSpec::new(1, 0);

/// The agent's folder for all sessions.
pub(super) struct Base {
    path: String,
    folder: OwnedFd,
}

impl Base {
    /// Makes it.
    pub(super) fn make() -> Result<Base, Errno> {
        let mut failure = Errno::ENOENT;
        for place in PLACES {
            match nix::unistd::mkdtemp(format!("{place}/firn-XXXXXX").as_str()) {
                Ok(path) => {
                    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    let folder = nix::fcntl::open(&path, flags, Mode::empty())?;
                    // Others may go through, and only the agent's user sees what there is.
                    fchmodat(
                        nix::fcntl::AT_FDCWD,
                        &path,
                        Mode::from_bits_truncate(0o711),
                        FchmodatFlags::FollowSymlink,
                    )?;
                    let path = path.into_os_string().into_string().map_err(|_not_text| Errno::EILSEQ)?;
                    return Ok(Base { path, folder });
                }
                Err(errno) => failure = errno,
            }
        }
        Err(failure)
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        // Only if it is empty, as it is when all sessions have been closed.
        let _ = unlinkat(nix::fcntl::AT_FDCWD, self.path.as_str(), UnlinkatFlags::RemoveDir);
    }
}

/// A session's folders.
pub(super) struct Folders {
    base: Rc<Base>,
    session: u64,
    /// Whose rights are used to look at them.
    user: Option<String>,
    /// The number of the next one.
    next: u64,
    /// The one that is empty.
    current: Option<String>,
    /// Those in which files were left, oldest first.
    used: VecDeque<String>,
}

impl Folders {
    /// Those of a session, which the agent has given this number.
    pub(super) fn new(base: Rc<Base>, session: u64, user: Option<String>) -> Folders {
        Folders { base, session, user, next: 0, current: None, used: VecDeque::new() }
    }

    /// Others than the agent's user need rights to what the agent makes for them.
    fn mode(&self, own: u32, others: u32) -> Mode {
        Mode::from_bits_truncate(if self.user.is_none() { own } else { others })
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.base.path)
    }

    fn fresh_name(&mut self) -> String {
        self.next += 1;
        format!("{}-{}", self.session, self.next)
    }

    /// The folder for the next run.
    pub(super) fn open(&mut self) -> Result<String, Errno> {
        if let Some(current) = &self.current {
            return Ok(self.path(current));
        }
        let name = self.fresh_name();
        let mode = self.mode(0o700, 0o777);
        mkdirat(&self.base.folder, name.as_str(), mode)?;
        // Whatever the mask is.
        fchmodat(&self.base.folder, name.as_str(), mode, FchmodatFlags::FollowSymlink)?;
        self.mark(&name)?;
        let path = self.path(&name);
        self.current = Some(name);
        Ok(path)
    }

    /// Gives a folder a time of change that it loses when anything is put into it.
    fn mark(&self, name: &str) -> Result<(), Errno> {
        utimensat(&self.base.folder, name, &LONG_AGO, &LONG_AGO, UtimensatFlags::NoFollowSymlink)
    }

    /// Whether anything may have been put into the current folder.
    pub(super) fn is_touched(&self) -> bool {
        let Some(current) = self.current.as_deref() else { return false };
        match fstatat(&self.base.folder, current, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(now) => (now.st_mtime, now.st_mtime_nsec) != (LONG_AGO.tv_sec(), LONG_AGO.tv_nsec()),
            Err(_) => true,
        }
    }

    /// A FIFO that is a run's stdin, open for writing.
    pub(super) fn make_stdin(&mut self) -> Result<(OwnedFd, Fifo), Errno> {
        let name = self.fresh_name();
        let mode = self.mode(0o600, 0o666);
        mkfifoat(self.base.folder.as_fd(), name.as_str(), mode)?;
        let fifo = Fifo { path: self.path(&name), base: Rc::clone(&self.base), name };
        fchmodat(&fifo.base.folder, fifo.name.as_str(), mode, FchmodatFlags::FollowSymlink)?;
        // For reading too: else it could not be opened before it is read.
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&fifo.base.folder, fifo.name.as_str(), flags, Mode::empty())?;
        Ok((fd, fifo))
    }

    /// Those of these files that are told of, which are in the current folder. The next run has a new one.
    /// Also the folder that is to be removed for it.
    fn leave(&mut self, list: FileList) -> (Option<Artifacts>, Option<String>) {
        let Some(name) = self.current.take_if(|_| !list.entries.is_empty()) else {
            // What was put into it was taken out again.
            let _ = self.current.as_deref().map(|name| self.mark(name));
            return (None, None);
        };
        let folder = self.path(&name).into();
        self.used.push_back(name);
        let oldest = if self.used.len() > MAX_ARTIFACT_RUNS { self.used.pop_front() } else { None };
        let mut truncated = list.truncated;
        let mut files = Vec::new();
        for entry in list.entries.into_iter().filter(|entry| entry.info.kind == FileKind::File) {
            if files.len() == MAX_ARTIFACTS || entry.name.as_bytes().len() > LONGEST_NAME {
                truncated = true;
                continue;
            }
            let media_type = media_type(entry.name.as_bytes()).into();
            files.push(Artifact { name: entry.name, media_type, size: entry.info.size });
        }
        let artifacts = (!files.is_empty() || truncated).then_some(Artifacts { folder, files, truncated });
        (artifacts, oldest.map(|oldest| self.path(&oldest)))
    }
}

/// A FIFO, as long as it is of use.
pub(super) struct Fifo {
    pub(super) path: String,
    base: Rc<Base>,
    name: String,
}

impl Drop for Fifo {
    fn drop(&mut self) {
        let _ = unlinkat(&self.base.folder, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
    }
}

/// What a run has left, where it may have left something.
pub(super) async fn collect(folders: &RefCell<Folders>, agent: &Rc<Agent>) -> Option<Artifacts> {
    let target = {
        let folders = folders.borrow();
        let path = folders.path(folders.current.as_deref()?).into();
        FileTarget { path, user: folders.user.clone() }
    };
    let Reply::FileList(list) = work(agent, Request::FileList(target)).await else { return None };
    let (artifacts, oldest) = folders.borrow_mut().leave(list);
    if let Some(oldest) = oldest {
        remove(agent, oldest).await;
    }
    artifacts
}

/// Removes all of them.
pub(super) async fn clear(folders: &RefCell<Folders>, agent: &Rc<Agent>) {
    let all: Vec<String> = {
        let mut folders = folders.borrow_mut();
        let current = folders.current.take();
        let used = std::mem::take(&mut folders.used);
        let all = used.into_iter().chain(current);
        // One that is empty needs no worker.
        let full = all
            .filter(|name| unlinkat(&folders.base.folder, name.as_str(), UnlinkatFlags::RemoveDir).is_err());
        full.map(|name| folders.path(&name)).collect()
    };
    for path in all {
        remove(agent, path).await;
    }
}

async fn remove(agent: &Rc<Agent>, path: String) {
    let target = FileTarget { path: Text::from(path), user: None };
    work(agent, Request::FileRemove(FileRemove { target, recursive: true })).await;
}

/// Has a worker serve a request, for nobody but the agent.
async fn work(agent: &Rc<Agent>, request: Request) -> Reply {
    const ID: firn_protocol::RequestId = 1;
    let (_ours, theirs) = tokio::io::duplex(1024);
    let mut connection = Connection::over(Box::new(theirs));
    let done = worker::run(agent, &mut connection, ID, |line| files::work(request, line)).await;
    // There is no host that could be lost.
    done.unwrap_or(Reply::Pong)
}

/// What is in a file, by its name.
fn media_type(name: &[u8]) -> &'static str {
    let extension =
        name.iter().rposition(|byte| *byte == b'.').map(|dot| name[dot + 1..].to_ascii_lowercase());
    match extension.as_deref() {
        Some(b"png") => "image/png",
        Some(b"jpg" | b"jpeg") => "image/jpeg",
        Some(b"gif") => "image/gif",
        Some(b"webp") => "image/webp",
        Some(b"svg") => "image/svg+xml",
        Some(b"pdf") => "application/pdf",
        Some(b"json") => "application/json",
        Some(b"csv") => "text/csv",
        Some(b"html" | b"htm") => "text/html",
        Some(b"md") => "text/markdown",
        Some(b"txt" | b"log") => "text/plain",
        Some(b"xml") => "application/xml",
        Some(b"zip") => "application/zip",
        Some(b"gz") => "application/gzip",
        Some(b"tar") => "application/x-tar",
        Some(b"mp4") => "video/mp4",
        Some(b"wav") => "audio/wav",
        Some(b"mp3") => "audio/mpeg",
        Some(b"parquet") => "application/vnd.apache.parquet",
        Some(b"xlsx") => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_that_of_the_last_extension() {
        assert_eq!(media_type(b"a.tar.PNG"), "image/png");
        assert_eq!(media_type(b"png"), "application/octet-stream");
        assert_eq!(media_type(b".txt"), "text/plain");
        assert_eq!(media_type(b"a."), "application/octet-stream");
    }
}
