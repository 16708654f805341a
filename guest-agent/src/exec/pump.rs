//! Moves everything of one exec: frames from and to the host, bytes from and to the command, orders
//! to its supervisor and reports from it.
//!
//! One state machine, polled as a whole, because all of it depends on all of it: output is not read
//! while the host does not take it, yet a cancel must get through; stdin is not written while the
//! command does not take it, yet a signal must get through.
//!
//! ```text
//!   starting ──Started──▶ running ──Ended──▶ draining ──all output passed on──▶ reply
//!       └─────Failed─────────┴──supervisor died──▶ end its strays ──┘
//! ```

use super::command::{self, Command};
use super::report::{Ended, Order, Report, StartFailure};
use super::streams::{Input, Output, Streams, Taken};
use super::supervised::Supervised;
use crate::agent::Agent;
use crate::connection::{Connection, ConnectionError};
use crate::{log, sys};
use firn_protocol::{
    EndedBy, Event, Exceeded, Exec, ExitStatus, Exited, Frame, Kind, NotStarted, Reply, RequestId,
};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::time::Sleep;

/// Output is read only while less than this waits to be sent, in bytes.
const ENOUGH: usize = 64 * 1024;

/// Frames taken from the host before the command gets its turn.
const FRAMES_AT_ONCE: usize = 64;

/// How long a supervisor may take to carry out a kill. Longer than it tries by itself.
const KILL_PATIENCE: Duration = Duration::from_secs(15);

/// How long a terminal may take to hang up when nothing has it open any more.
const HANGUP_PATIENCE: Duration = Duration::from_secs(1);

/// How the supervised part of an exec ended.
enum Outcome {
    Failed(StartFailure),
    Ended(Ended),
    Vanished,
}

struct Pump<'a> {
    connection: &'a mut Connection,
    id: RequestId,
    supervised: Supervised,
    stdin: Input,
    outputs: [Option<Output>; 2],
    terminal: Option<Rc<AsyncFd<OwnedFd>>>,
    /// No output is read before the host knows that the command runs.
    started: bool,
    /// How many bytes of output may still be passed on.
    budget: u64,
    /// Bytes of stdout and stderr the command wrote.
    written: [u64; 2],
    truncated: bool,
    timeout: Option<Pin<Box<Sleep>>>,
    /// Set by the first order to kill.
    killing: Option<Killing>,
    /// Why there is no host any more.
    lost: Option<ConnectionError>,
}

struct Killing {
    cause: EndedBy,
    patience: Pin<Box<Sleep>>,
}

/// Runs a command. Returns when it and all it started are gone: the reply, or why there is no host to
/// reply to.
pub(crate) async fn run(
    agent: &Rc<Agent>,
    connection: &mut Connection,
    id: RequestId,
    exec: &Exec,
) -> Result<Reply, ConnectionError> {
    let since = Instant::now();
    let before = agent.tally();
    let mut pump = match prepare(agent, connection, id, exec) {
        Ok(pump) => pump,
        Err(not_started) => return Ok(Reply::NotStarted(not_started)),
    };
    let ended = match poll_fn(|cx| pump.poll_running(cx)).await {
        Outcome::Failed(failure) => return pump.finish(Reply::NotStarted(command::not_started(failure))),
        Outcome::Ended(ended) => ended,
        Outcome::Vanished => {
            pump.supervised.end_strays().await;
            let killed = pump.killing.is_some();
            Ended { status: libc::SIGKILL, killed, duration: since.elapsed(), ..Ended::default() }
        }
    };
    if ended.leftovers > 0 {
        log::error(format_args!("{} processes of a command would not die", ended.leftovers));
    }
    pump.stdin.close();
    pump.outputs.iter_mut().flatten().for_each(Output::command_over);
    let mut patience = Box::pin(tokio::time::sleep(HANGUP_PATIENCE));
    poll_fn(|cx| pump.poll_draining(cx, patience.as_mut())).await;
    let exceeded = agent.tally().exceeded_since(before);
    let exited = pump.exited(&ended, exceeded);
    pump.finish(Reply::Exited(Box::new(exited)))
}

fn prepare<'a>(
    agent: &Rc<Agent>,
    connection: &'a mut Connection,
    id: RequestId,
    exec: &Exec,
) -> Result<Pump<'a>, NotStarted> {
    let command = Command::new(exec)?;
    let Streams { stdin, outputs, terminal, stdio } =
        Streams::open(exec, || agent.null()).map_err(command::not_started)?;
    let supervised = Supervised::spawn(agent, command, stdio, Vec::new()).map_err(command::not_started)?;
    Ok(Pump {
        connection,
        id,
        supervised,
        stdin,
        outputs,
        terminal,
        started: false,
        budget: exec.max_output_bytes.unwrap_or(u64::MAX),
        written: [0; 2],
        truncated: false,
        timeout: exec.timeout_ms.map(|timeout| Box::pin(tokio::time::sleep(Duration::from_millis(timeout)))),
        killing: None,
        lost: None,
    })
}

impl Pump<'_> {
    fn poll_running(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            let mut progress = self.poll_host(cx);
            match self.supervised.poll_report(cx) {
                Poll::Ready(Some(Report::Started { pid })) => {
                    self.started = true;
                    self.tell(&Event::Started { pid: pid.unsigned_abs() });
                    progress = true;
                }
                Poll::Ready(Some(Report::Failed(failure))) => return Poll::Ready(Outcome::Failed(failure)),
                Poll::Ready(Some(Report::Ended(ended))) => return Poll::Ready(Outcome::Ended(ended)),
                Poll::Ready(None) => return Poll::Ready(Outcome::Vanished),
                Poll::Pending => {}
            }
            self.poll_clocks(cx);
            if self.started {
                progress |= self.poll_outputs(cx);
            }
            progress |= self.poll_stdin(cx);
            progress |= self.poll_flush(cx);
            if !progress {
                return Poll::Pending;
            }
        }
    }

    /// Passes on what is still in the pipes.
    fn poll_draining(&mut self, cx: &mut Context<'_>, mut patience: Pin<&mut Sleep>) -> Poll<()> {
        loop {
            if self.lost.is_some() {
                return Poll::Ready(());
            }
            let mut progress = self.poll_host(cx);
            progress |= self.poll_outputs(cx);
            progress |= self.poll_flush(cx);
            if self.outputs.iter().all(Option::is_none) {
                return Poll::Ready(());
            }
            // Patience is for a terminal that does not hang up, not for a host that does not read.
            if !progress && self.connection.outgoing.waiting() < ENOUGH {
                ready!(patience.as_mut().poll(cx));
                return Poll::Ready(());
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    fn poll_host(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for _ in 0..FRAMES_AT_ONCE {
            if self.lost.is_some() {
                break;
            }
            match self.connection.poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(frame))) => {
                    if let Err(error) = self.take(&frame) {
                        self.lose(error);
                    }
                }
                Poll::Ready(Ok(None)) => self.lose(ConnectionError::Closed),
                Poll::Ready(Err(error)) => self.lose(error.into()),
            }
            progress = true;
        }
        progress
    }

    fn take(&mut self, frame: &Frame) -> Result<(), ConnectionError> {
        if self.connection.is_late_input(frame) {
            return Ok(());
        }
        if frame.id != self.id {
            return Err(ConnectionError::Unexpected { kind: frame.kind, id: frame.id });
        }
        match frame.kind {
            Kind::Stdin => self.stdin.receive(&frame.body)?,
            Kind::StdinEnd => self.stdin.end(),
            Kind::Input => match frame.message()? {
                firn_protocol::Input::Resize(size) => {
                    if let Some(terminal) = &self.terminal {
                        let _ = sys::set_terminal_size(terminal.get_ref(), size.rows, size.columns);
                    }
                }
                firn_protocol::Input::Signal { signal: signal @ 1..=64 } => {
                    self.supervised.order(Order::Signal(signal));
                }
                firn_protocol::Input::Signal { signal } => return Err(ConnectionError::NoSignal(signal)),
                firn_protocol::Input::Cancel => self.kill(EndedBy::Cancel),
            },
            kind => return Err(ConnectionError::Unexpected { kind, id: frame.id }),
        }
        Ok(())
    }

    fn poll_clocks(&mut self, cx: &mut Context<'_>) {
        if let Some(timeout) = &mut self.timeout
            && timeout.as_mut().poll(cx).is_ready()
        {
            self.timeout = None;
            self.kill(EndedBy::Timeout);
        }
        if let Some(killing) = &mut self.killing
            && !killing.patience.is_elapsed()
            && killing.patience.as_mut().poll(cx).is_ready()
        {
            self.supervised.kill_supervisor();
        }
    }

    fn poll_outputs(&mut self, cx: &mut Context<'_>) -> bool {
        if self.connection.outgoing.waiting() >= ENOUGH {
            return false;
        }
        let mut progress = false;
        // Each stream once in a round, so that neither starves the other.
        for (slot, written) in self.outputs.iter_mut().zip(&mut self.written) {
            let Some(output) = slot else { continue };
            let room = self.connection.outgoing.room(output.chunk);
            let Poll::Ready(read) = output.poll_read(cx, room) else { continue };
            progress = true;
            if read == 0 {
                *slot = None;
                continue;
            }
            *written += read as u64;
            let passed = usize::try_from(self.budget).map_or(read, |budget| budget.min(read));
            self.budget -= passed as u64;
            self.truncated |= passed < read;
            self.connection.outgoing.commit(output.kind, self.id, passed);
        }
        progress
    }

    fn poll_stdin(&mut self, cx: &mut Context<'_>) -> bool {
        match self.stdin.poll_write(cx) {
            Poll::Pending => false,
            Poll::Ready(taken) => {
                match taken {
                    Taken::Credit(0) => {}
                    Taken::Credit(bytes) => self.tell(&Event::StdinCredit { bytes }),
                    Taken::Closed => self.tell(&Event::StdinClosed),
                }
                true
            }
        }
    }

    /// Whether anything left. Then output that was held back may be read again.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.connection.outgoing.waiting();
        if self.lost.is_none()
            && let Poll::Ready(Err(error)) = self.connection.poll_flush(cx)
        {
            self.lose(error);
        }
        self.connection.outgoing.waiting() < before
    }

    fn tell(&mut self, event: &Event) {
        if let Err(error) = self.connection.outgoing.push(Kind::Event, self.id, event) {
            self.lose(error.into());
        }
    }

    /// Orders the end of the command. The first cause is the one that counts.
    fn kill(&mut self, cause: EndedBy) {
        if self.killing.is_some() {
            return;
        }
        self.killing = Some(Killing { cause, patience: Box::pin(tokio::time::sleep(KILL_PATIENCE)) });
        if self.started {
            self.supervised.order(Order::Kill);
        } else {
            // It does not listen before the command runs, and starting can hang in the sandbox's files.
            self.supervised.kill_supervisor();
        }
    }

    /// There is no host any more: nothing is passed on, and the command has nobody to run for.
    fn lose(&mut self, error: ConnectionError) {
        self.lost.get_or_insert(error);
        self.outputs = [None, None];
        self.stdin.close();
        self.kill(EndedBy::Cancel);
    }

    fn exited(&self, ended: &Ended, exceeded: Vec<Exceeded>) -> Exited {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Exited {
            status: if libc::WIFSIGNALED(ended.status) {
                ExitStatus::Signal(libc::WTERMSIG(ended.status))
            } else {
                ExitStatus::Code(libc::WEXITSTATUS(ended.status))
            },
            ended_by: match &self.killing {
                _ if !ended.killed => EndedBy::Itself,
                Some(killing) => killing.cause,
                // A shutdown ends all commands without asking their connections.
                None => EndedBy::Cancel,
            },
            duration_us: micros(ended.duration),
            user_us: micros(ended.user),
            system_us: micros(ended.system),
            max_rss_bytes: ended.max_rss_bytes,
            stdout_bytes: self.written[0],
            stderr_bytes: self.written[1],
            truncated: self.truncated,
            exceeded,
        }
    }

    fn finish(self, reply: Reply) -> Result<Reply, ConnectionError> {
        match self.lost {
            Some(error) => Err(error),
            None => Ok(reply),
        }
    }
}
