//! However a command ends, nothing of it is left and nobody waits for ever.

mod agent;

use agent::*;
use firn_protocol::*;

fn pids(text: &str) -> Vec<u32> {
    text.split_whitespace().map(|pid| pid.parse().expect("a process id")).collect()
}

#[test]
fn a_timeout_ends_a_command_that_floods_its_output() {
    let agent = Agent::start();
    let run = agent.connect().run(&Exec { timeout_ms: Some(300), ..exec(["yes"]) }, b"");
    assert_eq!(run.exited().ended_by, EndedBy::Timeout);
    assert_eq!(run.exited().status, ExitStatus::Signal(9));
    assert_eq!(run.exited().stdout_bytes, run.stdout.len() as u64);
    assert!(!lives(run.pid.unwrap()));
}

#[test]
fn a_timeout_works_while_the_host_does_not_read() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (id, pid) = host.started(&Exec { timeout_ms: Some(300), ..exec(["yes"]) });
    eventually("the command is killed", || !lives(pid));
    assert_eq!(host.finish(id, None).exited().ended_by, EndedBy::Timeout);
}

#[test]
fn a_background_child_that_holds_the_pipe_does_not_hold_the_reply() {
    let agent = Agent::start();
    let run = agent.sh("sleep 1000 & echo $!");
    assert_eq!(run.code(), 0);
    assert!(!lives(pids(&run.text())[0]));
}

#[test]
fn a_daemon_that_left_session_and_parent_is_gone_with_the_reply() {
    let agent = Agent::start();
    // setsid forks when it must; the subshell's end makes the daemon an orphan at once.
    let run =
        agent.sh("(setsid sh -c 'echo $$; trap \"\" TERM HUP; sleep 1000 & echo $!; wait' &); sleep 0.3");
    let daemons = pids(&run.text());
    assert_eq!(daemons.len(), 2);
    assert!(daemons.iter().all(|pid| !lives(*pid)), "{daemons:?}");
}

#[test]
fn hundreds_of_orphans_are_reaped_while_the_command_runs() {
    let agent = Agent::start();
    let run = agent.sh("i=0; while [ $i -lt 300 ]; do (sleep 0.01 &); i=$((i+1)); done; sleep 0.3; \
         cat /proc/[0-9]*/stat 2>/dev/null | grep \") Z $PPID \" | wc -l");
    assert_eq!(run.text().trim(), "0");
}

#[test]
fn a_fork_bomb_ends_with_its_timeout() {
    if !is_root() {
        // Without a user of its own the bomb would use up this user's processes.
        return;
    }
    let agent = Agent::start();
    let bomb = "b() { while :; do b | b & sleep 0.01; done; }; b 2>/dev/null & exec sleep 1000";
    let bomb = exec(["prlimit", "--nproc=100:100", "sh", "-c", bomb]);
    let exec = Exec { user: Some("54321:54321".into()), timeout_ms: Some(1000), ..bomb };
    let run = agent.connect().run(&exec, b"");
    assert_eq!(run.exited().ended_by, EndedBy::Timeout);
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        use std::os::unix::fs::MetadataExt as _;
        entry.metadata().is_ok_and(|metadata| metadata.uid() == 54321)
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn signals_reach_the_commands_process_group() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (id, _) =
        host.started(&sh("trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.05; done"));
    host.until("ready");
    host.input(id, Input::Signal { signal: 10 });
    let run = host.finish(id, None);
    assert_eq!((run.code(), run.text().as_str()), (7, "caught\n"));
    assert_eq!(run.exited().ended_by, EndedBy::Itself);

    let (id, _) = host.started(&sh("sleep 1000; echo unreached"));
    host.input(id, Input::Signal { signal: 15 });
    assert_eq!(host.finish(id, None).exited().status, ExitStatus::Signal(15));
}

#[test]
fn a_dropped_connection_ends_the_command_and_all_it_started() {
    let agent = Agent::start();
    let mut host = agent.connect();
    host.started(&sh("sleep 1000 & setsid sleep 1000 & echo $! $$; wait"));
    let commands = pids(&host.until("\n"));
    assert!(commands.iter().all(|pid| lives(*pid)));
    drop(host);
    eventually("the commands are gone", || commands.iter().all(|pid| !lives(*pid)));
    eventually(
        "the agent counts none",
        || matches!(agent.connect().ask(&Request::Stats), Reply::Stats(stats) if stats.commands == 0),
    );
}

#[test]
fn commands_end_with_the_agent() {
    let mut agent = Agent::start();
    let mut host = agent.connect();
    host.started(&sh("setsid sleep 1000 & echo $! $$; wait"));
    let commands = pids(&host.until("\n"));
    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    eventually("the commands are gone", || commands.iter().all(|pid| !lives(*pid)));
}

#[test]
fn a_command_that_kills_its_supervisor_is_over_itself() {
    let agent = Agent::start();
    let mut other = agent.connect();
    let (other_id, other_pid) = other.started(&sh("sleep 1000"));
    let mut host = agent.connect();
    let id = host.start(&sh("setsid sleep 1000 & echo $! $$; sleep 0.2; kill -9 $PPID; sleep 1000"));
    let run = host.finish(id, None);
    assert_eq!(run.exited().status, ExitStatus::Signal(9));
    assert!(pids(&run.text()).iter().all(|pid| !lives(*pid)), "{}", run.text());
    assert!(lives(other_pid), "another command is none of its business");
    assert_eq!(host.run(&sh("exit 5"), b"").code(), 5);
    other.input(other_id, Input::Cancel);
    assert_eq!(other.finish(other_id, None).exited().ended_by, EndedBy::Cancel);
}

#[test]
fn a_command_that_stops_its_supervisor_gains_nothing() {
    let agent = Agent::start();
    let run = agent.sh("echo $$; kill -STOP $PPID; sleep 1000");
    assert_eq!(run.exited().status, ExitStatus::Signal(9));
    assert!(!lives(pids(&run.text())[0]));
}

#[test]
fn two_hundred_commands_leave_nothing_in_the_agent() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let usage = |host: &mut Host| {
        let Reply::Stats(stats) = host.ask(&Request::Stats) else { panic!() };
        // Not readable for a user other than root: the agent is not dumpable.
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).map(Iterator::count);
        (stats.agent_rss_bytes, descriptors.unwrap_or(0))
    };
    for _ in 0..50 {
        host.run(&exec(["true"]), b"");
    }
    let (rss, descriptors) = usage(&mut host);
    for _ in 0..200 {
        assert_eq!(host.run(&exec(["true"]), b"").code(), 0);
    }
    let (rss_after, descriptors_after) = usage(&mut host);
    assert_eq!(descriptors_after, descriptors);
    assert!(rss_after <= rss + 256 * 1024, "{rss} -> {rss_after}");
}

#[test]
fn sixteen_at_once() {
    let agent = Agent::start();
    std::thread::scope(|scope| {
        for number in 0..16 {
            let agent = &agent;
            scope.spawn(move || {
                let mut host = agent.connect();
                for _ in 0..10 {
                    let run = host.run(&sh(&format!("echo {number}; exit {number}")), b"");
                    assert_eq!((run.text(), run.code()), (format!("{number}\n"), number));
                }
            });
        }
    });
}

#[test]
fn shutdown_ends_the_commands_and_then_the_agent() {
    let mut agent = Agent::start();
    let mut busy = agent.connect();
    let (id, pid) = busy.started(&sh("trap '' TERM; sleep 1000"));
    assert_eq!(agent.connect().ask(&Request::Shutdown), Reply::ShuttingDown);
    assert_eq!(busy.finish(id, None).exited().ended_by, EndedBy::Cancel);
    assert!(!lives(pid));
    eventually("the agent is gone", || agent.process.try_wait().unwrap().is_some());
    assert!(agent.process.wait().unwrap().success());
}
