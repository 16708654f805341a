//! The environments that a call can name: those of this host that have a name, in a stable order, as far as the
//! operator lets them be used.
//!
//! They are looked for once, when the server starts. A call can name nothing else: neither a folder nor a flake,
//! which would have the host read or evaluate what a model likes.

use crate::config::Config;
use crate::env::resolver::{ResolveError, Resolver, Told};
use crate::env::{Environment, Interpreter};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
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
            let name = interpreter.environment().to_owned();
            known.insert(name.clone(), Known { name, programs: Programs::Host, timeout: None });
        }
        for found in Resolver::new(config)?.known(tell) {
            let (programs, timeout) = match found.folder.map(programs) {
                Some(Some(found)) => found,
                // It is built again when it is asked for, if it can be.
                Some(None) | None => (Programs::Unbuilt, None),
            };
            known.insert(found.name.clone(), Known { name: found.name, programs, timeout });
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
        let Some((programs, timeout)) = found.and_then(programs) else { return Ok(known) };
        let known = Known { programs, timeout, ..known };
        if let Some(kept) = self.0.get(&known.name) {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = known.clone();
        }
        Ok(known)
    }

    /// Environments of the host's with these names.
    #[cfg(test)]
    pub(super) fn of_names(names: &[&str]) -> Environments {
        let known = |name: &&str| Known { name: (*name).to_owned(), programs: Programs::Host, timeout: None };
        Environments(names.iter().map(|name| ((*name).to_owned(), Mutex::new(known(name)))).collect())
    }
}

/// What is in a folder. None: no environment.
fn programs(folder: PathBuf) -> Option<(Programs, Option<Duration>)> {
    match Environment::find(folder.as_os_str()).ok()? {
        Environment::Host => None,
        Environment::Code(_) => Some((Programs::Host, None)),
        Environment::Artifact(artifact) => Some((Programs::Wrapper(artifact.folder), Some(artifact.timeout))),
        Environment::Closure(closure) => {
            Some((Programs::Folder(closure.folder.clone()), Some(closure.metadata.timeout)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order() {
        assert_eq!(Environments::of_names(&["node", "a", "python"]).names(), ["a", "node", "python"]);
        assert_eq!(Environments::of_names(&["a"]).get("b"), None);
    }

    #[test]
    fn a_wrapper_and_an_interpreter_are_told_apart() {
        assert_eq!(programs("shell".into()), Some((Programs::Host, None)));
        assert_eq!(programs("/no/such".into()), None);
    }
}
