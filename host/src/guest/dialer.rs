//! The way to an agent, which any number of connections can take.

use super::{Connection, GuestError, vsock};
use crate::sys::socket;
use firn_protocol::AGENT_PORT;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a guest may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many connections are kept that nothing is asked on.
const MOST_IDLE: usize = 4;

/// The way to an agent, and connections to it that were of use before.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    address: Address,
    idle: Arc<Mutex<Vec<Connection>>>,
}

/// Where an agent listens.
#[derive(Clone, Debug)]
enum Address {
    /// A jail's: a Unix socket.
    Unix(PathBuf),
    /// A guest's: the host end of its vsock.
    Vsock(PathBuf),
}

impl Dialer {
    /// The way to a jail.
    pub(crate) fn jail(socket: PathBuf) -> Dialer {
        Dialer { address: Address::Unix(socket), idle: Arc::default() }
    }

    /// The way to a guest, to which there may be a connection: its own, which it was configured by.
    pub(crate) fn guest(socket: PathBuf, ready: Option<Connection>) -> Dialer {
        let idle = Arc::new(Mutex::new(Vec::from_iter(ready)));
        Dialer { address: Address::Vsock(socket), idle }
    }

    /// A connection: one that is idle, or a new one. A jail's agent need not run yet, so the hello of a new one
    /// is not waited for.
    pub(crate) async fn dial(&self) -> Result<Connection, GuestError> {
        if let Some(connection) = self.take() {
            return Ok(connection);
        }
        match &self.address {
            Address::Unix(path) => Connection::begin(socket::connect(path).await.map_err(GuestError::Dial)?),
            Address::Vsock(socket) => {
                let connecting = tokio::time::timeout(PATIENCE, vsock::connect(socket, AGENT_PORT));
                let stream = connecting.await.map_err(|_elapsed| GuestError::Silent {
                    during: "the connection",
                    patience: PATIENCE,
                })?;
                Connection::establish(stream.map_err(GuestError::Dial)?).await
            }
        }
    }

    /// One that still is of use. The guest may have hung up, or have said what nobody asked.
    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(Connection::is_idle)
    }

    /// Keeps a connection for whoever dials next.
    pub(crate) fn keep(&self, mut connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE && connection.is_idle() {
            connection.rest();
            idle.push(connection);
        }
    }
}
