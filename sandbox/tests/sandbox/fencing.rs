//! Epochs and keys: who may act, and that nothing happens twice.

use std::sync::Arc;

use claviger_sandbox::client::HandsClient;
use claviger_sandbox::{Execute, HandsError, Ledger, Resources, SandboxId};
use serde_json::json;
use tokio::net::UnixStream;

use crate::tests;
use crate::world::World;

tests!("fencing":
    a_call_in_flight_survives_its_link_and_runs_once,
    a_caller_fenced_while_it_waits_gets_no_answer_and_the_next_one_does,
    a_finished_key_returns_the_recorded_answer,
    a_key_for_another_call_is_refused,
    a_lower_epoch_is_fenced_for_everything,
    attach_names_the_live_sandboxes,
    concurrent_repeats_run_the_effect_once,
    provision_over_a_lost_link_is_disconnected,
    quota_of_a_session_is_refused,
    requests_beyond_all_bounds_are_refused,
    the_ledger_tells_unknown_running_done,
);

async fn a_finished_key_returns_the_recorded_answer(world: Arc<World>) {
    let held = world.sandbox().await;
    let call = held.call("bash", json!({ "command": "echo x >> log; wc -l < log" }));
    let first = held.client.execute(call.clone()).await;
    assert_eq!(
        first.as_ref().map(claviger_sandbox::Output::text),
        Ok("1\n".to_owned())
    );
    assert_eq!(
        held.client.execute(call).await,
        first,
        "byte for byte, elapsed time included"
    );
    assert_eq!(held.text("wc -l < log").await, "1\n");
    held.destroy().await;
}

async fn concurrent_repeats_run_the_effect_once(world: Arc<World>) {
    let held = world.sandbox().await;
    let call = held.call(
        "bash",
        json!({ "command": "echo x >> log; sleep 0.2; wc -l < log" }),
    );
    let (other, _links) = world.role.client().await;
    let repeats: Vec<_> = (0..20)
        .map(|number| {
            let (client, call) = (
                if number % 2 == 0 {
                    held.client.clone()
                } else {
                    other.clone()
                },
                call.clone(),
            );
            tokio::spawn(async move { client.execute(call).await.map(|output| output.text()) })
        })
        .collect();
    for repeat in repeats {
        assert_eq!(repeat.await.expect("an answer"), Ok("1\n".to_owned()));
    }
    held.destroy().await;
    assert_eq!(
        held.client.execute(call).await.map(|o| o.text()),
        Ok("1\n".to_owned()),
        "the ledger outlives the sandbox"
    );
}

async fn a_key_for_another_call_is_refused(world: Arc<World>) {
    let held = world.sandbox().await;
    let call = held.call("bash", json!({ "command": "echo one" }));
    held.client.execute(call.clone()).await.expect("an answer");
    let other = Execute {
        input: json!({ "command": "echo two" }),
        ..call
    };
    assert!(matches!(
        held.client.execute(other).await,
        Err(HandsError::Refused { .. })
    ));
    held.destroy().await;
}

async fn the_ledger_tells_unknown_running_done(world: Arc<World>) {
    let held = world.sandbox().await;
    let call = held.call(
        "bash",
        json!({ "command": "read -r < /workspace/gate; echo over" }),
    );
    held.text("mkfifo gate").await;
    let ask = async || held.client.result(&held.session, 1, &call.key).await;
    assert_eq!(ask().await, Ok(Ledger::Unknown));
    let running = tokio::spawn({
        let (client, call) = (held.client.clone(), call.clone());
        async move { client.execute(call).await }
    });
    while ask().await == Ok(Ledger::Unknown) {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask().await, Ok(Ledger::Running));
    held.tool("write", json!({ "file_path": "gate", "content": "go\n" }))
        .await;
    let output = running.await.expect("an answer").expect("an output");
    assert_eq!(output.text(), "over\n");
    assert_eq!(ask().await, Ok(Ledger::Done(output)));
    held.destroy().await;
}

async fn a_lower_epoch_is_fenced_for_everything(world: Arc<World>) {
    let held = world.sandbox().await;
    let (client, session, id) = (&held.client, &held.session, &held.id);
    assert_eq!(client.attach(session, 7).await, Ok(vec![id.clone()]));
    let fenced = HandsError::Fenced { epoch: 7 };
    assert_eq!(client.attach(session, 6).await, Err(fenced.clone()));
    assert_eq!(
        client.provision(session, 6, Resources::default()).await,
        Err(fenced.clone())
    );
    let call = held.call(
        "bash",
        json!({ "command": "touch /workspace/by-a-fenced-writer" }),
    );
    assert_eq!(client.execute(call.clone()).await, Err(fenced.clone()));
    assert_eq!(
        client.result(session, 6, &call.key).await,
        Err(fenced.clone())
    );
    assert_eq!(client.interrupt(session, 6, id).await, Err(fenced.clone()));
    assert_eq!(client.destroy(session, 6, id).await, Err(fenced));
    let call = Execute {
        epoch: 7,
        input: json!({ "command": "ls -A /workspace" }),
        ..call
    };
    assert_eq!(
        client.execute(call).await.map(|output| output.text()),
        Ok(String::new())
    );
    assert_eq!(client.destroy(session, 7, id).await, Ok(()));
}

async fn a_caller_fenced_while_it_waits_gets_no_answer_and_the_next_one_does(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("mkfifo gate").await;
    let call = held.call("bash", json!({ "command": "read -r < gate; echo over" }));
    let old = tokio::spawn({
        let (client, call) = (held.client.clone(), call.clone());
        async move { client.execute(call).await }
    });
    while held.client.result(&held.session, 1, &call.key).await == Ok(Ledger::Unknown) {
        tokio::task::yield_now().await;
    }
    held.client
        .attach(&held.session, 2)
        .await
        .expect("attached");
    let new = tokio::spawn({
        let (client, call) = (
            held.client.clone(),
            Execute {
                epoch: 2,
                ..call.clone()
            },
        );
        async move { client.execute(call).await }
    });
    let open = Execute {
        epoch: 2,
        ..held.call("write", json!({ "file_path": "gate", "content": "go\n" }))
    };
    held.client.execute(open).await.expect("an answer");
    assert_eq!(
        new.await.expect("an answer").map(|output| output.text()),
        Ok("over\n".to_owned())
    );
    assert_eq!(
        old.await.expect("an answer"),
        Err(HandsError::Fenced { epoch: 2 })
    );
    held.client
        .destroy(&held.session, 2, &held.id)
        .await
        .expect("destroyed");
}

async fn attach_names_the_live_sandboxes(world: Arc<World>) {
    let session = format!("sesn_{}", world.number());
    assert_eq!(world.client.attach(&session, 1).await, Ok(vec![]));
    let mut made = Vec::new();
    for _ in 0..2 {
        made.push(
            world
                .client
                .provision(&session, 1, Resources::default())
                .await
                .expect("a sandbox"),
        );
    }
    made.sort();
    assert_eq!(world.client.attach(&session, 2).await, Ok(made.clone()));
    for id in &made {
        world
            .client
            .destroy(&session, 2, id)
            .await
            .expect("destroyed");
    }
    assert_eq!(world.client.attach(&session, 3).await, Ok(vec![]));
}

async fn quota_of_a_session_is_refused(world: Arc<World>) {
    let session = format!("sesn_{}", world.number());
    let attempts: Vec<_> = (0..12)
        .map(|_| {
            let (client, session) = (world.client.clone(), session.clone());
            tokio::spawn(async move { client.provision(&session, 1, Resources::default()).await })
        })
        .collect();
    let (mut made, mut refused) = (Vec::<SandboxId>::new(), 0);
    for attempt in attempts {
        match attempt.await.expect("an answer") {
            Ok(id) => made.push(id),
            Err(HandsError::Refused { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(
        (made.len(), refused),
        (8, 4),
        "all at once, and no more than eight"
    );
    for id in &made {
        world
            .client
            .destroy(&session, 1, id)
            .await
            .expect("destroyed");
    }
}

/// A link through a relay that the test can cut.
async fn relayed(
    world: &World,
) -> (
    HandsClient,
    tokio::sync::mpsc::Sender<UnixStream>,
    tokio::task::JoinHandle<()>,
) {
    let (links, arriving) = tokio::sync::mpsc::channel(8);
    let (client, driver) = HandsClient::new(arriving);
    tokio::spawn(driver);
    let (ours, mut near) = UnixStream::pair().expect("a pair");
    let (mut far, theirs) = UnixStream::pair().expect("a pair");
    world
        .role
        .callers
        .send(theirs)
        .await
        .expect("the role runs");
    links.send(ours).await.expect("the client runs");
    let relay = tokio::spawn(async move {
        // Ends when it is cut.
        tokio::io::copy_bidirectional(&mut near, &mut far)
            .await
            .ok();
    });
    (client, links, relay)
}

async fn a_call_in_flight_survives_its_link_and_runs_once(world: Arc<World>) {
    let held = world.sandbox().await;
    held.text("mkfifo gate").await;
    let (client, links, relay) = relayed(&world).await;
    let call = held.call(
        "bash",
        json!({ "command": "echo x >> log; read -r < gate; wc -l < log" }),
    );
    let caller = tokio::spawn({
        let call = call.clone();
        async move { client.execute(call).await }
    });
    while held.client.result(&held.session, 1, &call.key).await == Ok(Ledger::Unknown) {
        tokio::task::yield_now().await;
    }
    relay.abort();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    world
        .role
        .callers
        .send(theirs)
        .await
        .expect("the role runs");
    links.send(ours).await.expect("the client runs");
    held.tool("write", json!({ "file_path": "gate", "content": "go\n" }))
        .await;
    assert_eq!(
        caller.await.expect("an answer").map(|output| output.text()),
        Ok("1\n".to_owned())
    );
    held.destroy().await;
}

async fn provision_over_a_lost_link_is_disconnected(world: Arc<World>) {
    let (links, arriving) = tokio::sync::mpsc::channel(8);
    let (client, driver) = HandsClient::new(arriving);
    tokio::spawn(driver);
    // A peer that takes the request and dies.
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    links.send(ours).await.expect("the client runs");
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.provision("sesn_lost", 1, Resources::default()).await }
    });
    theirs.readable().await.expect("a request");
    drop(theirs);
    assert_eq!(
        asking.await.expect("an answer"),
        Err(HandsError::Disconnected)
    );
    // With no link ever to come, whoever asks is told at once.
    drop(links);
    assert_eq!(client.list().await, Err(HandsError::Disconnected));
    assert!(
        world.client.list().await.is_ok(),
        "others are not concerned"
    );
}

async fn requests_beyond_all_bounds_are_refused(world: Arc<World>) {
    let greedy = Resources {
        limits: claviger_sandbox::Limits {
            disk_bytes: u64::MAX,
            ..Default::default()
        },
        ..Resources::default()
    };
    let refused =
        |result: Result<SandboxId, HandsError>| matches!(result, Err(HandsError::Refused { .. }));
    assert!(refused(
        world.client.provision("sesn_greedy", 1, greedy).await
    ));
    let long = "s".repeat(1000);
    assert!(refused(
        world.client.provision(&long, 1, Resources::default()).await
    ));
    let environment = [("BIG".to_owned(), "x".repeat(1 << 18))].into();
    assert!(refused(
        world
            .client
            .provision(
                "sesn_greedy",
                1,
                Resources {
                    environment,
                    ..Resources::default()
                }
            )
            .await
    ));
    let held = world.sandbox().await;
    let call = Execute {
        key: "k".repeat(1000),
        ..held.call("bash", json!({ "command": "true" }))
    };
    assert!(matches!(
        held.client.execute(call).await,
        Err(HandsError::Refused { .. })
    ));
    let call = held.call(
        "write",
        json!({ "file_path": "f", "content": "x".repeat(33 << 20) }),
    );
    assert!(
        matches!(
            held.client.execute(call).await,
            Err(HandsError::Refused { .. })
        ),
        "longer than a frame"
    );
    assert_eq!(held.text("echo fine").await, "fine\n");
    held.destroy().await;
}
