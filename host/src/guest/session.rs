//! Sessions, seen from the host.
//!
//! What the agent tells is checked as elsewhere: it is about the session and the run that were asked for, and can
//! be held and shown. Whether it is true nobody can say.

use super::connection::{Connection, GuestError, message, unexpected, wrong_reply};
use super::inspection::{ANSWER_PATIENCE, LONGEST_LIST, absurd};
use super::words::one_line;
use bytes::Bytes;
use firn_protocol::{
    Artifacts, Event, Frame, Input, Kind, MAX_ARTIFACTS, MAX_SESSION_NAME, MAX_SESSIONS, NotStarted,
    OutputCap, Ran, Reply, Request, RequestId, RunOutcome, STDIN_WINDOW, SessionCreate, SessionInfo,
    SessionInterrupt, SessionRun, SessionTarget, Stdin,
};
use std::collections::BTreeSet;
use std::time::Duration;

const DURING: &str = "a run";
const CAPABILITY: &str = "sessions";

/// How long the agent may take to start an interpreter. It gives up earlier itself.
const START_PATIENCE: Duration = Duration::from_secs(90);

/// How long it may take to end one with all it started. It gives up earlier itself.
const CLOSE_PATIENCE: Duration = Duration::from_secs(60);

/// The most that is sent ahead, whatever the agent grants, in bytes.
const MOST_AHEAD: usize = STDIN_WINDOW as usize;

impl Connection {
    /// Starts a session.
    pub(crate) async fn create_session(
        &mut self,
        create: SessionCreate,
    ) -> Result<Result<SessionInfo, NotStarted>, GuestError> {
        let during = "the start of a session";
        self.need(CAPABILITY)?;
        let name = create.session.clone();
        let request = Request::SessionCreate(Box::new(create));
        match self.ask(request, during, START_PATIENCE).await? {
            Reply::Session(info) => Ok(Ok(checked(*info, Some(&name), during)?)),
            Reply::NotStarted(NotStarted { reason, message }) => {
                Ok(Err(NotStarted { reason, message: one_line(&message) }))
            }
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// The sessions of the sandbox.
    pub(crate) async fn sessions(&mut self) -> Result<Vec<SessionInfo>, GuestError> {
        let during = "the list of its sessions";
        self.need(CAPABILITY)?;
        match self.ask(Request::SessionList, during, ANSWER_PATIENCE).await? {
            Reply::Sessions { sessions } => {
                let mut names = BTreeSet::new();
                if sessions.len() > MAX_SESSIONS || !sessions.iter().all(|info| names.insert(&info.session)) {
                    return Err(absurd(during, "more sessions than there may be"));
                }
                sessions.into_iter().map(|info| checked(info, None, during)).collect()
            }
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// What is known of a session.
    pub(crate) async fn inspect_session(&mut self, session: &str) -> Result<SessionInfo, GuestError> {
        let during = "the state of a session";
        self.need(CAPABILITY)?;
        let request = Request::SessionInspect(SessionTarget { session: session.into() });
        match self.ask_at_length(request, during, ANSWER_PATIENCE, LONGEST_LIST).await? {
            Reply::Session(info) => checked(*info, Some(session), during),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// Has the run end that a session is at. Which: none may be.
    pub(crate) async fn interrupt_session(
        &mut self,
        interrupt: SessionInterrupt,
    ) -> Result<Option<u64>, GuestError> {
        let during = "the interrupt of a run";
        self.need(CAPABILITY)?;
        let wanted = interrupt.run;
        match self.ask(Request::SessionInterrupt(interrupt), during, ANSWER_PATIENCE).await? {
            Reply::Interrupted { run } if wanted.is_none() || run.is_none() || run == wanted => Ok(run),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// Ends a session.
    pub(crate) async fn close_session(&mut self, session: &str) -> Result<(), GuestError> {
        let during = "the end of a session";
        self.need(CAPABILITY)?;
        let request = Request::SessionClose(SessionTarget { session: session.into() });
        match self.ask(request, during, CLOSE_PATIENCE).await? {
            Reply::SessionClosed => Ok(()),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// Runs code in a session. The connection is the run's. [`SessionRun::more_code_bytes`] of code are to be
    /// sent by [`SessionRunning::send`], and then its stdin.
    pub(crate) fn run_in_session(mut self, run: SessionRun) -> Result<SessionRunning, GuestError> {
        self.need(CAPABILITY)?;
        let takes = run.stdin == Stdin::Stream || run.more_code_bytes > 0;
        let (number, timed) = (run.run, run.timeout_ms.is_some());
        let id = self.request(&Request::SessionRun(Box::new(run)), DURING)?;
        let credit = takes.then_some(u64::from(STDIN_WINDOW));
        Ok(SessionRunning { connection: self, id, run: number, timed, started: false, credit })
    }
}

/// What a run does.
#[derive(Debug)]
pub(crate) enum RunEvent {
    /// Its turn has come.
    Started,
    /// Bytes from stdout.
    Stdout(Bytes),
    /// Bytes from stderr.
    Stderr(Bytes),
    /// From here on output is dropped.
    Cut(OutputCap),
    /// There may be more room: see [`SessionRunning::room`].
    Room,
    /// It is over. The last event.
    Ran(Box<Ran>),
    /// Its interpreter could not be started. The last event.
    NotStarted(NotStarted),
}

/// A run that was asked for and is not over. Dropping it takes it from the queue, or leaves it alone if its turn
/// has come.
#[derive(Debug)]
pub(crate) struct SessionRunning {
    connection: Connection,
    id: RequestId,
    run: u64,
    timed: bool,
    started: bool,
    /// How many bytes of code and stdin may be sent. `None`: no more.
    credit: Option<u64>,
}

impl SessionRunning {
    /// What happens next. Waits as long as the run does. May be dropped at any time without loss.
    pub(crate) async fn next(&mut self) -> Result<RunEvent, GuestError> {
        let frame = self.connection.receive(DURING).await?;
        if frame.id != self.id {
            return Err(unexpected(DURING, &frame));
        }
        match frame.kind {
            Kind::Stdout if self.started => Ok(RunEvent::Stdout(frame.body)),
            Kind::Stderr if self.started => Ok(RunEvent::Stderr(frame.body)),
            Kind::Event => self.event(&frame),
            Kind::Reply => self.reply(&frame),
            _ => Err(unexpected(DURING, &frame)),
        }
    }

    fn event(&mut self, frame: &Frame) -> Result<RunEvent, GuestError> {
        match message(DURING, frame)? {
            Event::RunStarted { run, .. } if !self.started && run == self.run => {
                self.started = true;
                Ok(RunEvent::Started)
            }
            Event::OutputCut { by } if self.started => Ok(RunEvent::Cut(by)),
            Event::StdinCredit { bytes } => {
                if let Some(credit) = &mut self.credit {
                    *credit = credit.saturating_add(bytes.into());
                }
                Ok(RunEvent::Room)
            }
            Event::StdinClosed => {
                self.credit = None;
                Ok(RunEvent::Room)
            }
            Event::RunStarted { .. }
            | Event::OutputCut { .. }
            | Event::Started { .. }
            | Event::Attached { .. }
            | Event::Skipped { .. } => Err(unexpected(DURING, frame)),
        }
    }

    fn reply(&mut self, frame: &Frame) -> Result<RunEvent, GuestError> {
        match message(DURING, frame)? {
            Reply::Ran(ran) if self.started && self.is_possible(&ran) => Ok(RunEvent::Ran(ran)),
            Reply::NotStarted(NotStarted { reason, message }) if !self.started => {
                Ok(RunEvent::NotStarted(NotStarted { reason, message: one_line(&message) }))
            }
            Reply::Error(failure) => Err(GuestError::refused(DURING, &failure)),
            other => Err(wrong_reply(DURING, &other)),
        }
    }

    fn is_possible(&self, ran: &Ran) -> bool {
        ran.run == self.run && is_possible(ran) && (self.timed || ran.outcome != RunOutcome::TimedOut)
    }

    /// How many bytes of code or stdin can be sent now. None: no more.
    pub(crate) fn room(&self) -> Option<usize> {
        let ahead = MOST_AHEAD.saturating_sub(self.connection.unsent());
        self.credit.map(|credit| ahead.min(usize::try_from(credit).unwrap_or(usize::MAX)))
    }

    /// Sends code or stdin: no more than there is room for.
    pub(crate) fn send(&mut self, bytes: Bytes) -> Result<(), GuestError> {
        let Some(credit) = &mut self.credit else { return Ok(()) };
        *credit = credit.saturating_sub(bytes.len() as u64);
        self.connection.post_frame(Frame::new(Kind::Stdin, self.id, bytes), DURING)
    }

    /// Says that stdin has ended. Not before all code was sent.
    pub(crate) fn end_stdin(&mut self) -> Result<(), GuestError> {
        if self.credit.take().is_none() {
            return Ok(());
        }
        self.connection.post_frame(Frame::new(Kind::StdinEnd, self.id, Bytes::new()), DURING)
    }

    /// Sends a signal, or the wish that it ends.
    pub(crate) fn tell(&mut self, input: &Input) -> Result<(), GuestError> {
        self.connection.post(Kind::Input, self.id, input, DURING)
    }
}

/// Whether a run can have ended like this.
fn is_possible(ran: &Ran) -> bool {
    let outcome = match ran.outcome {
        RunOutcome::Exited { code } => (0..=255).contains(&code),
        RunOutcome::Killed { signal } => (1..=64).contains(&signal),
        RunOutcome::Ok
        | RunOutcome::Exception
        | RunOutcome::Interrupted
        | RunOutcome::TimedOut
        | RunOutcome::Broken => true,
    };
    outcome && (0..=255).contains(&ran.exit_code) && ran.artifacts.as_ref().is_none_or(are_possible)
}

/// Whether these are files that can be asked for and shown.
fn are_possible(artifacts: &Artifacts) -> bool {
    let is_type = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'+' | b'-');
    artifacts.folder.as_path().is_absolute()
        && artifacts.files.len() <= MAX_ARTIFACTS
        && artifacts.files.iter().all(|file| {
            let name = file.name.as_bytes();
            let plain = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0);
            plain && name.len() <= 255 && file.media_type.len() <= 100 && file.media_type.bytes().all(is_type)
        })
}

fn checked(info: SessionInfo, wanted: Option<&str>, during: &'static str) -> Result<SessionInfo, GuestError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_name = (1..=MAX_SESSION_NAME).contains(&info.session.len()) && info.session.bytes().all(fits);
    if !is_name || wanted.is_some_and(|wanted| wanted != info.session) {
        return Err(absurd(during, "a session that was not asked for"));
    }
    if !info.last.as_deref().is_none_or(is_possible) {
        return Err(absurd(during, "a run with an impossible end"));
    }
    Ok(info)
}
