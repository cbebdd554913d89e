//! The audit log: append-only, durable before effect, tamper-evident.
//!
//! A directory holds it: segments of JSON lines (`000000000001.jsonl`, named by their first record),
//! `checkpoints` (one signed note after another) and `vkey` (the key that verifies them). Records are numbered
//! densely from 1; each names the hash of the one before it, and all of them are leaves of one RFC 6962
//! Merkle tree whose root each checkpoint signs. [`verify()`] needs the directory and nothing else.
//!
//! The log proves integrity (nothing was changed, inserted, deleted or moved) up to the newest checkpoint.
//! That nothing was cut off after an *earlier* checkpoint is a second question, answered only against
//! something known from elsewhere: a [`Head`] that the store keeps, or an older checkpoint.

mod log;
mod merkle;
mod note;
mod read;
mod record;
mod recover;
mod segment;
mod verify;

use std::io;
use std::path::PathBuf;

pub use log::{Appended, AuditLog, Opened, Options, Status, Writer};
pub use note::{Checkpoint, Signer, Vkey};
pub use read::{Follower, read};
pub use record::{Decision, Destination, Digest, Entry, Kind, Label, Op, Outcome, Record, Text};
pub use verify::{Completeness, Integrity, KeyTrust, Verdict, VerifyOptions, verify};

use crate::cipher::CipherError;
use crate::error::VaultError;

/// A state of the log as somebody else may remember it: how many records, and the hash of the last one,
/// which commits to all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Number of records, equal to the number of the last one.
    pub size: u64,
    /// Leaf hash of the last record; zeros for an empty log.
    pub leaf: [u8; 32],
}

/// Why the log cannot be opened, written or read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The log's writer was closed; only during shutdown.
    #[error("the audit log is closed")]
    Closed,
    /// A write or a sync failed earlier. Nothing is written any more; the operator frees the disk and restarts.
    #[error("the audit log failed and takes no more records: {reason}")]
    Failed {
        /// What the operating system said.
        reason: String,
    },
    /// A file of the log cannot be used; the operator looks at owner, mode and disk.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// Another process has the log open.
    #[error("{}: another process writes this audit log", path.display())]
    InUse {
        /// The log's directory.
        path: PathBuf,
    },
    /// The signer is not the one that signed this log: it belongs to another vault.
    #[error("the audit log was signed by another key")]
    OtherKey,
    /// The log is shorter than, or different from, what its keeper remembers: restore the newer one.
    #[error("the audit log was rolled back: record {known} is known, {found} are there")]
    RolledBack {
        /// Number of the last record that is known from elsewhere.
        known: u64,
        /// Number of records found, or of records that agree.
        found: u64,
    },
    /// The signing key could not be used.
    #[error("audit signer: {0}")]
    Signer(String),
    /// The log was changed behind the vault's back.
    #[error("the audit log was tampered with at record {seq}: {why}")]
    Tampered {
        /// The first record that is not what was written.
        seq: u64,
        /// Which rule is broken.
        why: String,
    },
}

impl AuditError {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File {
            path,
            reason: error.to_string(),
        }
    }

    pub(crate) fn tampered(seq: u64, why: impl Into<String>) -> Self {
        Self::Tampered {
            seq,
            why: why.into(),
        }
    }
}

impl From<CipherError> for AuditError {
    fn from(error: CipherError) -> Self {
        Self::Signer(error.to_string())
    }
}

impl From<AuditError> for VaultError {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::RolledBack { .. } => Self::StoreRolledBack(error.to_string()),
            AuditError::Tampered { .. } | AuditError::OtherKey => {
                Self::StoreTampered(error.to_string())
            }
            other => Self::Audit(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
