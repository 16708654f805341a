//! Sandboxes: what was asked for, what was recorded of them, and how they come up.

mod id;
pub(crate) mod audit;
pub(crate) mod launch;
pub(crate) mod manager;
pub(crate) mod protection;
pub(crate) mod records;
mod size;
pub(crate) mod spec;
mod state;
pub(crate) mod store;

pub(crate) use id::SandboxId;
pub(crate) use size::Size;
pub(crate) use spec::Spec;
