//! Many at once, clients that do not behave, and a disk that is full.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Finished, Firn, Grade, Host, both_grades, collect};
use serde_json::Value;
use std::process::Child;
use std::time::{Duration, Instant};

fn create(host: &Host, grade: Grade) -> String {
    let created = host.firn(&["create", "--isolation", grade.name(), "--json"]).finish().expect(0).json();
    created["sessionId"].as_str().unwrap().to_owned()
}

fn list(host: &Host) -> Vec<Value> {
    host.firn(&["list", "--all", "--json"]).finish().expect(0).json().as_array().unwrap().clone()
}

/// Runs all of them at once, to their ends.
fn at_once(firns: Vec<Firn>) -> Vec<Finished> {
    let children: Vec<Child> = firns.into_iter().map(Firn::spawn).collect();
    let threads: Vec<_> =
        children.into_iter().map(|child| std::thread::spawn(move || collect(child))).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn fifty_sandboxes_are_made_and_destroyed_at_once() {
    let host = Host::of(Grade::Jail);
    let names: Vec<String> = (0..50).map(|number| format!("n{number}")).collect();
    let creates = names.iter().map(|name| host.firn(&["create", "-i", "jail", "--name", name])).collect();
    let made = at_once(creates);
    assert!(made.iter().all(|made| made.code == 0), "{made:#?}");
    assert_eq!(list(&host).len(), 50);
    let used = at_once(names.iter().map(|name| host.firn(&["exec", name, "--", "echo", name])).collect());
    for (name, used) in names.iter().zip(used) {
        assert_eq!(used.expect(0).text(), format!("{name}\n"));
    }
    let destroyed = at_once(names.iter().map(|name| host.firn(&["destroy", name])).collect());
    assert!(destroyed.iter().all(|destroyed| destroyed.code == 0), "{destroyed:#?}");
    assert_eq!(list(&host), Vec::<Value>::new());
    assert!(host.sandboxes().is_empty());
    host.wait_until("nothing lives", || host.living().is_empty());
}

both_grades!(sixty_four_commands_run_at_once_in_one_sandbox);
fn sixty_four_commands_run_at_once_in_one_sandbox(grade: Grade) {
    let host = Host::of(grade);
    let id = create(&host, grade);
    let script = "head -c 100000 /dev/zero | tr '\\0' x; echo $0; exit $0";
    let commands = (0..64)
        .map(|number: u8| host.firn(&["exec", &id, "--", "sh", "-c", script, &number.to_string()]))
        .collect();
    for (number, finished) in at_once(commands).into_iter().enumerate() {
        let finished = finished.expect(i32::try_from(number).unwrap());
        assert_eq!(finished.stdout.len(), 100_000 + number.to_string().len() + 1);
        assert!(finished.stdout.ends_with(format!("x{number}\n").as_bytes()));
    }
    host.firn(&["destroy", &id]).finish().expect(0);
}

both_grades!(clients_that_vanish_or_never_read_harm_nobody);
fn clients_that_vanish_or_never_read_harm_nobody(grade: Grade) {
    let host = Host::of(grade);
    let id = create(&host, grade);
    // One that never reads, and is waited for by nobody else.
    let deaf = host.firn(&["exec", &id, "--", "yes", "never-read"]).spawn();
    let vanishing = host.firn(&["exec", &id, "--", "yes", "vanishing"]).spawn();
    let running = |what: &str| host.firn(&["ps", &id]).finish().expect(0).text().contains(what);
    host.wait_until("both run", || running("never-read") && running("vanishing"));
    let mut vanishing = vanishing;
    vanishing.kill().unwrap();
    let _ = vanishing.wait();
    host.wait_until("what the one ran is gone", || !running("vanishing"));
    assert!(running("never-read"));
    assert_eq!(host.firn(&["exec", &id, "--", "echo", "served"]).finish().expect(0).text(), "served\n");
    let mut deaf = deaf;
    deaf.kill().unwrap();
    let _ = deaf.wait();
    host.firn(&["destroy", &id]).finish().expect(0);
}

#[test]
fn an_owner_that_dies_leaves_no_sandbox_when_its_lease_is_over() {
    let host = Host::of(Grade::Jail);
    let mine = ["create", "-i", "jail", "--owner", "ci", "--lease", "3s"];
    for _ in 0..3 {
        let _ = host.firn(&mine).finish().expect(0);
    }
    let other = create(&host, Grade::Jail);
    // As long as it is renewed it stays.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        let _ = host.firn(&["lease", "renew", "ci"]).finish().expect(0);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(
        host.firn(&["list", "--owner", "ci", "--json"]).finish().expect(0).json().as_array().unwrap().len(),
        3
    );
    host.wait_until("the leases have run out", || list(&host).len() == 1);
    assert_eq!(list(&host)[0]["sessionId"], other);
    host.firn(&["destroy", &other]).finish().expect(0);
    host.wait_until("nothing lives", || host.living().is_empty());
}

#[test]
fn a_disk_that_is_full_is_said_and_leaves_nothing() {
    let host = Host::of(Grade::Jail);
    std::fs::create_dir_all(host.state()).unwrap();
    let state = host.state();
    let mount = format!("mount -t tmpfs -o size=24m,mode=0700 none {} && exec \"$@\"", state.display());
    let daemon = host.daemon_under(&["unshare", "-m", "sh", "-c", &mount, "sh"]);
    // The folder as the daemon sees it.
    let seen = format!("/proc/{}/root{}", daemon.pid(), state.display());
    let id = create(&host, Grade::Jail);
    let filling = std::path::Path::new(&seen).join("filling");
    let mut block = vec![0_u8; 4 << 20];
    let mut file = std::fs::File::create(&filling).unwrap();
    while !block.is_empty() {
        if std::io::Write::write_all(&mut file, &block).is_err() {
            block.truncate(block.len() / 2);
        }
    }
    drop(file);
    let mut failed = None;
    for _ in 0..50 {
        let created = host.firn(&["create", "-i", "jail"]).finish();
        if created.code != 0 {
            failed = Some(created);
            break;
        }
    }
    let failed = failed.expect("a full disk is noticed");
    assert!(failed.stderr.contains("full"), "{}", failed.stderr);
    // What was made before can be used, and ended.
    assert_eq!(host.firn(&["exec", &id, "--", "echo", "ok"]).finish().expect(0).text(), "ok\n");
    for sandbox in list(&host) {
        host.firn(&["destroy", sandbox["sessionId"].as_str().unwrap()]).finish().expect(0);
    }
    host.wait_until("nothing lives", || host.living().is_empty());
    assert!(host.sandboxes().is_empty());
    std::fs::remove_file(&filling).unwrap();
    let id = create(&host, Grade::Jail);
    host.firn(&["destroy", &id]).finish().expect(0);
}
