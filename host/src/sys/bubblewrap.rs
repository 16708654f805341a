//! Command lines for `bwrap`(1).
//!
//! Every helper of a sandbox runs under bubblewrap in namespaces of its own: it sees the files
//! named here and nothing else, has no network, no capability, can gain none, may make no system
//! call that helpers have no use for, and dies with us.

use crate::sys::identity::Identity;
use crate::sys::process::{HelperCommand, ProcessError};
use crate::sys::seccomp;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// A mount namespace to be, and who runs in it.
#[derive(Debug)]
pub(crate) struct Bubblewrap {
    bwrap: PathBuf,
    identity: Identity,
    args: Vec<OsString>,
    fds: Vec<OwnedFd>,
}

impl Bubblewrap {
    /// An empty root with `/proc`, a minimal `/dev` and the host's programs and libraries
    /// (`/usr`, and `/nix/store` where there is one) to run from.
    pub(crate) fn new(bwrap: &Path, identity: Identity) -> Bubblewrap {
        let mut new = Bubblewrap { bwrap: bwrap.to_owned(), identity, args: Vec::new(), fds: Vec::new() };
        new.flags(&[
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
        ]);
        new.flags(&["--cap-drop", "ALL", "--hostname", "firn"]);
        if let Some((uid, gid)) = identity.inside() {
            new.flags(&["--uid", &uid.to_string(), "--gid", &gid.to_string()]);
        }
        new.read_only(Path::new("/usr"), Path::new("/usr"));
        new.merged_usr(Path::new("/"));
        new.try_read_only(Path::new("/nix/store"), Path::new("/nix/store"));
        // The dynamic linker's cache, for libraries outside its default folders.
        new.try_read_only(Path::new("/etc/ld.so.cache"), Path::new("/etc/ld.so.cache"));
        new.flags(&["--proc", "/proc", "--dev", "/dev"]);
        new
    }

    fn flags(&mut self, flags: &[&str]) {
        self.args.extend(flags.iter().map(OsString::from));
    }

    fn two(&mut self, flag: &str, from: &OsStr, to: &Path) {
        self.args.extend([flag.into(), from.to_owned(), to.as_os_str().to_owned()]);
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
        self.args.push(path.as_os_str().to_owned());
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
        self.two("--ro-bind-data", OsStr::new(&fd.to_string()), path);
        Ok(())
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

    /// The command that runs `program` in this namespace. `name` is for messages.
    pub(crate) fn command(
        mut self,
        name: &'static str,
        program: &Path,
        args: &[OsString],
    ) -> Result<HelperCommand, ProcessError> {
        let prepared = seccomp::filters()
            .map_err(io::Error::other)
            .and_then(|filters| {
                filters.iter().map(|filter| in_memory(filter)).collect::<io::Result<Vec<_>>>()
            })
            .map_err(|source| ProcessError::Start { name, program: program.to_owned(), source })?;
        for filter in prepared {
            let fd = self.pass(filter);
            self.flags(&["--add-seccomp-fd", &fd.to_string()]);
        }
        if !program.starts_with("/usr") && !program.starts_with("/nix/store") {
            self.read_only(program, program);
        }
        self.args.push("--".into());
        self.args.push(program.into());
        self.args.extend_from_slice(args);
        Ok(HelperCommand {
            name,
            program: self.bwrap,
            args: self.args,
            identity: self.identity,
            fds: self.fds,
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
