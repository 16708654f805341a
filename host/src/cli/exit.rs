//! From an error to what a person is told to do, and to an exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0–123 | the command's own |
//! | 124 | `--timeout` ran out, as `timeout`(1) says it |
//! | 125 | firn failed, as `env`(1) and `docker run` say it |
//! | 126 | the command was found and cannot be executed, as shells say it |
//! | 127 | the command was not found, as shells say it |
//! | 128+n | signal n ended the command, as shells say it |
//! | 2 | the command line is wrong |
//!
//! Verbs that run no command exit with 1 when they failed: there is nothing to tell it apart from. `image`,
//! `doctor` and those of `daemon` exit with 125: 1 of `doctor` and `daemon status` is an answer. A daemon that does
//! not come up exits with 1, as daemons do.

use super::cp::CopyError;
use super::create::CreateError;
use super::create::source::SourceError;
use super::env::EnvCommandError;
use super::image::ImageCommandError;
use super::mcp::McpError;
use super::session::SessionError;
use crate::api::client::ClientError;
use crate::api::refusal::config_hint;
use crate::api::stream::StreamError;
use crate::api::types::{Refusal, RefusalKind};
use crate::config::ConfigError;
use crate::daemon::DaemonError;
use crate::env::BuildError;
use crate::env::resolver::ResolveError;
use crate::mcp::{EnvironmentsError, HttpError};
use crate::sandbox::place::PlaceError;
use crate::spec::SpecError;
use crate::view::ShareError;
use std::io;

/// A daemon that did not come up: it is no command of a sandbox that its code could be taken for.
const ERROR: u8 = 1;
/// The command line is wrong.
pub(super) const USAGE: u8 = 2;
/// A verb that runs no command failed.
const PLAIN: u8 = 1;
/// `--timeout` ran out.
pub(super) const TIMEOUT: u8 = 124;
/// firn failed.
pub(super) const FAILED: u8 = 125;
/// The command cannot be executed.
pub(super) const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub(super) const NOT_FOUND: u8 = 127;

/// The code for a command that signal `signal` ended.
pub(super) fn signalled(signal: i32) -> u8 {
    u8::try_from(128_i32.saturating_add(signal)).unwrap_or(u8::MAX)
}

/// Everything that can go wrong with a command of firn's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The environment cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What was asked for makes no sense.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The runtime folder cannot be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The daemon did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is no such environment, or it cannot be built.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// What is to be built makes no sense.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Environments cannot be listed or let go.
    #[error(transparent)]
    Env(#[from] EnvCommandError),
    /// A sandbox cannot be asked for.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A session that cannot be asked for.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The MCP server cannot be had as it was asked for.
    #[error(transparent)]
    Mcp(#[from] McpError),
    /// Files were not copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The stream of a command failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The daemon did not come up.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Nothing to run.
    #[error("no command specified (use -- <command>)")]
    NoCommand,
    /// Images cannot be listed or built.
    #[error(transparent)]
    Image(#[from] ImageCommandError),
    /// The runtime could not be started.
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    /// The terminal cannot be used.
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    /// stdout is closed or full.
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
    /// A signal asked firn to end.
    #[error("interrupted by signal {0}")]
    Signal(i32),
}

impl Failed {
    /// The exit code of a verb that runs no command.
    pub(super) fn plain_code(&self) -> u8 {
        match self {
            Failed::Signal(signal) => signalled(*signal),
            Failed::Copy(CopyError::Sides) => USAGE,
            _ => PLAIN,
        }
    }

    /// The exit code.
    pub(super) fn code(&self) -> u8 {
        match self {
            Failed::Signal(signal) => signalled(*signal),
            Failed::Spec(_)
            | Failed::NoCommand
            | Failed::Create(_)
            | Failed::Mcp(McpError::Policy(_) | McpError::Project(_) | McpError::NoToken)
            | Failed::Mcp(McpError::Http(HttpError::Exposed(_)))
            | Failed::Mcp(McpError::Environments(EnvironmentsError::Unknown { .. }))
            | Failed::Resolve(ResolveError::Environment(_))
            | Failed::Source(SourceError::Resolve(ResolveError::Environment(_))) => USAGE,
            Failed::Source(SourceError::Resolve(_)) => FAILED,
            Failed::Source(_) => USAGE,
            Failed::Daemon(_) => ERROR,
            Failed::Client(ClientError::Refused(Refusal { kind: RefusalKind::Invalid, .. })) => USAGE,
            _ => FAILED,
        }
    }

    /// What to do about it, when there is something to do.
    pub(super) fn hint(&self) -> Option<&str> {
        match self {
            Failed::Config(error) => config_hint(error),
            Failed::Client(error) => error.hint(),
            Failed::Resolve(error)
            | Failed::Source(SourceError::Resolve(error))
            | Failed::Create(CreateError::Source(SourceError::Resolve(error))) => resolve_hint(error),
            Failed::Spec(SpecError::Share(ShareError::Syntax(_))) => {
                Some("for example: --mount ~/data:/data:ro")
            }
            _ => None,
        }
    }
}

/// What to do about an environment that there is not.
fn resolve_hint(error: &ResolveError) -> Option<&str> {
    let ResolveError::Build(error) = error else { return None };
    match error {
        BuildError::Missing(error) => config_hint(error),
        BuildError::TooOld { .. } => Some("see https://nixos.org/download, or set FIRN_NIX"),
        BuildError::Offline { .. } => {
            Some("what was built already needs no network: `firn env list` shows it")
        }
        BuildError::FlakesOff
        | BuildError::NoAttribute { .. }
        | BuildError::Failed { .. }
        | BuildError::Evaluation { .. }
        | BuildError::Run { .. }
        | BuildError::Answer { .. } => None,
    }
}
