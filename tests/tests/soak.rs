//! The same things very often. `make soak` runs all of it, `make test` a sample.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Chance, Grade, Host, both_grades, collect, jail_only};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Kills `firn run` at random moments of its life and checks that the next command leaves nothing.
fn random_kills(grade: Grade, times: u32) {
    let host = Host::of(grade);
    let mut chance = Chance::new();
    let mut cgroups = BTreeSet::<PathBuf>::new();
    let life = match grade {
        Grade::Jail => 500,
        Grade::Vm => 3500,
    };
    for _ in 0..times {
        let mut child = host.run(&["-w", ".", "--", "sh", "-c", "echo x > file; sleep 0.3"]).spawn();
        std::thread::sleep(chance.time(Duration::from_millis(life)));
        cgroups.extend(host.cgroups(&host.sandboxes()));
        child.kill().unwrap();
        let _ = collect(child);
        // The daemon ends what has lost its client.
        host.wait_until("nothing lives", || host.living().is_empty());
    }
    let _ = host.run(&["--", "true"]).finish().expect(0);
    for cgroup in cgroups {
        assert!(!cgroup.exists(), "{} is left", cgroup.display());
    }
    assert!(host.sandboxes().is_empty(), "{:?} are left", host.sandboxes());
    host.assert_clean();
}

/// What a run could leave that outlives it: mounts of the namespace we share with firn, files in the
/// folders it works in, descriptors of ours.
fn traces(host: &Host) -> (BTreeSet<String>, [usize; 4]) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folders = [host.runtime(), host.runtime().join("sandboxes"), host.work(), "/proc/self/fd".into()];
    let count = |dir: PathBuf| fs::read_dir(dir).unwrap().count();
    (mounts.lines().map(str::to_owned).collect(), folders.map(count))
}

/// Runs in pairs, all of which must succeed and leave nothing.
fn many_runs(grade: Grade, pairs: u32) {
    let host = Host::of(grade);
    // The first may keep what it has measured of the host, and make an image.
    let _ = host.run(&["--", "true"]).finish().expect(0);
    // The control: the groups of one that runs are found by its name, where it is given any.
    let id = host.create(&[]);
    let folders = host.sandboxes();
    let groups = host.cgroups(&folders);
    let named = host.status(&id)["cgroup"].as_str().map(PathBuf::from);
    assert!(named.is_none_or(|named| groups.contains(&named)), "{groups:?}");
    let _ = host.firn(&["destroy", &id]).finish().expect(0);
    assert_eq!(host.cgroups(&folders), Vec::<PathBuf>::new());

    let before = traces(&host);
    let mut ids = BTreeSet::new();
    for number in 0..pairs {
        let script = format!("echo {number}; hostname; exit {}", number % 100);
        let children = [0, 1].map(|_| host.run(&["--", "sh", "-c", &script]).spawn());
        for child in children {
            let done = collect(child).expect(i32::try_from(number % 100).unwrap());
            let (first, name) = done.text().trim_end().split_once('\n').unwrap();
            assert_eq!(first, number.to_string());
            assert_eq!(done.complaints(), "");
            // The host name of a sandbox is made from its id, which so is known to be another each time.
            assert!(ids.insert(name.strip_prefix("firn-").unwrap().to_owned()), "{name} came twice");
        }
    }
    assert_eq!(ids.len(), usize::try_from(2 * pairs).unwrap());
    let folders: Vec<PathBuf> = ids.iter().map(PathBuf::from).collect();
    assert_eq!(host.cgroups(&folders), Vec::<PathBuf>::new());
    assert_eq!(before, traces(&host));
    let living = host.living();
    assert!(living.is_empty(), "{living:?}");
}

both_grades!(a_few_random_kills_leave_nothing);
fn a_few_random_kills_leave_nothing(grade: Grade) {
    let times = match grade {
        Grade::Jail => 20,
        Grade::Vm => 5,
    };
    random_kills(grade, times);
}

both_grades!(
    #[ignore = "takes minutes: make soak"]
    soak_random_kills_leave_nothing
);
fn soak_random_kills_leave_nothing(grade: Grade) {
    let times = match grade {
        Grade::Jail => 500,
        Grade::Vm => 100,
    };
    random_kills(grade, times);
}

jail_only!(a_hundred_runs_leave_nothing);
fn a_hundred_runs_leave_nothing() {
    many_runs(Grade::Jail, 50);
}

both_grades!(
    #[ignore = "takes minutes: make soak"]
    soak_many_runs_leave_nothing
);
fn soak_many_runs_leave_nothing(grade: Grade) {
    let pairs = match grade {
        Grade::Jail => 1000,
        Grade::Vm => 100,
    };
    many_runs(grade, pairs);
}
