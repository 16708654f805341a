//! The MCP server: one tool, `run`, that runs code in a sandbox, for models and the clients they are in.
//!
//! ```text
//!   client ── JSON-RPC ──▶ stdio | http ──▶ Server ── Arguments, Policy ──▶ Job ──▶ api::client ──▶ daemon
//!          ◀─ progress ── Progress ◀──────── Run ◀── frames and notices of a command's stream ──────────┘
//!          ◀─ result ──── answer ◀── Finished
//! ```
//!
//! Nothing about sandboxes is decided here: what a call may ask for is the operator's [`Policy`], and all else
//! is the daemon's. Nothing that code writes is interpreted. Sessions are the daemon's and known by the name
//! that a call gives, so they outlive this process and need no connection that stays.
//!
//! The tool is nix-sandbox-mcp's, so that one can stand in for the other: its parameters and the text of its
//! results and errors are the same, and what there is beyond them is in the structured result, or a block of
//! its own.

mod answer;
mod arguments;
mod background;
mod captured;
pub(crate) mod clients;
mod environments;
mod files;
mod http;
mod job;
mod keys;
mod policy;
mod progress;
mod run;
mod server;
mod session;
mod stdio;
mod words;

pub(crate) use environments::{EnvironmentsError, KnownEnvironments};
pub(crate) use http::{Http, HttpError, serve as serve_http};
pub(crate) use keys::{Keys, KeysError};
pub(crate) use policy::{Policy, PolicyError, Project};
pub(crate) use server::Server;
pub(crate) use stdio::{StdioError, serve as serve_stdio};
