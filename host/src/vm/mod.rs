//! MicroVMs.

mod image;
mod vmm;
