//! The stream to a client: frames and notices out, frames in. It carries one operation after the other.

use crate::api::frames::Frames;
use crate::api::service::Service;
use crate::api::types::Notice;
use crate::api::wire::{COMMAND, NOTICE};
use bytes::{Buf as _, Bytes, BytesMut};
use firn_protocol::{Codec, Frame, FrameError, Kind, RequestId};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio_util::codec::Encoder as _;

/// How many frames a client may send before its command is there: stdin is bounded by credit, but not the
/// number of frames that it comes in.
const MOST_EARLY: usize = 1024;

/// How long a client may take to read the last words, once its sandbox is gone and the daemon ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The client is not there any more, or does what it must not.
#[derive(Debug, thiserror::Error)]
pub(super) enum Gone {
    #[error("the client is gone")]
    Left,
    #[error("the connection to the client failed")]
    Failed(#[source] FrameError),
    #[error("the client sent a {0:?} frame that must not come")]
    Unexpected(Kind),
    #[error("the client sent {0} bytes of stdin more than it was granted")]
    TooMuch(u64),
    #[error("the daemon ends")]
    Forced,
}

/// What a turn on a line was.
pub(super) enum Turn {
    Frame(Frame),
    Written,
}

/// The stream to a client.
#[derive(Debug)]
pub(super) struct Line {
    frames: Frames,
    write: OwnedWriteHalf,
    outbox: BytesMut,
    /// What goes out before whatever comes next.
    held: BytesMut,
    early: VecDeque<Frame>,
    /// What all frames but notices belong to.
    operation: RequestId,
}

impl Line {
    /// What is left of the connection after the answer that made it one.
    pub(super) async fn open(upgrade: OnUpgrade) -> Result<Line, Gone> {
        let failed = |error: io::Error| Gone::Failed(error.into());
        let upgraded = upgrade.await.map_err(|error| failed(io::Error::other(error)))?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_impossible| failed(io::Error::other("not the connection that was accepted")))?;
        let (read, write) = parts.io.into_inner().into_split();
        let frames = Frames::new(read, &parts.read_buf);
        let (outbox, held, early) = (BytesMut::new(), BytesMut::new(), VecDeque::new());
        Ok(Line { frames, write, outbox, held, early, operation: COMMAND })
    }

    fn post(&mut self, frame: Frame) {
        self.outbox.unsplit(self.held.split());
        // What the agent sent as a frame fits into one.
        if let Err(error) = Codec.encode(frame, &mut self.outbox) {
            tracing::error!(%error, "a frame cannot be passed on");
        }
    }

    fn message<T: Serialize>(&mut self, kind: Kind, id: RequestId, message: &T) {
        match Frame::json(kind, id, message) {
            Ok(frame) => self.post(frame),
            Err(error) => tracing::error!(%error, "a message cannot be passed on"),
        }
    }

    /// Puts some output of the operation into the outbox.
    pub(super) fn pass(&mut self, kind: Kind, bytes: Bytes) {
        self.post(Frame::new(kind, self.operation, bytes));
    }

    /// Puts a message about the operation into the outbox.
    pub(super) fn say<T: Serialize>(&mut self, kind: Kind, message: &T) {
        self.message(kind, self.operation, message);
    }

    /// Puts a notice into the outbox.
    pub(super) fn notice(&mut self, notice: &Notice) {
        self.message(Kind::Event, NOTICE, notice);
    }

    /// Puts a notice before whatever is said next.
    pub(super) fn notice_with_next(&mut self, notice: &Notice) {
        let waiting = self.outbox.split();
        self.notice(notice);
        self.held = std::mem::replace(&mut self.outbox, waiting);
    }

    /// Whether a frame is of the operation that the line carries.
    pub(super) fn carries(&self, frame: &Frame) -> bool {
        frame.id == self.operation
    }

    /// Whether a frame is for an operation that is over: it and the end have crossed.
    pub(super) fn is_late(&self, frame: &Frame) -> bool {
        frame.id < self.operation && is_input(frame.kind)
    }

    /// What the client asks for after what it has asked for. None: nothing.
    pub(super) async fn next_request(&mut self, service: &Service) -> Result<Option<Frame>, Gone> {
        loop {
            let turn = tokio::select! {
                turn = self.turn() => turn?,
                () = service.end().drain.cancelled() => return Ok(None),
            };
            match turn {
                Turn::Written => {}
                Turn::Frame(frame) if frame.kind == Kind::Request && frame.id > self.operation => {
                    self.operation = frame.id;
                    return Ok(Some(frame));
                }
                Turn::Frame(frame) if frame.id <= self.operation && is_input(frame.kind) => {}
                Turn::Frame(frame) => return Err(Gone::Unexpected(frame.kind)),
            }
        }
    }

    /// The client's next frame, or some progress in sending. May be dropped at any time without loss.
    pub(super) async fn turn(&mut self) -> Result<Turn, Gone> {
        if let Some(frame) = self.early.pop_front() {
            return Ok(Turn::Frame(frame));
        }
        self.fresh_turn().await
    }

    async fn fresh_turn(&mut self) -> Result<Turn, Gone> {
        tokio::select! {
            written = self.write.write(&self.outbox), if !self.outbox.is_empty() => match written {
                Ok(count) => {
                    self.outbox.advance(count);
                    Ok(Turn::Written)
                }
                Err(error) => Err(Gone::Failed(error.into())),
            },
            frame = self.frames.next() => match frame {
                Ok(Some(frame)) => Ok(Turn::Frame(frame)),
                Ok(None) => Err(Gone::Left),
                Err(error) => Err(Gone::Failed(error)),
            },
        }
    }

    /// Sends what waits, and keeps what comes, until the client is gone.
    pub(super) async fn until_gone(&mut self) -> Gone {
        loop {
            match self.fresh_turn().await {
                Ok(Turn::Written) => {}
                Ok(Turn::Frame(frame)) if self.early.len() < MOST_EARLY => self.early.push_back(frame),
                Ok(Turn::Frame(frame)) => return Gone::Unexpected(frame.kind),
                Err(gone) => return gone,
            }
        }
    }

    /// Sends what waits until the client is gone. What it still says is of no interest.
    pub(super) async fn until_gone_unheard(&mut self) -> Gone {
        loop {
            if let Err(gone) = self.fresh_turn().await {
                return gone;
            }
        }
    }

    /// Sends all that waits. What the client still says is of no interest.
    async fn flush(&mut self) -> Result<(), Gone> {
        while !self.outbox.is_empty() {
            self.fresh_turn().await?;
        }
        Ok(())
    }

    /// Does some work while the client is listened to. None: the client is gone, and the work was given up.
    pub(super) async fn during<T>(
        &mut self,
        service: &Service,
        work: impl Future<Output = T>,
    ) -> Result<T, Gone> {
        tokio::select! {
            done = work => Ok(done),
            gone = self.until_gone() => Err(gone),
            () = service.end().force.cancelled() => Err(Gone::Forced),
        }
    }

    /// How much waits to be sent, in bytes.
    pub(super) fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Sends the rest and ends the stream.
    pub(super) async fn close(mut self, service: &Service) {
        let flushed = tokio::select! {
            flushed = self.flush() => flushed,
            () = service.end().force.cancelled() => Err(Gone::Forced),
            () = async {
                service.end().drain.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
            } => Err(Gone::Forced),
        };
        if let Err(gone) = flushed {
            tracing::debug!(%gone, "the client does not hear the end");
        }
        let _ = self.write.shutdown().await;
    }
}

fn is_input(kind: Kind) -> bool {
    matches!(kind, Kind::Stdin | Kind::StdinEnd | Kind::Input)
}
