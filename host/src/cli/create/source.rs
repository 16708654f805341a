//! What a sandbox's programs come from, as nixo's callers say it: packages, a profile, a specification.
//!
//! Where a flake with a catalog is named, Nix makes an environment of it. Where none is, the programs are the
//! host's own, and what is named has to be among them.

use crate::cli::output::Output;
use crate::config::Config;
use crate::env::Record;
use crate::env::packages;
use crate::env::resolver::{Again, ResolveError, Resolver, name_of};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The namespaces that nixo's specifications may name. A sandbox has all of them in any case.
const NAMESPACES: [&str; 7] = ["pid", "mount", "uts", "ipc", "net", "user", "cgroup"];

/// nixo's profiles: their packages, but for the certificates, which need no program, and their network.
const PROFILES: [(&str, &str, &[&str]); 4] = [
    (
        "build-install",
        "full",
        &[
            "nodejs_22",
            "python312",
            "rustc",
            "cargo",
            "git",
            "curl",
            "coreutils",
            "bash",
            "gnugrep",
            "gnused",
            "gawk",
            "findutils",
            "gnutar",
            "gzip",
            "gnumake",
            "gcc",
        ],
    ),
    ("offline-review", "off", &["git", "coreutils", "bash", "gnugrep", "gnused", "gawk", "findutils", "jq"]),
    ("strict", "off", &["coreutils", "bash"]),
    (
        "debug-network",
        "full",
        &["nodejs_22", "python312", "git", "curl", "coreutils", "bash", "inetutils", "netcat-gnu", "dig"],
    ),
];

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Source {
    /// An environment: as it was named, and as its folder once it is resolved.
    pub(in crate::cli) environment: Option<OsString>,
    /// What has to be there.
    pub(in crate::cli) packages: Vec<String>,
    /// What all of it is called. Absent: as the packages.
    pub(in crate::cli) profile: Option<String>,
    /// The network that goes with it.
    pub(in crate::cli) network: Option<String>,
    /// Variables of every command.
    pub(in crate::cli) variables: BTreeMap<String, String>,
    /// What names the packages.
    list: List,
}

/// What names packages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum List {
    /// Whoever asks for them.
    #[default]
    Own,
    /// A profile, which a catalog has as a whole.
    Profile,
}

/// What was asked for makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// At most one.
    #[error("specify only one of --env, --profile, --spec, or --with")]
    Several,
    /// There is no such environment, or it cannot be built.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Nothing.
    #[error("--with requires at least one package name")]
    NoPackage,
    /// Not a package's name.
    #[error("{0:?} is no package name: letters, digits, '_', '.' and '-'")]
    Name(String),
    /// There is no such profile.
    #[error("unknown profile '{0}'. Available: build-install, offline-review, strict, debug-network")]
    Profile(String),
    /// A file that cannot be read.
    #[error("failed to read spec file '{}'", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that holds something else.
    #[error("failed to parse spec file '{}'", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A specification that cannot be meant.
    #[error("validation error: {}", .0.join("\nvalidation error: "))]
    Spec(Vec<String>),
    /// Nothing keeps them.
    #[error(
        "the spec sets variables ({0}), which a sandbox of the host's programs does not keep: give them to each \
         command, as `firn exec -e NAME=VALUE`"
    )]
    Variables(String),
}

/// nixo's specification, a JSON file. What else is in it is ignored, as nixo does.
#[derive(Debug, Deserialize)]
struct Spec {
    name: String,
    packages: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default = "full")]
    network: String,
    #[serde(default)]
    namespaces: Vec<String>,
    /// All of a sandbox's own files can be written to.
    #[serde(default, rename = "writable")]
    _writable: Vec<String>,
}

/// What nixo takes where a specification does not say.
fn full() -> String {
    "full".to_owned()
}

impl Source {
    /// These packages.
    fn with(packages: &[String]) -> Result<Source, SourceError> {
        if packages.iter().all(String::is_empty) {
            return Err(SourceError::NoPackage);
        }
        Ok(Source { packages: checked(packages)?, ..Source::default() })
    }

    /// A profile of nixo's.
    fn profile(name: &str) -> Result<Source, SourceError> {
        let (name, network, packages) = PROFILES
            .into_iter()
            .find(|(known, _, _)| *known == name)
            .ok_or_else(|| SourceError::Profile(name.to_owned()))?;
        Ok(Source {
            packages: packages.iter().map(|package| (*package).to_owned()).collect(),
            profile: Some(name.to_owned()),
            network: Some(network.to_owned()),
            list: List::Profile,
            ..Source::default()
        })
    }

    /// What the specification at `path` says.
    fn spec(path: &Path) -> Result<Source, SourceError> {
        let json =
            std::fs::read(path).map_err(|source| SourceError::Read { path: path.to_owned(), source })?;
        let spec: Spec = serde_json::from_slice(&json)
            .map_err(|source| SourceError::Parse { path: path.to_owned(), source })?;
        spec.check()?;
        Ok(Source {
            // The certificates are there in any case, and no program.
            packages: checked(&spec.packages)?,
            profile: Some(spec.name),
            network: Some(spec.network),
            variables: spec.env,
            ..Source::default()
        })
    }

    /// An environment.
    pub(in crate::cli) fn environment(name: impl Into<OsString>) -> Source {
        Source { environment: Some(name.into()), ..Source::default() }
    }

    /// The one of these that is given: packages, a profile, a specification. None: none is.
    pub(in crate::cli) fn listed(
        with: Option<&[String]>,
        profile: Option<&str>,
        spec: Option<&Path>,
    ) -> Result<Option<Source>, SourceError> {
        match (with, profile, spec) {
            (None, None, None) => Ok(None),
            (Some(packages), None, None) => Source::with(packages).map(Some),
            (None, Some(profile), None) => Source::profile(profile).map(Some),
            (None, None, Some(spec)) => Source::spec(spec).map(Some),
            _ => Err(SourceError::Several),
        }
    }

    /// With the folder of its environment, if it is to have one, built if it has to be.
    pub(in crate::cli) fn resolve(self, config: &Config, output: &mut Output) -> Result<Source, SourceError> {
        if let Some(name) = &self.environment {
            let folder = Resolver::new(config)?.find(name, &mut |told| output.told(&told));
            output.clear();
            return Ok(Source { environment: folder?.map(Into::into), ..self });
        }
        if self.packages.is_empty() {
            return Ok(self);
        }
        if config.sources.flake.is_none() {
            if self.variables.is_empty() {
                return Ok(self);
            }
            let names: Vec<&str> = self.variables.keys().map(String::as_str).collect();
            return Err(SourceError::Variables(names.join(", ")));
        }
        let record = self.build(config, Again::No, output)?;
        Ok(Source {
            environment: Some(record.path.into()),
            // As it is called where the packages are the host's.
            profile: self.profile.or_else(|| Some(format!("custom:{}", self.packages.join(",")))),
            packages: Vec::new(),
            ..Source::default()
        }
        .with_network(self.network))
    }

    /// Has Nix make an environment of the packages.
    pub(in crate::cli) fn build(
        &self,
        config: &Config,
        again: Again,
        output: &mut Output,
    ) -> Result<Record, SourceError> {
        let resolver = Resolver::new(config)?;
        let tell = &mut |told: crate::env::resolver::Told<'_>| output.told(&told);
        let record = match (self.list, &self.profile) {
            (List::Profile, Some(name)) => resolver.profile(name, again, tell),
            _ => {
                let name = self.profile.clone().unwrap_or_else(|| name_of(&self.packages));
                resolver.packages(&name, &self.packages, &self.variables, again, tell)
            }
        };
        output.clear();
        Ok(record?)
    }

    fn with_network(self, network: Option<String>) -> Source {
        Source { network, ..self }
    }
}

fn checked(named: &[String]) -> Result<Vec<String>, SourceError> {
    match named.iter().find(|name| !packages::is_name(name)) {
        Some(name) => Err(SourceError::Name(name.clone())),
        None => Ok(named.to_vec()),
    }
}

impl Spec {
    fn check(&self) -> Result<(), SourceError> {
        let mut errors = Vec::new();
        if self.name.is_empty() {
            errors.push("spec.name must not be empty".to_owned());
        }
        if self.packages.is_empty() {
            errors.push("spec.packages must not be empty".to_owned());
        }
        if !matches!(self.network.as_str(), "off" | "full") {
            errors.push(format!("spec.network must be 'off' or 'full', got '{}'", self.network));
        }
        for namespace in &self.namespaces {
            if !NAMESPACES.contains(&namespace.as_str()) {
                errors.push(format!("unknown namespace '{namespace}' in spec.namespaces"));
            }
        }
        if !errors.is_empty() {
            return Err(SourceError::Spec(errors));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Result<Source, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        std::fs::write(&path, json).unwrap();
        Source::spec(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_specification_has_nixos_defaults() {
        let source = spec(r#"{"name":"test","packages":["bash"]}"#).unwrap();
        assert_eq!(source.packages, ["bash"]);
        assert_eq!(source.profile.as_deref(), Some("test"));
        assert_eq!(source.network.as_deref(), Some("full"));
        let full = r#"{"name":"web","packages":["git"],"env":{},"network":"off","namespaces":["pid","net"],"writable":["/tmp"]}"#;
        assert_eq!(spec(full).unwrap().network.as_deref(), Some("off"));
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        assert_eq!(
            spec(r#"{"name":"","packages":[],"network":"allowlist","namespaces":["time"]}"#).unwrap_err(),
            "validation error: spec.name must not be empty\n\
             validation error: spec.packages must not be empty\n\
             validation error: spec.network must be 'off' or 'full', got 'allowlist'\n\
             validation error: unknown namespace 'time' in spec.namespaces"
        );
        assert!(spec("{}").unwrap_err().starts_with("failed to parse spec file"));
        assert!(spec(r#"{"name":"x","packages":["../x"]}"#).unwrap_err().contains("no package name"));
        let variables = spec(r#"{"name":"x","packages":["bash"],"env":{"A":"1"}}"#).unwrap().variables;
        assert_eq!(variables, BTreeMap::from([("A".to_owned(), "1".to_owned())]));
        assert!(Source::spec(Path::new("/no/such")).is_err());
    }
}
