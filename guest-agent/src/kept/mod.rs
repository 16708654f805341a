//! Commands that outlive their connection.
//!
//! A kept command is run like any other, on a connection within the agent. At its other end is a *keeper*,
//! which always reads, and those attached take from what it keeps, each in its own time:
//!
//! ```text
//!   command ◀─ pump ◀──frames──▶ keeper ──▶ ring ──▶ attachment ──▶ host
//!                                  ▲ inbox ◀──────────┴─ stdin, signals …
//! ```
//!
//! Stdin comes from one attachment at a time, the latest that wanted it, because credit that was
//! granted to one cannot be taken back when another sends too.

mod attachment;
mod ring;

use crate::agent::Agent;
use crate::connection::{Connection, ConnectionError};
use crate::exec;
use crate::outgoing::Outgoing;
pub(crate) use attachment::Attachment;
use bytes::{Buf as _, Bytes};
use firn_protocol::{
    CommandInfo, CommandState, Event, Exec, Frame, Keep, Kind, MAX_CHUNK, MAX_ENDED, MAX_ENDED_OUTPUT,
    MAX_KEPT_OUTPUT, MAX_KEPT_RUNNING, NotStarted, NotStartedReason, Reply, RequestId, STDIN_WINDOW, Stdin,
    Text,
};
use ring::Ring;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use tokio::sync::Notify;

/// The operation of the connection within the agent.
const ID: RequestId = 1;

/// What that connection holds on the way, in bytes.
const PASSAGE: usize = 64 * 1024;

/// How much of a command's arguments is told, in bytes.
const ARGUMENTS_TOLD: usize = 256;

/// Why a request about a kept command cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KeptError {
    #[error("there is a command {0} already")]
    Exists(u64),
    #[error("there is no command {0}, or it has been forgotten")]
    Unknown(u64),
    #[error("the command {0} is not over")]
    Runs(u64),
    #[error("{MAX_KEPT_RUNNING} kept commands run already")]
    TooMany,
}

/// The kept commands of an agent.
#[derive(Default)]
pub(crate) struct Register {
    commands: RefCell<BTreeMap<u64, Rc<Kept>>>,
    /// Those that are over, in the order in which they ended.
    ended: RefCell<VecDeque<u64>>,
}

/// A kept command, as long as it is remembered or somebody is attached.
pub(crate) struct Kept {
    argv: Vec<Text>,
    terminal: bool,
    state: RefCell<State>,
    /// Told whenever anything of the state has changed.
    changed: Notify,
}

struct State {
    pid: Option<u32>,
    ring: Ring,
    /// [`Reply::Exited`] or [`Reply::NotStarted`], once it is over.
    result: Option<Reply>,
    /// Frames for the command.
    inbox: Outgoing,
    stdin: StdinState,
    /// Where those are for whom the command waits.
    waited_for: BTreeMap<u64, u64>,
    /// The number of the next attachment.
    next_attachment: u64,
}

struct StdinState {
    /// How much may be sent. `None`: nothing takes any.
    credit: Option<u32>,
    /// How much of that its holder has not been told of.
    untold: u32,
    /// The attachment it comes from.
    holder: Option<u64>,
}

impl Register {
    /// Starts a command, which from now on is on its own, and gives its first attachment.
    pub(crate) fn start(agent: &Rc<Agent>, exec: Exec, keep: &Keep) -> Result<Attachment, KeptError> {
        let register = &agent.kept;
        let running = {
            let commands = register.commands.borrow();
            if commands.contains_key(&keep.command) {
                return Err(KeptError::Exists(keep.command));
            }
            commands.len() - register.ended.borrow().len()
        };
        if running >= MAX_KEPT_RUNNING {
            return Err(KeptError::TooMany);
        }
        let kept = Rc::new(Kept::new(&exec, keep));
        register.commands.borrow_mut().insert(keep.command, Rc::clone(&kept));
        let attachment = Attachment::first(Rc::clone(&kept), exec.stdin, keep.back_pressure);
        let (agent, command) = (Rc::clone(agent), keep.command);
        tokio::task::spawn_local(async move {
            kept.live(&agent, &exec).await;
            agent.kept.remember(command);
        });
        Ok(attachment)
    }

    /// The command of this number.
    pub(crate) fn find(&self, command: u64) -> Result<Rc<Kept>, KeptError> {
        self.commands.borrow().get(&command).cloned().ok_or(KeptError::Unknown(command))
    }

    /// All that are remembered.
    pub(crate) fn list(&self) -> Vec<CommandInfo> {
        self.commands.borrow().iter().map(|(command, kept)| kept.info(*command)).collect()
    }

    /// Forgets one that is over.
    pub(crate) fn forget(&self, command: u64) -> Result<(), KeptError> {
        if !self.find(command)?.is_over() {
            return Err(KeptError::Runs(command));
        }
        self.commands.borrow_mut().remove(&command);
        self.ended.borrow_mut().retain(|ended| *ended != command);
        Ok(())
    }

    /// Enters one that is over among those, of which there may be only so many.
    fn remember(&self, command: u64) {
        let mut commands = self.commands.borrow_mut();
        let mut ended = self.ended.borrow_mut();
        ended.push_back(command);
        let held = |command: &u64| commands.get(command).map_or(0, |kept| kept.state.borrow().ring.len());
        let mut output: usize = ended.iter().map(held).sum();
        while ended.len() > MAX_ENDED || output > MAX_ENDED_OUTPUT {
            let Some(oldest) = ended.pop_front() else { break };
            output -= commands.remove(&oldest).map_or(0, |kept| kept.state.borrow().ring.len());
        }
    }
}

impl Kept {
    fn new(exec: &Exec, keep: &Keep) -> Kept {
        // A chunk of output must fit for those attached.
        let capacity = keep.output_bytes.min(MAX_KEPT_OUTPUT) as usize;
        let credit = (exec.stdin == Stdin::Stream).then_some(STDIN_WINDOW);
        Kept {
            argv: told(&exec.argv),
            terminal: exec.terminal.is_some(),
            state: RefCell::new(State {
                pid: None,
                ring: Ring::new(capacity.max(MAX_CHUNK)),
                result: None,
                inbox: Outgoing::default(),
                stdin: StdinState { credit, untold: 0, holder: None },
                waited_for: BTreeMap::new(),
                next_attachment: 0,
            }),
            changed: Notify::new(),
        }
    }

    fn is_over(&self) -> bool {
        self.state.borrow().result.is_some()
    }

    fn info(&self, command: u64) -> CommandInfo {
        let state = self.state.borrow();
        CommandInfo {
            command,
            pid: state.pid,
            argv: self.argv.clone(),
            terminal: self.terminal,
            state: match &state.result {
                Some(Reply::Exited(exited)) => CommandState::Exited(exited.clone()),
                Some(Reply::NotStarted(not_started)) => CommandState::NotStarted(not_started.clone()),
                Some(_) | None if state.pid.is_some() => CommandState::Running,
                Some(_) | None => CommandState::Starting,
            },
            output_bytes: state.ring.end(),
            kept_from: state.ring.start(),
        }
    }

    /// The command from its start to its end, and the keeper beside it.
    async fn live(&self, agent: &Rc<Agent>, exec: &Exec) {
        let (ours, theirs) = tokio::io::duplex(PASSAGE);
        let run = async move {
            let mut connection = Connection::over(Box::new(theirs));
            let reply = exec::run(agent, &mut connection, ID, exec).await?;
            connection.flush().await?;
            Ok(reply)
        };
        let (result, ()) = tokio::join!(Box::pin(run), self.keep(Connection::over(Box::new(ours))));
        let mut state = self.state.borrow_mut();
        state.result = Some(result.unwrap_or_else(|lost: ConnectionError| {
            // The keeper hears to the end and says what it may, so this does not happen.
            let message = crate::log::chain(&lost);
            Reply::NotStarted(NotStarted { reason: NotStartedReason::Other, message })
        }));
        state.ring.finish();
        state.inbox = Outgoing::default();
        state.stdin.credit = None;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Takes what the command's pump says, and passes on what those attached say, until the pump has ended.
    async fn keep(&self, mut connection: Connection) {
        let mut output: Option<(Kind, Bytes)> = None;
        loop {
            let changed = self.changed.notified();
            if let Some((kind, bytes)) = &mut output {
                let added = self.state.borrow_mut().add(*kind, bytes);
                bytes.advance(added);
                if bytes.is_empty() {
                    output = None;
                }
                if added > 0 {
                    self.changed.notify_waiters();
                    continue;
                }
            }
            let heard = poll_fn(|cx| {
                let mut state = self.state.borrow_mut();
                let waiting = state.inbox.waiting();
                if waiting > 0 {
                    // A pump that has ended is seen when it is read from.
                    let _ = connection.poll_send(&mut state.inbox, cx);
                    if state.inbox.waiting() < waiting {
                        self.changed.notify_waiters();
                    }
                }
                if output.is_some() {
                    return Poll::Pending;
                }
                connection.poll_frame(cx)
            });
            tokio::select! {
                frame = heard => match frame {
                    Ok(Some(frame)) => output = self.hear(frame),
                    Ok(None) | Err(_) => return,
                },
                () = changed => {}
            }
        }
    }

    /// Takes a frame of the pump's. Output is for the caller to keep.
    fn hear(&self, frame: Frame) -> Option<(Kind, Bytes)> {
        if matches!(frame.kind, Kind::Stdout | Kind::Stderr) {
            return Some((frame.kind, frame.body));
        }
        let mut state = self.state.borrow_mut();
        match frame.message() {
            Ok(Event::Started { pid }) => state.pid = Some(pid),
            Ok(Event::StdinCredit { bytes }) => {
                if let Some(credit) = &mut state.stdin.credit {
                    *credit = credit.saturating_add(bytes);
                    state.stdin.untold = state.stdin.untold.saturating_add(bytes);
                }
            }
            Ok(Event::StdinClosed) => state.stdin.credit = None,
            Ok(
                Event::Attached { .. }
                | Event::Skipped { .. }
                | Event::RunStarted { .. }
                | Event::OutputCut { .. },
            )
            | Err(_) => {}
        }
        drop(state);
        self.changed.notify_waiters();
        None
    }
}

impl State {
    /// Keeps as much of the output as the slowest of those allows for whom the command waits.
    fn add(&mut self, kind: Kind, output: &[u8]) -> usize {
        let room = match self.waited_for.values().min() {
            Some(slowest) => self.ring.room_behind(*slowest),
            None => self.ring.capacity(),
        };
        let added = output.len().min(room);
        self.ring.push(kind, &output[..added]);
        added
    }
}

/// The beginning of an argument vector.
fn told(argv: &[Text]) -> Vec<Text> {
    let mut left = ARGUMENTS_TOLD;
    let mut told = Vec::new();
    for argument in argv {
        if left == 0 {
            break;
        }
        let bytes = argument.as_bytes();
        told.push(Text::from_bytes(&bytes[..cut(bytes, left)]));
        // An empty one costs something too.
        left = left.saturating_sub(bytes.len() + 1);
    }
    told
}

/// Where to cut a text that should be no longer than this: not within a character.
pub(crate) fn cut(text: &[u8], longest: usize) -> usize {
    if text.len() <= longest {
        return text.len();
    }
    let inside = |at: usize| text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    (longest.saturating_sub(3)..=longest).rev().find(|at| !inside(*at)).unwrap_or(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_arguments_are_cut_between_characters() {
        let long = "ä".repeat(1000);
        let argv = ["sh", &long, "never"].map(Text::from);
        let told = told(&argv);
        assert_eq!(told.len(), 2);
        assert_eq!(told[1].as_bytes().len(), 252);
        assert!(told[1].as_os_str().to_str().is_some());
        assert_eq!(super::told(&vec![Text::default(); 1000]).len(), ARGUMENTS_TOLD);
    }
}
