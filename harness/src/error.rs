//! What ends a harness, or one session's turn in it.

use claviger_session::SessionError;
use claviger_vault_protocol::WireError;

/// Why a harness stopped working on a session, or altogether.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HarnessError {
    /// The hands did not attach or answer; another wake tries again.
    #[error("hands: {0}")]
    Hands(#[from] claviger_sandbox::HandsError),
    /// Another harness holds the session now: nothing more is written, executed or used.
    #[error("fenced: the session is held under a newer epoch")]
    Fenced,
    /// The vault or tools no longer honour the opening; waking again opens anew.
    #[error("the session's opening is over")]
    OpeningLost,
    /// The store did not take or give events.
    #[error("session store: {0}")]
    Session(#[from] SessionError),
    /// The harness was told to stop.
    #[error("stopped")]
    Stopped,
    /// The log holds something that no harness wrote and no turn can go on from.
    #[error("unreadable log: {reason}")]
    UnreadableLog {
        /// What did not fit.
        reason: String,
    },
    /// The vault or tools refused or did not answer.
    #[error("{0}")]
    Wire(#[from] WireError),
}
