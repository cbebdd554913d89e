//! The vault as a process: its options, its connections, its end.

use std::path::PathBuf;

use claviger_vault_protocol::Role;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::VaultError;

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
    /// Which process is at the other end, `harness-2` for example.
    pub instance: String,
    /// The connection itself; MCP in stdio framing.
    pub stream: UnixStream,
}

/// Serves the vault until `stop` is cancelled or `connections` closes without an operator's socket.
///
/// # Errors
/// [`VaultError`] where the store was altered or rolled back, or a file cannot be used.
pub async fn run(
    options: Options,
    connections: mpsc::Receiver<Connection>,
    admin: Option<UnixListener>,
    stop: CancellationToken,
) -> Result<(), VaultError> {
    let _ = (&options, &connections, &admin);
    stop.cancelled().await;
    Ok(())
}
