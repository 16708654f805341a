//! What serves each operation. No decisions are made here: a request is read, the manager is asked, and
//! what it says is written.

use super::files;
use super::phase::{Stopwatch, describe};
use super::relay;
use super::request::{Asked, Named, Params, SandboxPath};
use super::service::{Peer, Service};
use super::types::{
    AttachRequest, Caller, CreateRequest, DaemonInfo, DaemonStopRequest, EvaluateRequest, EventRecord,
    ExecRequest, InterruptRequest, Interrupted, Notice, ProcessRow, Pruned, Refusal, RefusalKind,
    RenewRequest, RunRequest, SandboxInfo, SessionInfo, SessionRequest, StatsInfo, StopRequest,
    UpdateRequest,
};
use super::wire::{BYTES, FRAMES, JSON, LINES, METRICS};
use crate::sandbox::SandboxId;
use crate::sandbox::manager::{Handle, Life};
use crate::spec::Purpose;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, FromRequest as _, Request, State};
use axum::http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

/// How long the orderly end of a sandbox may take when nobody says.
const USUAL_GRACE: Duration = Duration::from_secs(10);

/// How often a log that is followed is looked at.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);

/// How many parts of an answer may wait to be sent.
const WAITING: usize = 16;

type Answer<T> = Result<Json<T>, Refusal>;

/// The query of `GET /v1/sandboxes`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ListQuery {
    /// Only this owner's.
    owner: Option<String>,
}

/// The query of `GET /v1/sandboxes/{id}/logs`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct LogsQuery {
    /// Of which detached command. Absent: the latest.
    command: Option<u64>,
    /// From which byte on.
    #[serde(default)]
    from: u64,
    /// Until the command ends.
    #[serde(default)]
    follow: bool,
}

/// The query of `GET` and `PUT /v1/sandboxes/{id}/archive`, which [`SandboxPath`] reads.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "it is described, and read byte by byte")]
pub(super) struct ArchiveQuery {
    /// Where in the sandbox: absolute. Any bytes, percent-encoded.
    path: String,
}

/// The query of `GET /v1/events`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct EventsQuery {
    /// Only what happened to this sandbox.
    sandbox: Option<String>,
    /// Only what happened after this event.
    #[serde(default)]
    since: u64,
    /// Also what will happen.
    #[serde(default)]
    follow: bool,
}

fn find(service: &Service, name: &str) -> Result<Handle, Refusal> {
    service.manager().find(name).map_err(|error| service.refuse(&error))
}

/// How a connection becomes a stream of frames, if that is what the client wants.
fn upgrade(request: &mut Request) -> Result<OnUpgrade, Refusal> {
    let wants = request.headers().get(UPGRADE).is_some_and(|value| value.as_bytes() == FRAMES.as_bytes());
    if !wants {
        let message = format!("a command's streams need an upgraded connection (Upgrade: {FRAMES})");
        return Err(Refusal::new(RefusalKind::Invalid, message));
    }
    Ok(hyper::upgrade::on(request))
}

fn switching() -> Response {
    let headers =
        [(CONNECTION, HeaderValue::from_static("upgrade")), (UPGRADE, HeaderValue::from_static(FRAMES))];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    Asked::<T>::from_request(request, &()).await.map(|Asked(asked)| asked)
}

pub(super) fn typed(media_type: &'static str, body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(media_type))], body.into()).into_response()
}

/// A body whose parts come through a queue.
fn queued(media_type: &'static str, parts: mpsc::Receiver<Bytes>) -> Response {
    queued_with(media_type, parts, ())
}

/// The same, with what is to be dropped when nobody reads it any more.
fn queued_with<T: Send + 'static>(
    media_type: &'static str,
    parts: mpsc::Receiver<Bytes>,
    kept: T,
) -> Response {
    let stream = futures::stream::unfold((parts, kept), async |(mut parts, kept)| {
        let part = parts.recv().await?;
        Some((Ok::<Bytes, Infallible>(part), (parts, kept)))
    });
    typed(media_type, Body::from_stream(stream))
}

fn line<T: Serialize>(message: &T) -> Bytes {
    // Writing JSON of what was made for it into memory cannot fail.
    let mut json = serde_json::to_vec(message).unwrap_or_default();
    json.push(b'\n');
    json.into()
}

pub(super) async fn run(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
) -> Result<Response, Refusal> {
    service.admit()?;
    let upgrade = upgrade(&mut request)?;
    let asked: RunRequest = read(request).await?;
    let work = service.work().clone();
    work.spawn(async move { relay::run(service, peer, upgrade, asked).await });
    Ok(switching())
}

pub(super) async fn exec(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Named(id): Named,
    mut request: Request,
) -> Result<Response, Refusal> {
    service.admit()?;
    let upgrade = upgrade(&mut request)?;
    let asked: ExecRequest = read(request).await?;
    let handle = find(&service, &id)?;
    let (stdin, detached) = (asked.stdin, asked.detach);
    let command = handle.exec(asked, Some(peer.caller)).await.map_err(|error| service.refuse(&error))?;
    service.metrics().command();
    let stdin = relay::Granted::of(stdin);
    let work = service.work().clone();
    work.spawn(async move { relay::command(service, peer, upgrade, handle, command, stdin, detached).await });
    Ok(switching())
}

pub(super) async fn evaluate(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
) -> Result<Response, Refusal> {
    service.admit()?;
    let upgrade = upgrade(&mut request)?;
    let asked: EvaluateRequest = read(request).await?;
    let work = service.work().clone();
    work.spawn(async move { relay::evaluate(service, peer, upgrade, asked).await });
    Ok(switching())
}

/// As with [`create`], but a session that nobody waits for is not made.
pub(super) async fn create_session(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Asked(asked): Asked<SessionRequest>,
) -> Result<Response, Refusal> {
    service.admit()?;
    let lines = headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes() == LINES.as_bytes());
    let (tell, told) = mpsc::channel(WAITING);
    let making = async move {
        let mut progress = |progress| {
            if tell.capacity() > 1 {
                let _ = tell.try_send(line(&Notice::Progress { phase: describe(&progress) }));
            }
        };
        let made = service.manager().create_session(asked, Some(peer.caller), &mut progress).await;
        let made = made.map(|found| found.info()).map_err(|error| service.refuse(&error));
        let _ = tell.try_send(match &made {
            Ok(session) => line(&Notice::Session { session: Box::new(session.clone()), created: true }),
            Err(refusal) => line(&Notice::Failed { refusal: refusal.clone(), console: None }),
        });
        made
    };
    if lines {
        let work = AbortOnDropHandle::new(tokio::spawn(making.instrument(tracing::info_span!("session"))));
        return Ok(queued_with(LINES, told, work));
    }
    drop(told);
    Ok((StatusCode::CREATED, Json(making.await?)).into_response())
}

pub(super) async fn sessions(State(service): State<Service>) -> Answer<Vec<SessionInfo>> {
    Ok(Json(service.manager().sessions()))
}

pub(super) async fn session(State(service): State<Service>, Named(name): Named) -> Answer<SessionInfo> {
    let inspected = async { service.manager().known_session(&name)?.inspect().await };
    inspected.await.map(Json).map_err(|error| service.refuse(&error))
}

pub(super) async fn interrupt(
    State(service): State<Service>,
    Named(name): Named,
    Asked(asked): Asked<InterruptRequest>,
) -> Answer<Interrupted> {
    let interrupted = async { service.manager().known_session(&name)?.interrupt(asked.grace_ms).await };
    let interrupted = interrupted.await.map_err(|error| service.refuse(&error))?;
    Ok(Json(Interrupted { interrupted }))
}

pub(super) async fn close_session(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Named(name): Named,
) -> Result<StatusCode, Refusal> {
    let closed = async { service.manager().known_session(&name)?.close(Some(peer.caller)).await };
    closed.await.map_err(|error| service.refuse(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn attach(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Named(id): Named,
    mut request: Request,
) -> Result<Response, Refusal> {
    service.admit()?;
    let upgrade = upgrade(&mut request)?;
    let asked: AttachRequest = read(request).await?;
    let handle = find(&service, &id)?;
    let command = handle.attach(asked).await.map_err(|error| service.refuse(&error))?;
    let work = service.work().clone();
    let stdin = relay::Granted::NONE;
    work.spawn(async move { relay::command(service, peer, upgrade, handle, command, stdin, false).await });
    Ok(switching())
}

/// A sandbox that comes up goes on coming up when its client is gone: with an idempotency key the client
/// gets it the next time, and without one it is in the list.
pub(super) async fn create(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Asked(asked): Asked<CreateRequest>,
) -> Result<Response, Refusal> {
    service.admit()?;
    let lines = headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes() == LINES.as_bytes());
    let (tell, told) = mpsc::channel(WAITING);
    let work = service.work().clone();
    let launched = work.spawn(
        async move {
            let launched = launch(&service, asked, (Life::Kept, Purpose::Commands), peer.caller, |notice| {
                // Who does not read misses some of it, but never the last.
                if tell.capacity() > 1 {
                    let _ = tell.try_send(line(&notice));
                }
            });
            let launched = launched.await.map(|handle| handle.info());
            let _ = tell.try_send(match &launched {
                Ok(info) => line(&Notice::Sandbox { sandbox: Box::new(info.clone()) }),
                Err(refusal) => line(&Notice::Failed { refusal: refusal.clone(), console: None }),
            });
            launched
        }
        .instrument(tracing::info_span!("create")),
    );
    if lines {
        return Ok(queued(LINES, told));
    }
    drop(told);
    let launched = launched.await.map_err(|_panic| {
        let message = "the daemon failed while the sandbox came up";
        Refusal::new(RefusalKind::Internal, message)
    })?;
    Ok((StatusCode::CREATED, Json(launched?)).into_response())
}

/// Brings a sandbox up, and says how far it is.
pub(super) async fn launch(
    service: &Service,
    asked: CreateRequest,
    life: (Life, Purpose),
    by: Caller,
    mut tell: impl FnMut(Notice) + Send,
) -> Result<Handle, Refusal> {
    let mut stopwatch = Stopwatch::new(service.metrics().clone());
    let mut progress = |progress| {
        stopwatch.begins(&progress);
        tell(Notice::Progress { phase: describe(&progress) });
    };
    match service.manager().create(asked, life, Some(by), &mut progress).await {
        Ok(handle) => {
            service.metrics().created(handle.info().isolation);
            Ok(handle)
        }
        Err(error) => Err(service.refuse(&error)),
    }
}

/// Passes a part of an answer on. Not if nobody takes it when the daemon ends, nor if nobody ever will.
async fn pass(send: &mpsc::Sender<Bytes>, part: Bytes, end: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        sent = send.send(part) => sent.is_ok(),
        () = end.cancelled() => false,
    }
}

pub(super) async fn list(
    State(service): State<Service>,
    Params(query): Params<ListQuery>,
) -> Answer<Vec<SandboxInfo>> {
    Ok(Json(service.manager().list(query.owner.as_deref())))
}

pub(super) async fn sandbox(State(service): State<Service>, Named(id): Named) -> Answer<SandboxInfo> {
    Ok(Json(find(&service, &id)?.info()))
}

pub(super) async fn update(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Named(id): Named,
    Asked(asked): Asked<UpdateRequest>,
) -> Answer<SandboxInfo> {
    let handle = find(&service, &id)?;
    handle.update(asked, Some(peer.caller)).await.map(Json).map_err(|error| service.refuse(&error))
}

pub(super) async fn destroy(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Named(id): Named,
) -> Result<StatusCode, Refusal> {
    let handle = find(&service, &id)?;
    handle.destroy(Some(peer.caller)).await.map_err(|error| service.refuse(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn pause(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Named(id): Named,
) -> Answer<SandboxInfo> {
    let handle = find(&service, &id)?;
    handle.pause(Some(peer.caller)).await.map_err(|error| service.refuse(&error))?;
    Ok(Json(handle.info()))
}

pub(super) async fn resume(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Named(id): Named,
) -> Answer<SandboxInfo> {
    let handle = find(&service, &id)?;
    handle.resume(Some(peer.caller)).await.map_err(|error| service.refuse(&error))?;
    Ok(Json(handle.info()))
}

pub(super) async fn stop(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Named(id): Named,
    Asked(asked): Asked<StopRequest>,
) -> Answer<SandboxInfo> {
    let handle = find(&service, &id)?;
    let grace = asked.grace_ms.map_or(USUAL_GRACE, Duration::from_millis);
    handle.stop(grace, Some(peer.caller)).await.map_err(|error| service.refuse(&error))?;
    Ok(Json(handle.info()))
}

pub(super) async fn processes(State(service): State<Service>, Named(id): Named) -> Answer<Vec<ProcessRow>> {
    find(&service, &id)?.processes().await.map(Json).map_err(|error| service.refuse(&error))
}

pub(super) async fn stats(State(service): State<Service>, Named(id): Named) -> Answer<StatsInfo> {
    find(&service, &id)?.stats().map(Json).map_err(|error| service.refuse(&error))
}

pub(super) async fn logs(
    State(service): State<Service>,
    Named(id): Named,
    Params(LogsQuery { command, mut from, follow }): Params<LogsQuery>,
) -> Result<Response, Refusal> {
    let handle = find(&service, &id)?;
    let (begin, first, mut more) = handle.log(command, from).map_err(|error| service.refuse(&error))?;
    from = begin;
    // The latest command may be another one later.
    let command = command.or_else(|| handle.info().main_command);
    let end = service.end().drain.clone();
    let (send, parts) = mpsc::channel(WAITING);
    service.work().spawn(async move {
        let mut chunk = first;
        loop {
            let empty = chunk.is_empty();
            from += chunk.len() as u64;
            if !empty && !pass(&send, chunk, &end).await {
                return;
            }
            // What is there is passed on to its end, and what comes as long as it comes.
            if empty && !(follow && more) {
                return;
            }
            if empty {
                tokio::select! {
                    () = tokio::time::sleep(FOLLOW_PAUSE) => {}
                    () = end.cancelled() => return,
                    () = send.closed() => return,
                }
            }
            match handle.log(command, from) {
                Ok((begin, next, goes_on)) => (from, chunk, more) = (begin, next, goes_on),
                // It was destroyed.
                Err(_) => return,
            }
        }
    });
    Ok(queued(BYTES, parts))
}

pub(super) async fn console(State(service): State<Service>, Named(id): Named) -> Result<Response, Refusal> {
    Ok(typed(BYTES, find(&service, &id)?.console_now().await))
}

pub(super) async fn archive(
    State(service): State<Service>,
    Named(id): Named,
    SandboxPath(path): SandboxPath,
) -> Result<Response, Refusal> {
    files::pack(&service, &find(&service, &id)?, path).await
}

pub(super) async fn unpack(
    State(service): State<Service>,
    Named(id): Named,
    SandboxPath(path): SandboxPath,
    request: Request,
) -> Result<Response, Refusal> {
    let left_out = files::unpack(&service, &find(&service, &id)?, path, request.into_body()).await?;
    Ok((StatusCode::NO_CONTENT, [files::count(left_out)]).into_response())
}

pub(super) async fn events(
    State(service): State<Service>,
    Params(query): Params<EventsQuery>,
) -> Result<Response, Refusal> {
    let handle = query.sandbox.as_deref().map(|name| find(&service, name)).transpose()?;
    let id = handle.as_ref().map(|handle| handle.id().to_string());
    let wanted = move |event: &EventRecord| id.as_ref().is_none_or(|id| event.session_id == *id);
    let (send, parts) = mpsc::channel(WAITING);
    let end = service.end().drain.clone();
    service.work().clone().spawn(async move {
        let mut since = query.since;
        'all: loop {
            let (past, mut future) = service.manager().events(handle.as_ref().map(Handle::id), since);
            for event in past {
                since = since.max(event.sequence);
                if !pass(&send, line(&event), &end).await {
                    return;
                }
            }
            if !query.follow {
                return;
            }
            loop {
                let event: Arc<EventRecord> = tokio::select! {
                    event = future.recv() => match event {
                        Ok(event) => event,
                        // We were too slow: what was missed is in the records.
                        Err(RecvError::Lagged(_)) => continue 'all,
                        Err(RecvError::Closed) => return,
                    },
                    () = end.cancelled() => return,
                    () = send.closed() => return,
                };
                if event.sequence > since {
                    since = event.sequence;
                    if wanted(&event) && !pass(&send, line(&*event), &end).await {
                        return;
                    }
                }
            }
        }
    });
    Ok(queued(LINES, parts))
}

pub(super) async fn renew(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Named(owner): Named,
    Asked(asked): Asked<RenewRequest>,
) -> Answer<Vec<SandboxInfo>> {
    let renewed = service.manager().renew(&owner, &asked, Some(peer.caller));
    renewed.map(Json).map_err(|error| service.refuse(&error))
}

pub(super) async fn prune(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
) -> Answer<Pruned> {
    let removed = service.manager().prune(Some(peer.caller)).await;
    Ok(Json(Pruned { removed: removed.iter().map(SandboxId::to_string).collect() }))
}

pub(super) async fn daemon(State(service): State<Service>) -> Answer<DaemonInfo> {
    Ok(Json(service.info()))
}

/// The answer ends with the daemon's process, so who reads it to its end knows that it is gone.
pub(super) async fn stop_daemon(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    Asked(asked): Asked<DaemonStopRequest>,
) -> Response {
    tracing::info!(uid = peer.caller.uid, pid = peer.caller.pid, force = asked.force, "asked to stop");
    service.note_waiting();
    let end = service.end();
    end.drain.cancel();
    if asked.force {
        end.force.cancel();
    }
    typed(BYTES, Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>()))
}

pub(super) async fn openapi() -> Response {
    typed(JSON, super::operations::document().to_string())
}

pub(super) async fn metrics(State(service): State<Service>) -> Response {
    let rendered = service.metrics().render(&service.manager().list(None));
    let uncached = [(HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store"))];
    (uncached, typed(METRICS, rendered)).into_response()
}
