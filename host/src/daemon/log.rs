//! The daemon's log: lines for people on a terminal, JSON for programs.
//!
//! It is written to stderr, wherever that goes: to the journal, or, of a daemon that a command has started,
//! to a file, which does not grow beyond a bound: one before it is kept.

use super::DaemonError;
use nix::unistd::dup2_stderr;
use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How large the file gets, in bytes.
const MOST: u64 = 4 << 20;

/// What is logged when nobody says.
const USUAL_FILTER: &str = "info";

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Human,
    /// A JSON object.
    Json,
}

/// Has everything that is logged from now on written. `file` is what stderr goes to, if it is a file of
/// ours.
pub(super) fn begin(
    format: LogFormat,
    filter: Option<&str>,
    file: Option<PathBuf>,
) -> Result<(), DaemonError> {
    let filter = EnvFilter::try_new(filter.unwrap_or(USUAL_FILTER))
        .map_err(|source| DaemonError::Filter(source.into()))?;
    let terminal = io::stderr().is_terminal();
    let written = file.as_deref().and_then(|file| fs::metadata(file).ok()).map_or(0, |file| file.len());
    let log = Log { file, written: Mutex::new(written) };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log).with_ansi(terminal);
    let human = match format {
        LogFormat::Auto => terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let begun = if human {
        lines.with_target(false).try_init()
    } else {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    };
    // A second daemon in one process there is in tests only.
    let _ = begun;
    Ok(())
}

/// stderr, and how much was written to it.
#[derive(Debug)]
struct Log {
    file: Option<PathBuf>,
    written: Mutex<u64>,
}

impl Log {
    fn line(&self, line: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file
            && *written > MOST
            && turn_over(file).is_ok()
        {
            *written = 0;
        }
        *written = written.saturating_add(line.len() as u64);
        io::stderr().lock().write_all(line)
    }
}

/// Goes on with a new file, and keeps this one.
fn turn_over(file: &Path) -> io::Result<()> {
    let mut kept = file.as_os_str().to_owned();
    kept.push(".1");
    fs::rename(file, kept)?;
    let fresh = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    dup2_stderr(&fresh)?;
    Ok(())
}

/// A line of the log.
#[derive(Debug)]
struct Line<'a>(&'a Log);

impl io::Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.line(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}
