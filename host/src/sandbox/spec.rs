//! What was asked for.

use super::Size;
use crate::env::{Environment, EnvironmentError};
use crate::sys::limits::Cpus;
use crate::view::{Share, ShareError};
use std::time::Duration;

/// A kernel and Debian's smallest userland do not boot in less.
const LEAST_VM_MEMORY: Size = Size(128 << 20);

/// The agent and a shell do not run in less.
const LEAST_JAIL_MEMORY: Size = Size(16 << 20);

/// More than any VMM gives a guest.
const MOST_MEMORY: Size = Size(4 << 40);

/// A processor count that both VMMs take.
const MOST_VCPUS: u32 = 255;

/// A command.
const LEAST_PROCESSES: u64 = 1;

/// The most that Linux can count (`PID_MAX_LIMIT` of linux/threads.h).
const MOST_PROCESSES: u64 = 1 << 22;

/// A sandbox as it was asked for, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// How it is to be isolated.
    pub(crate) grade: Grade,
    /// Whether less than what is asked for will do.
    pub(crate) degraded: Degraded,
    /// The programs it has.
    pub(crate) environment: Environment,
    /// Processors, when a number was named.
    pub(crate) cpus: Option<Cpus>,
    /// Memory.
    pub(crate) memory: Size,
    /// How much can be written to the sandbox's own file system. It is in memory.
    pub(crate) disk: Size,
    /// Processes and threads.
    pub(crate) processes: u64,
    /// How long a command may take.
    pub(crate) timeout: Option<Duration>,
    /// How much of its output is passed on.
    pub(crate) output: Option<Size>,
    /// The caller's folders.
    pub(crate) shares: Vec<Share>,
    /// The user that commands run as, when it is not root.
    pub(crate) user: Option<String>,
    /// The VMM, when one was named.
    pub(crate) vmm: Option<VmmKind>,
}

/// Whether a protection that this host cannot give is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Degraded {
    /// It is.
    Refused,
    /// The caller allowed the weaker one by name.
    Allowed,
}

/// The two ways to isolate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Grade {
    /// Namespaces on the host's own kernel: milliseconds.
    Jail,
    /// A microVM with a kernel of its own.
    Vm,
}

impl Grade {
    /// Its name, as `--isolation` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Grade::Jail => "jail",
            Grade::Vm => "vm",
        }
    }
}

/// The VMMs that can be asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum VmmKind {
    /// cloud-hypervisor. Needs KVM.
    CloudHypervisor,
    /// QEMU, with KVM or in software.
    Qemu,
}

/// What was asked for cannot be given to anybody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// Out of range.
    #[error("a vm has 1 to {MOST_VCPUS} processors, not {0}")]
    Vcpus(Cpus),
    /// Only time can be divided.
    #[error("a vm has whole processors, not {0}; a jail can have a part of one")]
    WholeVcpus(Cpus),
    /// Out of range.
    #[error("a {grade} has {least} to {MOST_MEMORY} of memory, not {asked}")]
    Memory {
        /// Of what.
        grade: &'static str,
        /// It needs this.
        least: Size,
        /// What was asked for.
        asked: Size,
    },
    /// The disk is in memory.
    #[error("the disk ({disk}) is kept in the sandbox's memory ({memory}) and must be smaller")]
    Disk {
        /// What was asked for.
        disk: Size,
        /// What there is.
        memory: Size,
    },
    /// Out of range.
    #[error("a sandbox has {LEAST_PROCESSES} to {MOST_PROCESSES} processes, not {0}")]
    Processes(u64),
    /// A jail has no VMM.
    #[error("--vmm is for --isolation vm")]
    Vmm,
    /// A share cannot be given.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// There is no such environment.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// An artifact's wrapper makes its jail itself.
    #[error("{option} cannot be given to the jail that the environment {environment} makes itself{instead}")]
    OwnJail {
        /// What was asked for.
        option: &'static str,
        /// The environment.
        environment: String,
        /// What can be done.
        instead: &'static str,
    },
    /// Nothing to run.
    #[error("no CMD: name a command to run, as in `firn run -- CMD`")]
    NoCommand,
    /// An artifact runs what it reads.
    #[error("the environment {0} runs the code it reads from stdin: leave the command out")]
    CommandOfArtifact(String),
}

impl Spec {
    /// Checks what can be checked without looking at the host.
    pub(crate) fn check(self) -> Result<Spec, SpecError> {
        let least = match self.grade {
            Grade::Vm => LEAST_VM_MEMORY,
            Grade::Jail => LEAST_JAIL_MEMORY,
        };
        if !(least..=MOST_MEMORY).contains(&self.memory) {
            return Err(SpecError::Memory { grade: self.grade.name(), least, asked: self.memory });
        }
        if self.disk >= self.memory {
            return Err(SpecError::Disk { disk: self.disk, memory: self.memory });
        }
        if !(LEAST_PROCESSES..=MOST_PROCESSES).contains(&self.processes) {
            return Err(SpecError::Processes(self.processes));
        }
        match (self.grade, self.cpus, self.vmm) {
            (Grade::Vm, Some(cpus), _) => {
                let vcpus = cpus.whole().ok_or(SpecError::WholeVcpus(cpus))?;
                if !(1..=MOST_VCPUS).contains(&vcpus) {
                    return Err(SpecError::Vcpus(cpus));
                }
            }
            (Grade::Jail, _, Some(_)) => return Err(SpecError::Vmm),
            _ => {}
        }
        Share::check_all(&self.shares)?;
        Ok(self)
    }
}
