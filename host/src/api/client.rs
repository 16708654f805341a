//! The client of the daemon: what the command line asks it through.
//!
//! Each call has a connection to itself, so calls cannot hold each other up, and a call that is dropped takes
//! its connection with it. One that has run code to its end is kept for the next code. A daemon that is not
//! there is started, if that is allowed.

mod answer;
mod call;
mod error;
mod target;

pub(crate) use answer::{Chunks, Lines};
pub(crate) use error::ClientError;

use super::start;
use super::stream::{CommandStream, Credit, Idle};
use super::types::{
    AttachRequest, CreateRequest, DaemonInfo, DaemonStopRequest, EvaluateRequest, EventRecord, ExecRequest,
    InterruptRequest, Interrupted, Notice, ProcessRow, Pruned, Refusal, RefusalKind, RenewRequest,
    RunRequest, SandboxInfo, SessionInfo, SessionRequest, StatsInfo, StopRequest, UpdateRequest,
};
use crate::config::{Autostart, Config};
use answer::{Answer, Fetched, left_out};
use axum::body::Body;
use bytes::Bytes;
use call::Call;
use firn_protocol::Text;
use hyper::client::conn::http1;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use target::Target;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

/// The way to a daemon.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    config: Config,
    idle: Idle,
}

impl Client {
    /// The client of the daemon that `config` says.
    pub(crate) fn new(config: Config) -> Client {
        Client { config, idle: Idle::default() }
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
        let call = Call::with(Method::POST, "/v1/sandboxes", request)?.lines();
        let mut notices: Lines<Notice> = Lines::new(self.send(call).await?);
        loop {
            match notices.next().await? {
                Some(Notice::Progress { phase }) => progress(&phase),
                Some(Notice::Sandbox { sandbox }) => return Ok(*sandbox),
                Some(Notice::Failed { refusal, .. }) => return Err(ClientError::Refused(refusal)),
                Some(Notice::Ended { .. } | Notice::Detached { .. } | Notice::Session { .. }) => {}
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

    /// Code, in a session or in a sandbox of its own.
    pub(crate) async fn evaluate(&self, request: &EvaluateRequest) -> Result<CommandStream, ClientError> {
        if let Some(stream) = self.idle.evaluate(request) {
            return Ok(stream);
        }
        let stream = self.upgrade(Target::new("/v1/evaluate"), request, Credit::of(request.stdin)).await?;
        Ok(stream.that_returns(&self.idle))
    }

    /// Makes a session.
    pub(crate) async fn create_session(
        &self,
        request: &SessionRequest,
        progress: &mut dyn FnMut(&str),
    ) -> Result<SessionInfo, ClientError> {
        let call = Call::with(Method::POST, "/v1/sessions", request)?.lines();
        let mut notices: Lines<Notice> = Lines::new(self.send(call).await?);
        loop {
            match notices.next().await? {
                Some(Notice::Progress { phase }) => progress(&phase),
                Some(Notice::Session { session, .. }) => return Ok(*session),
                Some(Notice::Failed { refusal, .. }) => return Err(ClientError::Refused(refusal)),
                Some(Notice::Ended { .. } | Notice::Detached { .. } | Notice::Sandbox { .. }) => {}
                None => return Err(ClientError::Refused(broke_off())),
            }
        }
    }

    /// All sessions, the oldest first.
    pub(crate) async fn sessions(&self) -> Result<Vec<SessionInfo>, ClientError> {
        self.ask(Call::new(Method::GET, Target::new("/v1/sessions"))).await
    }

    /// One session.
    pub(crate) async fn session(&self, name: &str) -> Result<SessionInfo, ClientError> {
        self.ask(Call::new(Method::GET, Target::session(name, ""))).await
    }

    /// Ends what a session runs.
    pub(crate) async fn interrupt(
        &self,
        name: &str,
        request: &InterruptRequest,
    ) -> Result<Interrupted, ClientError> {
        self.ask(Call::with(Method::POST, Target::session(name, "/interrupt"), request)?).await
    }

    /// Ends a session.
    pub(crate) async fn close_session(&self, name: &str) -> Result<(), ClientError> {
        self.tell(Call::new(Method::DELETE, Target::session(name, ""))).await
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
        Ok(Chunks::new(self.send(Call::new(Method::GET, target).trailers()).await?))
    }

    /// Unpacks a tar archive into a folder of the sandbox's, and says how much of it was left out there.
    pub(crate) async fn unpack(&self, id: &str, path: &Text, archive: Body) -> Result<u64, ClientError> {
        let target = Target::sandbox(id, "/archive").path(path);
        let answer = self.send(Call::new(Method::PUT, target).body(archive)).await?;
        let left_out = left_out(answer.response.headers());
        answer.whole().await?;
        Ok(left_out)
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
        Client::new(config)
    }

    /// A connection to the daemon, and to nobody else: others may have made the folder of the socket before
    /// us, where that is below `/tmp`.
    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let socket = &self.config.socket;
        let stream = self.dial().await?;
        let failed = |source| ClientError::Connect { socket: socket.clone(), source };
        let uid = stream.peer_cred().map_err(failed)?.uid();
        if trusts(nix::unistd::geteuid().as_raw(), uid) {
            Ok(stream)
        } else {
            Err(ClientError::Stranger { socket: socket.clone(), uid })
        }
    }

    async fn dial(&self) -> Result<UnixStream, ClientError> {
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
        let asked = format!("{} {}", call.method, call.target.as_str());
        let request = call.request()?;
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Broken)?;
        // It ends with the answer, which holds it.
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        }));
        let response = sender.send_request(request).await.map_err(ClientError::Broken)?;
        let answer = Answer { response, asked, driver };
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
        let call = Call::with(Method::POST, target, request)?.upgrade();
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

/// Whether user `us` believes that what user `them` serves is a daemon. Root may ask anybody's.
fn trusts(us: u32, them: u32) -> bool {
    us == 0 || them == us || them == 0
}

/// Whether a failure to connect says that no daemon is there: no socket, or one that nobody left behind.
pub(super) fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn broke_off() -> Refusal {
    Refusal { kind: RefusalKind::Internal, message: "the daemon broke off".to_owned(), hint: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_we_are_believed() {
        assert!(trusts(1000, 1000) && trusts(1000, 0) && trusts(0, 0) && trusts(0, 1000));
        assert!(!trusts(1000, 1001));
    }
}
