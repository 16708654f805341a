//! What a command may have, and what goes first when there is no more.

mod agent;

use agent::*;
use firn_protocol::*;

fn limited(script: &str, limits: &[(Resource, u64)]) -> Exec {
    let resource_limits =
        limits.iter().map(|(resource, value)| ResourceLimit { resource: *resource, value: *value }).collect();
    Exec { resource_limits, ..sh(script) }
}

/// The soft and the hard limit of `/proc/PID/limits` by its name there.
fn limit<'a>(text: &'a str, name: &str) -> [&'a str; 2] {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    let mut words = line.split_whitespace();
    [words.next().expect("a soft limit"), words.next().expect("a hard limit")]
}

#[test]
fn a_command_is_limited_and_the_agent_is_not() {
    let agent = Agent::start();
    let limits = [
        (Resource::Data, 256 << 20),
        (Resource::Processes, 4321),
        (Resource::FileSize, 1 << 20),
        (Resource::OpenFiles, 50),
        (Resource::Cpu, 30),
        (Resource::Core, 0),
    ];
    let mut host = agent.connect();
    let text = host.run(&limited("cat /proc/self/limits", &limits), b"").text();
    for (name, value) in [
        ("Max data size", "268435456"),
        ("Max processes", "4321"),
        ("Max file size", "1048576"),
        ("Max open files", "50"),
        ("Max cpu time", "30"),
        ("Max core file size", "0"),
    ] {
        assert_eq!(limit(&text, name), [value, value], "{text}");
    }
    let text = host.run(&sh("cat /proc/self/limits"), b"").text();
    assert_ne!(limit(&text, "Max open files")[1], "50", "{text}");
}

#[test]
fn a_limit_is_never_raised() {
    let agent = Agent::start();
    let limits = [(Resource::OpenFiles, 100), (Resource::OpenFiles, u64::MAX), (Resource::OpenFiles, 200)];
    let text = agent.connect().run(&limited("cat /proc/self/limits", &limits), b"").text();
    assert_eq!(limit(&text, "Max open files"), ["100", "100"], "{text}");
}

#[test]
fn what_a_command_starts_is_limited_too() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let script = format!("(head -c 5000 /dev/zero >{}) 2>/dev/null; echo done", file.display());
    let run = agent.connect().run(&limited(&script, &[(Resource::FileSize, 1000)]), b"");
    assert_eq!(run.text(), "done\n");
    assert_eq!(std::fs::metadata(file).unwrap().len(), 1000);
}

#[test]
fn a_user_who_is_one_process_too_many_can_still_be_started() {
    if !is_root() {
        return;
    }
    let agent = Agent::start();
    let as_other = |exec: Exec| Exec { user: Some("54322:54322".into()), ..exec };
    let (mut busy, mut host) = (agent.connect(), agent.connect());
    busy.started(&as_other(exec(["sleep", "1000"])));
    let one = [(Resource::Processes, 1)];
    assert_eq!(host.run(&as_other(limited("echo one too many", &one)), b"").text(), "one too many\n");
    assert_eq!(host.run(&as_other(limited("(echo forked) & wait", &one)), b"").text(), "");
}

#[test]
fn a_command_dies_before_the_agent_when_memory_is_short() {
    let agent = Agent::start();
    // An ordinary user's agent can mark a command only once it runs.
    let script = "until read score </proc/self/oom_score_adj && [ $score = 1000 ]; do sleep 0.01; done; \
                  sh -c 'cat /proc/self/oom_score_adj'; cat /proc/$PPID/oom_score_adj";
    let run = agent.sh(script);
    let own = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", agent.pid())).unwrap();
    assert_eq!(run.text(), format!("1000\n{own}"));
    assert!(run.exited().exceeded.is_empty(), "nothing is counted without a control group");
}
