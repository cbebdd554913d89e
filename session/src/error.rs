//! Everything that can go wrong between a writer and the log.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a session store answers when it does not do what was asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[serde(tag = "code", content = "detail", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SessionError {
    /// The stream has moved on; the writer reads from its own position and decides again.
    #[error("the stream is at event {head}, not where the writer expected it")]
    Conflict {
        /// Number of the newest event.
        head: u64,
    },
    /// No link to the session role, or it broke and the call cannot be repeated safely.
    #[error("the session role cannot be reached")]
    Disconnected,
    /// A newer lease exists; the writer must stop.
    #[error("the lease is lost: the stream is in epoch {epoch}")]
    Fenced {
        /// The stream's epoch.
        epoch: u64,
    },
    /// Another owner's lease has not run out; the caller may try again later.
    #[error("the lease is held by {by} for another {expires_in_ms} ms")]
    Held {
        /// The owner of the live lease.
        by: String,
        /// Milliseconds until another owner may try.
        expires_in_ms: u64,
    },
    /// The request breaks a rule; the caller has a bug.
    #[error("refused: {reason}")]
    Invalid {
        /// The rule that was broken.
        reason: String,
    },
    /// Another process has the store open; the operator ends one of the two.
    #[error("the session store in {} is in use by another process", directory.display())]
    Locked {
        /// Directory of the store.
        directory: PathBuf,
    },
    /// No such stream.
    #[error("no such stream")]
    NotFound,
    /// The store itself failed (disk full, file damaged); the operator must act. The outcome of an append that got
    /// this answer is unknown; repeating it is safe.
    #[error("the session store failed: {0}")]
    Store(String),
}

impl SessionError {
    /// Builds the refusal of a request that breaks a rule.
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid {
            reason: reason.into(),
        }
    }

    /// Builds the answer for a failure of the store while doing `what`.
    pub(crate) fn store(what: &str, source: impl std::fmt::Display) -> Self {
        Self::Store(format!("{what}: {source}"))
    }
}

impl From<rusqlite::Error> for SessionError {
    fn from(source: rusqlite::Error) -> Self {
        Self::store("database", source)
    }
}

/// Where and why a chain of events is not what was written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("event {seq}: {reason}")]
pub struct ChainError {
    /// Number of the first event that does not fit.
    pub seq: u64,
    /// What is wrong with it.
    pub reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_crosses_the_link() {
        for error in [
            SessionError::Conflict { head: 7 },
            SessionError::Disconnected,
            SessionError::Fenced { epoch: 3 },
            SessionError::Held {
                by: "harness-0".into(),
                expires_in_ms: 5,
            },
            SessionError::invalid("a rule"),
            SessionError::Locked {
                directory: PathBuf::from("/tmp/store"),
            },
            SessionError::NotFound,
            SessionError::store("append", "the disk is full"),
        ] {
            let text = serde_json::to_string(&error).unwrap();
            assert_eq!(serde_json::from_str::<SessionError>(&text).unwrap(), error);
        }
    }
}
