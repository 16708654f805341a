//! QEMU: the portable VMM, with KVM or in software.
//!
//! ```text
//!   firn ── QMP (socketpair) ── qemu ── vhost-user ── virtiofsd (the exports)
//!    └───── UNIX `vsock` ────── vhost-device-vsock ── vhost-user ──┘
//! ```
//!
//! vsock comes from `vhost-device-vsock`, a process of its own, so that it works without the
//! kernel's vhost module and looks from the host as cloud-hypervisor's does.

mod arguments;
mod monitor;

use super::{Accelerator, Confinement, GUEST_CID, KVM, Machine, SOCKETS, VSOCK, Vmm, VmmError};
use crate::sys::bubblewrap::Bubblewrap;
use crate::sys::process::{Helper, ProcessError};
use arguments::Arguments;
use async_trait::async_trait;
use monitor::Monitor;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// How long the vsock device may take until it listens.
const VSOCK_PATIENCE: Duration = Duration::from_secs(20);

/// The socket between QEMU and its vsock device.
const VSOCK_DEVICE: &str = "vsock-device";

/// What QEMU is started from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Programs<'a> {
    /// `qemu-system-x86_64`.
    pub(crate) qemu: &'a Path,
    /// `vhost-device-vsock`.
    pub(crate) vsock: &'a Path,
}

/// How QEMU runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acceleration {
    /// With KVM.
    Kvm,
    /// In software.
    Software {
        /// The frequency of the host's time stamp counter, in kHz. The guest cannot calibrate
        /// against a clock on a loaded host: it would hang.
        tsc_khz: u32,
    },
}

/// A running QEMU.
#[derive(Debug)]
pub(crate) struct Qemu {
    qemu: Helper,
    vsock: Helper,
    monitor: Monitor,
    accelerator: Accelerator,
}

impl Qemu {
    /// Starts the vsock device, then QEMU, which starts the guest at once.
    pub(crate) async fn start(
        programs: Programs<'_>,
        acceleration: Acceleration,
        machine: &Machine,
        confinement: Confinement<'_>,
    ) -> Result<Qemu, VmmError> {
        let vsock = start_vsock(programs.vsock, confinement).await?;
        let accelerator = match acceleration {
            Acceleration::Kvm => Accelerator::Kvm,
            Acceleration::Software { .. } => Accelerator::Software,
        };
        let mut namespace = Bubblewrap::new(confinement.bwrap, confinement.identity);
        namespace.in_folder(confinement.sockets);
        namespace.read_write(confinement.sockets, Path::new(SOCKETS));
        if accelerator == Accelerator::Kvm {
            namespace.device(Path::new(KVM));
        }
        let (monitor, qemus_end) = Monitor::pair()?;
        let arguments = Arguments {
            machine,
            acceleration,
            kernel: inherit(&mut namespace, &machine.kernel)?,
            initrd: inherit(&mut namespace, &machine.initrd)?,
            monitor: namespace.pass(qemus_end),
        };
        let qemu =
            namespace.command("qemu", programs.qemu, &arguments.render())?.start(confinement.cgroup)?;
        let mut starting = Qemu { qemu, vsock, monitor, accelerator };
        starting.check_accelerator().await?;
        Ok(starting)
    }

    /// Asks QEMU whether it does what it was told, or finds out why it does not answer.
    async fn check_accelerator(&mut self) -> Result<(), VmmError> {
        let asked = self.accelerator;
        let answer = tokio::select! {
            answer = self.monitor.negotiate() => answer,
            failure = self.qemu.failed() => return Err(failure.into()),
            failure = self.vsock.failed() => return Err(failure.into()),
        };
        match answer {
            Ok(given) if given == asked => Ok(()),
            Ok(given) => Err(VmmError::Refused {
                vmm: "qemu",
                request: "the accelerator",
                reason: format!("{asked:?} was asked for, it uses {given:?}"),
            }),
            // A closed monitor is a QEMU that is ending: its own words say more.
            Err(silent) => match tokio::time::timeout(Duration::from_secs(2), self.qemu.failed()).await {
                Ok(failure) => Err(failure.into()),
                Err(_still_runs) => Err(silent),
            },
        }
    }
}

/// Hands a file to the process by descriptor: no path of the host has to exist in its namespace.
fn inherit(namespace: &mut Bubblewrap, path: &Path) -> Result<String, VmmError> {
    let file = File::open(path).map_err(|source| VmmError::Open { path: path.to_owned(), source })?;
    Ok(format!("/proc/self/fd/{}", namespace.pass(OwnedFd::from(file))))
}

async fn start_vsock(program: &Path, confinement: Confinement<'_>) -> Result<Helper, VmmError> {
    let mut namespace = Bubblewrap::new(confinement.bwrap, confinement.identity);
    namespace.in_folder(confinement.sockets);
    namespace.read_write(confinement.sockets, Path::new(SOCKETS));
    let args: Vec<OsString> = [
        format!("--guest-cid={GUEST_CID}"),
        format!("--socket={SOCKETS}/{VSOCK_DEVICE}"),
        format!("--uds-path={SOCKETS}/{VSOCK}"),
    ]
    .map(OsString::from)
    .to_vec();
    let mut helper = namespace.command("vhost-device-vsock", program, &args)?.start(confinement.cgroup)?;
    // The device says nowhere that it is ready, and QEMU does not wait for it.
    let socket = confinement.sockets.join(VSOCK_DEVICE);
    let listening = async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        waited = tokio::time::timeout(VSOCK_PATIENCE, listening) => match waited {
            Ok(()) => Ok(helper),
            Err(_elapsed) => Err(ProcessError::Ended {
                name: "vhost-device-vsock",
                status: "it runs but does not listen".to_owned(),
                output: helper.output(),
            }.into()),
        },
        failure = helper.failed() => Err(failure.into()),
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    async fn ended(&mut self) -> VmmError {
        tokio::select! {
            failure = self.vsock.failed() => failure.into(),
            status = self.qemu.ended() => match status {
                // QEMU exits by itself, without complaint, when the guest does.
                Ok(status) if status.success() => VmmError::GuestEnded {
                    how: self.monitor.shutdown_reason().await,
                    console: self.console(),
                },
                _ => self.qemu.failed().await.into(),
            },
        }
    }

    async fn destroy(&mut self) {
        tokio::join!(self.qemu.kill(), self.vsock.kill());
    }

    fn console(&self) -> String {
        self.qemu.output()
    }
}
