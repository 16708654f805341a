//! Code in sessions against bare interpreters: see docs/BENCHMARKS.md.
//!
//! The floor is the same interpreter, on two pipes, under bubblewrap with the very arguments that firn gives it.
#![allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a panic ends the measurement")]
#![allow(unsafe_code, reason = "descriptors are handed on under their numbers")]

mod bare;
#[path = "../jail/floor.rs"]
mod floor;
mod language;
#[path = "../vm/report.rs"]
#[allow(dead_code, reason = "shared with the other benchmark")]
mod report;
#[path = "../vm/stand_in.rs"]
#[allow(dead_code, reason = "shared with the other benchmark")]
mod stand_in;

use bare::Bare;
use firn_protocol::RunOutcome;
use firn_tests::{Evaluation, Grade, Host, Peer, code_in};
use floor::Floor;
use language::{ALL, Language, MEGABYTE};
use report::{Comparison, Line, Target};
use serde_json::json;
use std::io::Write as _;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What an agent calls the session that its sandbox was made for.
const INSIDE: &str = "first";

/// How many runs there are before the first that counts.
const WARM_UP: usize = 50;

/// How much longer than on a bare pipe code may take, in milliseconds.
const MOST_MORE: f64 = 0.15;

/// The most that a first run, and a megabyte, may take of what they take without firn.
const MOST: f64 = 1.2;

/// What waits for a first run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Nothing,
    /// One that has run no code.
    Interpreter,
}

struct Bench<'a> {
    host: &'a Host,
    floor: Floor,
    runs: usize,
}

fn main() -> ExitCode {
    if let Some(code) = stand_in::in_place() {
        return code;
    }
    let (mut runs, mut json) = (1000_usize, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--json" => json = true,
            "--runs" => {
                runs = args.next().and_then(|runs| runs.parse().ok()).expect("--runs takes a number");
            }
            _ => {
                say("usage: [--json] [--runs N]\n");
                return ExitCode::FAILURE;
            }
        }
    }
    let host = Host::with_runtime_in_memory(Grade::Jail);
    let bench = Bench { host: &host, floor: Floor::of(&host), runs };
    let daemon = host.daemon(None);
    let mut lines: Vec<Line> = ALL.iter().flat_map(|language| bench.measure(language)).collect();
    daemon.stop();
    std::fs::write(host.config(), "[pool]\nvm = 0\ncode = 1\n").expect("configures the daemon");
    let daemon = host.daemon(None);
    lines.extend(ALL.iter().map(|language| bench.first(language, Waiting::Interpreter)));
    if json {
        say(&format!("{:#}\n", report::json(&[], &lines, &[])));
    } else {
        say(&report::table(&[], &lines));
    }
    daemon.stop();
    drop(host);
    ExitCode::SUCCESS
}

fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// In milliseconds.
fn time<T>(work: impl FnOnce() -> T) -> f64 {
    let since = Instant::now();
    let _ = work();
    since.elapsed().as_secs_f64() * 1000.0
}

/// Runs code in the session that is called warm, and gives how much it wrote.
fn evaluate(stream: &mut Evaluation, code: &str) -> usize {
    stream.ask(&code_in("warm", code));
    written(stream)
}

fn written(stream: &mut Evaluation) -> usize {
    let evaluated = stream.outcome().expect("the daemon is there");
    let ran = evaluated.ran.expect("it ran");
    assert_eq!(ran.outcome, RunOutcome::Ok);
    evaluated.output.len()
}

impl Bench<'_> {
    fn measure(&self, language: &Language) -> Vec<Line> {
        let mut lines = vec![self.first(language, Waiting::Nothing)];
        let name = language.name;
        let mut stream = self.session("warm", language);
        let mut agent = self.agent();
        let mut bare = Bare::start(language, &self.floor);
        let (mut through, mut asked, mut floors) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..WARM_UP + self.runs {
            let figures = [
                time(|| assert_eq!(evaluate(&mut stream, language.print), 2)),
                time(|| assert_eq!(agent.evaluate(INSIDE, round as u64 + 1_000_000, language.print), 2)),
                time(|| assert_eq!(bare.run(language.print), 2)),
            ];
            if round >= WARM_UP {
                through.push((figures[0], figures[2]));
                asked.push((figures[1], figures[2]));
                floors.push(figures[2]);
            }
        }
        let less = Comparison::Difference;
        let most = Some(Target::AtMost(MOST_MORE));
        lines.push(Line::compared(&format!("{name}: prints a digit"), "ms", &through, less, most));
        lines.push(Line::compared("  the same, asked of the agent", "ms", &asked, less, None));
        let pair = |_| {
            let taken = time(|| assert_eq!(evaluate(&mut stream, language.print_much), MEGABYTE));
            (taken, time(|| assert_eq!(bare.run(language.print_much), MEGABYTE)))
        };
        let pairs: Vec<(f64, f64)> = (0..self.runs.div_ceil(20)).map(pair).collect();
        lines.push(Line::pairs(&format!("{name}: prints 1 MB"), "ms", &pairs, Target::AtMost(MOST)));
        drop(stream);
        self.close("warm");
        lines
    }

    /// The first run of a session that is made for it.
    fn first(&self, language: &Language, waiting: Waiting) -> Line {
        let pair = |_| {
            while waiting == Waiting::Interpreter && !self.interpreter_waits() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let taken = time(|| self.session("first", language));
            self.close("first");
            let quiet = |mut bwrap: std::process::Command| {
                bwrap.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
                bwrap.spawn().expect("bubblewrap starts")
            };
            let bare = time(|| {
                let status = self.floor.start(language.once, quiet).wait().expect("waits");
                assert!(status.success(), "it failed");
            });
            (taken, bare)
        };
        if waiting == Waiting::Interpreter {
            // After the first of its language there is one.
            drop(self.session("first", language));
            self.close("first");
        }
        pair(0);
        let pairs: Vec<(f64, f64)> = (0..self.runs.div_ceil(20)).map(pair).collect();
        let after = if waiting == Waiting::Interpreter { ", from the pool" } else { "" };
        let name = format!("{}: first run of a session{after}", language.name);
        Line::pairs(&name, "ms", &pairs, Target::AtMost(MOST))
    }

    fn interpreter_waits(&self) -> bool {
        let level = &self.host.daemon_status()["pool"]["code"];
        level["ready"] == level["wanted"] && level["ready"] != 0
    }

    fn session(&self, name: &str, language: &Language) -> Evaluation {
        let socket = self.host.runtime().join("firn.sock");
        let mut asked = code_in(name, language.print);
        asked["sandbox"] = json!({"isolation": "jail", "environment": language.name});
        let mut stream = Evaluation::open(&socket, &asked);
        assert_eq!(written(&mut stream), 2);
        stream
    }

    /// The agent of the only sandbox.
    fn agent(&self) -> Peer {
        let sandboxes = self.host.sandboxes();
        let [id] = &sandboxes[..] else { panic!("{sandboxes:?}") };
        Peer::unix(&id.join("agent.sock")).expect("the agent answers")
    }

    /// Ends a session. Nothing is left of it when this returns.
    fn close(&self, name: &str) {
        let _ = self.host.firn(&["session", "close", name]).finish().expect(0);
    }
}
