//! The tables, and the check that nothing else stands in the file.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::error::VaultError;

/// Everything that the file may contain.
const SCHEMA: &str = "
CREATE TABLE header (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE stanza (id TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE record (class TEXT NOT NULL, id TEXT NOT NULL, sealed BLOB NOT NULL, PRIMARY KEY (class, id)) STRICT, WITHOUT ROWID;
CREATE TABLE root (id INTEGER PRIMARY KEY CHECK (id = 1), sealed BLOB NOT NULL) STRICT;
";

/// Opens the file with the settings that durability and shredding rest on.
pub(super) fn connect(path: &Path, create: bool) -> Result<Connection, VaultError> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    if create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let connection = Connection::open_with_flags(path, flags).map_err(as_read)?;
    // One process opens the file; exclusive locking also keeps the index of the write-ahead log out
    // of a shared file.
    connection
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA trusted_schema = OFF;
             PRAGMA secure_delete = ON;
             PRAGMA temp_store = MEMORY;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;",
        )
        .map_err(as_read)?;
    Ok(connection)
}

/// Makes the tables.
pub(super) fn create(connection: &Connection) -> Result<(), VaultError> {
    Ok(connection.execute_batch(SCHEMA)?)
}

/// Whether the file has no tables yet: a store that was never initialised.
pub(super) fn is_empty(connection: &Connection) -> Result<bool, VaultError> {
    Ok(objects(connection)?.is_empty())
}

/// Checks that the file has exactly the tables of this version: no trigger, view or index besides.
pub(super) fn verify(connection: &Connection) -> Result<(), VaultError> {
    let expected = Connection::open_in_memory()?;
    create(&expected)?;
    let (expected, found) = (objects(&expected)?, objects(connection)?);
    if let Some(extra) = found.iter().find(|object| !expected.contains(object)) {
        return Err(VaultError::StoreTampered(format!(
            "{} is not of the schema",
            describe(extra)
        )));
    }
    if let Some(missing) = expected.iter().find(|object| !found.contains(object)) {
        return Err(VaultError::StoreTampered(format!(
            "{} is missing from the schema",
            describe(missing)
        )));
    }
    Ok(())
}

/// Sorts the database's own complaints about its file from others.
pub(super) fn as_read(error: rusqlite::Error) -> VaultError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => {
            VaultError::StoreTampered(format!("the file is damaged: {error}"))
        }
        _ => VaultError::Store(error.to_string()),
    }
}

type Object = (String, String, Option<String>);

fn objects(connection: &Connection) -> Result<Vec<Object>, VaultError> {
    let mut statement = connection
        .prepare("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")
        .map_err(as_read)?;
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .map_err(as_read)?;
    rows.collect::<Result<_, _>>().map_err(as_read)
}

fn describe(object: &Object) -> String {
    let shown: String = object
        .1
        .chars()
        .filter(char::is_ascii_graphic)
        .take(64)
        .collect();
    format!(
        "{} '{shown}'",
        if object.0 == "table" {
            "table"
        } else {
            "object"
        }
    )
}
