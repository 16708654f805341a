//! Where connections come from.

use crate::agent::Agent;
use crate::connection::{self, Transport};
use crate::sys;
use nix::errno::Errno;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::task::LocalSet;

/// How many connections may be open at once. Each costs descriptors and memory of the agent's.
const MAX_CONNECTIONS: usize = 256;

/// How long to wait when there are no descriptors left to accept with.
const BREATH: Duration = Duration::from_millis(50);

/// Counts connections and serves each in a task of its own.
pub(crate) struct Doorkeeper {
    agent: Rc<Agent>,
    open: Rc<Cell<usize>>,
}

/// Frees a connection's place, however it ends.
struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Doorkeeper {
    /// One for this agent.
    pub(crate) fn new(agent: Rc<Agent>) -> Doorkeeper {
        Doorkeeper { agent, open: Rc::default() }
    }

    /// Serves a connection, or closes it at once when there are too many.
    pub(crate) fn admit(&self, stream: impl Transport + 'static) {
        if self.open.get() >= MAX_CONNECTIONS {
            return;
        }
        self.open.set(self.open.get() + 1);
        let place = Place(Rc::clone(&self.open));
        let agent = Rc::clone(&self.agent);
        tokio::task::spawn_local(async move {
            let _place = place;
            // Why a connection ended concerns the host, and the host knows.
            let _ = connection::serve(&agent, Box::new(stream)).await;
        });
    }
}

/// Accepts on a Unix socket, for ever.
pub(crate) async fn accept_unix(listener: &UnixListener, doorkeeper: &Doorkeeper) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => doorkeeper.admit(stream),
            Err(_) => tokio::time::sleep(BREATH).await,
        }
    }
}

/// Makes the Unix socket. A stale one of a process that is gone is replaced.
pub(crate) fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::net::{UnixListener, UnixStream};
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        listener => listener?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes over a socket that listens already. Inherited by no command.
pub(crate) fn inherit_unix(fd: RawFd) -> io::Result<std::os::unix::net::UnixListener> {
    let socket = sys::inherited(fd)?;
    let kind = (getsockopt(&socket, sockopt::SockType)?, getsockopt(&socket, sockopt::AcceptConn)?);
    if kind != (SockType::Stream, true) || sys::socket_family(&socket)? != libc::AF_UNIX {
        return Err(Errno::EPROTOTYPE.into());
    }
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Runs the agent's only thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(LocalSet::new().block_on(&runtime, future))
}
