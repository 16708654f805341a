//! A service of a guest that has an init of its own: systemd, in a NixOS guest.
//!
//! It finds a system that is up: it loads no module, mounts nothing before it is told to, and leaves the
//! guest's power to PID 1. When PID 1 ends it (`SIGTERM`), it ends the commands and writes the shares back
//! first. Should it die, the guest is as good as dead to the host: what its commands were is lost. What that
//! means for the guest is for its unit to say.

use super::modules::Modules;
use super::{Guest, Init, vsock};
use crate::MainError;
use crate::agent::{self, Agent, AgentError, Role};
use crate::listen::{self, Doorkeeper};
use crate::{log, sys};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where NixOS has programs: wrappers with special rights, then those of the system. Then where others have
/// them.
pub(super) const SEARCH_PATH: &str = "/run/wrappers/bin:/run/current-system/sw/bin:\
                                      /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What has systemd power the machine off in good order: `SIGRTMIN+4` (systemd(1), "Signals"). It counts from
/// its C library's `SIGRTMIN`, which is glibc's 34, whatever this program is linked with: musl's is 35.
const POWER_OFF: i32 = 34 + 4;

/// The life of the service.
pub(crate) fn serve() -> Result<(), MainError> {
    agent::prepare_process()?;
    agent::forget_start(None);
    agent::enter_proc()?;
    listen::block_on(async {
        let terminated = Terminated::watch()?;
        let agent = Agent::new(Role::Guest(Guest::new(Init::Foreign, Modules::default())))?;
        let doorkeeper = Doorkeeper::new(Rc::clone(&agent));
        let listener = vsock::listen().map_err(MainError::Vsock)?;
        let ready = async {
            if !vsock::dial_host(&doorkeeper).await {
                // A host that was there before us, as after a restart, need not be told.
                log::error("no host answers on vsock; waiting for one to connect");
            }
        };
        let serving = async { tokio::join!(agent.reap(), vsock::accept(&listener, &doorkeeper), ready) };
        tokio::select! {
            _ = serving => {}
            () = terminated.wait() => {}
        }
        // Commands are reaped here, and connections hear of their end, as before.
        tokio::select! {
            () = agent.reap() => {}
            () = agent.end_commands() => {}
        }
        if let Role::Guest(guest) = &agent.role {
            guest.write_back();
        }
        Ok(())
    })
    .map_err(MainError::Runtime)?
}

/// Has PID 1 switch the guest off.
pub(super) fn ask_for_power_off() {
    if let Err(errno) = sys::kill(1, POWER_OFF) {
        log::error(format_args!("cannot ask PID 1 to power off: {errno}"));
    }
}

/// That somebody asked this process to end.
struct Terminated {
    signals: SignalFd,
    signalled: AsyncFd<OwnedFd>,
}

impl Terminated {
    /// From now on. Supervisors inherit that the signal waits; commands do not.
    fn watch() -> Result<Terminated, AgentError> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.thread_block().map_err(AgentError::Signals)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(AgentError::Signals)?;
        let signalled = signals
            .as_fd()
            .try_clone_to_owned()
            .and_then(|signals| sys::watch(signals, Interest::READABLE))
            .map_err(AgentError::Watch)?;
        Ok(Terminated { signals, signalled })
    }

    async fn wait(&self) {
        loop {
            let Ok(mut ready) = self.signalled.readable().await else { return };
            if matches!(self.signals.read_signal(), Ok(Some(_))) {
                return;
            }
            ready.clear_ready();
        }
    }
}
