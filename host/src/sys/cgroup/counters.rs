//! What a group has counted. It is asked before and after each command, so its files are held open.

use super::dir::{Dir, counter};
use crate::sys::limits::Events;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The longest of the files, in bytes. Those of Linux 6.18 have less than two hundred.
const LONGEST: usize = 1024;

/// The files of a group that exists.
#[derive(Debug, Default)]
pub(super) struct Counters {
    memory: Option<Memory>,
    processes: Option<File>,
}

/// Where processes that were killed because the group was out of memory are counted. Those that the kernel
/// kills because the whole host is are counted in the same place.
#[derive(Debug)]
enum Memory {
    /// `memory.events`. It also says how often the limit was run into: never, if they were no fault of it.
    Version2(File),
    /// `memory.oom_control`. That is not said reliably (`memory.failcnt` stays 0 on Linux 6.18).
    Version1(File),
}

impl Counters {
    /// Those of the group that consists of these folders.
    pub(super) fn open(dirs: &[Dir]) -> Counters {
        let memory = |path: &Path| {
            let version2 = File::open(path.join("memory.events")).ok();
            // The group that has it in version 1 is another one.
            let version1 = || File::open(path.join("memory.oom_control")).ok();
            version2.map(Memory::Version2).or_else(|| version1().map(Memory::Version1))
        };
        Counters {
            memory: dirs.iter().find_map(|dir| memory(&dir.path)),
            processes: dirs.iter().find_map(|dir| File::open(dir.path.join("pids.events")).ok()),
        }
    }

    /// What they say now. Nothing, once the group is gone.
    pub(super) fn read(&self) -> Events {
        Events {
            memory_kills: self.memory.as_ref().and_then(Memory::kills).unwrap_or_default(),
            processes_refused: self
                .processes
                .as_ref()
                .and_then(|file| counter(&text(file)?, "max"))
                .unwrap_or_default(),
        }
    }
}

impl Memory {
    fn kills(&self) -> Option<u64> {
        match self {
            Memory::Version1(file) => counter(&text(file)?, "oom_kill"),
            Memory::Version2(file) => {
                let text = text(file)?;
                let kills = counter(&text, "oom_kill")?;
                let limit_hit = counter(&text, "oom")? > 0;
                Some(if limit_hit { kills } else { 0 })
            }
        }
    }
}

fn text(file: &File) -> Option<String> {
    let mut bytes = [0; LONGEST];
    let length = file.read_at(&mut bytes, 0).ok()?;
    String::from_utf8(bytes[..length].to_vec()).ok()
}
