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

use super::image::ImageCommandError;
use crate::config::{Config, ConfigError, Program};
use crate::guest::GuestError;
use crate::jail::JailError;
use crate::sandbox::launch::{Ended, LaunchError};
use crate::sandbox::spec::SpecError;
use crate::sandbox::store::StoreError;
use crate::sys::process::ProcessError;
use crate::view::ShareError;
use crate::vm::vmm::backend::ChooseError;
use std::borrow::Cow;
use std::io;

/// The command line is wrong.
pub(super) const USAGE: u8 = 2;
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
    /// The sandbox did not come up.
    #[error("cannot start the sandbox")]
    Launch(#[from] LaunchError),
    /// It did not stay up.
    #[error("the sandbox failed")]
    Sandbox(#[from] Ended),
    /// The records cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
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

impl From<GuestError> for Failed {
    fn from(error: GuestError) -> Failed {
        Failed::Sandbox(error.into())
    }
}

impl Failed {
    /// The exit code.
    pub(super) fn code(&self) -> u8 {
        match self {
            Failed::Signal(signal) => signalled(*signal),
            Failed::Spec(_) => USAGE,
            _ => FAILED,
        }
    }

    /// What to do about it, when there is something to do.
    pub(super) fn hint(&self) -> Option<Cow<'static, str>> {
        if let Failed::Launch(LaunchError::Ended(Ended::Jail(JailError::Process(ProcessError::Ended {
            output,
            ..
        })))) = self
            && let Some(advice) = advice(output)
        {
            return Some(advice.into());
        }
        self.usual_hint().map(Cow::Borrowed)
    }

    fn usual_hint(&self) -> Option<&'static str> {
        match self {
            Failed::Config(error)
            | Failed::Launch(LaunchError::Config(error) | LaunchError::Choose(ChooseError::Program(error))) => {
                config_hint(error)
            }
            Failed::Launch(LaunchError::Choose(ChooseError::NeedsKvm(_))) => {
                Some("without --vmm, firn emulates the guest in software: slower, and weaker isolation")
            }
            Failed::Launch(LaunchError::Unenforceable) => {
                Some("`firn doctor` shows what this host lacks for it; --allow-degraded does without")
            }
            Failed::Launch(LaunchError::Ended(Ended::Vm(_) | Ended::Jail(_) | Ended::Guest(_))) => {
                Some("`firn doctor` shows what this host lacks")
            }
            Failed::Spec(SpecError::Share(ShareError::Syntax(_))) => {
                Some("for example: --mount ~/data:/data:ro")
            }
            _ => None,
        }
    }
}

/// What a jail needs that bubblewrap says it does not get.
fn advice(said: &str) -> Option<String> {
    let bwrap = Config::read().ok()?.program(Program::Bwrap).ok()?;
    crate::preflight::advice(said, &bwrap)
}

fn config_hint(error: &ConfigError) -> Option<&'static str> {
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
        Program::Agent => "it is built by `make build`, beside firn; or set FIRN_AGENT",
    })
}
