//! The tools role: every link and listener of one tools instance.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use claviger_sandbox::handover::AttachReceiver;
use claviger_vault_protocol::client::ToolsVault;
use claviger_vault_protocol::opening::RegisterTools;
use claviger_vault_protocol::wire::{self, Greeting, Link};
use claviger_vault_protocol::{KeyPair, PublicKey};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};
use url::Url;

use crate::catalog::Catalog;
use crate::dial::Dialer;
use crate::error::ToolsError;
use crate::openings::Openings;
use crate::presenters::Presenters;
use crate::server::http::Door;
use crate::shared::Shared;
use crate::spend::Spender;
use crate::verbs::HarnessVerbs;
use crate::{egress, model, scan, server};

/// How long what is under way may take when the role ends.
const DRAIN: Duration = Duration::from_secs(3);

/// How the role is set up.
#[derive(Debug)]
pub struct Options {
    /// Where the tool definitions are.
    pub tools_directory: PathBuf,
    /// The vault's pinned public key: releases not made by it do not open.
    pub vault_key: PublicKey,
    /// This instance, `tools_..`, fresh at each start.
    pub instance: String,
    /// User ids that may use `mcp.sock`.
    pub operators: Vec<u32>,
    /// Where model requests go.
    pub model_base_url: Url,
    /// Whether the home is a demo's, in which alone memory can be scanned.
    pub demo: bool,
}

/// A connection of a harness.
#[derive(Debug)]
pub struct Linked {
    /// Whose it is, by the supervisor's word: the same name on every link of one harness.
    pub peer: String,
    /// The connection.
    pub stream: UnixStream,
}

/// What the role is connected to.
#[derive(Debug)]
pub struct Links {
    /// Connections to the vault; the newest serves.
    pub vault: mpsc::Receiver<UnixStream>,
    /// Connections on which the hands hand descriptors over.
    pub attach: mpsc::Receiver<UnixStream>,
    /// Connections of harnesses, MCP framing.
    pub harness: mpsc::Receiver<Linked>,
    /// Connections of harnesses to the model route.
    pub model: mpsc::Receiver<Linked>,
    /// `run/mcp.sock`.
    pub mcp_socket: Option<UnixListener>,
    /// The port of `/mcp`.
    pub http: Option<TcpListener>,
    /// `run/tools-scan.sock`; served only where [`Options::demo`] is set.
    pub scan_socket: Option<UnixListener>,
}

/// Runs the role until `stop`.
///
/// # Errors
/// [`ToolsError::Memory`] where no secret memory can be had at the start; afterwards the role mends
/// or refuses, but does not end.
pub async fn run(
    options: Options,
    links: Links,
    stop: CancellationToken,
) -> Result<(), ToolsError> {
    let key = KeyPair::generate().map_err(|error| ToolsError::Memory {
        reason: error.to_string(),
    })?;
    let register = RegisterTools {
        instance: options.instance.clone(),
        key: key.public().to_string(),
    };
    let arguments = serde_json::to_value(&register).map_err(|error| ToolsError::Memory {
        reason: error.to_string(),
    })?;
    let greeting = Greeting {
        verb: "register_tools",
        arguments,
    };
    let (link, driver) = Link::new("vault", links.vault, Some(greeting));
    let vault = ToolsVault(link);
    let tasks = TaskTracker::new();
    let dialer = Arc::new(Dialer::new());
    let spender = Spender::new(vault.clone(), options.vault_key, key, dialer, tasks.clone());
    let shared = Arc::new(Shared {
        vault: vault.clone(),
        openings: Openings::new(vault),
        presenters: Presenters::default(),
        spender,
        catalog: Arc::new(Catalog::new(options.tools_directory)),
        tasks: tasks.clone(),
    });

    let linked = tasks.spawn(driver);
    let attach = AttachReceiver::new(links.attach);
    tasks.spawn(egress::run(Arc::clone(&shared), attach, stop.clone()));
    tasks.spawn(model::run(
        Arc::clone(&shared),
        links.model,
        options.model_base_url,
        stop.clone(),
    ));
    tasks.spawn(serve_harnesses(
        Arc::clone(&shared),
        links.harness,
        stop.clone(),
    ));
    if let Some(listener) = links.mcp_socket {
        tasks.spawn(server::serve_unix(
            Arc::clone(&shared),
            listener,
            options.operators.clone(),
            stop.clone(),
        ));
    }
    if let Some(listener) = links.http {
        tasks.spawn(server::http::serve(
            Arc::clone(&shared),
            listener,
            Door::Keyed,
            stop.clone(),
        ));
    }
    if let Some(listener) = links.scan_socket.filter(|_| options.demo) {
        tasks.spawn(scan::serve(
            listener,
            options.operators,
            tasks.clone(),
            stop.clone(),
        ));
    }
    drop(shared);
    info!(instance = %options.instance, "tools are up");

    stop.cancelled().await;
    tasks.close();
    // The vault's link stays until outcomes under way are recorded.
    let drained = async {
        while tasks.len() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        info!("some calls did not end in time");
    }
    linked.abort();
    Ok(())
}

async fn serve_harnesses(
    shared: Arc<Shared>,
    mut links: mpsc::Receiver<Linked>,
    stop: CancellationToken,
) {
    loop {
        let link = tokio::select! {
            () = stop.cancelled() => return,
            link = links.recv() => link,
        };
        let Some(Linked { peer, stream }) = link else {
            return;
        };
        let verbs = Arc::new(HarnessVerbs::new(Arc::clone(&shared), peer));
        let stop = stop.child_token();
        shared.tasks.spawn(async move {
            if let Err(error) = Box::pin(wire::serve(verbs, stream, stop)).await {
                debug!(code = error.code(), "harness connection ended");
            }
        });
    }
}

#[cfg(test)]
mod tests;
