//! A marked secret, a passphrase and an API key: looked for in every answer and every file.

use claviger_vault_memory::forms;
use claviger_vault_protocol::admin::{List, Nothing, OfCredential, ReadAudit};
use claviger_vault_protocol::usage::Report;

use crate::fixture::{SECRET, World, a_use, accept, code, open_session, rotate};

fn assert_absent(place: &str, bytes: &[u8], secret: &str) {
    for (form, pattern) in forms::of(secret.as_bytes()) {
        let is_there = bytes.windows(pattern.len()).any(|window| window == pattern);
        assert!(!is_there, "{form} of the secret in {place}");
    }
}

#[tokio::test]
async fn a_secret_is_in_no_answer_and_in_no_file() {
    let world = World::new().await;
    let mut answers: Vec<(&str, String)> = Vec::new();
    let mut keep = |verb: &'static str, value: String| answers.push((verb, value));
    let harness = world.running.harness("harness-1").await;
    let opening = harness
        .client
        .open_session(&open_session(1, "hrn_1"))
        .await
        .unwrap();
    keep("open_session", serde_json::to_string(&opening).unwrap());
    let instance = crate::fixture::Instance::new("tools_1");
    let tools = world.running.tools("tools", &instance).await;
    let accepted = tools.client.accept(&accept(&opening)).await.unwrap();
    keep("accept", serde_json::to_string(&accepted).unwrap());
    let authorized = tools
        .client
        .authorize_use(&a_use(&accepted, "r1"))
        .await
        .unwrap();
    keep("authorize_use", serde_json::to_string(&authorized).unwrap());
    assert_eq!(
        world
            .spend(&instance, &accepted, "tracker", &authorized)
            .unwrap(),
        SECRET.as_bytes()
    );
    let query = OfCredential {
        credential: world.tracker.id.clone(),
        principal: None,
    };
    keep(
        "show",
        serde_json::to_string(&world.admin.client.show(&query).await.unwrap()).unwrap(),
    );
    let all = List {
        collection: None,
        include_archived: true,
    };
    keep(
        "list",
        serde_json::to_string(&world.admin.client.list(&all).await.unwrap()).unwrap(),
    );
    keep(
        "status",
        serde_json::to_string(&world.admin.client.status(&Nothing {}).await.unwrap()).unwrap(),
    );
    let query = rotate(world.vault_key, &world.tracker.id, SECRET);
    keep(
        "rotate",
        serde_json::to_string(&world.admin.client.rotate(&query).await.unwrap()).unwrap(),
    );
    keep(
        "list_permits",
        serde_json::to_string(&tools.client.list_permits(&Nothing {}).await.unwrap()).unwrap(),
    );
    // A compromised tools instance knows the secret; what it says must not carry it into the log.
    let report = Report {
        session: "sesn_1".to_owned(),
        epoch: 1,
        reason: SECRET.to_owned(),
        tool: "egress".to_owned(),
        destination: None,
    };
    assert_eq!(
        code(tools.client.report(&report).await),
        "malformed_request"
    );
    let log = world
        .admin
        .client
        .read_audit(&ReadAudit {
            after: 0,
            limit: 1_000,
        })
        .await
        .unwrap();
    keep("read_audit", serde_json::to_string(&log).unwrap());
    for (verb, text) in &answers {
        assert_absent(verb, text.as_bytes(), SECRET);
        assert_absent(verb, text.as_bytes(), &world.made.first_key);
    }
    let first_key = world.made.first_key.clone();
    let World {
        home,
        running,
        admin,
        api,
        ..
    } = world;
    let mut seen = 0;
    let mut look = || {
        for directory in [home.vault(), home.vault().join("audit")] {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let bytes = std::fs::read(&path).unwrap();
                    assert_absent(&path.display().to_string(), &bytes, SECRET);
                    assert_absent(&path.display().to_string(), &bytes, &first_key);
                    seen += 1;
                }
            }
        }
    };
    look();
    drop((admin, api, tools, harness));
    running.stop().await.unwrap();
    look();
    assert!(
        seen >= 8,
        "database, key file, segment and checkpoints were looked at"
    );
}
