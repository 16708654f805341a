//! From what is asked for to a folder on this host, built by Nix if it has to be.
//!
//! ```text
//!   --env NAME       NIX_SANDBOX_DIR, NIX_SANDBOX_ENVS, what was built here, what comes with firn
//!   --env DIR        the folder
//!   --env FLAKEREF   what was built from it, if that still holds; else Nix
//!   --with, --spec   FLAKE's mkAgentSandbox, and --profile its sandbox-NAME, the same way
//! ```
//!
//! What was built already is found without Nix. Nix is never run on a flake without saying so: whoever may
//! write to it decides what is evaluated on this host.

use super::builder::{BuildError, Builder, Installable};
use super::built::{Built, Record};
use super::closure::is_store_path;
use super::packages::is_name;
use super::reference::{FlakeRef, Freshness, Reference};
use super::{Environment, EnvironmentError, Interpreter, Metadata};
use crate::causes::in_full;
use crate::config::Config;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The environments that come with firn, if there is a flake to take them from.
pub(crate) const PRESETS: [&str; 3] = ["shell", "python", "node"];

/// Finds environments for whoever is in `cwd`.
#[derive(Debug)]
pub(crate) struct Resolver<'a> {
    config: &'a Config,
    cwd: PathBuf,
    built: Built,
}

/// What is told while something is looked for.
#[derive(Debug)]
pub(crate) enum Told<'a> {
    /// Nix is about to evaluate this on the host.
    Evaluates(&'a str),
    /// A line of Nix's.
    Line(&'a str),
    /// Something is left out, and why.
    Skipped(String),
}

/// An environment that has a name here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its name.
    pub(crate) name: String,
    /// Where it is. None: it is not built yet.
    pub(crate) folder: Option<PathBuf>,
    /// What it comes from.
    pub(crate) origin: String,
}

/// Whether something that holds is built anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// It is taken as it is.
    No,
    /// Nix is asked in any case.
    Yes,
}

/// There is no such environment, or it could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The folder is none.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// Nix does not build it.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// What was built cannot be written down.
    #[error("cannot keep what was built in {}", folder.display())]
    Keep {
        /// The folder of the state.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nobody says which flake.
    #[error("there is no catalog: set FIRN_FLAKE to firn's flake, as its Nix package does")]
    NoFlake,
    /// The working directory cannot be read.
    #[error("cannot tell the working directory")]
    Here(#[source] io::Error),
}

impl<'a> Resolver<'a> {
    /// For the caller of this process.
    pub(crate) fn new(config: &'a Config) -> Result<Resolver<'a>, ResolveError> {
        let cwd = std::env::current_dir().map_err(ResolveError::Here)?;
        Ok(Resolver { config, cwd, built: Built::of(&config.state_dir) })
    }

    /// What was built.
    pub(crate) fn built(&self) -> &Built {
        &self.built
    }

    /// The environment that `text` names, as the daemon is asked for it: the path of a folder, or the name of
    /// one of the host's interpreters. None: the host's own programs.
    pub(crate) fn find(
        &self,
        text: &OsStr,
        tell: &mut dyn FnMut(Told<'_>),
    ) -> Result<Option<PathBuf>, ResolveError> {
        match Reference::parse(text, &self.cwd) {
            Reference::Host => Ok(None),
            Reference::Folder(folder) => self.folder(&folder, tell).map(Some),
            Reference::Flake(flake) => Ok(Some(self.flake(&flake, Again::No, tell)?.path)),
            Reference::Name(name) => self.named(&name, tell).map(Some),
        }
    }

    /// What a flake's output is built to.
    pub(crate) fn flake(
        &self,
        flake: &FlakeRef,
        again: Again,
        tell: &mut dyn FnMut(Told<'_>),
    ) -> Result<Record, ResolveError> {
        let freshness = flake.freshness();
        self.build(flake.as_str(), flake.flake(), &freshness, again, tell, |builder, root, tell| {
            builder.build(Installable::Named(flake.as_str()), root, &mut |line| tell(Told::Line(line)))
        })
    }

    /// An environment called `name` of packages of the catalog, with these variables.
    pub(crate) fn packages(
        &self,
        name: &str,
        packages: &[String],
        variables: &BTreeMap<String, String>,
        again: Again,
        tell: &mut dyn FnMut(Told<'_>),
    ) -> Result<Record, ResolveError> {
        let flake = self.catalog()?;
        let reference = format!("{} of {}", in_json(&(name, packages, variables)), flake.as_str());
        self.build(&reference, flake.flake(), &flake.freshness(), again, tell, |builder, root, tell| {
            let progress = &mut |line: &str| tell(Told::Line(line));
            let locked = builder.lock(flake.flake(), progress)?;
            // A value of JSON inside a string of Nix: nothing in it is read as Nix.
            let arguments = in_nix(&in_json(&BTreeMap::from([
                ("name", serde_json::json!(name)),
                ("packages", serde_json::json!(packages)),
                ("env", serde_json::json!(variables)),
            ])));
            let expression = format!(
                "(builtins.getFlake \"{locked}\").mkAgentSandbox.{} (builtins.fromJSON {arguments})",
                system()
            );
            builder.build(Installable::Expression(&expression), root, progress)
        })
    }

    /// The environment of a profile of nixo's.
    pub(crate) fn profile(
        &self,
        name: &str,
        again: Again,
        tell: &mut dyn FnMut(Told<'_>),
    ) -> Result<Record, ResolveError> {
        self.flake(&self.catalog_output(&format!("sandbox-{name}"))?, again, tell)
    }

    /// The catalog's plain data: kinds of packages, their names, and what is said of them.
    pub(crate) fn catalog_index(
        &self,
        tell: &mut dyn FnMut(Told<'_>),
    ) -> Result<BTreeMap<String, BTreeMap<String, serde_json::Value>>, ResolveError> {
        let output = self.catalog_output(&format!("catalogIndex.{}", system()))?;
        let builder = Builder::find(self.config)?;
        tell(Told::Evaluates(output.flake()));
        Ok(builder.evaluate(output.as_str(), &mut |line| tell(Told::Line(line)))?)
    }

    /// All environments that have a name, those that win over others of theirs last.
    pub(crate) fn known(&self, tell: &mut dyn FnMut(Told<'_>)) -> Vec<Known> {
        let mut known = Vec::new();
        if let Some(flake) = &self.config.sources.flake {
            known.extend(PRESETS.map(|name| Known {
                name: name.to_owned(),
                folder: self.preset(name).ok().and_then(|preset| {
                    self.built.find(preset.as_str(), &preset.freshness()).map(|record| record.path)
                }),
                origin: flake.clone(),
            }));
        }
        known.extend(self.built.all().into_iter().map(|Record { name, path, reference, .. }| Known {
            name,
            folder: Some(path),
            origin: reference,
        }));
        for reference in &self.config.sources.references {
            match self.flake(&FlakeRef::new(reference, &self.cwd), Again::No, tell) {
                Ok(Record { name, path, reference, .. }) => {
                    known.push(Known { name, folder: Some(path), origin: reference });
                }
                Err(error) => tell(Told::Skipped(format!("NIX_SANDBOX_ENVS: {}", in_full(&error)))),
            }
        }
        known.extend(self.dropped_in(tell));
        known
    }

    fn named(&self, name: &str, tell: &mut dyn FnMut(Told<'_>)) -> Result<PathBuf, ResolveError> {
        let here = || self.cwd.join(name);
        let latest = |known: Vec<Known>| known.into_iter().rev().find(|known| known.name == name);
        // Those that need no Nix first.
        if let Some(folder) = latest(self.dropped_in(tell)).and_then(|known| known.folder) {
            return Ok(folder);
        }
        match latest(self.known(tell)) {
            Some(Known { folder: Some(folder), .. }) => Ok(folder),
            Some(Known { folder: None, .. }) => Ok(self.flake(&self.preset(name)?, Again::No, tell)?.path),
            // The host's own interpreters, where neither the user nor a flake has one of the name.
            None if Interpreter::of(name).is_some() => Ok(name.into()),
            None if here().is_dir() => self.folder(&here(), tell),
            None => Err(EnvironmentError::Unknown(name.to_owned()).into()),
        }
    }

    /// The artifacts of the folder that they are dropped into.
    fn dropped_in(&self, tell: &mut dyn FnMut(Told<'_>)) -> Vec<Known> {
        let Some(folder) = &self.config.sources.folder else { return Vec::new() };
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let mut folders: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        let mut known = Vec::new();
        for folder in folders {
            match named_environment(&folder) {
                Ok((name, folder)) => {
                    known.push(Known { name, origin: folder.display().to_string(), folder: Some(folder) });
                }
                Err(error) => tell(Told::Skipped(in_full(&error))),
            }
        }
        known
    }

    /// A folder, kept from garbage collection if it is a path of the store.
    fn folder(&self, folder: &Path, tell: &mut dyn FnMut(Told<'_>)) -> Result<PathBuf, ResolveError> {
        let (_, folder) = named_environment(folder)?;
        if is_store_path(&folder) && !self.built.is_kept(&folder) {
            let kept = Builder::find(self.config).map_err(ResolveError::from).and_then(|builder| {
                let root = self.built.root(&folder).map_err(|source| self.keep(source))?;
                let name = folder.to_string_lossy();
                Ok(builder.build(Installable::Named(&name), &root, &mut |line| tell(Told::Line(line)))?)
            });
            if let Err(error) = kept {
                let why = in_full(&error);
                tell(Told::Skipped(format!(
                    "{} is not kept from garbage collection: {why}",
                    folder.display()
                )));
            }
        }
        Ok(folder)
    }

    fn build(
        &self,
        reference: &str,
        flake: &str,
        freshness: &Freshness,
        again: Again,
        tell: &mut dyn FnMut(Told<'_>),
        build: impl FnOnce(&Builder, &Path, &mut dyn FnMut(Told<'_>)) -> Result<PathBuf, BuildError>,
    ) -> Result<Record, ResolveError> {
        let found = || self.built.find(reference, freshness).filter(|_| again == Again::No);
        if let Some(record) = found() {
            return Ok(record);
        }
        let builder = Builder::find(self.config)?;
        let keep = |source| self.keep(source);
        let _lock = self.built.lock(reference).map_err(keep)?;
        // Whoever held the lock may have built it.
        if let Some(record) = found() {
            return Ok(record);
        }
        tell(Told::Evaluates(flake));
        // Nix wants to know where the root is to be before it knows the path, and roots cannot be moved.
        let first = self.built.root(Path::new(&format!(".building-{}", std::process::id()))).map_err(keep)?;
        let path = build(&builder, &first, tell);
        let kept = path.map_err(ResolveError::from).and_then(|path| {
            let root = self.built.root(&path).map_err(keep)?;
            builder.build(Installable::Named(&path.to_string_lossy()), &root, &mut |_| {})?;
            Ok(path)
        });
        let _ = fs::remove_file(first);
        let (name, path) = named_environment(&kept?)?;
        let record = Record {
            reference: reference.to_owned(),
            name,
            path,
            built_at: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            fingerprint: match freshness {
                Freshness::While(fingerprint) => Some(fingerprint.clone()),
                Freshness::Always | Freshness::For(_) | Freshness::Never => None,
            },
        };
        self.built.put(&record).map_err(keep)?;
        Ok(record)
    }

    fn keep(&self, source: io::Error) -> ResolveError {
        ResolveError::Keep { folder: self.config.state_dir.clone(), source }
    }

    fn catalog(&self) -> Result<FlakeRef, ResolveError> {
        let flake = self.config.sources.flake.as_deref().ok_or(ResolveError::NoFlake)?;
        Ok(FlakeRef::new(flake, &self.cwd))
    }

    fn catalog_output(&self, attribute: &str) -> Result<FlakeRef, ResolveError> {
        let flake = self.catalog()?;
        Ok(FlakeRef::output(flake.flake(), attribute, &self.cwd))
    }

    fn preset(&self, name: &str) -> Result<FlakeRef, ResolveError> {
        self.catalog_output(&format!("\"presets.{name}\""))
    }
}

/// The name that the environment in a folder has, and the folder without links.
fn named_environment(folder: &Path) -> Result<(String, PathBuf), EnvironmentError> {
    let (metadata, folder): (Metadata, PathBuf) = match Environment::open(folder)? {
        Environment::Closure(closure) => (closure.metadata, closure.folder),
        Environment::Artifact(artifact) => return Ok((artifact.name, artifact.folder)),
        Environment::Guest(guest) => return Ok((guest.name().to_owned(), guest.image.dir)),
        Environment::Host | Environment::Code(_) => {
            return Err(EnvironmentError::Unknown(folder.display().to_string()));
        }
    };
    Ok((metadata.name, folder))
}

/// The name of an environment of these packages.
pub(crate) fn name_of(packages: &[String]) -> String {
    let name = format!("custom-{}", packages.join("-"));
    if name.len() <= 64 && is_name(&name) { name } else { "custom".to_owned() }
}

/// What Nix calls machines like this one.
fn system() -> String {
    format!("{}-linux", std::env::consts::ARCH)
}

fn in_json(value: &impl serde::Serialize) -> String {
    // Texts, lists and maps of them: nothing that has no JSON.
    serde_json::to_string(value).unwrap_or_default()
}

/// A text as a string of Nix's.
fn in_nix(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_name_is_read_as_nix() {
        assert_eq!(in_nix(r#"a"b\c${d}"#), r#""a\"b\\c\${d}""#);
    }

    #[test]
    fn environments_of_packages_have_short_names() {
        assert_eq!(name_of(&["git".into(), "jq".into()]), "custom-git-jq");
        assert_eq!(name_of(&vec!["package".to_owned(); 20]), "custom");
    }
}
