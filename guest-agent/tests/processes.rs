//! The list of processes.

mod agent;

use agent::*;
use firn_protocol::*;

fn processes(agent: &Agent) -> Processes {
    match agent.connect().ask(&Request::Processes) {
        Reply::Processes(processes) => processes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_command_started_is_listed_and_the_agent_is_not() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let long = "ä".repeat(1000);
    let script = format!("sleep 1000 & sh -c 'echo ready; sleep 999; : {long}' & wait");
    let (_, pid) = host.started(&sh(&script));
    host.until("ready");
    // Both have been made, but the first may not have become what it will be.
    eventually("sleep has been executed", || {
        let processes = processes(&agent).processes;
        processes.iter().any(|process| process.parent == pid && process.name.as_bytes() == b"sleep 1000")
    });
    let Processes { processes, truncated } = processes(&agent);
    assert!(!truncated);
    assert!(processes.is_sorted_by_key(|process| process.pid));
    let own = |process: &&ProcessInfo| process.pid == pid;
    let shell = processes.iter().find(own).expect("the command is listed");
    assert_eq!((shell.parent, shell.state.len()), (0, 1));
    assert_eq!(shell.user, nix::unistd::geteuid().as_raw());
    assert!(shell.rss_bytes > 0 && shell.started_ms > 0);
    assert!(shell.name.as_bytes().starts_with(b"sh -c sleep 1000 & sh"));
    let children: Vec<_> = processes.iter().filter(|process| process.parent == pid).collect();
    let inner =
        children.iter().find(|child| child.name.as_bytes().starts_with(b"sh -c echo")).expect("a shell");
    assert!(inner.name.as_bytes().len() <= 256);
    assert!(inner.name.as_os_str().to_str().is_some(), "cut between characters");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let supervisor = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
    assert!(!processes.iter().any(|process| Some(process.pid) == supervisor));
    assert!(!processes.iter().any(|process| process.pid == agent.pid()));
}

#[test]
fn workers_are_reaped_and_nothing_waits_for_them() {
    let agent = Agent::start();
    let mut host = agent.connect();
    for _ in 0..20 {
        assert!(matches!(host.ask(&Request::Processes), Reply::Processes(_)));
    }
    // A zombie or a worker would be a child of the agent's.
    let children = || {
        let path = format!("/proc/{0}/task/{0}/children", agent.pid());
        std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
    };
    eventually("all are gone", || children().is_empty());
    assert_eq!(host.run(&sh("exit 3"), b"").code(), 3);
}

#[test]
fn frames_that_must_not_be_end_the_connection() {
    let agent = Agent::start();
    for wrong in [Frame::new(Kind::Stdout, 1, &b"x"[..]), Frame::new(Kind::Stdin, 2, &b"x"[..])] {
        let mut host = agent.connect();
        host.request(&Request::Processes);
        host.send_frame(wrong);
        // Or it is late already; then the next must not be either.
        while host.frame().is_some() {}
    }
}
