//! One connection: handshake, then requests one after the other.
//!
//! Knows which frames may come when. What a request does is done elsewhere; the one that takes
//! time, exec, borrows the connection while it runs and speaks the frames of its operation itself.

use crate::agent::{Agent, Role};
use crate::kept::{Attachment, KeptError, Register};
use crate::outgoing::Outgoing;
use crate::{exec, files, log, processes, session, stats, worker};
use bytes::BytesMut;
use firn_protocol::{
    Codec, Configure, Failure, FailureCode, Frame, FrameError, Hello, Kind, PROTOCOL_VERSION, Reply, Request,
    RequestId,
};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_util::codec::Decoder as _;

/// How long the host may take to say hello.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long the last reply may take to arrive before the power goes.
const FAREWELL: Duration = Duration::from_millis(250);

/// What an idle connection's buffer holds, in bytes.
const INBOUND: usize = 8 * 1024;

/// A byte stream to the host, whatever it runs over.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Transport for T {}

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConnectionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("cannot write to the host")]
    Write(#[source] io::Error),
    #[error("the host closed the connection during an operation")]
    Closed,
    #[error("the host said no hello in time")]
    Handshake,
    #[error("the host speaks protocol {theirs}, this agent {PROTOCOL_VERSION}")]
    Version { theirs: u32 },
    #[error("{kind:?} frame of operation {id} where none may be")]
    Unexpected { kind: Kind, id: RequestId },
    #[error("stdin beyond the credit granted")]
    OverCredit,
    #[error("{0} is no signal")]
    NoSignal(i32),
}

/// See the module.
pub(crate) struct Connection {
    stream: Box<dyn Transport>,
    inbound: BytesMut,
    pub(crate) outgoing: Outgoing,
    /// The operation before the current one: its input may still be on its way.
    previous: Option<RequestId>,
}

/// Serves a connection to its end.
pub(crate) async fn serve(agent: &Rc<Agent>, stream: Box<dyn Transport>) -> Result<(), ConnectionError> {
    let mut connection = Connection::over(stream);
    connection.greet(agent).await?;
    while let Some(frame) = connection.next_frame().await? {
        if connection.is_late_input(&frame) {
            continue;
        }
        if frame.kind != Kind::Request || connection.previous == Some(frame.id) {
            return Err(ConnectionError::Unexpected { kind: frame.kind, id: frame.id });
        }
        connection.serve_request(agent, &frame).await?;
        connection.previous = Some(frame.id);
        connection.rest();
    }
    Ok(())
}

impl Connection {
    /// One on which nothing has been said.
    pub(crate) fn over(stream: Box<dyn Transport>) -> Connection {
        Connection { stream, inbound: BytesMut::new(), outgoing: Outgoing::default(), previous: None }
    }

    async fn greet(&mut self, agent: &Agent) -> Result<(), ConnectionError> {
        let mut capabilities =
            vec!["exec", "pty", "stats", "shutdown", "limits", "keep", "processes", "files", "sessions"];
        if matches!(agent.role, Role::Guest(_)) {
            capabilities.push("configure");
        }
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            software: concat!("firn-agent ", env!("CARGO_PKG_VERSION")).into(),
            capabilities: capabilities.into_iter().map(String::from).collect(),
        };
        self.outgoing.push(Kind::Hello, 0, &hello)?;
        self.flush().await?;
        let frame = match tokio::time::timeout(HANDSHAKE, self.next_frame()).await {
            Ok(frame) => frame?.ok_or(ConnectionError::Closed)?,
            Err(_elapsed) => return Err(ConnectionError::Handshake),
        };
        if frame.kind != Kind::Hello || frame.id != 0 {
            return Err(ConnectionError::Unexpected { kind: frame.kind, id: frame.id });
        }
        let theirs = frame.message::<Hello>()?.protocol;
        if theirs == PROTOCOL_VERSION { Ok(()) } else { Err(ConnectionError::Version { theirs }) }
    }

    async fn serve_request(&mut self, agent: &Rc<Agent>, frame: &Frame) -> Result<(), ConnectionError> {
        let request = match frame.message::<Request>() {
            Ok(request) => request,
            Err(malformed) => {
                let kind = unknown_type(&frame.body).ok_or(malformed)?;
                let message = format!("this agent does not know the request {kind:?}");
                return self.reply(frame.id, &failure(FailureCode::Unsupported, message)).await;
            }
        };
        let reply = match request {
            Request::Ping => Reply::Pong,
            Request::Stats => match stats::read(agent) {
                Ok(stats) => Reply::Stats(stats),
                Err(error) => failure(FailureCode::Failed, log::chain(&error)),
            },
            Request::Configure(configure) => configure_guest(agent, &configure),
            Request::Exec(_) if agent.is_shutting_down() => {
                failure(FailureCode::Invalid, "the sandbox is shutting down".into())
            }
            Request::Exec(exec) => match exec.keep.clone() {
                None => exec::run(agent, self, frame.id, &exec).await?,
                Some(keep) => match Register::start(agent, *exec, &keep) {
                    Ok(attachment) => attachment.serve(self, frame.id).await?,
                    Err(error) => no_such_command(&error),
                },
            },
            Request::Attach(attach) => match agent.kept.find(attach.command) {
                Ok(kept) => Attachment::later(kept, &attach).serve(self, frame.id).await?,
                Err(error) => no_such_command(&error),
            },
            Request::Commands => Reply::Commands { commands: agent.kept.list() },
            Request::Forget { command } => match agent.kept.forget(command) {
                Ok(()) => Reply::Forgotten,
                Err(error) => no_such_command(&error),
            },
            Request::Processes => {
                let own = agent.own_processes();
                worker::run(agent, self, frame.id, move |_| processes::list(own)).await?
            }
            request @ (Request::FileStat(_)
            | Request::FileList(_)
            | Request::FileRead(_)
            | Request::FileRemove(_)
            | Request::ArchiveRead(_)
            | Request::ArchiveWrite(_)) => {
                worker::run(agent, self, frame.id, |line| files::work(request, line)).await?
            }
            Request::SessionCreate(_) | Request::SessionRun(_) if agent.is_shutting_down() => {
                failure(FailureCode::Invalid, "the sandbox is shutting down".into())
            }
            Request::SessionCreate(create) => session::create(agent, *create).await,
            Request::SessionRun(run) => session::run(agent, self, frame.id, *run).await?,
            Request::SessionInterrupt(interrupt) => agent.sessions.interrupt(&interrupt),
            Request::SessionList => agent.sessions.list(),
            Request::SessionInspect(target) => agent.sessions.inspect(&target.session),
            Request::SessionClose(target) => session::close(agent, &target.session).await,
            Request::Shutdown => return self.shut_down(agent, frame.id).await,
        };
        self.reply(frame.id, &reply).await
    }

    async fn shut_down(&mut self, agent: &Agent, id: RequestId) -> Result<(), ConnectionError> {
        agent.end_commands().await;
        if let Role::Guest(guest) = &agent.role {
            guest.write_back();
        }
        // From here on the way leads to the end, whether or not the host still listens.
        let _ = tokio::time::timeout(FAREWELL, async {
            if self.reply(id, &Reply::ShuttingDown).await.is_ok() {
                let _ = self.stream.shutdown().await;
                // The host has read the reply when it closes too.
                while matches!(self.next_frame().await, Ok(Some(_))) {}
            }
        })
        .await;
        match &agent.role {
            Role::Guest(guest) => guest.power_off(),
            Role::Plain { .. } => std::process::exit(0),
        }
        Ok(())
    }

    async fn reply(&mut self, id: RequestId, reply: &Reply) -> Result<(), ConnectionError> {
        self.outgoing.push(Kind::Reply, id, reply)?;
        self.flush().await
    }

    /// Sends all that has been made ready.
    pub(crate) async fn flush(&mut self) -> Result<(), ConnectionError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    async fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// Writes all that waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.outgoing.poll_flush(&mut self.stream, cx).map_err(ConnectionError::Write)
    }

    /// Writes what waits elsewhere. Nothing may wait here.
    pub(crate) fn poll_send(&mut self, frames: &mut Outgoing, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        frames.poll_flush(&mut self.stream, cx)
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, FrameError>> {
        loop {
            if let Some(frame) = Codec.decode(&mut self.inbound)? {
                return Poll::Ready(Ok(Some(frame)));
            }
            if self.inbound.capacity() == self.inbound.len() {
                self.inbound.reserve(INBOUND);
            }
            let stream = std::pin::Pin::new(&mut self.stream);
            if ready!(tokio_util::io::poll_read_buf(stream, cx, &mut self.inbound))? == 0 {
                return Poll::Ready(Codec.decode_eof(&mut self.inbound));
            }
        }
    }

    /// Gives back memory that only a busy connection needs.
    fn rest(&mut self) {
        self.outgoing.shrink();
        if self.inbound.is_empty() && self.inbound.capacity() > INBOUND {
            self.inbound = BytesMut::new();
        }
    }

    /// Whether a frame is input of the operation before: it was sent before its reply arrived.
    pub(crate) fn is_late_input(&self, frame: &Frame) -> bool {
        self.previous == Some(frame.id) && matches!(frame.kind, Kind::Stdin | Kind::StdinEnd | Kind::Input)
    }
}

fn configure_guest(agent: &Agent, configure: &Configure) -> Reply {
    match &agent.role {
        Role::Guest(guest) => match guest.configure(configure) {
            Ok(()) => Reply::Configured,
            Err(error) => failure(error.code(), log::chain(&error)),
        },
        // Host name, clock and mounts belong to whoever runs this system, and that is not the agent.
        Role::Plain { .. } => failure(
            FailureCode::Unsupported,
            "this agent is not a guest's: it has nothing to configure".into(),
        ),
    }
}

fn no_such_command(error: &KeptError) -> Reply {
    let code = match error {
        KeptError::Exists(_) | KeptError::Runs(_) => FailureCode::Invalid,
        KeptError::Unknown(_) => FailureCode::NotFound,
        KeptError::TooMany => FailureCode::TooMany,
    };
    failure(code, error.to_string())
}

/// The reply that a request could not be served.
pub(crate) fn failure(code: FailureCode, message: String) -> Reply {
    Reply::Error(Failure { code, message })
}

/// The `type` of a request this version has none of. `None`: it has one, or there is no such field,
/// and the frame is malformed.
fn unknown_type(body: &[u8]) -> Option<String> {
    let mut request: serde_json::Value = serde_json::from_slice(body).ok()?;
    let name = request.get_mut("type")?.take();
    // Without its other fields a known type is refused for another reason, if at all. This is how
    // serde says it; there is no list of known types to fall out of date.
    let refused = serde_json::from_value::<Request>(serde_json::json!({ "type": name })).err()?;
    let unknown = refused.to_string().starts_with("unknown variant");
    unknown.then(|| name.as_str().map(String::from)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_unknown_only_if_it_is() {
        assert_eq!(unknown_type(br#"{"type":"teleport","to":1}"#).as_deref(), Some("teleport"));
        for malformed in [r#"{"type":"exec"}"#, r#"{"type":"ping"}"#, r#"{"type":7}"#, "{}", "7", "{"] {
            assert_eq!(unknown_type(malformed.as_bytes()), None, "{malformed}");
        }
    }
}
