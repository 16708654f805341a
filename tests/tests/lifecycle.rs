//! Sandboxes that stay: from their making to their end, and what ends them.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Grade, Host, both_grades, jail_only, vm_only};
use serde_json::Value;
use std::time::Duration;

/// Runs `firn` with these words and gives what it says on stdout.
fn firn(host: &Host, words: &[&str]) -> String {
    host.firn(words).finish().expect(0).text().to_owned()
}

/// What firn says when it fails.
fn refused(host: &Host, words: &[&str]) -> String {
    let done = host.firn(words).finish();
    assert_eq!((done.code, done.text()), (1, ""), "{}", done.stderr);
    done.complaints()
}

fn state(host: &Host, sandbox: &str) -> String {
    host.status(sandbox)["state"].as_str().unwrap().to_owned()
}

/// Whether it is still known.
fn is_known(host: &Host, sandbox: &str) -> bool {
    let listed = host.firn(&["list", "--json"]).finish().expect(0).json();
    listed.as_array().unwrap().iter().any(|known| known["sessionId"] == sandbox)
}

both_grades!(a_life);
fn a_life(grade: Grade) {
    let host = Host::of(grade);
    let id = host.create(&["--name", "first", "--description", "a \u{1b}[31m test"]);
    assert_eq!(state(&host, &id), "running");

    // What was written stays, for every command and every user of it.
    assert_eq!(host.exec(&id, "echo kept > /tmp/file; echo $$ > /run/pid").finish().expect(0).text(), "");
    assert_eq!(host.exec("first", "cat /tmp/file").finish().expect(0).text(), "kept\n");
    host.exec(&id, "exit 7").finish().expect(7);

    // Commands that go on.
    let number = firn(&host, &["exec", "--detach", "first", "--", "sh", "-c", "echo begun; sleep 1000; :"]);
    host.wait_until("it has begun", || firn(&host, &["logs", &id]) == "begun\n");
    let rows = host.firn(&["ps", &id, "--json"]).finish().expect(0).json();
    let is_sleep = |row: &&Value| row["command"] == "sleep 1000";
    let sleep = rows.as_array().unwrap().iter().find(is_sleep).unwrap_or_else(|| panic!("{rows}")).clone();
    assert_eq!(sleep["user"], 0);
    let table = firn(&host, &["ps", &id]);
    assert!(table.starts_with("PID     PPID    USER    S TIME"), "{table}");
    assert!(table.contains("sleep 1000"), "{table}");
    assert_eq!(firn(&host, &["logs", &id, "--command", number.trim_end()]), "begun\n");

    let stats = host.firn(&["stats", &id, "--json"]).finish().expect(0).json();
    assert_eq!(stats[0]["sessionId"], id.as_str());
    assert!(
        stats[0]["memoryBytes"].as_u64().unwrap() > 0 && stats[0]["processes"].as_u64().unwrap() > 0,
        "{stats}"
    );
    assert!(firn(&host, &["stats", &id]).contains("first"));

    // It stands still, and goes on where it was.
    let _ = host.firn(&["pause", &id]).finish().expect(0);
    assert_eq!(state(&host, &id), "paused");
    let paused = host.exec(&id, "true").finish().expect(125);
    assert!(paused.complaints().contains("paused"), "{}", paused.stderr);
    assert!(refused(&host, &["pause", &id]).contains("paused"));
    let _ = host.firn(&["resume", &id]).finish().expect(0);
    assert_eq!(host.exec(&id, "cat /tmp/file").finish().expect(0).text(), "kept\n");

    let _ = host.firn(&["rename", "first", "second"]).finish().expect(0);
    assert_eq!(host.status("second")["sessionId"], id.as_str());
    assert!(refused(&host, &["status", "first"]).contains("session 'first' not found"));

    // For people: what is in it cannot steer a terminal.
    let card = firn(&host, &["status", &id]);
    assert!(
        card.starts_with(&format!("╭{}", "─")) && card.contains("Session: ") && card.contains("second"),
        "{card}"
    );
    assert!(!card.contains('\u{1b}') && card.contains(r"\u{1b}[31m"), "{card}");
    assert!(card.contains(&format!("Isolated by: {}", grade.name())), "{card}");

    // Its end: its record and its log stay until it is destroyed.
    let _ = host.firn(&["stop", "second", "--time", "5s"]).finish().expect(0);
    assert_eq!(state(&host, &id), "stopped");
    host.exec(&id, "true").finish().expect(125);
    assert_eq!(firn(&host, &["logs", &id]), "begun\n");
    let events = firn(&host, &["events", &id, "--json"]);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    for name in
        ["created", "running", "exec-started", "exec-exited", "paused", "resumed", "renamed", "stopped"]
    {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert!(events.iter().all(|event| event["sessionId"] == id.as_str()));
    let numbers: Vec<u64> = events.iter().map(|event| event["sequence"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    let last = numbers[numbers.len() - 1];
    assert_eq!(firn(&host, &["events", &id, "--json", "--since", &last.to_string()]), "");

    let _ = host.firn(&["destroy", &id]).finish().expect(0);
    assert!(!is_known(&host, &id));
    assert!(refused(&host, &["status", &id]).contains("not found"));
    host.assert_clean();
}

jail_only!(a_jails_limits_can_be_changed);
fn a_jails_limits_can_be_changed() {
    let host = Host::of(Grade::Jail);
    let id = host.create(&["--pids", "64", "--memory", "256M"]);
    let fork = "for i in $(seq 40); do sleep 100 & done; wait -n 2>/dev/null; jobs | wc -l; kill $(jobs -p)";
    let many = |host: &Host| host.firn(&["exec", &id, "--timeout", "10s", "--", "bash", "-c", fork]).finish();
    let _ = host
        .firn(&["update", &id, "--pids", "16", "--memory", "512M", "--description", "less"])
        .finish()
        .expect(0);
    let status = host.status(&id);
    assert_eq!(status["description"], "less");
    let limits = &status["protection"]["limits"];
    assert_eq!(limits["processes"]["requested"], 16);
    assert_eq!(limits["memory"]["requested"], 512 << 20);
    let done = many(&host);
    assert!(done.stderr.contains("fork") || done.stderr.contains("process limit"), "{}", done.stderr);
    let _ = host.firn(&["update", &id]).finish().expect(2);
    // What is refused changes nothing.
    for refused_limit in [["--memory", "1M"], ["--pids", "0"]] {
        let said = refused(&host, &[&["update", &id, "--description", "x"], &refused_limit[..]].concat());
        assert!(said.contains("memory") || said.contains("processes"), "{said}");
    }
    let after = host.status(&id);
    assert_eq!((&after["description"], &after["protection"]["limits"]), (&status["description"], limits));
}

jail_only!(a_command_whose_log_cannot_be_kept_does_not_run);
fn a_command_whose_log_cannot_be_kept_does_not_run() {
    let host = Host::of(Grade::Jail);
    let id = host.create(&[]);
    let logs = host.state().join("logs").join(&id);
    std::fs::write(&logs, "no folder").unwrap();
    let detach = |script: &str| host.firn(&["exec", "--detach", &id, "--", "sh", "-c", script]).finish();
    let refused = detach("touch /tmp/ran").expect(125);
    assert!(refused.stderr.contains("cannot keep the log"), "{}", refused.stderr);
    let _ = host.exec(&id, "sleep 0.2; test ! -e /tmp/ran").finish().expect(0);
    std::fs::remove_file(&logs).unwrap();
    assert_eq!(detach("echo said").expect(0).text(), "2\n");
    host.wait_until("it is written", || firn(&host, &["logs", &id]) == "said\n");
}

vm_only!(a_vms_limits_cannot);
fn a_vms_limits_cannot() {
    let host = Host::of(Grade::Vm);
    let id = host.create(&[]);
    assert!(!refused(&host, &["update", &id, "--memory", "2G"]).is_empty());
    let _ = host.firn(&["update", &id, "--description", "same"]).finish().expect(0);
    assert_eq!(host.status(&id)["description"], "same");
}

jail_only!(sandboxes_are_found_by_what_names_them);
fn sandboxes_are_found_by_what_names_them() {
    let host = Host::of(Grade::Jail);
    // Enough that two begin alike.
    let mut ids: Vec<String> = (0..17).map(|_| host.create(&[])).collect();
    ids.sort();
    let pair = ids.windows(2).find(|pair| pair[0][..1] == pair[1][..1]).unwrap();
    let common = pair[0].bytes().zip(pair[1].bytes()).take_while(|(one, other)| one == other).count();
    let ambiguous = refused(&host, &["status", &pair[0][..common]]);
    assert!(ambiguous.contains("ambiguous"), "{ambiguous}");
    let beginning = (1..=8)
        .map(|length| &pair[0][..length])
        .find(|beginning| ids.iter().filter(|id| id.starts_with(beginning)).count() == 1)
        .unwrap();
    assert_eq!(host.status(beginning)["sessionId"], pair[0].as_str());

    let named = host.create(&["--name", "a.name-with_all"]);
    assert_eq!(host.status("a.name-with_all")["sessionId"], named.as_str());
    let taken = refused(&host, &["create", "-i", "jail", "--name", "a.name-with_all"]);
    assert!(taken.contains("is taken"), "{taken}");
    for name in ["", ".", "..", "a/b", "../x", "/etc", "a b", "0badcafe", "ä", &"n".repeat(64)] {
        let _ = refused(&host, &["create", "-i", "jail", "--name", name]);
        let _ = refused(&host, &["rename", &named, name]);
    }
    for reference in ["../../etc", "a/../b", "%2e%2e", ".", "..", "zzz"] {
        let _ = refused(&host, &["status", reference]);
        let _ = refused(&host, &["destroy", reference]);
        host.exec(reference, "true").finish().expect(125);
    }
    // Several at once: each that is there goes, and the others are named.
    let done = host.firn(&["destroy", &ids[0], "nobody", &ids[1]]).finish().expect(1);
    assert!(done.stderr.contains("session 'nobody' not found"), "{}", done.stderr);
    assert!(!is_known(&host, &ids[0]) && !is_known(&host, &ids[1]) && is_known(&host, &ids[2]));
}

jail_only!(an_owners_sandboxes_go_with_the_lease);
fn an_owners_sandboxes_go_with_the_lease() {
    let host = Host::of(Grade::Jail);
    let short = host.create(&["--owner", "ci", "--lease", "4s"]);
    let long = host.create(&["--owner", "ci", "--lease", "1h"]);
    let others = host.create(&["--owner", "other", "--lease", "4s"]);
    let listed = firn(&host, &["lease", "list", "ci"]);
    assert!(listed.contains(&short) && listed.contains(&long) && !listed.contains(&others), "{listed}");
    let renewed = host.firn(&["lease", "renew", "ci", "--for", "30m", "--json"]).finish().expect(0).json();
    assert_eq!(renewed.as_array().unwrap().len(), 2);
    assert!(renewed[0]["leaseUntil"].is_string());
    host.wait_until("the lease has run out", || !is_known(&host, &others));
    assert_eq!(state(&host, &short), "running", "its lease was renewed");
    let _ = host.firn(&["lease", "renew", "ci", "--for", "1s"]).finish().expect(0);
    host.wait_until("both are gone", || !is_known(&host, &short) && !is_known(&host, &long));
    host.assert_clean();
}

jail_only!(a_key_makes_one_sandbox);
fn a_key_makes_one_sandbox() {
    let host = Host::of(Grade::Jail);
    let with = |owner: &str, key: &str| host.create(&["--owner", owner, "--idempotency-key", key]);
    let first = with("ci", "build-7");
    assert_eq!(with("ci", "build-7"), first);
    assert_ne!(with("ci", "build-8"), first);
    assert_ne!(with("other", "build-7"), first);
    let _ = host.firn(&["destroy", &first]).finish().expect(0);
    assert_ne!(with("ci", "build-7"), first);
    let _ = host.firn(&["create", "--idempotency-key", "x"]).finish().expect(2);
}

both_grades!(who_has_nothing_to_do_is_stopped);
fn who_has_nothing_to_do_is_stopped(grade: Grade) {
    let host = Host::of(grade);
    // Emulated guests take seconds to start a command.
    let (limit, longer) = match grade {
        Grade::Jail => ("3s", "sleep 5"),
        Grade::Vm => ("15s", "sleep 18"),
    };
    let id = host.create(&["--idle-timeout", limit]);
    // A command is something to do.
    let _ = host.exec(&id, longer).finish().expect(0);
    assert_eq!(state(&host, &id), "running");
    host.wait_until("it is stopped", || state(&host, &id) == "stopped");
    let reason = host.status(&id)["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("idle"), "{reason}");
    assert_eq!(firn(&host, &["prune"]), format!("{id}\n"));
    assert!(!is_known(&host, &id));
}

jail_only!(nobody_gets_older_than_allowed);
fn nobody_gets_older_than_allowed() {
    let host = Host::of(Grade::Jail);
    let id = host.create(&["--lifetime", "3s"]);
    let spared = host.create(&["--lifetime", "3s"]);
    let _ = host.firn(&["update", &spared, "--lifetime", "0"]).finish().expect(0);
    // A command does not help.
    let ended = host.exec(&id, "sleep 1000").finish();
    assert_ne!(ended.code, 0, "{}", ended.stderr);
    host.wait_until("it is stopped", || state(&host, &id) == "stopped");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(state(&host, &spared), "running");
    let pruned = host.firn(&["prune", "--json"]).finish().expect(0).json();
    assert_eq!(pruned["removed"], serde_json::json!([id]));
}

both_grades!(a_workspace_is_seen_by_both_sides);
fn a_workspace_is_seen_by_both_sides(grade: Grade) {
    let host = Host::of(grade);
    std::fs::write(host.work().join("in"), "from the host\n").unwrap();
    let id = host.create(&["-w", "."]);
    assert_eq!(host.exec(&id, "cat in; echo out > made").finish().expect(0).text(), "from the host\n");
    let _ = host.firn(&["stop", &id]).finish().expect(0);
    assert_eq!(std::fs::read_to_string(host.work().join("made")).unwrap(), "out\n");
}

jail_only!(without_a_daemon_nothing_is_started_that_was_not_wanted);
fn without_a_daemon_nothing_is_started_that_was_not_wanted() {
    let host = Host::of(Grade::Jail);
    let done = host.firn(&["list", "--no-autostart"]).finish().expect(1);
    assert!(done.stderr.contains("no daemon listens"), "{}", done.stderr);
    let version = host.firn(&["version", "--json"]).finish().expect(0).json();
    assert_eq!(version["daemon"], Value::Null);
    assert!(version["agent"]["version"].as_str().unwrap().starts_with("firn-agent "), "{version}");
    let id = host.create(&[]);
    let version = host.firn(&["version", "--json"]).finish().expect(0).json();
    assert_eq!(version["daemon"]["sandboxes"], 1, "{version}");
    let completions = firn(&host, &["completions", "bash"]);
    for verb in ["create", "destroy", "lease", "stats"] {
        assert!(completions.contains(verb), "{verb}");
    }
    assert_eq!(state(&host, &id), "running");
}
