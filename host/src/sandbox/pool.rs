//! Spares that wait for a create, so that it need not wait for a boot.
//!
//! ```text
//!   create ──take──▶ ┌──────┐ ◀── fitting spare, or none
//!                    │ pool │
//!          one at a time └──┬──┘ prepares what is missing, as long as there is memory to spare
//! ```
//!
//! One task has all of them. It fills the pool in the background, notices a spare that dies, and ends all
//! with the daemon: they are nobody's, so there is nothing to take over.

use super::SandboxId;
use super::launch::LaunchError;
use super::manager::{OperationError, Shared};
use super::spare::{Sort, Spare};
use crate::api::types::{PoolInfo, PoolLevel};
use crate::causes::in_full;
use crate::config::PoolSize;
use crate::env::Interpreter;
use crate::spec::{Grade, Spec};
use crate::sys::facts::host_facts;
use crate::sys::kvm::KvmState;
use crate::sys::memory;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long to wait after a spare could not be had, or there was no memory for it.
const PAUSE: Duration = Duration::from_secs(30);

/// A guest that waits may have this part of the memory that is available, and no more.
const PART_OF_MEMORY: u64 = 4;

/// How long after a session another of its language is expected.
const EXPECTED: Duration = Duration::from_secs(900);

/// How many requests may wait for the pool. It answers at once.
const WAITING: usize = 64;

/// What the pool is asked.
#[derive(Debug)]
enum Ask {
    Take(Box<Spec>, oneshot::Sender<Option<Spare>>),
    /// It was not needed after all.
    Return(Box<Spare>),
}

/// The way to the pool's task.
#[derive(Debug)]
pub(super) struct Pool {
    asks: mpsc::Sender<Ask>,
    level: watch::Receiver<PoolInfo>,
}

/// What the pool's task needs to begin.
#[derive(Debug)]
pub(super) struct Source {
    asks: mpsc::Receiver<Ask>,
    level: watch::Sender<PoolInfo>,
}

impl Pool {
    /// One that [`run`] still has to be started for.
    pub(super) fn new() -> (Pool, Source) {
        let (asks, asked) = mpsc::channel(WAITING);
        let (tell, level) = watch::channel(PoolInfo::default());
        (Pool { asks, level }, Source { asks: asked, level: tell })
    }

    /// A spare that fits, if there is one.
    pub(super) async fn take(&self, spec: &Spec) -> Option<Spare> {
        if Sort::of(spec) == Sort::Jail && self.level.borrow().jail.ready == 0 {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask::Take(Box::new(spec.clone()), answer)).await.ok()?;
        answered.await.ok()?
    }

    /// Gives one back that was not used.
    pub(super) async fn give_back(&self, spare: Spare) {
        // A pool that is no more has it dropped, which ends it.
        let _ = self.asks.send(Ask::Return(Box::new(spare))).await;
    }

    /// How full it is.
    pub(super) fn level(&self) -> PoolInfo {
        self.level.borrow().clone()
    }
}

/// The one that is being brought up, by its id.
type Preparing = (SandboxId, JoinHandle<Result<Spare, LaunchError>>);

/// The pool itself.
struct Filled {
    shared: Arc<Shared>,
    size: PoolSize,
    spares: Vec<Spare>,
    preparing: Option<Preparing>,
    /// Before this nothing is prepared.
    not_before: Instant,
    /// The languages that sessions were made for, and until when another one is expected.
    languages: Vec<(Interpreter, Instant)>,
}

/// Keeps the pool filled until `shared`'s daemon ends.
pub(super) async fn run(shared: Arc<Shared>, source: Source) {
    let Source { mut asks, level } = source;
    let released = shared.released();
    tokio::pin!(released);
    let mut pool = Filled {
        size: shared.config.settings.pool,
        shared: Arc::clone(&shared),
        spares: Vec::new(),
        preparing: None,
        not_before: Instant::now(),
        languages: Vec::new(),
    };
    loop {
        pool.unlearn().await;
        pool.fill();
        level.send_replace(pool.level());
        let due = pool.not_before;
        let wants = pool.preparing.is_none() && pool.missing().is_some();
        let unlearned = pool.languages.iter().map(|(_, until)| *until).min();
        tokio::select! {
            biased;
            () = &mut released => break,
            ask = asks.recv() => match ask {
                Some(Ask::Take(spec, answer)) => {
                    // Whoever does not wait for it any more gives it back with the channel.
                    if let Err(Some(spare)) = answer.send(pool.take(&spec)) {
                        pool.spares.push(spare);
                    }
                }
                Some(Ask::Return(spare)) => pool.spares.push(*spare),
                None => break,
            },
            prepared = prepared(&mut pool.preparing) => pool.add(prepared),
            index = ended(&mut pool.spares) => {
                let spare = pool.spares.swap_remove(index);
                pool.lose(spare).await;
            }
            () = tokio::time::sleep_until(due), if wants => {}
            () = tokio::time::sleep_until(unlearned.unwrap_or(due)), if unlearned.is_some() => {}
        }
    }
    if let Some((id, preparing)) = pool.preparing.take() {
        // What it has made so far is undone by dropping it.
        preparing.abort();
        match preparing.await {
            Ok(Ok(spare)) => pool.spares.push(spare),
            Ok(Err(_)) | Err(_) => shared.forget_spare(id),
        }
    }
    asks.close();
    while let Some(ask) = asks.recv().await {
        if let Ask::Return(spare) = ask {
            pool.spares.push(*spare);
        }
    }
    let ending: FuturesUnordered<_> = pool.spares.drain(..).map(|spare| end(&shared, spare)).collect();
    ending.collect::<()>().await;
}

async fn end(shared: &Shared, spare: Spare) {
    let id = spare.id();
    spare.destroy().await;
    shared.forget_spare(id);
}

/// The spare that was being prepared.
async fn prepared(preparing: &mut Option<Preparing>) -> Result<Spare, (SandboxId, String)> {
    let Some((id, task)) = preparing else { return std::future::pending().await };
    let id = *id;
    let done = task.await;
    *preparing = None;
    match done {
        Ok(prepared) => prepared.map_err(|error| (id, in_full(&error))),
        Err(error) => Err((id, in_full(&error))),
    }
}

/// The first one that is no more.
async fn ended(spares: &mut [Spare]) -> usize {
    let ending = spares.iter_mut().enumerate().map(|(index, spare)| {
        Box::pin(async move {
            let ended = spare.ended().await;
            tracing::warn!(spare = %spare.id(), error = in_full(&ended), "a spare ended");
            index
        })
    });
    let mut ending: FuturesUnordered<_> = ending.collect();
    match ending.next().await {
        Some(index) => index,
        None => std::future::pending().await,
    }
}

impl Filled {
    fn take(&mut self, wanted: &Spec) -> Option<Spare> {
        if wanted.grade == Grade::Vm && self.size.vm.is_none() {
            self.size.vm = Some(self.usual_vms());
        }
        if let Sort::Code(interpreter) = Sort::of(wanted) {
            self.languages.retain(|(known, _)| *known != interpreter);
            self.languages.push((interpreter, Instant::now() + EXPECTED));
        }
        // One with its interpreter rather than one without.
        let fitting =
            |sort: Sort| self.spares.iter().position(|spare| spare.sort() == sort && spare.fits(wanted));
        let index = fitting(Sort::of(wanted)).or_else(|| fitting(Sort::Jail))?;
        Some(self.spares.remove(index))
    }

    /// Ends the spares of languages that nobody has asked for.
    async fn unlearn(&mut self) {
        let now = Instant::now();
        self.languages.retain(|(_, until)| *until > now);
        let known = |spare: &Spare| match spare.sort() {
            Sort::Code(interpreter) => self.languages.iter().any(|(known, _)| *known == interpreter),
            Sort::Jail | Sort::Vm => true,
        };
        let (kept, unknown) = std::mem::take(&mut self.spares).into_iter().partition(known);
        self.spares = kept;
        let unknown: Vec<Spare> = unknown;
        for spare in unknown {
            end(&self.shared, spare).await;
        }
    }

    /// How many guests there are to be when nobody says.
    fn usual_vms(&self) -> usize {
        let kvm = host_facts(&self.shared.config.runtime_dir).kvm;
        usize::from(matches!(kvm, KvmState::Usable { .. }))
    }

    fn wanted(&self, sort: Sort) -> usize {
        match sort {
            Sort::Vm => self.size.vm.unwrap_or(0),
            Sort::Jail => self.size.jail,
            Sort::Code(_) => self.size.code,
        }
    }

    fn ready(&self, sort: Sort) -> usize {
        self.spares.iter().filter(|spare| spare.sort() == sort).count()
    }

    /// All that there may be. Those that are there at once come first.
    fn sorts(&self) -> impl Iterator<Item = Sort> {
        let code = self.languages.iter().map(|(interpreter, _)| Sort::Code(*interpreter));
        std::iter::once(Sort::Jail).chain(code).chain([Sort::Vm])
    }

    fn missing(&self) -> Option<Sort> {
        self.sorts().find(|sort| self.ready(*sort) < self.wanted(*sort))
    }

    /// Begins to prepare what is missing.
    fn fill(&mut self) {
        let Some(sort) = self.missing().filter(|_| self.preparing.is_none()) else { return };
        if Instant::now() < self.not_before || self.shared.is_stopping() {
            return;
        }
        if !has_memory(sort) {
            tracing::info!(?sort, "no memory to spare for the pool");
            self.not_before = Instant::now() + PAUSE;
            return;
        }
        let spec = sort.spec().map_err(OperationError::from);
        match spec.and_then(|spec| Ok((spec, self.shared.spare_site(sort)?))) {
            Ok((spec, site)) => {
                let (id, shared) = (site.id, Arc::clone(&self.shared));
                let preparing = async move { Spare::prepare(&shared.config, spec, site).await };
                self.preparing = Some((id, tokio::spawn(preparing)));
            }
            Err(error) => self.give_up(&in_full(&error)),
        }
    }

    fn add(&mut self, prepared: Result<Spare, (SandboxId, String)>) {
        match prepared {
            Ok(spare) => self.spares.push(spare),
            Err((id, error)) => {
                self.shared.forget_spare(id);
                self.give_up(&error);
            }
        }
    }

    fn give_up(&mut self, error: &str) {
        tracing::warn!(error, "cannot fill the pool");
        self.not_before = Instant::now() + PAUSE;
    }

    async fn lose(&mut self, spare: Spare) {
        end(&self.shared, spare).await;
        // One that dies at once is not to be made again and again.
        self.not_before = Instant::now() + PAUSE;
    }

    fn level(&self) -> PoolInfo {
        let level = |kind: fn(&Sort) -> bool| {
            let sorts: Vec<Sort> = self.sorts().filter(kind).collect();
            let count = |of: &dyn Fn(Sort) -> usize| sorts.iter().map(|sort| of(*sort) as u64).sum();
            PoolLevel { wanted: count(&|sort| self.wanted(sort)), ready: count(&|sort| self.ready(sort)) }
        };
        PoolInfo {
            vm: level(|sort| *sort == Sort::Vm),
            jail: level(|sort| *sort == Sort::Jail),
            code: level(|sort| matches!(sort, Sort::Code(_))),
        }
    }
}

/// Whether there is memory to spare for one.
fn has_memory(sort: Sort) -> bool {
    let needed = match sort {
        Sort::Vm => crate::spec::USUAL_MEMORY.0,
        // The agent and bubblewrap.
        Sort::Jail => 16 << 20,
        // Node takes 45 MB, the others 10.
        Sort::Code(_) => 64 << 20,
    };
    // Where nobody says how much there is, nobody says that it is short.
    memory::available().is_none_or(|available| available / PART_OF_MEMORY >= needed)
}
