//! Reading requests: bounded, in time, and refused in our own words.

use super::percent;
use super::types::{Refusal, RefusalKind};
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use firn_protocol::Text;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The largest request, in bytes: an argument vector and environment of the kernel's own limit fit.
const MOST_REQUEST: usize = 4 << 20;

/// How long the body of a request may take.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::Invalid, message)
}

/// What a request's body asks for. Nothing at all is an empty object.
#[derive(Debug)]
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Asked<T>, Refusal> {
        read(request.into_body()).await.map(Asked)
    }
}

async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let collected = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, MOST_REQUEST).collect())
        .await
        .map_err(|_elapsed| invalid(format!("the request took longer than {} s", BODY_PATIENCE.as_secs())))?;
    let bytes = match collected {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(invalid(format!("the request is larger than {MOST_REQUEST} bytes")));
        }
        Err(error) => return Err(invalid(format!("the request cannot be read: {error}"))),
    };
    from_json(if bytes.is_empty() { b"{}" } else { &bytes })
}

/// What is asked for, as JSON.
pub(super) fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(json).map_err(|error| invalid(format!("the request does not fit: {error}")))
}

/// What a request's query asks for.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Params<T>, Refusal> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Params(params)),
            Err(error) => Err(invalid(format!("the query does not fit: {}", error.body_text()))),
        }
    }
}

/// The path of the sandbox's that a request's query names, `path=`: any bytes.
#[derive(Debug)]
pub(super) struct SandboxPath(pub(super) Text);

impl<S: Send + Sync> FromRequestParts<S> for SandboxPath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<SandboxPath, Refusal> {
        let mut fields = parts.uri.query().unwrap_or_default().split('&');
        let path = fields
            .find_map(|field| field.strip_prefix("path="))
            .and_then(percent::decode)
            .filter(|path| path.starts_with(b"/"))
            .ok_or_else(|| invalid("the query needs an absolute path, percent-encoded: path=%2Fetc"))?;
        Ok(SandboxPath(Text::from_bytes(&path)))
    }
}

/// The name in a request's path.
#[derive(Debug)]
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named, Refusal> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Named(name)),
            Err(error) => Err(invalid(format!("the path does not fit: {}", error.body_text()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn path_of(uri: &str) -> Result<Text, Refusal> {
        let (mut parts, ()) = axum::http::Request::get(uri).body(()).unwrap().into_parts();
        SandboxPath::from_request_parts(&mut parts, &()).await.map(|SandboxPath(path)| path)
    }

    #[tokio::test]
    async fn a_path_of_a_sandbox_is_any_bytes() {
        let path = path_of("/v1/sandboxes/x/archive?other=1&path=%2Fa%FF%0A%26%3D+b").await.unwrap();
        assert_eq!(path.as_bytes(), b"/a\xff\n&=+b");
        for wrong in ["", "?path=", "?path=a", "?path=%2", "?path=%zz", "?path", "?paths=%2Fa"] {
            let refused = path_of(&format!("/archive{wrong}")).await.unwrap_err();
            assert_eq!(refused.kind, RefusalKind::Invalid, "{wrong}");
        }
    }
}
