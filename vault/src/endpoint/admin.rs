//! The operator's verbs.

use std::sync::Arc;

use claviger_vault_memory::scan::{Fingerprints, scan_self};
use claviger_vault_protocol::Refusal;
use claviger_vault_protocol::admin::{
    AuditLines, CreateKey, Credentials, Init, List, OfCredential, PermitTool, Put, ReadAudit,
    RevokeTool, Rotate, Scan, Scanned, Unseal,
};
use claviger_vault_protocol::wire::{Verbs, answer, arguments, unknown_verb};
use serde_json::Value;

use crate::audit::{Decision, Entry, Kind, Op};
use crate::vault::{Asker, Unsealed, Vault};
use crate::{api_key, credential, permit};

/// One connection of the operator's socket.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) vault: Arc<Vault>,
    pub(crate) asker: Asker,
}

const VERBS: [&str; 15] = [
    "status",
    "init",
    "unseal",
    "seal",
    "put",
    "rotate",
    "archive",
    "delete",
    "list",
    "show",
    "permit_tool",
    "revoke_tool",
    "list_permits",
    "create_key",
    "read_audit",
];

impl Verbs for Admin {
    fn names(&self) -> Vec<&'static str> {
        let mut names = VERBS.to_vec();
        if self.vault.is_demo() {
            names.push("scan");
        }
        names
    }

    async fn call(&self, verb: &str, value: Value) -> Result<Value, Refusal> {
        if !self.names().contains(&verb) {
            return Err(unknown_verb(verb));
        }
        match verb {
            "status" => return answer(&self.vault.status().await),
            "init" => {
                return answer(
                    &self
                        .vault
                        .init(&self.asker, arguments::<Init>(verb, value)?)
                        .await?,
                );
            }
            "unseal" => {
                return answer(
                    &self
                        .vault
                        .unseal(&self.asker, arguments::<Unseal>(verb, value)?)
                        .await?,
                );
            }
            "seal" => return answer(&self.vault.seal(&self.asker).await?),
            _ => {}
        }
        let open = &*self.vault.unsealed().await?;
        self.call_open(open, verb, value).await
    }
}

impl Admin {
    async fn call_open(&self, open: &Unsealed, verb: &str, value: Value) -> Result<Value, Refusal> {
        let asker = &self.asker;
        match verb {
            "put" => {
                let query: Put = arguments(verb, value)?;
                self.vault
                    .authenticate(open, asker, verb, &query.auth)
                    .await?;
                answer(&credential::put(open, asker, query).await?)
            }
            "rotate" => {
                let query: Rotate = arguments(verb, value)?;
                self.vault
                    .authenticate(open, asker, verb, &query.auth)
                    .await?;
                answer(&credential::rotate(open, asker, query).await?)
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
            "permit_tool" => {
                let query: PermitTool = arguments(verb, value)?;
                self.vault
                    .authenticate(open, asker, verb, &query.auth)
                    .await?;
                answer(&permit::permit_tool(open, asker, query.permit).await?)
            }
            "revoke_tool" => answer(
                &permit::revoke_tool(open, asker, arguments::<RevokeTool>(verb, value)?).await?,
            ),
            "list_permits" => answer(&open.state().permits.answer()),
            "create_key" => {
                let query: CreateKey = arguments(verb, value)?;
                self.vault
                    .authenticate(open, asker, verb, &query.auth)
                    .await?;
                answer(&api_key::create(open, asker, query).await?)
            }
            "read_audit" => answer(&self.read_audit(open, &arguments(verb, value)?).await?),
            "scan" => answer(&self.scan(open, arguments(verb, value)?).await?),
            _ => Err(unknown_verb(verb)),
        }
    }

    async fn read_audit(&self, open: &Unsealed, query: &ReadAudit) -> Result<AuditLines, Refusal> {
        let limit = usize::try_from(query.limit.clamp(1, 1_000)).unwrap_or(1_000);
        let records = open.trail.read(query.after, limit)?;
        let entry = Entry {
            decision: Decision::Allow,
            count: Some(records.len() as u64),
            ..self.asker.entry(Kind::Admin, Op::ReadAudit)
        };
        open.trail.append(entry).await?;
        let records = records.iter().map(answer).collect::<Result<_, _>>()?;
        Ok(AuditLines { records })
    }

    async fn scan(&self, open: &Unsealed, query: Scan) -> Result<Scanned, Refusal> {
        let malformed = |_| Refusal::new("malformed_request", "these are no fingerprints");
        let fingerprints: Fingerprints =
            serde_json::from_value(query.fingerprints).map_err(malformed)?;
        let entry = Entry {
            decision: Decision::Allow,
            ..self.asker.entry(Kind::Admin, Op::Scan)
        };
        open.trail.append(entry).await?;
        let report = tokio::task::spawn_blocking(move || scan_self(&fingerprints))
            .await
            .map_err(|error| Refusal::new("internal", error.to_string()))?
            .map_err(|error| Refusal::new("internal", error.to_string()))?;
        Ok(Scanned {
            report: answer(&report)?,
        })
    }
}
