//! Frames on their way to the host.
//!
//! One buffer holds whole frames. Output of a command is read straight into it, behind room for
//! the header, so that a byte is copied once on its way from pipe to socket, and small frames that
//! are made together leave together.

use firn_protocol::{Frame, FrameError, Kind, RequestId};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Length, kind, request id: see `firn_protocol`'s framing.
const HEADER: usize = 4 + 1 + 4;

/// What the length field counts of the header.
const COUNTED: u32 = 1 + 4;

/// See the module. `bytes[start..end]` waits to be sent.
#[derive(Default)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Outgoing {
    /// How many bytes wait.
    pub(crate) fn waiting(&self) -> usize {
        self.end - self.start
    }

    /// Gives the memory back if it is more than an idle connection should hold.
    pub(crate) fn shrink(&mut self) {
        const IDLE: usize = 32 * 1024;
        if self.waiting() == 0 && self.bytes.len() > IDLE {
            *self = Outgoing::default();
        }
    }

    fn reserve(&mut self, room: usize) {
        if self.end + room <= self.bytes.len() {
            return;
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end + room > self.bytes.len() {
            self.bytes.resize(self.end + room, 0);
        }
    }

    fn put_header(&mut self, kind: Kind, id: RequestId, body: usize) {
        // No body is longer than MAX_BODY, far below 4 GiB.
        let length = COUNTED + body as u32;
        let header = &mut self.bytes[self.end..self.end + HEADER];
        header[..4].copy_from_slice(&length.to_be_bytes());
        header[4] = kind as u8;
        header[5..].copy_from_slice(&id.to_be_bytes());
    }

    /// Adds a message.
    pub(crate) fn push<T: serde::Serialize>(
        &mut self,
        kind: Kind,
        id: RequestId,
        message: &T,
    ) -> Result<(), FrameError> {
        let frame = Frame::json(kind, id, message)?;
        if frame.body.len() > kind.max_body() {
            return Err(FrameError::TooLong { kind, body: frame.body.len() });
        }
        self.reserve(HEADER + frame.body.len());
        self.put_header(kind, id, frame.body.len());
        self.end += HEADER;
        self.bytes[self.end..self.end + frame.body.len()].copy_from_slice(&frame.body);
        self.end += frame.body.len();
        Ok(())
    }

    /// Adds a frame that came from elsewhere.
    pub(crate) fn pass(&mut self, frame: &Frame) {
        self.room(frame.body.len()).copy_from_slice(&frame.body);
        self.put_header(frame.kind, frame.id, frame.body.len());
        self.end += HEADER + frame.body.len();
    }

    /// Room for the body of a raw frame, to be followed by [`Outgoing::commit`].
    pub(crate) fn room(&mut self, most: usize) -> &mut [u8] {
        self.reserve(HEADER + most);
        &mut self.bytes[self.end + HEADER..self.end + HEADER + most]
    }

    /// Makes the first `body` bytes of what [`Outgoing::room`] gave a frame.
    pub(crate) fn commit(&mut self, kind: Kind, id: RequestId, body: usize) {
        if body > 0 {
            self.put_header(kind, id, body);
            self.end += HEADER + body;
        }
    }

    /// Writes all of it.
    pub(crate) fn poll_flush(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin + ?Sized),
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.start < self.end {
            let rest = &self.bytes[self.start..self.end];
            let sent = ready!(Pin::new(&mut *stream).poll_write(cx, rest))?;
            if sent == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.start += sent;
        }
        self.start = 0;
        self.end = 0;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use firn_protocol::{Codec, Event};
    use tokio_util::codec::Decoder as _;

    #[test]
    fn what_is_written_here_is_what_the_codec_reads() {
        let mut outgoing = Outgoing::default();
        let event = Event::Started { pid: 7 };
        outgoing.push(Kind::Event, 3, &event).unwrap();
        outgoing.room(100)[..5].copy_from_slice(b"hello");
        outgoing.commit(Kind::Stdout, 3, 5);
        outgoing.room(10);
        outgoing.commit(Kind::Stderr, 3, 0);
        let mut wire = BytesMut::from(&outgoing.bytes[outgoing.start..outgoing.end]);
        let first = Codec.decode(&mut wire).unwrap().unwrap();
        assert_eq!((first.kind, first.id, first.message::<Event>().unwrap()), (Kind::Event, 3, event));
        assert_eq!(Codec.decode(&mut wire).unwrap(), Some(Frame::new(Kind::Stdout, 3, &b"hello"[..])));
        assert!(wire.is_empty());
    }

    #[test]
    fn a_buffer_that_never_runs_empty_does_not_grow() {
        let mut outgoing = Outgoing::default();
        for _ in 0..1000 {
            outgoing.room(1000);
            outgoing.commit(Kind::Stdout, 1, 1000);
            outgoing.start = outgoing.end - 10;
        }
        assert!(outgoing.bytes.len() < 4000, "{}", outgoing.bytes.len());
    }
}
