//! Harnesses that die, or sleep and come back, at every message of any link.

use serde_json::{Value, json};

use super::model::{Answer, Asked, text, tool_use};
use super::world::{Flow, Wires, World, transcript, within};

/// Two rounds of calls at both hands, then an end; what it says depends on the conversation only.
fn script(asked: &Asked) -> Answer {
    match asked.depth() {
        0 => Answer::Say(
            json!([
                text("First."),
                tool_use("toolu_a", "bash", json!({"command": "a"})),
                tool_use("toolu_b", "read", json!({"file_path": "b"})),
                tool_use("toolu_c", "tracker_list", json!({"c": 1}))
            ]),
            "tool_use",
        ),
        1 => Answer::Say(
            json!([tool_use("toolu_d", "bash", json!({"command": "d"}))]),
            "tool_use",
        ),
        _ => Answer::Say(json!([text("Done.")]), "end_turn"),
    }
}

const SANDBOX_CALLS: [&str; 3] = ["toolu_a", "toolu_b", "toolu_d"];

/// The transcript of a run that nothing disturbs, and how many messages it takes.
async fn undisturbed(world: &World) -> (Value, i64) {
    let session = world.begin("Go.").await;
    let wires = Wires::new(1_000_000, Flow::Cut);
    let harness = world.harness("hrn_calm", &wires).await;
    assert_eq!(world.idle(&session, 1).await, json!({"type": "end_turn"}));
    harness.stop.cancel();
    within(harness.task).await.unwrap().unwrap();
    (
        transcript(&world.events(&session).await),
        wires.passed(1_000_000),
    )
}

fn assert_effects_once(world: &World, session: &claviger_session::SessionId, at: i64) {
    for call in SANDBOX_CALLS {
        assert_eq!(
            world.hands.runs(&format!("{session}/{call}")),
            1,
            "{call} with the fault at message {at}"
        );
    }
    let reads = world.tools.calls(&format!("{session}/toolu_c"));
    assert!(
        (1..=2).contains(&reads),
        "a read-only call may be repeated once, with the fault at message {at}"
    );
    assert_eq!(
        world.hands.sandboxes(session.as_str()).len(),
        1,
        "with the fault at message {at}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_message_the_next_harness_ends_with_the_same_transcript() {
    let world = World::new(script).await;
    let (expected, messages) = undisturbed(&world).await;
    assert!(
        messages > 40,
        "the sweep has something to sweep: {messages}"
    );
    for at in 1..=messages {
        let session = world.begin("Go.").await;
        let wires = Wires::new(at, Flow::Cut);
        let first = world.harness(&format!("hrn_a{at}"), &wires).await;
        // Late messages are renewals: the turn may end before.
        tokio::select! {
            () = wires.reached() => {}
            _ = world.idle(&session, 1) => {}
        }
        first.kill().await;
        let second = world.harness(&format!("hrn_b{at}"), &Wires::sound()).await;
        assert_eq!(
            world.idle(&session, 1).await,
            json!({"type": "end_turn"}),
            "message {at}"
        );
        let events = world.events(&session).await;
        assert_eq!(transcript(&events), expected, "message {at}");
        assert_effects_once(&world, &session, at);
        second.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asleep_at_any_message_and_fenced_meanwhile_a_harness_changes_nothing_when_it_comes_back() {
    let world = World::new(script).await;
    let (expected, messages) = undisturbed(&world).await;
    for at in (1..=messages).step_by(3) {
        let session = world.begin("Go.").await;
        let wires = Wires::new(at, Flow::Held);
        let first = world.harness(&format!("hrn_a{at}"), &wires).await;
        tokio::select! {
            () = wires.reached() => {}
            _ = world.idle(&session, 1) => {}
        }
        let second = world.harness(&format!("hrn_b{at}"), &Wires::sound()).await;
        world.idle(&session, 1).await;
        // Ended and given back by the second; whatever the first does now comes too late.
        second.stop.cancel();
        within(second.task).await.unwrap().unwrap();
        wires.set(Flow::Passing);
        first.stop.cancel();
        within(first.task).await.unwrap().unwrap();

        let events = world.events(&session).await;
        assert!(
            events
                .iter()
                .filter(|event| event.epoch > 0)
                .map(|event| event.epoch)
                .is_sorted(),
            "message {at}"
        );
        assert_eq!(transcript(&events), expected, "message {at}");
        assert_effects_once(&world, &session, at);
    }
}
