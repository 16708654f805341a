//! Command lines for `bwrap`(1).
//!
//! A jail is made by bubblewrap, and every helper of a vm runs under it too, in namespaces of its
//! own: it sees the files named here and nothing else, has no network, no capability, can gain none,
//! may make no system call that it has no use for. What is inside ends when bubblewrap does.

use crate::sys::identity::Identity;
use crate::sys::process::{HelperCommand, Pids, ProcessError, Reports, Role};
use crate::sys::seccomp::{self, Confined};
use crate::sys::staging::{Entries, Staged};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Up to so many mounts bubblewrap makes itself: the namespaces that others need cost as much.
const FEW_ENTRIES: usize = 24;

/// A mount namespace to be, and who runs in it.
#[derive(Debug)]
pub(crate) struct Bubblewrap {
    bwrap: PathBuf,
    identity: Identity,
    /// On the command line, where `ps` shows them.
    args: Vec<OsString>,
    /// What is mounted, of any length: passed in a file.
    mounts: Vec<OsString>,
    /// What it waits for when all is mounted.
    waits: Vec<OsString>,
    fds: Vec<OwnedFd>,
    staged: Vec<Staged>,
    folder: PathBuf,
}

impl Bubblewrap {
    /// An empty root with `/proc`, a minimal `/dev` and the host's programs and libraries
    /// (`/usr`, and `/nix/store` where there is one) to run from.
    pub(crate) fn new(bwrap: &Path, identity: Identity) -> Bubblewrap {
        let mut new = Bubblewrap::empty(bwrap, identity, "firn", identity.inside());
        new.read_only(Path::new("/usr"), Path::new("/usr"));
        new.merged_usr(Path::new("/"));
        new.try_read_only(Path::new("/nix/store"), Path::new("/nix/store"));
        // The dynamic linker's cache, for libraries outside its default folders.
        new.try_read_only(Path::new("/etc/ld.so.cache"), Path::new("/etc/ld.so.cache"));
        new.proc_and_dev();
        new
    }

    /// An empty root. `inside` is the user and group there, when they differ from those outside.
    pub(crate) fn empty(
        bwrap: &Path,
        identity: Identity,
        hostname: &str,
        inside: Option<(u32, u32)>,
    ) -> Bubblewrap {
        let mut new = Bubblewrap {
            bwrap: bwrap.to_owned(),
            identity,
            args: Vec::new(),
            mounts: Vec::new(),
            waits: Vec::new(),
            fds: Vec::new(),
            staged: Vec::new(),
            folder: "/".into(),
        };
        new.args.extend(
            [
                "--unshare-user",
                "--unshare-ipc",
                "--unshare-pid",
                "--unshare-net",
                "--unshare-uts",
                "--unshare-cgroup-try",
                "--as-pid-1",
                "--die-with-parent",
                "--new-session",
                "--clearenv",
                "--cap-drop",
                "ALL",
                "--hostname",
                hostname,
            ]
            .map(OsString::from),
        );
        if let Some((uid, gid)) = inside {
            let ids = ["--uid".to_owned(), uid.to_string(), "--gid".to_owned(), gid.to_string()];
            new.args.extend(ids.map(OsString::from));
        }
        new
    }

    /// Runs in this folder of the host, as far as the host is concerned.
    pub(crate) fn in_folder(&mut self, folder: &Path) {
        folder.clone_into(&mut self.folder);
    }

    fn flags(&mut self, flags: &[&str]) {
        self.mounts.extend(flags.iter().map(OsString::from));
    }

    fn two(&mut self, flag: &str, from: &OsStr, to: &Path) {
        self.mounts.extend([flag.into(), from.to_owned(), to.as_os_str().to_owned()]);
    }

    /// A `/proc` of its own processes, and a `/dev` without devices.
    pub(crate) fn proc_and_dev(&mut self) {
        self.flags(&["--proc", "/proc", "--dev", "/dev"]);
    }

    /// An empty file system in memory with these permission bits that holds at most `size` bytes.
    pub(crate) fn memory(&mut self, path: &Path, mode: u32, size: u64) {
        self.flags(&["--perms", &format!("{mode:04o}"), "--size", &size.to_string(), "--tmpfs"]);
        self.mounts.push(path.as_os_str().to_owned());
    }

    /// Makes what is mounted at `path` read-only from here on.
    pub(crate) fn freeze(&mut self, path: &Path) {
        self.flags(&["--remount-ro"]);
        self.mounts.push(path.as_os_str().to_owned());
    }

    /// Shows the host's `from` at `to`, read-only.
    pub(crate) fn read_only(&mut self, from: &Path, to: &Path) {
        self.two("--ro-bind", from.as_os_str(), to);
    }

    /// The same, or nothing when `from` is not there.
    pub(crate) fn try_read_only(&mut self, from: &Path, to: &Path) {
        self.two("--ro-bind-try", from.as_os_str(), to);
    }

    /// Shows the host's `from` at `to`, for reading and writing.
    pub(crate) fn read_write(&mut self, from: &Path, to: &Path) {
        self.two("--bind", from.as_os_str(), to);
    }

    /// Makes the device node `path` usable, at the same place.
    pub(crate) fn device(&mut self, path: &Path) {
        self.two("--dev-bind", path.as_os_str(), path);
    }

    /// An empty folder with these permission bits.
    pub(crate) fn dir(&mut self, path: &Path, mode: u32) {
        self.flags(&["--perms", &format!("{mode:04o}"), "--dir"]);
        self.mounts.push(path.as_os_str().to_owned());
    }

    /// A symbolic link at `path`.
    pub(crate) fn symlink(&mut self, target: &Path, path: &Path) {
        self.two("--symlink", target.as_os_str(), path);
    }

    /// A file with these contents, which bubblewrap reads from a descriptor: they are in no
    /// argument list and on no disk.
    pub(crate) fn file(&mut self, contents: &[u8], path: &Path) -> io::Result<()> {
        let fd = self.pass(in_memory(contents)?);
        self.flags(&["--perms", "0644"]);
        self.two("--file", OsStr::new(&fd.to_string()), path);
        Ok(())
    }

    /// A read-only file with these contents, shown over what is at `path`.
    pub(crate) fn mask(&mut self, contents: &[u8], path: &Path) -> io::Result<()> {
        let fd = self.pass(in_memory(contents)?);
        self.flags(&["--perms", "0444"]);
        self.two("--ro-bind-data", OsStr::new(&fd.to_string()), path);
        Ok(())
    }

    /// Shows files and folders of the host by their own names in the folder `at`, read-only. Once, and `/dev` must
    /// be there.
    pub(crate) fn entries(&mut self, paths: &[PathBuf], at: &Path) -> io::Result<()> {
        if paths.len() <= FEW_ENTRIES || !Entries::possible(&self.folder) {
            for path in paths {
                self.read_only(path, &at.join(path.file_name().unwrap_or_default()));
            }
            return Ok(());
        }
        let staging = self.folder.join("entries");
        self.read_only(&staging, at);
        let (entries, pipe) = Entries::new(paths, &staging)?;
        self.stage(Staged::Entries(entries));
        // What it reads is of no interest: that it does not go on before it has read it to its end is.
        let pipe = self.pass(pipe).to_string();
        self.waits.extend(["--file".into(), pipe.into(), "/dev/null".into()]);
        Ok(())
    }

    /// Mounts something before bubblewrap runs, where only it and what it starts sees it: what bubblewrap
    /// itself could not reach or make can be shown by that path.
    pub(crate) fn stage(&mut self, staged: Staged) {
        self.staged.push(staged);
    }

    /// `/bin`, `/lib` and the like below `root`, as this host has them: links into `/usr` on a
    /// merged system, folders of their own on others.
    pub(crate) fn merged_usr(&mut self, root: &Path) {
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            let host = Path::new("/").join(name);
            match std::fs::read_link(&host) {
                Ok(target) => self.symlink(&target, &root.join(name)),
                Err(_) => self.try_read_only(&host, &root.join(name)),
            }
        }
    }

    /// Hands a descriptor to the program, under the number that is returned.
    pub(crate) fn pass(&mut self, fd: OwnedFd) -> i32 {
        let number = fd.as_raw_fd();
        self.fds.push(fd);
        number
    }

    /// The command that runs `program` in this namespace.
    pub(crate) fn command(
        mut self,
        role: Role,
        program: &Path,
        args: &[OsString],
    ) -> Result<HelperCommand, ProcessError> {
        // Without links: what they lead to need not exist in there.
        let program = program.canonicalize().map_err(|source| ProcessError::Start {
            name: role.name,
            program: program.to_owned(),
            source,
        })?;
        if !program.starts_with("/usr") && !program.starts_with("/nix/store") {
            self.read_only(&program, &program);
        }
        self.finish(Confined::Helper, role, &program, args)
    }

    /// The same for the agent of a jail, which is in none of the folders shown: it is run from its
    /// open file. `/proc` must be there.
    pub(crate) fn agent(
        mut self,
        role: Role,
        program: OwnedFd,
        args: &[OsString],
    ) -> Result<HelperCommand, ProcessError> {
        let path = format!("/proc/self/fd/{}", self.pass(program));
        self.finish(Confined::Jail, role, Path::new(&path), args)
    }

    fn finish(
        mut self,
        confined: Confined,
        role: Role,
        program: &Path,
        args: &[OsString],
    ) -> Result<HelperCommand, ProcessError> {
        let failed = |source| ProcessError::Start { name: role.name, program: program.to_owned(), source };
        for filter in seccomp::filters(confined).map_err(io::Error::other).map_err(failed)? {
            let fd = self.pass(in_memory(filter).map_err(failed)?);
            self.flags(&["--add-seccomp-fd", &fd.to_string()]);
        }
        let mut list = Vec::new();
        for arg in self.mounts.iter().chain(&self.waits) {
            list.extend_from_slice(arg.as_bytes());
            list.push(0);
        }
        let list = self.pass(in_memory(&list).map_err(failed)?);
        self.args.extend(["--args".into(), list.to_string().into(), "--".into(), program.into()]);
        self.args.extend_from_slice(args);
        Ok(HelperCommand {
            role,
            program: self.bwrap,
            args: self.args,
            variables: Vec::new(),
            identity: self.identity,
            fds: self.fds,
            third: None,
            staged: self.staged,
            folder: self.folder,
            pids: Pids::best(),
            reports: Reports::End,
        })
    }
}

/// A file without a name that holds these bytes, at its beginning.
fn in_memory(contents: &[u8]) -> io::Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let mut file = File::from(memfd_create(c"firn", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(contents)?;
    file.rewind()?;
    Ok(file.into())
}
