//! What something costs that does nothing: its memory, and how often it wakes up.

use crate::process::Process;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

const KIB: f64 = 1024.0;
const MB: f64 = 1e6;

/// Threads for what blocks end when they had nothing to do for ten seconds: that is a wake-up too, but of
/// what was done before.
const SETTLING: Duration = Duration::from_secs(15);

/// Shared and whole, in MB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) pss: f64,
    pub(crate) rss: f64,
}

impl Memory {
    /// Of a process.
    pub(crate) fn of(process: &Process) -> Memory {
        let text = read(process.pid, "smaps_rollup");
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok()).expect("a number") * KIB
                / MB
        };
        Memory { pss: field("Pss:"), rss: field("Rss:") }
    }
}

fn read(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).expect("reads of a process")
}

/// How often each thread has given its processor up by itself, which it takes a wake-up to undo.
fn switches(pid: u32) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("reads of threads").flatten();
    let count = |thread: &fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse().ok()
    };
    threads
        .filter_map(|thread| Some((thread.file_name().to_string_lossy().into_owned(), count(&thread)?)))
        .collect()
}

/// Wake-ups per second of all threads of a process over `time`, once it has come to rest.
pub(crate) fn wake_ups(process: &Process, time: Duration) -> f64 {
    std::thread::sleep(SETTLING);
    let (before, since) = (switches(process.pid), Instant::now());
    std::thread::sleep(time);
    let (after, taken) = (switches(process.pid), since.elapsed());
    let counted: u64 =
        after.iter().map(|(thread, count)| count - before.get(thread).copied().unwrap_or_default()).sum();
    counted as f64 / taken.as_secs_f64()
}
