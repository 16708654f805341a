//! What callers of nixo rely on: its verbs, keys, columns, words and exit codes.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Finished, Grade, Host, jail_only};
use serde_json::Value;
use std::fs;

/// The keys of nixo's metadata.json.
const METADATA: [&str; 11] = [
    "sessionId",
    "name",
    "profile",
    "rootfsPath",
    "workspace",
    "createdAt",
    "lastExecAt",
    "pid",
    "agent",
    "description",
    "network",
];

fn create(host: &Host, words: &[&str]) -> Finished {
    host.firn(&[&["create", "-i", "jail"], words].concat()).finish()
}

/// What firn says on stderr, and nothing on stdout.
fn refused(done: Finished, code: i32) -> String {
    let done = done.expect(code);
    assert_eq!(done.text(), "");
    done.complaints()
}

jail_only!(metadata_has_nixos_keys);
fn metadata_has_nixos_keys() {
    let host = Host::of(Grade::Jail);
    let words = ["--with", "sh,coreutils", "--network", "off", "--name", "ci-smoke", "--json"];
    let words =
        [&words[..], &["--agent", "claude:opus-4-6", "--description", "for a test", "-w", "."]].concat();
    let made = create(&host, &words).expect(0);
    assert!(made.text().starts_with("{\n  \""), "pretty: {}", made.text());
    let made = made.json();
    for key in METADATA {
        assert!(made.get(key).is_some(), "{key} is not in {made}");
    }
    assert_eq!(made["name"], "ci-smoke");
    assert_eq!(made["profile"], "custom:sh,coreutils");
    assert_eq!(made["agent"], "claude:opus-4-6");
    assert_eq!(made["description"], "for a test");
    assert_eq!(made["network"], "off");
    assert_eq!(made["lastExecAt"], Value::Null);
    assert_eq!(made["workspace"].as_str().unwrap(), host.work().to_str().unwrap());
    let id = made["sessionId"].as_str().unwrap();
    assert_eq!(id.len(), 8);
    assert!(made["createdAt"].as_str().unwrap().ends_with('Z'));

    let listed = host.firn(&["list", "--json"]).finish().expect(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["sessionId"], id);
    let status = host.status(id);
    for key in METADATA.iter().filter(|key| **key != "pid") {
        assert!(status.get(key).is_some(), "{key} is not in {status}");
    }
    let _ = host.exec(id, "true").finish().expect(0);
    assert!(host.status(id)["lastExecAt"].is_string());

    let destroyed = host.firn(&["destroy", id]).finish().expect(0);
    assert_eq!(destroyed.stderr, format!("Session {id} destroyed.\n"));
    assert_eq!(destroyed.text(), "");
    assert_eq!(
        refused(host.firn(&["destroy", id]).finish(), 1),
        format!("firn: error: session '{id}' not found\n")
    );
    assert_eq!(
        refused(host.firn(&["status", id]).finish(), 1),
        format!("firn: error: session '{id}' not found\n")
    );
    // The caller's own folder stays.
    assert!(host.work().is_dir());
}

jail_only!(a_list_has_nixos_columns);
fn a_list_has_nixos_columns() {
    let host = Host::of(Grade::Jail);
    assert_eq!(host.firn(&["list"]).finish().expect(0).text(), "No active sessions.\n");
    assert_eq!(host.firn(&["list", "--json"]).finish().expect(0).json(), Value::Array(vec![]));
    let first = host.create(&["--name", "one", "--profile", "strict"]);
    let second = host.create(&[]);
    let list = host.firn(&["list"]).finish().expect(0);
    let lines: Vec<&str> = list.text().lines().collect();
    assert!(
        lines[0].starts_with("SESSION      NAME                 PROFILE          CREATED"),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].starts_with(&format!("{first}     one                  strict           20")),
        "{}",
        lines[1]
    );
    assert!(lines[2].starts_with(&format!("{second}     {second}")), "the oldest first: {}", lines[2]);
    assert!(lines[1].ends_with(" jail      running"), "{}", lines[1]);
    let _ = host.firn(&["stop", &first]).finish().expect(0);
    let shown = |words: &[&str]| host.firn(words).finish().expect(0).text().contains(&first);
    assert!(!shown(&["list"]));
    assert!(shown(&["list", "--all"]));
    assert!(shown(&["list", "--json"]));
}

jail_only!(what_nixo_refuses_is_refused);
fn what_nixo_refuses_is_refused() {
    let host = Host::of(Grade::Jail);
    let said = |words: &[&str]| refused(create(&host, words), 1);
    assert_eq!(
        said(&["--profile", "strict", "--with", "bash"]),
        "firn: error: specify only one of --env, --profile, --spec, or --with\n"
    );
    assert_eq!(
        said(&["--with", "sh", "--network", "some"]),
        "firn: error: --network must be 'off' or 'full', got 'some'\n"
    );
    assert!(said(&["--network", "full"]).contains("is not there yet"));
    assert_eq!(
        said(&["--profile", "../strict"]),
        "firn: error: unknown profile '../strict'. Available: build-install, offline-review, strict, debug-network\n"
    );
    assert!(said(&["--with", "sh,no-such-package"]).contains("package 'no-such-package' is not among"));
    assert!(said(&["--with", "sh;true"]).contains("no package name"));
    let spec = host.work().join("spec.json");
    fs::write(&spec, r#"{"name":"","packages":["sh"],"network":"off"}"#).unwrap();
    let spec = spec.to_str().unwrap();
    assert_eq!(said(&["--spec", spec]), "firn: error: validation error: spec.name must not be empty\n");
    fs::write(spec, r#"{"name":"web","packages":["sh","coreutils"]}"#).unwrap();
    assert!(said(&["--spec", spec]).contains("--network full is not there yet"));
    fs::write(spec, r#"{"name":"web","packages":["sh","coreutils"],"network":"off"}"#).unwrap();
    let made = create(&host, &["--spec", spec, "--json"]).expect(0).json();
    assert_eq!(made["profile"], "web");
    // A command line that makes no sense is told apart.
    let _ = create(&host, &["--no-such-option"]).expect(2);
}

jail_only!(nixos_variables_mean_what_they_meant);
fn nixos_variables_mean_what_they_meant() {
    // It is the daemon that looks for bubblewrap, and it has the variables of who started it.
    let host = Host::of(Grade::Jail);
    let missing =
        host.run(&["--", "true"]).env("NIXOSANDBOX_BWRAP_PATH", "/no/such/bwrap").finish().expect(125);
    assert!(missing.stderr.contains("NIXOSANDBOX_BWRAP_PATH names /no/such/bwrap"), "{}", missing.stderr);
    drop(host);
    let host = Host::of(Grade::Jail);
    let _ = host.create(&["--with", "sh"]);
    let done = host
        .firn(&["list", "--json"])
        .env("NIXOSANDBOX_NO_DOCKER", "1")
        .env("NIXOSANDBOX_FLAKE_ROOT", "/no/such/flake")
        .finish()
        .expect(0);
    assert_eq!(done.json().as_array().unwrap().len(), 1);
}
