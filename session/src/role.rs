//! The session role: serves the store to every link.

mod connection;

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::SessionError;
use crate::sqlite::SqliteStore;
use crate::store::SessionStore;

/// How long open calls may take to finish once the role stops.
const DRAIN: Duration = Duration::from_secs(3);

/// Where the role keeps its store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of `session.db` and `blobs/`; made when absent.
    pub directory: PathBuf,
}

/// What the peer of a link may ask, by the supervisor's word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rights {
    /// Everything: the api makes the streams and writes what its users say.
    Everything,
    /// A harness: the logs of sessions, written under a lease alone; no input in a user's name, no other stream.
    Sessions,
}

/// A link and what its peer may ask.
#[derive(Debug)]
pub struct Linked {
    /// What the peer may ask.
    pub rights: Rights,
    /// The link.
    pub stream: UnixStream,
}

impl Linked {
    /// A link with these rights.
    pub fn new(rights: Rights, stream: UnixStream) -> Self {
        Self { rights, stream }
    }
}

/// Serves the store in `options.directory` to every link that arrives, until `stop`, or until `links` is closed and
/// the last of them has ended. Calls that were under way are finished, the file is closed and its lock given up.
///
/// # Errors
///
/// `Locked` when another process has the store open, `Store` when it cannot be opened or has become unusable.
pub async fn run(
    options: Options,
    links: mpsc::Receiver<Linked>,
    stop: CancellationToken,
) -> Result<(), SessionError> {
    let store = tokio::task::spawn_blocking(move || SqliteStore::open(&options.directory))
        .await
        .map_err(|e| SessionError::store("open the store", e))??;
    tracing::info!("session store open");
    let result = tokio::select! {
        () = serve(store.clone(), links, stop) => Ok(()),
        () = store.failed() => Err(SessionError::Store("the writer has ended".into())),
    };
    store.close().await;
    tracing::info!("session store closed");
    result
}

/// Serves any store to every link that arrives, until `stop`, or until `links` is closed and the last has ended.
pub async fn serve<S: SessionStore>(
    store: S,
    mut links: mpsc::Receiver<Linked>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let mut more_links = true;
    while more_links || !connections.is_empty() {
        tokio::select! {
            () = stop.cancelled() => break,
            link = links.recv(), if more_links => match link {
                Some(link) => {
                    connections.spawn(connection::serve(store.clone(), link, stop.clone()));
                }
                None => more_links = false,
            },
            // A connection that panicked is gone like any other; its peer sees the link close.
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("session links did not end in time");
    }
}
