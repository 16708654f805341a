//! Bringing a sandbox up, taking one over, and taking it down.
//!
//! Each step makes a value whose drop undoes it, so a failure or a panic at any point leaves nothing:
//! `Place` (folder and control group) outlives what runs in it, a `Vm` (the VMM and its helpers) or a
//! `Jail`. Everything is written down before it is made, so what a killed daemon leaves is undone by the
//! next one, or taken over if it had come up.

mod guest;
mod jail;
mod sight;

pub(super) use guest::spare_vm;
pub(super) use jail::{spare_jail, with_ours};

use super::manager::OperationError;
use super::place::{self, Place, PlaceError, Site};
use super::spare::{self, Spare};
use crate::causes::in_full;
use crate::config::{Config, ConfigError};
use crate::env::{Environment, Interpreter, Wrapper};
use crate::guest::{Dialer, GuestError};
use crate::jail::{Jail, JailError};
use crate::spec::Grade;
use crate::spec::protection::{Isolation, Maker, Protection, milliseconds};
use crate::spec::{Size, Spec};
use crate::sys::cgroup::{Cgroup, Usage};
use crate::sys::limits::{Events, Limits, Mechanisms};
use crate::sys::process::{Mounts, ProcessId, Unmounting};
use crate::vm::image::{ImageError, Step};
use crate::vm::vmm::backend::ChooseError;
use crate::vm::{self, Phase, Vm, VmError};
use firn_protocol::{Exceeded, ResourceLimit};
use guest::Ground;
use serde::{Deserialize, Serialize};
use sight::Sight;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinError;

/// A sandbox that could not be brought up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// Something a sandbox needs is not installed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No VMM can run it.
    #[error(transparent)]
    Choose(#[from] ChooseError),
    /// There is no guest image and none could be built.
    #[error("cannot get a guest image")]
    Image(#[from] ImageError),
    /// Making the image was cut short.
    #[error("cannot get a guest image")]
    Interrupted(#[source] JoinError),
    /// Its place could not be made.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// What it takes to take it over could not be written down.
    #[error("cannot write the record of the sandbox")]
    Remains(#[source] serde_json::Error),
    /// No interpreter can wait in it.
    #[error("its interpreter did not start: {0}")]
    NotInterpreted(String),
    /// Nobody wants it any more.
    #[error("its end was asked for before it came up")]
    Abandoned,
    /// It ended before it took a command: it never came up.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// A guest image is for a vm.
    #[error("the environment {0} is a guest with a kernel of its own: there can be no jail in its place")]
    NoJail(String),
    /// Nothing on this host can enforce a limit that was asked for.
    #[error("processor time cannot be limited here: no control group with the cpu controller can be made")]
    Unenforceable,
}

impl LaunchError {
    /// Whether this host cannot give a vm at all, whatever is tried.
    fn no_vm_here(&self) -> bool {
        matches!(self, LaunchError::Config(_) | LaunchError::Choose(_) | LaunchError::Image(_))
    }
}

/// A sandbox that ended although it should not have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// The guest did.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The jail did.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// Its agent does not behave.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The kernel ended it because it had no memory left.
    #[error("killed: memory limit {0}")]
    Memory(Size),
    /// It ended while no daemon ran.
    #[error("it ended while no daemon ran")]
    Unseen,
}

/// How far it has come, for those who wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The guest image is looked for.
    Image,
    /// The guest image is being built.
    Building(Step),
    /// The guest comes up.
    Vm(Phase),
    /// The jail comes up.
    Jail,
}

/// A sandbox that takes commands. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Sandbox {
    // In this order: the place is removed when nothing uses it any more.
    inside: Inside,
    up: Arc<Up>,
    facts: Facts,
    place: Place,
}

/// What runs the commands.
#[derive(Debug)]
enum Inside {
    Vm(Box<Vm>),
    Jail(Box<Jail>),
}

/// What is to be known of a sandbox to use it.
#[derive(Debug)]
pub(crate) struct Up {
    /// Which it is.
    pub(crate) grade: Grade,
    /// The way to its agent.
    pub(crate) dialer: Dialer,
    /// Its control group.
    pub(crate) cgroup: Arc<Cgroup>,
    /// The processes that it was made of.
    pub(crate) processes: Vec<ProcessId>,
    /// The one that it lives and dies with.
    pub(crate) pid: Option<u32>,
    /// What was asked for and what was given.
    pub(crate) protection: Protection,
    /// What runs code in it, if not a command of the caller's choice.
    pub(crate) wrapper: Option<Wrapper>,
    /// What runs code in it.
    pub(crate) interpreter: Option<Interpreter>,
    /// What has started to run code already, and nobody has yet. See [`spare::Kind`].
    pub(crate) waiting: Mutex<Option<Interpreter>>,
    /// Who commands are, when nobody says.
    pub(crate) user: Option<String>,
    /// How long they may take, when nobody says.
    pub(crate) timeout: Option<Duration>,
    /// What every process has to put on itself, because no control group does.
    pub(crate) resource_limits: Vec<ResourceLimit>,
    /// The limit of its memory on the host, in bytes.
    pub(crate) memory_limit: Option<u64>,
    /// Those of its control group.
    limits: Limits,
    /// How many processes that were killed for want of memory some command was told of.
    told: AtomicU64,
}

/// What is known of a sandbox and does not change: written down with its [`Remains`].
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Facts {
    grade: Grade,
    protection: Protection,
    wrapper: Option<Wrapper>,
    #[serde(default)]
    interpreter: Option<Interpreter>,
    user: Option<String>,
    timeout_ms: Option<u64>,
    resource_limits: Vec<ResourceLimit>,
    memory_limit: Option<u64>,
    limits: Limits,
    /// Whether something is shared that has to be written back.
    shares: bool,
}

/// What another daemon needs to take a sandbox over.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Remains {
    place: place::Remains,
    facts: Facts,
    inside: InsideRemains,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum InsideRemains {
    Vm(vm::Remains),
    Jail(crate::jail::Remains),
}

impl Up {
    /// The limits of the control group that were run into since it had counted `before`. Those of a guest
    /// are the guest's to tell.
    pub(crate) fn exceeded(&self, before: Events) -> Vec<Exceeded> {
        match self.grade {
            Grade::Vm => Vec::new(),
            Grade::Jail => {
                let now = self.cgroup.events();
                self.told.store(now.memory_kills, Ordering::Relaxed);
                self.limits.exceeded(now.since(before))
            }
        }
    }

    /// What all of it uses of the host.
    pub(crate) fn usage(&self) -> Usage {
        self.cgroup.usage(&self.processes)
    }
}

impl Sandbox {
    /// Brings up what was asked for, at `site`: from a spare that is there already, if one is given.
    pub(crate) async fn launch(
        config: &Config,
        spec: &Spec,
        spare: Option<Spare>,
        site: Site,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Sandbox, LaunchError> {
        if let Some(spare) = spare {
            match Sandbox::from_spare(config, spec, spare, progress).await {
                Ok(sandbox) => return Ok(sandbox),
                // It has waited for long and may be dead. Nothing of it is left.
                Err(error) => tracing::warn!(error = in_full(&error), "a spare was of no use"),
            }
        }
        match spec.grade {
            Grade::Vm => match Sandbox::launch_vm(config, spec, site.clone(), progress).await {
                Err(error) if error.no_vm_here() && spec.may_be_jail() => {
                    Sandbox::launch_jail(config, spec, site, Some(in_full(&error)), progress)
                }
                launched => launched,
            },
            Grade::Jail => Sandbox::launch_jail(config, spec, site, None, progress),
        }
    }

    async fn from_spare(
        config: &Config,
        spec: &Spec,
        spare: Spare,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Sandbox, LaunchError> {
        let Spare { kind, place, .. } = spare;
        match kind {
            spare::Kind::Vm(mut guest, _) => {
                progress(Progress::Vm(Phase::Attaching));
                let sight = Sight::of(spec, place.id());
                let exports = sight.export(config, spec, &place)?;
                guest.attach(exports).await.map_err(Ended::from)?;
                sight.configure(*guest, spec, place, progress).await
            }
            spare::Kind::Jail(jail, waiting) => {
                progress(Progress::Jail);
                let isolation = Isolation::Jail { maker: Maker::Firn, instead_of_vm: None };
                let facts = Facts::new(spec, &isolation, place.mechanisms(), jail::limits(spec), None);
                let sandbox = Sandbox::new(Inside::Jail(jail), place, facts);
                *sandbox.up.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
                Ok(sandbox)
            }
        }
    }

    async fn launch_vm(
        config: &Config,
        spec: &Spec,
        site: Site,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Sandbox, LaunchError> {
        let ground = Ground::make(config, spec, site, progress).await?;
        let sight = Sight::of(spec, ground.place.id());
        let exports = sight.export(config, spec, &ground.place)?;
        let (guest, place, _) = ground.boot(config, spec, exports, progress).await?;
        sight.configure(guest, spec, place, progress).await
    }

    fn launch_jail(
        config: &Config,
        spec: &Spec,
        site: Site,
        instead_of_vm: Option<String>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Sandbox, LaunchError> {
        progress(Progress::Jail);
        let (jail, place, maker, wrapper) = jail::start(config, spec, site)?;
        let isolation = Isolation::Jail { maker, instead_of_vm };
        let facts = Facts::new(spec, &isolation, place.mechanisms(), jail::limits(spec), wrapper);
        Ok(Sandbox::new(Inside::Jail(Box::new(jail)), place, facts))
    }

    fn new(inside: Inside, place: Place, facts: Facts) -> Sandbox {
        let known = facts.clone();
        let (dialer, helpers) = match &inside {
            Inside::Vm(vm) => (vm.dialer(), vm.processes()),
            Inside::Jail(jail) => (jail.dialer(), jail.processes()),
        };
        let up = Up {
            grade: known.grade,
            dialer,
            cgroup: Arc::clone(place.cgroup()),
            pid: helpers.first().map(|id| id.pid()),
            processes: helpers,
            protection: known.protection,
            wrapper: known.wrapper,
            interpreter: known.interpreter,
            user: known.user,
            timeout: known.timeout_ms.map(Duration::from_millis),
            resource_limits: known.resource_limits,
            memory_limit: known.memory_limit,
            limits: known.limits,
            told: AtomicU64::new(0),
            waiting: Mutex::new(None),
        };
        Sandbox { inside, up: Arc::new(up), facts, place }
    }

    /// Takes over one that another daemon brought up, if it still lives.
    pub(crate) async fn adopt(site: Site, remains: Remains) -> Result<Sandbox, Ended> {
        let Remains { place, facts, inside } = remains;
        let place = site.adopt(place);
        let adopted = match &inside {
            InsideRemains::Vm(remains) => Vm::adopt(remains, place.folder(), &place.sockets())
                .await
                .map(|vm| vm.map(|vm| Inside::Vm(Box::new(vm))))
                .map_err(Ended::from),
            InsideRemains::Jail(remains) => Jail::adopt(remains, place.folder())
                .map(|jail| jail.map(|jail| Inside::Jail(Box::new(jail))))
                .map_err(Ended::from),
        };
        match adopted.and_then(|inside| inside.ok_or(Ended::Unseen)) {
            Ok(inside) => Ok(Sandbox::new(inside, place, facts)),
            Err(ended) => {
                // What is left of it is removed by what is written down.
                place.release();
                Err(ended)
            }
        }
    }

    /// What another daemon needs to take it over.
    pub(crate) fn remains(&self) -> Remains {
        Remains {
            place: self.place.remains(),
            facts: self.facts.clone(),
            inside: match &self.inside {
                Inside::Vm(vm) => InsideRemains::Vm(vm.remains()),
                Inside::Jail(jail) => InsideRemains::Jail(jail.remains()),
            },
        }
    }

    /// What is to be known to use it.
    pub(crate) fn up(&self) -> Arc<Up> {
        Arc::clone(&self.up)
    }

    /// Returns when it is no more, which nobody asked for. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> Ended {
        match &mut self.inside {
            Inside::Vm(vm) => vm.ended().await.into(),
            Inside::Jail(jail) => jail.ended().await.into(),
        }
    }

    /// Has everything that is shared written back. A vm takes no more commands then.
    pub(crate) async fn sync(&mut self) -> Result<(), Ended> {
        match &mut self.inside {
            Inside::Vm(vm) if self.facts.shares => Ok(vm.sync().await?),
            // What a jail writes is the host's at once, and what a guest writes into itself is nobody's.
            Inside::Vm(_) | Inside::Jail(_) => Ok(()),
        }
    }

    /// Has it stand still.
    pub(crate) async fn pause(&mut self) -> Result<(), OperationError> {
        match &mut self.inside {
            Inside::Vm(vm) => vm.pause(self.place.cgroup()).await.map_err(failed),
            Inside::Jail(jail) => jail.pause(self.place.cgroup()).await.map_err(OperationError::Pause),
        }
    }

    /// Has it go on.
    pub(crate) async fn resume(&mut self) -> Result<(), OperationError> {
        match &mut self.inside {
            Inside::Vm(vm) => vm.resume(self.place.cgroup()).await.map_err(failed),
            Inside::Jail(jail) => jail.resume(self.place.cgroup()).map_err(OperationError::Pause),
        }
    }

    /// Has its control group hold it to what is named.
    pub(crate) fn limit(&self, limits: &Limits) -> Result<(), OperationError> {
        self.place.cgroup().limit(limits).map_err(OperationError::Limit)
    }

    /// The last of its console, if it has one.
    pub(crate) fn console(&self) -> String {
        match &self.inside {
            Inside::Vm(vm) => vm.console(),
            Inside::Jail(_) => String::new(),
        }
    }

    /// Why it ended, if the kernel says that the limits of its control group are why.
    pub(crate) fn why(&self, ended: Ended) -> Ended {
        match self.facts.limits.memory {
            Some(memory)
                if self.place.cgroup().events().memory_kills > self.up.told.load(Ordering::Relaxed) =>
            {
                Ended::Memory(Size(memory))
            }
            _ => ended,
        }
    }

    /// Lets it live on, for another daemon.
    pub(crate) fn release(self) {
        let Sandbox { inside, place, .. } = self;
        match inside {
            Inside::Vm(vm) => vm.release(),
            Inside::Jail(jail) => jail.release(),
        }
        place.release();
    }

    /// Ends it. Nothing is left when this returns, but maybe what only the sandbox has seen, which is none of
    /// the caller's folders: that goes with the result.
    pub(crate) async fn destroy(self) -> Mounts {
        let Sandbox { inside, place, facts, .. } = self;
        let mut mounts = Mounts::default();
        match inside {
            Inside::Vm(vm) => vm.destroy(place.cgroup()).await,
            Inside::Jail(jail) => {
                let lean = jail.is_lean();
                let meanwhile = || {
                    if lean {
                        // What does not work is tried again below.
                        let _ = place.remove_folder();
                    }
                };
                let unmounting = if facts.shares { Unmounting::First } else { Unmounting::Later };
                mounts = jail.destroy(place.cgroup(), unmounting, meanwhile).await;
                if lean && place.is_vacant() {
                    // Less than it takes to have another thread do it.
                    drop(place);
                    return mounts;
                }
            }
        }
        remove(place).await;
        mounts
    }
}

/// Removes a place that nothing uses any more. It waits for processes to be gone.
pub(super) async fn remove(place: Place) {
    let _ = tokio::task::spawn_blocking(move || drop(place)).await;
}

impl Facts {
    fn new(
        spec: &Spec,
        isolation: &Isolation,
        mechanisms: Mechanisms,
        limits: Limits,
        wrapper: Option<Wrapper>,
    ) -> Facts {
        let asked = Limits { memory: Some(spec.memory.0), processes: Some(spec.processes), cpus: None };
        let grade = isolation.grade();
        Facts {
            grade,
            protection: Protection::new(spec, isolation, mechanisms),
            interpreter: match &spec.environment {
                Environment::Code(interpreter) => Some(*interpreter),
                Environment::Closure(closure) => Some(closure.metadata.interpreter),
                // With a wrapper for code only the wrapper can run some.
                Environment::Artifact(artifact) if wrapper.is_none() => Some(artifact.interpreter),
                Environment::Host | Environment::Artifact(_) | Environment::Guest(_) => None,
            },
            wrapper,
            user: spec.user.clone(),
            timeout_ms: spec.timeout.map(milliseconds),
            resource_limits: match grade {
                Grade::Vm => Vec::new(),
                Grade::Jail => mechanisms.resource_limits(&asked),
            },
            memory_limit: limits.memory,
            limits,
            shares: !spec.shares.is_empty(),
        }
    }
}

fn failed(error: impl Into<Ended>) -> OperationError {
    OperationError::Sandbox(Arc::new(error.into()))
}
