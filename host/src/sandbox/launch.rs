//! Bringing a sandbox up, taking one over, and taking it down.
//!
//! Each step makes a value whose drop undoes it, so a failure or a panic at any point leaves nothing:
//! `Place` (folder and control group) outlives what runs in it, a `Vm` (the VMM and its helpers) or a
//! `Jail`. Everything is written down before it is made, so what a killed daemon leaves is undone by the
//! next one, or taken over if it had come up.

use super::SandboxId;
use super::manager::OperationError;
use super::place::{self, Helpers, Place, PlaceError, Site};
use super::spare::{self, Spare};
use crate::causes::in_full;
use crate::config::{Config, ConfigError, Program};
use crate::env::{Environment, Interpreter, Wrapper};
use crate::guest::{Dialer, GuestError};
use crate::jail::{self, Jail, JailError};
use crate::spec::protection::{Isolation, Maker, Protection, milliseconds};
use crate::spec::{Degraded, Grade};
use crate::spec::{Size, Spec};
use crate::sys::cgroup::{Cgroup, Usage};
use crate::sys::facts::host_facts;
use crate::sys::limits::{Events, Limits, Mechanisms};
use crate::sys::process::{Mounts, ProcessId, Station, Unmounting};
use crate::view::export::Export;
use crate::view::{Share, View, closure_tools, host_tools};
use crate::vm::image::{Image, ImageError, Images, KernelSource, Request, Step};
use crate::vm::vmm::Confinement;
use crate::vm::vmm::backend::{Backend, ChooseError};
use crate::vm::{self, Boot, Exporter, Guest, Phase, Vm, VmError};
use firn_protocol::{Exceeded, ResourceLimit};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinError;

/// Processes of a jail that are not the command's: bubblewrap outside, the agent, and the supervisor
/// of the command.
const JAIL_PROCESSES: u64 = 3;

/// What the VMM and its helpers may use beside the guest's memory, in bytes: a few times what they
/// do (docs/BENCHMARKS.md), since a guest that drives them further may be up to no good. The files
/// they read count until the kernel wants their memory back.
const VM_MEMORY: u64 = 1 << 30;

/// How many threads they may have. QEMU starts some for each processor and each queue, virtiofsd for
/// what it is asked.
const VM_PROCESSES: u64 = 1024;

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
    /// Nobody wants it any more.
    #[error("its end was asked for before it came up")]
    Abandoned,
    /// It ended before it took a command: it never came up.
    #[error(transparent)]
    Ended(#[from] Ended),
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
    Jail(jail::Remains),
}

/// How many processes a jail's control group is held to, when its commands may have so many.
pub(crate) fn with_ours(processes: u64) -> u64 {
    processes.saturating_add(JAIL_PROCESSES)
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
                Err(error) if error.no_vm_here() && spec.degraded == Degraded::Allowed => {
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
            spare::Kind::Jail(jail) => {
                progress(Progress::Jail);
                let isolation = Isolation::Jail { maker: Maker::Firn, instead_of_vm: None };
                let facts = Facts::new(spec, &isolation, place.mechanisms(), jail_limits(spec), None);
                Ok(Sandbox::new(Inside::Jail(jail), place, facts))
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
        let (jail, place, maker, wrapper) = start_jail(config, spec, site)?;
        let isolation = Isolation::Jail { maker, instead_of_vm };
        let facts = Facts::new(spec, &isolation, place.mechanisms(), jail_limits(spec), wrapper);
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

/// A guest that knows nothing, for whoever will ask for one like `spec`.
pub(super) async fn spare_vm(
    config: &Config,
    spec: &Spec,
    site: Site,
) -> Result<(spare::Kind, Place), LaunchError> {
    let mut nobody_listens = |_| {};
    let ground = Ground::make(config, spec, site, &mut nobody_listens).await?;
    let (guest, place, backend) = ground.boot(config, spec, Vec::new(), &mut nobody_listens).await?;
    Ok((spare::Kind::Vm(Box::new(guest), backend), place))
}

/// A jail, for whoever will ask for one like `spec`.
pub(super) async fn spare_jail(
    config: &Config,
    spec: &Spec,
    site: Site,
) -> Result<(spare::Kind, Place), LaunchError> {
    let (jail, place, ..) = start_jail(config, spec, site)?;
    let dialer = jail.dialer();
    let answered = async { dialer.dial().await?.ping().await };
    tokio::select! {
        answered = answered => answered.map_err(Ended::from)?,
        ended = jail.ended() => return Err(Ended::from(ended).into()),
    }
    Ok((spare::Kind::Jail(Box::new(jail)), place))
}

/// What a vm is made from, before anything of it runs.
struct Ground {
    place: Place,
    backend: Backend,
    image: Image,
}

impl Ground {
    async fn make(
        config: &Config,
        spec: &Spec,
        site: Site,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Ground, LaunchError> {
        progress(Progress::Image);
        // What is missing is told before seconds are spent on an image.
        config.program(Program::Bwrap)?;
        config.program(Program::Virtiofsd)?;
        let request = Request { kernel: KernelSource::Auto, agent: config.program(Program::Agent)? };
        let image = image(Images::new(&config.cache_dir), request, progress).await?;
        let backend = Backend::choose(spec.vmm, config, host_facts(&config.runtime_dir))?;
        let place = site.claim(backend.device(), &vm_limits(spec), Helpers::Several)?;
        place.make_sockets()?;
        Ok(Ground { place, backend, image })
    }

    /// Boots the guest, with these exports.
    async fn boot(
        self,
        config: &Config,
        spec: &Spec,
        exports: Vec<Export>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(Guest, Place, Backend), LaunchError> {
        let Ground { place, backend, image } = self;
        let bwrap = config.program(Program::Bwrap)?;
        let record = |role: &'static str, id| place.record(role, id);
        let boot = Boot {
            image: &image,
            spec,
            backend: &backend,
            confinement: Confinement {
                bwrap: &bwrap,
                identity: place.identity(),
                station: Station { cgroup: place.cgroup(), folder: place.folder(), record: &record },
                sockets: &place.sockets(),
            },
        };
        let guest = boot.run(exports, &mut |phase| progress(Progress::Vm(phase))).await;
        Ok((guest.map_err(Ended::from)?, place, backend))
    }
}

/// What a guest is to see of the host.
struct Sight {
    hostname: String,
    view: View,
    wrapper: Option<Wrapper>,
}

impl Sight {
    fn of(spec: &Spec, id: SandboxId) -> Sight {
        let hostname = format!("firn-{id}");
        let view = |base| View { base, shares: spec.shares.clone() };
        let (view, wrapper) = match &spec.environment {
            Environment::Host | Environment::Code(_) => (view(host_tools(&hostname)), None),
            Environment::Artifact(artifact) => {
                let mut view = view(host_tools(&hostname));
                view.show(&artifact.folder);
                let project = |share: &Share| artifact.project(&share.target, &share.target);
                (view, Some(artifact.wrapper(spec.shares.iter().flat_map(project).collect())))
            }
            Environment::Closure(closure) => {
                (view(closure_tools(closure, &hostname)), Some(closure.wrapper()))
            }
        };
        Sight { hostname, view, wrapper }
    }

    /// Starts what exports it.
    fn export(&self, config: &Config, spec: &Spec, place: &Place) -> Result<Vec<Export>, LaunchError> {
        let (bwrap, virtiofsd) = (config.program(Program::Bwrap)?, config.program(Program::Virtiofsd)?);
        let record = |role: &'static str, id| place.record(role, id);
        let exporter = Exporter {
            bwrap: &bwrap,
            virtiofsd: &virtiofsd,
            identity: place.identity(),
            station: Station { cgroup: place.cgroup(), folder: place.folder(), record: &record },
            sockets: &place.sockets(),
        };
        Ok(vm::exports(&exporter, spec, &self.view).map_err(Ended::from)?)
    }

    /// Makes a guest that has the exports the sandbox.
    async fn configure(
        self,
        guest: Guest,
        spec: &Spec,
        place: Place,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Sandbox, LaunchError> {
        progress(Progress::Vm(Phase::Configuring));
        let vm = guest.configure(spec, &self.view, self.hostname).await.map_err(Ended::from)?;
        let isolation = Isolation::Vm { vmm: vm.vmm().name(), accelerator: vm.vmm().accelerator() };
        let facts = Facts::new(spec, &isolation, place.mechanisms(), vm_limits(spec), self.wrapper);
        Ok(Sandbox::new(Inside::Vm(Box::new(vm)), place, facts))
    }
}

fn vm_limits(spec: &Spec) -> Limits {
    Limits {
        memory: Some(spec.memory.0.saturating_add(VM_MEMORY)),
        processes: Some(VM_PROCESSES),
        // The guest has the processors it was given.
        cpus: None,
    }
}

fn jail_limits(spec: &Spec) -> Limits {
    Limits { memory: Some(spec.memory.0), processes: Some(with_ours(spec.processes)), cpus: spec.cpus }
}

fn start_jail(
    config: &Config,
    spec: &Spec,
    site: Site,
) -> Result<(Jail, Place, Maker, Option<Wrapper>), LaunchError> {
    let bwrap = config.program(Program::Bwrap)?;
    let agent = config.program(Program::Agent)?;
    let limits = jail_limits(spec);
    let id = site.id;
    let hostname = format!("firn-{id}");
    let place = site.claim(None, &limits, Helpers::One)?;
    if place.mechanisms().cannot_limit_cpus(&limits) && spec.degraded == Degraded::Refused {
        return Err(LaunchError::Unenforceable);
    }
    let record = |role: &'static str, id| place.record(role, id);
    let bringup = jail::Bringup {
        bwrap: &bwrap,
        agent: &agent,
        spec,
        hostname: &hostname,
        identity: place.identity(),
        station: Station { cgroup: place.cgroup(), folder: place.folder(), record: &record },
    };
    let (jail, maker, wrapper) = match &spec.environment {
        Environment::Host | Environment::Code(_) | Environment::Closure(_) => {
            let Sight { view, wrapper, .. } = Sight::of(spec, id);
            (bringup.run(&view).map_err(Ended::from)?, Maker::Firn, wrapper)
        }
        Environment::Artifact(artifact) => {
            let (jail, wrapper) = bringup.wrapped(artifact).map_err(Ended::from)?;
            (jail, Maker::Environment, Some(wrapper))
        }
    };
    Ok((jail, place, maker, wrapper))
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
            wrapper,
            interpreter: match &spec.environment {
                Environment::Code(interpreter) => Some(*interpreter),
                Environment::Closure(closure) => Some(closure.metadata.interpreter),
                Environment::Host | Environment::Artifact(_) => None,
            },
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

/// Gets the guest image. Making one takes seconds, in which its end can still be asked for.
async fn image(
    images: Images,
    request: Request,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Image, LaunchError> {
    let (tell, mut told) = mpsc::channel(16);
    let mut making = tokio::task::spawn_blocking(move || {
        images.ensure(&request, &mut |step| {
            // Nobody listens any more when the launch was given up.
            let _ = tell.blocking_send(step);
        })
    });
    loop {
        tokio::select! {
            Some(step) = told.recv() => progress(Progress::Building(step)),
            made = &mut making => return Ok(made.map_err(LaunchError::Interrupted)??),
        }
    }
}
