//! The agent of a guest: what makes a booted machine the sandbox that the host wants.
//!
//! ```text
//!   init      PID 1 of a lean guest ─┐
//!                                    ├─▶ vsock: listen, dial the host
//!   service   beside another PID 1 ──┘    host: Configure ─▶ configure: clock, entropy, name ─▶ root ─▶ shares
//!                                         host: Shutdown  ─▶ write_back ─▶ power_off
//! ```
//!
//! Nothing about a sandbox is known before `Configure`; see `Configure` in the protocol. In a guest with an
//! init of its own everything that is not the sandbox's is that init's: file systems, modules, limits, power.

mod configure;
mod counters;
mod early;
mod homes;
mod init;
mod modules;
mod mounts;
mod reserve;
mod root;
mod service;
mod vsock;

use crate::exec::USUAL_PATH;
use crate::log;
pub(crate) use counters::Tally;
pub(crate) use init::run;
use modules::Modules;
use reserve::Group;
pub(crate) use service::serve as run_beside_init;
use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// Who is PID 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    /// The agent.
    Own,
    /// Somebody else, of whose services the agent is one.
    Foreign,
}

/// What the guest is at the moment.
pub(crate) struct Guest {
    init: Init,
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
    fn new(init: Init, modules: Modules) -> Guest {
        Guest {
            init,
            modules: RefCell::new(modules),
            troubles: RefCell::default(),
            configured: Cell::new(false),
            shares: RefCell::default(),
            group: OnceCell::new(),
        }
    }

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

    /// Where programs are.
    pub(crate) fn search_path(&self) -> &'static str {
        match self.init {
            Init::Own => USUAL_PATH,
            Init::Foreign => service::SEARCH_PATH,
        }
    }

    /// Writes everything back to the shares.
    pub(crate) fn write_back(&self) {
        nix::unistd::sync();
        for share in self.shares.take().iter().rev() {
            // Files may still be open in a process that would not die; it is detached then.
            let _ = nix::mount::umount2(share.as_path(), nix::mount::MntFlags::MNT_DETACH);
        }
        nix::unistd::sync();
    }

    /// Switches the guest off, or has it switched off. All that matters has been written back by then.
    pub(crate) fn power_off(&self) {
        match self.init {
            Init::Own => init::power_off(),
            Init::Foreign => service::ask_for_power_off(),
        }
    }
}
