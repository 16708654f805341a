//! Guests whose agent is the adversary: a real `firn run` each, in a real VM.
//!
//! What a scripted peer does in every phase of a conversation is tested beside the code, in
//! `host/src/guest`; here it is the whole of firn that has to come to a clear end.
//!
//! Of the grade vm only: an image with another agent can be had there, and the agent of a jail is
//! firn's own program, which the command cannot get at.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Finished, Host, binaries, collect, vm_only};
use std::fs;
use std::time::{Duration, Instant};

/// No hostile guest may keep firn busy for longer, on a slow host without KVM.
const SOON: Duration = Duration::from_secs(60);

/// The most memory the daemon, or the client, may take, in KiB. Without a guest's help they take a tenth.
const MOST_MEMORY: u64 = 100_000;

/// `firn run` with an agent that behaves as `mode` says.
fn hostile(host: &Host, mode: &str, args: &[&str]) -> firn_tests::Firn {
    fs::write(host.work().join("mode"), mode).unwrap();
    // By another process: making an image takes more memory than a hostile guest may cost.
    let agent = binaries().join("hostile-agent");
    let _ = host.firn(&["image", "build", "--agent", agent.to_str().unwrap()]).finish().expect(0);
    let all: Vec<&str> = ["-w", "."].iter().chain(args).chain(&["--", "some-command"]).copied().collect();
    host.run(&all).env("FIRN_AGENT", agent)
}

/// What is true of every failure: it came soon, is told in words that do nothing to a terminal, and
/// is of a bearable length.
fn failed(mode: &str, args: &[&str]) -> Finished {
    let host = Host::new();
    let start = Instant::now();
    let done = hostile(&host, mode, args).finish().expect(125);
    assert!(start.elapsed() < SOON, "{mode} took {:?}", start.elapsed());
    let obeyed = |character: char| (character.is_control() && character != '\n') || character == '\u{202e}';
    assert!(!done.stderr.contains(obeyed), "{mode}: {:?}", done.stderr);
    assert!(done.stderr.len() < 20_000, "{mode}: {} bytes", done.stderr.len());
    done
}

/// One line that says `what`.
fn failed_in_a_line(mode: &str, what: &str) -> Finished {
    let done = failed(mode, &[]);
    let complaints = done.complaints();
    let lines: Vec<_> = complaints.lines().filter(|line| !line.starts_with("firn: `firn doctor`")).collect();
    assert_eq!(lines.len(), 1, "{mode}: {complaints}");
    assert!(lines[0].contains(what), "{mode}: {complaints}");
    done
}

vm_only!(a_hostile_hello);
fn a_hostile_hello() {
    failed_in_a_line("garbage-hello", "broke the protocol during the handshake: unknown frame kind 0xff");
    failed_in_a_line(
        "huge-length",
        "broke the protocol during the handshake: Hello frame of 4294967290 bytes",
    );
    failed_in_a_line("wrong-version", "speaks protocol 2, firn speaks 1");
    failed_in_a_line("hello-then-gone", "closed the connection during its configuration");
}

vm_only!(a_hostile_guest_that_ends_itself);
fn a_hostile_guest_that_ends_itself() {
    assert!(failed("power-off", &[]).stderr.contains("the guest ended by itself"));
    assert!(failed("exit", &[]).stderr.contains("the guest ended by itself"));
}

vm_only!(a_hostile_answer_to_a_command);
fn a_hostile_answer_to_a_command() {
    let done = failed_in_a_line("escapes", "cannot run some-command: [2J]0;owned31m firn: all is well");
    assert!(done.stderr.len() < 2000, "{} bytes", done.stderr.len());
    failed_in_a_line("refusal", "the sandbox could not do a command: [2J]0;owned31m firn: all is well");
    // Whether the piece of a frame still arrives is up to the vsock device.
    let done = failed("gone-in-a-chunk", &[]);
    let said = ["the connection ended inside a frame", "closed the connection during a command"];
    assert!(said.iter().any(|said| done.stderr.contains(said)), "{}", done.stderr);
    assert_eq!(done.text(), "the beginning\n");
}

vm_only!(a_hostile_end_of_a_command);
fn a_hostile_end_of_a_command() {
    let done = failed_in_a_line("not-the-end", "broke the protocol during the shutdown: Stdout frame");
    assert_eq!(done.text(), "");
}

vm_only!(more_connections_than_one);
fn more_connections_than_one() {
    let host = Host::new();
    let done = hostile(&host, "two-dials", &[]).finish().expect(0);
    assert_eq!(done.text(), "unheard\n");
    // The first is the agent's, and it misbehaves once it has made all the others.
    failed_in_a_line("many-dials", "broke the protocol during the handshake: unknown frame kind 0xff");
}

/// How much memory a process has taken at most, in KiB, if it is still there.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Starts a hostile guest, and looks at how much memory firn and its daemon take until it has ended.
fn largest(mode: &str, args: &[&str]) -> (Finished, u64) {
    let host = Host::new();
    let child = hostile(&host, mode, args).spawn();
    let client = child.id();
    let watcher = std::thread::spawn(move || {
        let mut largest = 0;
        while let Some(size) = peak(client) {
            largest = largest.max(size);
            std::thread::sleep(Duration::from_millis(20));
        }
        largest
    });
    let done = collect(child);
    let left: u64 = fs::read_dir(host.runtime().join("sandboxes"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(left, 0, "something is left in the runtime folder");
    let daemon = peak(host.daemon_pid().unwrap()).unwrap();
    (done, daemon.max(watcher.join().unwrap()))
}

vm_only!(a_console_that_never_stops);
fn a_console_that_never_stops() {
    let (done, memory) = largest("console-flood", &[]);
    let done = done.expect(125);
    assert!(done.stderr.contains("the guest ended by itself"), "{}", done.stderr);
    // The last of the flood, without what a terminal obeys.
    assert!(done.stderr.contains("]0;owned31m"), "{}", done.stderr);
    assert!(!done.stderr.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{}", done.stderr);
    assert!(done.stderr.len() < 20_000, "{} bytes", done.stderr.len());
    assert!(memory < MOST_MEMORY, "{memory} KiB");
}

vm_only!(events_without_end);
fn events_without_end() {
    // The agent never says that the command was started, only how much stdin it would like.
    let host = Host::new();
    let child = hostile(&host, "endless-events", &[]).spawn();
    host.wait_until("it runs", || !host.sandboxes().is_empty());
    std::thread::sleep(Duration::from_secs(8));
    for pid in [child.id(), host.daemon_pid().unwrap()] {
        let memory = peak(pid).unwrap();
        assert!(memory < MOST_MEMORY, "{memory} KiB");
    }
    // A person who has seen enough.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    for _ in 0..3 {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }
    let done = collect(child).expect(130);
    assert!(done.stderr.contains("interrupted by signal 2"), "{}", done.stderr);
}
