//! The session role: serves the store to every link.

use std::path::PathBuf;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::SessionError;

/// Where the role keeps its store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of `session.db` and `blobs/`; made when absent.
    pub directory: PathBuf,
}

/// Serves the store in `options.directory` to every link that arrives, until `stop`.
///
/// # Errors
///
/// `Locked` when another process has the store open, `Store` when it cannot be opened.
pub async fn run(
    options: Options,
    mut links: mpsc::Receiver<UnixStream>,
    stop: CancellationToken,
) -> Result<(), SessionError> {
    tracing::info!(directory = %options.directory.display(), "session role starts");
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            link = links.recv() => if link.is_none() { return Ok(()) },
        }
    }
}
