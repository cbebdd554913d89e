//! The database file: its tables, how it is opened, what is loaded at start.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use crate::error::SessionError;
use crate::hub::Board;
use crate::id::SessionId;

/// Grows when a table changes; a store of a newer version is refused.
const VERSION: i64 = 1;

/// `position` is `stream << 32 | seq`: one tree, a stream's events side by side, no second index to keep.
const TABLES: &str = "
CREATE TABLE streams (
    stream     INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    family     TEXT NOT NULL,
    head       INTEGER NOT NULL,
    hash       TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    owner      TEXT,
    ttl_ms     INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    last_input INTEGER NOT NULL,
    handled    INTEGER NOT NULL,
    running    INTEGER NOT NULL,
    has_work   INTEGER NOT NULL
) STRICT;
CREATE INDEX streams_by_family ON streams (family, stream);
CREATE TABLE events (
    position   INTEGER PRIMARY KEY,
    id         TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    at_us      INTEGER NOT NULL,
    causation  TEXT,
    payload    TEXT,
    blob       TEXT,
    prev_hash  BLOB NOT NULL,
    hash       BLOB NOT NULL
) STRICT;
CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_are_never_deleted BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
CREATE TABLE inputs (
    stream     INTEGER NOT NULL,
    key        TEXT NOT NULL,
    first_seq  INTEGER NOT NULL,
    last_seq   INTEGER NOT NULL,
    PRIMARY KEY (stream, key)
) STRICT, WITHOUT ROWID;
CREATE VIEW log AS
    SELECT s.id AS session, e.position & 4294967295 AS seq, e.id, e.epoch, e.kind AS type,
           strftime('%Y-%m-%dT%H:%M:%fZ', e.at_us / 1000000.0, 'unixepoch') AS at,
           e.causation, coalesce(e.payload, 'blob ' || e.blob) AS payload, lower(hex(e.hash)) AS hash
    FROM events e JOIN streams s ON s.stream = e.position >> 32;
";

/// Opens the writer's connection, making or checking the tables.
pub(super) fn open(file: &Path) -> Result<Connection, SessionError> {
    let connection = Connection::open_with_flags(
        file,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    // WAL with FULL: a commit returns after its fsync. The side files must not outgrow a quiet day.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA fullfsync = ON;
         PRAGMA checkpoint_fullfsync = ON; PRAGMA journal_size_limit = 67108864; PRAGMA trusted_schema = OFF;",
    )?;
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(SessionError::Store(format!(
            "the journal is {mode}, not a write-ahead log"
        )));
    }
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match version {
        0 => connection.execute_batch(&format!(
            "BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"
        ))?,
        VERSION => {}
        other => {
            return Err(SessionError::Store(format!(
                "the store has version {other}, this program knows {VERSION}"
            )));
        }
    }
    Ok(connection)
}

/// Opens a reader's connection.
pub(super) fn open_reader(file: &Path) -> Result<Connection, SessionError> {
    let connection = Connection::open_with_flags(
        file,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.execute_batch("PRAGMA trusted_schema = OFF;")?;
    Ok(connection)
}

/// Loads leases and work; the time of a lease starts anew, since nobody could renew it meanwhile.
pub(super) fn board(connection: &Connection) -> Result<Board, SessionError> {
    let now = Instant::now();
    let mut board = Board::default();
    let mut find = connection
        .prepare("SELECT id, epoch, owner, ttl_ms, has_work FROM streams WHERE has_work OR owner IS NOT NULL ORDER BY stream")?;
    let mut rows = find.query([])?;
    while let Some(row) = rows.next()? {
        let session: SessionId = row.get::<_, String>(0)?.try_into()?;
        if let Some(owner) = row.get::<_, Option<String>>(2)? {
            let ttl = Duration::from_millis(row.get::<_, u64>(3)?);
            board.lease(&session, &owner, row.get::<_, u64>(1)?, now + ttl);
        }
        board.set_work(&session, row.get(4)?, true);
    }
    Ok(board)
}
