//! API keys: 32 random bytes of which only the hash is stored.

use std::collections::HashMap;

use claviger_vault_protocol::admin::{CreateKey, CreatedKey, KeyHolder};
use claviger_vault_protocol::{Principal, Refusal};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::audit::{Decision, Entry, Kind, Label, Op};
use crate::error::VaultError;
use crate::store::{Change, Class};
use crate::vault::{Asker, Unsealed};

/// One key as stored.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ApiKey {
    pub(crate) id: String,
    pub(crate) label: String,
    /// Hex SHA-256 of the key's text. The text has 256 random bits: no slow hash is needed, and a
    /// lookup by it tells nothing about a text that is not known.
    pub(crate) hash: String,
    pub(crate) created_at_ms: u64,
}

/// All keys by hash.
#[derive(Debug, Default)]
pub(crate) struct ApiKeys(HashMap<String, ApiKey>);

impl ApiKeys {
    pub(crate) fn restore(&mut self, key: ApiKey) {
        self.0.insert(key.hash.clone(), key);
    }

    /// Who holds a key.
    pub(crate) fn holder(&self, hash: &str) -> Option<KeyHolder> {
        self.0.get(hash).map(|key| KeyHolder {
            key: key.id.clone(),
            principal: Principal::key(&key.id),
            label: key.label.clone(),
        })
    }

    /// Whether a principal is the holder of a key of this vault.
    pub(crate) fn is_holder(&self, principal: &Principal) -> bool {
        self.0
            .values()
            .any(|key| &Principal::key(&key.id) == principal)
    }
}

/// Makes a key: what is stored, and its text, which is told once.
pub(crate) fn generate(label: &str, now_ms: u64) -> Result<(ApiKey, String), VaultError> {
    let random: [u8; 32] = crate::cipher::random()?;
    let body = hex::encode(random);
    // The checksum lets a scanner of repositories tell a key from a look-alike without asking us.
    let checksum = hex::encode(&Sha256::digest(body.as_bytes())[..4]);
    let text = format!("clv_{body}{checksum}");
    let id = format!("key_{}", uuid::Uuid::new_v4().simple());
    let key = ApiKey {
        id,
        label: label.to_owned(),
        hash: hex::encode(Sha256::digest(text.as_bytes())),
        created_at_ms: now_ms,
    };
    Ok((key, text))
}

/// Checks a label.
pub(crate) fn check_label(label: &str) -> Result<(), Refusal> {
    if label.is_empty() || label.len() > 64 || label.chars().any(char::is_control) {
        return Err(Refusal::new(
            "malformed_request",
            "a key's label has 1 to 64 printable characters",
        ));
    }
    Ok(())
}

/// `create_key`.
pub(crate) async fn create(
    open: &Unsealed,
    asker: &Asker,
    query: CreateKey,
) -> Result<CreatedKey, Refusal> {
    check_label(&query.label)?;
    let _one_change = open.changes.lock().await;
    let (key, text) = generate(&query.label, open.clock.wall_ms())?;
    let mut change = Change::default();
    change.put(Class::ApiKey, &key.id, &key)?;
    let entry = Entry {
        decision: Decision::Allow,
        credential_id: Some(Label::new(&key.id)),
        credential_name: Some(Label::new(&key.label)),
        ..asker.entry(Kind::Admin, Op::CreateKey)
    };
    open.commit(change, entry).await?;
    let id = key.id.clone();
    open.state().api_keys.restore(key);
    Ok(CreatedKey { key: id, text })
}

/// `authenticate_key`.
pub(crate) async fn authenticate(
    open: &Unsealed,
    asker: &Asker,
    hash: &str,
) -> Result<KeyHolder, Refusal> {
    let holder = open.state().api_keys.holder(hash);
    if let Some(holder) = holder {
        return Ok(holder);
    }
    open.deny(
        asker,
        "key_unknown",
        asker.entry(Kind::Auth, Op::Authenticate),
    )
    .await;
    Err(Refusal::new("key_unknown", "no such API key").with_fix("claviger key create"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_stored_only_as_its_hash() {
        let (key, text) = generate("first", 1).unwrap();
        assert!(text.starts_with("clv_") && text.len() == 4 + 64 + 8);
        let stored = serde_json::to_string(&key).unwrap();
        assert!(!stored.contains(text.trim_start_matches("clv_")));
        let mut keys = ApiKeys::default();
        keys.restore(key.clone());
        assert_eq!(
            keys.holder(&key.hash).unwrap().principal,
            Principal::key(&key.id)
        );
        assert!(keys.holder(&text).is_none());
        assert!(
            keys.is_holder(&Principal::key(&key.id)) && !keys.is_holder(&Principal::operator(0))
        );
    }
}
