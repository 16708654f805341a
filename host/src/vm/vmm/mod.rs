//! Virtual machine monitors.
//!
//! A VMM is started with everything a guest boots with, and from then on is only watched and
//! ended: what a sandbox does goes over vsock to the agent. cloud-hypervisor is used wherever KVM
//! really works; QEMU elsewhere, in software if it has to be. Both give the same host end of
//! vsock: a Unix socket that takes `CONNECT <port>\n` for connections into the guest, and
//! `<socket>_<port>` for those the guest makes to CID 2.

pub(crate) mod backend;
pub(crate) mod cloud_hypervisor;
pub(crate) mod qemu;

pub(crate) use backend::Backend;

use crate::spec::protection::Accelerator;
use crate::sys::identity::Identity;
use crate::sys::process::{ProcessError, ProcessId, Role, Station};
use async_trait::async_trait;
use cloud_hypervisor::CloudHypervisor;
use qemu::Qemu;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// The folder of the sandbox's sockets, as VMMs and their helpers see it.
pub(crate) const SOCKETS: &str = "/run/firn";

/// The name of the host end of vsock in the folder of sockets.
pub(crate) const VSOCK: &str = "vsock";

/// The kernel's virtual machines. Who runs a VMM can open it: see [`Backend::device`].
pub(crate) const KVM: &str = "/dev/kvm";

/// The guest's context id. Each VMM has its own vsock device, so all guests can have the same.
pub(crate) const GUEST_CID: u32 = 3;

/// What a guest boots with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// An ELF kernel with a PVH entry point.
    pub(crate) kernel: PathBuf,
    /// The initramfs.
    pub(crate) initrd: PathBuf,
    /// The kernel's command line, to which the VMM adds what is its own.
    pub(crate) cmdline: String,
    /// Processors.
    pub(crate) vcpus: u32,
    /// Memory, in bytes. Shared with the processes behind [`Machine::exports`].
    pub(crate) memory: u64,
    /// Tags and the listening vhost-user sockets (names in the folder of sockets) of virtiofs
    /// exports.
    pub(crate) exports: Vec<(String, String)>,
    /// How many more may be added while it runs ([`Vmm::attach`]).
    pub(crate) spare_exports: u8,
}

/// Where and as whom a VMM runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confinement<'a> {
    /// `bwrap`.
    pub(crate) bwrap: &'a Path,
    /// Who it is.
    pub(crate) identity: Identity,
    /// Where they are started. Its folder is not the VMM's.
    pub(crate) station: Station<'a>,
    /// The sandbox's folder of sockets on the host; it is [`SOCKETS`] for the VMM.
    pub(crate) sockets: &'a Path,
}

/// A VMM that could not be started or ended by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmmError {
    /// A file it needs cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It or a helper of it did not start, or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It did not do as it was told over its control socket.
    #[error("{vmm} refused {request}: {reason}")]
    Refused {
        /// The VMM.
        vmm: &'static str,
        /// What was asked.
        request: &'static str,
        /// What it answered.
        reason: String,
    },
    /// Its control socket did not answer.
    #[error("no answer from {vmm} to {request}")]
    Silent {
        /// The VMM.
        vmm: &'static str,
        /// What was asked.
        request: &'static str,
        /// Why, when the connection said so.
        #[source]
        source: Option<io::Error>,
    },
    /// The guest ended: powered off, reset or panicked.
    #[error("the guest ended by itself ({how}){}", last_words(console))]
    GuestEnded {
        /// What the VMM says of it.
        how: String,
        /// The last of the guest's console.
        console: String,
    },
}

fn last_words(console: &str) -> String {
    let lines: Vec<&str> = console.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(12)..].join("\n");
    if last.is_empty() { String::new() } else { format!("; the last of its console:\n{last}") }
}

/// The role of a VMM.
const fn role(name: &'static str) -> Role {
    Role { id: "vmm", name }
}

/// What has to be known of a VMM to take it over, beside its folders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Remains {
    /// cloud-hypervisor.
    CloudHypervisor {
        /// Its process.
        process: ProcessId,
    },
    /// QEMU.
    Qemu {
        /// Its process.
        process: ProcessId,
        /// Its vsock device's.
        vsock: ProcessId,
    },
}

impl Remains {
    /// Takes over what was started from here or by a process that is gone, with its files in `folder` and
    /// its sockets in `sockets`. `None`: it has ended too.
    pub(crate) async fn adopt(
        &self,
        folder: &Path,
        sockets: &Path,
    ) -> Result<Option<Box<dyn Vmm>>, VmmError> {
        Ok(match *self {
            Remains::CloudHypervisor { process } => {
                let adopted = CloudHypervisor::adopt(process, folder, sockets).await?;
                adopted.map(|vmm| Box::new(vmm) as Box<dyn Vmm>)
            }
            Remains::Qemu { process, vsock } => {
                let adopted = Qemu::adopt(process, vsock, folder).await?;
                adopted.map(|vmm| Box::new(vmm) as Box<dyn Vmm>)
            }
        })
    }

    /// Its processes.
    pub(crate) fn processes(&self) -> Vec<ProcessId> {
        match *self {
            Remains::CloudHypervisor { process } => vec![process],
            Remains::Qemu { process, vsock } => vec![process, vsock],
        }
    }
}

/// A running VMM. Dropping it kills it and its helpers, [`Vmm::release`] does not.
#[async_trait]
pub(crate) trait Vmm: Send + std::fmt::Debug {
    /// Its name, for people: `cloud-hypervisor`, `qemu`.
    fn name(&self) -> &'static str;

    /// What runs the guest's instructions, as the VMM itself says.
    fn accelerator(&self) -> Accelerator;

    /// Returns when the VMM or one of its helpers has ended, which nobody asked for. May be
    /// dropped and called again.
    async fn ended(&mut self) -> VmmError;

    /// Adds a virtiofs export to the running guest: its tag, and its listening vhost-user socket (a name in
    /// the folder of sockets). The guest finds it a moment later.
    async fn attach(&mut self, tag: &str, socket: &str) -> Result<(), VmmError>;

    /// Stops the guest's processors.
    async fn pause(&mut self) -> Result<(), VmmError>;

    /// Lets them go on.
    async fn resume(&mut self) -> Result<(), VmmError>;

    /// What [`Remains::adopt`] needs.
    fn remains(&self) -> Remains;

    /// Lets it live on without us.
    fn release(self: Box<Self>);

    /// Ends the guest at once and waits until no process is left.
    async fn destroy(&mut self);

    /// The last of what the guest wrote to its console, fit for a terminal.
    fn console(&self) -> String;
}
