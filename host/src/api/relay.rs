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

mod line;

use super::phase::describe;
use super::request;
use super::routes;
use super::service::{Peer, Service};
use super::types::{CreateRequest, EvaluateRequest, ExecRequest, Notice, Refusal, RunRequest};
use crate::guest::ExecEvent;
use crate::sandbox::manager::{Command, Handle, Life, OperationError};
use crate::spec::Purpose;
use firn_protocol::{Event, Frame, Input, Kind, Reply, STDIN_WINDOW, Stdin};
use futures::FutureExt as _;
use hyper::upgrade::OnUpgrade;
use line::{Gone, Line, Turn};
use tokio::sync::mpsc;
use tracing::Instrument as _;

/// How much may wait for the client to read it until the agent is no longer listened to, in bytes.
const ENOUGH: usize = 256 * 1024;

/// How many events go out together.
const TOGETHER: usize = 8;

/// How many notices of a launch may wait.
const WAITING: usize = 16;

/// The longest message of a client, in bytes.
const LONGEST_INPUT: usize = 4 * 1024;

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

/// What a sandbox of a stream's own is there for.
enum Work {
    Command(ExecRequest),
    Code(Box<EvaluateRequest>),
}

impl Work {
    async fn begin(self, handle: &Handle, peer: &Peer) -> Result<Command, OperationError> {
        match self {
            Work::Command(asked) => handle.exec(asked, Some(peer.caller)).await,
            Work::Code(asked) => handle.evaluate_once(*asked, Some(peer.caller)).await,
        }
    }

    fn purpose(&self) -> Purpose {
        match self {
            Work::Command(_) => Purpose::Commands,
            Work::Code(_) => Purpose::Sessions,
        }
    }

    fn is_detached(&self) -> bool {
        matches!(self, Work::Command(ExecRequest { detach: true, .. }))
    }

    fn stdin(&self) -> Stdin {
        match self {
            Work::Command(asked) => asked.stdin,
            Work::Code(asked) => asked.stdin,
        }
    }
}

/// A run: a sandbox that is there for the stream, and a command in it.
pub(super) async fn run(service: Service, peer: Peer, upgrade: OnUpgrade, asked: RunRequest) {
    let mut line = match Line::open(upgrade).await {
        Ok(line) => line,
        Err(gone) => return tracing::debug!(%gone, "a run ended before it began"),
    };
    let work = Work::Command(asked.command);
    if let Some(last) = in_own_sandbox(&service, &peer, &mut line, asked.sandbox, work).await {
        line.notice(&last);
        line.close(&service).await;
    }
}

/// Code, and then more as the client asks for it.
pub(super) async fn evaluate(service: Service, peer: Peer, upgrade: OnUpgrade, asked: EvaluateRequest) {
    let mut line = match Line::open(upgrade).await {
        Ok(line) => line,
        Err(gone) => return tracing::debug!(%gone, "code lost its client before it was run"),
    };
    let mut next = Ok(asked);
    loop {
        let last = match next {
            Ok(asked) => evaluate_one(&service, &peer, &mut line, asked).await,
            Err(refusal) => Some(Notice::Failed { refusal, console: None }),
        };
        let Some(last) = last else { return };
        line.notice(&last);
        next = match line.next_request(&service).await {
            Ok(Some(frame)) => service.admit().and_then(|()| request::from_json(&frame.body)),
            Ok(None) => return line.close(&service).await,
            Err(gone) => return tracing::debug!(%gone, "a client has no more code"),
        };
    }
}

/// Code, in a session that may be made for it or in a sandbox that is there for nothing else. Gives the last
/// notice, if anybody is there for it.
async fn evaluate_one(
    service: &Service,
    peer: &Peer,
    line: &mut Line,
    asked: EvaluateRequest,
) -> Option<Notice> {
    if let Some(session) = asked.session.clone() {
        return evaluate_in(service, peer, line, &session, asked).await;
    }
    let sandbox = asked.sandbox.clone().unwrap_or_default();
    in_own_sandbox(service, peer, line, sandbox, Work::Code(Box::new(asked))).await
}

/// Work in a sandbox that is there for it. Gives the last notice, if anybody is there for it.
async fn in_own_sandbox(
    service: &Service,
    peer: &Peer,
    line: &mut Line,
    sandbox: CreateRequest,
    work: Work,
) -> Option<Notice> {
    let life = if work.is_detached() { Life::Command } else { Life::Ephemeral };
    let span = tracing::info_span!("launch", sandbox = tracing::field::Empty);
    let shares = sandbox.workspace.is_some() || !sandbox.mounts.is_empty();
    let launched =
        launch(service, peer, line, sandbox, (life, work.purpose())).instrument(span.clone()).await;
    let handle = match launched {
        Ok(Ok(handle)) => handle,
        Ok(Err(refusal)) => return Some(Notice::Failed { refusal, console: None }),
        Err(gone) => {
            tracing::info!(%gone, "a run ended while its sandbox came up");
            return None;
        }
    };
    let id = handle.id();
    span.record("sandbox", tracing::field::display(id));
    let over = do_work(service, peer, line, &handle, work)
        .instrument(tracing::info_span!("command", sandbox = %id))
        .await;
    end_run(service, peer, line, &handle, over, life, shares)
        .instrument(tracing::info_span!("end", sandbox = %id))
        .await
}

/// Code in a session. Gives the last notice, if anybody is there for it.
async fn evaluate_in(
    service: &Service,
    peer: &Peer,
    line: &mut Line,
    session: &str,
    asked: EvaluateRequest,
) -> Option<Notice> {
    let by = Some(peer.caller);
    let (tell, mut told) = mpsc::channel(WAITING);
    let found = async {
        let mut progress = |progress| {
            // Who does not read misses some of it.
            let _ = tell.try_send(Notice::Progress { phase: describe(&progress) });
        };
        service.manager().session(session, asked.sandbox.as_ref(), by, &mut progress).await
    };
    let found = match while_told(service, line, &mut told, found).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Some(failed(service, &error, String::new())),
        Err(gone) => {
            tracing::info!(%gone, "the client left before its session was there");
            return None;
        }
    };
    let handle = found.handle.clone();
    let span = tracing::info_span!("run", sandbox = %handle.id());
    async {
        let notice = Notice::Session { session: Box::new(found.info()), created: found.created };
        if found.created {
            line.notice(&notice)
        } else {
            line.notice_with_next(&notice)
        }
        let granted = Granted::of(asked.stdin);
        let (over, conclusion) = match line.during(service, found.evaluate(asked, by)).await {
            Ok(Ok(mut command)) => {
                service.metrics().command();
                let over = relay(service, line, &mut command, granted, Leave::Over).await;
                (over, ended(&command))
            }
            Ok(Err(error)) => (Over::Failed(error), None),
            Err(gone) => (Over::Gone(gone), None),
        };
        last_notice(service, &handle, over, conclusion)
    }
    .instrument(span)
    .await
}

async fn launch(
    service: &Service,
    peer: &Peer,
    line: &mut Line,
    sandbox: CreateRequest,
    life: (Life, Purpose),
) -> Result<Result<Handle, Refusal>, Gone> {
    let (tell, mut told) = mpsc::channel(WAITING);
    let launched = routes::launch(service, sandbox, life, peer.caller, move |notice| {
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

/// What a sandbox of a stream's own is there for, to its end, and what is to be said after it.
async fn do_work(
    service: &Service,
    peer: &Peer,
    line: &mut Line,
    handle: &Handle,
    work: Work,
) -> (Over, Option<Notice>) {
    let detached = work.is_detached();
    if !detached {
        line.notice(&Notice::Sandbox { sandbox: Box::new(handle.info()) });
    }
    let granted = Granted::of(work.stdin());
    let mut command = match line.during(service, work.begin(handle, peer)).await {
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
        if orderly {
            return match handle.finish(by).await {
                Err(error) if shares => {
                    let _ = handle.destroy(by).await;
                    Err(error)
                }
                // There was nothing left to lose.
                Ok(()) | Err(_) => Ok(()),
            };
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
        // One that is not detached ends here, if it has not.
        drop(command);
        if let Some(last) = last_notice(&service, &handle, over, conclusion) {
            line.notice(&last);
            line.close(&service).await;
        }
    }
    .instrument(span)
    .await;
}

/// How a command of a sandbox that goes on has ended, if anybody is there to be told.
fn last_notice(service: &Service, handle: &Handle, over: Over, conclusion: Option<Notice>) -> Option<Notice> {
    let timed_out = matches!(&conclusion, Some(Notice::Ended { timed_out: true, .. }));
    match over {
        Over::Ended => conclusion,
        Over::Detached(command) => Some(Notice::Detached { command }),
        Over::Failed(_) if timed_out => conclusion,
        Over::Failed(error) => Some(failed(service, &error, handle.console())),
        Over::Gone(gone) => {
            tracing::info!(%gone, "the client of a command is gone");
            None
        }
    }
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
            event = command.next(), if line.waiting() < ENOUGH => {
                let mut event = event;
                // What is there already goes out with it.
                for left in (0..TOGETHER).rev() {
                    let happened = match event {
                        Ok(event) => event,
                        Err(error) => return Over::Failed(error),
                    };
                    let started = matches!(happened, ExecEvent::Started | ExecEvent::Attached { .. });
                    if tell(line, command, &mut granted, happened) == Leave::Over {
                        return Over::Ended;
                    }
                    if started && leave == Leave::Started && let Some(number) = command.number() {
                        return Over::Detached(number);
                    }
                    if left == 0 || line.waiting() >= ENOUGH {
                        break;
                    }
                    let Some(next) = command.next().now_or_never() else { break };
                    event = next;
                }
            }
            turn = line.turn() => match turn {
                Ok(Turn::Written) => {}
                Ok(Turn::Frame(frame)) if line.is_late(&frame) => {}
                Ok(Turn::Frame(frame)) if !line.carries(&frame) => {
                    return Over::Gone(Gone::Unexpected(frame.kind));
                }
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
        ExecEvent::Started => line.say(Kind::Event, &Event::Started { pid: 0 }),
        ExecEvent::Attached { from } => {
            line.say(Kind::Event, &Event::Attached { from, pid: 0, stdin_credit: None });
            grant(line, command, granted);
        }
        ExecEvent::Skipped(bytes) => line.say(Kind::Event, &Event::Skipped { bytes }),
        ExecEvent::Stdout(bytes) => line.pass(Kind::Stdout, bytes),
        ExecEvent::Stderr(bytes) => line.pass(Kind::Stderr, bytes),
        ExecEvent::StdinRoom | ExecEvent::StdinClosed => grant(line, command, granted),
        ExecEvent::Cut(by) => line.say(Kind::Event, &Event::OutputCut { by }),
        ExecEvent::Ran(ran) => {
            line.say(Kind::Reply, &Reply::Ran(ran));
            return Leave::Over;
        }
        ExecEvent::Exited(exited) => {
            line.say(Kind::Reply, &Reply::Exited(exited));
            return Leave::Over;
        }
        ExecEvent::NotStarted(reason) => {
            line.say(Kind::Reply, &Reply::NotStarted(reason));
            return Leave::Over;
        }
    }
    Leave::Started
}

/// Grants the client what there is room for. So it is never granted more than the agent has granted, and
/// never more than may wait here, whatever the agent grants.
fn grant(line: &mut Line, command: &Command, granted: &mut Granted) {
    let Some(room) = command.stdin_room() else {
        return line.say(Kind::Event, &Event::StdinClosed);
    };
    let room = (room as u64).min(u64::from(STDIN_WINDOW));
    if let Some(more) = room.checked_sub(granted.0).filter(|more| *more > 0) {
        granted.0 = room;
        let bytes = u32::try_from(more).unwrap_or(u32::MAX);
        line.say(Kind::Event, &Event::StdinCredit { bytes });
    }
}

/// Takes what the client says to the command.
fn take(
    command: &mut Command,
    granted: &mut Granted,
    frame: Frame,
) -> Result<Result<(), OperationError>, Gone> {
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
