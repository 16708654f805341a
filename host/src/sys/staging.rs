//! What is mounted for a helper alone, before bubblewrap runs or while it does: by the process that becomes it, in
//! a mount namespace from which nothing comes back to that of the host.
//!
//! Some of it bubblewrap could not do. It could show hundreds of folders, but with each it reads the list of all
//! mounts there are: 400 store paths take it a fifth of a second. So these are mounted here, by two kernel
//! features that are there for everybody. What is mounted on a *shared* mount turns up on every copy of it, and
//! while bubblewrap reads a file from a pipe it waits:
//!
//! ```text
//!   newborn        a folder in memory, shared: empty          the entries, as a tree that is attached nowhere
//!      │  ╲ fork ───────────────────────────────────────────────────────▶ attendant
//!   bubblewrap     binds the folder: a copy, a slave of it                     │
//!      │           --file PIPE /dev/null: all else is done  ── room in it ────▶│
//!      │                                                       attaches the tree to the folder:
//!      │           the copy has it too                         it is on both
//!      │◀─────────────────────────── end of file ──────────────────────────────┴ ends
//!   program
//! ```
//!
//! Nothing but the entries is ever in the folder, so whatever goes wrong shows less and not more. Root does it in
//! a mount namespace, everybody else in a user namespace besides, which not every host lets everybody have
//! ([`Entries::possible`]).
#![allow(unsafe_code, reason = "mounts without a wrapper, and a process that makes nothing but one of them")]

use super::identity;
use nix::fcntl::FcntlArg;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Of linux/fcntl.h and linux/mount.h.
const AT_RECURSIVE: libc::c_uint = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// What is to be mounted.
#[derive(Debug)]
pub(crate) enum Staged {
    /// A mount that is not attached yet.
    Mount {
        /// The mount.
        mount: OwnedFd,
        /// Where it will be: a folder or file that is there.
        at: PathBuf,
    },
    /// Many at once.
    Entries(Entries),
}

/// Files and folders of the host, by their own names in a folder in memory, read-only.
#[derive(Debug)]
pub(crate) struct Entries {
    /// On the host.
    paths: Vec<PathBuf>,
    /// Where the folder is.
    at: PathBuf,
    /// Full, until bubblewrap reads the other end.
    pipe: OwnedFd,
}

/// [`Staged`], ready to be used between fork and exec.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Who we are in a user namespace of our own. None: root needs none.
    ids: Option<Ids>,
    all: Vec<PreparedOne>,
}

#[derive(Debug)]
enum PreparedOne {
    Mount { mount: OwnedFd, at: CString },
    Entries { entries: Vec<Entry>, at: CString, made_at: CString, pipe: OwnedFd },
}

/// The lines for a namespace in which we are who we are outside (`user_namespaces`(7)).
#[derive(Debug)]
struct Ids {
    user: CString,
    group: CString,
}

/// A file or folder, and where it is shown.
#[derive(Debug)]
struct Entry {
    from: CString,
    at: CString,
    is_folder: bool,
}

impl Entries {
    /// Those at `paths`, for the folder `at`, which is made. Beside it comes the end of a pipe: bubblewrap has to
    /// read a file from it after it has shown the folder, and is stopped there until the entries are in it.
    pub(super) fn new(paths: &[PathBuf], at: &Path) -> io::Result<(Entries, OwnedFd)> {
        use nix::fcntl::{OFlag, fcntl};
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // The smallest there is: one page.
        let size = fcntl(&write, FcntlArg::F_SETPIPE_SZ(1))?;
        let filled = nix::unistd::write(&write, &vec![0; usize::try_from(size).unwrap_or_default()])?;
        debug_assert_eq!(i32::try_from(filled), Ok(size), "a pipe takes what it has room for");
        Ok((Entries { paths: paths.to_owned(), at: at.to_owned(), pipe: write }, read))
    }

    /// Whether this host lets us: tried once, in `folder`, by a process that is gone when this returns.
    pub(super) fn possible(folder: &Path) -> bool {
        static POSSIBLE: OnceLock<bool> = OnceLock::new();
        *POSSIBLE.get_or_init(|| {
            let tried = try_out(folder);
            if let Err(error) = &tried {
                tracing::info!(%error, "many paths of an environment are shown one by one: this host allows no other way");
            }
            tried.is_ok()
        })
    }
}

/// Does all that [`attach`] does, in a process that ends.
fn try_out(folder: &Path) -> io::Result<()> {
    let at = folder.join("entries-tried");
    let (entries, read) = Entries::new(&[folder.to_owned()], &at)?;
    let prepared = prepare(vec![Staged::Entries(entries)])?;
    // SAFETY: without a stack of its own this is fork(2). The child makes system calls on values made before, and
    // never returns.
    let tried = match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code =
                attach(&prepared).map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
            // SAFETY: ends this process, and runs nothing that the other has to do at its end.
            unsafe { libc::_exit(code) }
        }
        pid => ended(libc::pid_t::try_from(pid).map_err(io::Error::other)?),
    };
    // Its attendant sees that nobody reads.
    drop((read, prepared));
    for made in [&at, &beside(&at)] {
        let _ = fs::remove_dir(made);
    }
    tried
}

fn ended(child: libc::pid_t) -> io::Result<()> {
    use nix::sys::wait::{WaitStatus, waitpid};
    loop {
        match waitpid(nix::unistd::Pid::from_raw(child), None) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Ok(_killed) => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Where entries are mounted before they are in their folder.
fn beside(at: &Path) -> PathBuf {
    at.with_extension("made")
}

/// All that has to be known and allocated.
pub(super) fn prepare(staged: Vec<Staged>) -> io::Result<Prepared> {
    let ids = if nix::unistd::geteuid().is_root() {
        None
    } else {
        let (user, group) = identity::caller();
        Some(Ids { user: ids_line(user)?, group: ids_line(group)? })
    };
    let all = staged.into_iter().map(prepare_one).collect::<io::Result<_>>()?;
    Ok(Prepared { ids, all })
}

fn ids_line(id: u32) -> io::Result<CString> {
    CString::new(format!("{id} {id} 1\n")).map_err(io::Error::other)
}

fn prepare_one(staged: Staged) -> io::Result<PreparedOne> {
    match staged {
        Staged::Mount { mount, at } => Ok(PreparedOne::Mount { at: c_string(&at)?, mount }),
        Staged::Entries(Entries { paths, at, pipe }) => {
            let made_at = beside(&at);
            for folder in [&at, &made_at] {
                fs::create_dir(folder)?;
            }
            let entry = |path: PathBuf| {
                Ok(Entry {
                    is_folder: fs::symlink_metadata(&path)?.is_dir(),
                    at: c_string(&made_at.join(path.file_name().unwrap_or_default()))?,
                    from: c_string(&path)?,
                })
            };
            let entries = paths.into_iter().map(entry).collect::<io::Result<_>>()?;
            Ok(PreparedOne::Entries { entries, at: c_string(&at)?, made_at: c_string(&made_at)?, pipe })
        }
    }
}

/// Mounts all of it in a mount namespace of the calling process's own. Async-signal-safe.
pub(super) fn attach(prepared: &Prepared) -> io::Result<()> {
    if prepared.all.is_empty() {
        return Ok(());
    }
    enter(prepared.ids.as_ref())?;
    for one in &prepared.all {
        match one {
            PreparedOne::Mount { mount, at } => move_to(mount, at)?,
            PreparedOne::Entries { entries, at, made_at, pipe } => {
                let tree = gather(entries, made_at)?;
                memory(at)?;
                mount(None, at, None, libc::MS_SHARED)?;
                leave_attendant(&tree, at, pipe)?;
            }
        }
    }
    Ok(())
}

/// Async-signal-safe.
fn enter(ids: Option<&Ids>) -> io::Result<()> {
    let also = if ids.is_some() { libc::CLONE_NEWUSER } else { 0 };
    // SAFETY: a plain system call.
    done(unsafe { libc::unshare(libc::CLONE_NEWNS | also) }.into())?;
    if let Some(Ids { user, group }) = ids {
        write(c"/proc/self/setgroups", c"deny")?;
        write(c"/proc/self/uid_map", user)?;
        write(c"/proc/self/gid_map", group)?;
    }
    mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE)
}

/// The entries in a folder in memory that is attached nowhere: bubblewrap would find them in the list of mounts,
/// again and again. Async-signal-safe.
fn gather(entries: &[Entry], made_at: &CStr) -> io::Result<OwnedFd> {
    memory(made_at)?;
    entries.iter().try_for_each(Entry::show)?;
    // SAFETY: plain system calls on values that outlive them. All zeros are a valid value of the structure, whose
    // size is passed; the descriptor is ours alone.
    unsafe {
        let mut attributes: libc::mount_attr = std::mem::zeroed();
        attributes.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        done(libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            made_at.as_ptr(),
            AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        ))?;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | AT_RECURSIVE;
        let tree = owned(libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, made_at.as_ptr(), flags))?;
        done(libc::umount2(made_at.as_ptr(), libc::MNT_DETACH).into())?;
        Ok(tree)
    }
}

impl Entry {
    /// Makes its mount point and mounts it there. Async-signal-safe.
    fn show(&self) -> io::Result<()> {
        let at = self.at.as_ptr();
        // SAFETY: plain system calls; the strings outlive them.
        let made = unsafe {
            if self.is_folder { libc::mkdir(at, 0o755) } else { libc::mknod(at, libc::S_IFREG | 0o644, 0) }
        };
        done(made.into())?;
        mount(Some(&self.from), &self.at, None, libc::MS_BIND)
    }
}

/// Leaves a process behind, a child of what this one becomes, that attaches `tree` at `at` when there is room in
/// `pipe`, and ends. Async-signal-safe.
fn leave_attendant(tree: &OwnedFd, at: &CStr, pipe: &OwnedFd) -> io::Result<()> {
    // SAFETY: a plain system call.
    let parent = unsafe { libc::getpid() };
    // SAFETY: without a stack of its own this is fork(2), in a process of one thread. The child makes system calls
    // on values made before, and never returns.
    match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let attached = attend(parent, tree, at, pipe);
            if attached.is_err() {
                const WORDS: &[u8] = b"firn: cannot show the paths of the environment\n";
                // SAFETY: a plain system call on a buffer of that length.
                unsafe { libc::write(libc::STDERR_FILENO, WORDS.as_ptr().cast(), WORDS.len()) };
            }
            // SAFETY: ends this process, and runs nothing that the other has to do at its end.
            unsafe { libc::_exit(attached.is_err().into()) }
        }
        _attendant => Ok(()),
    }
}

/// Async-signal-safe.
fn attend(parent: libc::pid_t, tree: &OwnedFd, at: &CStr, pipe: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain system calls on numbers.
    unsafe {
        done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
        // Of one that died before there is no signal.
        if libc::getppid() != parent {
            return Ok(());
        }
    }
    // The other end of the pipe, which bubblewrap alone is to have, and all that whoever started it waits for.
    let (low, high) = match tree.as_raw_fd() < pipe.as_raw_fd() {
        true => (tree.as_raw_fd(), pipe.as_raw_fd()),
        false => (pipe.as_raw_fd(), tree.as_raw_fd()),
    };
    for (first, last) in [(3, low - 1), (low + 1, high - 1), (high + 1, RawFd::MAX)] {
        if first <= last {
            // SAFETY: a plain system call on numbers: none of these is used again in this process.
            done(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
    }
    let mut polled = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: a plain system call on a value that outlives it.
    while unsafe { libc::poll(&raw mut polled, 1, -1) } < 0 {}
    // bubblewrap has given up, and says why.
    if polled.revents & libc::POLLOUT == 0 || polled.revents & libc::POLLERR != 0 {
        return Ok(());
    }
    move_to(tree, at)
}

/// Async-signal-safe.
fn move_to(tree: &OwnedFd, at: &CStr) -> io::Result<()> {
    let (from, flags) = (tree.as_raw_fd(), MOVE_MOUNT_F_EMPTY_PATH);
    // SAFETY: a plain system call; the strings outlive it.
    done(unsafe {
        libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), libc::AT_FDCWD, at.as_ptr(), flags)
    })
}

/// An empty file system in memory. Async-signal-safe.
fn memory(at: &CStr) -> io::Result<()> {
    mount(Some(c"tmpfs"), at, Some((c"tmpfs", c"mode=0755")), libc::MS_NOSUID | libc::MS_NODEV)
}

/// Async-signal-safe.
fn mount(
    from: Option<&CStr>,
    at: &CStr,
    kind: Option<(&CStr, &CStr)>,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    let (kind, data) = (pointer(kind.map(|kind| kind.0)), pointer(kind.map(|kind| kind.1)));
    // SAFETY: a plain system call; the strings outlive it.
    done(unsafe { libc::mount(pointer(from), at.as_ptr(), kind, flags, data.cast()) }.into())
}

/// Writes to a file of the kernel's. Async-signal-safe.
fn write(path: &CStr, text: &CStr) -> io::Result<()> {
    let bytes = text.to_bytes();
    // SAFETY: plain system calls; the strings outlive them, and the descriptor is ours alone.
    unsafe {
        let file = owned(libc::c_long::from(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC)))?;
        let written = libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
        if usize::try_from(written) == Ok(bytes.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// # Safety
/// `fd` is what a system call that makes descriptors has just returned.
pub(super) unsafe fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: by this function's contract it is open and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bubblewrap::Bubblewrap;
    use crate::sys::cgroup::Cgroup;
    use crate::sys::identity::Identity;
    use crate::sys::process::{Helper, ProcessError, Role, Station};
    use std::ffi::OsString;

    const ROLE: Role = Role { id: "test", name: "the helper" };

    /// Folders with a file `name`, a file, and one that is not to be shown.
    fn host(folder: &Path) -> Vec<PathBuf> {
        let host = folder.join("host");
        for name in (0..60).map(|number| number.to_string()).chain(["hidden".to_owned()]) {
            fs::create_dir_all(host.join(&name)).unwrap();
            fs::write(host.join(&name).join("name"), name).unwrap();
        }
        fs::write(host.join("file"), "a file").unwrap();
        (0..60).map(|number| host.join(number.to_string())).chain([host.join("file")]).collect()
    }

    /// A shell that sees `paths` in /shown, and `folder`/out.
    fn start(folder: &Path, paths: &[PathBuf], script: &str) -> Result<Helper, ProcessError> {
        for name in ["own", "out"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        let mut namespace = Bubblewrap::new(Path::new("/usr/bin/bwrap"), Identity::Caller);
        namespace.in_folder(&folder.join("own"));
        namespace.entries(paths, Path::new("/shown")).unwrap();
        namespace.read_write(&folder.join("out"), Path::new("/out"));
        let command = namespace.command(ROLE, Path::new("/bin/sh"), &["-c", script].map(OsString::from))?;
        let own = folder.join("own");
        command.start(Station { cgroup: &Cgroup::none(), folder: &own, record: &|_, _| Ok(()) })
    }

    #[tokio::test]
    async fn many_entries_are_shown_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let script = "cd /shown; exec >/out/said 2>&1; ls | wc -l; cat 7/name file; echo; ls hidden
            touch x 7/x 7/name; umount 7 2>&1; cat 7/name; echo; cat /proc/self/mountinfo >/out/mounts";
        start(dir.path(), &host(dir.path()), script).unwrap().ended().await.unwrap();
        let said = fs::read_to_string(dir.path().join("out/said")).unwrap();
        assert!(said.starts_with("61\n7a file\n"), "{said}");
        assert!(said.ends_with("\n7\n"), "{said}");
        assert_eq!(said.matches("Read-only file system").count(), 3, "{said}");
        assert!(said.contains("hidden"), "{said}");
        let mounts = fs::read_to_string(dir.path().join("out/mounts")).unwrap();
        let shown: Vec<&str> = mounts.lines().filter(|line| line.contains(" /shown/")).collect();
        assert_eq!(shown.len(), 61);
        assert!(shown.iter().all(|line| line.contains(" ro,nosuid,nodev")), "{shown:?}");
        // Where they were made is nowhere.
        assert!(!mounts.contains("entries.made"), "{mounts}");
    }

    #[tokio::test]
    async fn an_entry_that_is_gone_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = host(dir.path());
        paths.push(dir.path().join("host/no-such"));
        if Entries::possible(dir.path()) {
            assert!(matches!(start(dir.path(), &paths, "true"), Err(ProcessError::Start { .. })));
        }
    }

    #[test]
    fn root_can_always_have_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Entries::possible(dir.path()) || !nix::unistd::geteuid().is_root());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "what was tried is left behind");
    }
}
