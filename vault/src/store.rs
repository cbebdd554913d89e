//! The sealed store: one table of sealed rows, and one sealed root that authenticates them all.
//!
//! SQLite sees only ciphertext. Every row is sealed under a sub-key with its own name as associated
//! data; the root holds a digest over all rows, the audit log's head and the store's epoch, and is
//! replaced in the same transaction as the rows. A row that was changed, deleted, added, swapped or
//! replayed is found at open, before anything is believed.

mod digest;
mod front;
mod schema;
mod writer;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::cipher;
use crate::encoding::{length_prefixed, pad, unpad};
use crate::error::VaultError;
use crate::keys::Keys;
use crate::seal::Stanza;
pub(crate) use front::{Front, Header};

use digest::{ClassDigest, Digests, difference};
use front::{front_bytes, read_front};
use writer::{Job, ROW_FLOOR, Writer};

/// Version of the file's form.
const FORMAT: u32 = 1;

/// What a row is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    ApiKey,
    Collection,
    Credential,
    Kek,
    Operator,
    Permit,
    Policy,
    Secret,
    Session,
    Vault,
}

impl Class {
    const ALL: [Self; 10] = [
        Self::ApiKey,
        Self::Collection,
        Self::Credential,
        Self::Kek,
        Self::Operator,
        Self::Permit,
        Self::Policy,
        Self::Secret,
        Self::Session,
        Self::Vault,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Collection => "collection",
            Self::Credential => "credential",
            Self::Kek => "kek",
            Self::Operator => "operator",
            Self::Permit => "permit",
            Self::Policy => "policy",
            Self::Secret => "secret",
            Self::Session => "session",
            Self::Vault => "vault",
        }
    }
}

/// The audit log's head as of some moment: number of records and the last one's hash.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct AuditHead {
    pub(crate) records: u64,
    pub(crate) hash: String,
}

/// An audit record whose change is committed and which may not have reached the log.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Unsettled {
    /// Length of the log when the change was committed: the record is after it, if anywhere.
    pub(crate) after: u64,
    pub(crate) record: Value,
}

/// The sealed store root.
#[derive(Debug, Deserialize, Serialize)]
struct Root {
    audit: AuditHead,
    classes: BTreeMap<Class, ClassDigest>,
    epoch: u64,
    format: u32,
    header: String,
    outbox: Vec<Unsettled>,
}

/// One opened row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) class: Class,
    pub(crate) id: String,
    body: Vec<u8>,
}

impl Row {
    /// Reads the row's value.
    pub(crate) fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, VaultError> {
        serde_json::from_slice(&self.body).map_err(|_| {
            let (class, id) = (self.class.as_str(), &self.id);
            VaultError::StoreTampered(format!("row {class}/{id} is not of this version"))
        })
    }
}

/// Everything that a verified file says.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) audit: AuditHead,
    pub(crate) epoch: u64,
    /// Audit records of committed changes that may not have reached the log.
    pub(crate) outbox: Vec<Unsettled>,
    pub(crate) rows: Vec<Row>,
}

/// Rows to write and delete in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Change {
    puts: Vec<(Class, String, Vec<u8>)>,
    deletes: Vec<(Class, String)>,
    shred: bool,
    outbox: Option<Value>,
}

impl Change {
    /// Writes a row.
    pub(crate) fn put<T: Serialize>(
        &mut self,
        class: Class,
        id: &str,
        value: &T,
    ) -> Result<(), VaultError> {
        let body =
            serde_json::to_vec(value).map_err(|error| VaultError::Store(error.to_string()))?;
        self.puts.push((class, id.to_owned(), body));
        Ok(())
    }

    /// Deletes a row, if there is one.
    pub(crate) fn delete(&mut self, class: Class, id: &str) {
        self.deletes.push((class, id.to_owned()));
    }

    /// Deletes a secret's row so that no copy stays in the file.
    pub(crate) fn shred(&mut self, class: Class, id: &str) {
        self.shred = true;
        self.delete(class, id);
    }

    /// Marks what this change overwrites as something that must not stay in the file.
    pub(crate) fn overwrite_shredding(&mut self) {
        self.shred = true;
    }

    /// Whether nothing would be written but the root.
    pub(crate) fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty()
    }

    /// Adds the audit record of this change: a crash between store and log loses neither.
    pub(crate) fn record(&mut self, record: Value) {
        self.outbox = Some(record);
    }
}

/// How far the writer came.
#[derive(Clone, Debug, Default)]
struct Progress {
    ticket: u64,
    /// Length of the audit log as of the newest commit.
    witnessed: u64,
    failed: Option<String>,
}

/// The open store: changes go in, their commit is awaited by ticket.
#[derive(Debug)]
pub(crate) struct Store {
    jobs: Mutex<(u64, Option<mpsc::Sender<Job>>)>,
    progress: watch::Receiver<Progress>,
    thread: Option<JoinHandle<()>>,
}

/// Where the file of a store is.
pub(crate) fn path(directory: &Path) -> PathBuf {
    directory.join("vault.db")
}

/// Reads header and seals; none where the store was never initialised.
pub(crate) fn front(directory: &Path) -> Result<Option<Front>, VaultError> {
    let path = path(directory);
    if !path.try_exists().map_err(VaultError::file(&path))? {
        return Ok(None);
    }
    let connection = schema::connect(&path, false)?;
    if schema::is_empty(&connection)? {
        return Ok(None);
    }
    schema::verify(&connection)?;
    let front = read_front(&connection)?;
    if front.stanzas.is_empty() {
        return Err(VaultError::StoreTampered(
            "header or stanza: there is no seal left".to_owned(),
        ));
    }
    Ok(Some(front))
}

/// Makes the store with its first rows, in one transaction.
pub(crate) fn create(
    directory: &Path,
    keys: &Keys,
    header: &Header,
    stanzas: &[Stanza],
    change: Change,
) -> Result<Front, VaultError> {
    let path = path(directory);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(VaultError::file(&path))?;
    let connection = schema::connect(&path, true)?;
    if !schema::is_empty(&connection)? {
        return Err(VaultError::Store("there is a store already".to_owned()));
    }
    let json = |error: serde_json::Error| VaultError::Store(error.to_string());
    let transaction = connection.unchecked_transaction()?;
    schema::create(&transaction)?;
    let header = serde_json::to_vec(header).map_err(json)?;
    let stanzas: BTreeMap<&str, Vec<u8>> = stanzas
        .iter()
        .map(|stanza| {
            Ok((
                stanza.id.as_str(),
                serde_json::to_vec(stanza).map_err(json)?,
            ))
        })
        .collect::<Result<_, VaultError>>()?;
    let bytes = front_bytes(
        &header,
        stanzas.iter().map(|(id, body)| (*id, body.as_slice())),
    );
    let mac = cipher::hmac(&keys.header, &bytes);
    transaction.execute(
        "INSERT INTO header (id, body, mac) VALUES (1, ?1, ?2)",
        params![header, mac.to_vec()],
    )?;
    for (id, body) in &stanzas {
        transaction.execute(
            "INSERT INTO stanza (id, body) VALUES (?1, ?2)",
            params![id, body],
        )?;
    }
    let front = read_front(&transaction)?;
    let mut digests = Digests::default();
    for (class, id, body) in &change.puts {
        let associated = row_associated(&front.header.vault, *class, id);
        let sealed = cipher::seal(&keys.metadata, &associated, &pad(body, ROW_FLOOR))?;
        transaction.execute(
            "INSERT INTO record (class, id, sealed) VALUES (?1, ?2, ?3)",
            params![class.as_str(), id, sealed],
        )?;
        digests.insert(*class, id, &sealed);
    }
    let root = Root {
        audit: AuditHead::default(),
        classes: digests.summary(),
        epoch: 1,
        format: FORMAT,
        header: front.hash.clone(),
        outbox: change
            .outbox
            .into_iter()
            .map(|record| Unsettled { after: 0, record })
            .collect(),
    };
    root.write(&transaction, keys, &front.header.vault)?;
    transaction.commit()?;
    Ok(front)
}

/// A verified file that no writer works on yet.
#[derive(Debug)]
pub(crate) struct Verified {
    connection: Connection,
    digests: Digests,
    front: Front,
    /// What it says.
    pub(crate) contents: Contents,
}

/// Opens the file, and believes nothing before all of it is verified.
///
/// # Errors
/// [`VaultError::StoreTampered`] naming what is wrong.
pub(crate) fn open(directory: &Path, keys: &Keys) -> Result<Verified, VaultError> {
    let connection = schema::connect(&path(directory), false)?;
    schema::verify(&connection)?;
    let front = read_front(&connection)?;
    let tampered = |what: String| VaultError::StoreTampered(what);
    cipher::verify_hmac(&keys.header, &front.bytes, &front.mac)
        .map_err(|_| tampered("header or stanza: not as the vault wrote them".to_owned()))?;
    let vault = front.header.vault.clone();
    let root = Root::read(&connection, keys, &vault)?;
    if root.format != FORMAT || root.header != front.hash {
        return Err(tampered(
            "header or stanza: not those that the store root records".to_owned(),
        ));
    }
    let mut digests = Digests::default();
    let mut rows = Vec::new();
    {
        let mut statement = connection
            .prepare("SELECT class, id, sealed FROM record ORDER BY class, id")
            .map_err(schema::as_read)?;
        let mut found = statement.query([]).map_err(schema::as_read)?;
        while let Some(row) = found.next().map_err(schema::as_read)? {
            let class: String = row.get(0).map_err(schema::as_read)?;
            let id: String = row.get(1).map_err(schema::as_read)?;
            let sealed: Vec<u8> = row.get(2).map_err(schema::as_read)?;
            let shown: String = id.chars().filter(char::is_ascii_graphic).take(80).collect();
            let class = Class::ALL
                .into_iter()
                .find(|known| known.as_str() == class)
                .ok_or_else(|| tampered(format!("row {shown} is of an unknown class")))?;
            let body = cipher::open(&keys.metadata, &row_associated(&vault, class, &id), &sealed)
                .map_err(|_| {
                tampered(format!("row {}/{shown} does not open", class.as_str()))
            })?;
            digests.insert(class, &id, &sealed);
            rows.push(Row {
                class,
                id,
                body: unpad(body.expose())?.to_vec(),
            });
        }
    }
    if let Some(what) = difference(&root.classes, &digests.summary()) {
        return Err(tampered(what));
    }
    let Root {
        audit,
        epoch,
        outbox,
        ..
    } = root;
    Ok(Verified {
        connection,
        digests,
        front,
        contents: Contents {
            audit,
            epoch,
            outbox,
            rows,
        },
    })
}

impl Verified {
    /// Starts the writer; `witness` tells the audit log's durable head at each commit.
    pub(crate) fn start(
        self,
        keys: Arc<Keys>,
        witness: impl Fn() -> AuditHead + Send + 'static,
    ) -> Result<Store, VaultError> {
        let epoch = self.contents.epoch;
        let (sender, receiver) = mpsc::channel();
        let (progress_sender, progress) = watch::channel(Progress {
            witnessed: self.contents.audit.records,
            ..Progress::default()
        });
        let writer = Writer {
            connection: self.connection,
            digests: self.digests,
            epoch,
            header: self.front.hash,
            keys,
            outbox: BTreeMap::new(),
            vault: self.front.header.vault,
            witness: Box::new(witness),
        };
        let thread = std::thread::Builder::new()
            .name("vault-store".to_owned())
            .spawn(move || writer.run(&receiver, &progress_sender))
            .map_err(|error| VaultError::Store(error.to_string()))?;
        Ok(Store {
            jobs: Mutex::new((0, Some(sender))),
            progress,
            thread: Some(thread),
        })
    }
}

impl Store {
    /// Hands a change to the writer; changes are committed in the order of their tickets.
    pub(crate) fn enqueue(&self, change: Change) -> u64 {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.0 += 1;
        let ticket = jobs.0;
        if let Some(sender) = &jobs.1 {
            // A writer that is gone has left its reason in `progress`.
            drop(sender.send(Job::Change { ticket, change }));
        }
        ticket
    }

    /// Waits until a change is durable.
    ///
    /// # Errors
    /// [`VaultError::Store`] where the writer gave up; it will not come back.
    ///
    /// # Cancel safety
    /// The change stays with the writer.
    pub(crate) async fn committed(&self, ticket: u64) -> Result<(), VaultError> {
        let mut progress = self.progress.clone();
        let failed = match progress
            .wait_for(|now| now.ticket >= ticket || now.failed.is_some())
            .await
        {
            Ok(now) if now.ticket >= ticket => return Ok(()),
            Ok(now) => now.failed.clone(),
            Err(_) => None,
        };
        Err(VaultError::Store(
            failed.unwrap_or_else(|| "the writer ended".to_owned()),
        ))
    }

    /// Tells that the audit record which came with a change is in the log.
    pub(crate) fn settle(&self, ticket: u64) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &jobs.1 {
            drop(sender.send(Job::Settle(ticket)));
        }
    }

    /// How many audit records the newest committed root knows of.
    pub(crate) fn witnessed(&self) -> u64 {
        self.progress.borrow().witnessed
    }

    /// Why the writer gave up, where it did.
    pub(crate) fn failure(&self) -> Option<String> {
        self.progress.borrow().failed.clone()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).1 = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Root {
    fn write(&self, connection: &Connection, keys: &Keys, vault: &str) -> Result<(), VaultError> {
        let body =
            serde_json::to_vec(self).map_err(|error| VaultError::Store(error.to_string()))?;
        let sealed = cipher::seal(
            &keys.store_root,
            &root_associated(vault),
            &pad(&body, ROW_FLOOR),
        )?;
        connection.execute(
            "INSERT OR REPLACE INTO root (id, sealed) VALUES (1, ?1)",
            params![sealed],
        )?;
        Ok(())
    }

    fn read(connection: &Connection, keys: &Keys, vault: &str) -> Result<Self, VaultError> {
        let tampered = |what: &str| VaultError::StoreTampered(format!("the store root {what}"));
        let sealed: Option<Vec<u8>> = connection
            .query_row("SELECT sealed FROM root WHERE id = 1", [], |row| row.get(0))
            .optional()
            .map_err(schema::as_read)?;
        let sealed = sealed.ok_or_else(|| tampered("is missing"))?;
        let body = cipher::open(&keys.store_root, &root_associated(vault), &sealed)
            .map_err(|_| tampered("does not open"))?;
        serde_json::from_slice(unpad(body.expose())?)
            .map_err(|_| tampered("is not of this version"))
    }
}

fn row_associated(vault: &str, class: Class, id: &str) -> Vec<u8> {
    length_prefixed(&[
        b"claviger/row/v1",
        vault.as_bytes(),
        class.as_str().as_bytes(),
        id.as_bytes(),
    ])
}

fn root_associated(vault: &str) -> Vec<u8> {
    length_prefixed(&[b"claviger/store-root/v1", vault.as_bytes()])
}

#[cfg(test)]
mod tests;
