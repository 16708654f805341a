//! What a session has to know of an environment without opening it: its name, and the language of its code.

use super::metadata::Metadata;
use super::{EnvironmentError, HOST, Interpreter};
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// An environment that code can be run in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Language {
    /// What the environment calls itself.
    pub(crate) environment: String,
    /// What tells it from all others: see [`identity`].
    pub(crate) identity: OsString,
    /// What runs its code.
    pub(crate) interpreter: Interpreter,
}

impl Language {
    /// That of the environment that a request names so. None: the host's own programs, of which it does not
    /// say which is meant.
    pub(crate) fn of(name: &OsStr) -> Result<Option<Language>, EnvironmentError> {
        if name == HOST {
            return Ok(None);
        }
        if let Some(interpreter) = name.to_str().and_then(Interpreter::of) {
            return Ok(Some(interpreter.into()));
        }
        if !Path::new(name).is_dir() {
            return Err(EnvironmentError::Unknown(name.to_string_lossy().into_owned()));
        }
        let identity = identity(name);
        let Metadata { name, interpreter, .. } = Metadata::read(Path::new(&identity))?;
        Ok(Some(Language { environment: name, identity, interpreter }))
    }
}

impl From<Interpreter> for Language {
    /// The host's own, or whichever has its usual name where the session is.
    fn from(interpreter: Interpreter) -> Language {
        let name = interpreter.environment();
        Language { environment: name.to_owned(), identity: name.into(), interpreter }
    }
}

/// What is the same for two names of one environment and differs for two environments, whatever they call
/// themselves: the name of one of the host's, or the path of a folder without links.
pub(crate) fn identity(name: &OsStr) -> OsString {
    match name.to_str().and_then(Interpreter::of) {
        Some(interpreter) => interpreter.environment().into(),
        None if name == HOST => HOST.into(),
        None => std::fs::canonicalize(name).map_or_else(|_gone| name.to_owned(), Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_folder_is_known_by_itself_and_not_by_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other, link] = ["one", "other", "link"].map(|name| dir.path().join(name));
        for folder in [&one, &other] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("metadata.json"), r#"{"name":"data","interpreter_type":"python"}"#)
                .unwrap();
        }
        symlink(&one, &link).unwrap();
        let language = |path: &Path| Language::of(path.as_os_str()).unwrap().unwrap();
        assert_eq!(language(&one), language(&link));
        assert_eq!(language(&one).environment, language(&other).environment);
        assert_ne!(language(&one).identity, language(&other).identity);
        assert_eq!(language(&one).interpreter, Interpreter::Python);
    }

    #[test]
    fn the_hosts_interpreters_have_a_language_and_its_programs_have_none() {
        assert_eq!(Language::of(OsStr::new("host")).unwrap(), None);
        let shell = Language::of(OsStr::new("bash")).unwrap().unwrap();
        assert_eq!((shell.environment.as_str(), shell.interpreter), ("shell", Interpreter::Bash));
        assert!(Language::of(OsStr::new("no-such")).is_err());
    }
}
