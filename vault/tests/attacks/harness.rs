//! A harness that was taken over: what can it ask for?

use serde_json::json;

use crate::fixture::{World, code, open_session};

#[tokio::test]
async fn a_harness_has_no_verb_but_its_two() {
    let world = World::new().await;
    let harness = world.running.harness("harness-1").await;
    for verb in [
        "status",
        "init",
        "unseal",
        "seal",
        "put",
        "rotate",
        "archive",
        "delete",
        "list",
        "show",
        "permit_tool",
        "revoke_tool",
        "list_permits",
        "create_key",
        "read_audit",
        "scan",
        "register_charter",
        "authenticate_key",
        "register_tools",
        "accept",
        "open_seat",
        "authorize_use",
        "record_outcome",
        "report",
        "release",
        "get",
    ] {
        assert_eq!(
            code(harness.raw(verb, json!({})).await),
            "unknown_verb",
            "{verb}"
        );
    }
}

#[tokio::test]
async fn no_connection_has_the_verbs_of_another_role() {
    let world = World::new().await;
    let tools = world
        .running
        .tools("tools", &crate::fixture::Instance::new("tools_1"))
        .await;
    for verb in [
        "put",
        "permit_tool",
        "open_session",
        "register_charter",
        "create_key",
        "read_audit",
        "unseal",
        "seal",
    ] {
        assert_eq!(
            code(tools.raw(verb, json!({})).await),
            "unknown_verb",
            "tools: {verb}"
        );
    }
    for verb in [
        "permit_tool",
        "create_key",
        "read_audit",
        "unseal",
        "seal",
        "init",
        "accept",
        "authorize_use",
        "scan",
    ] {
        assert_eq!(
            code(world.api.raw(verb, json!({})).await),
            "unknown_verb",
            "api: {verb}"
        );
    }
    for verb in [
        "accept",
        "authorize_use",
        "open_session",
        "register_tools",
        "register_charter",
        "scan",
    ] {
        assert_eq!(
            code(world.admin.raw(verb, json!({})).await),
            "unknown_verb",
            "admin: {verb}"
        );
    }
}

#[tokio::test]
async fn what_a_harness_carries_does_not_open_and_names_no_recipient() {
    let world = World::new().await;
    let harness = world.running.harness("harness-1").await;
    // A recipient in the request is not a field of it; nothing of the answer changes.
    let mut query = serde_json::to_value(open_session(1, "hrn_1")).unwrap();
    let own = claviger_vault_protocol::KeyPair::generate().unwrap();
    query["key"] = own.public().to_string().into();
    query["recipient"] = own.public().to_string().into();
    let answer = harness.raw("open_session", query).await.unwrap();
    let text = answer.to_string();
    assert!(!text.contains(&own.public().to_string()));
    assert!(!text.contains("release") && !text.contains("\"key\""));
    let grants = answer["grants"].as_array().unwrap();
    assert_eq!(grants.len(), 2);
    for grant in grants {
        assert!(grant["placeholder"].as_str().unwrap().starts_with("clvp_"));
        assert!(grant["ciphertext"].as_str().unwrap().len() > 40);
    }
}

#[tokio::test]
async fn a_connection_speaks_for_one_instance() {
    let world = World::new().await;
    let harness = world.running.harness("harness-1").await;
    harness
        .client
        .open_session(&open_session(1, "hrn_1"))
        .await
        .unwrap();
    assert_eq!(
        code(harness.client.open_session(&open_session(2, "hrn_2")).await),
        "malformed_request"
    );
}
