//! What a wake makes of what others lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use claviger_session::NewEvent;
use serde_json::json;

use super::model::{Answer, text, tool_use};
use super::world::{Flow, LEASE_MS, Wires, World, within};

fn done(say: &str) -> Answer {
    Answer::Say(json!([text(say)]), "end_turn")
}

#[tokio::test]
async fn a_call_that_may_have_had_its_effect_is_told_as_unknown_and_not_repeated() {
    let world = World::new(|asked| match asked.depth() {
        0 => Answer::Say(
            json!([tool_use("toolu_a", "tracker_hang", json!({}))]),
            "tool_use",
        ),
        _ => done("I will check."),
    })
    .await;
    let session = world.begin("Create.").await;
    let first = world.harness("hrn_1", &Wires::sound()).await;
    let key = format!("{session}/toolu_a");
    within(async {
        while world.tools.calls(&key) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    first.kill().await;
    let _second = world.harness("hrn_2", &Wires::sound()).await;
    assert_eq!(world.idle(&session, 1).await["type"], "end_turn");
    assert_eq!(world.tools.calls(&key), 1);
    let outcomes = world.payloads(&session, "tool.outcome").await;
    assert_eq!(outcomes[0]["status"], "unknown");
    assert!(
        outcomes[0]["content"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with("outcome_unknown")
    );
}

#[tokio::test]
async fn the_end_of_a_session_is_the_end_of_its_sandbox_and_nothing_wakes_it_again() {
    let world = World::new(|asked| match asked.depth() {
        0 => Answer::Say(
            json!([tool_use("toolu_a", "bash", json!({"command": "x"}))]),
            "tool_use",
        ),
        _ => done("Done."),
    })
    .await;
    let (ending, going_on) = (world.begin("One.").await, world.begin("Two.").await);
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    for session in [&ending, &going_on] {
        world.idle(session, 1).await;
        assert_eq!(world.hands.sandboxes(session.as_str()).len(), 1);
    }
    let (head, epoch) = within(async {
        loop {
            let (head, _, epoch) = world.store.head(&ending).await.unwrap();
            let end = NewEvent::new("session.status_terminated", json!({"handled_seq": head}));
            // The harness may still be writing under its lease.
            if world
                .store
                .append(&ending, head, epoch, vec![end])
                .await
                .is_ok()
            {
                break (head, epoch);
            }
        }
    })
    .await;
    // Said by somebody who had not heard of the end.
    world.say(&ending, "One more.").await;
    within(async {
        while !world.hands.sandboxes(ending.as_str()).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A turn of another session shows that work is still given out, and none of it is of the ended one.
    world.say(&going_on, "Again.").await;
    world.idle(&going_on, 2).await;
    assert_eq!(world.hands.sandboxes(going_on.as_str()).len(), 1);
    let (seq, _, newest) = world.store.head(&ending).await.unwrap();
    assert_eq!((seq, newest), (head + 2, epoch));
}

#[tokio::test]
async fn a_lost_sandbox_is_an_error_that_the_model_reads_and_the_next_call_gets_a_new_one() {
    let world = World::new(|asked| match asked.depth() {
        0 => Answer::Say(
            json!([tool_use("toolu_a", "bash", json!({"command": "hang"}))]),
            "tool_use",
        ),
        1 => Answer::Say(
            json!([tool_use("toolu_b", "bash", json!({"command": "again"}))]),
            "tool_use",
        ),
        _ => done("Done."),
    })
    .await;
    let session = world.begin("Go.").await;
    let first = world.harness("hrn_1", &Wires::sound()).await;
    let key = format!("{session}/toolu_a");
    within(async {
        while world.hands.runs(&key) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    first.kill().await;
    world.hands.die();
    let _second = world.harness("hrn_2", &Wires::sound()).await;
    assert_eq!(world.idle(&session, 1).await["type"], "end_turn");
    let outcomes = world.payloads(&session, "tool.outcome").await;
    assert_eq!(
        (
            outcomes[0]["status"].as_str(),
            outcomes[1]["status"].as_str()
        ),
        (Some("lost"), Some("ok"))
    );
    assert!(
        outcomes[0]["content"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with("sandbox_lost")
    );
    assert_eq!(world.hands.runs(&key), 1, "the lost call was not repeated");
    assert_eq!(world.payloads(&session, "hand.provisioned").await.len(), 2);
    assert_eq!(world.payloads(&session, "hand.lost").await.len(), 1);
}

#[tokio::test]
async fn a_sandbox_lost_between_turns_is_told_with_the_next_result() {
    let world = World::new(|asked| match asked.depth() {
        0 => Answer::Say(
            json!([tool_use("toolu_a", "bash", json!({"command": "1"}))]),
            "tool_use",
        ),
        2 => Answer::Say(
            json!([tool_use("toolu_b", "bash", json!({"command": "2"}))]),
            "tool_use",
        ),
        _ => done("Done."),
    })
    .await;
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    world.idle(&session, 1).await;
    within(async {
        while world.vault.ended.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.hands.die();
    world.say(&session, "More.").await;
    world.idle(&session, 2).await;
    let outcomes = world.payloads(&session, "tool.outcome").await;
    assert!(
        outcomes[1]["content"][0]["text"]
            .as_str()
            .unwrap()
            .contains("was lost"),
        "{outcomes:?}"
    );
    assert_eq!(outcomes[1]["content"][1]["text"], "ran {\"command\":\"2\"}");
}

#[tokio::test]
async fn a_sealed_vault_makes_the_session_wait_and_nothing_is_lost() {
    let world = World::new(|_| done("At last.")).await;
    *world.vault.refusal.lock().unwrap() = Some("vault_sealed");
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    world
        .until(&session, |event| event.kind == "session.status_rescheduled")
        .await;
    assert!(world.model.asked(session.as_str()).is_empty());
    *world.vault.refusal.lock().unwrap() = None;
    assert_eq!(world.idle(&session, 1).await["type"], "end_turn");
    let errors = world.payloads(&session, "session.error").await;
    assert!(
        errors[0]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("vault_sealed")
    );
}

#[tokio::test]
async fn a_session_that_the_vault_refuses_ends_idle_with_the_reason() {
    let world = World::new(|_| done("Never.")).await;
    *world.vault.refusal.lock().unwrap() = Some("charter_expired");
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    assert_eq!(world.idle(&session, 1).await["type"], "retries_exhausted");
    let errors = world.payloads(&session, "session.error").await;
    assert!(
        errors[0]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("charter_expired")
    );
    assert!(world.model.asked(session.as_str()).is_empty());
}

#[tokio::test]
async fn tools_that_restart_are_presented_to_again() {
    let is_back = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&is_back);
    let world = World::new(
        move |asked| match (asked.depth(), gate.load(Ordering::SeqCst)) {
            (0, false) => Answer::Hang(json!([text("...")])),
            (0, true) => Answer::Say(
                json!([tool_use("toolu_a", "tracker_create", json!({}))]),
                "tool_use",
            ),
            _ => done("Created."),
        },
    )
    .await;
    let session = world.begin("Go.").await;
    let harness = world.harness("hrn_1", &Wires::sound()).await;
    world
        .until(&session, |event| event.kind == "span.model_request_start")
        .await;
    world.tools.forget();
    world.relink_tools(&harness).await;
    within(async {
        while !world.tools.knows(session.as_str(), 1) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(world.tools.presents(), 2);
    // Forgotten once more, without a new link: found out by the refused call.
    world.tools.forget();
    is_back.store(true, Ordering::SeqCst);
    world.input(&session, "user.interrupt", json!({})).await;
    world.say(&session, "Now.").await;
    world
        .until(&session, |event| event.kind == "agent.message")
        .await;
    assert_eq!(world.tools.calls(&format!("{session}/toolu_a")), 1);
    assert_eq!(
        world.payloads(&session, "tool.outcome").await[0]["status"],
        "ok"
    );
}

#[tokio::test]
async fn a_harness_that_was_taken_over_while_the_model_spoke_neither_writes_nor_executes() {
    let world = World::new(|asked| match (asked.depth(), asked.epoch) {
        (0, 1) => Answer::Say(
            json!([tool_use(
                "toolu_x",
                "bash",
                json!({"command": "from the grave"})
            )]),
            "tool_use",
        ),
        _ => done("By the second."),
    })
    .await;
    let session = world.begin("Go.").await;
    // Everything stops once the first request is on its way; the answer is held.
    let wires = Wires::sound();
    let first = world.harness("hrn_1", &wires).await;
    world
        .until(&session, |event| event.kind == "session.status_running")
        .await;
    wires.set(Flow::Held);
    tokio::time::sleep(std::time::Duration::from_millis(LEASE_MS)).await;
    let before = world.events(&session).await.len();
    let took_over = world
        .kinds(&session)
        .await
        .iter()
        .any(|kind| kind == "tool.intent");
    let _second = world.harness("hrn_2", &Wires::sound()).await;
    world.idle(&session, 1).await;
    wires.set(Flow::Passing);
    first.stop.cancel();
    within(first.task).await.unwrap().unwrap();
    let events = world.events(&session).await;
    assert!(
        events.iter().skip(before).all(|event| event.epoch != 1),
        "nothing after the fence"
    );
    if !took_over {
        assert_eq!(world.hands.runs(&format!("{session}/toolu_x")), 0);
    }
}
