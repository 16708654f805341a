//! Processes of a sandbox: all that descend from the `firn` that runs it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Mappings of shared memory of at least this size are the guest's RAM, in KiB.
const RAM: u64 = 16 * 1024;

/// A process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) argv: Vec<String>,
}

impl Process {
    fn read(pid: u32) -> Option<Process> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8(line).ok()?;
        let argv = line.split_terminator('\0').map(str::to_owned).collect();
        Some(Process { pid, argv })
    }

    /// The name of its program.
    pub(crate) fn name(&self) -> &str {
        let program = self.argv.first().map_or("", String::as_str);
        program.rsplit('/').next().unwrap_or_default()
    }

    /// A file it has open, by its descriptor.
    pub(crate) fn fd(&self, number: &str) -> PathBuf {
        format!("/proc/{}/fd/{number}", self.pid).into()
    }

    /// Its share of memory, and how much of that is the guest's RAM, in KiB.
    pub(crate) fn pss(&self) -> (u64, u64) {
        let read =
            |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.pid)).expect("reads smaps");
        let kib = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
        let pss = |text: &str| text.lines().find(|line| line.starts_with("Pss:")).and_then(kib).unwrap_or(0);
        let all = pss(&read("smaps_rollup"));
        let (mut ram, mut shared, mut big) = (0, false, false);
        for line in read("smaps").lines() {
            let first = line.split_whitespace().next().unwrap_or_default();
            match first {
                "Size:" => big = kib(line).unwrap_or(0) >= RAM,
                "Pss:" if shared && big => ram += kib(line).unwrap_or(0),
                // A mapping's own line: its addresses, and the file behind it.
                _ if !first.ends_with(':') => shared = line.contains("/memfd:"),
                _ => {}
            }
        }
        (all, ram)
    }
}

/// `root` and all that descend from it, parents first.
pub(crate) fn tree(root: u32) -> Vec<Process> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("reads /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name, in parentheses, may hold anything; the parent is the second field after it.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let (mut found, mut waiting) = (Vec::new(), vec![root]);
    while let Some(pid) = waiting.pop() {
        found.extend(Process::read(pid));
        waiting.extend(children.get(&pid).into_iter().flatten());
    }
    found
}
