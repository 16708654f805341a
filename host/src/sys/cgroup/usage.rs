//! How much of the host a sandbox uses.

use super::Cgroup;
use crate::sys::pidfd::{ProcessId, Stat, children};
use std::fs;

/// What a sandbox uses at this moment, and has used. What nobody counts here is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Memory, in bytes. Where no group counts, what is shared between processes is counted in each.
    pub(crate) memory_bytes: Option<u64>,
    /// The most memory so far, in bytes.
    pub(crate) memory_peak_bytes: Option<u64>,
    /// Processor time, in µs. Where no group counts, without that of processes whose parent ended first.
    pub(crate) cpu_us: Option<u64>,
    /// Processes, each thread counted as one.
    pub(crate) processes: Option<u64>,
    /// Read from and written to disks, in bytes.
    pub(crate) io_read_bytes: Option<u64>,
    pub(crate) io_write_bytes: Option<u64>,
}

impl Cgroup {
    /// What its processes use: what it counts, and for the rest what `/proc` says of `roots` and all below
    /// them.
    pub(crate) fn usage(&self, roots: &[ProcessId]) -> Usage {
        let text = |file: &str| self.dirs.iter().find_map(|dir| fs::read_to_string(dir.path.join(file)).ok());
        let number = |file: &str| text(file)?.trim_end().parse::<u64>().ok();
        let counter = |file: &str, name: &str| super::counter(&text(file)?, name);
        let io = text("io.stat");
        let moved = |key| io.as_deref().map(|text| moved(text, key));
        let counted = Usage {
            memory_bytes: number("memory.current").or_else(|| number("memory.usage_in_bytes")),
            memory_peak_bytes: number("memory.peak").or_else(|| number("memory.max_usage_in_bytes")),
            // Version 2 counts it in every group, with or without the controller.
            cpu_us: counter("cpu.stat", "usage_usec").or_else(|| Some(number("cpuacct.usage")? / 1000)),
            processes: number("pids.current"),
            io_read_bytes: moved("rbytes="),
            io_write_bytes: moved("wbytes="),
        };
        let summed =
            if counted.memory_bytes.is_none() || counted.cpu_us.is_none() || counted.processes.is_none() {
                below(roots)
            } else {
                Usage::default()
            };
        Usage {
            memory_bytes: counted.memory_bytes.or(summed.memory_bytes),
            cpu_us: counted.cpu_us.or(summed.cpu_us),
            processes: counted.processes.or(summed.processes),
            ..counted
        }
    }
}

/// A line for each disk: `8:0 rbytes=1 wbytes=2 rios=3 ...` (Documentation/admin-guide/cgroup-v2.rst).
fn moved(stat: &str, key: &str) -> u64 {
    let fields =
        stat.split_ascii_whitespace().filter_map(|field| field.strip_prefix(key)?.parse::<u64>().ok());
    fields.fold(0, u64::saturating_add)
}

fn below(roots: &[ProcessId]) -> Usage {
    let mut left: Vec<u32> = roots.iter().filter(|root| root.is_alive()).map(|root| root.pid()).collect();
    let (page, tick) = (page_size(), tick_us());
    let (mut memory, mut cpu, mut processes) = (0_u64, 0_u64, 0_u64);
    while let Some(pid) = left.pop() {
        let Some(stat) = Stat::of(pid) else { continue };
        left.extend(children(pid));
        cpu = cpu.saturating_add(stat.cpu_ticks.saturating_mul(tick));
        processes += stat.threads;
        let resident = fs::read_to_string(format!("/proc/{pid}/statm"))
            .ok()
            .and_then(|statm| statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
        memory = memory.saturating_add(resident.unwrap_or_default().saturating_mul(page));
    }
    if processes == 0 {
        return Usage::default();
    }
    Usage { memory_bytes: Some(memory), cpu_us: Some(cpu), processes: Some(processes), ..Usage::default() }
}

fn page_size() -> u64 {
    use nix::unistd::{SysconfVar, sysconf};
    sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}

fn tick_us() -> u64 {
    use nix::unistd::{SysconfVar, sysconf};
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    1_000_000 / per_second.filter(|ticks| *ticks > 0).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_group_counts_is_taken_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("memory.current", "4096\n");
        write("memory.peak", "8192\n");
        write("cpu.stat", "usage_usec 77\nuser_usec 70\n");
        write("pids.current", "3\n");
        write("io.stat", "8:0 rbytes=10 wbytes=1 rios=9\n8:16 rbytes=5 wbytes=2\n");
        let two = Cgroup::at(vec!["/nowhere".into(), dir.path().to_owned()]).usage(&[]);
        assert_eq!((two.memory_bytes, two.memory_peak_bytes), (Some(4096), Some(8192)));
        assert_eq!((two.cpu_us, two.processes), (Some(77), Some(3)));
        assert_eq!((two.io_read_bytes, two.io_write_bytes), (Some(15), Some(3)));
        assert_eq!(Cgroup::none().usage(&[]), Usage::default());
    }

    #[test]
    fn without_a_group_processes_are_asked() {
        let usage = Cgroup::none().usage(&[ProcessId::ours()]);
        assert!(usage.memory_bytes.unwrap() > 1 << 20);
        assert!(usage.processes.unwrap() >= 2, "the test's thread, and the one that waits for it");
        assert!(usage.cpu_us.is_some() && usage.io_read_bytes.is_none());
    }
}
