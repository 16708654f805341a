//! Sessions: interpreters that live on between runs of code.

use super::{CreateRequest, Isolation, SandboxState};
use firn_protocol::{Stdin, Text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `POST /v1/sessions`: an interpreter in a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SessionRequest {
    /// What it is called: 1 to 64 letters, digits, `-`, `_` and `.`. No two have the same name. Absent: one
    /// is made up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// The sandbox that is made for it and ends with it, whose environment says which interpreter: any but
    /// `host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<CreateRequest>,
    /// A sandbox that is there already, instead: its name or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) within: Option<String>,
    /// In a sandbox that is there already, its environment, or a language: `python`, `shell` or `node`. Absent:
    /// that of its environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) environment: Option<String>,
    /// Pass on at most so much of the output of all its runs together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_output_bytes: Option<u64>,
}

/// `POST /v1/evaluate`: runs code, in a session or in a sandbox of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EvaluateRequest {
    /// In this session. Absent: in a sandbox that lives as long as this connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<String>,
    /// The sandbox that is made, for the session if there is none of that name. A session that is there has to
    /// have this environment and, if it is named, this isolation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<CreateRequest>,
    /// The code.
    pub(crate) code: Text,
    /// Whether stdin will be sent.
    pub(crate) stdin: Stdin,
    /// Interrupt it after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
    /// How long it may take to end after an interrupt, before it is terminated, and then killed with its
    /// interpreter. Absent: two seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) grace_ms: Option<u64>,
    /// Pass on at most so much of its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_output_bytes: Option<u64>,
}

/// `POST /v1/sessions/{name}/interrupt`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct InterruptRequest {
    /// Instead of that of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grace_ms: Option<u64>,
}

/// What an interrupt did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Interrupted {
    /// Whether there was a run to end.
    pub(crate) interrupted: bool,
}

/// A session, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionInfo {
    /// Its name.
    pub(crate) name: String,
    /// Its environment.
    pub(crate) environment: String,
    /// What its code is in: `python`, `bash` or `node`.
    pub(crate) language: String,
    /// How it is isolated.
    pub(crate) isolation: Isolation,
    /// The id of its sandbox.
    pub(crate) sandbox: String,
    /// Whether that ends with it.
    pub(crate) own_sandbox: bool,
    /// What its sandbox does.
    pub(crate) state: SandboxState,
    /// When it was made.
    pub(crate) created_at: String,
    /// When code was last run in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_used_at: Option<String>,
    /// When it ends for its age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<String>,
    /// How long it may be idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout_ms: Option<u64>,
    /// What its interpreter does. Only when one session was asked for, and its sandbox can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interpreter: Option<InterpreterInfo>,
}

/// What an interpreter does, by the sandbox's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InterpreterInfo {
    /// Its process in the sandbox. Absent: there is none at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    /// Its resident memory.
    pub(crate) memory_bytes: u64,
    /// Runs that have begun.
    pub(crate) runs: u64,
    /// Runs that wait.
    pub(crate) queued: u32,
    /// Whether it is at one.
    pub(crate) busy: bool,
    /// How often it was started again, with the state lost.
    pub(crate) restarts: u64,
    /// Bytes of output that were passed on.
    pub(crate) output_bytes: u64,
}
