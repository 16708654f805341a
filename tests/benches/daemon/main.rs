//! What the daemon costs: see docs/BENCHMARKS.md.
//!
//! Each section starts daemons of its own, on folders of its own.
#![allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a panic ends one measurement")]

mod idle;
mod pool;
#[path = "../vm/process.rs"]
#[allow(dead_code, reason = "shared with the other benchmark")]
mod process;
#[path = "../vm/report.rs"]
#[allow(dead_code, reason = "shared with the other benchmark")]
mod report;

use firn_protocol::ExitStatus;
use firn_tests::{Grade, Host, Peer, exec};
use idle::{Memory, wake_ups};
use process::Process;
use report::{Comparison, Line, Target};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// When what happens soon has not happened.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is executed.
const NOTHING: &str = "/usr/bin/true";

struct Options {
    json: bool,
    runs: usize,
    /// Of what takes a vm.
    vm_runs: usize,
    jails: usize,
    /// How long wake-ups are counted.
    watch: Duration,
    only: Vec<String>,
}

const USAGE: &str = "usage: [--json] [--runs N] [--vm-runs N] [--jails N] [--watch SECONDS] \
                     [--only exec,start,idle,jails,pool]";

impl Options {
    fn read() -> Result<Options, String> {
        let mut options = Options {
            json: false,
            runs: 50,
            vm_runs: 5,
            jails: 20,
            watch: Duration::from_secs(20),
            only: Vec::new(),
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            let number =
                |value: String| value.parse::<usize>().map_err(|_bad| format!("{arg} takes a number"));
            match arg.as_str() {
                // What `cargo bench` says to every benchmark.
                "--bench" => {}
                "--json" => options.json = true,
                "--runs" => options.runs = number(value()?)?,
                "--vm-runs" => options.vm_runs = number(value()?)?,
                "--jails" => options.jails = number(value()?)?,
                "--watch" => options.watch = Duration::from_secs(number(value()?)? as u64),
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                other => return Err(format!("unknown argument {other}")),
            }
        }
        Ok(options)
    }

    fn wants(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == what)
    }
}

fn main() -> ExitCode {
    let options = match Options::read() {
        Ok(options) => options,
        Err(complaint) => {
            say(&format!("{complaint}\n{USAGE}\n"));
            return ExitCode::FAILURE;
        }
    };
    process::inherit();
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let mut section = |name: &str, measure: &dyn Fn(&Options) -> Vec<Line>| {
        if options.wants(name) {
            // The panic has said on stderr what went wrong, and on its way ended what ran.
            match catch_unwind(AssertUnwindSafe(|| measure(&options))) {
                Ok(more) => lines.extend(more),
                Err(_panic) => failures.push(format!("{name} could not be measured")),
            }
        }
    };
    section("exec", &exec_through_the_daemon);
    section("start", &start);
    section("idle", &idle_daemon);
    section("jails", &idle_jails);
    section("pool", &|options| vec![pool::measure(options.vm_runs)]);
    if options.json {
        say(&format!("{:#}\n", report::json(&[], &lines, &failures)));
    } else {
        say(&report::table(&[], &lines));
        failures.iter().for_each(|failure| say(&format!("{failure}\n")));
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How long a command takes that says nothing and succeeds.
fn time(mut command: Command) -> f64 {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let since = Instant::now();
    let status = command.status().expect("starts");
    let taken = millis(since.elapsed());
    assert!(status.success(), "it failed");
    taken
}

/// `true` in a running jail: asked of firn, and asked of its agent.
fn exec_through_the_daemon(options: &Options) -> Vec<Line> {
    let host = Host::with_runtime_in_memory(Grade::Jail);
    let daemon = host.daemon(None);
    let id = host.create(&[]);
    let socket = host.runtime().join("sandboxes").join(&id).join("agent.sock");
    let through = || time(host.firn(&["exec", &id, "--", NOTHING]).into_command());
    let succeed = |agent: &mut Peer| {
        let exited = agent.run(exec(&[NOTHING]), |_, _| {});
        assert_eq!(exited.status, ExitStatus::Code(0));
    };
    let mut agent = connect(&socket);
    let mut open = |_| {
        let firn = through();
        let since = Instant::now();
        succeed(&mut agent);
        (firn, millis(since.elapsed()))
    };
    open(0);
    let on_an_open_connection: Vec<(f64, f64)> = (0..options.runs).map(&mut open).collect();
    let dialled = |_| {
        let firn = through();
        let since = Instant::now();
        succeed(&mut connect(&socket));
        (firn, millis(since.elapsed()))
    };
    let on_a_connection_of_its_own: Vec<(f64, f64)> = (0..options.runs).map(dialled).collect();
    // A client that asks for nothing: what a program of that size costs on this machine.
    let started = (0..options.runs).map(|_| time(host.firn(&["--version"]).into_command())).collect();
    host.stop_daemon();
    drop(daemon);
    let less = Comparison::Difference;
    vec![
        Line::compared(
            "exec of `true` (floor: on the agent, connected)",
            "ms",
            &on_an_open_connection,
            less,
            Some(Target::AtMost(3.0)),
        ),
        Line::compared(
            "exec of `true` (floor: on the agent, connecting)",
            "ms",
            &on_a_connection_of_its_own,
            less,
            None,
        ),
        Line::alone("  `firn --version`, for comparison", "ms", started, None),
    ]
}

fn connect(socket: &Path) -> Peer {
    Peer::unix(socket).expect("the agent answers")
}

/// The first `firn run`, which has to start the daemon, against the next one.
fn start(options: &Options) -> Vec<Line> {
    let host = Host::with_runtime_in_memory(Grade::Jail);
    let run = || {
        let taken = time(host.run(&["--", NOTHING]).into_command());
        wait_until("nothing is left of it", || host.sandboxes().is_empty());
        taken
    };
    let pair = |_| {
        host.stop_daemon();
        (run(), run())
    };
    pair(0);
    let pairs: Vec<(f64, f64)> = (0..options.runs.div_ceil(5)).map(pair).collect();
    let name = "`firn run` that starts the daemon (floor: one that finds it)";
    vec![Line::compared(name, "ms", &pairs, Comparison::Difference, None)]
}

fn daemon_process() -> Process {
    process::all().into_iter().find(Process::is_daemon).expect("the daemon runs")
}

/// A daemon that has served, and has nothing to do.
fn idle_daemon(options: &Options) -> Vec<Line> {
    let host = Host::with_runtime_in_memory(Grade::Jail);
    let daemon = host.daemon(None);
    let at_first = Memory::of(&daemon_process());
    for _ in 0..options.runs {
        let _ = host.run(&["--", NOTHING]).finish().expect(0);
    }
    let process = daemon_process();
    let wake_ups = wake_ups(&process, options.watch);
    let Memory { pss, rss } = Memory::of(&process);
    host.stop_daemon();
    drop(daemon);
    vec![
        Line::alone("idle daemon, resident", "MB", vec![rss], Some(Target::AtMost(15.0))),
        Line::alone("  its share (PSS)", "MB", vec![pss], None),
        Line::alone("  its share before the first command", "MB", vec![at_first.pss], None),
        Line::alone("idle daemon, wake-ups", "1/s", vec![wake_ups], Some(Target::AtMost(1.0))),
    ]
}

/// Jails that were made and are not used.
fn idle_jails(options: &Options) -> Vec<Line> {
    let host = Host::with_runtime_in_memory(Grade::Jail);
    let daemon = host.daemon(None);
    // What it takes once is not theirs.
    let _ = host.run(&["--", NOTHING]).finish().expect(0);
    wait_until("nothing is left of it", || host.sandboxes().is_empty());
    let before = Memory::of(&daemon_process()).pss;
    let ids: Vec<String> = (0..options.jails).map(|_| host.create(&[])).collect();
    let wake_ups = wake_ups(&daemon_process(), options.watch);
    let each = options.jails as f64;
    let all = process::all();
    let (mut bwrap, mut agents) = (0.0, 0.0);
    for process in all.iter().filter(|process| !process.is_daemon()) {
        let pss = Memory::of(process).pss;
        if process.name() == "bwrap" { bwrap += pss } else { agents += pss }
    }
    let processes = (all.len() - 1) as f64 / each;
    let grown = Memory::of(&daemon_process()).pss - before;
    for id in ids {
        let _ = host.firn(&["destroy", &id]).finish().expect(0);
    }
    host.stop_daemon();
    drop(daemon);
    let alone = |name: &str, figure: f64| Line::alone(name, "MB", vec![figure / each], None);
    let all = (bwrap + agents + grown) / each;
    vec![
        Line::alone("an idle jail, its share of memory (PSS)", "MB", vec![all], Some(Target::AtMost(2.0))),
        alone("  bubblewrap", bwrap),
        alone("  the agent", agents),
        alone("  what the daemon has grown by", grown),
        Line::alone("  processes", "each", vec![processes], None),
        Line::alone("daemon with idle jails, wake-ups", "1/s", vec![wake_ups], Some(Target::AtMost(1.0))),
    ]
}
