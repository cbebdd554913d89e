//! The harness role: watches for sessions with work and runs their turns.

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::HarnessError;

/// How one harness behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// This instance's name, `hrn_..`, fresh at each start; the owner of its leases.
    pub instance: String,
    /// Most sessions with a running turn at one time.
    pub max_sessions: usize,
    /// How long a lease lasts without renewal, in milliseconds.
    pub lease_ttl_ms: u64,
}

/// The links of a harness; each receiver gets a fresh stream whenever the peer restarts.
#[derive(Debug)]
pub struct Links {
    /// To the session role.
    pub session: mpsc::Receiver<UnixStream>,
    /// To the hands.
    pub hands: mpsc::Receiver<UnixStream>,
    /// To the vault, with a harness's verbs.
    pub vault: mpsc::Receiver<UnixStream>,
    /// To mcp-tools, in the verbs of `present`.
    pub tools: mpsc::Receiver<UnixStream>,
    /// To mcp-tools' model route, HTTP/2.
    pub model: mpsc::Receiver<UnixStream>,
}

/// Runs turns of the sessions that have work until `stop`.
///
/// # Errors
/// [`HarnessError`] where the role cannot go on at all; a failing session does not end it.
pub async fn run(options: Options, links: Links, stop: CancellationToken) -> Result<(), HarnessError> {
    tracing::info!(instance = %options.instance, max_sessions = options.max_sessions, "harness starts");
    let _links = links;
    stop.cancelled().await;
    Ok(())
}
