//! The api role: serves the Managed Agents API on its listeners.

use std::sync::Arc;

use axum::{Router, middleware};
use claviger_session::SessionClient;
use claviger_vault_protocol::PublicKey;
use claviger_vault_protocol::client::ApiVault;
use claviger_vault_protocol::wire::Link;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Keys, Shared};
use crate::error::ApiError;
use crate::object::fold::Folds;
use crate::{agent, environment, event, gate, listen, session, vault};

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

/// Serves until `stop`, then gives requests in flight three seconds.
///
/// # Errors
/// [`ApiError::Unlinked`] where the links to the session role or to the vault have closed for good.
pub async fn run(options: Options, links: Links, stop: CancellationToken) -> Result<(), ApiError> {
    tracing::info!(mcp_url = %options.mcp_url, http = links.http.is_some(), "api role starts");
    let (log, log_driver) = SessionClient::new(links.session);
    let (vault, vault_driver) = Link::new("vault", links.vault, None);
    // Listeners stop with the role, also where it ends by itself.
    let stop = stop.child_token();
    let app = Arc::new(App {
        log,
        vault: ApiVault(vault),
        vault_key: options.vault_key,
        mcp_url: options.mcp_url,
        operators: options.operators,
        objects: Folds::default(),
        sessions: Folds::default(),
        keys: Keys::default(),
        stop: stop.clone(),
    });
    let router = router(app);
    let http = listen::serve(links.http, router.clone(), stop.clone());
    let unix = listen::serve(links.unix, router, stop.clone());
    let listeners = async { tokio::join!(http, unix, stop.cancelled()) };
    // The drivers outlive the listeners, so that requests in flight can end.
    tokio::select! {
        _ = listeners => Ok(()),
        () = log_driver => Err(ApiError::Unlinked { peer: "session" }),
        () = vault_driver => Err(ApiError::Unlinked { peer: "vault" }),
    }
}

fn router(app: Shared) -> Router {
    Router::new()
        .merge(agent::routes())
        .merge(environment::routes())
        .merge(vault::routes())
        .merge(session::routes())
        .merge(event::routes())
        .layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            gate::admit,
        ))
        .layer(middleware::from_fn(gate::frame))
        .with_state(app)
}
