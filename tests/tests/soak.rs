//! The same things very often. `make soak` runs all of it, `make test` a sample.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Host, collect};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Kills `firn run` at random moments of its life and checks that the next command leaves nothing.
fn random_kills(times: u32) {
    let host = Host::new();
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    let mut state = seed;
    let mut cgroups = BTreeSet::<PathBuf>::new();
    for _ in 0..times {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut child = host.run(&["-w", ".", "--", "sh", "-c", "echo x > file; sleep 0.3"]).spawn();
        std::thread::sleep(Duration::from_millis(state % 3500));
        cgroups.extend(host.cgroups(&host.sandboxes()));
        child.kill().unwrap();
        let _ = collect(child);
    }
    let _ = host.run(&["--", "true"]).finish().expect(0);
    for cgroup in cgroups {
        assert!(!cgroup.exists(), "seed {seed}: {} is left", cgroup.display());
    }
    assert!(host.sandboxes().is_empty(), "seed {seed}: {:?} are left", host.sandboxes());
    host.assert_clean();
}

/// Runs in pairs, all of which must succeed.
fn many_runs(pairs: u32) {
    let host = Host::new();
    for number in 0..pairs {
        let script = format!("echo {number}; exit {}", number % 100);
        let children = [0, 1].map(|_| host.run(&["--", "sh", "-c", &script]).spawn());
        for child in children {
            let done = collect(child).expect(i32::try_from(number % 100).unwrap());
            assert_eq!(done.text(), format!("{number}\n"));
        }
    }
}

#[test]
fn a_few_random_kills_leave_nothing() {
    random_kills(5);
}

#[test]
#[ignore = "takes minutes: make soak"]
fn soak_random_kills_leave_nothing() {
    random_kills(100);
}

#[test]
#[ignore = "takes minutes: make soak"]
fn soak_two_hundred_runs_succeed() {
    many_runs(100);
}
