//! Commands on a pseudo-terminal.

mod agent;

use agent::*;
use firn_protocol::*;

fn on_terminal(script: &str) -> Exec {
    Exec {
        terminal: Some(TerminalSize { rows: 33, columns: 101 }),
        stdin: Stdin::Stream,
        env: vec![variable("TERM", "xterm")],
        ..sh(script)
    }
}

#[test]
fn it_is_the_controlling_terminal_and_has_the_size_asked_for() {
    let agent = Agent::start();
    let run = agent.connect().run(&on_terminal("tty; stty size; echo $TERM; echo err >&2; : >/dev/tty"), b"");
    let text = run.text().replace('\r', "");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{text}");
    assert!(text.contains("33 101\nxterm\nerr\n"), "{text}");
    assert!(run.stderr.is_empty());
    assert_eq!(run.code(), 0);
}

#[test]
fn a_resize_is_told_to_the_program() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (id, _) =
        host.started(&on_terminal("trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"));
    host.until("ready");
    host.input(id, Input::Resize(TerminalSize { rows: 5, columns: 7 }));
    assert!(host.finish(id, None).text().contains("5 7"));
}

#[test]
fn ctrl_c_interrupts() {
    let agent = Agent::start();
    let mut host = agent.connect();
    let (id, _) = host.started(&on_terminal("echo ready; exec sleep 1000"));
    host.until("ready");
    host.stdin(id, b"\x03");
    assert_eq!(host.finish(id, None).exited().status, ExitStatus::Signal(2));
}

#[test]
fn the_end_of_stdin_is_ctrl_d() {
    let agent = Agent::start();
    let run = agent.connect().run(&on_terminal("stty -echo; echo ready; cat"), b"line\n");
    assert_eq!(run.code(), 0);
    assert!(run.text().contains("line\r\n"), "{:?}", run.text());
}

#[test]
fn everything_written_before_the_exit_arrives() {
    let agent = Agent::start();
    let mut host = agent.connect();
    for _ in 0..20 {
        let exec = Exec { stdin: Stdin::Null, ..on_terminal("seq 1 5000; echo the end") };
        let run = host.run(&exec, b"");
        let text = run.text();
        assert!(text.ends_with("5000\r\nthe end\r\n"), "{:?}", &text[text.len().saturating_sub(50)..]);
    }
}

#[test]
fn a_daemon_does_not_keep_the_terminal() {
    let agent = Agent::start();
    let run = agent.connect().run(&on_terminal("setsid sleep 1000 & echo pid $!"), b"");
    assert_eq!(run.code(), 0);
    let text = run.text();
    let pid = text.split("pid ").nth(1).unwrap().trim().parse().unwrap();
    assert!(!lives(pid));
}
