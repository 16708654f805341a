//! Sessions, whatever the language: their queue, their limits, and who may come and go.

#![allow(clippy::unwrap_used, reason = "whatever fails here fails the test")]

mod agent;
mod session;

use agent::*;
use firn_protocol::*;
use session::*;

/// Code that prints this.
fn print(driver: Driver, text: &str) -> String {
    match driver {
        Driver::Python => format!("print('{text}')"),
        Driver::Bash => format!("echo '{text}'"),
        Driver::Node => format!("console.log('{text}')"),
    }
}

fn refusal(host: &mut Host, request: &Request) -> FailureCode {
    match host.ask(request) {
        Reply::Error(failure) => failure.code,
        other => panic!("{other:?}"),
    }
}

fn sessions(agent: &Agent) -> Vec<SessionInfo> {
    match agent.connect().ask(&Request::SessionList) {
        Reply::Sessions { sessions } => sessions,
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_is_announced() {
    let agent = Agent::start();
    let mut host = agent.connect_silently();
    assert!(host.greet(PROTOCOL_VERSION).capabilities.contains(&"sessions".to_owned()));
}

#[test]
fn a_session_outlives_its_connection() {
    for driver in ALL {
        need!(driver);
        let agent = Agent::start();
        let mut first = Session::new(&agent, driver);
        first.run(print(driver, "one")).fine();
        let pid = info(&agent, "test").pid.unwrap();
        assert!(lives(pid));
        let mut second = first.another(&agent, 10);
        drop(first);
        assert_eq!(second.run(print(driver, "two")).fine(), "two\n");
        let now = info(&agent, "test");
        assert_eq!((now.pid, now.runs, now.queued, now.running, now.restarts), (Some(pid), 2, 0, None, 0));
        assert_eq!((now.driver, now.output_bytes), (driver, 8));
        assert!(now.rss_bytes > 0 && now.used_ms >= now.created_ms);
        assert_eq!(now.last.as_ref().unwrap().run, 10);
        close(&agent, "test");
        assert!(!lives(pid));
        assert!(sessions(&agent).is_empty());
        let target = SessionTarget { session: "test".into() };
        assert_eq!(refusal(&mut agent.connect(), &Request::SessionInspect(target)), FailureCode::NotFound);
    }
}

#[test]
fn a_run_whose_connection_breaks_goes_on_and_is_nobodys() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut bash = Session::new(&agent, Driver::Bash);
    let asked =
        bash.asks("echo on; sleep 0.3; head -c 1000000 /dev/zero; x=1; exit_code() { return 7; }; exit_code");
    bash.started(&asked, "on");
    // Another waits behind it, and its connection breaks too.
    let mut waiting = bash.another(&agent, 50);
    let never = waiting.asks("x=2");
    waiting.start(&never);
    eventually("it waits", || info(&agent, "test").queued == 1);
    drop(waiting);
    let mut next = bash.another(&agent, 100);
    drop(bash);
    let done = next.run("echo $x");
    assert_eq!((done.out().as_str(), done.err().as_str()), ("1\n", ""));
    assert_eq!(done.ran().background_bytes, 0);
    assert_eq!(info(&agent, "test").runs, 2);
}

#[test]
fn runs_of_one_session_queue_and_sessions_do_not_wait_for_one_another() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut first = Session::new(&agent, Driver::Bash);
    let fifo = format!("/tmp/firn-queue-{}", agent.pid());
    first.run(format!("mkfifo {fifo}; order=")).fine();
    let asked = first.asks(format!("order+=a; echo on; read x <{fifo}"));
    let id = first.started(&asked, "on");
    let mut hosts: Vec<_> = (0..5).map(|n| first.another(&agent, 100 + n)).collect();
    let ids: Vec<_> = hosts
        .iter_mut()
        .enumerate()
        .map(|(n, host)| {
            let asked = host.asks(format!("order+={n}; echo $order"));
            let id = host.start(&asked);
            eventually("it waits", || info(&agent, "test").queued == n as u32 + 1);
            (id, asked.run)
        })
        .collect();
    // One is taken back, by its own connection and by another.
    hosts[1].host.input(ids[1].0, Input::Cancel);
    let interrupt = SessionInterrupt { session: "test".into(), run: Some(ids[3].1), grace_ms: None };
    let reply = agent.connect().ask(&Request::SessionInterrupt(interrupt));
    assert_eq!(reply, Reply::Interrupted { run: Some(ids[3].1) });
    // Another session goes on meanwhile.
    let mut other = Session::create(&agent, creation("other", Driver::Bash));
    other.run(format!("echo go >{fifo}; rm {fifo}")).fine();
    first.finish(id, asked.run);
    let outs: Vec<_> = hosts
        .iter_mut()
        .zip(&ids)
        .map(|(host, (id, run))| {
            let done = host.finish(*id, *run);
            match &done.reply {
                Reply::Error(failure) => format!("{:?}", failure.code),
                _ => done.out().trim().to_owned(),
            }
        })
        .collect();
    assert_eq!(outs, ["a0", "Cancelled", "a02", "Cancelled", "a024"]);
}

#[test]
fn eight_sessions_at_once() {
    need!(Driver::Python);
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut all: Vec<_> = (0..8)
        .map(|n| {
            Session::create(
                &agent,
                creation(&format!("s{n}"), if n % 2 == 0 { Driver::Python } else { Driver::Bash }),
            )
        })
        .collect();
    for round in 0..5 {
        let started: Vec<_> = all
            .iter_mut()
            .enumerate()
            .map(|(n, session)| {
                let driver = if n % 2 == 0 { Driver::Python } else { Driver::Bash };
                let asked = session.asks(print(driver, &format!("{n} {round}")));
                (session.start(&asked), asked.run)
            })
            .collect();
        for (n, (session, (id, run))) in all.iter_mut().zip(started).enumerate() {
            assert_eq!(session.finish(id, run).fine(), format!("{n} {round}\n"));
        }
    }
    assert_eq!(sessions(&agent).len(), 8);
}

#[test]
fn what_makes_no_sense_is_refused() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut host = agent.connect();
    let create = |create: SessionCreate| Request::SessionCreate(Box::new(create));
    for name in ["", "a b", "a/b", "\u{1b}[31m", &"x".repeat(MAX_SESSION_NAME + 1)] {
        assert_eq!(refusal(&mut host, &create(creation(name, Driver::Bash))), FailureCode::Invalid);
    }
    let mut bash = Session::new(&agent, Driver::Bash);
    assert_eq!(refusal(&mut host, &create(creation("test", Driver::Bash))), FailureCode::Invalid);
    let asked = bash.asks("echo one");
    assert_eq!(bash.run_as(asked.clone()).fine(), "one\n");
    let run = |asked: SessionRun| Request::SessionRun(Box::new(asked));
    assert_eq!(refusal(&mut host, &run(asked.clone())), FailureCode::Invalid, "the same number again");
    let strange = SessionRun { session: "other".into(), run: 2, ..asked.clone() };
    assert_eq!(refusal(&mut host, &run(strange)), FailureCode::NotFound);
    let long = SessionRun { run: 2, more_code_bytes: MAX_CODE as u32 + 1, ..asked.clone() };
    assert_eq!(refusal(&mut host, &run(long)), FailureCode::Invalid);
    let none = SessionInterrupt { session: "other".into(), run: None, grace_ms: None };
    assert_eq!(refusal(&mut host, &Request::SessionInterrupt(none)), FailureCode::NotFound);
    let target = SessionTarget { session: "other".into() };
    assert_eq!(refusal(&mut host, &Request::SessionClose(target)), FailureCode::NotFound);
    for (broken, reason) in [
        (
            SessionCreate { argv: vec!["nosuchprogram".into()], ..creation("a", Driver::Bash) },
            NotStartedReason::NotFound,
        ),
        (
            SessionCreate { cwd: Some("/nosuch".into()), ..creation("a", Driver::Bash) },
            NotStartedReason::BadWorkingDirectory,
        ),
        (
            SessionCreate { argv: vec!["true".into()], ..creation("a", Driver::Python) },
            NotStartedReason::Other,
        ),
    ] {
        match host.ask(&create(broken)) {
            Reply::NotStarted(not_started) => {
                assert_eq!(not_started.reason, reason, "{}", not_started.message)
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sessions(&agent).len(), 1);
    assert_eq!(bash.run("echo two").fine(), "two\n");
}

#[test]
fn there_is_a_limit_to_sessions_and_to_runs_that_wait() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut all: Vec<_> = (0..MAX_SESSIONS)
        .map(|n| Session::create(&agent, creation(&format!("s{n}"), Driver::Bash)))
        .collect();
    let mut host = agent.connect();
    let create = Request::SessionCreate(Box::new(creation("more", Driver::Bash)));
    assert_eq!(refusal(&mut host, &create), FailureCode::TooMany);
    close(&agent, "s1");
    assert!(matches!(host.ask(&create), Reply::Session(_)));
    let asked = all[0].asks("echo on; sleep 1000");
    all[0].started(&asked, "on");
    let waiting: Vec<_> = (0..MAX_QUEUED_RUNS as u64)
        .map(|n| {
            let mut host = all[0].another(&agent, 100 + n);
            let asked = host.asks("echo");
            host.start(&asked);
            eventually("it waits", || u64::from(info(&agent, "s0").queued) == n + 1);
            host
        })
        .collect();
    let one_more = SessionRun { run: 1000, ..asked };
    assert_eq!(refusal(&mut host, &Request::SessionRun(Box::new(one_more))), FailureCode::TooMany);
    drop(waiting);
    eventually("they have gone", || info(&agent, "s0").queued == 0);
}

#[test]
fn code_of_any_length_up_to_the_limit() {
    for driver in ALL {
        need!(driver);
        let agent = Agent::start();
        let mut session = Session::new(&agent, driver);
        let comment = if driver == Driver::Node { "//" } else { "#" };
        let line = format!("{comment} {}\n", "x".repeat(97));
        let code = line.repeat(3 << 20 >> 6).chars().take(3 << 20).collect::<String>();
        let code = format!("{}\n{}", &code[..code.rfind('\n').unwrap()], print(driver, "end"));
        // A part with the request, the rest behind it as far as credit goes.
        let (now, later) = code.as_bytes().split_at(1000);
        let asked = SessionRun { more_code_bytes: later.len() as u32, ..session.asks(now) };
        let id = session.start(&asked);
        let mut rest = later;
        let mut credit = STDIN_WINDOW as usize;
        while !rest.is_empty() {
            let (chunk, left) = rest.split_at(credit.min(rest.len()).min(MAX_CHUNK));
            session.host.stdin(id, chunk);
            rest = left;
            credit -= chunk.len();
            while credit == 0 && !rest.is_empty() {
                match session.host.frame().unwrap().message().unwrap() {
                    Event::StdinCredit { bytes } => credit += bytes as usize,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(session.finish(id, asked.run).fine(), "end\n");
        let megabyte = format!("{}{}", line.repeat(10_000), print(driver, "whole"));
        assert_eq!(session.run(megabyte).fine(), "whole\n");
    }
}

#[test]
fn stdin_is_read_and_ends() {
    for (driver, code) in [
        (Driver::Python, "a = input(); print('got', a)\nimport sys; print(repr(sys.stdin.read()))"),
        (Driver::Bash, "read a; echo got $a; printf \"'%s'\" \"$(cat)\""),
        (
            Driver::Node,
            "var [a, ...rest] = require('fs').readFileSync(0, 'utf8').split('\\n'); console.log('got', a); console.log(`'${rest}'`)",
        ),
    ] {
        need!(driver);
        let agent = Agent::start();
        let mut session = Session::new(&agent, driver);
        for text in ["one\ntwo", "three\n", ""] {
            let asked = SessionRun { stdin: Stdin::Stream, ..session.asks(code) };
            let id = session.start(&asked);
            session.host.stdin(id, text.as_bytes());
            session.host.send_frame(Frame::new(Kind::StdinEnd, id, Vec::new()));
            let done = session.finish(id, asked.run);
            if !text.is_empty() {
                let (first, rest) = text.split_once('\n').unwrap();
                assert_eq!(done.fine().trim(), format!("got {first}\n'{rest}'"), "{driver:?}");
            }
            assert!(!done.ran().state_lost);
        }
        // It is the run's alone.
        let read = match driver {
            Driver::Python => "import os; print(os.read(0, 1))",
            Driver::Bash => "cat",
            Driver::Node => "require('fs').readFileSync(0).length; undefined",
        };
        assert_eq!(session.run(read).fine(), if driver == Driver::Python { "b''\n" } else { "" });
    }
}

#[test]
fn a_host_that_does_not_read_holds_up_its_run_and_no_other_session() {
    need!(Driver::Bash);
    let agent = Agent::start();
    let mut slow = Session::new(&agent, Driver::Bash);
    let asked = slow.asks("head -c 20000000 /dev/zero; echo end");
    let id = slow.start(&asked);
    let mut other = Session::create(&agent, creation("other", Driver::Bash));
    assert_eq!(other.run("echo meanwhile").fine(), "meanwhile\n");
    assert_eq!(info(&agent, "test").running, Some(1));
    let done = slow.finish(id, asked.run);
    assert_eq!(done.fine().len(), 20_000_004);
}

#[test]
fn a_session_is_closed_in_the_middle_of_a_run() {
    for driver in ALL {
        need!(driver);
        let agent = Agent::start();
        let mut session = Session::new(&agent, driver);
        let endless = match driver {
            Driver::Python => "print('on')\nwhile True: pass",
            Driver::Bash => "trap '' INT TERM; echo on; while :; do :; done",
            Driver::Node => "console.log('on'); while (true);",
        };
        let asked = session.asks(endless);
        let id = session.started(&asked, "on");
        let mut waiting = session.another(&agent, 7);
        let queued = waiting.asks("");
        let waiting_id = waiting.start(&queued);
        eventually("it waits", || info(&agent, "test").queued == 1);
        close(&agent, "test");
        session.finish(id, asked.run).lost(RunOutcome::Interrupted);
        assert!(matches!(waiting.finish(waiting_id, 7).reply, Reply::Error(_)));
        // The name is free.
        Session::new(&agent, driver);
    }
}

#[test]
fn a_shutdown_ends_sessions() {
    need!(Driver::Python);
    let mut agent = Agent::start();
    let mut python = Session::new(&agent, Driver::Python);
    let asked = python.asks("import os; print(os.getpid(), 'on')\nwhile True: pass");
    let id = python.start(&asked);
    let said = python.host.until("on");
    let pid = said.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(agent.connect().ask(&Request::Shutdown), Reply::ShuttingDown);
    assert!(agent.process.wait().unwrap().success());
    assert!(!lives(pid));
    let _ = id;
}

#[test]
fn an_agent_that_is_killed_takes_its_interpreters_along() {
    for driver in ALL {
        need!(driver);
        let mut agent = Agent::start();
        let mut session = Session::new(&agent, driver);
        let child = session.run(match driver {
            Driver::Python => "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid)",
            Driver::Bash => "sleep 1000 & echo $!",
            Driver::Node => "require('child_process').spawn('sleep', ['1000']).pid",
        });
        let child: u32 = child.out().trim().parse().unwrap();
        let interpreter = info(&agent, "test").pid.unwrap();
        assert!(lives(child) && lives(interpreter));
        agent.process.kill().unwrap();
        agent.process.wait().unwrap();
        eventually("nothing of it is left", || !lives(interpreter) && !lives(child));
    }
}

#[test]
fn memory_has_its_limit() {
    need!(Driver::Python);
    let agent = Agent::start();
    let limit = ResourceLimit { resource: Resource::Data, value: 256 << 20 };
    let create = SessionCreate { resource_limits: vec![limit], ..creation("test", Driver::Python) };
    let mut python = Session::create(&agent, create);
    let done = python.run("x = bytearray(1 << 30)");
    assert!(done.kept(RunOutcome::Exception).err().contains("MemoryError"), "{}", done.err());
    assert_eq!(python.run("1").fine(), "1\n");
}

#[test]
fn descriptors_below_a_low_limit() {
    need!(Driver::Python);
    let agent = Agent::start();
    let limit = ResourceLimit { resource: Resource::OpenFiles, value: 64 };
    let create = SessionCreate { resource_limits: vec![limit], ..creation("test", Driver::Python) };
    let mut python = Session::create(&agent, create);
    assert_eq!(python.run("import os; os.system('echo child'); 1").out(), "child\n1\n");
}

/// Many runs cost no more than a few. `cargo test -- --ignored`.
#[test]
#[ignore = "a soak test"]
fn soak_a_thousand_runs_do_not_grow() {
    for driver in ALL {
        need!(driver);
        let agent = Agent::start();
        let mut session = Session::new(&agent, driver);
        let memory = || {
            let Reply::Stats(stats) = agent.connect().ask(&Request::Stats) else { panic!() };
            (stats.agent_rss_bytes, info(&agent, "test").rss_bytes)
        };
        let open = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).map_or(0, Iterator::count);
        for _ in 0..300 {
            session.run(print(driver, "x")).fine();
        }
        let (before, descriptors) = (memory(), open());
        for _ in 0..1000 {
            session.run(print(driver, "x")).fine();
        }
        let after = memory();
        assert!(after.0 < before.0 + (1 << 20), "the agent: {before:?} {after:?}");
        assert!(after.1 < before.1 + (16 << 20), "{driver:?}: {before:?} {after:?}");
        // Connections that have just been closed may still be there.
        eventually("no more descriptors are open", || open() <= descriptors);
    }
}
