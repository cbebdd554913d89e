//! What the vault answers when it does not do what was asked.

use serde::{Deserialize, Serialize};

/// A refusal with a stable code, its cause and its cure; never holds a secret.
///
/// ```json
/// {"code":"vault_sealed","message":"the vault is sealed","fix":"claviger vault unseal"}
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Stable, lower-case code; `claviger explain CODE` has its page.
    pub code: String,
    /// What was refused and why, in one sentence.
    pub message: String,
    /// What would help, usually a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Refusal {
    /// Makes a refusal.
    #[must_use]
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            fix: None,
        }
    }

    /// Adds what would help.
    #[must_use]
    pub fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// Why a call over a link gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The peer is gone; the call may or may not have had its effect. The next link may serve.
    #[error("the link to {peer} is down")]
    Disconnected {
        /// Which role is at the other end.
        peer: String,
    },
    /// The peer sent something that is not of this protocol.
    #[error("malformed answer from {peer}: {reason}")]
    Malformed {
        /// Which role is at the other end.
        peer: String,
        /// What did not fit; no payload is quoted.
        reason: String,
    },
    /// The peer refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The peer did not answer in time.
    #[error("{peer} did not answer {verb} within {after_ms} ms")]
    TimedOut {
        /// Which role is at the other end.
        peer: String,
        /// The verb that was called.
        verb: String,
        /// The deadline in milliseconds.
        after_ms: u64,
    },
}

impl WireError {
    /// The stable code of this error, for logs and answers.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Disconnected { .. } => "peer_unreachable",
            Self::Malformed { .. } => "peer_malformed",
            Self::Refused(refusal) => &refusal.code,
            Self::TimedOut { .. } => "peer_timeout",
        }
    }
}
