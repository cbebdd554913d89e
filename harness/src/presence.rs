//! The session's presence at tools: its opening, presented, and its sandbox, named.
//!
//! Tools keeps both in memory only; a fresh tools instance is told again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use claviger_vault_protocol::client::ToolsLink;
use claviger_vault_protocol::present::{NameSandbox, Present};
use claviger_vault_protocol::{Opening, WireError};
use tokio::sync::watch;
use tokio::time::sleep;

/// Between two attempts to present over a new link.
const PAUSE: Duration = Duration::from_millis(20);

/// What tools knows of a session.
#[derive(Debug)]
pub(crate) struct Presence {
    tools: ToolsLink,
    present: Present,
    named: Mutex<Option<NameSandbox>>,
}

impl Presence {
    /// Presents an opening.
    pub(crate) async fn new(tools: ToolsLink, opening: Opening) -> Result<Self, WireError> {
        let presence = Self {
            tools,
            present: Present { opening },
            named: Mutex::new(None),
        };
        presence.present().await?;
        Ok(presence)
    }

    /// Variables and placeholders for a sandbox; nothing in it is a secret.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let grants = self.present.opening.grants.iter();
        grants
            .filter_map(|grant| Some((grant.variable.clone()?, grant.placeholder.clone())))
            .collect()
    }

    /// Presents the opening again, and names the sandbox again where there is one.
    pub(crate) async fn present(&self) -> Result<(), WireError> {
        self.tools.present(&self.present).await?;
        let named = self
            .named
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(named) = named {
            self.tools.name_sandbox(&named).await?;
        }
        Ok(())
    }

    /// Has the sandbox's listeners served, offering these MCP tools.
    pub(crate) async fn name_sandbox(
        &self,
        sandbox: &str,
        tools: Vec<String>,
    ) -> Result<(), WireError> {
        let named = NameSandbox {
            session: self.present.opening.session.clone(),
            epoch: self.present.opening.epoch,
            sandbox: sandbox.to_owned(),
            tools,
        };
        *self.named.lock().unwrap_or_else(PoisonError::into_inner) = Some(named.clone());
        self.tools.name_sandbox(&named).await.map(drop)
    }

    /// Presents again whenever a new link to tools came; ends when none can come any more.
    pub(crate) async fn keep(&self, mut generations: watch::Receiver<u64>) {
        generations.mark_unchanged();
        while generations.changed().await.is_ok() {
            loop {
                match self.present().await {
                    Ok(()) => break,
                    Err(WireError::Refused(refusal)) => {
                        tracing::warn!(session = %self.present.opening.session, code = refusal.code, "not presented again");
                        break;
                    }
                    // The older connection was still in use when the new link came.
                    Err(error) => {
                        tracing::debug!(session = %self.present.opening.session, code = error.code(), "presenting again");
                        sleep(PAUSE).await;
                    }
                }
            }
        }
    }
}

/// Whether a refusal says that tools does not know the opening (any more), so that presenting helps.
pub(crate) fn is_absent(code: &str) -> bool {
    matches!(code, "opening_not_accepted" | "opening_not_found")
}

/// Whether a refusal says that a newer harness holds the session.
pub(crate) fn is_fenced(code: &str) -> bool {
    matches!(code, "epoch_stale")
}

/// Whether a refusal passes by itself or by an operator's act, so that the session waits.
pub(crate) fn is_passing(error: &WireError) -> bool {
    match error {
        WireError::Refused(refusal) => matches!(
            refusal.code.as_str(),
            "vault_sealed"
                | "vault_uninitialized"
                | "audit_failed"
                | "peer_unreachable"
                | "peer_timeout"
                | "not_registered"
        ),
        _ => true,
    }
}
