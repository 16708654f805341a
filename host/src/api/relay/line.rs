//! The stream to a client: frames and notices out, frames in.

use crate::api::service::Service;
use crate::api::types::Notice;
use crate::api::wire::NOTICE;
use bytes::{Buf as _, BytesMut};
use firn_protocol::{Codec, Frame, FrameError, Kind};
use futures::StreamExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{Encoder as _, FramedRead};

/// How much is read at once to begin with, in bytes.
const READ_AHEAD: usize = 16 * 1024;

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
    read: FramedRead<OwnedReadHalf, Codec>,
    write: OwnedWriteHalf,
    outbox: BytesMut,
    early: VecDeque<Frame>,
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
        let mut read = FramedRead::with_capacity(read, Codec, READ_AHEAD);
        read.read_buffer_mut().extend_from_slice(&parts.read_buf);
        Ok(Line { read, write, outbox: BytesMut::new(), early: VecDeque::new() })
    }

    /// Puts a frame into the outbox.
    pub(super) fn post(&mut self, frame: Frame) {
        // What the agent sent as a frame fits into one.
        if let Err(error) = Codec.encode(frame, &mut self.outbox) {
            tracing::error!(%error, "a frame cannot be passed on");
        }
    }

    pub(super) fn say<T: Serialize>(&mut self, kind: Kind, id: firn_protocol::RequestId, message: &T) {
        match Frame::json(kind, id, message) {
            Ok(frame) => self.post(frame),
            Err(error) => tracing::error!(%error, "a message cannot be passed on"),
        }
    }

    pub(super) fn notice(&mut self, notice: &Notice) {
        self.say(Kind::Event, NOTICE, notice);
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
            frame = self.read.next() => match frame {
                Some(Ok(frame)) => Ok(Turn::Frame(frame)),
                Some(Err(error)) => Err(Gone::Failed(error)),
                None => Err(Gone::Left),
            },
            written = self.write.write(&self.outbox), if !self.outbox.is_empty() => match written {
                Ok(count) => {
                    self.outbox.advance(count);
                    Ok(Turn::Written)
                }
                Err(error) => Err(Gone::Failed(error.into())),
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
