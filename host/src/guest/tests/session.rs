//! Sessions: what an agent may say of them and of their runs, and what it must not.

use super::kept::against;
use super::*;
use crate::guest::ExecEvent;
use bytes::Bytes;
use firn_protocol::{SessionInterrupt, SessionRun};
use serde_json::Value;

fn able() -> Vec<u8> {
    let hello = json!({"protocol": PROTOCOL_VERSION, "software": "x", "capabilities": ["exec", "limits", "sessions"]});
    json(Kind::Hello, 0, &hello)
}

fn reply(body: &Value) -> Vec<u8> {
    json(Kind::Reply, 1, body)
}

fn began(run: u64) -> Vec<u8> {
    json(Kind::Event, 1, &json!({"type": "run_started", "run": run, "pid": 7}))
}

fn ran(changes: &[(&str, Value)]) -> Value {
    let mut ran = json!({
        "type": "ran", "run": 5, "outcome": {"type": "ok"}, "exit_code": 0, "state_lost": false, "duration_us": 1,
        "stdout_bytes": 0, "stderr_bytes": 0,
    });
    for (name, value) in changes {
        ran[*name] = value.clone();
    }
    ran
}

fn left(name: &str, media_type: &str, folder: &str) -> Value {
    let file = json!({"name": name, "media_type": media_type, "size": u64::MAX});
    ran(&[("artifacts", json!({"folder": folder, "files": [file], "truncated": false}))])
}

fn asked(timeout_ms: Option<u64>) -> SessionRun {
    SessionRun {
        session: "a".to_owned(),
        run: 5,
        code: "1".into(),
        more_code_bytes: 0,
        timeout_ms,
        grace_ms: None,
        stdin: Stdin::Stream,
        max_output_bytes: None,
    }
}

/// What becomes of a run of which the peer says this.
async fn running(wire: &[Vec<u8>]) -> Result<(), GuestError> {
    against(&[&[able()], wire].concat(), async |stream| {
        let mut running =
            Connection::establish(stream).await?.run_code(asked(None), Bytes::from_static(b"1"))?;
        let runs = async {
            loop {
                match running.next().await? {
                    ExecEvent::Ran(_) => return Ok(()),
                    ExecEvent::NotStarted(reason) => return is_harmless(&reason.message),
                    _ => {}
                }
            }
        };
        // A run has no limit but its own.
        let silent = GuestError::Silent { during: "a run", patience: PATIENCE };
        tokio::time::timeout(PATIENCE, runs).await.unwrap_or(Err(silent))
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_run_has_one_clear_end() {
    let output = raw(Kind::Stdout, 1, b"output");
    let cut = json(Kind::Event, 1, &json!({"type": "output_cut", "by": "run"}));
    let end = reply(&ran(&[]));
    let failure = reply(&json!({"type": "error", "code": "not_found", "message": "\u{1b}[31mno"}));
    let not_started = reply(&json!({"type": "not_started", "reason": "other", "message": "\u{7}"}));
    let outcome = |outcome: Value| reply(&ran(&[("outcome", outcome)]));
    for (name, wire, wanted) in [
        ("an end", vec![began(5), output.clone(), cut.clone(), credit(1), end.clone()], Fine),
        ("files", vec![began(5), reply(&left("a.png", "image/png", "/tmp/x"))], Fine),
        ("one that never began", vec![not_started.clone()], Fine),
        ("a refusal", vec![failure], Refused),
        ("an end before it began", vec![end.clone()], Unexpected),
        ("the beginning of another", vec![began(6)], Unexpected),
        ("the end of another", vec![began(5), reply(&ran(&[("run", json!(6))]))], Unexpected),
        ("two beginnings", vec![began(5), began(5)], Unexpected),
        ("output before it began", vec![output], Unexpected),
        ("a cut before it began", vec![cut], Unexpected),
        ("one that never began but does", vec![began(5), not_started], Unexpected),
        ("a command's beginning", vec![started(1)], Unexpected),
        ("a timeout that nobody set", vec![began(5), outcome(json!({"type": "timed_out"}))], Unexpected),
        ("no exit code", vec![began(5), outcome(json!({"type": "exited", "code": 256}))], Unexpected),
        ("no signal", vec![began(5), outcome(json!({"type": "killed", "signal": 0}))], Unexpected),
        ("no status", vec![began(5), reply(&ran(&[("exit_code", json!(-1))]))], Unexpected),
        ("an outcome that is none", vec![began(5), outcome(json!({"type": "dances"}))], Malformed),
        ("a file elsewhere", vec![began(5), reply(&left("../a", "image/png", "/tmp/x"))], Unexpected),
        ("a file without a name", vec![began(5), reply(&left("", "image/png", "/tmp/x"))], Unexpected),
        ("a type that is none", vec![began(5), reply(&left("a", "\u{1b}[31m", "/tmp/x"))], Unexpected),
        ("a folder that is none", vec![began(5), reply(&left("a", "image/png", "tmp"))], Unexpected),
        ("nothing", vec![], Silent),
    ] {
        let result = running(&wire).await;
        assert_eq!(verdict(&result), wanted, "{name}: {result:?}");
    }
}

fn session(name: &str) -> Value {
    json!({
        "type": "session", "session": name, "driver": "python", "created_ms": 1, "used_ms": 2, "runs": 3, "queued": 0,
        "restarts": 0, "output_bytes": 0,
    })
}

#[tokio::test(start_paused = true)]
async fn what_is_told_of_a_session_is_of_the_one_that_was_asked_for() {
    for (told, wanted) in [
        (session("a"), Fine),
        (session("b"), Unexpected),
        (session("\u{1b}[31m"), Unexpected),
        (json!({"type": "pong"}), Unexpected),
        (json!({"type": "session"}), Malformed),
    ] {
        let wire = [able(), reply(&told)];
        let result =
            against(&wire, async |stream| Connection::establish(stream).await?.session("a").await.map(drop));
        assert_eq!(verdict(&result.await), wanted, "{told}");
    }
    for (run, wanted) in [(json!(5), Fine), (json!(null), Fine), (json!(6), Unexpected)] {
        let wire = [able(), reply(&json!({"type": "interrupted", "run": run}))];
        let interrupt = SessionInterrupt { session: "a".to_owned(), run: Some(5), grace_ms: None };
        let result = against(&wire, async |stream| {
            Connection::establish(stream).await?.interrupt(interrupt).await.map(drop)
        });
        assert_eq!(verdict(&result.await), wanted, "{run}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_sessions_is_not_asked() {
    against(&[hello(PROTOCOL_VERSION)], async |stream| {
        let mut connection = Connection::establish(stream).await.unwrap();
        assert!(matches!(connection.session("a").await, Err(GuestError::Lacks { capability: "sessions" })));
        assert!(matches!(
            connection.run_code(asked(None), Bytes::from_static(b"1")).map(drop),
            Err(GuestError::Lacks { capability: "sessions" })
        ));
    })
    .await;
}
