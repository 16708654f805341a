//! The client of the daemon: what the command line asks it through.
//!
//! Each call has a connection of its own, so calls cannot hold each other up, and a call that is dropped
//! takes its connection with it. A daemon that is not there is started, if that is allowed.

use super::percent;
use super::start::{self, StartError};
use super::stream::{CommandStream, Credit, FRAMES};
use super::types::{
    API_VERSION, AttachRequest, CreateRequest, DaemonInfo, DaemonStopRequest, EventRecord, ExecRequest,
    Notice, ProcessRow, Pruned, Refusal, RefusalKind, RenewRequest, RunRequest, SandboxInfo, StatsInfo,
    StopRequest, UpdateRequest,
};
use crate::config::{Autostart, Config};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use firn_protocol::Text;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, SERVER, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

/// The largest answer that is read as a whole, in bytes.
const MOST_ANSWER: usize = 64 << 20;

/// What a daemon says it speaks: all versions of the API, in a header of each answer.
pub(super) const VERSIONS: &str = "firn-api";

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// None is there, and none may be started.
    #[error("no daemon listens on {}", .0.display())]
    NoDaemon(PathBuf),
    /// One is there, but not for us.
    #[error("cannot connect to the daemon at {}", socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// None is there, and it could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The connection failed.
    #[error("the daemon broke off")]
    Broken(#[source] hyper::Error),
    /// What was to be sent could not be read, or what came is too much.
    #[error("the exchange with the daemon failed")]
    Body(#[source] axum::BoxError),
    /// It said no.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// It speaks another language.
    #[error("the daemon ({theirs}) does not speak version {API_VERSION} of the API, as firn {} does", env!("CARGO_PKG_VERSION"))]
    Version {
        /// Its name and version.
        theirs: String,
    },
    /// It answered something else.
    #[error("cannot make sense of the answer of the daemon ({theirs}) to {asked}")]
    Answer {
        /// Its name and version.
        theirs: String,
        /// What it was asked.
        asked: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It answered in another way.
    #[error("the daemon ({theirs}) answered {asked} with {status}")]
    Status {
        /// Its name and version.
        theirs: String,
        /// What it was asked.
        asked: String,
        /// What it answered.
        status: StatusCode,
    },
    /// It cannot be said.
    #[error("cannot write the request")]
    Request(#[source] serde_json::Error),
}

impl ClientError {
    /// What the daemon says to do about it, or what we can say.
    pub(crate) fn hint(&self) -> Option<&str> {
        match self {
            ClientError::Refused(refusal) => refusal.hint.as_deref(),
            ClientError::NoDaemon(_) => Some("start one with `firn daemon`, or leave --no-autostart away"),
            ClientError::Version { .. } | ClientError::Answer { .. } => {
                Some("`firn daemon stop` ends it, and the next command starts one of its own version")
            }
            _ => None,
        }
    }
}

/// The way to a daemon. Connects with each call.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    config: Config,
}

impl Client {
    /// The client of the daemon that `config` says.
    pub(crate) fn new(config: Config) -> Client {
        Client { config }
    }

    /// A command in a sandbox of its own, which ends with the stream.
    pub(crate) async fn run(&self, request: &RunRequest) -> Result<CommandStream, ClientError> {
        let stdin = Credit::of(request.command.stdin);
        self.upgrade(Target::new("/v1/run"), request, stdin).await
    }

    /// Makes a sandbox. `progress` is told what is done meanwhile.
    pub(crate) async fn create(
        &self,
        request: &CreateRequest,
        progress: &mut dyn FnMut(&str),
    ) -> Result<SandboxInfo, ClientError> {
        let call = Call { accept: Some(LINES), ..Call::with(Method::POST, "/v1/sandboxes", request)? };
        let mut notices: Lines<Notice> = Lines::new(self.send(call).await?);
        loop {
            match notices.next().await? {
                Some(Notice::Progress { phase }) => progress(&phase),
                Some(Notice::Sandbox { sandbox }) => return Ok(*sandbox),
                Some(Notice::Failed { refusal, .. }) => return Err(ClientError::Refused(refusal)),
                Some(Notice::Ended { .. } | Notice::Detached { .. }) => {}
                None => return Err(ClientError::Refused(broke_off())),
            }
        }
    }

    /// All sandboxes, the oldest first: of one owner, if one is named.
    pub(crate) async fn list(&self, owner: Option<&str>) -> Result<Vec<SandboxInfo>, ClientError> {
        let target = Target::new("/v1/sandboxes").query("owner", owner);
        self.ask(Call::new(Method::GET, target)).await
    }

    /// The sandbox with this name or id, or whose id alone starts so. So for all that follow.
    pub(crate) async fn sandbox(&self, id: &str) -> Result<SandboxInfo, ClientError> {
        self.ask(Call::new(Method::GET, Target::sandbox(id, ""))).await
    }

    /// Changes what can be changed.
    pub(crate) async fn update(&self, id: &str, request: &UpdateRequest) -> Result<SandboxInfo, ClientError> {
        self.ask(Call::with(Method::PATCH, Target::sandbox(id, ""), request)?).await
    }

    /// Ends it at once and forgets it. Nothing of it is left when this returns.
    pub(crate) async fn destroy(&self, id: &str) -> Result<(), ClientError> {
        self.tell(Call::new(Method::DELETE, Target::sandbox(id, ""))).await
    }

    /// A command in a sandbox.
    pub(crate) async fn exec(&self, id: &str, request: &ExecRequest) -> Result<CommandStream, ClientError> {
        self.upgrade(Target::sandbox(id, "/exec"), request, Credit::of(request.stdin)).await
    }

    /// The output so far of a detached command, and what follows.
    pub(crate) async fn attach(
        &self,
        id: &str,
        request: &AttachRequest,
    ) -> Result<CommandStream, ClientError> {
        self.upgrade(Target::sandbox(id, "/attach"), request, Credit::NOT_YET).await
    }

    /// Has it stand still.
    pub(crate) async fn pause(&self, id: &str) -> Result<SandboxInfo, ClientError> {
        self.ask(Call::new(Method::POST, Target::sandbox(id, "/pause"))).await
    }

    /// Has it go on.
    pub(crate) async fn resume(&self, id: &str) -> Result<SandboxInfo, ClientError> {
        self.ask(Call::new(Method::POST, Target::sandbox(id, "/resume"))).await
    }

    /// Ends it, orderly if that takes no longer than `grace`, and keeps its record.
    pub(crate) async fn stop(&self, id: &str, grace: Option<Duration>) -> Result<SandboxInfo, ClientError> {
        let grace_ms = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        self.ask(Call::with(Method::POST, Target::sandbox(id, "/stop"), &StopRequest { grace_ms })?).await
    }

    /// Its processes.
    pub(crate) async fn processes(&self, id: &str) -> Result<Vec<ProcessRow>, ClientError> {
        self.ask(Call::new(Method::GET, Target::sandbox(id, "/processes"))).await
    }

    /// What it uses.
    pub(crate) async fn stats(&self, id: &str) -> Result<StatsInfo, ClientError> {
        self.ask(Call::new(Method::GET, Target::sandbox(id, "/stats"))).await
    }

    /// What a detached command (absent: the latest) has written, from this byte on, and, if `follow`, what
    /// it will have written when it ends.
    pub(crate) async fn logs(
        &self,
        id: &str,
        command: Option<u64>,
        from: u64,
        follow: bool,
    ) -> Result<Chunks, ClientError> {
        let target = Target::sandbox(id, "/logs")
            .query("command", command)
            .query("from", Some(from).filter(|from| *from > 0))
            .query("follow", follow.then_some(true));
        Ok(Chunks::new(self.send(Call::new(Method::GET, target)).await?))
    }

    /// The last of its console.
    pub(crate) async fn console(&self, id: &str) -> Result<Bytes, ClientError> {
        self.fetch(Call::new(Method::GET, Target::sandbox(id, "/console"))).await.map(|answer| answer.body)
    }

    /// A file or a folder of the sandbox's, as a tar archive.
    pub(crate) async fn archive(&self, id: &str, path: &Text) -> Result<Chunks, ClientError> {
        let target = Target::sandbox(id, "/archive").path(path);
        Ok(Chunks::new(self.send(Call::new(Method::GET, target)).await?))
    }

    /// Unpacks a tar archive into a folder of the sandbox's.
    pub(crate) async fn unpack(&self, id: &str, path: &Text, archive: Body) -> Result<(), ClientError> {
        let target = Target::sandbox(id, "/archive").path(path);
        self.tell(Call { body: archive, ..Call::new(Method::PUT, target) }).await
    }

    /// What has happened since event number `since`, the oldest first, and, if `follow`, what will: to one
    /// sandbox, or to all.
    pub(crate) async fn events(
        &self,
        sandbox: Option<&str>,
        since: u64,
        follow: bool,
    ) -> Result<Lines<EventRecord>, ClientError> {
        let target = Target::new("/v1/events")
            .query("sandbox", sandbox)
            .query("since", Some(since).filter(|since| *since > 0))
            .query("follow", follow.then_some(true));
        Ok(Lines::new(self.send(Call::new(Method::GET, target)).await?))
    }

    /// Renews the leases of all of an owner's sandboxes, and gives these.
    pub(crate) async fn renew(
        &self,
        owner: &str,
        request: &RenewRequest,
    ) -> Result<Vec<SandboxInfo>, ClientError> {
        let target = Target::new("/v1/leases/").segment(owner.as_bytes());
        self.ask(Call::with(Method::PUT, target, request)?).await
    }

    /// Forgets those that are over.
    pub(crate) async fn prune(&self) -> Result<Pruned, ClientError> {
        self.ask(Call::new(Method::POST, Target::new("/v1/prune"))).await
    }

    /// The daemon itself. Starts none.
    pub(crate) async fn daemon(&self) -> Result<DaemonInfo, ClientError> {
        let call = Call::new(Method::GET, Target::new("/v1/daemon"));
        self.without_autostart().ask(call).await
    }

    /// Has the daemon stop, and waits until it is gone. Starts none.
    pub(crate) async fn stop_daemon(&self, force: bool) -> Result<(), ClientError> {
        let call = Call::with(Method::POST, Target::new("/v1/daemon/stop"), &DaemonStopRequest { force })?;
        // The answer ends with the daemon. However it ends, if it has begun at all: then it is gone.
        match self.without_autostart().send(call).await {
            Ok(answer) => {
                let mut rest = Chunks::new(answer);
                while let Ok(Some(_)) = rest.next().await {}
                Ok(())
            }
            Err(ClientError::Broken(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn without_autostart(&self) -> Client {
        let mut config = self.config.clone();
        config.autostart = Autostart::Forbidden;
        Client { config }
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let socket = &self.config.socket;
        let failed = |source| ClientError::Connect { socket: socket.clone(), source };
        match UnixStream::connect(socket).await {
            Ok(stream) => Ok(stream),
            Err(error) if !nobody_listens(&error) => Err(failed(error)),
            Err(_nobody) if self.config.autostart == Autostart::Forbidden => {
                Err(ClientError::NoDaemon(socket.clone()))
            }
            Err(_nobody) => Ok(start::connect(&self.config).await?),
        }
    }

    /// Sends a request, and gives the answer if it is success.
    async fn send(&self, call: Call) -> Result<Answer, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Broken)?;
        // It ends with the answer, which holds it.
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        }));
        let asked = format!("{} {}", call.method, call.target.0);
        let response = sender.send_request(call.request()).await.map_err(ClientError::Broken)?;
        let answer = Answer { response, asked, _driver: driver };
        if answer.response.status().is_success()
            || answer.response.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            Ok(answer)
        } else {
            Err(answer.into_error().await)
        }
    }

    /// The whole answer.
    async fn fetch(&self, call: Call) -> Result<Fetched, ClientError> {
        self.send(call).await?.whole().await
    }

    async fn ask<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let Fetched { body, theirs, asked } = self.fetch(call).await?;
        serde_json::from_slice(&body).map_err(|source| ClientError::Answer { theirs, asked, source })
    }

    async fn tell(&self, call: Call) -> Result<(), ClientError> {
        self.fetch(call).await.map(drop)
    }

    async fn upgrade<T: Serialize>(
        &self,
        target: Target,
        request: &T,
        credit: Credit,
    ) -> Result<CommandStream, ClientError> {
        let call = Call { upgrade: true, ..Call::with(Method::POST, target, request)? };
        let answer = self.send(call).await?;
        if answer.response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(answer.into_error().await);
        }
        let upgraded = hyper::upgrade::on(answer.response).await.map_err(ClientError::Broken)?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_impossible| ClientError::Body("the connection is not the one that was made".into()))?;
        Ok(CommandStream::new(parts.io.into_inner(), &parts.read_buf, credit))
    }
}

/// Whether a failure to connect says that no daemon is there: no socket, or one that nobody left behind.
pub(super) fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn broke_off() -> Refusal {
    Refusal { kind: RefusalKind::Internal, message: "the daemon broke off".to_owned(), hint: None }
}

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

/// A request that was not sent.
#[derive(Debug)]
struct Call {
    method: Method,
    target: Target,
    body: Body,
    json: bool,
    accept: Option<&'static str>,
    upgrade: bool,
}

impl Call {
    fn new(method: Method, target: Target) -> Call {
        Call { method, target, body: Body::empty(), json: false, accept: None, upgrade: false }
    }

    /// One that says something.
    fn with<T: Serialize>(
        method: Method,
        target: impl Into<Target>,
        request: &T,
    ) -> Result<Call, ClientError> {
        let body = serde_json::to_vec(request).map_err(ClientError::Request)?;
        Ok(Call { body: body.into(), json: true, ..Call::new(method, target.into()) })
    }

    fn request(self) -> Request<Body> {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.target.0.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("localhost"));
        if self.json {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        }
        if let Some(accept) = self.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if self.upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(FRAMES));
        }
        request
    }
}

/// A path with its query, as it is sent.
#[derive(Clone, Debug)]
struct Target(String);

impl From<&'static str> for Target {
    fn from(path: &'static str) -> Target {
        Target::new(path)
    }
}

impl Target {
    fn new(path: &'static str) -> Target {
        Target(path.to_owned())
    }

    /// What belongs to a sandbox.
    fn sandbox(id: &str, rest: &'static str) -> Target {
        let mut target = Target::new("/v1/sandboxes/").segment(id.as_bytes());
        target.0.push_str(rest);
        target
    }

    /// With a value as the next part of the path.
    fn segment(mut self, value: &[u8]) -> Target {
        percent::encode(value, &mut self.0);
        self
    }

    /// With a value in the query, if there is one.
    fn query(mut self, name: &str, value: Option<impl ToString>) -> Target {
        if let Some(value) = value {
            self.0.push(if self.0.contains('?') { '&' } else { '?' });
            self.0.push_str(name);
            self.0.push('=');
            percent::encode(value.to_string().as_bytes(), &mut self.0);
        }
        self
    }

    /// With a path of the sandbox's in the query.
    fn path(mut self, path: &Text) -> Target {
        self.0.push_str("?path=");
        percent::encode(path.as_bytes(), &mut self.0);
        self
    }
}

/// The head of an answer, with what drives the connection behind its body.
#[derive(Debug)]
struct Answer {
    response: Response<Incoming>,
    asked: String,
    _driver: AbortOnDropHandle<()>,
}

/// An answer as a whole.
#[derive(Debug)]
struct Fetched {
    body: Bytes,
    theirs: String,
    asked: String,
}

impl Answer {
    fn theirs(&self) -> String {
        let software = self.response.headers().get(SERVER).and_then(|value| value.to_str().ok());
        software.unwrap_or("something else").replace('/', " ")
    }

    async fn whole(self) -> Result<Fetched, ClientError> {
        let theirs = self.theirs();
        let body = Limited::new(self.response.into_body(), MOST_ANSWER)
            .collect()
            .await
            .map_err(ClientError::Body)?
            .to_bytes();
        Ok(Fetched { body, theirs, asked: self.asked })
    }

    /// Why it is no success.
    async fn into_error(self) -> ClientError {
        let status = self.response.status();
        let versions = self.response.headers().get(VERSIONS).and_then(|value| value.to_str().ok());
        let ours = API_VERSION.to_string();
        let understood =
            versions.is_some_and(|versions| versions.split(',').any(|version| version.trim() == ours));
        if !understood {
            return ClientError::Version { theirs: self.theirs() };
        }
        match self.whole().await {
            Ok(Fetched { body, theirs, asked }) => match serde_json::from_slice(&body) {
                Ok(refusal) => ClientError::Refused(refusal),
                Err(_no_refusal) => ClientError::Status { theirs, asked, status },
            },
            Err(error) => error,
        }
    }
}

/// A body, as it comes.
#[derive(Debug)]
pub(crate) struct Chunks {
    body: Incoming,
    _driver: AbortOnDropHandle<()>,
}

impl Chunks {
    fn new(answer: Answer) -> Chunks {
        Chunks { body: answer.response.into_body(), _driver: answer._driver }
    }

    /// The next part of it, or none at its end. May be dropped at any time without loss.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(ClientError::Broken)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// JSON objects, one a line, as they come.
#[derive(Debug)]
pub(crate) struct Lines<T> {
    chunks: Chunks,
    theirs: String,
    asked: String,
    kept: BytesMut,
    of: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    fn new(answer: Answer) -> Lines<T> {
        let (theirs, asked) = (answer.theirs(), answer.asked.clone());
        let kept = BytesMut::new();
        Lines { chunks: Chunks::new(answer), theirs, asked, kept, of: std::marker::PhantomData }
    }

    /// The next one, or none at the end. May be dropped at any time without loss.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.kept.iter().position(|byte| *byte == b'\n') {
                let line = self.kept.split_to(end + 1);
                return serde_json::from_slice(&line).map(Some).map_err(|source| ClientError::Answer {
                    theirs: self.theirs.clone(),
                    asked: self.asked.clone(),
                    source,
                });
            }
            if self.kept.len() > MOST_ANSWER {
                return Err(ClientError::Body("a line of the answer is too long".into()));
            }
            match self.chunks.next().await? {
                Some(chunk) => self.kept.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_part_of_an_address() {
        let target = Target::sandbox("a/../b?c=ä", "/logs").query("from", Some(7)).query("none", None::<u8>);
        assert_eq!(target.0, "/v1/sandboxes/a%2F..%2Fb%3Fc%3D%C3%A4/logs?from=7");
        let target = Target::new("/v1/events").query("sandbox", Some("x&y")).query("follow", Some(true));
        assert_eq!(target.0, "/v1/events?sandbox=x%26y&follow=true");
    }
}
