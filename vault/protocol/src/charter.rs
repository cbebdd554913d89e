//! What a session may open; registered by the api when the session is created.

use serde::{Deserialize, Serialize};

use crate::id::Principal;

/// A session's charter. A harness can only narrow it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Charter {
    /// The session, `sesn_..`.
    pub session: String,
    /// For whom the session works.
    pub principal: Principal,
    /// The credential collections (`vlt_..`) that it may open.
    pub vaults: Vec<String>,
    /// The agent, `agent_..`, and its version: recorded, never interpreted.
    pub agent: String,
    /// Name of the model credential; its use is decided and recorded even where it holds no key.
    pub model_credential: String,
    /// Tool definitions (by name) that the agent may call; empty means none.
    pub tools: Vec<String>,
    /// Unix time in milliseconds after which nothing more is opened or used.
    pub expires_at_ms: u64,
}

/// Answer to `register_charter`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Registered {
    /// The session.
    pub session: String,
    /// Policy version in force at registration.
    pub policy_version: u64,
}
