//! The daemon's API: HTTP and JSON on a Unix socket.
//!
//! ```text
//!   cli, mcp ─▶ client ── HTTP/1.1 on a Unix socket ──▶ server ─▶ sandbox::Manager
//!                  └────────────── types ──────────────────┘
//! ```
//!
//! A command's streams are the protocol's own frames on an upgraded connection: see [`types::Notice`].

pub(crate) mod types;
