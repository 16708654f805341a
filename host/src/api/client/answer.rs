//! An answer: as a whole, as it comes, or line by line.

use super::super::types::API_VERSION;
use super::super::wire::{LEFT_OUT, VERSIONS};
use super::ClientError;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::SERVER;
use hyper::{HeaderMap, Response};
use serde::de::DeserializeOwned;
use tokio_util::task::AbortOnDropHandle;

/// The largest answer that is read as a whole, in bytes.
const MOST_ANSWER: usize = 64 << 20;

/// The head of an answer, with what drives the connection behind its body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) asked: String,
    /// What drives the connection.
    pub(super) driver: AbortOnDropHandle<()>,
}

/// An answer as a whole.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) body: Bytes,
    pub(super) theirs: String,
    pub(super) asked: String,
}

impl Answer {
    /// The name and version of the daemon.
    fn theirs(&self) -> String {
        let software = self.response.headers().get(SERVER).and_then(|value| value.to_str().ok());
        software.unwrap_or("something else").replace('/', " ")
    }

    /// All of it.
    pub(super) async fn whole(self) -> Result<Fetched, ClientError> {
        let theirs = self.theirs();
        let body = Limited::new(self.response.into_body(), MOST_ANSWER)
            .collect()
            .await
            .map_err(ClientError::Body)?
            .to_bytes();
        Ok(Fetched { body, theirs, asked: self.asked })
    }

    /// Why it is no success.
    pub(super) async fn into_error(self) -> ClientError {
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
    left_out: u64,
    _driver: AbortOnDropHandle<()>,
}

/// How much was left out of an archive, as far as that is said.
pub(super) fn left_out(headers: &HeaderMap) -> u64 {
    headers.get(LEFT_OUT).and_then(|count| count.to_str().ok()?.parse().ok()).unwrap_or(0)
}

impl Chunks {
    pub(super) fn new(answer: Answer) -> Chunks {
        Chunks { body: answer.response.into_body(), left_out: 0, _driver: answer.driver }
    }

    /// The next part of it, or none at its end. May be dropped at any time without loss.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            match frame.map_err(ClientError::Broken)?.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(frame) => self.left_out += frame.trailers_ref().map_or(0, left_out),
            }
        }
        Ok(None)
    }

    /// How much was left out of the archive that it is: known at its end.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
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
    pub(super) fn new(answer: Answer) -> Lines<T> {
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
