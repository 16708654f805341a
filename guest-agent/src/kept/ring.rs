//! The latest output of a command: bytes, and which stream each is of.

use firn_protocol::Kind;
use std::collections::VecDeque;

/// How often the stream may change within what is kept. A command that alternates byte by byte must not
/// cost many times its output.
const MOST_SEGMENTS: usize = 16 * 1024;

/// Bytes of one stream.
struct Segment {
    kind: Kind,
    length: usize,
}

/// See the module. Positions count all output since the start.
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    segments: VecDeque<Segment>,
    capacity: usize,
    end: u64,
}

impl Ring {
    /// An empty one that keeps this much.
    pub(super) fn new(capacity: usize) -> Ring {
        Ring { bytes: VecDeque::new(), segments: VecDeque::new(), capacity, end: 0 }
    }

    /// Where the first byte is that is still there.
    pub(super) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Where the next byte will be.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// How much it keeps at most.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How much it holds.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How many bytes can be added without losing any at or after this position.
    pub(super) fn room_behind(&self, position: u64) -> usize {
        let unread = self.end.saturating_sub(position.max(self.start()));
        if self.segments.len() >= MOST_SEGMENTS && unread > 0 {
            // The next byte may cost the oldest segment, and that may be where the reader is.
            return 0;
        }
        self.capacity.saturating_sub(usize::try_from(unread).unwrap_or(usize::MAX))
    }

    /// Adds output. The oldest makes room.
    pub(super) fn push(&mut self, kind: Kind, output: &[u8]) {
        if output.is_empty() {
            return;
        }
        self.end += output.len() as u64;
        let output = &output[output.len().saturating_sub(self.capacity)..];
        let excess = (self.bytes.len() + output.len()).saturating_sub(self.capacity);
        self.drop_front(excess);
        let room = self.capacity - self.bytes.len();
        if self.bytes.capacity() - self.bytes.len() < output.len() {
            // Twice as much each time, and never more than the limit.
            let more = self.bytes.len().max(output.len()).min(room);
            self.bytes.reserve_exact(more);
        }
        self.bytes.extend(output);
        match self.segments.back_mut() {
            Some(last) if last.kind == kind => last.length += output.len(),
            _ => {
                if self.segments.len() == MOST_SEGMENTS {
                    let oldest = self.segments.front().map_or(0, |oldest| oldest.length);
                    self.drop_front(oldest);
                }
                self.segments.push_back(Segment { kind, length: output.len() });
            }
        }
    }

    fn drop_front(&mut self, mut count: usize) {
        self.bytes.drain(..count);
        while count > 0
            && let Some(oldest) = self.segments.front_mut()
        {
            let dropped = count.min(oldest.length);
            oldest.length -= dropped;
            count -= dropped;
            if oldest.length == 0 {
                self.segments.pop_front();
            }
        }
    }

    /// Copies output of one stream from this position, which is not before [`Ring::start`] and before
    /// [`Ring::end`], into what `room` gives for a length. Which stream, and how much.
    pub(super) fn copy<'r>(
        &self,
        position: u64,
        most: usize,
        room: impl FnOnce(usize) -> &'r mut [u8],
    ) -> Option<(Kind, usize)> {
        let mut skip = usize::try_from(position.checked_sub(self.start())?).ok()?;
        let from = skip;
        let (kind, left) = self.segments.iter().find_map(|segment| {
            if skip < segment.length {
                return Some((segment.kind, segment.length - skip));
            }
            skip -= segment.length;
            None
        })?;
        let length = left.min(most);
        let (head, tail) = self.bytes.as_slices();
        let room = &mut room(length)[..length];
        let of_head = head.get(from..).unwrap_or_default();
        let of_head = &of_head[..of_head.len().min(length)];
        room[..of_head.len()].copy_from_slice(of_head);
        let rest = length - of_head.len();
        let from = from.saturating_sub(head.len());
        room[of_head.len()..].copy_from_slice(&tail[from..from + rest]);
        Some((kind, length))
    }

    /// Gives back what is not needed any more: nothing will be added.
    pub(super) fn finish(&mut self) {
        self.bytes.shrink_to_fit();
        self.segments.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_from(ring: &Ring, mut position: u64) -> Vec<(Kind, Vec<u8>)> {
        let mut all = Vec::new();
        let mut chunk = [0; 3];
        while position < ring.end() {
            let (kind, length) = ring.copy(position, 3, |_| &mut chunk).unwrap();
            all.push((kind, chunk[..length].to_vec()));
            position += length as u64;
        }
        all
    }

    #[test]
    fn the_latest_is_kept_in_order_with_its_stream() {
        let mut ring = Ring::new(8);
        ring.push(Kind::Stdout, b"abc");
        ring.push(Kind::Stdout, b"de");
        ring.push(Kind::Stderr, b"XY");
        assert_eq!((ring.start(), ring.end()), (0, 7));
        ring.push(Kind::Stdout, b"fgh");
        assert_eq!((ring.start(), ring.end()), (2, 10));
        assert_eq!(
            all_from(&ring, 2),
            [
                (Kind::Stdout, b"cde".to_vec()),
                (Kind::Stderr, b"XY".to_vec()),
                (Kind::Stdout, b"fgh".to_vec())
            ]
        );
        ring.push(Kind::Stderr, &[b'.'; 100]);
        assert_eq!((ring.start(), ring.end(), ring.len()), (102, 110, 8));
        assert_eq!(ring.segments.len(), 1);
    }

    #[test]
    fn streams_that_alternate_cost_no_more_than_so_much() {
        let mut ring = Ring::new(1 << 20);
        for _ in 0..100_000 {
            ring.push(Kind::Stdout, b"o");
            ring.push(Kind::Stderr, b"e");
        }
        assert_eq!(ring.segments.len(), MOST_SEGMENTS);
        assert_eq!(ring.end(), 200_000);
        assert_eq!(ring.len(), MOST_SEGMENTS);
        assert_eq!(all_from(&ring, ring.end() - 1), [(Kind::Stderr, b"e".to_vec())]);
        assert_eq!(ring.room_behind(ring.start()), 0);
    }

    #[test]
    fn room_is_what_costs_no_reader_anything() {
        let mut ring = Ring::new(10);
        assert_eq!(ring.room_behind(0), 10);
        ring.push(Kind::Stdout, b"1234");
        assert_eq!((ring.room_behind(0), ring.room_behind(4), ring.room_behind(9)), (6, 10, 10));
        ring.push(Kind::Stdout, b"567890");
        assert_eq!(ring.room_behind(0), 0);
    }
}
