//! Credentials: name, binding and sealed secret, versioned; written and used, never read back.

mod check;

use std::collections::{BTreeSet, HashMap};

use claviger_vault_protocol::admin::{CredentialRow, List, OfCredential, Put, Rotate};
use claviger_vault_protocol::{Binding, CredentialId, CredentialKind, Principal, Refusal};
use serde::{Deserialize, Serialize};

use crate::audit::{Decision, Entry, Kind, Label, Op};
use crate::keys::{Place, SealedSecret};
use crate::store::{Change, Class};
use crate::vault::{Asker, Unsealed};

use check::{check_binding, check_name, receive};
pub(crate) use check::{is_method, is_name};

/// The operator's own collection.
pub(crate) const LOCAL: &str = "vlt_local";
/// The collection of model keys.
pub(crate) const SYSTEM: &str = "vlt_system";
/// One credential as stored; its secret has a row of its own.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Credential {
    pub(crate) id: CredentialId,
    pub(crate) collection: String,
    pub(crate) name: String,
    pub(crate) kind: CredentialKind,
    pub(crate) binding: Binding,
    pub(crate) variable: Option<String>,
    pub(crate) version: u32,
    pub(crate) created_at_ms: u64,
    pub(crate) rotated_at_ms: u64,
    pub(crate) archived_at_ms: Option<u64>,
    pub(crate) uses: u64,
    pub(crate) last_used_at_ms: Option<u64>,
    pub(crate) metadata: serde_json::Value,
}

/// Who owns a collection.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Owner {
    pub(crate) collection: String,
    pub(crate) principal: Principal,
}

/// All credentials, as the decision needs them.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    rows: HashMap<CredentialId, Credential>,
    live: HashMap<(String, String), CredentialId>,
    owners: HashMap<String, Principal>,
    secrets: HashMap<CredentialId, SealedSecret>,
    /// Those whose counters are ahead of the store.
    touched: BTreeSet<CredentialId>,
}

impl Credential {
    /// What any answer may hold of it.
    pub(crate) fn row(&self) -> CredentialRow {
        let Self {
            id,
            collection,
            name,
            kind,
            binding,
            variable,
            ..
        } = self.clone();
        CredentialRow {
            id,
            collection,
            name,
            kind,
            binding,
            variable,
            version: self.version,
            created_at_ms: self.created_at_ms,
            rotated_at_ms: self.rotated_at_ms,
            archived_at_ms: self.archived_at_ms,
            uses: self.uses,
            last_used_at_ms: self.last_used_at_ms,
            metadata: self.metadata.clone(),
        }
    }

    pub(crate) fn place<'a>(&'a self, vault: &'a str) -> Place<'a> {
        Place {
            vault,
            credential: &self.id,
            version: self.version,
            binding: &self.binding,
        }
    }

    fn entry(&self, op: Op, asker: &Asker) -> Entry {
        Entry {
            decision: Decision::Allow,
            credential_id: Some(Label::new(self.id.as_str())),
            credential_name: Some(Label::new(&self.name)),
            credential_version: Some(u64::from(self.version)),
            ..asker.entry(Kind::Admin, op)
        }
    }
}

impl Credentials {
    pub(crate) fn get(&self, id: &CredentialId) -> Option<&Credential> {
        self.rows.get(id)
    }

    pub(crate) fn secret(&self, id: &CredentialId) -> Option<&SealedSecret> {
        self.secrets.get(id)
    }

    /// The live credential of a name.
    pub(crate) fn named(&self, collection: &str, name: &str) -> Option<&Credential> {
        self.live
            .get(&(collection.to_owned(), name.to_owned()))
            .and_then(|id| self.rows.get(id))
    }

    /// The live credentials of a collection, by name.
    pub(crate) fn of_collection(&self, collection: &str) -> Vec<&Credential> {
        let mut found: Vec<&Credential> = self
            .rows
            .values()
            .filter(|row| row.collection == collection && row.archived_at_ms.is_none())
            .collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        found
    }

    pub(crate) fn owner(&self, collection: &str) -> Option<&Principal> {
        self.owners.get(collection)
    }

    pub(crate) fn restore(&mut self, credential: Credential) {
        let key = (credential.collection.clone(), credential.name.clone());
        if credential.archived_at_ms.is_none() {
            self.live.insert(key, credential.id.clone());
        } else if self.live.get(&key) == Some(&credential.id) {
            self.live.remove(&key);
        }
        self.rows.insert(credential.id.clone(), credential);
    }

    pub(crate) fn restore_secret(&mut self, id: CredentialId, secret: SealedSecret) {
        self.secrets.insert(id, secret);
    }

    pub(crate) fn restore_owner(&mut self, owner: Owner) {
        self.owners.insert(owner.collection, owner.principal);
    }

    /// Counts one authorised use.
    pub(crate) fn count_use(&mut self, id: &CredentialId, now_ms: u64) {
        if let Some(row) = self.rows.get_mut(id) {
            row.uses += 1;
            row.last_used_at_ms = Some(now_ms);
            self.touched.insert(id.clone());
        }
    }

    /// Puts the counters that are ahead of the store into a change.
    pub(crate) fn flush(&mut self, change: &mut Change) {
        for id in std::mem::take(&mut self.touched) {
            if let Some(row) = self.rows.get(&id) {
                // A row of plain fields always has a JSON form.
                drop(change.put(Class::Credential, id.as_str(), row));
            }
        }
    }
}

/// `put`.
pub(crate) async fn put(
    open: &Unsealed,
    asker: &Asker,
    query: Put,
) -> Result<CredentialRow, Refusal> {
    check_name(&query)?;
    check_binding(&query)?;
    let _one_change = open.changes.lock().await;
    let mut change = Change::default();
    {
        let state = open.state();
        if asker.is_api() {
            let principal = owner_of_request(query.principal.as_ref())?;
            if matches!(query.collection.as_str(), LOCAL | SYSTEM) {
                return Err(not_permitted("this collection belongs to the operator"));
            }
            match state.credentials.owner(&query.collection) {
                Some(owner) if owner != principal => {
                    return Err(not_permitted(
                        "this collection belongs to another workspace",
                    ));
                }
                Some(_) => {}
                None => {
                    let owner = Owner {
                        collection: query.collection.clone(),
                        principal: principal.clone(),
                    };
                    change.put(Class::Collection, &query.collection, &owner)?;
                }
            }
        }
        if state
            .credentials
            .named(&query.collection, &query.name)
            .is_some()
        {
            let (collection, name) = (&query.collection, &query.name);
            return Err(Refusal::new(
                "name_taken",
                format!("{collection} has a credential '{name}' already"),
            )
            .with_fix(format!(
                "claviger secret rotate {name}, or archive it first: its binding cannot be changed"
            )));
        }
    }
    let now = open.clock.wall_ms();
    let credential = Credential {
        id: CredentialId::random(),
        version: 1,
        created_at_ms: now,
        rotated_at_ms: now,
        archived_at_ms: None,
        uses: 0,
        last_used_at_ms: None,
        collection: query.collection,
        name: query.name,
        kind: query.kind,
        binding: query.binding,
        variable: query.variable,
        metadata: query.metadata,
    };
    let sealed = match (&query.secret, credential.kind) {
        (None, CredentialKind::None) => None,
        (Some(_), CredentialKind::None) => {
            return Err(Refusal::new(
                "malformed_request",
                "a credential of kind none takes no secret",
            ));
        }
        (None, _) => {
            return Err(Refusal::new(
                "empty_secret",
                "a credential of this kind needs a secret",
            ));
        }
        (Some(secret), _) => {
            let Credential {
                collection,
                name,
                kind,
                binding,
                ..
            } = &credential;
            let secret = receive(
                open,
                secret,
                &Put::associated(collection, name, *kind, binding),
                query.short,
            )?;
            Some(open.keyring.seal(credential.place(&open.vault), &secret)?)
        }
    };
    change.put(Class::Credential, credential.id.as_str(), &credential)?;
    if let Some(sealed) = &sealed {
        change.put(Class::Secret, credential.id.as_str(), sealed)?;
    }
    open.commit(change, credential.entry(Op::Put, asker))
        .await?;
    let mut state = open.state();
    if let (true, Some(principal)) = (asker.is_api(), query.principal) {
        state.credentials.restore_owner(Owner {
            collection: credential.collection.clone(),
            principal,
        });
    }
    if let Some(sealed) = sealed {
        state
            .credentials
            .restore_secret(credential.id.clone(), sealed);
    }
    state.credentials.restore(credential.clone());
    Ok(credential.row())
}

/// `rotate`: a new version; live grants get it with their next use.
pub(crate) async fn rotate(
    open: &Unsealed,
    asker: &Asker,
    query: Rotate,
) -> Result<CredentialRow, Refusal> {
    let _one_change = open.changes.lock().await;
    let mut credential = find(open, asker, &query.credential, query.principal.as_ref())?;
    if credential.archived_at_ms.is_some() {
        return Err(Refusal::new(
            "credential_archived",
            "an archived credential is not rotated",
        ));
    }
    if credential.kind == CredentialKind::None {
        return Err(Refusal::new(
            "malformed_request",
            "a credential of kind none has no secret",
        ));
    }
    let secret = receive(
        open,
        &query.secret,
        credential.id.as_str().as_bytes(),
        query.short,
    )?;
    credential.version = credential.version.saturating_add(1);
    credential.rotated_at_ms = open.clock.wall_ms();
    let sealed = open.keyring.seal(credential.place(&open.vault), &secret)?;
    drop(secret);
    let mut change = Change::default();
    change.put(Class::Credential, credential.id.as_str(), &credential)?;
    change.put(Class::Secret, credential.id.as_str(), &sealed)?;
    change.overwrite_shredding();
    open.commit(change, credential.entry(Op::Rotate, asker))
        .await?;
    let mut state = open.state();
    state
        .credentials
        .restore_secret(credential.id.clone(), sealed);
    Ok(state.credentials.merge(credential))
}

/// `archive`: refused from this moment on, durable before the answer; the sealed secret goes.
pub(crate) async fn archive(
    open: &Unsealed,
    asker: &Asker,
    query: OfCredential,
) -> Result<CredentialRow, Refusal> {
    let _one_change = open.changes.lock().await;
    let mut credential = find(open, asker, &query.credential, query.principal.as_ref())?;
    if credential.archived_at_ms.is_some() {
        return Ok(credential.row());
    }
    credential.archived_at_ms = Some(open.clock.wall_ms());
    // The effect first: narrowing waits for nothing.
    let row = {
        let mut state = open.state();
        state.credentials.secrets.remove(&credential.id);
        state.credentials.merge(credential.clone())
    };
    let mut change = Change::default();
    change.put(Class::Credential, credential.id.as_str(), &credential)?;
    change.shred(Class::Secret, credential.id.as_str());
    open.commit(change, credential.entry(Op::Archive, asker))
        .await?;
    Ok(row)
}

/// `delete`: as archive, and the record goes too.
pub(crate) async fn delete(
    open: &Unsealed,
    asker: &Asker,
    query: OfCredential,
) -> Result<CredentialRow, Refusal> {
    let _one_change = open.changes.lock().await;
    let credential = find(open, asker, &query.credential, query.principal.as_ref())?;
    {
        let mut state = open.state();
        let credentials = &mut state.credentials;
        credentials.secrets.remove(&credential.id);
        credentials.rows.remove(&credential.id);
        credentials.touched.remove(&credential.id);
        let key = (credential.collection.clone(), credential.name.clone());
        if credentials.live.get(&key) == Some(&credential.id) {
            credentials.live.remove(&key);
        }
    }
    let mut change = Change::default();
    change.delete(Class::Credential, credential.id.as_str());
    change.shred(Class::Secret, credential.id.as_str());
    open.commit(change, credential.entry(Op::Delete, asker))
        .await?;
    Ok(credential.row())
}

/// `list`: newest first.
pub(crate) fn list(
    open: &Unsealed,
    asker: &Asker,
    query: &List,
) -> Result<Vec<CredentialRow>, Refusal> {
    if asker.is_api() && matches!(query.collection.as_deref(), None | Some(LOCAL | SYSTEM)) {
        return Err(not_permitted(
            "an api lists one collection of its workspaces at a time",
        ));
    }
    let state = open.state();
    let mut rows: Vec<CredentialRow> = state
        .credentials
        .rows
        .values()
        .filter(|row| {
            query
                .collection
                .as_ref()
                .is_none_or(|collection| &row.collection == collection)
        })
        .filter(|row| query.include_archived || row.archived_at_ms.is_none())
        .map(Credential::row)
        .collect();
    rows.sort_by(|one, other| {
        other
            .created_at_ms
            .cmp(&one.created_at_ms)
            .then_with(|| other.id.as_str().cmp(one.id.as_str()))
    });
    Ok(rows)
}

/// `show`.
pub(crate) fn show(
    open: &Unsealed,
    asker: &Asker,
    query: &OfCredential,
) -> Result<CredentialRow, Refusal> {
    find(open, asker, &query.credential, query.principal.as_ref())
        .map(|credential| credential.row())
}

impl Credentials {
    /// Takes a changed credential in without losing uses counted meanwhile.
    fn merge(&mut self, mut credential: Credential) -> CredentialRow {
        if let Some(row) = self.rows.get(&credential.id) {
            credential.uses = row.uses;
            credential.last_used_at_ms = row.last_used_at_ms;
        }
        let row = credential.row();
        self.restore(credential);
        row
    }
}

fn find(
    open: &Unsealed,
    asker: &Asker,
    id: &CredentialId,
    principal: Option<&Principal>,
) -> Result<Credential, Refusal> {
    let unknown = || Refusal::new("credential_not_found", "there is no such credential");
    let state = open.state();
    let credential = state.credentials.get(id).ok_or_else(unknown)?;
    if asker.is_api() {
        let principal = owner_of_request(principal)?;
        // One answer for what is absent and for what is someone else's.
        if state.credentials.owner(&credential.collection) != Some(principal) {
            return Err(unknown());
        }
    }
    Ok(credential.clone())
}

fn owner_of_request(principal: Option<&Principal>) -> Result<&Principal, Refusal> {
    principal
        .ok_or_else(|| Refusal::new("malformed_request", "the workspace's principal is missing"))
}

fn not_permitted(why: &str) -> Refusal {
    Refusal::new("principal_not_permitted", why)
}
