//! The messages. Every field is documented where it stands; units are in the names.

use crate::{
    ArchiveSummary, ArchiveWrite, FileInfo, FileList, FileRead, FileRemove, FileTarget, OutputCap, Ran,
    SessionCreate, SessionInfo, SessionInterrupt, SessionRun, SessionTarget, Text,
};
use serde::{Deserialize, Serialize};

#[cfg(feature = "schema")]
use schemars::JsonSchema;

/// The first frame in each direction. The agent sends it unasked; the host answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the sender.
    pub protocol: u32,
    /// Name and version of the sender, for people: `firn-agent 0.1.0`.
    pub software: String,
    /// What the sender can do beyond the version's minimum. Unknown ones are ignored.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// What the host asks for. One at a time on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Answered by [`Reply::Pong`]. Shows that the agent lives.
    Ping,
    /// Makes a booted guest this sandbox. Answered by [`Reply::Configured`], once per guest.
    Configure(Box<Configure>),
    /// Runs a command. Answered by [`Reply::Exited`] or [`Reply::NotStarted`].
    Exec(Box<Exec>),
    /// Takes part in a command that was kept ([`Exec::keep`]). Answered by [`Event::Attached`], then
    /// like a running [`Request::Exec`].
    Attach(Attach),
    /// Which kept commands there are. Answered by [`Reply::Commands`].
    Commands,
    /// Forgets a kept command that is over. Answered by [`Reply::Forgotten`].
    Forget {
        /// Its number: [`Keep::command`].
        command: u64,
    },
    /// Which processes there are. Answered by [`Reply::Processes`].
    Processes,
    /// What a file is. Answered by [`Reply::FileInfo`].
    FileStat(FileTarget),
    /// What is in a folder, to which symbolic links are followed. Answered by [`Reply::FileList`].
    FileList(FileTarget),
    /// Answered by the content as output, and [`Reply::FileSent`].
    FileRead(FileRead),
    /// Answered by [`Reply::FileRemoved`].
    FileRemove(FileRemove),
    /// Packs a file or folder, itself if it is a symbolic link, under its own name. Answered by a tar
    /// stream as output, and [`Reply::ArchiveSent`].
    ArchiveRead(FileTarget),
    /// Takes a tar stream as stdin. Answered by [`Reply::ArchiveUnpacked`].
    ArchiveWrite(ArchiveWrite),
    /// Starts an interpreter that lives on between runs. Answered by [`Reply::Session`] when it takes code,
    /// or [`Reply::NotStarted`].
    SessionCreate(Box<SessionCreate>),
    /// Runs code in it. Answered by [`Reply::Ran`], or by [`Reply::NotStarted`] when its interpreter had to be
    /// started again and could not.
    SessionRun(Box<SessionRun>),
    /// Ends what it runs. Answered by [`Reply::Interrupted`], at once.
    SessionInterrupt(SessionInterrupt),
    /// Which sessions there are. Answered by [`Reply::Sessions`].
    SessionList,
    /// What is known of one. Answered by [`Reply::Session`].
    SessionInspect(SessionTarget),
    /// Ends it, with all it started. Answered by [`Reply::SessionClosed`] when that is gone.
    SessionClose(SessionTarget),
    /// Answered by [`Reply::Stats`].
    Stats,
    /// Ends all commands, writes back all shares, and after [`Reply::ShuttingDown`] powers the guest off, or has
    /// its init do so. A plain process exits instead.
    Shutdown,
}

/// Everything that makes one guest differ from another. Nothing of it is known at boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Configure {
    /// The guest's host name, at most 64 bytes (`sethostname(2)`).
    pub hostname: String,
    /// The wall clock, in nanoseconds since 1970-01-01T00:00:00Z.
    pub unix_time_ns: u64,
    /// Fresh random bytes from the host for the kernel's pool. At least 32.
    pub entropy: Text,
    /// The new root. Absent: the root stays what it is (a jail, a NixOS guest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Mounts over that root, in order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// How many processes and threads all commands together may be (`pids.max` of their control
    /// group). Absent, or more than that: what the guest can have without starving the agent. A guest
    /// that cannot keep the limit refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
}

/// A root that can be written to and forgets: an overlay of a read-only share and a tmpfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Root {
    /// The virtiofs tag of the read-only tree below.
    pub tag: String,
    /// The size limit of the tmpfs above, in bytes.
    pub writable_bytes: u64,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Where: an absolute path without `..`. Made when it is not there.
    pub target: Text,
    /// Whether the guest may write. The host enforces it for shares; this makes the guest's own
    /// errors say so.
    pub access: Access,
}

/// What a [`Mount`] shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MountSource {
    /// A folder or a file of a virtiofs export.
    Virtiofs {
        /// The tag of the export.
        tag: String,
        /// The path inside the export, relative, without `..`.
        path: Text,
    },
    /// An empty folder in memory.
    Tmpfs {
        /// Its size limit, in bytes.
        size_bytes: u64,
        /// The permission bits of the folder.
        mode: u32,
    },
}

/// Whether a mount may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Reading only.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// A command to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Exec {
    /// The program and its arguments. A program without a slash is looked up in the `PATH` of
    /// the command's environment.
    pub argv: Vec<Text>,
    /// The working directory. Absent: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Text>,
    /// Variables on top of the agent's defaults (`PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`,
    /// `LANG`), later ones winning. Nothing of the agent's own environment is passed on.
    #[serde(default)]
    pub env: Vec<Variable>,
    /// `NAME`, `UID`, `NAME:GROUP` or `UID:GID` as the sandbox's own passwd and group name them.
    /// Absent: the agent's own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Run on a pseudo-terminal of this size. All output is then [`crate::Kind::Stdout`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// Whether stdin frames will follow.
    pub stdin: Stdin,
    /// Kill the command and all it started after this time, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Pass on at most this many bytes of stdout and stderr together; drop the rest and say so in
    /// [`Exited::truncated`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_bytes: Option<u64>,
    /// Limits of the command's process, which all it starts inherits. Each counts for a process (or
    /// a user), not for the command as a whole: they are for where no control group can be had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resource_limits: Vec<ResourceLimit>,
    /// Keep the command when its connection closes. Absent: it ends then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// How a command outlives its connection. It goes on, its output is read and the latest of it kept; its
/// stdin stays open and empty until somebody attached sends some or ends it. The agent knows its result
/// and its output until [`Request::Forget`], or until [`MAX_ENDED`] later ones have ended.
///
/// [`MAX_ENDED`]: crate::MAX_ENDED
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Keep {
    /// What the host calls it: any number that no other command of this sandbox has.
    pub command: u64,
    /// How much of the latest output is kept, in bytes: at most [`crate::MAX_KEPT_OUTPUT`], more is as
    /// that. A little is kept in any case, for those attached.
    pub output_bytes: u32,
    /// See [`Attach::back_pressure`], for the connection that starts the command.
    #[serde(default)]
    pub back_pressure: bool,
}

/// Wants to take part in a kept command. Any number of connections may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Attach {
    /// Its number: [`Keep::command`].
    pub command: u64,
    /// From where on its output is wanted: a number of bytes since its start, those of stdout and stderr
    /// counted together. What is not kept any more is left out.
    pub from: u64,
    /// `Stream`: stdin comes from this connection now, and no more from the one it came from so far, which
    /// is told so ([`Event::StdinClosed`]). `Null`: it is left to whom it comes from.
    pub stdin: Stdin,
    /// Whether the command waits while this connection does not take its output. Otherwise it goes on,
    /// and what is not kept any more is left out ([`Event::Skipped`]).
    #[serde(default)]
    pub back_pressure: bool,
}

/// A limit of `setrlimit(2)`, soft and hard alike. One above the hard limit of the agent itself is as
/// that: limits are never raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct ResourceLimit {
    /// What is limited.
    pub resource: Resource,
    /// How much there may be of it, in the unit of the resource.
    pub value: u64,
}

/// What a [`ResourceLimit`] limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Private writable memory of a process, in bytes: `RLIMIT_DATA`. What is shared or mapped from
    /// files does not count.
    Data,
    /// Processes and threads of the command's user, those of other commands included:
    /// `RLIMIT_NPROC`. Does not bind root of the system, nor who may exceed limits.
    Processes,
    /// The size of a file that is written to, in bytes: `RLIMIT_FSIZE`.
    FileSize,
    /// Open descriptors of a process: `RLIMIT_NOFILE`.
    OpenFiles,
    /// Processor time of a process, in seconds: `RLIMIT_CPU`.
    Cpu,
    /// The size of a core dump, in bytes: `RLIMIT_CORE`.
    Core,
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Variable {
    /// Its name: not empty, without `=` and NUL.
    pub name: Text,
    /// Its value: without NUL.
    pub value: Text,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What a command's stdin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// `/dev/null`.
    Null,
    /// Frames of kind [`crate::Kind::Stdin`] until [`crate::Kind::StdinEnd`].
    Stream,
}

/// What the host may send while an exec runs, besides stdin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Input {
    /// The terminal has a new size. Ignored without one.
    Resize(TerminalSize),
    /// Send this signal (its Linux number) to the command's process group.
    Signal {
        /// 1 to 64.
        signal: i32,
    },
    /// Kill the command and all it started.
    Cancel,
}

/// What the agent tells while an operation runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The program runs: `execve` has succeeded.
    Started {
        /// Its process id in the sandbox.
        pid: u32,
    },
    /// The host may send this many more bytes of stdin.
    StdinCredit {
        /// To be added to what was granted before.
        bytes: u32,
    },
    /// Nothing reads this connection's stdin any more: what is still sent is dropped.
    StdinClosed,
    /// To [`Request::Attach`], once: the program runs, or ran. Its output follows.
    Attached {
        /// Where in the output the first byte that follows is. At or after [`Attach::from`], or the
        /// end so far when that is earlier.
        from: u64,
        /// Its process id in the sandbox.
        pid: u32,
        /// How many bytes of stdin may be sent before more are granted. Absent: none, stdin has not
        /// been asked for, has ended, or has never been open.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdin_credit: Option<u32>,
    },
    /// Output of a kept command was left out here: it was produced faster than it was taken, and is not
    /// kept any more.
    Skipped {
        /// How much.
        bytes: u64,
    },
    /// To [`Request::SessionRun`], once: its turn has come.
    RunStarted {
        /// Which: [`SessionRun::run`].
        run: u64,
        /// The process id of the interpreter in the sandbox.
        pid: u32,
    },
    /// To [`Request::SessionRun`], once: from here on output is dropped.
    OutputCut {
        /// Which limit was reached.
        by: OutputCap,
    },
}

/// The last frame of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Ping`].
    Pong,
    /// To [`Request::Configure`].
    Configured,
    /// The command ran and is over, with everything it started.
    Exited(Box<Exited>),
    /// The command never ran. Different from a command that ran and exited with 126 or 127.
    NotStarted(NotStarted),
    /// To [`Request::Commands`].
    Commands {
        /// In the order of their numbers.
        commands: Vec<CommandInfo>,
    },
    /// To [`Request::Forget`].
    Forgotten,
    /// To [`Request::Processes`].
    Processes(Processes),
    /// To [`Request::FileStat`].
    FileInfo(FileInfo),
    /// To [`Request::FileList`].
    FileList(FileList),
    /// To [`Request::FileRead`].
    FileSent {
        /// How many bytes were sent.
        bytes: u64,
    },
    /// To [`Request::FileRemove`].
    FileRemoved,
    /// To [`Request::ArchiveRead`].
    ArchiveSent(ArchiveSummary),
    /// To [`Request::ArchiveWrite`].
    ArchiveUnpacked(ArchiveSummary),
    /// To [`Request::SessionCreate`] and [`Request::SessionInspect`].
    Session(Box<SessionInfo>),
    /// To [`Request::SessionRun`].
    Ran(Box<Ran>),
    /// To [`Request::SessionInterrupt`].
    Interrupted {
        /// Which run. Absent: the session was at none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<u64>,
    },
    /// To [`Request::SessionList`].
    Sessions {
        /// By name.
        sessions: Vec<SessionInfo>,
    },
    /// To [`Request::SessionClose`].
    SessionClosed,
    /// To [`Request::Stats`].
    Stats(Stats),
    /// To [`Request::Shutdown`]: all shares are written back.
    ShuttingDown,
    /// The request could not be served. The connection stays usable.
    Error(Failure),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Exited {
    /// What `waitpid` said of it.
    pub status: ExitStatus,
    /// Who ended it.
    pub ended_by: EndedBy,
    /// From start to exit, in microseconds.
    pub duration_us: u64,
    /// Time in user mode, the command and the children it waited for, in microseconds.
    pub user_us: u64,
    /// Time in kernel mode, likewise, in microseconds.
    pub system_us: u64,
    /// The largest resident size of one of its processes, in bytes.
    pub max_rss_bytes: u64,
    /// Bytes it wrote to stdout (or its terminal), passed on or not.
    pub stdout_bytes: u64,
    /// Bytes it wrote to stderr, passed on or not.
    pub stderr_bytes: u64,
    /// Whether output was dropped because of [`Exec::max_output_bytes`].
    pub truncated: bool,
    /// Limits of all commands together that were hit while this one ran, by it or another, as the
    /// agent's system counts them. Empty where the agent has no control group: in a jail the host
    /// counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceeded: Vec<Exceeded>,
}

/// A limit that was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Exceeded {
    /// A process was killed because there was no memory left (`oom_kill` of `memory.events`).
    Memory,
    /// A process or thread could not be made (`max` of `pids.events`).
    Processes,
    /// One that this version has no name for.
    #[serde(other)]
    Unknown,
}

/// An exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code, 0 to 255.
    Code(i32),
    /// This signal (its Linux number) ended it.
    Signal(i32),
}

/// Who ended a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// Itself, or another process in the sandbox.
    Itself,
    /// The agent, after [`Exec::timeout_ms`].
    Timeout,
    /// The host, by [`Input::Cancel`].
    Cancel,
}

/// Why a command never ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct NotStarted {
    /// What kind of obstacle.
    pub reason: NotStartedReason,
    /// One line for people, without the program's name.
    pub message: String,
}

/// Kinds of obstacles to starting a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NotStartedReason {
    /// No such program, or its interpreter is missing. Shells say 127.
    NotFound,
    /// It is there and cannot be executed. Shells say 126.
    NotExecutable,
    /// The working directory cannot be entered.
    BadWorkingDirectory,
    /// No such user or group.
    UnknownUser,
    /// The arguments or variables are not ones a program can be given.
    InvalidArgument,
    /// The sandbox has no memory, processes or descriptors left.
    NoResources,
    /// Anything else: see the message.
    Other,
}

/// A kept command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct CommandInfo {
    /// What the host calls it: [`Keep::command`].
    pub command: u64,
    /// Its process id in the sandbox, once its program runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The beginning of its argument vector: no more than 256 bytes in all.
    pub argv: Vec<Text>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// What became of it.
    pub state: CommandState,
    /// Bytes of output so far, all that was passed on.
    pub output_bytes: u64,
    /// Where in that the first byte is that is still kept.
    pub kept_from: u64,
}

/// What became of a kept command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CommandState {
    /// Its program does not run yet.
    Starting,
    /// Its program runs.
    Running,
    /// It is over.
    Exited(Box<Exited>),
    /// It never ran.
    NotStarted(NotStarted),
}

/// Processes of the sandbox, without the agent's own and the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Processes {
    /// In the order of their numbers, at most [`crate::MAX_PROCESSES`].
    pub processes: Vec<ProcessInfo>,
    /// Whether there are more.
    pub truncated: bool,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct ProcessInfo {
    /// Its number in the sandbox.
    pub pid: u32,
    /// Its parent's, 0 where that is the agent or outside.
    pub parent: u32,
    /// Whose rights it has: the effective user.
    pub user: u32,
    /// One letter, as in `proc(5)`: `R` runs, `S` sleeps, `Z` is a zombie, …
    pub state: String,
    /// Its arguments with spaces in between, or without any its program's name in brackets: the first
    /// 256 bytes. A process says of itself what it likes.
    pub name: Text,
    /// Processor time, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory, in bytes.
    pub rss_bytes: u64,
    /// When it was started: milliseconds since the kernel's start, as [`Stats::uptime_ms`].
    pub started_ms: u64,
}

/// What the sandbox uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Stats {
    /// Since the kernel started, in milliseconds.
    pub uptime_ms: u64,
    /// All memory, in bytes.
    pub memory_total_bytes: u64,
    /// Memory a new program could have, in bytes.
    pub memory_available_bytes: u64,
    /// The agent's own resident memory, in bytes.
    pub agent_rss_bytes: u64,
    /// Commands running now.
    pub commands: u32,
}

/// Why a request was not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Failure {
    /// For programs.
    pub code: FailureCode,
    /// For people: what was tried, on what, and the system's error.
    pub message: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The agent does not know this request.
    Unsupported,
    /// The request contradicts itself or the agent's state.
    Invalid,
    /// The system refused.
    Failed,
    /// There is no such thing, or no more.
    NotFound,
    /// The user has no right to it.
    Denied,
    /// There are as many as there may be.
    TooMany,
    /// The host cancelled it ([`Input::Cancel`]).
    Cancelled,
}
