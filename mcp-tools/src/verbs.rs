//! What a harness may ask of tools over its own link.

use std::sync::Arc;

use claviger_vault_protocol::Refusal;
use claviger_vault_protocol::admin::Nothing;
use claviger_vault_protocol::present::{At, Call, Called, NameSandbox, Present, Tools};
use claviger_vault_protocol::wire::{self, Verbs};
use serde_json::{Value, json};

use crate::call;
use crate::openings::Live;
use crate::presenters::Presented;
use crate::shared::Shared;

/// One harness connection.
///
/// # Security
/// A connection acts only for openings that were presented over it: knowing a session's name and
/// epoch is not enough, the presenter must hold the opening that the vault gave.
pub(crate) struct HarnessVerbs {
    shared: Arc<Shared>,
    peer: String,
    presented: Arc<Presented>,
}

impl HarnessVerbs {
    /// The verbs of a new connection.
    pub(crate) fn new(shared: Arc<Shared>, peer: String) -> Self {
        let presented = shared.presenters.enter(&peer);
        Self {
            shared,
            peer,
            presented,
        }
    }

    fn require(&self, session: &str, epoch: u64) -> Result<Arc<Live>, Refusal> {
        let live = self.shared.openings.require(session, epoch)?;
        if self.presented.has(session, epoch) {
            Ok(live)
        } else {
            Err(Refusal::new(
                "opening_not_accepted",
                format!(
                    "session {session} was not presented over this connection at epoch {epoch}"
                ),
            ))
        }
    }

    async fn present(&self, present: Present) -> Result<At, Refusal> {
        let at = self.shared.openings.present(present.opening).await?;
        self.presented.insert(&at.session, at.epoch);
        Ok(at)
    }

    fn withdraw(&self, at: &At) -> Result<Nothing, Refusal> {
        self.require(&at.session, at.epoch)?;
        self.shared.openings.withdraw(&at.session, at.epoch);
        self.presented.remove(&at.session, at.epoch);
        Ok(Nothing {})
    }

    fn name_sandbox(&self, name: NameSandbox) -> Result<Nothing, Refusal> {
        self.require(&name.session, name.epoch)?;
        self.shared
            .openings
            .name_sandbox(&name.session, name.epoch, name.sandbox, name.tools)?;
        Ok(Nothing {})
    }

    async fn list_tools(&self, at: &At) -> Result<Tools, Refusal> {
        let live = self.require(&at.session, at.epoch)?;
        Ok(Tools {
            tools: call::tools_of(&self.shared, &live).await?,
        })
    }

    async fn call(&self, ask: &Call) -> Result<Called, Refusal> {
        let live = self.require(&ask.session, ask.epoch)?;
        let result = async {
            let (definition, operation) = call::find(&self.shared, &ask.tool).await?;
            call::call(&self.shared, &live, &definition, &operation, &ask.arguments).await
        };
        match result.await {
            Ok(outcome) => Ok(Called {
                content: outcome.content(),
                is_error: outcome.is_error,
            }),
            Err(refusal) if is_for_harness(&refusal.code) => Err(refusal),
            Err(refusal) => Ok(Called {
                content: vec![json!({"type": "text", "text": explained(&refusal)})],
                is_error: true,
            }),
        }
    }
}

impl Drop for HarnessVerbs {
    fn drop(&mut self) {
        self.shared.presenters.leave(&self.peer, &self.presented);
    }
}

impl Verbs for HarnessVerbs {
    fn names(&self) -> Vec<&'static str> {
        vec!["call", "list_tools", "name_sandbox", "present", "withdraw"]
    }

    async fn call(&self, verb: &str, arguments: Value) -> Result<Value, Refusal> {
        match verb {
            "call" => wire::answer(&self.call(&wire::arguments(verb, arguments)?).await?),
            "list_tools" => {
                wire::answer(&self.list_tools(&wire::arguments(verb, arguments)?).await?)
            }
            "name_sandbox" => wire::answer(&self.name_sandbox(wire::arguments(verb, arguments)?)?),
            "present" => wire::answer(&self.present(wire::arguments(verb, arguments)?).await?),
            "withdraw" => wire::answer(&self.withdraw(&wire::arguments(verb, arguments)?)?),
            _ => Err(wire::unknown_verb(verb)),
        }
    }
}

/// Refusals that end or pause the harness's own work; all others are results for the model.
fn is_for_harness(code: &str) -> bool {
    code.starts_with("vault_")
        || code.starts_with("opening_")
        || matches!(
            code,
            "epoch_stale"
                | "charter_expired"
                | "charter_not_found"
                | "not_registered"
                | "peer_malformed"
        )
}

/// A refusal as text: code, cause, cure.
pub(crate) fn explained(refusal: &Refusal) -> String {
    match &refusal.fix {
        Some(fix) => format!("{refusal}\nfix: {fix}"),
        None => refusal.to_string(),
    }
}
