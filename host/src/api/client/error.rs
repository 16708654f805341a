//! Why a call did not succeed.

use super::super::start::StartError;
use super::super::types::{API_VERSION, Refusal};
use hyper::StatusCode;
use std::io;
use std::path::PathBuf;

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
    /// Somebody else listens there, whom nothing should be told.
    #[error("{} is served by user {uid}, who is neither root nor us", socket.display())]
    Stranger {
        /// The socket.
        socket: PathBuf,
        /// Who.
        uid: u32,
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
    /// What it is asked for has too long a name.
    #[error("what is asked for cannot be named in a request")]
    Target(#[source] axum::http::uri::InvalidUri),
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
