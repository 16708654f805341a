//! `firn run --isolation jail` against bare bubblewrap: see docs/BENCHMARKS.md.
//!
//! The floor is bubblewrap itself with the very arguments, files and filters that firn gives it,
//! running the command in place of the agent. They are taken from firn by standing in for `bwrap`
//! once: this program is copied under that name, and writes down what it is started with.
#![allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a panic ends the measurement")]
#![allow(unsafe_code, reason = "descriptors are handed on under their numbers")]

mod floor;
#[path = "../vm/report.rs"]
#[allow(dead_code, reason = "shared with the other benchmark")]
mod report;
#[path = "../vm/stand_in.rs"]
#[allow(dead_code, reason = "shared with the other benchmark")]
mod stand_in;

use firn_tests::Host;
use floor::Floor;
use report::{Line, Target};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

/// The commands that are compared, and the most that firn's time may be of the floor's.
const COMMANDS: [(&str, &[&str], f64); 2] = [
    ("`true` in a jail", &["/usr/bin/true"], 1.3),
    ("`python3 -c 'print(1)'` in a jail", &["/usr/bin/python3", "-c", "print(1)"], 1.15),
];

/// How many at once.
const AT_ONCE: usize = 8;

fn main() -> ExitCode {
    if let Some(code) = stand_in::in_place() {
        return code;
    }
    let (mut runs, mut json) = (50_usize, false);
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
    let host = Host::new();
    // As `/run` is: a file system in memory.
    let runtime = tempfile::Builder::new().prefix("firn-").tempdir_in("/dev/shm").expect("makes a folder");
    let firn = |command: &[&str]| firn(&host, runtime.path(), command);
    let floor = Floor::of(&host);
    let mut lines: Vec<Line> = COMMANDS
        .iter()
        .map(|(name, command, most)| {
            let pair = |_| (time(|| vec![firn(command)]), time(|| vec![floor.start(command)]));
            pair(0);
            let pairs: Vec<(f64, f64)> = (0..runs).map(pair).collect();
            Line::pairs(name, "ms", &pairs, Target::AtMost(*most))
        })
        .collect();
    let (_, nothing, most) = COMMANDS[0];
    let together = |start: &dyn Fn() -> Child| time(|| (0..AT_ONCE).map(|_| start()).collect());
    let pairs: Vec<(f64, f64)> = (0..runs.div_ceil(5))
        .map(|_| (together(&|| firn(nothing)), together(&|| floor.start(nothing))))
        .collect();
    lines.push(Line::pairs("8 of `true` at once", "ms", &pairs, Target::AtMost(most)));
    if json {
        say(&format!("{:#}\n", report::json(&[], &lines, &[])));
    } else {
        say(&report::table(&[], &lines));
    }
    drop(host);
    ExitCode::SUCCESS
}

fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn firn(host: &Host, runtime: &Path, command: &[&str]) -> Child {
    let mut args = vec!["--isolation", "jail", "--"];
    args.extend_from_slice(command);
    quiet(host.run(&args).env("FIRN_RUNTIME_DIR", runtime).into_command())
}

fn quiet(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().expect("starts")
}

/// From the start of the first to the end of the last, in milliseconds.
fn time(start: impl FnOnce() -> Vec<Child>) -> f64 {
    let since = Instant::now();
    for mut child in start() {
        assert!(child.wait().expect("waits").success(), "it failed");
    }
    since.elapsed().as_secs_f64() * 1000.0
}
