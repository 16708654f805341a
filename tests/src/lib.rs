//! What end-to-end tests are written with.
//!
//! A test makes a [`Host`], a user of firn with folders of its own, runs the built `firn` there as
//! a person would, and looks at what comes out. When the `Host` goes, it checks that firn left
//! nothing: no process, no control group, no folder.
//!
//! What is true of every sandbox is written once and tested at both grades, see [`both_grades`].
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::missing_panics_doc, reason = "in a test a failure is a panic")]

mod chance;
mod daemon;
mod evaluation;
mod firn;
mod grade;
mod host;
mod initramfs;
mod mcp;
mod mcp_http;
mod peer;
mod process;
mod terminal;

pub use chance::Chance;
pub use daemon::Daemon;
pub use evaluation::{Evaluated, Evaluation, code_in};
pub use firn::{Finished, Firn, collect};
pub use grade::Grade;
pub use host::{Host, binaries};
pub use initramfs::Initramfs;
pub use mcp::{Mcp, Ran};
pub use mcp_http::{Answer, McpHttp};
pub use peer::{Peer, connect, exec};
pub use process::{Bystander, Process, descendants, descendants_of};
pub use terminal::Terminal;
