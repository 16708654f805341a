//! Between a client's stream and a command: what the agent says is said again, and the other way round.
//!
//! ```text
//!   client ◀── frames and notices ── Line ◀── outbox, bounded ◀── events ── Command ◀── agent
//!          ──── stdin, input ──────▶      ──── against credit ────────────▶
//! ```
//!
//! The agent is not listened to while the client does not read, and a client is never granted more stdin
//! than the agent takes: nothing piles up here. The client is listened to at all times, so that its end is
//! noticed at once, whatever the sandbox does.

use super::phase::describe;
use super::routes;
use super::service::{Peer, Service};
use super::types::{CreateRequest, EvaluateRequest, Notice, Refusal, RunRequest};
use super::wire::{COMMAND, NOTICE};
use crate::guest::ExecEvent;
use crate::sandbox::manager::{Command, Handle, Life, OperationError};
use bytes::{Buf as _, BytesMut};
use firn_protocol::{Codec, Event, Frame, FrameError, Input, Kind, Reply, STDIN_WINDOW, Stdin};
use futures::StreamExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::codec::{Encoder as _, FramedRead};
use tracing::Instrument as _;

/// How much may wait for the client to read it until the agent is no longer listened to, in bytes.
const ENOUGH: usize = 256 * 1024;

/// How much is read at once to begin with, in bytes.
const READ_AHEAD: usize = 16 * 1024;

/// How many frames a client may send before its command is there: stdin is bounded by credit, but not the
/// number of frames that it comes in.
const MOST_EARLY: usize = 1024;

/// How many notices of a launch may wait.
const WAITING: usize = 16;

/// The longest message of a client, in bytes.
const LONGEST_INPUT: usize = 4 * 1024;

/// How long a client may take to read the last words, once its sandbox is gone and the daemon ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How much stdin the client may send, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted(u64);

impl Granted {
    /// None yet.
    pub(super) const NONE: Granted = Granted(0);

    /// What a command that is started begins with.
    pub(super) fn of(stdin: Stdin) -> Granted {
        match stdin {
            Stdin::Null => Granted(0),
            Stdin::Stream => Granted(u64::from(STDIN_WINDOW)),
        }
    }
}

/// The client is not there any more, or does what it must not.
#[derive(Debug, thiserror::Error)]
enum Gone {
    #[error("the client is gone")]
    Left,
    #[error("the connection to the client failed")]
    Failed(#[source] FrameError),
    #[error("the client sent a {0:?} frame that must not come")]
    Unexpected(Kind),
    #[error("the client sent {0} bytes of stdin more than it was granted")]
    TooMuch(u64),
    #[error("the daemon ends")]
    Forced,
}

/// What a turn on a line was.
enum Turn {
    Frame(Frame),
    Written,
}

/// The stream to a client.
#[derive(Debug)]
struct Line {
    read: FramedRead<OwnedReadHalf, Codec>,
    write: OwnedWriteHalf,
    outbox: BytesMut,
    early: VecDeque<Frame>,
}

impl Line {
    /// What is left of the connection after the answer that made it one.
    async fn open(upgrade: OnUpgrade) -> Result<Line, Gone> {
        let failed = |error: io::Error| Gone::Failed(error.into());
        let upgraded = upgrade.await.map_err(|error| failed(io::Error::other(error)))?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_impossible| failed(io::Error::other("not the connection that was accepted")))?;
        let (read, write) = parts.io.into_inner().into_split();
        let mut read = FramedRead::with_capacity(read, Codec, READ_AHEAD);
        read.read_buffer_mut().extend_from_slice(&parts.read_buf);
        Ok(Line { read, write, outbox: BytesMut::new(), early: VecDeque::new() })
    }

    /// Puts a frame into the outbox.
    fn post(&mut self, frame: Frame) {
        // What the agent sent as a frame fits into one.
        if let Err(error) = Codec.encode(frame, &mut self.outbox) {
            tracing::error!(%error, "a frame cannot be passed on");
        }
    }

    fn say<T: Serialize>(&mut self, kind: Kind, id: firn_protocol::RequestId, message: &T) {
        match Frame::json(kind, id, message) {
            Ok(frame) => self.post(frame),
            Err(error) => tracing::error!(%error, "a message cannot be passed on"),
        }
    }

    fn notice(&mut self, notice: &Notice) {
        self.say(Kind::Event, NOTICE, notice);
    }

    /// The client's next frame, or some progress in sending. May be dropped at any time without loss.
    async fn turn(&mut self) -> Result<Turn, Gone> {
        if let Some(frame) = self.early.pop_front() {
            return Ok(Turn::Frame(frame));
        }
        self.fresh_turn().await
    }

    async fn fresh_turn(&mut self) -> Result<Turn, Gone> {
        tokio::select! {
            frame = self.read.next() => match frame {
                Some(Ok(frame)) => Ok(Turn::Frame(frame)),
                Some(Err(error)) => Err(Gone::Failed(error)),
                None => Err(Gone::Left),
            },
            written = self.write.write(&self.outbox), if !self.outbox.is_empty() => match written {
                Ok(count) => {
                    self.outbox.advance(count);
                    Ok(Turn::Written)
                }
                Err(error) => Err(Gone::Failed(error.into())),
            },
        }
    }

    /// Sends what waits, and keeps what comes, until the client is gone.
    async fn until_gone(&mut self) -> Gone {
        loop {
            match self.fresh_turn().await {
                Ok(Turn::Written) => {}
                Ok(Turn::Frame(frame)) if self.early.len() < MOST_EARLY => self.early.push_back(frame),
                Ok(Turn::Frame(frame)) => return Gone::Unexpected(frame.kind),
                Err(gone) => return gone,
            }
        }
    }

    /// Sends what waits until the client is gone. What it still says is of no interest.
    async fn until_gone_unheard(&mut self) -> Gone {
        loop {
            if let Err(gone) = self.fresh_turn().await {
                return gone;
            }
        }
    }

    /// Sends all that waits. What the client still says is of no interest.
    async fn flush(&mut self) -> Result<(), Gone> {
        while !self.outbox.is_empty() {
            self.fresh_turn().await?;
        }
        Ok(())
    }

    /// Does some work while the client is listened to. None: the client is gone, and the work was given up.
    async fn during<T>(&mut self, service: &Service, work: impl Future<Output = T>) -> Result<T, Gone> {
        tokio::select! {
            done = work => Ok(done),
            gone = self.until_gone() => Err(gone),
            () = service.end().force.cancelled() => Err(Gone::Forced),
        }
    }
}

/// How a command's part of the stream ended.
enum Over {
    /// It did.
    Ended,
    /// It goes on without us.
    Detached(u64),
    /// The sandbox did.
    Failed(OperationError),
    /// The client did.
    Gone(Gone),
}

/// Whether a command is told apart from its stream: it goes on when that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// As soon as it runs.
    Started,
    /// When it is over.
    Over,
}

/// A run: a sandbox that is there for the stream, and a command in it.
pub(super) async fn run(service: Service, peer: Peer, upgrade: OnUpgrade, asked: RunRequest) {
    let mut line = match Line::open(upgrade).await {
        Ok(line) => line,
        Err(gone) => return tracing::debug!(%gone, "a run ended before it began"),
    };
    let life = if asked.command.detach { Life::Command } else { Life::Ephemeral };
    let span = tracing::info_span!("launch", sandbox = tracing::field::Empty);
    let launched = launch(&service, &peer, &mut line, &asked.sandbox, life).instrument(span.clone()).await;
    let handle = match launched {
        Ok(Ok(handle)) => handle,
        Ok(Err(refusal)) => {
            line.notice(&Notice::Failed { refusal, console: None });
            return close(&service, line).await;
        }
        Err(gone) => return tracing::info!(%gone, "a run ended while its sandbox came up"),
    };
    let id = handle.id();
    span.record("sandbox", tracing::field::display(id));
    let shares = asked.sandbox.workspace.is_some() || !asked.sandbox.mounts.is_empty();
    let over = run_command(&service, &peer, &mut line, &handle, asked)
        .instrument(tracing::info_span!("command", sandbox = %id))
        .await;
    let last = end_run(&service, &peer, &mut line, &handle, over, life, shares)
        .instrument(tracing::info_span!("end", sandbox = %id))
        .await;
    if let Some(last) = last {
        line.notice(&last);
        close(&service, line).await;
    }
}

/// Code, in a session that may be made for it or in a sandbox that is there for the stream.
pub(super) async fn evaluate(service: Service, peer: Peer, upgrade: OnUpgrade, asked: EvaluateRequest) {
    let mut line = match Line::open(upgrade).await {
        Ok(line) => line,
        Err(gone) => return tracing::debug!(%gone, "code lost its client before it was run"),
    };
    match asked.session.clone() {
        Some(session) => evaluate_in(service, peer, line, &session, asked).await,
        None => {
            let sandbox = asked.sandbox.clone().unwrap_or_default();
            if let Err(error) = service.manager().check_code(&sandbox) {
                line.notice(&Notice::Failed { refusal: service.refuse(&error), console: None });
                return close(&service, line).await;
            }
            let Some(handle) = come_up(&service, &peer, &mut line, &sandbox, Life::Ephemeral).await else {
                return;
            };
            let shares = sandbox.workspace.is_some() || !sandbox.mounts.is_empty();
            line.notice(&Notice::Sandbox { sandbox: Box::new(handle.info()) });
            let granted = Granted::of(asked.stdin);
            let begun = handle.evaluate_once(asked, Some(peer.caller));
            let over = relay_begun(&service, &mut line, begun, granted).await;
            let last = end_run(&service, &peer, &mut line, &handle, over, Life::Ephemeral, shares).await;
            if let Some(last) = last {
                line.notice(&last);
                close(&service, line).await;
            }
        }
    }
}

async fn evaluate_in(service: Service, peer: Peer, mut line: Line, session: &str, asked: EvaluateRequest) {
    // Among the connections that there may be, until the stream ends.
    let _place = peer.place;
    let by = Some(peer.caller);
    let (tell, mut told) = mpsc::channel(WAITING);
    let found = async {
        let mut progress = |progress| {
            // Who does not read misses some of it.
            let _ = tell.try_send(Notice::Progress { phase: describe(&progress) });
        };
        service.manager().session(session, asked.sandbox.as_ref(), by, &mut progress).await
    };
    let found = match while_told(&service, &mut line, &mut told, found).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            line.notice(&Notice::Failed { refusal: service.refuse(&error), console: None });
            return close(&service, line).await;
        }
        Err(gone) => return tracing::info!(%gone, "the client left before its session was there"),
    };
    line.notice(&Notice::Session { session: Box::new(found.info()), created: found.created });
    let granted = Granted::of(asked.stdin);
    let (over, conclusion) = relay_begun(&service, &mut line, found.evaluate(asked, by), granted).await;
    let timed_out = matches!(&conclusion, Some(Notice::Ended { timed_out: true, .. }));
    let last = match over {
        Over::Ended | Over::Detached(_) => conclusion,
        Over::Failed(_) if timed_out => conclusion,
        Over::Failed(error) => Some(failed(&service, &error, found.handle.console())),
        Over::Gone(gone) => return tracing::info!(%gone, "the client of a run is gone"),
    };
    if let Some(last) = last {
        line.notice(&last);
    }
    close(&service, line).await;
}

/// Begins a command, and passes on both ways until it is over.
async fn relay_begun(
    service: &Service,
    line: &mut Line,
    begun: impl Future<Output = Result<Command, OperationError>>,
    granted: Granted,
) -> (Over, Option<Notice>) {
    let mut command = match line.during(service, begun).await {
        Ok(Ok(command)) => command,
        Ok(Err(error)) => return (Over::Failed(error), None),
        Err(gone) => return (Over::Gone(gone), None),
    };
    service.metrics().command();
    let over = relay(service, line, &mut command, granted, Leave::Over).await;
    (over, ended(&command))
}

/// The sandbox of a stream, or none if it did not come up, which was said.
async fn come_up(
    service: &Service,
    peer: &Peer,
    line: &mut Line,
    sandbox: &CreateRequest,
    life: Life,
) -> Option<Handle> {
    match launch(service, peer, line, sandbox, life).await {
        Ok(Ok(handle)) => return Some(handle),
        Ok(Err(refusal)) => {
            line.notice(&Notice::Failed { refusal, console: None });
            let _ = tokio::time::timeout(LAST_WORDS, line.flush()).await;
        }
        Err(gone) => tracing::info!(%gone, "a client left while its sandbox came up"),
    }
    None
}

async fn launch(
    service: &Service,
    peer: &Peer,
    line: &mut Line,
    sandbox: &CreateRequest,
    life: Life,
) -> Result<Result<Handle, Refusal>, Gone> {
    let (tell, mut told) = mpsc::channel(WAITING);
    let launched = routes::launch(service, sandbox.clone(), life, peer.caller, move |notice| {
        // Who does not read misses some of it.
        let _ = tell.try_send(notice);
    });
    while_told(service, line, &mut told, launched).await
}

/// Does some work while the client is told of it and listened to.
async fn while_told<T>(
    service: &Service,
    line: &mut Line,
    told: &mut mpsc::Receiver<Notice>,
    work: impl Future<Output = T>,
) -> Result<T, Gone> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            Some(notice) = told.recv() => line.notice(&notice),
            done = &mut work => return Ok(done),
            gone = line.until_gone() => return Err(gone),
            () = service.end().force.cancelled() => return Err(Gone::Forced),
        }
    }
}

/// The command of a run, to its end, and what is to be said after it.
async fn run_command(
    service: &Service,
    peer: &Peer,
    line: &mut Line,
    handle: &Handle,
    asked: RunRequest,
) -> (Over, Option<Notice>) {
    let detached = asked.command.detach;
    if !detached {
        line.notice(&Notice::Sandbox { sandbox: Box::new(handle.info()) });
    }
    let granted = Granted::of(asked.command.stdin);
    let mut command = match line.during(service, handle.exec(asked.command, Some(peer.caller))).await {
        Ok(Ok(command)) => command,
        Ok(Err(error)) => return (Over::Failed(error), None),
        Err(gone) => return (Over::Gone(gone), None),
    };
    service.metrics().command();
    if detached {
        // With the number of its command.
        line.notice(&Notice::Sandbox { sandbox: Box::new(handle.info()) });
    }
    let leave = if detached { Leave::Started } else { Leave::Over };
    let over = relay(service, line, &mut command, granted, leave).await;
    (over, ended(&command))
}

fn ended(command: &Command) -> Option<Notice> {
    let conclusion = command.conclude();
    Some(Notice::Ended {
        exceeded: conclusion.exceeded,
        timed_out: conclusion.timed_out,
        protection: conclusion.protection.map(Box::new),
    })
}

/// Ends the sandbox of a run as its command ended, and gives the last notice, if anybody is there for it.
async fn end_run(
    service: &Service,
    peer: &Peer,
    line: &mut Line,
    handle: &Handle,
    (over, ended): (Over, Option<Notice>),
    life: Life,
    shares: bool,
) -> Option<Notice> {
    let timed_out = matches!(&ended, Some(Notice::Ended { timed_out: true, .. }));
    let console = handle.console();
    let by = Some(peer.caller);
    let (last, orderly) = match over {
        Over::Detached(command) => return Some(Notice::Detached { command }),
        // It was made for its command, and ends by itself.
        Over::Ended if life == Life::Command => return ended,
        Over::Ended => (ended, true),
        // A sandbox that did not end its command in time is not asked for more.
        Over::Failed(_) if timed_out => (ended, false),
        Over::Failed(error) => (Some(failed(service, &error, console)), false),
        Over::Gone(gone) => {
            tracing::info!(%gone, "the client of a run is gone");
            (None, false)
        }
    };
    let end = async {
        if orderly && shares {
            let finished = handle.finish(by).await;
            if let Err(error) = finished {
                let _ = handle.destroy(by).await;
                return Err(error);
            }
            return Ok(());
        }
        match handle.destroy(by).await {
            // It may have ended, and been forgotten, by itself.
            Ok(()) | Err(OperationError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    };
    // What the command said is passed on meanwhile.
    tokio::pin!(end);
    let done = tokio::select! {
        done = &mut end => done,
        gone = line.until_gone_unheard(), if last.is_some() => {
            tracing::debug!(%gone, "the client left before the end of its sandbox");
            end.await
        }
    };
    match done {
        Ok(()) => last,
        Err(error) => {
            tracing::warn!(error = crate::causes::in_full(&error), "a sandbox did not end as it should");
            last.map(|_| failed(service, &error, String::new()))
        }
    }
}

fn failed(service: &Service, error: &OperationError, console: String) -> Notice {
    let console = Some(console).filter(|console| !console.trim().is_empty());
    Notice::Failed { refusal: service.refuse(error), console }
}

/// A command of a sandbox that goes on after it.
pub(super) async fn command(
    service: Service,
    peer: Peer,
    upgrade: OnUpgrade,
    handle: Handle,
    mut command: Command,
    granted: Granted,
    detached: bool,
) {
    let span = tracing::info_span!("command", sandbox = %handle.id());
    // Among the connections that there may be, until the stream ends.
    let _place = peer.place;
    async {
        let mut line = match Line::open(upgrade).await {
            Ok(line) => line,
            Err(gone) => return tracing::debug!(%gone, "a command lost its client before it began"),
        };
        let leave = if detached { Leave::Started } else { Leave::Over };
        let over = relay(&service, &mut line, &mut command, granted, leave).await;
        let conclusion = ended(&command);
        let timed_out = matches!(&conclusion, Some(Notice::Ended { timed_out: true, .. }));
        // One that is not detached ends here, if it has not.
        drop(command);
        let last = match over {
            Over::Ended => conclusion,
            Over::Detached(command) => Some(Notice::Detached { command }),
            Over::Failed(_) if timed_out => conclusion,
            Over::Failed(error) => Some(failed(&service, &error, handle.console())),
            Over::Gone(gone) => return tracing::info!(%gone, "the client of a command is gone"),
        };
        if let Some(last) = last {
            line.notice(&last);
        }
        close(&service, line).await;
    }
    .instrument(span)
    .await;
}

/// Sends the rest and ends the stream.
async fn close(service: &Service, mut line: Line) {
    let flushed = tokio::select! {
        flushed = line.flush() => flushed,
        () = service.end().force.cancelled() => Err(Gone::Forced),
        () = async {
            service.end().drain.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        } => Err(Gone::Forced),
    };
    if let Err(gone) = flushed {
        tracing::debug!(%gone, "the client does not hear the end");
    }
    let _ = line.write.shutdown().await;
}

/// Passes on both ways.
async fn relay(
    service: &Service,
    line: &mut Line,
    command: &mut Command,
    mut granted: Granted,
    leave: Leave,
) -> Over {
    loop {
        tokio::select! {
            event = command.next(), if line.outbox.len() < ENOUGH => {
                let event = match event {
                    Ok(event) => event,
                    Err(error) => return Over::Failed(error),
                };
                let started = matches!(event, ExecEvent::Started | ExecEvent::Attached { .. });
                if tell(line, command, &mut granted, event) == Leave::Over {
                    return Over::Ended;
                }
                if started && leave == Leave::Started && let Some(number) = command.number() {
                    return Over::Detached(number);
                }
            }
            turn = line.turn() => match turn {
                Ok(Turn::Written) => {}
                Ok(Turn::Frame(frame)) => match take(command, &mut granted, frame) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Over::Failed(error),
                    Err(gone) => return Over::Gone(gone),
                },
                Err(gone) => return Over::Gone(gone),
            },
            () = service.end().force.cancelled() => return Over::Gone(Gone::Forced),
        }
    }
}

/// Says again what the agent has said, and whether that was the last.
fn tell(line: &mut Line, command: &Command, granted: &mut Granted, event: ExecEvent) -> Leave {
    match event {
        // Its number in the sandbox is of no use outside.
        ExecEvent::Started => line.say(Kind::Event, COMMAND, &Event::Started { pid: 0 }),
        ExecEvent::Attached { from } => {
            line.say(Kind::Event, COMMAND, &Event::Attached { from, pid: 0, stdin_credit: None });
            grant(line, command, granted);
        }
        ExecEvent::Skipped(bytes) => line.say(Kind::Event, COMMAND, &Event::Skipped { bytes }),
        ExecEvent::Stdout(bytes) => line.post(Frame::new(Kind::Stdout, COMMAND, bytes)),
        ExecEvent::Stderr(bytes) => line.post(Frame::new(Kind::Stderr, COMMAND, bytes)),
        ExecEvent::StdinRoom | ExecEvent::StdinClosed => grant(line, command, granted),
        ExecEvent::Cut(by) => line.say(Kind::Event, COMMAND, &Event::OutputCut { by }),
        ExecEvent::Ran(ran) => {
            line.say(Kind::Reply, COMMAND, &Reply::Ran(ran));
            return Leave::Over;
        }
        ExecEvent::Exited(exited) => {
            line.say(Kind::Reply, COMMAND, &Reply::Exited(exited));
            return Leave::Over;
        }
        ExecEvent::NotStarted(reason) => {
            line.say(Kind::Reply, COMMAND, &Reply::NotStarted(reason));
            return Leave::Over;
        }
    }
    Leave::Started
}

/// Grants the client what there is room for. So it is never granted more than the agent has granted, and
/// never more than may wait here, whatever the agent grants.
fn grant(line: &mut Line, command: &Command, granted: &mut Granted) {
    let Some(room) = command.stdin_room() else {
        return line.say(Kind::Event, COMMAND, &Event::StdinClosed);
    };
    let room = (room as u64).min(u64::from(STDIN_WINDOW));
    if let Some(more) = room.checked_sub(granted.0).filter(|more| *more > 0) {
        granted.0 = room;
        let bytes = u32::try_from(more).unwrap_or(u32::MAX);
        line.say(Kind::Event, COMMAND, &Event::StdinCredit { bytes });
    }
}

/// Takes what the client says to the command.
fn take(
    command: &mut Command,
    granted: &mut Granted,
    frame: Frame,
) -> Result<Result<(), OperationError>, Gone> {
    if frame.id != COMMAND {
        return Err(Gone::Unexpected(frame.kind));
    }
    match frame.kind {
        Kind::Stdin => {
            let length = frame.body.len() as u64;
            granted.0 = granted.0.checked_sub(length).ok_or_else(|| Gone::TooMuch(length - granted.0))?;
            Ok(command.send_stdin(frame.body))
        }
        Kind::StdinEnd => Ok(command.end_stdin()),
        Kind::Input if frame.body.len() <= LONGEST_INPUT => {
            let input: Input = frame.message().map_err(Gone::Failed)?;
            Ok(command.send(&input))
        }
        kind => Err(Gone::Unexpected(kind)),
    }
}
