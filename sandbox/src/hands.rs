//! The `hands` role.

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::HandsError;

/// How the role runs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Sandboxes at once, all sessions together.
    pub max_sandboxes: usize,
    /// Sandboxes at once in one session.
    pub max_sandboxes_per_session: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_sandboxes: 1024,
            max_sandboxes_per_session: 8,
        }
    }
}

/// The small single-threaded process that every sandbox is cloned from.
#[derive(Debug)]
pub struct Zygote {}

/// Forks the zygote; call it first thing in `main`, before any thread exists.
///
/// # Errors
/// `Refused` when the process already has threads; `Internal` when the fork fails.
pub fn start_zygote() -> Result<Zygote, HandsError> {
    Ok(Zygote {})
}

/// Runs the role until `stop`.
///
/// # Errors
/// `Internal` when the zygote ends.
pub async fn run(
    options: Options,
    zygote: Zygote,
    links: mpsc::Receiver<UnixStream>,
    attach: mpsc::Receiver<UnixStream>,
    stop: CancellationToken,
) -> Result<(), HandsError> {
    drop((options, zygote, links, attach));
    stop.cancelled().await;
    Ok(())
}
