//! Sandboxes: what was asked for, what was recorded of them, and how they come up.

mod id;
pub(crate) mod launch;
pub(crate) mod manager;
pub(crate) mod protection;
mod size;
pub(crate) mod spec;
pub(crate) mod store;

pub(crate) use id::SandboxId;
pub(crate) use size::Size;
pub(crate) use spec::Spec;
