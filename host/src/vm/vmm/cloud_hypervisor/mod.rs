//! cloud-hypervisor: the VMM wherever KVM really works. Written against v53.
//!
//! ```text
//!   firn ── REST (UNIX `api`) ───→ cloud-hypervisor ── vhost-user ── virtiofsd (the exports)
//!    ├───── UNIX `vsock` ────────→    │      │
//!    ├───── pipe: events ←────────────┘      │
//!    └───── pipe: console ←──────────────────┘
//! ```
//!
//! It is started empty, told the machine over its API, asked what it made of it, and told to boot.
//! From then on it is only watched: events say how the guest ended, the process that it ended.
//! All it needs of the host's files comes by descriptor, so its namespace has none.

mod client;
mod config;
mod events;

#[cfg(test)]
mod contract;
