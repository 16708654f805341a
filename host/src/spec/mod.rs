//! What was asked for.

pub(crate) mod protection;
mod size;

pub(crate) use size::Size;

use crate::api::types::{self, CreateRequest};
use crate::env::{Environment, EnvironmentError, HOST, PROJECT, Store, packages};
use crate::sys::limits::{Cpus, NotCpus};
use crate::view::{Share, ShareError, WORKSPACE};
use firn_protocol::{Access, MAX_CODE};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
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
    /// How much of the Nix store it sees, if its environment is of store paths.
    pub(crate) store: Store,
    /// What is run in it.
    pub(crate) purpose: Purpose,
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

/// What a sandbox is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Whatever is asked for: commands, and sessions beside them.
    Commands,
    /// Sessions, of its environment's interpreter.
    Sessions,
}

/// The two ways to isolate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
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
    /// Not a number of processors.
    #[error(transparent)]
    Cpus(#[from] NotCpus),
    /// There is no network yet.
    #[error("--network {0} cannot be had: a sandbox has no network (--network off)")]
    Network(String),
    /// Not a program's name.
    #[error("{0:?} is no package name: letters, digits, '_', '.' and '-'")]
    PackageName(String),
    /// A program that has to be there is not.
    #[error(
        "package '{0}' is not among this host's programs, and there is no Nix catalog here to take it from"
    )]
    Package(String),
    /// A path that means something else to whoever reads it.
    #[error("{} is not an absolute path", .0.display())]
    Relative(PathBuf),
    /// A time that is none.
    #[error("{0} must be longer than nothing")]
    NoTime(&'static str),
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
    /// Its environment has no interpreter that lives on.
    #[error("Environment '{0}' does not support sessions (no session_exec configured)")]
    NoSessions(String),
    /// Its environment does not have the interpreter that it claims.
    #[error(
        "the environment {environment} has no {program}, which its sessions need: add it to its packages"
    )]
    NoProgram {
        /// The environment.
        environment: String,
        /// The interpreter.
        program: &'static str,
    },
    /// An artifact's wrapper makes a jail.
    #[error("the environment {0} makes the jail for its sessions itself: ask for one, with --isolation jail")]
    SessionsInVm(String),
    /// Its kernel could not run in one.
    #[error("the environment {0} is a guest with a kernel of its own, for --isolation vm")]
    GuestInJail(String),
    /// Nothing of firn's limits it.
    #[error(
        "--disk cannot be given to the guest {0}: what it writes is in its own memory, which --memory limits"
    )]
    GuestsDisk(String),
    /// It would not be mounted.
    #[error("--store cannot be given to the guest {0}: its image mounts nothing of this host's store")]
    GuestsStore(String),
    /// More than the agent takes.
    #[error("{0} bytes of code are more than {MAX_CODE}, the most there may be")]
    Code(usize),
    /// Nothing to run.
    #[error("no CMD: name a command to run, as in `firn run -- CMD`")]
    NoCommand,
    /// An artifact runs what it reads.
    #[error("the environment {0} runs the code it reads from stdin: leave the command out")]
    CommandOfArtifact(String),
}

/// The memory of a sandbox that nobody gave a size.
pub(super) const USUAL_MEMORY: Size = Size(1 << 30);

/// The processes of a sandbox that nobody gave a number.
const USUAL_PROCESSES: u64 = 2048;

impl Spec {
    /// What a request asks for.
    pub(crate) fn asked(request: &CreateRequest) -> Result<Spec, SpecError> {
        if let Some(network) = request.network.as_ref().filter(|network| *network != "off") {
            return Err(SpecError::Network(network.clone()));
        }
        for (time, name) in [
            (request.lease_ms, "a lease"),
            (request.lifetime_ms, "a lifetime"),
            (request.idle_timeout_ms, "an idle timeout"),
        ] {
            if time == Some(0) {
                return Err(SpecError::NoTime(name));
            }
        }
        request.with.iter().try_for_each(|name| check_package(name))?;
        let environment = match &request.environment {
            None => Environment::Host,
            Some(name) => Environment::find(name.as_os_str())?,
        };
        let memory = request.memory_bytes.map(Size).unwrap_or(match &environment {
            Environment::Host | Environment::Code(_) => USUAL_MEMORY,
            Environment::Guest(guest) => USUAL_MEMORY.max(Size(guest.least_memory())),
            Environment::Artifact(artifact) => Size(artifact.memory),
            Environment::Closure(closure) => Size(closure.metadata.memory),
        });
        let mut shares = Vec::new();
        if let Some(workspace) = &request.workspace {
            let target = match &environment {
                Environment::Artifact(_) => PROJECT,
                _ => WORKSPACE,
            };
            shares.push(Share::workspace(absolute(workspace.host.as_path())?, workspace.access, target)?);
        }
        for mount in &request.mounts {
            let host = absolute(mount.host.as_path())?;
            shares.push(Share::mount(host, mount.target.as_path(), mount.access)?);
        }
        let timeout = match &environment {
            Environment::Host | Environment::Code(_) | Environment::Guest(_) => None,
            Environment::Artifact(artifact) => Some(artifact.timeout),
            Environment::Closure(closure) => Some(closure.metadata.timeout),
        };
        let spec = Spec {
            grade: request.isolation.map_or(Grade::Vm, Grade::from),
            degraded: if request.allow_degraded { Degraded::Allowed } else { Degraded::Refused },
            environment,
            store: request.store.map_or(Store::Closure, Store::from),
            purpose: Purpose::Commands,
            cpus: request.cpus.as_deref().map(str::parse).transpose()?,
            memory,
            disk: Size(request.disk_bytes.unwrap_or(memory.0 / 2)),
            processes: request.processes.unwrap_or(USUAL_PROCESSES),
            timeout,
            output: None,
            shares,
            user: request.user.clone(),
            vmm: request.vmm.map(VmmKind::from),
        };
        spec.check_artifact(request)?;
        spec.check_guest(request)?;
        spec.check()
    }

    /// The same for this purpose, which its environment has to be fit for.
    pub(crate) fn for_purpose(self, purpose: Purpose) -> Result<Spec, SpecError> {
        if purpose == Purpose::Sessions {
            match &self.environment {
                Environment::Host => return Err(SpecError::NoSessions(HOST.to_owned())),
                Environment::Guest(guest) => {
                    return Err(SpecError::NoSessions(guest.name().to_owned()));
                }
                Environment::Code(_) => {}
                Environment::Closure(closure) => {
                    let program = closure.metadata.interpreter.program();
                    if !closure.has(program) {
                        let environment = closure.metadata.name.clone();
                        return Err(SpecError::NoProgram { environment, program });
                    }
                }
                Environment::Artifact(artifact) if artifact.session_run.is_none() => {
                    return Err(SpecError::NoSessions(artifact.name.clone()));
                }
                Environment::Artifact(artifact) if self.grade == Grade::Vm => {
                    return Err(SpecError::SessionsInVm(artifact.name.clone()));
                }
                Environment::Artifact(_) => {}
            }
        }
        Ok(Spec { purpose, ..self })
    }

    /// A wrapper makes its surroundings itself.
    fn check_artifact(&self, request: &CreateRequest) -> Result<(), SpecError> {
        let Environment::Artifact(artifact) = &self.environment else { return Ok(()) };
        let writable = self.shares.iter().any(|share| share.access == Access::ReadWrite);
        for (given, option, instead) in [
            (request.user.is_some(), "--user", ""),
            (request.disk_bytes.is_some() && self.grade == Grade::Jail, "--disk", ""),
            (!request.mounts.is_empty(), "--mount", ": it takes a project, as -w PATH:ro"),
            (request.store.is_some(), "--store", ""),
            (writable, "a writable --workspace", ": it takes a project to read, as -w PATH:ro"),
        ] {
            if given {
                return Err(SpecError::OwnJail { option, environment: artifact.name.clone(), instead });
            }
        }
        Ok(())
    }

    /// A guest image brings its own kernel, init and root.
    fn check_guest(&self, request: &CreateRequest) -> Result<(), SpecError> {
        let Environment::Guest(guest) = &self.environment else { return Ok(()) };
        let (environment, least) = (guest.name().to_owned(), Size(guest.least_memory()));
        match self.grade {
            Grade::Jail => Err(SpecError::GuestInJail(environment)),
            Grade::Vm if request.disk_bytes.is_some() => Err(SpecError::GuestsDisk(environment)),
            Grade::Vm if request.store.is_some() && guest.store.is_none() => {
                Err(SpecError::GuestsStore(environment))
            }
            Grade::Vm if self.memory < least => {
                Err(SpecError::Memory { grade: "vm with this guest image", least, asked: self.memory })
            }
            Grade::Vm => Ok(()),
        }
    }

    /// Whether a jail will do where no vm can be had.
    pub(crate) fn may_be_jail(&self) -> bool {
        self.degraded == Degraded::Allowed && !matches!(self.environment, Environment::Guest(_))
    }

    /// Checks what can be checked without looking at the host.
    pub(crate) fn check(self) -> Result<Spec, SpecError> {
        check_limits(self.grade, Some(self.memory), Some(self.processes))?;
        if self.disk >= self.memory {
            return Err(SpecError::Disk { disk: self.disk, memory: self.memory });
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

/// Refuses limits that a sandbox cannot have, when it is made or later.
pub(crate) fn check_limits(
    grade: Grade,
    memory: Option<Size>,
    processes: Option<u64>,
) -> Result<(), SpecError> {
    let least = match grade {
        Grade::Vm => LEAST_VM_MEMORY,
        Grade::Jail => LEAST_JAIL_MEMORY,
    };
    if let Some(asked) = memory.filter(|memory| !(least..=MOST_MEMORY).contains(memory)) {
        return Err(SpecError::Memory { grade: grade.name(), least, asked });
    }
    match processes.filter(|processes| !(LEAST_PROCESSES..=MOST_PROCESSES).contains(processes)) {
        Some(processes) => Err(SpecError::Processes(processes)),
        None => Ok(()),
    }
}

fn absolute(path: &Path) -> Result<&Path, SpecError> {
    if path.is_absolute() { Ok(path) } else { Err(SpecError::Relative(path.to_owned())) }
}

fn check_package(name: &str) -> Result<(), SpecError> {
    if !packages::is_name(name) {
        return Err(SpecError::PackageName(name.to_owned()));
    }
    if packages::is_there(name) { Ok(()) } else { Err(SpecError::Package(name.to_owned())) }
}

impl From<types::Isolation> for Grade {
    fn from(isolation: types::Isolation) -> Grade {
        match isolation {
            types::Isolation::Jail => Grade::Jail,
            types::Isolation::Vm => Grade::Vm,
        }
    }
}

impl From<Grade> for types::Isolation {
    fn from(grade: Grade) -> types::Isolation {
        match grade {
            Grade::Jail => types::Isolation::Jail,
            Grade::Vm => types::Isolation::Vm,
        }
    }
}

impl From<types::Store> for Store {
    fn from(store: types::Store) -> Store {
        match store {
            types::Store::Closure => Store::Closure,
            types::Store::Host => Store::Host,
        }
    }
}

impl From<Store> for types::Store {
    fn from(store: Store) -> types::Store {
        match store {
            Store::Closure => types::Store::Closure,
            Store::Host => types::Store::Host,
        }
    }
}

impl From<types::Vmm> for VmmKind {
    fn from(vmm: types::Vmm) -> VmmKind {
        match vmm {
            types::Vmm::CloudHypervisor => VmmKind::CloudHypervisor,
            types::Vmm::Qemu => VmmKind::Qemu,
        }
    }
}
