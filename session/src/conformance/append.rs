//! Writing.

use std::collections::BTreeSet;

use serde_json::json;

use super::{all, leased, message, note, session};
use crate::error::SessionError;
use crate::event::NewEvent;
use crate::id::SessionId;
use crate::query::Query;
use crate::store::SessionStore;

/// Positions are dense, the chain holds, and the answer is what a reader gets.
pub async fn an_append_is_dense_chained_and_returned_as_stored<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    let first = store
        .append(
            &session,
            1,
            epoch,
            vec![
                note(1),
                note(2).with_id("sevt_mine").caused_by("sevt_cause"),
            ],
        )
        .await
        .expect("appends");
    let second = store
        .append(&session, 3, epoch, vec![note(3)])
        .await
        .expect("appends");
    let stored = all(store, &session).await;
    assert_eq!(stored[1..], [first.clone(), second].concat());
    assert_eq!((first[1].id.as_str(), first[1].epoch), ("sevt_mine", epoch));
    assert_eq!(first[1].causation.as_deref(), Some("sevt_cause"));
    assert!(first[0].id.starts_with("sevt_"));
    assert!(stored.windows(2).all(|pair| pair[0].at <= pair[1].at));
    let (seq, hash, at) = store.head(&session).await.expect("has a head");
    assert_eq!((seq, hash, at), (4, stored[3].hash.clone(), epoch));
}

/// A writer that does not know the newest event is told where the head is and writes nothing.
pub async fn an_append_elsewhere_than_at_the_head_is_a_conflict<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    store
        .append_input(&session, "k", vec![message("hello")])
        .await
        .expect("appends");
    for expected in [0, 1, 3, u64::MAX] {
        let answer = store.append(&session, expected, epoch, vec![note(1)]).await;
        assert_eq!(
            answer,
            Err(SessionError::Conflict { head: 2 }),
            "expected {expected}"
        );
    }
    assert_eq!(all(store, &session).await.len(), 2);
}

/// A writer whose answer was lost asks again and gets it, even if others wrote since.
pub async fn a_repeated_append_is_answered_with_what_it_wrote<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    let mine = vec![note(1).with_id("a"), note(2).with_id("b")];
    let first = store
        .append(&session, 1, epoch, mine.clone())
        .await
        .expect("appends");
    assert_eq!(
        store.append(&session, 1, epoch, mine.clone()).await,
        Ok(first.clone())
    );
    store
        .append_input(&session, "k", vec![message("hello")])
        .await
        .expect("appends");
    assert_eq!(store.append(&session, 1, epoch, mine).await, Ok(first));
    let other = vec![note(1).with_id("a"), note(2).with_id("c")];
    let answer = store.append(&session, 1, epoch, other).await;
    assert_eq!(answer, Err(SessionError::Conflict { head: 4 }));
    assert_eq!(all(store, &session).await.len(), 4);
}

/// Neither an older nor an invented epoch writes.
pub async fn an_append_with_another_epoch_is_fenced<S: SessionStore>(store: &S) {
    let (session, first) = leased(store, "one").await;
    let second = store
        .lease(&session, "one", 1000)
        .await
        .expect("leases again")
        .epoch;
    for epoch in [first, second + 1, u64::MAX] {
        let answer = store.append(&session, 1, epoch, vec![note(1)]).await;
        assert_eq!(
            answer,
            Err(SessionError::Fenced { epoch: second }),
            "epoch {epoch}"
        );
    }
    assert_eq!(all(store, &session).await.len(), 1);
}

/// Epoch 0 is for input and for streams that are not sessions.
pub async fn a_session_takes_no_append_without_lease<S: SessionStore>(store: &S) {
    let session = session();
    let answer = store.append(&session, 0, 0, vec![note(1)]).await;
    assert!(
        matches!(answer, Err(SessionError::Invalid { .. })),
        "{answer:?}"
    );
    store
        .append_input(&session, "k", vec![message("a")])
        .await
        .expect("appends");
    let answer = store.append(&session, 1, 0, vec![note(1)]).await;
    assert!(
        matches!(answer, Err(SessionError::Invalid { .. })),
        "{answer:?}"
    );
    let answer = store
        .append(&SessionId::random("sesn"), 0, 1, vec![note(1)])
        .await;
    assert_eq!(answer, Err(SessionError::NotFound));
}

/// Objects that are kept as events are changed by comparing their head.
pub async fn other_streams_are_created_and_compared_without_lease<S: SessionStore>(store: &S) {
    let agent = SessionId::random("agent");
    let made = NewEvent::new("agent.created", json!({"name": "a"}));
    let answer = store.append(&agent, 1, 0, vec![made.clone()]).await;
    assert_eq!(answer, Err(SessionError::NotFound));
    store
        .append(&agent, 0, 0, vec![made.clone()])
        .await
        .expect("creates");
    let answer = store.append(&agent, 0, 0, vec![made.clone()]).await;
    assert_eq!(answer, Err(SessionError::Conflict { head: 1 }));
    store
        .append(&agent, 1, 0, vec![made])
        .await
        .expect("updates");
    let lease = store.lease(&agent, "one", 1000).await;
    assert!(
        matches!(lease, Err(SessionError::Invalid { .. })),
        "{lease:?}"
    );
}

/// The same key is the same input, whatever the repeat says.
pub async fn repeated_input_is_written_once<S: SessionStore>(store: &S) {
    let session = session();
    let first = store
        .append_input(&session, "k", vec![message("a"), message("b")])
        .await
        .expect("appends");
    store
        .append_input(&session, "l", vec![message("c")])
        .await
        .expect("appends");
    let again = store.append_input(&session, "k", vec![message("x")]).await;
    assert_eq!(again, Ok(first.clone()));
    assert_eq!(
        first.iter().map(|e| (e.seq, e.epoch)).collect::<Vec<_>>(),
        [(1, 0), (2, 0)]
    );
    assert_eq!(all(store, &session).await.len(), 3);
    let elsewhere = SessionId::random("sesn");
    let other = store
        .append_input(&elsewhere, "k", vec![message("a")])
        .await
        .expect("appends");
    assert_eq!((other.len(), &other[0].session), (1, &elsewhere));
    let answer = store.append_input(&session, "", vec![message("a")]).await;
    assert!(matches!(answer, Err(SessionError::Invalid { .. })));
}

/// Input bypasses the lease, so it may not carry what the transcript rests on.
pub async fn input_cannot_forge_what_only_a_lease_holder_writes<S: SessionStore>(store: &S) {
    let session = session();
    for kind in crate::transcript::Transcript::KINDS {
        let forged = NewEvent::new(kind, json!({"tool_use_id": "t"}));
        let answer = store
            .append_input(&session, kind, vec![message("a"), forged])
            .await;
        assert!(
            matches!(answer, Err(SessionError::Invalid { .. })),
            "{kind}: {answer:?}"
        );
    }
    assert_eq!(store.head(&session).await, Err(SessionError::NotFound));
}

/// All events of an append are written or none.
pub async fn a_refused_append_writes_nothing_of_itself<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    let start = NewEvent::new("span.model_request_start", json!({}));
    let batch = vec![note(1), start.clone(), note(2), start.clone()];
    let answer = store.append(&session, 1, epoch, batch).await;
    assert!(
        matches!(answer, Err(SessionError::Invalid { .. })),
        "{answer:?}"
    );
    assert_eq!(all(store, &session).await.len(), 1);
    // The refused batch left no open request behind.
    store
        .append(&session, 1, epoch, vec![start])
        .await
        .expect("appends");
    for bad in [vec![], vec![NewEvent::new("No Kind", json!({}))]] {
        let answer = store.append(&session, 2, epoch, bad).await;
        assert!(
            matches!(answer, Err(SessionError::Invalid { .. })),
            "{answer:?}"
        );
    }
}

/// The rules of the transcript hold across appends.
pub async fn an_invalid_transcript_is_refused<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    let event = |kind: &str| NewEvent::new(kind, json!({"tool_use_id": "toolu_1"}));
    let response = NewEvent::new(
        "model.response",
        json!({"message": {"content": [{"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}]}}),
    );
    let script = [
        (event("tool.outcome"), false),
        (event("tool.intent"), false),
        (response.clone(), false),
        (event("span.model_request_start"), true),
        (event("span.model_request_start"), false),
        (response.clone(), true),
        (response, false),
        (event("span.model_request_end"), true),
        (event("tool.outcome"), false),
        (event("tool.intent"), true),
        (event("tool.intent"), false),
        (event("tool.outcome"), true),
        (event("tool.outcome"), false),
    ];
    let mut head = 1;
    for (event, is_valid) in script {
        let kind = event.kind.clone();
        let answer = store.append(&session, head, epoch, vec![event]).await;
        match answer {
            Ok(_) if is_valid => head += 1,
            Err(SessionError::Invalid { .. }) if !is_valid => {}
            other => panic!("{kind} after {head}: {other:?}"),
        }
    }
    assert_eq!(all(store, &session).await.len(), 6);
}

/// 64 writers under one lease: each position is won once, and every event is there once.
pub async fn many_writers_never_share_a_position<S: SessionStore>(store: &S) {
    let (session, epoch) = leased(store, "one").await;
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..64 {
        let (store, session) = (store.clone(), session.clone());
        writers.spawn(async move {
            let mut head = 1;
            loop {
                match store
                    .append(
                        &session,
                        head,
                        epoch,
                        vec![note(n).with_id(format!("w{n}"))],
                    )
                    .await
                {
                    Ok(events) => return (n, events[0].seq),
                    Err(SessionError::Conflict { head: newest }) => head = newest,
                    Err(other) => panic!("writer {n}: {other}"),
                }
            }
        });
    }
    let won: BTreeSet<u64> = writers
        .join_all()
        .await
        .into_iter()
        .map(|(_, seq)| seq)
        .collect();
    assert_eq!(won, (2..=65).collect());
    let ids: BTreeSet<String> = all(store, &session)
        .await
        .into_iter()
        .skip(1)
        .map(|e| e.id)
        .collect();
    assert_eq!(ids.len(), 64);
}

/// 64 repeats of one input at once: one is written, all get it.
pub async fn many_equal_inputs_are_one<S: SessionStore>(store: &S) {
    let session = session();
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..64 {
        let (store, session) = (store.clone(), session.clone());
        writers.spawn(async move {
            store
                .append_input(&session, "k", vec![message(&n.to_string())])
                .await
        });
    }
    let answers = writers.join_all().await;
    assert!(
        answers
            .iter()
            .all(|answer| answer == &answers[0] && answer.is_ok())
    );
    let stored = store.read(&session, Query::default()).await.expect("reads");
    assert_eq!(Ok(stored), answers[0]);
}
