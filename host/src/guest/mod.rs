//! The host's end of the protocol.
//!
//! The guest is an adversary. Whatever arrives is checked against what may arrive at that point;
//! anything else ends the connection with an error that says what was wrong. Nothing here waits
//! for the guest without a limit, except for a command that was given none.

mod connection;
mod dialer;
mod exec;
mod files;
mod inspection;
mod session;
pub(crate) mod vsock;
mod words;

#[cfg(test)]
mod tests;

pub(crate) use connection::{Connection, GuestError};
pub(crate) use dialer::Dialer;
pub(crate) use exec::{ExecEvent, Running};
pub(crate) use files::TransferEvent;
