//! Running a command for the host: from the request to the last frame of its operation.
//!
//! ```text
//!   command     the request, checked; then completed from the sandbox's files (accounts)
//!   streams     the agent's ends of stdin, stdout, stderr or of the terminal
//!   supervised  the agent's handle on the supervisor, a process of its own (supervisor, tree)
//!   pump        moves frames, bytes, orders and reports between all of them
//! ```

mod accounts;
mod command;
mod pump;
mod report;
mod streams;
mod supervised;
mod supervisor;
mod tree;

pub(crate) use accounts::{Accounts, Home, is_own};
pub(crate) use command::{Command, USUAL_PATH, not_started};
pub(crate) use pump::run;
pub(crate) use report::{Ended, Order, Report, Stage, StartFailure};
pub(crate) use streams::{Input, Output, Streams, Taken};
pub(crate) use supervised::Supervised;
pub(crate) use supervisor::{Beyond, Stdio, close_all_but, mark_for_death};
pub(crate) use tree::Tree;
