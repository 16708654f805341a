//! What a sandbox says of itself: its kept commands and its processes, checked.
//!
//! All of it is the guest's word. What is checked is that it can be held and shown: there are no more
//! of them than there may be, and no text does anything to a terminal. Whether it is true nobody can say.

use super::connection::{Connection, GuestError, wrong_reply};
use super::exec::is_possible_end;
use super::words::one_line;
use firn_protocol::{
    CommandInfo, CommandState, MAX_ENDED, MAX_KEPT_RUNNING, MAX_PROCESSES, NotStarted, ProcessInfo,
    Processes, Reply, Request, Text,
};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long the agent may take for an answer. It has nothing to wait for.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// The longest list, in bytes.
pub(super) const LONGEST_LIST: usize = 1 << 20;

impl Connection {
    /// Asks whether the agent lives.
    pub(crate) async fn ping(&mut self) -> Result<(), GuestError> {
        let during = "a sign of life";
        match self.ask(Request::Ping, during, ANSWER_PATIENCE).await? {
            Reply::Pong => Ok(()),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// The kept commands that the agent remembers.
    pub(crate) async fn commands(&mut self) -> Result<Vec<CommandInfo>, GuestError> {
        let during = "the list of its commands";
        self.need("keep")?;
        match self.ask(Request::Commands, during, ANSWER_PATIENCE).await? {
            Reply::Commands { commands } => checked_commands(commands, during),
            other => Err(wrong_reply(during, &other)),
        }
    }

    /// The processes of the sandbox.
    pub(crate) async fn processes(&mut self) -> Result<Processes, GuestError> {
        let during = "the list of its processes";
        self.need("processes")?;
        match self.ask_at_length(Request::Processes, during, ANSWER_PATIENCE, LONGEST_LIST).await? {
            Reply::Processes(processes) => checked_processes(processes, during),
            other => Err(wrong_reply(during, &other)),
        }
    }
}

/// The error for what cannot be.
pub(super) fn absurd(during: &'static str, what: &str) -> GuestError {
    GuestError::Unexpected { during, what: what.to_owned() }
}

fn checked_commands(
    mut commands: Vec<CommandInfo>,
    during: &'static str,
) -> Result<Vec<CommandInfo>, GuestError> {
    if commands.len() > MAX_KEPT_RUNNING + MAX_ENDED {
        return Err(absurd(during, "more commands than there may be"));
    }
    let mut numbers = BTreeSet::new();
    for command in &mut commands {
        if !numbers.insert(command.command) {
            return Err(absurd(during, "two commands of one number"));
        }
        if command.kept_from > command.output_bytes {
            return Err(absurd(during, "output that is kept before it is there"));
        }
        match &mut command.state {
            CommandState::Starting | CommandState::Running => {}
            CommandState::Exited(exited) if is_possible_end(exited.status) => {}
            CommandState::Exited(_) => return Err(absurd(during, "a command with an impossible end")),
            CommandState::NotStarted(NotStarted { message, .. }) => *message = one_line(message),
        }
        // As one line: the words may be as many as they are short.
        let argv: Vec<_> = command.argv.iter().map(|word| word.as_os_str().to_string_lossy()).collect();
        command.argv = shown(&argv.join(" ")).map(Text::from).into_iter().collect();
    }
    Ok(commands)
}

fn checked_processes(mut processes: Processes, during: &'static str) -> Result<Processes, GuestError> {
    if processes.processes.len() > MAX_PROCESSES {
        return Err(absurd(during, "more processes than there may be"));
    }
    for ProcessInfo { state, name, .. } in &mut processes.processes {
        if state.len() != 1 || !state.starts_with(|letter: char| letter.is_ascii_alphabetic()) {
            "?".clone_into(state);
        }
        *name = shown(&name.as_os_str().to_string_lossy()).unwrap_or_default().into();
    }
    Ok(processes)
}

fn shown(said: &str) -> Option<String> {
    Some(one_line(said)).filter(|line| !line.is_empty())
}
