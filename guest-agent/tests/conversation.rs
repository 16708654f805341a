//! The connection itself: what is refused, and how.

mod agent;

use agent::*;
use firn_protocol::*;
use std::io::Write as _;

fn is_closed(mut host: Host) -> bool {
    loop {
        match host.frame() {
            None => return true,
            Some(frame) if frame.kind == Kind::Reply => return false,
            Some(_) => {}
        }
    }
}

#[test]
fn the_agent_speaks_first_and_says_what_it_can() {
    let agent = Agent::start();
    let hello = agent.connect_silently().greet(PROTOCOL_VERSION);
    assert_eq!(hello.protocol, PROTOCOL_VERSION);
    assert!(hello.software.starts_with("firn-agent "));
    assert_eq!(
        hello.capabilities,
        ["exec", "pty", "stats", "shutdown", "limits", "keep", "processes", "files", "sessions"]
    );
}

#[test]
fn another_version_is_refused() {
    let agent = Agent::start();
    let mut host = agent.connect_silently();
    host.greet(PROTOCOL_VERSION + 1);
    assert!(is_closed(host));
}

#[test]
fn a_request_before_the_hello_is_refused() {
    let agent = Agent::start();
    let mut host = agent.connect_silently();
    host.request(&Request::Ping);
    assert!(is_closed(host));
}

#[test]
fn malformed_frames_close_the_connection() {
    let agent = Agent::start();
    for wire in [
        &[0, 0, 0, 5, 0xee, 0, 0, 0, 1][..],
        &[0, 0, 0, 1, 0x10],
        &[0xff, 0xff, 0xff, 0xff, 0x12],
        &[0, 0, 0, 8, 0x10, 0, 0, 0, 1, b'{', b'{', b'{'],
        &[0, 0, 0, 5, 0x21, 0, 0, 0, 1],
    ] {
        let mut host = agent.connect();
        host.stream.write_all(wire).unwrap();
        assert!(is_closed(host), "{wire:?}");
    }
    let mut host = agent.connect();
    host.send(Kind::Request, 1, &serde_json::json!({"type": "exec", "argv": 7}));
    assert!(is_closed(host));
}

#[test]
fn an_unknown_request_is_an_error_and_no_more() {
    let agent = Agent::start();
    let mut host = agent.connect();
    host.send(Kind::Request, 77, &serde_json::json!({"type": "teleport", "to": "moon"}));
    let Reply::Error(failure) = host.reply(77) else { panic!() };
    assert_eq!(failure.code, FailureCode::Unsupported);
    assert!(failure.message.contains("teleport"));
    assert_eq!(host.ask(&Request::Ping), Reply::Pong);
}

#[test]
fn a_plain_agent_has_nothing_to_configure() {
    let agent = Agent::start();
    let configure = Configure {
        hostname: "x".into(),
        unix_time_ns: 0,
        entropy: "0123456789abcdef0123456789abcdef".into(),
        root: None,
        mounts: Vec::new(),
        processes: None,
    };
    let mut host = agent.connect();
    let Reply::Error(failure) = host.ask(&Request::Configure(Box::new(configure))) else { panic!() };
    assert_eq!(failure.code, FailureCode::Unsupported);
    assert_eq!(host.ask(&Request::Ping), Reply::Pong);
}

#[test]
fn foreign_frames_during_an_exec_end_both() {
    let agent = Agent::start();
    let wrong: [fn(&mut Host, RequestId); 6] = [
        |host, id| host.stdin(id + 1, b"x"),
        |host, id| host.send(Kind::Request, id + 1, &Request::Ping),
        |host, id| host.send(Kind::Request, id, &Request::Ping),
        |host, id| host.send_frame(Frame::new(Kind::Stdout, id, &b"x"[..])),
        |host, id| host.input(id, Input::Signal { signal: 65 }),
        |host, id| host.send(Kind::Input, id, &serde_json::json!({"type": "dance"})),
    ];
    for wrong in wrong {
        let mut host = agent.connect();
        let (id, pid) = host.started(&Exec { stdin: Stdin::Stream, ..sh("sleep 1000") });
        wrong(&mut host, id);
        assert!(is_closed(host));
        assert!(!lives(pid));
    }
}

#[test]
fn stdin_beyond_the_credit_ends_the_connection() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (id, pid) = host.started(&Exec { stdin: Stdin::Stream, ..sh("sleep 1000") });
    // The pipe itself takes some of it, and that much is granted again.
    for _ in 0..3 {
        host.stdin(id, &vec![0; STDIN_WINDOW as usize]);
    }
    assert!(is_closed(host));
    assert!(!lives(pid));
    let mut host = agent.connect();
    let (id, _) = host.started(&sh("sleep 1000"));
    host.stdin(id, b"x");
    assert!(is_closed(host));
}

#[test]
fn there_is_a_limit_to_connections() {
    let agent = Agent::start();
    let mut hosts: Vec<_> = (0..256).map(|_| agent.connect()).collect();
    assert!(is_closed(agent.connect_silently()));
    assert_eq!(hosts[0].ask(&Request::Ping), Reply::Pong);
    hosts.pop();
    eventually("there is room again", || agent.connect_silently().frame().is_some());
}
