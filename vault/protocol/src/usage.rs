//! Uses: no durable intent, no plaintext.

use serde::{Deserialize, Serialize};

use crate::binding::Destination;
use crate::id::{GrantId, UseId};
use crate::sealed::Sealed;

/// `authorize_use`: tools asks before each use of a grant.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AuthorizeUse {
    /// Fresh per use; a repeat returns the same decision.
    pub request_id: String,
    /// Session or seat.
    pub session: String,
    /// Its epoch.
    pub epoch: u64,
    /// The grant to use.
    pub grant: GrantId,
    /// Tool definition's name, `model` for the model route, `egress` for the sandbox's gateway.
    pub tool: String,
    /// Hash of the tool definition in force (hex SHA-256 of the file), empty for model and egress.
    #[serde(default)]
    pub tool_hash: String,
    /// Where the request goes.
    pub destination: Destination,
    /// Upper-case method.
    pub method: String,
    /// Path without its query.
    pub path: String,
    /// Hex SHA-256 of the canonical request without the secret.
    pub digest: String,
}

/// Answer to `authorize_use` where the vault allows; a denial is a [`crate::Refusal`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Authorized {
    /// Joins the outcome to this intent.
    pub use_id: UseId,
    /// The intent's number in the audit log, durable before this answer was sent.
    pub audit_seq: u64,
    /// The grant's key, sealed in HPKE auth mode to this tools instance; absent for a credential
    /// without a secret.
    pub release: Option<Sealed>,
    /// Base64 ciphertext of a newer version, where the credential was rotated since the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ciphertext: Option<String>,
    /// Version of the secret that this release opens.
    pub version: u32,
}

/// How a use ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UseStatus {
    /// The request was not sent or no answer came.
    Failed,
    /// An answer came (of any status).
    Ok,
    /// Nobody knows: a crash lay between.
    Unknown,
}

/// `record_outcome`: tools tells how a use ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RecordOutcome {
    /// The use.
    pub use_id: UseId,
    /// How it ended.
    pub status: UseStatus,
    /// HTTP status of the answer, 0 where there was none.
    pub http_status: u16,
    /// Bytes of the answer's body passed on.
    pub bytes: u64,
    /// Occurrences of the secret that the scrubber replaced in the answer.
    pub scrubbed: u64,
    /// Reason code of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `report`: tools records something refused before any use (a placeholder outside its slot, a
/// client-supplied credential for a bound host).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Report {
    /// Session or seat.
    pub session: String,
    /// Its epoch.
    pub epoch: u64,
    /// Stable reason code.
    pub reason: String,
    /// The tool or gateway that saw it.
    pub tool: String,
    /// Where it was going, if known.
    #[serde(default)]
    pub destination: Option<Destination>,
}
