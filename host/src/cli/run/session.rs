//! A command on the daemon's side and our own streams: from what it is brought up for to what is said of
//! its end.

use super::super::exit::{self, Failed};
use super::super::output::Output;
use super::events::{Events, Outcome, RunReport};
use super::keys::{Keys, Typed};
use super::signals::{Received, Signals};
use super::stdio::{ReaderGone, Sinks, Stream};
use crate::api::client::ClientError;
use crate::api::stream::{CommandStream, StreamEvent};
use crate::api::types::{Notice, SandboxInfo};
use crate::causes::in_full;
use crate::spec::Size;
use crate::spec::protection::{Protection, milliseconds};
use crate::sys::terminal::{self, RawMode};
use bytes::{Bytes, BytesMut};
use firn_protocol::{
    EndedBy, Exceeded, ExitStatus, Exited, Input, NotStarted, NotStartedReason, OutputCap, Ran, RunOutcome,
    TerminalSize,
};
use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;

/// How long a command may take to end when nobody reads its output any more.
const READER_GRACE: Duration = Duration::from_secs(10);

/// How many times Ctrl-C is passed on before it ends the command.
const INTERRUPTS: u32 = 2;

/// How much stdin is read at once.
const MOST_INPUT: usize = 64 * 1024;

/// How much output is rendered as events at once: of empty lines a hundred times as much is made.
const MOST_RENDERED: usize = 4 * 1024;

/// What is known of a command here, beside its stream.
#[derive(Debug)]
pub(in crate::cli) struct Terms<'a> {
    /// What it is called.
    pub(in crate::cli) name: Option<&'a OsStr>,
    /// Whether it has a terminal.
    pub(in crate::cli) tty: bool,
    /// Whether a sandbox comes up and ends with it.
    pub(in crate::cli) own_sandbox: bool,
    /// Whether it is code in an interpreter.
    pub(in crate::cli) code: bool,
    /// Whether the keys that leave it alone are listened for.
    pub(in crate::cli) keys: Keys,
    /// When it is killed.
    pub(in crate::cli) timeout: Option<Duration>,
    /// How much of its output is passed on.
    pub(in crate::cli) output: Option<Size>,
    /// Whether to say what is done.
    pub(in crate::cli) verbose: bool,
}

/// How the command ended.
enum End {
    Exited(Box<Exited>),
    Ran(Box<Ran>),
    NotStarted(NotStarted),
    /// It did not, in time, and the daemon has ended it.
    TimedOut,
    /// Nobody reads our output any more.
    ReaderGone,
    /// It goes on without us.
    Left(Option<u64>),
}

/// What the daemon says at the end.
#[derive(Debug, Default)]
struct Last {
    exceeded: Vec<Exceeded>,
    timed_out: bool,
    protection: Option<Box<Protection>>,
    detached: Option<u64>,
}

/// What came of it.
#[derive(Debug)]
pub(in crate::cli) struct Concluded {
    /// The exit code.
    pub(in crate::cli) code: u8,
    /// The sandbox, if one came up for it.
    pub(in crate::cli) sandbox: Option<Box<SandboxInfo>>,
    /// The number of the command, if it goes on.
    pub(in crate::cli) detached: Option<u64>,
}

/// Says what is done and how long it took, when that was asked for.
struct Narrator {
    verbose: bool,
    start: Instant,
    last: Instant,
}

impl Narrator {
    fn new(verbose: bool) -> Narrator {
        Narrator { verbose, start: Instant::now(), last: Instant::now() }
    }

    fn done(&mut self, output: &mut Output, what: &str) {
        if self.verbose {
            output.note(&format!("{:>8} ms  {what}", millis(self.last.elapsed())));
        }
        self.last = Instant::now();
    }

    fn total(&self, output: &mut Output, what: &str) {
        if self.verbose {
            output.note(&format!("{:>8} ms  in all; {what}", millis(self.start.elapsed())));
        }
    }
}

fn millis(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1000.0)
}

/// Has `work` say what happens as events, if that was asked for. The last of them is a result, whatever
/// happens.
pub(in crate::cli) fn report(
    json: bool,
    output: &mut Output,
    work: impl FnOnce(&mut Output, &mut Option<Events>) -> Result<u8, Failed>,
) -> Result<u8, Failed> {
    let mut events = json.then(Events::default);
    let result = work(output, &mut events);
    if let (Some(events), Err(failed)) = (&mut events, &result) {
        output.stdout(&events.finish(&Outcome::failed(failed.code(), in_full(failed))))?;
    }
    result
}

/// Connects our streams with a command, until it is over.
pub(in crate::cli) async fn conduct(
    asked: impl Future<Output = Result<CommandStream, ClientError>>,
    terms: &Terms<'_>,
    output: &mut Output,
    events: &mut Option<Events>,
) -> Result<Concluded, Failed> {
    let mut narrator = Narrator::new(terms.verbose);
    let mut signals = Signals::listen()?;
    let mut stream = tokio::select! {
        stream = asked => stream?,
        signal = signals.end() => return Err(Failed::Signal(signal)),
    };
    let sandbox = match terms.own_sandbox {
        true => match bring_up(&mut stream, &mut signals, &mut narrator, terms, output).await {
            Ok(sandbox) => Some(sandbox),
            Err(failed) => {
                stream.abandon().await;
                return Err(failed);
            }
        },
        false => None,
    };
    let sinks = Sinks::open();
    let ended = execute(&mut stream, terms, &mut signals, &sinks, events, output).await;
    terminal::restore();
    let (end, last) = match ended {
        Ok((End::Left(command), _)) => {
            return Ok(Concluded { code: 0, sandbox, detached: command });
        }
        Ok((end, last)) => {
            narrator.done(output, "the command");
            let last = match last {
                Some(last) => Ok(last),
                // The sandbox of a run ends with it.
                None => tokio::select! {
                    last = last_words(&mut stream, terms, output) => last,
                    signal = signals.end() => Err(Failed::Signal(signal)),
                },
            };
            if terms.own_sandbox {
                narrator.done(output, "the end of the sandbox");
            }
            (Ok(end), last)
        }
        Err(failed) => (Err(failed), Ok(Last::default())),
    };
    let concluded = match (end, last) {
        (Ok(end), Ok(last)) => Ok(conclude(terms, end, last, sandbox.as_deref(), output)),
        (Err(failed), _) | (_, Err(failed)) => {
            if matches!(failed, Failed::Signal(_)) {
                // What ends with us is to be gone when we are.
                stream.abandon().await;
            }
            Err(failed)
        }
    };
    if let Ok((_, outcome)) = &concluded
        && let Some(mut events) = events.take()
    {
        let last = events.finish(outcome);
        let _ = sinks.write(Stream::Stdout, &last).await;
    }
    // Also what was said before the sandbox failed.
    tokio::select! {
        // A reader that went away was told apart above, or has all it wanted.
        _ = sinks.finish() => {}
        signal = signals.end() => return Err(Failed::Signal(signal)),
    }
    let (code, _) = concluded?;
    narrator.total(output, &format!("exit code {code}"));
    Ok(Concluded { code, sandbox, detached: None })
}

/// Waits for the sandbox of a run.
async fn bring_up(
    stream: &mut CommandStream,
    signals: &mut Signals,
    narrator: &mut Narrator,
    terms: &Terms<'_>,
    output: &mut Output,
) -> Result<Box<SandboxInfo>, Failed> {
    let mut phase: Option<String> = None;
    let brought = loop {
        let event = tokio::select! {
            event = stream.next() => event,
            signal = signals.end() => break Err(Failed::Signal(signal)),
        };
        match event {
            Ok(StreamEvent::Notice(Notice::Progress { phase: now })) => {
                if let Some(before) = phase.replace(now.clone()) {
                    narrator.done(output, &before);
                }
                output.doing(&now);
            }
            Ok(StreamEvent::Notice(Notice::Sandbox { sandbox })) => break Ok(sandbox),
            Ok(StreamEvent::Notice(Notice::Failed { refusal, console })) => {
                tell_console(terms, console.as_deref(), output);
                break Err(ClientError::Refused(refusal).into());
            }
            Ok(_) => {}
            Err(error) => break Err(error.into()),
        }
    };
    output.clear();
    let sandbox = brought?;
    if let Some(last) = phase {
        narrator.done(output, &last);
    }
    if let Some(remark) = sandbox.protection.as_ref().and_then(Protection::remark) {
        output.note(&remark);
    }
    Ok(sandbox)
}

fn tell_console(terms: &Terms<'_>, console: Option<&str>, output: &mut Output) {
    if let Some(console) = console.filter(|console| terms.verbose && !console.trim().is_empty()) {
        output.note(&format!("the guest's console:\n{}", console.trim_end()));
    }
}

/// Waits until the daemon has said all there is to say.
async fn last_words(
    stream: &mut CommandStream,
    terms: &Terms<'_>,
    output: &mut Output,
) -> Result<Last, Failed> {
    loop {
        if let StreamEvent::Notice(notice) = stream.next().await?
            && let Some(last) = last(notice, terms, output)?
        {
            return Ok(last);
        }
    }
}

/// What a notice says if it is the last one.
fn last(notice: Notice, terms: &Terms<'_>, output: &mut Output) -> Result<Option<Last>, Failed> {
    match notice {
        Notice::Progress { phase } => {
            output.doing(&phase);
            Ok(None)
        }
        Notice::Session { session, created } => {
            if terms.verbose && created {
                output.note(&format!("session {}: made in sandbox {}", session.name, session.sandbox));
            }
            Ok(None)
        }
        Notice::Sandbox { .. } => Ok(None),
        Notice::Ended { exceeded, timed_out, protection } => {
            Ok(Some(Last { exceeded, timed_out, protection, detached: None }))
        }
        Notice::Detached { command } => Ok(Some(Last { detached: Some(command), ..Last::default() })),
        Notice::Failed { refusal, console } => {
            output.clear();
            terminal::restore();
            tell_console(terms, console.as_deref(), output);
            Err(ClientError::Refused(refusal).into())
        }
    }
}

async fn execute(
    stream: &mut CommandStream,
    terms: &Terms<'_>,
    signals: &mut Signals,
    sinks: &Sinks,
    events: &mut Option<Events>,
    output: &mut Output,
) -> Result<(End, Option<Last>), Failed> {
    let stdin_is_terminal = std::io::stdin().is_terminal();
    let _raw =
        if terms.tty && stdin_is_terminal { Some(RawMode::enter().map_err(Failed::Terminal)?) } else { None };
    pump(stream, terms, signals, sinks, events, output).await
}

/// Passes everything on, both ways, until the command is over.
async fn pump(
    running: &mut CommandStream,
    terms: &Terms<'_>,
    signals: &mut Signals,
    sinks: &Sinks,
    events: &mut Option<Events>,
    output: &mut Output,
) -> Result<(End, Option<Last>), Failed> {
    let mut stdin = tokio::io::stdin();
    let mut input = BytesMut::new();
    let mut keys = terms.keys;
    // What came and is not yet shown, and what is shown and waits to be written.
    let mut arrived: Option<(Stream, Bytes)> = None;
    let mut waiting: Option<(Stream, Bytes)> = None;
    let mut urgent: u32 = 0;
    let mut reader_gone = false;
    // The agent keeps to it, if it is honest.
    let mut allowance = terms.output.map(|size| size.0);
    let mut deadline = None;
    loop {
        let too_late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let room = running.stdin_room().unwrap_or(0).min(MOST_INPUT);
        input.reserve(room);
        let mut limited = (&mut stdin).take(room as u64);
        if waiting.is_none() {
            waiting = arrived.as_mut().map(|(stream, chunk)| shown(events, *stream, chunk));
            arrived = arrived.filter(|(_, rest)| !rest.is_empty());
        }
        let (stream, chunk) = waiting.clone().unwrap_or((Stream::Stdout, Bytes::new()));
        tokio::select! {
            written = sinks.write(stream, &chunk), if waiting.is_some() => {
                waiting = None;
                if let Err(ReaderGone) = written {
                    // As a pipe does it: the command learns by dying. Its end is waited for, so
                    // that the guest can be asked to write back what is shared.
                    running.send(&Input::Cancel)?;
                    reader_gone = true;
                    arrived = None;
                    deadline = Some(tokio::time::Instant::now() + READER_GRACE);
                }
            }
            event = running.next(), if waiting.is_none() => {
                match event? {
                    StreamEvent::Started => {
                        output.clear();
                        waiting = events.as_mut().map(|events| (Stream::Stdout, events.started()));
                    }
                    // The end says so too.
                    StreamEvent::StdinRoom | StreamEvent::Cut => {}
                    StreamEvent::Skipped(bytes) => {
                        output.note(&format!("{bytes} bytes of output are left out: they are not kept any more"));
                    }
                    StreamEvent::Stdout(_) | StreamEvent::Stderr(_) if reader_gone => {}
                    StreamEvent::Exited(_) | StreamEvent::Ran(_) if reader_gone => {
                        return Ok((End::ReaderGone, None));
                    }
                    StreamEvent::Stdout(chunk) => arrived = allowed(&mut allowance, Stream::Stdout, chunk),
                    StreamEvent::Stderr(chunk) => arrived = allowed(&mut allowance, Stream::Stderr, chunk),
                    StreamEvent::Exited(exited) => return Ok((End::Exited(exited), None)),
                    StreamEvent::Ran(ran) => return Ok((End::Ran(ran), None)),
                    StreamEvent::NotStarted(reason) => return Ok((End::NotStarted(reason), None)),
                    StreamEvent::Notice(notice) => match last(notice, terms, output)? {
                        None => {}
                        Some(Last { detached: Some(command), .. }) => {
                            return Ok((End::Left(Some(command)), None));
                        }
                        Some(last) => return Ok((End::TimedOut, Some(last))),
                    },
                }
            }
            read = limited.read_buf(&mut input), if room > 0 => {
                match read {
                    Ok(1..) => match keys.typed(input.split().freeze()) {
                        Typed::Send(bytes) => running.send_stdin(bytes)?,
                        Typed::Leave => return Ok((End::Left(None), None)),
                    },
                    // A stdin that cannot be read (a closed descriptor) is an empty one.
                    Ok(0) | Err(_) => running.end_stdin()?,
                }
            }
            received = signals.next() => match received {
                Received::Resized => {
                    if let Some((rows, columns)) = terminal::size().filter(|_| terms.tty) {
                        running.send(&Input::Resize(TerminalSize { rows, columns }))?;
                    }
                }
                Received::Hangup => running.send(&Input::Cancel)?,
                Received::ForCommand(signal) => {
                    urgent += 1;
                    if urgent > INTERRUPTS {
                        return Err(Failed::Signal(signal));
                    }
                    running.send(&match terms.code {
                        // Its session goes on.
                        true => Input::Cancel,
                        false => Input::Signal { signal },
                    })?;
                }
            },
            () = too_late => return Ok((End::ReaderGone, Some(Last::default()))),
        }
    }
}

/// What may be passed on of a chunk, if something may.
fn allowed(allowance: &mut Option<u64>, stream: Stream, mut chunk: Bytes) -> Option<(Stream, Bytes)> {
    if let Some(left) = allowance {
        chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= chunk.len() as u64;
    }
    (!chunk.is_empty()).then_some((stream, chunk))
}

/// Takes output off `arrived` as it is passed on: itself, or as events, which all go to stdout.
fn shown(events: &mut Option<Events>, stream: Stream, arrived: &mut Bytes) -> (Stream, Bytes) {
    match events {
        Some(events) => {
            let part = arrived.split_to(arrived.len().min(MOST_RENDERED));
            (Stream::Stdout, events.output(stream, &part))
        }
        None => (stream, std::mem::take(arrived)),
    }
}

/// What the caller is told.
fn conclude(
    terms: &Terms<'_>,
    end: End,
    last: Last,
    sandbox: Option<&SandboxInfo>,
    output: &mut Output,
) -> (u8, Outcome) {
    let Last { exceeded, protection, timed_out: late, .. } = last;
    let protection =
        protection.map(|protection| *protection).or_else(|| sandbox.and_then(|it| it.protection.clone()));
    if let (true, Some(sandbox), Some(protection)) = (terms.verbose, sandbox, &protection) {
        describe(sandbox, protection, output);
    }
    let timeout = terms.timeout.or_else(|| protection.as_ref().and_then(Protection::time));
    let mut outcome = Outcome {
        exit_code: -1,
        signal: None,
        timed_out: false,
        duration_ms: 0,
        error: None,
        truncated: false,
        output_bytes: 0,
        exceeded: Vec::new(),
        run: None,
        protection,
    };
    let code = match end {
        End::Exited(mut exited) => {
            exited.exceeded.extend(exceeded);
            outcome.duration_ms = exited.duration_us / 1000;
            outcome.timed_out = exited.ended_by == EndedBy::Timeout;
            outcome.output_bytes = exited.stdout_bytes.saturating_add(exited.stderr_bytes);
            outcome.truncated = terms.output.is_some_and(|most| outcome.output_bytes > most.0);
            outcome.exceeded.clone_from(&exited.exceeded);
            match exited.status {
                ExitStatus::Code(code) => outcome.exit_code = code,
                ExitStatus::Signal(signal) => outcome.signal = Some(format!("SIG{signal}")),
            }
            tell_limits(terms, &exited, &outcome, output);
            match (exited.ended_by, exited.status) {
                (EndedBy::Timeout, _) => timed_out(timeout, output),
                (_, ExitStatus::Code(code)) => u8::try_from(code).unwrap_or(u8::MAX),
                (_, ExitStatus::Signal(signal)) => exit::signalled(signal),
            }
        }
        End::Ran(ran) => {
            outcome.duration_ms = ran.duration_us / 1000;
            outcome.timed_out = ran.outcome == RunOutcome::TimedOut;
            outcome.output_bytes = ran.stdout_bytes.saturating_add(ran.stderr_bytes);
            outcome.truncated = ran.truncated.is_some();
            outcome.exit_code = ran.exit_code;
            outcome.exceeded = exceeded;
            outcome.exceeded.extend(&ran.exceeded);
            tell_run(&ran, timeout, output);
            let code = u8::try_from(ran.exit_code).unwrap_or(u8::MAX);
            outcome.run = Some(RunReport::from(*ran));
            code
        }
        End::NotStarted(reason) => {
            let code = match reason.reason {
                NotStartedReason::NotFound => exit::NOT_FOUND,
                NotStartedReason::NotExecutable => exit::NOT_EXECUTABLE,
                NotStartedReason::BadWorkingDirectory
                | NotStartedReason::UnknownUser
                | NotStartedReason::InvalidArgument
                | NotStartedReason::NoResources
                | NotStartedReason::Other => exit::FAILED,
            };
            let command = terms.name.map(OsStr::to_string_lossy).unwrap_or_default();
            output.note(&format!("cannot run {command}: {}", reason.message));
            outcome.exit_code = i32::from(code);
            outcome.error = Some(reason.message);
            code
        }
        End::TimedOut if late => {
            outcome.timed_out = true;
            outcome.duration_ms = timeout.map_or(0, milliseconds);
            timed_out(timeout, output)
        }
        // An end without a word of how: it was ended by somebody else, and nobody knows more.
        End::TimedOut | End::Left(_) => exit::signalled(libc::SIGKILL),
        End::ReaderGone => exit::signalled(libc::SIGPIPE),
    };
    (code, outcome)
}

/// Says which limits the command ran into: what they do to it looks like anything else.
fn tell_limits(terms: &Terms<'_>, exited: &Exited, outcome: &Outcome, output: &mut Output) {
    if let Some(protection) = &outcome.protection {
        if outcome.exceeded.contains(&Exceeded::Memory) {
            let memory = protection.memory();
            output.note(&match exited.status {
                ExitStatus::Signal(libc::SIGKILL) => format!("killed: memory limit {memory}"),
                _ => format!("memory limit {memory}: a process of the command was killed"),
            });
        }
        if outcome.exceeded.contains(&Exceeded::Processes) {
            let processes = protection.processes();
            output.note(&format!("process limit {processes}: the command could not start more"));
        }
    }
    if let Some(most) = terms.output.filter(|_| outcome.truncated) {
        let written = outcome.output_bytes;
        output.note(&format!("output limit {most}: the rest of {written} bytes was dropped"));
    }
}

fn timed_out(timeout: Option<Duration>, output: &mut Output) -> u8 {
    let timeout = timeout.unwrap_or_default();
    output.note(&format!("killed: timeout {}", humantime::format_duration(timeout)));
    exit::TIMEOUT
}

/// Says what its output does not say of a run.
fn tell_run(ran: &Ran, timeout: Option<Duration>, output: &mut Output) {
    match ran.outcome {
        RunOutcome::TimedOut => {
            let timeout = timeout.unwrap_or_default();
            output.note(&format!("interrupted: timeout {}", humantime::format_duration(timeout)));
        }
        RunOutcome::Killed { signal } => {
            output.note(&format!("the interpreter was killed by signal {signal}"))
        }
        RunOutcome::Broken => output.note("the interpreter did not answer and was killed"),
        RunOutcome::Ok | RunOutcome::Exception | RunOutcome::Exited { .. } | RunOutcome::Interrupted => {}
    }
    if ran.state_lost_before {
        output.note("the interpreter had ended before this run: what it knew is lost");
    }
    if ran.state_lost {
        output.note("the interpreter has ended: what it knew is lost, and the next run finds a new one");
    }
    if let Some(cap) = ran.truncated {
        let written = ran.stdout_bytes.saturating_add(ran.stderr_bytes);
        let whose = match cap {
            OutputCap::Run => "",
            OutputCap::Session => " of the session",
        };
        output.note(&format!("output limit{whose}: a part of {written} bytes was dropped"));
    }
}

/// What the sandbox was.
fn describe(sandbox: &SandboxInfo, protection: &Protection, output: &mut Output) {
    let group = sandbox.cgroup.as_deref().unwrap_or("none (no control group can be made here)");
    let id = &sandbox.session_id;
    output.note(&format!("sandbox {id}: {}; control group {group}", protection.describe()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lines_are_rendered_a_few_at_a_time() {
        let mut arrived = Bytes::from(vec![b'\n'; firn_protocol::MAX_CHUNK]);
        let mut events = Some(Events::default());
        let mut lines = 0;
        while !arrived.is_empty() {
            let (stream, rendered) = shown(&mut events, Stream::Stderr, &mut arrived);
            assert_eq!(stream, Stream::Stdout);
            assert!(rendered.len() < 1 << 20, "{} bytes at once", rendered.len());
            lines += rendered.iter().filter(|byte| **byte == b'\n').count();
        }
        assert_eq!(lines, firn_protocol::MAX_CHUNK);
    }
}
