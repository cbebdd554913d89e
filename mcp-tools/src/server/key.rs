//! API keys at the HTTP listener: hashed here, judged by the vault, remembered for a moment.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use claviger_vault_protocol::admin::AuthenticateKey;
use claviger_vault_protocol::client::ToolsVault;
use claviger_vault_protocol::{Principal, Refusal};
use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};

use crate::error::from_vault;

/// How long a revoked key may still be taken.
const KEPT: Duration = Duration::from_secs(2);
/// Most keys remembered.
const MAX_KEPT: usize = 1024;

/// Who holds which key, as the vault said a moment ago.
#[derive(Debug, Default)]
pub(super) struct Keys {
    known: Mutex<HashMap<String, (Principal, Instant)>>,
}

impl Keys {
    /// The holder of the request's bearer key.
    pub(super) async fn holder(
        &self,
        vault: &ToolsVault,
        headers: &HeaderMap,
    ) -> Result<Principal, Refusal> {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else {
            return Err(unauthenticated());
        };
        let (scheme, key) = value
            .as_bytes()
            .split_at_checked(7)
            .ok_or_else(unauthenticated)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") || key.is_empty() || key.len() > 512 {
            return Err(unauthenticated());
        }
        // The table is searched by hash, so that no comparison depends on the key itself.
        let hash = hex::encode(Sha256::digest(key.trim_ascii()));
        if let Some((principal, since)) = self.known().get(&hash)
            && since.elapsed() < KEPT
        {
            return Ok(principal.clone());
        }
        let holder = vault
            .authenticate_key(&AuthenticateKey {
                key_hash: hash.clone(),
            })
            .await;
        let holder = holder.map_err(from_vault).map_err(|refusal| {
            // Why a key is not good is for the log, not for whoever tries keys.
            if refusal.code.starts_with("vault_") {
                refusal
            } else {
                unauthenticated()
            }
        })?;
        let mut known = self.known();
        known.retain(|_, (_, since)| since.elapsed() < KEPT);
        if known.len() < MAX_KEPT {
            known.insert(hash, (holder.principal.clone(), Instant::now()));
        }
        Ok(holder.principal)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Principal, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unauthenticated() -> Refusal {
    Refusal::new(
        "unauthenticated",
        "this address needs an API key as a bearer token",
    )
    .with_fix("claviger key create LABEL")
}
