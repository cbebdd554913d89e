//! Openings and grants: a chartered credential opened for one session and epoch.

use serde::{Deserialize, Serialize};

use crate::binding::{Binding, CredentialKind};
use crate::id::{CredentialId, GrantId, OpeningId, Principal};

/// `open_session`: asked by a harness at wake.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OpenSession {
    /// The session to open.
    pub session: String,
    /// The epoch of its lease.
    pub epoch: u64,
    /// The harness instance that asks (`hrn_..`); the same instance may repeat its own request.
    pub instance: String,
    /// Sequence number and hash of the session log's head: the vault's audit witnesses it.
    pub head: (u64, String),
}

/// One grant: ciphertext whose key stays in the vault, with what its carrier may know.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Envelope {
    /// The grant.
    pub grant: GrantId,
    /// The credential behind it.
    pub credential: CredentialId,
    /// The credential's name; not secret.
    pub name: String,
    /// Version of the secret inside.
    pub version: u32,
    /// What it is.
    pub kind: CredentialKind,
    /// Where it may be used.
    pub binding: Binding,
    /// What a sandbox holds instead of the secret; worth nothing but on its own listener.
    pub placeholder: String,
    /// Environment variable that carries the placeholder into the sandbox, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variable: Option<String>,
    /// Base64 of the secret under the grant's key (AES-256-GCM; see [`crate::sealed::seal_grant`]).
    pub ciphertext: String,
}

/// Answer to `open_session` and `open_seat`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Opening {
    /// The opening.
    pub opening: OpeningId,
    /// The session, or `seat_..` for a direct MCP client.
    pub session: String,
    /// Its epoch.
    pub epoch: u64,
    /// For whom.
    pub principal: Principal,
    /// Tool definitions that may be called.
    pub tools: Vec<String>,
    /// Which of the grants is the model's.
    pub model_grant: Option<GrantId>,
    /// The grants.
    pub grants: Vec<Envelope>,
    /// Unix time in milliseconds when the opening ends.
    pub expires_at_ms: u64,
}

/// `accept`: tools takes an opening, once per tools instance.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Accept {
    /// The opening that a harness presented.
    pub opening: OpeningId,
    /// Its session.
    pub session: String,
    /// Its epoch.
    pub epoch: u64,
}

/// Answer to `accept`: the vault's own word on what the opening is, newest versions included.
pub type Accepted = Opening;

/// `open_seat`: tools asks for a direct MCP client's opening.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OpenSeat {
    /// The authenticated principal (peer uid or API key).
    pub principal: Principal,
    /// Client name and version as claimed: recorded, never decides.
    pub client: String,
}

/// `register_tools`: a tools instance registers its ephemeral key on its own connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RegisterTools {
    /// The instance, `tools_..`, fresh at each start.
    pub instance: String,
    /// Its ephemeral X25519 public key, base64.
    pub key: String,
}

/// `end_opening`: revokes or releases one session's openings.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EndOpening {
    /// The session or seat.
    pub session: String,
    /// Its epoch.
    pub epoch: u64,
    /// Session log head at release, witnessed by the audit; seats send none.
    #[serde(default)]
    pub head: Option<(u64, String)>,
}
