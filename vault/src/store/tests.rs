use claviger_vault_memory::SecretBytes;
use tempfile::TempDir;

use super::*;
use crate::seal::{Input, key_file};

struct Fixture {
    directory: TempDir,
    keys: Arc<Keys>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        key_file::create(directory.path()).unwrap();
        let root = SecretBytes::random(32).unwrap();
        let keys = Arc::new(Keys::derive("vault_1", &root).unwrap());
        let stanza = Stanza::wrap("vault_1", Input::KeyFile(directory.path()), &root).unwrap();
        let header = Header {
            format: 1,
            vault: "vault_1".to_owned(),
            key: "key".to_owned(),
            commitment: "00".to_owned(),
            operator_passphrase: true,
            demo: false,
            created_at_ms: 1,
        };
        let mut change = Change::default();
        for (id, value) in [("a", "first value"), ("b", "second value")] {
            change.put(Class::Permit, id, &value).unwrap();
        }
        create(directory.path(), &keys, &header, &[stanza], change).unwrap();
        Self { directory, keys }
    }

    fn start(&self) -> Store {
        open(self.directory.path(), &self.keys)
            .unwrap()
            .start(Arc::clone(&self.keys), AuditHead::default)
            .unwrap()
    }

    fn file(&self) -> Connection {
        Connection::open(path(self.directory.path())).unwrap()
    }

    fn tampered(&self) -> String {
        match open(self.directory.path(), &self.keys) {
            Err(VaultError::StoreTampered(what)) => what,
            Err(other) => panic!("not told as tampering: {other}"),
            Ok(_) => panic!("not detected"),
        }
    }
}

#[tokio::test]
async fn committed_rows_are_read_back_and_the_epoch_grows() {
    let fixture = Fixture::new();
    let store = fixture.start();
    let mut change = Change::default();
    change.put(Class::Permit, "c", &"third value").unwrap();
    change.delete(Class::Permit, "a");
    let ticket = store.enqueue(change);
    store.committed(ticket).await.unwrap();
    drop(store);
    let verified = open(fixture.directory.path(), &fixture.keys).unwrap();
    let rows: Vec<(String, String)> = verified
        .contents
        .rows
        .iter()
        .map(|row| (row.id.clone(), row.read().unwrap()))
        .collect();
    assert_eq!(
        rows,
        [
            ("b".to_owned(), "second value".to_owned()),
            ("c".to_owned(), "third value".to_owned())
        ]
    );
    assert_eq!(verified.contents.epoch, 2);
}

#[tokio::test]
async fn an_unsettled_record_comes_back_and_a_settled_one_does_not() {
    let fixture = Fixture::new();
    let store = fixture.start();
    let mut tickets = Vec::new();
    for number in 0..2 {
        let mut change = Change::default();
        change.record(Value::from(number));
        tickets.push(store.enqueue(change));
        store.committed(tickets[number]).await.unwrap();
    }
    store.settle(tickets[0]);
    let ticket = store.enqueue(Change::default());
    store.committed(ticket).await.unwrap();
    drop(store);
    let verified = open(fixture.directory.path(), &fixture.keys).unwrap();
    let records: Vec<Value> = verified
        .contents
        .outbox
        .into_iter()
        .map(|unsettled| unsettled.record)
        .collect();
    assert_eq!(records, [Value::from(1)]);
}

#[tokio::test]
async fn a_shredded_row_leaves_no_byte_in_any_file() {
    let fixture = Fixture::new();
    let store = fixture.start();
    let mut change = Change::default();
    change.put(Class::Secret, "s", &"x".repeat(700)).unwrap();
    let ticket = store.enqueue(change);
    store.committed(ticket).await.unwrap();
    let files = || -> Vec<Vec<u8>> {
        std::fs::read_dir(fixture.directory.path())
            .unwrap()
            .map(|file| std::fs::read(file.unwrap().path()).unwrap())
            .collect()
    };
    // What the row looks like on disk is found by what appeared with it.
    let wal = std::fs::read(fixture.directory.path().join("vault.db-wal")).unwrap();
    let position = wal
        .windows(7)
        .position(|bytes| bytes == b"secrets")
        .expect("class and id stand before the row");
    let sample = wal[position + 40..position + 72].to_vec();
    let holds = |files: Vec<Vec<u8>>| {
        files
            .iter()
            .any(|file| file.windows(32).any(|bytes| bytes == sample))
    };
    assert!(holds(files()));
    let mut change = Change::default();
    change.shred(Class::Secret, "s");
    let ticket = store.enqueue(change);
    store.committed(ticket).await.unwrap();
    assert!(!holds(files()));
}

#[test]
fn a_flipped_bit_in_a_row_is_named() {
    let fixture = Fixture::new();
    fixture
        .file()
        .execute(
            "UPDATE record SET sealed = CAST(sealed || x'00' AS BLOB) WHERE id = 'a'",
            [],
        )
        .unwrap();
    assert_eq!(fixture.tampered(), "row permit/a does not open");
}

#[test]
fn a_deleted_row_is_detected() {
    let fixture = Fixture::new();
    fixture
        .file()
        .execute("DELETE FROM record WHERE id = 'a'", [])
        .unwrap();
    assert_eq!(
        fixture.tampered(),
        "class permit: 1 rows where 2 were recorded"
    );
}

#[test]
fn swapped_rows_are_detected() {
    let fixture = Fixture::new();
    fixture
        .file()
        .execute_batch(
            "UPDATE record SET id = 'x' WHERE id = 'a'; UPDATE record SET id = 'a' WHERE id = 'b'; UPDATE record SET id = 'b' WHERE id = 'x';",
        )
        .unwrap();
    assert_eq!(fixture.tampered(), "row permit/a does not open");
}

#[test]
fn an_added_row_is_detected() {
    let fixture = Fixture::new();
    fixture
        .file()
        .execute(
            "INSERT INTO record SELECT class, 'c', sealed FROM record WHERE id = 'a'",
            [],
        )
        .unwrap();
    assert_eq!(fixture.tampered(), "row permit/c does not open");
    fixture
        .file()
        .execute("UPDATE record SET class = 'foreign' WHERE id = 'c'", [])
        .unwrap();
    assert_eq!(fixture.tampered(), "row c is of an unknown class");
}

#[tokio::test]
async fn a_replayed_row_and_a_replayed_root_are_detected() {
    let fixture = Fixture::new();
    let read =
        |sql: &str| -> Vec<u8> { fixture.file().query_row(sql, [], |row| row.get(0)).unwrap() };
    let old_row = read("SELECT sealed FROM record WHERE id = 'a'");
    let old_root = read("SELECT sealed FROM root");
    let store = fixture.start();
    let mut change = Change::default();
    change.put(Class::Permit, "a", &"narrowed value").unwrap();
    let ticket = store.enqueue(change);
    store.committed(ticket).await.unwrap();
    drop(store);
    let new_row = read("SELECT sealed FROM record WHERE id = 'a'");
    let replay = |row: &[u8]| {
        fixture
            .file()
            .execute("UPDATE record SET sealed = ?1 WHERE id = 'a'", [row])
            .unwrap()
    };
    replay(&old_row);
    assert_eq!(
        fixture.tampered(),
        "class permit: rows are not those that were recorded"
    );
    replay(&new_row);
    open(fixture.directory.path(), &fixture.keys).unwrap();
    fixture
        .file()
        .execute("UPDATE root SET sealed = ?1", [&old_root])
        .unwrap();
    assert_eq!(
        fixture.tampered(),
        "class permit: rows are not those that were recorded"
    );
}

#[test]
fn an_altered_root_header_or_stanza_is_detected() {
    let check = |sql: &str, what: &str| {
        let fixture = Fixture::new();
        fixture.file().execute(sql, []).unwrap();
        let told = fixture.tampered();
        assert!(told.contains(what), "{sql}: {told}");
    };
    check("DELETE FROM root", "root is missing");
    check(
        "UPDATE root SET sealed = substr(sealed, 1, 40)",
        "root does not open",
    );
    check("DELETE FROM header", "header is missing");
    check("DELETE FROM stanza", "header or stanza");
    check(
        "INSERT INTO stanza SELECT 'more', body FROM stanza",
        "header or stanza",
    );
    // Turning the operator's passphrase off in the header would let anyone widen.
    check(
        "UPDATE header SET body = CAST(replace(CAST(body AS TEXT), 'phrase\":true', 'phrase\":false') AS BLOB)",
        "header or stanza",
    );
}

#[test]
fn a_foreign_table_or_trigger_is_detected() {
    let fixture = Fixture::new();
    fixture
        .file()
        .execute_batch("CREATE TRIGGER t AFTER INSERT ON record BEGIN DELETE FROM stanza; END;")
        .unwrap();
    assert_eq!(fixture.tampered(), "object 't' is not of the schema");
    fixture
        .file()
        .execute_batch("DROP TRIGGER t; CREATE TABLE extra (x); ")
        .unwrap();
    assert_eq!(fixture.tampered(), "table 'extra' is not of the schema");
}

#[test]
fn a_file_that_is_no_database_is_detected() {
    let fixture = Fixture::new();
    let path = path(fixture.directory.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0..100].fill(7);
    std::fs::write(&path, bytes).unwrap();
    assert!(fixture.tampered().contains("damaged"));
}

#[test]
fn a_home_without_a_store_has_no_front_and_a_second_store_is_not_made() {
    let fixture = Fixture::new();
    assert!(
        front(tempfile::tempdir().unwrap().path())
            .unwrap()
            .is_none()
    );
    let front = front(fixture.directory.path()).unwrap().unwrap();
    let again = create(
        fixture.directory.path(),
        &fixture.keys,
        &front.header,
        &front.stanzas,
        Change::default(),
    );
    assert!(again.is_err());
}

#[test]
fn names_do_not_stand_in_the_file() {
    let fixture = Fixture::new();
    for file in std::fs::read_dir(fixture.directory.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(11).any(|window| window == b"first value"));
    }
}
