//! Runs that go on after the call that began them, until a later call with the same session has collected what
//! they wrote.

use super::captured::Streams;
use super::progress::Progress;
use super::run::{Finished, Run, Shared};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How many runs are kept. Beyond that those are forgotten that are over and nobody has collected.
const MOST: usize = 64;

/// The runs, by the daemon's name of their session.
#[derive(Debug, Default)]
pub(super) struct Background(Mutex<HashMap<String, Arc<Kept>>>);

/// One of them.
#[derive(Debug)]
pub(super) struct Kept {
    streams: Shared,
    state: watch::Receiver<State>,
    interrupt: CancellationToken,
    /// Ends with us, and has the daemon know.
    _task: AbortOnDropHandle<()>,
}

/// How far it is.
#[derive(Clone, Debug)]
enum State {
    Starting,
    Running,
    Over(Box<Finished>),
}

impl Background {
    /// Has `run` go on by itself. None: the session has one already.
    pub(super) fn keep(&self, session: &str, run: Run) -> Option<Arc<Kept>> {
        let mut kept = self.kept();
        if kept.contains_key(session) {
            return None;
        }
        if kept.len() >= MOST {
            kept.retain(|_, kept| kept.ended().is_none());
        }
        let (tell, state) = watch::channel(State::Starting);
        let (streams, interrupt) = (Shared::default(), CancellationToken::new());
        let (theirs, cancelled) = (streams.clone(), interrupt.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let progress: Option<Progress> = None;
            let began = || drop(tell.send_replace(State::Running));
            let finished = run.finish(&theirs, progress, &cancelled, began).await;
            tell.send_replace(State::Over(Box::new(finished)));
        }));
        let new = Arc::new(Kept { streams, state, interrupt, _task: task });
        kept.insert(session.to_owned(), Arc::clone(&new));
        Some(new)
    }

    /// That of a session.
    pub(super) fn get(&self, session: &str) -> Option<Arc<Kept>> {
        self.kept().get(session).cloned()
    }

    /// Forgets that of a session: all of it was collected. Another that has taken its place stays.
    pub(super) fn forget(&self, session: &str, over: &Kept) {
        let mut kept = self.kept();
        if kept.get(session).is_some_and(|kept| std::ptr::eq(Arc::as_ptr(kept), over)) {
            kept.remove(session);
        }
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Arc<Kept>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Waits until it runs, or is over, and says how it ended if it did.
    pub(super) async fn started(&self) -> Option<Finished> {
        self.when(|state| !matches!(state, State::Starting)).await
    }

    /// Waits until it is over.
    pub(super) async fn over(&self) -> Option<Finished> {
        self.when(|state| matches!(state, State::Over(_))).await
    }

    /// How it ended, if it did.
    pub(super) fn ended(&self) -> Option<Finished> {
        ended(&self.state.borrow())
    }

    /// Interrupts it. Its session is kept.
    pub(super) fn interrupt(&self) {
        self.interrupt.cancel();
    }

    /// Whether somebody has interrupted it: nobody will collect what it wrote.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupt.is_cancelled()
    }

    /// What it has written since it was last asked.
    pub(super) fn take(&self) -> Streams {
        self.streams.take()
    }

    async fn when(&self, wanted: impl FnMut(&State) -> bool) -> Option<Finished> {
        let mut state = self.state.clone();
        let reached = state.wait_for(wanted).await;
        reached.ok().and_then(|state| ended(&state))
    }
}

fn ended(state: &State) -> Option<Finished> {
    match state {
        State::Over(finished) => Some(finished.as_ref().clone()),
        State::Starting | State::Running => None,
    }
}
