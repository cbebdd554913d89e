//! The operator's verbs, and the api's half of them.
//!
//! Widening verbs (`init`, `put`, `rotate`, `permit_tool`, `create_key`, `unseal`) carry an
//! [`Authentication`] where the vault has an operator passphrase; narrowing ones never ask.

use serde::{Deserialize, Serialize};

use crate::binding::{Binding, CredentialKind};
use crate::id::{CredentialId, Principal};
use crate::sealed::Sealed;

/// HPKE `info` for a secret given to `put` or `rotate`.
pub const PUT_PURPOSE: &str = "claviger/put/v1";
/// HPKE `info` for a seal's input.
pub const SEAL_PURPOSE: &str = "claviger/seal/v1";
/// HPKE `info` for the operator passphrase.
pub const AUTH_PURPOSE: &str = "claviger/operator/v1";

/// The operator passphrase, sealed to the key that `status` gave, bound to the verb that it is for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Authentication {
    /// Sealed with [`AUTH_PURPOSE`], associated data = the verb's name; none where no passphrase is set.
    #[serde(default)]
    pub passphrase: Option<Sealed>,
}

/// `init`: creates the store. Only in a home without one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Init {
    /// The first seal.
    pub seal: SealChoice,
    /// The operator passphrase, sealed with [`AUTH_PURPOSE`] (associated data `init`); none sets none.
    #[serde(default)]
    pub operator_passphrase: Option<Sealed>,
    /// Label of the first API key, whose text is answered once.
    pub first_key_label: String,
    /// Whether the home is a demo's, in which alone `scan` exists.
    #[serde(default)]
    pub demo: bool,
}

/// How the root key is sealed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum SealChoice {
    /// A 32-byte file beside the store, mode 0400; the vault unseals itself at start.
    KeyFile,
    /// A passphrase (argon2id), sealed with [`SEAL_PURPOSE`], associated data `passphrase`.
    Passphrase {
        /// The sealed passphrase.
        passphrase: Sealed,
    },
}

/// Answer to `init`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Initialized {
    /// The vault's identifier.
    pub vault: String,
    /// The vault's long-lived public key, base64: pinned by everyone who seals to it.
    pub key: String,
    /// The audit log's verification key (C2SP vkey).
    pub audit_vkey: String,
    /// The first API key. It
    /// authenticates its holder and is stored only as a hash; shown once.
    pub first_key: String,
    /// The first API key's identifier: what permits and records name.
    pub first_key_id: String,
}

/// Answer to `status`; works while sealed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Status {
    /// `uninitialized`, `sealed`, `open` or `failed`.
    pub state: String,
    /// The vault's identifier, once it has one.
    pub vault: Option<String>,
    /// Seal kinds.
    pub seals: Vec<String>,
    /// The key that seal inputs and the operator passphrase are sealed to, made at each start, base64.
    pub session_key: String,
    /// The vault's long-lived public key, base64; none before init.
    pub key: Option<String>,
    /// Whether an operator passphrase is set.
    pub operator_passphrase: bool,
    /// `memfd_secret`, `locked` or `none`.
    pub memory_protection: String,
    /// Number of audit records.
    pub audit_records: u64,
    /// Reason where `state` is `failed`.
    #[serde(default)]
    pub reason: Option<String>,
    /// Live openings.
    pub openings: u64,
}

/// `unseal`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Unseal {
    /// The seal's input, sealed with [`SEAL_PURPOSE`], associated data `passphrase`.
    pub passphrase: Sealed,
}

/// `put`: gives a new credential.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Put {
    /// Operator authentication (admin connections).
    #[serde(default)]
    pub auth: Authentication,
    /// Collection, `vlt_..`; `vlt_local` is the operator's own, `vlt_system` holds model keys.
    pub collection: String,
    /// Name, unique among the collection's live credentials: `[A-Za-z0-9_.-]{1,64}`.
    pub name: String,
    /// What it is.
    pub kind: CredentialKind,
    /// Where it may be used; immutable.
    pub binding: Binding,
    /// Environment variable that carries its placeholder into sandboxes, if any.
    #[serde(default)]
    pub variable: Option<String>,
    /// The secret, sealed with [`PUT_PURPOSE`] to the vault's long-lived key, associated data
    /// [`Put::associated`]; none only for kind `none`.
    pub secret: Option<Sealed>,
    /// Allows a secret under 12 bytes, which is not scrubbed.
    #[serde(default)]
    pub short: bool,
    /// The workspace principal (api connections only).
    #[serde(default)]
    pub principal: Option<Principal>,
    /// Free metadata shown by the api: an opaque JSON object, at most 16 KiB, sealed at rest.
    #[serde(default)]
    pub metadata: serde_json::Value,
}

impl Put {
    /// Associated data of the sealed secret: it cannot be moved to another name or binding.
    #[must_use]
    pub fn associated(
        collection: &str,
        name: &str,
        kind: CredentialKind,
        binding: &Binding,
    ) -> Vec<u8> {
        serde_json::to_vec(&(collection, name, kind, binding)).unwrap_or_default()
    }
}

/// `rotate`: gives a new version of a credential's secret.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Rotate {
    /// Operator authentication (admin connections).
    #[serde(default)]
    pub auth: Authentication,
    /// The credential.
    pub credential: CredentialId,
    /// The secret, sealed with [`PUT_PURPOSE`], associated data = the credential's id.
    pub secret: Sealed,
    /// Allows a secret under 12 bytes.
    #[serde(default)]
    pub short: bool,
    /// The workspace principal (api connections only).
    #[serde(default)]
    pub principal: Option<Principal>,
}

/// A credential without its secret: all that any answer ever holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CredentialRow {
    /// The credential.
    pub id: CredentialId,
    /// Its collection.
    pub collection: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: CredentialKind,
    /// Where it may be used.
    pub binding: Binding,
    /// Environment variable of its placeholder.
    pub variable: Option<String>,
    /// Current version, from 1.
    pub version: u32,
    /// Unix milliseconds.
    pub created_at_ms: u64,
    /// Unix milliseconds of the newest version.
    pub rotated_at_ms: u64,
    /// Unix milliseconds, where archived.
    pub archived_at_ms: Option<u64>,
    /// Uses authorised so far.
    pub uses: u64,
    /// Unix milliseconds of the last authorised use.
    pub last_used_at_ms: Option<u64>,
    /// Metadata given with it.
    #[serde(default)]
    pub metadata: serde_json::Value,
}

/// `list`: credentials, newest first.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct List {
    /// Only this collection.
    #[serde(default)]
    pub collection: Option<String>,
    /// Archived ones too.
    #[serde(default)]
    pub include_archived: bool,
}

/// Answer to `list`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Credentials {
    /// The rows.
    pub credentials: Vec<CredentialRow>,
}

/// `show`, `archive` and `delete` of one credential.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OfCredential {
    /// The credential.
    pub credential: CredentialId,
    /// The workspace principal (api connections only).
    #[serde(default)]
    pub principal: Option<Principal>,
}

/// A standing permit for a tool definition.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Permit {
    /// Tool definition's name.
    pub tool: String,
    /// Hex SHA-256 of its file: a changed file is refused until `tool add`.
    pub tool_hash: String,
    /// The credential it may spend.
    pub credential: CredentialId,
    /// Who may: direct clients by principal. Sessions are judged by their charter besides.
    pub principals: Vec<Principal>,
    /// Narrower than the binding: methods, empty for all of the binding's.
    #[serde(default)]
    pub methods: Vec<String>,
}

/// `permit_tool`: adds or replaces the one permit of a tool.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PermitTool {
    /// Operator authentication.
    #[serde(default)]
    pub auth: Authentication,
    /// The permit.
    pub permit: Permit,
}

/// `revoke_tool`: takes a tool's permit back.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RevokeTool {
    /// Tool definition's name.
    pub tool: String,
}

/// Answer to `list_permits` (admin and tools connections).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Permits {
    /// Policy version.
    pub policy_version: u64,
    /// By tool name.
    pub permits: Vec<Permit>,
}

/// `authenticate_key`: api and tools ask who holds a key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AuthenticateKey {
    /// Hex SHA-256 of the key's text.
    pub key_hash: String,
}

/// Answer to `authenticate_key`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyHolder {
    /// The key's identifier, `key_..`.
    pub key: String,
    /// Its principal.
    pub principal: Principal,
    /// Its label.
    pub label: String,
}

/// `create_key` and its answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CreateKey {
    /// Operator authentication.
    #[serde(default)]
    pub auth: Authentication,
    /// Label.
    pub label: String,
}

/// Answer to `create_key`: the key's text, once.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CreatedKey {
    /// The key's identifier.
    pub key: String,
    /// Its text.
    pub text: String,
}

/// Answer to `read_audit`; reading the log is itself recorded.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AuditLines {
    /// Records after the asked position, as stored.
    pub records: Vec<serde_json::Value>,
}

/// `read_audit`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReadAudit {
    /// Only records with a greater sequence number; 0 for all.
    pub after: u64,
    /// At most this many, up to 1,000.
    pub limit: u64,
}

/// `scan`: searches the vault's (or tools') own memory; exists only in a demo's home.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Scan {
    /// Serialised `claviger_vault_memory::scan::Fingerprints`: keyed fingerprints, no pattern.
    pub fingerprints: serde_json::Value,
}

/// Answer to `scan`: serialised `claviger_vault_memory::scan::ScanReport`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Scanned {
    /// The report: counts only.
    pub report: serde_json::Value,
}

/// Arguments of verbs that take none, and answers that say nothing more than done.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Nothing {}
