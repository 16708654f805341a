//! What everybody knows of one sandbox: its request, what it does now, and the ways to ask its runner for
//! something.
//!
//! The runner alone changes what a sandbox does. Readers look at the status; what must not wait for
//! anything else, its end, has a way of its own that overtakes all orders.

use super::SandboxId;
use super::activity::Activities;
use super::audit::{self, Details};
use super::launch::{Ended, Up};
use super::log::Logs;
use super::manager::{Life, OperationError, Shared};
use super::place::Site;
use super::records::{Facts, RecordsError};
use super::state::{Denied, Occurrence, Operation};
use crate::api::types::{Caller, CreateRequest, SandboxInfo, SandboxState};
use crate::causes::in_full;
use crate::sys::clock;
use crate::sys::limits::{Cpus, Limits};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// See the module.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: SandboxId,
    pub(super) life: Life,
    pub(super) request: CreateRequest,
    pub(super) shared: Arc<Shared>,
    pub(super) activities: Arc<Activities>,
    status: watch::Sender<Status>,
    written: Mutex<Written>,
    audit: audit::Open,
    orders: mpsc::Sender<Order>,
    termination: watch::Sender<Option<Termination>>,
    /// Detached commands whose output is being written down.
    followed: Mutex<BTreeSet<u64>>,
}

/// What is in the records, and changes.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) name: String,
    pub(super) facts: Facts,
}

/// What it does now.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub(super) state: SandboxState,
    /// What there is to use, while it is up.
    pub(super) up: Option<Arc<Up>>,
    /// Why it ended, if it did so by itself.
    pub(super) end: Option<Arc<Ended>>,
    /// The last of its console, when it has ended.
    pub(super) console: String,
    /// Whether it is forgotten.
    pub(super) gone: bool,
}

/// What a runner is asked for.
#[derive(Debug)]
pub(super) enum Order {
    /// To do something.
    Work(Work, oneshot::Sender<Result<(), OperationError>>),
    /// To say what is on the console.
    Console(oneshot::Sender<String>),
}

/// See [`Order`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    Pause,
    Resume,
    Limit(Limits),
}

/// That it is to end. Of two that are asked for the later counts, the stronger if both wait.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Termination {
    /// Orderly, if that takes no longer than this, and is remembered.
    Stop { grace: Duration, reason: String },
    /// What is shared is written back, and it is forgotten.
    Finish,
    /// At once, and is forgotten.
    Destroy,
}

/// See [`Entry::followed`].
#[derive(Debug)]
pub(super) struct Followed {
    entry: Arc<Entry>,
    command: u64,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.entry.followed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.command);
    }
}

/// How many orders may wait.
const ORDERS: usize = 16;

impl Entry {
    /// A sandbox that `written` says is in `state`, and what its runner has to listen to.
    pub(super) fn new(
        shared: Arc<Shared>,
        id: SandboxId,
        life: Life,
        request: CreateRequest,
        written: Written,
        state: SandboxState,
    ) -> (Arc<Entry>, mpsc::Receiver<Order>) {
        let (orders, received) = mpsc::channel(ORDERS);
        let status = Status { state, up: None, end: None, console: String::new(), gone: false };
        let entry = Entry {
            id,
            life,
            request,
            shared,
            activities: Activities::new(),
            status: watch::Sender::new(status),
            written: Mutex::new(written),
            audit: audit::Open::default(),
            orders,
            termination: watch::Sender::new(None),
            followed: Mutex::default(),
        };
        (Arc::new(entry), received)
    }

    /// What is in the records.
    pub(super) fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it makes its place.
    pub(super) fn site(&self) -> Site {
        let Shared { places, records, .. } = &*self.shared;
        let ephemeral = !self.is_kept_track_of();
        Site { id: self.id, dir: places.clone(), records: Arc::clone(records), ephemeral }
    }

    /// Its logs.
    pub(super) fn logs(&self) -> Logs {
        Logs::of(&self.shared.records.dir().join("logs"), self.id)
    }

    /// Tells the audit log.
    pub(super) fn note(&self, event: &str, by: Option<Caller>, details: Details) {
        // Much happens to one that is up, and next to nothing afterwards.
        let open = self.status.borrow().up.is_some().then_some(&self.audit);
        if open.is_none() {
            self.audit.close();
        }
        self.shared.audit.note(self.id, open, event, by, details);
    }

    /// What it does now.
    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// To be told when that changes.
    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// What there is to use, if `operation` may be done now.
    pub(super) fn admit(&self, operation: Operation) -> Result<Arc<Up>, OperationError> {
        let status = self.status.borrow();
        if status.gone {
            return Err(OperationError::NotFound(self.id.to_string()));
        }
        let denied = |Denied { state, operation }| OperationError::State {
            id: self.id,
            state: state.name(),
            operation: operation.name(),
        };
        status.state.admit(operation).map_err(denied)?;
        let never = Denied { state: status.state, operation };
        status.up.clone().ok_or_else(|| denied(never))
    }

    /// Something happened to it.
    pub(super) fn occurred(&self, occurrence: Occurrence) {
        self.status.send_modify(|status| status.state = status.state.after(occurrence));
        self.save_state();
    }

    /// It takes commands.
    pub(super) fn is_up(&self, up: Arc<Up>) {
        self.status.send_modify(|status| {
            status.state = status.state.after(Occurrence::Up);
            status.up = Some(up);
        });
    }

    /// It has ended, and is remembered.
    pub(super) fn is_over(&self, occurrence: Occurrence, reason: String, end: Option<Arc<Ended>>) {
        self.written().facts.reason = Some(reason);
        self.status.send_modify(|status| {
            status.state = status.state.after(occurrence);
            status.up = None;
            status.end = end;
        });
        self.save_state();
    }

    /// It has ended, and is forgotten: also by the registry.
    pub(super) fn is_gone(&self, end: Option<Arc<Ended>>) {
        self.forget();
        self.tell_gone(end);
    }

    /// Forgets it.
    pub(super) fn forget(&self) {
        if let Err(error) = self.shared.records.remove(self.id) {
            // Nothing is left that it speaks of: the next daemon finds that out.
            tracing::warn!(sandbox = %self.id, error = in_full(&error), "cannot remove the record");
        }
        self.logs().remove();
        self.shared.forget(self.id);
    }

    /// Tells whoever waits that it has ended and is, or is about to be, forgotten.
    pub(super) fn tell_gone(&self, end: Option<Arc<Ended>>) {
        self.status.send_modify(|status| {
            status.state = status.state.after(Occurrence::Stopped);
            status.up = None;
            status.end = end;
            status.gone = true;
        });
    }

    /// Whether it can be found.
    pub(super) fn is_known(&self) -> bool {
        !self.status.borrow().gone
    }

    /// Whether what becomes of it is written down: not if the next daemon only removes it.
    pub(super) fn is_kept_track_of(&self) -> bool {
        self.life != Life::Ephemeral
    }

    /// Writes down what is known of it.
    pub(super) fn save_facts(&self) -> Result<(), RecordsError> {
        if !self.is_kept_track_of() {
            return Ok(());
        }
        let Written { name, facts } = self.written().clone();
        self.shared.records.set_facts(self.id, &name, &facts)
    }

    /// While the value lives, the output of a detached command is being written down.
    pub(super) fn followed(self: &Arc<Entry>, command: u64) -> Followed {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).insert(command);
        Followed { entry: Arc::clone(self), command }
    }

    /// Whether the output of a detached command is being written down.
    pub(super) fn is_followed(&self, command: u64) -> bool {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).contains(&command)
    }

    fn save_state(&self) {
        if !self.is_kept_track_of() {
            return;
        }
        let state = self.status.borrow().state;
        let facts = self.written().facts.clone();
        if let Err(error) = self.shared.records.set_state(self.id, state, &facts) {
            // What is, is: the next daemon finds it out by looking.
            tracing::warn!(sandbox = %self.id, error = in_full(&error), "cannot write the record");
        }
    }

    /// Has its runner do something.
    pub(super) async fn order(&self, work: Work) -> Result<(), OperationError> {
        let (answer, answered) = oneshot::channel();
        let over = || {
            let state = self.status.borrow().state;
            let operation = match work {
                Work::Pause => Operation::Pause,
                Work::Resume => Operation::Resume,
                Work::Limit(_) => Operation::Limit,
            };
            OperationError::State { id: self.id, state: state.name(), operation: operation.name() }
        };
        if self.orders.send(Order::Work(work, answer)).await.is_err() {
            return Err(over());
        }
        answered.await.unwrap_or_else(|_ended| Err(over()))
    }

    /// The last of its console, while it is up.
    pub(super) async fn console(&self) -> Option<String> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order::Console(answer)).await.ok()?;
        answered.await.ok()
    }

    /// What was on its console when it ended.
    pub(super) fn leave_console(&self, console: String) {
        self.status.send_modify(|status| status.console = console);
    }

    /// Wants its end. Does not wait for it.
    pub(super) fn terminate(&self, termination: Termination) {
        self.termination.send_modify(|asked| {
            if asked.as_ref().is_none_or(|asked| *asked < termination) {
                *asked = Some(termination);
            }
        });
    }

    /// To be told when somebody wants its end.
    pub(super) fn terminations(&self) -> watch::Receiver<Option<Termination>> {
        self.termination.subscribe()
    }

    /// When the first of its times is up, by [`clock::boot_ms`], and what is to happen then.
    pub(super) fn due(&self) -> Option<(u64, Due)> {
        let written = self.written();
        let facts = &written.facts;
        let lease = facts.lease_until_boot_ms.map(|until| (until, Due::Lease));
        let age = facts.lifetime_ms.map(|most| (facts.created_boot_ms.saturating_add(most), Due::Lifetime));
        // What stands still is idle, and meant to be.
        let idle = match (facts.idle_timeout_ms, self.activities.idle_since(), self.status.borrow().state) {
            (Some(most), Some(since), SandboxState::Running) => Some((since.saturating_add(most), Due::Idle)),
            _ => None,
        };
        [lease, age, idle].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// As it is now, for others.
    pub(super) fn info(&self) -> SandboxInfo {
        let status = self.status();
        let written = self.written().clone();
        let Written { name, facts } = written;
        let up = status.up.as_deref();
        let time = |ms: Option<u64>| ms.map(clock::rfc3339);
        let in_future = |boot_ms: u64| {
            let left = boot_ms.saturating_sub(clock::boot_ms());
            clock::rfc3339(clock::unix_ms().saturating_add(left))
        };
        let rootfs = self.request.environment.as_ref().filter(|name| name.as_os_str() != "host");
        let profile = match (&self.request.profile, &self.request.with[..], rootfs) {
            (Some(profile), ..) => profile.clone(),
            (None, [], None) => "host".to_owned(),
            (None, [], Some(folder)) => {
                folder.as_path().file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
            (None, with, _) => format!("custom:{}", with.join(",")),
        };
        SandboxInfo {
            session_id: self.id.to_string(),
            name,
            profile,
            rootfs_path: rootfs.map_or("/".into(), |path| path.as_os_str().to_string_lossy().into_owned()),
            workspace: self
                .request
                .workspace
                .as_ref()
                .map(|workspace| workspace.host.as_os_str().to_string_lossy().into_owned()),
            created_at: clock::rfc3339(facts.created_unix_ms),
            last_exec_at: time(facts.last_exec_unix_ms),
            pid: up.and_then(|up| up.pid),
            agent: self.request.agent.clone(),
            description: facts.description,
            network: "off".to_owned(),
            isolation: up
                .map(|up| up.grade.into())
                .or(self.request.isolation)
                .unwrap_or(crate::api::types::Isolation::Vm),
            state: status.state,
            reason: facts.reason,
            commands: self.activities.count(),
            owner: self.request.owner.clone(),
            lease_until: facts.lease_until_boot_ms.map(in_future),
            expires_at: facts.lifetime_ms.map(|most| in_future(facts.created_boot_ms.saturating_add(most))),
            idle_timeout_ms: facts.idle_timeout_ms,
            ephemeral: self.life == Life::Ephemeral,
            main_command: facts.main_command,
            cgroup: up.and_then(|up| up.cgroup.path()).map(|path| path.display().to_string()),
            protection: up.map(|up| {
                let mut protection = up.protection.clone();
                let cpus = facts.cpus.as_deref().and_then(|cpus| cpus.parse().ok()).map(Cpus::number);
                protection.set_limits(facts.memory, facts.processes, cpus);
                protection
            }),
        }
    }
}

/// Which of a sandbox's times is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Its owner has not renewed its lease.
    Lease,
    /// It is too old.
    Lifetime,
    /// Nothing was asked of it for too long.
    Idle,
}
