//! Which VMM runs a guest on this host, and how.
//!
//! ```text
//!              cloud-hypervisor asked for   qemu asked for       nothing asked for
//!   KVM works  cloud-hypervisor             qemu with KVM        cloud-hypervisor, else qemu with KVM
//!   it does not refused                     qemu in software     qemu in software
//! ```

use super::cloud_hypervisor::CloudHypervisor;
use super::qemu::{Acceleration, Programs, Qemu};
use super::{Confinement, KVM, Machine, Vmm, VmmError};
use crate::config::{Config, ConfigError, Program};
use crate::spec::VmmKind;
use crate::spec::protection::Accelerator;
use crate::sys::facts::HostFacts;
use crate::sys::kvm::KvmState;
use crate::sys::tsc::TscError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A VMM that this host can run, chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// cloud-hypervisor, with KVM.
    CloudHypervisor {
        /// The program.
        program: PathBuf,
    },
    /// QEMU.
    Qemu {
        /// `qemu-system-x86_64`.
        qemu: PathBuf,
        /// `vhost-device-vsock`.
        vsock: PathBuf,
        /// How it runs the guest.
        acceleration: Acceleration,
    },
}

/// No VMM can run a guest on this host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChooseError {
    /// cloud-hypervisor was asked for.
    #[error("cloud-hypervisor needs KVM, and {0}")]
    NeedsKvm(String),
    /// A program is missing.
    #[error(transparent)]
    Program(#[from] ConfigError),
    /// Software emulation needs to know how fast the host's clock ticks.
    #[error("a guest cannot be emulated on this host")]
    Tsc(#[from] TscError),
}

impl Backend {
    /// Chooses the VMM that was asked for, or the best one.
    pub(crate) fn choose(
        wanted: Option<VmmKind>,
        config: &Config,
        facts: HostFacts,
    ) -> Result<Backend, ChooseError> {
        let kvm = matches!(facts.kvm, KvmState::Usable { .. });
        let cloud_hypervisor = || config.program(Program::CloudHypervisor);
        match wanted {
            Some(VmmKind::CloudHypervisor) if kvm => {
                return Ok(Backend::CloudHypervisor { program: cloud_hypervisor()? });
            }
            Some(VmmKind::CloudHypervisor) => return Err(ChooseError::NeedsKvm(why_not(&facts.kvm))),
            None if kvm => {
                if let Ok(program) = cloud_hypervisor() {
                    return Ok(Backend::CloudHypervisor { program });
                }
            }
            None | Some(VmmKind::Qemu) => {}
        }
        let acceleration =
            if kvm { Acceleration::Kvm } else { Acceleration::Software { tsc_khz: facts.tsc_khz? } };
        Ok(Backend::Qemu {
            qemu: config.program(Program::Qemu)?,
            vsock: config.program(Program::VhostDeviceVsock)?,
            acceleration,
        })
    }

    /// Which VMM it is.
    pub(crate) fn kind(&self) -> VmmKind {
        match self {
            Backend::CloudHypervisor { .. } => VmmKind::CloudHypervisor,
            Backend::Qemu { .. } => VmmKind::Qemu,
        }
    }

    /// Starts a guest.
    pub(crate) async fn start(
        &self,
        machine: &Machine,
        confinement: Confinement<'_>,
    ) -> Result<Box<dyn Vmm>, VmmError> {
        match self {
            Backend::CloudHypervisor { program } => {
                Ok(Box::new(CloudHypervisor::start(program, machine, confinement).await?))
            }
            Backend::Qemu { qemu, vsock, acceleration } => {
                let programs = Programs { qemu, vsock };
                Ok(Box::new(Qemu::start(programs, *acceleration, machine, confinement).await?))
            }
        }
    }

    /// What runs the guest's instructions.
    pub(crate) fn accelerator(&self) -> Accelerator {
        match self {
            Backend::CloudHypervisor { .. } | Backend::Qemu { acceleration: Acceleration::Kvm, .. } => {
                Accelerator::Kvm
            }
            Backend::Qemu { acceleration: Acceleration::Software { .. }, .. } => Accelerator::Software,
        }
    }

    /// How many processors a guest has when nobody says. Each one takes longer to bring up in
    /// software than most commands run.
    pub(crate) fn usual_vcpus(&self) -> u32 {
        match self.accelerator() {
            Accelerator::Kvm => 2,
            Accelerator::Software => 1,
        }
    }

    /// The device its processes have to open.
    pub(crate) fn device(&self) -> Option<&'static Path> {
        (self.accelerator() == Accelerator::Kvm).then_some(Path::new(KVM))
    }

    /// How long a guest may take to boot. An emulated one takes two seconds on an idle host; with KVM
    /// the slowest host this was seen on, itself emulated, takes nineteen.
    pub(crate) fn boot_patience(&self) -> Duration {
        match self.accelerator() {
            Accelerator::Kvm => Duration::from_secs(60),
            Accelerator::Software => Duration::from_secs(120),
        }
    }
}

/// Why KVM is of no use, as the end of a sentence.
pub(crate) fn why_not(kvm: &KvmState) -> String {
    match kvm {
        KvmState::Usable { .. } => "it is usable".to_owned(),
        KvmState::TooSlow { loop_time, .. } => {
            format!(
                "this host's KVM opens but emulates (a loop of under 1 ms took {} ms)",
                loop_time.as_millis()
            )
        }
        KvmState::NotPermitted => "/dev/kvm may not be opened (run: sudo usermod -aG kvm $USER)".to_owned(),
        KvmState::Absent => "this host has none".to_owned(),
        KvmState::Failed { step, source } => format!("this host's KVM failed to {step}: {source}"),
    }
}
