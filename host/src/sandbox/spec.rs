//! What was asked for.

use super::Size;
use crate::view::{Share, ShareError};

/// A kernel and Debian's smallest userland do not boot in less.
const LEAST_MEMORY: Size = Size(128 << 20);

/// More than any VMM gives a guest.
const MOST_MEMORY: Size = Size(4 << 40);

/// A processor count that both VMMs take.
const MOST_VCPUS: u32 = 255;

/// A sandbox as it was asked for, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// Processors, when a number was named.
    pub(crate) vcpus: Option<u32>,
    /// Memory.
    pub(crate) memory: Size,
    /// How much can be written to the sandbox's own file system. It is in memory.
    pub(crate) disk: Size,
    /// The caller's folders.
    pub(crate) shares: Vec<Share>,
    /// The user that commands run as, when it is not root.
    pub(crate) user: Option<String>,
    /// The VMM, when one was named.
    pub(crate) vmm: Option<VmmKind>,
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
    #[error("a sandbox has 1 to {MOST_VCPUS} processors, not {0}")]
    Vcpus(u32),
    /// Out of range.
    #[error("a sandbox has {LEAST_MEMORY} to {MOST_MEMORY} of memory, not {0}")]
    Memory(Size),
    /// The disk is in memory.
    #[error("the disk ({disk}) is kept in the sandbox's memory ({memory}) and must be smaller")]
    Disk {
        /// What was asked for.
        disk: Size,
        /// What there is.
        memory: Size,
    },
    /// A share cannot be given.
    #[error(transparent)]
    Share(#[from] ShareError),
}

impl Spec {
    /// Checks what can be checked without looking at the host.
    pub(crate) fn check(self) -> Result<Spec, SpecError> {
        if let Some(vcpus) = self.vcpus
            && !(1..=MOST_VCPUS).contains(&vcpus)
        {
            return Err(SpecError::Vcpus(vcpus));
        }
        if !(LEAST_MEMORY..=MOST_MEMORY).contains(&self.memory) {
            return Err(SpecError::Memory(self.memory));
        }
        if self.disk >= self.memory {
            return Err(SpecError::Disk { disk: self.disk, memory: self.memory });
        }
        Share::check_all(&self.shares)?;
        Ok(self)
    }
}
