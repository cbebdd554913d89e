//! Charters: what a session may open, told by the api, narrowed by what the vault knows better.

use claviger_vault_protocol::charter::Registered;
use claviger_vault_protocol::{Charter, Refusal};

use super::{Live, Session};
use crate::audit::{Decision, Entry, Kind, Label, Op};
use crate::credential::{LOCAL, SYSTEM, is_name};
use crate::store::Change;
use crate::vault::{Asker, Unsealed};

/// `register_charter`: a repeat changes nothing, a change reaches the session's next opening.
pub(crate) async fn register(
    open: &Unsealed,
    asker: &Asker,
    charter: Charter,
) -> Result<Registered, Refusal> {
    check(&charter)?;
    let now = open.clock.wall_ms();
    if charter.expires_at_ms <= now {
        return Err(Refusal::new(
            "charter_expired",
            "the charter has run out already",
        ));
    }
    let answer = |version| Registered {
        session: charter.session.clone(),
        policy_version: version,
    };
    let pending = {
        let mut state = open.state();
        let version = state.permits.version();
        let not_permitted = |why: &str| Err(Refusal::new("principal_not_permitted", why));
        let is_operator = charter.principal.as_str().starts_with("operator:uid:");
        if !is_operator && !state.api_keys.is_holder(&charter.principal) {
            return not_permitted("no API key has this principal");
        }
        for vault in &charter.vaults {
            if vault == SYSTEM {
                return not_permitted(
                    "model keys are opened by the charter's model credential only",
                );
            }
            if vault != LOCAL
                && state
                    .credentials
                    .owner(vault)
                    .is_some_and(|owner| owner != &charter.principal)
            {
                return not_permitted("a collection of the charter belongs to another workspace");
            }
        }
        match state.openings.get_mut(&charter.session) {
            Some(live) if live.session.charter == charter => return Ok(answer(version)),
            Some(live) if live.session.charter.principal != charter.principal => {
                return not_permitted("this session belongs to another principal");
            }
            Some(live) => live.session.charter = charter.clone(),
            None => {
                let session = Session {
                    charter: charter.clone(),
                    is_seat: false,
                    newest_epoch: 0,
                    opening: None,
                };
                state
                    .openings
                    .0
                    .insert(charter.session.clone(), Live::new(session));
            }
        }
        let mut change = Change::default();
        if let Some(live) = state.openings.get(&charter.session) {
            live.store(&mut change)?;
        }
        let entry = Entry {
            decision: Decision::Allow,
            principal: Some(Label::new(charter.principal.as_str())),
            session: Some(Label::new(&charter.session)),
            policy_version: Some(version),
            count: Some(charter.vaults.len() as u64),
            ..asker.entry(Kind::Opening, Op::RegisterCharter)
        };
        (open.enqueue(change, entry)?, version)
    };
    open.finish(pending.0).await?;
    Ok(answer(pending.1))
}

fn check(charter: &Charter) -> Result<(), Refusal> {
    let malformed = |why: &str| Err(Refusal::new("malformed_request", why));
    let is_identifier = |text: &str, prefix: &str| {
        text.strip_prefix(prefix).is_some_and(|rest| {
            (1..=64).contains(&rest.len()) && rest.chars().all(|c| c.is_ascii_alphanumeric())
        })
    };
    if !is_identifier(&charter.session, "sesn_") {
        return malformed("a session's identifier is sesn_ and 1 to 64 letters and digits");
    }
    if charter.vaults.len() > 64
        || !charter
            .vaults
            .iter()
            .all(|vault| is_identifier(vault, "vlt_"))
    {
        return malformed(
            "a charter names at most 64 collections, each vlt_ and letters and digits",
        );
    }
    if charter.tools.len() > 256
        || !charter
            .tools
            .iter()
            .all(|tool| tool == "*" || is_name(tool))
    {
        return malformed("a charter names at most 256 tools");
    }
    if charter.agent.len() > 256
        || charter.principal.as_str().len() > 128
        || charter.model_credential.len() > 64
    {
        return malformed("a name in the charter is too long");
    }
    Ok(())
}
