//! Grants: which credentials a charter opens, and their ciphertexts.

use std::collections::HashMap;
use std::sync::Arc;

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::sealed::{grant_associated, seal_grant};
use claviger_vault_protocol::{Charter, CredentialId, Envelope, GrantId, Principal};

use super::Grant;
use crate::credential::{Credential, LOCAL, SYSTEM};
use crate::error::VaultError;
use crate::permit;
use crate::vault::{State, Unsealed};

/// Most grants of one opening.
const MOST: usize = 256;

/// One credential to be opened.
#[derive(Clone, Debug)]
pub(super) struct Selected {
    credential: CredentialId,
    by_tool_only: bool,
}

/// New grants with their keys.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) grants: Vec<Grant>,
    pub(super) envelopes: Vec<Envelope>,
    pub(super) keys: HashMap<GrantId, Arc<SecretBytes>>,
}

/// The credentials that a charter opens, and which of them is the model's.
///
/// A collection opens only for its owner; the operator's own one only for operators and for the key
/// made at init. A permitted tool brings its credential along, for that tool alone.
pub(super) fn select(
    state: &State,
    charter: &Charter,
    first_key: &Principal,
) -> (Vec<Selected>, Option<CredentialId>) {
    let principal = &charter.principal;
    let is_operator = principal.as_str().starts_with("operator:uid:") || principal == first_key;
    let mut selected: Vec<Selected> = Vec::new();
    let mut add = |credential: &CredentialId, by_tool_only: bool| {
        if selected.len() < MOST && !selected.iter().any(|known| &known.credential == credential) {
            selected.push(Selected {
                credential: credential.clone(),
                by_tool_only,
            });
        }
    };
    let model = state
        .credentials
        .named(SYSTEM, &charter.model_credential)
        .map(|credential| credential.id.clone());
    if let Some(model) = &model {
        add(model, false);
    }
    for vault in &charter.vaults {
        let is_open = if vault == LOCAL {
            is_operator
        } else {
            state.credentials.owner(vault) == Some(principal)
        };
        if is_open {
            for credential in state.credentials.of_collection(vault) {
                add(&credential.id, false);
            }
        }
    }
    for permit in state.permits.iter() {
        let is_chartered = charter
            .tools
            .iter()
            .any(|tool| tool == "*" || tool == &permit.tool);
        let is_live = state
            .credentials
            .get(&permit.credential)
            .is_some_and(|c| c.archived_at_ms.is_none());
        if is_chartered && is_live && permit::names(permit, principal) {
            add(&permit.credential, true);
        }
    }
    (selected, model)
}

/// What a sandbox holds instead of the secret: the same in every epoch of a session, because a
/// sandbox outlives the harness that filled its environment, and guessable by nobody.
fn placeholder(open: &Unsealed, session: &str, credential: &CredentialId) -> String {
    let name = open
        .keys
        .blind("placeholder", &format!("{session} {credential}"));
    let start: String = name.chars().take(32).collect();
    format!("clvp_{start}")
}

/// Makes a grant with a key of its own for each selected credential.
pub(super) fn make(
    open: &Unsealed,
    state: &State,
    session: &str,
    epoch: u64,
    selected: &[Selected],
) -> Result<Made, &'static str> {
    let mut made = Made {
        grants: Vec::new(),
        envelopes: Vec::new(),
        keys: HashMap::new(),
    };
    for Selected {
        credential,
        by_tool_only,
    } in selected
    {
        let Some(credential) = state.credentials.get(credential) else {
            continue;
        };
        let id = GrantId::random();
        let placeholder = placeholder(open, session, &credential.id);
        let key = match state.credentials.secret(&credential.id) {
            None => None,
            Some(_) => Some(Arc::new(
                SecretBytes::random(32).map_err(|_| "memory_unavailable")?,
            )),
        };
        let ciphertext = match &key {
            None => String::new(),
            Some(key) => seal(open, state, credential, session, epoch, &id, key)
                .map_err(|error| error.code())?,
        };
        let wrapped = match &key {
            None => None,
            Some(key) => Some(
                open.keys
                    .wrap(&open.vault, "grant", id.as_str(), key)
                    .map_err(|error| error.code())?,
            ),
        };
        made.envelopes.push(envelope(
            credential,
            &id,
            &placeholder,
            ciphertext,
            *by_tool_only,
        ));
        made.grants.push(Grant {
            grant: id.clone(),
            credential: credential.id.clone(),
            version: credential.version,
            placeholder,
            by_tool_only: *by_tool_only,
            key: wrapped,
        });
        if let Some(key) = key {
            made.keys.insert(id, key);
        }
    }
    Ok(made)
}

/// The newest versions of what an opening granted; archived credentials are left out.
pub(super) fn renew(
    open: &Unsealed,
    state: &State,
    session: &str,
) -> Result<Vec<Envelope>, &'static str> {
    let live = state.openings.get(session).ok_or("opening_not_found")?;
    let opening = live.session.opening.as_ref().ok_or("opening_not_found")?;
    let mut envelopes = Vec::new();
    for grant in &opening.grants {
        let Some(credential) = state.credentials.get(&grant.credential) else {
            continue;
        };
        if credential.archived_at_ms.is_some() {
            continue;
        }
        let ciphertext = match live.keys.get(&grant.grant) {
            None => String::new(),
            Some(key) => seal(
                open,
                state,
                credential,
                session,
                opening.epoch,
                &grant.grant,
                key,
            )
            .map_err(|error| error.code())?,
        };
        envelopes.push(envelope(
            credential,
            &grant.grant,
            &grant.placeholder,
            ciphertext,
            grant.by_tool_only,
        ));
    }
    Ok(envelopes)
}

/// Seals a credential's newest secret under a grant's key.
pub(crate) fn seal(
    open: &Unsealed,
    state: &State,
    credential: &Credential,
    session: &str,
    epoch: u64,
    grant: &GrantId,
    key: &SecretBytes,
) -> Result<String, VaultError> {
    let gone = || VaultError::Seal("the credential's secret is gone".to_owned());
    let sealed = state.credentials.secret(&credential.id).ok_or_else(gone)?;
    let secret = open.keyring.open(credential.place(&open.vault), sealed)?;
    let binding = serde_json::to_vec(&credential.binding)
        .map_err(|error| VaultError::Seal(error.to_string()))?;
    let associated = grant_associated(
        session,
        epoch,
        grant.as_str(),
        credential.id.as_str(),
        credential.version,
        &binding,
    );
    Ok(seal_grant(key, &secret, &associated)?)
}

fn envelope(
    credential: &Credential,
    grant: &GrantId,
    placeholder: &str,
    ciphertext: String,
    by_tool_only: bool,
) -> Envelope {
    Envelope {
        grant: grant.clone(),
        credential: credential.id.clone(),
        name: credential.name.clone(),
        version: credential.version,
        kind: credential.kind,
        binding: credential.binding.clone(),
        placeholder: placeholder.to_owned(),
        // A sandbox gets no placeholder of what it may not spend at its gateway.
        variable: credential.variable.clone().filter(|_| !by_tool_only),
        ciphertext,
    }
}
