//! What all requests share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use claviger_session::SessionClient;
use claviger_vault_protocol::admin::AuthenticateKey;
use claviger_vault_protocol::client::ApiVault;
use claviger_vault_protocol::{Principal, PublicKey};
use http::request::Parts;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::object::Object;
use crate::object::fold::Folds;
use crate::problem::{Answer, Problem};
use crate::session::state::SessionState;

/// How long the vault's word on a key is believed.
const KEY_LIFETIME: Duration = Duration::from_secs(5);
/// Most keys remembered.
const MAX_KEYS: usize = 1024;

pub(crate) struct App {
    pub(crate) log: SessionClient,
    pub(crate) vault: ApiVault,
    pub(crate) vault_key: PublicKey,
    pub(crate) mcp_url: String,
    pub(crate) operators: Vec<u32>,
    pub(crate) objects: Folds<Object>,
    pub(crate) sessions: Folds<SessionState>,
    pub(crate) keys: Keys,
    pub(crate) stop: CancellationToken,
}

pub(crate) type Shared = Arc<App>;

/// Who asks: put into the request's extensions by the gate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Caller {
    pub(crate) principal: Principal,
    pub(crate) is_operator: bool,
}

impl Caller {
    /// Whether an object of `owner` is this caller's to see and change; an operator's sight has no bounds.
    pub(crate) fn owns(&self, owner: &str) -> bool {
        self.is_operator || self.principal.as_str() == owner
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Answer<Self> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(Problem::unauthenticated)
    }
}

/// Keys that the vault has lately vouched for, by hash.
#[derive(Debug, Default)]
pub(crate) struct Keys(Mutex<HashMap<[u8; 32], (Instant, Principal)>>);

impl Keys {
    /// Asks the vault, or its word of the last seconds, who holds a key.
    pub(crate) async fn holder(&self, vault: &ApiVault, key: &[u8]) -> Answer<Principal> {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let known = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&hash)
            .cloned();
        if let Some((at, principal)) = known
            && at.elapsed() < KEY_LIFETIME
        {
            return Ok(principal);
        }
        let asked = Instant::now();
        let holder = vault
            .authenticate_key(&AuthenticateKey {
                key_hash: hex::encode(hash),
            })
            .await;
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match holder {
            Ok(holder) => {
                if keys.len() >= MAX_KEYS {
                    keys.retain(|_, (at, _)| at.elapsed() < KEY_LIFETIME);
                }
                if keys.len() < MAX_KEYS {
                    keys.insert(hash, (asked, holder.principal.clone()));
                }
                Ok(holder.principal)
            }
            Err(error) => {
                keys.remove(&hash);
                Err(error.into())
            }
        }
    }
}
