//! The model route.

use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::shared::Shared;

/// Serves the model route on every link that arrives until `stop`.
pub(crate) async fn run(
    _shared: Arc<Shared>,
    _links: mpsc::Receiver<UnixStream>,
    _base_url: Url,
    stop: CancellationToken,
) {
    stop.cancelled().await;
}
