//! What the audit log is told at the end of a command, or of a run of a session.

use crate::api::types::Caller;
use crate::sandbox::audit::Details;
use crate::sandbox::entry::Entry;
use crate::spec::protection::milliseconds;
use firn_protocol::{EndedBy, ExitStatus, Exited, Ran};
use std::time::{Duration, Instant};

/// A run of a session.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// What its session is called.
    pub(super) session: String,
    /// What the agent calls that.
    pub(super) inside: String,
    pub(super) number: u64,
    /// How long it may take to end when it was interrupted.
    pub(super) grace: Duration,
}

/// What is told of a command at its end.
#[derive(Debug)]
pub(super) struct Account {
    started: Instant,
    by: Option<Caller>,
    number: Option<u64>,
    run: Option<Run>,
}

impl Account {
    /// Of what begins now: a command, which has a number if it is detached, or a run.
    pub(super) fn open(by: Option<Caller>, number: Option<u64>, run: Option<Run>) -> Account {
        Account { started: Instant::now(), by, number, run }
    }

    fn details(&self) -> Details {
        let details = Details::default().with("durationMs", milliseconds(self.started.elapsed()));
        let details = self.number.iter().fold(details, |details, number| details.with("command", *number));
        self.run.iter().fold(details, |details, run| {
            details.with("session", run.session.clone()).with("run", run.number)
        })
    }

    fn event(&self) -> &'static str {
        if self.run.is_some() { "run-ended" } else { "exec-exited" }
    }

    pub(super) fn ran(self, entry: &Entry, ran: &Ran) {
        let details = self
            .details()
            .with("exitCode", ran.exit_code)
            .with("outcome", serde_json::to_value(ran.outcome).unwrap_or_default())
            .with("stateLost", ran.state_lost)
            .with("outputBytes", ran.stdout_bytes.saturating_add(ran.stderr_bytes));
        entry.note(self.event(), self.by, details);
    }

    pub(super) fn close(self, entry: &Entry, exited: &Exited) {
        let details = match exited.status {
            ExitStatus::Code(code) => self.details().with("exitCode", code),
            ExitStatus::Signal(signal) => self.details().with("signal", signal),
        };
        let details = match exited.ended_by {
            EndedBy::Itself => details,
            EndedBy::Timeout => details.with("endedBy", "timeout"),
            EndedBy::Cancel => details.with("endedBy", "cancel"),
        };
        let details = details.with("outputBytes", exited.stdout_bytes.saturating_add(exited.stderr_bytes));
        let exceeded = serde_json::to_value(&exited.exceeded).unwrap_or_default();
        entry.note("exec-exited", self.by, details.with("exceeded", exceeded));
    }

    pub(super) fn not_started(self, entry: &Entry, reason: &str) {
        entry.note(self.event(), self.by, self.details().with("reason", reason));
    }

    /// By `client`, which went away; `sandbox`, which ended or broke the protocol; or `daemon`, which waited
    /// long enough.
    pub(super) fn end(self, entry: &Entry, ended_by: &str) {
        entry.note(self.event(), self.by, self.details().with("endedBy", ended_by));
    }
}
