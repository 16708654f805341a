//! What every request is served from, and how serving comes to an end.

use super::metrics::Metrics;
use super::types::{API_VERSION, Caller, DaemonInfo, Refusal, RefusalKind, SandboxState};
use crate::config::Config;
use crate::sandbox::manager::{Manager, OperationError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Name and version of a daemon, as HTTP writes them.
pub(super) const SOFTWARE: &str = concat!("firn/", env!("CARGO_PKG_VERSION"));

/// What all connections share. A handle: clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Service(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    manager: Manager,
    config: Arc<Config>,
    metrics: Metrics,
    work: TaskTracker,
    end: End,
    started: SystemTime,
    /// Whether somebody has connected since it was last asked.
    busy: AtomicBool,
    /// How many connections wait for the daemon's end.
    waiting: AtomicUsize,
}

/// How the daemon is told to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct End {
    /// Nothing new is begun. What only waits for something to happen ends.
    pub(crate) drain: CancellationToken,
    /// What is under way is given up.
    pub(crate) force: CancellationToken,
}

/// Who is at the other end of a connection, and its place among those that there may be.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) caller: Caller,
    pub(super) place: Arc<OwnedSemaphorePermit>,
}

impl Service {
    pub(crate) fn new(manager: Manager, config: Arc<Config>, end: End) -> Service {
        let (metrics, work, started) = (Metrics::new(), TaskTracker::new(), SystemTime::now());
        let (busy, waiting) = (AtomicBool::new(false), AtomicUsize::new(0));
        Service(Arc::new(Shared { manager, config, metrics, work, end, started, busy, waiting }))
    }

    /// All sandboxes.
    pub(super) fn manager(&self) -> &Manager {
        &self.0.manager
    }

    /// What is counted.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What is under way, beside what ends with its connection: a daemon that stops waits for it.
    pub(crate) fn work(&self) -> &TaskTracker {
        &self.0.work
    }

    /// How the daemon is told to end.
    pub(super) fn end(&self) -> &End {
        &self.0.end
    }

    /// Somebody waits for the daemon's end.
    pub(super) fn note_waiting(&self) {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// How many connections wait for the daemon's end. Some of them may be gone.
    pub(super) fn waiting_for_end(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Somebody has connected.
    pub(super) fn note_request(&self) {
        self.0.busy.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has connected since this was last asked.
    pub(crate) fn took_requests(&self) -> bool {
        self.0.busy.swap(false, Ordering::Relaxed)
    }

    /// How many sandboxes are not over.
    pub(crate) fn living(&self) -> usize {
        let over = |state| matches!(state, SandboxState::Stopped | SandboxState::Failed);
        self.0.manager.list(None).iter().filter(|sandbox| !over(sandbox.state)).count()
    }

    /// What a client is told of an error, which is counted.
    pub(super) fn refuse(&self, error: &OperationError) -> Refusal {
        let refusal = Refusal::of(error, &self.0.config);
        self.0.metrics.refused(refusal.kind);
        refusal
    }

    /// Refuses what begins something new while the daemon ends.
    pub(super) fn admit(&self) -> Result<(), Refusal> {
        if self.0.end.drain.is_cancelled() {
            return Err(Refusal::new(RefusalKind::Stopping, "the daemon is stopping"));
        }
        Ok(())
    }

    /// The daemon itself.
    pub(super) fn info(&self) -> DaemonInfo {
        let Shared { config, end, started, .. } = &*self.0;
        DaemonInfo {
            software: SOFTWARE.replace('/', " "),
            api: API_VERSION,
            pid: std::process::id(),
            started_at: humantime::format_rfc3339_millis(*started).to_string(),
            socket: config.socket.display().to_string(),
            state_dir: config.state_dir.display().to_string(),
            sandboxes: self.living() as u64,
            draining: end.drain.is_cancelled(),
            pool: self.0.manager.pool(),
        }
    }
}
