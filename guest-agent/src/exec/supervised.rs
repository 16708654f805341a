//! The agent's handle on a supervisor.

use super::command::Command;
use super::report::{Order, PACKET, Report, Stage, StartFailure};
use super::supervisor::{self, Beyond, Brief, Inherited, Stdio};
use crate::agent::Agent;
use crate::sys;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A running supervisor. Dropping it ends the command: the supervisor sees the socket pair close.
pub(crate) struct Supervised {
    agent: Rc<Agent>,
    pid: Pid,
    control: Rc<AsyncFd<OwnedFd>>,
}

impl Supervised {
    /// Makes a supervisor, which starts the command.
    pub(crate) fn spawn(
        agent: &Rc<Agent>,
        command: Command,
        stdio: Stdio,
        beyond: Vec<Beyond>,
    ) -> Result<Supervised, StartFailure> {
        let failed = |errno: Errno| StartFailure { stage: Stage::Process, errno: errno as i32 };
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(failed)?;
        let brief = Brief { command, stdio, beyond, control: theirs };
        let inherited = Inherited {
            signals: agent.signals(),
            entrance: agent.entrance(),
            search_path: agent.search_path(),
        };
        // The other ends of the streams and of the socket pair are dropped with the closure here,
        // and used up by the supervisor there.
        let pid = sys::fork(move || supervisor::run(brief, &inherited)).map_err(failed)?;
        let registered = sys::watch(ours, Interest::READABLE).map(Rc::new);
        let control = registered.map_err(|error| {
            // The pair is closed by now and the supervisor on its way out.
            failed(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EMFILE)))
        })?;
        agent.register(pid, &control);
        Ok(Supervised { agent: Rc::clone(agent), pid, control })
    }

    /// Gives an order. A supervisor so far behind that its queue is full is no good: it is killed, and
    /// what it supervised ended in its place.
    pub(crate) fn order(&self, order: Order) {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let sent = send(self.control.get_ref().as_raw_fd(), &order.to_packet(), flags);
        if sent == Err(Errno::EAGAIN) && order == Order::Kill {
            self.kill_supervisor();
        }
    }

    /// Kills the supervisor itself. [`Supervised::end_strays`] must follow.
    pub(crate) fn kill_supervisor(&self) {
        self.agent.kill_supervisor(self.pid);
    }

    /// The next report. `None`: the supervisor died without a last one.
    pub(crate) fn poll_report(&self, cx: &mut Context<'_>) -> Poll<Option<Report>> {
        loop {
            let Ok(mut ready) = ready!(self.control.poll_read_ready(cx)) else {
                return Poll::Ready(None);
            };
            let mut packet = [0; PACKET];
            let received = ready.try_io(|control| {
                recv(control.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from)
            });
            match received {
                Ok(Ok(length)) => return Poll::Ready(Report::from_packet(&packet[..length])),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return Poll::Ready(None),
                Err(_would_block) => {}
            }
        }
    }

    /// Ends what a supervisor that died has left behind.
    pub(crate) async fn end_strays(&self) {
        self.agent.end_strays_of(self.pid).await;
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.agent.command_over();
    }
}
