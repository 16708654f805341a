//! Sessions of a sandbox, seen from the host: interpreters that live on between runs.
//!
//! All that is said of them is the guest's word, and is checked for what it can be held and shown as.

use super::connection::{Connection, GuestError, wrong_reply};
use super::exec::{Role, Running};
use super::inspection::{ANSWER_PATIENCE, LONGEST_LIST, absurd};
use super::words::one_line;
use bytes::Bytes;
use firn_protocol::{
    Artifacts, MAX_ARTIFACTS, NotStarted, Ran, Reply, Request, RunOutcome, SessionCreate, SessionInfo,
    SessionInterrupt, SessionRun, SessionTarget,
};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

/// The capability of agents that have them.
const SESSIONS: &str = "sessions";

/// How long an interpreter may take to be ready for code, in an emulated machine too.
const CREATE_PATIENCE: Duration = Duration::from_secs(120);

/// How long it may take to end, with all it has started.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// How much code is in the request itself, in bytes. The rest follows.
const INLINE_CODE: usize = 64 * 1024;

impl Connection {
    /// Starts a session.
    pub(crate) async fn create_session(
        &mut self,
        create: SessionCreate,
    ) -> Result<Result<SessionInfo, NotStarted>, GuestError> {
        let during = "the start of a session";
        self.need(SESSIONS)?;
        match self.ask(Request::SessionCreate(Box::new(create)), during, CREATE_PATIENCE).await? {
            Reply::Session(info) => Ok(Ok(*info)),
            Reply::NotStarted(NotStarted { reason, message }) => {
                Ok(Err(NotStarted { reason, message: one_line(&message) }))
            }
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// What is known of one.
    pub(crate) async fn session(&mut self, name: &str) -> Result<SessionInfo, GuestError> {
        let during = "what it knows of a session";
        self.need(SESSIONS)?;
        let asked = Request::SessionInspect(SessionTarget { session: name.to_owned() });
        match self.ask_at_length(asked, during, ANSWER_PATIENCE, LONGEST_LIST).await? {
            Reply::Session(info) if info.session == name => {
                Ok(SessionInfo { last: info.last.map(|last| checked(*last, during)).transpose()?, ..*info })
            }
            Reply::Session(_) => Err(absurd(during, "another session")),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// Ends what one runs: this run, if it is named. Gives what was ended.
    pub(crate) async fn interrupt(&mut self, asked: SessionInterrupt) -> Result<Option<u64>, GuestError> {
        let during = "an interrupt";
        self.need(SESSIONS)?;
        let wanted = asked.run;
        match self.ask(Request::SessionInterrupt(asked), during, ANSWER_PATIENCE).await? {
            Reply::Interrupted { run } if wanted.is_none() || run.is_none() || run == wanted => Ok(run),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// Ends one, with all it has started.
    pub(crate) async fn close_session(&mut self, name: &str) -> Result<(), GuestError> {
        let during = "the end of a session";
        self.need(SESSIONS)?;
        let asked = Request::SessionClose(SessionTarget { session: name.to_owned() });
        match self.ask(asked, during, CLOSE_PATIENCE).await? {
            Reply::SessionClosed => Ok(()),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// Runs code in a session. The connection is its.
    pub(crate) fn run_code(mut self, mut run: SessionRun, mut code: Bytes) -> Result<Running, GuestError> {
        self.need(SESSIONS)?;
        let first = code.split_to(code.len().min(INLINE_CODE));
        run.code = OsString::from_vec(first.to_vec()).into();
        run.more_code_bytes = u32::try_from(code.len()).unwrap_or(u32::MAX);
        let (stdin, timeout_ms, number) = (run.stdin, run.timeout_ms, run.run);
        let id = self.request(&Request::SessionRun(Box::new(run)), "a run")?;
        let mut running = Running::new(self, id, Role::Run(number), stdin, timeout_ms);
        if !code.is_empty() {
            running.send_code(code)?;
        }
        Ok(running)
    }
}

/// A run's end, if it is one that can be.
pub(super) fn checked(ran: Ran, during: &'static str) -> Result<Box<Ran>, GuestError> {
    let possible = match ran.outcome {
        RunOutcome::Exited { code } => (0..=255).contains(&code),
        RunOutcome::Killed { signal } => (1..=64).contains(&signal),
        RunOutcome::Ok
        | RunOutcome::Exception
        | RunOutcome::Interrupted
        | RunOutcome::TimedOut
        | RunOutcome::Broken => true,
    };
    if !possible || !(0..=255).contains(&ran.exit_code) {
        return Err(absurd(during, "a run with an impossible end"));
    }
    if ran.artifacts.as_ref().is_some_and(|artifacts| !can_be_fetched(artifacts)) {
        return Err(absurd(during, "files that cannot be"));
    }
    Ok(Box::new(ran))
}

/// Whether these are files that can be asked for and shown.
fn can_be_fetched(artifacts: &Artifacts) -> bool {
    let is_type = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'+' | b'-');
    artifacts.folder.as_path().is_absolute()
        && artifacts.files.len() <= MAX_ARTIFACTS
        && artifacts.files.iter().all(|file| {
            let name = file.name.as_bytes();
            let plain = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0);
            plain && name.len() <= 255 && file.media_type.len() <= 100 && file.media_type.bytes().all(is_type)
        })
}
