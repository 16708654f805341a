//! Nix, as a process: builds and evaluates what environments come from.
//!
//! Evaluating a flake that somebody else wrote runs their code, in a language without side effects as long as
//! it is kept to that: always pure, never with the settings that the flake asks for, never building anything
//! in order to go on evaluating. What is built is built in Nix's own sandbox.

use crate::config::{Config, ConfigError, Program};
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// The oldest Nix whose flakes and locks are those of today.
const LEAST: (u32, u32) = (2, 18);

/// How many of the last lines are told when it fails.
const LAST_LINES: usize = 25;

/// How every evaluation is kept in check, whatever nix.conf says.
const FLAGS: [&str; 9] = [
    "--extra-experimental-features",
    "nix-command flakes",
    "--no-accept-flake-config",
    "--option",
    "pure-eval",
    "true",
    "--option",
    "allow-import-from-derivation",
    "false",
];

/// Nix on this host.
#[derive(Debug)]
pub(crate) struct Builder {
    nix: PathBuf,
}

/// What is built.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Installable<'a> {
    /// A flake's output, or a store path.
    Named(&'a str),
    /// The value of a Nix expression.
    Expression(&'a str),
}

/// Why there is nothing built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// There is no Nix.
    #[error("environments are built by Nix")]
    Missing(#[from] ConfigError),
    /// It is too old.
    #[error("Nix {found} is too old: {}.{} or later is needed", LEAST.0, LEAST.1)]
    TooOld {
        /// What it says.
        found: String,
    },
    /// An administrator has switched flakes off.
    #[error("Nix is not allowed to use flakes here: allow the experimental features nix-command and flakes")]
    FlakesOff,
    /// The flake has no such output.
    #[error("{what} has no such output\n{text}")]
    NoAttribute {
        /// What was asked for.
        what: String,
        /// Nix's words.
        text: String,
    },
    /// Something has to be fetched and cannot be.
    #[error("{what} cannot be had without a network\n{text}")]
    Offline {
        /// What was asked for.
        what: String,
        /// Nix's words.
        text: String,
    },
    /// A derivation failed.
    #[error("{what} cannot be built\n{text}")]
    Failed {
        /// What was asked for.
        what: String,
        /// The last of the log.
        text: String,
    },
    /// It is no value that can be built.
    #[error("{what} cannot be evaluated\n{text}")]
    Evaluation {
        /// What was asked for.
        what: String,
        /// Nix's words.
        text: String,
    },
    /// It could not be run.
    #[error("cannot run {}", nix.display())]
    Run {
        /// The program.
        nix: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It says something else than it is known for.
    #[error("{} answers what is not understood: {answer:?}", nix.display())]
    Answer {
        /// The program.
        nix: PathBuf,
        /// What it says.
        answer: String,
    },
}

impl Builder {
    /// The Nix of this host, if it will do.
    pub(crate) fn find(config: &Config) -> Result<Builder, BuildError> {
        let builder = Builder { nix: config.program(Program::Nix)? };
        let answer = builder.ask(&["--version"], "nix", &mut |_| {})?;
        match version(&answer) {
            Some(version) if version >= LEAST => Ok(builder),
            Some(_) => Err(BuildError::TooOld { found: answer.trim().to_owned() }),
            None => Err(BuildError::Answer { nix: builder.nix, answer }),
        }
    }

    /// Builds, and keeps what was built from garbage collection by the link `root`. `progress` is told each
    /// line of Nix's.
    pub(crate) fn build(
        &self,
        what: Installable<'_>,
        root: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, BuildError> {
        let mut arguments: Vec<&OsStr> =
            ["build", "--print-out-paths", "-L", "--out-link"].map(OsStr::new).into();
        arguments.push(root.as_os_str());
        arguments.extend(FLAGS.map(OsStr::new));
        let name = match what {
            Installable::Named(name) => {
                arguments.extend(["--", name].map(OsStr::new));
                name
            }
            Installable::Expression(text) => {
                arguments.extend(["--expr", text].map(OsStr::new));
                "the environment"
            }
        };
        let answer = self.ask(&arguments, name, progress)?;
        match answer.lines().collect::<Vec<_>>()[..] {
            [path] if path.starts_with('/') => Ok(path.into()),
            _ => Err(BuildError::Answer { nix: self.nix.clone(), answer }),
        }
    }

    /// The value of a flake's output.
    pub(crate) fn evaluate<T: DeserializeOwned>(
        &self,
        output: &str,
        progress: &mut dyn FnMut(&str),
    ) -> Result<T, BuildError> {
        let mut arguments = vec!["eval", "--json"];
        arguments.extend(FLAGS);
        arguments.extend(["--", output]);
        let answer = self.ask(&arguments, output, progress)?;
        serde_json::from_str(&answer)
            .map_err(|_invalid| BuildError::Answer { nix: self.nix.clone(), answer: shortened(&answer) })
    }

    /// A reference to what `flake` is now that cannot stand for anything else.
    pub(crate) fn lock(&self, flake: &str, progress: &mut dyn FnMut(&str)) -> Result<String, BuildError> {
        #[derive(serde::Deserialize)]
        struct About {
            path: PathBuf,
            locked: Locked,
        }
        #[derive(serde::Deserialize)]
        struct Locked {
            #[serde(rename = "narHash")]
            hash: Option<String>,
        }
        let mut arguments = vec!["flake", "metadata", "--json"];
        arguments.extend(FLAGS);
        arguments.extend(["--", flake]);
        let answer = self.ask(&arguments, flake, progress)?;
        let odd = || BuildError::Answer { nix: self.nix.clone(), answer: shortened(&answer) };
        let About { path, locked } = serde_json::from_str(&answer).map_err(|_invalid| odd())?;
        let hash = locked.hash.ok_or_else(odd)?;
        let text = format!("path:{}?narHash={}", path.display(), hash.replace('+', "%2B"));
        // It becomes part of an expression.
        if text.contains(['"', '\\', '$']) { Err(odd()) } else { Ok(text) }
    }

    /// Runs it, and returns what it writes to stdout.
    fn ask<A: AsRef<OsStr>>(
        &self,
        arguments: &[A],
        what: &str,
        progress: &mut dyn FnMut(&str),
    ) -> Result<String, BuildError> {
        let failed = |source| BuildError::Run { nix: self.nix.clone(), source };
        let mut command = Command::new(&self.nix);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A repository's own settings may name a program that git runs to look for changes.
        for (name, value) in [
            ("GIT_CONFIG_COUNT", "1"),
            ("GIT_CONFIG_KEY_0", "core.fsmonitor"),
            ("GIT_CONFIG_VALUE_0", "false"),
        ] {
            command.env(name, value);
        }
        let mut child = command.spawn().map_err(failed)?;
        let mut last = VecDeque::new();
        // What it writes to stdout is a path or some JSON, and comes when it is through with stderr.
        let stdout = child.stdout.take().map(|mut stdout| {
            std::thread::spawn(move || {
                let mut text = String::new();
                stdout.read_to_string(&mut text).map(|_| text)
            })
        });
        if let Some(stderr) = child.stderr.take() {
            for line in BufReader::new(stderr).split(b'\n') {
                let line = line.map_err(failed)?;
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                progress(&line);
                if last.len() == LAST_LINES {
                    last.pop_front();
                }
                last.push_back(line);
            }
        }
        let status = child.wait().map_err(failed)?;
        let text = match stdout.map(std::thread::JoinHandle::join) {
            Some(Ok(text)) => text.map_err(failed)?,
            Some(Err(_)) | None => String::new(),
        };
        if status.success() { Ok(text) } else { Err(failure(what, status, &Vec::from(last))) }
    }
}

/// Why it failed, as its words say.
fn failure(what: &str, status: ExitStatus, lines: &[String]) -> BuildError {
    let what = what.to_owned();
    let mut text = lines.join("\n");
    if text.is_empty() {
        text = status.to_string();
    }
    let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
    if says(&[
        "experimental Nix feature 'flakes' is disabled",
        "experimental Nix feature 'nix-command' is disabled",
    ]) {
        BuildError::FlakesOff
    } else if says(&["does not provide attribute"]) {
        BuildError::NoAttribute { what, text }
    } else if says(&[
        "Could not resolve host",
        "Couldn't resolve host",
        "Could not connect to server",
        "Couldn't connect to server",
        "Network is unreachable",
        "failed to resolve address",
    ]) {
        BuildError::Offline { what, text }
    } else if says(&[
        "error: builder for '",
        "dependencies of derivation '",
        "error: build of '",
        "Cannot build '",
    ]) {
        BuildError::Failed { what, text }
    } else {
        BuildError::Evaluation { what, text }
    }
}

/// The version in "nix (Nix) 2.26.3".
fn version(answer: &str) -> Option<(u32, u32)> {
    let mut parts = answer.trim().rsplit(' ').next()?.split('.');
    let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    Some((digits(parts.next()?)?, digits(parts.next()?)?))
}

fn shortened(answer: &str) -> String {
    answer.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    #[test]
    fn versions_are_read_as_nix_and_its_forks_write_them() {
        assert_eq!(version("nix (Nix) 2.26.3\n"), Some((2, 26)));
        assert_eq!(version("nix (Nix) 2.8.0"), Some((2, 8)));
        assert_eq!(version("nix (Lix, like Nix) 2.91.1"), Some((2, 91)));
        assert_eq!(version("nix (Determinate Nix 3.6.2) 2.29.0"), Some((2, 29)));
        assert_eq!(version("nix (Nix) 2.34pre20260101_abc"), Some((2, 34)));
        assert_eq!(version("something"), None);
        assert!(version("nix (Nix) 2.8.0").unwrap() < LEAST);
    }

    fn cause(text: &str) -> BuildError {
        failure(".#x", ExitStatus::from_raw(256), &[text.to_owned()])
    }

    #[test]
    fn causes_are_told_apart() {
        let attribute = "error: flake 'path:/x' does not provide attribute 'packages.x86_64-linux.y', 'y'";
        assert!(matches!(cause(attribute), BuildError::NoAttribute { .. }));
        let builder = "error: builder for '/nix/store/x.drv' failed with exit code 1;";
        assert!(matches!(cause(builder), BuildError::Failed { .. }));
        let offline =
            "error: unable to download 'https://x': Could not resolve hostname (6) Could not resolve host: x";
        assert!(matches!(cause(offline), BuildError::Offline { .. }));
        let off = "error: experimental Nix feature 'flakes' is disabled; add '--extra-experimental-features flakes'";
        assert!(matches!(cause(off), BuildError::FlakesOff));
        assert!(matches!(cause("error: syntax error"), BuildError::Evaluation { .. }));
        let silent = failure("x", ExitStatus::from_raw(9), &[]);
        assert!(silent.to_string().contains("signal: 9"), "{silent}");
    }
}
