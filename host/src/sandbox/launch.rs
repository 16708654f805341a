//! Bringing a sandbox up, and taking it down.
//!
//! Each step makes a value whose drop undoes it, so a failure, a signal or a panic at any point
//! leaves nothing: `Place` (folder, record, control group) outlives `Vm` (the VMM and its helpers).

use super::store::{Place, Store, StoreError};
use super::{SandboxId, Spec};
use crate::config::{Config, ConfigError, Program};
use crate::sys::facts::host_facts;
use crate::sys::limits::Limits;
use crate::view::{View, host_tools};
use crate::vm::image::{Image, ImageError, Images, KernelSource, Request, Step};
use crate::vm::vmm::backend::{Backend, ChooseError};
use crate::vm::vmm::{Accelerator, Confinement};
use crate::vm::{Bringup, Phase, Vm, VmError};
use std::path::Path;
use tokio::sync::mpsc;
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
    Store(#[from] StoreError),
    /// The guest did not come up.
    #[error(transparent)]
    Vm(#[from] VmError),
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
}

/// A sandbox that takes commands.
#[derive(Debug)]
pub(crate) struct Sandbox {
    // In this order: the place is removed when nothing uses it any more.
    vm: Vm,
    place: Place,
}

impl Sandbox {
    /// Brings up what was asked for.
    pub(crate) async fn launch(
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
        let place = store.claim(backend.device(), &Limits::default())?;
        let hostname = format!("firn-{}", place.id());
        let view = View { base: host_tools(&hostname), shares: spec.shares.clone() };
        let sockets = place.sockets();
        let vm = Bringup {
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
        let vm = vm.run(&mut |phase| progress(Progress::Vm(phase))).await?;
        Ok(Sandbox { vm, place })
    }

    /// Its name.
    pub(crate) fn id(&self) -> SandboxId {
        self.place.id()
    }

    /// The guest.
    pub(crate) fn vm(&mut self) -> &mut Vm {
        &mut self.vm
    }

    /// How well it is isolated, and by what: what is in force, not what was hoped for.
    pub(crate) fn isolation(&self) -> Isolation {
        let vmm = self.vm.vmm();
        Isolation { vmm: vmm.name(), accelerator: vmm.accelerator() }
    }

    /// The folder of its control group, if it has one.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.place.cgroup().path()
    }

    /// Ends it. Nothing is left when this returns.
    pub(crate) async fn destroy(self) {
        let Sandbox { vm, place } = self;
        vm.destroy().await;
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

/// The isolation in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isolation {
    /// The VMM.
    pub(crate) vmm: &'static str,
    /// What runs the guest's instructions.
    pub(crate) accelerator: Accelerator,
}

impl Isolation {
    /// Whether it is less than a vm promises. QEMU's developers do not count its translator as a
    /// security boundary: what holds the guest then is the confinement of QEMU.
    pub(crate) fn degraded(self) -> bool {
        self.accelerator == Accelerator::Software
    }
}
