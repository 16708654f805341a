//! One connection to an agent: the handshake, and requests that have one reply.

use super::exec::{Role, Running};
use super::words::one_line;
use crate::sys::socket;
use bytes::{Buf as _, BytesMut};
use firn_protocol::{
    Attach, Codec, Configure, Exec, Failure, Frame, FrameError, Hello, Kind, PROTOCOL_VERSION, Reply,
    Request, RequestId,
};
use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{Encoder as _, FramedRead};

/// How long the agent may take to say hello, once connected.
const HELLO_PATIENCE: Duration = Duration::from_secs(20);

/// How much may wait to be sent. The agent reads at all times, so more means that it does not.
const OUTBOX: usize = 1 << 20;

/// The longest message an agent may send, in bytes: far more than any needs, and little enough that
/// what a reader makes of it (of `[0,0,0…` sixteen times as much) is no burden.
const LONGEST_MESSAGE: usize = 256 * 1024;

/// How long a sandbox that hung up may take to be seen to have ended.
const HANGUP_PATIENCE: Duration = Duration::from_secs(3);

/// What is under way before anything else.
const HANDSHAKE: &str = "the handshake";

/// What an agent must be able to do: one that could not would leave out what it was asked for.
const NEEDED: [&str; 2] = ["exec", "limits"];

/// What else an agent may be able to do, for who wants it.
const OPTIONAL: [&str; 4] = ["keep", "processes", "files", "sessions"];

/// How much is read at once to begin with, in bytes. The buffer grows with what comes; a larger one
/// would be a mapping of its own, which costs a short run more than reading does.
const READ_AHEAD: usize = 64 * 1024;

/// The same, of a connection that was idle.
const IDLE_BUFFER: usize = 4 * 1024;

/// A conversation with an agent that went wrong. The connection is of no use afterwards, except
/// after [`GuestError::Refused`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum GuestError {
    /// Nobody accepts a connection.
    #[error("cannot connect to the sandbox")]
    Dial(#[source] std::io::Error),
    /// The guest ended the connection.
    #[error("the sandbox closed the connection during {during}")]
    Closed {
        /// What was under way.
        during: &'static str,
    },
    /// The connection failed, or carried what is no frame.
    #[error("the sandbox broke the protocol during {during}")]
    Frame {
        /// What was under way.
        during: &'static str,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// A frame whose body is not the message its kind says.
    #[error(
        "the sandbox broke the protocol during {during}: a {kind:?} frame without a valid message: {why}"
    )]
    Malformed {
        /// What was under way.
        during: &'static str,
        /// The frame's kind.
        kind: Kind,
        /// What the JSON reader says of it. Not its error itself: that quotes the guest at any
        /// length.
        why: String,
    },
    /// A message that must not come at this point.
    #[error("the sandbox broke the protocol during {during}: {what}")]
    Unexpected {
        /// What was under way.
        during: &'static str,
        /// What came.
        what: String,
    },
    /// The agent speaks another version.
    #[error("the agent in the sandbox speaks protocol {theirs}, firn speaks {PROTOCOL_VERSION}")]
    Version {
        /// Its version.
        theirs: u32,
    },
    /// The agent is of a kind that does less.
    #[error("the agent in the sandbox cannot do `{capability}`: it is older than this firn")]
    Lacks {
        /// By the protocol's name.
        capability: &'static str,
    },
    /// The agent did not answer in time.
    #[error("the sandbox did not answer {during} within {}", humantime::format_duration(*patience))]
    Silent {
        /// What was under way.
        during: &'static str,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The agent does not read what it is sent.
    #[error("the sandbox does not read what it is sent")]
    Deaf,
    /// The agent could not do it.
    #[error("the sandbox could not do {during}: {}", .failure.message)]
    Refused {
        /// What was asked.
        during: &'static str,
        /// Its answer.
        failure: Failure,
    },
}

impl GuestError {
    /// Whether the guest ended the connection, be it within a frame. It usually did not mean to:
    /// it died.
    pub(crate) fn hung_up(&self) -> bool {
        matches!(
            self,
            GuestError::Dial(_)
                | GuestError::Closed { .. }
                | GuestError::Frame { source: FrameError::Truncated, .. }
        )
    }

    /// What is behind it: a sandbox that hangs up is usually one that ended, and how (`ended`) is the
    /// better reason.
    pub(crate) async fn or_end<E: From<GuestError>>(self, ended: impl Future<Output = E>) -> E {
        if self.hung_up()
            && let Ok(reason) = tokio::time::timeout(HANGUP_PATIENCE, ended).await
        {
            return reason;
        }
        self.into()
    }

    /// The error for what the agent could not do.
    pub(super) fn refused(during: &'static str, failure: &Failure) -> GuestError {
        let failure = Failure { code: failure.code, message: one_line(&failure.message) };
        GuestError::Refused { during, failure }
    }
}

/// A connection after the handshake.
pub(crate) struct Connection {
    read: FramedRead<OwnedReadHalf, Codec>,
    write: OwnedWriteHalf,
    outbox: BytesMut,
    listener: Listener,
    greeted: bool,
    /// What the agent can do of [`OPTIONAL`]. Before it has been heard: what it must be able to.
    capabilities: Vec<&'static str>,
    /// The longest message that may come, in bytes.
    longest: usize,
    last_id: RequestId,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connection").field("greeted", &self.greeted).finish_non_exhaustive()
    }
}

/// Whether the agent can still be told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listener {
    There,
    Gone,
}

impl Connection {
    /// Shakes hands with the agent at the other end, whoever dialled.
    pub(crate) async fn establish(stream: UnixStream) -> Result<Connection, GuestError> {
        let mut connection = Connection::begin(stream)?;
        connection
            .within(HANDSHAKE, HELLO_PATIENCE, async |this| {
                let frame = this.frame(HANDSHAKE).await?;
                this.greet(&frame)
            })
            .await?;
        Ok(connection)
    }

    /// A connection to an agent that may not run yet. It is greeted by the first operation, which need
    /// not wait for the answer: both go out at once.
    pub(crate) fn begin(stream: UnixStream) -> Result<Connection, GuestError> {
        let (read, write) = stream.into_split();
        let mut connection = Connection {
            read: FramedRead::with_capacity(read, Codec, READ_AHEAD),
            write,
            outbox: BytesMut::new(),
            listener: Listener::There,
            greeted: false,
            capabilities: Vec::new(),
            longest: LONGEST_MESSAGE,
            last_id: 0,
        };
        let ours = Hello {
            protocol: PROTOCOL_VERSION,
            software: concat!("firn ", env!("CARGO_PKG_VERSION")).to_owned(),
            capabilities: Vec::new(),
        };
        connection.post(Kind::Hello, 0, &ours, HANDSHAKE)?;
        Ok(connection)
    }

    /// Whether the agent has said hello.
    pub(crate) fn is_greeted(&self) -> bool {
        self.greeted
    }

    fn greet(&mut self, frame: &Frame) -> Result<(), GuestError> {
        if frame.kind != Kind::Hello || frame.id != 0 {
            return Err(unexpected(HANDSHAKE, frame));
        }
        let hello: Hello = message(HANDSHAKE, frame)?;
        if hello.protocol != PROTOCOL_VERSION {
            return Err(GuestError::Version { theirs: hello.protocol });
        }
        let can = |capability: &&&str| hello.capabilities.iter().any(|has| has == **capability);
        if let Some(lacks) = NEEDED.iter().chain(&self.capabilities).find(|needed| !can(needed)) {
            return Err(GuestError::Lacks { capability: lacks });
        }
        self.capabilities = OPTIONAL.iter().filter(can).copied().collect();
        self.greeted = true;
        Ok(())
    }

    /// Makes sure that the agent can do this, at once or when it says hello.
    pub(super) fn need(&mut self, capability: &'static str) -> Result<(), GuestError> {
        if self.capabilities.contains(&capability) {
            return Ok(());
        }
        if self.greeted {
            return Err(GuestError::Lacks { capability });
        }
        self.capabilities.push(capability);
        Ok(())
    }

    /// Makes the guest this sandbox.
    pub(crate) async fn configure(
        &mut self,
        configure: Configure,
        patience: Duration,
    ) -> Result<(), GuestError> {
        let during = "its configuration";
        match self.ask(Request::Configure(Box::new(configure)), during, patience).await? {
            Reply::Configured => Ok(()),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// Has all shares written back and the guest powered off.
    pub(crate) async fn shutdown(&mut self, patience: Duration) -> Result<(), GuestError> {
        let during = "the shutdown";
        match self.ask(Request::Shutdown, during, patience).await? {
            Reply::ShuttingDown => Ok(()),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// Starts a command. The connection is its.
    pub(crate) fn exec(mut self, exec: Exec) -> Result<Running, GuestError> {
        let (stdin, timeout_ms) = (exec.stdin, exec.timeout_ms);
        let role = if exec.keep.is_some() { Role::Keeper } else { Role::Owner };
        if role == Role::Keeper {
            self.need("keep")?;
        }
        let id = self.request(&Request::Exec(Box::new(exec)), "a command")?;
        Ok(Running::new(self, id, role, stdin, timeout_ms))
    }

    /// Takes part in a kept command that was started with this timeout. The connection is its:
    /// dropping it leaves the command alone.
    pub(crate) fn attach(mut self, attach: Attach, timeout_ms: Option<u64>) -> Result<Running, GuestError> {
        self.need("keep")?;
        let stdin = attach.stdin;
        let id = self.request(&Request::Attach(attach), "a command")?;
        Ok(Running::new(self, id, Role::Attached, stdin, timeout_ms))
    }

    /// Asks for what may be longer than other answers.
    pub(super) async fn ask_at_length(
        &mut self,
        request: Request,
        during: &'static str,
        patience: Duration,
        longest: usize,
    ) -> Result<Reply, GuestError> {
        self.longest = longest;
        let reply = self.ask(request, during, patience).await;
        self.longest = LONGEST_MESSAGE;
        reply
    }

    /// Asks for what is answered by one reply and nothing else.
    pub(super) async fn ask(
        &mut self,
        request: Request,
        during: &'static str,
        patience: Duration,
    ) -> Result<Reply, GuestError> {
        let id = self.request(&request, during)?;
        self.within(during, patience, async |this| {
            let frame = this.receive(during).await?;
            if frame.id != id || frame.kind != Kind::Reply {
                return Err(unexpected(during, &frame));
            }
            match message(during, &frame)? {
                Reply::Error(failure) => Err(GuestError::refused(during, &failure)),
                reply => Ok(reply),
            }
        })
        .await
    }

    pub(super) fn request(
        &mut self,
        request: &Request,
        during: &'static str,
    ) -> Result<RequestId, GuestError> {
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let id = self.last_id;
        self.post(Kind::Request, id, request, during)?;
        Ok(id)
    }

    async fn within<T>(
        &mut self,
        during: &'static str,
        patience: Duration,
        work: impl AsyncFnOnce(&mut Connection) -> Result<T, GuestError>,
    ) -> Result<T, GuestError> {
        tokio::time::timeout(patience, work(self))
            .await
            .unwrap_or(Err(GuestError::Silent { during, patience }))
    }

    /// Puts a message into the outbox.
    pub(super) fn post<T: serde::Serialize>(
        &mut self,
        kind: Kind,
        id: RequestId,
        message: &T,
        during: &'static str,
    ) -> Result<(), GuestError> {
        let frame = Frame::json(kind, id, message).map_err(|source| GuestError::Frame { during, source })?;
        self.post_frame(frame, during)
    }

    /// Puts a frame into the outbox.
    pub(super) fn post_frame(&mut self, frame: Frame, during: &'static str) -> Result<(), GuestError> {
        if self.listener == Listener::Gone {
            return Ok(());
        }
        if self.outbox.len() > OUTBOX {
            return Err(GuestError::Deaf);
        }
        Codec.encode(frame, &mut self.outbox).map_err(|source| GuestError::Frame { during, source })
    }

    /// How much memory is held for what came and what is to go, in bytes.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.read.read_buffer().capacity() + self.outbox.capacity()
    }

    /// Whether nothing is under way on it in either direction, and the agent is there.
    pub(super) fn is_idle(&self) -> bool {
        let unread = self.read.read_buffer();
        self.greeted
            && self.outbox.is_empty()
            && unread.is_empty()
            && socket::is_quiet(self.read.get_ref().as_ref())
    }

    /// Holds little memory until it is of use again.
    pub(super) fn rest(&mut self) {
        *self.read.read_buffer_mut() = BytesMut::with_capacity(IDLE_BUFFER);
        self.outbox = BytesMut::new();
    }

    /// How many bytes wait to be sent.
    pub(super) fn unsent(&self) -> usize {
        self.outbox.len()
    }

    /// The next frame after the agent's hello. May be dropped at any time without loss.
    pub(super) async fn receive(&mut self, during: &'static str) -> Result<Frame, GuestError> {
        if !self.greeted {
            let frame = self.frame(HANDSHAKE).await?;
            self.greet(&frame)?;
        }
        self.frame(during).await
    }

    /// The next frame. Sends what waits in the outbox meanwhile, so that neither end can keep the
    /// other from being read. May be dropped at any time without loss.
    async fn frame(&mut self, during: &'static str) -> Result<Frame, GuestError> {
        loop {
            tokio::select! {
                // What waits goes first, as far as it is taken: usually there is nothing to be read.
                biased;
                written = self.write.write(&self.outbox), if !self.outbox.is_empty() => match written {
                    Ok(count) => self.outbox.advance(count),
                    // What it said before it hung up is still to be read, and then its end.
                    Err(error) if closed(&error) => {
                        self.listener = Listener::Gone;
                        self.outbox.clear();
                    }
                    Err(error) => return Err(GuestError::Frame { during, source: error.into() }),
                },
                frame = self.read.next() => {
                    return match frame {
                        Some(Ok(frame)) if is_too_long(&frame, self.longest) => Err(unexpected(during, &frame)),
                        Some(Ok(frame)) => Ok(frame),
                        Some(Err(FrameError::Io(error))) if closed(&error) => Err(GuestError::Closed { during }),
                        Some(Err(source)) => Err(GuestError::Frame { during, source }),
                        None => Err(GuestError::Closed { during }),
                    };
                }
            }
        }
    }
}

fn is_too_long(frame: &Frame, longest: usize) -> bool {
    !matches!(frame.kind, Kind::Stdout | Kind::Stderr) && frame.body.len() > longest
}

/// The message in a frame.
pub(super) fn message<T: DeserializeOwned>(during: &'static str, frame: &Frame) -> Result<T, GuestError> {
    frame.message().map_err(|error| match error {
        FrameError::Body { kind, source } => {
            GuestError::Malformed { during, kind, why: one_line(&source.to_string()) }
        }
        source => GuestError::Frame { during, source },
    })
}

fn closed(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// The error for a frame that must not come now.
pub(super) fn unexpected(during: &'static str, frame: &Frame) -> GuestError {
    let what = format!("{:?} frame of operation {} with {} bytes", frame.kind, frame.id, frame.body.len());
    GuestError::Unexpected { during, what }
}

/// The error for a reply to something else.
pub(super) fn wrong_reply(during: &'static str, reply: &Reply) -> GuestError {
    // Not its contents: they are the guest's, of any size and with any characters.
    let what = match reply {
        Reply::Pong => "pong",
        Reply::Configured => "configured",
        Reply::Exited(_) => "exited",
        Reply::NotStarted(_) => "not_started",
        Reply::Commands { .. } => "commands",
        Reply::Forgotten => "forgotten",
        Reply::Processes(_) => "processes",
        Reply::FileInfo(_) => "file_info",
        Reply::FileList(_) => "file_list",
        Reply::FileSent { .. } => "file_sent",
        Reply::FileRemoved => "file_removed",
        Reply::ArchiveSent(_) => "archive_sent",
        Reply::ArchiveUnpacked(_) => "archive_unpacked",
        Reply::Session(_) => "session",
        Reply::Ran(_) => "ran",
        Reply::Interrupted { .. } => "interrupted",
        Reply::Sessions { .. } => "sessions",
        Reply::SessionClosed => "session_closed",
        Reply::Stats(_) => "stats",
        Reply::ShuttingDown => "shutting_down",
        Reply::Error(_) => "error",
    };
    GuestError::Unexpected { during, what: format!("the reply {what}") }
}
