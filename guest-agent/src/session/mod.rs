//! Sessions: interpreters that live on between runs.
//!
//! They belong to the agent and to no connection, so they are there for whichever host comes next. Each has
//! a task, which alone talks to its interpreter:
//!
//! ```text
//!   connection ─▶ run ─▶ queue ─▶ life ─▶ interpreter (a command, with its supervisor)
//!                  ◀── output, result ──┘      ▲ drivers/: what runs in it
//!   folder: where runs leave files
//! ```

mod course;
mod folder;
mod interpreter;
mod life;
mod run;

use crate::agent::Agent;
use crate::connection::{Connection, ConnectionError, failure};
use crate::exec::Input;
use firn_protocol::{
    FailureCode, MAX_CODE, MAX_QUEUED_RUNS, MAX_SESSION_NAME, MAX_SESSIONS, NotStarted, NotStartedReason,
    Ran, Reply, RequestId, SessionCreate, SessionInfo, SessionInterrupt, SessionRun, Stdin,
};
use folder::{Base, Folders};
use nix::time::ClockId;
use run::{Part, Run, RunStdin, cancelled};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// How many runs of a session are remembered, so that their numbers are not used again.
const REMEMBERED: usize = 1024;

/// The sessions of an agent.
#[derive(Default)]
pub(crate) struct Sessions {
    all: RefCell<BTreeMap<String, Rc<Session>>>,
    /// Where runs leave files, as long as there are sessions.
    base: RefCell<Weak<Base>>,
    /// How many there have been.
    made: Cell<u64>,
    /// How many runs there have been, and what makes nonces of that.
    runs: Cell<u64>,
    nonces: RandomState,
}

/// A session, from the request for it to its end.
struct Session {
    create: SessionCreate,
    created_ms: u64,
    state: RefCell<State>,
    folders: RefCell<Folders>,
    /// Tells its task that there is something to do.
    work: Notify,
    /// Told when it has started, and when it is over.
    changed: Notify,
}

struct State {
    phase: Phase,
    pid: Option<u32>,
    queue: VecDeque<Rc<Run>>,
    current: Option<Rc<Run>>,
    /// Runs whose code is to come.
    arriving: usize,
    /// The numbers of the latest runs.
    seen: VecDeque<u64>,
    runs: u64,
    used_ms: u64,
    restarts: u64,
    output_bytes: u64,
    last: Option<Box<Ran>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Live,
    Closing,
    Over,
}

/// Serves [`firn_protocol::Request::SessionCreate`].
pub(crate) async fn create(agent: &Rc<Agent>, create: SessionCreate) -> Reply {
    let session = match agent.sessions.admit(create) {
        Ok(session) => session,
        Err(refused) => return refused,
    };
    // The task goes on when the host does not wait for its answer.
    let (answer, answered) = tokio::sync::oneshot::channel();
    let task = (Rc::clone(agent), Rc::clone(&session));
    tokio::task::spawn_local(async move {
        let (agent, session) = task;
        life::live(&agent, &session, answer).await;
        agent.sessions.all.borrow_mut().remove(&session.create.session);
        session.set_phase(Phase::Over);
    });
    match answered.await {
        Ok(Ok(())) => Reply::Session(Box::new(session.info())),
        Ok(Err(not_started)) => Reply::NotStarted(not_started),
        Err(_gone) => closed(&session.create.session),
    }
}

/// Serves [`firn_protocol::Request::SessionRun`].
pub(crate) async fn run(
    agent: &Rc<Agent>,
    connection: &mut Connection,
    id: RequestId,
    asked: SessionRun,
) -> Result<Reply, ConnectionError> {
    match agent.sessions.accept(asked, id) {
        Ok(part) => part.serve(connection, id).await,
        Err(refused) => Ok(refused),
    }
}

/// Serves [`firn_protocol::Request::SessionClose`].
pub(crate) async fn close(agent: &Rc<Agent>, name: &str) -> Reply {
    let session = match agent.sessions.find(name) {
        Ok(session) => session,
        Err(refused) => return refused,
    };
    loop {
        let changed = session.changed.notified();
        if session.state.borrow().phase == Phase::Over {
            return Reply::SessionClosed;
        }
        session.set_phase(Phase::Closing);
        session.wake();
        changed.await;
    }
}

impl Sessions {
    fn find(&self, name: &str) -> Result<Rc<Session>, Reply> {
        self.all.borrow().get(name).cloned().ok_or_else(|| {
            failure(FailureCode::NotFound, format!("there is no session {:?}", cut_name(name)))
        })
    }

    /// Enters a session, which is then to be started.
    fn admit(&self, create: SessionCreate) -> Result<Rc<Session>, Reply> {
        let name = &create.session;
        if !is_name(name) {
            let message = format!("{:?} is no name for a session", cut_name(name));
            return Err(failure(FailureCode::Invalid, message));
        }
        if self.all.borrow().contains_key(name) {
            return Err(failure(FailureCode::Invalid, format!("there is a session {name:?} already")));
        }
        if self.all.borrow().len() >= MAX_SESSIONS {
            let message = format!("there are {MAX_SESSIONS} sessions already");
            return Err(failure(FailureCode::TooMany, message));
        }
        let base = self.base().map_err(|errno| {
            let message = format!("cannot make a folder for what runs leave: {}", errno.desc());
            Reply::NotStarted(NotStarted { reason: NotStartedReason::Other, message })
        })?;
        self.made.set(self.made.get() + 1);
        let folders = Folders::new(base, self.made.get(), create.user.clone());
        let session = Rc::new(Session::new(create, folders));
        self.all.borrow_mut().insert(session.create.session.clone(), Rc::clone(&session));
        Ok(session)
    }

    fn base(&self) -> Result<Rc<Base>, nix::errno::Errno> {
        if let Some(base) = self.base.borrow().upgrade() {
            return Ok(base);
        }
        let made = Rc::new(Base::make()?);
        *self.base.borrow_mut() = Rc::downgrade(&made);
        Ok(made)
    }

    /// Takes a run that makes sense. It is in the queue when its code is there.
    fn accept(&self, asked: SessionRun, id: RequestId) -> Result<Part, Reply> {
        let session = self.find(&asked.session)?;
        let length = asked.code.as_bytes().len() + asked.more_code_bytes as usize;
        if length > MAX_CODE {
            let message = format!("{length} bytes of code are more than {MAX_CODE}");
            return Err(failure(FailureCode::Invalid, message));
        }
        let mut state = session.state.borrow_mut();
        if state.queue.len() + state.arriving >= MAX_QUEUED_RUNS {
            let message = format!("{MAX_QUEUED_RUNS} runs wait already");
            return Err(failure(FailureCode::TooMany, message));
        }
        if state.seen.contains(&asked.run) {
            return Err(failure(FailureCode::Invalid, format!("there was a run {} already", asked.run)));
        }
        let stdin = match asked.stdin {
            Stdin::Null => None,
            Stdin::Stream => Some(make_stdin(&mut session.folders.borrow_mut())?),
        };
        if state.seen.len() == REMEMBERED {
            state.seen.pop_front();
        }
        state.seen.push_back(asked.run);
        state.arriving += 1;
        drop(state);
        self.runs.set(self.runs.get() + 1);
        let nonce = self.nonces.hash_one(self.runs.get());
        let more = asked.more_code_bytes;
        let run = Rc::new(Run::new(asked, nonce, id, stdin));
        Ok(Part::new(session, run, more))
    }

    /// Serves [`firn_protocol::Request::SessionInterrupt`].
    pub(crate) fn interrupt(&self, asked: &SessionInterrupt) -> Reply {
        let session = match self.find(&asked.session) {
            Ok(session) => session,
            Err(refused) => return refused,
        };
        let (current, waiting) = {
            let state = session.state.borrow();
            let is_meant = |run: &&Rc<Run>| asked.run.is_none_or(|number| run.tag.run == number);
            let waiting = state.queue.iter().filter(|_| asked.run.is_some()).find(is_meant).cloned();
            (state.current.as_ref().filter(is_meant).cloned(), waiting)
        };
        let run = match (current, waiting) {
            (Some(run), _) => {
                run.interrupt(asked.grace_ms.map(Duration::from_millis));
                session.wake();
                Some(run.tag.run)
            }
            (None, Some(run)) => {
                session.withdraw(&run);
                run.end(cancelled());
                Some(run.tag.run)
            }
            (None, None) => None,
        };
        Reply::Interrupted { run }
    }

    /// Serves [`firn_protocol::Request::SessionList`].
    pub(crate) fn list(&self) -> Reply {
        // The last runs are told one by one: what they left may be a long list.
        let without_last = |session: &Rc<Session>| SessionInfo { last: None, ..session.info() };
        Reply::Sessions { sessions: self.all.borrow().values().map(without_last).collect() }
    }

    /// Serves [`firn_protocol::Request::SessionInspect`].
    pub(crate) fn inspect(&self, name: &str) -> Reply {
        match self.find(name) {
            Ok(session) => Reply::Session(Box::new(session.info())),
            Err(refused) => refused,
        }
    }
}

impl Session {
    fn new(create: SessionCreate, folders: Folders) -> Session {
        let now = uptime_ms();
        Session {
            create,
            created_ms: now,
            state: RefCell::new(State {
                phase: Phase::Starting,
                pid: None,
                queue: VecDeque::new(),
                current: None,
                arriving: 0,
                seen: VecDeque::new(),
                runs: 0,
                used_ms: now,
                restarts: 0,
                output_bytes: 0,
                last: None,
            }),
            folders: RefCell::new(folders),
            work: Notify::new(),
            changed: Notify::new(),
        }
    }

    fn wake(&self) {
        self.work.notify_one();
    }

    fn is_closing(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Closing | Phase::Over)
    }

    fn set_phase(&self, phase: Phase) {
        self.state.borrow_mut().phase = phase;
        if phase != Phase::Closing {
            self.changed.notify_waiters();
        }
    }

    /// Puts a run whose code is there into the queue.
    fn enqueue(&self, run: &Rc<Run>) -> Result<(), Reply> {
        if self.is_closing() {
            return Err(closed(&self.create.session));
        }
        let mut state = self.state.borrow_mut();
        state.arriving = state.arriving.saturating_sub(1);
        state.queue.push_back(Rc::clone(run));
        drop(state);
        self.wake();
        Ok(())
    }

    /// A run has gone whose code has not come.
    fn forget_arriving(&self) {
        let mut state = self.state.borrow_mut();
        state.arriving = state.arriving.saturating_sub(1);
    }

    /// Takes a run from the queue. Whether it was there.
    fn withdraw(&self, run: &Rc<Run>) -> bool {
        let mut state = self.state.borrow_mut();
        let before = state.queue.len();
        state.queue.retain(|waiting| !Rc::ptr_eq(waiting, run));
        state.queue.len() < before
    }

    fn info(&self) -> SessionInfo {
        let state = self.state.borrow();
        SessionInfo {
            session: self.create.session.clone(),
            driver: self.create.driver,
            pid: state.pid,
            rss_bytes: state.pid.map_or(0, interpreter::resident_bytes),
            created_ms: self.created_ms,
            used_ms: state.used_ms,
            runs: state.runs,
            // No more than may wait.
            queued: state.queue.len() as u32,
            running: state.current.as_ref().map(|run| run.tag.run),
            restarts: state.restarts,
            output_bytes: state.output_bytes,
            last: state.last.clone(),
        }
    }
}

fn make_stdin(folders: &mut Folders) -> Result<RunStdin, Reply> {
    let refused =
        |why: &str| failure(FailureCode::Failed, format!("cannot make a pipe for the run's stdin: {why}"));
    let (pipe, fifo) = folders.make_stdin().map_err(|errno| refused(errno.desc()))?;
    let unopened = pipe.try_clone().map_err(|error| refused(&error.to_string()))?;
    let input = Input::into_pipe(Some(pipe))
        .map_err(|error| refused(nix::errno::Errno::from_raw(error.errno).desc()))?;
    Ok(RunStdin::new(fifo, input, unopened))
}

/// The reply to whoever wants something of a session that ends.
fn closed(name: &str) -> Reply {
    failure(FailureCode::NotFound, format!("the session {name:?} was closed"))
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_SESSION_NAME).contains(&name.len()) && name.bytes().all(fits)
}

/// A name that may be none, for a message.
fn cut_name(name: &str) -> &str {
    &name[..crate::kept::cut(name.as_bytes(), MAX_SESSION_NAME)]
}

/// Milliseconds since the kernel's start.
fn uptime_ms() -> u64 {
    let uptime = ClockId::CLOCK_BOOTTIME.now().map(Duration::from).unwrap_or_default();
    u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for name in ["a", "A-1._x", &"n".repeat(MAX_SESSION_NAME)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a b", "a/b", "ä", "a\0", &"n".repeat(MAX_SESSION_NAME + 1)] {
            assert!(!is_name(name), "{name}");
        }
        assert_eq!(cut_name(&"ä".repeat(100)).len(), MAX_SESSION_NAME);
    }
}
