//! The way to an agent, which any number of connections can take.

use super::{Connection, GuestError, vsock};
use crate::sys::socket;
use firn_protocol::AGENT_PORT;
use std::path::PathBuf;
use std::time::Duration;

/// How long a guest may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dialer {
    /// A jail's: a Unix socket.
    Unix(PathBuf),
    /// A guest's: the host end of its vsock.
    Vsock(PathBuf),
}

impl Dialer {
    /// A new connection. A jail's agent need not run yet, so its hello is not waited for.
    pub(crate) async fn dial(&self) -> Result<Connection, GuestError> {
        match self {
            Dialer::Unix(path) => Connection::begin(socket::connect(path).await.map_err(GuestError::Dial)?),
            Dialer::Vsock(path) => {
                let connecting = tokio::time::timeout(PATIENCE, vsock::connect(path, AGENT_PORT));
                let stream = connecting.await.map_err(|_elapsed| GuestError::Silent {
                    during: "the connection",
                    patience: PATIENCE,
                })?;
                Connection::establish(stream.map_err(GuestError::Dial)?).await
            }
        }
    }
}
