//! Code through the daemon's API, as any client does it: a stream of `POST /v1/evaluate`, and more code on it.

use bytes::BytesMut;
use firn_protocol::{Codec, Frame, Kind, Ran, Reply};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tokio_util::codec::{Decoder as _, Encoder as _};

/// When a daemon is taken for hanging.
const HANG: Duration = Duration::from_secs(120);

/// A stream that was made for code.
#[derive(Debug)]
pub struct Evaluation {
    stream: UnixStream,
    arrived: BytesMut,
    chunk: Vec<u8>,
    operation: u32,
}

/// What came of some code.
#[derive(Debug)]
pub struct Evaluated {
    /// What it wrote on both streams.
    pub output: Vec<u8>,
    /// How it ended, if it ran.
    pub ran: Option<Ran>,
    /// The daemon's last notice.
    pub last: Value,
}

/// The request for code in a session that is there.
#[must_use]
pub fn code_in(session: &str, code: &str) -> Value {
    json!({"session": session, "code": code, "stdin": "null"})
}

impl Evaluation {
    /// Asks for code, which is the stream's first.
    #[must_use]
    pub fn open(socket: &Path, asked: &Value) -> Evaluation {
        let stream = UnixStream::connect(socket).expect("the daemon listens");
        stream.set_read_timeout(Some(HANG)).unwrap();
        let mut this =
            Evaluation { stream, arrived: BytesMut::new(), chunk: vec![0; 256 * 1024], operation: 1 };
        let body = asked.to_string();
        let head = format!(
            "POST /v1/evaluate HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: firn-frames\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        this.stream.write_all((head + &body).as_bytes()).expect("the daemon reads");
        let end = loop {
            assert!(this.read(), "the daemon hung up");
            if let Some(end) = this.arrived.windows(4).position(|end| end == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = this.arrived.split_to(end);
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        this
    }

    /// Asks for more code, under the next number.
    pub fn ask(&mut self, asked: &Value) {
        self.operation += 1;
        self.say(Kind::Request, self.operation, asked.to_string().as_bytes());
    }

    /// Sends a frame.
    pub fn say(&mut self, kind: Kind, id: u32, body: &[u8]) {
        let mut wire = BytesMut::new();
        Codec.encode(Frame::new(kind, id, body.to_vec()), &mut wire).expect("it fits");
        self.stream.write_all(&wire).expect("the daemon reads");
    }

    /// What came of what was asked for. None: the daemon hung up.
    pub fn outcome(&mut self) -> Option<Evaluated> {
        let (mut output, mut ran) = (Vec::new(), None);
        loop {
            let Some(frame) = Codec.decode(&mut self.arrived).expect("frames") else {
                if self.read() {
                    continue;
                }
                return None;
            };
            if frame.id == 0 {
                let last: Value = frame.message().expect("a notice");
                if matches!(last["type"].as_str(), Some("ended" | "failed")) {
                    return Some(Evaluated { output, ran, last });
                }
                continue;
            }
            assert_eq!(frame.id, self.operation, "a frame of another operation");
            match frame.kind {
                Kind::Stdout | Kind::Stderr => output.extend_from_slice(&frame.body),
                Kind::Reply => match frame.message().expect("a reply") {
                    Reply::Ran(end) => ran = Some(*end),
                    other => panic!("{other:?}"),
                },
                _ => {}
            }
        }
    }

    fn read(&mut self) -> bool {
        let read = self.stream.read(&mut self.chunk).expect("the daemon answers");
        self.arrived.extend_from_slice(&self.chunk[..read]);
        read > 0
    }
}
