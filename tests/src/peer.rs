//! The host's end of the protocol, in the simplest form: blocking, one connection.

use bytes::BytesMut;
use firn_protocol::{
    Codec, Event, Exec, Exited, Frame, Hello, Kind, PROTOCOL_VERSION, Reply, Request, SessionRun, Stdin,
};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tokio_util::codec::{Decoder as _, Encoder as _};

/// When a peer is taken for hanging.
const HANG: Duration = Duration::from_secs(120);

/// How much is read at once.
const CHUNK: usize = 256 * 1024;

/// A connection to an agent, after the handshake.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    arrived: BytesMut,
    chunk: Vec<u8>,
    id: u32,
}

/// A command without input.
#[must_use]
pub fn exec(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(|arg| (*arg).into()).collect(),
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

/// Connects to a vsock port of a guest, through the host's end of vsock. None: nobody answers.
#[must_use]
pub fn connect(socket: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).ok()?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).ok()?;
    }
    Some(stream)
}

impl Peer {
    /// Connects to the agent in a guest, through the host's end of vsock. None: it does not answer.
    #[must_use]
    pub fn vsock(socket: &Path) -> Option<Peer> {
        Some(Peer::greet(connect(socket, firn_protocol::AGENT_PORT)?))
    }

    /// Connects to the agent of a jail by its socket. None: nobody listens.
    #[must_use]
    pub fn unix(socket: &Path) -> Option<Peer> {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(HANG)).unwrap();
        Some(Peer::greet(stream))
    }

    fn greet(stream: UnixStream) -> Peer {
        let mut peer = Peer { stream, arrived: BytesMut::new(), chunk: vec![0; CHUNK], id: 0 };
        let hello: Hello = peer.receive(Kind::Hello).message().unwrap();
        assert_eq!(hello.protocol, PROTOCOL_VERSION);
        let ours =
            Hello { protocol: PROTOCOL_VERSION, software: "test".to_owned(), capabilities: Vec::new() };
        peer.send(&Frame::json(Kind::Hello, 0, &ours).unwrap());
        peer
    }

    fn send(&mut self, frame: &Frame) {
        let mut wire = BytesMut::new();
        Codec.encode(frame.clone(), &mut wire).unwrap();
        self.stream.write_all(&wire).unwrap();
    }

    fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = Codec.decode(&mut self.arrived).unwrap() {
                return frame;
            }
            let read = self.stream.read(&mut self.chunk).expect("the agent hangs");
            assert_ne!(read, 0, "the agent closed the connection");
            self.arrived.extend_from_slice(&self.chunk[..read]);
        }
    }

    fn receive(&mut self, kind: Kind) -> Frame {
        let frame = self.next();
        assert_eq!(frame.kind, kind);
        frame
    }

    /// Asks for something that has one reply.
    pub fn ask(&mut self, request: &Request) -> Reply {
        self.id += 1;
        self.send(&Frame::json(Kind::Request, self.id, request).unwrap());
        self.receive(Kind::Reply).message().unwrap()
    }

    /// Runs a command to its end and counts what it writes.
    pub fn run(&mut self, exec: Exec, mut output: impl FnMut(Kind, &[u8])) -> Exited {
        self.id += 1;
        self.send(&Frame::json(Kind::Request, self.id, &Request::Exec(Box::new(exec))).unwrap());
        loop {
            let frame = self.next();
            assert_eq!(frame.id, self.id, "a frame of another operation");
            match frame.kind {
                Kind::Stdout | Kind::Stderr => output(frame.kind, &frame.body),
                Kind::Event => {
                    let _: Event = frame.message().unwrap();
                }
                Kind::Reply => match frame.message().unwrap() {
                    Reply::Exited(exited) => return *exited,
                    other => panic!("{other:?}"),
                },
                other => panic!("a {other:?} frame"),
            }
        }
    }

    /// Runs code in a session to its end, under a number of its own, and gives how much it writes.
    pub fn evaluate(&mut self, session: &str, run: u64, code: &str) -> usize {
        self.id += 1;
        let asked = SessionRun {
            session: session.to_owned(),
            run,
            code: code.into(),
            more_code_bytes: 0,
            timeout_ms: None,
            grace_ms: None,
            stdin: Stdin::Null,
            max_output_bytes: None,
        };
        self.send(&Frame::json(Kind::Request, self.id, &Request::SessionRun(Box::new(asked))).unwrap());
        let mut written = 0;
        loop {
            let frame = self.next();
            assert_eq!(frame.id, self.id, "a frame of another operation");
            match frame.kind {
                Kind::Stdout | Kind::Stderr => written += frame.body.len(),
                Kind::Event => {
                    let _: Event = frame.message().unwrap();
                }
                Kind::Reply => match frame.message().unwrap() {
                    Reply::Ran(_) => return written,
                    other => panic!("{other:?}"),
                },
                other => panic!("a {other:?} frame"),
            }
        }
    }
}
