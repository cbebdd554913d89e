//! Turns as they should go, and as users change them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use claviger_session::Tailed;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::model::{Answer, text, tool_use};
use super::world::{Wires, World, within};

fn done(say: &str) -> Answer {
    Answer::Say(json!([text(say)]), "end_turn")
}

#[tokio::test]
async fn a_turn_runs_parallel_calls_at_both_hands_and_ends_idle() {
    let world = World::new(|asked| match asked.depth() {
        0 => Answer::Say(
            json!([
                text("Let me see."),
                tool_use("toolu_a", "bash", json!({"command": "ls"})),
                tool_use("toolu_b", "tracker_list", json!({"q": 1}))
            ]),
            "tool_use",
        ),
        _ => done("All done."),
    })
    .await;
    let session = world.begin("Go.").await;
    let harness = world.harness("hrn_1", &Wires::sound()).await;
    assert_eq!(world.idle(&session, 1).await, json!({"type": "end_turn"}));

    let kinds = world.kinds(&session).await;
    let position = |kind: &str| {
        kinds
            .iter()
            .position(|found| found == kind)
            .unwrap_or_else(|| panic!("no {kind} in {kinds:?}"))
    };
    let order = [
        "session.status_running",
        "span.model_request_start",
        "model.response",
        "agent.message",
        "span.model_request_end",
        "agent.tool_use",
        "agent.mcp_tool_use",
        "tool.intent",
        "tool.outcome",
        "session.usage",
        "session.status_idle",
    ];
    assert!(order.map(position).is_sorted(), "{kinds:?}");
    assert!(position("hand.provisioned") < position("tool.intent"));
    assert_eq!(
        kinds.iter().filter(|kind| *kind == "tool.outcome").count(),
        2
    );

    let requests = world.model.asked(session.as_str());
    assert_eq!(requests.len(), 2);
    let messages = requests[1].body["messages"].as_array().unwrap();
    let results = messages[2]["content"].as_array().unwrap();
    assert_eq!(
        results
            .iter()
            .map(|block| block["tool_use_id"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["toolu_a", "toolu_b"]
    );
    assert_eq!(results[1]["content"][0]["text"], "tracker_list {\"q\":1}");
    let usage = world.payloads(&session, "session.usage").await;
    assert_eq!(usage[0]["usage"]["output_tokens"], 14);

    assert_eq!(
        world.hands.environment(),
        json!({"TRACKER_TOKEN": "placeholder-of-tracker"})
    );
    assert_eq!(
        world.tools.named()[0].tools,
        ["tracker_create", "tracker_hang", "tracker_list"]
    );
    harness.stop.cancel();
    within(harness.task).await.unwrap().unwrap();
    assert_eq!(world.vault.ended.lock().unwrap().len(), 1);
    assert!(
        world.store.lease(&session, "hrn_other", 1000).await.is_ok(),
        "the lease was released"
    );
}

#[tokio::test]
async fn text_is_published_while_it_comes_and_is_a_prefix_of_the_message() {
    let world = World::new(|_| done("Grüße aus der Ferne, ganz langsam.")).await;
    let session = world.begin("Hallo.").await;
    let mut tail = Box::pin(world.store.tail(&session, 0));
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    let (mut started, mut published, mut message) = (Value::Null, String::new(), None);
    within(async {
        while message.is_none() {
            match tail.next().await.unwrap() {
                Tailed::Ephemeral(value) if value["type"] == "event_start" => {
                    started = value["event"].clone();
                }
                Tailed::Ephemeral(value) => {
                    assert_eq!(value["event_id"], started["id"]);
                    assert_eq!(value["delta"]["index"], 0);
                    published.push_str(value["delta"]["content"]["text"].as_str().unwrap());
                }
                Tailed::Event(event) if event.kind == "agent.message" => message = Some(event),
                Tailed::Event(_) => {}
            }
        }
    })
    .await;
    let message = message.unwrap();
    assert_eq!(started, json!({"type": "agent.message", "id": message.id}));
    assert_eq!(
        message.payload["content"][0]["text"].as_str().unwrap(),
        published
    );
}

#[tokio::test]
async fn a_call_that_asks_waits_for_its_confirmation_and_a_denial_is_read_by_the_model() {
    let world = World::new(|asked| match asked.depth() {
        0 => Answer::Say(
            json!([
                tool_use("toolu_a", "write", json!({"file_path": "a"})),
                tool_use("toolu_b", "write", json!({"file_path": "b"})),
                tool_use("toolu_c", "bash", json!({"command": "c"}))
            ]),
            "tool_use",
        ),
        _ => done("Fine."),
    })
    .await;
    let session = world.begin("Write.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    let stop = world.idle(&session, 1).await;
    let uses = world.events(&session).await;
    let id = |tool: &str| {
        let found = uses.iter().find(|event| {
            event.kind == "agent.tool_use" && event.payload["model_tool_use_id"] == tool
        });
        found.unwrap().id.clone()
    };
    assert_eq!(
        stop,
        json!({"type": "requires_action", "event_ids": [id("toolu_a"), id("toolu_b")]})
    );
    let key = |tool: &str| format!("{session}/{tool}");
    assert_eq!(
        (
            world.hands.runs(&key("toolu_c")),
            world.hands.runs(&key("toolu_a"))
        ),
        (1, 0),
        "only what is allowed ran"
    );

    world
        .input(
            &session,
            "user.tool_confirmation",
            json!({"tool_use_id": id("toolu_a"), "result": "allow"}),
        )
        .await;
    assert_eq!(
        world.idle(&session, 2).await,
        json!({"type": "requires_action", "event_ids": [id("toolu_b")]})
    );
    let deny =
        json!({"tool_use_id": id("toolu_b"), "result": "deny", "deny_message": "not that file"});
    world.input(&session, "user.tool_confirmation", deny).await;
    assert_eq!(world.idle(&session, 3).await["type"], "end_turn");
    assert_eq!(
        (
            world.hands.runs(&key("toolu_a")),
            world.hands.runs(&key("toolu_b"))
        ),
        (1, 0)
    );
    let last = world.model.asked(session.as_str()).pop().unwrap().body;
    let results = last["messages"][2]["content"].as_array().unwrap().clone();
    assert_eq!(results[1]["is_error"], true);
    assert!(
        results[1]["content"][0]["text"]
            .as_str()
            .unwrap()
            .contains("not that file")
    );
}

#[tokio::test]
async fn a_custom_tool_is_answered_by_the_client() {
    let world = World::new(|asked| match asked.depth() {
        0 => Answer::Say(
            json!([tool_use("toolu_a", "ask_human", json!({"q": "?"}))]),
            "tool_use",
        ),
        _ => done("Thanks."),
    })
    .await;
    let session = world.begin("Ask.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    let stop = world.idle(&session, 1).await;
    let answer = json!({"custom_tool_use_id": stop["event_ids"][0], "content": [{"type": "text", "text": "42"}]});
    world
        .input(&session, "user.custom_tool_result", answer)
        .await;
    assert_eq!(world.idle(&session, 2).await["type"], "end_turn");
    let last = world.model.asked(session.as_str()).pop().unwrap().body;
    assert_eq!(
        last["messages"][2]["content"][0]["content"][0]["text"],
        "42"
    );
}

#[tokio::test]
async fn an_unknown_tool_and_a_cut_off_input_are_refused_for_the_model_to_read() {
    let world = World::new(|asked| match asked.depth() {
        0 => Answer::Say(
            json!([
                tool_use("toolu_a", "teleport", json!({})),
                tool_use("toolu_b", "bash", json!("{\"command\": \"rm"))
            ]),
            "max_tokens",
        ),
        _ => done("Sorry."),
    })
    .await;
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    world.idle(&session, 1).await;
    let outcomes = world.payloads(&session, "tool.outcome").await;
    let texts: Vec<_> = outcomes
        .iter()
        .map(|outcome| {
            outcome["content"][0]["text"]
                .as_str()
                .unwrap()
                .split(':')
                .next()
                .unwrap()
        })
        .collect();
    assert_eq!(texts, ["unknown_tool", "input_incomplete"]);
    assert!(
        world.hands.sandboxes(session.as_str()).is_empty(),
        "no sandbox was needed"
    );
}

#[tokio::test]
async fn tool_use_ids_that_a_model_uses_again_never_name_two_calls() {
    let world = World::new(|asked| match asked.depth() {
        0 | 1 => Answer::Say(
            json!([tool_use(
                "call_1",
                "bash",
                json!({"command": asked.depth().to_string()})
            )]),
            "tool_use",
        ),
        _ => done("Done."),
    })
    .await;
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    world.idle(&session, 1).await;
    let outcomes = world.payloads(&session, "tool.outcome").await;
    assert_eq!(outcomes[0]["content"][0]["text"], "ran {\"command\":\"0\"}");
    assert_eq!(outcomes[1]["content"][0]["text"], "ran {\"command\":\"1\"}");
}

#[tokio::test]
async fn an_interrupt_cancels_the_stream_and_the_next_message_starts_a_turn() {
    let world = World::new(|asked| match asked.before {
        0 => Answer::Hang(json!([text("I will never")])),
        _ => done("Here."),
    })
    .await;
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    world
        .until(&session, |event| event.kind == "span.model_request_start")
        .await;
    world.input(&session, "user.interrupt", json!({})).await;
    assert_eq!(world.idle(&session, 1).await["type"], "end_turn");
    assert!(
        !world
            .kinds(&session)
            .await
            .contains(&"agent.message".to_owned())
    );
    world.say(&session, "Again.").await;
    assert_eq!(world.idle(&session, 2).await["type"], "end_turn");
    let last = world.model.asked(session.as_str()).pop().unwrap().body;
    let texts: Vec<_> = last["messages"][0]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|block| block["text"].clone())
        .collect();
    assert_eq!(texts, ["Go.", "Again."]);
}

#[tokio::test]
async fn an_interrupt_stops_running_calls_and_closes_each_with_an_outcome() {
    let world = World::new(|asked| match asked.before {
        0 => Answer::Say(
            json!([
                tool_use("toolu_a", "bash", json!({"command": "hang"})),
                tool_use("toolu_b", "tracker_hang", json!({})),
                tool_use("toolu_c", "write", json!({}))
            ]),
            "tool_use",
        ),
        _ => done("Here."),
    })
    .await;
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    let tools = world.tools.clone();
    let key = format!("{session}/toolu_b");
    within(async {
        while tools.calls(&key) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.say(&session, "Queued before.").await;
    world.input(&session, "user.interrupt", json!({})).await;
    assert_eq!(world.idle(&session, 1).await["type"], "end_turn");
    let outcomes = world.payloads(&session, "tool.outcome").await;
    let mut statuses: Vec<_> = outcomes
        .iter()
        .map(|outcome| {
            (
                outcome["tool_use_id"].as_str().unwrap(),
                outcome["status"].as_str().unwrap(),
            )
        })
        .collect();
    statuses.sort_unstable();
    assert_eq!(
        statuses,
        [
            ("toolu_a", "interrupted"),
            ("toolu_b", "interrupted"),
            ("toolu_c", "interrupted")
        ]
    );
    assert!(
        outcomes
            .iter()
            .any(|outcome| outcome["content"][0]["text"] == "stopped half way"),
        "{outcomes:?}"
    );
    assert!(world.hands.interrupts() >= 1);
    // The message that waited is the next turn.
    assert_eq!(world.idle(&session, 2).await["type"], "end_turn");
    let last = world.model.asked(session.as_str()).pop().unwrap().body;
    let content = last["messages"][2]["content"].as_array().unwrap();
    assert_eq!(
        content
            .iter()
            .map(|block| block["type"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["tool_result", "tool_result", "tool_result", "text"]
    );
}

#[tokio::test]
async fn input_that_comes_while_tools_work_waits_for_the_turns_end() {
    let world = World::new(|asked| match asked.depth() {
        0 => Answer::Say(
            json!([tool_use("toolu_a", "bash", json!({"command": "x"}))]),
            "tool_use",
        ),
        1 => done("First."),
        _ => done("Second."),
    })
    .await;
    let session = world.begin("One.").await;
    // Before any harness runs, so that both are queued; and one more between.
    let wires = Wires::sound();
    let _harness = world.harness("hrn_1", &wires).await;
    world
        .until(&session, |event| event.kind == "tool.intent")
        .await;
    world.say(&session, "Two.").await;
    world
        .until(&session, |event| {
            event.payload["content"][0]["text"] == "Second."
        })
        .await;
    let requests = world.model.asked(session.as_str());
    let roles = |body: &Value| {
        body["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message["content"].as_array().unwrap().len())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        roles(&requests[1].body),
        [1, 1, 1],
        "the tool result stands alone"
    );
    assert_eq!(
        requests[2].body["messages"][4]["content"][0]["text"],
        "Two."
    );
}

#[tokio::test]
async fn a_paused_message_is_sent_back_and_a_refusal_ends_the_turn() {
    let world = World::new(|asked| match asked.before {
        0 => Answer::Say(
            json!([{"type": "server_tool_use", "id": "srvtoolu_1", "name": "web", "input": {}}]),
            "pause_turn",
        ),
        1 => done("Found."),
        _ => Answer::Say(json!([text("No")]), "refusal"),
    })
    .await;
    let session = world.begin("Search.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    assert_eq!(world.idle(&session, 1).await["type"], "end_turn");
    let second = world.model.asked(session.as_str())[1].body["messages"].clone();
    assert_eq!(second[1]["content"][0]["type"], "server_tool_use");
    assert_eq!(second.as_array().unwrap().len(), 2);
    world.say(&session, "Something bad.").await;
    assert_eq!(world.idle(&session, 2).await["type"], "refusal");
}

#[tokio::test]
async fn overload_and_a_break_in_the_stream_are_retried_and_recorded() {
    let overloaded =
        || json!({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}});
    let world = World::new(move |asked| match asked.before {
        0 => Answer::Status(529, vec![("retry-after", "0")], overloaded()),
        1 => Answer::Break(json!([text("Half a")]), overloaded()),
        2 => Answer::Cut(json!([text("Quarter")])),
        3 => Answer::Status(
            429,
            vec![("retry-after-ms", "1")],
            json!({"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}),
        ),
        _ => done("Whole."),
    })
    .await;
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    assert_eq!(world.idle(&session, 1).await["type"], "end_turn");
    let errors = world.payloads(&session, "session.error").await;
    let types: Vec<_> = errors
        .iter()
        .map(|payload| payload["error"]["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        types,
        [
            "model_overloaded_error",
            "model_overloaded_error",
            "model_request_failed_error",
            "model_rate_limited_error"
        ]
    );
    let messages = world.payloads(&session, "agent.message").await;
    assert_eq!(messages, [json!({"content": [text("Whole.")]})]);
    let hashes: std::collections::HashSet<_> = world
        .payloads(&session, "span.model_request_start")
        .await
        .iter()
        .map(|payload| payload["request_hash"].to_string())
        .collect();
    assert_eq!(hashes.len(), 1, "every attempt is the same request");
}

#[tokio::test]
async fn a_request_that_cannot_succeed_ends_the_turn_and_new_input_tries_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let world = World::new(move |asked| {
        counted.fetch_add(1, Ordering::SeqCst);
        match asked.before {
            0 => Answer::Status(400, vec![], json!({"type": "error", "error": {"type": "invalid_request_error", "message": "no such model"}})),
            1..=8 => Answer::Status(503, vec![], json!({"type": "error", "error": {"type": "api_error", "message": "down"}})),
            _ => done("Up."),
        }
    })
    .await;
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    assert_eq!(world.idle(&session, 1).await["type"], "retries_exhausted");
    assert_eq!(count.load(Ordering::SeqCst), 1, "not retried");
    world.say(&session, "Again.").await;
    assert_eq!(world.idle(&session, 2).await["type"], "retries_exhausted");
    assert_eq!(count.load(Ordering::SeqCst), 9);
    world.say(&session, "And again.").await;
    assert_eq!(world.idle(&session, 3).await["type"], "end_turn");
    let errors = world.payloads(&session, "session.error").await;
    let retries: Vec<_> = errors
        .iter()
        .map(|payload| payload["error"]["retry_status"]["type"].as_str().unwrap())
        .collect();
    assert_eq!(retries.first(), Some(&"terminal"));
    assert_eq!(retries.get(1..8).unwrap(), ["retrying"; 7]);
    assert_eq!(retries.get(8..).unwrap(), ["exhausted"]);
}

#[tokio::test]
async fn a_vault_sealed_while_the_session_runs_is_waited_for() {
    let world = World::new(|asked| match asked.before {
        0..=2 => Answer::Status(
            503,
            vec![("x-should-retry", "true")],
            json!({"type": "error", "error": {"type": "api_error", "code": "vault_sealed", "message": "sealed"}}),
        ),
        _ => done("Open."),
    })
    .await;
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    assert_eq!(world.idle(&session, 1).await["type"], "end_turn");
    assert_eq!(
        world.payloads(&session, "session.error").await.len(),
        1,
        "told once"
    );
    assert_eq!(world.model.asked(session.as_str()).len(), 4);
}
