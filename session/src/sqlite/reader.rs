//! The threads that read, each with a connection of its own.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{mpsc, oneshot};

use crate::error::SessionError;
use crate::id::SessionId;
use crate::query::{Query, StreamRow};
use crate::sqlite::blobs::Blobs;
use crate::sqlite::rows::{EVENT_COLUMNS, event, position};
use crate::sqlite::schema;
use crate::store::TextPage;

/// Reading threads.
const THREADS: usize = 2;
/// Questions that may wait for one thread.
const QUEUE: usize = 256;
/// Most events of one page.
const PAGE_EVENTS: usize = 2048;
/// Payload bytes after which a page ends; one event may exceed it.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Most streams of one list.
const LIST_ROWS: usize = 10_000;

type Question = Box<dyn FnOnce(&Reader) + Send>;

/// A handle to the reading threads; they end with its last clone.
#[derive(Clone)]
pub(super) struct Readers {
    threads: Arc<[mpsc::Sender<Question>]>,
    turn: Arc<AtomicUsize>,
}

/// What a reading thread has.
pub(super) struct Reader {
    connection: Connection,
    blobs: Blobs,
}

impl Readers {
    pub(super) fn start(file: &Path, blobs: &Blobs) -> Result<Self, SessionError> {
        let mut threads = Vec::with_capacity(THREADS);
        for _ in 0..THREADS {
            let reader = Reader {
                connection: schema::open_reader(file)?,
                blobs: blobs.clone(),
            };
            let (sender, mut queue) = mpsc::channel::<Question>(QUEUE);
            std::thread::Builder::new()
                .name("session-reader".into())
                .spawn(move || {
                    while let Some(question) = queue.blocking_recv() {
                        question(&reader);
                    }
                })
                .map_err(|e| SessionError::store("start a reader", e))?;
            threads.push(sender);
        }
        Ok(Self {
            threads: threads.into(),
            turn: Arc::default(),
        })
    }

    /// Asks the next thread.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Reader) -> Result<T, SessionError> + Send + 'static,
    ) -> Result<T, SessionError> {
        let (reply, answer) = oneshot::channel();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let ended = || SessionError::Store("a reader has ended".into());
        // The asker may have gone; then nobody needs the answer.
        let question: Question = Box::new(move |reader| drop(reply.send(question(reader))));
        let thread = self.threads.get(turn).ok_or_else(ended)?;
        thread.send(question).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Reader {
    /// Reads the first page of a slice.
    pub(super) fn page(
        &self,
        session: &SessionId,
        query: &Query,
    ) -> Result<TextPage, SessionError> {
        let stream = self.stream(session)?.ok_or(SessionError::NotFound)?;
        let before = query.before.unwrap_or(u64::MAX);
        if query.limit == 0 || query.after >= before.saturating_sub(1) {
            return Ok(TextPage::default());
        }
        let order = if query.descending { "DESC" } else { "ASC" };
        let filter = if query.kinds.is_empty() {
            "?3 IS NOT NULL"
        } else {
            "kind IN (SELECT value FROM json_each(?3))"
        };
        let mut find = self.connection.prepare(&format!(
            "SELECT {EVENT_COLUMNS} FROM events WHERE position BETWEEN ?1 AND ?2 AND {filter} ORDER BY position {order}"
        ))?;
        let kinds = serde_json::json!(query.kinds).to_string();
        let first = position(stream, query.after.saturating_add(1));
        let last = position(stream, before.saturating_sub(1));
        let mut rows = find.query(params![first, last, kinds])?;
        let mut page = TextPage::default();
        let mut bytes = 0;
        while page.events.len() < query.limit {
            let Some(row) = rows.next()? else { break };
            if page.events.len() == PAGE_EVENTS || bytes >= PAGE_BYTES {
                page.more = true;
                break;
            }
            let event = event(row, session, &self.blobs)?;
            bytes += event.payload.get().len();
            page.events.push(event);
        }
        Ok(page)
    }

    /// Returns number and hash of the newest event, and the epoch.
    pub(super) fn head(&self, session: &SessionId) -> Result<(u64, String, u64), SessionError> {
        let mut find = self
            .connection
            .prepare("SELECT head, hash, epoch FROM streams WHERE id = ?1")?;
        find.query_row([session.as_str()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?
        .ok_or(SessionError::NotFound)
    }

    /// Lists streams in the order of their creation.
    pub(super) fn list(
        &self,
        family: Option<&str>,
        after: Option<&SessionId>,
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<StreamRow>, SessionError> {
        let after = match after {
            Some(session) => Some(self.stream(session)?.ok_or(SessionError::NotFound)?),
            None => None,
        };
        let (cursor, beyond, order) = if newest_first {
            (after.unwrap_or(i64::MAX.unsigned_abs()), "<", "DESC")
        } else {
            (after.unwrap_or(0), ">", "ASC")
        };
        let filter = if family.is_some() {
            "family = ?1"
        } else {
            "?1 IS NULL"
        };
        let mut find = self.connection.prepare(&format!(
            "SELECT id, head, created_us, updated_us FROM streams WHERE {filter} AND stream {beyond} ?2
             ORDER BY stream {order} LIMIT ?3"
        ))?;
        let limit = u32::try_from(limit.min(LIST_ROWS)).unwrap_or(u32::MAX);
        let mut rows = find.query(params![family, cursor, limit])?;
        let mut streams = Vec::new();
        while let Some(row) = rows.next()? {
            streams.push(StreamRow {
                session: row.get::<_, String>(0)?.try_into()?,
                head: row.get(1)?,
                created_at: time(row.get(2)?)?,
                updated_at: time(row.get(3)?)?,
            });
        }
        Ok(streams)
    }

    fn stream(&self, session: &SessionId) -> Result<Option<u64>, SessionError> {
        let mut find = self
            .connection
            .prepare("SELECT stream FROM streams WHERE id = ?1")?;
        Ok(find
            .query_row([session.as_str()], |row| row.get(0))
            .optional()?)
    }
}

fn time(micros: i64) -> Result<Timestamp, SessionError> {
    Timestamp::from_microsecond(micros).map_err(|e| SessionError::store("read a time", e))
}
