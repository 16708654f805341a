//! Writing down what a detached command says, also of one that another daemon has started.

use super::account::Account;
use super::{Command, Reader};
use crate::api::types::AttachRequest;
use crate::causes::in_full;
use crate::guest::ExecEvent;
use crate::sandbox::entry::{Entry, Termination};
use crate::sandbox::log::Log;
use crate::sandbox::manager::{Life, OperationError};
use crate::sandbox::state::Operation;
use firn_protocol::{ExitStatus, Exited};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait before a log that broke off is gone on with.
const BREATH: Duration = Duration::from_secs(1);

/// The log of a detached command, which is written to the command's end.
pub(super) struct Following {
    pub(super) entry: Arc<Entry>,
    pub(super) number: u64,
    pub(super) log: Log,
    /// Of a command that this daemon has started.
    pub(super) account: Option<Account>,
}

impl Following {
    /// Follows `command` in a task of its own, which ends with the daemon: the command does not, and the next
    /// one goes on with the log. `last`: the command has ended already.
    pub(super) fn begin(self, command: Command, last: Option<Box<Exited>>) {
        let shared = Arc::clone(&self.entry.shared);
        let released = Arc::clone(&shared);
        shared.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = released.released() => {}
                () = self.follow(command, last) => {}
            }
        });
    }

    async fn follow(mut self, command: Command, last: Option<Box<Exited>>) {
        let _followed = self.entry.followed(self.number);
        let exited = match last {
            Some(exited) => Some(exited),
            None => self.write(command).await,
        };
        let Following { entry, number, account, .. } = self;
        let account = account.unwrap_or_else(|| Account::open(None, Some(number), None));
        let Some(exited) = exited else { return account.end(&entry, "sandbox") };
        account.close(&entry, &exited);
        if entry.life == Life::Command && entry.written().facts.main_command == Some(number) {
            let reason = match exited.status {
                ExitStatus::Code(code) => format!("its command ended: exit code {code}"),
                ExitStatus::Signal(signal) => format!("its command ended: signal {signal}"),
            };
            entry.terminate(Termination::Stop { grace: Duration::ZERO, reason });
        }
    }

    /// Writes down what the command says. None: its sandbox has ended, or knows nothing of it.
    async fn write(&mut self, mut command: Command) -> Option<Box<Exited>> {
        loop {
            let written = match command.next().await {
                Ok(ExecEvent::Stdout(chunk) | ExecEvent::Stderr(chunk)) => self.log.append(&chunk),
                Ok(ExecEvent::Attached { from }) => self.log.skip(from),
                Ok(ExecEvent::Skipped(bytes)) => self.log.skip(self.log.end().saturating_add(bytes)),
                Ok(ExecEvent::Exited(exited)) => return Some(exited),
                Ok(ExecEvent::NotStarted(_)) => return None,
                Ok(_) => Ok(()),
                Err(OperationError::NoCommand { .. }) => return None,
                Err(error) => {
                    if self.entry.status().up.is_some() {
                        tracing::warn!(sandbox = %self.entry.id, command = self.number, error = in_full(&error), "the log of a command broke off");
                    }
                    command = self.attach_again().await?;
                    Ok(())
                }
            };
            if let Err(error) = written {
                // The command goes on; what it says is not kept.
                tracing::error!(sandbox = %self.entry.id, command = self.number, %error, "cannot write a log");
            }
        }
    }

    /// Goes on where the log ends, as soon as the sandbox lets it: one that stands still does not. None: it
    /// has ended.
    async fn attach_again(&self) -> Option<Command> {
        loop {
            self.entry.status().up?;
            tokio::time::sleep(BREATH).await;
            if let Ok(command) = follower(&self.entry, self.number, &self.log).await {
                return Some(command);
            }
        }
    }
}

/// Attaches to a command whose output is written down: it waits until it is.
async fn follower(entry: &Arc<Entry>, number: u64, log: &Log) -> Result<Command, OperationError> {
    let request = AttachRequest { command: Some(number), from: Some(log.end()) };
    Command::attach_as(entry, &request, Reader::Log).await
}

/// After a sandbox was taken over: goes on with the logs of the commands in it.
pub(in crate::sandbox) async fn follow_all(entry: &Arc<Entry>) {
    let Ok(up) = entry.admit(Operation::Use) else { return };
    let commands = async { up.dialer.dial().await?.commands().await };
    let commands = match commands.await {
        Ok(commands) => commands,
        Err(error) => {
            tracing::warn!(sandbox = %entry.id, error = in_full(&error), "cannot ask for its commands");
            return;
        }
    };
    let last = entry.written().facts.last_command;
    for command in commands.iter().filter(|command| command.command <= last) {
        let number = command.command;
        let Ok(log) = entry.logs().write(number) else { continue };
        if let Ok(attached) = follower(entry, number, &log).await {
            Following { entry: Arc::clone(entry), number, log, account: None }.begin(attached, None);
        }
    }
}
