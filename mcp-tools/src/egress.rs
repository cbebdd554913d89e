//! The sandbox's gateway for ordinary programs.

use std::sync::Arc;

use claviger_sandbox::handover::AttachReceiver;
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;

/// Serves what the hands attach until `stop`.
pub(crate) async fn run(_shared: Arc<Shared>, _attach: AttachReceiver, stop: CancellationToken) {
    stop.cancelled().await;
}
