//! An agent that turned against firn: the init process of a guest that does what it must not.
//!
//! It comes up as `firn-agent` does (`/dev`, `/proc`, modules up to vsock, a connection to the
//! host) and then does what the file `mode` in the caller's workspace says. One guest image serves
//! all modes that way. When it is through it waits for ever, so that it is firn that has to end
//! the guest; only `power-off` and `exit` end it themselves.
#![allow(unsafe_code, reason = "accept(2) gives a number")]
#![allow(clippy::unwrap_used, reason = "a failure is a panic, which ends the guest and the test")]

use bytes::BytesMut;
use firn_protocol::{
    AGENT_PORT, Codec, EndedBy, Event, ExitStatus, Exited, Failure, FailureCode, Frame, Hello, Kind,
    NotStarted, NotStartedReason, PROTOCOL_VERSION, READY_PORT, Reply,
};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, connect, socket,
};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;
use tokio_util::codec::{Decoder as _, Encoder as _};

/// The host's context id.
const HOST: u32 = 2;

/// Any context id of ours (`VMADDR_CID_ANY`, `vsock`(7)).
const ANY: u32 = u32::MAX;

/// What a terminal obeys, in more than one way.
const ESCAPES: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\r\nfirn: all is well\n";

fn main() -> ! {
    let done = std::panic::catch_unwind(|| act(&come_up()));
    if done.is_err() {
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    sleep_for_ever()
}

/// Gives the mode.
fn come_up() -> String {
    let none = MsFlags::empty();
    mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), none, None::<&str>).unwrap();
    mount(Some("proc"), "/proc", Some("proc"), none, None::<&str>).unwrap();
    for name in fs::read_to_string("/modules/order").unwrap_or_default().lines() {
        // One that is not for this machine fails, as it may.
        if let Ok(module) = File::open(format!("/modules/{name}")) {
            let _ = finit_module(module, c"", ModuleInitFlags::empty());
        }
    }
    mount(Some("shares"), "/newroot", Some("virtiofs"), none, None::<&str>).unwrap();
    fs::read_to_string("/newroot/0/mode").unwrap()
}

fn act(mode: &str) {
    match mode {
        "power-off" => {
            let _ = reboot(RebootMode::RB_POWER_OFF);
        }
        "exit" => std::process::exit(0),
        "console-flood" => {
            flood_console();
            let _ = reboot(RebootMode::RB_POWER_OFF);
        }
        "garbage-hello" => send_raw(&dial(), &[0xff; 4096]),
        "huge-length" => send_raw(&dial(), &[0xff, 0xff, 0xff, 0xff, Kind::Hello as u8, 0, 0, 0, 0]),
        "wrong-version" => Host::greet(PROTOCOL_VERSION + 1).stay(),
        "hello-then-gone" => drop(Host::greet(PROTOCOL_VERSION)),
        "many-dials" => {
            let first = dial();
            let _others: Vec<_> = (0..500).map(|_| dial_once()).collect();
            send_raw(&first, &[0xff; 4096]);
        }
        _ => in_a_command(mode),
    }
}

/// What only a guest that behaved so far can do.
fn in_a_command(mode: &str) {
    let listener = listen();
    let mut host = Host::greet(PROTOCOL_VERSION);
    host.await_request();
    host.reply(&Reply::Configured);
    host.await_request();
    match mode {
        "escapes" => {
            host.reply(&Reply::NotStarted(NotStarted {
                reason: NotStartedReason::Other,
                message: ESCAPES.repeat(3000),
            }));
            shut_down(&listener);
        }
        "refusal" => {
            host.reply(&Reply::Error(Failure { code: FailureCode::Failed, message: ESCAPES.repeat(1000) }))
        }
        "endless-events" => loop {
            host.event(&Event::StdinCredit { bytes: u32::MAX });
        },
        "gone-in-a-chunk" => {
            host.event(&Event::Started { pid: 1 });
            host.send(Kind::Stdout, b"the beginning\n");
            send_raw(&host.stream, &[0, 1, 0, 0, Kind::Stdout as u8, 0, 0, 0, 2, b'x']);
            drop(host);
            sleep_for_ever();
        }
        "two-dials" => {
            // A second connection in the middle of a command neither helps nor harms.
            let other = dial_once();
            host.event(&Event::Started { pid: 1 });
            host.send(Kind::Stdout, if other.is_some() { b"answered\n" } else { b"unheard\n" });
            host.exit();
            shut_down(&listener);
        }
        "not-the-end" => {
            host.event(&Event::Started { pid: 1 });
            host.exit();
            // firn has heard the end, and asks for the shutdown elsewhere: it gets more of the same.
            let mut again = accept_from(&listener);
            again.await_request();
            loop {
                again.send(Kind::Stdout, &[b'x'; 1000]);
            }
        }
        other => panic!("what is {other:?}?"),
    }
    host.stay();
}

fn flood_console() {
    let mut console = fs::OpenOptions::new().write(true).open("/dev/ttyS0").unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(3);
    while std::time::Instant::now() < until {
        let _ = console.write_all(ESCAPES.repeat(100).as_bytes());
    }
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// Where firn makes further connections.
fn listen() -> OwnedFd {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(socket.as_raw_fd(), &VsockAddr::new(ANY, AGENT_PORT)).unwrap();
    nix::sys::socket::listen(&socket, Backlog::new(16).unwrap()).unwrap();
    socket
}

/// A further connection of firn's.
fn accept_from(listener: &OwnedFd) -> Host {
    let accepted = accept(listener.as_raw_fd()).unwrap();
    // SAFETY: the number is that of a connection that was just made, and nobody else has it.
    let stream = unsafe { File::from_raw_fd(accepted) };
    Host::greet_over(stream, PROTOCOL_VERSION)
}

/// Behaves at the end.
fn shut_down(listener: &OwnedFd) {
    let mut host = accept_from(listener);
    host.await_request();
    host.reply(&Reply::ShuttingDown);
    host.stay();
}

fn dial_once() -> Option<File> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None).ok()?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, READY_PORT)).ok()?;
    Some(File::from(socket))
}

fn dial() -> File {
    loop {
        if let Some(stream) = dial_once() {
            return stream;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends bytes that are no frame and leaves the connection open.
fn send_raw(mut stream: &File, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
    if bytes[0] == 0xff {
        sleep_for_ever();
    }
}

/// The connection to firn.
struct Host {
    stream: File,
    arrived: BytesMut,
    id: u32,
}

impl Host {
    fn greet(protocol: u32) -> Host {
        Host::greet_over(dial(), protocol)
    }

    fn greet_over(stream: File, protocol: u32) -> Host {
        let mut host = Host { stream, arrived: BytesMut::new(), id: 0 };
        let hello = Hello {
            protocol,
            software: ESCAPES.to_owned(),
            capabilities: vec!["exec".into(), "limits".into()],
        };
        host.send(Kind::Hello, &serde_json::to_vec(&hello).unwrap());
        host
    }

    /// Whoever is not listened to any more has nothing to say.
    fn send(&mut self, kind: Kind, body: &[u8]) {
        let mut wire = BytesMut::new();
        Codec.encode(Frame::new(kind, self.id, body.to_vec()), &mut wire).unwrap();
        if self.stream.write_all(&wire).is_err() {
            sleep_for_ever();
        }
    }

    fn event(&mut self, event: &Event) {
        self.send(Kind::Event, &serde_json::to_vec(event).unwrap());
    }

    fn reply(&mut self, reply: &Reply) {
        self.send(Kind::Reply, &serde_json::to_vec(reply).unwrap());
    }

    fn exit(&mut self) {
        self.reply(&Reply::Exited(Box::new(Exited {
            status: ExitStatus::Code(0),
            ended_by: EndedBy::Itself,
            duration_us: 0,
            user_us: 0,
            system_us: 0,
            max_rss_bytes: 0,
            stdout_bytes: 0,
            stderr_bytes: 0,
            truncated: false,
            exceeded: Vec::new(),
        })));
    }

    /// Reads on to the next request and answers it from now on.
    fn await_request(&mut self) {
        let mut chunk = [0; 4096];
        loop {
            while let Some(frame) = Codec.decode(&mut self.arrived).unwrap() {
                if frame.kind == Kind::Request {
                    self.id = frame.id;
                    return;
                }
            }
            let read = self.stream.read(&mut chunk).unwrap_or(0);
            if read == 0 {
                sleep_for_ever();
            }
            self.arrived.extend_from_slice(&chunk[..read]);
        }
    }

    fn stay(self) {
        sleep_for_ever();
    }
}
