//! What every store must do, as tests that run over any of them.
//!
//! `conformance_tests!(open)` makes one test per function here; `open` is an async function that returns the store and
//! whatever must live as long as it. Every test uses streams of its own, so that one store may serve all.
#![expect(clippy::missing_panics_doc, reason = "a test panics when it fails")]

pub mod append;
pub mod lease;
pub mod live;
pub mod read;

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use serde_json::{Value, json};

use crate::event::{Event, NewEvent};
use crate::id::SessionId;
use crate::query::Tailed;
use crate::store::SessionStore;

/// Longest wait for something that must happen.
const SOON: Duration = Duration::from_secs(20);
/// Longest lease that a test takes and does not wait for.
const LONG_MS: u64 = 60_000;

/// Makes one test per behaviour of the suite.
#[macro_export]
macro_rules! conformance_tests {
    ($open:path) => {
        $crate::conformance_tests!(@ $open, append:
            an_append_is_dense_chained_and_returned_as_stored,
            an_append_elsewhere_than_at_the_head_is_a_conflict,
            a_repeated_append_is_answered_with_what_it_wrote,
            an_append_with_another_epoch_is_fenced,
            a_session_takes_no_append_without_lease,
            other_streams_are_created_and_compared_without_lease,
            repeated_input_is_written_once,
            input_cannot_forge_what_only_a_lease_holder_writes,
            a_refused_append_writes_nothing_of_itself,
            an_invalid_transcript_is_refused,
            many_writers_never_share_a_position,
            many_equal_inputs_are_one,
        );
        $crate::conformance_tests!(@ $open, lease:
            a_lease_grows_the_epoch_and_keeps_others_out,
            a_lease_that_ran_out_may_be_taken_and_still_writes_until_then,
            a_released_lease_is_free_at_once,
            only_the_holder_renews,
            of_many_that_ask_one_gets_the_lease,
            nothing_of_an_older_epoch_follows_a_granted_lease,
            a_fenced_holder_cannot_append_or_publish,
            a_lease_of_nothing_is_not_found,
        );
        $crate::conformance_tests!(@ $open, read:
            slices_are_what_they_say,
            large_payloads_come_back_whole,
            a_long_stream_is_read_across_pages,
            streams_are_listed_in_the_order_of_their_creation,
            what_does_not_exist_is_not_found,
            payloads_survive_as_they_were,
        );
        $crate::conformance_tests!(@ $open, live:
            a_tail_carries_stored_then_live_events_without_gap_or_duplicate,
            a_tail_of_a_future_stream_waits_for_it,
            many_tails_see_the_same,
            a_slow_tail_misses_no_event,
            published_values_reach_tails_and_are_not_stored,
            work_is_announced_until_it_is_held,
            work_is_announced_again_when_its_lease_ends,
            a_watch_that_starts_late_finds_the_work,
        );
    };
    (@ $open:path, $module:ident: $($name:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (store, _alive) = $open().await;
                $crate::conformance::$module::$name(&store).await;
            }
        )+
    };
}

fn session() -> SessionId {
    SessionId::random("sesn")
}

fn message(text: &str) -> NewEvent {
    NewEvent::new(
        "user.message",
        json!({"content": [{"type": "text", "text": text}]}),
    )
}

/// An event that a lease holder may write at any time.
fn note(n: u64) -> NewEvent {
    NewEvent::new("agent.thinking", json!({"n": n}))
}

/// Creates a session with one event and takes its lease.
async fn leased<S: SessionStore>(store: &S, owner: &str) -> (SessionId, u64) {
    let session = session();
    let created = NewEvent::new("session.created", json!({}));
    store
        .append_input(&session, "create", vec![created])
        .await
        .expect("creates");
    let lease = store.lease(&session, owner, LONG_MS).await.expect("leases");
    (session, lease.epoch)
}

async fn all<S: SessionStore>(store: &S, session: &SessionId) -> Vec<Event> {
    let events = store
        .read(session, crate::Query::default())
        .await
        .expect("reads");
    crate::chain::verify(&events).expect("the chain holds");
    for (seq, event) in (1..).zip(&events) {
        assert_eq!(event.seq, seq, "positions are dense from 1");
    }
    let head = store.head(session).await.expect("has a head");
    assert!(head.0 >= events.len() as u64);
    events
}

/// Waits for the next item of a stream.
async fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    tokio::time::timeout(SOON, stream.next())
        .await
        .expect("comes soon")
        .expect("has not ended")
}

/// Waits for the next event of a tail, which must not be a passing value.
async fn next_event(tail: &mut (impl Stream<Item = Tailed> + Unpin)) -> Event {
    match next(tail).await {
        Tailed::Event(event) => event,
        Tailed::Ephemeral(value) => panic!("a passing value: {value}"),
    }
}

async fn next_passing(tail: &mut (impl Stream<Item = Tailed> + Unpin)) -> Value {
    match next(tail).await {
        Tailed::Ephemeral(value) => value,
        Tailed::Event(event) => panic!("an event: {event:?}"),
    }
}
