//! What a sandbox and its host must withstand.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_protocol::{EndedBy, ExitStatus, Kind, Reply, Request};
use firn_tests::{Grade, Host, both_grades, collect, exec, vm_only};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Child;
use std::time::Duration;

fn kill_9(child: &Child) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGKILL).unwrap();
}

// The only bomb without a bound: a guest has a kernel of its own. For jails see `limits.rs`.
vm_only!(a_fork_bomb_hurts_only_the_guest);
fn a_fork_bomb_hurts_only_the_guest() {
    let host = Host::new();
    let bomb = "bomb() { bomb | bomb & }; bomb; sleep 1000";
    let done = host.run(&["--timeout", "5s", "--", "bash", "-c", bomb]).finish();
    assert_eq!(done.code, 124, "{}", done.complaints());
}

both_grades!(a_full_disk_is_the_commands_error);
fn a_full_disk_is_the_commands_error(grade: Grade) {
    let host = Host::of(grade);
    let done = host
        .run(&["--disk", "32M", "--", "sh", "-c", "cat /dev/zero > /fill; echo still here"])
        .finish()
        .expect(0);
    assert_eq!(done.text(), "still here\n");
}

// A jail has no kernel of its own to end.
vm_only!(a_guest_that_ends_itself_is_a_clear_error);
fn a_guest_that_ends_itself_is_a_clear_error() {
    let host = Host::new();
    for last_act in
        ["echo o > /proc/sysrq-trigger", "echo c > /proc/sysrq-trigger", "echo b > /proc/sysrq-trigger"]
    {
        let script = format!("echo 1 > /proc/sys/kernel/sysrq; {last_act}; sleep 1000");
        let done = host.run(&["--", "sh", "-c", &script]).finish().expect(125);
        assert!(done.complaints().contains("the guest ended by itself"), "{last_act}: {}", done.complaints());
    }
}

// As above.
vm_only!(what_a_guest_said_before_it_died_is_not_lost);
fn what_a_guest_said_before_it_died_is_not_lost() {
    let host = Host::new();
    let script = "head -c 3000000 /dev/zero; sleep 1; echo o > /proc/sysrq-trigger; sleep 1000";
    let done = host.run(&["--", "sh", "-c", script]).finish().expect(125);
    assert_eq!(done.stdout.len(), 3_000_000);
}

both_grades!(an_agent_cannot_be_killed_from_inside);
fn an_agent_cannot_be_killed_from_inside(grade: Grade) {
    let host = Host::of(grade);
    let script = "kill -9 1; kill -STOP 1; kill -TERM 1; sleep 0.5; echo alive";
    let done = host.run(&["--", "sh", "-c", script]).finish().expect(0);
    assert_eq!(done.text(), "alive\n");
}

both_grades!(a_command_that_kills_everything_is_over);
fn a_command_that_kills_everything_is_over(grade: Grade) {
    let host = Host::of(grade);
    let done =
        host.run(&["--timeout", "100s", "--", "sh", "-c", "kill -9 -1; kill -9 $PPID; sleep 1000"]).finish();
    assert_eq!(done.code, 128 + 9, "{}", done.complaints());
}

// An agent in a guest can be talked to by whoever may open its socket. That of a jail has none, on
// purpose: many commands in one jail are tested beside the code.
vm_only!(two_hundred_commands_in_one_guest);
fn two_hundred_commands_in_one_guest() {
    let host = Host::new();
    let child = host.run(&["--", "sleep", "1000"]).spawn();
    let mut peer = host.peer();
    let memory = |peer: &mut firn_tests::Peer| match peer.ask(&Request::Stats) {
        Reply::Stats(stats) => stats.agent_rss_bytes,
        other => panic!("{other:?}"),
    };
    let before = memory(&mut peer);
    for number in 0..200 {
        let mut output = Vec::new();
        let exited = peer.run(exec(&["echo", &number.to_string()]), |kind, bytes| {
            assert_eq!(kind, Kind::Stdout);
            output.extend_from_slice(bytes);
        });
        assert_eq!(exited.status, ExitStatus::Code(0));
        assert_eq!(output, format!("{number}\n").as_bytes());
    }
    let after = memory(&mut peer);
    assert!(after < before + 1_000_000, "the agent grew from {before} to {after} bytes");
    assert!(after < 8 << 20, "the agent uses {after} bytes");
    kill_9(&child);
    let _ = collect(child);
    host.firn(&["run", "--", "true"]).finish().expect(0);
}

// As above.
vm_only!(sixteen_commands_at_once_in_one_guest);
fn sixteen_commands_at_once_in_one_guest() {
    let host = Host::new();
    let child = host.run(&["--", "sleep", "1000"]).spawn();
    let peers: Vec<_> = (0..16).map(|_| host.peer()).collect();
    let workers: Vec<_> = peers
        .into_iter()
        .enumerate()
        .map(|(number, mut peer)| {
            std::thread::spawn(move || {
                let script = format!("head -c 1000000 /dev/zero; sleep 0.3; exit {number}");
                let mut bytes = 0;
                let exited = peer.run(exec(&["sh", "-c", &script]), |_, chunk| bytes += chunk.len());
                assert_eq!(
                    (exited.status, bytes),
                    (ExitStatus::Code(i32::try_from(number).unwrap()), 1_000_000)
                );
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    kill_9(&child);
    let _ = collect(child);
    host.run(&["--", "true"]).finish().expect(0);
}

// As above. That a timeout ends all of a jail is tested in `limits.rs`.
vm_only!(a_timeout_ends_everything_the_command_started);
fn a_timeout_ends_everything_the_command_started() {
    let host = Host::new();
    let child = host.run(&["--", "sleep", "1000"]).spawn();
    let mut peer = host.peer();
    let mut slow = exec(&["sh", "-c", "setsid sleep 4711 & sleep 4711"]);
    slow.timeout_ms = Some(500);
    let exited = peer.run(slow, |_, _| {});
    assert_eq!(exited.ended_by, EndedBy::Timeout);
    let mut listing = Vec::new();
    let script = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '";
    peer.run(exec(&["sh", "-c", script]), |_, bytes| listing.extend_from_slice(bytes));
    let listing = String::from_utf8_lossy(&listing).into_owned();
    assert!(!listing.contains("sleep 4711"), "{listing}");
    kill_9(&child);
    let _ = collect(child);
    host.run(&["--", "true"]).finish().expect(0);
}

both_grades!(two_firns_at_once_do_not_disturb_each_other);
fn two_firns_at_once_do_not_disturb_each_other(grade: Grade) {
    let host = Host::of(grade);
    let children: Vec<Child> = (0..3)
        .map(|number| host.run(&["--", "sh", "-c", &format!("sleep 1; echo {number}")]).spawn())
        .collect();
    for (number, child) in children.into_iter().enumerate() {
        assert_eq!(collect(child).expect(0).text(), format!("{number}\n"));
    }
}

/// Kills a `firn run` when `ready` says so and checks that the next command leaves nothing of it.
fn killed_at(grade: Grade, when: &str, ready: impl Fn(&Host) -> bool) {
    let host = Host::of(grade);
    let mut child =
        host.run(&["-w", ".", "--", "sh", "-c", "echo started > /workspace/started; sleep 1000"]).spawn();
    host.wait_until(when, || ready(&host) || child.try_wait().unwrap().is_some());
    let cgroups = host.cgroups(&host.sandboxes());
    kill_9(&child);
    let _ = collect(child);
    // Its helpers die with it, without anybody's help.
    let helpers = |line: &String| line.contains("sockets");
    host.wait_until("the helpers are gone", || {
        host.living().is_empty() && !host.processes().iter().any(helpers)
    });
    // The rest goes with the next command.
    host.run(&["--", "true"]).finish().expect(0);
    for cgroup in cgroups {
        assert!(!cgroup.exists(), "{} is left", cgroup.display());
    }
    host.assert_clean();
}

both_grades!(kill_9_at_once_leaves_nothing);
fn kill_9_at_once_leaves_nothing(grade: Grade) {
    killed_at(grade, "at once", |_| true);
}

both_grades!(kill_9_when_the_place_is_made_leaves_nothing);
fn kill_9_when_the_place_is_made_leaves_nothing(grade: Grade) {
    killed_at(grade, "the place is made", |host| !host.sandboxes().is_empty());
}

// A jail has no such moments that could be seen from outside; `soak.rs` kills at random ones.
vm_only!(kill_9_when_the_helpers_start_leaves_nothing);
fn kill_9_when_the_helpers_start_leaves_nothing() {
    killed_at(Grade::Vm, "virtiofsd is started", |host| {
        host.sandboxes().first().is_some_and(|sandbox| sandbox.join("sockets/base").exists())
    });
}

vm_only!(kill_9_while_it_boots_leaves_nothing);
fn kill_9_while_it_boots_leaves_nothing() {
    killed_at(Grade::Vm, "the guest boots", |host| {
        let sandboxes = host.sandboxes();
        let booting = sandboxes.first().is_some_and(|sandbox| sandbox.join("sockets/vsock").exists());
        if booting {
            std::thread::sleep(Duration::from_millis(300));
        }
        booting
    });
}

both_grades!(kill_9_while_the_command_runs_leaves_nothing);
fn kill_9_while_the_command_runs_leaves_nothing(grade: Grade) {
    killed_at(grade, "the command runs", |host| host.work().join("started").exists());
}
