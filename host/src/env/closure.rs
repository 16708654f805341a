//! An environment whose programs are paths of the Nix store: a sandbox is shown exactly these.
//!
//! What the folder says is checked against the store before it becomes a view: a daemon that is root shows a
//! caller nothing that is not a path of the store, whatever a `metadata.json` claims.

use super::metadata::{self, Metadata, Programs};
use super::{EnvironmentError, Takes, Wrapper};
use firn_protocol::{Text, Variable};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

/// The store. Another one would be in all that is built.
pub(crate) const STORE: &str = "/nix/store";

/// The most of a closure's list that is read, in bytes.
const LONGEST_LIST: u64 = 4 << 20;

/// The most paths of a closure: bubblewrap takes 9,000 words, of which each path is three.
const MOST_PATHS: usize = 2_500;

/// How much of the host's Nix store a sandbox sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Store {
    /// The closure of its environment.
    Closure,
    /// All of it.
    Host,
}

/// An environment of store paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closure {
    /// Its folder, without links.
    pub(crate) folder: PathBuf,
    /// What it says of itself.
    pub(crate) metadata: Metadata,
    /// The folder with `bin`.
    pub(crate) programs: PathBuf,
    /// Every path that is shown, in the order of its list.
    pub(crate) paths: Vec<PathBuf>,
    /// Nix's database of them, if there is one.
    pub(crate) database: Option<PathBuf>,
    wrapper: Wrapper,
}

impl Closure {
    /// Reads what `metadata`, of the environment in `folder`, says of its programs.
    pub(super) fn open(
        folder: PathBuf,
        metadata: &Metadata,
        programs: &Programs,
    ) -> Result<Closure, EnvironmentError> {
        let database = programs.database.as_ref().map(|name| folder.join(name));
        if let Some(database) = &database {
            // Not a link, and not one tomorrow.
            let is_folder = database.symlink_metadata().is_ok_and(|about| about.is_dir());
            if !is_store_path(&folder) || !is_folder {
                return Err(EnvironmentError::Database(folder));
            }
        }
        let paths = list(&folder, &programs.closure)?;
        for part in [&programs.folder, &programs.runner] {
            if !paths.iter().any(|path| part.starts_with(path)) || has_parents(part) {
                return Err(EnvironmentError::OutsideClosure { folder, path: part.clone() });
            }
        }
        let variable = |(name, value): (&String, &String)| {
            let usable = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
            usable.then(|| Variable { name: name.as_str().into(), value: value.as_str().into() })
        };
        let variables: Option<Vec<Variable>> = programs.variables.iter().map(variable).collect();
        let variables = variables.ok_or_else(|| EnvironmentError::Variables(folder.clone()))?;
        Ok(Closure {
            wrapper: Wrapper {
                program: Text::from(programs.runner.as_os_str().to_owned()),
                environment: metadata.name.clone(),
                variables,
                takes: Takes::CodeOrCommand,
            },
            programs: programs.folder.clone(),
            paths,
            database,
            metadata: metadata.clone(),
            folder,
        })
    }

    /// Whether a program of this name is among its programs.
    pub(crate) fn has(&self, program: &str) -> bool {
        self.programs.join("bin").join(program).exists()
    }

    /// What runs code in it, and the variables of all that is run.
    pub(crate) fn wrapper(&self) -> Wrapper {
        self.wrapper.clone()
    }
}

/// The paths that `file` in `folder` names, all of them in the store and there.
pub(super) fn list(folder: &Path, file: &Path) -> Result<Vec<PathBuf>, EnvironmentError> {
    let failed =
        |source| EnvironmentError::Lacks { folder: folder.to_owned(), file: file.to_owned(), source };
    let text = metadata::read(&folder.join(file), LONGEST_LIST).map_err(failed)?;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let paths: Vec<PathBuf> = lines.map(|line| PathBuf::from(std::ffi::OsStr::from_bytes(line))).collect();
    if paths.is_empty() || paths.len() > MOST_PATHS {
        return Err(EnvironmentError::Paths { folder: folder.to_owned(), number: paths.len() });
    }
    for (index, path) in paths.iter().enumerate() {
        if !is_store_path(path) {
            // Not what the line says: the list may be a link to a file that the caller cannot read.
            return Err(EnvironmentError::OutsideStore { folder: folder.to_owned(), line: index + 1 });
        }
        match path.symlink_metadata() {
            // A link would lead wherever it likes.
            Ok(about) if about.is_dir() || about.is_file() => {}
            Ok(_) => return Err(failed(io::ErrorKind::InvalidInput.into())),
            Err(_gone) => {
                return Err(EnvironmentError::Collected { folder: folder.to_owned(), path: path.clone() });
            }
        }
    }
    Ok(paths)
}

/// Whether it is an entry of the store itself.
pub(super) fn is_store_path(path: &Path) -> bool {
    let name = path.strip_prefix(STORE).ok().filter(|name| name.components().count() == 1);
    !has_parents(path) && name.is_some_and(|name| !name.as_os_str().as_bytes().starts_with(b"."))
}

fn has_parents(path: &Path) -> bool {
    path.components().any(|component| component == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Environment;
    use std::fs;

    #[test]
    fn only_entries_of_the_store_are_store_paths() {
        assert!(is_store_path(Path::new("/nix/store/00000000000000000000000000000000-x")));
        for path in [
            "/nix/store",
            "/nix/store/",
            "/nix/store/..",
            "/nix/store/a/b",
            "/nix/store/../../etc",
            "/nix/store/.links",
            "/etc",
            "nix/store/a",
        ] {
            assert!(!is_store_path(Path::new(path)), "{path}");
        }
    }

    fn refused(metadata: &str, closure: &str) -> EnvironmentError {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("metadata.json"), metadata).unwrap();
        fs::write(dir.path().join("closure"), closure).unwrap();
        Environment::find(dir.path().as_os_str()).unwrap_err()
    }

    #[test]
    fn a_claim_about_other_paths_is_refused() {
        let metadata = |environment: &str, closure: &str| {
            format!(
                r#"{{"name":"x","interpreter_type":"bash","environment":"{environment}",
                    "interpreter":"/nix/store/x/bin/run-x","closure":"{closure}"}}"#
            )
        };
        let usual = metadata("/nix/store/x", "closure");
        assert!(matches!(refused(&usual, "/etc\n"), EnvironmentError::OutsideStore { .. }));
        assert!(matches!(refused(&usual, "/nix/store/../../etc\n"), EnvironmentError::OutsideStore { .. }));
        assert!(matches!(refused(&usual, ""), EnvironmentError::Paths { number: 0, .. }));
        assert!(matches!(refused(&usual, "/nix/store/no-such\n"), EnvironmentError::Collected { .. }));
        assert!(matches!(refused(&metadata("/x", "none"), ""), EnvironmentError::Lacks { .. }));
        assert!(matches!(refused(&metadata("/x", "/etc/passwd"), ""), EnvironmentError::NotBeside { .. }));
        let database = |name: &str| usual.replace("}", &format!(r#","database":"{name}"}}"#));
        assert!(matches!(refused(&database("/etc"), ""), EnvironmentError::NotBeside { .. }));
        assert!(matches!(refused(&database("closure"), ""), EnvironmentError::Database(_)));
        let partial = r#"{"name":"x","interpreter_type":"bash","environment":"/nix/store/x"}"#;
        assert!(matches!(refused(partial, ""), EnvironmentError::Partial(_)));
    }
}
