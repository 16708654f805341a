//! Bytes as a hostile peer may send them, in pieces as a socket may deliver them.
//!
//! The first byte is the size of the pieces; the rest is the stream. Checked besides panics and
//! sanitizer findings: a frame never exceeds the limit of its kind, the buffer never grows beyond
//! one frame, pieces make no difference, and what was decoded encodes to the bytes it came from.

#![no_main]

use bytes::{Bytes, BytesMut};
use firn_protocol::{Codec, Event, Frame, FrameError, Hello, Input, Kind, MAX_BODY, Reply, Request};
use libfuzzer_sys::fuzz_target;
use tokio_util::codec::{Decoder as _, Encoder as _};

/// The frames of `pieces`, and whether the stream was refused.
fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, bool) {
    let (mut codec, mut buffer, mut frames) = (Codec, BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
        assert!(buffer.capacity() <= 2 * MAX_BODY, "the buffer grew to {}", buffer.capacity());
    }
    match codec.decode_eof(&mut buffer) {
        Ok(None) => (frames, false),
        Ok(Some(_)) => panic!("a frame was held back until the end"),
        Err(FrameError::Truncated) => (frames, true),
        Err(error) => panic!("refused only at the end: {error}"),
    }
}

/// Reads the message a frame says it holds, as the receiver would.
fn read(frame: &Frame) {
    macro_rules! roundtrip {
        ($message:ty) => {
            if let Ok(message) = frame.message::<$message>() {
                let again = Frame::json(frame.kind, frame.id, &message).expect("it can be written");
                let reread = again.message::<$message>().expect("what we write we can read");
                assert_eq!(message, reread);
            }
        };
    }
    match frame.kind {
        Kind::Hello => roundtrip!(Hello),
        Kind::Request => roundtrip!(Request),
        Kind::Input => roundtrip!(Input),
        Kind::Event => roundtrip!(Event),
        Kind::Reply => roundtrip!(Reply),
        Kind::Stdin | Kind::StdinEnd | Kind::Stdout | Kind::Stderr => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&size, stream)) = data.split_first() else { return };
    let (frames, refused) = decode(stream.chunks(usize::from(size).max(1)));
    assert_eq!((&frames, refused), (&decode(std::iter::once(stream)).0, decode(std::iter::once(stream)).1));

    let mut encoded = BytesMut::new();
    for frame in &frames {
        assert!(frame.body.len() <= frame.kind.max_body());
        read(frame);
        Codec.encode(frame.clone(), &mut encoded).expect("what was decoded can be encoded");
    }
    assert!(Bytes::copy_from_slice(stream).starts_with(&encoded), "other bytes than were received");
    assert!(refused || encoded.len() == stream.len(), "bytes vanished");
});
