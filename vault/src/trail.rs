//! The daemon's side of the audit log: what is appended, and denials that are counted, not flooded.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::audit::{
    Appended, AuditLog, Entry, Head, Label, Opened, Options, Record, Signer, Writer,
};
use crate::error::VaultError;
use crate::store::AuditHead;

/// Denials of one sort that are recorded one by one, per window.
const DENIALS: u64 = 16;
/// Length of a window.
const WINDOW_MS: u64 = 60_000;
/// Sorts of denials that are told apart at once.
const SORTS: usize = 1024;

/// The open log.
#[derive(Debug)]
pub(crate) struct Trail {
    directory: PathBuf,
    log: AuditLog,
    denials: Mutex<HashMap<(String, String), Denials>>,
    #[cfg(test)]
    pub(crate) is_failing: std::sync::atomic::AtomicBool,
    /// Last, so that everything above is done when it ends the log's threads.
    _writer: Writer,
}

#[derive(Debug)]
struct Denials {
    since_ms: u64,
    count: u64,
    entry: Entry,
}

/// A log with what was found in it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) trail: Trail,
    pub(crate) open_intents: Vec<Record>,
}

/// Where the log of a store is.
pub(crate) fn directory(home: &Path) -> PathBuf {
    home.join("audit")
}

/// Opens the log; without a signer while the vault is sealed.
pub(crate) fn open(
    home: &Path,
    signer: Option<Signer>,
    expected: Option<&AuditHead>,
) -> Result<Found, VaultError> {
    let directory = directory(home);
    let expected_head = match expected {
        None => None,
        Some(head) => Some(head.try_into()?),
    };
    let Opened {
        log,
        writer,
        open_intents,
        ..
    } = AuditLog::open(Options {
        signer,
        expected_head,
        ..Options::new(&directory)
    })?;
    let trail = Trail {
        directory,
        log,
        denials: Mutex::default(),
        #[cfg(test)]
        is_failing: std::sync::atomic::AtomicBool::new(false),
        _writer: writer,
    };
    Ok(Found {
        trail,
        open_intents,
    })
}

impl TryFrom<&AuditHead> for Head {
    type Error = VaultError;

    fn try_from(head: &AuditHead) -> Result<Self, VaultError> {
        let mut leaf = [0; 32];
        hex::decode_to_slice(&head.hash, &mut leaf).map_err(|_| {
            VaultError::StoreTampered("the store root names no audit record".to_owned())
        })?;
        Ok(Self {
            size: head.records,
            leaf,
        })
    }
}

impl From<Head> for AuditHead {
    fn from(head: Head) -> Self {
        Self {
            records: head.size,
            hash: hex::encode(head.leaf),
        }
    }
}

impl Trail {
    /// Appends a record and returns when it is durable.
    pub(crate) async fn append(&self, entry: Entry) -> Result<Appended, VaultError> {
        self.check()?;
        Ok(self.log.append(entry).await?)
    }

    /// Appends a record and returns when it is written.
    pub(crate) async fn append_lazy(&self, entry: Entry) -> Result<Appended, VaultError> {
        self.check()?;
        Ok(self.log.append_lazy(entry).await?)
    }

    /// The durable head.
    pub(crate) fn head(&self) -> AuditHead {
        self.log.status().durable.into()
    }

    /// A teller of the durable head for the store's writer.
    pub(crate) fn witness(&self) -> impl Fn() -> AuditHead + Send + 'static {
        let log = self.log.clone();
        move || log.status().durable.into()
    }

    /// Why the log takes no more records, where it does not.
    pub(crate) fn failure(&self) -> Option<String> {
        self.log.status().failed
    }

    /// Reads records back.
    pub(crate) fn read(&self, after: u64, limit: usize) -> Result<Vec<Record>, VaultError> {
        Ok(crate::audit::read(&self.directory, after, limit)?)
    }

    /// Counts a denial; gives it back where it is to be recorded by itself.
    pub(crate) fn count_denial(
        &self,
        key: (String, String),
        now_ms: u64,
        entry: Entry,
    ) -> Option<Entry> {
        let mut denials = self
            .denials
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if denials.len() >= SORTS && !denials.contains_key(&key) {
            // Too many sorts to tell apart: all further ones are one sort until the next window.
            let rest = denials
                .entry((String::new(), key.1))
                .or_insert_with(|| Denials {
                    since_ms: now_ms,
                    count: DENIALS,
                    entry: entry.clone(),
                });
            rest.count += 1;
            return None;
        }
        let counted = denials.entry(key).or_insert_with(|| Denials {
            since_ms: now_ms,
            count: 0,
            entry: entry.clone(),
        });
        counted.count += 1;
        (counted.count <= DENIALS).then_some(entry)
    }

    /// What was counted and not recorded, of windows that are over.
    pub(crate) fn counted(&self, now_ms: u64) -> Vec<Entry> {
        let mut denials = self
            .denials
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut told = Vec::new();
        denials.retain(|_, counted| {
            if now_ms.saturating_sub(counted.since_ms) < WINDOW_MS {
                return true;
            }
            if let Some(further) = counted
                .count
                .checked_sub(DENIALS)
                .filter(|further| *further > 0)
            {
                told.push(Entry {
                    count: Some(further),
                    ..counted.entry.clone()
                });
            }
            false
        });
        told
    }

    #[cfg(test)]
    fn check(&self) -> Result<(), VaultError> {
        if self.is_failing.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(VaultError::Audit("the disk is full".to_owned()));
        }
        Ok(())
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "tests make the log fail here"
    )]
    fn check(&self) -> Result<(), VaultError> {
        Ok(())
    }
}

/// A denial's entry with its reason.
pub(crate) fn denied(entry: Entry, reason: &str) -> Entry {
    Entry {
        decision: crate::audit::Decision::Deny,
        reason_code: Some(Label::new(reason)),
        ..entry
    }
}
