//! The daemon's API: HTTP and JSON on a Unix socket.
//!
//! ```text
//!   cli, mcp ─▶ client ── HTTP/1.1 on a Unix socket ──▶ server ─▶ sandbox::Manager
//!                  └────────────── types ──────────────────┘
//! ```
//!
//! A command's streams are the protocol's own frames on an upgraded connection: see [`types::Notice`].

pub(crate) mod client;
mod files;
mod frames;
mod metrics;
pub(crate) mod operations;
pub(crate) mod percent;
pub(crate) mod phase;
pub(crate) mod refusal;
mod relay;
mod request;
mod routes;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod start;
pub(crate) mod stream;
pub(crate) mod types;
mod wire;

#[cfg(test)]
mod tests;
