//! What can be asked of one sandbox.

use super::SandboxId;
use super::activity::Activity;
use super::audit::Details;
use super::command::Command;
use super::entry::{Entry, Termination, Work, Written};
use super::launch::Ended;
use super::log::MOST_READ;
use super::manager::{OperationError, check_name};
use super::state::Operation;
use crate::api::types::{
    AttachRequest, Caller, ExecRequest, ProcessRow, SandboxInfo, StatsInfo, UpdateRequest,
};
use crate::causes::in_full;
use crate::guest::Connection;
use crate::spec::Size;
use crate::sys::clock;
use crate::sys::limits::{Cpus, Limits};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// A sandbox of the manager's. Keeps it from nothing.
#[derive(Clone, Debug)]
pub(crate) struct Handle(pub(super) Arc<Entry>);

impl Handle {
    /// Its id.
    pub(crate) fn id(&self) -> SandboxId {
        self.0.id
    }

    /// As it is now.
    pub(crate) fn info(&self) -> SandboxInfo {
        self.0.info()
    }

    /// Starts a command. A detached one has started when this returns, and is attached to.
    pub(crate) async fn exec(
        &self,
        request: ExecRequest,
        by: Option<Caller>,
    ) -> Result<Command, OperationError> {
        Command::start(&self.0, request, by).await
    }

    /// Attaches to a detached command.
    pub(crate) async fn attach(&self, request: AttachRequest) -> Result<Command, OperationError> {
        Command::attach(&self.0, &request).await
    }

    /// A connection to its agent for something short: files, processes. While the guard lives the
    /// sandbox is not idle.
    pub(crate) async fn connect(&self) -> Result<(Connection, Activity), OperationError> {
        let up = self.0.admit(Operation::Use)?;
        let activity = self.0.activities.begin();
        let connection =
            up.dialer.dial().await.map_err(|error| OperationError::Sandbox(Arc::new(error.into())))?;
        Ok((connection, activity))
    }

    /// Some of what a detached command wrote, from this byte on: where that begins, the bytes, and whether
    /// the command may write more. The last that is detached, if none is named.
    pub(crate) fn log(&self, command: Option<u64>, from: u64) -> Result<(u64, Bytes, bool), OperationError> {
        let facts = self.0.written().facts.clone();
        let number = command.or(facts.main_command).unwrap_or(facts.last_command);
        let unknown = || OperationError::NoCommand { id: self.0.id, command };
        if number == 0 || number > facts.last_command {
            return Err(unknown());
        }
        // Before it is read: what is written after this is read next time.
        let more = self.0.is_followed(number);
        let (from, bytes) =
            self.0.logs().read(number, from).map_err(OperationError::Log)?.ok_or_else(unknown)?;
        let more = more || bytes.len() == MOST_READ;
        Ok((from, bytes.into(), more))
    }

    /// The last of the guest's console, of one that ended by itself.
    pub(crate) fn console(&self) -> String {
        self.0.status().console
    }

    /// The last of the guest's console.
    pub(crate) async fn console_now(&self) -> String {
        match self.0.console().await {
            Some(console) => console,
            None => self.console(),
        }
    }

    /// Its processes.
    pub(crate) async fn processes(&self) -> Result<Vec<ProcessRow>, OperationError> {
        let (mut connection, _activity) = self.connect().await?;
        let processes = connection
            .processes()
            .await
            .map_err(|error| OperationError::Sandbox(Arc::new(Ended::from(error))))?;
        Ok(processes.processes.into_iter().map(ProcessRow::from).collect())
    }

    /// What it uses.
    pub(crate) fn stats(&self) -> Result<StatsInfo, OperationError> {
        // Also of one that stands still.
        let up = self.0.admit(Operation::Limit)?;
        let usage = up.usage();
        let limit = self.0.written().facts.memory.or(up.memory_limit);
        Ok(StatsInfo {
            cpu_us: usage.cpu_us.unwrap_or_default(),
            memory_bytes: usage.memory_bytes.unwrap_or_default(),
            memory_limit_bytes: limit,
            processes: usage.processes.unwrap_or_default(),
            io_read_bytes: usage.io_read_bytes,
            io_written_bytes: usage.io_write_bytes,
        })
    }

    /// Has it stand still.
    pub(crate) async fn pause(&self, by: Option<Caller>) -> Result<(), OperationError> {
        self.0.admit(Operation::Pause)?;
        self.0.order(Work::Pause).await?;
        self.0.note("paused", by, Details::default());
        Ok(())
    }

    /// Has it go on.
    pub(crate) async fn resume(&self, by: Option<Caller>) -> Result<(), OperationError> {
        self.0.admit(Operation::Resume)?;
        self.0.order(Work::Resume).await?;
        self.0.activities.look_again();
        self.0.note("resumed", by, Details::default());
        Ok(())
    }

    /// Ends it, orderly if that takes no longer than `grace`, and keeps its record. What could not be
    /// written back is the error.
    pub(crate) async fn stop(&self, grace: Duration, by: Option<Caller>) -> Result<(), OperationError> {
        self.0.admit(Operation::Stop)?;
        self.0.note("stop-asked", by, Details::default());
        let reason = "it was stopped".to_owned();
        self.end(Termination::Stop { grace, reason }).await
    }

    /// Has everything that is shared written back, ends it and forgets it: the end of a `run`.
    pub(crate) async fn finish(&self, by: Option<Caller>) -> Result<(), OperationError> {
        let _ = by;
        self.end(Termination::Finish).await
    }

    /// Ends it at once and forgets it. Nothing of it is left when this returns.
    pub(crate) async fn destroy(&self, by: Option<Caller>) -> Result<(), OperationError> {
        self.0.note("destroy-asked", by, Details::default());
        let _ = self.end(Termination::Destroy).await;
        let status = self.0.status();
        if !status.gone {
            // It was over: nobody runs it any more. What could not be removed then may be now.
            let site = self.0.site();
            let removed = tokio::task::spawn_blocking(move || site.unwind()).await;
            if let Ok(removed) = removed {
                removed?;
            }
            self.0.is_gone(status.end);
            self.0.note("destroyed", None, Details::default());
        }
        Ok(())
    }

    async fn end(&self, termination: Termination) -> Result<(), OperationError> {
        let mut status = self.0.watch();
        let before = status.borrow_and_update().clone();
        if before.gone || before.state.is_over() {
            return Ok(());
        }
        self.0.terminate(termination);
        let ended = status.wait_for(|status| status.gone || status.state.is_over()).await;
        match ended.ok().and_then(|status| status.end.clone()) {
            Some(ended) => Err(OperationError::Sandbox(ended)),
            None => Ok(()),
        }
    }

    /// Changes what can be changed.
    pub(crate) async fn update(
        &self,
        request: UpdateRequest,
        by: Option<Caller>,
    ) -> Result<SandboxInfo, OperationError> {
        let UpdateRequest { name, description, memory_bytes, processes, cpus, idle_timeout_ms, lifetime_ms } =
            request;
        if let Some(name) = &name {
            check_name(name)?;
        }
        let mut limits = None;
        if memory_bytes.is_some() || processes.is_some() || cpus.is_some() {
            let up = self.0.admit(Operation::Limit)?;
            if up.grade == crate::spec::Grade::Vm {
                return Err(OperationError::Unsupported(
                    "the memory, processes and processors of a vm are those it booted with",
                ));
            }
            let parsed: Option<Cpus> =
                cpus.as_deref().map(str::parse).transpose().map_err(crate::spec::SpecError::from)?;
            crate::spec::check_limits(up.grade, memory_bytes.map(Size), processes)?;
            limits = Some(Limits {
                memory: memory_bytes,
                processes: processes.map(super::launch::with_ours),
                cpus: parsed,
            });
        }
        let before = self.0.written().clone();
        if let Some(name) = &name {
            self.0.shared.rename(self.0.id, name)?;
        }
        {
            let mut written = self.0.written();
            let facts = &mut written.facts;
            let time = |ms: u64| (ms > 0).then_some(ms);
            if let Some(ms) = idle_timeout_ms {
                facts.idle_timeout_ms = time(ms);
            }
            if let Some(ms) = lifetime_ms {
                facts.lifetime_ms = time(ms);
            }
            facts.description = description.or(facts.description.take());
            facts.memory = memory_bytes.or(facts.memory);
            facts.processes = processes.or(facts.processes);
            facts.cpus = cpus.or(facts.cpus.take());
        }
        // Written down before it is done, as everything is.
        let changed = match (self.0.save_facts(), limits) {
            (Err(error), _) => Err(error.into()),
            (Ok(()), Some(limits)) => self.0.order(Work::Limit(limits)).await,
            (Ok(()), None) => Ok(()),
        };
        if let Err(error) = changed {
            self.undo_update(before);
            return Err(error);
        }
        self.0.activities.look_again();
        let event = if name.is_some() { "renamed" } else { "updated" };
        self.0.note(event, by, Details::default().with("name", self.0.written().name.clone()));
        Ok(self.info())
    }

    /// What was to be changed stays as it was `before`.
    fn undo_update(&self, before: Written) {
        {
            let mut written = self.0.written();
            let Written { name, facts } = before;
            written.name = name;
            // The rest may have changed meanwhile.
            written.facts.idle_timeout_ms = facts.idle_timeout_ms;
            written.facts.lifetime_ms = facts.lifetime_ms;
            written.facts.description = facts.description;
            written.facts.memory = facts.memory;
            written.facts.processes = facts.processes;
            written.facts.cpus = facts.cpus;
        }
        if let Err(error) = self.0.save_facts() {
            tracing::warn!(sandbox = %self.0.id, error = in_full(&error), "cannot write the record");
        }
    }

    /// Renews its lease.
    pub(super) fn renew(&self, lease_ms: Option<u64>, by: Option<Caller>) -> Result<(), OperationError> {
        {
            let mut written = self.0.written();
            let facts = &mut written.facts;
            let Some(usual) = facts.lease_ms else { return Ok(()) };
            facts.lease_until_boot_ms = Some(clock::boot_ms().saturating_add(lease_ms.unwrap_or(usual)));
        }
        self.0.save_facts()?;
        self.0.activities.look_again();
        self.0.note("lease-renewed", by, Details::default());
        Ok(())
    }
}
