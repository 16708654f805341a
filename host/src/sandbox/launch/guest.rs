//! The parts that a vm comes up from: what it stands on, what it sees, and the guest itself.

use super::sight::Sight;
use super::{Ended, Facts, Inside, LaunchError, Progress, Sandbox};
use crate::config::{Config, Program};
use crate::env::Environment;
use crate::sandbox::place::{Helpers, Place, Site};
use crate::sandbox::spare;
use crate::spec::Spec;
use crate::spec::protection::Isolation;
use crate::sys::facts::host_facts;
use crate::sys::limits::Limits;
use crate::sys::process::Station;
use crate::view::export::Export;
use crate::vm::image::{Image, Images, KernelSource, Request};
use crate::vm::vmm::Confinement;
use crate::vm::vmm::backend::Backend;
use crate::vm::{self, Boot, Exporter, Guest, Phase};
use tokio::sync::mpsc;

/// What the VMM and its helpers may use beside the guest's memory, in bytes: a few times what they
/// do (docs/BENCHMARKS.md), since a guest that drives them further may be up to no good. The files
/// they read count until the kernel wants their memory back.
const VM_MEMORY: u64 = 1 << 30;

/// How many threads they may have. QEMU starts some for each processor and each queue, virtiofsd for
/// what it is asked.
const VM_PROCESSES: u64 = 1024;

/// A guest that knows nothing, for whoever will ask for one like `spec`.
pub(in crate::sandbox) async fn spare_vm(
    config: &Config,
    spec: &Spec,
    site: Site,
) -> Result<(spare::Kind, Place), LaunchError> {
    let mut nobody_listens = |_| {};
    let ground = Ground::make(config, spec, site, &mut nobody_listens).await?;
    let (guest, place, backend) = ground.boot(config, spec, Vec::new(), &mut nobody_listens).await?;
    Ok((spare::Kind::Vm(Box::new(guest), backend), place))
}

/// What a vm is made from, before anything of it runs.
pub(super) struct Ground {
    pub(super) place: Place,
    backend: Backend,
    image: Image,
}

impl Ground {
    pub(super) async fn make(
        config: &Config,
        spec: &Spec,
        site: Site,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Ground, LaunchError> {
        progress(Progress::Image);
        // What is missing is told before seconds are spent on an image.
        config.program(Program::Bwrap)?;
        config.program(Program::Virtiofsd)?;
        let image = match &spec.environment {
            Environment::Guest(guest) => guest.image.clone(),
            _ => {
                let request = Request { kernel: KernelSource::Auto, agent: config.program(Program::Agent)? };
                image(Images::new(&config.cache_dir), request, progress).await?
            }
        };
        let backend = Backend::choose(spec.vmm, config, host_facts(&config.runtime_dir))?;
        let place = site.claim(backend.device(), &limits(spec), Helpers::Several)?;
        place.make_sockets()?;
        Ok(Ground { place, backend, image })
    }

    /// Boots the guest, with these exports.
    pub(super) async fn boot(
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

impl Sight {
    /// Starts what exports it.
    pub(super) fn export(
        &self,
        config: &Config,
        spec: &Spec,
        place: &Place,
    ) -> Result<Vec<Export>, LaunchError> {
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
    pub(super) async fn configure(
        self,
        guest: Guest,
        spec: &Spec,
        place: Place,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Sandbox, LaunchError> {
        progress(Progress::Vm(Phase::Configuring));
        let vm = guest.configure(spec, &self.view, self.hostname).await.map_err(Ended::from)?;
        let isolation = Isolation::Vm { vmm: vm.vmm().name(), accelerator: vm.vmm().accelerator() };
        let facts = Facts::new(spec, &isolation, place.mechanisms(), limits(spec), self.wrapper);
        Ok(Sandbox::new(Inside::Vm(Box::new(vm)), place, facts))
    }
}

fn limits(spec: &Spec) -> Limits {
    Limits {
        memory: Some(spec.memory.0.saturating_add(VM_MEMORY)),
        processes: Some(VM_PROCESSES),
        // The guest has the processors it was given.
        cpus: None,
    }
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
