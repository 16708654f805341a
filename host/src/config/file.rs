//! The configuration file: what the daemon may do, in TOML.
//!
//! ```toml
//! [limits]
//! sandboxes = 256         # that are not over
//!
//! [daemon]
//! idle_exit = "10m"       # of one that a command has started; or "never"
//!
//! [pool]                  # sandboxes that wait to be asked for
//! vm = 1                  # guests; absent: one, with KVM, once a vm was asked for
//! jail = 0
//! code = 1                # jails with an interpreter, of each language that sessions are made for
//! ```

use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More sandboxes than a host has processes for.
const MOST_SANDBOXES: usize = 10_000;

/// More than anybody asks for before the pool is filled again.
const MOST_SPARES: usize = 256;

/// The configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It says what it must not, or is not TOML. The reader of TOML says where.
    #[error("{} cannot be used", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be meant.
    #[error("{}: {key} must be {wanted}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Which.
        key: &'static str,
        /// What it should be.
        wanted: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sections {
    limits: Limits,
    daemon: Daemon,
    pool: Pool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    sandboxes: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Daemon {
    idle_exit: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Pool {
    vm: Option<usize>,
    jail: Option<usize>,
    code: Option<usize>,
}

/// What the file says, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// How many sandboxes there may be that are not over.
    pub(crate) max_sandboxes: usize,
    /// How long a daemon that a command has started stays with nothing to do. None: for ever.
    pub(crate) idle_exit: Option<Duration>,
    /// How many wait to be asked for.
    pub(crate) pool: PoolSize,
}

/// How many sandboxes wait to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolSize {
    /// Guests. None: one, on a host with KVM and memory to spare, once a vm was asked for.
    pub(crate) vm: Option<usize>,
    /// Jails.
    pub(crate) jail: usize,
    /// Jails with an interpreter that has never run code: of each language that was asked for lately.
    pub(crate) code: usize,
}

impl Default for PoolSize {
    fn default() -> PoolSize {
        PoolSize { vm: None, jail: 0, code: 1 }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        let idle_exit = Some(Duration::from_secs(600));
        Settings { max_sandboxes: 256, idle_exit, pool: PoolSize::default() }
    }
}

impl Settings {
    /// Those of `path`, or none where no file is.
    pub(super) fn read(path: &Path) -> Result<Option<Settings>, FileError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Settings::parse(&text, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FileError::Read { path: path.to_owned(), source }),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Settings, FileError> {
        let Sections { limits, daemon, pool } = toml::from_str(text)
            .map_err(|source| FileError::Content { path: path.to_owned(), source: Box::new(source) })?;
        let wrong =
            |key, wanted: &str| FileError::Value { path: path.to_owned(), key, wanted: wanted.into() };
        let usual = Settings::default();
        let max_sandboxes = limits.sandboxes.unwrap_or(usual.max_sandboxes);
        if !(1..=MOST_SANDBOXES).contains(&max_sandboxes) {
            return Err(wrong("limits.sandboxes", &format!("1 to {MOST_SANDBOXES}")));
        }
        let idle_exit = match daemon.idle_exit.as_deref() {
            None => usual.idle_exit,
            Some("never") => None,
            Some(text) => match humantime::parse_duration(text) {
                Ok(time) if !time.is_zero() => Some(time),
                _ => return Err(wrong("daemon.idle_exit", "a time, as \"10m\", or \"never\"")),
            },
        };
        for (key, count) in [("pool.vm", pool.vm), ("pool.jail", pool.jail), ("pool.code", pool.code)] {
            if count.is_some_and(|count| count > MOST_SPARES) {
                return Err(wrong(key, &format!("0 to {MOST_SPARES}")));
            }
        }
        let pool = PoolSize {
            vm: pool.vm,
            jail: pool.jail.unwrap_or(usual.pool.jail),
            code: pool.code.unwrap_or(usual.pool.code),
        };
        Ok(Settings { max_sandboxes, idle_exit, pool })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causes::in_full;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(text, Path::new("/c.toml")).map_err(|error| in_full(&error))
    }

    #[test]
    fn what_is_left_out_is_usual() {
        assert_eq!(parse("").unwrap(), Settings::default());
        let settings = parse("[daemon]\nidle_exit = \"never\"").unwrap();
        assert_eq!((settings.max_sandboxes, settings.idle_exit), (256, None));
        let pool = parse("[pool]\njail = 3").unwrap().pool;
        assert_eq!(pool, PoolSize { vm: None, jail: 3, code: 1 });
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, parts) in [
            ("[limits]\nsandbox = 2", &["line 2", "sandbox"][..]),
            ("\n\n[limit]", &["line 3", "limit"]),
            ("[limits]\nsandboxes = -1", &["line 2"]),
            ("[limits]\nsandboxes = 0", &["limits.sandboxes", "1 to"]),
            ("[pool]\nvm = 1000", &["pool.vm", "0 to 256"]),
            ("[pool]\ncontainers = 1", &["line 2", "containers"]),
            ("[daemon]\nidle_exit = \"0s\"", &["daemon.idle_exit", "10m"]),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("/c.toml"), "{error}");
            for part in parts {
                assert!(error.contains(part), "{part:?} in {error}");
            }
        }
    }
}
