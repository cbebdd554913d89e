//! The one writer: takes changes in order, commits many at once, stops for good when it cannot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rusqlite::{Connection, params};
use tokio::sync::watch;

use super::digest::Digests;
use super::{AuditHead, Change, Progress, Root, Unsettled, row_associated};
use crate::cipher;
use crate::encoding::pad;
use crate::error::VaultError;
use crate::keys::Keys;

/// Most changes of one transaction.
const BATCH: usize = 256;
/// Smallest padded size of a row.
pub(super) const ROW_FLOOR: usize = 256;

/// What the writer is told.
#[derive(Debug)]
pub(super) enum Job {
    Change {
        ticket: u64,
        change: Change,
    },
    /// The audit record that came with this ticket is in the log.
    Settle(u64),
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) digests: Digests,
    pub(super) epoch: u64,
    pub(super) header: String,
    pub(super) keys: Arc<Keys>,
    pub(super) outbox: BTreeMap<u64, Unsettled>,
    pub(super) vault: String,
    pub(super) witness: Box<dyn Fn() -> AuditHead + Send>,
}

impl Writer {
    /// Works until all senders are gone or a commit fails.
    pub(super) fn run(mut self, jobs: &Receiver<Job>, progress: &watch::Sender<Progress>) {
        let mut done = 0;
        while let Ok(first) = jobs.recv() {
            let batch: Vec<Job> = std::iter::once(first)
                .chain(jobs.try_iter().take(BATCH - 1))
                .collect();
            let mut changes = Vec::new();
            for job in batch {
                match job {
                    Job::Change { ticket, change } => {
                        done = ticket;
                        changes.push((ticket, change));
                    }
                    Job::Settle(ticket) => {
                        self.outbox.remove(&ticket);
                    }
                }
            }
            if changes.is_empty() {
                continue;
            }
            match self.commit(changes) {
                Ok(witnessed) => {
                    progress.send_replace(Progress {
                        ticket: done,
                        witnessed,
                        failed: None,
                    });
                }
                Err(error) => {
                    // Memory is ahead of the file from here on; nothing may be built on it.
                    tracing::error!(%error, "the store does not take changes any more");
                    progress.send_modify(|progress| progress.failed = Some(error.to_string()));
                    return;
                }
            }
        }
    }

    /// Commits changes; tells how many audit records the new root knows of.
    fn commit(&mut self, changes: Vec<(u64, Change)>) -> Result<u64, VaultError> {
        let mut shred = false;
        let audit = (self.witness)();
        let witnessed = audit.records;
        let transaction = self.connection.unchecked_transaction()?;
        {
            let mut put = transaction
                .prepare("INSERT OR REPLACE INTO record (class, id, sealed) VALUES (?1, ?2, ?3)")?;
            let mut delete =
                transaction.prepare("DELETE FROM record WHERE class = ?1 AND id = ?2")?;
            for (ticket, change) in changes {
                for (class, id, body) in &change.puts {
                    let associated = row_associated(&self.vault, *class, id);
                    let sealed =
                        cipher::seal(&self.keys.metadata, &associated, &pad(body, ROW_FLOOR))?;
                    put.execute(params![class.as_str(), id, sealed])?;
                    self.digests.insert(*class, id, &sealed);
                }
                for (class, id) in &change.deletes {
                    delete.execute(params![class.as_str(), id])?;
                    self.digests.remove(*class, id);
                }
                shred |= change.shred;
                if let Some(record) = change.outbox {
                    self.outbox.insert(
                        ticket,
                        Unsettled {
                            after: witnessed,
                            record,
                        },
                    );
                }
            }
        }
        let root = Root {
            audit,
            classes: self.digests.summary(),
            epoch: self.epoch + 1,
            format: super::FORMAT,
            header: self.header.clone(),
            outbox: self.outbox.values().cloned().collect(),
        };
        root.write(&transaction, &self.keys, &self.vault)?;
        transaction.commit()?;
        self.epoch += 1;
        if shred {
            // Frames of the write-ahead log still hold what was deleted; empty it.
            self.connection
                .execute_batch("PRAGMA wal_checkpoint(TRUNCATE);")?;
        }
        Ok(witnessed)
    }
}
