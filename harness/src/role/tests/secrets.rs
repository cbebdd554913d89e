//! A harness holds no secret, and what it carries sealed goes to tools and nowhere else.

use serde_json::json;

use super::model::{Answer, text, tool_use};
use super::peers::CIPHERTEXT;
use super::world::{Wires, World};

#[test]
fn the_crate_links_neither_the_vault_nor_tools() {
    let manifest = include_str!("../../../Cargo.toml");
    let names = manifest
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next());
    let ours: Vec<_> = names.filter(|name| name.starts_with("claviger-")).collect();
    assert_eq!(
        ours,
        [
            "claviger-session",
            "claviger-sandbox",
            "claviger-vault-protocol"
        ]
    );
    assert!(!manifest.contains("secrecy"));
}

#[tokio::test]
async fn grants_go_to_tools_and_neither_into_the_log_nor_to_the_model_nor_to_the_hands() {
    let world = World::new(|asked| match asked.depth() {
        0 => Answer::Say(
            json!([tool_use("toolu_a", "bash", json!({"command": "env"}))]),
            "tool_use",
        ),
        _ => Answer::Say(json!([text("Done.")]), "end_turn"),
    })
    .await;
    let session = world.begin("Go.").await;
    let _harness = world.harness("hrn_1", &Wires::sound()).await;
    world.idle(&session, 1).await;
    assert_eq!(world.tools.carried(), [CIPHERTEXT]);
    let log = serde_json::to_string(&world.events(&session).await).unwrap();
    let asked: String = world
        .model
        .asked(session.as_str())
        .iter()
        .map(|asked| asked.body.to_string())
        .collect();
    for (place, text) in [
        ("log", log),
        ("model", asked),
        ("hands", world.hands.environment().to_string()),
    ] {
        assert!(!text.contains(CIPHERTEXT), "{place}");
        // The placeholder is for the sandbox's environment alone.
        assert_eq!(
            text.contains("placeholder-of-tracker"),
            place == "hands",
            "{place}"
        );
    }
}
