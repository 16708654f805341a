//! Sessions: interpreters in sandboxes that live on between runs of code.
//!
//! The agent has the interpreter, and what is known of a session here is written down with its sandbox: it
//! outlives a client and a daemon as that does. One that nobody named a sandbox for has one of its own, which
//! ends with it. A session is bound to its sandbox and to its environment.

use super::audit::Details;
use super::command::Command;
use super::entry::Entry;
use super::handle::Handle;
use super::launch::Progress;
use super::manager::{Abandoned, Life, Manager, OperationError};
use super::state::Operation;
use crate::api::types::{
    Caller, CreateRequest, EvaluateRequest, InterpreterInfo, Isolation, SessionInfo, SessionRequest,
};
use crate::env::{HOST, Interpreter, Language, Takes, identity};
use crate::guest::GuestError;
use crate::spec::{Purpose, SpecError};
use crate::sys::clock;
use crate::view::WORKSPACE;
use firn_protocol::{Driver, FailureCode, NotStarted, ResourceLimit, SessionCreate, SessionInterrupt, Text};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a session may be idle, and how old it may become, if nobody says. nix-sandbox-mcp's.
const USUAL_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const USUAL_LIFETIME: Duration = Duration::from_secs(3600);

/// What the audit log calls the session of a sandbox that runs code once.
const ONCE: &str = "once";

/// What the agent calls the session that a sandbox was made for: it may have been there before it was
/// anybody's.
const FIRST: &str = "first";

/// What is written down of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// What it is called.
    pub(crate) name: String,
    /// What the agent calls it, if that is something else.
    #[serde(default)]
    inside: Option<String>,
    /// What its environment calls itself.
    pub(crate) environment: String,
    /// What tells that from all others. Absent, as in records of an older firn: its name does.
    #[serde(default)]
    identity: Option<Text>,
    /// What runs its code.
    pub(crate) interpreter: Interpreter,
    /// When it was made, for people.
    pub(crate) created_unix_ms: u64,
    /// When code was last run in it, for people.
    #[serde(default)]
    pub(crate) used_unix_ms: Option<u64>,
}

/// A session that was asked for by name.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its sandbox.
    pub(crate) handle: Handle,
    /// Itself.
    pub(crate) session: Session,
    /// Whether it was made for this.
    pub(crate) created: bool,
}

/// The names that somebody is making a session of.
#[derive(Debug, Default)]
pub(super) struct Makers(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

/// The right to make a session of a name: others who want it wait, and find it.
#[derive(Debug)]
struct Turn<'a> {
    makers: &'a Makers,
    name: String,
    guard: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Makers {
    async fn turn(&self, name: &str) -> Turn<'_> {
        let lock = {
            let mut makers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(makers.entry(name.to_owned()).or_default())
        };
        let guard = Some(lock.lock_owned().await);
        Turn { makers: self, name: name.to_owned(), guard }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut makers = self.makers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if makers.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            makers.remove(&self.name);
        }
    }
}

/// Whether `name` can be a session's name: as the agent takes it.
fn check_name(name: &str) -> Result<(), OperationError> {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=firn_protocol::MAX_SESSION_NAME).contains(&name.len()) && name.bytes().all(named) {
        Ok(())
    } else {
        Err(OperationError::SessionName(name.to_owned()))
    }
}

/// The environment that a request for a sandbox names.
fn named(request: &CreateRequest) -> &OsStr {
    request.environment.as_ref().map_or(OsStr::new(HOST), Text::as_os_str)
}

/// What code in it is in.
fn language_of(request: &CreateRequest) -> Result<Language, SpecError> {
    Language::of(named(request))?.ok_or_else(|| SpecError::NoSessions(HOST.to_owned()))
}

impl Interpreter {
    fn driver(self) -> Driver {
        match self {
            Interpreter::Python => Driver::Python,
            Interpreter::Bash => Driver::Bash,
            Interpreter::Node => Driver::Node,
        }
    }
}

impl Session {
    fn new(name: &str, inside: &str, language: Language) -> Session {
        let Language { environment, identity, interpreter } = language;
        Session {
            name: name.to_owned(),
            inside: Some(inside.to_owned()),
            environment,
            identity: Some(identity.into()),
            interpreter,
            created_unix_ms: clock::unix_ms(),
            used_unix_ms: None,
        }
    }

    /// What the agent calls it.
    fn inside(&self) -> &str {
        self.inside.as_ref().unwrap_or(&self.name)
    }

    /// Whether it is what a request wants, which names no other sandbox's environment or isolation.
    fn check(&self, handle: &Handle, wanted: Option<&CreateRequest>) -> Result<(), OperationError> {
        let Some(wanted) = wanted else { return Ok(()) };
        let own = self.identity.as_ref().map_or(OsStr::new(&self.environment), Text::as_os_str);
        if identity(named(wanted)) != own {
            let other = language_of(wanted)?;
            // Two that call themselves the same are told apart by where they are.
            let (to, wanted) = if other.environment == self.environment {
                (own.to_string_lossy().into_owned(), other.identity.to_string_lossy().into_owned())
            } else {
                (self.environment.clone(), other.environment)
            };
            let session = self.name.clone();
            return Err(OperationError::Bound { session, what: "environment", to, wanted });
        }
        let isolation = handle.isolation();
        match wanted.isolation {
            Some(other) if other != isolation => Err(OperationError::Bound {
                session: self.name.clone(),
                what: "isolation",
                to: isolation.name().to_owned(),
                wanted: other.name().to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// The session that a sandbox is made for, before anybody has asked for it.
pub(super) fn first(
    interpreter: Interpreter,
    user: Option<String>,
    limits: Vec<ResourceLimit>,
) -> SessionCreate {
    create(FIRST, interpreter, user, limits)
}

fn create(
    inside: &str,
    interpreter: Interpreter,
    user: Option<String>,
    resource_limits: Vec<ResourceLimit>,
) -> SessionCreate {
    SessionCreate {
        session: inside.to_owned(),
        driver: interpreter.driver(),
        argv: vec![Text::from(interpreter.program())],
        cwd: Some(Text::from(WORKSPACE)),
        env: Vec::new(),
        user,
        max_output_bytes: None,
        resource_limits,
    }
}

impl Manager {
    /// The session of this name. If there is none, one is made in a sandbox as `wanted`, which says that its
    /// environment has to be the same otherwise.
    pub(crate) async fn session(
        &self,
        name: &str,
        wanted: Option<&CreateRequest>,
        by: Option<Caller>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Found, OperationError> {
        check_name(name)?;
        // Most are there, and need nobody's turn.
        if let Some(found) = self.find_session(name) {
            found.session.check(&found.handle, wanted)?;
            return Ok(found);
        }
        let _turn = self.shared().makers.turn(name).await;
        if let Some(found) = self.find_session(name) {
            found.session.check(&found.handle, wanted)?;
            return Ok(found);
        }
        let wanted = wanted.ok_or_else(|| OperationError::NoSession(name.to_owned()))?;
        self.make_session(name, wanted.clone(), None, by, progress).await
    }

    /// Makes a session, and says if there is one of that name.
    pub(crate) async fn create_session(
        &self,
        request: SessionRequest,
        by: Option<Caller>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Found, OperationError> {
        let SessionRequest { name, sandbox, within, environment, max_output_bytes } = request;
        let name = match name {
            Some(name) => name,
            None => format!("s-{}", super::SandboxId::random().map_err(OperationError::Id)?),
        };
        check_name(&name)?;
        let _turn = self.shared().makers.turn(&name).await;
        if self.find_session(&name).is_some() {
            return Err(OperationError::SessionTaken(name));
        }
        match (sandbox, within) {
            (Some(sandbox), None) => self.make_session(&name, sandbox, max_output_bytes, by, progress).await,
            (None, Some(within)) => {
                let handle = self.find(&within)?;
                let session = Session::new(&name, &name, handle.language(environment.as_deref())?);
                handle.start_session(&session, max_output_bytes, by).await?;
                Ok(Found { handle, session, created: true })
            }
            _ => Err(OperationError::Unsupported(
                "a session is either in a sandbox of its own or `within` one",
            )),
        }
    }

    async fn make_session(
        &self,
        name: &str,
        mut sandbox: CreateRequest,
        most_output: Option<u64>,
        by: Option<Caller>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Found, OperationError> {
        let session = Session::new(name, FIRST, language_of(&sandbox)?);
        let usual = |time: Duration| u64::try_from(time.as_millis()).ok();
        sandbox.idle_timeout_ms = sandbox.idle_timeout_ms.or(usual(USUAL_IDLE_TIMEOUT));
        sandbox.lifetime_ms = sandbox.lifetime_ms.or(usual(USUAL_LIFETIME));
        sandbox.description = sandbox.description.or_else(|| Some(format!("session {name}")));
        let handle = self.create(sandbox, (Life::Session, Purpose::Sessions), by, progress).await?;
        // Whoever does not wait for it has no name for it.
        let abandoned = Abandoned::new(&handle);
        handle.start_session(&session, most_output, by).await?;
        abandoned.keep();
        Ok(Found { handle, session, created: true })
    }

    fn find_session(&self, name: &str) -> Option<Found> {
        self.living().into_iter().find_map(|entry| {
            let session = entry.written().facts.sessions.iter().find(|session| session.name == name).cloned();
            session.map(|session| Found { handle: Handle(entry), session, created: false })
        })
    }

    /// All sessions, the oldest first.
    pub(crate) fn sessions(&self) -> Vec<SessionInfo> {
        let mut sessions: Vec<(u64, SessionInfo)> = Vec::new();
        for entry in self.living() {
            let known = entry.written().facts.sessions.clone();
            let handle = Handle(entry);
            sessions
                .extend(known.iter().map(|session| (session.created_unix_ms, handle.session_info(session))));
        }
        sessions.sort_by(|(a, left), (b, right)| a.cmp(b).then_with(|| left.name.cmp(&right.name)));
        sessions.into_iter().map(|(_, session)| session).collect()
    }

    /// One that is there.
    pub(crate) fn known_session(&self, name: &str) -> Result<Found, OperationError> {
        self.find_session(name).ok_or_else(|| OperationError::NoSession(name.to_owned()))
    }
}

impl Found {
    /// As it is now.
    pub(crate) fn info(&self) -> SessionInfo {
        self.handle.session_info(&self.session)
    }

    /// As it is now, with what the agent says of its interpreter.
    pub(crate) async fn inspect(&self) -> Result<SessionInfo, OperationError> {
        let mut info = self.info();
        if self.handle.0.admit(Operation::Use).is_ok() {
            let (mut connection, _activity) = self.handle.connect().await?;
            let known =
                connection.session(self.session.inside()).await.map_err(|error| self.failed(error))?;
            info.interpreter = Some(InterpreterInfo {
                pid: known.pid,
                memory_bytes: known.rss_bytes,
                runs: known.runs,
                queued: known.queued,
                busy: known.running.is_some(),
                restarts: known.restarts,
                output_bytes: known.output_bytes,
            });
        }
        Ok(info)
    }

    /// Runs code in it.
    pub(crate) async fn evaluate(
        &self,
        request: EvaluateRequest,
        by: Option<Caller>,
    ) -> Result<Command, OperationError> {
        if let Some(session) =
            self.handle.0.written().facts.sessions.iter_mut().find(|known| known.name == self.session.name)
        {
            session.used_unix_ms = Some(clock::unix_ms());
        }
        let Session { name, .. } = &self.session;
        Command::evaluate(&self.handle.0, (name, self.session.inside()), request, by).await
    }

    /// Ends what it runs, and says whether it ran something.
    pub(crate) async fn interrupt(&self, grace_ms: Option<u64>) -> Result<bool, OperationError> {
        let (mut connection, _activity) = self.handle.connect().await?;
        let asked = SessionInterrupt { session: self.session.inside().to_owned(), run: None, grace_ms };
        let ended = connection.interrupt(asked).await.map_err(|error| self.failed(error))?;
        Ok(ended.is_some())
    }

    /// Ends it.
    pub(crate) async fn close(&self, by: Option<Caller>) -> Result<(), OperationError> {
        let entry = &self.handle.0;
        let details = Details::default().with("session", self.session.name.clone());
        entry.note("session-closed", by, details);
        if entry.life == Life::Session {
            return self.handle.destroy(by).await;
        }
        let (mut connection, _activity) = self.handle.connect().await?;
        match connection.close_session(self.session.inside()).await {
            // It is not there, which is what was wanted.
            Err(GuestError::Refused { failure, .. }) if failure.code == FailureCode::NotFound => {}
            closed => closed.map_err(|error| self.failed(error))?,
        }
        entry.written().facts.sessions.retain(|session| session.name != self.session.name);
        Ok(entry.save_facts()?)
    }

    fn failed(&self, error: GuestError) -> OperationError {
        match error {
            GuestError::Refused { failure, .. } if failure.code == FailureCode::NotFound => {
                OperationError::NoSession(self.session.name.clone())
            }
            error => OperationError::Sandbox(Arc::new(error.into())),
        }
    }
}

impl Handle {
    fn isolation(&self) -> Isolation {
        self.info().isolation
    }

    /// What code of a session in it is in: what its environment says, or the language that is named.
    fn language(&self, wanted: Option<&str>) -> Result<Language, OperationError> {
        let request = &self.0.request;
        let Some(wanted) = wanted else { return Ok(language_of(request)?) };
        if let Some(language) = Interpreter::of(wanted) {
            return Ok(language.into());
        }
        let own = named(request);
        if identity(OsStr::new(wanted)) == identity(own) {
            return Ok(language_of(request)?);
        }
        Err(OperationError::OtherEnvironment {
            sandbox: self.id(),
            has: own.to_string_lossy().into_owned(),
            wanted: wanted.to_owned(),
        })
    }

    /// Has the agent start a session, and writes it down.
    async fn start_session(
        &self,
        session: &Session,
        most_output: Option<u64>,
        by: Option<Caller>,
    ) -> Result<(), OperationError> {
        self.start_interpreter(session.inside(), &session.environment, session.interpreter, most_output)
            .await?;
        let entry = &self.0;
        entry.written().facts.sessions.push(session.clone());
        entry.save_facts()?;
        let details = Details::default()
            .with("session", session.name.clone())
            .with("environment", session.environment.clone());
        entry.note("session-created", by, details);
        Ok(())
    }

    async fn start_interpreter(
        &self,
        inside: &str,
        environment: &str,
        interpreter: Interpreter,
        most_output: Option<u64>,
    ) -> Result<(), OperationError> {
        let entry: &Arc<Entry> = &self.0;
        let up = entry.admit(Operation::Use)?;
        let env = match &up.wrapper {
            // An interpreter that lives on is not what it runs.
            Some(wrapper) if wrapper.takes == Takes::Code => {
                return Err(SpecError::NoSessions(wrapper.environment.clone()).into());
            }
            Some(wrapper) => wrapper.variables.clone(),
            None => Vec::new(),
        };
        let (mut connection, _activity) = self.connect().await?;
        let waiting = up.waiting.lock().unwrap_or_else(PoisonError::into_inner).take_if(|_| inside == FIRST);
        if let Some(waiting) = waiting {
            if waiting == interpreter && most_output.is_none() {
                up.dialer.keep(connection);
                return Ok(());
            }
            let closed = connection.close_session(FIRST).await;
            closed.map_err(|error| OperationError::Sandbox(Arc::new(error.into())))?;
        }
        let create = SessionCreate {
            max_output_bytes: most_output,
            env,
            ..create(inside, interpreter, up.user.clone(), up.resource_limits.clone())
        };
        let created = connection.create_session(create).await;
        match created.map_err(|error| OperationError::Sandbox(Arc::new(error.into())))? {
            Ok(_known) => {
                up.dialer.keep(connection);
                Ok(())
            }
            Err(NotStarted { message, .. }) => {
                Err(OperationError::NotInterpreted { environment: environment.to_owned(), message })
            }
        }
    }

    /// Runs code in a sandbox that is there for nothing else.
    pub(crate) async fn evaluate_once(
        &self,
        request: EvaluateRequest,
        by: Option<Caller>,
    ) -> Result<Command, OperationError> {
        let Language { environment, interpreter, .. } =
            language_of(request.sandbox.as_ref().unwrap_or(&CreateRequest::default()))?;
        self.start_interpreter(FIRST, &environment, interpreter, None).await?;
        Command::evaluate(&self.0, (ONCE, FIRST), request, by).await
    }

    fn session_info(&self, session: &Session) -> SessionInfo {
        let sandbox = self.info();
        let own_sandbox = self.0.life == Life::Session;
        SessionInfo {
            name: session.name.clone(),
            environment: session.environment.clone(),
            language: session.interpreter.language().to_owned(),
            isolation: sandbox.isolation,
            sandbox: sandbox.session_id,
            own_sandbox,
            state: sandbox.state,
            created_at: clock::rfc3339(session.created_unix_ms),
            last_used_at: session.used_unix_ms.map(clock::rfc3339),
            expires_at: sandbox.expires_at.filter(|_| own_sandbox),
            idle_timeout_ms: sandbox.idle_timeout_ms.filter(|_| own_sandbox),
            interpreter: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_agent_takes() {
        let longest = "x".repeat(64);
        for good in ["a", "my.work_2-b", "deadbeef", longest.as_str()] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", "a b", "a/b", "ä", "a\n", long.as_str()] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn whoever_wants_a_name_waits_for_whoever_makes_it() {
        let makers = Makers::default();
        let first = makers.turn("a").await;
        let other = makers.turn("b").await;
        let waiting = makers.turn("a");
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop((first, other));
        drop(waiting.await);
        assert!(makers.0.lock().unwrap().is_empty());
    }
}
