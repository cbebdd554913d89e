use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::id::SessionId;

fn stream(length: u64) -> Vec<Event> {
    let session: SessionId = "sesn_a".parse().unwrap();
    let mut events: Vec<Event> = Vec::new();
    for seq in 1..=length {
        let mut event = Event {
            session: session.clone(),
            seq,
            id: format!("sevt_{seq}"),
            epoch: 1,
            kind: "user.message".into(),
            at: jiff::Timestamp::from_second(1_000_000 + i64::try_from(seq).unwrap()).unwrap(),
            causation: (seq > 1).then(|| format!("sevt_{}", seq - 1)),
            payload: json!({"n": seq, "text": "x"}),
            prev_hash: events
                .last()
                .map_or_else(|| GENESIS.into(), |e| e.hash.clone()),
            hash: String::new(),
        };
        event.hash = hash(&event, &event.payload.to_string());
        events.push(event);
    }
    events
}

#[test]
fn an_untouched_stream_and_any_part_of_it_verify() {
    let events = stream(6);
    for from in 0..6 {
        for to in from..=6 {
            verify(&events[from..to]).unwrap();
        }
    }
}

#[test]
fn every_altered_field_is_found_where_it_is() {
    type Change = fn(&mut Event);
    let changes: [Change; 10] = [
        |e| e.session = "sesn_b".parse().unwrap(),
        |e| e.seq += 1,
        |e| e.id.push('x'),
        |e| e.epoch += 1,
        |e| e.kind = "user.interrupt".into(),
        |e| e.at += jiff::SignedDuration::from_nanos(1),
        |e| e.causation = None,
        |e| e.payload = json!({"n": 3, "text": "y"}),
        |e| e.prev_hash = GENESIS.into(),
        |e| e.hash = GENESIS.into(),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut events = stream(5);
        change(&mut events[2]);
        let seq = verify(&events).expect_err("altered").seq;
        assert!((3..=4).contains(&seq), "change {index} reported at {seq}");
    }
}

#[test]
fn a_removed_swapped_or_repeated_event_is_found() {
    let mut removed = stream(5);
    removed.remove(2);
    assert_eq!(verify(&removed).unwrap_err().seq, 4);
    let mut swapped = stream(5);
    swapped.swap(2, 3);
    verify(&swapped).unwrap_err();
    let mut repeated = stream(5);
    let twin = repeated[2].clone();
    repeated.insert(3, twin);
    verify(&repeated).unwrap_err();
}

#[test]
fn a_rewritten_tail_is_found_by_its_link() {
    let mut events = stream(4);
    events[1].payload = json!("other");
    events[1].hash = hash(&events[1], &events[1].payload.to_string());
    let error = verify(&events).unwrap_err();
    assert_eq!(
        (error.seq, error.reason),
        (3, "is not linked to the event before it")
    );
}

#[test]
fn fields_cannot_flow_into_each_other() {
    let mut left = stream(1).remove(0);
    let mut right = left.clone();
    left.id = "ab".into();
    left.kind = "c".into();
    right.id = "a".into();
    right.kind = "bc".into();
    assert_ne!(hash(&left, "{}"), hash(&right, "{}"));
    right = left.clone();
    left.causation = None;
    right.causation = Some(String::new());
    assert_ne!(hash(&left, "{}"), hash(&right, "{}"));
}

proptest! {
    /// The hash covers the payload's text; a reader that parses and renders it must get the same text.
    #[test]
    fn a_payload_renders_the_same_after_a_round_trip(number in any::<f64>(), text in ".*", big in any::<u64>(), small in any::<i64>()) {
        let first = json!({"a": number, "b": &text, "c": big, "d": small, text: [number]}).to_string();
        let again: serde_json::Value = serde_json::from_str(&first).unwrap();
        prop_assert_eq!(again.to_string(), first);
    }
}
