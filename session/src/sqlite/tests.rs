use std::os::unix::fs::PermissionsExt as _;
use std::pin::pin;

use futures_util::StreamExt as _;
use rusqlite::Connection;
use serde_json::json;

use super::*;

async fn open() -> (SqliteStore, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    (SqliteStore::open(home.path()).unwrap(), home)
}

mod conformance {
    crate::conformance_tests!(super::open);
}

fn note(id: &str) -> NewEvent {
    NewEvent::new("agent.thinking", json!({})).with_id(id)
}

fn message() -> NewEvent {
    NewEvent::new("user.message", json!({"content": []}))
}

async fn sabotage(store: &SqliteStore, sql: &'static str) {
    store.writer.send(Command::Sabotage(sql)).await.unwrap();
}

async fn leased(store: &SqliteStore) -> (SessionId, u64) {
    let session = SessionId::random("sesn");
    store
        .append_input(&session, "k", vec![message()])
        .await
        .unwrap();
    let lease = store.lease(&session, "one", 60_000).await.unwrap();
    (session, lease.epoch)
}

async fn events(store: &SqliteStore, session: &SessionId) -> Vec<Event> {
    let events = store.read(session, Query::default()).await.unwrap();
    crate::verify(&events).unwrap();
    events
}

fn is_store<T: std::fmt::Debug>(answer: &Result<T, SessionError>) -> bool {
    matches!(answer, Err(SessionError::Store(_)))
}

#[tokio::test]
async fn a_second_opener_is_told_that_the_store_is_in_use() {
    let (store, home) = open().await;
    let second = SqliteStore::open(home.path()).unwrap_err();
    assert_eq!(
        second,
        SessionError::Locked {
            directory: home.path().to_owned()
        }
    );
    assert!(
        second.to_string().contains("in use by another process"),
        "{second}"
    );
    store.close().await;
    SqliteStore::open(home.path()).unwrap();
}

#[tokio::test]
async fn files_are_private() {
    let (store, home) = open().await;
    let (session, epoch) = leased(&store).await;
    let large = NewEvent::new("agent.message", json!("x".repeat(100_000)));
    store.append(&session, 1, epoch, vec![large]).await.unwrap();
    let mut seen = 0;
    let mut folders = vec![home.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            if entry.path().is_dir() {
                assert_eq!(mode, 0o700, "{:?}", entry.path());
                folders.push(entry.path());
            } else {
                assert_eq!(mode, 0o600, "{:?}", entry.path());
                seen += 1;
            }
        }
    }
    assert!(seen >= 4, "database, its log, the lock and a blob");
}

#[tokio::test]
async fn a_restart_keeps_events_epochs_leases_keys_and_open_intents() {
    let (store, home) = open().await;
    let (session, epoch) = leased(&store).await;
    let tool = |kind: &str| NewEvent::new(kind, json!({"tool_use_id": "t"}));
    let asked = json!({"message": {"content": [{"type": "tool_use", "id": "t"}]}});
    let turn = vec![
        NewEvent::new("span.model_request_start", json!({})),
        NewEvent::new("model.response", asked),
        tool("tool.intent"),
    ];
    store.append(&session, 1, epoch, turn).await.unwrap();
    let before = events(&store, &session).await;
    store.close().await;

    let store = SqliteStore::open(home.path()).unwrap();
    assert_eq!(events(&store, &session).await, before);
    let held = store.lease(&session, "two", 60_000).await;
    assert!(matches!(held, Err(SessionError::Held { .. })), "{held:?}");
    let again = store
        .append_input(&session, "k", vec![message()])
        .await
        .unwrap();
    assert_eq!(again, before[..1]);
    let refused = store
        .append(&session, 4, epoch, vec![tool("tool.intent")])
        .await;
    assert!(
        matches!(refused, Err(SessionError::Invalid { .. })),
        "{refused:?}"
    );
    store
        .append(&session, 4, epoch, vec![tool("tool.outcome")])
        .await
        .unwrap();
    assert_eq!(
        store.lease(&session, "one", 50).await.unwrap().epoch,
        epoch + 1
    );
    store.close().await;

    // The lease was live at the end: the work is offered once its time has run out anew.
    let store = SqliteStore::open(home.path()).unwrap();
    assert_eq!(pin!(store.watch("two")).next().await, Some(session.clone()));
    assert_eq!(
        store.lease(&session, "two", 50).await.unwrap().epoch,
        epoch + 2
    );
}

#[tokio::test]
async fn a_full_disk_is_an_error_that_leaves_nothing_half_written() {
    let (store, _home) = open().await;
    let (session, epoch) = leased(&store).await;
    let kilobytes = |n: usize| NewEvent::new("agent.message", json!("x".repeat(n * 1000)));
    store
        .append(&session, 1, epoch, vec![note("a")])
        .await
        .unwrap();
    let before = store.head(&session).await.unwrap();
    // A limit below the present size makes every growth fail as a full disk does.
    sabotage(&store, "PRAGMA max_page_count = 1").await;
    let batch: Vec<NewEvent> = std::iter::once(note("first"))
        .chain((0..10).map(|_| kilobytes(60)))
        .collect();
    let answer = store.append(&session, 2, epoch, batch.clone()).await;
    assert!(is_store(&answer), "{answer:?}");
    assert!(answer.unwrap_err().to_string().contains("full"));
    assert_eq!(store.head(&session).await.unwrap(), before);
    assert_eq!(events(&store, &session).await.len(), 2);
    sabotage(&store, "PRAGMA max_page_count = 1000000").await;
    store.append(&session, 2, epoch, batch).await.unwrap();
    assert_eq!(events(&store, &session).await.len(), 13);
}

#[tokio::test]
async fn a_store_that_cannot_be_written_answers_store_and_recovers() {
    let (store, _home) = open().await;
    let (session, epoch) = leased(&store).await;
    let start = NewEvent::new("span.model_request_start", json!({}));
    sabotage(&store, "PRAGMA query_only = ON").await;
    assert!(is_store(
        &store.append(&session, 1, epoch, vec![start.clone()]).await
    ));
    assert!(is_store(
        &store.append_input(&session, "l", vec![message()]).await
    ));
    assert!(is_store(&store.lease(&session, "one", 1000).await));
    assert!(is_store(&store.release(&session, "one", epoch).await));
    sabotage(&store, "PRAGMA query_only = OFF").await;
    // Neither the lease nor the transcript remembers what was rolled back.
    store.append(&session, 1, epoch, vec![start]).await.unwrap();
    assert_eq!(events(&store, &session).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_failing_write_does_not_spoil_its_group() {
    let (store, _home) = open().await;
    let mut sessions = Vec::new();
    for _ in 0..32 {
        sessions.push(leased(&store).await);
    }
    sabotage(
        &store,
        "CREATE TEMP TRIGGER poison BEFORE INSERT ON main.events WHEN new.id = 'poison'
         BEGIN SELECT RAISE(ABORT, 'poisoned'); END",
    )
    .await;
    let mut writers = tokio::task::JoinSet::new();
    for (n, (session, epoch)) in sessions.clone().into_iter().enumerate() {
        let store = store.clone();
        writers.spawn(async move {
            let last = if n == 7 { "poison" } else { "good" };
            let batch = vec![note("first"), note(last)];
            (n, store.append(&session, 1, epoch, batch).await)
        });
    }
    for (n, answer) in writers.join_all().await {
        assert_eq!(is_store(&answer), n == 7, "{n}: {answer:?}");
        let expected = if n == 7 { 1 } else { 3 };
        assert_eq!(events(&store, &sessions[n].0).await.len(), expected);
    }
}

/// Keeps the writer busy, so that what is sent meanwhile is committed as one group.
async fn hold_up(store: &SqliteStore) {
    sabotage(
        store,
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000000) SELECT max(n) FROM c",
    )
    .await;
}

#[tokio::test]
async fn writes_of_one_group_see_each_other() {
    let (store, _home) = open().await;
    let session = SessionId::random("sesn");
    store
        .append_input(&session, "k", vec![message()])
        .await
        .unwrap();

    hold_up(&store).await;
    let (first, second) = tokio::join!(
        store.lease(&session, "one", 60_000),
        store.lease(&session, "two", 60_000)
    );
    assert_eq!(first.unwrap().epoch, 1);
    assert!(matches!(second, Err(SessionError::Held { by, .. }) if by == "one"));

    hold_up(&store).await;
    let (written, released, taken, stale, renewed) = tokio::join!(
        store.append(&session, 1, 1, vec![note("a")]),
        store.release(&session, "one", 1),
        store.lease(&session, "two", 60_000),
        store.append(&session, 2, 1, vec![note("b")]),
        store.renew(&session, "one", 1, 60_000)
    );
    assert_eq!(written.unwrap()[0].seq, 2);
    released.unwrap();
    let taken = taken.unwrap();
    assert_eq!((taken.epoch, taken.head), (2, 2));
    assert_eq!(stale, Err(SessionError::Fenced { epoch: 2 }));
    assert_eq!(renewed, Err(SessionError::Fenced { epoch: 2 }));

    hold_up(&store).await;
    let start = |id: &str| NewEvent::new("span.model_request_start", json!({})).with_id(id);
    let (won, lost, second_open, input, again) = tokio::join!(
        store.append(&session, 2, 2, vec![start("c")]),
        store.append(&session, 2, 2, vec![note("d")]),
        store.append(&session, 3, 2, vec![start("e")]),
        store.append_input(&session, "l", vec![message()]),
        store.append_input(&session, "l", vec![message()])
    );
    assert_eq!(won.unwrap()[0].seq, 3);
    assert_eq!(lost, Err(SessionError::Conflict { head: 3 }));
    assert!(matches!(second_open, Err(SessionError::Invalid { .. })));
    assert_eq!(input, again);
    assert_eq!(events(&store, &session).await.len(), 4);
}

#[tokio::test]
async fn a_publisher_is_fenced_even_if_its_lease_is_remembered_only_on_disk() {
    let (store, home) = open().await;
    let (session, old) = leased(&store).await;
    let new = store.lease(&session, "one", 60_000).await.unwrap().epoch;
    store.release(&session, "one", new).await.unwrap();
    store.close().await;
    let store = SqliteStore::open(home.path()).unwrap();
    let stale = store.publish(&session, old, json!(1)).await;
    assert_eq!(stale, Err(SessionError::Fenced { epoch: new }));
    store.publish(&session, new, json!(1)).await.unwrap();
}

#[tokio::test]
async fn a_writer_beyond_use_ends_and_every_call_says_so() {
    let (store, _home) = open().await;
    let (session, epoch) = leased(&store).await;
    sabotage(&store, "this is not SQL").await;
    store.failed().await;
    assert!(is_store(
        &store.append(&session, 1, epoch, vec![note("a")]).await
    ));
    // What is durable stays readable.
    assert_eq!(events(&store, &session).await.len(), 1);
}

#[tokio::test]
async fn a_blob_that_cannot_be_written_or_was_altered_is_an_error() {
    let (store, home) = open().await;
    let (session, epoch) = leased(&store).await;
    let large = |c: &str| NewEvent::new("agent.message", json!(c.repeat(100_000)));
    let blobs = home.path().join("blobs");
    fs::remove_dir(&blobs).unwrap();
    fs::write(&blobs, "in the way").unwrap();
    let answer = store
        .append(&session, 1, epoch, vec![note("a"), large("x")])
        .await;
    assert!(is_store(&answer), "{answer:?}");
    assert_eq!(events(&store, &session).await.len(), 1);
    fs::remove_file(&blobs).unwrap();

    store
        .append(&session, 1, epoch, vec![large("x")])
        .await
        .unwrap();
    let folder = fs::read_dir(&blobs)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let blob = fs::read_dir(folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let altered = fs::read_to_string(&blob).unwrap().replacen('x', "y", 1);
    fs::write(&blob, altered).unwrap();
    let answer = store.read(&session, Query::default()).await;
    assert!(is_store(&answer));
    assert!(answer.unwrap_err().to_string().contains("altered"));
}

#[tokio::test]
async fn an_altered_row_is_refused_by_the_database_and_found_by_the_chain() {
    let (store, home) = open().await;
    let (session, epoch) = leased(&store).await;
    let batch = (0..5).map(|n| note(&format!("n{n}"))).collect();
    store.append(&session, 1, epoch, batch).await.unwrap();
    let raw = Connection::open(home.path().join("session.db")).unwrap();
    for sql in ["UPDATE events SET kind = 'x'", "DELETE FROM events"] {
        let error = raw.execute(sql, []).unwrap_err().to_string();
        assert!(error.contains("events are never"), "{error}");
    }
    // Whoever removes the guard is found by the chain.
    raw.execute_batch(
        "DROP TRIGGER events_are_never_changed; DROP TRIGGER events_are_never_deleted;",
    )
    .unwrap();
    let changes = [
        "UPDATE events SET payload = '{\"n\":1}' WHERE id = 'n2'",
        "UPDATE events SET kind = 'agent.message' WHERE id = 'n2'",
        "UPDATE events SET epoch = 9 WHERE id = 'n2'",
        "UPDATE events SET at_us = at_us + 1 WHERE id = 'n2'",
        "UPDATE events SET causation = 'n1' WHERE id = 'n2'",
        "UPDATE events SET hash = zeroblob(32) WHERE id = 'n2'",
        "DELETE FROM events WHERE id = 'n2'",
    ];
    for change in changes {
        raw.execute_batch("SAVEPOINT whole").unwrap();
        raw.execute(change, []).unwrap();
        raw.execute_batch("RELEASE whole").unwrap();
        let read = store.read(&session, Query::default()).await.unwrap();
        let error = crate::verify(&read).expect_err(change);
        assert!((4..=5).contains(&error.seq), "{change}: {error}");
        if !change.starts_with("DELETE") {
            restore(&raw, &session, &store).await;
        }
    }
}

/// Puts event `n2` back from the answers that its writer got.
async fn restore(raw: &Connection, session: &SessionId, store: &SqliteStore) {
    let read = store.read(session, Query::default()).await.unwrap();
    let (before, after) = (&read[2], &read[4]);
    raw.execute(
        "UPDATE events SET payload = '{}', kind = 'agent.thinking', epoch = 1, causation = NULL, at_us = ?1,
                           hash = unhex(?2)
         WHERE id = 'n2'",
        (before.at.as_microsecond(), &after.prev_hash),
    )
    .unwrap();
    crate::verify(&store.read(session, Query::default()).await.unwrap()).unwrap();
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let (store, home) = open().await;
    store.close().await;
    let raw = Connection::open(home.path().join("session.db")).unwrap();
    raw.execute_batch("PRAGMA user_version = 2").unwrap();
    drop(raw);
    let error = SqliteStore::open(home.path()).unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");
    fs::write(
        home.path().join("session.db"),
        "no database at all, but long enough to be looked at",
    )
    .unwrap();
    assert!(is_store(&SqliteStore::open(home.path())));
}

#[tokio::test]
async fn the_view_shows_the_log_to_people() {
    let (store, home) = open().await;
    let (session, _) = leased(&store).await;
    let raw = Connection::open(home.path().join("session.db")).unwrap();
    let row: (String, i64, String, String) = raw
        .query_row("SELECT session, seq, type, hash FROM log", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .unwrap();
    let head = store.head(&session).await.unwrap();
    assert_eq!(row, (session.to_string(), 1, "user.message".into(), head.1));
}
