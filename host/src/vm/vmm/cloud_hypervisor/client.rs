//! A client of cloud-hypervisor's REST API: HTTP/1.1 over a Unix socket.
//!
//! Each call has a connection of its own and a deadline. cloud-hypervisor serves one call at a
//! time and can be stuck in one for a minute, with all others waiting behind it; when a deadline
//! passes the connection goes with it, so a late reply can reach nobody and is never taken for the
//! answer to something else. The VMM is not trusted with our memory: replies are bounded.

use super::config::{Fs, VmConfig};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// The largest body that is read.
const MAX_BODY: usize = 1 << 20;

/// The most that is read ahead, so also the largest head of a reply.
const MAX_HEAD: usize = 64 << 10;

/// How much of an error is kept for people.
const MAX_REASON: usize = 2000;

/// One of the API's calls.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Its name, which is also the end of its path.
    pub(super) name: &'static str,
    pub(super) method: Method,
    /// What it answers when it did what it was asked.
    pub(super) success: StatusCode,
    within: Duration,
}

/// Is it there? The first call, which also waits for it to come up.
pub(super) const PING: Call = Call::new("vmm.ping", Method::GET, StatusCode::OK, 30);
/// Takes a configuration. It is not validated before `vm.boot`.
pub(super) const CREATE: Call = Call::new("vm.create", Method::PUT, StatusCode::NO_CONTENT, 20);
/// The state and the configuration.
pub(super) const INFO: Call = Call::new("vm.info", Method::GET, StatusCode::OK, 20);
/// Loads kernel and initramfs, connects to vhost-user sockets, starts the processors. It tries for
/// 60 s to reach a vhost-user socket, and then says so.
pub(super) const BOOT: Call = Call::new("vm.boot", Method::PUT, StatusCode::NO_CONTENT, 70);

/// Adds a virtiofs device to a running guest. As with `vm.boot` a socket that nobody serves takes a minute,
/// in which nothing else is answered.
pub(super) const ADD_FS: Call = Call::new("vm.add-fs", Method::PUT, StatusCode::OK, 70);

/// Stops the processors.
pub(super) const PAUSE: Call = Call::new("vm.pause", Method::PUT, StatusCode::NO_CONTENT, 20);
/// Lets them go on.
pub(super) const RESUME: Call = Call::new("vm.resume", Method::PUT, StatusCode::NO_CONTENT, 20);

impl Call {
    const fn new(name: &'static str, method: Method, success: StatusCode, seconds: u64) -> Call {
        Call { name, method, success, within: Duration::from_secs(seconds) }
    }

    /// Its path.
    pub(super) fn path(&self) -> String {
        format!("/api/v1/{}", self.name)
    }
}

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("cannot connect for {call}")]
    Connect {
        call: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the connection failed during {call}")]
    Broken {
        call: &'static str,
        #[source]
        source: hyper::Error,
    },
    #[error("{call} was not answered within {} s", within.as_secs())]
    Late { call: &'static str, within: Duration },
    /// It answered something else than success.
    #[error("{call} was answered with {status}: {}", chain.join(": "))]
    Refused {
        call: &'static str,
        status: StatusCode,
        /// The error and its causes, the outermost first.
        chain: Vec<String>,
    },
    #[error("the answer to {call} is larger than {MAX_BODY} bytes")]
    TooLarge { call: &'static str },
    #[error("the answer to {call} cannot be read")]
    Unreadable {
        call: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

/// The answer to `vmm.ping`: schema `VmmPingResponse`.
#[derive(Debug, Deserialize)]
pub(super) struct Ping {
    pub(super) version: String,
}

/// The answer to `vm.info`: schema `VmInfo`.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    pub(super) state: State,
    /// The whole of the configuration, defaults and all.
    pub(super) config: serde_json::Value,
}

/// Schema `VmState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum State {
    Created,
    Running,
    Shutdown,
    Paused,
    BreakPoint,
    /// One of a later version.
    #[serde(other)]
    Unknown,
}

/// The way to one cloud-hypervisor.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    /// Talks to whoever listens on `socket`. Connects with each call.
    pub(super) fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned() }
    }

    pub(super) async fn ping(&self) -> Result<Ping, ApiError> {
        self.read(&PING).await
    }

    pub(super) async fn create(&self, config: &VmConfig) -> Result<(), ApiError> {
        self.call(&CREATE, encode(&CREATE, config)?).await.map(drop)
    }

    pub(super) async fn info(&self) -> Result<Info, ApiError> {
        self.read(&INFO).await
    }

    pub(super) async fn boot(&self) -> Result<(), ApiError> {
        self.call(&BOOT, Bytes::new()).await.map(drop)
    }

    pub(super) async fn add_fs(&self, fs: &Fs) -> Result<(), ApiError> {
        self.call(&ADD_FS, encode(&ADD_FS, fs)?).await.map(drop)
    }

    pub(super) async fn pause(&self) -> Result<(), ApiError> {
        self.call(&PAUSE, Bytes::new()).await.map(drop)
    }

    pub(super) async fn resume(&self) -> Result<(), ApiError> {
        self.call(&RESUME, Bytes::new()).await.map(drop)
    }

    async fn read<T: DeserializeOwned>(&self, call: &Call) -> Result<T, ApiError> {
        let body = self.call(call, Bytes::new()).await?;
        serde_json::from_slice(&body).map_err(|source| ApiError::Unreadable { call: call.name, source })
    }

    /// The body of the answer, if it is success.
    async fn call(&self, call: &Call, body: Bytes) -> Result<Bytes, ApiError> {
        let (status, body) = tokio::time::timeout(call.within, self.exchange(call, body))
            .await
            .unwrap_or(Err(ApiError::Late { call: call.name, within: call.within }))?;
        if status == call.success {
            Ok(body)
        } else {
            Err(ApiError::Refused { call: call.name, status, chain: error_chain(&body) })
        }
    }

    async fn exchange(&self, call: &Call, body: Bytes) -> Result<(StatusCode, Bytes), ApiError> {
        let broken = |source| ApiError::Broken { call: call.name, source };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ApiError::Connect { call: call.name, source })?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = request(call, body);
        let exchange = async move {
            let reply = sender.send_request(request).await.map_err(broken)?;
            let status = reply.status();
            match Limited::new(reply.into_body(), MAX_BODY).collect().await {
                Ok(body) => Ok((status, body.to_bytes())),
                Err(error) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge { call: call.name }),
                Err(error) => match error.downcast() {
                    Ok(error) => Err(broken(*error)),
                    Err(other) => Err(ApiError::Connect { call: call.name, source: io::Error::other(other) }),
                },
            }
        };
        tokio::pin!(exchange);
        // The connection is driven here and nowhere else: nothing of it outlives the call.
        tokio::select! {
            done = &mut exchange => return done,
            _ = connection => {}
        }
        exchange.await
    }
}

fn encode(call: &Call, body: &impl Serialize) -> Result<Bytes, ApiError> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|source| ApiError::Unreadable { call: call.name, source })
}

fn request(call: &Call, body: Bytes) -> Request<Full<Bytes>> {
    let json = !body.is_empty();
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = call.path().parse().unwrap_or_default();
    request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("localhost"));
    if json {
        let json = hyper::header::HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
    }
    request
}

/// The messages of an error body. It should be a JSON array of strings; v53 also answers with
/// objects that are not JSON, so whatever it is, its text is kept, in bounds and fit for a terminal.
fn error_chain(body: &[u8]) -> Vec<String> {
    let chain = serde_json::from_slice::<Vec<String>>(body)
        .unwrap_or_else(|_not_a_chain| vec![String::from_utf8_lossy(body).into_owned()]);
    let mut left = MAX_REASON;
    let mut kept = Vec::new();
    for message in chain {
        let words = message.split(|character: char| character.is_control() || character == ' ');
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        let message: String = words.join(" ").chars().take(left).collect();
        left -= message.chars().count();
        if !message.is_empty() {
            kept.push(message);
        }
    }
    kept
}

#[cfg(test)]
mod tests;
