//! Credentials: name, binding and sealed secret, versioned; written and used, never read back.

use std::collections::{BTreeSet, HashMap};

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::admin::{CredentialRow, List, OfCredential, PUT_PURPOSE, Put, Rotate};
use claviger_vault_protocol::{
    Binding, CredentialId, CredentialKind, Principal, Refusal, Sealed, Slot,
};
use serde::{Deserialize, Serialize};

use crate::audit::{Decision, Entry, Kind, Label, Op};
use crate::keys::{Place, SealedSecret};
use crate::store::{Change, Class};
use crate::vault::{Asker, Unsealed};

/// The operator's own collection.
pub(crate) const LOCAL: &str = "vlt_local";
/// The collection of model keys.
pub(crate) const SYSTEM: &str = "vlt_system";
/// Below this, the scrubber cannot tell a secret from chance.
const SHORT: usize = 12;
/// Greatest secret; larger things are not credentials.
const LARGEST: usize = 64 * 1024;
/// Greatest metadata, as JSON.
const LARGEST_METADATA: usize = 16 * 1024;

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

/// Opens a secret that was sealed to the vault's key, and checks it.
fn receive(
    open: &Unsealed,
    sealed: &Sealed,
    associated: &[u8],
    short: bool,
) -> Result<SecretBytes, Refusal> {
    let secret = open
        .key_pair
        .open(sealed, PUT_PURPOSE, associated)
        .map_err(|_| {
            Refusal::new(
                "malformed_request",
                "the secret was not sealed to this vault for this name and binding",
            )
            .with_fix("seal it again with the key in vault.pub")
        })?;
    let bytes = secret.expose();
    if bytes.is_empty() {
        return Err(Refusal::new("empty_secret", "the secret is empty"));
    }
    if bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Err(Refusal::new(
            "secret_has_line_break",
            "the secret contains a line break or a zero byte",
        ));
    }
    if bytes.len() > LARGEST {
        return Err(Refusal::new(
            "malformed_request",
            "a secret has at most 64 KiB",
        ));
    }
    if bytes.len() < SHORT && !short {
        return Err(Refusal::new(
            "secret_too_short",
            "a secret under 12 bytes cannot be scrubbed from answers",
        )
        .with_fix("add --short if that is acceptable"));
    }
    Ok(secret)
}

fn check_name(query: &Put) -> Result<(), Refusal> {
    let malformed = |why: &str| Err(Refusal::new("malformed_request", why));
    if !is_name(&query.name) {
        return malformed("a credential's name is 1 to 64 of A-Z a-z 0-9 _ . -");
    }
    let collection = query.collection.strip_prefix("vlt_").unwrap_or_default();
    if collection.is_empty()
        || collection.len() > 64
        || !collection.chars().all(|c| c.is_ascii_alphanumeric())
    {
        return malformed("a collection's name is vlt_ and 1 to 64 letters and digits");
    }
    if let Some(variable) = &query.variable {
        let legal = variable.len() <= 64
            && variable.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
            && variable
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        let reserved = matches!(
            variable.as_str(),
            "HOME" | "LANG" | "PATH" | "SHELL" | "USER"
        ) || ["LD_", "CLAVIGER_"]
            .iter()
            .any(|prefix| variable.starts_with(prefix))
            || variable.ends_with("_PROXY");
        if !legal || reserved {
            return malformed("this environment variable cannot carry a placeholder");
        }
    }
    if !(query.metadata.is_null() || query.metadata.is_object()) {
        return malformed("metadata is a JSON object");
    }
    if query.metadata.to_string().len() > LARGEST_METADATA {
        return malformed("metadata has at most 16 KiB");
    }
    Ok(())
}

/// A binding is taken only in its canonical form: what is compared later is compared byte by byte.
fn check_binding(query: &Put) -> Result<(), Refusal> {
    let malformed = |why: &str| Err(Refusal::new("malformed_request", why));
    let Binding {
        destination,
        methods,
        path_prefixes,
        slot,
    } = &query.binding;
    if claviger_vault_protocol::Destination::parse(&destination.origin()).as_ref()
        != Ok(destination)
    {
        return malformed("the binding's destination is not in canonical form");
    }
    if methods.len() > 16 || !methods.iter().all(|method| is_method(method)) {
        return malformed("a binding's methods are upper-case words");
    }
    let is_prefix = |path: &String| {
        path.starts_with('/')
            && path.len() <= 1024
            && !path.contains(['?', '#', '\\'])
            && !path.chars().any(|c| c.is_control() || c.is_whitespace())
            && !path.split('/').any(|segment| matches!(segment, "." | ".."))
    };
    if path_prefixes.len() > 64 || !path_prefixes.iter().all(is_prefix) {
        return malformed(
            "a binding's path prefixes start with / and have no query and no dot segments",
        );
    }
    let is_text = |text: &str| text.len() <= 256 && !text.chars().any(char::is_control);
    let is_token = |text: &str| {
        !text.is_empty()
            && text.len() <= 128
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
    };
    let fits = match (query.kind, slot) {
        (CredentialKind::None, Slot::None) => true,
        (CredentialKind::Basic, Slot::Basic { username }) => {
            is_text(username) && !username.contains(':')
        }
        (CredentialKind::Bearer | CredentialKind::Header, Slot::Header { name, prefix }) => {
            let foreign = [
                "host",
                "content-length",
                "transfer-encoding",
                "connection",
                "upgrade",
                "te",
                "trailer",
            ];
            is_token(name)
                && name.to_ascii_lowercase() == *name
                && !foreign.contains(&name.as_str())
                && is_text(prefix)
        }
        (CredentialKind::Query, Slot::Query { name }) => is_token(name),
        _ => false,
    };
    if fits {
        Ok(())
    } else {
        malformed("the binding's slot does not fit the credential's kind")
    }
}

/// Whether a text is a credential's or tool's name.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Whether a text is an HTTP method as bindings and permits write it.
pub(crate) fn is_method(text: &str) -> bool {
    (1..=16).contains(&text.len()) && text.chars().all(|c| c.is_ascii_uppercase() || c == '-')
}
