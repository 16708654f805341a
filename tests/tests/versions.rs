//! A client and a daemon that are not of the same version: what one does not know of the other is passed over,
//! and what cannot be passed over is said, with who is how old.
#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use firn_tests::{Firn, Grade, Host};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// When an answer is not waited for any more.
const HANG: Duration = Duration::from_secs(120);

/// What came back.
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

/// Asks a daemon as a client of any version would.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Answer {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}");
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: serde_json::from_str(body).unwrap_or(Value::Null) }
}

impl Answer {
    fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}: {}", self.head, self.body);
        assert!(
            self.head.contains("\r\nserver: firn/") && self.head.contains("\r\nfirn-api: 1"),
            "{}",
            self.head
        );
        self
    }
}

#[test]
fn a_client_of_another_version_is_understood() {
    let host = Host::of(Grade::Jail);
    let daemon = host.daemon(None);
    let socket = host.runtime().join("firn.sock");
    let call = |method, path: &str, body: &Value| ask(&socket, method, path, &body.to_string());
    // A newer one says more than the daemon knows, an older one as little as it can.
    let newer = json!({ "isolation": "jail", "name": "newer", "gravity": { "g": 9.81 }, "tags": ["x"] });
    let newer = call("POST", "/v1/sandboxes?colour=red", &newer).expect(201).body;
    assert_eq!((newer["name"].as_str(), newer["state"].as_str()), (Some("newer"), Some("running")));
    let older = call("POST", "/v1/sandboxes", &json!({ "isolation": "jail" })).expect(201).body;
    let id = older["sessionId"].as_str().unwrap().to_owned();
    assert_eq!((older["name"].as_str(), older["profile"].as_str()), (Some(&*id), Some("host")));
    assert!(older["leaseUntil"].is_null() && older["owner"].is_null(), "{older}");
    let path = format!("/v1/sandboxes/{id}");
    let changed = call("PATCH", &path, &json!({ "description": "seen", "colour": "red" })).expect(200).body;
    assert_eq!(changed["description"], "seen");
    let listed = ask(&socket, "GET", "/v1/sandboxes?colour=red", "").expect(200).body;
    assert_eq!(listed.as_array().unwrap().len(), 2);
    // No body at all is the shortest request.
    let stopped = ask(&socket, "POST", &format!("{path}/stop"), "").expect(200).body;
    assert_eq!(stopped["state"], "stopped");

    // What it wants and the daemon has not is told with both in mind.
    for (method, path) in [
        ("POST", &*format!("{path}/teleport")),
        ("GET", "/v2/sandboxes"),
        ("PUT", "/v1/sandboxes"),
        ("GET", "/"),
    ] {
        let refused = ask(&socket, method, path, "").expect(501).body;
        assert_eq!(refused["kind"], "unsupported");
        let message = refused["message"].as_str().unwrap();
        let wanted = format!(" has no {method} {path}: it is older or newer than its client");
        assert!(message.starts_with("firn/") && message.ends_with(&wanted), "{message}");
    }
    host.stop_daemon();
    drop(daemon);
}

/// A daemon of a version that is not there: it answers every request in the same way.
struct Stranger {
    socket: PathBuf,
}

impl Stranger {
    /// Says that it is `software` and speaks `api`.
    fn start(host: &Host, software: &str, api: &str, status: &str, body: &Value) -> Stranger {
        let socket = host.work().join("stranger.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let body = body.to_string();
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\nserver: {software}\r\nfirn-api: {api}\r\ncontent-length: {length}");
        let answer = format!("{head}\r\nconnection: close\r\n\r\n{body}");
        // It ends with the test.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
                while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                    match stream.read(&mut chunk).unwrap() {
                        0 => break,
                        length => request.extend_from_slice(&chunk[..length]),
                    }
                }
                // Who asked may have gone.
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Stranger { socket }
    }

    /// A client of it.
    fn firn(&self, host: &Host, words: &[&str]) -> Firn {
        host.firn(words).env("FIRN_HOST", format!("unix://{}", self.socket.display()))
    }
}

#[test]
fn a_newer_daemon_that_speaks_our_version_too_is_understood() {
    let host = Host::of(Grade::Jail);
    let id = host.create(&["--name", "known"]);
    let mut listed = ask(&host.runtime().join("firn.sock"), "GET", "/v1/sandboxes", "").expect(200).body;
    listed[0]["gravity"] = json!({ "g": 9.81 });
    listed[0]["protection"]["gravity"] = json!("on");
    // What was once absent is so again.
    for optional in ["cgroup", "description", "lastExecAt", "agent"] {
        listed[0].as_object_mut().unwrap().remove(optional);
    }
    let newer = Stranger::start(&host, "firn/9.0.0", "1, 2", "200 OK", &listed);
    let seen = newer.firn(&host, &["list", "--json"]).finish().expect(0).json();
    assert_eq!((seen[0]["sessionId"].as_str(), seen[0]["name"].as_str()), (Some(&*id), Some("known")));
}

#[test]
fn what_a_daemon_of_another_version_refuses_is_said() {
    let host = Host::of(Grade::Jail);
    let said = |software: &str, api: &str, status: &str, body: Value| {
        let daemon = Stranger::start(&host, software, api, status, &body);
        let done = daemon.firn(&host, &["list"]).finish().expect(1);
        assert_eq!(done.text(), "");
        done.stderr
    };
    // Of another API: whatever it says cannot be relied upon.
    let other = said("firn/9.0.0", "2, 3", "501 Not Implemented", json!({ "grund": "unbekannt" }));
    assert!(
        other.contains("the daemon (firn 9.0.0) does not speak version 1 of the API, as firn "),
        "{other}"
    );
    assert!(other.contains("`firn daemon stop` ends it"), "{other}");
    // An older one, which does not have what is asked for.
    let message = "firn/0.0.1 has no GET /v1/sandboxes: it is older or newer than its client";
    let refusal = json!({ "kind": "unsupported", "message": message });
    let older = said("firn/0.0.1", "1", "501 Not Implemented", refusal);
    assert!(older.contains(message), "{older}");
    // A newer one, which has reasons that we do not know.
    let refusal = json!({ "kind": "eclipse", "message": "the moon is in the way", "until": "noon" });
    let newer = said("firn/9.0.0", "1", "418 I'm a teapot", refusal);
    assert!(newer.contains("the moon is in the way"), "{newer}");
    // One that answers what nobody can read, and something else altogether.
    let unreadable = said("firn/9.0.0", "1", "200 OK", json!({ "sandboxes": [] }));
    assert!(
        unreadable.contains("the answer of the daemon (firn 9.0.0) to GET /v1/sandboxes"),
        "{unreadable}"
    );
    let else_ = said("nginx", "", "404 Not Found", json!("no such page"));
    assert!(else_.contains("the daemon (nginx) does not speak version 1"), "{else_}");
}
