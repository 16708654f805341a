//! `firn mcp install` and `firn mcp print`: the server in the configurations of clients.

use super::McpError;
use crate::cli::exit::Failed;
use crate::cli::output::Output;
use crate::config::Config;
use crate::mcp::clients::{ClientKind, ConfigurationError, Places, Registration};
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// How many lines are shown around a change.
const AROUND: usize = 3;

/// The permissions of a configuration that was not there: it may come to hold secrets.
const MODE: u32 = 0o600;

/// How many backups of a configuration there may be.
const BACKUPS: u32 = 1000;

/// Which client, and how it starts the server.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The client.
    client: ClientKind,

    /// What it calls the server.
    #[arg(long, value_name = "NAME", default_value = "firn", value_parser = name)]
    name: String,

    /// Options of `firn mcp` that it starts the server with.
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// A configuration that was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// It is better left alone.
    #[error("{} is left as it is: `firn mcp print` shows what to add", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConfigurationError,
    },
    /// It cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Nobody says where the user's files are.
    #[error("HOME is not set")]
    Homeless,
    /// The options would not start a server.
    #[error("`firn mcp` does not take these options")]
    Options(#[source] Box<clap::Error>),
}

/// A name that needs no quotes in any of the formats.
fn name(text: &str) -> Result<String, &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    match !text.is_empty() && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("letters, digits, '-' and '_'"),
    }
}

impl Which {
    /// Writes the configuration, and shows what changes.
    pub(super) fn install(&self, config: &Config, output: &mut Output) -> Result<u8, Failed> {
        let (path, before, after) = self.change(config).map_err(McpError::from)?;
        if before.as_deref() == Some(&after) {
            output.note(&format!("{} says so already", path.display()));
            return Ok(0);
        }
        output.stdout(diff(&path, before.as_deref().unwrap_or_default(), &after).as_bytes())?;
        if let Some(before) = &before {
            let backup = back_up(&path, before).map_err(McpError::from)?;
            output.note(&format!("{} is as it was", backup.display()));
        }
        replace(&path, &after).map_err(McpError::from)?;
        output.note(&format!("{} is written; restart the client", path.display()));
        Ok(0)
    }

    /// Prints what a configuration that has nothing else would say.
    pub(super) fn print(&self, config: &Config, output: &mut Output) -> Result<u8, Failed> {
        let (path, alone) = self.alone(config).map_err(McpError::from)?;
        output.stdout(alone.as_bytes())?;
        output.note(&format!("it belongs in {}", path.display()));
        Ok(0)
    }

    fn alone(&self, config: &Config) -> Result<(PathBuf, String), InstallError> {
        let path = self.client.path(&places()?);
        match self.client.alone(&self.registration(config)?) {
            Ok(alone) => Ok((path, alone)),
            Err(source) => Err(InstallError::Configuration { path, source }),
        }
    }

    /// Which file, what it says, and what it is to say.
    fn change(&self, config: &Config) -> Result<(PathBuf, Option<String>, String), InstallError> {
        let path = self.client.path(&places()?);
        // Many keep their configurations elsewhere, and links to them here.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let before = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(InstallError::File { action: "read", path, source }),
        };
        let after = self.client.add(&self.registration(config)?, before.as_deref().unwrap_or_default());
        match after {
            Ok(after) => Ok((path, before, after)),
            Err(source) => Err(InstallError::Configuration { path, source }),
        }
    }

    fn registration(&self, config: &Config) -> Result<Registration, InstallError> {
        super::check_options(&self.options).map_err(|error| InstallError::Options(Box::new(error)))?;
        let program = std::env::current_exe();
        let program =
            program.map_err(|source| InstallError::File { action: "find", path: "firn".into(), source })?;
        Ok(Registration::new(&self.name, &program, &config.search, &self.options))
    }
}

fn places() -> Result<Places, InstallError> {
    let folder = |name| Config::callers(OsStr::new(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let project = std::env::current_dir();
    Ok(Places {
        home: folder("HOME").ok_or(InstallError::Homeless)?,
        project: project.map_err(|source| InstallError::File { action: "find", path: ".".into(), source })?,
        codex: folder("CODEX_HOME"),
        config: folder("XDG_CONFIG_HOME"),
    })
}

/// Keeps what a file says beside it, under a name that nothing has.
fn back_up(path: &Path, text: &str) -> Result<PathBuf, InstallError> {
    let mut failed = None;
    for number in 0..BACKUPS {
        let mut backup = path.as_os_str().to_owned();
        backup.push(".bak");
        if number > 0 {
            backup.push(number.to_string());
        }
        let backup = PathBuf::from(backup);
        let written = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&backup);
        match written.and_then(|mut file| file.write_all(text.as_bytes())) {
            Ok(()) => return Ok(backup),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => failed = Some(error),
            Err(source) => return Err(InstallError::File { action: "write", path: backup, source }),
        }
    }
    let source = failed.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into());
    Err(InstallError::File { action: "back up", path: path.to_owned(), source })
}

/// Writes a file beside it and puts that in its place: whoever reads finds all of the one or the other.
fn replace(path: &Path, text: &str) -> Result<(), InstallError> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(new);
    let mode = fs::metadata(path).map_or(MODE, |about| about.permissions().mode() & 0o777);
    let write = || -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&new);
        InstallError::File { action: "write", path: path.to_owned(), source }
    })
}

/// What changes, as `diff -u` shows it. It is one place: what is the same before and after it is left out.
fn diff(path: &Path, before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let same = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let rest = old.len().min(new.len()) - same;
    let ends = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(old, new)| old == new).count();
    let from = same.saturating_sub(AROUND);
    let shown_ends = ends.min(AROUND);
    let count = |lines: &[&str]| lines.len() - ends - from + shown_ends;
    let start = |lines: &[&str]| if lines.is_empty() { 0 } else { from + 1 };
    let mut text = format!(
        "--- {path}\n+++ {path}\n@@ -{},{} +{},{} @@\n",
        start(&old),
        count(&old),
        start(&new),
        count(&new),
        path = path.display(),
    );
    let mut show = |sign: char, lines: &[&str]| {
        lines.iter().for_each(|line| text.push_str(&format!("{sign}{line}\n")));
    };
    show(' ', &old[from..same]);
    show('-', &old[same..old.len() - ends]);
    show('+', &new[same..new.len() - ends]);
    show(' ', &old[old.len() - ends..old.len() - ends + shown_ends]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_shown_as_diff_shows_it() {
        let before = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        assert_eq!(
            diff(Path::new("f"), before, &before.replace("5\n", "five\nand\n")),
            "--- f\n+++ f\n@@ -2,7 +2,8 @@\n 2\n 3\n 4\n-5\n+five\n+and\n 6\n 7\n 8\n"
        );
        assert_eq!(diff(Path::new("f"), "", "a\n"), "--- f\n+++ f\n@@ -0,0 +1,1 @@\n+a\n");
        assert_eq!(
            diff(Path::new("f"), "a\na\n", "a\na\na\n"),
            "--- f\n+++ f\n@@ -1,2 +1,3 @@\n a\n a\n+a\n"
        );
    }

    #[test]
    fn a_file_is_replaced_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/config");
        replace(&path, "one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, "two").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(back_up(&path, "one").unwrap().file_name().unwrap(), "config.bak");
        let second = back_up(&path, "two").unwrap();
        assert_eq!(
            (second.file_name().unwrap(), fs::read_to_string(&second).unwrap()),
            (OsStr::new("config.bak1"), "two".into())
        );
        let mut left: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["config", "config.bak", "config.bak1"]);
    }
}
