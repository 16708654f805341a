//! The way to an agent, which any number of connections can take.

use super::{Connection, GuestError, vsock};
use crate::sys::socket;
use firn_protocol::AGENT_PORT;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a guest may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where an agent listens.
#[derive(Clone, Debug)]
pub(crate) enum Dialer {
    /// A jail's: a Unix socket.
    Unix(PathBuf),
    /// A guest's: the host end of its vsock.
    Vsock {
        /// Its path.
        socket: PathBuf,
        /// A connection that is there already: the guest's own, which it was configured by.
        ready: Arc<Mutex<Option<Connection>>>,
    },
}

impl Dialer {
    /// The way to a guest, to which there may be a connection.
    pub(crate) fn vsock(socket: PathBuf, ready: Option<Connection>) -> Dialer {
        Dialer::Vsock { socket, ready: Arc::new(Mutex::new(ready)) }
    }

    /// A new connection. A jail's agent need not run yet, so its hello is not waited for.
    pub(crate) async fn dial(&self) -> Result<Connection, GuestError> {
        match self {
            Dialer::Unix(path) => Connection::begin(socket::connect(path).await.map_err(GuestError::Dial)?),
            Dialer::Vsock { socket, ready } => {
                let spare = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(connection) = spare {
                    return Ok(connection);
                }
                let connecting = tokio::time::timeout(PATIENCE, vsock::connect(socket, AGENT_PORT));
                let stream = connecting.await.map_err(|_elapsed| GuestError::Silent {
                    during: "the connection",
                    patience: PATIENCE,
                })?;
                Connection::establish(stream.map_err(GuestError::Dial)?).await
            }
        }
    }
}
