//! The vault as a process: its options, its connections, its end.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use claviger_vault_protocol::Role;
use claviger_vault_protocol::wire::serve;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, SystemClock};
use crate::endpoint::admin::Admin;
use crate::endpoint::api::Api;
use crate::endpoint::harness::Harness;
use crate::endpoint::tools::Tools;
use crate::error::VaultError;
use crate::vault::{Asker, Vault};

/// How often the books are kept.
const TICK: Duration = Duration::from_secs(1);
/// How long verbs under way may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// Where the vault's files are and who may administer it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of `vault.db`, `seal.key` and `audit/`.
    pub directory: PathBuf,
    /// Where the vault's long-lived public key is written for those who seal to it.
    pub public_key_file: PathBuf,
    /// User ids that may use the operator's socket.
    pub operators: Vec<u32>,
}

/// One inherited connection and whom it belongs to, by the supervisor's word.
#[derive(Debug)]
pub struct Connection {
    /// The rights of the connection.
    pub role: Role,
    /// Which process is at the other end, `harness-2` for example: the same for all connections of
    /// one process. The process that takes its place may have the same name.
    pub instance: String,
    /// The connection itself; MCP in stdio framing.
    pub stream: UnixStream,
}

/// Serves the vault until `stop` is cancelled or `connections` closes.
///
/// # Errors
/// [`VaultError::StoreTampered`] and [`VaultError::StoreRolledBack`] where store or log are not what
/// they were; others where a file cannot be used.
pub async fn run(
    options: Options,
    connections: mpsc::Receiver<Connection>,
    admin: Option<UnixListener>,
    stop: CancellationToken,
) -> Result<(), VaultError> {
    run_with_clock(
        options,
        connections,
        admin,
        stop,
        Arc::new(SystemClock::new()),
    )
    .await
}

/// As [`run`], with a clock of the caller's.
///
/// # Errors
/// As [`run`].
pub async fn run_with_clock(
    options: Options,
    mut connections: mpsc::Receiver<Connection>,
    admin: Option<UnixListener>,
    stop: CancellationToken,
    clock: Arc<dyn Clock>,
) -> Result<(), VaultError> {
    let vault = Arc::new(Vault::start(&options.directory, &options.public_key_file, clock).await?);
    let tasks = TaskTracker::new();
    // Ends the connections however this function ends.
    let serving = stop.child_token();
    let _guard = serving.clone().drop_guard();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            connection = connections.recv() => match connection {
                Some(connection) => accept(&vault, connection, &tasks, &serving),
                None => break,
            },
            peer = next_operator(admin.as_ref(), &options.operators) => {
                if let Some((stream, asker)) = peer {
                    let endpoint = Admin { vault: Arc::clone(&vault), asker };
                    tasks.spawn(serve_logged(Arc::new(endpoint), stream, serving.clone()));
                }
            },
            _ = tick.tick() => vault.tick().await,
        }
    }
    serving.cancel();
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("connections did not end in time");
    }
    vault.stop().await;
    Ok(())
}

fn accept(
    vault: &Arc<Vault>,
    connection: Connection,
    tasks: &TaskTracker,
    serving: &CancellationToken,
) {
    let Connection {
        role,
        instance,
        stream,
    } = connection;
    let asker = Asker {
        role,
        instance,
        peer: None,
    };
    let (vault, stop) = (Arc::clone(vault), serving.clone());
    match role {
        Role::Api => {
            tasks.spawn(serve_logged(Arc::new(Api { vault, asker }), stream, stop));
        }
        Role::Harness => {
            let endpoint = Harness {
                vault,
                asker,
                instance: OnceLock::new(),
            };
            tasks.spawn(serve_logged(Arc::new(endpoint), stream, stop));
        }
        Role::Tools => {
            let endpoint = Tools {
                vault,
                asker,
                registered: OnceLock::new(),
                recorded: tokio::sync::OnceCell::new(),
            };
            tasks.spawn(serve_logged(Arc::new(endpoint), stream, stop));
        }
        // The operator comes by the socket, where the kernel says who it is.
        _ => tracing::warn!("a connection of a role without verbs was closed"),
    }
}

async fn serve_logged<V: claviger_vault_protocol::wire::Verbs>(
    verbs: Arc<V>,
    stream: UnixStream,
    stop: CancellationToken,
) {
    if let Err(error) = serve(verbs, stream, stop).await {
        tracing::debug!(%error, "a connection ended");
    }
}

/// The next peer of the operator's socket that may use it.
async fn next_operator(
    admin: Option<&UnixListener>,
    operators: &[u32],
) -> Option<(UnixStream, Asker)> {
    let Some(admin) = admin else {
        return std::future::pending().await;
    };
    let stream = match admin.accept().await {
        Ok((stream, _)) => stream,
        Err(error) => {
            tracing::warn!(%error, "the operator's socket took no connection");
            // Out of descriptors, most likely: without a pause this would spin.
            tokio::time::sleep(Duration::from_millis(50)).await;
            return None;
        }
    };
    let credentials = stream.peer_cred().ok()?;
    let uid = credentials.uid();
    if !operators.contains(&uid) {
        tracing::warn!(uid, "a user who is no operator was turned away");
        return None;
    }
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
    let asker = Asker {
        role: Role::Admin,
        instance: format!("operator:uid:{uid}"),
        peer: Some((uid, pid)),
    };
    Some((stream, asker))
}
