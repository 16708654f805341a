//! The life of a `firn run`: launch, pump, end.

use super::super::exit::{self, Failed};
use super::super::image;
use super::super::output::Output;
use super::Run;
use super::events::{Events, Outcome};
use super::signals::{Received, Signals};
use super::stdio::{ReaderGone, Sinks, Stream, stdin_is_null};
use crate::config::Config;
use crate::guest::{ExecEvent, Running};
use crate::sandbox::Spec;
use crate::sandbox::launch::{Ended, LaunchError, Progress, Sandbox};
use crate::sandbox::protection::{Isolation, Protection, milliseconds};
use crate::sandbox::store::Store;
use crate::sys::terminal::{self, RawMode};
use crate::view::WORKSPACE;
use crate::vm::Phase;
use crate::vm::vmm::Accelerator;
use bytes::{Bytes, BytesMut};
use firn_protocol::{
    EndedBy, Exceeded, Exec, ExitStatus, Exited, Input, NotStarted, NotStartedReason, Stdin, TerminalSize,
    Text, Variable,
};
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;

/// How much later than the agent firn itself calls a timeout, and ends the guest.
const TIMEOUT_GRACE: Duration = Duration::from_secs(10);

/// How many times Ctrl-C is passed on before it ends the sandbox.
const INTERRUPTS: u32 = 2;

/// How much stdin is read at once.
const MOST_INPUT: usize = 64 * 1024;

/// How much output is rendered as events at once: of empty lines a hundred times as much is made.
const MOST_RENDERED: usize = 4 * 1024;

/// How the command ended.
enum End {
    Exited(Box<Exited>),
    NotStarted(NotStarted),
    /// It did not, in time, and the guest was too busy or too hostile to end it.
    TimedOut,
    /// Nobody reads our output any more.
    ReaderGone,
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

pub(super) async fn run(
    run: &Run,
    config: &Config,
    spec: &Spec,
    output: &mut Output,
    events: &mut Option<Events>,
) -> Result<u8, Failed> {
    let mut narrator = Narrator::new(run.verbose);
    let mut signals = Signals::listen()?;
    clean_up(config, run.verbose, output)?;

    let mut sandbox = {
        let mut phase: Option<String> = None;
        let mut progress = |progress: Progress| {
            let now = describe(&progress);
            if let Some(before) = phase.replace(now.clone()) {
                narrator.done(output, &before);
            }
            output.doing(&now);
        };
        let launched = tokio::select! {
            launched = Sandbox::launch(config, spec, &mut progress) => launched,
            signal = signals.end() => return Err(Failed::Signal(signal)),
        };
        output.clear();
        let launched = launched?;
        if let Some(last) = phase {
            narrator.done(output, &last);
        }
        launched
    };
    match sandbox.isolation() {
        Isolation::Vm { accelerator: Accelerator::Software, .. } => {
            output.note("no usable KVM: the microVM is emulated in software (degraded isolation, slow)");
        }
        Isolation::Jail { instead_of_vm: Some(reason), .. } => {
            output.note(&format!("no vm can be had ({reason}): this is a jail (degraded isolation)"));
        }
        Isolation::Vm { .. } | Isolation::Jail { .. } => {}
    }

    let sinks = Sinks::open();
    let ended = execute(run, config, spec, &mut sandbox, &mut signals, &sinks, events).await;
    terminal::restore();
    narrator.done(output, "the command");

    // Only what is shared outlives the guest, so only then is there something to write back.
    let synced = match &ended {
        // A guest that did not end its command in time is not asked for more.
        Ok(End::Exited(_) | End::NotStarted(_) | End::ReaderGone) if !spec.shares.is_empty() => {
            tokio::select! {
                synced = sandbox.sync() => synced,
                signal = signals.end() => return Err(Failed::Signal(signal)),
            }
        }
        _ => Ok(()),
    };
    // Before the control group goes, which has counted.
    let ended = match ended {
        Ok(End::Exited(mut exited)) => {
            exited.exceeded.extend(sandbox.exceeded());
            Ok(End::Exited(exited))
        }
        Err(Failed::Sandbox(ended)) => Err(Failed::Sandbox(sandbox.why(ended))),
        Err(Failed::Launch(LaunchError::Ended(ended))) => Err(Failed::Launch(sandbox.why(ended).into())),
        ended => ended,
    };
    let protection = sandbox.protection(spec);
    if run.verbose {
        report(&sandbox, &protection, spec, output);
    }
    let console = sandbox.console();
    sandbox.destroy().await;
    narrator.done(output, "the end of the sandbox");

    if ended.is_err() && run.verbose && !console.trim().is_empty() {
        output.note(&format!("the guest's console:\n{}", console.trim_end()));
    }
    let concluded = ended.and_then(|end| {
        synced?;
        Ok(conclude(run, spec, &end, protection, output))
    });
    if let (Some(events), Ok((_, outcome))) = (events, &concluded) {
        let last = events.finish(outcome);
        let _ = sinks.write(Stream::Stdout, &last).await;
    }
    // Also what a guest said before it died.
    tokio::select! {
        // A reader that went away was told apart above, or has all it wanted.
        _ = sinks.finish() => {}
        signal = signals.end() => return Err(Failed::Signal(signal)),
    }
    let (code, _) = concluded?;
    narrator.total(output, &format!("exit code {code}"));
    Ok(code)
}

/// Removes what a killed firn has left.
fn clean_up(config: &Config, verbose: bool, output: &mut Output) -> Result<(), Failed> {
    let reaped = Store::open(&config.runtime_dir)?.reap()?;
    if verbose {
        for id in &reaped.removed {
            output.note(&format!("removed what was left of sandbox {id}, whose firn had been killed"));
        }
    }
    for (id, error) in &reaped.failed {
        output.note(&format!("cannot remove what was left of sandbox {id}: {error}"));
    }
    Ok(())
}

fn describe(progress: &Progress) -> String {
    match progress {
        Progress::Image => "finding the guest image".to_owned(),
        Progress::Building(step) => image::describe(step),
        Progress::Vm(Phase::Starting) => "starting the microVM".to_owned(),
        Progress::Vm(Phase::Booting) => "booting".to_owned(),
        Progress::Vm(Phase::Configuring) => "mounting".to_owned(),
        Progress::Jail => "starting the jail".to_owned(),
    }
}

async fn execute(
    run: &Run,
    config: &Config,
    spec: &Spec,
    sandbox: &mut Sandbox,
    signals: &mut Signals,
    sinks: &Sinks,
    events: &mut Option<Events>,
) -> Result<End, Failed> {
    let stdin_is_terminal = std::io::stdin().is_terminal();
    let _raw =
        if run.tty && stdin_is_terminal { Some(RawMode::enter().map_err(Failed::Terminal)?) } else { None };
    let exec = request(run, config, spec, sandbox);
    let dialer = sandbox.dialer();
    let mut ended = sandbox.ended();
    let mut agent = match dialer.dial().await {
        Ok(agent) => agent,
        Err(error) => return Err(Failed::Launch(error.or_end(ended).await.into())),
    };
    let running = agent.exec(exec)?;
    let pumped = tokio::select! {
        biased;
        pumped = pump(running, spec, signals, sinks, events) => pumped,
        failure = &mut ended => Err(failure.into()),
    };
    match pumped {
        Err(Failed::Sandbox(ended_with)) => {
            let failure = match ended_with {
                Ended::Guest(error) => error.or_end(ended).await,
                other => other,
            };
            Err(if agent.is_greeted() { failure.into() } else { Failed::Launch(failure.into()) })
        }
        other => other,
    }
}

/// What the agent is asked to do.
fn request(run: &Run, config: &Config, spec: &Spec, sandbox: &Sandbox) -> Exec {
    let (argv, cwd, mut env) = match sandbox.wrapper() {
        Some(wrapper) => {
            let variable = |(name, value): &(&str, OsString)| Variable {
                name: Text::from(name),
                value: Text::from(value.clone()),
            };
            let env = wrapper.variables.iter().map(variable).collect();
            (vec![Text::from(wrapper.program.clone())], "/".into(), env)
        }
        None => {
            let argv = run.command.iter().cloned().map(Text::from).collect();
            (argv, run.cwd.clone().unwrap_or_else(|| WORKSPACE.into()), Vec::new())
        }
    };
    env.extend(run.variables(config));
    let (rows, columns) = terminal::size().unwrap_or((24, 80));
    Exec {
        argv,
        cwd: Some(Text::from(cwd)),
        env,
        user: run.user.clone(),
        terminal: run.tty.then_some(TerminalSize { rows, columns }),
        // A terminal is told of the end of input by a character.
        stdin: if stdin_is_null() && !run.tty { Stdin::Null } else { Stdin::Stream },
        timeout_ms: spec.timeout.map(|timeout| milliseconds(timeout).max(1)),
        max_output_bytes: spec.output.map(|size| size.0),
        resource_limits: sandbox.resource_limits(spec),
        keep: None,
    }
}

/// Passes everything on, both ways, until the command is over.
async fn pump(
    mut running: Running,
    spec: &Spec,
    signals: &mut Signals,
    sinks: &Sinks,
    events: &mut Option<Events>,
) -> Result<End, Failed> {
    let mut stdin = tokio::io::stdin();
    let mut input = BytesMut::new();
    // What came and is not yet shown, and what is shown and waits to be written.
    let mut arrived: Option<(Stream, Bytes)> = None;
    let mut waiting: Option<(Stream, Bytes)> = None;
    let mut urgent: u32 = 0;
    let mut reader_gone = false;
    // The agent keeps to it, if it is honest.
    let mut allowance = spec.output.map(|size| size.0);
    let mut deadline = spec.timeout.map(|timeout| tokio::time::Instant::now() + timeout + TIMEOUT_GRACE);
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
                    deadline = Some(tokio::time::Instant::now() + TIMEOUT_GRACE);
                }
            }
            event = running.next(), if waiting.is_none() => {
                match event? {
                    ExecEvent::Started => {
                        waiting = events.as_mut().map(|events| (Stream::Stdout, events.started()));
                    }
                    // The last three do not come: nothing is attached here, and nothing resumed.
                    ExecEvent::StdinRoom
                    | ExecEvent::Attached { .. }
                    | ExecEvent::Skipped(_)
                    | ExecEvent::Other(_) => {}
                    ExecEvent::Stdout(_) | ExecEvent::Stderr(_) if reader_gone => {}
                    ExecEvent::Exited(_) if reader_gone => return Ok(End::ReaderGone),
                    ExecEvent::Stdout(chunk) => arrived = allowed(&mut allowance, Stream::Stdout, chunk),
                    ExecEvent::Stderr(chunk) => arrived = allowed(&mut allowance, Stream::Stderr, chunk),
                    ExecEvent::Exited(exited) => return Ok(End::Exited(exited)),
                    ExecEvent::NotStarted(reason) => return Ok(End::NotStarted(reason)),
                }
            }
            read = limited.read_buf(&mut input), if room > 0 => {
                match read {
                    Ok(1..) => running.send_stdin(input.split().freeze())?,
                    // A stdin that cannot be read (a closed descriptor) is an empty one.
                    Ok(0) | Err(_) => running.end_stdin()?,
                }
            }
            received = signals.next() => match received {
                Received::Resized => {
                    if let Some((rows, columns)) = terminal::size() {
                        running.send(&Input::Resize(TerminalSize { rows, columns }))?;
                    }
                }
                Received::Hangup => running.send(&Input::Cancel)?,
                Received::ForCommand(signal) => {
                    urgent += 1;
                    if urgent > INTERRUPTS {
                        return Err(Failed::Signal(signal));
                    }
                    running.send(&Input::Signal { signal })?;
                }
            },
            () = too_late => return Ok(if reader_gone { End::ReaderGone } else { End::TimedOut }),
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
fn conclude(run: &Run, spec: &Spec, end: &End, protection: Protection, output: &mut Output) -> (u8, Outcome) {
    let mut outcome = Outcome {
        exit_code: -1,
        signal: None,
        timed_out: false,
        duration_ms: 0,
        error: None,
        truncated: false,
        output_bytes: 0,
        exceeded: Vec::new(),
        protection: Some(protection),
    };
    let code = match end {
        End::Exited(exited) => {
            outcome.duration_ms = exited.duration_us / 1000;
            outcome.timed_out = exited.ended_by == EndedBy::Timeout;
            outcome.output_bytes = exited.stdout_bytes.saturating_add(exited.stderr_bytes);
            outcome.truncated = spec.output.is_some_and(|most| outcome.output_bytes > most.0);
            outcome.exceeded.clone_from(&exited.exceeded);
            match exited.status {
                ExitStatus::Code(code) => outcome.exit_code = code,
                ExitStatus::Signal(signal) => outcome.signal = Some(format!("SIG{signal}")),
            }
            tell_limits(spec, exited, &outcome, output);
            match (exited.ended_by, exited.status) {
                (EndedBy::Timeout, _) => timed_out(spec, output),
                (_, ExitStatus::Code(code)) => u8::try_from(code).unwrap_or(u8::MAX),
                (_, ExitStatus::Signal(signal)) => exit::signalled(signal),
            }
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
            let command = run.command.first().map(|name| name.to_string_lossy()).unwrap_or_default();
            output.note(&format!("cannot run {command}: {}", reason.message));
            outcome.exit_code = i32::from(code);
            outcome.error = Some(reason.message.clone());
            code
        }
        End::TimedOut => {
            outcome.timed_out = true;
            outcome.duration_ms = spec.timeout.map_or(0, milliseconds);
            timed_out(spec, output)
        }
        End::ReaderGone => exit::signalled(libc::SIGPIPE),
    };
    (code, outcome)
}

/// Says which limits the command ran into: what they do to it looks like anything else.
fn tell_limits(spec: &Spec, exited: &Exited, outcome: &Outcome, output: &mut Output) {
    if outcome.exceeded.contains(&Exceeded::Memory) {
        let memory = spec.memory;
        output.note(&match exited.status {
            ExitStatus::Signal(libc::SIGKILL) => format!("killed: memory limit {memory}"),
            _ => format!("memory limit {memory}: a process of the command was killed"),
        });
    }
    if outcome.exceeded.contains(&Exceeded::Processes) {
        output.note(&format!("process limit {}: the command could not start more", spec.processes));
    }
    if let Some(most) = spec.output.filter(|_| outcome.truncated) {
        let written = outcome.output_bytes;
        output.note(&format!("output limit {most}: the rest of {written} bytes was dropped"));
    }
}

fn timed_out(spec: &Spec, output: &mut Output) -> u8 {
    let timeout = spec.timeout.unwrap_or_default();
    output.note(&format!("killed: timeout {}", humantime::format_duration(timeout)));
    exit::TIMEOUT
}

/// What the sandbox was.
fn report(sandbox: &Sandbox, protection: &Protection, spec: &Spec, output: &mut Output) {
    let id = sandbox.id();
    let group = match sandbox.cgroup() {
        Some(path) => path.display().to_string(),
        None => "none (no control group can be made here)".to_owned(),
    };
    output.note(&format!("sandbox {id}: {}; control group {group}", protection.describe(spec)));
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
