//! A run while it runs: what it writes is passed on, and who wants its end presses harder and harder.
//!
//! ```text
//!   timeout, interrupt ──▶ SIGINT ──grace──▶ SIGTERM ──grace──▶ kill ──▶ kill the supervisor
//!   closing ───────────────────────────────────────────────────┘
//! ```

use super::Session;
use super::interpreter::{Heard, Interpreter, Outcome, Said};
use super::life::{KILL_PATIENCE, ROUNDS, until};
use super::run::{Budget, Run};
use crate::exec::{Ended, Order, Output};
use firn_protocol::RunOutcome;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// How a run ended.
pub(super) enum End {
    Said { outcome: Outcome, code: i32 },
    Ended(Ended),
}

/// Who wants a run to end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Interrupt,
    Timeout,
    Closing,
}

/// What has been done about that.
pub(super) struct Pressure {
    pub(super) cause: Cause,
    /// The last signal that was sent.
    signal: i32,
    grace: Duration,
    /// When there is the next.
    next: Instant,
}

/// A run while it runs.
pub(super) struct Course<'a> {
    pub(super) session: &'a Rc<Session>,
    pub(super) run: &'a Rc<Run>,
    pub(super) budget: Budget,
    pub(super) written: [u64; 2],
    pub(super) timeout: Option<Instant>,
    pub(super) pressure: Option<Pressure>,
}

impl Course<'_> {
    /// To its end.
    pub(super) async fn follow(&mut self, interpreter: &mut Interpreter) -> End {
        loop {
            self.obey(interpreter);
            let deadline = self.pressure.as_ref().map(|pressure| pressure.next).or(self.timeout);
            let session = self.session;
            let heard = poll_fn(|cx| self.poll(interpreter, cx));
            tokio::select! {
                biased;
                () = until(deadline) => self.press_on(interpreter),
                () = session.work.notified() => {}
                heard = heard => match heard {
                    Heard::Said(Said::Done { tag, outcome, code }) if tag == self.run.tag => {
                        return End::Said { outcome, code };
                    }
                    Heard::Said(Said::Begun(tag)) if tag == self.run.tag => self.run.stdin_opened(),
                    Heard::Said(_) => {}
                    Heard::Ended(ended) => return End::Ended(ended),
                    Heard::Failed(_) => return End::Ended(Ended { status: libc::SIGKILL, ..Ended::default() }),
                    Heard::Vanished => {
                        interpreter.end_strays().await;
                        return End::Ended(Ended { status: libc::SIGKILL, ..Ended::default() });
                    }
                },
            }
        }
    }

    fn poll(&mut self, interpreter: &mut Interpreter, cx: &mut Context<'_>) -> Poll<Heard> {
        for _ in 0..ROUNDS {
            if let Poll::Ready(heard) = interpreter.poll_heard(cx) {
                return Poll::Ready(heard);
            }
            self.run.poll_stdin(cx);
            if !self.poll_outputs(&mut interpreter.outputs, cx) {
                return Poll::Pending;
            }
        }
        // Others have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_outputs(&mut self, outputs: &mut [Option<Output>; 2], cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for (slot, written) in outputs.iter_mut().zip(&mut self.written) {
            let Some(output) = slot else { continue };
            if !self.run.has_room() {
                break;
            }
            let (kind, chunk) = (output.kind, output.chunk);
            let read = self.run.add(kind, chunk, &mut self.budget, |room| output.poll_read(cx, room));
            let Poll::Ready(read) = read else { continue };
            if read == 0 {
                *slot = None;
                continue;
            }
            progress = true;
            *written += read as u64;
        }
        progress
    }

    /// Passes on what was in the pipes when the run ended.
    pub(super) async fn pass_rest(&mut self, outputs: &mut [Option<Output>; 2]) {
        for (output, written) in outputs.iter_mut().flatten().zip(&mut self.written) {
            loop {
                if self.run.has_room() {
                    let (kind, chunk) = (output.kind, output.chunk);
                    let mut cx = Context::from_waker(std::task::Waker::noop());
                    let read = |room: &mut [u8]| output.poll_read(&mut cx, room);
                    let Poll::Ready(read @ 1..) = self.run.add(kind, chunk, &mut self.budget, read) else {
                        break;
                    };
                    *written += read as u64;
                } else if self.session.is_closing() {
                    return;
                } else {
                    self.session.work.notified().await;
                }
            }
        }
    }

    /// Does what the host wishes.
    fn obey(&mut self, interpreter: &Interpreter) {
        if self.session.is_closing() && self.pressure.as_ref().is_none_or(|by| by.cause != Cause::Closing) {
            interpreter.order(Order::Kill);
            let grace = KILL_PATIENCE;
            let next = Instant::now() + grace;
            self.pressure = Some(Pressure { cause: Cause::Closing, signal: libc::SIGKILL, grace, next });
        }
        let (interrupt, signals) = {
            let mut state = self.run.state.borrow_mut();
            (state.interrupt.take(), std::mem::take(&mut state.signals))
        };
        for signal in signals {
            interpreter.order(Order::Signal(signal));
        }
        match (interrupt, &mut self.pressure) {
            (Some(grace), None) => self.press(Cause::Interrupt, grace, interpreter),
            // Whoever asks again may be less patient.
            (Some(grace), Some(pressure)) if pressure.signal != libc::SIGKILL => {
                pressure.grace = grace;
                pressure.next = pressure.next.min(Instant::now() + grace);
            }
            (Some(_), Some(_)) | (None, _) => {}
        }
    }

    fn press(&mut self, cause: Cause, grace: Duration, interpreter: &Interpreter) {
        interpreter.order(Order::Signal(libc::SIGINT));
        self.pressure = Some(Pressure { cause, signal: libc::SIGINT, grace, next: Instant::now() + grace });
    }

    /// Time is up.
    fn press_on(&mut self, interpreter: &Interpreter) {
        let Some(pressure) = &mut self.pressure else {
            self.timeout = None;
            return self.press(Cause::Timeout, self.run.grace(), interpreter);
        };
        if pressure.signal == libc::SIGINT {
            interpreter.order(Order::Signal(libc::SIGTERM));
            pressure.signal = libc::SIGTERM;
            pressure.next = Instant::now() + pressure.grace;
        } else if pressure.signal == libc::SIGTERM {
            interpreter.order(Order::Kill);
            pressure.signal = libc::SIGKILL;
            pressure.next = Instant::now() + KILL_PATIENCE;
        } else {
            interpreter.kill_supervisor();
            pressure.next = Instant::now() + KILL_PATIENCE;
        }
    }
}

/// The outcome and exit code of a run that its interpreter has told the end of.
pub(super) fn said_outcome(outcome: Outcome, code: i32, cause: Option<Cause>) -> (RunOutcome, i32) {
    match (outcome, cause) {
        (_, Some(Cause::Timeout)) => (RunOutcome::TimedOut, 124),
        (Outcome::Interrupted | Outcome::Exception, Some(Cause::Interrupt | Cause::Closing)) => {
            (RunOutcome::Interrupted, 130)
        }
        // A shell goes on when what it waited for was interrupted, and then has nothing to go on with.
        (Outcome::Ok, Some(Cause::Interrupt | Cause::Closing)) if code > 128 => {
            (RunOutcome::Interrupted, 130)
        }
        (Outcome::Ok, _) => (RunOutcome::Ok, code),
        (Outcome::Exception | Outcome::Interrupted, None) => (RunOutcome::Exception, code),
        (Outcome::Exited, _) => (RunOutcome::Exited { code }, code),
    }
}

/// Those of a run that its interpreter has ended with.
pub(super) fn ended_outcome(
    ended: &Ended,
    interpreter: &Interpreter,
    cause: Option<Cause>,
) -> (RunOutcome, i32) {
    match cause {
        Some(Cause::Timeout) => (RunOutcome::TimedOut, 124),
        Some(Cause::Interrupt | Cause::Closing) => (RunOutcome::Interrupted, 130),
        // A shutdown ends all without asking.
        None if ended.killed => (RunOutcome::Interrupted, 130),
        None if libc::WIFSIGNALED(ended.status) => {
            let signal = libc::WTERMSIG(ended.status);
            (RunOutcome::Killed { signal }, 128 + signal)
        }
        None => {
            let code = libc::WEXITSTATUS(ended.status);
            let broken = interpreter.was_cut_off(ended);
            (if broken { RunOutcome::Broken } else { RunOutcome::Exited { code } }, code)
        }
    }
}
