//! The operating system: processes that outlive us, namespaces, cgroups, locks, the terminal.
//!
//! The only place with `unsafe` code, opened module by module with a reason. Nothing here knows
//! what a sandbox is.

pub(crate) mod activation;
pub(crate) mod bubblewrap;
pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod facts;
pub(crate) mod identity;
pub(crate) mod idmap;
pub(crate) mod kvm;
pub(crate) mod limits;
pub(crate) mod lock;
pub(crate) mod memory;
mod pidfd;
pub(crate) mod process;
pub(crate) mod seccomp;
pub(crate) mod socket;
mod spawn;
pub(crate) mod staging;
pub(crate) mod tail;
pub(crate) mod terminal;
pub(crate) mod tsc;
