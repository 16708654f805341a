//! Commands: how they start, what they see, what comes back.

mod agent;

use agent::*;
use firn_protocol::*;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

#[test]
fn exit_codes_and_signals_come_back() {
    let agent = Agent::start();
    for code in [0, 1, 127, 255] {
        assert_eq!(agent.sh(&format!("exit {code}")).code(), code);
    }
    let killed = agent.sh("kill -TERM $$");
    assert_eq!(killed.exited().status, ExitStatus::Signal(15));
    assert_eq!(killed.exited().ended_by, EndedBy::Itself);
    assert_eq!(agent.sh("kill -40 $$").exited().status, ExitStatus::Signal(40));
}

#[test]
fn an_exit_carries_what_it_took() {
    let agent = Agent::start();
    let run = agent.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; printf abc; printf de >&2");
    let exited = run.exited();
    assert!(exited.duration_us > 0 && exited.user_us + exited.system_us > 0, "{exited:?}");
    assert!(exited.max_rss_bytes > 100_000, "{exited:?}");
    assert_eq!((exited.stdout_bytes, exited.stderr_bytes, exited.truncated), (3, 2, false));
    assert!(run.pid.is_some());
}

#[test]
fn streams_are_separate_and_hold_any_bytes() {
    let agent = Agent::start();
    let run = agent.sh(r"printf 'a\000b\377c'; printf 'no newline\200' >&2");
    assert_eq!(run.stdout, b"a\0b\xffc");
    assert_eq!(run.stderr, b"no newline\x80");
}

#[test]
fn a_hundred_megabytes_on_both_streams_at_once() {
    let agent = Agent::start();
    let size = 100 * 1024 * 1024;
    let run = agent.sh(&format!("head -c {size} /dev/zero >&2 & head -c {size} /dev/zero; wait"));
    assert_eq!((run.code(), run.stdout.len(), run.stderr.len()), (0, size, size));
    assert_eq!(run.exited().stdout_bytes, size as u64);
}

#[test]
fn output_beyond_the_cap_is_dropped_and_counted() {
    let agent = Agent::start();
    let mut exec = sh("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2");
    exec.max_output_bytes = Some(1_500_000);
    let run = agent.connect().run(&exec, b"");
    let exited = run.exited();
    assert_eq!(run.stdout.len() + run.stderr.len(), 1_500_000);
    assert_eq!((exited.stdout_bytes, exited.stderr_bytes, exited.truncated), (1_000_000, 1_000_000, true));
    exec.max_output_bytes = Some(2_000_000);
    assert!(!agent.connect().run(&exec, b"").exited().truncated);
}

#[test]
fn the_environment_is_the_request_over_the_defaults_and_nothing_else() {
    let agent = Agent::start();
    let mut exec = exec(["env"]);
    exec.env = vec![
        variable("HOME", "/h"),
        variable("A", "1"),
        variable("A", "b=2"),
        variable("USER", "u"),
        variable("LOGNAME", "l"),
        variable("SHELL", "s"),
    ];
    let run = agent.connect().run(&exec, b"");
    let text = run.text();
    let seen: BTreeSet<_> = text.lines().collect();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let expected = ["HOME=/h", "A=b=2", "USER=u", "LOGNAME=l", "SHELL=s", "LANG=C.UTF-8", path];
    assert_eq!(seen, BTreeSet::from(expected));
}

#[test]
fn the_program_is_looked_up_in_the_commands_own_path() {
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    // A temporary folder is its owner's alone; the command here runs as the same user.
    std::fs::copy("/bin/echo", folder.path().join("only-here")).unwrap();
    let mut exec = exec(["only-here", "hi"]);
    assert_eq!(
        agent.connect().run(&exec, b"").not_started().reason,
        NotStartedReason::NotFound,
        "the default path does not lead there"
    );
    let path = format!("/nowhere:{}", folder.path().display());
    exec.env = vec![variable("PATH", &path)];
    assert_eq!(agent.connect().run(&exec, b"").text(), "hi\n");
}

#[test]
fn the_command_starts_where_it_is_told() {
    let agent = Agent::start();
    let mut exec = exec(["pwd"]);
    assert_eq!(agent.connect().run(&exec, b"").text(), "/\n");
    exec.cwd = Some("/usr/bin".into());
    assert_eq!(agent.connect().run(&exec, b"").text(), "/usr/bin\n");
}

#[test]
fn arguments_need_not_be_utf8() {
    let agent = Agent::start();
    let argument = OsString::from_vec(vec![0xff, b'x']);
    let run = agent.connect().run(&exec([OsString::from("printf"), "%s".into(), argument]), b"");
    assert_eq!(run.stdout, [0xff, b'x']);
}

#[test]
fn a_command_gets_three_descriptors_and_default_signals() {
    let agent = Agent::start();
    // A second connection and command, so that the agent has more to leak.
    let mut other = agent.connect();
    other.started(&sh("sleep 1000"));
    let run = agent.sh("ls -l /proc/self/fd; cat /proc/self/status");
    let text = run.text();
    let descriptors = text.lines().filter(|line| line.contains(" -> ")).count();
    // The fourth is the folder that ls reads.
    assert_eq!(descriptors, 4, "{text}");
    for (field, value) in [("SigBlk:", 0), ("SigIgn:", 0)] {
        let mask = text.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim();
        assert_eq!(u64::from_str_radix(mask, 16).unwrap(), value, "{field}");
    }
}

#[test]
fn what_cannot_start_says_why() {
    use NotStartedReason as Reason;
    let agent = Agent::start();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.into_os_string()
    };
    let huge = "x".repeat(130 * 1024);
    let cases: Vec<(Exec, Reason)> = vec![
        (exec(["no-such-program"]), Reason::NotFound),
        (exec(["/no/such/program"]), Reason::NotFound),
        (exec([""]), Reason::NotFound),
        (exec(["/etc/passwd/x"]), Reason::NotFound),
        (exec([file("lost", "#!/no/such/interpreter\n", 0o755)]), Reason::NotFound),
        (exec([file("plain", "#!/bin/sh\n", 0o644)]), Reason::NotExecutable),
        (exec([file("no-format", "echo hi\n", 0o755)]), Reason::NotExecutable),
        (exec(["/usr"]), Reason::NotExecutable),
        (Exec { cwd: Some("/no/such/folder".into()), ..sh("true") }, Reason::BadWorkingDirectory),
        (Exec { cwd: Some("/etc/passwd".into()), ..sh("true") }, Reason::BadWorkingDirectory),
        (Exec { cwd: Some("usr".into()), ..sh("true") }, Reason::BadWorkingDirectory),
        (Exec { user: Some("no-such-user".into()), ..sh("true") }, Reason::UnknownUser),
        (Exec { user: Some("root:no-such-group".into()), ..sh("true") }, Reason::UnknownUser),
        (Exec { user: Some("4294967295".into()), ..sh("true") }, Reason::UnknownUser),
        (exec(Vec::<&str>::new()), Reason::InvalidArgument),
        (exec(["echo", "a\0b"]), Reason::InvalidArgument),
        (
            exec(std::iter::once("echo").chain(std::iter::repeat_n(huge.as_str(), 20))),
            Reason::InvalidArgument,
        ),
        (Exec { env: vec![variable("", "x")], ..sh("true") }, Reason::InvalidArgument),
        (Exec { env: vec![variable("a=b", "x")], ..sh("true") }, Reason::InvalidArgument),
        (Exec { env: vec![variable("a", "\0")], ..sh("true") }, Reason::InvalidArgument),
    ];
    let mut host = agent.connect();
    for (exec, reason) in cases {
        let run = host.run(&exec, b"");
        assert_eq!(run.not_started().reason, reason, "{:?}: {:?}", exec.argv.first(), run.reply);
        assert!(run.pid.is_none() && !run.not_started().message.is_empty());
    }
    let lost = host.run(&exec([folder.path().join("lost").into_os_string()]), b"");
    assert!(lost.not_started().message.contains("interpreter"), "{lost:?}");
    assert_eq!(host.run(&sh("exit 127"), b"").code(), 127);
}

#[test]
fn a_command_runs_as_the_user_asked_for() {
    let agent = Agent::start();
    let as_user = |user: &str| {
        let script = "id -u; id -g; id -G; echo $HOME $USER; umask";
        agent.connect().run(&Exec { user: Some(user.into()), ..sh(script) }, b"")
    };
    if is_root() {
        assert_eq!(as_user("1234:2345").text(), "1234\n2345\n2345\n/ 1234\n0022\n");
        let nobody = as_user("nobody").text();
        assert!(nobody.starts_with("65534\n65534\n65534\n"), "{nobody}");
        assert!(as_user("root").text().contains("/root root"));
    } else {
        let own = nix::unistd::geteuid().to_string();
        let uid = format!("{own}:{}", nix::unistd::getegid());
        assert!(as_user(&uid).text().starts_with(&own));
        assert_eq!(as_user("0:0").not_started().reason, NotStartedReason::Other);
    }
}

#[test]
fn stats_and_ping_are_answered() {
    let agent = Agent::start();
    let mut busy = agent.connect();
    busy.started(&sh("sleep 1000"));
    let mut host = agent.connect();
    assert_eq!(host.ask(&Request::Ping), Reply::Pong);
    let Reply::Stats(stats) = host.ask(&Request::Stats) else { panic!() };
    assert_eq!(stats.commands, 1);
    assert!(stats.uptime_ms > 0 && stats.memory_available_bytes > 0, "{stats:?}");
    assert!(stats.memory_total_bytes >= stats.memory_available_bytes);
    assert!(stats.agent_rss_bytes > 100_000 && stats.agent_rss_bytes < 64 << 20, "{stats:?}");
}
