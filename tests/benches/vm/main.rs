//! firn against its floors: see docs/BENCHMARKS.md.
//!
//! Each figure of firn is taken next to one of its floor, in turn, and compared with that one: what
//! else the machine does meanwhile then concerns both. Prints a table, or JSON with `--json`, to
//! stdout. Missing a target is a result; the exit code tells whether everything could be measured.
#![allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a panic ends one measurement")]
#![allow(unsafe_code, reason = "descriptors are handed on under their numbers")]

mod floor;
mod initramfs;
mod process;
mod report;
mod sandbox;
#[allow(dead_code, reason = "shared with the other benchmark")]
mod stand_in;

use firn_protocol::{ExitStatus, Kind, Reply, Request};
use firn_tests::{Grade, Host, binaries, connect, exec};
use floor::Floor;
use report::{Line, Series, Target};
use sandbox::Sandbox;
use std::io::{Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What `guest-floor serve` listens on.
const PORT: u32 = 5005;

/// How many commands and round trips there are in a run.
const COMMANDS: usize = 20;
const ROUND_TRIPS: usize = 200;

/// How much is streamed in a run, in bytes.
const STREAM: usize = 128 << 20;

const KIB: f64 = 1024.0;
const MB: f64 = 1e6;

struct Options {
    json: bool,
    runs: usize,
    only: Vec<String>,
    /// More arguments for `firn run`.
    more: Vec<String>,
}

impl Options {
    fn read() -> Result<Options, String> {
        let mut options = Options { json: false, runs: 10, only: Vec::new(), more: Vec::new() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                // What `cargo bench` says to every benchmark.
                "--bench" => {}
                "--json" => options.json = true,
                "--runs" => options.runs = value()?.parse().map_err(|_bad| "--runs takes a number")?,
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--vmm" | "--cpus" => {
                    let value = value()?;
                    options.more.extend([arg, value]);
                }
                other => return Err(format!("unknown argument {other}")),
            }
        }
        Ok(options)
    }

    fn wants(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == what)
    }

    fn run<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        self.more.iter().map(String::as_str).chain(args.iter().copied()).collect()
    }
}

fn main() -> ExitCode {
    if let Some(code) = stand_in::in_place() {
        return code;
    }
    let options = match Options::read() {
        Ok(options) => options,
        Err(complaint) => {
            say(&format!(
                "{complaint}\nusage: [--json] [--runs N] [--only run,exec,stream,memory] [--vmm NAME] [--cpus N]\n"
            ));
            return ExitCode::FAILURE;
        }
    };
    process::inherit();
    let host = Host::with_runtime_in_memory(Grade::Vm);
    let mut about = vec![("date", today()), ("machine", machine())];
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let mut section = |name: &str, measure: &mut dyn FnMut() -> Vec<Line>| {
        if options.wants(name) {
            // The panic has said on stderr what went wrong, and on its way ended what ran.
            match catch_unwind(AssertUnwindSafe(measure)) {
                Ok(more) => lines.extend(more),
                Err(_panic) => failures.push(format!("{name} could not be measured")),
            }
        }
    };
    section("run", &mut || {
        let (line, guest) = cold_run(&host, &options);
        about.push(("guest", guest));
        vec![line]
    });
    section("exec", &mut || vec![exec_latency(&host, &options)]);
    section("stream", &mut || vec![streaming(&host, &options)]);
    section("memory", &mut || memory(&host, &options));
    if options.json {
        say(&format!("{:#}\n", report::json(&about, &lines, &failures)));
    } else {
        say(&report::table(&about, &lines));
        failures.iter().for_each(|failure| say(&format!("{failure}\n")));
    }
    // What should have been removed and was not is told by the host's own check.
    drop(host);
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn today() -> String {
    let output = std::process::Command::new("date").arg("+%F").output().expect("runs date");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let system = read("/etc/os-release");
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    format!("{cpus} CPUs, {}, load {load} at the start", system.trim_matches('"'))
}

/// A sandbox that does nothing.
fn idle(host: &Host, options: &Options) -> Sandbox {
    Sandbox::start(host, &options.run(&["--", "sh", "-c", "echo; exec sleep 3600"]))
}

/// A sandbox with the floor's program in it.
fn serving(host: &Host, options: &Options) -> Sandbox {
    let program = binaries().join("guest-floor");
    let mount = format!("{}:/mnt/guest-floor:ro", program.display());
    Sandbox::start(host, &options.run(&["--mount", &mount, "--", "/mnt/guest-floor", "serve"]))
}

fn cold_run(host: &Host, options: &Options) -> (Line, String) {
    // Also makes the guest image, when there is none.
    let base = stand_in::Start::of(host, &options.run(&["--", "true"]), "virtiofsd");
    let daemon = host.daemon(None);
    let mut sandbox = idle(host, options);
    let floor = Floor::of(&mut sandbox, &base);
    drop(sandbox);
    let firn = || {
        let mut command = host.run(&options.run(&["--", "true"])).into_command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let since = Instant::now();
        let output = command.spawn().and_then(std::process::Child::wait_with_output).expect("runs firn");
        let taken = since.elapsed();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // What firn removes after it has answered is not to be paid by whoever is measured next.
        sandbox::settled(host);
        taken
    };
    let pair = |_| (millis(firn()), millis(floor.run()));
    pair(0);
    let pairs: Vec<(f64, f64)> = (0..options.runs).map(pair).collect();
    daemon.stop();
    let line = Line::pairs("cold run of `true`", "ms", &pairs, Target::AtMost(1.25));
    (line, format!("{}, {}", floor.name, floor.machine))
}

fn exec_latency(host: &Host, options: &Options) -> Line {
    let mut sandbox = serving(host, options);
    let mut echo = connect(sandbox.socket(), PORT).expect("connects to the echo");
    echo.write_all(b"echo\n").expect("asks for an echo");
    let mut pair = |_| {
        let commands = (0..COMMANDS).map(|_| {
            let since = Instant::now();
            sandbox.output(&["true"]);
            millis(since.elapsed())
        });
        let commands = Series::new(commands.collect());
        let spawned = sandbox.output(&["/mnt/guest-floor", "spawn", &COMMANDS.to_string()]);
        let spawned = String::from_utf8(spawned).expect("numbers");
        let forked = spawned.lines().map(|line| line.split(' ').next().expect("a column"));
        let forked = Series::new(forked.map(|ns| ns.parse::<f64>().expect("a number") / 1e6).collect());
        let round_trips = (0..ROUND_TRIPS).map(|_| {
            let since = Instant::now();
            let mut message = [7; 32];
            echo.write_all(&message).expect("sends to the echo");
            echo.read_exact(&mut message).expect("hears the echo");
            millis(since.elapsed())
        });
        let round_trips = Series::new(round_trips.collect());
        (commands.median(), forked.median() + round_trips.median())
    };
    pair(0);
    let pairs: Vec<(f64, f64)> = (0..options.runs).map(pair).collect();
    Line::pairs("exec of `true`", "ms", &pairs, Target::AtMost(2.0))
}

fn streaming(host: &Host, options: &Options) -> Line {
    let mut sandbox = serving(host, options);
    let rate = |since: Instant| STREAM as f64 / MB / since.elapsed().as_secs_f64();
    let mut pair = |_| {
        let since = Instant::now();
        let mut arrived = 0;
        let writer = exec(&["/mnt/guest-floor", "write", &STREAM.to_string()]);
        let exited = sandbox.agent.run(writer, |kind, bytes| {
            assert_eq!(kind, Kind::Stdout, "{}", String::from_utf8_lossy(bytes));
            arrived += bytes.len();
        });
        assert_eq!((exited.status, arrived), (ExitStatus::Code(0), STREAM));
        let streamed = rate(since);

        let mut raw = connect(sandbox.socket(), PORT).expect("connects to the stream");
        let mut chunk = vec![0; 256 * 1024];
        let since = Instant::now();
        raw.write_all(format!("stream {STREAM}\n").as_bytes()).expect("asks for the stream");
        let mut arrived = 0;
        while arrived < STREAM {
            let read = raw.read(&mut chunk).expect("reads the stream");
            assert_ne!(read, 0, "the stream ended after {arrived} bytes");
            arrived += read;
        }
        (streamed, rate(since))
    };
    pair(0);
    let pairs: Vec<(f64, f64)> = (0..options.runs).map(pair).collect();
    Line::pairs("stdout of a command", "MB/s", &pairs, Target::AtLeast(0.6))
}

fn memory(host: &Host, options: &Options) -> Vec<Line> {
    let agent = std::fs::metadata(binaries().join("firn-agent")).expect("finds the agent").len();
    let mut lines =
        vec![Line::alone("agent, the file", "MB", vec![agent as f64 / MB], Some(Target::AtMost(4.0)))];
    let mut sandbox = idle(host, options);
    let Reply::Stats(stats) = sandbox.agent.ask(&Request::Stats) else { panic!("no statistics") };
    let resident = stats.agent_rss_bytes as f64 / MB;
    lines.push(Line::alone("agent, resident in the guest", "MB", vec![resident], Some(Target::AtMost(8.0))));
    let mut beside = 0.0;
    let mut each = Vec::new();
    let mut guest = 0.0;
    for process in sandbox.processes() {
        let (all, ram) = process.pss();
        let own = (all - ram) as f64 / KIB;
        beside += own;
        guest += ram as f64 / KIB;
        let inside = process.argv.iter().skip_while(|word| *word != "--").nth(1);
        let name = match inside {
            Some(program) if process.name() == "bwrap" => {
                format!("  bwrap around {}", program.rsplit('/').next().unwrap_or_default())
            }
            _ => format!("  {}", process.name()),
        };
        each.push(Line::alone(&name, "MiB", vec![own], None));
    }
    lines.push(Line::alone("host memory for the guest's RAM", "MiB", vec![guest], None));
    lines.push(Line::alone("host memory on top of it", "MiB", vec![beside], None));
    lines.extend(each);
    lines
}
