//! Sandboxes: what was asked for, what was recorded of them, how they come up, live and end.
//!
//! ```text
//!   Manager ─▶ Entry ◀── runner (one task each) ─▶ launch ─▶ Place, Vm | Jail
//!      ├─ Handle ─┴─▶ Command                          ▲
//!      └─ Pool ───────────────────── Spare ────────────┘
//! ```

mod activity;
mod audit;
mod command;
mod entry;
pub(crate) mod failpoint;
mod handle;
mod id;
pub(crate) mod launch;
mod log;
pub(crate) mod manager;
pub(crate) mod place;
mod pool;
pub(crate) mod records;
mod runner;
mod session;
mod spare;
mod state;

pub(crate) use id::SandboxId;
