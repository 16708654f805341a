//! Making a booted guest a particular sandbox.

use super::{Guest, Init, homes, mounts, reserve, root};
use crate::sys;
use firn_protocol::{Configure, FailureCode};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::ClockId;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Less is not worth calling fresh randomness, in bytes.
const MIN_ENTROPY: usize = 32;

/// Why a guest could not be made the sandbox asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfigureError {
    #[error("the guest has been configured before")]
    Twice,
    #[error("the guest has a root of its own, which stays: an image of another kind was expected")]
    OwnRoot,
    #[error("{given} bytes of entropy are too few: {MIN_ENTROPY} are needed")]
    TooLittleEntropy { given: usize },
    #[error("{path:?} cannot be the target of a mount: {why}")]
    BadTarget { path: PathBuf, why: &'static str },
    #[error("{path:?} is no path inside a share: it is absolute or leads out")]
    BadSource { path: PathBuf },
    #[error("cannot set the clock")]
    Clock(#[source] Errno),
    #[error("cannot open /dev/random")]
    OpenRandom(#[source] io::Error),
    #[error("cannot add entropy")]
    Entropy(#[source] Errno),
    #[error("cannot set the host name to {name:?}")]
    Hostname {
        name: String,
        #[source]
        source: Errno,
    },
    #[error("cannot make {path:?}")]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot look at {path:?}")]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot mount {what} on {target:?}{}", troubles(.after))]
    Mount {
        what: String,
        target: PathBuf,
        #[source]
        source: Errno,
        /// What had gone wrong at boot: a missing module is why a file system is unknown.
        after: Vec<String>,
    },
    #[error("the guest cannot limit processes: it has no control groups for it")]
    NoControlGroup {
        #[source]
        source: io::Error,
    },
    #[error("cannot make {path:?} the root")]
    SwitchRoot {
        path: PathBuf,
        #[source]
        source: Errno,
    },
}

fn troubles(after: &[String]) -> String {
    if after.is_empty() { String::new() } else { format!(" (at boot: {})", after.join("; ")) }
}

impl ConfigureError {
    /// The protocol's kind of this failure.
    pub(crate) fn code(&self) -> FailureCode {
        match self {
            ConfigureError::Twice
            | ConfigureError::OwnRoot
            | ConfigureError::TooLittleEntropy { .. }
            | ConfigureError::BadTarget { .. }
            | ConfigureError::BadSource { .. } => FailureCode::Invalid,
            _ => FailureCode::Failed,
        }
    }

    fn after(self, at_boot: &[String]) -> ConfigureError {
        match self {
            ConfigureError::Mount { what, target, source, .. } => {
                ConfigureError::Mount { what, target, source, after: at_boot.to_vec() }
            }
            other => other,
        }
    }
}

impl Guest {
    /// Does all of it, in the protocol's order. Once: a failure leaves a guest that is good for
    /// nothing but to be thrown away, so it cannot be tried again either.
    pub(crate) fn configure(&self, configure: &Configure) -> Result<(), ConfigureError> {
        if self.configured.get() {
            return Err(ConfigureError::Twice);
        }
        let entropy = configure.entropy.as_bytes();
        if entropy.len() < MIN_ENTROPY {
            return Err(ConfigureError::TooLittleEntropy { given: entropy.len() });
        }
        if self.init == Init::Foreign && configure.root.is_some() {
            return Err(ConfigureError::OwnRoot);
        }
        mounts::check(&configure.mounts)?;
        self.configured.set(true);
        // First, because it was the host's time when the host sent it: what comes before makes the
        // guest lag, and files the host's side stamps would be from the future.
        let clock = TimeSpec::from_duration(Duration::from_nanos(configure.unix_time_ns));
        ClockId::CLOCK_REALTIME.set_time(clock).map_err(ConfigureError::Clock)?;
        self.complete();
        let random =
            std::fs::File::options().write(true).open("/dev/random").map_err(ConfigureError::OpenRandom)?;
        sys::seed_randomness(random, entropy).map_err(ConfigureError::Entropy)?;
        nix::unistd::sethostname(&configure.hostname)
            .map_err(|source| ConfigureError::Hostname { name: configure.hostname.clone(), source })?;
        let at_boot = self.troubles.borrow();
        if let Some(root) = &configure.root {
            root::enter(root).map_err(|error| error.after(&at_boot))?;
            homes::make_all()?;
        }
        // Of a lean guest only a new root shows control groups where they are looked for.
        if (configure.root.is_some() || configure.processes.is_some())
            && let Some(group) = reserve::make(self.init, configure.processes)?
        {
            let _ = self.group.set(group);
        }
        let shares = mounts::make_all(&configure.mounts).map_err(|error| error.after(&at_boot))?;
        self.shares.borrow_mut().extend(shares);
        Ok(())
    }
}
