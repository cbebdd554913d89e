//! The `scan` verb of a demo's home: tools searches its own memory.

use std::sync::Arc;

use claviger_vault_memory::scan::{Fingerprints, scan_self};
use claviger_vault_protocol::Refusal;
use claviger_vault_protocol::admin::{Scan, Scanned};
use claviger_vault_protocol::wire::{self, Verbs};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

struct ScanVerbs;

impl Verbs for ScanVerbs {
    fn names(&self) -> Vec<&'static str> {
        vec!["scan"]
    }

    async fn call(&self, verb: &str, arguments: Value) -> Result<Value, Refusal> {
        if verb != "scan" {
            return Err(wire::unknown_verb(verb));
        }
        let Scan { fingerprints } = wire::arguments(verb, arguments)?;
        let fingerprints: Fingerprints = wire::arguments(verb, fingerprints)?;
        let internal =
            |reason: String| Refusal::new("internal", format!("the scan did not finish: {reason}"));
        let report = tokio::task::spawn_blocking(move || scan_self(&fingerprints))
            .await
            .map_err(|error| internal(error.to_string()))?
            .map_err(|error| internal(error.to_string()))?;
        wire::answer(&Scanned {
            report: wire::answer(&report)?,
        })
    }
}

/// Serves the one verb to operators until `stop`.
pub(crate) async fn serve(
    listener: UnixListener,
    operators: Vec<u32>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        match stream.peer_cred() {
            Ok(peer) if operators.contains(&peer.uid()) => {
                let stop = stop.child_token();
                tasks.spawn(async move {
                    if let Err(error) = wire::serve(Arc::new(ScanVerbs), stream, stop).await {
                        debug!(code = error.code(), "scan connection ended");
                    }
                });
            }
            _ => warn!("a peer of the scan socket is not on the operators' list"),
        }
    }
}
