//! A real agent in a process of its own, and a host to talk to it: blocking and simple, so that a
//! test reads as what the host does.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "whatever fails here fails the test")]

use bytes::BytesMut;
use firn_protocol::*;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_util::codec::{Decoder as _, Encoder as _};

/// Nothing here takes this long: a test that does hangs.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// A running agent. Killed when dropped.
pub(crate) struct Agent {
    pub(crate) process: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    pub(crate) fn start() -> Agent {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_firn-agent"));
        command.arg("--listen").arg(folder.path().join("agent.sock"));
        // An environment that must not reach any command.
        command.env("FIRN_LEAK", "1").stdin(Stdio::null());
        command.process_group(0);
        let process = command.spawn().unwrap();
        let agent = Agent { process, folder };
        let since = Instant::now();
        while UnixStream::connect(agent.socket()).is_err() {
            assert!(since.elapsed() < HANG, "the agent does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        agent
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn connect(&self) -> Host {
        let mut host = self.connect_silently();
        host.greet(PROTOCOL_VERSION);
        host
    }

    /// Without a hello.
    pub(crate) fn connect_silently(&self) -> Host {
        Host::over(UnixStream::connect(self.socket()).unwrap())
    }

    /// Runs a shell script to its end.
    pub(crate) fn sh(&self, script: &str) -> Run {
        self.connect().run(&sh(script), b"")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An agent that inherited its listening socket, as one in a jail does. Killed when dropped.
pub(crate) struct Jailed {
    pub(crate) process: Child,
    folder: tempfile::TempDir,
}

impl Jailed {
    /// Starts one, after this was done with its command line and with the path of its socket.
    pub(crate) fn start_with(prepare: impl FnOnce(&mut Command, &Path)) -> Jailed {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        // Its number in the agent: duplicated without close-on-exec.
        let inherited = nix::unistd::dup(&listener).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_firn-agent"));
        command.arg("--listen-fd").arg(inherited.as_raw_fd().to_string());
        command.env_clear().stdin(Stdio::null()).process_group(0);
        prepare(&mut command, &path);
        let process = command.spawn().unwrap();
        Jailed { process, folder }
    }

    pub(crate) fn start() -> Jailed {
        Jailed::start_with(|_, _| {})
    }

    pub(crate) fn connect_silently(&self) -> Host {
        Host::over(UnixStream::connect(self.folder.path().join("agent.sock")).unwrap())
    }

    pub(crate) fn connect(&self) -> Host {
        let mut host = self.connect_silently();
        host.greet(PROTOCOL_VERSION);
        host
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The host's end of a connection.
pub(crate) struct Host {
    pub(crate) stream: UnixStream,
    inbound: BytesMut,
    next: RequestId,
}

/// All that came back for an exec.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) pid: Option<u32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) stdin_closed: bool,
    pub(crate) reply: Reply,
}

impl Run {
    pub(crate) fn exited(&self) -> &Exited {
        match &self.reply {
            Reply::Exited(exited) => exited,
            other => panic!("{other:?}, stderr {:?}", String::from_utf8_lossy(&self.stderr)),
        }
    }

    pub(crate) fn code(&self) -> i32 {
        match self.exited().status {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => panic!("ended by signal {signal}"),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    pub(crate) fn not_started(&self) -> &NotStarted {
        match &self.reply {
            Reply::NotStarted(not_started) => not_started,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn exec<T: Into<Text>>(argv: impl IntoIterator<Item = T>) -> Exec {
    Exec {
        argv: argv.into_iter().map(Into::into).collect(),
        cwd: None,
        env: Vec::new(),
        user: None,
        terminal: None,
        stdin: Stdin::Null,
        timeout_ms: None,
        max_output_bytes: None,
        resource_limits: Vec::new(),
        keep: None,
    }
}

pub(crate) fn sh(script: &str) -> Exec {
    exec(["sh", "-c", script])
}

pub(crate) fn variable(name: &str, value: &str) -> Variable {
    Variable { name: name.into(), value: value.into() }
}

impl Host {
    pub(crate) fn over(stream: UnixStream) -> Host {
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        Host { stream, inbound: BytesMut::new(), next: 1 }
    }

    pub(crate) fn greet(&mut self, protocol: u32) -> Hello {
        let hello = self.frame().expect("the agent speaks first");
        assert_eq!((hello.kind, hello.id), (Kind::Hello, 0));
        let ours = Hello { protocol, software: "test".into(), capabilities: vec!["unheard-of".into()] };
        self.send(Kind::Hello, 0, &ours);
        hello.message().unwrap()
    }

    pub(crate) fn send_frame(&mut self, frame: Frame) {
        let mut wire = BytesMut::new();
        Codec.encode(frame, &mut wire).unwrap();
        // An agent that has closed the connection is seen when its answer is read.
        let _ = self.stream.write_all(&wire);
    }

    pub(crate) fn send<T: serde::Serialize>(&mut self, kind: Kind, id: RequestId, message: &T) {
        self.send_frame(Frame::json(kind, id, message).unwrap());
    }

    /// `None`: the agent has closed the connection.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Codec.decode(&mut self.inbound).unwrap() {
                return Some(frame);
            }
            let mut chunk = vec![0; 256 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(read) => self.inbound.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing from the agent: {error}"),
            }
        }
    }

    pub(crate) fn request(&mut self, request: &Request) -> RequestId {
        let id = self.next;
        self.next += 1;
        self.send(Kind::Request, id, request);
        id
    }

    pub(crate) fn input(&mut self, id: RequestId, input: Input) {
        self.send(Kind::Input, id, &input);
    }

    pub(crate) fn stdin(&mut self, id: RequestId, bytes: &[u8]) {
        self.send_frame(Frame::new(Kind::Stdin, id, bytes.to_vec()));
    }

    pub(crate) fn reply(&mut self, id: RequestId) -> Reply {
        let frame = self.frame().expect("a reply");
        assert_eq!((frame.kind, frame.id), (Kind::Reply, id));
        frame.message().unwrap()
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        let id = self.request(request);
        self.reply(id)
    }

    pub(crate) fn start(&mut self, exec: &Exec) -> RequestId {
        self.request(&Request::Exec(Box::new(exec.clone())))
    }

    /// Starts a command and waits until it runs.
    pub(crate) fn started(&mut self, exec: &Exec) -> (RequestId, u32) {
        let id = self.start(exec);
        let frame = self.frame().unwrap();
        assert_eq!(frame.kind, Kind::Event, "{:?}", frame.body);
        match frame.message().unwrap() {
            Event::Started { pid } => (id, pid),
            other => panic!("{other:?}"),
        }
    }

    /// Runs a command, feeding it this stdin as credit allows if it takes any.
    pub(crate) fn run(&mut self, exec: &Exec, stdin: &[u8]) -> Run {
        let id = self.start(exec);
        self.finish(id, (exec.stdin == Stdin::Stream).then_some(stdin))
    }

    pub(crate) fn finish(&mut self, id: RequestId, mut stdin: Option<&[u8]>) -> Run {
        let mut run = Run {
            pid: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            stdin_closed: false,
            reply: Reply::Pong,
        };
        let mut credit = STDIN_WINDOW as usize;
        loop {
            if let Some(rest) = &mut stdin {
                while credit > 0 && !rest.is_empty() && !run.stdin_closed {
                    let (now, later) = rest.split_at(credit.min(rest.len()).min(64 * 1024));
                    self.stdin(id, now);
                    credit -= now.len();
                    *rest = later;
                }
                if rest.is_empty() || run.stdin_closed {
                    self.send_frame(Frame::new(Kind::StdinEnd, id, Vec::new()));
                    stdin = None;
                }
            }
            let frame = self.frame().expect("the connection lasts");
            assert_eq!(frame.id, id);
            match frame.kind {
                Kind::Stdout => run.stdout.extend_from_slice(&frame.body),
                Kind::Stderr => run.stderr.extend_from_slice(&frame.body),
                Kind::Event => match frame.message().unwrap() {
                    Event::Started { pid } => {
                        assert!(run.stdout.is_empty() && run.stderr.is_empty() && run.pid.is_none());
                        run.pid = Some(pid);
                    }
                    Event::StdinCredit { bytes } => credit += bytes as usize,
                    Event::StdinClosed => run.stdin_closed = true,
                    Event::Skipped { .. } => {}
                    event @ (Event::Attached { .. } | Event::RunStarted { .. } | Event::OutputCut { .. }) => {
                        panic!("{event:?}")
                    }
                },
                Kind::Reply => {
                    run.reply = frame.message().unwrap();
                    return run;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads output until it holds this text.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            let frame = self.frame().expect("more output");
            if frame.kind == Kind::Stdout {
                seen.extend_from_slice(&frame.body);
            }
            let so_far = String::from_utf8_lossy(&seen).into_owned();
            assert_ne!(frame.kind, Kind::Reply, "over with {so_far:?}: {:?}", frame.body);
            if so_far.contains(text) {
                return so_far;
            }
        }
    }
}

/// Whether a process is there and not merely waiting to be reaped.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < HANG, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
