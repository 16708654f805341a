//! Sessions: interpreters that live on between runs.
//!
//! A session belongs to the agent and to no connection: it outlives whoever made it, until
//! [`Request::SessionClose`]. Its runs wait for one another in the order in which they came; sessions do not
//! wait for one another. A run is an operation of its connection:
//!
//! ```text
//!   host                                            agent
//!     │ ── Request: SessionRun ──────────────────────▶ │
//!     │ ── Stdin: more code, if announced ───────────▶ │
//!     │ ◀── Event: RunStarted, when its turn has come ─│
//!     │ ◀── Stdout, Stderr, Event: OutputCut ──────────│
//!     │ ── Stdin, StdinEnd, Input ───────────────────▶ │
//!     │ ◀── Reply: Ran ────────────────────────────────│
//! ```
//!
//! A connection that closes takes a run with it that still waits. One that has started goes on to its end
//! or timeout, its output is dropped, and its result is told by [`Request::SessionInspect`].
//!
//! What comes back is the guest's word, more so than elsewhere: whatever runs in an interpreter can write
//! to its streams what it likes and say of its own run what it likes. It cannot speak for another session,
//! and what it wrote before a run is not passed on as that run's.
//!
//! [`Request::SessionClose`]: crate::Request::SessionClose
//! [`Request::SessionInspect`]: crate::Request::SessionInspect

use crate::{ResourceLimit, Stdin, Text, Variable};
use serde::{Deserialize, Serialize};

#[cfg(feature = "schema")]
use schemars::JsonSchema;

/// Wants a session. The interpreter is started at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct SessionCreate {
    /// What it is called: 1 to [`crate::MAX_SESSION_NAME`] bytes of `A-Z a-z 0-9 . _ -`, and no other
    /// session of the sandbox is called so.
    pub session: String,
    /// How to talk to the interpreter.
    pub driver: Driver,
    /// The interpreter and its own arguments; the agent adds those that start the driver. Empty: what the
    /// driver is named after, looked up in `PATH`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<Text>,
    /// As [`crate::Exec::cwd`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Text>,
    /// As [`crate::Exec::env`]. `FIRN_ARTIFACTS` is the agent's to set.
    #[serde(default)]
    pub env: Vec<Variable>,
    /// As [`crate::Exec::user`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Pass on at most this many bytes of output of all its runs together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_bytes: Option<u64>,
    /// As [`crate::Exec::resource_limits`], for the interpreter and all it starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resource_limits: Vec<ResourceLimit>,
}

/// Which language an interpreter is talked to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// Python 3.8 or later. `python3`.
    Python,
    /// Bash 4.4 or later. `bash`.
    Bash,
    /// Node.js 16 or later. `node`.
    Node,
}

/// Wants code to be run in a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct SessionRun {
    /// In which.
    pub session: String,
    /// What the host calls this run: a number that no other run of the session has.
    pub run: u64,
    /// The code, or its beginning.
    #[serde(default)]
    pub code: Text,
    /// So many bytes of code follow, as [`crate::Kind::Stdin`] against credit, before any stdin. All of it
    /// together is no longer than [`crate::MAX_CODE`]. The run is in the queue when its code is there.
    #[serde(default)]
    pub more_code_bytes: u32,
    /// Interrupt it after this time, in milliseconds, as [`crate::Request::SessionInterrupt`] does. It
    /// counts from [`crate::Event::RunStarted`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How long the run may take to end after SIGINT before it is sent SIGTERM, and after that before the
    /// interpreter and all it started are killed, in milliseconds. Absent: [`crate::DEFAULT_GRACE_MS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// Whether stdin frames will follow. With `null` whoever reads stdin finds its end.
    pub stdin: Stdin,
    /// Pass on at most this many bytes of stdout and stderr together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_bytes: Option<u64>,
}

/// Wants the run to end that a session is at. What it is sent goes to the interpreter's process group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct SessionInterrupt {
    /// Which session.
    pub session: String,
    /// Only this run: one that waits is taken from the queue. Absent: whichever runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u64>,
    /// Instead of [`SessionRun::grace_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// Names a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct SessionTarget {
    /// Its name: [`SessionCreate::session`].
    pub session: String,
}

/// What is known of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct SessionInfo {
    /// Its name.
    pub session: String,
    /// How its interpreter is talked to.
    pub driver: Driver,
    /// The process id of its interpreter in the sandbox. Absent: there is none at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Resident memory of the interpreter itself, in bytes.
    #[serde(default)]
    pub rss_bytes: u64,
    /// When it was made: milliseconds since the kernel's start, as [`crate::Stats::uptime_ms`].
    pub created_ms: u64,
    /// When a run last began or ended, likewise.
    pub used_ms: u64,
    /// How many runs have begun.
    pub runs: u64,
    /// How many wait.
    pub queued: u32,
    /// The run it is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u64>,
    /// How often its interpreter was started again, with the state lost.
    pub restarts: u64,
    /// Bytes of output of its runs that were passed on.
    pub output_bytes: u64,
    /// The run that ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Box<Ran>>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Ran {
    /// Which: [`SessionRun::run`].
    pub run: u64,
    /// How.
    pub outcome: RunOutcome,
    /// That as a shell would say it, 0 to 255: 0 when it went well, 1 after an exception, the status of the
    /// last command in a shell, the exit code, 128 and the signal, 130 when interrupted, 124 when timed out.
    pub exit_code: i32,
    /// The interpreter's state (variables, functions, working directory …) is gone: the next run finds a new
    /// one.
    pub state_lost: bool,
    /// The interpreter had ended before this run began, so that the run already found a new one.
    #[serde(default)]
    pub state_lost_before: bool,
    /// From [`crate::Event::RunStarted`] to its end, in microseconds.
    pub duration_us: u64,
    /// Bytes written to stdout, passed on or not.
    pub stdout_bytes: u64,
    /// Bytes written to stderr, passed on or not.
    pub stderr_bytes: u64,
    /// Which limit made the agent drop output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated: Option<OutputCap>,
    /// Bytes that what earlier runs left running wrote between the run before and this one. They are
    /// dropped. What it writes during a run cannot be told from the run's own output.
    #[serde(default)]
    pub background_bytes: u64,
    /// The files it left in `$FIRN_ARTIFACTS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<Artifacts>,
    /// Limits that were hit while it ran: see [`crate::Exited::exceeded`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceeded: Vec<crate::Exceeded>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RunOutcome {
    /// The code ran to its end. In a shell its last command may have failed: see [`Ran::exit_code`].
    Ok,
    /// It could not be read, or ended by an exception, which is told on stderr.
    Exception,
    /// It asked for the end of the interpreter. Whether the state is lost says [`Ran::state_lost`].
    Exited {
        /// 0 to 255.
        code: i32,
    },
    /// A signal ended the interpreter that the agent did not send.
    Killed {
        /// Its Linux number.
        signal: i32,
    },
    /// [`crate::Request::SessionInterrupt`], [`crate::Input::Cancel`], or the end of the session ended it.
    Interrupted,
    /// [`SessionRun::timeout_ms`] ended it.
    TimedOut,
    /// The interpreter said what its driver never says, or nothing, and was killed.
    Broken,
}

/// A limit on output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OutputCap {
    /// [`SessionRun::max_output_bytes`].
    Run,
    /// [`SessionCreate::max_output_bytes`].
    Session,
}

/// The files a run has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Artifacts {
    /// The folder they are in, of this run alone. It is removed when the session is closed, or when
    /// [`crate::MAX_ARTIFACT_RUNS`] later runs have left files.
    pub folder: Text,
    /// Ordinary files in it, by name: at most [`crate::MAX_ARTIFACTS`].
    pub files: Vec<Artifact>,
    /// Whether there are more, or names that are too long.
    pub truncated: bool,
}

/// A file that a run has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Artifact {
    /// Its name in the folder.
    pub name: Text,
    /// Its media type, guessed from the name.
    pub media_type: String,
    /// Its length, in bytes.
    pub size: u64,
}
