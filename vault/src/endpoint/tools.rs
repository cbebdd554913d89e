//! The verbs of a tools instance, all but one of which need its registration.

use std::sync::{Arc, OnceLock};

use claviger_vault_protocol::admin::{AuthenticateKey, Nothing};
use claviger_vault_protocol::opening::{Accept, EndOpening, OpenSeat, RegisterTools};
use claviger_vault_protocol::usage::{AuthorizeUse, RecordOutcome, Report};
use claviger_vault_protocol::wire::{Verbs, answer, arguments, unknown_verb};
use claviger_vault_protocol::{PublicKey, Refusal};
use serde_json::Value;

use crate::audit::{Decision, Entry, Kind, Label, Op};
use crate::vault::{Asker, Registered, Vault};
use crate::{api_key, opening, usage};

/// One connection of a tools instance.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) vault: Arc<Vault>,
    pub(crate) asker: Asker,
    pub(crate) registered: OnceLock<Registered>,
    /// Whether the registration is on record; a sealed vault keeps it for later.
    pub(crate) recorded: tokio::sync::OnceCell<()>,
}

const VERBS: [&str; 9] = [
    "register_tools",
    "accept",
    "open_seat",
    "authorize_use",
    "record_outcome",
    "report",
    "end_opening",
    "list_permits",
    "authenticate_key",
];

impl Verbs for Tools {
    fn names(&self) -> Vec<&'static str> {
        VERBS.to_vec()
    }

    async fn call(&self, verb: &str, value: Value) -> Result<Value, Refusal> {
        if !VERBS.contains(&verb) {
            return Err(unknown_verb(verb));
        }
        if verb == "register_tools" {
            // Works while sealed: it gives nothing, and the instance waits on this connection.
            return self.register(&arguments(verb, value)?);
        }
        let tools = self.registered()?;
        let open = &*self.vault.unsealed().await?;
        open.check_health()?;
        self.recorded
            .get_or_try_init(|| async {
                let registry = &self.vault.registry;
                opening::end_seats(open, |instance| registry.is_current(instance)).await?;
                let entry = Entry {
                    decision: Decision::Allow,
                    tool: Some(Label::new(&tools.instance)),
                    ..self.asker.entry(Kind::Opening, Op::RegisterTools)
                };
                open.trail.append_lazy(entry).await?;
                Ok::<(), Refusal>(())
            })
            .await?;
        match verb {
            "accept" => {
                let is_current = |instance: &str| self.vault.registry.is_current(instance);
                answer(
                    &opening::accept(
                        open,
                        &self.asker,
                        tools,
                        is_current,
                        arguments::<Accept>(verb, value)?,
                    )
                    .await?,
                )
            }
            "open_seat" => answer(
                &opening::open_seat(
                    open,
                    &self.asker,
                    tools,
                    arguments::<OpenSeat>(verb, value)?,
                )
                .await?,
            ),
            "authorize_use" => answer(
                &usage::authorize(
                    open,
                    &self.asker,
                    tools,
                    arguments::<AuthorizeUse>(verb, value)?,
                )
                .await?,
            ),
            "record_outcome" => {
                usage::record_outcome(open, tools, arguments::<RecordOutcome>(verb, value)?)
                    .await?;
                answer(&Nothing {})
            }
            "report" => {
                usage::report(open, &self.asker, arguments::<Report>(verb, value)?).await?;
                answer(&Nothing {})
            }
            "end_opening" => {
                opening::end_opening(
                    open,
                    &self.asker,
                    Some(tools),
                    arguments::<EndOpening>(verb, value)?,
                )
                .await?;
                answer(&Nothing {})
            }
            "list_permits" => answer(&open.state().permits.answer()),
            "authenticate_key" => {
                let query: AuthenticateKey = arguments(verb, value)?;
                answer(&api_key::authenticate(open, &self.asker, &query.key_hash).await?)
            }
            _ => Err(unknown_verb(verb)),
        }
    }
}

impl Tools {
    fn register(&self, query: &RegisterTools) -> Result<Value, Refusal> {
        let malformed = |why: &str| Refusal::new("malformed_request", why);
        let key = PublicKey::parse(&query.key)
            .map_err(|_| malformed("the instance's key is no X25519 key"))?;
        if query.instance.is_empty() || query.instance.len() > 128 {
            return Err(malformed("a tools instance names itself"));
        }
        if let Some(known) = self.registered.get() {
            let is_same = known.instance == query.instance && known.key == key;
            return if is_same {
                answer(&Nothing {})
            } else {
                Err(malformed("this connection is registered already"))
            };
        }
        let registered = self
            .vault
            .registry
            .register(&self.asker.instance, &query.instance, key)
            .ok_or_else(|| malformed("another process is registered as this instance"))?;
        if let Err(second) = self.registered.set(registered) {
            self.vault
                .registry
                .leave(&self.asker.instance, second.registration);
            return Err(malformed("this connection is registered already"));
        }
        answer(&Nothing {})
    }

    /// The registration of this connection, while it is the newest of its process.
    fn registered(&self) -> Result<&Registered, Refusal> {
        self.registered
            .get()
            .filter(|known| {
                self.vault
                    .registry
                    .is_newest(&self.asker.instance, known.registration)
            })
            .ok_or_else(|| {
                Refusal::new(
                    "not_registered",
                    "this connection has not registered a tools instance",
                )
            })
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        if let Some(known) = self.registered.get() {
            self.vault
                .registry
                .leave(&self.asker.instance, known.registration);
        }
    }
}
