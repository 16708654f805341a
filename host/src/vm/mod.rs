//! MicroVMs.

#[cfg_attr(not(test), expect(dead_code, reason = "wired up with the command line"))]
pub(crate) mod image;
mod vmm;
