//! A command's stream, seen from the client: frames of the command and notices.
//!
//! What becomes a stream by running code can carry more code when that is over, one after the other, each with
//! the next number. So a client keeps some that are idle, and has no connection to make for the next code.

use super::frames::Frames;
use super::types::{EvaluateRequest, Notice};
use super::wire::{COMMAND, NOTICE};
use bytes::{Buf as _, Bytes, BytesMut};
use firn_protocol::{
    Codec, Event, Exited, Frame, FrameError, Input, Kind, NotStarted, Ran, Reply, RequestId, STDIN_WINDOW,
    Stdin,
};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio_util::codec::Encoder as _;

/// How much may wait to be sent. The daemon reads at all times, so more means that it does not.
const OUTBOX: usize = 1 << 20;

/// How many idle connections are kept.
const MOST_IDLE: usize = 8;

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

/// A connection that carries one command after the other.
#[derive(Debug)]
struct Line {
    frames: Frames,
    write: OwnedWriteHalf,
    outbox: BytesMut,
    /// The command that it carries now.
    operation: RequestId,
}

/// Connections that carried code, which is over.
#[derive(Clone, Debug, Default)]
pub(super) struct Idle(Arc<Mutex<Vec<Line>>>);

/// A command on the daemon's side, with its streams. Dropping it lets the command go: it is ended,
/// unless it is detached.
#[derive(Debug)]
pub(crate) struct CommandStream {
    /// None: the command is over.
    line: Option<Line>,
    /// Where its connection goes then, if that can carry more.
    idle: Option<Idle>,
    /// How many bytes of stdin may be sent. None: it has ended, at one end or the other.
    credit: Option<u64>,
}

impl Line {
    /// What is left of the connection after the answer that made it one; `early` came with it.
    fn new(stream: UnixStream, early: &[u8]) -> Line {
        let (read, write) = stream.into_split();
        Line { frames: Frames::new(read, early), write, outbox: BytesMut::new(), operation: COMMAND }
    }

    async fn frame(&mut self) -> Result<Frame, StreamError> {
        loop {
            tokio::select! {
                frame = self.frames.next() => return match frame {
                    Ok(Some(frame)) => Ok(frame),
                    Ok(None) => Err(StreamError::Ended),
                    Err(FrameError::Io(error)) if gone(&error) => Err(StreamError::Ended),
                    Err(error) => Err(error.into()),
                },
                written = self.write.write(&self.outbox), if !self.outbox.is_empty() => match written {
                    Ok(count) => self.outbox.advance(count),
                    // What it said before is still to be read, and then its end.
                    Err(error) if gone(&error) => self.outbox.clear(),
                    Err(error) => return Err(FrameError::from(error).into()),
                }
            }
        }
    }

    fn post(&mut self, frame: Frame) -> Result<(), StreamError> {
        if self.outbox.len() > OUTBOX {
            return Err(StreamError::Deaf);
        }
        Ok(Codec.encode(frame, &mut self.outbox)?)
    }

    /// Whether nothing is under way in either direction, and the daemon is there.
    fn is_idle(&self) -> bool {
        self.outbox.is_empty() && self.frames.is_quiet()
    }
}

impl Idle {
    fn keep(&self, line: Line) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if line.is_idle() && idle.len() < MOST_IDLE {
            idle.push(line);
        }
    }

    /// Has one of them carry this code. None: there is none, or the code is too much.
    pub(super) fn evaluate(&self, request: &EvaluateRequest) -> Option<CommandStream> {
        let Frame { kind, body, .. } = Frame::json(Kind::Request, COMMAND, request).ok()?;
        loop {
            let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if let Some(next) = line.operation.checked_add(1).filter(|_| line.is_idle()) {
                line.operation = next;
                line.post(Frame::new(kind, next, body)).ok()?;
                let credit = Credit::of(request.stdin).0;
                return Some(CommandStream { line: Some(line), idle: Some(self.clone()), credit });
            }
        }
    }
}

impl CommandStream {
    /// What is left of the connection after the answer that made it one; `early` came with it.
    pub(super) fn new(stream: UnixStream, early: &[u8], credit: Credit) -> CommandStream {
        CommandStream { line: Some(Line::new(stream, early)), idle: None, credit: credit.0 }
    }

    /// The same, whose connection can carry more code afterwards.
    pub(super) fn that_returns(self, idle: &Idle) -> CommandStream {
        CommandStream { idle: Some(idle.clone()), ..self }
    }

    /// What happens next. Sends what waits meanwhile. May be dropped at any time without loss.
    pub(crate) async fn next(&mut self) -> Result<StreamEvent, StreamError> {
        let line = self.line.as_mut().ok_or(StreamError::Ended)?;
        let frame = line.frame().await?;
        if frame.id == NOTICE && frame.kind == Kind::Event {
            let notice = frame.message()?;
            if matches!(notice, Notice::Ended { .. } | Notice::Failed { .. }) {
                self.over();
            }
            return Ok(StreamEvent::Notice(notice));
        }
        let unexpected = Err(StreamError::Unexpected { kind: frame.kind, id: frame.id });
        if frame.id != line.operation {
            return unexpected;
        }
        match frame.kind {
            Kind::Event => Ok(self.event(&frame.message()?)),
            Kind::Stdout => Ok(StreamEvent::Stdout(frame.body)),
            Kind::Stderr => Ok(StreamEvent::Stderr(frame.body)),
            Kind::Reply => match frame.message()? {
                Reply::Exited(exited) => Ok(StreamEvent::Exited(exited)),
                Reply::Ran(ran) => Ok(StreamEvent::Ran(ran)),
                Reply::NotStarted(reason) => Ok(StreamEvent::NotStarted(reason)),
                _ => unexpected,
            },
            Kind::Hello | Kind::Request | Kind::Input | Kind::Stdin | Kind::StdinEnd => unexpected,
        }
    }

    /// The daemon has said its last words.
    fn over(&mut self) {
        if let (Some(line), Some(idle)) = (self.line.take(), self.idle.take()) {
            idle.keep(line);
        }
        self.credit = None;
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

    /// How many bytes of stdin can be sent now. None: stdin has ended.
    pub(crate) fn stdin_room(&self) -> Option<usize> {
        self.credit.map(|credit| usize::try_from(credit).unwrap_or(usize::MAX))
    }

    /// Sends some stdin: no more than there is room for.
    pub(crate) fn send_stdin(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        let Some(credit) = &mut self.credit else { return Ok(()) };
        *credit = credit.saturating_sub(bytes.len() as u64);
        self.post(|operation| Ok(Frame::new(Kind::Stdin, operation, bytes)))
    }

    /// Says that stdin has ended.
    pub(crate) fn end_stdin(&mut self) -> Result<(), StreamError> {
        match self.credit.take() {
            Some(_) => self.post(|operation| Ok(Frame::new(Kind::StdinEnd, operation, Bytes::new()))),
            None => Ok(()),
        }
    }

    /// Sends a signal, a new terminal size, or the wish that it ends.
    pub(crate) fn send(&mut self, input: &Input) -> Result<(), StreamError> {
        self.post(|operation| Frame::json(Kind::Input, operation, input))
    }

    fn post(
        &mut self,
        frame: impl FnOnce(RequestId) -> Result<Frame, FrameError>,
    ) -> Result<(), StreamError> {
        match &mut self.line {
            Some(line) => line.post(frame(line.operation)?),
            // Nobody is there to hear it.
            None => Ok(()),
        }
    }

    /// Gives the command up, and waits until the daemon has ended what ends with it.
    pub(crate) async fn abandon(self) {
        let Some(mut line) = self.line else { return };
        let waiting = async {
            // The end of what we say is how the daemon learns that nobody is there any more.
            let _ = line.write.shutdown().await;
            line.outbox.clear();
            while line.frame().await.is_ok() {}
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
