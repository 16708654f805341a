//! All sandboxes of a daemon: who they are, how many there may be, and what an earlier daemon has left.

pub(crate) use super::command::Command;
pub(crate) use super::handle::Handle;

use super::audit::{Audit, Details};
use super::entry::{Entry, Order, Termination, Written};
use super::launch::{Ended, LaunchError, Progress};
use super::place::{self, PlaceError, Site};
use super::pool::{self, Pool};
use super::records::{Facts, Record, Records, RecordsError};
use super::session::Makers;
use super::spare::{Sort, Spare};
use super::{SandboxId, failpoint, runner};
use crate::api::types::{
    Caller, CreateRequest, EventRecord, PoolInfo, RenewRequest, SandboxInfo, SandboxState,
};
use crate::causes::in_full;
use crate::config::Config;
use crate::spec::protection::Protection;
use crate::spec::{Purpose, Spec, SpecError};
use crate::sys::cgroup::PauseError;
use crate::sys::clock;
use firn_protocol::Exceeded;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many steps of a launch may be ahead of who listens.
const PROGRESS: usize = 16;

/// The longest name.
const LONGEST_NAME: usize = 63;

/// Who owns a sandbox's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Life {
    /// Nobody: it stays until it is destroyed.
    Kept,
    /// Whoever made it: it ends with [`Handle::destroy`], or when the daemon that made it is gone.
    Ephemeral,
    /// The detached command it was made for.
    Command,
    /// The session that it was made for.
    Session,
    /// The pool: it waits to be asked for, and ends with the daemon.
    Spare,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperationError {
    /// No such sandbox.
    #[error("session '{0}' not found")]
    NotFound(String),
    /// Several fit.
    #[error("'{reference}' is ambiguous: it could be {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// What fits.
        candidates: Vec<String>,
    },
    /// Not a name.
    #[error("{0:?} is no name: 1 to 63 letters, digits, '-', '_' and '.', not like an id")]
    Name(String),
    /// Not a session's name.
    #[error("{0:?} is no name of a session: 1 to 64 letters, digits, '-', '_' and '.'")]
    SessionName(String),
    /// No such session.
    #[error("there is no session {0:?}")]
    NoSession(String),
    /// There is one already.
    #[error("there is a session {0:?} already")]
    SessionTaken(String),
    /// It is of another kind.
    #[error(
        "Session '{session}' is bound to {what} '{to}', not '{wanted}'.\nUse a different session ID, or omit \
         session for ephemeral execution."
    )]
    Bound {
        /// Which session.
        session: String,
        /// Of which kind it is.
        what: &'static str,
        /// What it is.
        to: String,
        /// What was wanted.
        wanted: String,
    },
    /// The sandbox that it is to be in has other programs.
    #[error(
        "sandbox {sandbox} has the environment '{has}', not '{wanted}': leave the environment out, or name a language: \
         python, shell or node"
    )]
    OtherEnvironment {
        /// Which sandbox.
        sandbox: SandboxId,
        /// What it has.
        has: String,
        /// What was wanted.
        wanted: String,
    },
    /// Its interpreter did not start.
    #[error("Failed to start session agent for '{environment}': {message}")]
    NotInterpreted {
        /// The environment.
        environment: String,
        /// Why not.
        message: String,
    },
    /// Somebody has it.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// Something else was asked for under it.
    #[error("the idempotency key {0:?} was used for another create")]
    KeyTaken(String),
    /// Not now.
    #[error("sandbox {id} is {state}: it cannot {operation}")]
    State {
        /// Which.
        id: SandboxId,
        /// What it does.
        state: &'static str,
        /// What was asked.
        operation: &'static str,
    },
    /// No such command.
    #[error("sandbox {id} has no detached command{}", command.map(|n| format!(" {n}")).unwrap_or_default())]
    NoCommand {
        /// Which sandbox.
        id: SandboxId,
        /// Which command.
        command: Option<u64>,
    },
    /// Too many.
    #[error("there are {limit} sandboxes already, as many as there may be")]
    TooMany {
        /// How many there may be.
        limit: usize,
    },
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
    /// What was asked for makes no sense.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// It did not come up.
    #[error("cannot start the sandbox")]
    Launch(#[from] LaunchError),
    /// It ended before it took its first command: it never came up.
    #[error("cannot start the sandbox")]
    NotUp(#[source] Arc<Ended>),
    /// It failed.
    #[error("the sandbox failed")]
    Sandbox(#[source] Arc<Ended>),
    /// It was ended while it was used.
    #[error("sandbox {0} was ended")]
    Gone(SandboxId),
    /// It did not end a command in time.
    #[error("sandbox {0} does not end its command")]
    Unresponsive(SandboxId),
    /// It cannot be done to this kind of sandbox, or on this host.
    #[error("{0}")]
    Unsupported(&'static str),
    /// It could not be written down, so it was not done.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The folder of all sandboxes cannot be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A log cannot be read or written.
    #[error("cannot keep the log of a command")]
    Log(#[source] io::Error),
    /// It cannot stand still, or go on.
    #[error(transparent)]
    Pause(PauseError),
    /// A limit cannot be changed.
    #[error("cannot change the limits of the sandbox")]
    Limit(#[source] io::Error),
    /// No random number to be had.
    #[error("cannot choose an id for the sandbox")]
    Id(#[source] getrandom::Error),
}

/// How a command's stream ended.
#[derive(Debug)]
pub(crate) struct Conclusion {
    /// What the host has counted, beside what the agent says.
    pub(crate) exceeded: Vec<Exceeded>,
    /// Whether the host itself had to end it after its timeout.
    pub(crate) timed_out: bool,
    /// What was asked for and what was given.
    pub(crate) protection: Option<Protection>,
}

/// All sandboxes of a daemon. A handle: clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Manager(Arc<Shared>);

/// What all sandboxes share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    pub(super) records: Arc<Records>,
    pub(super) audit: Audit,
    /// The folder of all places.
    pub(super) places: PathBuf,
    pub(super) tasks: TaskTracker,
    pub(super) makers: Makers,
    /// How many runs of sessions this daemon has begun.
    runs: AtomicU32,
    pool: Pool,
    registry: Mutex<Registry>,
    /// Cancelled when the daemon ends: runners let their sandboxes go.
    release: CancellationToken,
}

#[derive(Debug, Default)]
struct Registry {
    entries: BTreeMap<SandboxId, Arc<Entry>>,
    /// The ids of what waits in the pool.
    spares: BTreeSet<SandboxId>,
    stopping: bool,
}

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a sandbox that is gone.
    pub(super) fn forget(&self, id: SandboxId) {
        self.registry().entries.remove(&id);
    }

    /// Gives a sandbox another name.
    pub(super) fn rename(&self, id: SandboxId, name: &str) -> Result<(), OperationError> {
        let registry = self.registry();
        registry.check_free(name, Some(id))?;
        if let Some(entry) = registry.entries.get(&id) {
            name.clone_into(&mut entry.written().name);
        }
        Ok(())
    }

    /// Where a spare of the pool may make its place. It is written down.
    pub(super) fn spare_site(&self, sort: Sort) -> Result<Site, OperationError> {
        let mut registry = self.registry();
        let id = registry.free_id()?;
        let now = clock::boot_ms();
        self.records.insert(&Record {
            id,
            name: id.to_string(),
            life: Life::Spare,
            state: SandboxState::Starting,
            doomed: false,
            boot: clock::boot_id(),
            request: sort.request(),
            facts: Facts { created_unix_ms: clock::unix_ms(), created_boot_ms: now, ..Facts::default() },
            remains: None,
        })?;
        registry.spares.insert(id);
        let records = Arc::clone(&self.records);
        Ok(Site { id, dir: self.places.clone(), records, ephemeral: false })
    }

    /// A spare is gone.
    pub(super) fn forget_spare(&self, id: SandboxId) {
        if let Err(error) = self.records.remove(id) {
            tracing::warn!(spare = %id, error = in_full(&error), "cannot remove the record");
        }
        self.registry().spares.remove(&id);
    }

    /// A number that no other run of any session has.
    pub(super) fn run_number(&self) -> u64 {
        self.records.generation() << 32 | u64::from(self.runs.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether no sandbox is made any more.
    pub(super) fn is_stopping(&self) -> bool {
        self.registry().stopping
    }

    /// When the daemon lets its sandboxes go.
    pub(super) async fn released(&self) {
        self.release.cancelled().await;
    }
}

impl Registry {
    /// An id that nobody has.
    fn free_id(&self) -> Result<SandboxId, OperationError> {
        loop {
            let id = SandboxId::random().map_err(OperationError::Id)?;
            if !self.entries.contains_key(&id) && !self.spares.contains(&id) {
                return Ok(id);
            }
        }
    }

    fn check_free(&self, name: &str, except: Option<SandboxId>) -> Result<(), OperationError> {
        let taken = |entry: &&Arc<Entry>| {
            Some(entry.id) != except && !entry.status().state.is_over() && entry.written().name == name
        };
        match self.entries.values().find(taken) {
            Some(_) => Err(OperationError::NameTaken(name.to_owned())),
            None => Ok(()),
        }
    }
}

/// Whether `name` can be a sandbox's name: never a path, never taken for an id.
pub(super) fn check_name(name: &str) -> Result<(), OperationError> {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let starts_well = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    let like_an_id = name.parse::<SandboxId>().is_ok();
    if starts_well && name.len() <= LONGEST_NAME && name.bytes().all(named) && !like_an_id {
        Ok(())
    } else {
        Err(OperationError::Name(name.to_owned()))
    }
}

/// What came of a create.
enum Registered {
    New(Arc<Entry>, mpsc::Receiver<Order>),
    /// The same create has made it before.
    Before(Arc<Entry>),
}

/// Ends a sandbox whose creator went away before it had what it wanted.
#[derive(Debug)]
pub(super) struct Abandoned(Option<Arc<Entry>>);

impl Abandoned {
    /// For a sandbox that is of no use before more was done.
    pub(super) fn new(handle: &Handle) -> Abandoned {
        Abandoned(Some(Arc::clone(&handle.0)))
    }

    /// All was done.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(entry) = self.0.take() {
            entry.terminate(Termination::Destroy);
        }
    }
}

impl Manager {
    /// The manager of the configured state folder. Takes over what an earlier one has left.
    pub(crate) async fn open(config: Arc<Config>) -> Result<Manager, OperationError> {
        let places = place::prepare(&config.runtime_dir)?;
        let records = Arc::new(Records::open(&config.state_dir)?);
        let audit = Audit::new(records.dir().join("audit"), records.generation());
        let (pool, source) = Pool::new();
        let manager = Manager(Arc::new(Shared {
            config,
            records,
            audit,
            places,
            tasks: TaskTracker::new(),
            makers: Makers::default(),
            runs: AtomicU32::default(),
            pool,
            registry: Mutex::default(),
            release: CancellationToken::new(),
        }));
        manager.recover().await?;
        manager.0.tasks.spawn(pool::run(Arc::clone(&manager.0), source));
        Ok(manager)
    }

    /// Goes through what is written down: what lives is taken over, what is half-made is undone, and what
    /// is dead is remembered as such.
    async fn recover(&self) -> Result<(), OperationError> {
        let boot = clock::boot_id();
        let mut adopting = Vec::new();
        for record in self.0.records.all()? {
            match record {
                Ok(record) => adopting.extend(self.recover_one(record, &boot)),
                // It is left alone, with all it names: a newer firn may know what it says.
                Err(error) => tracing::error!(error = in_full(&error), "a record is left alone"),
            }
        }
        for adopted in adopting {
            let _ = adopted.await;
        }
        Ok(())
    }

    fn recover_one(&self, record: Record, boot: &str) -> Option<oneshot::Receiver<()>> {
        let Record { id, name, life, state, doomed, request, facts, remains, .. } = record;
        let same_boot = record.boot == boot;
        // A session's own sandbox is of no use before the session is written down.
        let half_made = life == Life::Session && facts.sessions.is_empty();
        let written = Written { name, facts };
        let (entry, orders) = Entry::new(Arc::clone(&self.0), id, life, request, written, state);
        let remains = remains.and_then(|remains| serde_json::from_str(&remains).ok());
        let outlives_daemon = matches!(life, Life::Kept | Life::Command | Life::Session) && !half_made;
        let lives = same_boot && !doomed && outlives_daemon;
        if let (true, SandboxState::Running | SandboxState::Paused, Some(remains)) = (lives, state, remains) {
            self.0.registry().entries.insert(id, Arc::clone(&entry));
            let (answer, answered) = oneshot::channel();
            self.0.tasks.spawn(runner::adopt(entry, remains, state, orders, answer));
            return Some(answered);
        }
        if let Err(error) = entry.site().unwind() {
            // Written down it stays, for whoever destroys it, and for the next daemon.
            let error = in_full(&error);
            tracing::error!(sandbox = %id, error, "cannot remove what is left of a sandbox");
            self.0.registry().entries.insert(id, Arc::clone(&entry));
            if !state.is_over() {
                let reason = format!("cannot remove what is left of it: {error}");
                entry.note("failed", None, Details::default().with("reason", reason.as_str()));
                entry.is_over(super::state::Occurrence::Failed, reason, None);
            }
            return None;
        }
        let remembered = !doomed && outlives_daemon && state != SandboxState::Starting;
        if remembered {
            self.0.registry().entries.insert(id, Arc::clone(&entry));
            if !state.is_over() {
                let reason =
                    if same_boot { "the daemon was killed while it ended" } else { "the host was restarted" };
                entry.note("failed", None, Details::default().with("reason", reason));
                entry.is_over(super::state::Occurrence::Failed, reason.to_owned(), None);
            }
        } else {
            entry.is_gone(None);
            // A spare was nobody's: there is nothing to tell of it.
            if life != Life::Spare {
                entry.note("destroyed", None, Details::default().with("reason", "its daemon was killed"));
            }
        }
        None
    }

    /// Makes a sandbox, or gives the one that this very create has made before. A kept one has been seen
    /// to answer; an ephemeral one may not run yet (its first command finds out).
    pub(crate) async fn create(
        &self,
        request: CreateRequest,
        (life, purpose): (Life, Purpose),
        by: Option<Caller>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Handle, OperationError> {
        let spec = Spec::asked(&request)?.for_purpose(purpose)?;
        for share in &spec.shares {
            share.check_apart(&self.0.config).map_err(SpecError::from)?;
        }
        if let Some(name) = &request.name {
            check_name(name)?;
        }
        let mut spare = self.0.pool.take(&spec).await;
        loop {
            let registered = self.register(&request, life, spare.as_ref().map(Spare::id));
            if !matches!(registered, Ok(Registered::New(..)))
                && let Some(spare) = spare.take()
            {
                self.0.pool.give_back(spare).await;
            }
            let (entry, orders) = match registered? {
                Registered::New(entry, orders) => (entry, orders),
                Registered::Before(entry) => {
                    let mut status = entry.watch();
                    let known = status
                        .wait_for(|status| status.gone || status.state != SandboxState::Starting)
                        .await
                        .is_ok_and(|status| !status.gone);
                    if known {
                        return Ok(Handle(entry));
                    }
                    // It did not come up, so nothing was made before.
                    continue;
                }
            };
            failpoint::reached("registered");
            let mut abandoned = Abandoned((life == Life::Ephemeral).then(|| Arc::clone(&entry)));
            let details = Details::default()
                .with("name", entry.written().name.clone())
                .with("isolation", spec.grade.name())
                .with("pooled", spare.is_some());
            entry.note("created", by, details);
            let (tell, mut told) = mpsc::channel(PROGRESS);
            let (answer, mut answered) = oneshot::channel();
            self.0.tasks.spawn(runner::run(Arc::clone(&entry), spec, spare, orders, tell, answer));
            loop {
                tokio::select! {
                    Some(phase) = told.recv() => progress(phase),
                    answer = &mut answered => {
                        answer.map_err(|_ended| OperationError::Gone(entry.id))??;
                        abandoned.0 = None;
                        return Ok(Handle(entry));
                    }
                }
            }
        }
    }

    /// Writes a sandbox down, which has the id of a spare if there is one for it.
    fn register(
        &self,
        request: &CreateRequest,
        life: Life,
        spare: Option<SandboxId>,
    ) -> Result<Registered, OperationError> {
        let mut registry = self.0.registry();
        if registry.stopping {
            return Err(OperationError::Stopping);
        }
        if let Some(key) = &request.idempotency_key {
            // As in the records: no owner is one with an empty name.
            let owner = |request: &CreateRequest| request.owner.clone().unwrap_or_default();
            let same = |entry: &&Arc<Entry>| {
                entry.request.idempotency_key.as_ref() == Some(key) && owner(&entry.request) == owner(request)
            };
            // Only what is kept can be given again: all else belongs to who made it, and ends with that.
            let again =
                |entry: &Entry| entry.life == Life::Kept && life == Life::Kept && entry.request == *request;
            match registry.entries.values().find(same) {
                Some(entry) if again(entry) => {
                    return Ok(Registered::Before(Arc::clone(entry)));
                }
                Some(_) => return Err(OperationError::KeyTaken(key.clone())),
                None => {}
            }
        }
        let limit = self.0.config.settings.max_sandboxes;
        let living = registry.entries.values().filter(|entry| !entry.status().state.is_over()).count();
        if living >= limit {
            return Err(OperationError::TooMany { limit });
        }
        if let Some(name) = &request.name {
            registry.check_free(name, None)?;
        }
        let id = spare.map_or_else(|| registry.free_id(), Ok)?;
        let now = clock::boot_ms();
        let facts = Facts {
            created_unix_ms: clock::unix_ms(),
            created_boot_ms: now,
            lease_until_boot_ms: request.lease_ms.map(|lease| now.saturating_add(lease)),
            lease_ms: request.lease_ms,
            idle_timeout_ms: request.idle_timeout_ms,
            lifetime_ms: request.lifetime_ms,
            description: request.description.clone(),
            ..Facts::default()
        };
        let record = Record {
            id,
            name: request.name.clone().unwrap_or_else(|| id.to_string()),
            life,
            state: SandboxState::Starting,
            doomed: false,
            boot: clock::boot_id(),
            request: request.clone(),
            facts,
            remains: None,
        };
        let written = Written { name: record.name.clone(), facts: record.facts.clone() };
        // What is known by a key, or is there already, is written down at once.
        if life == Life::Ephemeral && spare.is_none() && request.idempotency_key.is_none() {
            self.0.records.announce(record);
        } else {
            self.0.records.insert(&record)?;
        }
        let state = SandboxState::Starting;
        let (entry, orders) = Entry::new(Arc::clone(&self.0), id, life, request.clone(), written, state);
        registry.spares.remove(&id);
        registry.entries.insert(id, Arc::clone(&entry));
        Ok(Registered::New(entry, orders))
    }

    /// The sandbox with this name or id, or whose id alone starts so.
    pub(crate) fn find(&self, reference: &str) -> Result<Handle, OperationError> {
        let registry = self.0.registry();
        let known = || registry.entries.values().filter(|entry| entry.is_known());
        if let Some(entry) = reference.parse().ok().and_then(|id: SandboxId| registry.entries.get(&id))
            && entry.is_known()
        {
            return Ok(Handle(Arc::clone(entry)));
        }
        let named: Vec<&Arc<Entry>> = known().filter(|entry| entry.written().name == reference).collect();
        // A name that was given again belongs to the one that is not over.
        let living = named.iter().find(|entry| !entry.status().state.is_over());
        if let Some(entry) = living.or(match &named[..] {
            [one] => Some(one),
            _ => None,
        }) {
            return Ok(Handle(Arc::clone(entry)));
        }
        let starts =
            |entry: &&Arc<Entry>| !reference.is_empty() && entry.id.to_string().starts_with(reference);
        let fitting: Vec<&Arc<Entry>> =
            if named.is_empty() { known().filter(starts).collect() } else { named };
        match &fitting[..] {
            [] => Err(OperationError::NotFound(reference.to_owned())),
            [one] => Ok(Handle(Arc::clone(one))),
            several => Err(OperationError::Ambiguous {
                reference: reference.to_owned(),
                candidates: several.iter().map(|entry| entry.id.to_string()).collect(),
            }),
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    /// Those that are not over.
    pub(super) fn living(&self) -> Vec<Arc<Entry>> {
        let lives = |entry: &&Arc<Entry>| !entry.status().state.is_over();
        self.0.registry().entries.values().filter(lives).cloned().collect()
    }

    /// All of them, the oldest first: of one owner, if one is named.
    pub(crate) fn list(&self, owner: Option<&str>) -> Vec<SandboxInfo> {
        let mut entries: Vec<Arc<Entry>> = self
            .0
            .registry()
            .entries
            .values()
            .filter(|entry| entry.is_known())
            .filter(|entry| owner.is_none() || entry.request.owner.as_deref() == owner)
            .cloned()
            .collect();
        entries.sort_by_key(|entry| (entry.written().facts.created_unix_ms, entry.id));
        entries.iter().map(|entry| entry.info()).collect()
    }

    /// Renews an owner's leases.
    pub(crate) fn renew(
        &self,
        owner: &str,
        request: &RenewRequest,
        by: Option<Caller>,
    ) -> Result<Vec<SandboxInfo>, OperationError> {
        let owned = |entry: &&Arc<Entry>| {
            entry.request.owner.as_deref() == Some(owner) && !entry.status().state.is_over()
        };
        let entries: Vec<Arc<Entry>> = self.0.registry().entries.values().filter(owned).cloned().collect();
        entries
            .into_iter()
            .map(|entry| {
                let handle = Handle(entry);
                handle.renew(request.lease_ms, by)?;
                Ok(handle.info())
            })
            .collect()
    }

    /// Forgets those that are over.
    pub(crate) async fn prune(&self, by: Option<Caller>) -> Vec<SandboxId> {
        let over = |entry: &&Arc<Entry>| entry.is_known() && entry.status().state.is_over();
        let entries: Vec<Arc<Entry>> = self.0.registry().entries.values().filter(over).cloned().collect();
        let mut pruned = Vec::new();
        for entry in entries {
            let handle = Handle(entry);
            if handle.destroy(by).await.is_ok() {
                pruned.push(handle.id());
            }
        }
        pruned
    }

    /// What has happened to one sandbox, or to all that are known, since event number `since`, the
    /// oldest first, and what will.
    pub(crate) fn events(
        &self,
        of: Option<SandboxId>,
        since: u64,
    ) -> (Vec<EventRecord>, broadcast::Receiver<Arc<EventRecord>>) {
        self.0.audit.since(of, since)
    }

    /// How full the pool is.
    pub(crate) fn pool(&self) -> PoolInfo {
        self.0.pool.level()
    }

    /// Takes no more creates.
    pub(crate) fn stop_creating(&self) {
        self.0.registry().stopping = true;
    }

    /// Ends the ephemeral sandboxes, and lets the others go: they live on, for the next daemon. Returns
    /// when nothing is under way any more.
    pub(crate) async fn close(&self) {
        self.stop_creating();
        let entries: Vec<Arc<Entry>> = self.0.registry().entries.values().cloned().collect();
        let ephemeral = || entries.iter().filter(|entry| entry.life == Life::Ephemeral);
        ephemeral().for_each(|entry| entry.terminate(Termination::Destroy));
        for entry in ephemeral() {
            let ended = entry.watch().wait_for(|status| status.gone || status.state.is_over()).await.is_ok();
            debug_assert!(ended, "an entry holds its own sender");
        }
        self.0.release.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::Resource;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_words_that_are_no_ids() {
        for good in ["a", "ci-job_7", "x.y", "deadbeef0", "DEADBEEF", "7"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", ".", "..", "-a", "a/b", "../a", "a b", "a\n", "deadbeef", "ä", long.as_str()] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    /// A manager of a folder, with no sandbox but those that are recorded there.
    async fn open(dir: &std::path::Path) -> Manager {
        let mut config = Config::read().unwrap();
        config.runtime_dir = dir.join("run");
        config.state_dir = dir.join("state");
        config.settings.pool.vm = Some(0);
        Manager::open(Arc::new(config)).await.unwrap()
    }

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("firn-").tempdir_in("/tmp").unwrap()
    }

    #[tokio::test]
    async fn only_a_kept_sandbox_is_given_again_for_its_key() {
        let dir = folder();
        let manager = open(dir.path()).await;
        let asked = CreateRequest {
            idempotency_key: Some("k".into()),
            owner: Some("o".into()),
            ..Default::default()
        };
        let made = |life| match manager.register(&asked, life, None).unwrap() {
            Registered::New(entry, _) | Registered::Before(entry) => entry.id,
        };
        let kept = made(Life::Kept);
        assert_eq!(made(Life::Kept), kept);
        for life in [Life::Ephemeral, Life::Command] {
            let refused = manager.register(&asked, life, None).map(|_| ());
            assert!(matches!(refused, Err(OperationError::KeyTaken(_))), "{refused:?}");
        }
        manager.0.records.remove(kept).unwrap();
        manager.0.forget(kept);
        let _of_a_run = made(Life::Ephemeral);
        let refused = manager.register(&asked, Life::Kept, None).map(|_| ());
        assert!(matches!(refused, Err(OperationError::KeyTaken(_))), "{refused:?}");

        let of_nobody = |owner: Option<&str>| CreateRequest {
            idempotency_key: Some("k".into()),
            owner: owner.map(str::to_owned),
            ..Default::default()
        };
        assert!(manager.register(&of_nobody(None), Life::Kept, None).is_ok());
        let refused = manager.register(&of_nobody(Some("")), Life::Kept, None).map(|_| ());
        assert!(matches!(refused, Err(OperationError::KeyTaken(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_removed_is_known_until_it_can() {
        let dir = folder();
        let id = SandboxId::from_number(7);
        let left = dir.path().join("run/sandboxes").join(id.to_string());
        {
            let records = Records::open(&dir.path().join("state")).unwrap();
            let record = Record {
                id,
                name: "left".into(),
                life: Life::Ephemeral,
                state: SandboxState::Starting,
                doomed: false,
                boot: clock::boot_id(),
                request: CreateRequest { idempotency_key: Some("k".into()), ..Default::default() },
                facts: Facts::default(),
                remains: None,
            };
            records.insert(&record).unwrap();
            records.add(id, &[Resource::Folder { path: left.clone() }]).unwrap();
        }
        let _ = place::prepare(&dir.path().join("run")).unwrap();
        // No folder: it cannot be removed as one.
        std::fs::write(&left, "").unwrap();
        let manager = open(dir.path()).await;
        let [known] = &manager.list(None)[..] else { panic!("{:?}", manager.list(None)) };
        assert_eq!(known.state, SandboxState::Failed);
        assert!(known.reason.as_ref().unwrap().contains("cannot remove"), "{known:?}");
        let again = CreateRequest { idempotency_key: Some("k".into()), ..Default::default() };
        let refused = manager.register(&again, Life::Kept, None).map(|_| ());
        assert!(matches!(refused, Err(OperationError::KeyTaken(_))), "{refused:?}");
        let handle = manager.find("left").unwrap();
        assert!(matches!(handle.destroy(None).await, Err(OperationError::Place(_))));
        assert!(manager.0.records.has(id));
        std::fs::remove_file(&left).unwrap();
        handle.destroy(None).await.unwrap();
        assert!(!manager.0.records.has(id) && manager.list(None).is_empty());
    }

    proptest! {
        #[test]
        fn no_name_is_a_path(name in ".{0,20}") {
            if check_name(&name).is_ok() {
                prop_assert!(!name.contains('/') && name != "." && name != "..");
            }
        }
    }
}
