//! Framing: bytes to frames and back.
//!
//! ```text
//!   0        4      5            9
//!   ┌────────┬──────┬────────────┬───────────────┐
//!   │ u32 BE │  u8  │   u32 BE   │ body          │
//!   │ length │ kind │ request id │ length-5 bytes│
//!   └────────┴──────┴────────────┴───────────────┘
//! ```
//!
//! `length` counts kind, request id and body. Bodies of [`Kind::Hello`], [`Kind::Request`],
//! [`Kind::Input`], [`Kind::Event`] and [`Kind::Reply`] are JSON; those of [`Kind::Stdin`],
//! [`Kind::Stdout`] and [`Kind::Stderr`] are raw bytes; [`Kind::StdinEnd`] has none. The request
//! id is in the header rather than in each body so that a frame that belongs to another operation
//! is recognised in one place, raw or JSON. It is 0 in a `Hello`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

/// Names one operation on a connection. Chosen by the host, echoed in every frame of the
/// operation, never reused on the connection.
pub type RequestId = u32;

/// The largest body of a JSON frame, in bytes. An argument vector and environment of the kernel's
/// own limit (2 MiB together on Linux, `execve(2)`) fit even when escaping doubles them.
pub const MAX_BODY: usize = 4 * 1024 * 1024;

/// The largest body of a raw frame, in bytes.
pub const MAX_CHUNK: usize = 256 * 1024;

const LENGTH: usize = 4;
const HEADER: usize = 1 + 4;

/// What a frame is, and so what its body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// [`crate::Hello`], once in each direction, first.
    Hello = 0x01,
    /// [`crate::Request`], host to agent.
    Request = 0x10,
    /// [`crate::Input`], host to agent, during an exec.
    Input = 0x11,
    /// Raw bytes for the command's stdin, host to agent.
    Stdin = 0x12,
    /// The command's stdin has ended, host to agent.
    StdinEnd = 0x13,
    /// [`crate::Event`], agent to host.
    Event = 0x20,
    /// Raw bytes of the command's stdout (or its terminal), agent to host.
    Stdout = 0x21,
    /// Raw bytes of the command's stderr, agent to host.
    Stderr = 0x22,
    /// [`crate::Reply`], agent to host: the operation is over.
    Reply = 0x23,
}

impl Kind {
    /// All kinds, in the order of their bytes.
    pub const ALL: [Kind; 9] = [
        Kind::Hello,
        Kind::Request,
        Kind::Input,
        Kind::Stdin,
        Kind::StdinEnd,
        Kind::Event,
        Kind::Stdout,
        Kind::Stderr,
        Kind::Reply,
    ];

    fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// The most bytes a body of this kind may have.
    pub const fn max_body(self) -> usize {
        match self {
            Kind::Stdin | Kind::Stdout | Kind::Stderr => MAX_CHUNK,
            Kind::StdinEnd => 0,
            Kind::Hello | Kind::Request | Kind::Input | Kind::Event | Kind::Reply => MAX_BODY,
        }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: Kind,
    /// The operation it belongs to.
    pub id: RequestId,
    /// JSON or raw bytes, as the kind says.
    pub body: Bytes,
}

/// Why bytes are not frames, or a frame is not bytes. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The length field is shorter than a header.
    #[error("frame of {length} bytes is shorter than its header")]
    TooShort {
        /// The length as it was sent.
        length: u32,
    },
    /// The body is longer than its kind allows. Nothing was allocated for it.
    #[error("{kind:?} frame of {body} bytes exceeds the limit of {} bytes", kind.max_body())]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// The length of the body as it was sent.
        body: usize,
    },
    /// The kind byte is none that this version knows.
    #[error("unknown frame kind {0:#04x}")]
    UnknownKind(u8),
    /// The stream ended inside a frame.
    #[error("the connection ended inside a frame")]
    Truncated,
    /// The JSON of a body is not the message its kind says.
    #[error("{kind:?} frame does not hold a valid message")]
    Body {
        /// The frame's kind.
        kind: Kind,
        /// What the JSON reader says.
        #[source]
        source: serde_json::Error,
    },
    /// The stream failed.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
}

impl Frame {
    /// A raw or empty frame.
    pub fn new(kind: Kind, id: RequestId, body: impl Into<Bytes>) -> Frame {
        Frame { kind, id, body: body.into() }
    }

    /// A frame that holds `message` as JSON.
    ///
    /// # Errors
    /// [`FrameError::Body`] when the message cannot be written as JSON.
    pub fn json<T: serde::Serialize>(kind: Kind, id: RequestId, message: &T) -> Result<Frame, FrameError> {
        let body = serde_json::to_vec(message).map_err(|source| FrameError::Body { kind, source })?;
        Ok(Frame::new(kind, id, body))
    }

    /// The JSON message in this frame.
    ///
    /// # Errors
    /// [`FrameError::Body`] when the body is not that message.
    pub fn message<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, FrameError> {
        serde_json::from_slice(&self.body).map_err(|source| FrameError::Body { kind: self.kind, source })
    }
}

/// Turns a byte stream into frames and back. Holds no state between frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Codec;

impl Decoder for Codec {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        // The kind is checked as soon as it is there, before a byte of the body is waited for, and
        // the buffer grows only within the limit of that kind.
        let Some((head, _)) = src.split_at_checked(LENGTH + 1) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let kind = Kind::from_byte(head[4]).ok_or(FrameError::UnknownKind(head[4]))?;
        let body = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_sub(HEADER))
            .ok_or(FrameError::TooShort { length })?;
        if body > kind.max_body() {
            return Err(FrameError::TooLong { kind, body });
        }
        let whole = LENGTH + HEADER + body;
        if src.len() < whole {
            src.reserve(whole - src.len());
            return Ok(None);
        }
        let mut frame = src.split_to(whole);
        frame.advance(LENGTH + 1);
        let id = frame.get_u32();
        Ok(Some(Frame { kind, id, body: frame.freeze() }))
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        match self.decode(src)? {
            Some(frame) => Ok(Some(frame)),
            None if src.is_empty() => Ok(None),
            None => Err(FrameError::Truncated),
        }
    }
}

impl Encoder<Frame> for Codec {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame, dst: &mut BytesMut) -> Result<(), FrameError> {
        let body = frame.body.len();
        if body > frame.kind.max_body() {
            return Err(FrameError::TooLong { kind: frame.kind, body });
        }
        dst.reserve(LENGTH + HEADER + body);
        // A body is at most MAX_BODY long, so the sum fits into 32 bits.
        dst.put_u32((HEADER + body) as u32);
        dst.put_u8(frame.kind as u8);
        dst.put_u32(frame.id);
        dst.put_slice(&frame.body);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        proptest::sample::select(Kind::ALL.to_vec())
    }

    fn frames() -> impl Strategy<Value = Frame> {
        (kinds(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..2048)).prop_map(
            |(kind, id, body)| {
                let body = if kind.max_body() == 0 { Vec::new() } else { body };
                Frame::new(kind, id, body)
            },
        )
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_however_it_arrives(
            sent in proptest::collection::vec(frames(), 1..8),
            cut in 1_usize..700,
        ) {
            let mut wire = BytesMut::new();
            for frame in &sent {
                Codec.encode(frame.clone(), &mut wire).unwrap();
            }
            let mut arrived = BytesMut::new();
            let mut received = Vec::new();
            for piece in wire.chunks(cut) {
                arrived.extend_from_slice(piece);
                while let Some(frame) = Codec.decode(&mut arrived).unwrap() {
                    received.push(frame);
                }
            }
            prop_assert_eq!(sent, received);
            prop_assert!(Codec.decode_eof(&mut arrived).unwrap().is_none());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_reserve_beyond_the_limit(
            wire in proptest::collection::vec(any::<u8>(), 0..4096),
        ) {
            let mut src = BytesMut::from(&wire[..]);
            while let Ok(Some(frame)) = Codec.decode_eof(&mut src) {
                prop_assert!(frame.body.len() <= frame.kind.max_body());
            }
            prop_assert!(src.capacity() <= MAX_BODY + wire.len() + LENGTH + HEADER);
        }

        #[test]
        fn a_stream_cut_anywhere_inside_a_frame_is_truncated(frame in frames(), at in any::<proptest::sample::Index>()) {
            let mut wire = BytesMut::new();
            Codec.encode(frame, &mut wire).unwrap();
            let kept = 1 + at.index(wire.len() - 1);
            prop_assume!(kept < wire.len());
            wire.truncate(kept);
            prop_assert!(matches!(Codec.decode_eof(&mut wire), Err(FrameError::Truncated)));
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_anything_is_allocated() {
        for kind in Kind::ALL {
            let mut src = BytesMut::new();
            src.put_u32(u32::MAX);
            src.put_u8(kind as u8);
            let before = src.capacity();
            assert!(matches!(Codec.decode(&mut src), Err(FrameError::TooLong { .. })));
            assert_eq!(src.capacity(), before);
        }
    }

    #[test]
    fn each_kind_is_refused_one_byte_above_its_limit() {
        for kind in Kind::ALL {
            let body = vec![0; kind.max_body() + 1];
            let refused = Codec.encode(Frame::new(kind, 1, body), &mut BytesMut::new());
            assert!(matches!(refused, Err(FrameError::TooLong { .. })));
            let mut wire = BytesMut::new();
            Codec.encode(Frame::new(kind, 1, vec![0; kind.max_body()]), &mut wire).unwrap();
            assert_eq!(Codec.decode(&mut wire).unwrap().unwrap().body.len(), kind.max_body());
        }
    }

    #[test]
    fn unknown_kinds_and_short_lengths_are_named() {
        let mut unknown = BytesMut::from(&[0, 0, 0, 5, 0xee, 0, 0, 0, 1][..]);
        assert!(matches!(Codec.decode(&mut unknown), Err(FrameError::UnknownKind(0xee))));
        let mut short = BytesMut::from(&[0, 0, 0, 4, 0x10, 0, 0, 0, 1][..]);
        assert!(matches!(Codec.decode(&mut short), Err(FrameError::TooShort { length: 4 })));
    }
}
