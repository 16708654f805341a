//! Starting the daemon that a command needs.
//!
//! ```text
//!   client ── lock ── connect ── firn daemon --autostarted ── wait ── connect
//!                        │            │ stdout: a pipe, which says when it accepts
//!                        ▼            │ stderr: daemon.log
//!                      there       outlives the client
//! ```
//!
//! Two clients at once take turns, so the second finds what the first has started.

use super::client::nobody_listens;
use crate::config::Config;
use crate::sys::lock::Lock;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// What a daemon writes to its stdout when it accepts.
pub(crate) const READY: &[u8] = b"ready\n";

/// The name of a daemon's own log in its state folder.
pub(crate) const LOG: &str = "daemon.log";

/// How long a daemon may take until it accepts. It takes over what an earlier one has left.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait for a daemon that somebody else has started, or that is stopping, before another try.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);

/// How much of the log is shown of a daemon that did not come up, in bytes.
const TAIL: u64 = 2000;

/// A daemon that was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Its folders or its log cannot be made.
    #[error("cannot start the daemon: cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It cannot be executed.
    #[error("cannot start the daemon")]
    Execute(#[source] io::Error),
    /// It ended.
    #[error("the daemon did not come up; the end of {}:\n{said}", log.display())]
    Ended {
        /// Its log.
        log: PathBuf,
        /// The end of that.
        said: String,
    },
    /// It does not accept.
    #[error("the daemon does not come up within {} s; the end of {}:\n{said}", PATIENCE.as_secs(), log.display())]
    Late {
        /// Its log.
        log: PathBuf,
        /// The end of that.
        said: String,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::File { action, path: path.to_owned(), source }
}

/// Makes a folder of ours, if it is not there.
pub(crate) fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// A connection to the daemon, which is started if it still is not there.
pub(super) async fn connect(config: &Config) -> Result<UnixStream, StartError> {
    let root = nix::unistd::Uid::effective().is_root();
    // Root's helpers pass through it as strangers.
    let mode = if root { 0o711 } else { 0o700 };
    make_folder(&config.runtime_dir, mode).map_err(failed("make", &config.runtime_dir))?;
    make_folder(&config.state_dir, 0o700).map_err(failed("make", &config.state_dir))?;
    let turn = config.runtime_dir.join("start.lock");
    let path = turn.clone();
    let _turn = tokio::task::spawn_blocking(move || Lock::wait(&path))
        .await
        .map_err(io::Error::other)
        .and_then(|lock| lock)
        .map_err(failed("lock", &turn))?;
    if let Some(stream) = attempt(&config.socket).await? {
        return Ok(stream);
    }
    let log = config.state_dir.join(LOG);
    let start = fs::metadata(&log).map_or(0, |log| log.len());
    let started = tokio::time::timeout(PATIENCE, async {
        loop {
            let outcome = start_and_wait(&log).await?;
            if let Some(stream) = attempt(&config.socket).await? {
                return Ok(stream);
            }
            let said = end_of(&log, start);
            match outcome {
                // It has found another, which does not accept yet, or not any more.
                Outcome::Silent => tokio::time::sleep(BETWEEN_ATTEMPTS).await,
                Outcome::Ready | Outcome::Failed => {
                    return Err(StartError::Ended { said, log: log.clone() });
                }
            }
        }
    });
    started.await.unwrap_or_else(|_elapsed| Err(StartError::Late { said: end_of(&log, start), log }))
}

/// How a daemon that was started did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It accepts.
    Ready,
    /// It ended, as one does that is not needed.
    Silent,
    /// It could not come up.
    Failed,
}

async fn attempt(socket: &Path) -> Result<Option<UnixStream>, StartError> {
    match UnixStream::connect(socket).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if nobody_listens(&error) => Ok(None),
        Err(error) => Err(failed("connect to", socket)(error)),
    }
}

/// Starts one, and waits until it accepts or ends.
async fn start_and_wait(log: &Path) -> Result<Outcome, StartError> {
    let stderr =
        OpenOptions::new().append(true).create(true).mode(0o600).open(log).map_err(failed("open", log))?;
    let (ready, to_ready) = io::pipe().map_err(StartError::Execute)?;
    let us = std::env::current_exe().map_err(StartError::Execute)?;
    // It makes itself a session of its own: with ours it would get the signals of our terminal.
    let mut daemon = Command::new(us)
        .args(["daemon", "--autostarted"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(OwnedFd::from(to_ready)))
        .stderr(stderr)
        .spawn()
        .map_err(StartError::Execute)?;
    let mut ready = pipe::Receiver::from_owned_fd(ready.into()).map_err(StartError::Execute)?;
    let mut said = Vec::new();
    while !said.ends_with(READY) {
        if ready.read_buf(&mut said).await.map_err(StartError::Execute)? == 0 {
            // Its end of the pipe is closed by its end.
            let status = tokio::task::spawn_blocking(move || daemon.wait())
                .await
                .map_err(io::Error::other)
                .and_then(|status| status)
                .map_err(StartError::Execute)?;
            return Ok(if status.success() { Outcome::Silent } else { Outcome::Failed });
        }
    }
    Ok(Outcome::Ready)
}

/// What was written to a log since it was so long, the last of it.
fn end_of(log: &Path, start: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.min(length).max(length.saturating_sub(TAIL))))?;
        let mut said = Vec::new();
        file.take(TAIL).read_to_end(&mut said)?;
        Ok(said)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim_end().to_owned()
}
