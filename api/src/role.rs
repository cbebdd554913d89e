//! The api role: serves the Managed Agents API on its listeners.

use claviger_vault_protocol::PublicKey;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;

/// What the role is told at start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address of our own MCP server, by which an agent's `mcp_servers` entry names our tools.
    pub mcp_url: String,
    /// The vault's long-lived key: secrets are sealed to it.
    pub vault_key: PublicKey,
    /// User ids that need no key on the unix listener.
    pub operators: Vec<u32>,
}

/// Links to the other roles and the listeners to serve.
#[derive(Debug)]
pub struct Links {
    /// To the session role.
    pub session: mpsc::Receiver<UnixStream>,
    /// To the vault.
    pub vault: mpsc::Receiver<UnixStream>,
    /// Listener for SDK clients and the console.
    pub http: Option<TcpListener>,
    /// Listener for the command line, whose peers are known by uid.
    pub unix: Option<UnixListener>,
}

/// Serves until `stop`.
///
/// # Errors
/// [`ApiError::Listener`] where a listener fails for good.
pub async fn run(options: Options, links: Links, stop: CancellationToken) -> Result<(), ApiError> {
    tracing::info!(mcp_url = %options.mcp_url, http = links.http.is_some(), "api role starts");
    stop.cancelled().await;
    Ok(())
}
