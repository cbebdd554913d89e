//! The statements, and the rows that they read and write.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, Statement, params};
use serde_json::value::RawValue;

use crate::error::SessionError;
use crate::event::{Draft, Event, EventText};
use crate::id::SessionId;
use crate::sqlite::blobs::Blobs;
use crate::work::Work;

/// The columns that [`event`] reads, in its order.
pub(super) const EVENT_COLUMNS: &str =
    "position, id, epoch, kind, at_us, causation, payload, blob, prev_hash, hash";

/// Greatest number of an event; positions hold the number in 32 bits.
pub(super) const MAX_SEQ: u64 = u32::MAX as u64;

/// One row of `streams`.
#[derive(Clone, Debug)]
pub(super) struct StreamState {
    pub(super) stream: u64,
    pub(super) head: u64,
    pub(super) hash: String,
    pub(super) epoch: u64,
    pub(super) owner: Option<String>,
    pub(super) updated_us: i64,
    pub(super) work: Work,
}

/// The writer's statements, prepared once.
pub(super) struct Rows<'c> {
    create: Statement<'c>,
    find: Statement<'c>,
    advance: Statement<'c>,
    insert: Statement<'c>,
    lease: Statement<'c>,
    release: Statement<'c>,
    find_input: Statement<'c>,
    insert_input: Statement<'c>,
    events: Statement<'c>,
    tracked: Statement<'c>,
}

impl<'c> Rows<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> Result<Self, SessionError> {
        let prepare = |sql: &str| connection.prepare(sql);
        Ok(Self {
            create: prepare(
                "INSERT INTO streams (id, family, head, hash, epoch, ttl_ms, created_us, updated_us, last_input,
                                      handled, running, has_work)
                 VALUES (?1, ?2, 0, ?3, 0, 0, ?4, ?4, 0, 0, 0, 0) RETURNING stream",
            )?,
            find: prepare(
                "SELECT stream, head, hash, epoch, owner, updated_us, last_input, handled, running
                 FROM streams WHERE id = ?1",
            )?,
            advance: prepare(
                "UPDATE streams SET head = ?4, hash = ?5, updated_us = ?6, last_input = ?7, handled = ?8,
                                    running = ?9, has_work = ?10
                 WHERE stream = ?1 AND head = ?2 AND epoch = ?3",
            )?,
            insert: prepare(&format!(
                "INSERT INTO events ({EVENT_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
            ))?,
            lease: prepare("UPDATE streams SET epoch = ?2, owner = ?3, ttl_ms = ?4 WHERE stream = ?1 AND epoch = ?2 - 1")?,
            release: prepare("UPDATE streams SET owner = NULL WHERE stream = ?1")?,
            find_input: prepare("SELECT first_seq, last_seq FROM inputs WHERE stream = ?1 AND key = ?2")?,
            insert_input: prepare("INSERT INTO inputs (stream, key, first_seq, last_seq) VALUES (?1, ?2, ?3, ?4)")?,
            events: prepare(&format!(
                "SELECT {EVENT_COLUMNS} FROM events WHERE position BETWEEN ?1 AND ?2 ORDER BY position"
            ))?,
            tracked: prepare(&format!(
                "SELECT {EVENT_COLUMNS} FROM events WHERE position BETWEEN ?1 AND ?2
                 AND kind IN ('model.response', 'span.model_request_end', 'span.model_request_start', 'tool.intent',
                              'tool.outcome')
                 ORDER BY position"
            ))?,
        })
    }

    pub(super) fn find(
        &mut self,
        session: &SessionId,
    ) -> Result<Option<StreamState>, SessionError> {
        let state = self.find.query_row([session.as_str()], |row| {
            Ok(StreamState {
                stream: row.get(0)?,
                head: row.get(1)?,
                hash: row.get(2)?,
                epoch: row.get(3)?,
                owner: row.get(4)?,
                updated_us: row.get(5)?,
                work: Work {
                    last_input: row.get(6)?,
                    handled: row.get(7)?,
                    running: row.get(8)?,
                },
            })
        });
        Ok(state.optional()?)
    }

    pub(super) fn create(
        &mut self,
        session: &SessionId,
        now_us: i64,
    ) -> Result<StreamState, SessionError> {
        let hash = crate::chain::GENESIS;
        let values = params![session.as_str(), session.prefix(), hash, now_us];
        let stream = self.create.query_row(values, |row| row.get(0))?;
        Ok(StreamState {
            stream,
            head: 0,
            hash: hash.to_owned(),
            epoch: 0,
            owner: None,
            updated_us: now_us,
            work: Work::default(),
        })
    }

    pub(super) fn insert(
        &mut self,
        state: &StreamState,
        event: &Event,
        draft: &Draft,
    ) -> Result<(), SessionError> {
        let inline = draft.blob.is_none().then_some(draft.text.as_str());
        self.insert.execute(params![
            position(state.stream, event.seq),
            event.id,
            event.epoch,
            event.kind,
            event.at.as_microsecond(),
            event.causation,
            inline,
            draft.blob,
            bytes(&event.prev_hash)?,
            bytes(&event.hash)?,
        ])?;
        Ok(())
    }

    /// Moves the head from `before` to `after` if head and epoch are still what they were.
    pub(super) fn advance(
        &mut self,
        before: &StreamState,
        after: &StreamState,
    ) -> Result<(), SessionError> {
        let changed = self.advance.execute(params![
            before.stream,
            before.head,
            before.epoch,
            after.head,
            after.hash,
            after.updated_us,
            after.work.last_input,
            after.work.handled,
            after.work.running,
            after.work.is_open(),
        ])?;
        one(changed)
    }

    pub(super) fn lease(
        &mut self,
        stream: u64,
        epoch: u64,
        owner: &str,
        ttl_ms: u64,
    ) -> Result<(), SessionError> {
        one(self.lease.execute(params![stream, epoch, owner, ttl_ms])?)
    }

    pub(super) fn release(&mut self, stream: u64) -> Result<(), SessionError> {
        one(self.release.execute([stream])?)
    }

    /// Returns the first and last number that this key wrote.
    pub(super) fn find_input(
        &mut self,
        stream: u64,
        key: &str,
    ) -> Result<Option<(u64, u64)>, SessionError> {
        let found = self
            .find_input
            .query_row(params![stream, key], |row| Ok((row.get(0)?, row.get(1)?)));
        Ok(found.optional()?)
    }

    pub(super) fn insert_input(
        &mut self,
        stream: u64,
        key: &str,
        first: u64,
        last: u64,
    ) -> Result<(), SessionError> {
        one(self
            .insert_input
            .execute(params![stream, key, first, last])?)
    }

    /// Reads events `first..=last` of a stream.
    pub(super) fn events(
        &mut self,
        session: &SessionId,
        stream: u64,
        first: u64,
        last: u64,
        blobs: &Blobs,
    ) -> Result<Vec<Event>, SessionError> {
        let range = [position(stream, first), position(stream, last)];
        collect(self.events.query(range)?, session, blobs)
    }

    /// Reads the events that decide what may follow.
    pub(super) fn tracked(
        &mut self,
        session: &SessionId,
        stream: u64,
        blobs: &Blobs,
    ) -> Result<Vec<Event>, SessionError> {
        let range = [position(stream, 0), position(stream, MAX_SEQ)];
        collect(self.tracked.query(range)?, session, blobs)
    }
}

fn collect(
    mut rows: rusqlite::Rows<'_>,
    session: &SessionId,
    blobs: &Blobs,
) -> Result<Vec<Event>, SessionError> {
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(event(row, session, blobs)?.parse()?);
    }
    Ok(events)
}

/// Where an event lies in the table.
pub(super) fn position(stream: u64, seq: u64) -> u64 {
    stream << 32 | seq.min(MAX_SEQ)
}

/// Reads the columns [`EVENT_COLUMNS`].
pub(super) fn event(
    row: &Row<'_>,
    session: &SessionId,
    blobs: &Blobs,
) -> Result<EventText, SessionError> {
    let text: String = match (
        row.get::<_, Option<String>>(6)?,
        row.get::<_, Option<String>>(7)?,
    ) {
        (Some(text), _) => text,
        (None, Some(name)) => blobs.load(&name)?,
        (None, None) => return Err(SessionError::Store("an event has no payload".into())),
    };
    Ok(EventText {
        session: session.clone(),
        seq: row.get::<_, u64>(0)? & MAX_SEQ,
        id: row.get(1)?,
        epoch: row.get(2)?,
        kind: row.get(3)?,
        at: Timestamp::from_microsecond(row.get(4)?)
            .map_err(|e| SessionError::store("read a time", e))?,
        causation: row.get(5)?,
        payload: RawValue::from_string(text)
            .map_err(|e| SessionError::store("read a payload", e))?,
        prev_hash: hex::encode(row.get_ref(8)?.as_blob().map_err(rusqlite::Error::from)?),
        hash: hex::encode(row.get_ref(9)?.as_blob().map_err(rusqlite::Error::from)?),
    })
}

fn bytes(hash: &str) -> Result<Vec<u8>, SessionError> {
    hex::decode(hash).map_err(|e| SessionError::store("write a hash", e))
}

fn one(changed: usize) -> Result<(), SessionError> {
    if changed == 1 {
        Ok(())
    } else {
        Err(SessionError::Store(format!(
            "{changed} rows changed instead of one"
        )))
    }
}
