//! What a sandbox's programs come from, as nixo's callers say it: packages, a profile, a specification.
//!
//! There is no Nix behind it: the programs are the host's own, and what is named has to be among them.

use crate::env::{EnvironmentError, packages};
use firn_protocol::Text;
use serde::Deserialize;
use std::collections::BTreeMap;
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
pub(super) struct Source {
    /// An environment, as the daemon is asked for it.
    pub(super) environment: Option<Text>,
    /// What has to be there.
    pub(super) packages: Vec<String>,
    /// What all of it is called. Absent: as the packages.
    pub(super) profile: Option<String>,
    /// The network that goes with it.
    pub(super) network: Option<String>,
}

/// What was asked for makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// At most one.
    #[error("specify only one of --env, --profile, --spec, or --with")]
    Several,
    /// There is no such environment.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
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
        "the spec sets variables ({0}), which a sandbox does not keep: give them to each command, as \
         `firn exec -e NAME=VALUE`"
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
    pub(super) fn with(packages: &[String]) -> Result<Source, SourceError> {
        if packages.iter().all(String::is_empty) {
            return Err(SourceError::NoPackage);
        }
        Ok(Source { packages: checked(packages)?, ..Source::default() })
    }

    /// A profile of nixo's.
    pub(super) fn profile(name: &str) -> Result<Source, SourceError> {
        let (name, network, packages) = PROFILES
            .into_iter()
            .find(|(known, _, _)| *known == name)
            .ok_or_else(|| SourceError::Profile(name.to_owned()))?;
        Ok(Source {
            environment: None,
            packages: packages.iter().map(|package| (*package).to_owned()).collect(),
            profile: Some(name.to_owned()),
            network: Some(network.to_owned()),
        })
    }

    /// What the specification at `path` says.
    pub(super) fn spec(path: &Path) -> Result<Source, SourceError> {
        let json =
            std::fs::read(path).map_err(|source| SourceError::Read { path: path.to_owned(), source })?;
        let spec: Spec = serde_json::from_slice(&json)
            .map_err(|source| SourceError::Parse { path: path.to_owned(), source })?;
        spec.check()?;
        Ok(Source {
            environment: None,
            // The certificates are there in any case, and no program.
            packages: checked(&spec.packages)?,
            profile: Some(spec.name),
            network: Some(spec.network),
        })
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
        if !self.env.is_empty() {
            let names: Vec<&str> = self.env.keys().map(String::as_str).collect();
            return Err(SourceError::Variables(names.join(", ")));
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
        let variables = spec(r#"{"name":"x","packages":["bash"],"env":{"A":"1"}}"#).unwrap_err();
        assert!(variables.contains("(A)"), "{variables}");
        assert!(Source::spec(Path::new("/no/such")).is_err());
    }
}
