//! The daemon: what is put together, in which order it comes up, and how it ends.
//!
//! ```text
//!   lock of the state folder ─▶ socket ─▶ Manager::open (takes over what lives) ─▶ ready ─▶ serve
//!                                                                                           │
//!   SIGTERM, `firn daemon stop`, nothing to do ─▶ drain: socket removed, what is under way ◀┘
//!                                                 is waited for ─▶ lock released ─▶ exit
//! ```
//!
//! Sandboxes that are kept go on living when it ends, and the next daemon takes them over.

mod log;
mod socket;

pub(crate) use log::LogFormat;
pub(crate) use socket::Socket;

use crate::api::server;
use crate::api::service::{End, Service};
use crate::api::start::{self, READY, make_folder};
use crate::config::{Config, Supervision};
use crate::sandbox::failpoint;
use crate::sandbox::manager::{Manager, OperationError};
use crate::sandbox::place::{self, PlaceError};
use crate::sys::activation;
use crate::sys::lock::Lock;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{dup2_stdout, setsid};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// More threads than that wait for each other.
const MOST_WORKERS: usize = 4;

/// Threads for what blocks, as reading and writing records. They end when they have nothing to do.
const MOST_BLOCKING: usize = 16;

/// How often it is looked whether there is nothing to do, at most.
const IDLE_CHECK: Duration = Duration::from_secs(30);

/// A daemon that did not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// Another has the state folder.
    #[error("a daemon{} already uses {}", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), dir.display())]
    InUse {
        /// That daemon.
        pid: Option<u32>,
        /// The state folder.
        dir: PathBuf,
    },
    /// Another, with another state folder, has the socket.
    #[error("a daemon with another state folder already listens on {}", .0.display())]
    SocketInUse(PathBuf),
    /// A folder or file could not be used.
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
    /// The runtime folder cannot be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// What the service manager passed on cannot be used.
    #[error("cannot use the socket of the service manager")]
    Activation(#[source] io::Error),
    /// The runtime or the signals.
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    /// Not a filter.
    #[error("FIRN_LOG cannot be used")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The sandboxes cannot be taken over.
    #[error("cannot take over what is recorded")]
    Open(#[source] OperationError),
}

/// Who has started the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartedBy {
    /// A person, or a service manager.
    Somebody,
    /// A command that needs it.
    Command,
}

/// Runs the daemon to its end.
pub(crate) fn run(config: Config, by: StartedBy, format: LogFormat) -> Result<(), DaemonError> {
    let supervision = Supervision::read();
    if let Some(point) = &supervision.failpoint {
        failpoint::set(point);
    }
    if by == StartedBy::Command {
        activation::close_inherited();
        // Away from the terminal of the command, and from its signals. It fails for who has a session of
        // its own already.
        let _ = setsid();
    }
    let file = (by == StartedBy::Command).then(|| config.state_dir.join(start::LOG));
    log::begin(format, supervision.log.as_deref(), file)?;
    let failed = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| DaemonError::File { action, path, source }
    };
    // Before anything is opened: it is known by its number only.
    let given = (supervision.sockets > 0).then_some(());
    raise_descriptor_limit();
    make_folder(&config.state_dir, 0o700).map_err(failed("make", &config.state_dir))?;
    let pid_file = config.state_dir.join("daemon.pid");
    let lock_file = config.state_dir.join("daemon.lock");
    let Some(lock) = Lock::attempt(&lock_file).map_err(failed("lock", &lock_file))? else {
        if by == StartedBy::Command {
            // Two commands needed one, and the other has it.
            return Ok(());
        }
        let pid = fs::read_to_string(&pid_file).ok().and_then(|pid| pid.trim().parse().ok());
        return Err(DaemonError::InUse { pid, dir: config.state_dir });
    };
    fs::write(&pid_file, std::process::id().to_string()).map_err(failed("write", &pid_file))?;
    place::prepare(&config.runtime_dir)?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, MOST_WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(MOST_BLOCKING)
        .thread_name("firn-daemon")
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    let config = Arc::new(config);
    let notifier = Notifier { path: supervision.notify };
    let done = runtime.block_on(async {
        let socket = match given {
            Some(()) => Socket::given(&config.socket)?,
            None => Socket::make(&config.socket)?,
        };
        serve(&config, socket, by, &notifier).await
    });
    // What blocks is not waited for: it may be a read that nobody will ever end.
    runtime.shutdown_background();
    let _ = fs::remove_file(&pid_file);
    drop(lock);
    done
}

async fn serve(
    config: &Arc<Config>,
    socket: Socket,
    by: StartedBy,
    notifier: &Notifier,
) -> Result<(), DaemonError> {
    let end = End::default();
    // From here on a signal is no death.
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Runtime)?;
    let _hangup = signal(SignalKind::hangup()).map_err(DaemonError::Runtime)?;
    let manager = Manager::open(config.clone()).await.map_err(DaemonError::Open)?;
    let service = Service::new(manager, config.clone(), end.clone());
    let connections = TaskTracker::new();
    notifier.tell("READY=1");
    if by == StartedBy::Command {
        say_ready().map_err(DaemonError::Runtime)?;
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %config.socket.display(),
        state = %config.state_dir.display(),
        "ready"
    );
    // Where connections are accepted they are served: not in this thread, which only waits.
    let serving = tokio::spawn(server::serve(socket, service.clone(), connections.clone()));
    let ending = async {
        let reason = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = nothing_to_do(config, by, &service, &connections) => "nothing to do",
            () = end.drain.cancelled() => "asked to",
        };
        tracing::info!(reason, "stopping");
        notifier.tell("STOPPING=1");
        end.drain.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        end.force.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = serving => {}
        () = ending => {}
    }
    tracing::info!("stopped");
    Ok(())
}

/// Waits until a daemon that a command has started has had nothing to do for long enough.
async fn nothing_to_do(config: &Config, by: StartedBy, service: &Service, connections: &TaskTracker) {
    let (Some(patience), StartedBy::Command) = (config.settings.idle_exit, by) else {
        return std::future::pending().await;
    };
    let pause = (patience / 4).clamp(Duration::from_millis(100), IDLE_CHECK);
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(pause).await;
        let busy = !connections.is_empty() || !service.work().is_empty() || service.living() > 0;
        if busy || service.took_requests() {
            since = Instant::now();
        } else if since.elapsed() >= patience {
            return;
        }
    }
}

/// Tells the command that has started us, and lets go of what it listens to.
fn say_ready() -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    // It may not be there any more.
    let _ = stdout.write_all(READY).and_then(|()| stdout.flush());
    dup2_stdout(fs::OpenOptions::new().write(true).open("/dev/null")?)?;
    Ok(())
}

/// Every connection and every sandbox takes some. Helpers are given limits of their own.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

/// Tells the service manager how far we are (`sd_notify`(3)).
#[derive(Debug)]
struct Notifier {
    path: Option<std::ffi::OsString>,
}

impl Notifier {
    fn tell(&self, state: &str) {
        let Some(path) = &self.path else { return };
        if let Err(error) = notify(path, state) {
            tracing::warn!(%error, "cannot tell the service manager");
        }
    }
}

fn notify(path: &std::ffi::OsStr, state: &str) -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}
