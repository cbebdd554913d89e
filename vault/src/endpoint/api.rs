//! The verbs of the HTTP face: charters, and the collections of its workspaces.

use std::sync::Arc;

use claviger_vault_protocol::admin::{
    AuthenticateKey, Credentials, List, OfCredential, Put, Rotate,
};
use claviger_vault_protocol::wire::{Verbs, answer, arguments, unknown_verb};
use claviger_vault_protocol::{Charter, Refusal};
use serde_json::Value;

use crate::vault::{Asker, Vault};
use crate::{api_key, credential, opening};

/// One connection of an api.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) vault: Arc<Vault>,
    pub(crate) asker: Asker,
}

const VERBS: [&str; 9] = [
    "status",
    "register_charter",
    "put",
    "rotate",
    "archive",
    "delete",
    "list",
    "show",
    "authenticate_key",
];

impl Verbs for Api {
    fn names(&self) -> Vec<&'static str> {
        VERBS.to_vec()
    }

    async fn call(&self, verb: &str, value: Value) -> Result<Value, Refusal> {
        if !VERBS.contains(&verb) {
            return Err(unknown_verb(verb));
        }
        if verb == "status" {
            return answer(&self.vault.status().await);
        }
        let open = &*self.vault.unsealed().await?;
        let asker = &self.asker;
        match verb {
            "register_charter" => {
                open.check_health()?;
                answer(&opening::register(open, asker, arguments::<Charter>(verb, value)?).await?)
            }
            "put" => answer(&credential::put(open, asker, arguments::<Put>(verb, value)?).await?),
            "rotate" => {
                answer(&credential::rotate(open, asker, arguments::<Rotate>(verb, value)?).await?)
            }
            "archive" => answer(
                &credential::archive(open, asker, arguments::<OfCredential>(verb, value)?).await?,
            ),
            "delete" => answer(
                &credential::delete(open, asker, arguments::<OfCredential>(verb, value)?).await?,
            ),
            "list" => {
                let credentials = credential::list(open, asker, &arguments::<List>(verb, value)?)?;
                answer(&Credentials { credentials })
            }
            "show" => answer(&credential::show(
                open,
                asker,
                &arguments::<OfCredential>(verb, value)?,
            )?),
            "authenticate_key" => {
                let query: AuthenticateKey = arguments(verb, value)?;
                answer(&api_key::authenticate(open, asker, &query.key_hash).await?)
            }
            _ => Err(unknown_verb(verb)),
        }
    }
}
