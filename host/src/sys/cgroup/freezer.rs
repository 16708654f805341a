//! Stopping all processes of a group where they are, and letting them go on.
//!
//! They do not notice, unlike with `SIGSTOP`, which parents are told of, and which does not reach what is
//! being forked.

use super::{Cgroup, Dir, counter, write};
use std::io;
use std::time::{Duration, Instant};

/// How long processes may take to stop. One in the middle of a slow system call finishes that first.
const PATIENCE: Duration = Duration::from_secs(5);

/// A sandbox that cannot be paused or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PauseError {
    /// It is in no control group that could be frozen.
    #[error("a sandbox can only be paused in a control group, and none can be made here")]
    Unsupported,
    /// The kernel refused.
    #[error("cannot freeze the control group")]
    Freeze(#[source] io::Error),
    /// Something did not stop.
    #[error("a process did not stop within {} s", PATIENCE.as_secs())]
    Late,
}

/// How a folder says whether its processes run.
#[derive(Clone, Copy)]
enum Freezer {
    One,
    Two,
}

impl Freezer {
    fn of(dir: &Dir) -> Option<Freezer> {
        if dir.path.join("cgroup.freeze").exists() {
            Some(Freezer::Two)
        } else {
            dir.path.join("freezer.state").exists().then_some(Freezer::One)
        }
    }

    fn write(self, dir: &Dir, frozen: bool) -> io::Result<()> {
        let (file, text) = match (self, frozen) {
            (Freezer::One, true) => ("freezer.state", "FROZEN"),
            (Freezer::One, false) => ("freezer.state", "THAWED"),
            (Freezer::Two, true) => ("cgroup.freeze", "1"),
            (Freezer::Two, false) => ("cgroup.freeze", "0"),
        };
        write(&dir.path.join(file), text)
    }

    fn is_frozen(self, dir: &Dir) -> io::Result<bool> {
        let read = |file| std::fs::read_to_string(dir.path.join(file));
        Ok(match self {
            Freezer::One => read("freezer.state")?.trim_end() == "FROZEN",
            Freezer::Two => counter(&read("cgroup.events")?, "frozen") == Some(1),
        })
    }
}

impl Cgroup {
    fn freezer(&self) -> Option<(Freezer, &Dir)> {
        self.dirs.iter().find_map(|dir| Some((Freezer::of(dir)?, dir)))
    }

    /// Stops all its processes. They have stopped when this returns.
    pub(crate) async fn freeze(&self) -> Result<(), PauseError> {
        let (freezer, dir) = self.freezer().ok_or(PauseError::Unsupported)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Said again each time: version 1 gives up on what would not stop.
            freezer.write(dir, true).map_err(PauseError::Freeze)?;
            if freezer.is_frozen(dir).map_err(PauseError::Freeze)? {
                return Ok(());
            }
            if Instant::now() > deadline {
                self.melt();
                return Err(PauseError::Late);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets its processes go on.
    pub(crate) fn thaw(&self) -> Result<(), PauseError> {
        let (freezer, dir) = self.freezer().ok_or(PauseError::Unsupported)?;
        freezer.write(dir, false).map_err(PauseError::Freeze)
    }

    /// The same, if it can be.
    pub(super) fn melt(&self) {
        let _ = self.thaw();
    }
}
