//! Ctrl-P Ctrl-Q: leaves an attached command alone, as Docker has it.

use bytes::{Bytes, BytesMut};

const FIRST: u8 = 0x10;
const SECOND: u8 = 0x11;

/// Whether the keys are listened for, and how much of them was typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Keys {
    /// They are keys as any other.
    Ignored,
    /// None of them was typed.
    Awaited,
    /// The first of them was, and is kept back.
    Half,
}

/// What is to be done with what was typed.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) enum Typed {
    /// It is the command's.
    Send(Bytes),
    /// The keys were among it.
    Leave,
}

impl Keys {
    /// Takes what was typed.
    pub(in crate::cli) fn typed(&mut self, bytes: Bytes) -> Typed {
        if *self == Keys::Ignored || (*self == Keys::Awaited && !bytes.contains(&FIRST)) {
            return Typed::Send(bytes);
        }
        let mut sent = BytesMut::with_capacity(bytes.len() + 1);
        for byte in bytes {
            match (*self, byte) {
                (Keys::Half, SECOND) => return Typed::Leave,
                (Keys::Half, FIRST) => sent.extend_from_slice(&[FIRST]),
                (Keys::Half, other) => {
                    sent.extend_from_slice(&[FIRST, other]);
                    *self = Keys::Awaited;
                }
                (_, FIRST) => *self = Keys::Half,
                (_, other) => sent.extend_from_slice(&[other]),
            }
        }
        Typed::Send(sent.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &mut Keys, text: &'static [u8]) -> Typed {
        keys.typed(Bytes::from_static(text))
    }

    #[test]
    fn both_keys_leave_and_one_is_a_key() {
        let mut keys = Keys::Awaited;
        assert_eq!(typed(&mut keys, b"ls\n"), Typed::Send("ls\n".into()));
        assert_eq!(typed(&mut keys, b"a\x10"), Typed::Send("a".into()));
        assert_eq!(typed(&mut keys, b"b"), Typed::Send("\x10b".into()));
        assert_eq!(typed(&mut keys, b"\x10\x10x\x10"), Typed::Send("\x10\x10x".into()));
        assert_eq!(typed(&mut keys, b"\x11"), Typed::Leave);
        assert_eq!(typed(&mut Keys::Awaited, b"x\x10\x11y"), Typed::Leave);
        assert_eq!(typed(&mut Keys::Ignored, b"\x10\x11"), Typed::Send("\x10\x11".into()));
    }
}
