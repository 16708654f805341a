//! What protects the host from a sandbox: as it was asked for, and as it is in force.

use super::{Grade, Size, Spec};
use crate::env::Environment;
use crate::sys::limits::{Mechanism, Mechanisms};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::time::Duration;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// The processor, through KVM.
    Kvm,
    /// QEMU's translator. Slow, and no security boundary by itself: what holds the guest then is
    /// the confinement of QEMU.
    Software,
}

/// The isolation in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// A jail.
    Jail {
        /// Who made it.
        maker: Maker,
        /// Why it is not the vm that was asked for.
        instead_of_vm: Option<String>,
    },
    /// A microVM.
    Vm {
        /// The VMM.
        vmm: &'static str,
        /// What runs the guest's instructions.
        accelerator: Accelerator,
    },
}

/// Who made a jail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maker {
    /// firn.
    Firn,
    /// The environment's own wrapper: what it shows and keeps away is the environment's decision.
    Environment,
}

impl Isolation {
    /// Which of the two.
    pub(crate) fn grade(&self) -> Grade {
        match self {
            Isolation::Jail { .. } => Grade::Jail,
            Isolation::Vm { .. } => Grade::Vm,
        }
    }

    /// Whether it is less than was asked for. QEMU's developers do not count its translator as a
    /// security boundary: what holds the guest then is the confinement of QEMU.
    pub(crate) fn is_degraded(&self) -> bool {
        match self {
            Isolation::Jail { instead_of_vm, .. } => instead_of_vm.is_some(),
            Isolation::Vm { accelerator, .. } => *accelerator == Accelerator::Software,
        }
    }
}

/// A word of firn's own, or one that came over the API.
type Word = Cow<'static, str>;

/// Everything that is in force, beside what was asked for.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Protection {
    isolation: IsolationReport,
    network: Network,
    limits: Limits,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct IsolationReport {
    requested: Word,
    effective: Word,
    #[serde(skip_serializing_if = "Option::is_none")]
    vmm: Option<Word>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accelerator: Option<Word>,
    /// The guest image that was asked for and is booted. Absent: the lean guest, or no guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<Word>,
    degraded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Network {
    requested: Word,
    effective: Word,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Limits {
    /// Bytes.
    memory: Bound<u64>,
    /// Processes and threads.
    processes: Bound<u64>,
    /// Bytes.
    disk: Bound<u64>,
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<Bound<f64>>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Bound<u64>>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Bound<u64>>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Bound<T> {
    requested: T,
    /// Absent: nothing enforces it.
    #[serde(skip_serializing_if = "Option::is_none")]
    effective: Option<T>,
    by: Word,
}

impl<T: Copy> Bound<T> {
    fn change(&mut self, asked: T) {
        self.requested = asked;
        self.effective = self.effective.map(|_| asked);
    }

    fn new(asked: T, keeper: &'static str) -> Bound<T> {
        Bound { requested: asked, effective: (keeper != NOBODY).then_some(asked), by: keeper.into() }
    }
}

const NOBODY: &str = "none";

/// The agent keeps it, and firn should the agent not.
const AGENT: &str = "agent";

/// A time as protocols and results have it.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The name of who keeps a limit.
fn keeper(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::CgroupV2 => "cgroup v2",
        Mechanism::CgroupV1 => "cgroup v1",
        Mechanism::SystemdScope => "systemd scope",
        Mechanism::Rlimit => "setrlimit, for each process",
        Mechanism::None => NOBODY,
    }
}

impl Protection {
    /// What is in force of `spec`.
    pub(crate) fn new(spec: &Spec, isolation: &Isolation, mechanisms: Mechanisms) -> Protection {
        let (vmm, accelerator, reason) = match isolation {
            Isolation::Jail { instead_of_vm, .. } => (None, None, instead_of_vm.clone()),
            Isolation::Vm { vmm, accelerator: Accelerator::Kvm } => (Some(*vmm), Some("kvm"), None),
            Isolation::Vm { vmm, accelerator: Accelerator::Software } => {
                let reason = "no usable KVM: the guest is emulated in software";
                (Some(*vmm), Some("software"), Some(reason.to_owned()))
            }
        };
        let environment_made = matches!(isolation, Isolation::Jail { maker: Maker::Environment, .. });
        // In a vm the guest's kernel keeps them: it has no more to give.
        let guest = isolation.grade() == Grade::Vm;
        let image = match &spec.environment {
            Environment::Guest(guest) => Some(guest.name().to_owned()),
            _ => None,
        };
        let by = |mechanism| if guest { "guest" } else { keeper(mechanism) };
        Protection {
            isolation: IsolationReport {
                requested: spec.grade.name().into(),
                effective: isolation.grade().name().into(),
                vmm: vmm.map(Word::from),
                accelerator: accelerator.map(Word::from),
                image: image.clone().map(Word::from),
                degraded: isolation.is_degraded(),
                reason,
            },
            network: Network {
                requested: "off".into(),
                effective: if environment_made { "the environment's" } else { "off" }.into(),
            },
            limits: Limits {
                memory: Bound::new(spec.memory.0, by(mechanisms.memory)),
                processes: Bound::new(spec.processes, by(mechanisms.processes)),
                // The root of a guest image is that image's, in the guest's memory.
                disk: Bound::new(
                    spec.disk.0,
                    if environment_made || image.is_some() { NOBODY } else { "tmpfs" },
                ),
                cpus: spec.cpus.map(|cpus| Bound::new(cpus.number(), by(mechanisms.cpus))),
                time: spec.timeout.map(|timeout| Bound::new(milliseconds(timeout), AGENT)),
                output: spec.output.map(|size| Bound::new(size.0, AGENT)),
            },
        }
    }

    /// Other limits than those it was made with.
    pub(crate) fn set_limits(&mut self, memory: Option<u64>, processes: Option<u64>, cpus: Option<f64>) {
        let Limits { memory: of_memory, processes: of_processes, cpus: of_cpus, .. } = &mut self.limits;
        if let Some(bytes) = memory {
            of_memory.change(bytes);
        }
        if let Some(number) = processes {
            of_processes.change(number);
        }
        if let (Some(number), Some(bound)) = (cpus, of_cpus) {
            bound.change(number);
        }
    }

    /// The time that a command of it has.
    pub(crate) fn set_time(&mut self, milliseconds: u64) {
        self.limits.time = Some(Bound::new(milliseconds, AGENT));
    }

    /// How much of a command's output is passed on.
    pub(crate) fn set_output(&mut self, bytes: u64) {
        self.limits.output = Some(Bound::new(bytes, AGENT));
    }

    /// The limit of memory.
    pub(crate) fn memory(&self) -> Size {
        Size(self.limits.memory.requested)
    }

    /// The limit of processes.
    pub(crate) fn processes(&self) -> u64 {
        self.limits.processes.requested
    }

    /// How long a command may take.
    pub(crate) fn time(&self) -> Option<Duration> {
        self.limits.time.as_ref().map(|time| Duration::from_millis(time.requested))
    }

    /// What people should know before they trust it: that it is less than they may think.
    pub(crate) fn remark(&self) -> Option<String> {
        let IsolationReport { effective, accelerator, reason, degraded, .. } = &self.isolation;
        if !degraded {
            return None;
        }
        Some(match (effective.as_ref(), accelerator, reason) {
            ("jail", _, Some(reason)) => {
                format!("no vm can be had ({reason}): this is a jail (degraded isolation)")
            }
            (_, Some(_), _) => {
                "no usable KVM: the microVM is emulated in software (degraded isolation, slow)".to_owned()
            }
            (effective, ..) => format!("this is a {effective} (degraded isolation)"),
        })
    }

    /// What was asked for and what was given, in words: names and values, for people.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let IsolationReport { requested, effective, vmm, accelerator, image, degraded, reason } =
            &self.isolation;
        let both = |asked: &str, given: &str| match asked == given {
            true => given.to_owned(),
            false => format!("{given}, {asked} asked for"),
        };
        let how =
            [vmm, accelerator].into_iter().flatten().map(|word| format!(", {word}")).collect::<String>();
        let degraded = if *degraded { ", degraded" } else { "" };
        let mut rows = vec![("Isolated by:", both(requested, effective) + &how + degraded)];
        rows.extend(reason.clone().map(|reason| ("Because:", reason)));
        rows.extend(image.as_ref().map(|image| ("Guest:", image.to_string())));
        rows.push(("Network is:", both(&self.network.requested, &self.network.effective)));
        let Limits { memory, processes, disk, cpus, time, output } = &self.limits;
        let of = |shown: String, by: &str| match by {
            NOBODY => format!("{shown} asked for, kept by nobody"),
            by => format!("{shown}, kept by {by}"),
        };
        rows.push(("Memory:", of(Size(memory.requested).to_string(), &memory.by)));
        rows.push(("Processes:", of(processes.requested.to_string(), &processes.by)));
        rows.push(("Disk:", of(Size(disk.requested).to_string(), &disk.by)));
        rows.extend(cpus.as_ref().map(|cpus| ("Processors:", of(cpus.requested.to_string(), &cpus.by))));
        rows.extend(time.as_ref().map(|time| {
            let shown = humantime::format_duration(Duration::from_millis(time.requested)).to_string();
            ("Time:", of(shown, &time.by))
        }));
        rows.extend(output.as_ref().map(|size| ("Output:", of(Size(size.requested).to_string(), &size.by))));
        rows
    }

    /// In words, for people.
    pub(crate) fn describe(&self) -> String {
        let IsolationReport { requested, effective, vmm, accelerator, image, degraded, .. } = &self.isolation;
        let booted = image.as_ref().map(|image| format!(", guest {image}")).unwrap_or_default();
        let how = match (vmm, accelerator) {
            (Some(vmm), Some(accelerator)) => format!(" ({vmm}, {accelerator}{booted})"),
            _ => String::new(),
        };
        let degraded = if *degraded { ", degraded" } else { "" };
        let Limits { memory, processes, disk, cpus, .. } = &self.limits;
        let mut limits = format!(
            "memory {} ({}), {} processes ({}), disk {} ({})",
            Size(memory.requested),
            memory.by,
            processes.requested,
            processes.by,
            Size(disk.requested),
            disk.by
        );
        if let Some(cpus) = cpus {
            limits.push_str(&format!(", {} processors ({})", cpus.requested, cpus.by));
        }
        if let Some(time) = self.time() {
            limits.push_str(&format!(", time {}", humantime::format_duration(time)));
        }
        if let Some(output) = &self.limits.output {
            limits.push_str(&format!(", output {}", Size(output.requested)));
        }
        format!(
            "isolation {requested} asked for, {effective} given{how}{degraded}; network {} asked for, {} given; {limits}",
            self.network.requested, self.network.effective
        )
    }
}
