//! The task of a session: its interpreter and its runs, from the first to the last.
//!
//! ```text
//!   starting ──ready──▶ idle ◀──done── running
//!      │                 │ ▲              │
//!      └─failed          │ └──restarted───┴─ the interpreter has ended
//!                        └─closed─▶ over
//! ```
//!
//! While it is idle it still reads what the interpreter's streams bring, and drops it: what an earlier run
//! left running does not wait for a reader, and is not taken for the next run's output.

use super::course::{Course, End, ended_outcome, said_outcome};
use super::interpreter::{Heard, Interpreter, Said};
use super::run::{Run, RunStdin};
use super::{Phase, Session, closed, folder, uptime_ms};
use crate::agent::Agent;
use crate::connection::failure;
use crate::exec::{Order, Output, not_started};
use firn_protocol::{Driver, FailureCode, Kind, NotStarted, NotStartedReason, Ran, Reply, RunOutcome};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long an interpreter may take until it takes code.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long a supervisor may take to carry out a kill. Longer than it tries by itself.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(15);

/// How long it may take to look at what a run has left.
const FOLDER_PATIENCE: Duration = Duration::from_secs(10);

/// How much of what an interpreter says that does not start is told, in bytes.
const LAST_WORDS: usize = 400;

/// Output is read so often before reports and clocks have their turn.
pub(super) const ROUNDS: usize = 8;

/// Whether the session is there, for who made it.
pub(super) type Answer = oneshot::Sender<Result<(), NotStarted>>;

/// Lives to its end.
pub(super) async fn live(agent: &Rc<Agent>, session: &Rc<Session>, answer: Answer) {
    let mut life = Life { agent, session, interpreter: None, unsaid_loss: false, background: 0 };
    match life.start().await {
        Ok(()) => {
            {
                let mut state = session.state.borrow_mut();
                if state.phase == Phase::Starting {
                    state.phase = Phase::Live;
                }
            }
            let _ = answer.send(Ok(()));
            life.go_on().await;
        }
        Err(not_started) => {
            let _ = answer.send(Err(not_started));
        }
    }
    // From here on nothing is taken into the queue.
    session.set_phase(Phase::Closing);
    life.end().await;
    let waiting = std::mem::take(&mut session.state.borrow_mut().queue);
    for run in waiting {
        run.end(closed(&session.create.session));
    }
    let clear = folder::clear(&session.folders, agent);
    let _ = tokio::time::timeout(FOLDER_PATIENCE, clear).await;
}

struct Life<'a> {
    agent: &'a Rc<Agent>,
    session: &'a Rc<Session>,
    interpreter: Option<Interpreter>,
    /// The interpreter has ended between two runs, and nobody has been told.
    unsaid_loss: bool,
    /// What was written since the last run.
    background: u64,
}

impl Life<'_> {
    async fn start(&mut self) -> Result<(), NotStarted> {
        let mut interpreter = Interpreter::start(self.agent, &self.session.create)?;
        let mut words = Vec::new();
        let deadline = Instant::now() + START_PATIENCE;
        let reason = NotStartedReason::Other;
        let message = loop {
            if self.session.is_closing() {
                break "the session was closed".to_owned();
            }
            let heard = poll_fn(|cx| {
                listen(&mut interpreter.outputs, cx, &mut words);
                interpreter.poll_heard(cx)
            });
            tokio::select! {
                heard = heard => match heard {
                    Heard::Said(Said::Ready) => {
                        drop_waiting(&mut interpreter.outputs);
                        self.session.state.borrow_mut().pid = Some(interpreter.pid);
                        self.interpreter = Some(interpreter);
                        return Ok(());
                    }
                    Heard::Said(_) => {}
                    Heard::Failed(failure) => return Err(not_started(failure)),
                    Heard::Vanished => {
                        interpreter.end_strays().await;
                        return Err(NotStarted { reason, message: "its supervisor was killed".into() });
                    }
                    Heard::Ended(ended) => {
                        interpreter.outputs.iter_mut().flatten().for_each(Output::command_over);
                        poll_fn(|cx| { listen(&mut interpreter.outputs, cx, &mut words); Poll::Ready(()) }).await;
                        let words = String::from_utf8_lossy(&words);
                        let how = if libc::WIFSIGNALED(ended.status) {
                            format!("signal {}", libc::WTERMSIG(ended.status))
                        } else {
                            format!("exit code {}", libc::WEXITSTATUS(ended.status))
                        };
                        let message =
                            format!("the interpreter ended before it took code, with {how}: {}", words.trim());
                        return Err(NotStarted { reason, message });
                    }
                },
                () = self.session.work.notified() => {}
                () = tokio::time::sleep_until(deadline) => {
                    break format!("the interpreter did not take code within {} s", START_PATIENCE.as_secs());
                }
            }
        };
        self.interpreter = Some(interpreter);
        self.end().await;
        Err(NotStarted { reason, message })
    }

    /// One run after the other, until the session is closed.
    async fn go_on(&mut self) {
        loop {
            if self.session.is_closing() || self.agent.is_shutting_down() {
                return;
            }
            let next = self.session.state.borrow_mut().queue.pop_front();
            match next {
                Some(run) => Box::pin(self.run(&run)).await,
                None => self.idle().await,
            }
        }
    }

    /// Waits for something to do.
    async fn idle(&mut self) {
        let Some(interpreter) = &mut self.interpreter else {
            self.session.work.notified().await;
            return;
        };
        let background = &mut self.background;
        let heard = poll_fn(|cx| {
            *background += discard(&mut interpreter.outputs, cx);
            interpreter.poll_heard(cx)
        });
        tokio::select! {
            heard = heard => match heard {
                // Nothing is awaited of it.
                Heard::Said(_) => {}
                Heard::Ended(_) | Heard::Failed(_) => self.lose(),
                Heard::Vanished => {
                    interpreter.end_strays().await;
                    self.lose();
                }
            },
            () = self.session.work.notified() => {}
        }
    }

    /// The interpreter has ended by itself, between two runs.
    fn lose(&mut self) {
        self.interpreter = None;
        self.unsaid_loss = true;
        let mut state = self.session.state.borrow_mut();
        state.pid = None;
    }

    /// Ends the interpreter.
    async fn end(&mut self) {
        let Some(mut interpreter) = self.interpreter.take() else { return };
        self.session.state.borrow_mut().pid = None;
        interpreter.order(Order::Kill);
        let mut patience = Some(Instant::now() + KILL_PATIENCE);
        loop {
            let heard = poll_fn(|cx| {
                discard(&mut interpreter.outputs, cx);
                interpreter.poll_heard(cx)
            });
            tokio::select! {
                heard = heard => match heard {
                    Heard::Said(_) => {}
                    Heard::Ended(_) | Heard::Failed(_) => return,
                    Heard::Vanished => return interpreter.end_strays().await,
                },
                () = until(patience) => {
                    patience = None;
                    interpreter.kill_supervisor();
                }
            }
        }
    }

    /// Waits until the interpreter is done with the last run, and looks whether it has ended: that would be
    /// taken for the next run's doing.
    async fn settle(&mut self) {
        loop {
            let Some(interpreter) = &mut self.interpreter else { return };
            match now(interpreter).await {
                Some(Heard::Said(_)) => {}
                Some(Heard::Ended(_) | Heard::Failed(_) | Heard::Vanished) => return self.lose(),
                None if interpreter.is_ready() || self.session.is_closing() => return,
                None => self.idle().await,
            }
        }
    }

    /// Does a run.
    async fn run(&mut self, run: &Rc<Run>) {
        self.session.state.borrow_mut().current = Some(Rc::clone(run));
        let result = self.carry_out(run).await;
        {
            let mut state = self.session.state.borrow_mut();
            state.current = None;
            state.used_ms = uptime_ms();
            if let Reply::Ran(ran) = &result {
                state.last = Some(ran.clone());
            }
        }
        run.end(result);
        if self.interpreter.is_none() && !self.session.is_closing() && !self.agent.is_shutting_down() {
            // For the next run, which tries again if it cannot be started now.
            let _ = self.start_again().await;
        }
    }

    async fn start_again(&mut self) -> Result<(), NotStarted> {
        self.session.state.borrow_mut().restarts += 1;
        self.background = 0;
        self.start().await
    }

    async fn carry_out(&mut self, run: &Rc<Run>) -> Reply {
        self.settle().await;
        if self.interpreter.is_none()
            && let Err(not_started) = self.start_again().await
        {
            return Reply::NotStarted(not_started);
        }
        let folder = self.session.folders.borrow_mut().open();
        let folder = match folder {
            Ok(folder) => folder,
            Err(errno) => {
                let message = format!("cannot make a folder for what the run leaves: {}", errno.desc());
                return failure(FailureCode::Failed, message);
            }
        };
        let Some(interpreter) = &mut self.interpreter else {
            return failure(FailureCode::Failed, "there is no interpreter".into());
        };
        // What is in the pipes now is none of its.
        let background = std::mem::take(&mut self.background) + drop_waiting(&mut interpreter.outputs);
        let since = Instant::now();
        let before = self.agent.tally();
        let nul = run.state.borrow().code.iter().position(|byte| *byte == 0);
        let session_left = {
            let mut state = self.session.state.borrow_mut();
            state.runs += 1;
            state.used_ms = uptime_ms();
            self.session
                .create
                .max_output_bytes
                .map_or(u64::MAX, |most| most.saturating_sub(state.output_bytes))
        };
        run.tell_start(interpreter.pid);
        if let Some(nul) = nul
            && self.session.create.driver == Driver::Bash
        {
            return Reply::Ran(Box::new(without_nul(run, nul, session_left, background)));
        }
        {
            let mut state = run.state.borrow_mut();
            let code = std::mem::take(&mut state.code);
            interpreter.begin(run.tag, &code, &folder, state.stdin.as_ref().map(RunStdin::path));
        }
        let mut course = Course {
            session: self.session,
            run,
            budget: run.budget(session_left),
            written: [0; 2],
            timeout: run.timeout.map(|timeout| since + timeout),
            pressure: None,
        };
        let end = course.follow(interpreter).await;
        let outputs = &mut interpreter.outputs;
        outputs.iter_mut().flatten().for_each(Output::command_over);
        course.pass_rest(outputs).await;
        outputs.iter_mut().flatten().for_each(Output::go_on);
        let duration = since.elapsed();
        let Course { budget, written: [stdout_bytes, stderr_bytes], pressure, .. } = course;
        let cause = pressure.map(|pressure| pressure.cause);
        let (outcome, exit_code) = match &end {
            End::Said { outcome, code } => said_outcome(*outcome, *code, cause),
            End::Ended(ended) => ended_outcome(ended, interpreter, cause),
        };
        let state_lost = matches!(end, End::Ended(_));
        if state_lost {
            self.interpreter = None;
            self.session.state.borrow_mut().pid = None;
        }
        let touched = self.session.folders.borrow().is_touched();
        let artifacts = if touched {
            let collect = folder::collect(&self.session.folders, self.agent);
            tokio::time::timeout(FOLDER_PATIENCE, collect).await.ok().flatten()
        } else {
            None
        };
        self.session.state.borrow_mut().output_bytes += budget.passed;
        Reply::Ran(Box::new(Ran {
            run: run.tag.run,
            outcome,
            exit_code,
            state_lost,
            state_lost_before: std::mem::take(&mut self.unsaid_loss),
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            stdout_bytes,
            stderr_bytes,
            truncated: budget.reached(),
            background_bytes: background,
            artifacts,
            exceeded: self.agent.tally().exceeded_since(before),
        }))
    }
}

/// The result of code that a shell cannot be given: it would leave the NUL out and run what is left.
fn without_nul(run: &Run, at: usize, session_left: u64, background: u64) -> Ran {
    let message = format!("bash: the code holds a NUL at byte {at}\n");
    let mut budget = run.budget(session_left);
    let _ = run.add(Kind::Stderr, message.len(), &mut budget, |room| {
        room[..message.len()].copy_from_slice(message.as_bytes());
        Poll::Ready(message.len())
    });
    Ran {
        run: run.tag.run,
        outcome: RunOutcome::Exception,
        exit_code: 2,
        state_lost: false,
        state_lost_before: false,
        duration_us: 0,
        stdout_bytes: 0,
        stderr_bytes: message.len() as u64,
        truncated: budget.reached(),
        background_bytes: background,
        artifacts: None,
        exceeded: Vec::new(),
    }
}

/// What can be heard without waiting.
async fn now(interpreter: &mut Interpreter) -> Option<Heard> {
    poll_fn(|cx| match interpreter.poll_heard(cx) {
        Poll::Ready(heard) => Poll::Ready(Some(heard)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Waits for a moment that may never come.
pub(super) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Reads and drops what there is. How much.
fn discard(outputs: &mut [Option<Output>; 2], cx: &mut Context<'_>) -> u64 {
    let mut room = [0; 16 * 1024];
    let mut dropped = 0;
    for slot in outputs {
        for _ in 0..ROUNDS {
            let Some(output) = slot else { break };
            let Poll::Ready(read) = output.poll_read(cx, &mut room) else { break };
            if read == 0 {
                *slot = None;
            }
            dropped += read as u64;
        }
    }
    if dropped > 0 {
        cx.waker().wake_by_ref();
    }
    dropped
}

/// Keeps the last of what is said on stderr, and drops the rest.
fn listen(outputs: &mut [Option<Output>; 2], cx: &mut Context<'_>, words: &mut Vec<u8>) {
    let mut room = [0; 16 * 1024];
    for (index, slot) in outputs.iter_mut().enumerate() {
        for round in 0.. {
            let Some(output) = slot else { break };
            if round == ROUNDS {
                // Others have their turn.
                cx.waker().wake_by_ref();
                break;
            }
            let Poll::Ready(read) = output.poll_read(cx, &mut room) else { break };
            if read == 0 {
                *slot = None;
            }
            if index == 1 {
                words.extend_from_slice(&room[..read]);
                words.drain(..words.len().saturating_sub(LAST_WORDS));
            }
        }
    }
}

/// Drops what is in the pipes at this moment. How much.
fn drop_waiting(outputs: &mut [Option<Output>; 2]) -> u64 {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut room = [0; 16 * 1024];
    let mut dropped = 0;
    for output in outputs.iter_mut().flatten() {
        output.command_over();
        while let Poll::Ready(read @ 1..) = output.poll_read(&mut cx, &mut room) {
            dropped += read as u64;
        }
        output.go_on();
    }
    dropped
}
