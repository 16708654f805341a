//! The API of a real server with a real manager that has no sandboxes, seen through its own description.

use super::client::{Client, ClientError};
use super::operations;
use super::server;
use super::service::{End, Service};
use super::stream::{StreamError, StreamEvent};
use super::types::{CreateRequest, EvaluateRequest, ExecRequest, Notice, RefusalKind, RenewRequest};
use crate::config::{Autostart, Config};
use crate::sandbox::manager::Manager;
use firn_protocol::Stdin;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// A server that serves a folder of its own.
struct Scene {
    dir: tempfile::TempDir,
    end: End,
    serving: JoinHandle<()>,
    client: Client,
    document: Value,
}

impl Scene {
    async fn new() -> Scene {
        let dir = tempfile::Builder::new().prefix("firn-").tempdir_in("/tmp").unwrap();
        let mut config = Config::read().unwrap();
        config.runtime_dir = dir.path().join("run");
        config.state_dir = dir.path().join("state");
        config.socket = dir.path().join("firn.sock");
        config.autostart = Autostart::Forbidden;
        std::fs::create_dir(&config.state_dir).unwrap();
        let end = End::default();
        let listener = UnixListener::bind(&config.socket).unwrap();
        let manager = Manager::open(Arc::new(config.clone())).await.unwrap();
        let service = Service::new(manager, Arc::new(config.clone()), end.clone());
        let serving = tokio::spawn(server::serve(Box::new(listener), service, TaskTracker::new()));
        Scene { dir, end, serving, client: Client::new(config), document: operations::document() }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("firn.sock")
    }

    async fn stop(self) {
        self.end.drain.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.serving).await.unwrap().unwrap();
    }

    /// What is answered, as anybody's client sees it.
    async fn exchange(&self, method: &Method, path: &str, body: &str) -> (StatusCode, Value) {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.headers()["firn-api"], "1");
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn text(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// Whether a value is what the document says of it.
    fn check(&self, mut schema: Value, value: &Value) {
        schema["components"] = self.document["components"].clone();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?} in {value}");
    }

    fn operation(&self, method: &Method, path: &str) -> &Value {
        let operation = &self.document["paths"][path][method.as_str().to_lowercase()];
        assert!(operation.is_object(), "{method} {path} is not described");
        operation
    }
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str().filter(|_| name == "$ref") {
                    Some(path) => found.push(path.to_owned()),
                    None => references(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn the_document_is_whole() {
    let document = operations::document();
    insta::assert_json_snapshot!(document);
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for path in found {
        assert!(document.pointer(path.strip_prefix('#').unwrap()).is_some(), "{path} leads nowhere");
    }
    let operations = document["paths"].as_object().unwrap().values();
    let ids: Vec<&Value> = operations
        .flat_map(|path| path.as_object().unwrap().values())
        .map(|operation| &operation["operationId"])
        .collect();
    let unique: std::collections::BTreeSet<String> = ids.iter().map(|id| id.to_string()).collect();
    assert_eq!(unique.len(), ids.len());
}

#[tokio::test]
async fn answers_are_as_they_are_described() {
    let scene = Scene::new().await;
    for (method, path, described, body, expected) in [
        (Method::GET, "/v1/sandboxes", "/v1/sandboxes", "", 200),
        (Method::GET, "/v1/sandboxes?owner=x", "/v1/sandboxes", "", 200),
        (Method::POST, "/v1/prune", "/v1/prune", "", 200),
        (Method::GET, "/v1/daemon", "/v1/daemon", "", 200),
        (Method::PUT, "/v1/leases/me", "/v1/leases/{owner}", "{}", 200),
        (Method::GET, "/v1/sandboxes/none", "/v1/sandboxes/{id}", "", 404),
        (Method::PATCH, "/v1/sandboxes/none", "/v1/sandboxes/{id}", "{}", 404),
        (Method::DELETE, "/v1/sandboxes/none", "/v1/sandboxes/{id}", "", 404),
        (Method::POST, "/v1/sandboxes/none/stop", "/v1/sandboxes/{id}/stop", "", 404),
        (Method::GET, "/v1/sandboxes/none/logs?from=x", "/v1/sandboxes/{id}/logs", "", 400),
        (Method::GET, "/v1/sandboxes/none/archive?path=x", "/v1/sandboxes/{id}/archive", "", 400),
        (Method::POST, "/v1/sandboxes", "/v1/sandboxes", "{", 400),
        (Method::POST, "/v1/sandboxes", "/v1/sandboxes", r#"{"memoryBytes":12}"#, 400),
        (Method::POST, "/v1/run", "/v1/run", "{}", 400),
    ] {
        let operation = scene.operation(&method, described);
        let (status, answer) = scene.exchange(&method, path, body).await;
        assert_eq!(status.as_u16(), expected, "{method} {path}: {answer}");
        let described = &operation["responses"][status.as_str()]["content"]["application/json"]["schema"];
        let refusal = json!({ "$ref": "#/components/schemas/Refusal" });
        let schema = if described.is_null() { refusal } else { described.clone() };
        scene.check(schema, &answer);
    }
    let (status, answer) = scene.exchange(&Method::GET, "/v1/from-the-future", "").await;
    assert_eq!((status, &answer["kind"]), (StatusCode::NOT_IMPLEMENTED, &json!("unsupported")));
    let (_, served) = scene.exchange(&Method::GET, "/v1/openapi.json", "").await;
    assert_eq!(served, scene.document);
    scene.stop().await;
}

#[tokio::test]
async fn requests_are_as_they_are_described() {
    let scene = Scene::new().await;
    let create = CreateRequest { name: Some("x".into()), lease_ms: Some(5), ..CreateRequest::default() };
    let exec = ExecRequest {
        argv: vec!["true".into(), std::ffi::OsString::from("ä").into()],
        cwd: Some("/".into()),
        env: Vec::new(),
        user: None,
        terminal: Some(firn_protocol::TerminalSize { rows: 24, columns: 80 }),
        stdin: Stdin::Null,
        timeout_ms: Some(1),
        max_output_bytes: None,
        detach: false,
    };
    for (method, path, request) in [
        (Method::POST, "/v1/sandboxes", serde_json::to_value(&create).unwrap()),
        (Method::POST, "/v1/sandboxes/{id}/exec", serde_json::to_value(&exec).unwrap()),
        (Method::POST, "/v1/run", json!({ "sandbox": create, "command": exec })),
        (Method::PUT, "/v1/leases/{owner}", serde_json::to_value(RenewRequest { lease_ms: None }).unwrap()),
    ] {
        let schema = &scene.operation(&method, path)["requestBody"]["content"]["application/json"]["schema"];
        scene.check(schema.clone(), &request);
    }
    scene.stop().await;
}

#[tokio::test]
async fn the_client_understands_what_it_is_told() {
    let scene = Scene::new().await;
    let client = &scene.client;
    assert!(client.list(None).await.unwrap().is_empty());
    assert!(client.prune().await.unwrap().removed.is_empty());
    assert_eq!(client.daemon().await.unwrap().pid, std::process::id());
    assert!(client.events(None, 0, false).await.unwrap().next().await.unwrap().is_none());
    let refused = |error| match error {
        ClientError::Refused(refusal) => (refusal.kind, refusal.message),
        other => panic!("{other}"),
    };
    let (kind, message) = refused(client.sandbox("none").await.unwrap_err());
    assert_eq!((kind, &*message), (RefusalKind::NotFound, "session 'none' not found"));
    let request = CreateRequest { memory_bytes: Some(12), ..CreateRequest::default() };
    let (kind, message) = refused(client.create(&request, &mut |_| {}).await.unwrap_err());
    assert_eq!(kind, RefusalKind::Invalid);
    assert!(message.contains("128 MiB"), "{message}");
    // Its events, too, end with the daemon.
    let mut events = client.events(None, 0, true).await.unwrap();
    scene.end.drain.cancel();
    assert!(tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap().is_none());
    scene.stop().await;
}

#[tokio::test]
async fn who_says_nothing_or_too_much_holds_nothing_up() {
    let scene = Scene::new().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = UnixStream::connect(scene.socket()).await.unwrap();
        stream
            .write_all(b"POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
            .await
            .unwrap();
        silent.push(stream);
    }
    let large = format!("{{\"description\":\"{}\"}}", "x".repeat(5 << 20));
    let mut stream = UnixStream::connect(scene.socket()).await.unwrap();
    let head = format!("POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", large.len());
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(large.as_bytes()).await;
    let mut answer = vec![0; 200];
    let length = stream.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    assert!(scene.client.list(None).await.unwrap().is_empty());
    // Nor the end of the daemon.
    let before = std::time::Instant::now();
    scene.stop().await;
    assert!(before.elapsed() < Duration::from_secs(10));
    drop(silent);
}

#[tokio::test]
async fn who_finds_no_place_is_told_so() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // Both ends of all connections are here.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let scene = Scene::new().await;
    let mut silent = Vec::new();
    for _ in 0..server::MOST_CONNECTIONS {
        silent.push(UnixStream::connect(scene.socket()).await.unwrap());
    }
    // Also who still sends when the answer is there.
    let large = CreateRequest { description: Some("x".repeat(3 << 20)), ..CreateRequest::default() };
    for refused in
        [scene.client.list(None).await.map(drop), scene.client.create(&large, &mut |_| {}).await.map(drop)]
    {
        let Err(ClientError::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert_eq!(refusal.kind, RefusalKind::TooMany);
    }
    silent.truncate(10);
    while scene.client.list(None).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(silent);
    scene.stop().await;
}

#[tokio::test]
async fn code_goes_through_a_connection_that_is_there() {
    let scene = Scene::new().await;
    let asked = json!({"session": "none", "code": "1", "stdin": "null"});
    let asked: EvaluateRequest = serde_json::from_value(asked).unwrap();
    let connections = async || {
        let metrics = scene.text("/metrics").await;
        let line = metrics.lines().find(|line| line.contains("path=\"/v1/evaluate\""));
        line.and_then(|line| line.rsplit(' ').next()).map(str::to_owned).expect(&metrics)
    };
    for _ in 0..3 {
        let mut stream = scene.client.evaluate(&asked).await.unwrap();
        let event = stream.next().await.unwrap();
        assert!(matches!(event, StreamEvent::Notice(Notice::Failed { .. })), "{event:?}");
        assert!(matches!(stream.next().await, Err(StreamError::Ended)));
        assert_eq!(connections().await, "1");
    }
    // One to a daemon that is gone is not taken for one.
    let client = scene.client.clone();
    scene.stop().await;
    assert!(matches!(client.evaluate(&asked).await, Err(ClientError::NoDaemon(_))));
}
