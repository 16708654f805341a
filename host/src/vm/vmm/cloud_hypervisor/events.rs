//! cloud-hypervisor's event monitor: what happens to the guest, told without being asked.
//!
//! Events are JSON objects one after the other, printed over several lines each; chunks of the
//! stream end anywhere. When the pipe is full cloud-hypervisor drops what does not fit, in the
//! middle of an event if need be, so the decoder finds its way back to the next one.

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::watch;

/// The largest event that is kept; real ones have about 150 bytes.
const MAX_EVENT: usize = 16 << 10;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The guest's processors were started.
    Booted,
    /// The guest reset, as it also does after a panic. cloud-hypervisor starts it again.
    Rebooting,
    /// The guest is off.
    Shutdown,
    /// The guest's kernel said that it panicked, through the pvpanic device.
    Panicked,
    /// Anything else.
    Other { source: String, event: String },
}

/// A part of the stream that is no event.
#[derive(Debug, thiserror::Error)]
pub(super) enum EventError {
    #[error("text that is not JSON between events")]
    Garbage,
    #[error("an event that was cut short")]
    Cut,
    #[error("an event of more than {MAX_EVENT} bytes")]
    TooLarge,
    #[error("an object that is no event")]
    Unreadable(#[source] serde_json::Error),
}

/// An event as it is written.
#[derive(Deserialize)]
struct Wire {
    source: String,
    event: String,
}

impl From<Wire> for Event {
    fn from(Wire { source, event }: Wire) -> Event {
        match (source.as_str(), event.as_str()) {
            ("vm", "booted") => Event::Booted,
            ("vm", "rebooting") => Event::Rebooting,
            ("vm", "shutdown") => Event::Shutdown,
            ("guest", "panic") => Event::Panicked,
            _ => Event::Other { source, event },
        }
    }
}

/// Finds events in a stream. Takes time in proportion to the stream's length, however it is cut
/// into chunks, and at most [`MAX_EVENT`] bytes.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    place: Place,
    object: Vec<u8>,
    /// The last byte was a line's end.
    line_start: bool,
}

/// Where in the stream the decoder is.
#[derive(Clone, Copy, Debug, Default)]
enum Place {
    #[default]
    Between,
    /// In something that was reported already, until the next object.
    Lost,
    Inside {
        depth: usize,
    },
    Text {
        depth: usize,
    },
    Escape {
        depth: usize,
    },
}

impl Decoder {
    /// Takes the next byte. What it completes or breaks is returned.
    pub(super) fn push(&mut self, byte: u8) -> Option<Result<Event, EventError>> {
        let line_start = std::mem::replace(&mut self.line_start, byte == b'\n');
        let (place, found) = match (self.place, byte) {
            (Place::Between | Place::Lost, b'{') => {
                self.object.clear();
                (Place::Inside { depth: 1 }, None)
            }
            (Place::Between, byte) if byte.is_ascii_whitespace() => (Place::Between, None),
            (Place::Between, _) => (Place::Lost, Some(Err(EventError::Garbage))),
            (Place::Lost, _) => (Place::Lost, None),
            // Nested objects are indented: this one begins anew, the one before has no end.
            (Place::Inside { .. }, b'{') if line_start => {
                self.object.clear();
                (Place::Inside { depth: 1 }, Some(Err(EventError::Cut)))
            }
            (Place::Inside { depth }, b'{') => (Place::Inside { depth: depth + 1 }, None),
            (Place::Inside { depth: 1 }, b'}') => {
                self.object.push(byte);
                return self.complete();
            }
            (Place::Inside { depth }, b'}') => (Place::Inside { depth: depth - 1 }, None),
            (Place::Inside { depth }, b'"') => (Place::Text { depth }, None),
            (Place::Inside { depth }, _) => (Place::Inside { depth }, None),
            // There is no raw line end in a JSON string.
            (Place::Text { .. } | Place::Escape { .. }, b'\n') => (Place::Lost, Some(Err(EventError::Cut))),
            (Place::Text { depth }, b'"') => (Place::Inside { depth }, None),
            (Place::Text { depth }, b'\\') => (Place::Escape { depth }, None),
            (Place::Text { depth } | Place::Escape { depth }, _) => (Place::Text { depth }, None),
        };
        self.place = place;
        if !matches!(place, Place::Between | Place::Lost) {
            if self.object.len() == MAX_EVENT {
                self.place = Place::Lost;
                return Some(Err(EventError::TooLarge));
            }
            self.object.push(byte);
        }
        found
    }

    fn complete(&mut self) -> Option<Result<Event, EventError>> {
        self.place = Place::Between;
        let event = serde_json::from_slice::<Wire>(&self.object);
        self.object.clear();
        Some(event.map(Event::from).map_err(EventError::Unreadable))
    }
}

/// How far the guest is, as far as events tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Life {
    #[default]
    Before,
    Running,
    /// It ended in a reset.
    Reset,
    /// It ended in a panic that it announced.
    Panicked,
    /// It was turned off.
    Off,
}

impl Life {
    /// What it is after `event`. The first end is the one that counts: cloud-hypervisor turns a
    /// guest off before it starts it again.
    fn after(self, event: &Event) -> Life {
        match (self, event) {
            (Life::Before, Event::Booted) => Life::Running,
            (Life::Before | Life::Running, Event::Rebooting) => Life::Reset,
            (Life::Before | Life::Running, Event::Panicked) => Life::Panicked,
            (Life::Before | Life::Running, Event::Shutdown) => Life::Off,
            (life, _) => life,
        }
    }

    /// Whether the guest has ended.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Life::Reset | Life::Panicked | Life::Off)
    }
}

/// Reads events in the background until the stream ends, which is when the receiver is told that
/// its sender is gone.
pub(super) fn follow(
    mut stream: impl AsyncRead + Unpin + Send + 'static,
    before: Life,
) -> watch::Receiver<Life> {
    let (sender, receiver) = watch::channel(before);
    tokio::spawn(async move {
        let mut decoder = Decoder::default();
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            // What is no event is skipped: that events got lost is no reason to end a guest.
            for event in chunk[..read].iter().filter_map(|byte| decoder.push(*byte)).flatten() {
                sender.send_if_modified(|life| {
                    let after = life.after(&event);
                    std::mem::replace(life, after) != after
                });
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests;
