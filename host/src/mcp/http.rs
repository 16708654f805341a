//! The server over streamable HTTP: for clients that are elsewhere, or many.
//!
//! ```text
//!   POST, GET, DELETE /mcp ──▶ who has this token? ──▶ that client's service ──▶ Host, Origin ──▶ Server
//! ```
//!
//! Each client that is told apart has a service of its own, so that nothing of another's can be named: neither a
//! session of the protocol nor one of code. There is no TLS here: that is a proxy's.

use super::Server;
use super::keys::Keys;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Where clients find it.
const PATH: &str = "/mcp";

/// The largest request, in bytes: all the code that there may be, however it is written.
const MOST_REQUEST: usize = 16 << 20;

/// How long connections may take to end, and sandboxes that were made for calls.
const PATIENCE: Duration = Duration::from_secs(25);

/// The names of this host that need no other.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Web pages on this host.
const LOOPBACK_ORIGINS: [&str; 3] = ["http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*"];

/// How it is served.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Who is let in.
    pub(crate) keys: Keys,
    /// What clients may call this host besides, in `Host`.
    pub(crate) hosts: Vec<String>,
    /// Of which web pages besides requests are answered, in `Origin`.
    pub(crate) origins: Vec<String>,
}

/// It cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// Others could connect.
    #[error("{0} is not a loopback address: whoever can reach it would be let in without a token")]
    Exposed(SocketAddr),
    /// Nobody may listen there.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nobody can connect any more.
    #[error("cannot accept connections")]
    Accept(#[source] io::Error),
}

type Service = StreamableHttpService<Server, LocalSessionManager>;

/// Who is let in, and what each of them is served by.
struct Gate {
    keys: Keys,
    services: Vec<Service>,
}

impl Http {
    /// Refuses what would let anybody in from elsewhere.
    pub(crate) fn check(&self) -> Result<(), HttpError> {
        match self.keys {
            Keys::Anyone if !self.address.ip().is_loopback() => Err(HttpError::Exposed(self.address)),
            Keys::Anyone | Keys::Holders(_) => Ok(()),
        }
    }

    /// How requests are judged, whoever they are from. A web page that gives us a name of its own (DNS rebinding)
    /// is refused for the name, and any page for its origin.
    fn rules(&self, stop: &CancellationToken) -> StreamableHttpServerConfig {
        let mut hosts: Vec<String> = LOOPBACK.map(str::to_owned).into();
        hosts.extend(self.hosts.iter().cloned());
        let ip = self.address.ip();
        if !ip.is_unspecified() {
            hosts.push(ip.to_string());
        }
        let origins = LOOPBACK_ORIGINS.map(str::to_owned).into_iter().chain(self.origins.iter().cloned());
        let rules = StreamableHttpServerConfig::default()
            .with_allowed_origins(origins)
            .enforce_origin_validation()
            .with_max_request_body_bytes(MOST_REQUEST)
            .with_cancellation_token(stop.child_token());
        match self.takes_any_name(ip) {
            true => rules.disable_allowed_hosts(),
            false => rules.with_allowed_hosts(hosts),
        }
    }

    /// On all addresses a host has names that we cannot know. What a page lacks then is a token.
    fn takes_any_name(&self, ip: IpAddr) -> bool {
        ip.is_unspecified() && self.hosts.is_empty() && matches!(self.keys, Keys::Holders(_))
    }
}

/// Serves until `stop` is cancelled, and leaves nothing behind that ends with it. `listening` is told the address.
pub(crate) async fn serve(
    server: Server,
    http: Http,
    stop: CancellationToken,
    listening: impl FnOnce(String),
) -> Result<(), HttpError> {
    http.check()?;
    let address = http.address;
    let listen = |source| HttpError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    listening(format!("http://{}{PATH}", listener.local_addr().map_err(listen)?));
    let work = server.work().clone();
    let serve = |principal| {
        let server = server.of(principal);
        Service::new(move || Ok(server.clone()), Arc::default(), http.rules(&stop))
    };
    let services = http.keys.principals().into_iter().map(serve).collect();
    let gate = Arc::new(Gate { keys: http.keys, services });
    let router = Router::new().route(PATH, any(answer)).with_state(gate);
    let ended = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let ended = async { ended.await };
    tokio::select! {
        ended = ended => ended.map_err(HttpError::Accept)?,
        () = async { stop.cancelled().await; tokio::time::sleep(PATIENCE).await } => {}
    }
    work.close();
    let _ = tokio::time::timeout(PATIENCE, work.wait()).await;
    Ok(())
}

async fn answer(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    let authorization = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let service = gate.keys.holder(authorization).and_then(|holder| gate.services.get(holder));
    match service {
        Some(service) => service.handle(request).await.map(Body::new),
        None => {
            let challenge = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
            (StatusCode::UNAUTHORIZED, challenge, "a token is needed: Authorization: Bearer TOKEN\n")
                .into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(address: &str, keys: Keys) -> Http {
        Http { address: address.parse().unwrap(), keys, hosts: Vec::new(), origins: Vec::new() }
    }

    #[test]
    fn nobody_is_let_in_from_elsewhere_without_a_token() {
        let token = || Keys::one("0123456789abcdef").unwrap();
        assert!(http("127.0.0.1:1", Keys::Anyone).check().is_ok());
        assert!(http("[::1]:1", Keys::Anyone).check().is_ok());
        for elsewhere in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            assert!(matches!(http(elsewhere, Keys::Anyone).check(), Err(HttpError::Exposed(_))));
            assert!(http(elsewhere, token()).check().is_ok());
        }
    }

    #[test]
    fn names_are_checked_unless_they_cannot_be_known() {
        let token = || Keys::one("0123456789abcdef").unwrap();
        let rules = |http: Http| http.rules(&CancellationToken::new());
        let hosts = rules(http("192.0.2.1:1", token())).allowed_hosts;
        assert_eq!(hosts, ["localhost", "127.0.0.1", "::1", "192.0.2.1"]);
        assert!(rules(http("0.0.0.0:1", token())).allowed_hosts.is_empty());
        let named = Http { hosts: vec!["firn.example".into()], ..http("0.0.0.0:1", token()) };
        assert_eq!(rules(named).allowed_hosts.last().unwrap(), "firn.example");
        assert_eq!(rules(http("127.0.0.1:1", Keys::Anyone)).allowed_hosts.len(), 4);
    }
}
