//! What a stream of a run's has said, as far as a result has room for it.

use std::borrow::Cow;

/// How much of a result's text there may be, in bytes: nix-sandbox-mcp's.
pub(super) const MOST_TEXT: usize = 1 << 20;

/// Longer than the text may be by a character, so that a cut shows.
const MOST_KEPT: usize = MOST_TEXT + 4;

/// One stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Captured {
    kept: Vec<u8>,
    dropped: bool,
}

impl Captured {
    /// Adds what came.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        let room = MOST_KEPT - self.kept.len();
        self.dropped |= chunk.len() > room;
        self.kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }

    /// Whether nothing came.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether some of it is not here.
    pub(super) fn is_cut(&self) -> bool {
        self.dropped || self.kept.len() > MOST_TEXT
    }

    /// As text. What is none is replaced (U+FFFD); nothing else is changed.
    pub(super) fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.kept)
    }
}

/// Both streams of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Streams {
    pub(super) stdout: Captured,
    pub(super) stderr: Captured,
}

/// The beginning of `text`, no longer than a result may be.
pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(MOST_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_fits_is_kept_whole(chunks in proptest::collection::vec(any::<Vec<u8>>(), 0..10)) {
            let mut captured = Captured::default();
            chunks.iter().for_each(|chunk| captured.push(chunk));
            let whole = chunks.concat();
            prop_assert_eq!(captured.text(), String::from_utf8_lossy(&whole));
            prop_assert!(!captured.is_cut());
            prop_assert_eq!(captured.is_empty(), whole.is_empty());
        }
    }

    #[test]
    fn a_flood_is_cut_between_characters() {
        let mut captured = Captured::default();
        captured.push(b"x");
        for _ in 0..3 {
            captured.push("ä".repeat(MOST_TEXT / 4).as_bytes());
        }
        assert!(captured.is_cut());
        assert!(captured.kept.len() <= MOST_KEPT);
        let text = captured.text();
        let cut = cut(&text);
        assert_eq!(cut.len(), MOST_TEXT - 1);
        assert!(cut.ends_with('ä'));
    }
}
