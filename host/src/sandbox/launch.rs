//! Bringing a sandbox up, and taking it down.
//!
//! Each step makes a value whose drop undoes it, so a failure, a signal or a panic at any point
//! leaves nothing: `Place` (folder, record, control group) outlives what runs in it, a `Vm` (the VMM
//! and its helpers) or a `Jail`.

use super::protection::{Isolation, Maker, Protection};
use super::spec::{Degraded, Grade};
use super::store::{Helpers, Place, Store, StoreError};
use super::{SandboxId, Size, Spec};
use crate::causes::in_full;
use crate::config::{Config, ConfigError, Program};
use crate::env::{Environment, Wrapper};
use crate::guest::{Connection, GuestError};
use crate::jail::{self, Jail, JailError};
use crate::sys::facts::host_facts;
use crate::sys::limits::Limits;
use crate::view::{Share, View, host_tools};
use crate::vm::image::{Image, ImageError, Images, KernelSource, Request, Step};
use crate::vm::vmm::Confinement;
use crate::vm::vmm::backend::{Backend, ChooseError};
use crate::vm::{self, Phase, Vm, VmError};
use firn_protocol::Exceeded;
use std::path::Path;
use std::pin::Pin;
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
    Store(#[from] StoreError),
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

/// A sandbox that takes commands.
#[derive(Debug)]
pub(crate) struct Sandbox {
    // In this order: the place is removed when nothing uses it any more.
    inside: Inside,
    isolation: Isolation,
    wrapper: Option<Wrapper>,
    /// Those of its control group.
    limits: Limits,
    place: Place,
}

/// What runs the commands.
#[derive(Debug)]
enum Inside {
    Vm(Box<Vm>),
    Jail(Box<Jail>),
}

impl Sandbox {
    /// Brings up what was asked for.
    pub(crate) async fn launch(
        config: &Config,
        spec: &Spec,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Sandbox, LaunchError> {
        match spec.grade {
            Grade::Vm => match Sandbox::launch_vm(config, spec, progress).await {
                Err(error) if error.no_vm_here() && spec.degraded == Degraded::Allowed => {
                    Sandbox::launch_jail(config, spec, Some(in_full(&error)), progress)
                }
                launched => launched,
            },
            Grade::Jail => Sandbox::launch_jail(config, spec, None, progress),
        }
    }

    async fn launch_vm(
        config: &Config,
        spec: &Spec,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Sandbox, LaunchError> {
        progress(Progress::Image);
        let bwrap = config.program(Program::Bwrap)?;
        let virtiofsd = config.program(Program::Virtiofsd)?;
        let request = Request { kernel: KernelSource::Auto, agent: config.program(Program::Agent)? };
        let image = image(Images::new(&config.cache_dir), request, progress).await?;
        let store = Store::open(&config.runtime_dir)?;
        let backend = Backend::choose(spec.vmm, config, host_facts(&config.runtime_dir))?;
        let limits = Limits {
            memory: Some(spec.memory.0.saturating_add(VM_MEMORY)),
            processes: Some(VM_PROCESSES),
            // The guest has the processors it was given.
            cpus: None,
        };
        let place = store.claim(backend.device(), &limits, Helpers::Several)?;
        let hostname = format!("firn-{}", place.id());
        let mut view = View { base: host_tools(&hostname), shares: spec.shares.clone() };
        let wrapper = match &spec.environment {
            Environment::Host => None,
            Environment::Artifact(artifact) => {
                view.show(&artifact.folder);
                let project = |share: &Share| artifact.project(&share.target, &share.target);
                Some(artifact.wrapper(spec.shares.iter().flat_map(project).collect()))
            }
        };
        let sockets = place.make_sockets()?;
        let vm = vm::Bringup {
            image: &image,
            spec,
            view: &view,
            hostname,
            backend: &backend,
            virtiofsd: &virtiofsd,
            confinement: Confinement {
                bwrap: &bwrap,
                identity: place.identity(),
                cgroup: place.cgroup(),
                sockets: &sockets,
            },
        };
        let vm = vm.run(&mut |phase| progress(Progress::Vm(phase))).await.map_err(Ended::from)?;
        let isolation = Isolation::Vm { vmm: vm.vmm().name(), accelerator: vm.vmm().accelerator() };
        Ok(Sandbox { inside: Inside::Vm(Box::new(vm)), isolation, wrapper, limits, place })
    }

    fn launch_jail(
        config: &Config,
        spec: &Spec,
        instead_of_vm: Option<String>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Sandbox, LaunchError> {
        progress(Progress::Jail);
        let bwrap = config.program(Program::Bwrap)?;
        let agent = config.program(Program::Agent)?;
        let limits = Limits {
            memory: Some(spec.memory.0),
            processes: Some(spec.processes.saturating_add(JAIL_PROCESSES)),
            cpus: spec.cpus,
        };
        let place = Store::open(&config.runtime_dir)?.claim(None, &limits, Helpers::One)?;
        if place.mechanisms().cannot_limit_cpus(&limits) && spec.degraded == Degraded::Refused {
            return Err(LaunchError::Unenforceable);
        }
        let hostname = format!("firn-{}", place.id());
        let bringup = jail::Bringup {
            bwrap: &bwrap,
            agent: &agent,
            spec,
            hostname: &hostname,
            identity: place.identity(),
            cgroup: place.cgroup(),
            folder: place.folder(),
        };
        let (jail, maker, wrapper) = match &spec.environment {
            Environment::Host => {
                let view = View { base: host_tools(&hostname), shares: spec.shares.clone() };
                (bringup.run(&view).map_err(Ended::from)?, Maker::Firn, None)
            }
            Environment::Artifact(artifact) => {
                let (jail, wrapper) = bringup.wrapped(artifact).map_err(Ended::from)?;
                (jail, Maker::Environment, Some(wrapper))
            }
        };
        let isolation = Isolation::Jail { maker, instead_of_vm };
        Ok(Sandbox { inside: Inside::Jail(Box::new(jail)), isolation, wrapper, limits, place })
    }

    /// Its name.
    pub(crate) fn id(&self) -> SandboxId {
        self.place.id()
    }

    /// The connection to its agent, and a future that is ready when the sandbox is no more.
    pub(crate) fn parts(&mut self) -> (&mut Connection, Pin<Box<dyn Future<Output = Ended> + '_>>) {
        match &mut self.inside {
            Inside::Vm(vm) => {
                let (agent, ended) = vm.parts();
                (agent, Box::pin(async { ended.await.into() }))
            }
            Inside::Jail(jail) => {
                let (agent, ended) = jail.parts();
                (agent, Box::pin(async { ended.await.into() }))
            }
        }
    }

    /// Has everything that is shared written back.
    pub(crate) async fn sync(&mut self) -> Result<(), Ended> {
        match &mut self.inside {
            Inside::Vm(vm) => Ok(vm.sync().await?),
            // What a jail writes is the host's at once.
            Inside::Jail(_) => Ok(()),
        }
    }

    /// The last of its console, if it has one.
    pub(crate) fn console(&self) -> String {
        match &self.inside {
            Inside::Vm(vm) => vm.console(),
            Inside::Jail(_) => String::new(),
        }
    }

    /// What runs code in it, if not a command of the caller's choice.
    pub(crate) fn wrapper(&self) -> Option<&Wrapper> {
        self.wrapper.as_ref()
    }

    /// How well it is isolated, and by what: what is in force, not what was hoped for.
    pub(crate) fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// What is in force of all that was asked for.
    pub(crate) fn protection(&self, spec: &Spec) -> Protection {
        Protection::new(spec, &self.isolation, self.place.mechanisms())
    }

    /// What every process has to put on itself, because no control group does.
    pub(crate) fn resource_limits(&self, spec: &Spec) -> Vec<firn_protocol::ResourceLimit> {
        let limits = Limits { memory: Some(spec.memory.0), processes: Some(spec.processes), cpus: None };
        match &self.inside {
            Inside::Vm(_) => Vec::new(),
            Inside::Jail(_) => self.place.mechanisms().resource_limits(&limits),
        }
    }

    /// The limits that its control group has seen it run into. Those of a guest are the guest's to
    /// tell.
    pub(crate) fn exceeded(&self) -> Vec<Exceeded> {
        match &self.inside {
            Inside::Vm(_) => Vec::new(),
            Inside::Jail(_) => self.limits.exceeded(self.place.cgroup().events()),
        }
    }

    /// Why it ended, if the kernel says that the limits of its control group are why.
    pub(crate) fn why(&self, ended: Ended) -> Ended {
        match self.limits.memory {
            Some(memory) if self.place.cgroup().events().memory_kills > 0 => Ended::Memory(Size(memory)),
            _ => ended,
        }
    }

    /// The folder of its control group, if it has one.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.place.cgroup().path()
    }

    /// Ends it. Nothing is left when this returns.
    pub(crate) async fn destroy(self) {
        let Sandbox { inside, place, .. } = self;
        match inside {
            Inside::Vm(vm) => vm.destroy().await,
            Inside::Jail(jail) => jail.destroy().await,
        }
        drop(place);
    }
}

/// Gets the guest image. Making one takes seconds, in which signals must still be heard.
async fn image(
    images: Images,
    request: Request,
    progress: &mut dyn FnMut(Progress),
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
