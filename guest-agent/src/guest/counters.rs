//! What the kernel counts of the commands' control group.
//!
//! The files are opened once, before any command runs, and read by descriptor ever after: whatever a
//! command mounts or removes later changes nothing, and reading them never waits for anybody. A guest's
//! root can spoil the numbers. They are about its own commands.

use firn_protocol::Exceeded;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Longer than these files are on any kernel, in bytes.
const ROOM: usize = 512;

/// How often each limit was hit, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    memory: u64,
    processes: u64,
}

impl Tally {
    /// The limits that were hit since.
    pub(crate) fn exceeded_since(self, before: Tally) -> Vec<Exceeded> {
        [
            (Exceeded::Memory, self.memory > before.memory),
            (Exceeded::Processes, self.processes > before.processes),
        ]
        .into_iter()
        .filter_map(|(limit, hit)| hit.then_some(limit))
        .collect()
    }
}

/// The files of one control group. What a kernel lacks counts nothing.
pub(super) struct Counters {
    memory: Option<File>,
    processes: Option<File>,
}

impl Counters {
    /// Those of the control group in this folder.
    pub(super) fn open(group: &Path) -> Counters {
        let open = |name| File::open(group.join(name)).ok();
        Counters { memory: open("memory.events"), processes: open("pids.events") }
    }

    /// Reads them.
    pub(super) fn read(&self) -> Tally {
        Tally { memory: read(&self.memory, "oom_kill"), processes: read(&self.processes, "max") }
    }
}

fn read(file: &Option<File>, key: &str) -> u64 {
    let mut text = [0; ROOM];
    let length = file.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
    value(&text[..length], key).unwrap_or(0)
}

/// The value of a key in a flat keyed file (`cgroups(7)`).
fn value(text: &[u8], key: &str) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_taken_for_a_longer_one() {
        let text = b"low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n";
        assert_eq!(value(text, "oom"), Some(3));
        assert_eq!(value(text, "oom_kill"), Some(4));
        assert_eq!(value(text, "oom_group"), None);
        for strange in [&b""[..], b"max", b"max ", b"max -1\n", b"max 99999999999999999999\n", b"\xff 1\n"] {
            assert_eq!(value(strange, "max"), None, "{strange:?}");
        }
    }

    #[test]
    fn only_what_has_grown_was_hit() {
        let before = Tally { memory: 3, processes: 7 };
        assert_eq!(before.exceeded_since(before), []);
        assert_eq!(Tally { memory: 4, ..before }.exceeded_since(before), [Exceeded::Memory]);
        assert_eq!(Tally { processes: 9, ..before }.exceeded_since(before), [Exceeded::Processes]);
        // The files are gone, or somebody has reset them.
        assert_eq!(Tally::default().exceeded_since(before), []);
    }

    #[test]
    fn files_are_read_anew_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let events = folder.path().join("memory.events");
        std::fs::write(&events, "oom_kill 1\n").unwrap();
        let counters = Counters::open(folder.path());
        let before = counters.read();
        assert_eq!(before, Tally { memory: 1, processes: 0 });
        std::fs::write(&events, "oom_kill 2\n").unwrap();
        assert_eq!(counters.read().exceeded_since(before), [Exceeded::Memory]);
        std::fs::remove_file(&events).unwrap();
        assert_eq!(counters.read(), Tally { memory: 2, processes: 0 });
    }
}
