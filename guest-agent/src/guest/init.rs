//! The init process of a lean guest.
//!
//! ```text
//!   kernel ─▶ run: /dev /proc /sys ─▶ modules up to vsock ─▶ listen, dial the host ─▶ other modules
//! ```
//!
//! PID 1 must not end: whatever fails for good powers the guest off, and the host sees the VMM exit.

use super::modules::Modules;
use super::{Guest, Init, early, vsock};
use crate::MainError;
use crate::agent::{self, Agent, Role};
use crate::listen::{self, Doorkeeper};
use crate::{log, sys};
use nix::sys::reboot::{RebootMode, reboot};
use std::rc::Rc;

/// The life of the init process. Returns only when it cannot go on, and then has powered off.
pub(crate) fn run() -> Result<(), MainError> {
    std::panic::set_hook(Box::new(|panic| {
        log::error(format_args!("panic: {panic}"));
        // A supervisor is a copy with the same hook: it only ends itself.
        if std::process::id() == 1 {
            power_off();
        }
    }));
    let mut troubles = early::mount_kernel_filesystems();
    log::use_kernel_log();
    let mut modules = Modules::read();
    troubles.extend(modules.load_transport());
    troubles.extend(early::settle());
    let guest = Guest::new(Init::Own, modules);
    guest.note(troubles);
    if let Err(error) = serve(guest) {
        log::error(log::chain(&error));
    }
    power_off()
}

fn serve(guest: Guest) -> Result<(), MainError> {
    agent::prepare_process()?;
    agent::enter_proc()?;
    listen::block_on(async move {
        let agent = Agent::new(Role::Guest(guest))?;
        let doorkeeper = Doorkeeper::new(Rc::clone(&agent));
        let listener = vsock::listen().map_err(MainError::Vsock)?;
        let ready = async {
            if !vsock::dial_host(&doorkeeper).await {
                log::error("the host does not answer on vsock");
                power_off();
            }
            // The host reads the hello meanwhile.
            tokio::task::yield_now().await;
            if let Role::Guest(guest) = &agent.role {
                guest.complete();
            }
        };
        tokio::join!(agent.reap(), vsock::accept(&listener, &doorkeeper), ready);
        Ok(())
    })
    .map_err(MainError::Runtime)?
}

/// Switches the guest off.
pub(super) fn power_off() -> ! {
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // Only without the right to, and PID 1 has it. Its end stops the kernel just as well.
    sys::exit_now(1)
}
