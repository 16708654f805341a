//! All sandboxes of a daemon.

use super::SandboxId;
use crate::api::types::{
    AttachRequest, Caller, CreateRequest, EventRecord, ExecRequest, ProcessRow, RenewRequest, SandboxInfo,
    StatsInfo, UpdateRequest,
};
use crate::config::Config;
use crate::guest::{Connection, ExecEvent};
use crate::sandbox::launch::{Ended, LaunchError, Progress};
use crate::sandbox::protection::Protection;
use crate::sandbox::spec::SpecError;
use bytes::Bytes;
use firn_protocol::{Exceeded, Input};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;

/// Who owns a sandbox's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Life {
    /// Nobody: it stays until it is destroyed.
    Kept,
    /// Whoever made it: it ends with [`Handle::destroy`], or when the daemon that made it is gone.
    Ephemeral,
    /// The command it was made for.
    Command,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperationError {
    /// No such sandbox.
    #[error("session '{0}' not found")]
    NotFound(String),
    /// Several fit.
    #[error("'{reference}' is ambiguous: it could be {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// What fits.
        candidates: Vec<String>,
    },
    /// Not a name.
    #[error("{0:?} is no name: 1 to 63 letters, digits, '-', '_' and '.', not like an id")]
    Name(String),
    /// Somebody has it.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// Not now.
    #[error("sandbox {id} is {state}: it cannot {operation}")]
    State {
        /// Which.
        id: SandboxId,
        /// What it does.
        state: &'static str,
        /// What was asked.
        operation: &'static str,
    },
    /// No such command.
    #[error("sandbox {id} has no detached command{}", command.map(|n| format!(" {n}")).unwrap_or_default())]
    NoCommand {
        /// Which sandbox.
        id: SandboxId,
        /// Which command.
        command: Option<u64>,
    },
    /// Too many.
    #[error("there are {limit} sandboxes already, as many as there may be")]
    TooMany {
        /// How many there may be.
        limit: usize,
    },
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
    /// What was asked for makes no sense.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// It did not come up.
    #[error("cannot start the sandbox")]
    Launch(#[from] LaunchError),
    /// It failed.
    #[error("the sandbox failed")]
    Sandbox(#[from] Ended),
    /// It cannot be done to this kind of sandbox, or on this host.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// All sandboxes of a daemon. A handle: clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Manager;

/// A sandbox of the manager's. Keeps nothing alive.
#[derive(Clone, Debug)]
pub(crate) struct Handle;

/// A command under way, or attached to. Dropping it before its end cancels it unless it is detached.
#[derive(Debug)]
pub(crate) struct Command;

/// How a command's stream ended.
#[derive(Debug)]
pub(crate) struct Conclusion {
    /// What the host has counted, beside what the agent says.
    pub(crate) exceeded: Vec<Exceeded>,
    /// Whether the host itself had to end it after its timeout.
    pub(crate) timed_out: bool,
    /// What was asked for and what was given.
    pub(crate) protection: Option<Protection>,
}

impl Manager {
    /// The manager of this state folder. Takes over what an earlier one has left.
    pub(crate) async fn open(_config: Arc<Config>) -> Result<Manager, OperationError> {
        todo!()
    }

    /// Makes a sandbox, or gives the one that this very create has made before. A kept one has been seen
    /// to answer; an ephemeral one may not run yet (its first command finds out).
    pub(crate) async fn create(
        &self,
        _request: CreateRequest,
        _life: Life,
        _by: Option<Caller>,
        _progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Handle, OperationError> {
        todo!()
    }

    /// The sandbox with this name or id, or whose id alone starts so.
    pub(crate) fn find(&self, _reference: &str) -> Result<Handle, OperationError> {
        todo!()
    }

    /// All of them, the oldest first: of one owner, if one is named.
    pub(crate) fn list(&self, _owner: Option<&str>) -> Vec<SandboxInfo> {
        todo!()
    }

    /// Renews an owner's leases.
    pub(crate) async fn renew(
        &self,
        _owner: &str,
        _request: RenewRequest,
        _by: Option<Caller>,
    ) -> Result<Vec<SandboxInfo>, OperationError> {
        todo!()
    }

    /// Forgets those that are over.
    pub(crate) async fn prune(&self, _by: Option<Caller>) -> Vec<SandboxId> {
        todo!()
    }

    /// What has happened to one sandbox, or to all that are known, since event number `since`, the
    /// oldest first (bounded), and what will.
    pub(crate) fn events(
        &self,
        _of: Option<&Handle>,
        _since: u64,
    ) -> (Vec<EventRecord>, broadcast::Receiver<Arc<EventRecord>>) {
        todo!()
    }

    /// Takes no more requests. Returns when none is under way; sandboxes that are kept go on, ephemeral
    /// ones are destroyed when their client is gone.
    pub(crate) async fn drain(&self) {
        todo!()
    }
}

impl Handle {
    /// Its id.
    pub(crate) fn id(&self) -> SandboxId {
        todo!()
    }

    /// As it is now.
    pub(crate) fn info(&self) -> SandboxInfo {
        todo!()
    }

    /// Starts a command.
    pub(crate) async fn exec(
        &self,
        _request: ExecRequest,
        _by: Option<Caller>,
    ) -> Result<Command, OperationError> {
        todo!()
    }

    /// Attaches to a detached command.
    pub(crate) async fn attach(
        &self,
        _request: AttachRequest,
        _by: Option<Caller>,
    ) -> Result<Command, OperationError> {
        todo!()
    }

    /// A connection to its agent for something short: files, processes. While the guard lives the
    /// sandbox is not idle.
    pub(crate) async fn connect(&self, _operation: &'static str) -> Result<(Connection, Activity), OperationError> {
        todo!()
    }

    /// What the output of a detached command was so far: what is kept in its log, from this byte on, and
    /// whether more may come.
    pub(crate) async fn log(&self, _command: Option<u64>, _from: u64) -> Result<(Bytes, bool), OperationError> {
        todo!()
    }

    /// The last of the guest's console.
    pub(crate) fn console(&self) -> String {
        todo!()
    }

    /// Its processes.
    pub(crate) async fn processes(&self) -> Result<Vec<ProcessRow>, OperationError> {
        todo!()
    }

    /// What it uses.
    pub(crate) async fn stats(&self) -> Result<StatsInfo, OperationError> {
        todo!()
    }

    /// Has it stand still.
    pub(crate) async fn pause(&self, _by: Option<Caller>) -> Result<(), OperationError> {
        todo!()
    }

    /// Has it go on.
    pub(crate) async fn resume(&self, _by: Option<Caller>) -> Result<(), OperationError> {
        todo!()
    }

    /// Ends it, orderly if that takes no longer than `grace`, and keeps its record.
    pub(crate) async fn stop(&self, _grace: Duration, _by: Option<Caller>) -> Result<(), OperationError> {
        todo!()
    }

    /// Ends it at once and forgets it. Nothing of it is left when this returns.
    pub(crate) async fn destroy(&self, _by: Option<Caller>) -> Result<(), OperationError> {
        todo!()
    }

    /// Changes what can be changed.
    pub(crate) async fn update(
        &self,
        _request: UpdateRequest,
        _by: Option<Caller>,
    ) -> Result<SandboxInfo, OperationError> {
        todo!()
    }

    /// Has everything that is shared written back, and ends it: the orderly end of a `run`.
    pub(crate) async fn finish(&self, _by: Option<Caller>) -> Result<(), OperationError> {
        todo!()
    }
}

/// While it lives the sandbox is not idle.
#[derive(Debug)]
pub(crate) struct Activity;

impl Command {
    /// Its number, when it can be attached to.
    pub(crate) fn number(&self) -> Option<u64> {
        todo!()
    }

    /// What happens next. `Exited` and `NotStarted` are the last. Fails when the sandbox ends. May be
    /// dropped at any time without loss.
    pub(crate) async fn next(&mut self) -> Result<ExecEvent, OperationError> {
        todo!()
    }

    /// How many bytes of stdin can be sent now. None: stdin has ended.
    pub(crate) fn stdin_room(&self) -> Option<usize> {
        todo!()
    }

    /// Sends some stdin: no more than there is room for.
    pub(crate) fn send_stdin(&mut self, _bytes: Bytes) -> Result<(), OperationError> {
        todo!()
    }

    /// Says that stdin has ended.
    pub(crate) fn end_stdin(&mut self) -> Result<(), OperationError> {
        todo!()
    }

    /// Sends a signal, a new terminal size, or the wish that it ends.
    pub(crate) fn send(&mut self, _input: &Input) -> Result<(), OperationError> {
        todo!()
    }

    /// What is to be said after its end. `timed_out` when [`Command::next`] never told one.
    pub(crate) fn conclude(&self) -> Conclusion {
        todo!()
    }
}
