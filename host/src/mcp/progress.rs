//! Progress: what a run writes, told to the client as it comes.

use rmcp::RoleServer;
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::Peer;

/// How much is told of one run, in bytes: what its result has room for, and no more.
const MOST_TOLD: usize = super::captured::MOST_TEXT;

/// The longest character that may be incomplete.
const LONGEST_PART: usize = 3;

/// Tells a client of a run.
#[derive(Debug)]
pub(super) struct Progress {
    peer: Peer<RoleServer>,
    token: ProgressToken,
    told: usize,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// What is told at once.
#[derive(Debug)]
pub(super) struct Message {
    so_far: usize,
    text: String,
}

impl Progress {
    /// To the client that `peer` leads to, who knows the call by `token`.
    pub(super) fn new(peer: Peer<RoleServer>, token: ProgressToken) -> Progress {
        Progress { peer, token, told: 0, stdout: Vec::new(), stderr: Vec::new() }
    }

    /// What is to be told when this came on stdout.
    pub(super) fn stdout(&mut self, chunk: &[u8]) -> Option<Message> {
        let text = whole(&mut self.stdout, chunk);
        self.message(text)
    }

    /// What is to be told when this came on stderr.
    pub(super) fn stderr(&mut self, chunk: &[u8]) -> Option<Message> {
        let text = whole(&mut self.stderr, chunk);
        self.message(text)
    }

    fn message(&mut self, text: String) -> Option<Message> {
        if text.is_empty() || self.told >= MOST_TOLD {
            return None;
        }
        self.told += text.len();
        Some(Message { so_far: self.told, text })
    }

    /// Tells it, and waits until it is written. A client that is gone is told nothing.
    pub(super) async fn tell(&self, Message { so_far, text }: Message) {
        // It has to grow with each; how much there will be nobody knows.
        #[expect(clippy::cast_precision_loss, reason = "the protocol has floating-point numbers")]
        let progress = ProgressNotificationParam::new(self.token.clone(), so_far as f64).with_message(text);
        let _ = self.peer.notify_progress(progress).await;
    }
}

/// The whole characters of what was `kept` and this `chunk` together. A character that lacks its end is kept.
fn whole(kept: &mut Vec<u8>, chunk: &[u8]) -> String {
    kept.extend_from_slice(chunk);
    let end = match std::str::from_utf8(kept) {
        Ok(_) => kept.len(),
        // Nothing says what follows could not make it whole.
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => incomplete(kept),
    };
    let rest = kept.split_off(end);
    String::from_utf8_lossy(&std::mem::replace(kept, rest)).into_owned()
}

/// Where, in bytes that are no text, a last character begins that lacks its end.
fn incomplete(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(LONGEST_PART);
    let at = (from..bytes.len()).find(|at| {
        std::str::from_utf8(&bytes[*at..])
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    });
    at.unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_is_whole_however_it_is_cut(text: String, cuts in proptest::collection::vec(0_usize..200, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut kept = Vec::new();
            let told: String = cuts.windows(2).map(|cut| whole(&mut kept, &text.as_bytes()[cut[0]..cut[1]])).collect();
            prop_assert_eq!(told, text);
            prop_assert!(kept.is_empty());
        }

        #[test]
        fn no_more_than_a_character_is_kept(chunks in proptest::collection::vec(any::<Vec<u8>>(), 0..10)) {
            let mut kept = Vec::new();
            for chunk in chunks {
                let _ = whole(&mut kept, &chunk);
                prop_assert!(kept.len() <= LONGEST_PART);
            }
        }
    }

    #[test]
    fn what_is_no_text_does_not_hold_up_what_follows() {
        let mut kept = Vec::new();
        assert_eq!(whole(&mut kept, b"a\xffb\xc3"), "a\u{fffd}b");
        assert_eq!(whole(&mut kept, b"\xa4c"), "äc");
    }
}
