//! Reading.

use serde_json::json;

use super::{all, leased, message, session};
use crate::error::SessionError;
use crate::event::NewEvent;
use crate::id::SessionId;
use crate::query::Query;
use crate::store::SessionStore;

/// Every combination of bounds, filter, limit and order equals the same selection from the whole.
pub async fn slices_are_what_they_say<S: SessionStore>(store: &S) {
    let session = session();
    let kinds = ["user.message", "session.wake", "user.interrupt"];
    let events = (0..9)
        .map(|n| NewEvent::new(kinds[n % 3], json!({"n": n})))
        .collect();
    store
        .append_input(&session, "k", events)
        .await
        .expect("appends");
    let whole = all(store, &session).await;
    for after in [0, 1, 4, 8, 9, 10, u64::MAX] {
        for before in [
            None,
            Some(0),
            Some(1),
            Some(5),
            Some(9),
            Some(10),
            Some(u64::MAX),
        ] {
            for limit in [0, 1, 3, usize::MAX] {
                for kinds in [
                    vec![],
                    vec![kinds[0]],
                    vec![kinds[1], kinds[2]],
                    vec!["no.such"],
                ] {
                    for descending in [false, true] {
                        let query = Query {
                            after,
                            before,
                            limit,
                            kinds: kinds.iter().map(ToString::to_string).collect(),
                            descending,
                        };
                        let mut expected: Vec<_> = whole
                            .iter()
                            .filter(|e| e.seq > after && before.is_none_or(|b| e.seq < b))
                            .filter(|e| kinds.is_empty() || kinds.contains(&e.kind.as_str()))
                            .cloned()
                            .collect();
                        if descending {
                            expected.reverse();
                        }
                        expected.truncate(limit);
                        let read = store.read(&session, query.clone()).await.expect("reads");
                        assert_eq!(read, expected, "{query:?}");
                    }
                }
            }
        }
    }
}

/// A payload of any size is read as it was written, and the chain covers it.
pub async fn large_payloads_come_back_whole<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    let sizes = [1, 65_536, 65_537, 1_000_000, 5_000_000];
    let events = sizes
        .iter()
        .map(|size| NewEvent::new("agent.message", json!({"text": "ü".repeat(size / 2)})))
        .collect::<Vec<_>>();
    let appended = store
        .append(&session, 1, epoch, events.clone())
        .await
        .expect("appends");
    let stored = all(store, &session).await;
    assert_eq!(stored[1..], appended);
    for (stored, sent) in stored[1..].iter().zip(&events) {
        assert_eq!(stored.payload, sent.payload);
    }
    // The same content again, which is stored once.
    store
        .append(&session, 6, epoch, events)
        .await
        .expect("appends");
    assert_eq!(all(store, &session).await.len(), 11);
    let whale = NewEvent::new("agent.message", json!("x".repeat(crate::MAX_PAYLOAD_BYTES)));
    let answer = store.append(&session, 11, epoch, vec![whale]).await;
    assert!(
        matches!(answer, Err(SessionError::Invalid { .. })),
        "{answer:?}"
    );
}

/// A stream longer than any page is read whole in both directions.
pub async fn a_long_stream_is_read_across_pages<S: SessionStore>(store: &S) {
    let session = session();
    for batch in 0..10 {
        let events = (0..500).map(|n| message(&format!("{batch} {n}"))).collect();
        store
            .append_input(&session, &batch.to_string(), events)
            .await
            .expect("appends");
    }
    let whole = all(store, &session).await;
    assert_eq!(whole.len(), 5000);
    let query = Query {
        descending: true,
        limit: 4999,
        ..Query::default()
    };
    let mut backwards = store.read(&session, query).await.expect("reads");
    backwards.reverse();
    assert_eq!(backwards, whole[1..]);
}

/// Lists page in both directions without gap or duplicate.
pub async fn streams_are_listed_in_the_order_of_their_creation<S: SessionStore>(store: &S) {
    // A prefix of this test's own: other tests make sessions in the same store.
    let prefix: String = uuid::Uuid::new_v4()
        .simple()
        .to_string()
        .chars()
        .take(12)
        .map(|c| {
            char::from(b'a' + u8::try_from(c.to_digit(16).expect("is hexadecimal")).expect("fits"))
        })
        .collect();
    let mut made = Vec::new();
    for n in 0..7 {
        let id = SessionId::random(&prefix);
        store
            .append_input(&id, "k", vec![NewEvent::new("made", json!({"n": n}))])
            .await
            .expect("appends");
        made.push(id);
    }
    // What is written later does not change the order.
    store
        .append_input(&made[0], "l", vec![message("x")])
        .await
        .expect("appends");
    for newest_first in [false, true] {
        let mut expected = made.clone();
        if newest_first {
            expected.reverse();
        }
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let rows = store
                .list(&format!("{prefix}_"), after.as_ref(), 3, newest_first)
                .await
                .expect("lists");
            let Some(last) = rows.last() else { break };
            after = Some(last.session.clone());
            listed.extend(rows);
        }
        let ids: Vec<SessionId> = listed.iter().map(|row| row.session.clone()).collect();
        assert_eq!(ids, expected);
        let first = listed
            .iter()
            .find(|row| row.session == made[0])
            .expect("is listed");
        assert_eq!(first.head, 2);
        assert!(first.created_at <= first.updated_at);
    }
    let everything = store
        .list("", None, usize::MAX, false)
        .await
        .expect("lists");
    assert!(
        made.iter()
            .all(|id| everything.iter().any(|row| &row.session == id))
    );
    let answer = store.list("Sesn", None, 1, false).await;
    assert!(
        matches!(answer, Err(SessionError::Invalid { .. })),
        "{answer:?}"
    );
}

/// Reading never creates.
pub async fn what_does_not_exist_is_not_found<S: SessionStore>(store: &S) {
    let session = session();
    assert_eq!(
        store.read(&session, Query::default()).await,
        Err(SessionError::NotFound)
    );
    assert_eq!(store.head(&session).await, Err(SessionError::NotFound));
    assert_eq!(
        store.list("sesn_", Some(&session), 1, false).await,
        Err(SessionError::NotFound)
    );
}

/// Order of fields, numbers and odd characters survive, so that the hash can be recomputed anywhere.
pub async fn payloads_survive_as_they_were<S: SessionStore>(store: &S) {
    let session = session();
    let text = r#"{"z":1,"a":[0.1,1e300,-0.0,18446744073709551615,-9223372036854775808,4.35,null,true],"\u0000\"\\é\u2028":"\ud83d\ude00","":{}}"#;
    let payload: serde_json::Value = serde_json::from_str(text).expect("is JSON");
    let sent = NewEvent::new("user.message", payload.clone());
    store
        .append_input(&session, "k", vec![sent])
        .await
        .expect("appends");
    let stored = all(store, &session).await;
    assert_eq!(stored[0].payload, payload);
    assert_eq!(stored[0].payload.to_string(), payload.to_string());
}
