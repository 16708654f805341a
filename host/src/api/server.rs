//! The daemon's end of the API: connections on a Unix socket.
//!
//! A client that says nothing, or does not read, costs a place among the connections that there may be and
//! nothing else: the head and the body of a request have to come in time, and nobody waits for an answer
//! to be read but the task that sends it.

use super::operations;
use super::service::{Peer, SOFTWARE, Service};
use super::types::{API_VERSION, Caller, Refusal, RefusalKind};
use super::wire::{JSON, VERSIONS};
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::SERVER;
use axum::http::{HeaderName, HeaderValue, Method, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tower::Service as _;

/// How many connections there may be at once.
pub(super) const MOST_CONNECTIONS: usize = 512;

/// How long the head of a request may take.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// How long answers may take to be read once the daemon has nothing else to wait for.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked whether they are.
const FLUSH_PAUSE: Duration = Duration::from_millis(10);

/// How long sandboxes may take to end, once they are not waited for any more.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait after the system refused a connection: it will again, at once.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How many of those who come when all places are taken are told so at once. The others are hung up on.
const MOST_REFUSED: usize = 64;

/// How long that may take.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

/// The longest head of a request that is read for that, in bytes.
const LONGEST_HEAD: usize = 64 << 10;

/// Serves until the daemon is told to end, and then until nothing is under way.
pub(crate) async fn serve(
    listener: impl Deref<Target = UnixListener>,
    service: Service,
    connections: TaskTracker,
) {
    let router = router(service.clone());
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let refusals = Arc::new(Semaphore::new(MOST_REFUSED));
    let end = service.end().clone();
    loop {
        let stream = tokio::select! {
            () = end.drain.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    continue;
                }
            },
        };
        let Some(caller) = admitted(&stream) else { continue };
        let Ok(place) = places.clone().try_acquire_owned() else {
            if let Ok(refusal) = refusals.clone().try_acquire_owned() {
                connections.spawn(async move {
                    let _refusal = refusal;
                    let _ = tokio::time::timeout(REFUSAL_PATIENCE, refuse(stream)).await;
                });
            }
            continue;
        };
        service.note_request();
        let peer = Peer { caller, place: Arc::new(place) };
        connections.spawn(connection(stream, peer, router.clone(), service.clone()));
    }
    // Nobody can come any more: not even wait to be accepted.
    drop(listener);
    connections.close();
    service.manager().stop_creating();
    let idle = async {
        service.work().close();
        service.work().wait().await;
        let _ = tokio::time::timeout(FLUSH_PATIENCE, async {
            // Who waits for our end is not waited for.
            while connections.len() > service.waiting_for_end() {
                tokio::time::sleep(FLUSH_PAUSE).await;
            }
        })
        .await;
    };
    tokio::select! {
        () = idle => {}
        () = end.force.cancelled() => {
            tracing::warn!("not waiting for what is under way");
            // Those whose sandboxes end with them may still see to that.
            let _ = tokio::time::timeout(FLUSH_PATIENCE, service.work().wait()).await;
        }
    }
    // Sandboxes that end with the daemon are ended, and the others left alone.
    tokio::select! {
        () = service.manager().close() => {}
        () = async {
            end.force.cancelled().await;
            tokio::time::sleep(CLOSE_PATIENCE).await;
        } => tracing::warn!("some sandboxes are left to the next daemon"),
    }
}

/// Who is at the other end, if it may talk to us: the daemon's own user or root.
fn admitted(stream: &UnixStream) -> Option<Caller> {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() => {
            Some(Caller { uid: peer.uid(), pid: peer.pid().unwrap_or_default() })
        }
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused another user");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "cannot tell who connects");
            None
        }
    }
}

/// Says that all places are taken. Not before it was asked something, or the answer is to no question; and
/// without hanging up before the client does, which may still be sending and would not look at the answer.
async fn refuse(mut stream: UnixStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < LONGEST_HEAD {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let refusal = Refusal::new(RefusalKind::TooMany, "the daemon has too many connections");
    let body = serde_json::to_string(&refusal)?;
    let answer = format!(
        "HTTP/1.1 {}\r\n{VERSIONS}: {API_VERSION}\r\nserver: {SOFTWARE}\r\ncontent-type: {JSON}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        refusal.kind.status(),
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

async fn connection(stream: UnixStream, peer: Peer, router: Router, service: Service) {
    let answer = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = service.end().drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that went away, or was too slow. It is its own business.
        tracing::debug!(error = crate::causes::in_full(&error), "a connection ended early");
    }
}

/// All that is served.
pub(super) fn router(service: Service) -> Router {
    let mut router = Router::new();
    for operation in operations::all() {
        router = router.route(&operation.full_path(), operation.handler);
    }
    router
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(from_fn_with_state(service.clone(), account))
        .with_state(service)
}

/// Answers what no operation is there for: that of a client of another version.
async fn unknown(method: Method, uri: Uri) -> Refusal {
    let path = uri.path();
    let message = format!("{SOFTWARE} has no {method} {path}: it is older or newer than its client");
    Refusal::new(RefusalKind::Unsupported, message)
}

/// Says who answers, and counts.
async fn account(State(service): State<Service>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    let path = path.as_ref().map_or("other", MatchedPath::as_str);
    service.metrics().answered(&method, path, response.status());
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static(SOFTWARE));
    headers.insert(HeaderName::from_static(VERSIONS), HeaderValue::from(API_VERSION));
    response
}
