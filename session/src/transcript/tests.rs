use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn response(ids: &[&str]) -> Value {
    let blocks: Vec<Value> = ids
        .iter()
        .map(|id| json!({"type": "tool_use", "id": id, "name": "bash", "input": {}}))
        .collect();
    json!({"message": {"content": blocks}})
}

fn tool(id: &str) -> Value {
    json!({"tool_use_id": id})
}

fn after(events: &[(&str, Value)]) -> Transcript {
    let mut transcript = Transcript::default();
    for (kind, payload) in events {
        transcript.accept(kind, payload).unwrap();
    }
    transcript
}

fn asked() -> Vec<(&'static str, Value)> {
    vec![
        ("span.model_request_start", json!({})),
        ("model.response", response(&["toolu_1", "toolu_2"])),
        ("span.model_request_end", json!({})),
    ]
}

#[test]
fn a_whole_turn_is_accepted() {
    let mut events = asked();
    events.extend([
        ("tool.intent", tool("toolu_1")),
        ("tool.intent", tool("toolu_2")),
        ("tool.outcome", tool("toolu_2")),
        ("tool.outcome", tool("toolu_1")),
        ("span.model_request_start", json!({})),
        ("model.response", response(&[])),
    ]);
    let transcript = after(&events);
    assert_eq!(transcript.open_intents().count(), 0);
    assert!(!transcript.request_is_open());
}

#[test]
fn an_outcome_without_an_intent_is_refused() {
    let mut transcript = after(&asked());
    let refusal = transcript
        .accept("tool.outcome", &tool("toolu_1"))
        .unwrap_err();
    assert_eq!(refusal, "tool use toolu_1 has no intent");
    transcript
        .accept("tool.outcome", &tool("toolu_9"))
        .unwrap_err();
}

#[test]
fn a_second_outcome_is_refused_and_so_is_an_intent_that_would_allow_one() {
    let mut events = asked();
    events.extend([
        ("tool.intent", tool("toolu_1")),
        ("tool.outcome", tool("toolu_1")),
    ]);
    let mut transcript = after(&events);
    let refusal = transcript
        .accept("tool.outcome", &tool("toolu_1"))
        .unwrap_err();
    assert_eq!(refusal, "tool use toolu_1 already has an outcome");
    transcript
        .accept("tool.intent", &tool("toolu_1"))
        .unwrap_err();
    // A later response that repeats the id does not open it again.
    transcript
        .accept("span.model_request_start", &json!({}))
        .unwrap();
    transcript
        .accept("model.response", &response(&["toolu_1"]))
        .unwrap();
    transcript
        .accept("tool.intent", &tool("toolu_1"))
        .unwrap_err();
}

#[test]
fn an_intent_for_what_no_response_asked_is_refused() {
    let mut transcript = after(&asked());
    transcript
        .accept("tool.intent", &tool("toolu_9"))
        .unwrap_err();
    transcript.accept("tool.intent", &json!({})).unwrap_err();
    transcript
        .accept("tool.intent", &json!({"tool_use_id": 1}))
        .unwrap_err();
}

#[test]
fn a_second_open_model_request_is_refused() {
    let mut transcript = after(&[("span.model_request_start", json!({}))]);
    transcript
        .accept("span.model_request_start", &json!({}))
        .unwrap_err();
    transcript
        .accept("span.model_request_end", &json!({"is_error": true}))
        .unwrap();
    transcript
        .accept("span.model_request_start", &json!({}))
        .unwrap();
}

#[test]
fn a_response_without_an_open_request_is_refused() {
    Transcript::default()
        .accept("model.response", &response(&[]))
        .unwrap_err();
    let mut answered = after(&asked()[..2]);
    answered
        .accept("model.response", &response(&[]))
        .unwrap_err();
}

#[test]
fn odd_payloads_are_refused_or_ignored_without_panic() {
    for payload in [
        json!(null),
        json!([]),
        json!({"message": 3}),
        json!({"message": {"content": [1, {"type": "tool_use"}]}}),
    ] {
        let mut transcript = after(&[("span.model_request_start", json!({}))]);
        transcript.accept("model.response", &payload).unwrap();
        transcript.accept("tool.intent", &payload).unwrap_err();
        transcript.accept("tool.outcome", &payload).unwrap_err();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Start,
    End,
    Response(Vec<u8>),
    Intent(u8),
    Outcome(u8),
    Message,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Start),
        Just(Step::End),
        prop::collection::vec(0..6u8, 0..3).prop_map(Step::Response),
        (0..6u8).prop_map(Step::Intent),
        (0..6u8).prop_map(Step::Outcome),
        Just(Step::Message),
    ]
}

proptest! {
    /// Whatever is tried in whatever order: what was accepted obeys the rules, checked by counting the whole log anew.
    #[test]
    fn an_accepted_log_is_always_valid(steps in prop::collection::vec(step(), 0..120)) {
        let mut transcript = Transcript::default();
        let mut log: Vec<Step> = Vec::new();
        for step in steps {
            let (kind, payload) = match &step {
                Step::Start => ("span.model_request_start", json!({})),
                Step::End => ("span.model_request_end", json!({})),
                Step::Response(ids) => {
                    let ids: Vec<String> = ids.iter().map(|n| format!("t{n}")).collect();
                    ("model.response", response(&ids.iter().map(String::as_str).collect::<Vec<_>>()))
                }
                Step::Intent(n) => ("tool.intent", tool(&format!("t{n}"))),
                Step::Outcome(n) => ("tool.outcome", tool(&format!("t{n}"))),
                Step::Message => ("user.message", json!({})),
            };
            let before = transcript.clone();
            let accepted = transcript.accept(kind, &payload).is_ok();
            if !accepted {
                prop_assert_eq!(&transcript, &before, "a refusal changes nothing");
            }
            let mut longer = log.clone();
            longer.push(step);
            prop_assert_eq!(accepted, is_valid(&longer), "{:?}", longer);
            if accepted {
                log = longer;
            }
        }
    }
}

/// The rules again, told over the whole log instead of step by step.
fn is_valid(log: &[Step]) -> bool {
    (0..log.len()).all(|at| {
        let past = &log[..at];
        let is_open = past
            .iter()
            .rev()
            .find_map(|s| match s {
                Step::Start => Some(true),
                Step::End | Step::Response(_) => Some(false),
                _ => None,
            })
            .unwrap_or(false);
        let asked: BTreeSet<u8> = past
            .iter()
            .flat_map(|s| {
                if let Step::Response(ids) = s {
                    ids.clone()
                } else {
                    vec![]
                }
            })
            .collect();
        let intents = |n: u8| {
            past.iter()
                .filter(|s| matches!(s, Step::Intent(m) if *m == n))
                .count()
        };
        let outcomes = |n: u8| {
            past.iter()
                .filter(|s| matches!(s, Step::Outcome(m) if *m == n))
                .count()
        };
        match &log[at] {
            Step::Start => !is_open,
            Step::Response(_) => is_open,
            Step::Intent(n) => asked.contains(n) && intents(*n) == 0,
            Step::Outcome(n) => intents(*n) == 1 && outcomes(*n) == 0,
            Step::End | Step::Message => true,
        }
    })
}
