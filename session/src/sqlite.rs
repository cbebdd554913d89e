//! The embedded store: one SQLite file, opened by exactly one process.
//!
//! One thread writes and commits in groups; readers have their own connections and never wait for it.

mod apply;
mod blobs;
mod reader;
mod rows;
mod schema;
mod writer;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use futures_util::{Stream, stream};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::error::SessionError;
use crate::event::{Draft, Event, NewEvent, draft_all};
use crate::hub::{Hub, Live, Topic};
use crate::id::SessionId;
use crate::query::{Lease, Query, StreamRow, Tailed};
use crate::sqlite::apply::{Act, Outcome};
use crate::sqlite::blobs::Blobs;
use crate::sqlite::reader::Readers;
use crate::sqlite::writer::{Command, Writer};
use crate::store::{Page, SessionStore, TextPage};

/// Longest owner's name or idempotency key.
const MAX_NAME_BYTES: usize = 256;
/// Longest lease; a holder that wants more renews.
const MAX_TTL_MS: u64 = 60 * 60 * 1000;

/// The log in a directory of this machine: `session.db`, `blobs/` and a lock file.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    hub: Arc<Hub>,
    blobs: Blobs,
    readers: Readers,
    writer: mpsc::Sender<Command>,
}

impl SqliteStore {
    /// Opens the store, making it when absent.
    ///
    /// Leases that were live when the store was last open get their whole time again.
    ///
    /// # Errors
    ///
    /// `Locked` when another process (or this one) has it open, `Store` when it cannot be read or written.
    pub fn open(directory: &Path) -> Result<Self, SessionError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .and_then(|()| directory.parent().map_or(Ok(()), blobs::sync_directory))
            .map_err(|e| SessionError::store("make the directory", e))?;
        let lock = lock(directory)?;
        let file = directory.join("session.db");
        // Made here, so that nobody else may ever read it; SQLite gives its side files the same mode.
        private_file(&file).map_err(|e| SessionError::store("make the database", e))?;
        let blobs = Blobs::open(directory)?;
        let connection = schema::open(&file)?;
        let hub = Arc::new(Hub::new(schema::board(&connection)?));
        let readers = Readers::start(&file, &blobs)?;
        let writer = Writer::start(connection, lock, Arc::clone(&hub), blobs.clone())?;
        Ok(Self {
            hub,
            blobs,
            readers,
            writer,
        })
    }

    /// Commits what is queued, closes the file and gives up the lock; later calls answer `Store`.
    pub async fn close(self) {
        let (closed, when_closed) = oneshot::channel();
        if self.writer.send(Command::Close { closed }).await.is_ok() {
            // An error means that the writer has ended already.
            drop(when_closed.await);
        }
    }

    /// Waits until the writer has ended, which it does only when the database is beyond use.
    pub(crate) async fn failed(&self) {
        self.writer.closed().await;
    }

    /// Checks events and moves their large payloads to blobs, durably, before the writer may refer to them.
    async fn prepare(&self, events: Vec<NewEvent>) -> Result<Vec<Draft>, SessionError> {
        let mut drafts = draft_all(events)?;
        if drafts.iter().any(|draft| Blobs::takes(&draft.text)) {
            let blobs = self.blobs.clone();
            let stored = tokio::task::spawn_blocking(move || {
                blobs.store_all(&mut drafts)?;
                Ok(drafts)
            });
            return stored
                .await
                .map_err(|e| SessionError::store("write a blob", e))?;
        }
        Ok(drafts)
    }

    async fn write(&self, session: &SessionId, act: Act) -> Result<Outcome, SessionError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Write {
            session: session.clone(),
            act,
            reply,
        };
        let ended = || SessionError::Store("the writer has ended".into());
        self.writer.send(command).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    async fn write_events(
        &self,
        session: &SessionId,
        act: Act,
    ) -> Result<Vec<Event>, SessionError> {
        match self.write(session, act).await? {
            Outcome::Events { events, .. } => Ok(events),
            _ => Err(SessionError::Store(
                "the writer answered something else".into(),
            )),
        }
    }
}

impl SessionStore for SqliteStore {
    async fn append(
        &self,
        session: &SessionId,
        expected_seq: u64,
        epoch: u64,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Event>, SessionError> {
        let drafts = self.prepare(events).await?;
        let act = Act::Append {
            expected_seq,
            epoch,
            drafts,
        };
        self.write_events(session, act).await
    }

    async fn append_input(
        &self,
        session: &SessionId,
        idempotency_key: &str,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Event>, SessionError> {
        named("an idempotency key", idempotency_key)?;
        let drafts = self.prepare(events).await?;
        let act = Act::Input {
            key: idempotency_key.to_owned(),
            drafts,
        };
        self.write_events(session, act).await
    }

    async fn lease(
        &self,
        session: &SessionId,
        owner: &str,
        ttl_ms: u64,
    ) -> Result<Lease, SessionError> {
        let act = Act::Lease {
            owner: named("an owner", owner)?,
            ttl_ms: timed(ttl_ms)?,
        };
        match self.write(session, act).await? {
            Outcome::Leased(lease) => Ok(lease),
            _ => Err(SessionError::Store(
                "the writer answered something else".into(),
            )),
        }
    }

    async fn renew(
        &self,
        session: &SessionId,
        owner: &str,
        epoch: u64,
        ttl_ms: u64,
    ) -> Result<(), SessionError> {
        let act = Act::Renew {
            owner: named("an owner", owner)?,
            epoch,
            ttl_ms: timed(ttl_ms)?,
        };
        self.write(session, act).await.map(drop)
    }

    async fn release(
        &self,
        session: &SessionId,
        owner: &str,
        epoch: u64,
    ) -> Result<(), SessionError> {
        let act = Act::Release {
            owner: named("an owner", owner)?,
            epoch,
        };
        self.write(session, act).await.map(drop)
    }

    async fn page(&self, session: &SessionId, query: Query) -> Result<Page, SessionError> {
        let session = session.clone();
        // Parsed on the reading thread: a long log would hold up the asker's other tasks.
        self.readers
            .ask(move |reader| reader.page(&session, &query)?.parse())
            .await
    }

    async fn text_page(&self, session: &SessionId, query: Query) -> Result<TextPage, SessionError> {
        let session = session.clone();
        self.readers
            .ask(move |reader| reader.page(&session, &query))
            .await
    }

    async fn head(&self, session: &SessionId) -> Result<(u64, String, u64), SessionError> {
        let session = session.clone();
        self.readers.ask(move |reader| reader.head(&session)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&SessionId>,
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<StreamRow>, SessionError> {
        let family = match prefix.strip_suffix('_') {
            Some(family) if family.bytes().all(|b| b.is_ascii_lowercase()) => {
                Some(family.to_owned())
            }
            None if prefix.is_empty() => None,
            _ => {
                return Err(SessionError::invalid(
                    "streams are listed by a prefix like `sesn_`",
                ));
            }
        };
        let after = after.cloned();
        self.readers
            .ask(move |reader| reader.list(family.as_deref(), after.as_ref(), limit, newest_first))
            .await
    }

    fn tail(&self, session: &SessionId, after: u64) -> impl Stream<Item = Tailed> + Send + 'static {
        let tail = Tail {
            // Before the first read: what is committed after it arrives here.
            live: self.hub.topic(session),
            store: self.clone(),
            session: session.clone(),
            cursor: after,
            stored: VecDeque::new(),
            behind: true,
        };
        stream::unfold(tail, async |mut tail| {
            tail.next().await.map(|item| (item, tail))
        })
    }

    fn watch(&self, _owner: &str) -> impl Stream<Item = SessionId> + Send + 'static {
        let hub = Arc::clone(&self.hub);
        stream::unfold((hub, 0), async |(hub, cursor)| {
            let (position, session) = hub.next_offer(cursor).await;
            Some((session, (hub, position)))
        })
    }

    async fn publish(
        &self,
        session: &SessionId,
        epoch: u64,
        value: Value,
    ) -> Result<(), SessionError> {
        let Some(value) = self.hub.publish(session, epoch, value)? else {
            return Ok(());
        };
        let (_, _, stored) = self.head(session).await?;
        self.hub.publish_as_of(session, epoch, stored, value)
    }
}

/// A reader that follows one stream: from the store while it is behind, then live.
struct Tail {
    store: SqliteStore,
    session: SessionId,
    cursor: u64,
    live: Topic,
    stored: VecDeque<Event>,
    behind: bool,
}

impl Tail {
    async fn next(&mut self) -> Option<Tailed> {
        loop {
            if let Some(event) = self.stored.pop_front() {
                self.cursor = event.seq;
                return Some(Tailed::Event(event));
            }
            if self.behind {
                let query = Query {
                    after: self.cursor,
                    ..Query::default()
                };
                let page = match self.store.page(&self.session, query).await {
                    Ok(page) => page,
                    Err(SessionError::NotFound) => Page::default(),
                    Err(error) => {
                        tracing::warn!(session = %self.session, %error, "tail ends");
                        return None;
                    }
                };
                self.behind = page.more;
                self.stored = page.events.into();
                continue;
            }
            match self.live.next().await {
                Some(Live::Ephemeral(value)) => {
                    return Some(Tailed::Ephemeral(Value::clone(&value)));
                }
                Some(Live::Event(event)) if event.seq <= self.cursor => {}
                Some(Live::Event(event)) if event.seq == self.cursor + 1 => {
                    self.cursor = event.seq;
                    return Some(Tailed::Event(Event::clone(&event)));
                }
                // Items were missed; the store has the events among them.
                Some(Live::Event(_)) | None => self.behind = true,
            }
        }
    }
}

fn lock(directory: &Path) -> Result<File, SessionError> {
    let file = private_file(&directory.join("lock"))
        .map_err(|e| SessionError::store("make the lock", e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SessionError::Locked {
            directory: directory.to_owned(),
        }),
        Err(TryLockError::Error(e)) => Err(SessionError::store("lock the store", e)),
    }
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn named(what: &str, name: &str) -> Result<String, SessionError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(SessionError::invalid(format!(
            "{what} is 1 to {MAX_NAME_BYTES} bytes"
        )));
    }
    Ok(name.to_owned())
}

fn timed(ttl_ms: u64) -> Result<u64, SessionError> {
    if ttl_ms == 0 || ttl_ms > MAX_TTL_MS {
        return Err(SessionError::invalid(format!(
            "a lease lasts 1 to {MAX_TTL_MS} ms"
        )));
    }
    Ok(ttl_ms)
}

#[cfg(test)]
mod tests;
