//! Standing in for bubblewrap, to learn how firn starts it.
//!
//! A benchmark that includes this calls [`in_place`] first: copied under another name and given to firn
//! as `bwrap`, it writes down what it is started with, and fails.

use firn_tests::Host;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The name this program stands in under.
const NAME: &str = "stand-in-for-bwrap";

/// Options whose first argument is a descriptor that bubblewrap reads.
pub(crate) const READ_FROM: [&str; 3] = ["--add-seccomp-fd", "--file", "--ro-bind-data"];

/// How firn starts bubblewrap.
pub(crate) struct Start {
    /// bubblewrap's own arguments, those from a file with the others.
    pub(crate) args: Vec<String>,
    /// What it reads, by the descriptor's number among the arguments.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// The program in it and its arguments.
    pub(crate) command: Vec<String>,
    /// The user and the group it runs as.
    pub(crate) ids: [u32; 2],
}

/// Whether this process was started in the place of bubblewrap. Then this is all it has to do.
pub(crate) fn in_place() -> Option<ExitCode> {
    std::env::current_exe().is_ok_and(|path| path.ends_with(NAME)).then(write_down)
}

/// A file without a name that holds these bytes, at its beginning.
pub(crate) fn in_memory(contents: &[u8]) -> OwnedFd {
    let mut file = File::from(memfd_create(c"floor", MFdFlags::MFD_CLOEXEC).expect("makes a file"));
    file.write_all(contents).and_then(|()| file.rewind()).expect("writes it");
    file.into()
}

fn contents(fd: &str) -> Vec<u8> {
    let fd = fd.parse().expect("a descriptor");
    // SAFETY: whoever started us under that name handed the descriptor over.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("reads what was handed over");
    bytes
}

/// Where the start of a program is written to. A jail's agent is started by its descriptor.
fn record(dir: &Path, program: &str) -> PathBuf {
    let name = if program.starts_with("/proc/") { Some("agent") } else { program.rsplit('/').next() };
    dir.join(format!("{}.json", name.unwrap_or_default()))
}

fn write_down() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let list = args.iter().position(|arg| arg == "--args").expect("a list of arguments");
    let mut all: Vec<String> = args[..list].to_vec();
    // Where it would say what became of the command: nobody listens to a floor.
    if let Some(status) = all.iter().position(|arg| arg == "--json-status-fd") {
        all.drain(status..status + 2);
    }
    let more = String::from_utf8(contents(&args[list + 1])).expect("paths are UTF-8 here");
    all.extend(more.split_terminator('\0').map(str::to_owned));
    let mut files = Vec::new();
    for pair in all.windows(2) {
        if READ_FROM.contains(&pair[0].as_str()) {
            files.push(json!({ "fd": pair[1], "contents": contents(&pair[1]) }));
        }
    }
    // After `--args FD --`.
    let command = &args[list + 3..];
    let ids = [nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()];
    let start = json!({ "args": all, "files": files, "command": command, "ids": ids });
    let dir = std::env::current_exe().expect("knows itself").parent().expect("is in a folder").to_owned();
    fs::write(record(&dir, &command[0]), start.to_string()).expect("writes the record");
    ExitCode::FAILURE
}

impl Start {
    /// Of `program` (its file's name, or `agent`), when firn is run with these arguments. No daemon may run
    /// there yet, and none does afterwards: it is the daemon that starts bubblewrap.
    pub(crate) fn of(host: &Host, args: &[&str], program: &str) -> Start {
        let dir = tempfile::Builder::new().prefix("firn-").tempdir_in("/tmp").expect("makes a folder");
        // Whoever firn becomes has to write there.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("opens it");
        let stand_in = dir.path().join(NAME);
        fs::copy(std::env::current_exe().expect("knows itself"), &stand_in).expect("copies itself");
        let _ = host.run(args).env("FIRN_BWRAP", &stand_in).finish().expect(125);
        host.stop_daemon();
        let start = fs::read(record(dir.path(), program)).expect("firn has started the stand-in");
        let start: Value = serde_json::from_slice(&start).expect("is our own");
        let list = |value: &Value| value.as_array().expect("is a list").clone();
        let text = |value: &Value| value.as_str().expect("is text").to_owned();
        let texts = |value: &Value| list(value).iter().map(text).collect();
        let number = |value: &Value| u32::try_from(value.as_u64().expect("is a number")).expect("is an id");
        let byte = |value: &Value| u8::try_from(number(value)).expect("is a byte");
        Start {
            args: texts(&start["args"]),
            files: list(&start["files"])
                .iter()
                .map(|file| (text(&file["fd"]), list(&file["contents"]).iter().map(byte).collect()))
                .collect(),
            command: texts(&start["command"]),
            ids: [number(&start["ids"][0]), number(&start["ids"][1])],
        }
    }
}
