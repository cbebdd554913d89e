//! Rule 2: opened once, accepted once, the newest epoch only.

use claviger_vault_protocol::opening::{EndOpening, OpenSeat};
use claviger_vault_protocol::{Opening, OpeningId, Principal};

use crate::fixture::{
    Instance, SECRET, SESSION, World, a_use, accept, charter, code, open_session, rotate,
};
use claviger_vault::clock::Clock as _;

#[tokio::test]
async fn the_same_instance_gets_the_same_bytes_until_tools_accepted() {
    let world = World::new().await;
    let harness = world.running.harness("harness-1").await;
    let first = harness
        .client
        .open_session(&open_session(1, "hrn_1"))
        .await
        .unwrap();
    let again = harness
        .client
        .open_session(&open_session(1, "hrn_1"))
        .await
        .unwrap();
    assert_eq!(first, again);
    let tools = world
        .running
        .tools("tools", &Instance::new("tools_1"))
        .await;
    tools.client.accept(&accept(&first)).await.unwrap();
    assert_eq!(
        code(harness.client.open_session(&open_session(1, "hrn_1")).await),
        "already_open"
    );
}

#[tokio::test]
async fn a_second_opening_by_anyone_else_is_refused_and_flagged() {
    let world = World::new().await;
    let first = world.running.harness("harness-1").await;
    first
        .client
        .open_session(&open_session(1, "hrn_1"))
        .await
        .unwrap();
    // Another process, with its own name and with the first one's.
    let second = world.running.harness("harness-2").await;
    assert_eq!(
        code(second.client.open_session(&open_session(1, "hrn_1")).await),
        "already_open"
    );
    let third = world.running.harness("harness-1").await;
    assert_eq!(
        code(third.client.open_session(&open_session(1, "hrn_3")).await),
        "already_open"
    );
    // The same process with another request.
    let mut other = open_session(1, "hrn_1");
    other.head.0 += 1;
    assert_eq!(
        code(first.client.open_session(&other).await),
        "already_open"
    );
    let flags = world
        .records()
        .await
        .into_iter()
        .filter(|record| record["op"] == "flag")
        .count();
    assert_eq!(flags, 3);
}

#[tokio::test]
async fn an_opening_that_nobody_accepts_is_void_with_its_epoch() {
    let world = World::new().await;
    let harness = world.running.harness("harness-1").await;
    let opening = harness
        .client
        .open_session(&open_session(1, "hrn_1"))
        .await
        .unwrap();
    world.home.clock.pass(60_000);
    let tools = world
        .running
        .tools("tools", &Instance::new("tools_1"))
        .await;
    assert_eq!(
        code(tools.client.accept(&accept(&opening)).await),
        "opening_void"
    );
    assert_eq!(
        code(harness.client.open_session(&open_session(1, "hrn_1")).await),
        "opening_void"
    );
    let opening = harness
        .client
        .open_session(&open_session(2, "hrn_1"))
        .await
        .unwrap();
    tools.client.accept(&accept(&opening)).await.unwrap();
}

#[tokio::test]
async fn only_a_greater_epoch_by_a_bounded_step_opens() {
    let world = World::new().await;
    let harness = world.running.harness("harness-1").await;
    assert_eq!(
        code(harness.client.open_session(&open_session(0, "hrn_1")).await),
        "malformed_request"
    );
    assert_eq!(
        code(
            harness
                .client
                .open_session(&open_session(1_001, "hrn_1"))
                .await
        ),
        "epoch_step_too_large"
    );
    harness
        .client
        .open_session(&open_session(1_000, "hrn_1"))
        .await
        .unwrap();
    assert_eq!(
        code(
            harness
                .client
                .open_session(&open_session(999, "hrn_1"))
                .await
        ),
        "epoch_stale"
    );
    assert_eq!(
        code(
            harness
                .client
                .open_session(&open_session(u64::MAX, "hrn_1"))
                .await
        ),
        "epoch_step_too_large"
    );
    let records = world.records().await;
    let opened = records
        .iter()
        .find(|record| record["op"] == "open_session" && record["decision"] == "allow")
        .unwrap();
    assert_eq!(opened["reason_code"], "999_epochs_void");
    assert_eq!(opened["count"], 7, "the session log's head is witnessed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_hundred_accepts_at_once_one_wins() {
    let world = World::new().await;
    let harness = world.running.harness("harness-1").await;
    let opening = harness
        .client
        .open_session(&open_session(1, "hrn_1"))
        .await
        .unwrap();
    let tools = world
        .running
        .tools("tools", &Instance::new("tools_1"))
        .await;
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (client, query) = (tools.client.clone(), accept(&opening));
        attempts.spawn(async move { client.accept(&query).await });
    }
    let results = attempts.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(
        results
            .into_iter()
            .filter_map(Result::err)
            .all(|error| error.code() == "already_accepted")
    );
}

#[tokio::test]
async fn two_tools_instances_cannot_both_have_an_opening() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    let intruder = world
        .running
        .tools("tools-2", &Instance::new("tools_2"))
        .await;
    assert_eq!(
        code(intruder.client.accept(&accept(&opening)).await),
        "already_accepted"
    );
    assert_eq!(
        code(intruder.client.authorize_use(&a_use(&opening, "r1")).await),
        "opening_not_accepted"
    );
    tools
        .client
        .authorize_use(&a_use(&opening, "r1"))
        .await
        .unwrap();
}

#[tokio::test]
async fn after_a_tools_restart_the_presented_opening_is_accepted_with_the_newest_versions() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    world
        .admin
        .client
        .rotate(&rotate(
            world.vault_key,
            &world.tracker.id,
            "the-second-secret",
        ))
        .await
        .unwrap();
    drop(tools);
    let instance = Instance::new("tools_2");
    let tools = world.running.tools("tools", &instance).await;
    let accepted = tools.client.accept(&accept(&opening)).await.unwrap();
    let envelope = accepted
        .grants
        .iter()
        .find(|envelope| envelope.name == "tracker")
        .unwrap();
    assert_eq!(envelope.version, 2);
    assert_eq!(
        code(tools.client.accept(&accept(&opening)).await),
        "already_accepted"
    );
    let authorized = tools
        .client
        .authorize_use(&a_use(&accepted, "r1"))
        .await
        .unwrap();
    assert_eq!(
        authorized.ciphertext, None,
        "the accepted ciphertext is the newest"
    );
    assert_eq!(
        world
            .spend(&instance, &accepted, "tracker", &authorized)
            .unwrap(),
        b"the-second-secret"
    );
}

#[tokio::test]
async fn a_replaced_tools_process_is_no_longer_registered() {
    let world = World::new().await;
    let (opening, _, old) = world.live().await;
    let new = world
        .running
        .tools("tools", &Instance::new("tools_2"))
        .await;
    assert_eq!(
        code(old.client.authorize_use(&a_use(&opening, "r1")).await),
        "not_registered"
    );
    new.client.accept(&accept(&opening)).await.unwrap();
}

#[tokio::test]
async fn nobody_registers_under_the_name_of_a_live_instance() {
    let world = World::new().await;
    let (_, instance, _tools) = world.live().await;
    let intruder = world.running.tools_unregistered("tools-2").await;
    let mut query = serde_json::json!({"instance": instance.name});
    query["key"] = claviger_vault_protocol::KeyPair::generate()
        .unwrap()
        .public()
        .to_string()
        .into();
    assert_eq!(
        code(intruder.raw("register_tools", query).await),
        "malformed_request"
    );
    assert_eq!(
        code(intruder.raw("list_permits", serde_json::json!({})).await),
        "not_registered"
    );
}

#[tokio::test]
async fn a_newer_epoch_fences_the_older_one() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    tools
        .client
        .authorize_use(&a_use(&opening, "r1"))
        .await
        .unwrap();
    let harness = world.running.harness("harness-2").await;
    let newer = harness
        .client
        .open_session(&open_session(2, "hrn_2"))
        .await
        .unwrap();
    let placeholders = |opening: &Opening| -> Vec<String> {
        let grants = opening.grants.iter();
        grants.map(|grant| grant.placeholder.clone()).collect()
    };
    assert_eq!(
        placeholders(&opening),
        placeholders(&newer),
        "a sandbox outlives an epoch, and so does what it holds"
    );
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r2")).await),
        "epoch_stale"
    );
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r1")).await),
        "epoch_stale",
        "nor by a repeat"
    );
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&newer, "r3")).await),
        "opening_not_accepted"
    );
    // The old grant under the new epoch, and the other way round.
    let mut mixed = a_use(&opening, "r4");
    mixed.epoch = 2;
    assert_eq!(
        code(tools.client.authorize_use(&mixed).await),
        "opening_not_accepted"
    );
    tools.client.accept(&accept(&newer)).await.unwrap();
    mixed.request_id = "r5".to_owned();
    assert_eq!(
        code(tools.client.authorize_use(&mixed).await),
        "grant_not_found"
    );
}

#[tokio::test]
async fn only_its_own_harness_ends_an_opening() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    let end = EndOpening {
        session: SESSION.to_owned(),
        epoch: 1,
        head: None,
    };
    let other = world.running.harness("harness-2").await;
    assert_eq!(
        code(other.client.end_opening(&end).await),
        "opening_not_found"
    );
    assert_eq!(
        code(tools.client.end_opening(&end).await),
        "opening_not_found"
    );
    let own = world.running.harness("harness-1").await;
    own.client.end_opening(&end).await.unwrap();
    own.client.end_opening(&end).await.unwrap();
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r1")).await),
        "opening_void"
    );
    assert_eq!(
        code(tools.client.accept(&accept(&opening)).await),
        "opening_void"
    );
}

#[tokio::test]
async fn an_opening_is_accepted_only_under_its_own_names() {
    let world = World::new().await;
    let harness = world.running.harness("harness-1").await;
    let opening = harness
        .client
        .open_session(&open_session(1, "hrn_1"))
        .await
        .unwrap();
    let tools = world
        .running
        .tools("tools", &Instance::new("tools_1"))
        .await;
    let mut wrong = accept(&opening);
    wrong.opening = OpeningId::from("open_other");
    assert_eq!(code(tools.client.accept(&wrong).await), "opening_not_found");
    let mut wrong = accept(&opening);
    wrong.session = "sesn_2".to_owned();
    assert_eq!(code(tools.client.accept(&wrong).await), "opening_not_found");
    let mut wrong = accept(&opening);
    wrong.epoch = 2;
    assert_eq!(code(tools.client.accept(&wrong).await), "opening_not_found");
    tools.client.accept(&accept(&opening)).await.unwrap();
}

#[tokio::test]
async fn a_session_without_a_charter_and_one_whose_charter_ran_out_do_not_open() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    let harness = world.running.harness("harness-1").await;
    let mut unknown = open_session(1, "hrn_1");
    unknown.session = "sesn_unknown".to_owned();
    assert_eq!(
        code(harness.client.open_session(&unknown).await),
        "charter_not_found"
    );
    world.home.clock.pass(3_600_000);
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r1")).await),
        "charter_expired"
    );
    assert_eq!(
        code(harness.client.open_session(&open_session(2, "hrn_1")).await),
        "charter_expired"
    );
}

#[tokio::test]
async fn a_seat_serves_its_principal_and_dies_with_its_tools_instance() {
    let world = World::new().await;
    let instance = Instance::new("tools_1");
    let tools = world.running.tools("tools", &instance).await;
    let seat = |principal: &Principal| OpenSeat {
        principal: principal.clone(),
        client: "desktop 1.0".to_owned(),
    };
    let opening = tools
        .client
        .open_seat(&seat(&world.principal))
        .await
        .unwrap();
    assert!(opening.session.starts_with("seat_") && opening.model_grant.is_none());
    assert_eq!(opening.grants.len(), 1);
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
    // A principal without a permit sits down to nothing; one that does not exist gets no seat.
    let stranger = tools
        .client
        .open_seat(&seat(&Principal::operator(4242)))
        .await
        .unwrap();
    assert!(stranger.grants.is_empty());
    assert_eq!(
        code(
            tools
                .client
                .open_seat(&seat(&Principal::key("key_unknown")))
                .await
        ),
        "principal_not_permitted"
    );
    // A seat has no gateway, and nobody opens or accepts it as a session.
    let mut egress = a_use(&opening, "r2");
    egress.tool = "egress".to_owned();
    assert_eq!(
        code(tools.client.authorize_use(&egress).await),
        "tool_not_permitted"
    );
    assert_eq!(
        code(tools.client.accept(&accept(&opening)).await),
        "opening_not_found"
    );
    drop(tools);
    let tools = world
        .running
        .tools("tools", &Instance::new("tools_2"))
        .await;
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r3")).await),
        "opening_not_found"
    );
}

#[tokio::test]
async fn a_seat_is_renewed_by_use_and_ends_without() {
    let world = World::new().await;
    let tools = world
        .running
        .tools("tools", &Instance::new("tools_1"))
        .await;
    let seat = OpenSeat {
        principal: world.principal.clone(),
        client: String::new(),
    };
    let opening = tools.client.open_seat(&seat).await.unwrap();
    for number in 0..3 {
        world.home.clock.pass(3_000_000);
        tools
            .client
            .authorize_use(&a_use(&opening, &format!("r{number}")))
            .await
            .unwrap();
    }
    world.home.clock.pass(3_600_000);
    let refused = code(tools.client.authorize_use(&a_use(&opening, "r9")).await);
    // The books may have been kept in between.
    assert!(
        ["charter_expired", "opening_not_found"].contains(&refused.as_str()),
        "{refused}"
    );
}

#[tokio::test]
async fn a_charter_can_be_repeated_and_not_be_taken_over() {
    let world = World::new().await;
    let now = world.home.clock.wall_ms();
    world
        .api
        .client
        .register_charter(&charter(SESSION, &world.principal, now))
        .await
        .unwrap();
    let foreign = charter(SESSION, &Principal::operator(1), now);
    assert_eq!(
        code(world.api.client.register_charter(&foreign).await),
        "principal_not_permitted"
    );
    let unknown = charter("sesn_2", &Principal::key("key_unknown"), now);
    assert_eq!(
        code(world.api.client.register_charter(&unknown).await),
        "principal_not_permitted"
    );
    let mut system = charter("sesn_2", &world.principal, now);
    system.vaults = vec!["vlt_system".to_owned()];
    assert_eq!(
        code(world.api.client.register_charter(&system).await),
        "principal_not_permitted"
    );
}
