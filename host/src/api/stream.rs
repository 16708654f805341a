//! A command's stream, seen from the client: frames of the command (id 1) and notices (id 0).

use super::types::Notice;
use super::wire::{COMMAND, NOTICE};
use bytes::{Buf as _, Bytes, BytesMut};
use firn_protocol::{
    Codec, Event, Exited, Frame, FrameError, Input, Kind, NotStarted, Ran, Reply, RequestId, STDIN_WINDOW,
    Stdin,
};
use futures::StreamExt as _;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{Encoder as _, FramedRead};

/// How much may wait to be sent. The daemon reads at all times, so more means that it does not.
const OUTBOX: usize = 1 << 20;

/// How much is read at once to begin with, in bytes. The buffer grows with what comes.
const READ_AHEAD: usize = 64 * 1024;

/// How long a daemon may take to end what was given up.
const ABANDON_PATIENCE: Duration = Duration::from_secs(20);

/// A stream that went wrong. It is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The daemon is gone.
    #[error("the daemon ended the connection")]
    Ended,
    /// The connection failed, or carried what is no frame.
    #[error("the connection to the daemon failed")]
    Frame(#[from] FrameError),
    /// A frame that must not come.
    #[error("the daemon sent a {kind:?} frame of operation {id}, which must not come")]
    Unexpected {
        /// What it is.
        kind: Kind,
        /// To what it belongs.
        id: RequestId,
    },
    /// The daemon does not read what it is sent.
    #[error("the daemon does not read what it is sent")]
    Deaf,
}

/// What happens on a stream.
#[derive(Debug)]
pub(crate) enum StreamEvent {
    /// The daemon says something. `Ended`, `Detached` and `Failed` are the last event.
    Notice(Notice),
    /// The program runs, or ran: output follows.
    Started,
    /// So many bytes of its output are left out here.
    Skipped(u64),
    /// Bytes from stdout or the terminal.
    Stdout(Bytes),
    /// Bytes from stderr.
    Stderr(Bytes),
    /// There may be more room for stdin: see [`CommandStream::stdin_room`].
    StdinRoom,
    /// From here on output is dropped. The end says because of which limit.
    Cut,
    /// The run of a session is over. A notice follows.
    Ran(Box<Ran>),
    /// The command is over. A notice follows.
    Exited(Box<Exited>),
    /// It never ran. A notice follows.
    NotStarted(NotStarted),
}

/// A command on the daemon's side, with its streams. Dropping it lets the command go: it is ended,
/// unless it is detached.
#[derive(Debug)]
pub(crate) struct CommandStream {
    read: FramedRead<OwnedReadHalf, Codec>,
    write: OwnedWriteHalf,
    outbox: BytesMut,
    /// How many bytes of stdin may be sent. None: it has ended, at one end or the other.
    credit: Option<u64>,
}

impl CommandStream {
    /// What is left of the connection after the answer that made it one; `early` came with it.
    pub(super) fn new(stream: UnixStream, early: &[u8], credit: Credit) -> CommandStream {
        let (read, write) = stream.into_split();
        let mut read = FramedRead::with_capacity(read, Codec, READ_AHEAD);
        read.read_buffer_mut().extend_from_slice(early);
        CommandStream { read, write, outbox: BytesMut::new(), credit: credit.0 }
    }

    /// What happens next. Sends what waits meanwhile. May be dropped at any time without loss.
    pub(crate) async fn next(&mut self) -> Result<StreamEvent, StreamError> {
        let frame = self.frame().await?;
        match (frame.kind, frame.id) {
            (Kind::Event, NOTICE) => Ok(StreamEvent::Notice(frame.message()?)),
            (Kind::Event, COMMAND) => Ok(self.event(&frame.message()?)),
            (Kind::Stdout, COMMAND) => Ok(StreamEvent::Stdout(frame.body)),
            (Kind::Stderr, COMMAND) => Ok(StreamEvent::Stderr(frame.body)),
            (Kind::Reply, COMMAND) => match frame.message()? {
                Reply::Exited(exited) => Ok(StreamEvent::Exited(exited)),
                Reply::Ran(ran) => Ok(StreamEvent::Ran(ran)),
                Reply::NotStarted(reason) => Ok(StreamEvent::NotStarted(reason)),
                _ => Err(StreamError::Unexpected { kind: frame.kind, id: frame.id }),
            },
            (kind, id) => Err(StreamError::Unexpected { kind, id }),
        }
    }

    fn event(&mut self, event: &Event) -> StreamEvent {
        match event {
            Event::Started { .. } | Event::Attached { .. } | Event::RunStarted { .. } => {
                return StreamEvent::Started;
            }
            Event::OutputCut { .. } => return StreamEvent::Cut,
            Event::Skipped { bytes } => return StreamEvent::Skipped(*bytes),
            Event::StdinCredit { bytes } => {
                if let Some(credit) = &mut self.credit {
                    *credit = credit.saturating_add(u64::from(*bytes));
                }
            }
            Event::StdinClosed => self.credit = None,
        }
        StreamEvent::StdinRoom
    }

    async fn frame(&mut self) -> Result<Frame, StreamError> {
        loop {
            tokio::select! {
                frame = self.read.next() => return match frame {
                    Some(Ok(frame)) => Ok(frame),
                    Some(Err(FrameError::Io(error))) if gone(&error) => Err(StreamError::Ended),
                    Some(Err(error)) => Err(error.into()),
                    None => Err(StreamError::Ended),
                },
                written = self.write.write(&self.outbox), if !self.outbox.is_empty() => match written {
                    Ok(count) => self.outbox.advance(count),
                    // What it said before is still to be read, and then its end.
                    Err(error) if gone(&error) => {
                        self.outbox.clear();
                        self.credit = None;
                    }
                    Err(error) => return Err(FrameError::from(error).into()),
                }
            }
        }
    }

    /// How many bytes of stdin can be sent now. None: stdin has ended.
    pub(crate) fn stdin_room(&self) -> Option<usize> {
        self.credit.map(|credit| usize::try_from(credit).unwrap_or(usize::MAX))
    }

    /// Sends some stdin: no more than there is room for.
    pub(crate) fn send_stdin(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        let Some(credit) = &mut self.credit else { return Ok(()) };
        *credit = credit.saturating_sub(bytes.len() as u64);
        self.post(Frame::new(Kind::Stdin, COMMAND, bytes))
    }

    /// Says that stdin has ended.
    pub(crate) fn end_stdin(&mut self) -> Result<(), StreamError> {
        match self.credit.take() {
            Some(_) => self.post(Frame::new(Kind::StdinEnd, COMMAND, Bytes::new())),
            None => Ok(()),
        }
    }

    /// Sends a signal, a new terminal size, or the wish that it ends.
    pub(crate) fn send(&mut self, input: &Input) -> Result<(), StreamError> {
        self.post(Frame::json(Kind::Input, COMMAND, input)?)
    }

    fn post(&mut self, frame: Frame) -> Result<(), StreamError> {
        if self.outbox.len() > OUTBOX {
            return Err(StreamError::Deaf);
        }
        Ok(Codec.encode(frame, &mut self.outbox)?)
    }

    /// Gives the command up, and waits until the daemon has ended what ends with it.
    pub(crate) async fn abandon(mut self) {
        let waiting = async {
            // The end of what we say is how the daemon learns that nobody is there any more.
            let _ = self.write.shutdown().await;
            self.outbox.clear();
            while self.frame().await.is_ok() {}
        };
        let _ = tokio::time::timeout(ABANDON_PATIENCE, waiting).await;
    }
}

/// How much stdin may be sent before the daemon has granted any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credit(Option<u64>);

impl Credit {
    /// None: the command was not started by us.
    pub(super) const NOT_YET: Credit = Credit(Some(0));

    /// That of a command that is started.
    pub(super) fn of(stdin: Stdin) -> Credit {
        match stdin {
            Stdin::Null => Credit(None),
            Stdin::Stream => Credit(Some(u64::from(STDIN_WINDOW))),
        }
    }
}

fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}
