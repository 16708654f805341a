//! The init process of a lean guest.
//!
//! ```text
//!   kernel ─▶ run: /dev /proc /sys ─▶ modules up to vsock ─▶ listen, dial the host ─▶ other modules
//!               host: Configure ─▶ configure: clock, entropy, name ─▶ root ─▶ shares
//!               host: Shutdown  ─▶ write_back ─▶ power_off
//! ```
//!
//! Nothing about a sandbox is known before `Configure`; see `Configure` in the protocol. PID 1 must
//! not end: whatever fails for good powers the guest off, and the host sees the VMM exit.

mod configure;
mod counters;
mod early;
mod homes;
mod modules;
mod mounts;
mod reserve;
mod root;
mod vsock;

use crate::MainError;
use crate::agent::{Agent, Role};
use crate::listen::{self, Doorkeeper};
use crate::{agent, log, sys};
pub(crate) use counters::Tally;
use modules::Modules;
use nix::sys::reboot::{RebootMode, reboot};
use reserve::Group;
use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::rc::Rc;

/// What the guest is at the moment.
pub(crate) struct Guest {
    /// Modules nobody has needed so far.
    modules: RefCell<Modules>,
    /// What could not be done before the host was there to be told.
    troubles: RefCell<Vec<String>>,
    configured: Cell<bool>,
    /// Where shares are mounted, in the order they were.
    shares: RefCell<Vec<PathBuf>>,
    /// The control group of all commands.
    group: OnceCell<Group>,
}

impl Guest {
    /// Loads what is not loaded yet.
    fn complete(&self) {
        let failed = self.modules.borrow_mut().load_rest();
        self.note(failed);
    }

    fn note(&self, troubles: Vec<String>) {
        for trouble in troubles {
            log::error(&trouble);
            self.troubles.borrow_mut().push(trouble);
        }
    }

    /// The file to which a command writes to enter its cgroup.
    pub(crate) fn entrance(&self) -> Option<BorrowedFd<'_>> {
        self.group.get().map(Group::entrance)
    }

    /// How often the limits of all commands together were hit so far.
    pub(crate) fn tally(&self) -> Tally {
        self.group.get().map(Group::tally).unwrap_or_default()
    }

    /// Writes everything back to the shares.
    pub(crate) fn write_back(&self) {
        nix::unistd::sync();
        for share in self.shares.borrow().iter().rev() {
            // Files may still be open in a process that would not die; it is detached then.
            let _ = nix::mount::umount2(share.as_path(), nix::mount::MntFlags::MNT_DETACH);
        }
        nix::unistd::sync();
    }
}

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
    let guest = Guest {
        modules: RefCell::new(modules),
        troubles: RefCell::default(),
        configured: Cell::new(false),
        shares: RefCell::default(),
        group: OnceCell::new(),
    };
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
        let agent = Agent::new(Role::Init(guest))?;
        let doorkeeper = Doorkeeper::new(Rc::clone(&agent));
        let ready = async {
            if !vsock::dial_host(&doorkeeper).await {
                log::error("the host does not answer on vsock");
                power_off();
            }
            // The host reads the hello meanwhile.
            tokio::task::yield_now().await;
            if let Role::Init(guest) = &agent.role {
                guest.complete();
            }
        };
        tokio::join!(agent.reap(), vsock::accept(&doorkeeper), ready);
        Ok(())
    })
    .map_err(MainError::Runtime)?
}

/// Switches the guest off. All that matters has been written back by then.
pub(crate) fn power_off() -> ! {
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // Only without the right to, and PID 1 has it. Its end stops the kernel just as well.
    sys::exit_now(1)
}
