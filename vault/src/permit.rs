//! The permit table and the decision: default deny, pure, always with a reason code.

use std::collections::BTreeMap;

use claviger_vault_protocol::admin::{Permit, Permits as Answer, RevokeTool};
use claviger_vault_protocol::usage::AuthorizeUse;
use claviger_vault_protocol::{CredentialId, Principal, Refusal};
use serde::{Deserialize, Serialize};

use crate::audit::{Decision, Entry, Kind, Label, Op};
use crate::credential::{Credential, is_method, is_name};
use crate::store::{Change, Class};
use crate::vault::{Asker, Unsealed};

/// A tool that every session has: the model route.
pub(crate) const MODEL: &str = "model";
/// The gateway of a sandbox.
pub(crate) const EGRESS: &str = "egress";

/// The permits in force, one per tool.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    by_tool: BTreeMap<String, Permit>,
    version: u64,
}

/// The policy's version as stored.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Policy {
    pub(crate) version: u64,
    /// The key made by `init`, whose holder is the operator's own workspace.
    pub(crate) first_key: Principal,
}

impl Permits {
    pub(crate) fn get(&self, tool: &str) -> Option<&Permit> {
        self.by_tool.get(tool)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Permit> {
        self.by_tool.values()
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn restore(&mut self, permit: Permit) {
        self.by_tool.insert(permit.tool.clone(), permit);
    }

    pub(crate) fn restore_version(&mut self, version: u64) {
        self.version = version;
    }

    /// Answer to `list_permits`.
    pub(crate) fn answer(&self) -> Answer {
        Answer {
            policy_version: self.version,
            permits: self.by_tool.values().cloned().collect(),
        }
    }
}

/// Whether a permit names a principal.
pub(crate) fn names(permit: &Permit, principal: &Principal) -> bool {
    permit
        .principals
        .iter()
        .any(|named| named == principal || named.as_str() == "*")
}

/// How far an opening has come, as the decision sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// Taken by the tools instance that asks.
    Accepted,
    /// Ended, superseded or void.
    Ended,
    /// Not taken by the tools instance that asks.
    NotAccepted,
}

/// A grant as the decision sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GrantFacts<'a> {
    /// The credential behind it; none where it was deleted.
    pub(crate) credential: Option<&'a Credential>,
    pub(crate) credential_id: &'a CredentialId,
    /// Opened for a permitted tool alone, not by a collection of the charter.
    pub(crate) by_tool_only: bool,
    pub(crate) is_model: bool,
}

/// Everything that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) now_ms: u64,
    pub(crate) standing: Standing,
    pub(crate) newest_epoch: u64,
    pub(crate) expires_at_ms: u64,
    pub(crate) is_seat: bool,
    pub(crate) principal: &'a Principal,
    /// Tools of the charter as it is now.
    pub(crate) tools: &'a [String],
    /// Tools of the charter as it was opened.
    pub(crate) opened_tools: &'a [String],
    pub(crate) grant: Option<GrantFacts<'a>>,
    /// The permit of the tool that asks.
    pub(crate) permit: Option<&'a Permit>,
}

/// Decides one use; the reason code where it is refused.
pub(crate) fn decide(asked: &AuthorizeUse, facts: &Facts<'_>) -> Result<(), &'static str> {
    if asked.epoch != facts.newest_epoch {
        return Err(if asked.epoch < facts.newest_epoch {
            "epoch_stale"
        } else {
            "opening_not_found"
        });
    }
    match facts.standing {
        Standing::Accepted => {}
        Standing::Ended => return Err("opening_void"),
        Standing::NotAccepted => return Err("opening_not_accepted"),
    }
    if facts.now_ms >= facts.expires_at_ms {
        return Err("charter_expired");
    }
    let grant = facts.grant.ok_or("grant_not_found")?;
    let credential = grant.credential.ok_or("credential_not_found")?;
    if credential.archived_at_ms.is_some() {
        return Err("credential_archived");
    }
    let mut methods: &[String] = &[];
    match asked.tool.as_str() {
        MODEL => {
            if !grant.is_model {
                return Err("tool_not_permitted");
            }
        }
        EGRESS => {
            if grant.is_model || grant.by_tool_only || facts.is_seat {
                return Err("tool_not_permitted");
            }
        }
        tool => {
            let is_in = |tools: &[String]| tools.iter().any(|named| named == tool || named == "*");
            let chartered = is_in(facts.opened_tools) && is_in(facts.tools);
            if !chartered || grant.is_model {
                return Err("tool_not_permitted");
            }
            let permit = facts
                .permit
                .filter(|permit| permit.tool == tool)
                .ok_or("tool_not_permitted")?;
            if permit.tool_hash != asked.tool_hash {
                return Err("tool_changed");
            }
            if &permit.credential != grant.credential_id {
                return Err("tool_not_permitted");
            }
            if !names(permit, facts.principal) {
                return Err("principal_not_permitted");
            }
            methods = &permit.methods;
        }
    }
    credential
        .binding
        .admits(&asked.destination, &asked.method, &asked.path)?;
    if !methods.is_empty() && !methods.iter().any(|method| method == &asked.method) {
        return Err("method_not_permitted");
    }
    Ok(())
}

/// What would help against a reason code.
pub(crate) fn fix(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "tool_changed" => "look at the tool's file, then claviger tool add",
        "tool_not_permitted" | "principal_not_permitted" | "method_not_permitted" => {
            "claviger tool add"
        }
        "credential_archived" => "claviger secret add, then start the session again",
        "destination_not_bound" | "method_not_bound" | "path_not_bound" => {
            "a binding cannot be changed; give the secret again with another one"
        }
        "charter_expired" => "create a new session",
        _ => return None,
    })
}

/// `permit_tool`.
pub(crate) async fn permit_tool(
    open: &Unsealed,
    asker: &Asker,
    permit: Permit,
) -> Result<Answer, Refusal> {
    let malformed = |why: &str| Err(Refusal::new("malformed_request", why));
    if !is_name(&permit.tool) || matches!(permit.tool.as_str(), MODEL | EGRESS) {
        return malformed("this is no name for a tool");
    }
    if crate::audit::Digest::parse(&permit.tool_hash).is_none() {
        return malformed("the tool's hash is not the hex SHA-256 of its file");
    }
    if permit.principals.is_empty() || permit.principals.len() > 256 {
        return malformed("a permit names 1 to 256 principals");
    }
    if permit.methods.len() > 16 || !permit.methods.iter().all(|method| is_method(method)) {
        return malformed("a permit's methods are upper-case words");
    }
    let _one_change = open.changes.lock().await;
    let mut change = Change::default();
    let version = {
        let state = open.state();
        let credential = state
            .credentials
            .get(&permit.credential)
            .ok_or_else(|| Refusal::new("credential_not_found", "there is no such credential"))?;
        if credential.archived_at_ms.is_some() {
            return Err(Refusal::new(
                "credential_archived",
                "the credential is archived",
            ));
        }
        state.permits.version + 1
    };
    change.put(
        Class::Permit,
        &open.keys.blind("permit", &permit.tool),
        &permit,
    )?;
    change.put(
        Class::Policy,
        "policy",
        &Policy {
            version,
            first_key: open.first_key(),
        },
    )?;
    let entry = Entry {
        decision: Decision::Allow,
        tool: Some(Label::new(&permit.tool)),
        credential_id: Some(Label::new(permit.credential.as_str())),
        digest: crate::audit::Digest::parse(&permit.tool_hash),
        policy_version: Some(version),
        ..asker.entry(Kind::Admin, Op::Permit)
    };
    open.commit(change, entry).await?;
    let mut state = open.state();
    state.permits.restore(permit);
    state.permits.version = version;
    Ok(state.permits.answer())
}

/// `revoke_tool`: refused from this moment on.
pub(crate) async fn revoke_tool(
    open: &Unsealed,
    asker: &Asker,
    query: RevokeTool,
) -> Result<Answer, Refusal> {
    let _one_change = open.changes.lock().await;
    let (version, answer) = {
        let mut state = open.state();
        if state.permits.by_tool.remove(&query.tool).is_none() {
            return Err(Refusal::new(
                "tool_not_permitted",
                "this tool has no permit",
            ));
        }
        state.permits.version += 1;
        (state.permits.version, state.permits.answer())
    };
    let mut change = Change::default();
    change.delete(Class::Permit, &open.keys.blind("permit", &query.tool));
    change.put(
        Class::Policy,
        "policy",
        &Policy {
            version,
            first_key: open.first_key(),
        },
    )?;
    let entry = Entry {
        decision: Decision::Allow,
        tool: Some(Label::new(&query.tool)),
        policy_version: Some(version),
        ..asker.entry(Kind::Admin, Op::Revoke)
    };
    open.commit(change, entry).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests;
