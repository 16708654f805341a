//! A command in a sandbox, as the daemon sees it: started, passed on, watched from outside, written down.
//!
//! What the agent is told to enforce is enforced here once more: the sandbox may be hostile. A command
//! whose end never comes after its timeout is given up, and one whose sandbox ends has ended too.

mod account;
mod following;

pub(super) use following::follow_all;

use super::activity::Activity;
use super::audit::{ARGUMENTS, Details};
use super::entry::{Entry, Status};
use super::failpoint;
use super::launch::{Ended, Up};
use super::log::Log;
use super::manager::{Conclusion, Life, OperationError};
use super::state::Operation;
use crate::api::types::{AttachRequest, Caller, EvaluateRequest, ExecRequest};
use crate::causes::in_full;
use crate::env::{Takes, Wrapper};
use crate::guest::{ExecEvent, GuestError, Running};
use crate::spec::SpecError;
use crate::spec::protection::milliseconds;
use crate::sys::clock;
use crate::sys::limits::Events;
use crate::view::WORKSPACE;
use account::{Account, Run};
use bytes::Bytes;
use firn_protocol::{
    Attach, CommandState, DEFAULT_GRACE_MS, Exec, Exited, FailureCode, Input, Keep, MAX_CODE, Ran,
    SessionInterrupt, SessionRun, Stdin, Text, Variable,
};
use following::Following;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How much later than the agent the daemon itself calls a timeout.
const TIMEOUT_GRACE: Duration = Duration::from_secs(10);

/// How long a sandbox whose connection broke may take to be seen to have ended.
const HANGUP_PATIENCE: Duration = Duration::from_secs(3);

/// How much of a detached command's output the agent keeps, in bytes: what it writes while no daemon runs.
const KEPT_OUTPUT: u32 = 1 << 20;

/// Whoever started a command that is attached to may have given it one.
const ANY_TIMEOUT: Option<u64> = Some(u64::MAX);

/// A command under way, or attached to. Dropping it ends the command unless it is detached.
#[derive(Debug)]
pub(crate) struct Command {
    entry: Arc<Entry>,
    up: Arc<Up>,
    running: Running,
    number: Option<u64>,
    /// What happened and is still to be told.
    untold: Option<ExecEvent>,
    timeout: Option<Duration>,
    output: Option<u64>,
    deadline: Option<tokio::time::Instant>,
    timed_out: bool,
    /// The run that it is, of a session, until it has ended.
    run: Option<Run>,
    /// What the control group had counted before.
    before: Events,
    /// Until its end is written down. None: whoever started it does that.
    account: Option<Account>,
    status: watch::Receiver<Status>,
    _activity: Activity,
}

/// Who attaches to a detached command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// Somebody, who may have stdin, and misses what is not read in time.
    Client,
    /// Its log, which misses nothing: the command waits for it. Stdin stays whose it is.
    Log,
}

impl Command {
    /// Starts one.
    pub(super) async fn start(
        entry: &Arc<Entry>,
        request: ExecRequest,
        by: Option<Caller>,
    ) -> Result<Command, OperationError> {
        let up = entry.admit(Operation::Use)?;
        let activity = entry.activities.begin();
        let timeout = request.timeout_ms.map(Duration::from_millis).or(up.timeout);
        let output = request.max_output_bytes;
        let mut exec = message(&up, &request, timeout)?;
        let details = Details::default().with(ARGUMENTS, argv(&request)).with("user", exec.user.clone());
        let number = if request.detach {
            let mut written = entry.written();
            written.facts.last_command += 1;
            let number = written.facts.last_command;
            if entry.life == Life::Command && written.facts.main_command.is_none() {
                written.facts.main_command = Some(number);
            }
            drop(written);
            exec.keep = Some(Keep { command: number, output_bytes: KEPT_OUTPUT, back_pressure: true });
            Some(number)
        } else {
            None
        };
        entry.written().facts.last_exec_unix_ms = Some(clock::unix_ms());
        match entry.save_facts() {
            // Its number must not be given again by the next daemon.
            Err(error) if number.is_some() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(sandbox = %entry.id, error = in_full(&error), "cannot write the record")
            }
            Ok(()) => {}
        }
        // Before it runs: what could not be written down would go on for nobody.
        let kept = match number {
            Some(number) => Some((number, entry.logs().write(number).map_err(OperationError::Log)?)),
            None => None,
        };
        let details = number.iter().fold(details, |details, number| details.with("command", *number));
        entry.note("exec-started", by, details);
        failpoint::reached("exec-recorded");
        let account = Account::open(by, number, None);
        let status = entry.watch();
        let before = up.cgroup.events();
        let running = match up.dialer.dial().await.and_then(|connection| connection.exec(exec)) {
            Ok(running) => running,
            Err(error) => {
                account.end(entry, "sandbox");
                return Err(why(entry, &mut entry.watch(), error, Of::Command { unproven: true }).await);
            }
        };
        failpoint::reached("exec-dialled");
        let deadline = timeout.map(|timeout| tokio::time::Instant::now() + timeout + TIMEOUT_GRACE);
        let command = Command {
            entry: Arc::clone(entry),
            up,
            running,
            number,
            untold: None,
            timeout,
            output,
            deadline,
            timed_out: false,
            run: None,
            before,
            account: Some(account),
            status,
            _activity: activity,
        };
        match kept {
            None => Ok(command),
            Some((number, log)) => command.detach(number, log).await,
        }
    }

    /// Runs code in a session of the sandbox, which its agent may call something else, when its turn comes.
    pub(super) async fn evaluate(
        entry: &Arc<Entry>,
        (session, inside): (&str, &str),
        request: EvaluateRequest,
        by: Option<Caller>,
    ) -> Result<Command, OperationError> {
        let up = entry.admit(Operation::Use)?;
        let activity = entry.activities.begin();
        let EvaluateRequest { code, stdin, timeout_ms, grace_ms, max_output_bytes, .. } = request;
        let timeout_ms = timeout_ms.or(up.timeout.map(milliseconds));
        let code = Bytes::copy_from_slice(code.as_bytes());
        if code.len() > MAX_CODE {
            return Err(SpecError::Code(code.len()).into());
        }
        let run = Run {
            session: session.to_owned(),
            inside: inside.to_owned(),
            number: entry.shared.run_number(),
            grace: Duration::from_millis(grace_ms.unwrap_or(DEFAULT_GRACE_MS)),
        };
        let message = SessionRun {
            session: run.inside.clone(),
            run: run.number,
            code: Text::default(),
            more_code_bytes: 0,
            timeout_ms,
            grace_ms,
            stdin,
            max_output_bytes,
        };
        let details = Details::default()
            .with("session", session)
            .with("run", run.number)
            .with("codeBytes", code.len() as u64);
        entry.note("run-started", by, details);
        let status = entry.watch();
        let before = up.cgroup.events();
        let running = match up.dialer.dial().await.and_then(|connection| connection.run_code(message, code)) {
            Ok(running) => running,
            Err(error) => return Err(why(entry, &mut entry.watch(), error, Of::Run(session)).await),
        };
        Ok(Command {
            entry: Arc::clone(entry),
            up,
            running,
            number: None,
            untold: None,
            timeout: timeout_ms.map(Duration::from_millis),
            output: max_output_bytes,
            // It may have to wait for its turn.
            deadline: None,
            timed_out: false,
            run: Some(run.clone()),
            before,
            account: Some(Account::open(by, None, Some(run))),
            status,
            _activity: activity,
        })
    }

    /// Leaves the command to a task that writes its output down, and attaches to it like anybody else.
    async fn detach(mut self, number: u64, log: Log) -> Result<Command, OperationError> {
        let entry = Arc::clone(&self.entry);
        // It may fail to start: then there is nothing to leave.
        let first = self.next().await?;
        if matches!(first, ExecEvent::NotStarted(_)) {
            self.untold = Some(first);
            return Ok(self);
        }
        let last = match first {
            ExecEvent::Exited(exited) => Some(exited),
            _ => None,
        };
        let account = self.account.take();
        Following { entry: Arc::clone(&entry), number, log, account }.begin(self, last);
        let request = AttachRequest { command: Some(number), from: Some(0) };
        Command::attach(&entry, &request).await
    }

    /// Attaches to a detached command. Output that is not read in time is skipped.
    pub(super) async fn attach(
        entry: &Arc<Entry>,
        request: &AttachRequest,
    ) -> Result<Command, OperationError> {
        Command::attach_as(entry, request, Reader::Client).await
    }

    async fn attach_as(
        entry: &Arc<Entry>,
        request: &AttachRequest,
        reader: Reader,
    ) -> Result<Command, OperationError> {
        let up = entry.admit(Operation::Use)?;
        let activity = entry.activities.begin();
        let last = entry.written().facts.last_command;
        let unknown = || OperationError::NoCommand { id: entry.id, command: request.command };
        let number = request.command.unwrap_or(last);
        if number == 0 || number > last {
            return Err(unknown());
        }
        let status = entry.watch();
        let before = up.cgroup.events();
        let attach = Attach {
            command: number,
            from: request.from.unwrap_or(0),
            stdin: match reader {
                Reader::Client => Stdin::Stream,
                Reader::Log => Stdin::Null,
            },
            back_pressure: reader == Reader::Log,
        };
        let running =
            match up.dialer.dial().await.and_then(|connection| connection.attach(attach, ANY_TIMEOUT)) {
                Ok(running) => running,
                Err(error) => {
                    let of = Of::Command { unproven: false };
                    return Err(why(entry, &mut entry.watch(), error, of).await);
                }
            };
        Ok(Command {
            entry: Arc::clone(entry),
            up,
            running,
            number: Some(number),
            untold: None,
            timeout: None,
            output: None,
            deadline: None,
            timed_out: false,
            run: None,
            before,
            account: None,
            status,
            _activity: activity,
        })
    }

    /// Its number, when it can be attached to.
    pub(crate) fn number(&self) -> Option<u64> {
        self.number
    }

    /// What happens next. `Exited` and `NotStarted` are the last. Fails when the sandbox ends, or does not
    /// end the command in time. May be dropped at any time without loss.
    pub(crate) async fn next(&mut self) -> Result<ExecEvent, OperationError> {
        if let Some(event) = self.untold.take() {
            return Ok(event);
        }
        let too_late = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            // In this order: what an agent has said counts, also if it is no more.
            biased;
            event = self.running.next() => event,
            ended = ended(&mut self.status) => {
                self.over("sandbox");
                return Err(ended.error(&self.entry, of(self.run.as_ref(), &self.running).unproven()));
            }
            () = too_late => {
                self.timed_out = true;
                self.over("daemon");
                return Err(OperationError::Unresponsive(self.entry.id));
            }
        };
        match event {
            Ok(event) => {
                match &event {
                    ExecEvent::Exited(exited) => self.exited(exited),
                    ExecEvent::NotStarted(reason) => self.not_started(&reason.message),
                    ExecEvent::Ran(ran) => self.ran(ran),
                    ExecEvent::Started => self.deadline = self.deadline.or(self.latest_end()),
                    _ => {}
                }
                Ok(event)
            }
            Err(error) => {
                self.over("sandbox");
                let of = of(self.run.as_ref(), &self.running);
                Err(why(&self.entry, &mut self.status, error, of).await)
            }
        }
    }

    /// When a run that begins now has ended, if its agent is honest.
    fn latest_end(&self) -> Option<tokio::time::Instant> {
        let (run, timeout) = (self.run.as_ref()?, self.timeout?);
        Some(tokio::time::Instant::now() + timeout + 2 * run.grace + TIMEOUT_GRACE)
    }

    fn ran(&mut self, ran: &Ran) {
        self.run = None;
        if let Some(connection) = self.running.take_connection() {
            // The next run need not wait for a new one.
            self.up.dialer.keep(connection);
        }
        if let Some(account) = self.account.take() {
            account.ran(&self.entry, ran);
        }
    }

    fn exited(&mut self, exited: &Exited) {
        failpoint::reached("exec-exited");
        if let Some(account) = self.account.take() {
            account.close(&self.entry, exited);
        }
    }

    fn not_started(&mut self, reason: &str) {
        self.run = None;
        if let Some(account) = self.account.take() {
            account.not_started(&self.entry, reason);
        }
    }

    /// It has ended, or is given up, and nobody says how.
    fn over(&mut self, ended_by: &str) {
        if let Some(account) = self.account.take() {
            account.end(&self.entry, ended_by);
        }
    }

    /// How many bytes of stdin can be sent now. None: stdin has ended.
    pub(crate) fn stdin_room(&self) -> Option<usize> {
        self.running.stdin_room()
    }

    /// Sends some stdin: no more than there is room for.
    pub(crate) fn send_stdin(&mut self, bytes: Bytes) -> Result<(), OperationError> {
        self.running.send_stdin(bytes).map_err(broken)
    }

    /// Says that stdin has ended.
    pub(crate) fn end_stdin(&mut self) -> Result<(), OperationError> {
        self.running.end_stdin().map_err(broken)
    }

    /// Sends a signal, a new terminal size, or the wish that it ends.
    pub(crate) fn send(&mut self, input: &Input) -> Result<(), OperationError> {
        if *input == Input::Cancel && self.deadline.is_none() {
            // A hostile agent does not end it.
            let grace = self.run.as_ref().map_or(Duration::ZERO, |run| 2 * run.grace);
            self.deadline = Some(tokio::time::Instant::now() + grace + TIMEOUT_GRACE);
        }
        self.running.send(input).map_err(broken)
    }

    /// What is to be said after its end.
    pub(crate) fn conclude(&self) -> Conclusion {
        let mut protection = self.up.protection.clone();
        if let Some(timeout) = self.timeout {
            protection.set_time(milliseconds(timeout));
        }
        if let Some(output) = self.output {
            protection.set_output(output);
        }
        Conclusion {
            exceeded: self.up.exceeded(self.before),
            timed_out: self.timed_out && self.timeout.is_some(),
            protection: Some(protection),
        }
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        self.over("client");
        if let Some(run) = self.run.take() {
            // Its session is there for others, and is not to be at this for ever.
            self.entry.shared.tasks.spawn(give_up(Arc::clone(&self.up), run));
        }
    }
}

/// Ends a run that nobody waits for.
async fn give_up(up: Arc<Up>, run: Run) {
    let Run { inside, number, grace, .. } = run;
    let grace_ms = u64::try_from(grace.as_millis()).ok();
    let asked = SessionInterrupt { session: inside, run: Some(number), grace_ms };
    let ended = async { up.dialer.dial().await?.interrupt(asked).await };
    if let Err(error) = ended.await {
        // Usually the sandbox has ended with whoever wanted the run.
        tracing::debug!(error = in_full(&error), "cannot end a run that was given up");
    }
}

fn argv(request: &ExecRequest) -> Vec<String> {
    request.argv.iter().map(|arg| arg.as_os_str().to_string_lossy().into_owned()).collect()
}

/// What the agent is asked to do.
fn message(up: &Up, request: &ExecRequest, timeout: Option<Duration>) -> Result<Exec, SpecError> {
    let cwd = || request.cwd.clone().unwrap_or_else(|| Text::from(WORKSPACE));
    let (argv, cwd, mut env) = match &up.wrapper {
        Some(wrapper) if wrapper.takes == Takes::CodeOrCommand => {
            let code = request.argv.is_empty().then(|| vec![wrapper.program.clone()]);
            (code.unwrap_or_else(|| request.argv.clone()), cwd(), wrapper.variables.clone())
        }
        Some(wrapper) => wrapped(wrapper, request)?,
        None => {
            let argv = match up.interpreter {
                Some(interpreter) if request.argv.is_empty() => interpreter.reading_code(),
                None if request.argv.is_empty() => return Err(SpecError::NoCommand),
                _ => request.argv.clone(),
            };
            (argv, cwd(), Vec::new())
        }
    };
    env.extend(request.env.iter().cloned());
    Ok(Exec {
        argv,
        cwd: Some(cwd),
        env,
        user: request.user.clone().or_else(|| up.user.clone()),
        terminal: request.terminal,
        stdin: request.stdin,
        timeout_ms: timeout.map(|timeout| milliseconds(timeout).max(1)),
        max_output_bytes: request.max_output_bytes,
        resource_limits: up.resource_limits.clone(),
        keep: None,
    })
}

/// A wrapper takes code, not a command, and makes its surroundings itself.
fn wrapped(wrapper: &Wrapper, request: &ExecRequest) -> Result<(Vec<Text>, Text, Vec<Variable>), SpecError> {
    let environment = &wrapper.environment;
    if !request.argv.is_empty() {
        return Err(SpecError::CommandOfArtifact(environment.clone()));
    }
    for (given, option) in [
        (request.terminal.is_some(), "--tty"),
        (request.cwd.is_some(), "--cwd"),
        (request.user.is_some(), "--user"),
    ] {
        if given {
            return Err(SpecError::OwnJail { option, environment: environment.clone(), instead: "" });
        }
    }
    Ok((vec![wrapper.program.clone()], Text::from("/"), wrapper.variables.clone()))
}

/// The end of a sandbox, as a command sees it.
struct SandboxEnded(Option<Arc<Ended>>);

impl SandboxEnded {
    fn error(self, entry: &Entry, unproven: bool) -> OperationError {
        match self.0 {
            Some(ended) if unproven => OperationError::NotUp(ended),
            Some(ended) => OperationError::Sandbox(ended),
            None => OperationError::Gone(entry.id),
        }
    }
}

/// Waits until the sandbox is no more.
async fn ended(status: &mut watch::Receiver<Status>) -> SandboxEnded {
    match status.wait_for(|status| status.gone || status.state.is_over()).await {
        Ok(status) => SandboxEnded(status.end.clone()),
        Err(_forgotten) => SandboxEnded(None),
    }
}

/// What a connection that failed was for.
#[derive(Clone, Copy)]
enum Of<'a> {
    /// A command, of a sandbox that may never have come up.
    Command { unproven: bool },
    /// A run of the session of this name.
    Run(&'a str),
}

impl Of<'_> {
    fn unproven(self) -> bool {
        matches!(self, Of::Command { unproven: true })
    }
}

fn of<'a>(run: Option<&'a Run>, running: &Running) -> Of<'a> {
    match run {
        Some(run) => Of::Run(&run.session),
        None => Of::Command { unproven: !running.is_greeted() },
    }
}

/// What is behind a connection that failed: usually a sandbox that ended.
async fn why(
    entry: &Entry,
    status: &mut watch::Receiver<Status>,
    error: GuestError,
    of: Of<'_>,
) -> OperationError {
    if error.hung_up()
        && let Ok(ended) = tokio::time::timeout(HANGUP_PATIENCE, ended(status)).await
    {
        return ended.error(entry, of.unproven());
    }
    match (error, of) {
        (GuestError::Refused { failure, .. }, of) if failure.code == FailureCode::NotFound => match of {
            Of::Run(session) => OperationError::NoSession(session.to_owned()),
            Of::Command { .. } => OperationError::NoCommand { id: entry.id, command: None },
        },
        (error, Of::Command { unproven: true }) => OperationError::NotUp(Arc::new(error.into())),
        (error, _) => broken(error),
    }
}

fn broken(error: GuestError) -> OperationError {
    OperationError::Sandbox(Arc::new(error.into()))
}

/// Asks all detached commands to end, and waits for that no longer than `grace`.
pub(super) async fn end_all(entry: &Entry, up: &Up, grace: Duration) {
    if grace.is_zero() || entry.written().facts.last_command == 0 {
        return;
    }
    let ended = async {
        let mut asking = up.dialer.dial().await?;
        for command in asking.commands().await? {
            if matches!(command.state, CommandState::Running) {
                let attach = Attach {
                    command: command.command,
                    from: u64::MAX,
                    stdin: Stdin::Null,
                    back_pressure: false,
                };
                let mut running = up.dialer.dial().await?.attach(attach, ANY_TIMEOUT)?;
                running.send(&Input::Signal { signal: libc::SIGTERM })?;
                while !matches!(running.next().await?, ExecEvent::Exited(_) | ExecEvent::NotStarted(_)) {}
            }
        }
        Ok::<(), GuestError>(())
    };
    // Who does not end is ended.
    let _ = tokio::time::timeout(grace, ended).await;
}
