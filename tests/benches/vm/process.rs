//! Processes of a sandbox, of the daemon and of its clients: all that descend from the benchmark, which
//! inherits whatever loses its parent.

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
        if self.is_daemon() {
            return "firn daemon";
        }
        let program = self.argv.first().map_or("", String::as_str);
        program.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it is firn's daemon.
    pub(crate) fn is_daemon(&self) -> bool {
        matches!(&self.argv[..], [program, verb, ..] if program.ends_with("/firn") && verb == "daemon")
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

/// Makes the benchmark inherit what loses its parent. Helpers belong to nobody, not even to the daemon.
pub(crate) fn inherit() {
    nix::sys::prctl::set_child_subreaper(true).expect("inherits");
}

/// All that descend from the benchmark.
pub(crate) fn all() -> Vec<Process> {
    let alive = firn_tests::descendants().into_iter().filter(|process| !process.line.is_empty());
    alive
        .filter_map(|process| Process::read(process.pid))
        .filter(|process| !process.argv.is_empty())
        .collect()
}
