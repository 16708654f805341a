//! From an error to what a client is told: a kind, the HTTP status, the error with its causes, and what to
//! do about it. Here, where the error still has a type: what goes over the wire is text.

use super::types::{Refusal, RefusalKind};
use crate::causes::in_full;
use crate::config::{Config, ConfigError, Program};
use crate::jail::JailError;
use crate::sandbox::launch::{Ended, LaunchError};
use crate::sandbox::manager::OperationError;
use crate::spec::SpecError;
use crate::sys::process::ProcessError;
use crate::view::ShareError;
use crate::vm::vmm::backend::ChooseError;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

impl RefusalKind {
    /// Its HTTP status.
    pub(super) fn status(self) -> StatusCode {
        match self {
            RefusalKind::Invalid => StatusCode::BAD_REQUEST,
            RefusalKind::NotFound => StatusCode::NOT_FOUND,
            RefusalKind::Ambiguous | RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::TooMany => StatusCode::TOO_MANY_REQUESTS,
            RefusalKind::Launch | RefusalKind::Sandbox | RefusalKind::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            RefusalKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            RefusalKind::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.kind.status(), Json(self)).into_response()
    }
}

impl Refusal {
    /// One without advice.
    pub(super) fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into(), hint: None }
    }

    /// What a client is told of an error.
    pub(super) fn of(error: &OperationError, config: &Config) -> Refusal {
        Refusal { kind: kind(error), message: in_full(error), hint: hint(error, config) }
    }
}

fn kind(error: &OperationError) -> RefusalKind {
    match error {
        OperationError::NotFound(_) | OperationError::NoCommand { .. } | OperationError::NoSession(_) => {
            RefusalKind::NotFound
        }
        OperationError::Ambiguous { .. } => RefusalKind::Ambiguous,
        OperationError::Name(_) | OperationError::Spec(_) | OperationError::SessionName(_) => {
            RefusalKind::Invalid
        }
        OperationError::NameTaken(_)
        | OperationError::KeyTaken(_)
        | OperationError::SessionTaken(_)
        | OperationError::Bound { .. }
        | OperationError::OtherEnvironment { .. }
        | OperationError::State { .. } => RefusalKind::Conflict,
        OperationError::TooMany { .. } => RefusalKind::TooMany,
        OperationError::Stopping => RefusalKind::Stopping,
        OperationError::Launch(_) | OperationError::NotUp(_) | OperationError::NotInterpreted { .. } => {
            RefusalKind::Launch
        }
        OperationError::Sandbox(_) | OperationError::Gone(_) | OperationError::Unresponsive(_) => {
            RefusalKind::Sandbox
        }
        OperationError::Unsupported(_) | OperationError::Pause(_) => RefusalKind::Unsupported,
        OperationError::Records(_)
        | OperationError::Place(_)
        | OperationError::Log(_)
        | OperationError::Limit(_)
        | OperationError::Id(_) => RefusalKind::Internal,
    }
}

/// What to do about an error, when there is something to do.
fn hint(error: &OperationError, config: &Config) -> Option<String> {
    let text = match error {
        OperationError::Spec(SpecError::Share(ShareError::Syntax(_))) => {
            "for example: --mount ~/data:/data:ro"
        }
        OperationError::NoSession(_) => {
            "name an environment and it is made, as python, shell or node; `firn session list` shows those there are"
        }
        OperationError::Spec(SpecError::NoSessions(_)) => {
            "sessions are in python, shell or node, in an environment with a closure, or one with bin/session-run"
        }
        OperationError::Spec(SpecError::Share(ShareError::Own { .. })) => {
            "share a folder beside it, as ~/project instead of ~; or have firn keep what is its own elsewhere: \
             FIRN_STATE_DIR, FIRN_RUNTIME_DIR and FIRN_CACHE_DIR, set where the daemon is started"
        }
        OperationError::Ambiguous { .. } => "use more of the id, or the name",
        OperationError::TooMany { .. } => {
            "destroy some, or raise `sandboxes` among the [limits] of config.toml"
        }
        OperationError::Launch(LaunchError::Ended(ended)) => return Some(ended_hint(ended, config)),
        OperationError::NotUp(ended) => return Some(ended_hint(ended, config)),
        OperationError::Launch(error) => return launch_hint(error),
        _ => return None,
    };
    Some(text.to_owned())
}

/// What a jail needs that bubblewrap says it does not get, or where to look.
fn ended_hint(ended: &Ended, config: &Config) -> String {
    if let Ended::Jail(JailError::Process(ProcessError::Ended { output, .. })) = ended
        && let Ok(bwrap) = config.program(Program::Bwrap)
        && let Some(advice) = crate::preflight::advice(output, &bwrap)
    {
        return advice;
    }
    "`firn doctor` shows what this host lacks".to_owned()
}

fn launch_hint(error: &LaunchError) -> Option<String> {
    let text = match error {
        LaunchError::Config(error) | LaunchError::Choose(ChooseError::Program(error)) => config_hint(error)?,
        LaunchError::Choose(ChooseError::NeedsKvm(_)) => {
            "without --vmm, firn emulates the guest in software: slower, and weaker isolation"
        }
        LaunchError::Unenforceable => {
            "`firn doctor` shows what this host lacks for it; --allow-degraded does without"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

/// What to do about a program that is not there.
pub(crate) fn config_hint(error: &ConfigError) -> Option<&'static str> {
    let ConfigError::Missing(program) = error else { return None };
    Some(match program {
        Program::Bwrap => "on Debian and Ubuntu: sudo apt-get install bubblewrap",
        Program::Virtiofsd => {
            "cargo install --locked virtiofsd (needs libcap-ng-dev and libseccomp-dev), or set FIRN_VIRTIOFSD"
        }
        Program::Qemu => "on Debian and Ubuntu: sudo apt-get install qemu-system-x86",
        Program::VhostDeviceVsock => {
            "cargo install --locked vhost-device-vsock, or set FIRN_VHOST_DEVICE_VSOCK"
        }
        Program::CloudHypervisor => "see https://www.cloudhypervisor.org, or leave --vmm out",
        Program::Nix => "see https://nixos.org/download, or set FIRN_NIX",
        Program::Agent => "it is built by `make build`, beside firn; or set FIRN_AGENT",
    })
}
