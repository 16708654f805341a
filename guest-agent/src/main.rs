//! `firn-agent`: runs in a sandbox and executes what the host asks for.
//!
//! Four ways to start it, one protocol (`firn-protocol`) on every connection:
//!
//! | started as | it is | connections |
//! |---|---|---|
//! | `/init`, PID 1 | the init process of a lean guest | vsock: listens, and dials the host once |
//! | `--vsock` | a service of a guest with another init | vsock, likewise |
//! | `--listen PATH` | a process among others | a Unix socket |
//! | `--listen-fd N` | the agent of a jail: PID 1 there, or beside a wrapper | a Unix socket that somebody else bound, inherited as descriptor N |
//!
//! ```text
//!   main ─▶ guest (init: mounts, modules, power; service)
//!     └──▶ listen ─▶ connection ─▶ exec ─▶ supervisor ─▶ command
//!                        ├─▶ kept ─▶ exec: commands that outlive their connection
//!                        ├─▶ session ─▶ exec: interpreters that live on between runs
//!                        ├─▶ worker ─▶ files, processes: what might block the agent
//!                        └─▶ guest::configure, stats
//! ```
//!
//! One thread, no thread pool: a supervisor is a plain copy of the agent, and that is only sound when
//! no other thread exists. Nothing in here may use `spawn_blocking`, and so neither `tokio::fs`.

mod agent;
mod connection;
mod exec;
mod files;
mod guest;
mod kept;
mod listen;
mod log;
mod outgoing;
mod processes;
mod session;
mod stats;
mod sys;
mod worker;

use agent::{Agent, AgentError, Role};
use listen::Doorkeeper;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: firn-agent --vsock | --listen PATH | --listen-fd N | --version";

/// What the command line asks for.
enum Mode {
    Init,
    Vsock,
    Listen(PathBuf),
    Inherit(RawFd),
    Version,
}

/// Why the agent ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum MainError {
    #[error("{USAGE}")]
    Usage,
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen on vsock port {}", firn_protocol::AGENT_PORT)]
    Vsock(#[source] io::Error),
    #[error("cannot listen on {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("descriptor {fd} is no listening Unix socket")]
    Inherit {
        fd: RawFd,
        #[source]
        source: io::Error,
    },
}

fn main() -> ExitCode {
    let result = match mode(std::env::args_os()) {
        Some(Mode::Init) => guest::run(),
        Some(Mode::Vsock) => guest::run_beside_init(),
        Some(Mode::Listen(path)) => listen_on(path),
        Some(Mode::Inherit(fd)) => listen_at(fd),
        Some(Mode::Version) => {
            let version = concat!("firn-agent ", env!("CARGO_PKG_VERSION"), "\n");
            let _ = io::stdout().write_all(version.as_bytes());
            Ok(())
        }
        None => Err(MainError::Usage),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error(log::chain(&error));
            ExitCode::from(if matches!(error, MainError::Usage) { 2 } else { 1 })
        }
    }
}

fn mode(mut arguments: impl Iterator<Item = OsString>) -> Option<Mode> {
    let name = arguments.next();
    // Being PID 1 is not enough: so is the agent of a jail.
    if name.is_some_and(|name| name == "/init") && std::process::id() == 1 {
        return Some(Mode::Init);
    }
    let flag = arguments.next()?;
    let mode = match flag.to_str()? {
        "--vsock" => Mode::Vsock,
        "--listen" => Mode::Listen(arguments.next()?.into()),
        "--listen-fd" => Mode::Inherit(arguments.next()?.to_str()?.parse().ok().filter(|fd| *fd >= 3)?),
        "--version" => Mode::Version,
        _ => return None,
    };
    arguments.next().is_none().then_some(mode)
}

fn listen_on(path: PathBuf) -> Result<(), MainError> {
    agent::prepare_process()?;
    let path_of_programs = agent::forget_start(None);
    // Before the working directory changes: the path may be relative.
    let listener = match listen::bind_unix(&path) {
        Ok(listener) => listener,
        Err(source) => return Err(MainError::Listen { path, source }),
    };
    agent::enter_proc()?;
    serve(listener, path_of_programs, |source| MainError::Listen { path, source })
}

/// Listens on a socket whose address is none of this process's business: in a jail there is no path by
/// which a command could connect to it.
fn listen_at(fd: RawFd) -> Result<(), MainError> {
    agent::prepare_process()?;
    let path = agent::forget_start(Some(fd));
    agent::enter_proc()?;
    let refused = |source| MainError::Inherit { fd, source };
    let listener = listen::inherit_unix(fd).map_err(refused)?;
    serve(listener, path, refused)
}

/// Serves connections until it is killed, or asked to end on one of them: that all have closed means
/// only that their host has ended, and another may come.
fn serve(
    listener: UnixListener,
    path: OsString,
    refused: impl FnOnce(io::Error) -> MainError,
) -> Result<(), MainError> {
    listen::block_on(async move {
        let agent = Agent::new(Role::Plain { path })?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(refused)?;
        let doorkeeper = Doorkeeper::new(std::rc::Rc::clone(&agent));
        tokio::join!(agent.reap(), listen::accept_unix(&listener, &doorkeeper));
        Ok(())
    })
    .map_err(MainError::Runtime)?
}
