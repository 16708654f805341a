//! The daemon is killed, and the next one goes on: nothing is lost, and nothing is left.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Grade, Host, Process, both_grades, vm_only};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::time::{Duration, Instant};

fn create(host: &Host, grade: Grade) -> firn_tests::Firn {
    host.firn(&["create", "--isolation", grade.name(), "--json"])
}

fn id_of(created: &Value) -> String {
    created["sessionId"].as_str().unwrap().to_owned()
}

fn list(host: &Host) -> Vec<Value> {
    host.firn(&["list", "--all", "--json"]).finish().expect(0).json().as_array().unwrap().clone()
}

/// Nothing of any sandbox: no folder, no process but daemons.
fn nothing_is_left(host: &Host, when: &str) {
    assert!(host.sandboxes().is_empty(), "{when}: {:?}", host.sandboxes());
    host.wait_until(&format!("nothing lives after {when}"), || host.living().is_empty());
}

both_grades!(a_daemon_killed_while_it_creates_leaves_nothing_half_made);
fn a_daemon_killed_while_it_creates_leaves_nothing_half_made(grade: Grade) {
    let host = Host::of(grade);
    let helpers = match grade {
        Grade::Jail => 1,
        // For the tree, vsock, QEMU.
        Grade::Vm => 3,
    };
    let mut points: Vec<String> =
        ["registered", "place-recorded", "folder-made", "cgroup-made"].map(String::from).to_vec();
    points.extend((1..=helpers).map(|count| format!("process-recorded:{count}")));
    points.extend(["launched", "recorded-up"].map(String::from));
    for point in points {
        let daemon = host.daemon(Some(&point));
        let failed = create(&host, grade).finish();
        assert_eq!(failed.code, 1, "{point}: {}", failed.stderr);
        daemon.killed();
        let next = host.daemon(None);
        if point == "recorded-up" {
            // All of it was there and written down: only the answer was not.
            let [sandbox] = &list(&host)[..] else { panic!("{:?}", list(&host)) };
            assert_eq!(sandbox["state"], "running");
            let id = id_of(sandbox);
            assert_eq!(host.firn(&["exec", &id, "--", "echo", "ok"]).finish().expect(0).text(), "ok\n");
            host.firn(&["destroy", &id]).finish().expect(0);
        }
        assert_eq!(list(&host), Vec::<Value>::new(), "{point}");
        nothing_is_left(&host, &point);
        next.kill();
    }
}

both_grades!(a_daemon_killed_while_a_command_starts_or_runs_keeps_the_sandbox);
fn a_daemon_killed_while_a_command_starts_or_runs_keeps_the_sandbox(grade: Grade) {
    let host = Host::of(grade);
    let daemon = host.daemon(None);
    let id = id_of(&create(&host, grade).finish().expect(0).json());
    daemon.kill();
    for point in ["exec-recorded", "exec-dialled", "exec-exited"] {
        let daemon = host.daemon(Some(point));
        let failed = host.firn(&["exec", &id, "--", "true"]).finish();
        assert_eq!(failed.code, 125, "{point}: {}", failed.stderr);
        daemon.killed();
        let next = host.daemon(None);
        assert_eq!(host.firn(&["exec", &id, "--", "echo", "ok"]).finish().expect(0).text(), "ok\n");
        next.kill();
    }
    let _last = host.daemon(None);
    host.firn(&["destroy", &id]).finish().expect(0);
    nothing_is_left(&host, "destroy");
}

both_grades!(a_daemon_killed_while_it_destroys_has_destroyed);
fn a_daemon_killed_while_it_destroys_has_destroyed(grade: Grade) {
    let host = Host::of(grade);
    for point in ["ending", "doomed", "destroyed"] {
        let daemon = host.daemon(Some(point));
        let id = id_of(&create(&host, grade).finish().expect(0).json());
        let _ = host.firn(&["destroy", &id]).finish();
        daemon.killed();
        let next = host.daemon(None);
        if point == "ending" {
            // It was only asked for.
            host.firn(&["destroy", &id]).finish().expect(0);
        }
        assert_eq!(list(&host), Vec::<Value>::new(), "{point}");
        nothing_is_left(&host, point);
        next.kill();
    }
}

both_grades!(a_sandbox_goes_on_when_the_daemon_is_killed);
fn a_sandbox_goes_on_when_the_daemon_is_killed(grade: Grade) {
    let host = Host::of(grade);
    let daemon = host.daemon(None);
    let id = id_of(&create(&host, grade).finish().expect(0).json());
    host.firn(&["exec", &id, "--", "sh", "-c", "echo kept > /tmp/file"]).finish().expect(0);
    let counts = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done";
    host.firn(&["exec", "--detach", &id, "--", "sh", "-c", counts]).finish().expect(0);
    let lines = || {
        let logs = host.firn(&["logs", &id]).finish().expect(0);
        logs.text().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    host.wait_until("it has written", || lines().len() >= 2);
    let before = host.firn(&["status", &id, "--json"]).finish().expect(0).json();
    daemon.kill();

    let daemon = host.daemon(None);
    let after = host.firn(&["status", &id, "--json"]).finish().expect(0).json();
    assert_eq!((&after["pid"], &after["state"]), (&before["pid"], &before["state"]));
    assert_eq!(host.firn(&["exec", &id, "--", "cat", "/tmp/file"]).finish().expect(0).text(), "kept\n");
    let seen = lines().len();
    host.wait_until("it goes on", || lines().len() > seen + 2);
    // What was written while no daemon ran is there too.
    for (index, line) in lines().iter().enumerate() {
        assert_eq!(*line, format!("line {}", index + 1));
    }
    let events = host.firn(&["events", &id, "--json"]).finish().expect(0);
    assert!(events.text().contains("\"adopted\""), "{}", events.text());
    host.firn(&["destroy", &id]).finish().expect(0);
    nothing_is_left(&host, "destroy");
    daemon.kill();
}

both_grades!(a_daemon_that_stops_does_not_wait_for_detached_commands);
fn a_daemon_that_stops_does_not_wait_for_detached_commands(grade: Grade) {
    let host = Host::of(grade);
    let daemon = host.daemon_under(&["/usr/bin/env", "FIRN_LOG=firn=debug"]);
    let id = id_of(&create(&host, grade).finish().expect(0).json());
    let counts = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done";
    host.firn(&["exec", "--detach", &id, "--", "sh", "-c", counts]).finish().expect(0);
    let lines = || {
        let logs = host.firn(&["logs", &id]).finish().expect(0);
        logs.text().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    host.wait_until("it has written", || lines().len() >= 2);
    let said = std::fs::read_to_string(host.work().join("daemon.log")).unwrap();
    assert!(said.contains("exec-started") && !said.contains("echo line"), "{said}");
    let begun = Instant::now();
    host.firn(&["daemon", "stop"]).finish().expect(0);
    daemon.ended();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());

    let _next = host.daemon(None);
    let seen = lines().len();
    host.wait_until("it goes on", || lines().len() > seen + 2);
    for (index, line) in lines().iter().enumerate() {
        assert_eq!(*line, format!("line {}", index + 1));
    }
    host.firn(&["destroy", &id]).finish().expect(0);
    // It ended with its sandbox, and what it was is in the audit log.
    let audit = || std::fs::read_to_string(host.state().join(format!("audit/{id}.jsonl"))).unwrap();
    host.wait_until("its end is written down", || audit().contains("\"exec-exited\""));
    assert!(audit().contains("\"endedBy\":\"sandbox\"") && audit().contains("echo line"), "{}", audit());
}

both_grades!(what_died_while_no_daemon_ran_is_remembered_as_dead);
fn what_died_while_no_daemon_ran_is_remembered_as_dead(grade: Grade) {
    let host = Host::of(grade);
    let daemon = host.daemon(None);
    let id = id_of(&create(&host, grade).finish().expect(0).json());
    daemon.kill();
    for process in host.living() {
        let _ = kill(Pid::from_raw(process.pid.cast_signed()), Signal::SIGKILL);
    }
    host.wait_until("it is dead", || host.living().is_empty());
    let _next = host.daemon(None);
    let [sandbox] = &list(&host)[..] else { panic!("{:?}", list(&host)) };
    assert_eq!((sandbox["sessionId"].as_str(), sandbox["state"].as_str()), (Some(&id[..]), Some("failed")));
    assert!(sandbox["reason"].as_str().unwrap().contains("while no daemon ran"), "{sandbox}");
    nothing_is_left(&host, "its death");
    let refused = host.firn(&["exec", &id, "--", "true"]).finish().expect(125);
    assert!(refused.stderr.contains("is failed"), "{}", refused.stderr);
    host.firn(&["prune"]).finish().expect(0);
    assert_eq!(list(&host), Vec::<Value>::new());
}

/// Kills what `is_victim` says of a sandbox's processes, and checks that the sandbox is failed with nothing
/// left of it.
fn kill_a_helper(grade: Grade, is_victim: fn(&Process) -> bool) {
    let host = Host::of(grade);
    let _daemon = host.daemon(None);
    let id = id_of(&create(&host, grade).finish().expect(0).json());
    let living = host.living();
    let victim = living.iter().rfind(|process| is_victim(process)).unwrap_or_else(|| panic!("{living:#?}"));
    kill(Pid::from_raw(victim.pid.cast_signed()), Signal::SIGKILL).unwrap();
    let status = || host.firn(&["status", &id, "--json"]).finish().expect(0).json();
    host.wait_until("it has failed", || status()["state"] == "failed");
    assert!(!status()["reason"].as_str().unwrap().is_empty());
    nothing_is_left(&host, "its end");
    host.firn(&["destroy", &id]).finish().expect(0);
}

both_grades!(a_sandbox_whose_main_process_is_killed_has_failed);
fn a_sandbox_whose_main_process_is_killed_has_failed(grade: Grade) {
    kill_a_helper(
        grade,
        match grade {
            Grade::Jail => |process| process.line.contains("/proc/self/fd"),
            Grade::Vm => |process| process.line.contains("qemu") || process.line.contains("cloud-hypervisor"),
        },
    );
}

vm_only!(a_vm_whose_virtiofsd_is_killed_has_failed);
fn a_vm_whose_virtiofsd_is_killed_has_failed() {
    kill_a_helper(Grade::Vm, |process| process.line.contains("virtiofsd"));
}

#[test]
fn a_second_daemon_says_that_there_is_one() {
    let host = Host::of(Grade::Jail);
    let first = host.daemon(None);
    let second = host.firn(&["daemon"]).finish().expect(1);
    assert!(
        second.stderr.contains(&format!("a daemon (pid {}) already uses", first.pid())),
        "{}",
        second.stderr
    );
}

#[test]
fn a_stale_socket_is_replaced() {
    let host = Host::of(Grade::Jail);
    let first = host.daemon(None);
    first.kill();
    assert!(host.runtime().join("firn.sock").exists());
    let _ = host.sh(&[], "exit 3").finish().expect(3);
}

#[test]
fn a_newer_format_is_refused_and_left_as_it_is() {
    let host = Host::of(Grade::Jail);
    host.daemon(None).kill();
    let path = host.state().join("records.db");
    let set = format!(
        "import sqlite3; c = sqlite3.connect({path:?}); c.execute('PRAGMA journal_mode=DELETE'); c.execute('PRAGMA user_version = 99'); c.commit(); c.close()"
    );
    assert!(std::process::Command::new("python3").args(["-c", &set]).status().unwrap().success());
    let before = std::fs::read(&path).unwrap();
    let refused = host.firn(&["daemon"]).finish().expect(1);
    assert!(refused.stderr.contains("newer firn"), "{}", refused.stderr);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
