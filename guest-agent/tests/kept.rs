//! Commands that outlive their connection.

#![allow(clippy::unwrap_used, reason = "whatever fails here fails the test")]

mod agent;

use agent::*;
use firn_protocol::*;

fn kept(command: u64, exec: Exec) -> Exec {
    Exec { keep: Some(Keep { command, output_bytes: 1 << 20, back_pressure: false }), ..exec }
}

fn streaming(exec: Exec) -> Exec {
    Exec { stdin: Stdin::Stream, ..exec }
}

fn attach(command: u64) -> Attach {
    Attach { command, from: 0, stdin: Stdin::Null, back_pressure: false }
}

fn with_stdin(command: u64) -> Attach {
    Attach { stdin: Stdin::Stream, ..attach(command) }
}

/// What an attached connection was told before its reply.
#[derive(Debug, Default)]
struct Told {
    from: u64,
    pid: u32,
    stdin_credit: Option<u32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    skipped: u64,
    stdin_closed: bool,
}

impl Told {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

fn attached(host: &mut Host, attach: Attach) -> (RequestId, Told) {
    let id = host.request(&Request::Attach(attach));
    let frame = host.frame().unwrap();
    assert_eq!((frame.kind, frame.id), (Kind::Event, id), "{:?}", frame.body);
    match frame.message().unwrap() {
        Event::Attached { from, pid, stdin_credit } => {
            (id, Told { from, pid, stdin_credit, ..Told::default() })
        }
        other => panic!("{other:?}"),
    }
}

/// Takes what comes until this is true, or to the reply.
fn take(host: &mut Host, id: RequestId, told: &mut Told, enough: impl Fn(&Told) -> bool) -> Option<Reply> {
    while !enough(told) {
        let frame = host.frame().expect("the connection lasts");
        assert_eq!(frame.id, id);
        match frame.kind {
            Kind::Stdout => told.stdout.extend_from_slice(&frame.body),
            Kind::Stderr => told.stderr.extend_from_slice(&frame.body),
            Kind::Event => match frame.message().unwrap() {
                Event::Skipped { bytes } => told.skipped += bytes,
                Event::StdinClosed => told.stdin_closed = true,
                Event::StdinCredit { bytes } => *told.stdin_credit.as_mut().unwrap() += bytes,
                other => panic!("{other:?}"),
            },
            Kind::Reply => return Some(frame.message().unwrap()),
            other => panic!("{other:?}"),
        }
    }
    None
}

fn to_the_end(host: &mut Host, id: RequestId, told: &mut Told) -> Exited {
    match take(host, id, told, |_| false) {
        Some(Reply::Exited(exited)) => *exited,
        other => panic!("{other:?}"),
    }
}

fn commands(host: &mut Host) -> Vec<CommandInfo> {
    match host.ask(&Request::Commands) {
        Reply::Commands { commands } => commands,
        other => panic!("{other:?}"),
    }
}

fn over(agent: &Agent, command: u64) {
    let mut host = agent.connect();
    eventually("the command is over", || {
        let commands = commands(&mut host);
        let info = commands.iter().find(|info| info.command == command).unwrap();
        matches!(info.state, CommandState::Exited(_))
    });
}

fn refusal(host: &mut Host, request: &Request) -> FailureCode {
    match host.ask(request) {
        Reply::Error(failure) => failure.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_kept_command_is_like_any_other_to_its_own_connection() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let run = host.run(&kept(1, streaming(sh("cat; echo err >&2; exit 3"))), b"hello");
    assert_eq!((run.text().as_str(), run.stderr.as_slice(), run.code()), ("hello", &b"err\n"[..], 3));
    assert!(run.pid.is_some());
    let run = host.run(&kept(2, exec(["/nowhere/to/be/found"])), b"");
    assert_eq!(run.not_started().reason, NotStartedReason::NotFound);
    assert_eq!(host.ask(&Request::Ping), Reply::Pong);
}

#[test]
fn a_kept_command_outlives_its_connection_and_its_result_waits() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let go = folder.path().join("go");
    let script =
        format!("echo before; until [ -e {0} ]; do sleep 0.01; done; echo after; exit 7", go.display());
    let mut host = agent.connect();
    let (_, pid) = host.started(&kept(77, sh(&script)));
    host.until("before");
    drop(host);
    let mut host = agent.connect();
    let info = commands(&mut host).remove(0);
    assert_eq!((info.command, info.pid, &info.state), (77, Some(pid), &CommandState::Running));
    assert_eq!(info.argv[0].as_os_str(), "sh");
    assert!(lives(pid));
    std::fs::write(go, "").unwrap();
    over(&agent, 77);
    let (id, mut told) = attached(&mut host, attach(77));
    assert_eq!((told.from, told.pid, told.stdin_credit), (0, pid, None));
    let exited = to_the_end(&mut host, id, &mut told);
    assert_eq!((told.text(), exited.status), ("before\nafter\n", ExitStatus::Code(7)));
    let info = commands(&mut host).remove(0);
    assert_eq!((info.output_bytes, info.kept_from), (13, 0));
    // From a place within, and from beyond the end.
    let (id, mut told) = attached(&mut host, Attach { from: 7, ..attach(77) });
    to_the_end(&mut host, id, &mut told);
    assert_eq!((told.from, told.text()), (7, "after\n"));
    let (id, mut told) = attached(&mut host, Attach { from: u64::MAX, ..attach(77) });
    to_the_end(&mut host, id, &mut told);
    assert_eq!((told.from, told.text()), (13, ""));
    assert_eq!(host.ask(&Request::Forget { command: 77 }), Reply::Forgotten);
    assert!(commands(&mut host).is_empty());
    assert_eq!(refusal(&mut host, &Request::Attach(attach(77))), FailureCode::NotFound);
    assert_eq!(refusal(&mut host, &Request::Forget { command: 77 }), FailureCode::NotFound);
    assert_eq!(host.ask(&Request::Ping), Reply::Pong);
}

#[test]
fn all_attached_get_all_output() {
    let agent = Agent::start();
    let mut first = agent.connect();
    let (id, _) = first.started(&kept(1, streaming(sh("read line; echo $line; echo $line >&2"))));
    let mut others: Vec<_> = (0..3)
        .map(|_| {
            let mut host = agent.connect();
            let (id, told) = attached(&mut host, attach(1));
            (host, id, told)
        })
        .collect();
    first.stdin(id, b"word\n");
    let run = first.finish(id, None);
    assert_eq!((run.text().as_str(), run.stderr.as_slice()), ("word\n", &b"word\n"[..]));
    for (host, id, told) in &mut others {
        to_the_end(host, *id, told);
        assert_eq!((told.text(), told.stderr.as_slice()), ("word\n", &b"word\n"[..]));
    }
}

#[test]
fn stdin_stays_open_without_anybody_and_comes_from_the_latest() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (_, pid) = host.started(&kept(1, streaming(exec(["cat"]))));
    drop(host);
    let (mut one, mut two) = (agent.connect(), agent.connect());
    let (first, mut told) = attached(&mut one, with_stdin(1));
    assert!(lives(pid));
    assert_eq!(told.stdin_credit, Some(STDIN_WINDOW));
    one.stdin(first, b"one ");
    take(&mut one, first, &mut told, |told| told.stdout == b"one ");
    let (second, mut other) = attached(&mut two, with_stdin(1));
    assert_eq!(other.stdin_credit, Some(STDIN_WINDOW - 4));
    take(&mut one, first, &mut told, |told| told.stdin_closed);
    // What the first still sends is dropped, and so is its end.
    one.stdin(first, b"late");
    one.send_frame(Frame::new(Kind::StdinEnd, first, Vec::new()));
    assert_eq!(commands(&mut agent.connect()).len(), 1);
    two.stdin(second, b"two");
    two.send_frame(Frame::new(Kind::StdinEnd, second, Vec::new()));
    to_the_end(&mut one, first, &mut told);
    to_the_end(&mut two, second, &mut other);
    assert_eq!((told.text(), other.text()), ("one two", "one two"));
    assert!(!other.stdin_closed);
    // There is no stdin any more, nor has a command any that was given none.
    let (_, told) = attached(&mut two, with_stdin(1));
    assert_eq!(told.stdin_credit, None);
}

#[test]
fn megabytes_go_through_a_kept_cat_in_turns() {
    let agent = Agent::start();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let keep = Keep { command: 5, output_bytes: 4 << 20, back_pressure: false };
    let mut host = agent.connect();
    host.started(&Exec { keep: Some(keep), ..streaming(exec(["cat"])) });
    drop(host);
    for (turn, part) in sent.chunks(1_000_000).enumerate() {
        let mut host = agent.connect();
        let (id, mut told) = attached(&mut host, Attach { from: turn as u64 * 1_000_000, ..with_stdin(5) });
        assert_eq!(told.from, turn as u64 * 1_000_000);
        let mut rest = part;
        let mut used = 0;
        while told.stdout.len() < part.len() {
            let room = (told.stdin_credit.unwrap() - used) as usize;
            let (now, later) = rest.split_at(room.min(rest.len()).min(64 * 1024));
            host.stdin(id, now);
            used += now.len() as u32;
            rest = later;
            let before = (told.stdout.len(), told.stdin_credit);
            take(&mut host, id, &mut told, |told| (told.stdout.len(), told.stdin_credit) != before);
        }
        assert!(told.stdout == part);
    }
    let mut host = agent.connect();
    let (id, mut told) = attached(&mut host, with_stdin(5));
    host.send_frame(Frame::new(Kind::StdinEnd, id, Vec::new()));
    to_the_end(&mut host, id, &mut told);
    assert!(told.stdout == sent);
}

#[test]
fn stdin_beyond_its_credit_ends_the_connection_and_not_the_command() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (id, pid) = host.started(&kept(1, streaming(sh("sleep 1000"))));
    for _ in 0..3 {
        host.stdin(id, &vec![0; STDIN_WINDOW as usize]);
    }
    while host.frame().is_some() {}
    let mut host = agent.connect();
    let (id, _) = attached(&mut host, attach(1));
    host.stdin(id, b"x");
    while host.frame().is_some() {}
    for wrong in [
        Frame::new(Kind::Stdout, 1, &b"x"[..]),
        Frame::new(Kind::Stdin, 2, &b""[..]),
        Frame::json(Kind::Input, 1, &Input::Signal { signal: 65 }).unwrap(),
        Frame::json(Kind::Input, 1, &Input::Signal { signal: 0 }).unwrap(),
        Frame::new(Kind::Input, 1, &b"{"[..]),
        Frame::json(Kind::Request, 1, &Request::Ping).unwrap(),
    ] {
        let mut host = agent.connect();
        attached(&mut host, attach(1));
        host.send_frame(wrong);
        while host.frame().is_some() {}
    }
    assert!(lives(pid));
}

#[test]
fn who_is_attached_can_signal_and_cancel() {
    let agent = Agent::start();
    let mut host = agent.connect();
    host.started(&kept(1, sh("trap 'echo got it' USR1; echo ready; while :; do sleep 0.01; done")));
    drop(host);
    let (mut one, mut two) = (agent.connect(), agent.connect());
    let (first, mut told) = attached(&mut one, attach(1));
    take(&mut one, first, &mut told, |told| told.text().contains("ready"));
    one.input(first, Input::Signal { signal: libc::SIGUSR1 });
    take(&mut one, first, &mut told, |told| told.text().contains("got it"));
    let (second, mut other) = attached(&mut two, attach(1));
    two.input(second, Input::Cancel);
    assert_eq!(to_the_end(&mut two, second, &mut other).ended_by, EndedBy::Cancel);
    assert_eq!(to_the_end(&mut one, first, &mut told).status, ExitStatus::Signal(9));
}

#[test]
fn a_terminal_is_kept_too() {
    let agent = Agent::start();
    let terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let mut host = agent.connect();
    host.started(&kept(1, Exec { terminal, ..streaming(sh("read a; stty size; read b; echo bye")) }));
    drop(host);
    let mut host = agent.connect();
    assert!(commands(&mut host)[0].terminal);
    let (id, mut told) = attached(&mut host, with_stdin(1));
    host.input(id, Input::Resize(TerminalSize { rows: 11, columns: 22 }));
    host.stdin(id, b"\n");
    take(&mut host, id, &mut told, |told| told.text().contains("11 22"));
    host.stdin(id, b"\n");
    assert_eq!(to_the_end(&mut host, id, &mut told).status, ExitStatus::Code(0));
    assert!(told.text().ends_with("bye\r\n"));
}

#[test]
fn a_timeout_is_kept_while_nobody_is_attached() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (_, pid) = host.started(&kept(1, Exec { timeout_ms: Some(200), ..exec(["yes"]) }));
    drop(host);
    eventually("the command is killed", || !lives(pid));
    over(&agent, 1);
    let info = commands(&mut agent.connect()).remove(0);
    let CommandState::Exited(exited) = info.state else { panic!() };
    assert_eq!(exited.ended_by, EndedBy::Timeout);
    assert_eq!(exited.stdout_bytes, info.output_bytes);
    assert_eq!(info.output_bytes - info.kept_from, 1 << 20);
}

#[test]
fn the_latest_output_is_kept() {
    let agent = Agent::start();
    let mut host = agent.connect();
    host.started(&kept(1, sh("head -c 3000000 /dev/zero; echo last")));
    drop(host);
    over(&agent, 1);
    let mut host = agent.connect();
    let (id, mut told) = attached(&mut host, attach(1));
    to_the_end(&mut host, id, &mut told);
    assert_eq!(told.from, 3_000_005 - (1 << 20));
    assert_eq!(told.stdout.len(), 1 << 20);
    assert!(told.stdout.ends_with(b"\0last\n"));
    assert_eq!(told.skipped, 0);
}

#[test]
fn who_does_not_read_holds_nobody_up_and_is_told_what_it_missed() {
    let agent = Agent::start();
    let mut slow = agent.connect();
    let (id, _) = slow.started(&kept(1, sh("head -c 20000000 /dev/zero; echo last")));
    over(&agent, 1);
    let mut told = Told::default();
    to_the_end(&mut slow, id, &mut told);
    assert!(told.skipped > 0);
    assert_eq!(told.skipped + told.stdout.len() as u64, 20_000_005);
    assert!(told.stdout.ends_with(b"last\n"));
}

#[test]
fn a_command_waits_for_who_wants_that() {
    let agent = Agent::start();
    let mut slow = agent.connect();
    let keep = Keep { command: 1, output_bytes: 0, back_pressure: true };
    let (id, pid) = slow.started(&Exec { keep: Some(keep), ..sh("head -c 20000000 /dev/zero; echo last") });
    // Another that does not is not waited for.
    let mut lazy = agent.connect();
    attached(&mut lazy, attach(1));
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(lives(pid));
    let mut told = Told::default();
    to_the_end(&mut slow, id, &mut told);
    assert_eq!((told.skipped, told.stdout.len()), (0, 20_000_005));
}

#[test]
fn when_who_is_waited_for_goes_the_command_goes_on() {
    let agent = Agent::start();
    let mut slow = agent.connect();
    let keep = Keep { command: 1, output_bytes: 1000, back_pressure: true };
    slow.started(&Exec { keep: Some(keep), ..sh("head -c 20000000 /dev/zero") });
    drop(slow);
    over(&agent, 1);
}

#[test]
fn numbers_are_given_once_and_there_is_a_limit() {
    let agent = Agent::start();
    let mut hosts: Vec<_> = (0..MAX_KEPT_RUNNING as u64)
        .map(|command| {
            let mut host = agent.connect();
            host.started(&kept(command, exec(["sleep", "1000"])));
            host
        })
        .collect();
    let mut host = agent.connect();
    let request = |command| Request::Exec(Box::new(kept(command, exec(["true"]))));
    assert_eq!(refusal(&mut host, &request(0)), FailureCode::Invalid);
    assert_eq!(refusal(&mut host, &request(1000)), FailureCode::TooMany);
    assert_eq!(refusal(&mut host, &Request::Forget { command: 0 }), FailureCode::Invalid);
    hosts[0].input(1, Input::Cancel);
    over(&agent, 0);
    assert_eq!(host.run(&kept(1000, exec(["true"])), b"").code(), 0);
    assert_eq!(refusal(&mut host, &request(0)), FailureCode::Invalid);
}

#[test]
fn the_first_to_end_is_the_first_to_be_forgotten() {
    let agent = Agent::start();
    let mut host = agent.connect();
    for command in 0..MAX_ENDED as u64 + 3 {
        host.run(&kept(1000 - command, exec(["true"])), b"");
    }
    eventually("the first are forgotten", || commands(&mut host).len() == MAX_ENDED);
    assert_eq!(commands(&mut host).last().unwrap().command, 997);
    // Not more than so many bytes of output either.
    let keep = |command| Some(Keep { command, output_bytes: MAX_KEPT_OUTPUT, back_pressure: false });
    for command in 2000..2009 {
        host.run(&Exec { keep: keep(command), ..sh("head -c 5000000 /dev/zero") }, b"");
    }
    eventually("eight of four megabytes are left", || commands(&mut host).len() == 8);
}

#[test]
fn a_shutdown_ends_kept_commands() {
    let mut agent = Agent::start();
    let mut host = agent.connect();
    let (_, pid) = host.started(&kept(1, sh("trap '' TERM; sleep 1000")));
    assert_eq!(agent.connect().ask(&Request::Shutdown), Reply::ShuttingDown);
    assert!(agent.process.wait().unwrap().success());
    assert!(!lives(pid));
}
