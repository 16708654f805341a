//! Environments: which programs a sandbox has.
//!
//! `host` is the host's own tools, as the view shows them; `python`, `shell` (or `bash`) and `node` are the
//! same with an interpreter, for code. Everything else is a folder, built by Nix or laid out by hand, in the
//! layout of nix-sandbox-mcp:
//!
//! ```text
//!   FOLDER/metadata.json    {"name": "py", "interpreter_type": "python", "timeout_seconds": 30, "memory_mb": 512}
//!   FOLDER/bin/run          a wrapper that makes a jail of its own: code on stdin, streams, exit code
//!   FOLDER/bin/session-run  the same for sessions, where there is one: an agent that serves descriptor 3
//!   FOLDER/closure          the store paths of its programs, if metadata.json says which these are
//!   FOLDER/database         Nix's database of these, if metadata.json says that there is one
//! ```
//!
//! Of a folder with a closure firn makes the sandbox itself, a jail or a vm, and shows those paths and
//! nothing else ([`Closure`]). Of one without it runs the wrapper ([`Artifact`]). A folder with a guest manifest,
//! `manifest.json`, is a guest image: a vm boots it ([`GuestImage`]).

mod builder;
mod built;
pub(crate) mod catalog;
mod closure;
mod guest;
mod interpreter;
mod language;
mod metadata;
pub(crate) mod packages;
mod reference;
pub(crate) mod resolver;
mod sources;

pub(crate) use builder::BuildError;
pub(crate) use built::Record;
pub(crate) use closure::{Closure, STORE, Store};
use firn_protocol::{Text, Variable};
#[cfg(test)]
pub(crate) use guest::tests::guest_image;
pub(crate) use guest::{GuestImage, GuestImageError};
pub(crate) use interpreter::Interpreter;
pub(crate) use language::{Language, identity};
pub(crate) use metadata::Metadata;
pub(crate) use reference::FlakeRef;
use serde::{Deserialize, Serialize};
pub(crate) use sources::Sources;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a wrapper shows a project, unless it is told otherwise.
pub(crate) const PROJECT: &str = "/project";

/// Which programs a sandbox has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    /// The host's own.
    Host,
    /// The host's own, for code in this language.
    Code(Interpreter),
    /// What an artifact's wrapper shows.
    Artifact(Artifact),
    /// Those of the Nix store that it names.
    Closure(Box<Closure>),
    /// Those of a NixOS guest.
    Guest(Box<GuestImage>),
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
    /// What runs its code.
    pub(crate) interpreter: Interpreter,
    /// Its wrapper for sessions, if it has one.
    pub(crate) session_run: Option<PathBuf>,
}

/// There is no such environment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvironmentError {
    /// Neither `host` nor a folder.
    #[error(
        "there is no environment {0:?}: it is `host`, `python`, `shell`, `node`, a folder with metadata.json or a guest's manifest.json, a flake's output as .#NAME, or a name that `firn env list` knows"
    )]
    Unknown(String),
    /// This host has no such program.
    #[error(
        "the environment {} needs the program {}, which this host does not have: install the package {}",
        .0.environment(), .0.program(), .0.package()
    )]
    NoInterpreter(Interpreter),
    /// A folder that lacks something.
    #[error("{} is no environment: cannot read {}", folder.display(), file.display())]
    Lacks {
        /// The folder.
        folder: PathBuf,
        /// What it lacks.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is a guest image, which cannot be booted.
    #[error("the guest image {} cannot be used", folder.display())]
    Guest {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: GuestImageError,
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
    #[error("{} is no environment: {program} is not an executable file", folder.display())]
    NotExecutable {
        /// The folder.
        folder: PathBuf,
        /// The wrapper.
        program: &'static str,
    },
    /// It says where its programs are, but not all that is needed.
    #[error(
        "{} is no environment: of `environment`, `interpreter` and `closure` its metadata.json has some, not all",
        .0.display()
    )]
    Partial(PathBuf),
    /// Its list of store paths is empty or too long.
    #[error("{} is no environment: its closure has {number} paths", folder.display())]
    Paths {
        /// The folder.
        folder: PathBuf,
        /// How many it names.
        number: usize,
    },
    /// It would have something shown that is nobody's but the host's.
    #[error("{} is no environment: line {line} of its closure is no path of {STORE}", folder.display())]
    OutsideStore {
        /// The folder.
        folder: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// Its list is somewhere else.
    #[error("{} is no environment: its closure and database must be in it, not {}", folder.display(), file.display())]
    NotBeside {
        /// The folder.
        folder: PathBuf,
        /// What it names.
        file: PathBuf,
    },
    /// A database that could be another by the time that it is shown.
    #[error("{} is no environment: with a database of Nix's it must be a folder of {STORE}, and that a folder in it", .0.display())]
    Database(PathBuf),
    /// What it runs is not among what it shows.
    #[error("{} is no environment: {} is not in its closure", folder.display(), path.display())]
    OutsideClosure {
        /// The folder.
        folder: PathBuf,
        /// What it names.
        path: PathBuf,
    },
    /// A path of it was deleted.
    #[error("{} is gone from the store, and the environment {} needs it: build it again", path.display(), folder.display())]
    Collected {
        /// The folder.
        folder: PathBuf,
        /// What is gone.
        path: PathBuf,
    },
    /// Variables that cannot be set.
    #[error("{} is no environment: `env` in metadata.json has a variable that cannot be set", .0.display())]
    Variables(PathBuf),
}

/// The environment of the host's own programs.
pub(crate) const HOST: &str = "host";

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
        Environment::open(Path::new(name))
    }

    /// The environment in a folder.
    pub(crate) fn open(path: &Path) -> Result<Environment, EnvironmentError> {
        let folder = match std::fs::canonicalize(path) {
            Ok(folder) => folder,
            Err(source) => {
                return Err(EnvironmentError::Lacks { folder: path.into(), file: "it".into(), source });
            }
        };
        if GuestImage::is_in(&folder) {
            return GuestImage::open(folder).map(|guest| Environment::Guest(Box::new(guest)));
        }
        let metadata = Metadata::read(&folder)?;
        match &metadata.programs {
            Some(programs) => Closure::open(folder, &metadata, programs)
                .map(|closure| Environment::Closure(Box::new(closure))),
            None => Artifact::open(folder, &metadata).map(Environment::Artifact),
        }
    }
}

impl Artifact {
    fn open(folder: PathBuf, metadata: &Metadata) -> Result<Artifact, EnvironmentError> {
        program(&folder, "bin/run")?;
        let session_run = match program(&folder, "bin/session-run") {
            Ok(session_run) => Some(session_run),
            // Sessions are what it may do without.
            Err(EnvironmentError::Lacks { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let Metadata { name, timeout, memory, interpreter, .. } = metadata.clone();
        Ok(Artifact { folder, name, timeout, memory, interpreter, session_run })
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
            takes: Takes::Code,
        }
    }

    /// What tells its wrapper that `folder` is the project, to be shown read-only at `target`.
    pub(crate) fn project(&self, folder: &Path, target: &Path) -> Variables {
        vec![("PROJECT_DIR", folder.into()), ("PROJECT_MOUNT", target.into())]
    }
}

/// The path of a wrapper, which can be executed.
fn program(folder: &Path, name: &'static str) -> Result<PathBuf, EnvironmentError> {
    let path = folder.join(name);
    let about = std::fs::metadata(&path).map_err(|source| EnvironmentError::Lacks {
        folder: folder.to_owned(),
        file: name.into(),
        source,
    })?;
    if !about.is_file() || nix::unistd::access(&path, nix::unistd::AccessFlags::X_OK).is_err() {
        return Err(EnvironmentError::NotExecutable { folder: folder.to_owned(), program: name });
    }
    Ok(path)
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
    /// What else can be run where it runs.
    #[serde(default)]
    pub(crate) takes: Takes,
}

/// What can be run in an environment's surroundings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Takes {
    /// Code on stdin: the wrapper makes the surroundings itself.
    #[default]
    Code,
    /// Or any command: the surroundings are there.
    CodeOrCommand,
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
        assert!(matches!(found(&plain), Err(EnvironmentError::NotExecutable { program: "bin/run", .. })));
        let empty = tempfile::tempdir().unwrap();
        assert!(
            matches!(found(&empty), Err(EnvironmentError::Lacks { file, .. }) if file.ends_with("metadata.json"))
        );
        assert!(matches!(Environment::find(OsStr::new("no-such")), Err(EnvironmentError::Unknown(_))));
        assert_eq!(Environment::find(OsStr::new("host")).unwrap(), Environment::Host);
    }
}
