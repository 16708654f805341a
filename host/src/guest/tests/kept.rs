//! Kept commands and lists: what an agent may say, and what it must not.

use super::*;
use firn_protocol::{
    Attach, CommandState, FailureCode, Keep, MAX_ENDED, MAX_KEPT_RUNNING, MAX_PROCESSES, Processes,
    STDIN_WINDOW,
};
use serde_json::Value;

fn able() -> Vec<u8> {
    let capabilities = ["exec", "limits", "keep", "processes"];
    json(
        Kind::Hello,
        0,
        &json!({"protocol": PROTOCOL_VERSION, "software": "x", "capabilities": capabilities}),
    )
}

/// The host's part, with a peer that says all this whatever it hears.
pub(super) async fn against<T>(wire: &[Vec<u8>], host: impl AsyncFnOnce(UnixStream) -> T) -> T {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (_read, mut write) = theirs.into_split();
    let talk = async {
        let _ = write.write_all(&wire.concat()).await;
        std::future::pending::<T>().await
    };
    tokio::select! {
        result = tokio::time::timeout(HANG, host(ours)) => result.expect("it does not hang"),
        result = talk => result,
    }
}

fn event(id: u32, event: &Value) -> Vec<u8> {
    json(Kind::Event, id, event)
}

fn attached(from: u64, stdin_credit: Option<u32>) -> Vec<u8> {
    event(1, &json!({"type": "attached", "from": from, "pid": 7, "stdin_credit": stdin_credit}))
}

fn skipped(bytes: u64) -> Vec<u8> {
    event(1, &json!({"type": "skipped", "bytes": bytes}))
}

fn attach(stdin: Stdin) -> Attach {
    Attach { command: 5, from: 3, stdin, back_pressure: false }
}

fn code_0() -> Vec<u8> {
    exited(1, &json!({"code": 0}), "itself")
}

/// What becomes of taking part in a command of which the peer says this.
async fn attaching(wire: &[Vec<u8>]) -> Result<(), GuestError> {
    against(&[&[able()], wire].concat(), async |stream| {
        let connection = Connection::establish(stream).await?;
        let mut running = connection.attach(attach(Stdin::Stream), None)?;
        loop {
            match running.next().await? {
                ExecEvent::Exited(_) => return Ok(()),
                ExecEvent::NotStarted(reason) => return is_harmless(&reason.message),
                _ => {}
            }
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn attaching_has_one_clear_end() {
    let output = raw(Kind::Stdout, 1, b"output");
    let failure =
        json(Kind::Reply, 1, &json!({"type": "error", "code": "not_found", "message": "\u{1b}[31mno"}));
    let not_started =
        json(Kind::Reply, 1, &json!({"type": "not_started", "reason": "other", "message": "\u{7}"}));
    for (name, wire, wanted) in [
        ("an end", vec![attached(3, None), output.clone(), code_0()], Fine),
        ("an end of what was not told to run", vec![code_0()], Fine),
        ("a gap", vec![attached(3, None), skipped(u64::MAX), skipped(u64::MAX), code_0()], Fine),
        ("a command that never ran", vec![not_started.clone()], Fine),
        ("no such command", vec![failure], Refused),
        ("a start", vec![started(1)], Unexpected),
        ("two beginnings", vec![attached(3, None), attached(3, None)], Unexpected),
        ("a start after the beginning", vec![attached(3, None), started(1)], Unexpected),
        ("output before the beginning", vec![output], Unexpected),
        ("a gap before the beginning", vec![skipped(1)], Unexpected),
        ("one that never ran but does", vec![attached(3, None), not_started], Unexpected),
        ("an event of nobody's", vec![event(0, &json!({"type": "skipped", "bytes": 1}))], Unexpected),
        ("a gap of less than nothing", vec![event(1, &json!({"type": "skipped", "bytes": -1}))], Malformed),
        ("a beginning without a place", vec![event(1, &json!({"type": "attached", "pid": 1}))], Malformed),
        ("a timeout that nobody set", vec![exited(1, &json!({"signal": 9}), "timeout")], Unexpected),
        ("nothing", vec![], Silent),
        ("credit for ever", vec![credit(1).repeat(1000)], Silent),
    ] {
        let result = attaching(&wire).await;
        assert_eq!(verdict(&result), wanted, "{name}: {result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_attaches_has_the_credit_it_is_told_of_and_no_more() {
    for (asked, told, room) in [
        (Stdin::Stream, Some(1000), Some(1000)),
        (Stdin::Stream, Some(u32::MAX), Some(STDIN_WINDOW as usize)),
        (Stdin::Stream, None, None),
        (Stdin::Null, Some(1000), None),
    ] {
        against(&[able(), credit(1), attached(3, told)], async |stream| {
            let connection = Connection::establish(stream).await.unwrap();
            let mut running = connection.attach(attach(asked), None).unwrap();
            // What is granted before the beginning counts for nothing.
            assert!(matches!(running.next().await.unwrap(), ExecEvent::StdinRoom));
            let event = running.next().await.unwrap();
            assert!(matches!(event, ExecEvent::Attached { from: 3 }), "{event:?}");
            // The request itself may still be on its way, and takes some of the room.
            let found = running.stdin_room();
            let near = |(found, room): (usize, usize)| found <= room && room - found < 200;
            assert_eq!(found.is_some(), room.is_some());
            assert!(found.zip(room).is_none_or(near), "{found:?} of {room:?}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn gaps_are_for_commands_that_are_kept() {
    against(&[able(), started(1), skipped(7), code_0()], async |stream| {
        let connection = Connection::establish(stream).await.unwrap();
        let keep = Keep { command: 1, output_bytes: 1, back_pressure: false };
        let mut running = connection.exec(Exec { keep: Some(keep), ..exec() }).unwrap();
        assert!(matches!(running.next().await.unwrap(), ExecEvent::Started));
        assert!(matches!(running.next().await.unwrap(), ExecEvent::Skipped(7)));
        assert!(matches!(running.next().await.unwrap(), ExecEvent::Exited(_)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_cannot_is_not_asked() {
    let keep = || Some(Keep { command: 1, output_bytes: 1, back_pressure: false });
    let lacks = |error: GuestError| matches!(error, GuestError::Lacks { .. });
    against(&[hello(PROTOCOL_VERSION)], async |stream| {
        let connection = Connection::establish(stream).await.unwrap();
        assert!(lacks(connection.exec(Exec { keep: keep(), ..exec() }).map(drop).unwrap_err()));
    })
    .await;
    against(&[hello(PROTOCOL_VERSION)], async |stream| {
        let connection = Connection::establish(stream).await.unwrap();
        assert!(lacks(connection.attach(attach(Stdin::Null), None).map(drop).unwrap_err()));
    })
    .await;
    against(&[hello(PROTOCOL_VERSION)], async |stream| {
        let mut connection = Connection::establish(stream).await.unwrap();
        assert!(lacks(connection.commands().await.unwrap_err()));
        assert!(lacks(connection.processes().await.unwrap_err()));
    })
    .await;
    // Nor is one believed in that has not said hello when it is asked.
    against(&[hello(PROTOCOL_VERSION), started(1)], async |stream| {
        let connection = Connection::begin(stream).unwrap();
        let mut running = connection.exec(Exec { keep: keep(), ..exec() }).unwrap();
        assert!(matches!(running.next().await, Err(GuestError::Lacks { capability: "keep" })));
    })
    .await;
}

fn command(number: u64, state: &Value) -> Value {
    json!({
        "command": number, "argv": ["\u{1b}[2Jsh", {"base64": "/w=="}, "x".repeat(2000)], "terminal": false,
        "state": state, "output_bytes": u64::MAX, "kept_from": 0,
    })
}

async fn commands(list: &[Value]) -> Result<Vec<firn_protocol::CommandInfo>, GuestError> {
    let reply = json(Kind::Reply, 1, &json!({"type": "commands", "commands": list}));
    against(&[able(), reply], async |stream| Connection::establish(stream).await?.commands().await).await
}

#[tokio::test(start_paused = true)]
async fn a_list_of_commands_is_bounded_and_fit_to_be_shown() {
    let running = json!({"type": "running"});
    let list = commands(&[
        command(1, &running),
        command(2, &json!({"type": "not_started", "reason": "other", "message": "\u{1b}]0;owned\u{7}"})),
    ])
    .await
    .unwrap();
    for info in &list {
        assert_eq!(info.argv.len(), 1);
        let shown = info.argv[0].as_os_str().to_str().unwrap();
        is_harmless(shown).unwrap();
        assert!(shown.starts_with("[2Jsh \u{fffd} xxx"), "{shown}");
    }
    let CommandState::NotStarted(reason) = &list[1].state else { panic!() };
    is_harmless(&reason.message).unwrap();

    let impossible: Value = serde_json::from_slice(&exited(1, &json!({"code": -1}), "itself")[9..]).unwrap();
    let backwards = json!({"command": 1, "argv": [], "terminal": false, "state": running, "output_bytes": 1, "kept_from": 2});
    let small = |number: usize| {
        json!({"command": number, "argv": [], "terminal": false, "state": running, "output_bytes": 0,
               "kept_from": 0})
    };
    let many: Vec<_> = (0..=MAX_KEPT_RUNNING + MAX_ENDED).map(small).collect();
    assert!(commands(&many[1..]).await.is_ok());
    for (name, list, wanted) in [
        ("too many", many, Unexpected),
        ("one number twice", vec![command(1, &running), command(1, &running)], Unexpected),
        ("an end that is none", vec![command(1, &impossible)], Unexpected),
        ("output that is kept before it is there", vec![backwards], Unexpected),
        ("a state that is none", vec![command(1, &json!({"type": "dances"}))], Malformed),
        ("no command", vec![json!(7)], Malformed),
        ("far too long", vec![json!("x".repeat(300_000))], Unexpected),
    ] {
        let result = commands(&list).await.map(drop);
        assert_eq!(verdict(&result), wanted, "{name}: {result:?}");
    }
}

fn process(pid: usize, state: &str, name: &str) -> Value {
    json!({"pid": pid, "parent": 0, "user": 0, "state": state, "name": name, "cpu_ms": u64::MAX,
           "rss_bytes": u64::MAX, "started_ms": 0})
}

async fn processes(list: &[Value]) -> Result<Processes, GuestError> {
    let reply = json(Kind::Reply, 1, &json!({"type": "processes", "processes": list, "truncated": false}));
    against(&[able(), reply], async |stream| Connection::establish(stream).await?.processes().await).await
}

#[tokio::test(start_paused = true)]
async fn a_list_of_processes_is_bounded_and_fit_to_be_shown() {
    let list = processes(&[
        process(1, "S", "\u{1b}]0;owned\u{7}\n\u{202e}sh"),
        process(2, "\u{1b}[2J", &"x".repeat(5000)),
    ])
    .await
    .unwrap()
    .processes;
    for info in &list {
        is_harmless(info.name.as_os_str().to_str().unwrap()).unwrap();
    }
    assert_eq!((list[0].state.as_str(), list[1].state.as_str()), ("S", "?"));
    let many: Vec<_> = (0..=MAX_PROCESSES).map(|pid| process(pid, "R", "sh")).collect();
    assert_eq!(processes(&many[1..]).await.unwrap().processes.len(), MAX_PROCESSES);
    assert_eq!(verdict(&processes(&many).await.map(drop)), Unexpected);
    let long = process(1, "R", &"x".repeat(2 << 20));
    assert_eq!(verdict(&processes(&[long]).await.map(drop)), Unexpected);
}

#[tokio::test(start_paused = true)]
async fn simple_questions_have_simple_answers() {
    let pong = json(Kind::Reply, 1, &json!({"type": "pong"}));
    let failed = json(Kind::Reply, 2, &json!({"type": "error", "code": "failed", "message": "not now"}));
    against(&[able(), pong, failed], async |stream| {
        let mut connection = Connection::establish(stream).await.unwrap();
        connection.ping().await.unwrap();
        let refused = connection.commands().await.unwrap_err();
        let GuestError::Refused { failure, .. } = refused else { panic!("{refused}") };
        assert_eq!(failure.code, FailureCode::Failed);
        // And none is waited for for ever.
        assert_eq!(verdict(&connection.ping().await), Silent);
    })
    .await;
}

/// Sandboxes may be served by more than one thread.
#[test]
fn conversations_may_move_between_threads() {
    fn moves<T: Send>(_: &T) {}
    let _ = async |mut connection: Connection| {
        moves(&connection);
        moves(&connection.ping());
        moves(&connection.commands());
        moves(&connection.processes());
        moves(&connection.configure(configure(), PATIENCE));
        moves(&connection.shutdown(PATIENCE));
        let mut running = connection.exec(exec()).unwrap();
        moves(&running.next());
        moves(&running);
    };
    let _ = |stream| moves(&Connection::establish(stream));
}
