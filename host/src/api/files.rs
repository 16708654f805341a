//! Files in and out of a sandbox, as tar archives. What is in them is not looked at: the agent packs and
//! unpacks on its side, and the client on the other.

use super::routes::typed;
use super::service::Service;
use super::types::{Refusal, RefusalKind};
use super::wire::{LEFT_OUT, TAR};
use crate::causes::in_full;
use crate::guest::{GuestError, TransferEvent};
use crate::sandbox::manager::{Handle, OperationError};
use axum::body::{Body, BodyDataStream};
use axum::http::header::TRAILER;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use firn_protocol::{ArchiveWrite, FailureCode, FileTarget, Text};
use futures::StreamExt as _;
use http_body_util::StreamBody;
use hyper::body::Frame;
use std::io;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How many parts of an archive may wait to be sent.
const WAITING: usize = 4;

/// How long a client may leave an archive standing still.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a client may go on sending an archive after it was told that it is not wanted.
const REFUSED_PATIENCE: Duration = Duration::from_secs(5);

fn target(path: Text) -> FileTarget {
    FileTarget { path, user: None }
}

/// What a client is told when the agent could not do it.
fn refuse(service: &Service, error: &GuestError) -> Refusal {
    let kind = match error {
        GuestError::Refused { failure, .. } => match failure.code {
            FailureCode::NotFound => RefusalKind::NotFound,
            FailureCode::Invalid => RefusalKind::Invalid,
            FailureCode::Unsupported => RefusalKind::Unsupported,
            FailureCode::TooMany => RefusalKind::TooMany,
            FailureCode::Failed | FailureCode::Denied | FailureCode::Cancelled => RefusalKind::Sandbox,
        },
        GuestError::Lacks { .. } => RefusalKind::Unsupported,
        _ => RefusalKind::Sandbox,
    };
    service.metrics().refused(kind);
    Refusal::new(kind, in_full(error))
}

fn refuse_operation(service: &Service) -> impl Fn(OperationError) -> Refusal {
    |error| service.refuse(&error)
}

/// Packs what is at `path`. Answers when the first of it is there: then it can be packed.
pub(super) async fn pack(service: &Service, handle: &Handle, path: Text) -> Result<Response, Refusal> {
    let (mut connection, activity) = handle.connect().await.map_err(refuse_operation(service))?;
    let (send, parts) = mpsc::channel::<io::Result<Frame<Bytes>>>(WAITING);
    let (open, opened) = oneshot::channel();
    let force = service.end().force.clone();
    service.work().spawn(async move {
        let _activity = activity;
        let mut open = Some(open);
        let mut tell = move |opened| open.take().is_some_and(|open| open.send(opened).is_ok());
        let mut transfer = match connection.archive_read(target(path)) {
            Ok(transfer) => transfer,
            Err(error) => {
                tell(Err(error));
                return;
            }
        };
        loop {
            let event = tokio::select! {
                event = transfer.next() => event,
                // Nobody wants it any more.
                () = send.closed() => return,
                () = force.cancelled() => return,
            };
            match event {
                Ok(TransferEvent::Chunk(bytes)) => {
                    tell(Ok(()));
                    if send.send_timeout(Ok(Frame::data(bytes)), PATIENCE).await.is_err() {
                        return;
                    }
                }
                Ok(TransferEvent::Room) => {}
                Ok(TransferEvent::Read) => {
                    tell(Ok(()));
                    return;
                }
                Ok(TransferEvent::Archived { left_out }) => {
                    tell(Ok(()));
                    let (name, value) = count(left_out);
                    let trailers = Frame::trailers(HeaderMap::from_iter([(name, value)]));
                    let _ = send.send_timeout(Ok(trailers), PATIENCE).await;
                    return;
                }
                Err(error) => {
                    // What was sent is not to be taken for all: the answer breaks off.
                    let broken = io::Error::other(in_full(&error));
                    if !tell(Err(error)) {
                        let _ = send.send_timeout(Err(broken), PATIENCE).await;
                    }
                    return;
                }
            }
        }
    });
    match opened.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(refuse(service, &error)),
        Err(_forced) => return Err(Refusal::new(RefusalKind::Stopping, "the daemon is stopping")),
    }
    let stream =
        futures::stream::unfold(parts, async |mut parts| parts.recv().await.map(|part| (part, parts)));
    let mut response = typed(TAR, Body::new(StreamBody::new(stream)));
    response.headers_mut().insert(TRAILER, HeaderValue::from_static(LEFT_OUT));
    Ok(response)
}

/// How much was left out, as a header.
pub(super) fn count(left_out: u64) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(LEFT_OUT), HeaderValue::from(left_out))
}

/// Unpacks an archive into the folder at `path`, and says how much of it was left out.
pub(super) async fn unpack(
    service: &Service,
    handle: &Handle,
    path: Text,
    archive: Body,
) -> Result<u64, Refusal> {
    let mut archive = archive.into_data_stream();
    let unpacked = unpack_from(service, handle, path, &mut archive).await;
    if unpacked.is_err() {
        // A client that is still sending reads the answer only if nobody hangs up on it. It goes away
        // once it has read it.
        service.work().spawn(async move {
            let rest = async { while let Some(Ok(_)) = archive.next().await {} };
            let _ = tokio::time::timeout(REFUSED_PATIENCE, rest).await;
        });
    }
    unpacked
}

async fn unpack_from(
    service: &Service,
    handle: &Handle,
    path: Text,
    archive: &mut BodyDataStream,
) -> Result<u64, Refusal> {
    let (mut connection, _activity) = handle.connect().await.map_err(refuse_operation(service))?;
    let write = ArchiveWrite { folder: target(path), name: None };
    let mut transfer = connection.archive_write(write).map_err(|error| refuse(service, &error))?;
    let mut waiting = Bytes::new();
    let mut ended = false;
    loop {
        let room = transfer.room().unwrap_or(0);
        if !waiting.is_empty() && room > 0 {
            let part = waiting.split_to(waiting.len().min(room));
            transfer.send(part).map_err(|error| refuse(service, &error))?;
            continue;
        }
        tokio::select! {
            event = transfer.next() => match event {
                Ok(TransferEvent::Archived { left_out }) => return Ok(left_out),
                Ok(_) => {}
                Err(error) => return Err(refuse(service, &error)),
            },
            part = tokio::time::timeout(PATIENCE, archive.next()), if waiting.is_empty() && !ended => match part {
                Ok(Some(Ok(part))) => waiting = part,
                Ok(None) => {
                    ended = true;
                    transfer.end().map_err(|error| refuse(service, &error))?;
                }
                Ok(Some(Err(error))) => {
                    return Err(Refusal::new(RefusalKind::Invalid, format!("the archive broke off: {error}")));
                }
                Err(_elapsed) => {
                    return Err(Refusal::new(RefusalKind::Invalid, "the archive does not come"));
                }
            },
        }
    }
}
