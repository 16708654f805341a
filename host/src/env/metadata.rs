//! What an environment says of itself: `metadata.json` in its folder.
//!
//! The first four fields are those of nix-sandbox-mcp. `isolation` is that of MCP calls which name none. With the
//! others, which `nix/metadata.nix` writes, firn makes the sandbox itself.

use super::{EnvironmentError, Interpreter};
use crate::api::types::Isolation;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the file.
pub(super) const FILE: &str = "metadata.json";

/// The most of it that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// What nix-sandbox-mcp assumes when an artifact does not say: in seconds, and in MiB.
const USUAL_TIMEOUT: u64 = 30;
const USUAL_MEMORY: u64 = 512;

/// The file, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// What the environment calls itself.
    pub(crate) name: String,
    /// What it runs.
    pub(crate) interpreter: Interpreter,
    /// How long a run may take.
    pub(crate) timeout: Duration,
    /// How much memory it may have, in bytes.
    pub(crate) memory: u64,
    /// How it wants to be isolated when nobody says.
    pub(crate) isolation: Option<Isolation>,
    /// Where its programs are, if firn is to make the sandbox.
    pub(super) programs: Option<Programs>,
}

/// What firn has to know to make a sandbox with an environment's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Programs {
    /// The folder with `bin`, in the store.
    pub(super) folder: PathBuf,
    /// What runs the code on its stdin, in the store.
    pub(super) runner: PathBuf,
    /// The list of store paths, a file of the environment's folder.
    pub(super) closure: PathBuf,
    /// Nix's database of these, a folder of the environment's folder.
    pub(super) database: Option<PathBuf>,
    /// Variables of every command.
    pub(super) variables: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Fields {
    name: String,
    interpreter_type: Interpreter,
    timeout_seconds: Option<u64>,
    memory_mb: Option<u64>,
    isolation: Option<Isolation>,
    environment: Option<PathBuf>,
    interpreter: Option<PathBuf>,
    closure: Option<PathBuf>,
    database: Option<PathBuf>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

impl Metadata {
    /// Reads that of the environment in `folder`.
    pub(crate) fn read(folder: &Path) -> Result<Metadata, EnvironmentError> {
        let json = read(&folder.join(FILE), LONGEST).map_err(|source| EnvironmentError::Lacks {
            folder: folder.to_owned(),
            file: FILE.into(),
            source,
        })?;
        let fields = serde_json::from_slice(&json)
            .map_err(|source| EnvironmentError::Metadata { folder: folder.to_owned(), source })?;
        Metadata::check(fields, folder)
    }

    fn check(fields: Fields, folder: &Path) -> Result<Metadata, EnvironmentError> {
        let positive = |field, value: Option<u64>, usual| match value {
            Some(0) => Err(EnvironmentError::Zero { folder: folder.to_owned(), field }),
            value => Ok(value.unwrap_or(usual)),
        };
        let programs = match (fields.environment, fields.interpreter, fields.closure) {
            (Some(programs), Some(runner), Some(closure)) => {
                beside(folder, &closure)?;
                if let Some(database) = &fields.database {
                    beside(folder, database)?;
                }
                let (database, variables) = (fields.database, fields.env);
                Some(Programs { folder: programs, runner, closure, database, variables })
            }
            (None, None, None) => None,
            _ => return Err(EnvironmentError::Partial(folder.to_owned())),
        };
        Ok(Metadata {
            name: fields.name,
            interpreter: fields.interpreter_type,
            timeout: Duration::from_secs(positive("timeout_seconds", fields.timeout_seconds, USUAL_TIMEOUT)?),
            memory: positive("memory_mb", fields.memory_mb, USUAL_MEMORY)?.saturating_mul(1 << 20),
            isolation: fields.isolation,
            programs,
        })
    }
}

/// The list `file`, if it is a file of `folder`: one elsewhere would be read with the daemon's rights.
pub(super) fn beside<'a>(folder: &Path, file: &'a Path) -> Result<&'a Path, EnvironmentError> {
    match file.file_name() == Some(file.as_os_str()) {
        true => Ok(file),
        false => Err(EnvironmentError::NotBeside { folder: folder.to_owned(), file: file.to_owned() }),
    }
}

/// At most `longest` bytes of a regular file. A FIFO would be waited for.
pub(super) fn read(path: &Path, longest: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(longest).read_to_end(&mut bytes)?;
    Ok(bytes)
}
