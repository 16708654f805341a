//! bubblewrap as firn starts it, without firn.

use crate::quiet;
use firn_tests::Host;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode};

/// The name this program stands in under.
const STAND_IN: &str = "stand-in-for-bwrap";

/// Where it writes to, beside itself.
const RECORD: &str = "record.json";

/// Options whose first argument is a descriptor that bubblewrap reads.
const READ_FROM: [&str; 3] = ["--add-seccomp-fd", "--file", "--ro-bind-data"];

/// Whether this process was started in the place of bubblewrap.
pub(crate) fn stands_in() -> bool {
    std::env::current_exe().is_ok_and(|path| path.ends_with(STAND_IN))
}

fn contents(fd: &str) -> Vec<u8> {
    let fd = fd.parse().expect("a descriptor");
    // SAFETY: whoever started us under that name handed the descriptor over.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("reads what was handed over");
    bytes
}

/// Writes down what bubblewrap would have been started with, and fails.
pub(crate) fn write_down() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let list = args.iter().position(|arg| arg == "--args").expect("a list of arguments");
    let mut all: Vec<String> = args[..list].to_vec();
    let more = String::from_utf8(contents(&args[list + 1])).expect("paths are UTF-8 here");
    all.extend(more.split_terminator('\0').map(str::to_owned));
    let mut files = Vec::new();
    for pair in all.windows(2) {
        if READ_FROM.contains(&pair[0].as_str()) {
            files.push(json!({ "fd": pair[1], "contents": contents(&pair[1]) }));
        }
    }
    let ids = [nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()];
    let record = json!({ "args": all, "files": files, "ids": ids });
    let beside = std::env::current_exe().expect("knows itself").with_file_name(RECORD);
    fs::write(beside, record.to_string()).expect("writes the record");
    ExitCode::FAILURE
}

/// See the module.
pub(crate) struct Floor {
    args: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    ids: [u32; 2],
}

impl Floor {
    /// Of the jails that firn makes there.
    pub(crate) fn of(host: &Host) -> Floor {
        let dir = tempfile::Builder::new().prefix("firn-").tempdir_in("/tmp").expect("makes a folder");
        // Whoever firn becomes has to write there.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("opens it");
        let stand_in = dir.path().join(STAND_IN);
        fs::copy(std::env::current_exe().expect("knows itself"), &stand_in).expect("copies itself");
        let run = host.run(&["--isolation", "jail", "--", "true"]).env("FIRN_BWRAP", &stand_in);
        let _ = run.finish().expect(125);
        let record = fs::read(dir.path().join(RECORD)).expect("firn has started the stand-in");
        let record: Value = serde_json::from_slice(&record).expect("is our own");
        let text = |value: &Value| value.as_str().expect("is text").to_owned();
        let number = |value: &Value| u32::try_from(value.as_u64().expect("is a number")).expect("is an id");
        let list = |value: &Value| value.as_array().expect("is a list").clone();
        Floor {
            args: list(&record["args"]).iter().map(text).collect(),
            files: list(&record["files"])
                .iter()
                .map(|file| {
                    let bytes = list(&file["contents"]);
                    let byte = |value: &Value| u8::try_from(number(value)).expect("is a byte");
                    (text(&file["fd"]), bytes.iter().map(byte).collect())
                })
                .collect(),
            ids: [number(&record["ids"][0]), number(&record["ids"][1])],
        }
    }

    /// Starts `command` under it.
    pub(crate) fn start(&self, command: &[&str]) -> Child {
        let files: Vec<(&str, OwnedFd)> =
            self.files.iter().map(|(name, contents)| (name.as_str(), in_memory(contents))).collect();
        let renamed = self.args.iter().enumerate().map(|(index, arg)| {
            let after = index.checked_sub(1).map(|before| self.args[before].as_str());
            let file = after.filter(|after| READ_FROM.contains(after)).and_then(|_| {
                files.iter().find(|(name, _)| name == arg).map(|(_, fd)| fd.as_raw_fd().to_string())
            });
            OsString::from(file.unwrap_or_else(|| arg.clone()))
        });
        let mut bwrap = Command::new(which("bwrap"));
        bwrap.args(renamed).arg("--").args(command).env_clear().current_dir("/");
        let [uid, gid] = self.ids;
        if nix::unistd::geteuid().is_root() {
            bwrap.uid(uid).gid(gid);
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
        quiet(bwrap)
    }
}

fn which(program: &str) -> std::path::PathBuf {
    let found = ["/usr/local/bin", "/usr/bin"].map(|dir| Path::new(dir).join(program));
    found.into_iter().find(|path| path.exists()).expect("bubblewrap is installed")
}

fn in_memory(contents: &[u8]) -> OwnedFd {
    let mut file = File::from(memfd_create(c"floor", MFdFlags::MFD_CLOEXEC).expect("makes a file"));
    file.write_all(contents).and_then(|()| file.rewind()).expect("writes it");
    file.into()
}
