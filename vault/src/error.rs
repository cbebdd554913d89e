//! Why the daemon does not start, or cannot go on.

use std::path::{Path, PathBuf};

use claviger_vault_memory::MemoryError;
use claviger_vault_protocol::Refusal;
use claviger_vault_protocol::sealed::SealedError;

/// What ends or prevents the vault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The audit log could not be read or written. The operator frees the disk or restores the log.
    #[error("audit log: {0}")]
    Audit(String),
    /// A file of the home could not be used. The operator mends its path, owner or mode.
    #[error("{}: {what}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// Secret memory could not be had. The operator raises the lock limit.
    #[error("secret memory: {0}")]
    Memory(String),
    /// A key, a seal or a sealed value does not open. The operator gives the right seal input.
    #[error("{0}")]
    Seal(String),
    /// The database failed. The operator looks at the disk.
    #[error("store: {0}")]
    Store(String),
    /// The store or the audit log is older than what the other one witnessed: restore both from one
    /// moment, or accept the loss knowingly.
    #[error("the store was rolled back: {0}")]
    StoreRolledBack(String),
    /// A row, a seal or the schema was changed behind the vault's back: restore from a backup.
    #[error("the store was tampered with: {0}")]
    StoreTampered(String),
}

impl VaultError {
    /// The stable code of this error, for logs, answers and exit codes.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Audit(_) => "audit_failed",
            Self::File { .. } => "file_unusable",
            Self::Memory(_) => "memory_unavailable",
            Self::Seal(_) => "seal_refused",
            Self::Store(_) => "store_failed",
            Self::StoreRolledBack(_) => "store_rolled_back",
            Self::StoreTampered(_) => "store_tampered",
        }
    }
}

impl VaultError {
    /// Makes a mapper for the errors of one file or directory.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File {
            path,
            what: error.to_string(),
        }
    }
}

impl From<MemoryError> for VaultError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error.to_string())
    }
}

impl From<rusqlite::Error> for VaultError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.to_string())
    }
}

impl From<SealedError> for VaultError {
    fn from(error: SealedError) -> Self {
        Self::Seal(error.to_string())
    }
}

impl From<VaultError> for Refusal {
    fn from(error: VaultError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
