//! What tries to get out of a sandbox, or to look out of it, in a file for each way.
//!
//! Every "cannot" stands beside a "can": the same probe succeeds on the host, or where it may.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::print_stderr, reason = "a test that shows nothing on this host says so")]

mod host;
mod inherited;
mod kernel;
mod network;
mod processes;
mod shares;
