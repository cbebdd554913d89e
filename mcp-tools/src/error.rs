//! What can stop the tools role, and the refusals that it makes itself.

use claviger_vault_protocol::{Refusal, WireError};

/// Why the tools role or one of its parts ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolsError {
    /// A tool definition is not usable; its author can fix it.
    #[error("{file}:{line}: {reason}")]
    Definition {
        /// The file.
        file: String,
        /// Line from 1; 0 where the whole file is meant.
        line: usize,
        /// What was found and what was expected.
        reason: String,
    },
    /// No secret memory can be had; the operator raises the limit on locked memory.
    #[error("secret memory: {reason}")]
    Memory {
        /// Why.
        reason: String,
    },
    /// The machine has no usable trust roots or no cryptography provider.
    #[error("tls is not usable: {reason}")]
    Tls {
        /// Why.
        reason: String,
    },
}

/// A failed call to the vault as the refusal that the caller of a tool sees.
pub(crate) fn from_vault(error: WireError) -> Refusal {
    match error {
        WireError::Refused(refusal) => refusal,
        other => Refusal::new(
            "vault_unreachable",
            format!("the vault did not answer ({})", other.code()),
        )
        .with_fix("claviger status"),
    }
}
