//! The server over stdin and stdout: for a client that has started us.

use super::Server;
use rmcp::service::ServerInitializeError;
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::transport::io::stdio_pipes;
use rmcp::{RoleServer, ServiceExt as _};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The longest message that is read, in bytes: nix-sandbox-mcp's. What is longer is passed over.
const LONGEST: usize = 64 << 20;

/// How long the ends of sandboxes may take that were made for calls nobody waits for any more.
const PATIENCE: Duration = Duration::from_secs(25);

/// The client was not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    /// It did not say what clients say first.
    #[error("the client did not begin as MCP clients do")]
    Begin(#[source] Box<ServerInitializeError>),
}

/// Serves until the client is gone or `stop` is cancelled, and leaves nothing behind that ends with it.
pub(crate) async fn serve(server: Server, stop: CancellationToken) -> Result<(), StdioError> {
    let work = server.work().clone();
    let (stdin, stdout) = stdio_pipes();
    let transport =
        AsyncRwTransport::<RoleServer, _, _>::new_server(stdin, stdout).with_max_line_length(LONGEST);
    match server.serve_with_ct(transport, stop).await {
        // Its last answers are written before this ends.
        Ok(running) => drop(running.waiting().await),
        // It went away before it said anything, or was told to.
        Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => {}
        Err(error) => return Err(StdioError::Begin(Box::new(error))),
    }
    work.close();
    let _ = tokio::time::timeout(PATIENCE, work.wait()).await;
    Ok(())
}
