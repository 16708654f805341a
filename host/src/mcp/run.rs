//! One run, from its beginning on the daemon's side to its end.
//!
//! ```text
//!   Job ── begin ──▶ Run ── streams, session ──▶ Finished
//!                     ▲
//!                     └ cancelled: a session's run is interrupted and the session kept; a sandbox that
//!                       was made for the run goes
//! ```

use super::captured::Streams;
use super::progress::Progress;
use crate::api::client::ClientError;
use crate::api::stream::{CommandStream, StreamError, StreamEvent};
use crate::api::types::{Notice, Refusal, RefusalKind, SandboxInfo, SessionInfo};
use crate::causes::in_full;
use crate::spec::protection::Protection;
use bytes::Bytes;
use firn_protocol::{Artifacts, EndedBy, Exceeded, ExitStatus, Exited, Input, Ran, RunOutcome};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// What a shell adds to the number of the signal that ended a command.
const BY_SIGNAL: i32 = 128;

/// Streams that are read while they are written.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared(Arc<Mutex<Streams>>);

impl Shared {
    /// As they are now.
    pub(super) fn lock(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has come since the last time.
    pub(super) fn take(&self) -> Streams {
        std::mem::take(&mut self.lock())
    }
}

/// A run that the daemon has begun.
#[derive(Debug)]
pub(super) struct Run {
    stream: CommandStream,
    /// What is still to be sent as stdin. None: its end was sent.
    stdin: Option<Bytes>,
    in_session: bool,
}

/// A run that is over.
#[derive(Clone, Debug, Default)]
pub(super) struct Finished {
    pub(super) end: End,
    pub(super) duration_us: u64,
    /// Output was dropped on the way.
    pub(super) cut: bool,
    pub(super) protection: Option<Box<Protection>>,
    pub(super) session: Option<Box<SessionInfo>>,
    pub(super) artifacts: Option<Artifacts>,
    pub(super) exceeded: Vec<Exceeded>,
    /// The session knows nothing any more.
    pub(super) state_lost: bool,
    /// It knew nothing any more when the run began.
    pub(super) state_lost_before: bool,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The code did, with this exit code.
    Exited(i32),
    /// Its time was over.
    TimedOut,
    /// Somebody did not want it any more.
    Interrupted,
    /// It was not to be had.
    Failed(Failure),
}

impl Default for End {
    fn default() -> End {
        End::Exited(0)
    }
}

/// Why code was not run, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) blame: Blame,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// Who asked: another call may do better.
    Caller,
    /// The sandbox's, or that of what makes it.
    Sandbox,
}

impl Failure {
    /// One of the caller's.
    pub(super) fn of_caller(message: impl Into<String>) -> Failure {
        Failure { blame: Blame::Caller, message: message.into(), hint: None }
    }

    /// One of what makes sandboxes.
    pub(super) fn of_sandbox(message: impl Into<String>) -> Failure {
        Failure { blame: Blame::Sandbox, message: message.into(), hint: None }
    }
}

impl From<Refusal> for Failure {
    fn from(Refusal { kind, message, hint }: Refusal) -> Failure {
        let blame = match kind {
            RefusalKind::Invalid
            | RefusalKind::NotFound
            | RefusalKind::Ambiguous
            | RefusalKind::Conflict
            | RefusalKind::TooMany => Blame::Caller,
            RefusalKind::Launch
            | RefusalKind::Sandbox
            | RefusalKind::Unsupported
            | RefusalKind::Stopping
            | RefusalKind::Internal => Blame::Sandbox,
        };
        Failure { blame, message, hint }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match error {
            ClientError::Refused(refusal) => refusal.into(),
            error => {
                let hint = error.hint().map(str::to_owned);
                Failure { hint, ..Failure::of_sandbox(in_full(&error)) }
            }
        }
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Failure {
        Failure::of_sandbox(in_full(&error))
    }
}

impl Run {
    /// One of code that the daemon was given.
    pub(super) fn of_code(stream: CommandStream, in_session: bool) -> Run {
        Run { stream, stdin: None, in_session }
    }

    /// One of a program that reads the code.
    pub(super) fn reading(stream: CommandStream, code: Bytes) -> Run {
        Run { stream, stdin: Some(code), in_session: false }
    }

    /// Follows it to its end. `began` is called once when there is a sandbox for it.
    pub(super) async fn finish(
        mut self,
        streams: &Shared,
        mut progress: Option<Progress>,
        cancelled: &CancellationToken,
        mut began: impl FnMut(),
    ) -> Finished {
        let mut finished = Finished::default();
        let mut there = false;
        let mut interrupted = false;
        loop {
            if let Err(error) = self.send_stdin() {
                finished.end = End::Failed(error.into());
                return finished;
            }
            let event = tokio::select! {
                event = self.stream.next() => event,
                () = cancelled.cancelled(), if !interrupted => {
                    interrupted = true;
                    if !(self.in_session && there && self.stream.send(&Input::Cancel).is_ok()) {
                        self.stream.abandon().await;
                        finished.end = End::Interrupted;
                        return finished;
                    }
                    continue;
                }
            };
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    finished.end = End::Failed(error.into());
                    return finished;
                }
            };
            let shown = match event {
                StreamEvent::Stdout(chunk) => {
                    streams.lock().stdout.push(&chunk);
                    progress.as_mut().map(|progress| progress.stdout(&chunk))
                }
                StreamEvent::Stderr(chunk) => {
                    streams.lock().stderr.push(&chunk);
                    progress.as_mut().map(|progress| progress.stderr(&chunk))
                }
                StreamEvent::Started | StreamEvent::StdinRoom => None,
                StreamEvent::Skipped(_) | StreamEvent::Cut => {
                    finished.cut = true;
                    None
                }
                StreamEvent::Exited(exited) => {
                    finished.exited(&exited);
                    None
                }
                StreamEvent::Ran(ran) => {
                    finished.ran(*ran);
                    None
                }
                StreamEvent::NotStarted(reason) => {
                    finished.end = End::Failed(Failure::of_sandbox(reason.message));
                    None
                }
                StreamEvent::Notice(notice) => {
                    if finished.heed(notice, &mut there, &mut began) {
                        return finished;
                    }
                    None
                }
            };
            if let (Some(Some(message)), Some(progress)) = (shown, &progress) {
                // A client that does not read must not keep its own cancel from being heard.
                tokio::select! {
                    () = progress.tell(message) => {}
                    () = cancelled.cancelled(), if !interrupted => {}
                }
            }
        }
    }

    fn send_stdin(&mut self) -> Result<(), StreamError> {
        let Some(left) = &mut self.stdin else { return Ok(()) };
        let Some(room) = self.stream.stdin_room() else {
            self.stdin = None;
            return Ok(());
        };
        if room > 0 && !left.is_empty() {
            self.stream.send_stdin(left.split_to(room.min(left.len())))?;
        }
        if left.is_empty() {
            self.stdin = None;
            self.stream.end_stdin()?;
        }
        Ok(())
    }
}

impl Finished {
    /// One that did not begin.
    pub(super) fn failed(failure: impl Into<Failure>) -> Finished {
        Finished { end: End::Failed(failure.into()), ..Finished::default() }
    }

    fn exited(&mut self, exited: &Exited) {
        self.end = match (exited.ended_by, exited.status) {
            (EndedBy::Timeout, _) => End::TimedOut,
            (EndedBy::Cancel, _) => End::Interrupted,
            (EndedBy::Itself, ExitStatus::Code(code)) => End::Exited(code),
            (EndedBy::Itself, ExitStatus::Signal(signal)) => End::Exited(BY_SIGNAL.saturating_add(signal)),
        };
        self.duration_us = exited.duration_us;
        self.cut |= exited.truncated;
        self.exceeded.extend(&exited.exceeded);
    }

    fn ran(&mut self, ran: Ran) {
        self.exceeded.extend(&ran.exceeded);
        self.end = match ran.outcome {
            RunOutcome::TimedOut => End::TimedOut,
            RunOutcome::Interrupted => End::Interrupted,
            RunOutcome::Ok
            | RunOutcome::Exception
            | RunOutcome::Exited { .. }
            | RunOutcome::Killed { .. }
            | RunOutcome::Broken => End::Exited(ran.exit_code),
        };
        self.duration_us = ran.duration_us;
        self.cut |= ran.truncated.is_some();
        self.artifacts = ran.artifacts;
        self.state_lost = ran.state_lost;
        self.state_lost_before = ran.state_lost_before;
    }

    /// Takes note of what the daemon says, and says whether that was the last.
    fn heed(&mut self, notice: Notice, there: &mut bool, began: &mut impl FnMut()) -> bool {
        match notice {
            Notice::Progress { .. } => return false,
            Notice::Sandbox { sandbox } => {
                let SandboxInfo { protection, .. } = *sandbox;
                self.protection = protection.map(Box::new);
            }
            Notice::Session { session, .. } => self.session = Some(session),
            Notice::Ended { exceeded, timed_out, protection } => {
                self.exceeded.extend(exceeded);
                self.protection = protection.or(self.protection.take());
                if timed_out {
                    self.end = End::TimedOut;
                }
                return true;
            }
            Notice::Detached { .. } => return true,
            Notice::Failed { refusal, .. } => {
                self.end = End::Failed(refusal.into());
                return true;
            }
        }
        *there = true;
        began();
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_caller_who_asks_for_what_makes_no_sense() {
        let of = |kind| Failure::from(Refusal { kind, message: String::new(), hint: None }).blame;
        assert_eq!(of(RefusalKind::Conflict), Blame::Caller);
        assert_eq!(of(RefusalKind::Launch), Blame::Sandbox);
    }

    #[test]
    fn what_is_taken_does_not_come_again() {
        let shared = Shared::default();
        shared.lock().stdout.push(b"a");
        assert_eq!(shared.take().stdout.text(), "a");
        shared.lock().stdout.push(b"b");
        assert_eq!(shared.take().stdout.text(), "b");
    }
}
