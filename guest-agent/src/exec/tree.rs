//! Finding and ending everything below a process.
//!
//! Reads `/proc` through the working directory (the agent's is `/proc`, and so is a supervisor's):
//! a command that mounts something over `/proc` or takes it away changes nothing.
//!
//! A process is stopped before any is killed. Killing one by one makes room, under a limit on
//! processes, for the others to fork into, and a fork bomb then outlives its killer; stopped
//! processes do not fork and do not end. Meanwhile this process goes before all others, if it may:
//! as one of thousands that want the processor it would never get through.

use crate::sys::{self, Precedence};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

/// How long to try to end a tree before its remains are reported instead.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How often to look for new processes while stopping a tree. A bomb forks at most once between
/// two looks at each of its processes, so a few suffice; the bound is for one that wins anyway.
const LOOKS: usize = 64;

/// How long to wait at a time for killed processes to be gone.
const PAUSE_MS: u16 = 20;

/// One process at one moment. The start time tells it from a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: i32,
    parent: i32,
    start_time: u64,
}

/// Everything below a process.
pub(crate) struct Tree {
    root: Pid,
    /// Children of the root that are left alone, with all below them.
    spared: BTreeSet<i32>,
}

impl Tree {
    /// The tree below `root`, without `root` itself.
    pub(crate) fn below(root: Pid) -> Tree {
        Tree { root, spared: BTreeSet::new() }
    }

    /// The same without these children of the root.
    pub(crate) fn sparing(self, spared: BTreeSet<i32>) -> Tree {
        Tree { spared, ..self }
    }

    fn processes(&self) -> Vec<Process> {
        let mut children = BTreeMap::<i32, Vec<Process>>::new();
        // Unreadable: nothing can be found. The caller's bound ends the search.
        let entries = std::fs::read_dir(".").into_iter().flatten().flatten();
        for entry in entries {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            if let Some(process) = pid.and_then(process) {
                children.entry(process.parent).or_default().push(process);
            }
        }
        let mut found = Vec::new();
        let mut parents = vec![self.root.as_raw()];
        while let Some(parent) = parents.pop() {
            for child in children.remove(&parent).unwrap_or_default() {
                if !self.spared.contains(&child.pid) {
                    parents.push(child.pid);
                    found.push(child);
                }
            }
        }
        found
    }

    /// Stops all of it, including what is started meanwhile.
    pub(crate) fn stop(&self) {
        let _urgency = Urgency::new();
        let deadline = Instant::now() + PATIENCE;
        let mut stopped = BTreeSet::new();
        for _ in 0..LOOKS {
            let mut fresh = false;
            for process in self.processes() {
                if stopped.insert((process.pid, process.start_time)) {
                    fresh = true;
                    signal(process, Signal::SIGSTOP);
                }
            }
            if !fresh || Instant::now() > deadline {
                return;
            }
        }
    }

    /// Kills all that is there now. Gives the number.
    pub(crate) fn kill(&self) -> usize {
        let _urgency = Urgency::new();
        let processes = self.processes();
        for process in &processes {
            signal(*process, Signal::SIGKILL);
        }
        processes.len()
    }
}

/// Going before all other processes, for as long as it lives.
struct Urgency;

impl Urgency {
    fn new() -> Urgency {
        // Not allowed to an ordinary user, whose processes are limited in number instead.
        let _ = sys::set_precedence(Precedence::First);
        Urgency
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        let _ = sys::set_precedence(Precedence::Ordinary);
    }
}

/// Ends everything below this process and waits for it. Gives the number of processes that would
/// not die within [`PATIENCE`].
pub(crate) fn end_all(signals: &SignalFd) -> u64 {
    // Nearly always there is nothing: one call says so.
    if !children_left() {
        return 0;
    }
    let tree = Tree::below(Pid::this());
    let deadline = Instant::now() + PATIENCE;
    loop {
        tree.stop();
        let left = tree.kill();
        if !children_left() {
            return 0;
        }
        if Instant::now() > deadline {
            return left as u64;
        }
        pause(signals);
    }
}

/// Waits for the next child to end, for a moment.
pub(crate) fn pause(signals: &SignalFd) {
    let mut ready = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    if nix::poll::poll(&mut ready, PollTimeout::from(PAUSE_MS)).is_ok_and(|ready| ready > 0) {
        let _ = signals.read_signal();
    }
}

/// Reaps what has ended and says whether any child is left.
fn children_left() -> bool {
    loop {
        match sys::wait_any(0) {
            Ok(Some(_)) | Err(Errno::EINTR) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Signals exactly this process: a number that was given to another meanwhile is left alone.
fn signal(target: Process, signal: Signal) {
    let Ok(handle) = sys::open_process(Pid::from_raw(target.pid)) else {
        return;
    };
    if process(target.pid).is_some_and(|now| now.start_time == target.start_time) {
        let _ = sys::signal_process(&handle, signal);
    }
}

fn process(pid: i32) -> Option<Process> {
    parse(pid, &std::fs::read(format!("{pid}/stat")).ok()?)
}

/// Fields 4 and 22 of `/proc/PID/stat` (`proc(5)`). The second one is a name in parentheses that
/// may itself hold spaces and parentheses, so counting starts behind the last one.
fn parse(pid: i32, stat: &[u8]) -> Option<Process> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start_time = fields.nth(17)?.parse().ok()?;
    Some(Process { pid, parent, start_time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pose_as_other_fields() {
        let stat = b"7 (a) S 1 (b\xff)) S 42 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 9876 0 0";
        assert_eq!(parse(7, stat), Some(Process { pid: 7, parent: 42, start_time: 9876 }));
        assert_eq!(parse(7, b"7 (a"), None);
    }
}
