//! `firn run --isolation jail` against bare bubblewrap: see docs/BENCHMARKS.md.
//!
//! The floor is bubblewrap itself with the very arguments, files and filters that firn gives it,
//! running the command in place of the agent. They are taken from firn by standing in for `bwrap`
//! once: this program is copied under that name, and writes down what it is started with.
//!
//! The daemon is one of the benchmark's own. It runs already, and it has run a jail before.
#![allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a panic ends the measurement")]
#![allow(unsafe_code, reason = "descriptors are handed on under their numbers")]

mod floor;
#[path = "../vm/report.rs"]
#[allow(dead_code, reason = "shared with the other benchmark")]
mod report;
#[path = "../vm/stand_in.rs"]
#[allow(dead_code, reason = "shared with the other benchmark")]
mod stand_in;

use firn_tests::{Grade, Host};
use floor::Floor;
use report::{Comparison, Line, Target};
use std::io::Write as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

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
    let host = Host::with_runtime_in_memory(Grade::Jail);
    let floor = Floor::of(&host);
    let daemon = host.daemon(None);
    let firn = |command: &[&str]| quiet(host.run(&[&["--"], command].concat()).into_command());
    // What firn removes after it has answered is not to be paid by whoever is measured next.
    let settled = || {
        while !host.sandboxes().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let mut lines = Vec::new();
    for (name, command, most) in COMMANDS {
        let pair = |_| {
            let taken = time(|| vec![firn(command)]);
            settled();
            (taken, time(|| vec![floor.start(command, quiet)]))
        };
        pair(0);
        let pairs: Vec<(f64, f64)> = (0..runs).map(pair).collect();
        lines.push(Line::pairs(name, "ms", &pairs, Target::AtMost(most)));
    }
    let (_, nothing, most) = COMMANDS[0];
    let pair = |_| {
        let since = Instant::now();
        let _ = time(|| vec![firn(nothing)]);
        settled();
        (since.elapsed().as_secs_f64() * 1000.0, time(|| vec![floor.start(nothing, quiet)]))
    };
    let pairs: Vec<(f64, f64)> = (0..runs).map(pair).collect();
    let name = "`true`, until nothing is left of its jail";
    lines.push(Line::compared(name, "ms", &pairs, Comparison::Ratio, None));
    let together = |start: &dyn Fn() -> Child| time(|| (0..AT_ONCE).map(|_| start()).collect());
    let pair = |_| {
        let taken = together(&|| firn(nothing));
        settled();
        (taken, together(&|| floor.start(nothing, quiet)))
    };
    let pairs: Vec<(f64, f64)> = (0..runs.div_ceil(5)).map(pair).collect();
    lines.push(Line::pairs("8 of `true` at once", "ms", &pairs, Target::AtMost(most)));
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
