//! The guest's half of the benchmarks' floors: what a guest does at least, without our agent.
//!
//! A static program that shares no code with the agent. Built and used by `make bench` only:
//!
//! ```text
//!   /init                   the least init: modules, virtiofs, overlay, `true`, power off
//!   guest-floor spawn N     makes N processes of `true` and prints what each took
//!   guest-floor write N     writes N bytes to stdout
//!   guest-floor serve       echoes and streams on a vsock port
//! ```
#![allow(clippy::unwrap_used, reason = "a panic ends the measurement, as any failure here should")]
#![allow(unsafe_code, reason = "fork has no safe interface")]

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, execv, fork};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Where `serve` listens.
const PORT: u32 = 5005;

/// How much is written at once.
const CHUNK: usize = 64 * 1024;

const TRUE: &str = "/usr/bin/true";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        _ if std::process::id() == 1 => init(),
        ["spawn", count] => spawn(count.parse().unwrap()),
        ["write", bytes] => write(&mut std::io::stdout().lock(), bytes.parse().unwrap()),
        ["serve"] => serve(),
        _ => panic!("unknown arguments: {words:?}"),
    }
}

fn init() -> ! {
    for name in std::fs::read_to_string("/modules/order").unwrap().lines() {
        let file = File::open(format!("/modules/{name}")).unwrap();
        finit_module(file, c"", ModuleInitFlags::empty()).unwrap();
    }
    for folder in ["/lower", "/rw", "/new"] {
        std::fs::create_dir(folder).unwrap();
    }
    let none = MsFlags::empty();
    mount(Some("base"), "/lower", Some("virtiofs"), MsFlags::MS_RDONLY, None::<&str>).unwrap();
    mount(Some("tmpfs"), "/rw", Some("tmpfs"), none, Some("mode=0755")).unwrap();
    for folder in ["/rw/upper", "/rw/work"] {
        std::fs::create_dir(folder).unwrap();
    }
    let layers = "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work";
    mount(Some("overlay"), "/new", Some("overlay"), none, Some(layers)).unwrap();
    std::os::unix::fs::chroot("/new").unwrap();
    std::env::set_current_dir("/").unwrap();
    let status = Command::new(TRUE).status().unwrap();
    // The other side looks for this line on the console.
    writeln!(std::io::stdout().lock(), "the floor's command: {status}").unwrap();
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    panic!("{errno}")
}

/// Prints two columns: fork and exec, and the `vfork` that the standard library uses. Nanoseconds.
fn spawn(count: usize) {
    let mut lines = String::new();
    for _ in 0..count {
        let since = Instant::now();
        // SAFETY: the process has one thread.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let Err(errno) = execv(c"/usr/bin/true", &[c"true"]);
                panic!("{errno}");
            }
            ForkResult::Parent { child } => {
                waitpid(child, None).unwrap();
            }
        }
        let forked = since.elapsed();
        let since = Instant::now();
        Command::new(TRUE).stdin(Stdio::null()).status().unwrap();
        lines += &format!("{} {}\n", forked.as_nanos(), since.elapsed().as_nanos());
    }
    std::io::stdout().lock().write_all(lines.as_bytes()).unwrap();
}

fn write(to: &mut impl Write, bytes: usize) {
    let zeros = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(CHUNK);
        to.write_all(&zeros[..now]).unwrap();
        left -= now;
    }
}

fn serve() -> ! {
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, PORT)).unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    writeln!(std::io::stdout().lock(), "listening").unwrap();
    loop {
        let accepted = accept(listener.as_raw_fd()).unwrap();
        // SAFETY: the descriptor has just been made and nobody else has it.
        let connection = File::from(unsafe { OwnedFd::from_raw_fd(accepted) });
        let mut reader = BufReader::new(connection.try_clone().unwrap());
        let mut connection = connection;
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim().split_once(' ') {
            None => {
                let mut message = [0; 32];
                while reader.read_exact(&mut message).is_ok() {
                    connection.write_all(&message).unwrap();
                }
            }
            Some((_stream, bytes)) => write(&mut connection, bytes.parse().unwrap()),
        }
    }
}
