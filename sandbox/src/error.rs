//! What can go wrong with a hand, as it travels to the caller.

use serde::{Deserialize, Serialize};

use crate::SandboxId;

/// Why the hands did not do what was asked.
///
/// The same values travel over the `hands` link, so a variant holds text and numbers only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum HandsError {
    /// The link ended before the answer came; whether the request had an effect is unknown. The caller attaches again.
    #[error("the link to the hands ended before the answer")]
    Disconnected,
    /// A greater epoch is attached; this caller has lost the session and must stop.
    #[error("the session is attached under epoch {epoch}")]
    Fenced {
        /// The epoch that holds the session now.
        epoch: u64,
    },
    /// Our own side broke: a system call, a malformed frame, the zygote's end. An operator looks at the log.
    #[error("the hands broke: {reason}")]
    Internal {
        /// What broke.
        reason: String,
    },
    /// The sandbox died; files and processes are gone. The caller provisions another.
    #[error("sandbox {sandbox} is lost")]
    Lost {
        /// The sandbox that died.
        sandbox: SandboxId,
    },
    /// No such sandbox in this session.
    #[error("no such sandbox in this session")]
    NotFound,
    /// The request itself cannot be granted; the caller changes it.
    #[error("refused: {reason}")]
    Refused {
        /// Which rule refused it.
        reason: String,
    },
    /// A layer of isolation is missing on this machine; an operator applies the fix. Nothing weaker is started.
    #[error("this machine lacks {what}; {fix}")]
    Unsupported {
        /// The missing layer and what the kernel said.
        what: String,
        /// What to do about it.
        fix: String,
    },
}

impl HandsError {
    pub(crate) fn internal(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Internal {
            reason: format!("{what}: {error}"),
        }
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused {
            reason: reason.into(),
        }
    }
}
