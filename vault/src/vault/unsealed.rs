//! The vault while its root key is known: keys, rows in memory, store and log.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::{CredentialId, KeyPair, Principal};
use serde::{Deserialize, Serialize};

use super::{Asker, CHANGE};
use crate::api_key::{ApiKey, ApiKeys};
use crate::audit::{Entry, Kind, Label, Op, Signer};
use crate::cipher::{self, SigningKey};
use crate::clock::Clock;
use crate::credential::{Credential, Credentials};
use crate::error::VaultError;
use crate::keys::{Keyring, Keys};
use crate::opening::Openings;
use crate::operator::Verifier;
use crate::permit::{Permits, Policy};
use crate::seal::{commitment, is_same};
use crate::store::{self, Change, Class, Front, Row, Store, Unsettled};
use crate::trail::{self, Trail, denied};
use crate::usage::{self, Uses};

/// The vault's long-lived key pair as stored.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct StoredKeyPair {
    pub(super) private: String,
}

/// Everything that decisions depend on; under one lock, so that they see one moment.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) api_keys: ApiKeys,
    pub(crate) credentials: Credentials,
    pub(crate) openings: Openings,
    pub(crate) permits: Permits,
    pub(crate) uses: Uses,
}

/// A change that was handed to the store and is not acknowledged yet.
#[derive(Debug)]
#[must_use]
pub(crate) struct Pending {
    ticket: u64,
    entry: Entry,
}

/// The open vault.
#[derive(Debug)]
pub(crate) struct Unsealed {
    /// Changes of credentials, permits and keys are made one at a time.
    pub(crate) changes: tokio::sync::Mutex<()>,
    pub(crate) clock: Arc<dyn Clock>,
    first_key: Principal,
    pub(crate) key_pair: KeyPair,
    pub(crate) keyring: Keyring,
    pub(crate) keys: Arc<Keys>,
    state: Mutex<State>,
    /// Before the log: its last transaction still asks the log for its head.
    pub(crate) store: Store,
    pub(crate) trail: Trail,
    /// Records that are written and not known to be durable, with the changes that they tell of.
    unsettled: Mutex<Vec<(u64, u64)>>,
    pub(crate) vault: String,
    pub(crate) verifier: Option<Verifier>,
}

impl Unsealed {
    /// Opens everything with the root key, and verifies store and log against each other.
    pub(super) async fn load(
        directory: &Path,
        front: &Front,
        root: &SecretBytes,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, VaultError> {
        let vault = front.header.vault.clone();
        if !is_same(&commitment(root)?, &front.header.commitment) {
            return Err(VaultError::StoreTampered(
                "the header commits to another root key".to_owned(),
            ));
        }
        let keys = Arc::new(Keys::derive(&vault, root)?);
        let mut verified = store::open(directory, &keys)?;
        let rows = std::mem::take(&mut verified.contents.rows);
        let audit = verified.contents.audit.clone();
        let outbox = std::mem::take(&mut verified.contents.outbox);
        let known = (audit.records > 0).then_some(&audit);
        let found = trail::open(directory, Some(signer(&vault, &keys)?), known)?;
        let missing = compare(&found.trail, audit.records, outbox)?;

        let mut loaded = Loaded::default();
        for row in &rows {
            loaded.take(&vault, &keys, row)?;
        }
        let store = verified.start(Arc::clone(&keys), found.trail.witness())?;
        let absent = |what: &str| VaultError::StoreTampered(format!("{what} is missing"));
        let mut state = loaded.state;
        for intent in &found.open_intents {
            state.uses.restore(intent);
        }
        let unsealed = Self {
            changes: tokio::sync::Mutex::default(),
            clock,
            first_key: loaded.first_key.ok_or_else(|| absent("the policy"))?,
            key_pair: loaded
                .key_pair
                .ok_or_else(|| absent("the vault's key pair"))?,
            keyring: loaded.keyring,
            keys,
            state: Mutex::new(state),
            store,
            trail: found.trail,
            unsettled: Mutex::default(),
            verifier: loaded.verifier,
            vault,
        };
        for entry in missing {
            unsealed.trail.append(entry).await?;
        }
        for intent in &found.open_intents {
            unsealed
                .trail
                .append(usage::unknown_outcome(intent))
                .await?;
        }
        // From here on the store knows the log as it is now.
        let ticket = unsealed.store.enqueue(Change::default());
        unsealed.store.committed(ticket).await?;
        Ok(unsealed)
    }

    /// What decisions depend on. The guard is never held across an await.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The holder of the key that `init` made.
    pub(crate) fn first_key(&self) -> Principal {
        self.first_key.clone()
    }

    /// Makes a change durable, then its audit record; both survive a crash in between.
    pub(crate) async fn commit(&self, change: Change, entry: Entry) -> Result<(), VaultError> {
        let Pending { ticket, entry } = self.enqueue(change, entry)?;
        self.store.committed(ticket).await?;
        self.trail.append(entry).await?;
        self.store.settle(ticket);
        Ok(())
    }

    /// Hands a change to the store, in the order of the lock that the caller holds.
    pub(crate) fn enqueue(
        &self,
        mut change: Change,
        mut entry: Entry,
    ) -> Result<Pending, VaultError> {
        entry.request_id = Some(Label::new(&format!(
            "{CHANGE}{}",
            uuid::Uuid::new_v4().simple()
        )));
        change.record(
            serde_json::to_value(&entry).map_err(|error| VaultError::Audit(error.to_string()))?,
        );
        Ok(Pending {
            ticket: self.store.enqueue(change),
            entry,
        })
    }

    /// Waits until a change is durable and its record written; the record's own fsync comes with the
    /// next intent's, which stands behind it in the log.
    pub(crate) async fn finish(&self, pending: Pending) -> Result<(), VaultError> {
        self.store.committed(pending.ticket).await?;
        let appended = self.trail.append_lazy(pending.entry).await?;
        self.unsettled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((appended.seq, pending.ticket));
        Ok(())
    }

    /// Records a denial, or counts it where there were many of its sort.
    pub(crate) async fn deny(&self, asker: &Asker, reason: &str, entry: Entry) {
        let about = entry.session.as_ref().map_or_else(
            || asker.instance.clone(),
            |session| session.as_str().to_owned(),
        );
        let entry = denied(entry, reason);
        let now = self.clock.monotonic_ms();
        if let Some(entry) = self
            .trail
            .count_denial((about, reason.to_owned()), now, entry)
            && let Err(error) = self.trail.append_lazy(entry).await
        {
            tracing::error!(%error, "a denial is not on record");
        }
    }

    /// Refuses what would build on a store or log that failed.
    pub(crate) fn check_health(&self) -> Result<(), VaultError> {
        if let Some(reason) = self.trail.failure() {
            return Err(VaultError::Audit(reason));
        }
        match self.store.failure() {
            Some(reason) => Err(VaultError::Store(reason)),
            None => Ok(()),
        }
    }

    /// Does what is due once a second: counters, expiries, counted denials, and the log's head into
    /// the store.
    pub(crate) async fn tick(&self) -> Result<(), VaultError> {
        let durable = self.trail.head();
        self.unsettled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(seq, ticket)| {
                let is_durable = *seq <= durable.records;
                if is_durable {
                    self.store.settle(*ticket);
                }
                !is_durable
            });
        for entry in self.trail.counted(self.clock.monotonic_ms()) {
            self.trail.append_lazy(entry).await?;
        }
        let (entries, ticket) = {
            let mut state = self.state();
            let mut change = Change::default();
            state.credentials.flush(&mut change);
            let entries = state.openings.tick(self.clock.as_ref(), &mut change);
            let is_due = !change.is_empty() || self.store.witnessed() != durable.records;
            (entries, is_due.then(|| self.store.enqueue(change)))
        };
        if let Some(ticket) = ticket {
            self.store.committed(ticket).await?;
        }
        for entry in entries {
            self.trail.append_lazy(entry).await?;
        }
        Ok(())
    }
}

/// What the rows say.
#[derive(Default)]
struct Loaded {
    first_key: Option<Principal>,
    key_pair: Option<KeyPair>,
    keyring: Keyring,
    state: State,
    verifier: Option<Verifier>,
}

impl Loaded {
    fn take(&mut self, vault: &str, keys: &Keys, row: &Row) -> Result<(), VaultError> {
        let state = &mut self.state;
        match row.class {
            Class::ApiKey => state.api_keys.restore(row.read::<ApiKey>()?),
            Class::Collection => state.credentials.restore_owner(row.read()?),
            Class::Credential => state.credentials.restore(row.read::<Credential>()?),
            Class::Kek => self.keyring.restore(keys, vault, &row.read()?)?,
            Class::Operator => self.verifier = Some(row.read()?),
            Class::Permit => state.permits.restore(row.read()?),
            Class::Policy => {
                let policy: Policy = row.read()?;
                state.permits.restore_version(policy.version);
                self.first_key = Some(policy.first_key);
            }
            Class::Secret => state
                .credentials
                .restore_secret(CredentialId::from(row.id.as_str()), row.read()?),
            Class::Session => state.openings.restore(row.read()?, |grant, wrapped| {
                keys.unwrap(vault, "grant", grant, wrapped)
            })?,
            Class::Vault => {
                let stored: StoredKeyPair = row.read()?;
                let private = keys.unwrap(vault, "key-pair", "private", &stored.private)?;
                self.key_pair = Some(KeyPair::from_private(private)?);
            }
        }
        Ok(())
    }
}

/// Compares the log with the store: every change that the log tells of must be in the store, and
/// every change of the store must be told by the log. Gives the records that the log lacks.
fn compare(
    trail: &Trail,
    witnessed: u64,
    outbox: Vec<Unsettled>,
) -> Result<Vec<Entry>, VaultError> {
    let wrong = |_| {
        VaultError::StoreTampered("an audit record in the store is not of this version".to_owned())
    };
    let mut unsettled: Vec<Entry> = Vec::new();
    let mut from = witnessed;
    for Unsettled { after, record } in outbox {
        from = from.min(after);
        unsettled.push(serde_json::from_value(record).map_err(wrong)?);
    }
    let mut missing = unsettled.clone();
    loop {
        let records = trail.read(from, 1024)?;
        let Some(last) = records.last() else { break };
        from = last.seq;
        for record in &records {
            let Some(change) = record
                .entry
                .request_id
                .as_ref()
                .filter(|id| id.as_str().starts_with(CHANGE))
            else {
                continue;
            };
            missing.retain(|entry| entry.request_id.as_ref() != Some(change));
            let is_known = unsettled
                .iter()
                .any(|entry| entry.request_id.as_ref() == Some(change));
            if record.seq > witnessed && !is_known {
                return Err(VaultError::StoreRolledBack(format!(
                    "the audit log tells of a change, record {}, that is not in the store",
                    record.seq
                )));
            }
        }
    }
    Ok(missing)
}

/// The signer of this vault's checkpoints.
pub(super) fn signer(vault: &str, keys: &Keys) -> Result<Signer, VaultError> {
    let seed = cipher::hkdf(&keys.audit, b"claviger/checkpoint-key/v1")?;
    Ok(Signer::new(
        &format!("claviger/{vault}"),
        SigningKey::from_seed(seed)?,
    )?)
}

/// The record of a start or an unsealing.
pub(super) fn system(op: Op, asker: Option<&Asker>) -> Entry {
    asker.map_or_else(
        || Entry::new(Kind::System, op),
        |asker| asker.entry(Kind::System, op),
    )
}
