//! Work that might block the agent, in a process of its own.
//!
//! What is read from a file, a process or a user's folder may never come: a worker then waits for it, and
//! the agent does not. Like a supervisor it is a copy of the agent that never becomes anything else. It
//! speaks the frames of its operation, and the agent passes them on:
//!
//! ```text
//!   host ◀──frames──▶ agent ◀──frames──▶ worker ──▶ files, /proc
//! ```
//!
//! It is killed when the host cancels or hangs up. What it uses of memory counts as the commands' does.

use crate::agent::Agent;
use crate::connection::{Connection, ConnectionError, failure};
use crate::exec::{close_all_but, mark_for_death};
use crate::outgoing::Outgoing;
use crate::sys;
use bytes::{Bytes, BytesMut};
use firn_protocol::{
    Codec, Event, FailureCode, Frame, FrameError, Input, Kind, Reply, RequestId, STDIN_WINDOW,
};
use nix::sys::prctl;
use nix::unistd::Pid;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::Poll;
use tokio_util::codec::{Decoder as _, Encoder as _};

/// Nothing is taken from a worker while this much waits for the host, in bytes.
const ENOUGH: usize = 64 * 1024;

/// How much of stdin a worker takes before it grants more.
const CREDIT_STEP: u32 = STDIN_WINDOW / 4;

/// A worker that has not been reaped. Dropping it kills it.
struct Worker<'a> {
    agent: &'a Agent,
    pid: Pid,
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.agent.kill_supervisor(self.pid);
    }
}

/// Does this work in a worker, and gives its reply.
pub(crate) async fn run(
    agent: &Rc<Agent>,
    host: &mut Connection,
    id: RequestId,
    work: impl FnOnce(&mut Line) -> Reply,
) -> Result<Reply, ConnectionError> {
    let (worker, line) = match start(agent, id, work) {
        Ok(started) => started,
        Err(error) => return Ok(failure(FailureCode::Failed, format!("cannot make a process: {error}"))),
    };
    let reply = relay(host, Connection::over(Box::new(line)), id).await;
    drop(worker);
    reply
}

fn start<'a>(
    agent: &'a Agent,
    id: RequestId,
    work: impl FnOnce(&mut Line) -> Reply,
) -> io::Result<(Worker<'a>, tokio::net::UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let ours = tokio::net::UnixStream::from_std(ours)?;
    let entrance = agent.entrance();
    let pid = sys::fork(move || live(theirs, entrance, id, work))?;
    agent.register_worker(pid);
    Ok((Worker { agent, pid }, ours))
}

/// The life of a worker.
fn live(
    stream: UnixStream,
    entrance: Option<BorrowedFd<'_>>,
    id: RequestId,
    work: impl FnOnce(&mut Line) -> Reply,
) -> Infallible {
    let mut kept = vec![0, 1, 2, stream.as_raw_fd()];
    if let Some(entrance) = entrance {
        kept.push(entrance.as_raw_fd());
        // As for a command: who has taken the group away has done so to their own loss.
        let _ = nix::unistd::write(entrance.as_fd(), b"0");
    }
    close_all_but(&mut kept);
    let _ = prctl::set_name(c"firn-worker");
    let _ = mark_for_death(c"self/oom_score_adj");
    // Should the agent end, so does this. It may have done so already; then nobody reads what is written.
    let _ = prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let mut line = Line { stream, id, inbound: BytesMut::new(), taken: 0 };
    let reply = work(&mut line);
    if let Ok(frame) = Frame::json(Kind::Reply, id, &reply) {
        let _ = line.send(frame);
    }
    sys::exit_now(0)
}

/// Passes frames on, both ways, until the worker has replied.
async fn relay(host: &mut Connection, mut line: Connection, id: RequestId) -> Result<Reply, ConnectionError> {
    enum Heard {
        Host(Frame),
        Worker(Option<Frame>),
        Sent,
    }
    let mut credit = STDIN_WINDOW;
    loop {
        let heard = poll_fn(|cx| {
            // A worker takes no more than it has granted, so what waits for it is no more than that.
            if line.outgoing.waiting() > 0
                && let Poll::Ready(Err(_)) = line.poll_flush(cx)
            {
                // It has ended. What it said before is still to be heard.
                line.outgoing = Outgoing::default();
            }
            if let Poll::Ready(frame) = host.poll_frame(cx) {
                return Poll::Ready(Ok(Heard::Host(frame?.ok_or(ConnectionError::Closed)?)));
            }
            if host.outgoing.waiting() < ENOUGH
                && let Poll::Ready(frame) = line.poll_frame(cx)
            {
                return Poll::Ready(Ok(Heard::Worker(frame.ok().flatten())));
            }
            if host.outgoing.waiting() > 0 && host.poll_flush(cx)?.is_ready() {
                return Poll::Ready(Ok(Heard::Sent));
            }
            Poll::<Result<_, ConnectionError>>::Pending
        })
        .await?;
        match heard {
            Heard::Sent => {}
            Heard::Worker(None) => return Ok(failure(FailureCode::Failed, "its process was killed".into())),
            Heard::Worker(Some(frame)) => match frame.kind {
                Kind::Reply => return Ok(frame.message()?),
                kind => {
                    if kind == Kind::Event
                        && let Event::StdinCredit { bytes } = frame.message()?
                    {
                        credit = credit.saturating_add(bytes);
                    }
                    host.outgoing.pass(&frame);
                }
            },
            Heard::Host(frame) if host.is_late_input(&frame) => {}
            Heard::Host(frame) if frame.id != id => {
                return Err(ConnectionError::Unexpected { kind: frame.kind, id: frame.id });
            }
            Heard::Host(frame) => match frame.kind {
                Kind::Stdin => {
                    let length = u32::try_from(frame.body.len()).unwrap_or(u32::MAX);
                    credit = credit.checked_sub(length).ok_or(ConnectionError::OverCredit)?;
                    line.outgoing.pass(&frame);
                }
                Kind::StdinEnd => line.outgoing.pass(&frame),
                Kind::Input => match frame.message()? {
                    Input::Cancel => return Ok(failure(FailureCode::Cancelled, "it was cancelled".into())),
                    Input::Resize(_) | Input::Signal { .. } => {}
                },
                kind => return Err(ConnectionError::Unexpected { kind, id: frame.id }),
            },
        }
    }
}

/// A worker's end of the operation. Blocks.
pub(crate) struct Line {
    stream: UnixStream,
    id: RequestId,
    inbound: BytesMut,
    /// How much of stdin was taken and not granted again.
    taken: u32,
}

impl Line {
    fn send(&mut self, frame: Frame) -> io::Result<()> {
        let mut wire = BytesMut::new();
        Codec.encode(frame, &mut wire).map_err(io::Error::other)?;
        self.stream.write_all(&wire)
    }

    /// Sends output.
    pub(crate) fn send_output(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.send(Frame::new(Kind::Stdout, self.id, Bytes::copy_from_slice(bytes)))
    }

    /// The next of stdin. `None`: its end.
    pub(crate) fn receive_input(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match Codec.decode(&mut self.inbound).map_err(io::Error::other)? {
                Some(frame) if frame.kind == Kind::Stdin => {
                    self.take(frame.body.len())?;
                    return Ok(Some(frame.body));
                }
                Some(frame) if frame.kind == Kind::StdinEnd => return Ok(None),
                Some(_) => {}
                None => {
                    let mut chunk = [0; 64 * 1024];
                    let read = self.stream.read(&mut chunk)?;
                    if read == 0 {
                        return Err(io::Error::other(FrameError::Truncated));
                    }
                    self.inbound.extend_from_slice(&chunk[..read]);
                }
            }
        }
    }

    /// Grants as much again as was taken.
    fn take(&mut self, length: usize) -> io::Result<()> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_add(length);
        if self.taken < CREDIT_STEP {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.taken);
        let event = Event::StdinCredit { bytes };
        self.send(Frame::json(Kind::Event, self.id, &event).map_err(io::Error::other)?)
    }
}
