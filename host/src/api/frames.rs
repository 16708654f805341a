//! Frames of a connection that was one of HTTP before.

use crate::sys::socket;
use bytes::BytesMut;
use firn_protocol::{Codec, Frame, FrameError};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::OwnedReadHalf;
use tokio_util::codec::Decoder as _;

/// How much is read at once to begin with, in bytes. The buffer grows with what comes.
const READ_AHEAD: usize = 16 * 1024;

/// The end of a connection that is read.
#[derive(Debug)]
pub(super) struct Frames {
    read: OwnedReadHalf,
    buffer: BytesMut,
}

impl Frames {
    /// What is left of the connection, of which `early` was read already.
    pub(super) fn new(read: OwnedReadHalf, early: &[u8]) -> Frames {
        let mut buffer = BytesMut::with_capacity(READ_AHEAD.max(early.len()));
        buffer.extend_from_slice(early);
        Frames { read, buffer }
    }

    /// The next one. None: there will be none. May be dropped at any time without loss.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = Codec.decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            if self.buffer.capacity() == self.buffer.len() {
                self.buffer.reserve(READ_AHEAD);
            }
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return Codec.decode_eof(&mut self.buffer);
            }
        }
    }

    /// Whether whoever is at the other end is there, and has said nothing that was not read.
    pub(super) fn is_quiet(&self) -> bool {
        self.buffer.is_empty() && socket::is_quiet(self.read.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_protocol::Kind;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;
    use tokio_util::codec::Encoder as _;

    #[tokio::test]
    async fn what_came_early_is_not_waited_for() {
        let frame = |id| Frame::new(Kind::Stdout, id, vec![b'x'; 100]);
        let mut wire = BytesMut::new();
        for id in 1..=3 {
            Codec.encode(frame(id), &mut wire).unwrap();
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let early = wire.split_to(150);
        let mut frames = Frames::new(ours.into_split().0, &early);
        assert_eq!(frames.next().await.unwrap(), Some(frame(1)));
        assert!(!frames.is_quiet());
        theirs.write_all(&wire).await.unwrap();
        for id in 2..=3 {
            assert_eq!(frames.next().await.unwrap(), Some(frame(id)));
        }
        assert!(frames.is_quiet());
        theirs.write_all(b"\0").await.unwrap();
        drop(theirs);
        assert!(matches!(frames.next().await, Err(FrameError::Truncated)));
    }
}
