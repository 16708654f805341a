//! What an environment of many store paths costs: see docs/BENCHMARKS.md.
//!
//! Two environments that differ in nothing but the number of their paths are run in turn, so that what is left
//! is what the paths take. `make bench` has Nix build them, from Debian's static programs.
#![allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a panic ends the measurement")]

#[path = "../vm/report.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod report;

use firn_tests::{Firn, Grade, Host};
use report::{Comparison, Line, Target};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The most that the paths may take, in milliseconds: in a jail, in a vm, and to be found.
const MOST_IN_JAIL: f64 = 15.0;
const MOST_IN_VM: f64 = 40.0;
const MOST_TO_FIND: f64 = 5.0;

const USAGE: &str = "usage: MANY FEW [--json] [--runs N] [--vm-runs N]: two folders of environments\n";

/// The environments, as folders of the host's that are in no store: of those Nix would be asked to make a root.
struct Environments {
    many: PathBuf,
    few: PathBuf,
    paths: usize,
}

fn main() -> ExitCode {
    let (mut runs, mut vm_runs, mut json, mut folders) = (50_usize, 10_usize, false, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|runs| runs.parse().ok()).expect("it takes a number");
        match arg.as_str() {
            "--bench" => {}
            "--json" => json = true,
            "--runs" => runs = number(),
            "--vm-runs" => vm_runs = number(),
            folder if !folder.starts_with('-') => folders.push(PathBuf::from(folder)),
            _ => {
                say(USAGE);
                return ExitCode::FAILURE;
            }
        }
    }
    let [many, few] = &folders[..] else {
        say(USAGE);
        return ExitCode::FAILURE;
    };
    let mut lines = Vec::new();
    let whose = if nix::unistd::geteuid().is_root() { "root" } else { "the caller" };
    let mut measure = |grade: Grade, whose: &str, host: Host, runs| {
        lines.push(in_sandboxes(grade, whose, &host, (many, few), runs));
    };
    measure(Grade::Jail, whose, Host::with_runtime_in_memory(Grade::Jail), runs);
    if whose == "root" {
        measure(Grade::Jail, "a normal user", Host::of_a_normal_user(Grade::Jail), runs);
    }
    if vm_runs > 0 {
        measure(Grade::Vm, whose, Host::with_runtime_in_memory(Grade::Vm), vm_runs);
    }
    lines.push(found(many, runs));
    if json {
        say(&format!("{:#}\n", report::json(&[], &lines, &[])));
    } else {
        say(&report::table(&[], &lines));
    }
    ExitCode::SUCCESS
}

impl Environments {
    fn at(host: &Host, many: &Path, few: &Path) -> Environments {
        let copy = |from: &Path, name: &str| {
            let folder = host.work().join("environments").join(name);
            fs::create_dir_all(&folder).expect("makes a folder");
            for file in ["metadata.json", "closure"] {
                fs::write(folder.join(file), fs::read(from.join(file)).expect("an environment"))
                    .expect("writes");
            }
            folder
        };
        let closure = fs::read_to_string(many.join("closure")).expect("an environment");
        Environments { many: copy(many, "many"), few: copy(few, "few"), paths: closure.lines().count() }
    }
}

/// A command in a sandbox with many paths, and in one with few.
fn in_sandboxes(grade: Grade, whose: &str, host: &Host, folders: (&Path, &Path), runs: usize) -> Line {
    let environments = Environments::at(host, folders.0, folders.1);
    let daemon = host.daemon(None);
    let timed = |folder: &Path| {
        let taken = time(host.run(&["--env", folder.to_str().expect("a path in UTF-8"), "--", "true"]));
        // What firn removes after it has answered is not to be paid by whoever is measured next.
        while !host.sandboxes().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        taken
    };
    let pair = |_| (timed(&environments.many), timed(&environments.few));
    pair(0);
    let pairs: Vec<(f64, f64)> = (0..runs).map(pair).collect();
    let name = format!("`true` in a {} of {whose}, {} paths", grade.name(), environments.paths);
    let most = if grade == Grade::Jail { MOST_IN_JAIL } else { MOST_IN_VM };
    daemon.stop();
    Line::compared(&name, "ms", &pairs, Comparison::Difference, Some(Target::AtMost(most)))
}

/// An environment that is known by its name, found and looked through without Nix; beside it firn itself.
fn found(many: &Path, runs: usize) -> Line {
    let host = Host::new();
    let environments = Environments::at(&host, many, many);
    let dropped = environments.many.parent().expect("it is in a folder");
    fs::remove_dir_all(&environments.few).expect("removes what is of no use");
    let pair = |_| {
        let inspect = host.firn(&["env", "inspect", "many", "--json"]).env("NIX_SANDBOX_DIR", dropped);
        (time(inspect.env("FIRN_NIX", "/no/such/nix")), time(host.firn(&["--version"])))
    };
    pair(0);
    let pairs: Vec<(f64, f64)> = (0..runs).map(pair).collect();
    let name = format!("finding an environment, {} paths", environments.paths);
    Line::compared(&name, "ms", &pairs, Comparison::Difference, Some(Target::AtMost(MOST_TO_FIND)))
}

fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// From its start to its end, in milliseconds.
fn time(firn: Firn) -> f64 {
    let mut command: Command = firn.into_command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let since = Instant::now();
    let done = command.output().expect("starts");
    let taken = since.elapsed().as_secs_f64() * 1000.0;
    assert!(done.status.success(), "it failed: {}", String::from_utf8_lossy(&done.stderr));
    taken
}
