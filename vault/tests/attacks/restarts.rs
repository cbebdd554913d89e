//! The vault goes away and comes back: nothing acknowledged is lost, nothing void becomes valid.

use claviger_vault_protocol::usage::{RecordOutcome, UseStatus};
use serde_json::Value;

use crate::fixture::{SECRET, World, a_use, accept, code, open_session};

#[tokio::test]
async fn a_live_opening_survives_and_a_use_still_works() {
    let world = World::new().await;
    let (opening, instance, tools) = world.live().await;
    drop(tools);
    let world = world.restart().await;
    let tools = world.running.tools("tools", &instance).await;
    let authorized = tools
        .client
        .authorize_use(&a_use(&opening, "r1"))
        .await
        .unwrap();
    assert_eq!(
        world
            .spend(&instance, &opening, "tracker", &authorized)
            .unwrap(),
        SECRET.as_bytes()
    );
    // Another instance in its place has to accept first.
    drop(tools);
    let stranger = crate::fixture::Instance::new("tools_2");
    let tools = world.running.tools("tools", &stranger).await;
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r2")).await),
        "opening_not_accepted"
    );
}

#[tokio::test]
async fn an_instance_that_takes_anothers_name_after_a_restart_gets_nothing() {
    let world = World::new().await;
    let (opening, instance, tools) = world.live().await;
    drop(tools);
    let world = world.restart().await;
    let impostor = crate::fixture::Instance::new(&instance.name);
    let tools = world.running.tools("tools", &impostor).await;
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r1")).await),
        "opening_not_accepted"
    );
}

#[tokio::test]
async fn an_opening_keeps_its_bytes_for_its_harness_over_a_restart() {
    let world = World::new().await;
    let harness = world.running.harness("harness-1").await;
    let opening = harness
        .client
        .open_session(&open_session(1, "hrn_1"))
        .await
        .unwrap();
    drop(harness);
    let world = world.restart().await;
    let other = world.running.harness("harness-2").await;
    assert_eq!(
        code(other.client.open_session(&open_session(1, "hrn_1")).await),
        "already_open"
    );
    let harness = world.running.harness("harness-1").await;
    assert_eq!(
        harness
            .client
            .open_session(&open_session(1, "hrn_1"))
            .await
            .unwrap(),
        opening
    );
    let world = world;
    world.home.clock.pass(60_000);
    let world = world.restart().await;
    let tools = world
        .running
        .tools("tools", &crate::fixture::Instance::new("tools_1"))
        .await;
    assert_eq!(
        code(tools.client.accept(&accept(&opening)).await),
        "opening_void"
    );
}

#[tokio::test]
async fn a_crash_leaves_an_unknown_outcome_and_loses_no_acknowledged_change() {
    let world = World::new().await;
    let (opening, instance, tools) = world.live().await;
    let authorized = tools
        .client
        .authorize_use(&a_use(&opening, "r1"))
        .await
        .unwrap();
    drop(tools);
    let World {
        home,
        running,
        admin,
        api,
        made,
        vault_key,
        principal,
        tracker,
        model,
    } = world;
    drop((admin, api));
    running.crash().await;
    let running = home.start();
    let (admin, api) = (running.admin().await, running.api().await);
    let world = World {
        home,
        running,
        admin,
        api,
        made,
        vault_key,
        principal,
        tracker,
        model,
    };
    let records = world.records().await;
    let is_unknown =
        |record: &&Value| record["outcome"] == "unknown" && record["ref"] == authorized.audit_seq;
    assert_eq!(records.iter().filter(is_unknown).count(), 1);
    for (position, record) in records.iter().enumerate() {
        assert_eq!(
            record["seq"],
            position + 1,
            "no record is missing or doubled"
        );
    }
    let inits = records
        .iter()
        .filter(|record| record["op"] == "init")
        .count();
    let puts = records
        .iter()
        .filter(|record| record["op"] == "put")
        .count();
    assert_eq!((inits, puts), (1, 2));
    // The instance that did the use may still tell how it ended.
    let tools = world.running.tools("tools", &instance).await;
    let outcome = RecordOutcome {
        use_id: authorized.use_id,
        status: UseStatus::Ok,
        http_status: 200,
        bytes: 1,
        scrubbed: 0,
        reason: None,
    };
    tools.client.record_outcome(&outcome).await.unwrap();
    tools
        .client
        .authorize_use(&a_use(&opening, "r2"))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_log_verifies_after_restarts_and_uses() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    tools
        .client
        .authorize_use(&a_use(&opening, "r1"))
        .await
        .unwrap();
    drop(tools);
    let world = world.restart().await;
    let World {
        home,
        running,
        admin,
        api,
        made,
        ..
    } = world;
    drop((admin, api));
    running.stop().await.unwrap();
    let options = claviger_vault::audit::VerifyOptions {
        vkey: Some(made.audit_vkey.parse().unwrap()),
        expected_head: None,
        since: None,
    };
    let verdict = claviger_vault::audit::verify(&home.vault().join("audit"), &options).unwrap();
    assert!(verdict.is_ok(), "{verdict:?}");
}
