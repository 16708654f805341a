//! Environments: which programs a sandbox has.
//!
//! `host` is the host's own tools, as the view shows them; `python`, `shell` (or `bash`) and `node` are the
//! same with an interpreter, for code. An artifact is a folder, built by Nix or
//! laid out by hand, in the layout of nix-sandbox-mcp:
//!
//! ```text
//!   ARTIFACT/metadata.json    {"name": "py", "interpreter_type": "python", "timeout_seconds": 30, "memory_mb": 512}
//!   ARTIFACT/bin/run          a wrapper that makes a jail of its own: code on stdin, streams, exit code
//!   ARTIFACT/bin/session-run  the same for a session, where there is one
//! ```

mod interpreter;
pub(crate) mod packages;

pub(crate) use interpreter::Interpreter;

use firn_protocol::{Text, Variable};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most of `metadata.json` that is read, in bytes.
const LONGEST_METADATA: u64 = 64 * 1024;

/// Where a wrapper shows a project, unless it is told otherwise.
pub(crate) const PROJECT: &str = "/project";

/// What nix-sandbox-mcp assumes when an artifact does not say: in seconds, and in MiB.
const USUAL_TIMEOUT: u64 = 30;
const USUAL_MEMORY: u64 = 512;

/// Which programs a sandbox has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    /// The host's own.
    Host,
    /// The host's own, for code in this language.
    Code(Interpreter),
    /// An artifact's.
    Artifact(Artifact),
}

/// A folder in the layout of nix-sandbox-mcp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// The folder, without links.
    pub(crate) folder: PathBuf,
    /// What it calls itself.
    pub(crate) name: String,
    /// How long a run may take.
    pub(crate) timeout: Duration,
    /// How much memory it may have, in bytes.
    pub(crate) memory: u64,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(rename = "interpreter_type")]
    _interpreter: Interpreter,
    timeout_seconds: Option<u64>,
    memory_mb: Option<u64>,
}

/// There is no such environment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvironmentError {
    /// Neither a name that is known nor a folder.
    #[error(
        "there is no environment {0:?}: it is host, python, shell, node, or a folder with metadata.json and \
         bin/run"
    )]
    Unknown(String),
    /// This host has no such program.
    #[error(
        "the environment {} needs the program {}, which this host does not have: install the package {}",
        .0.environment(), .0.program(), .0.package()
    )]
    NoInterpreter(Interpreter),
    /// A folder that lacks something.
    #[error("{} is no environment: cannot read {file}", folder.display())]
    Lacks {
        /// The folder.
        folder: PathBuf,
        /// What it lacks.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its `metadata.json` says something else.
    #[error("{} is no environment: metadata.json does not fit", folder.display())]
    Metadata {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A number that cannot be meant.
    #[error("{} is no environment: {field} must be at least 1", folder.display())]
    Zero {
        /// The folder.
        folder: PathBuf,
        /// The field of its `metadata.json`.
        field: &'static str,
    },
    /// Its wrapper cannot be executed.
    #[error("{} is no environment: bin/run is not an executable file", .0.display())]
    NotExecutable(PathBuf),
}

/// The environment of the host's own programs.
pub(crate) const HOST: &str = "host";

/// An environment as the daemon is asked for it, which has a working directory of its own: a name as it is,
/// a folder by its whole path. None: the host's own programs, as when nobody asks.
pub(crate) fn reference(name: &OsStr) -> Result<Option<Text>, EnvironmentError> {
    if name == HOST {
        return Ok(None);
    }
    if name.to_str().and_then(Interpreter::of).is_some() {
        return Ok(Some(name.into()));
    }
    let path = Path::new(name);
    if !path.is_dir() {
        return Err(EnvironmentError::Unknown(name.to_string_lossy().into_owned()));
    }
    let lacks = |source| EnvironmentError::Lacks { folder: path.to_owned(), file: "it", source };
    Ok(Some(std::path::absolute(path).map_err(lacks)?.into()))
}

impl Environment {
    /// The environment called `name`: one of the host's, or the path of a folder.
    pub(crate) fn find(name: &OsStr) -> Result<Environment, EnvironmentError> {
        if name == HOST {
            return Ok(Environment::Host);
        }
        if let Some(interpreter) = name.to_str().and_then(Interpreter::of) {
            return match interpreter.is_there() {
                true => Ok(Environment::Code(interpreter)),
                false => Err(EnvironmentError::NoInterpreter(interpreter)),
            };
        }
        if !Path::new(name).is_dir() {
            return Err(EnvironmentError::Unknown(name.to_string_lossy().into_owned()));
        }
        Artifact::open(Path::new(name)).map(Environment::Artifact)
    }
}

impl Artifact {
    fn open(path: &Path) -> Result<Artifact, EnvironmentError> {
        let lacks = |file| move |source| EnvironmentError::Lacks { folder: path.to_owned(), file, source };
        let folder = std::fs::canonicalize(path).map_err(lacks("it"))?;
        let mut json = Vec::new();
        File::open(folder.join("metadata.json"))
            .and_then(|file| file.take(LONGEST_METADATA).read_to_end(&mut json))
            .map_err(lacks("metadata.json"))?;
        let metadata: Metadata = serde_json::from_slice(&json)
            .map_err(|source| EnvironmentError::Metadata { folder: path.to_owned(), source })?;
        let run = folder.join("bin/run");
        let about = std::fs::metadata(&run).map_err(lacks("bin/run"))?;
        if !about.is_file() || nix::unistd::access(&run, nix::unistd::AccessFlags::X_OK).is_err() {
            return Err(EnvironmentError::NotExecutable(path.to_owned()));
        }
        let positive = |field, value: Option<u64>, usual| match value {
            Some(0) => Err(EnvironmentError::Zero { folder: path.to_owned(), field }),
            value => Ok(value.unwrap_or(usual)),
        };
        Ok(Artifact {
            name: metadata.name,
            timeout: Duration::from_secs(positive(
                "timeout_seconds",
                metadata.timeout_seconds,
                USUAL_TIMEOUT,
            )?),
            memory: positive("memory_mb", metadata.memory_mb, USUAL_MEMORY)?.saturating_mul(1 << 20),
            folder,
        })
    }

    /// Its wrapper, to be run with these variables. jail.nix's wrappers pass `LANG`, `HOME` and
    /// `TERM` on and fail without one of them.
    pub(crate) fn wrapper(&self, mut variables: Variables) -> Wrapper {
        variables.push(("TERM", "dumb".into()));
        let variable = |(name, value): (&str, OsString)| Variable { name: name.into(), value: value.into() };
        Wrapper {
            program: Text::from(self.folder.join("bin/run")),
            environment: self.name.clone(),
            variables: variables.into_iter().map(variable).collect(),
        }
    }

    /// What tells its wrapper that `folder` is the project, to be shown read-only at `target`.
    pub(crate) fn project(&self, folder: &Path, target: &Path) -> Variables {
        vec![("PROJECT_DIR", folder.into()), ("PROJECT_MOUNT", target.into())]
    }
}

/// Names and values.
pub(crate) type Variables = Vec<(&'static str, OsString)>;

/// The command that runs the code on its stdin. What variables of the agent's defaults are not named
/// here stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wrapper {
    /// `bin/run`.
    pub(crate) program: Text,
    /// What its environment calls itself.
    pub(crate) environment: String,
    /// Its variables.
    pub(crate) variables: Vec<Variable>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn artifact(metadata: &str, mode: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("metadata.json"), metadata).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        let run = dir.path().join("bin/run");
        fs::write(&run, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&run, fs::Permissions::from_mode(mode)).unwrap();
        dir
    }

    fn found(dir: &tempfile::TempDir) -> Result<Environment, EnvironmentError> {
        Environment::find(dir.path().as_os_str())
    }

    #[test]
    fn an_artifact_is_read_with_its_defaults() {
        let dir = artifact(r#"{"name":"py","interpreter_type":"python","else":1}"#, 0o755);
        let Environment::Artifact(artifact) = found(&dir).unwrap() else { panic!("not an artifact") };
        assert_eq!(artifact.name, "py");
        assert_eq!(artifact.timeout, Duration::from_secs(30));
        assert_eq!(artifact.memory, 512 << 20);
        let wrapper = artifact.wrapper(Vec::new());
        assert_eq!(wrapper.program.as_path(), dir.path().canonicalize().unwrap().join("bin/run"));
    }

    #[test]
    fn what_is_no_artifact_is_refused_with_the_reason() {
        let refused = |metadata: &str| found(&artifact(metadata, 0o755)).unwrap_err();
        assert!(matches!(refused("{"), EnvironmentError::Metadata { .. }));
        let unknown = r#"{"name":"x","interpreter_type":"cobol"}"#;
        assert!(matches!(refused(unknown), EnvironmentError::Metadata { .. }));
        let never = r#"{"name":"x","interpreter_type":"bash","timeout_seconds":0}"#;
        assert!(matches!(refused(never), EnvironmentError::Zero { field: "timeout_seconds", .. }));
        let plain = artifact(r#"{"name":"x","interpreter_type":"bash"}"#, 0o644);
        assert!(matches!(found(&plain), Err(EnvironmentError::NotExecutable(_))));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(found(&empty), Err(EnvironmentError::Lacks { file: "metadata.json", .. })));
        assert!(matches!(Environment::find(OsStr::new("no-such")), Err(EnvironmentError::Unknown(_))));
        assert_eq!(Environment::find(OsStr::new("host")).unwrap(), Environment::Host);
    }
}
