//! The lean guest image: a distribution's kernel and an initramfs with the agent as PID 1.

mod bzimage;
mod compression;
mod elf;
mod manifest;
