//! What a harness says to mcp-tools over their own link, in the same wire form.
//!
//! Verbs: `present`, `withdraw`, `name_sandbox`, `list_tools`, `call`. The model route is not
//! here: it is `POST /v1/messages` over HTTP/2 on a link of its own, with the headers
//! [`SESSION_HEADER`] and [`EPOCH_HEADER`].

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::opening::Opening;

/// Header of the model route that names the session.
pub const SESSION_HEADER: &str = "claviger-session";
/// Header of the model route that names the epoch.
pub const EPOCH_HEADER: &str = "claviger-epoch";

/// `present`: hands an opening's ciphertexts over; tools accepts it at the vault.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Present {
    /// The opening as the vault gave it.
    pub opening: Opening,
}

/// Answer to `present`, and argument of `withdraw`: a session at an epoch.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct At {
    /// The session.
    pub session: String,
    /// The epoch.
    pub epoch: u64,
}

/// `name_sandbox`: from now on tools serves this sandbox's listeners for the session.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NameSandbox {
    /// The session.
    pub session: String,
    /// The epoch.
    pub epoch: u64,
    /// The sandbox.
    pub sandbox: String,
    /// Names of tools (as in `list_tools`) whose permission is `always_allow`; the `mcp` listener
    /// offers only these.
    pub tools: Vec<String>,
}

/// One tool as the model sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ToolRow {
    /// Full name, `definition_operation`.
    pub name: String,
    /// Definition that it belongs to.
    pub definition: String,
    /// For the model.
    pub description: String,
    /// JSON Schema of the input.
    pub input_schema: Value,
    /// Whether the tool changes nothing upstream.
    pub read_only: bool,
    /// Whether a repeat has no further effect.
    pub idempotent: bool,
}

/// Answer to `list_tools`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Tools {
    /// In a deterministic order.
    pub tools: Vec<ToolRow>,
}

/// `call`: spends a key on the session's behalf.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Call {
    /// The session.
    pub session: String,
    /// The epoch.
    pub epoch: u64,
    /// Key of the call, `session/tool_use_id`: recorded in the audit.
    pub key: String,
    /// The tool's full name.
    pub tool: String,
    /// Its arguments.
    pub arguments: Value,
}

/// Answer to `call`: scrubbed content blocks.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Called {
    /// API content blocks.
    pub content: Vec<Value>,
    /// Whether the tool failed.
    pub is_error: bool,
}
