//! A host that has a session, blocking and simple.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "whatever fails here fails the test")]

use crate::agent::{Agent, Host};
use firn_protocol::*;
use std::cell::Cell;
use std::process::{Command, Stdio};

/// Whether an interpreter is there. A test that needs one that is not says so, and tests nothing.
pub(crate) fn is_there(driver: Driver) -> bool {
    let program = match driver {
        Driver::Python => "python3",
        Driver::Bash => "bash",
        Driver::Node => "node",
    };
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        #[allow(clippy::print_stderr, reason = "whoever runs the tests is to know")]
        {
            eprintln!("skipped: there is no {program}");
        }
    }
    found
}

/// Leaves a test whose interpreter is not there.
#[macro_export]
macro_rules! need {
    ($driver:expr) => {
        if !session::is_there($driver) {
            return;
        }
    };
}

pub(crate) const ALL: [Driver; 3] = [Driver::Python, Driver::Bash, Driver::Node];

pub(crate) fn creation(name: &str, driver: Driver) -> SessionCreate {
    SessionCreate {
        session: name.into(),
        driver,
        argv: Vec::new(),
        cwd: Some("/tmp".into()),
        // Of the test's own environment: there may be more than one of each interpreter.
        env: vec![Variable { name: "PATH".into(), value: path().into() }],
        user: None,
        max_output_bytes: None,
        resource_limits: Vec::new(),
    }
}

fn path() -> String {
    let own = Command::new("sh").args(["-c", "printf %s \"$PATH\""]).output().unwrap();
    String::from_utf8(own.stdout).unwrap()
}

/// A session and a connection to it.
pub(crate) struct Session {
    pub(crate) host: Host,
    pub(crate) name: String,
    next: Cell<u64>,
    /// It has been told that the run has begun.
    begun: bool,
}

/// All that came back for a run.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Both, as they came.
    pub(crate) output: Vec<u8>,
    pub(crate) cut: Option<OutputCap>,
    pub(crate) reply: Reply,
}

impl Done {
    #[track_caller]
    pub(crate) fn ran(&self) -> &Ran {
        match &self.reply {
            Reply::Ran(ran) => ran,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// It went well: what it wrote to stdout.
    #[track_caller]
    pub(crate) fn fine(&self) -> String {
        let ran = self.ran();
        assert_eq!((ran.outcome, ran.exit_code), (RunOutcome::Ok, 0), "{} {}", self.out(), self.err());
        assert!(!ran.state_lost && !ran.state_lost_before, "{ran:?}");
        self.out()
    }

    /// It ended like this, and the state is kept.
    #[track_caller]
    pub(crate) fn kept(&self, outcome: RunOutcome) -> &Done {
        assert_eq!(self.ran().outcome, outcome, "{} {}", self.out(), self.err());
        assert!(!self.ran().state_lost, "{:?}", self.ran());
        self
    }

    /// It ended like this, and the state is lost.
    #[track_caller]
    pub(crate) fn lost(&self, outcome: RunOutcome) -> &Done {
        assert_eq!(self.ran().outcome, outcome, "{} {}", self.out(), self.err());
        assert!(self.ran().state_lost, "{:?}", self.ran());
        self
    }
}

impl Session {
    pub(crate) fn new(agent: &Agent, driver: Driver) -> Session {
        Session::create(agent, creation("test", driver))
    }

    #[track_caller]
    pub(crate) fn create(agent: &Agent, create: SessionCreate) -> Session {
        let mut host = agent.connect();
        let name = create.session.clone();
        match host.ask(&Request::SessionCreate(Box::new(create))) {
            Reply::Session(info) => assert_eq!((info.session.as_str(), info.runs), (name.as_str(), 0)),
            other => panic!("{other:?}"),
        }
        Session { host, name, next: Cell::new(1), begun: false }
    }

    /// Another connection to it.
    pub(crate) fn another(&self, agent: &Agent, first: u64) -> Session {
        Session { host: agent.connect(), name: self.name.clone(), next: Cell::new(first), begun: false }
    }

    pub(crate) fn asks(&self, code: impl AsRef<[u8]>) -> SessionRun {
        let run = self.next.get();
        self.next.set(run + 1);
        SessionRun {
            session: self.name.clone(),
            run,
            code: Text::from_bytes(code.as_ref()),
            more_code_bytes: 0,
            timeout_ms: Some(60_000),
            grace_ms: None,
            stdin: Stdin::Null,
            max_output_bytes: None,
        }
    }

    pub(crate) fn start(&mut self, asked: &SessionRun) -> RequestId {
        self.host.request(&Request::SessionRun(Box::new(asked.clone())))
    }

    #[track_caller]
    pub(crate) fn run(&mut self, code: impl AsRef<[u8]>) -> Done {
        let asked = self.asks(code);
        self.run_as(asked)
    }

    #[track_caller]
    pub(crate) fn run_as(&mut self, asked: SessionRun) -> Done {
        let id = self.start(&asked);
        self.finish(id, asked.run)
    }

    /// Takes what comes to the end of a run.
    #[track_caller]
    pub(crate) fn finish(&mut self, id: RequestId, run: u64) -> Done {
        let mut done = Done {
            stdout: Vec::new(),
            stderr: Vec::new(),
            output: Vec::new(),
            cut: None,
            reply: Reply::Pong,
        };
        let mut started = std::mem::take(&mut self.begun);
        loop {
            let frame = self.host.frame().expect("the connection lasts");
            assert_eq!(frame.id, id);
            match frame.kind {
                Kind::Stdout | Kind::Stderr => {
                    assert!(started);
                    done.output.extend_from_slice(&frame.body);
                    let stream = if frame.kind == Kind::Stdout { &mut done.stdout } else { &mut done.stderr };
                    stream.extend_from_slice(&frame.body);
                }
                Kind::Event => match frame.message().unwrap() {
                    Event::RunStarted { run: told, .. } => {
                        assert_eq!(told, run);
                        started = true;
                    }
                    Event::OutputCut { by } => done.cut = Some(by),
                    Event::StdinCredit { .. } | Event::StdinClosed => {}
                    other => panic!("{other:?}"),
                },
                Kind::Reply => {
                    done.reply = frame.message().unwrap();
                    if let Reply::Ran(ran) = &done.reply {
                        assert_eq!(ran.run, run);
                    }
                    return done;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Starts a run and waits until it has written this to stdout.
    #[track_caller]
    pub(crate) fn started(&mut self, asked: &SessionRun, sign: &str) -> RequestId {
        let id = self.start(asked);
        self.host.until(sign);
        self.begun = true;
        id
    }
}

pub(crate) fn info(agent: &Agent, session: &str) -> SessionInfo {
    let target = SessionTarget { session: session.into() };
    match agent.connect().ask(&Request::SessionInspect(target)) {
        Reply::Session(info) => *info,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn interrupt(agent: &Agent, session: &str, grace_ms: Option<u64>) -> Option<u64> {
    let interrupt = SessionInterrupt { session: session.into(), run: None, grace_ms };
    match agent.connect().ask(&Request::SessionInterrupt(interrupt)) {
        Reply::Interrupted { run } => run,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn close(agent: &Agent, session: &str) {
    let target = SessionTarget { session: session.into() };
    assert_eq!(agent.connect().ask(&Request::SessionClose(target)), Reply::SessionClosed);
}
