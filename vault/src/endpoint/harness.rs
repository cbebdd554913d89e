//! The verbs of a turn loop: it opens and ends, and names nobody to release anything to.

use std::sync::{Arc, OnceLock};

use claviger_vault_protocol::Refusal;
use claviger_vault_protocol::admin::Nothing;
use claviger_vault_protocol::opening::{EndOpening, OpenSession};
use claviger_vault_protocol::wire::{Verbs, answer, arguments, unknown_verb};
use serde_json::Value;

use crate::opening;
use crate::vault::{Asker, Vault};

/// One connection of a harness.
#[derive(Debug)]
pub(crate) struct Harness {
    pub(crate) vault: Arc<Vault>,
    pub(crate) asker: Asker,
    /// The instance that this connection named first; it can name no other.
    pub(crate) instance: OnceLock<String>,
}

const VERBS: [&str; 2] = ["open_session", "end_opening"];

impl Verbs for Harness {
    fn names(&self) -> Vec<&'static str> {
        VERBS.to_vec()
    }

    async fn call(&self, verb: &str, value: Value) -> Result<Value, Refusal> {
        if !VERBS.contains(&verb) {
            return Err(unknown_verb(verb));
        }
        let open = &*self.vault.unsealed().await?;
        open.check_health()?;
        match verb {
            "open_session" => {
                let query: OpenSession = arguments(verb, value)?;
                if self.instance.get_or_init(|| query.instance.clone()) != &query.instance {
                    return Err(Refusal::new(
                        "malformed_request",
                        "this connection belongs to another instance",
                    ));
                }
                answer(&opening::open_session(open, &self.asker, query).await?)
            }
            "end_opening" => {
                opening::end_opening(
                    open,
                    &self.asker,
                    None,
                    arguments::<EndOpening>(verb, value)?,
                )
                .await?;
                answer(&Nothing {})
            }
            _ => Err(unknown_verb(verb)),
        }
    }
}
