//! What goes over the API's wire. Nothing in here is used to run a sandbox: it is turned into what is
//! (`TryFrom`), and back, at the edge.
//!
//! Names are in camelCase, and those of a sandbox are nixo's where nixo has one. Times are RFC 3339,
//! durations milliseconds, sizes bytes.

mod session;

pub(crate) use session::*;

use crate::spec::protection::Protection;
use firn_protocol::{Access, Exceeded, ProcessInfo, Stdin, TerminalSize, Text, Variable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of the API, which is the first part of every path. What is added to it is optional to
/// both sides: a client ignores fields it does not know, and so does the daemon.
pub(crate) const API_VERSION: u32 = 1;

/// What `POST /v1/sandboxes` is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CreateRequest {
    /// What people call it: letters, digits, `-`, `_` and `.`, at most 63, not like an id. No two that
    /// are not over have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Any words about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    /// The agent that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) agent: Option<String>,
    /// Who it belongs to: a word of the caller's choice, by which sandboxes are listed and leases renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    /// The same owner's create with the same key gives the same sandbox again, as long as it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idempotency_key: Option<String>,
    /// Destroy it when its lease has not been renewed for so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lease_ms: Option<u64>,
    /// Stop it when nothing was asked of it for so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout_ms: Option<u64>,
    /// Stop it when it is so old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lifetime_ms: Option<u64>,
    /// How it is isolated. Absent: a vm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) isolation: Option<Isolation>,
    /// Make do with less where this host cannot give what is asked for.
    pub(crate) allow_degraded: bool,
    /// The programs it has: `host`, or the absolute path of an environment's folder. Absent: `host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) environment: Option<Text>,
    /// How much of the Nix store it sees, with an environment of store paths. Absent: the closure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<Store>,
    /// Programs that it must have, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) with: Vec<String>,
    /// What these programs together are called. Absent: `custom:` and their names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<String>,
    /// Processors: `2`, or `0.5` in a jail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpus: Option<String>,
    /// Memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
    /// How much can be written to its own files, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_bytes: Option<u64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) processes: Option<u64>,
    /// `off`. Absent: `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<String>,
    /// The caller's folder at `/workspace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) workspace: Option<Workspace>,
    /// More folders and files of the caller's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) mounts: Vec<MountRequest>,
    /// Who its commands are, when nobody says: `root`, `sandbox`, `UID` or `UID:GID`. Absent: root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// The virtual machine monitor. Absent: the best one there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vmm: Option<Vmm>,
}

/// The two ways to isolate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Isolation {
    /// Namespaces on the host's own kernel.
    Jail,
    /// A microVM with a kernel of its own.
    Vm,
}

impl Isolation {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isolation::Jail => "jail",
            Isolation::Vm => "vm",
        }
    }
}

/// How much of the host's Nix store a sandbox sees, read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Store {
    /// The closure of its environment.
    Closure,
    /// All of it.
    Host,
}

/// The VMMs that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Vmm {
    /// cloud-hypervisor. Needs KVM.
    CloudHypervisor,
    /// QEMU, with KVM or in software.
    Qemu,
}

/// A folder of the caller's to work in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Workspace {
    /// On the host, absolute.
    pub(crate) host: Text,
    /// Whether it may be written to.
    pub(crate) access: Access,
}

/// A folder or a file of the caller's at a path of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MountRequest {
    /// On the host, absolute.
    pub(crate) host: Text,
    /// In the sandbox, absolute.
    pub(crate) target: Text,
    /// Whether it may be written to.
    pub(crate) access: Access,
}

/// A command to run: `POST /v1/sandboxes/{id}/exec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExecRequest {
    /// The program and its arguments. Empty for an environment that runs the code on stdin.
    pub(crate) argv: Vec<Text>,
    /// Where it starts. Absent: `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<Text>,
    /// Variables on top of the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) env: Vec<Variable>,
    /// Who runs it. Absent: the sandbox's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// On a terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) terminal: Option<TerminalSize>,
    /// Whether stdin will be sent.
    pub(crate) stdin: Stdin,
    /// Kill it after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
    /// Pass on at most so much of its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_output_bytes: Option<u64>,
    /// Let it go on when this connection ends: it can be attached to, and its output is kept.
    #[serde(default)]
    pub(crate) detach: bool,
}

/// `POST /v1/run`: a sandbox that lives as long as this connection, and a command in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RunRequest {
    /// The sandbox.
    pub(crate) sandbox: CreateRequest,
    /// The command. `detach` makes the sandbox outlive the connection and end with the command.
    pub(crate) command: ExecRequest,
}

/// `POST /v1/sandboxes/{id}/attach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AttachRequest {
    /// Which of its detached commands. Absent: the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) command: Option<u64>,
    /// From which byte of its output, both streams counted together. Absent: all that is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<u64>,
}

/// `PATCH /v1/sandboxes/{id}`: what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct UpdateRequest {
    /// Another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Other words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    /// Another limit of memory, in bytes. Of a jail only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
    /// Another limit of processes. Of a jail only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) processes: Option<u64>,
    /// Another limit of processors. Of a jail only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpus: Option<String>,
    /// Another idle timeout; 0 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout_ms: Option<u64>,
    /// Another lifetime, counted from its creation; 0 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lifetime_ms: Option<u64>,
}

/// `PUT /v1/leases/{owner}`: renews the leases of all of an owner's sandboxes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RenewRequest {
    /// For so long from now. Absent: for as long as each was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lease_ms: Option<u64>,
}

/// A sandbox, as it is now.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxInfo {
    /// Its id: eight hexadecimal digits.
    pub(crate) session_id: String,
    /// Its name: the id where nobody gave one.
    pub(crate) name: String,
    /// What its programs come from: an environment's name, or `custom:a,b`.
    pub(crate) profile: String,
    /// The folder of its environment, or `/`.
    pub(crate) rootfs_path: String,
    /// The caller's folder at its `/workspace`, or `null`.
    pub(crate) workspace: Option<String>,
    /// When it was made.
    pub(crate) created_at: String,
    /// When a command was last started in it.
    pub(crate) last_exec_at: Option<String>,
    /// The process on the host that it lives and dies with.
    pub(crate) pid: Option<u32>,
    /// The agent that it is for.
    pub(crate) agent: Option<String>,
    /// Words about it.
    pub(crate) description: Option<String>,
    /// Its network: `off`.
    pub(crate) network: String,
    /// How it is isolated.
    pub(crate) isolation: Isolation,
    /// What it does.
    pub(crate) state: SandboxState,
    /// How it ended, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Commands that run in it.
    pub(crate) commands: u32,
    /// Who it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    /// When its lease runs out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lease_until: Option<String>,
    /// When it is stopped for its age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<String>,
    /// How long it may be idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout_ms: Option<u64>,
    /// Whether it ends with who made it.
    pub(crate) ephemeral: bool,
    /// The command it was made for, when that was detached: its number, for `attach` and `logs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) main_command: Option<u64>,
    /// The control group of its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup: Option<String>,
    /// What was asked for and what was given, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) protection: Option<Protection>,
}

/// What a sandbox does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SandboxState {
    /// It comes up.
    Starting,
    /// It takes commands.
    Running,
    /// It stands still.
    Paused,
    /// It is being ended.
    Stopping,
    /// It was ended: by somebody, by its lifetime, or because it had nothing to do.
    Stopped,
    /// It did not come up, or ended when it should not have.
    Failed,
}

/// What happens to sandboxes, for `firn events` and the audit log.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventRecord {
    /// Counts up; no two events of one state folder have the same.
    pub(crate) sequence: u64,
    /// When.
    pub(crate) ts: String,
    /// To which sandbox.
    pub(crate) session_id: String,
    /// What: `created`, `running`, `exec-started`, `exec-exited`, `paused`, `resumed`, `renamed`,
    /// `updated`, `lease-renewed`, `limit-hit`, `stopped`, `failed`, `adopted`, `destroyed`.
    pub(crate) event: String,
    /// Who asked: the user and the process at the other end of the API's socket. Absent: the daemon
    /// itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<Caller>,
    /// More, by the kind of event: `argv`, `command`, `exitCode`, `signal`, `durationMs`, `reason`, …
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub(crate) details: serde_json::Map<String, serde_json::Value>,
}

/// Who asked (`SO_PEERCRED`, `unix`(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Caller {
    /// The user.
    pub(crate) uid: u32,
    /// The process.
    pub(crate) pid: i32,
}

/// What a sandbox uses of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatsInfo {
    /// Processor time so far, in microseconds.
    pub(crate) cpu_us: u64,
    /// Memory in use, in bytes.
    pub(crate) memory_bytes: u64,
    /// Its limit, in bytes, where something enforces one.
    pub(crate) memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub(crate) processes: u64,
    /// Read from disks, in bytes, where it is counted.
    pub(crate) io_read_bytes: Option<u64>,
    /// Written to disks, in bytes, where it is counted.
    pub(crate) io_written_bytes: Option<u64>,
}

/// A process in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessRow {
    /// Its number in the sandbox.
    pub(crate) pid: u32,
    /// Its parent's.
    pub(crate) parent: u32,
    /// Its user's.
    pub(crate) user: u32,
    /// One letter, as `ps`(1) has it.
    pub(crate) state: String,
    /// Processor time so far.
    pub(crate) cpu_ms: u64,
    /// Resident memory, in bytes.
    pub(crate) rss_bytes: u64,
    /// Its command line, or its name in brackets.
    pub(crate) command: Text,
}

impl From<ProcessInfo> for ProcessRow {
    fn from(process: ProcessInfo) -> ProcessRow {
        let ProcessInfo { pid, parent, user, state, name, cpu_ms, rss_bytes, started_ms: _ } = process;
        ProcessRow { pid, parent, user, state, cpu_ms, rss_bytes, command: name }
    }
}

/// The daemon itself: `GET /v1/daemon`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DaemonInfo {
    /// Name and version.
    pub(crate) software: String,
    /// [`API_VERSION`].
    pub(crate) api: u32,
    /// Its process.
    pub(crate) pid: u32,
    /// When it was started.
    pub(crate) started_at: String,
    /// Its socket.
    pub(crate) socket: String,
    /// Where its records are.
    pub(crate) state_dir: String,
    /// Sandboxes that are not over.
    pub(crate) sandboxes: u64,
    /// Whether it takes no more requests and waits for those under way.
    pub(crate) draining: bool,
    /// What waits to be asked for.
    #[serde(default)]
    pub(crate) pool: PoolInfo,
}

/// How full the pool is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolInfo {
    /// Of guests.
    pub(crate) vm: PoolLevel,
    /// Of jails.
    pub(crate) jail: PoolLevel,
    /// Of jails with an interpreter.
    #[serde(default)]
    pub(crate) code: PoolLevel,
}

/// How full the pool is of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolLevel {
    /// How many there are to be.
    pub(crate) wanted: u64,
    /// How many there are.
    pub(crate) ready: u64,
}

/// What `POST /v1/sandboxes/{id}/stop` may be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct StopRequest {
    /// How long its orderly end may take. Absent: ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grace_ms: Option<u64>,
}

/// What `POST /v1/daemon/stop` may be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DaemonStopRequest {
    /// Do not wait for the requests under way.
    pub(crate) force: bool,
}

/// What was removed by `POST /v1/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pruned {
    /// The ids.
    pub(crate) removed: Vec<String>,
}

/// Why not: the body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Refusal {
    /// For programs.
    pub(crate) kind: RefusalKind,
    /// For people: the error with its causes.
    pub(crate) message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

/// Kinds of refusals, and their HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RefusalKind {
    /// What was asked makes no sense. 400.
    Invalid,
    /// There is no such sandbox, or no such command. 404.
    NotFound,
    /// The name, or the start of an id, fits several. 409.
    Ambiguous,
    /// Not in this state, or the name is taken. 409.
    Conflict,
    /// There are too many already. 429.
    TooMany,
    /// The sandbox did not come up. 500.
    Launch,
    /// The sandbox failed. 500.
    Sandbox,
    /// This host cannot do it. 501.
    Unsupported,
    /// The daemon is stopping. 503.
    Stopping,
    /// The daemon failed. 500.
    #[serde(other)]
    Internal,
}

/// What the daemon itself says on the stream of a command, between the frames of the command: the body of
/// a frame of kind `Event` with id 0. The command's own frames have id 1.
///
/// ```text
///   run     Progress… Sandbox  (frames of the command)  Ended | Detached | Failed
///   exec                       (frames of the command)  Ended | Detached | Failed
///   create  Progress… Sandbox | Failed                  one JSON object a line
/// ```
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub(crate) enum Notice {
    /// It comes up: how far it is.
    Progress {
        /// In words, as `booting`.
        phase: String,
    },
    /// It is there.
    Sandbox {
        /// As it is now.
        sandbox: Box<SandboxInfo>,
    },
    /// The session that code is run in.
    Session {
        /// As it is now.
        session: Box<SessionInfo>,
        /// Whether it was made for this.
        created: bool,
    },
    /// The command is over, and what is to be said of the sandbox after it. The last.
    Ended {
        /// Limits of the sandbox that it ran into, as the host has counted them.
        exceeded: Vec<Exceeded>,
        /// The daemon ended it after its timeout, because the sandbox did not.
        timed_out: bool,
        /// What was asked for and what was given.
        protection: Option<Box<Protection>>,
    },
    /// The command runs and goes on without this connection. The last.
    Detached {
        /// Its number, for `attach` and `logs`.
        command: u64,
    },
    /// The sandbox is not there any more, or never was. The last.
    Failed {
        /// Why.
        refusal: Refusal,
        /// The last of the guest's console.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        console: Option<String>,
    },
}
