//! A run: what the connection that wants it and the session that does it have in common.
//!
//! ```text
//!   host ◀─▶ connection ─── code, stdin, wishes ──▶ run ◀──▶ session
//!                     ◀── outgoing, the result ────┘
//! ```
//!
//! The session writes frames, the connection sends them. When they are not taken, the session reads no
//! more of the output; when the connection has gone, it drops what it reads.

use super::Session;
use super::folder::Fifo;
use super::interpreter::Tag;
use super::life::until;
use crate::connection::{Connection, ConnectionError, failure};
use crate::exec::{Input, Taken};
use crate::outgoing::Outgoing;
use firn_protocol::{
    DEFAULT_GRACE_MS, Event, FailureCode, Frame, Kind, OutputCap, Reply, RequestId, STDIN_WINDOW, SessionRun,
};
use std::cell::RefCell;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Output is added only while less than this waits to be sent, in bytes.
const ENOUGH: usize = 64 * 1024;

/// How long what can wait waits for something to go with it: a start for the output, or the end, that follows.
const PATIENCE: Duration = Duration::from_millis(1);

/// How much code is taken before the host is told.
const CREDIT_STEP: u32 = STDIN_WINDOW / 4;

/// The most signals that wait to be sent.
const MOST_SIGNALS: usize = 64;

/// See the module.
pub(super) struct Run {
    pub(super) tag: Tag,
    id: RequestId,
    pub(super) timeout: Option<Duration>,
    grace: Duration,
    max_output_bytes: u64,
    pub(super) state: RefCell<State>,
    /// Told whenever there is something to be sent.
    pub(super) changed: Notify,
}

pub(super) struct State {
    outgoing: Outgoing,
    /// Until when what is there may wait for more.
    waits: Option<Instant>,
    result: Option<Reply>,
    /// There is nobody to send anything to.
    lost: bool,
    pub(super) code: Vec<u8>,
    pub(super) stdin: Option<RunStdin>,
    /// That it is to end, and how long it may take to after each signal.
    pub(super) interrupt: Option<Duration>,
    pub(super) signals: Vec<i32>,
}

/// What a run reads.
pub(super) struct RunStdin {
    fifo: Fifo,
    input: Input,
    /// Keeps the FIFO open until the driver has opened it, who would else wait for ever.
    unopened: Option<OwnedFd>,
}

impl RunStdin {
    pub(super) fn new(fifo: Fifo, input: Input, unopened: OwnedFd) -> RunStdin {
        RunStdin { fifo, input, unopened: Some(unopened) }
    }

    /// Where the driver opens it.
    pub(super) fn path(&self) -> &str {
        &self.fifo.path
    }
}

impl Run {
    /// One that is asked for. Its code may be to come.
    pub(super) fn new(asked: SessionRun, nonce: u64, id: RequestId, stdin: Option<RunStdin>) -> Run {
        Run {
            tag: Tag { run: asked.run, nonce },
            id,
            timeout: asked.timeout_ms.map(Duration::from_millis),
            grace: Duration::from_millis(asked.grace_ms.unwrap_or(DEFAULT_GRACE_MS)),
            max_output_bytes: asked.max_output_bytes.unwrap_or(u64::MAX),
            state: RefCell::new(State {
                outgoing: Outgoing::default(),
                waits: None,
                result: None,
                lost: false,
                code: asked.code.into_os_string().into_encoded_bytes(),
                stdin,
                interrupt: None,
                signals: Vec::new(),
            }),
            changed: Notify::new(),
        }
    }

    /// How long it may take to end after each signal.
    pub(super) fn grace(&self) -> Duration {
        self.grace
    }

    /// How much of its output may be passed on, given what may of its session's.
    pub(super) fn budget(&self, session: u64) -> Budget {
        let by = if session < self.max_output_bytes { OutputCap::Session } else { OutputCap::Run };
        Budget { left: session.min(self.max_output_bytes), passed: 0, by, cut: false }
    }

    /// Whether output may be added.
    pub(super) fn has_room(&self) -> bool {
        let state = self.state.borrow();
        state.lost || state.outgoing.waiting() < ENOUGH
    }

    /// Tells of its start, soon.
    pub(super) fn tell_start(&self, pid: u32) {
        self.tell(&Event::RunStarted { run: self.tag.run, pid });
        self.state.borrow_mut().waits = Some(Instant::now() + PATIENCE);
    }

    pub(super) fn tell(&self, event: &Event) {
        let mut state = self.state.borrow_mut();
        state.waits = None;
        if !state.lost {
            // An event of two numbers is a message of any kind's length.
            let _ = state.outgoing.push(Kind::Event, self.id, event);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Adds output: `read` puts it into what it is given and says how much. 0 is the end.
    pub(super) fn add(
        &self,
        kind: Kind,
        chunk: usize,
        budget: &mut Budget,
        read: impl FnOnce(&mut [u8]) -> Poll<usize>,
    ) -> Poll<usize> {
        let mut state = self.state.borrow_mut();
        let Poll::Ready(length) = read(state.outgoing.room(chunk)) else { return Poll::Pending };
        let passed = usize::try_from(budget.left).map_or(length, |left| left.min(length));
        budget.left -= passed as u64;
        budget.passed += passed as u64;
        state.waits = None;
        if !state.lost {
            state.outgoing.commit(kind, self.id, passed);
            if passed < length && !budget.cut {
                let _ = state.outgoing.push(Kind::Event, self.id, &Event::OutputCut { by: budget.by });
            }
        }
        budget.cut |= passed < length;
        drop(state);
        self.changed.notify_waiters();
        Poll::Ready(length)
    }

    /// The driver has its stdin open.
    pub(super) fn stdin_opened(&self) {
        if let Some(stdin) = &mut self.state.borrow_mut().stdin {
            stdin.unopened = None;
        }
    }

    /// Passes stdin on.
    pub(super) fn poll_stdin(&self, cx: &mut Context<'_>) {
        loop {
            let taken = match &mut self.state.borrow_mut().stdin {
                Some(stdin) => stdin.input.poll_write(cx),
                None => return,
            };
            match taken {
                Poll::Pending => return,
                Poll::Ready(Taken::Credit(0)) => {}
                Poll::Ready(Taken::Credit(bytes)) => self.tell(&Event::StdinCredit { bytes }),
                Poll::Ready(Taken::Closed) => self.tell(&Event::StdinClosed),
            }
        }
    }

    /// It is over.
    pub(super) fn end(&self, result: Reply) {
        let mut state = self.state.borrow_mut();
        state.result = Some(result);
        state.stdin = None;
        state.code = Vec::new();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Wants it to end.
    pub(super) fn interrupt(&self, grace: Option<Duration>) {
        self.state.borrow_mut().interrupt = Some(grace.unwrap_or(self.grace));
    }
}

/// How much output may be passed on, and what is said when it was more.
pub(super) struct Budget {
    left: u64,
    /// How much was.
    pub(super) passed: u64,
    by: OutputCap,
    cut: bool,
}

impl Budget {
    /// Which limit was reached.
    pub(super) fn reached(&self) -> Option<OutputCap> {
        self.cut.then_some(self.by)
    }
}

/// A connection's part in a run.
pub(super) struct Part {
    session: Rc<Session>,
    run: Rc<Run>,
    /// How many bytes of code are to come.
    code_left: u32,
    /// How many the host may send, and how many were taken since it was last told.
    code_credit: u32,
    code_taken: u32,
    place: Place,
}

/// Whether a run has been in the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    Queue,
}

impl Part {
    pub(super) fn new(session: Rc<Session>, run: Rc<Run>, code_left: u32) -> Part {
        Part { session, run, code_left, code_credit: STDIN_WINDOW, code_taken: 0, place: Place::Before }
    }

    /// Serves the host until the run is over, or the connection is.
    pub(super) async fn serve(
        mut self,
        connection: &mut Connection,
        id: RequestId,
    ) -> Result<Reply, ConnectionError> {
        if self.code_left == 0
            && let Err(refused) = self.enqueue()
        {
            return Ok(refused);
        }
        let run = Rc::clone(&self.run);
        loop {
            let changed = run.changed.notified();
            let waits = {
                let mut state = run.state.borrow_mut();
                if let Some(result) = state.result.take() {
                    // With what is still to be sent, in one go.
                    std::mem::swap(&mut connection.outgoing, &mut state.outgoing);
                    return Ok(result);
                }
                state.waits
            };
            // Ready without a frame: what waited has been sent.
            let heard = poll_fn(|cx| {
                if let Poll::Ready(frame) = connection.poll_frame(cx) {
                    let frame = frame?.ok_or(ConnectionError::Closed)?;
                    return Poll::Ready(Ok(Some(frame)));
                }
                let outgoing = &mut run.state.borrow_mut().outgoing;
                if waits.is_none() && outgoing.waiting() > 0 {
                    let before = outgoing.waiting();
                    let sent = connection.poll_send(outgoing, cx).map_err(ConnectionError::Write)?;
                    if sent.is_ready() {
                        return Poll::Ready(Ok(None));
                    }
                    if before >= ENOUGH && outgoing.waiting() < ENOUGH {
                        self.session.wake();
                    }
                }
                Poll::<Result<_, ConnectionError>>::Pending
            });
            tokio::select! {
                () = until(waits) => run.state.borrow_mut().waits = None,
                heard = heard => match heard? {
                    None => self.session.wake(),
                    Some(frame) if connection.is_late_input(&frame) => {}
                    Some(frame) => {
                        if let Some(refused) = self.take(&frame, id)? {
                            return Ok(refused);
                        }
                    }
                },
                () = changed => {}
            }
        }
    }

    /// Takes a frame of the host's.
    fn take(&mut self, frame: &Frame, id: RequestId) -> Result<Option<Reply>, ConnectionError> {
        let unexpected = ConnectionError::Unexpected { kind: frame.kind, id: frame.id };
        if frame.id != id {
            return Err(unexpected);
        }
        match frame.kind {
            Kind::Stdin if self.code_left > 0 => return self.take_code(&frame.body),
            // The code is not there.
            Kind::StdinEnd if self.code_left > 0 => return Err(unexpected),
            Kind::Stdin => {
                if let Some(stdin) = &mut self.run.state.borrow_mut().stdin {
                    stdin.input.receive(&frame.body)?;
                }
            }
            Kind::StdinEnd => {
                if let Some(stdin) = &mut self.run.state.borrow_mut().stdin {
                    stdin.input.end();
                }
            }
            Kind::Input => match frame.message()? {
                firn_protocol::Input::Resize(_) => {}
                firn_protocol::Input::Signal { signal: signal @ 1..=64 } => {
                    let signals = &mut self.run.state.borrow_mut().signals;
                    if signals.len() < MOST_SIGNALS {
                        signals.push(signal);
                    }
                }
                firn_protocol::Input::Signal { signal } => return Err(ConnectionError::NoSignal(signal)),
                firn_protocol::Input::Cancel => {
                    if self.code_left > 0 || self.session.withdraw(&self.run) {
                        return Ok(Some(cancelled()));
                    }
                    self.run.interrupt(None);
                }
            },
            _ => return Err(unexpected),
        }
        self.session.wake();
        Ok(None)
    }

    fn take_code(&mut self, bytes: &[u8]) -> Result<Option<Reply>, ConnectionError> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.code_credit = self.code_credit.checked_sub(length).ok_or(ConnectionError::OverCredit)?;
        let (code, stdin) = bytes.split_at(bytes.len().min(self.code_left as usize));
        // No longer than what `code_left` was.
        self.code_left -= code.len() as u32;
        self.code_taken += code.len() as u32;
        {
            let mut state = self.run.state.borrow_mut();
            state.code.extend_from_slice(code);
            if let Some(input) = &mut state.stdin {
                input.input.receive(stdin)?;
            }
        }
        if self.code_taken >= CREDIT_STEP || self.code_left == 0 {
            let bytes = std::mem::take(&mut self.code_taken);
            self.code_credit += bytes;
            self.run.tell(&Event::StdinCredit { bytes });
        }
        Ok(if self.code_left == 0 { self.enqueue().err() } else { None })
    }

    fn enqueue(&mut self) -> Result<(), Reply> {
        self.session.enqueue(&self.run)?;
        self.place = Place::Queue;
        Ok(())
    }
}

/// The reply to a run that was taken from the queue.
pub(super) fn cancelled() -> Reply {
    failure(FailureCode::Cancelled, "it was cancelled before its turn came".into())
}

impl Drop for Part {
    fn drop(&mut self) {
        {
            let mut state = self.run.state.borrow_mut();
            state.lost = true;
            state.outgoing = Outgoing::default();
            // Nobody sends more.
            if let Some(stdin) = &mut state.stdin {
                stdin.input.end();
            }
        }
        match self.place {
            Place::Before => self.session.forget_arriving(),
            Place::Queue => drop(self.session.withdraw(&self.run)),
        }
        self.session.wake();
    }
}
