//! Sandboxes that wait to be asked for.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Daemon, Grade, Host, both_grades, jail_only, vm_only};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;

/// A host whose pool has `count` of this grade.
fn host(grade: Grade, count: usize) -> Host {
    let host = Host::of(grade);
    let vm = if grade == Grade::Vm { count } else { 0 };
    let jail = if grade == Grade::Jail { count } else { 0 };
    fs::write(host.config(), format!("[pool]\nvm = {vm}\njail = {jail}\ncode = 0\n")).unwrap();
    host
}

fn ready(host: &Host, grade: Grade) -> u64 {
    host.daemon_status()["pool"][grade.name()]["ready"].as_u64().unwrap()
}

/// Starts the daemon and waits for a full pool.
fn filled(host: &Host, grade: Grade, count: u64) -> Daemon {
    let daemon = host.daemon(None);
    host.wait_until("the pool is full", || ready(host, grade) == count);
    daemon
}

/// Whether a sandbox came from the pool, by its audit log.
fn was_pooled(host: &Host, id: &str) -> bool {
    let events = host.firn(&["events", id, "--json"]).finish().expect(0).text().to_owned();
    let created = events.lines().find(|line| line.contains("\"created\"")).unwrap();
    let created: serde_json::Value = serde_json::from_str(created).unwrap();
    created["details"]["pooled"].as_bool().unwrap()
}

fn stop(host: &Host, daemon: Daemon) {
    host.firn(&["daemon", "stop"]).finish().expect(0);
    daemon.ended();
}

both_grades!(a_create_takes_what_waits_and_the_pool_fills_again);
fn a_create_takes_what_waits_and_the_pool_fills_again(grade: Grade) {
    let host = host(grade, 1);
    let daemon = filled(&host, grade, 1);
    assert!(host.firn(&["list", "--all", "--json"]).finish().expect(0).json().as_array().unwrap().is_empty());
    let waiting = host.sandboxes();
    let id = host.create(&["--name", "first"]);
    assert!(was_pooled(&host, &id));
    assert_eq!(waiting[0].file_name().unwrap(), id.as_str());
    let script = "cat /etc/hostname; id -u; echo $0 >/tmp/x && cat /tmp/x";
    assert_eq!(host.exec(&id, script).finish().expect(0).text(), format!("firn-{id}\n0\nsh\n"));
    host.wait_until("the pool is full again", || ready(&host, grade) == 1);
    assert_eq!(host.sandboxes().len(), 2);
    // Another one is another one.
    let other = host.create(&[]);
    assert!(was_pooled(&host, &other));
    assert_eq!(host.exec(&other, "test -e /tmp/x").finish().code, 1);
    for id in [&id, &other] {
        host.firn(&["destroy", id]).finish().expect(0);
    }
    // What waits is nobody's, and ends with the daemon.
    stop(&host, daemon);
    assert_eq!(host.sandboxes(), Vec::<std::path::PathBuf>::new());
    host.assert_clean();
}

vm_only!(folders_and_limits_come_to_a_guest_that_waited);
fn folders_and_limits_come_to_a_guest_that_waited() {
    let host = host(Grade::Vm, 1);
    let daemon = filled(&host, Grade::Vm, 1);
    fs::write(host.work().join("in"), "from the host").unwrap();
    let folder = host.home().join("read");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("me"), "only read").unwrap();
    let mount = format!("{}:/mnt/read:ro", folder.display());
    let id = host.create(&["-w", ".", "--mount", &mount, "--pids", "77"]);
    assert!(was_pooled(&host, &id));
    let script = "cat in /mnt/read/me; echo to the host > out; ! touch /mnt/read/x 2>/dev/null";
    assert_eq!(host.exec(&id, script).finish().expect(0).text(), "from the hostonly read");
    host.firn(&["stop", &id]).finish().expect(0);
    assert_eq!(fs::read_to_string(host.work().join("out")).unwrap(), "to the host\n");
    // Another size cannot be given to a guest that runs.
    host.wait_until("the pool is full again", || ready(&host, Grade::Vm) == 1);
    let other = host.create(&["--memory", "700M"]);
    assert!(!was_pooled(&host, &other));
    assert_eq!(ready(&host, Grade::Vm), 1);
    host.firn(&["destroy", &id, &other]).finish().expect(0);
    stop(&host, daemon);
}

both_grades!(what_dies_while_it_waits_is_not_given_out);
fn what_dies_while_it_waits_is_not_given_out(grade: Grade) {
    let host = host(grade, 1);
    let daemon = filled(&host, grade, 1);
    let [dead] = &host.sandboxes()[..] else { panic!("{:?}", host.sandboxes()) };
    let name = if grade == Grade::Vm { "qemu-system" } else { "bwrap" };
    let process = host.living().into_iter().find(|process| process.line.contains(name)).unwrap();
    kill(Pid::from_raw(process.pid.cast_signed()), Signal::SIGKILL).unwrap();
    host.wait_until("the dead one is gone", || ready(&host, grade) == 0 && !dead.exists());
    let id = host.create(&[]);
    assert!(!was_pooled(&host, &id));
    assert_eq!(host.exec(&id, "echo ok").finish().expect(0).text(), "ok\n");
    host.firn(&["destroy", &id]).finish().expect(0);
    stop(&host, daemon);
}

both_grades!(a_killed_daemon_leaves_nothing_of_its_pool);
fn a_killed_daemon_leaves_nothing_of_its_pool(grade: Grade) {
    let host = host(grade, 1);
    let daemon = filled(&host, grade, 1);
    daemon.kill();
    let before = host.sandboxes();
    assert_eq!(before.len(), 1);
    // In the middle of the way from the pool to a sandbox.
    for point in ["registered", "launched", "recorded-up"] {
        let daemon = host.daemon(None);
        host.wait_until("the pool is full", || ready(&host, grade) == 1);
        assert!(host.sandboxes().iter().all(|sandbox| !before.contains(sandbox)));
        daemon.kill();
        let daemon = host.daemon(Some(point));
        host.wait_until("the pool is full", || ready(&host, grade) == 1);
        let created = host.firn(&["create", "--isolation", grade.name()]).finish();
        assert_eq!(created.code, 1, "{}", created.stderr);
        daemon.killed();
    }
    fs::write(host.config(), "[pool]\nvm = 0\njail = 0\ncode = 0\n").unwrap();
    let daemon = host.daemon(None);
    let left = host.firn(&["list", "--all", "--json"]).finish().expect(0).json();
    // The last one had come up, and was written down as such.
    let [left] = &left.as_array().unwrap()[..] else { panic!("{left}") };
    let id = left["sessionId"].as_str().unwrap();
    assert_eq!(host.exec(id, "echo ok").finish().expect(0).text(), "ok\n");
    host.firn(&["destroy", id]).finish().expect(0);
    host.assert_clean();
    stop(&host, daemon);
}

jail_only!(an_interpreter_waits_for_the_next_session);
fn an_interpreter_waits_for_the_next_session() {
    let host = Host::of(Grade::Jail);
    fs::write(host.config(), "[pool]\nvm = 0\ncode = 1\n").unwrap();
    let daemon = host.daemon(None);
    let waiting = || host.daemon_status()["pool"]["code"].clone();
    assert_eq!(waiting(), json!({"wanted": 0, "ready": 0}));
    let session = |arguments: &[&str]| {
        let usual = ["session", "run", "-i", "jail"];
        host.firn(&[&usual, arguments].concat()).finish().expect(0).text().to_owned()
    };
    let pooled = |name: &str| {
        let session = host.firn(&["session", "inspect", name, "--json"]).finish().expect(0).json();
        was_pooled(&host, session["sandbox"].as_str().unwrap())
    };
    let python = ["--env", "python", "--session"];
    assert_eq!(session(&[&python[..], &["one", "x = 1; x"]].concat()), "1\n");
    assert!(!pooled("one"));
    host.wait_until("one waits", || waiting() == json!({"wanted": 1, "ready": 1}));
    // It is as one that was made, and knows nothing of others.
    let code = "import os; print(os.getcwd(), os.environ['HOME'], 'x' in globals()); x = 2";
    let told = session(&[&python[..], &["two", code]].concat());
    assert_eq!(told, session(&[&python[..], &["three", "--timeout", "60s", code]].concat()));
    assert!(pooled("two") && told.ends_with(" False\n"), "{told}");
    assert_eq!(session(&[&python[..], &["one", "x"]].concat()), "1\n");
    assert_eq!(session(&[&python[..], &["two", "x"]].concat()), "2\n");
    // For code that is run once too; and not for who wants a folder, or another language.
    host.wait_until("the next waits", || waiting()["ready"] == 1);
    assert_eq!(session(&["--env", "python", "print('x' in globals())"]), "False\n");
    host.wait_until("the next waits", || waiting()["ready"] == 1);
    let folder = host.work();
    let shared = ["-w", folder.to_str().unwrap(), "--session", "four", "import os; os.listdir('.') != []"];
    assert_eq!(session(&[&["--env", "python"][..], &shared].concat()), "True\n");
    assert_eq!(session(&["--env", "shell", "--session", "five", "echo $0"]), "bash\n");
    assert!(!pooled("four") && !pooled("five"));
    // A session that may say little is not the one that waits.
    let little = ["session", "create", "-i", "jail", "--env", "shell", "--name", "six", "--max-output", "4"];
    host.wait_until("both wait", || waiting() == json!({"wanted": 2, "ready": 2}));
    host.firn(&little).finish().expect(0);
    assert!(pooled("six"));
    assert_eq!(session(&["--session", "six", "echo abcdef"]), "abcd");
    for name in ["one", "two", "three", "four", "five", "six"] {
        host.firn(&["session", "close", name]).finish().expect(0);
    }
    stop(&host, daemon);
    host.assert_clean();
}
