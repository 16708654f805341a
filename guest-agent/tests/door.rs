//! Connections that are handed over as descriptors.

mod agent;

use agent::*;
use firn_protocol::*;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

/// Whether the other end has been closed without a word.
fn is_refused(mut host: Host) -> bool {
    host.frame().is_none()
}

#[test]
fn connections_that_are_handed_over_run_commands_side_by_side() {
    let jailed = Jailed::start();
    let (mut one, mut two) = (jailed.connect(), jailed.connect());
    let (first, _) = one.started(&Exec { stdin: Stdin::Stream, ..sh("read line; echo one $line") });
    // The first waits meanwhile.
    assert_eq!(two.run(&sh("echo two"), b"").text(), "two\n");
    assert_eq!(one.finish(first, Some(b"and only\n")).text(), "one and only\n");
    // A connection ends like any other, and the agent does not end with it.
    drop((one, two));
    assert_eq!(jailed.connect().run(&sh("exit 3"), b"").code(), 3);
}

#[test]
fn the_first_connection_may_wait_at_the_door_with_its_first_request() {
    let mut early = None;
    let jailed = Jailed::start_with(|_, door| {
        let mut host = hand_over(door);
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
fn when_the_door_closes_the_agent_and_all_commands_end() {
    let mut jailed = Jailed::start();
    let mut host = jailed.connect();
    let (_, pid) = host.started(&sh("trap '' TERM HUP; sleep 1000"));
    jailed.door = None;
    assert!(jailed.process.wait().unwrap().success());
    eventually("the command is gone", || !lives(pid));
    assert!(is_refused(host));
}

#[test]
fn a_door_that_closed_before_the_start_is_the_end_too() {
    let mut jailed = Jailed::start_with(|_, door| {
        nix::sys::socket::shutdown(door.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
    });
    assert!(jailed.process.wait().unwrap().success());
}

#[test]
fn packets_that_are_no_connection_do_no_harm() {
    let jailed = Jailed::start();
    let door = jailed.door.as_ref().unwrap();
    let pairs: Vec<_> = (0..6).map(|_| UnixStream::pair().unwrap()).collect();
    let theirs: Vec<_> = pairs.iter().map(|(_, theirs)| theirs.as_raw_fd()).collect();
    let null = File::open("/dev/null").unwrap();
    let (packets, _other) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    hand(door, &[0], &[]);
    hand(door, b"far longer than a packet should be", &[]);
    hand(door, &[0], &[null.as_raw_fd()]);
    hand(door, &[0], &[packets.as_raw_fd()]);
    hand(door, &[0], &[tcp.as_raw_fd()]);
    // The body must be what it should be, and there must be one descriptor: two fit, six do not.
    hand(door, &[1], &theirs[..1]);
    hand(door, &[0, 0], &theirs[..1]);
    hand(door, &[0], &theirs[..2]);
    hand(door, &[0], &theirs);
    for (ours, theirs) in pairs {
        drop(theirs);
        assert!(is_refused(Host::over(ours)));
    }
    assert_eq!(jailed.connect().run(&sh("echo still here"), b"").text(), "still here\n");
    if is_root() {
        // Not readable for another: the agent is not dumpable. All that came has been closed.
        let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", jailed.process.id())).unwrap().count();
        let fresh = Jailed::start();
        fresh.connect().run(&sh("true"), b"");
        let of_fresh = || std::fs::read_dir(format!("/proc/{}/fd", fresh.process.id())).unwrap().count();
        eventually("all that came has been closed", || descriptors() == of_fresh());
    }
}

#[test]
fn too_many_connections_are_closed_and_not_kept() {
    let jailed = Jailed::start();
    let hosts: Vec<_> = (0..256).map(|_| jailed.connect()).collect();
    assert!(is_refused(hand_over(jailed.door.as_ref().unwrap())));
    drop(hosts);
    eventually("there is room again", || hand_over(jailed.door.as_ref().unwrap()).frame().is_some());
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
fn what_is_no_door_is_refused() {
    let (stream, _other) = UnixStream::pair().unwrap();
    let stream = nix::unistd::dup(&stream).unwrap();
    let null = nix::unistd::dup(File::open("/dev/null").unwrap()).unwrap();
    for (fd, code) in [(stream.as_raw_fd(), 1), (null.as_raw_fd(), 1), (987, 1), (2, 2), (-1, 2)] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_firn-agent"))
            .arg("--door-fd")
            .arg(fd.to_string())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{fd}");
        assert!(!output.stderr.is_empty());
    }
}
