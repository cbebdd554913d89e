//! Tails, passing values and watches.

use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use serde_json::json;

use super::{LONG_MS, all, leased, message, next, next_event, next_passing, note, session};
use crate::error::SessionError;
use crate::event::NewEvent;
use crate::id::SessionId;
use crate::query::Tailed;
use crate::store::SessionStore;

/// Appends `count` inputs, one by one.
async fn write<S: SessionStore>(store: &S, session: &SessionId, count: usize) {
    for n in 0..count {
        store
            .append_input(session, &format!("w{n}"), vec![message(&n.to_string())])
            .await
            .expect("appends");
    }
}

/// Tails that start at any moment of a busy stream, from any position, get every later event once and in order.
pub async fn a_tail_carries_stored_then_live_events_without_gap_or_duplicate<S: SessionStore>(
    store: &S,
) {
    let session = session();
    let mut readers = tokio::task::JoinSet::new();
    let writer = {
        let (store, session) = (store.clone(), session.clone());
        tokio::spawn(async move { write(&store, &session, 300).await })
    };
    for start in 0..8_u64 {
        let tail = store.tail(&session, start * 20);
        readers.spawn(async move {
            let mut tail = pin!(tail);
            let mut events = Vec::new();
            for _ in start * 20..300 {
                events.push(next_event(&mut tail).await);
            }
            (start, events)
        });
        tokio::task::yield_now().await;
    }
    writer.await.expect("writes");
    let whole = all(store, &session).await;
    for (start, events) in readers.join_all().await {
        let skipped = usize::try_from(start * 20).expect("fits");
        assert_eq!(events, whole[skipped..], "from {start}");
    }
}

/// Whoever waits for a stream before it exists misses nothing of it.
pub async fn a_tail_of_a_future_stream_waits_for_it<S: SessionStore>(store: &S) {
    let session = session();
    let mut tail = pin!(store.tail(&session, 0));
    let early = tokio::time::timeout(Duration::from_millis(50), tail.next()).await;
    assert!(early.is_err());
    write(store, &session, 2).await;
    assert_eq!(next_event(&mut tail).await.seq, 1);
    assert_eq!(next_event(&mut tail).await.seq, 2);
}

/// Any number of readers follow one stream.
pub async fn many_tails_see_the_same<S: SessionStore>(store: &S) {
    let session = session();
    let mut tails: Vec<_> = (0..20).map(|_| Box::pin(store.tail(&session, 0))).collect();
    write(store, &session, 20).await;
    for tail in &mut tails {
        for seq in 1..=20 {
            assert_eq!(next_event(tail).await.seq, seq);
        }
    }
}

/// A reader that sleeps while thousands of events pass gets them all and holds up nobody meanwhile.
pub async fn a_slow_tail_misses_no_event<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    let mut tail = pin!(store.tail(&session, 0));
    assert_eq!(next_event(&mut tail).await.seq, 1);
    let mut head = 1;
    for _ in 0..40 {
        let batch: Vec<NewEvent> = (0..50).map(note).collect();
        head += store
            .append(&session, head, epoch, batch)
            .await
            .expect("appends")
            .len() as u64;
        store
            .publish(&session, epoch, json!("passing"))
            .await
            .expect("publishes");
    }
    let mut seen = 1;
    while seen < head {
        match next(&mut tail).await {
            Tailed::Event(event) => {
                assert_eq!(event.seq, seen + 1);
                seen = event.seq;
            }
            Tailed::Ephemeral(value) => assert_eq!(value, json!("passing")),
        }
    }
}

/// Passing values come in their order, only to those who listen, and leave no trace.
pub async fn published_values_reach_tails_and_are_not_stored<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    store
        .publish(&session, epoch, json!("nobody listens"))
        .await
        .expect("publishes");
    let mut tail = pin!(store.tail(&session, 0));
    assert_eq!(next_event(&mut tail).await.seq, 1);
    for n in 0..10 {
        store
            .publish(&session, epoch, json!({"n": n}))
            .await
            .expect("publishes");
    }
    for n in 0..10 {
        assert_eq!(next_passing(&mut tail).await, json!({"n": n}));
    }
    store
        .append(&session, 1, epoch, vec![note(1)])
        .await
        .expect("appends");
    assert_eq!(next_event(&mut tail).await.seq, 2);
    assert_eq!(all(store, &session).await.len(), 2);
    let (other, _) = leased(store, "one").await;
    assert_eq!(
        store.publish(&other, 7, json!(1)).await,
        Err(SessionError::Fenced { epoch: 1 })
    );
}

/// Waits until the watch names this session; other tests' sessions may come by.
async fn announced(watch: &mut (impl Stream<Item = SessionId> + Unpin), session: &SessionId) {
    while &next(watch).await != session {}
}

/// Checks that the watch does not name this session for a while.
async fn silent(watch: &mut (impl Stream<Item = SessionId> + Unpin), session: &SessionId) {
    let named = async { while watch.next().await.as_ref() != Some(session) {} };
    let named = tokio::time::timeout(Duration::from_millis(150), named).await;
    assert!(named.is_err(), "was announced");
}

/// Input makes work; a held session is its holder's business.
pub async fn work_is_announced_until_it_is_held<S: SessionStore>(store: &S) {
    let session = session();
    let mut watch = pin!(store.watch("one"));
    let created = NewEvent::new("session.created", json!({}));
    store
        .append_input(&session, "c", vec![created])
        .await
        .expect("creates");
    silent(&mut watch, &session).await;
    store
        .append_input(&session, "a", vec![message("a")])
        .await
        .expect("appends");
    announced(&mut watch, &session).await;
    store
        .append_input(&session, "b", vec![message("b")])
        .await
        .expect("appends");
    announced(&mut watch, &session).await;
    store.lease(&session, "one", LONG_MS).await.expect("leases");
    store
        .append_input(&session, "d", vec![message("d")])
        .await
        .expect("appends");
    silent(&mut watch, &session).await;
}

/// Expired or released with work left: announced. Released with all work handled: not.
pub async fn work_is_announced_again_when_its_lease_ends<S: SessionStore>(store: &S) {
    let session = session();
    store
        .append_input(&session, "a", vec![message("a")])
        .await
        .expect("appends");
    let first = store.lease(&session, "one", 50).await.expect("leases");
    let mut watch = pin!(store.watch("two"));
    announced(&mut watch, &session).await;
    let second = store
        .lease(&session, "two", LONG_MS)
        .await
        .expect("the first ran out");
    assert_eq!(second.epoch, first.epoch + 1);
    store
        .release(&session, "two", second.epoch)
        .await
        .expect("releases");
    announced(&mut watch, &session).await;
    let third = store.lease(&session, "two", LONG_MS).await.expect("leases");
    let done = vec![
        NewEvent::new("session.status_running", json!({})),
        NewEvent::new("session.status_idle", json!({"handled_seq": 1})),
    ];
    store
        .append(&session, 1, third.epoch, done)
        .await
        .expect("appends");
    store
        .release(&session, "two", third.epoch)
        .await
        .expect("releases");
    silent(&mut watch, &session).await;
}

/// Work that was there before is named too.
pub async fn a_watch_that_starts_late_finds_the_work<S: SessionStore>(store: &S) {
    let session = session();
    store
        .append_input(&session, "a", vec![message("a")])
        .await
        .expect("appends");
    announced(&mut pin!(store.watch("one")), &session).await;
    announced(&mut pin!(store.watch("two")), &session).await;
}
