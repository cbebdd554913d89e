use claviger_session::SessionId;
use serde_json::json;

use super::*;

/// Events as a log would hold them, by kind and payload.
fn events(list: &[(&str, Value)]) -> Vec<Event> {
    let session: SessionId = "sesn_1".parse().unwrap();
    let event = |(seq, (kind, payload)): (u64, &(&str, Value))| Event {
        session: session.clone(),
        seq,
        id: format!("sevt_{seq}"),
        epoch: 1,
        kind: (*kind).to_owned(),
        at: jiff::Timestamp::UNIX_EPOCH,
        causation: None,
        payload: payload.clone(),
        prev_hash: String::new(),
        hash: String::new(),
    };
    (1..).zip(list).map(event).collect()
}

fn rendered(list: &[(&str, Value)], strategy: Strategy) -> Value {
    let mut conversation = Conversation::default();
    for event in events(list) {
        conversation.apply(&event);
    }
    let agent = Agent::of(
        &json!({"agent": {"model": {"id": "m"}, "system": "Be brief.",
        "tools": [{"type": "custom", "name": "t", "description": "d", "input_schema": {"type": "object"}}]}}),
    );
    render(&conversation, &agent, &Toolbox::new(&agent, &[]), strategy)
}

fn user(text: &str) -> (&'static str, Value) {
    (
        "user.message",
        json!({"content": [{"type": "text", "text": text}]}),
    )
}

fn start() -> (&'static str, Value) {
    ("span.model_request_start", json!({}))
}

fn response(content: Value, stop_reason: &str) -> (&'static str, Value) {
    (
        "model.response",
        json!({"message": {"role": "assistant", "content": content, "stop_reason": stop_reason}}),
    )
}

fn tool_use(id: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": "t", "input": {}})
}

fn outcome(id: &str, text: &str) -> (&'static str, Value) {
    (
        "tool.outcome",
        json!({"tool_use_id": id, "content": [{"type": "text", "text": text}], "is_error": text == "bad"}),
    )
}

fn idle() -> (&'static str, Value) {
    (
        "session.status_idle",
        json!({"stop_reason": {"type": "end_turn"}}),
    )
}

/// A conversation of this many rounds of one call each.
fn rounds(count: usize) -> Vec<(&'static str, Value)> {
    let mut list = vec![user("Go.")];
    for round in 0..count {
        list.extend([
            start(),
            response(json!([tool_use(&format!("t{round}"))]), "tool_use"),
            outcome(&format!("t{round}"), "r"),
        ]);
    }
    list
}

/// The request without its breakpoints: what the cache's key is made of.
fn unmarked(mut body: Value) -> Value {
    for message in body["messages"].as_array_mut().unwrap() {
        for block in message["content"].as_array_mut().unwrap() {
            block.as_object_mut().unwrap().remove("cache_control");
        }
    }
    body
}

#[test]
fn a_log_renders_to_this_request() {
    let body = rendered(
        &[
            user("One."),
            user("Two."),
            start(),
            response(
                json!([{"type": "thinking", "thinking": "", "signature": "s"}, {"type": "novelty", "x": [1]}, tool_use("a"), tool_use("b")]),
                "tool_use",
            ),
            outcome("b", "bad"),
            user("Queued."),
            outcome("a", "good"),
            start(),
            response(json!([{"type": "text", "text": "Done."}]), "end_turn"),
        ],
        Strategy::Plain,
    );
    insta::assert_json_snapshot!(body);
}

#[test]
fn an_interrupted_request_leaves_its_input_for_the_next() {
    let body = rendered(
        &[
            user("One."),
            start(),
            ("span.model_request_end", json!({})),
            idle(),
            user("Two."),
        ],
        Strategy::Plain,
    );
    let messages = body["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0]["content"].as_array().unwrap().len(), 2);
}

#[test]
fn a_refused_and_an_empty_message_are_not_sent_back() {
    let refused = response(json!([{"type": "text", "text": "No"}]), "refusal");
    let body = rendered(
        &[
            user("One."),
            start(),
            refused,
            idle(),
            user("Two."),
            start(),
            response(json!([]), "end_turn"),
            user("Three."),
        ],
        Strategy::Plain,
    );
    let messages = body["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0]["content"].as_array().unwrap().len(), 3);
}

#[test]
fn each_request_extends_the_one_before_byte_for_byte() {
    let list = rounds(60);
    let mut before: Option<String> = None;
    for length in (1..=list.len()).filter(|length| length % 3 == 1) {
        let body = unmarked(rendered(&list[..length], Strategy::Plain));
        let text = body["messages"].to_string();
        let prefix = text.strip_suffix(']').unwrap().to_owned();
        if let Some(before) = before.replace(prefix.clone()) {
            assert!(prefix.starts_with(&before));
        }
    }
}

#[test]
fn breakpoints_are_few_and_never_further_apart_than_the_cache_looks_back() {
    for count in [0, 1, 9, 40] {
        let body = rendered(&rounds(count), Strategy::Plain);
        let blocks: Vec<Value> = body["messages"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|message| message["content"].as_array().unwrap().clone())
            .collect();
        let marked: Vec<usize> = (0..blocks.len())
            .filter(|&at| blocks[at].get("cache_control").is_some())
            .collect();
        assert_eq!(marked.last(), Some(&(blocks.len() - 1)));
        assert!(marked.len() <= 3);
        assert!(
            marked.windows(2).all(|pair| pair[1] - pair[0] < 20),
            "{marked:?}"
        );
    }
}

#[test]
fn old_results_are_cleared_in_steps_and_only_by_the_strategy_for_it() {
    let cleared = |count: usize| {
        let body = rendered(&rounds(count), Strategy::ClearOldResults).to_string();
        body.matches("[result cleared").count()
    };
    assert_eq!(
        [cleared(39), cleared(40), cleared(59), cleared(60)],
        [0, 20, 20, 40]
    );
    assert!(
        !rendered(&rounds(60), Strategy::Plain)
            .to_string()
            .contains("cleared")
    );
}

#[test]
fn strategies_are_found_by_the_names_they_pin() {
    for strategy in [Strategy::Plain, Strategy::ClearOldResults] {
        assert_eq!(Strategy::named(strategy.name()), Some(strategy));
    }
    assert_eq!(Strategy::named("plain/v0"), None);
}
