//! An agent that inherits the socket it listens on.

mod agent;

use agent::*;
use firn_protocol::*;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

#[test]
fn commands_run_side_by_side() {
    let jailed = Jailed::start();
    let (mut one, mut two) = (jailed.connect(), jailed.connect());
    let (first, _) = one.started(&Exec { stdin: Stdin::Stream, ..sh("read line; echo one $line") });
    // The first waits meanwhile.
    assert_eq!(two.run(&sh("echo two"), b"").text(), "two\n");
    assert_eq!(one.finish(first, Some(b"and only\n")).text(), "one and only\n");
}

#[test]
fn the_first_connection_may_wait_with_its_first_request() {
    let mut early = None;
    let jailed = Jailed::start_with(|_, path| {
        let mut host = Host::over(UnixStream::connect(path).unwrap());
        let hello = Hello { protocol: PROTOCOL_VERSION, software: "test".into(), capabilities: Vec::new() };
        host.send(Kind::Hello, 0, &hello);
        let id = host.start(&sh("echo early"));
        early = Some((host, id));
    });
    let (mut host, id) = early.unwrap();
    assert_eq!(host.frame().unwrap().kind, Kind::Hello);
    assert_eq!(host.finish(id, None).text(), "early\n");
    drop(jailed);
}

#[test]
fn the_agent_outlives_all_connections_and_their_commands_do_not() {
    let mut jailed = Jailed::start();
    let mut host = jailed.connect();
    let (_, pid) = host.started(&sh("trap '' TERM HUP; sleep 1000"));
    drop(host);
    eventually("the command is gone", || !lives(pid));
    assert_eq!(jailed.connect().run(&sh("exit 3"), b"").code(), 3);
    assert_eq!(jailed.connect().ask(&Request::Shutdown), Reply::ShuttingDown);
    assert!(jailed.process.wait().unwrap().success());
}

#[test]
fn commands_do_not_inherit_the_socket() {
    let jailed = Jailed::start();
    let text = jailed.connect().run(&sh("ls -l /proc/self/fd"), b"").text();
    assert!(!text.contains("socket:"), "{text}");
}

#[test]
fn nothing_of_the_start_is_left_in_the_agent() {
    // Without close-on-exec, as a careless starter would leave it.
    let leak = nix::unistd::dup(File::open("/etc/passwd").unwrap()).unwrap();
    let jailed = Jailed::start_with(|command, _| {
        command.env("FIRN_LEAK", "secret");
    });
    let mut host = jailed.connect();
    let text = host.run(&sh("env; ls -l /proc/self/fd; cat /proc/$PPID/environ"), b"").text();
    assert!(!text.contains("FIRN_LEAK") && !text.contains("secret"), "{text}");
    assert!(!text.contains("/etc/passwd"), "{text}");
    let process = format!("/proc/{}", jailed.process.id());
    if is_root() {
        // Root of the system may look, and there is nothing to be seen.
        let environ = std::fs::read(format!("{process}/environ")).unwrap();
        assert!(environ.iter().all(|byte| *byte == 0), "{environ:?}");
        let open = std::fs::read_dir(format!("{process}/fd")).unwrap().flatten();
        assert!(
            !open
                .map(|entry| std::fs::read_link(entry.path()))
                .any(|link| { link.is_ok_and(|link| link.ends_with("passwd")) })
        );
    } else {
        assert!(std::fs::read(format!("{process}/environ")).is_err());
        assert!(std::fs::read_dir(format!("{process}/fd")).is_err());
    }
    drop(leak);
}

#[test]
fn closed_standard_streams_are_nobody_elses_in_the_agent() {
    let jailed = Jailed::start_with(|command, _| {
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", "exec \"$0\" \"$@\" <&- >&- 2>&-"]).arg(command.get_program());
        shell.args(command.get_args()).env_clear();
        *command = shell;
    });
    let run = jailed.connect().run(&sh("echo out; echo err >&2"), b"");
    assert_eq!((run.stdout.as_slice(), run.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
}

#[test]
fn what_is_no_listening_unix_socket_is_refused() {
    let (stream, _other) = UnixStream::pair().unwrap();
    let stream = nix::unistd::dup(&stream).unwrap();
    let tcp = nix::unistd::dup(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let null = nix::unistd::dup(File::open("/dev/null").unwrap()).unwrap();
    let fds =
        [(stream.as_raw_fd(), 1), (tcp.as_raw_fd(), 1), (null.as_raw_fd(), 1), (987, 1), (2, 2), (-1, 2)];
    for (fd, code) in fds {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_firn-agent"))
            .arg("--listen-fd")
            .arg(fd.to_string())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{fd}");
        assert!(!output.stderr.is_empty());
    }
}
