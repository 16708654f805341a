//! The environments that a call can name: those of this host that have a name, in a stable order, as far as the
//! operator lets them be used.
//!
//! They are looked for once, when the server starts. A call can name nothing else: neither a folder nor a flake,
//! which would have the host read or evaluate what a model likes.

use crate::api::types::Isolation;
use crate::config::Config;
use crate::env::resolver::{ResolveError, Resolver, Told};
use crate::env::{Artifact, Environment, Interpreter, Metadata};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What is known of the environments when the server starts.
pub(crate) type KnownEnvironments = Environments;

/// The environments, by name.
#[derive(Debug, Default)]
pub(crate) struct Environments(BTreeMap<String, Mutex<Known>>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) programs: Programs,
    /// How long code may take, if it says so.
    pub(super) timeout: Option<Duration>,
    /// How it is isolated when nobody says, if it says so.
    pub(super) isolation: Option<Isolation>,
}

impl Known {
    /// One of which nothing more is known.
    fn plain(name: &str, programs: Programs) -> Known {
        Known { name: name.to_owned(), programs, timeout: None, isolation: None }
    }

    /// Its folder, if it has one: the name by which the daemon is asked for it.
    pub(super) fn folder(&self) -> Option<String> {
        match &self.programs {
            Programs::Folder(folder) | Programs::Wrapper(folder) => Some(folder.display().to_string()),
            Programs::Host | Programs::Unbuilt => None,
        }
    }

    /// The environment called `name` that is in a folder, if there is one.
    fn open(name: &str, folder: &Path) -> Option<Known> {
        let (programs, folder, timeout) = match Environment::find(folder.as_os_str()).ok()? {
            // Neither has an interpreter of its own.
            Environment::Host | Environment::Guest(_) => return None,
            Environment::Code(_) => return Some(Known::plain(name, Programs::Host)),
            Environment::Artifact(Artifact { folder, timeout, .. }) => {
                (Programs::Wrapper(folder.clone()), folder, timeout)
            }
            Environment::Closure(closure) => {
                (Programs::Folder(closure.folder.clone()), closure.folder, closure.metadata.timeout)
            }
        };
        let isolation = Metadata::read(&folder).ok().and_then(|metadata| metadata.isolation);
        Some(Known { name: name.to_owned(), programs, timeout: Some(timeout), isolation })
    }
}

/// Where an environment's programs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Programs {
    /// This is what the daemon is asked for: one of the host's interpreters.
    Host,
    /// A folder from which firn makes the sandbox.
    Folder(PathBuf),
    /// A folder whose wrapper makes a jail of its own.
    Wrapper(PathBuf),
    /// Nowhere yet: Nix builds them when they are asked for first.
    Unbuilt,
}

/// The operator's list of environments is wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvironmentsError {
    /// It names one that there is not.
    #[error("--env {name}: there is no such environment here; there are {}", known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// They cannot be looked for.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

impl Environments {
    /// Those of this host: what [`Resolver`] knows, and its interpreters where nothing else has their names. Of
    /// these only `wanted`, unless that is empty.
    pub(crate) fn find(
        config: &Config,
        wanted: &[String],
        tell: &mut dyn FnMut(Told<'_>),
    ) -> Result<Environments, EnvironmentsError> {
        let mut known = BTreeMap::new();
        for interpreter in Interpreter::ALL.into_iter().filter(|interpreter| interpreter.is_there()) {
            let name = interpreter.environment();
            known.insert(name.to_owned(), Known::plain(name, Programs::Host));
        }
        for found in Resolver::new(config)?.known(tell) {
            let there = found.folder.and_then(|folder| Known::open(&found.name, &folder));
            // It is built when it is asked for, if it can be.
            let environment = there.unwrap_or_else(|| Known::plain(&found.name, Programs::Unbuilt));
            known.insert(found.name, environment);
        }
        for name in wanted {
            if !known.contains_key(name) {
                let known = known.into_keys().collect();
                return Err(EnvironmentsError::Unknown { name: name.clone(), known });
            }
        }
        known.retain(|name, _| wanted.is_empty() || wanted.contains(name));
        Ok(Environments(known.into_iter().map(|(name, known)| (name, Mutex::new(known))).collect()))
    }

    /// Their names, always in the same order.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// The one of this name.
    pub(super) fn get(&self, name: &str) -> Option<Known> {
        Some(self.0.get(name)?.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Has Nix build `known`, if that is not done yet, and waits for it.
    pub(super) async fn built(&self, known: Known, config: &Arc<Config>) -> Result<Known, ResolveError> {
        if known.programs != Programs::Unbuilt {
            return Ok(known);
        }
        let (config, name) = (Arc::clone(config), known.name.clone());
        // What Nix says is for whoever types commands.
        let find = move || Resolver::new(&config)?.find(OsStr::new(&name), &mut |_told| {});
        let found = match tokio::task::spawn_blocking(find).await {
            Ok(found) => found?,
            Err(_panicked) => None,
        };
        let Some(known) = found.and_then(|folder| Known::open(&known.name, &folder)) else {
            return Ok(known);
        };
        if let Some(kept) = self.0.get(&known.name) {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = known.clone();
        }
        Ok(known)
    }

    /// Environments of the host's with these names.
    #[cfg(test)]
    pub(super) fn of_names(names: &[&str]) -> Environments {
        let known = |name: &&str| ((*name).to_owned(), Mutex::new(Known::plain(name, Programs::Host)));
        Environments(names.iter().map(known).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn names_are_in_order() {
        assert_eq!(Environments::of_names(&["node", "a", "python"]).names(), ["a", "node", "python"]);
        assert_eq!(Environments::of_names(&["a"]).get("b"), None);
    }

    #[test]
    fn a_wrapper_and_an_interpreter_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = r#"{"name":"x","interpreter_type":"bash","timeout_seconds":7,"isolation":"vm"}"#;
        std::fs::write(folder.path().join("metadata.json"), metadata).unwrap();
        assert_eq!(Known::open("x", folder.path()), None);
        let run = folder.path().join("bin/run");
        std::fs::create_dir(run.parent().unwrap()).unwrap();
        std::fs::write(&run, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).unwrap();
        let known = Known::open("y", folder.path()).unwrap();
        assert_eq!((known.name.as_str(), known.timeout), ("y", Some(Duration::from_secs(7))));
        assert_eq!(known.isolation, Some(Isolation::Vm));
        assert!(matches!(known.programs, Programs::Wrapper(_)));
        assert_eq!(Known::open("s", Path::new("shell")), Some(Known::plain("s", Programs::Host)));
        assert_eq!(Known::open("x", Path::new("/no/such")), None);
    }
}
