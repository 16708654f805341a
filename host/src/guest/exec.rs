//! A running command, seen from the host.

use super::connection::{Connection, GuestError, message, unexpected, wrong_reply};
use super::words::one_line;
use bytes::Bytes;
use firn_protocol::{
    EndedBy, Event, ExitStatus, Exited, Frame, Input, Kind, MAX_CHUNK, NotStarted, OutputCap, Ran, Reply,
    RequestId, RunOutcome, STDIN_WINDOW, Stdin,
};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

const DURING: &str = "a command";

/// How long the agent may take to say whether the program runs. How long it then runs is the
/// caller's business.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// The most stdin that is sent ahead, whatever the agent grants, in bytes.
const MOST_AHEAD: usize = STDIN_WINDOW as usize;

/// What a command does.
#[derive(Debug)]
pub(crate) enum ExecEvent {
    /// The program runs.
    Started,
    /// The program runs, or ran, and this is where in its output the first byte is that follows.
    Attached {
        /// A number of bytes since its start.
        from: u64,
    },
    /// So many bytes of its output were left out here.
    Skipped(u64),
    /// Bytes from stdout or the terminal.
    Stdout(Bytes),
    /// Bytes from stderr.
    Stderr(Bytes),
    /// There may be more room for stdin: see [`Running::stdin_room`].
    StdinRoom,
    /// Nothing reads stdin any more.
    StdinClosed,
    /// From here on output is dropped, because of this limit.
    Cut(OutputCap),
    /// It is over. The last event.
    Exited(Box<Exited>),
    /// The run of a session is over. The last event.
    Ran(Box<Ran>),
    /// It never ran. The last event.
    NotStarted(NotStarted),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StdinState {
    Open { credit: u64 },
    Ended,
}

/// What this end is to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It started the command, which ends with it.
    Owner,
    /// It started the command, which goes on without it.
    Keeper,
    /// It takes part in one that was started before.
    Attached,
    /// It asked for the run of a session that has this number, and waits for its turn.
    Run(u64),
}

impl Role {
    fn may_start(self) -> bool {
        matches!(self, Role::Owner | Role::Keeper)
    }

    /// Whether it is a run of a session, which waits for its turn as long as that takes.
    fn is_run(self) -> bool {
        matches!(self, Role::Run(_))
    }

    fn may_attach(self) -> bool {
        self == Role::Attached
    }

    fn may_miss(self) -> bool {
        matches!(self, Role::Keeper | Role::Attached)
    }
}

/// A command that was asked for.
#[derive(Debug)]
pub(crate) struct Running {
    /// None: it is over, and somebody else has it.
    connection: Option<Connection>,
    id: RequestId,
    role: Role,
    started: bool,
    /// When the agent has taken too long to start it.
    too_late: Instant,
    timeout_ms: Option<u64>,
    stdin: StdinState,
    code: Code,
}

/// A run's code that did not fit into its request.
#[derive(Debug, Default)]
struct Code {
    /// What was not sent yet.
    left: Bytes,
    /// How much of that may be sent, in bytes.
    credit: u64,
    /// How many bytes were sent and not granted again.
    sent: u64,
}

impl Code {
    /// Takes its part of a credit, and gives the rest.
    fn granted(&mut self, bytes: u64) -> u64 {
        let ours = bytes.min(self.sent);
        self.sent -= ours;
        self.credit += ours;
        bytes - ours
    }
}

/// Whether a process can have ended like this.
pub(super) fn is_possible_end(status: ExitStatus) -> bool {
    match status {
        ExitStatus::Code(code) => (0..=255).contains(&code),
        ExitStatus::Signal(signal) => (1..=64).contains(&signal),
    }
}

impl Running {
    pub(super) fn new(
        connection: Connection,
        id: RequestId,
        role: Role,
        stdin: Stdin,
        timeout_ms: Option<u64>,
    ) -> Running {
        let stdin = match stdin {
            Stdin::Null => StdinState::Ended,
            // How much of the window is left is told to who attaches.
            Stdin::Stream if role.may_attach() => StdinState::Open { credit: 0 },
            Stdin::Stream => StdinState::Open { credit: u64::from(STDIN_WINDOW) },
        };
        let too_late = Instant::now() + START_PATIENCE;
        let connection = Some(connection);
        Running { connection, id, role, started: false, too_late, timeout_ms, stdin, code: Code::default() }
    }

    /// What happens next. May be dropped at any time without loss.
    pub(crate) async fn next(&mut self) -> Result<ExecEvent, GuestError> {
        let closed = GuestError::Closed { during: DURING };
        let receiving = self.connection.as_mut().ok_or(closed)?.receive(DURING);
        let frame = if self.started || self.role.is_run() {
            receiving.await?
        } else {
            // It may also talk of other things all the time.
            let silent = || GuestError::Silent { during: "the start of a command", patience: START_PATIENCE };
            let frame =
                timeout_at(self.too_late, receiving).await.unwrap_or_else(|_elapsed| Err(silent()))?;
            if Instant::now() >= self.too_late {
                return Err(silent());
            }
            frame
        };
        if frame.id != self.id {
            return Err(unexpected(DURING, &frame));
        }
        match frame.kind {
            Kind::Stdout if self.started => Ok(ExecEvent::Stdout(frame.body)),
            Kind::Stderr if self.started => Ok(ExecEvent::Stderr(frame.body)),
            Kind::Event => self.event(&frame),
            Kind::Reply => self.reply(&frame),
            Kind::Hello
            | Kind::Request
            | Kind::Input
            | Kind::Stdin
            | Kind::StdinEnd
            | Kind::Stdout
            | Kind::Stderr => Err(unexpected(DURING, &frame)),
        }
    }

    fn event(&mut self, frame: &Frame) -> Result<ExecEvent, GuestError> {
        match message(DURING, frame)? {
            Event::Started { .. } if !self.started && self.role.may_start() => {
                self.started = true;
                Ok(ExecEvent::Started)
            }
            Event::Attached { from, stdin_credit, .. } if !self.started && self.role.may_attach() => {
                self.started = true;
                self.stdin = match (self.stdin, stdin_credit) {
                    (StdinState::Open { .. }, Some(credit)) => StdinState::Open { credit: credit.into() },
                    (StdinState::Open { .. }, None) | (StdinState::Ended, _) => StdinState::Ended,
                };
                Ok(ExecEvent::Attached { from })
            }
            Event::Skipped { bytes } if self.started && self.role.may_miss() => Ok(ExecEvent::Skipped(bytes)),
            // Its own number, and only once.
            Event::RunStarted { run, .. } if !self.started && self.role == Role::Run(run) => {
                self.started = true;
                Ok(ExecEvent::Started)
            }
            Event::OutputCut { by } if self.started && self.role.is_run() => Ok(ExecEvent::Cut(by)),
            Event::Started { .. }
            | Event::Attached { .. }
            | Event::Skipped { .. }
            | Event::RunStarted { .. }
            | Event::OutputCut { .. } => Err(unexpected(DURING, frame)),
            Event::StdinCredit { bytes } => {
                // What was taken of the code is granted again to the code, and is no room for stdin.
                let bytes = self.code.granted(u64::from(bytes));
                self.send_some_code()?;
                if let StdinState::Open { credit } = &mut self.stdin {
                    *credit = credit.saturating_add(bytes);
                }
                Ok(ExecEvent::StdinRoom)
            }
            Event::StdinClosed => {
                self.stdin = StdinState::Ended;
                Ok(ExecEvent::StdinClosed)
            }
        }
    }

    fn reply(&mut self, frame: &Frame) -> Result<ExecEvent, GuestError> {
        match message(DURING, frame)? {
            // Also without having started: a command may be killed before its start was told.
            Reply::Exited(exited) if !self.role.is_run() && self.is_possible(&exited) => {
                Ok(ExecEvent::Exited(exited))
            }
            Reply::Ran(ran)
                if self.started && self.role == Role::Run(ran.run) && self.can_have_timed_out(&ran) =>
            {
                super::session::checked(*ran, DURING).map(ExecEvent::Ran)
            }
            Reply::NotStarted(NotStarted { reason, message }) if !self.started => {
                Ok(ExecEvent::NotStarted(NotStarted { reason, message: one_line(&message) }))
            }
            Reply::Error(failure) => Err(GuestError::refused(DURING, &failure)),
            other => Err(wrong_reply(DURING, &other)),
        }
    }

    /// Whether a command can have ended like this: exit codes are made from it, and what is told
    /// of the timeout.
    fn is_possible(&self, exited: &Exited) -> bool {
        is_possible_end(exited.status) && (exited.ended_by != EndedBy::Timeout || self.timeout_ms.is_some())
    }

    fn can_have_timed_out(&self, ran: &Ran) -> bool {
        ran.outcome != RunOutcome::TimedOut || self.timeout_ms.is_some()
    }

    /// Sends the code of a run, as far as there is room for it now.
    pub(super) fn send_code(&mut self, code: Bytes) -> Result<(), GuestError> {
        self.code = Code { left: code, credit: u64::from(STDIN_WINDOW), sent: 0 };
        self.send_some_code()
    }

    fn send_some_code(&mut self) -> Result<(), GuestError> {
        while !self.code.left.is_empty() && self.code.credit > 0 {
            let room = usize::try_from(self.code.credit).unwrap_or(usize::MAX);
            let chunk = self.code.left.split_to(self.code.left.len().min(room).min(MAX_CHUNK));
            self.code.credit -= chunk.len() as u64;
            self.code.sent += chunk.len() as u64;
            self.post(Kind::Stdin, chunk)?;
        }
        Ok(())
    }

    /// Whether the agent has said hello.
    pub(crate) fn is_greeted(&self) -> bool {
        self.connection.as_ref().is_none_or(Connection::is_greeted)
    }

    /// Its connection, after its end, if nothing of the command can be under way on it any more.
    pub(crate) fn take_connection(&mut self) -> Option<Connection> {
        let done = self.stdin == StdinState::Ended && self.code.left.is_empty();
        self.connection.take().filter(|_| done)
    }

    /// Its connection, after its end, whatever is under way.
    #[cfg(test)]
    pub(super) fn into_connection(self) -> Option<Connection> {
        self.connection
    }

    /// How much memory is held for it, in bytes.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.connection.as_ref().map_or(0, Connection::held)
    }

    /// How many bytes of stdin can be sent now. None: stdin has ended, at one end or the other.
    pub(crate) fn stdin_room(&self) -> Option<usize> {
        let StdinState::Open { credit } = self.stdin else { return None };
        if !self.code.left.is_empty() {
            return Some(0);
        }
        let unsent = self.connection.as_ref().map_or(0, Connection::unsent);
        let ahead = MOST_AHEAD.saturating_sub(unsent);
        Some(ahead.min(usize::try_from(credit).unwrap_or(usize::MAX)))
    }

    /// Sends some stdin: no more than there is room for.
    pub(crate) fn send_stdin(&mut self, bytes: Bytes) -> Result<(), GuestError> {
        let StdinState::Open { credit } = &mut self.stdin else { return Ok(()) };
        *credit = credit.saturating_sub(bytes.len() as u64);
        self.post(Kind::Stdin, bytes)
    }

    /// Says that stdin has ended.
    pub(crate) fn end_stdin(&mut self) -> Result<(), GuestError> {
        if std::mem::replace(&mut self.stdin, StdinState::Ended) == StdinState::Ended {
            return Ok(());
        }
        self.post(Kind::StdinEnd, Bytes::new())
    }

    /// Sends a signal, a new terminal size, or the wish that it ends.
    pub(crate) fn send(&mut self, input: &Input) -> Result<(), GuestError> {
        match &mut self.connection {
            Some(connection) => connection.post(Kind::Input, self.id, input, DURING),
            None => Ok(()),
        }
    }

    fn post(&mut self, kind: Kind, bytes: Bytes) -> Result<(), GuestError> {
        match &mut self.connection {
            Some(connection) => connection.post_frame(Frame::new(kind, self.id, bytes), DURING),
            None => Ok(()),
        }
    }
}
