//! `firn run`: a command in a sandbox behaves as a command.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Grade, Host, both_grades, collect};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::Duration;

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Reads stdout until it holds `wanted`.
fn read_until(child: &mut Child, wanted: &str) {
    let stdout = child.stdout.as_mut().unwrap();
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains(wanted) {
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "ended after {seen:?}");
        seen.push(char::from(byte[0]));
    }
}

both_grades!(the_main_job);
fn the_main_job(grade: Grade) {
    let host = Host::of(grade);
    let done = host.run(&["--", "python3", "-c", "print(6*7)"]).finish().expect(0);
    assert_eq!(done.text(), "42\n");
    assert_eq!(done.complaints(), "");
}

both_grades!(streams_and_exit_code_are_the_commands);
fn streams_and_exit_code_are_the_commands(grade: Grade) {
    let host = Host::of(grade);
    let script = "printf 'no newline'; printf 'a\\0b\\377' >&2; exit 7";
    let done = host.run(&["sh", "-c", script]).finish().expect(7);
    assert_eq!(done.text(), "no newline");
    assert!(done.stderr.ends_with("a\0b\u{fffd}"), "{:?}", done.stderr);
}

both_grades!(what_could_not_start_is_told_apart_from_what_exited);
fn what_could_not_start_is_told_apart_from_what_exited(grade: Grade) {
    let host = Host::of(grade);
    let missing = host.run(&["--", "no-such-program"]).finish().expect(127);
    assert!(missing.complaints().contains("cannot run no-such-program"), "{}", missing.stderr);
    let exited = host.run(&["--", "sh", "-c", "exit 127"]).finish().expect(127);
    assert_eq!(exited.complaints(), "");
    let plain = host.run(&["--", "/etc/passwd"]).finish().expect(126);
    assert!(plain.complaints().contains("Permission denied"), "{}", plain.stderr);
    let nowhere = host.run(&["--cwd", "/no/such", "--", "true"]).finish().expect(125);
    assert!(nowhere.complaints().contains("working directory"), "{}", nowhere.stderr);
    let nobody = host.run(&["--user", "alice", "--", "true"]).finish().expect(125);
    assert!(nobody.complaints().contains("no such user"), "{}", nobody.stderr);
}

both_grades!(signals_are_exit_codes_and_are_passed_on);
fn signals_are_exit_codes_and_are_passed_on(grade: Grade) {
    let host = Host::of(grade);
    host.run(&["--", "sh", "-c", "kill -9 $$"]).finish().expect(128 + 9);

    let script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done";
    let mut child = host.run(&["--", "sh", "-c", script]).spawn();
    read_until(&mut child, "ready");
    signal(&child, Signal::SIGINT);
    let done = collect(child).expect(3);
    assert!(done.text().contains("caught"), "{}", done.text());

    let mut child = host.run(&["--", "sh", "-c", "echo ready; exec sleep 1000"]).spawn();
    read_until(&mut child, "ready");
    signal(&child, Signal::SIGTERM);
    let _ = collect(child).expect(128 + 15);
}

both_grades!(a_command_that_ignores_interrupts_is_ended_by_insisting);
fn a_command_that_ignores_interrupts_is_ended_by_insisting(grade: Grade) {
    let host = Host::of(grade);
    let script = "trap '' INT TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = host.run(&["--", "sh", "-c", script]).spawn();
    read_until(&mut child, "ready");
    for _ in 0..3 {
        signal(&child, Signal::SIGINT);
        std::thread::sleep(Duration::from_millis(200));
    }
    let _ = collect(child).expect(128 + 2);
}

both_grades!(an_interrupt_while_it_comes_up_leaves_nothing);
fn an_interrupt_while_it_comes_up_leaves_nothing(grade: Grade) {
    let host = Host::of(grade);
    // Not `true`: a jail would be through before the signal is there.
    let child = host.run(&["--", "sleep", "1000"]).spawn();
    host.wait_until("a sandbox is there", || !host.sandboxes().is_empty());
    signal(&child, Signal::SIGINT);
    let _ = collect(child).expect(128 + 2);
}

both_grades!(stdin_is_streamed_to_its_end);
fn stdin_is_streamed_to_its_end(grade: Grade) {
    let host = Host::of(grade);
    let input: Vec<u8> = (0..10_000_000_u32).map(|number| ((number * 31) >> 3) as u8).collect();
    let done = host.run(&["--", "cat"]).stdin(input.clone()).finish().expect(0);
    assert!(done.stdout == input, "10 MB came back as {} bytes, changed", done.stdout.len());
}

both_grades!(stdin_that_nobody_reads_holds_nothing_up);
fn stdin_that_nobody_reads_holds_nothing_up(grade: Grade) {
    let host = Host::of(grade);
    let done =
        host.run(&["--", "sh", "-c", "exec <&-; echo done"]).stdin(vec![b'x'; 10_000_000]).finish().expect(0);
    assert_eq!(done.text(), "done\n");
    host.run(&["--timeout", "2s", "--", "sleep", "1000"]).stdin(vec![b'x'; 10_000_000]).finish().expect(124);
}

both_grades!(stdin_that_is_closed_is_empty);
fn stdin_that_is_closed_is_empty(grade: Grade) {
    use std::os::unix::process::CommandExt as _;
    let host = Host::of(grade);
    let mut command = host.run(&["--", "cat"]).into_command();
    #[allow(unsafe_code, reason = "a descriptor is closed between fork and exec")]
    // SAFETY: close(2) is async-signal-safe, and nothing else is done.
    unsafe {
        command.pre_exec(|| {
            libc::close(0);
            Ok(())
        });
    }
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(collect(child).expect(0).text(), "");
}

both_grades!(a_hundred_megabytes_on_both_streams_at_once);
fn a_hundred_megabytes_on_both_streams_at_once(grade: Grade) {
    let host = Host::of(grade);
    let script = "head -c 100000000 /dev/zero & head -c 100000000 /dev/zero | tr '\\0' x >&2; wait";
    let done = host.run(&["--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.stdout.len(), 100_000_000);
    assert!(done.stdout.iter().all(|byte| *byte == 0));
    assert_eq!(done.stderr.bytes().filter(|byte| *byte == b'x').count(), 100_000_000);
}

both_grades!(endless_output_ends_with_the_timeout_or_its_reader);
fn endless_output_ends_with_the_timeout_or_its_reader(grade: Grade) {
    let host = Host::of(grade);
    let done = host.run(&["--timeout", "3s", "--", "yes"]).finish().expect(124);
    assert!(done.stdout.len() > 1_000_000);
    assert!(done.complaints().contains("killed: timeout 3s"), "{}", done.complaints());

    let mut child = host.run(&["--", "yes"]).spawn();
    read_until(&mut child, "y\ny\n");
    drop(child.stdout.take());
    let _ = collect(child).expect(128 + 13);
}

both_grades!(a_background_child_neither_holds_the_call_up_nor_survives_it);
fn a_background_child_neither_holds_the_call_up_nor_survives_it(grade: Grade) {
    let host = Host::of(grade);
    let done = host.run(&["--", "sh", "-c", "sleep 10000 & setsid sleep 10000 & echo hi"]).finish().expect(0);
    assert_eq!(done.text(), "hi\n");
}

both_grades!(variables_folder_and_user_are_as_asked);
fn variables_folder_and_user_are_as_asked(grade: Grade) {
    let host = Host::of(grade);
    let script = "pwd; id -un; echo $HOME; echo $GIVEN $PASSED ${SECRET-unset}; env | wc -l";
    let done = host
        .run(&[
            "-e",
            "GIVEN=a=b",
            "-e",
            "PASSED",
            "-e",
            "ABSENT",
            "--user",
            "sandbox",
            "--cwd",
            "/tmp",
            "--",
            "sh",
            "-c",
            script,
        ])
        .env("PASSED", "on")
        .env("SECRET", "no")
        .finish()
        .expect(0);
    let lines: Vec<&str> = done.text().lines().collect();
    assert_eq!(lines[..4], ["/tmp", "sandbox", "/home/sandbox", "a=b on unset"]);
}

both_grades!(json_events_are_lossless);
fn json_events_are_lossless(grade: Grade) {
    let host = Host::of(grade);
    let script = "echo one; printf 'two\\377\\n'; printf rest; echo err >&2; exit 5";
    let done = host.run(&["--json", "--", "sh", "-c", script]).finish().expect(5);
    let events: Vec<Value> = done.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sequence: Vec<u64> = events.iter().map(|event| event["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequence, (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!(events[0]["payload"]["event"], "started");
    let stdout: Vec<&Value> =
        events.iter().filter(|event| event["type"] == "stdout").map(|event| &event["payload"]).collect();
    assert_eq!(stdout[0]["data"], "one");
    assert_eq!(stdout[1]["base64"], "dHdv/w==");
    assert_eq!((&stdout[2]["data"], &stdout[2]["newline"]), (&"rest".into(), &false.into()));
    assert!(events.iter().any(|event| event["type"] == "stderr" && event["payload"]["data"] == "err"));
    let result = events.last().unwrap();
    assert_eq!(result["type"], "result");
    assert_eq!(result["payload"]["exitCode"], 5);
    assert_eq!(result["payload"]["timedOut"], false);
    let isolation = &result["payload"]["isolation"];
    assert_eq!(isolation["requested"], grade.name());
    assert_eq!(isolation["effective"], grade.name());
    assert_eq!(isolation["degraded"], isolation["accelerator"] == "software");
}

both_grades!(a_terminal_is_a_terminal);
fn a_terminal_is_a_terminal(grade: Grade) {
    let host = Host::of(grade);
    let script = "tty; stty size; test -t 1 && echo yes; cat";
    let done =
        host.run(&["-t", "-e", "TERM=dumb", "--", "sh", "-c", script]).stdin("typed\n").finish().expect(0);
    let text = done.text().replace('\r', "");
    let lines: Vec<&str> = text.lines().collect();
    // What is typed is echoed by the terminal, at any time, and written by cat.
    let printed: Vec<&str> = lines.iter().copied().filter(|line| *line != "typed").collect();
    assert!(printed[0].starts_with("/dev/pts/"), "{lines:?}");
    assert_eq!(printed[1..], ["24 80", "yes"]);
    assert_eq!(lines.len() - printed.len(), 2, "{lines:?}");
}

both_grades!(our_own_terminal_is_restored);
fn our_own_terminal_is_restored(grade: Grade) {
    use nix::pty::openpty;
    use nix::sys::termios::{LocalFlags, tcgetattr};
    let host = Host::of(grade);
    let pty = openpty(None, None).unwrap();
    let before = tcgetattr(&pty.slave).unwrap();
    let mut command = host.run(&["-t", "--", "sh", "-c", "echo ready; kill -9 $$"]).into_command();
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    let child = command.stdin(slave()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = collect(child).expect(128 + 9);
    let after = tcgetattr(&pty.slave).unwrap();
    assert_eq!(before.local_flags, after.local_flags);
    assert!(after.local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON));
}

both_grades!(verbose_tells_phases_and_what_is_in_force);
fn verbose_tells_phases_and_what_is_in_force(grade: Grade) {
    let host = Host::of(grade);
    let done = host.run(&["-v", "--", "true"]).finish().expect(0);
    let given = format!("isolation {0} asked for, {0} given", grade.name());
    let phases: &[&str] = match grade {
        Grade::Jail => &[],
        Grade::Vm => &["booting", "mounting"],
    };
    for part in phases.iter().copied().chain(["the command", &given, "network off"]) {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    assert_eq!(done.text(), "");
}

#[test]
fn a_grade_can_be_named_and_must_be_one() {
    let host = Host::new();
    let done = host.run(&["--isolation", "vm", "--json", "--", "true"]).finish().expect(0);
    let result: Value = serde_json::from_str(done.text().lines().last().unwrap()).unwrap();
    assert_eq!(result["payload"]["isolation"]["requested"], "vm");
    let done = host.run(&["--isolation", "paper", "--", "true"]).finish().expect(2);
    assert!(done.stderr.contains("jail") && done.stderr.contains("vm"), "{}", done.stderr);
}

#[test]
fn mistakes_on_the_command_line_are_explained() {
    let host = Host::new();
    for (args, part) in [
        (&["--memory", "12", "--", "true"][..], "128 MiB"),
        (&["--memory", "lots", "--", "true"], "512M"),
        (&["--cpus", "0", "--", "true"], "0.01"),
        (&["--disk", "4G", "--", "true"], "smaller"),
        (&["--timeout", "0", "--", "true"], "--timeout"),
        (&["--mount", "/usr", "--", "true"], "HOST:GUEST"),
        (&["--workspace", "/no/such", "--", "true"], "/no/such"),
        (&["--workspace", "/etc/passwd", "--", "true"], "not a folder"),
        (&[], "CMD"),
    ] {
        let done = host.run(args).finish().expect(2);
        assert!(done.stderr.contains(part), "{args:?}: {}", done.stderr);
    }
}
