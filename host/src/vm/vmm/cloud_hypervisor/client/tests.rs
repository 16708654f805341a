use super::super::config::tests::{files, machine};
use super::*;
use std::time::Instant;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

/// What the scripted VMM does once it has read a request.
enum Then {
    Close,
    /// Holds the connection, silently.
    Hang,
    /// Sends this again and again for as long as it is taken.
    Endless(&'static str),
}

/// A scripted VMM for one connection. Returns what it read of the request.
async fn peer(listener: UnixListener, reply: String, then: Then) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk).await.unwrap();
        request.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break;
        }
    }
    stream.write_all(reply.as_bytes()).await.unwrap();
    match then {
        Then::Close => {}
        Then::Hang => {
            let _ = stream.read(&mut chunk).await;
        }
        Then::Endless(text) => while stream.write_all(text.as_bytes()).await.is_ok() {},
    }
    String::from_utf8(request).unwrap()
}

struct Scripted {
    client: Client,
    listener: UnixListener,
    _folder: TempDir,
}

fn scripted() -> Scripted {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    let listener = UnixListener::bind(&socket).unwrap();
    Scripted { client: Client::new(&socket), listener, _folder: folder }
}

/// What `vm.boot` makes of `reply`.
async fn boot(reply: impl Into<String>, then: Then) -> Result<(), ApiError> {
    let Scripted { client, listener, _folder } = scripted();
    let call = async { tokio::time::timeout(Duration::from_secs(10), client.boot()).await.unwrap() };
    let serve = peer(listener, reply.into(), then);
    tokio::pin!(call, serve);
    tokio::select! {
        result = &mut call => result,
        _ = &mut serve => call.await,
    }
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

const DONE: &str =
    "HTTP/1.1 204 No Content\r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n";

async fn refused(reply: String) -> (u16, Vec<String>) {
    match boot(reply, Then::Close).await {
        Err(ApiError::Refused { call: "vm.boot", status, chain }) => (status.as_u16(), chain),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_bytes_of_a_call() {
    let Scripted { client, listener, _folder } = scripted();
    let config = VmConfig::new(&machine(), files());
    // The connection stays open, as cloud-hypervisor leaves it: the call is over all the same.
    let (result, request) = tokio::join!(client.create(&config), peer(listener, DONE.to_owned(), Then::Hang));
    result.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("PUT /api/v1/vm.create HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/json"), "{head}");
    assert_eq!(body, serde_json::to_string(&config).unwrap());
}

#[tokio::test]
async fn success_may_close_or_keep_the_connection() {
    boot(DONE, Then::Close).await.unwrap();
    boot(DONE, Then::Hang).await.unwrap();
}

#[tokio::test]
async fn answers_are_read() {
    let Scripted { client, listener, _folder } = scripted();
    let body = r#"{"build_version":"v53.0","version":"53.0.0","pid":1,"features":["kvm"]}"#;
    let (ping, _) = tokio::join!(client.ping(), peer(listener, answer("200 OK", body), Then::Hang));
    assert_eq!(ping.unwrap().version, "53.0.0");

    let Scripted { client, listener, _folder } = scripted();
    let body = r#"{"config":{"cpus":{}},"state":"Melted","memory_actual_size":5,"device_tree":{}}"#;
    let (info, _) = tokio::join!(client.info(), peer(listener, answer("200 OK", body), Then::Hang));
    assert_eq!(info.unwrap().state, State::Unknown);
}

#[tokio::test]
async fn an_error_keeps_its_status_and_chain() {
    let chain = r#"["Error from API","The VM could not boot","Error manipulating firmware"]"#;
    let expected = ["Error from API", "The VM could not boot", "Error manipulating firmware"];
    for (line, status) in
        [("400 Bad Request", 400), ("404 Not Found", 404), ("500 Internal Server Error", 500)]
    {
        let (found, chain) = refused(answer(line, chain)).await;
        assert_eq!((found, chain.as_slice()), (status, expected.map(String::from).as_slice()));
    }
}

#[tokio::test]
async fn an_error_that_is_not_json_is_kept_as_text() {
    let body = "{ \"error\": \"Unsupported HTTP method:\n PATCH\" }";
    let (status, chain) = refused(answer("405 Method Not Allowed", body)).await;
    assert_eq!(status, 405);
    assert_eq!(chain, [r#"{ "error": "Unsupported HTTP method: PATCH" }"#]);

    let (_, chain) = refused(answer("500 Internal Server Error", "")).await;
    assert_eq!(chain, Vec::<String>::new());

    // Nothing that a terminal would obey, and no more than somebody can read.
    let body = format!(r#"["\u001b[2Jred{}", "and more"]"#, "!".repeat(100_000));
    let (_, chain) = refused(answer("500 Internal Server Error", &body)).await;
    assert!(chain[0].starts_with("[2Jred!"), "{chain:?}");
    assert_eq!(chain.concat().len(), MAX_REASON);
}

#[tokio::test]
async fn another_success_is_none() {
    assert_eq!(refused(answer("200 OK", "{}")).await.0, 200);
    assert_eq!(refused("HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".into()).await.0, 301);
}

#[tokio::test]
async fn an_unreadable_answer() {
    let Scripted { client, listener, _folder } = scripted();
    let reply = answer("200 OK", "{\"version\": ");
    let (ping, _) = tokio::join!(client.ping(), peer(listener, reply, Then::Close));
    assert!(matches!(ping, Err(ApiError::Unreadable { call: "vmm.ping", .. })), "{ping:?}");
}

#[tokio::test]
async fn a_reply_that_breaks_off() {
    let whole = answer("500 Internal Server Error", r#"["a","b"]"#);
    for length in [0, 5, 40, whole.len() - 3] {
        let result = boot(&whole[..length], Then::Close).await;
        assert!(matches!(result, Err(ApiError::Broken { call: "vm.boot", .. })), "{length}: {result:?}");
    }
}

#[tokio::test]
async fn not_http() {
    let result = boot("SSH-2.0-OpenSSH_9.2\r\n\r\n", Then::Hang).await;
    assert!(matches!(result, Err(ApiError::Broken { .. })), "{result:?}");
}

#[tokio::test]
async fn an_endless_body_and_an_endless_head() {
    let announced = "HTTP/1.1 500 Oh\r\nContent-Length: 99999999999\r\n\r\n";
    let result = boot(announced, Then::Endless("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")).await;
    assert!(matches!(result, Err(ApiError::TooLarge { .. })), "{result:?}");
    let chunked = "HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n";
    let result = boot(chunked, Then::Endless("4\r\naaaa\r\n")).await;
    assert!(matches!(result, Err(ApiError::TooLarge { .. })), "{result:?}");
    let result = boot("HTTP/1.1 500 Oh\r\n", Then::Endless("X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")).await;
    assert!(matches!(result, Err(ApiError::Broken { .. })), "{result:?}");
}

#[tokio::test]
async fn a_deadline_ends_the_connection() {
    let hasty = Call { within: Duration::from_millis(50), ..BOOT };
    for reply in ["", "HTTP/1.1 204 No", "HTTP/1.1 500 Oh\r\nContent-Length: 10\r\n\r\n[\"a"] {
        let Scripted { client, listener, _folder } = scripted();
        let started = Instant::now();
        // The peer returns when the client hangs up: nobody is left to take a late reply.
        let served = async {
            tokio::time::timeout(Duration::from_secs(10), peer(listener, reply.into(), Then::Hang)).await
        };
        let (result, served) = tokio::join!(client.call(&hasty, Bytes::new()), served);
        assert!(matches!(result, Err(ApiError::Late { call: "vm.boot", .. })), "{result:?}");
        assert!(started.elapsed() >= hasty.within);
        served.expect("the client hung up");
    }
}

#[tokio::test]
async fn nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let result = Client::new(&socket).ping().await;
    assert!(matches!(result, Err(ApiError::Connect { call: "vmm.ping", .. })), "{result:?}");
}
