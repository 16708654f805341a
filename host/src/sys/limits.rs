//! How much of the host a sandbox may use, and what holds it to that.
//!
//! | limit | control groups | `setrlimit`(2), where no group can be had |
//! |---|---|---|
//! | memory | all of the sandbox together, with what it keeps in tmpfs; no swap | each process by itself, its private writable memory (`RLIMIT_DATA`) |
//! | processes | all processes and threads of the sandbox together | all of its user, in its user namespace (`RLIMIT_NPROC`); not for root |
//! | processor time | all of the sandbox together | cannot be had |
use firn_protocol::{Exceeded, Resource, ResourceLimit};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a sandbox may use at most. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Memory, in bytes.
    pub(crate) memory: Option<u64>,
    /// Processes, each thread counted as one.
    pub(crate) processes: Option<u64>,
    /// Processor time.
    pub(crate) cpus: Option<Cpus>,
}

/// A share of processor time: so many processors' worth, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Cpus(u32);

/// The period over which processor time is shared out, in µs: the kernel's default
/// (Documentation/scheduler/sched-bwc.rst).
pub(crate) const CPU_PERIOD: u64 = 100_000;

impl Cpus {
    /// The kernel gives no quota below 1 ms (sched-bwc.rst), a hundredth of the period.
    const LEAST: u32 = 10;
    /// The most processors that Linux can be built for on x86-64 (`NR_CPUS`).
    const MOST: u32 = 8192 * 1000;

    /// This number, if it is a whole one.
    pub(crate) fn whole(self) -> Option<u32> {
        self.0.is_multiple_of(1000).then_some(self.0 / 1000)
    }

    /// This number, for programs.
    pub(crate) fn number(self) -> f64 {
        f64::from(self.0) / 1000.0
    }

    /// The time a group may run in each [`CPU_PERIOD`], in µs.
    pub(crate) fn quota(self) -> u64 {
        u64::from(self.0) * CPU_PERIOD / 1000
    }

    /// The same in percent of one processor, and tenths of a percent.
    pub(crate) fn percent(self) -> (u32, u32) {
        (self.0 / 10, self.0 % 10)
    }
}

/// What was typed is no number of processors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("processors are a number from 0.01 to 8192, with at most three decimals: 0.5, 2")]
pub(crate) struct NotCpus;

impl FromStr for Cpus {
    type Err = NotCpus;

    fn from_str(text: &str) -> Result<Cpus, NotCpus> {
        let text = text.trim();
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > 3 {
            return Err(NotCpus);
        }
        let whole: u32 = whole.parse().map_err(|_too_large| NotCpus)?;
        let decimals: u32 = format!("{decimals:0<3}").parse().map_err(|_too_large| NotCpus)?;
        let thousandths = whole.checked_mul(1000).and_then(|whole| whole.checked_add(decimals));
        thousandths.filter(|all| (Cpus::LEAST..=Cpus::MOST).contains(all)).map(Cpus).ok_or(NotCpus)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, decimals) = (self.0 / 1000, self.0 % 1000);
        match decimals {
            0 => write!(f, "{whole}"),
            _ => write!(f, "{whole}.{}", format!("{decimals:03}").trim_end_matches('0')),
        }
    }
}

/// What holds a sandbox to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mechanism {
    /// A control group of version 2.
    CgroupV2,
    /// A control group of version 1.
    CgroupV1,
    /// A control group of version 2 that the user's service manager makes.
    SystemdScope,
    /// `setrlimit`(2): for each process by itself, see the module.
    Rlimit,
    /// Nothing can.
    None,
}

impl Mechanism {
    /// Whether it holds all processes of a sandbox together.
    pub(crate) fn is_group(self) -> bool {
        matches!(self, Mechanism::CgroupV2 | Mechanism::CgroupV1 | Mechanism::SystemdScope)
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mechanism::CgroupV2 => "cgroup v2",
            Mechanism::CgroupV1 => "cgroup v1",
            Mechanism::SystemdScope => "systemd scope",
            Mechanism::Rlimit => "setrlimit",
            Mechanism::None => "nothing",
        })
    }
}

/// What holds sandboxes to each limit on this host, for this caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mechanisms {
    /// Memory.
    pub(crate) memory: Mechanism,
    /// Processes.
    pub(crate) processes: Mechanism,
    /// Processor time.
    pub(crate) cpus: Mechanism,
}

impl Mechanisms {
    /// Where no group can be made.
    pub(crate) const WITHOUT_GROUPS: Mechanisms =
        Mechanisms { memory: Mechanism::Rlimit, processes: Mechanism::Rlimit, cpus: Mechanism::None };

    /// What every process of the sandbox has to put on itself, because no group does.
    pub(crate) fn resource_limits(&self, limits: &Limits) -> Vec<ResourceLimit> {
        let of = |mechanism, limit: Option<u64>, resource| {
            limit.filter(|_| mechanism == Mechanism::Rlimit).map(|value| ResourceLimit { resource, value })
        };
        [
            of(self.memory, limits.memory, Resource::Data),
            of(self.processes, limits.processes, Resource::Processes),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Whether a limit was asked for on processor time that nothing can enforce.
    pub(crate) fn cannot_limit_cpus(&self, limits: &Limits) -> bool {
        limits.cpus.is_some() && self.cpus == Mechanism::None
    }
}

/// What a group has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Events {
    /// Processes killed because the group was out of memory.
    pub(crate) memory_kills: u64,
    /// Processes and threads that were not made because there were too many.
    pub(crate) processes_refused: u64,
}

impl Events {
    /// What was counted after `before`.
    pub(crate) fn since(self, before: Events) -> Events {
        Events {
            memory_kills: self.memory_kills.saturating_sub(before.memory_kills),
            processes_refused: self.processes_refused.saturating_sub(before.processes_refused),
        }
    }
}

impl Limits {
    /// Which of these limits were run into, that which kills first.
    pub(crate) fn exceeded(&self, counted: Events) -> Vec<Exceeded> {
        let memory = self.memory.filter(|_| counted.memory_kills > 0);
        let processes = self.processes.filter(|_| counted.processes_refused > 0);
        let memory = memory.map(|_| Exceeded::Memory);
        memory.into_iter().chain(processes.map(|_| Exceeded::Processes)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_as_people_write_them() {
        for (text, thousandths, shown) in [
            ("1.5", 1500, "1.5"),
            ("2", 2000, "2"),
            ("0.01", 10, "0.01"),
            (" 0.250 ", 250, "0.25"),
            ("8192", 8_192_000, "8192"),
        ] {
            assert_eq!(text.parse(), Ok(Cpus(thousandths)), "{text}");
            assert_eq!(Cpus(thousandths).to_string(), shown);
        }
        for text in
            ["", ".", ".5", "1.", "0", "0.009", "-1", "+1", "1e3", "0.0001", "8192.001", "99999999999"]
        {
            assert_eq!(text.parse::<Cpus>(), Err(NotCpus), "{text}");
        }
        assert_eq!(Cpus(1500).quota(), 150_000);
    }

    #[test]
    fn processes_limit_themselves_where_no_group_does() {
        let limits = Limits { memory: Some(1 << 20), processes: Some(9), cpus: Some(Cpus(500)) };
        let data = ResourceLimit { resource: Resource::Data, value: 1 << 20 };
        let processes = ResourceLimit { resource: Resource::Processes, value: 9 };
        assert_eq!(Mechanisms::WITHOUT_GROUPS.resource_limits(&limits), [data, processes]);
        assert!(Mechanisms::WITHOUT_GROUPS.cannot_limit_cpus(&limits));
        let partly = Mechanisms { memory: Mechanism::CgroupV1, ..Mechanisms::WITHOUT_GROUPS };
        assert_eq!(partly.resource_limits(&limits), [processes]);
        assert_eq!(Mechanisms::WITHOUT_GROUPS.resource_limits(&Limits::default()), []);
        assert!(!Mechanisms::WITHOUT_GROUPS.cannot_limit_cpus(&Limits::default()));
    }

    #[test]
    fn only_a_limit_that_was_asked_for_can_be_run_into() {
        let counted = Events { memory_kills: 2, processes_refused: 7 };
        let limits = Limits { memory: Some(64), processes: Some(8), cpus: None };
        assert_eq!(limits.exceeded(counted), [Exceeded::Memory, Exceeded::Processes]);
        assert_eq!(limits.exceeded(Events::default()), []);
        assert_eq!(Limits::default().exceeded(counted), []);
    }
}
