//! Leases and fences.

use std::time::Duration;

use serde_json::json;

use super::{LONG_MS, all, leased, message, next_event, next_passing, note, session};
use crate::error::SessionError;
use crate::store::SessionStore;

/// Each lease has the next epoch; a live one keeps other owners out but not its own.
pub async fn a_lease_grows_the_epoch_and_keeps_others_out<S: SessionStore>(store: &S) {
    let session = session();
    store
        .append_input(&session, "k", vec![message("a")])
        .await
        .expect("appends");
    let first = store.lease(&session, "one", LONG_MS).await.expect("leases");
    assert_eq!(
        (first.epoch, first.head, first.expires_in_ms),
        (1, 1, LONG_MS)
    );
    match store.lease(&session, "two", LONG_MS).await {
        Err(SessionError::Held { by, expires_in_ms }) => {
            assert_eq!(by, "one");
            assert!((1..=LONG_MS).contains(&expires_in_ms));
        }
        other => panic!("{other:?}"),
    }
    let again = store
        .lease(&session, "one", LONG_MS)
        .await
        .expect("leases again");
    assert_eq!(again.epoch, 2);
    assert_eq!(store.head(&session).await.expect("has a head").2, 2);
}

/// Time decides only who may try: until somebody takes it, an expired lease still writes and renews.
pub async fn a_lease_that_ran_out_may_be_taken_and_still_writes_until_then<S: SessionStore>(
    store: &S,
) {
    let session = session();
    store
        .append_input(&session, "k", vec![message("a")])
        .await
        .expect("appends");
    let first = store.lease(&session, "one", 30).await.expect("leases");
    // The time is the subject here; the store's clock cannot be turned from outside.
    tokio::time::sleep(Duration::from_millis(60)).await;
    store
        .append(&session, 1, first.epoch, vec![note(1)])
        .await
        .expect("still writes");
    store
        .renew(&session, "one", first.epoch, 30)
        .await
        .expect("still renews");
    let taken = loop {
        match store.lease(&session, "two", LONG_MS).await {
            Ok(lease) => break lease,
            Err(SessionError::Held { expires_in_ms, .. }) => {
                tokio::time::sleep(Duration::from_millis(expires_in_ms)).await;
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!((taken.epoch, taken.head), (2, 2));
    let fenced = Err(SessionError::Fenced { epoch: 2 });
    assert_eq!(store.renew(&session, "one", first.epoch, 30).await, fenced);
    assert_eq!(store.release(&session, "one", first.epoch).await, fenced);
}

/// After a release nobody waits, and a repeat of the release is harmless.
pub async fn a_released_lease_is_free_at_once<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    store
        .release(&session, "one", epoch)
        .await
        .expect("releases");
    store
        .release(&session, "one", epoch)
        .await
        .expect("releases again");
    assert_eq!(
        store.renew(&session, "one", epoch, LONG_MS).await,
        Err(SessionError::Fenced { epoch })
    );
    let next = store.lease(&session, "two", LONG_MS).await.expect("leases");
    assert_eq!(next.epoch, epoch + 1);
    let late = store.release(&session, "one", epoch).await;
    assert_eq!(late, Err(SessionError::Fenced { epoch: next.epoch }));
    assert!(matches!(
        store.lease(&session, "one", 1).await,
        Err(SessionError::Held { .. })
    ));
}

/// Owner and epoch must both be right, and times must be sane.
pub async fn only_the_holder_renews<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    store
        .renew(&session, "one", epoch, LONG_MS)
        .await
        .expect("renews");
    let fenced = Err(SessionError::Fenced { epoch });
    assert_eq!(store.renew(&session, "two", epoch, LONG_MS).await, fenced);
    assert_eq!(
        store.renew(&session, "one", epoch + 1, LONG_MS).await,
        fenced
    );
    assert_eq!(store.release(&session, "two", epoch).await, fenced);
    for ttl_ms in [0, u64::MAX] {
        let answer = store.renew(&session, "one", epoch, ttl_ms).await;
        assert!(
            matches!(answer, Err(SessionError::Invalid { .. })),
            "{answer:?}"
        );
        let answer = store.lease(&session, "one", ttl_ms).await;
        assert!(
            matches!(answer, Err(SessionError::Invalid { .. })),
            "{answer:?}"
        );
    }
}

/// 64 owners ask at once, also within one commit.
pub async fn of_many_that_ask_one_gets_the_lease<S: SessionStore>(store: &S) {
    let session = session();
    store
        .append_input(&session, "k", vec![message("a")])
        .await
        .expect("appends");
    let mut askers = tokio::task::JoinSet::new();
    for n in 0..64 {
        let (store, session) = (store.clone(), session.clone());
        askers.spawn(async move { store.lease(&session, &format!("owner{n}"), LONG_MS).await });
    }
    let answers = askers.join_all().await;
    let granted = answers.iter().filter(|answer| answer.is_ok()).count();
    let held = answers
        .iter()
        .filter(|answer| matches!(answer, Err(SessionError::Held { .. })))
        .count();
    assert_eq!((granted, held), (1, 63));
    assert_eq!(store.head(&session).await.expect("has a head").2, 1);
}

/// A writer that floods the log while its lease is taken gets nothing in behind the new holder's back.
pub async fn nothing_of_an_older_epoch_follows_a_granted_lease<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    let mut zombies = tokio::task::JoinSet::new();
    for n in 0..16 {
        let (store, session) = (store.clone(), session.clone());
        zombies.spawn(async move {
            let mut head = 1;
            loop {
                match store.append(&session, head, epoch, vec![note(n)]).await {
                    Ok(_) => head += 1,
                    Err(SessionError::Conflict { head: newest }) => head = newest,
                    Err(SessionError::Fenced { epoch }) => return epoch,
                    Err(other) => panic!("{other}"),
                }
            }
        });
    }
    while store.head(&session).await.expect("has a head").0 < 20 {
        tokio::task::yield_now().await;
    }
    let lease = store
        .lease(&session, "one", LONG_MS)
        .await
        .expect("leases again");
    for seen in zombies.join_all().await {
        assert_eq!(seen, lease.epoch);
    }
    let events = all(store, &session).await;
    assert_eq!(events.len() as u64, lease.head);
    store
        .append(&session, lease.head, lease.epoch, vec![note(99)])
        .await
        .expect("the new holder's first append meets no conflict");
}

/// Whoever lost the lease changes nothing and is heard by nobody.
pub async fn a_fenced_holder_cannot_append_or_publish<S: SessionStore>(store: &S) {
    let (session, old) = leased(store, "one").await;
    let mut tail = std::pin::pin!(store.tail(&session, 0));
    // Whoever gets a stored event listens already.
    assert_eq!(next_event(&mut tail).await.seq, 1);
    store
        .publish(&session, old, json!("before"))
        .await
        .expect("publishes");
    store.release(&session, "one", old).await.expect("releases");
    let new = store
        .lease(&session, "two", LONG_MS)
        .await
        .expect("leases")
        .epoch;
    let fenced = Err(SessionError::Fenced { epoch: new });
    assert_eq!(store.publish(&session, old, json!("stale")).await, fenced);
    assert_eq!(
        store.publish(&session, new + 1, json!("invented")).await,
        fenced
    );
    let append = store.append(&session, 1, old, vec![note(1)]).await;
    assert_eq!(append, Err(SessionError::Fenced { epoch: new }));
    store
        .publish(&session, new, json!("after"))
        .await
        .expect("publishes");
    assert_eq!(next_passing(&mut tail).await, json!("before"));
    assert_eq!(next_passing(&mut tail).await, json!("after"));
}

/// There must be a session before anybody can hold it.
pub async fn a_lease_of_nothing_is_not_found<S: SessionStore>(store: &S) {
    let session = session();
    assert_eq!(
        store.lease(&session, "one", 1).await,
        Err(SessionError::NotFound)
    );
    assert_eq!(
        store.renew(&session, "one", 1, 1).await,
        Err(SessionError::NotFound)
    );
    assert_eq!(
        store.release(&session, "one", 1).await,
        Err(SessionError::NotFound)
    );
    assert_eq!(
        store.publish(&session, 1, json!(1)).await,
        Err(SessionError::NotFound)
    );
}
