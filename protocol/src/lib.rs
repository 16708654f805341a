//! The contract between firn on the host and `firn-agent` in a sandbox.
//!
//! This crate owns the messages and their framing and nothing else: no I/O, no timeouts, no
//! policy. Both ends depend on it; it depends on neither. How it may change is written in
//! `VERSIONING.md` beside this crate.
//!
//! A connection is any ordered byte stream: vsock to a guest, a Unix socket to a jail. It carries
//! one operation at a time, like HTTP/1.1 with keep-alive:
//!
//! ```text
//!   agent                                  host
//!     │ ── Hello ─────────────────────────▶ │   the agent always speaks first, whoever dialled
//!     │ ◀───────────────────────── Hello ── │
//!     │ ◀───────────────── Request (id 1) ── │
//!     │ ◀── Stdin, StdinEnd, Input (id 1) ── │   only while an exec runs
//!     │ ── Event, Stdout, Stderr (id 1) ──▶ │   any number
//!     │ ── Reply (id 1) ──────────────────▶ │   exactly one, the last frame of this id
//!     │ ◀───────────────── Request (id 2) ── │
//! ```
//!
//! Parallel work opens more connections. The transport's flow control is the back-pressure for
//! output. Input needs one thing more, because a cancel must be able to overtake stdin that nobody
//! reads: the host sends stdin only against credit the agent has granted ([`Event::StdinCredit`]).

mod files;
mod frame;
mod message;
#[cfg(feature = "schema")]
pub mod schema;
mod session;
mod text;

pub use files::*;
pub use frame::{Codec, Frame, FrameError, Kind, MAX_BODY, MAX_CHUNK, RequestId};
pub use message::*;
pub use session::*;
pub use text::Text;

/// The version of the messages and the framing. Both ends refuse any other: see `VERSIONING.md`.
pub const PROTOCOL_VERSION: u32 = 1;

/// The vsock port the agent listens on in a guest. In a jail it inherits a socket.
pub const AGENT_PORT: u32 = 1024;

/// The vsock port the agent dials on the host (CID 2) once it can take requests.
pub const READY_PORT: u32 = 1025;

/// How many bytes of stdin the host may send before the agent has granted more.
pub const STDIN_WINDOW: u32 = 256 * 1024;

/// The most output of a kept command that is kept, in bytes.
pub const MAX_KEPT_OUTPUT: u32 = 4 * 1024 * 1024;

/// The most kept commands that run at once in a sandbox.
pub const MAX_KEPT_RUNNING: usize = 32;

/// The most kept commands that are remembered when they are over. All of them together keep no more than
/// [`MAX_ENDED_OUTPUT`] bytes of output; the first to end is the first to be forgotten.
pub const MAX_ENDED: usize = 64;

/// See [`MAX_ENDED`].
pub const MAX_ENDED_OUTPUT: usize = 32 * 1024 * 1024;

/// The most processes in a list.
pub const MAX_PROCESSES: usize = 4096;

/// The most entries of a folder in a list.
pub const MAX_FILES: usize = 4096;

/// The most sessions of a sandbox.
pub const MAX_SESSIONS: usize = 32;

/// The longest name of a session, in bytes.
pub const MAX_SESSION_NAME: usize = 64;

/// The most runs that wait in a session.
pub const MAX_QUEUED_RUNS: usize = 32;

/// The longest code of a run, in bytes.
pub const MAX_CODE: usize = 8 * 1024 * 1024;

/// How long a run may take to end after SIGINT unless it is said: see [`SessionRun::grace_ms`].
pub const DEFAULT_GRACE_MS: u64 = 2000;

/// The most files of a run in a list.
pub const MAX_ARTIFACTS: usize = 256;

/// How many runs of a session have their files kept.
pub const MAX_ARTIFACT_RUNS: usize = 64;
