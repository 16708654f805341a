//! bubblewrap as firn starts it for a jail, without firn.

use crate::stand_in::{READ_FROM, Start, in_memory};
use firn_tests::Host;
use std::ffi::OsString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};

/// See the module.
pub(crate) struct Floor(Start);

impl Floor {
    /// Of the jails that firn makes there.
    pub(crate) fn of(host: &Host) -> Floor {
        Floor(Start::of(host, &["--", "true"], "agent"))
    }

    /// Has `spawn` start `command` under it.
    pub(crate) fn start(&self, command: &[&str], spawn: impl FnOnce(Command) -> Child) -> Child {
        let Start { args, files, ids, .. } = &self.0;
        let files: Vec<(&str, OwnedFd)> =
            files.iter().map(|(name, contents)| (name.as_str(), in_memory(contents))).collect();
        let renamed = args.iter().enumerate().map(|(index, arg)| {
            let after = index.checked_sub(1).map(|before| args[before].as_str());
            let file = after.filter(|after| READ_FROM.contains(after)).and_then(|_| {
                files.iter().find(|(name, _)| name == arg).map(|(_, fd)| fd.as_raw_fd().to_string())
            });
            OsString::from(file.unwrap_or_else(|| arg.clone()))
        });
        let mut bwrap = Command::new(which("bwrap"));
        bwrap.args(renamed).arg("--").args(command).env_clear().current_dir("/");
        if nix::unistd::geteuid().is_root() {
            bwrap.uid(ids[0]).gid(ids[1]);
        }
        let fds: Vec<i32> = files.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        // SAFETY: only plain system calls between fork and exec.
        unsafe {
            bwrap.pre_exec(move || {
                for fd in &fds {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        spawn(bwrap)
    }
}

fn which(program: &str) -> std::path::PathBuf {
    let found = ["/usr/local/bin", "/usr/bin"].map(|dir| Path::new(dir).join(program));
    found.into_iter().find(|path| path.exists()).expect("bubblewrap is installed")
}
