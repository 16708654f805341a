//! Stdin: credit, back-pressure, and what overtakes it.

mod agent;

use agent::*;
use firn_protocol::*;

fn reading(script: &str) -> Exec {
    Exec { stdin: Stdin::Stream, ..sh(script) }
}

#[test]
fn ten_megabytes_come_back_from_cat() {
    let agent = Agent::start();
    let sent: Vec<u8> = (0..10_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let run = agent.connect().run(&reading("cat"), &sent);
    assert_eq!(run.code(), 0);
    assert!(run.stdout == sent);
}

#[test]
fn without_a_stream_stdin_is_empty() {
    let agent = Agent::start();
    assert_eq!(agent.sh("cat; readlink /proc/self/fd/0").text(), "/dev/null\n");
}

#[test]
fn a_cancel_overtakes_stdin_that_nobody_reads() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (id, pid) = host.started(&reading("exec sleep 1000"));
    // All the host may send; ten megabytes more wait on its side for credit that never comes.
    for _ in 0..4 {
        host.stdin(id, &vec![b'x'; STDIN_WINDOW as usize / 4]);
    }
    host.input(id, Input::Signal { signal: 0x13 });
    host.input(id, Input::Cancel);
    let run = host.finish(id, None);
    assert_eq!(run.exited().status, ExitStatus::Signal(9));
    assert_eq!(run.exited().ended_by, EndedBy::Cancel);
    assert!(!lives(pid));
}

#[test]
fn a_reader_that_stops_is_told_of() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (id, _) = host.started(&reading("exec <&-; sleep 0.2; echo done; sleep 0.2"));
    // The shell may not have closed it yet when the first bytes arrive: a pipe takes them all the same.
    let mut closed = false;
    for _ in 0..1000 {
        host.stdin(id, b"x");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    loop {
        let frame = host.frame().unwrap();
        match frame.kind {
            Kind::Event => closed |= frame.message::<Event>().unwrap() == Event::StdinClosed,
            Kind::Reply => break,
            _ => {}
        }
    }
    assert!(closed);
}

#[test]
fn what_is_still_on_its_way_when_the_command_ends_is_dropped() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (id, _) = host.started(&reading("exit 3"));
    assert_eq!(host.finish(id, None).code(), 3);
    host.stdin(id, b"late");
    host.send_frame(Frame::new(Kind::StdinEnd, id, Vec::new()));
    host.input(id, Input::Cancel);
    let (next, _) = host.started(&reading("cat"));
    host.stdin(id, b"later");
    host.stdin(next, b"now");
    host.send_frame(Frame::new(Kind::StdinEnd, next, Vec::new()));
    assert_eq!(host.finish(next, None).text(), "now");
}
