//! A request.

use super::super::wire::{FRAMES, JSON, LINES};
use super::{ClientError, Target};
use axum::body::Body;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, TE, UPGRADE};
use hyper::{Method, Request};
use serde::Serialize;

/// A request that was not sent.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) target: Target,
    body: Body,
    json: bool,
    accept: Option<&'static str>,
    upgrade: bool,
    trailers: bool,
}

impl Call {
    /// One that asks for nothing but what its target says.
    pub(super) fn new(method: Method, target: Target) -> Call {
        Call {
            method,
            target,
            body: Body::empty(),
            json: false,
            accept: None,
            upgrade: false,
            trailers: false,
        }
    }

    /// One that says something.
    pub(super) fn with<T: Serialize>(
        method: Method,
        target: impl Into<Target>,
        request: &T,
    ) -> Result<Call, ClientError> {
        let body = serde_json::to_vec(request).map_err(ClientError::Request)?;
        Ok(Call { body: body.into(), json: true, ..Call::new(method, target.into()) })
    }

    /// One that is answered line by line.
    pub(super) fn lines(self) -> Call {
        Call { accept: Some(LINES), ..self }
    }

    /// One that sends this.
    pub(super) fn body(self, body: Body) -> Call {
        Call { body, ..self }
    }

    /// One after whose answer something may be said of it.
    pub(super) fn trailers(self) -> Call {
        Call { trailers: true, ..self }
    }

    /// One whose connection becomes a command's stream.
    pub(super) fn upgrade(self) -> Call {
        Call { upgrade: true, ..self }
    }

    /// As it is sent.
    pub(super) fn request(self) -> Result<Request<Body>, ClientError> {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        // It may be too long to be one.
        *request.uri_mut() = self.target.as_str().parse().map_err(ClientError::Target)?;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("localhost"));
        if self.json {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        }
        if let Some(accept) = self.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if self.trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        if self.upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(FRAMES));
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_asked_for_is_no_request() {
        let path = |length| Target::new("/v1/archive").path(&"/".repeat(length).as_str().into());
        assert!(Call::new(Method::GET, path(10)).request().is_ok());
        let refused = Call::new(Method::GET, path(100_000)).request();
        assert!(matches!(refused, Err(ClientError::Target(_))), "{refused:?}");
    }
}
