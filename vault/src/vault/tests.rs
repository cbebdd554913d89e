//! What happens when the log fails between decision and release: nothing is released.

use std::sync::OnceLock;

use claviger_vault_protocol::admin::{PUT_PURPOSE, Put};
use claviger_vault_protocol::sealed::seal;
use claviger_vault_protocol::wire::Verbs as _;
use claviger_vault_protocol::{Binding, CredentialKind, Destination, PublicKey, Slot};
use serde_json::{Value, json};

use super::*;
use crate::clock::SystemClock;
use crate::endpoint::admin::Admin;
use crate::endpoint::api::Api;
use crate::endpoint::harness::Harness;
use crate::endpoint::tools::Tools;

struct World {
    _directory: tempfile::TempDir,
    vault: Arc<Vault>,
    admin: Admin,
    tools: Tools,
    authorize: Value,
    credential: String,
}

const HASH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn asker(role: Role) -> Asker {
    Asker {
        role,
        instance: "process-1".to_owned(),
        peer: (role == Role::Admin).then_some((1, None)),
    }
}

async fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let vault = Vault::start(
        &directory.path().join("vault"),
        &directory.path().join("vault.pub"),
        clock,
    )
    .await
    .unwrap();
    let vault = Arc::new(vault);
    let admin = Admin {
        vault: Arc::clone(&vault),
        asker: asker(Role::Admin),
    };
    let made = admin
        .call(
            "init",
            json!({"seal": {"kind": "key_file"}, "first_key_label": "first"}),
        )
        .await
        .unwrap();
    let binding = Binding {
        destination: Destination::parse("https://api.example.com").unwrap(),
        methods: vec![],
        path_prefixes: vec![],
        slot: Slot::Header {
            name: "x-key".to_owned(),
            prefix: String::new(),
        },
    };
    let associated = Put::associated("vlt_system", "model", CredentialKind::Header, &binding);
    let secret = SecretBytes::copy_of(b"the secret itself").unwrap();
    let key = PublicKey::parse(made["key"].as_str().unwrap()).unwrap();
    let sealed = seal(key, &secret, PUT_PURPOSE, &associated).unwrap();
    let row = admin
        .call(
            "put",
            json!({"collection": "vlt_system", "name": "model", "kind": "header", "binding": binding, "secret": sealed}),
        )
        .await
        .unwrap();
    let api = Api {
        vault: Arc::clone(&vault),
        asker: asker(Role::Api),
    };
    let charter = json!({
        "session": "sesn_1", "principal": "operator:uid:1", "vaults": [], "agent": "agent_1",
        "model_credential": "model", "tools": [], "expires_at_ms": u64::MAX / 2,
    });
    api.call("register_charter", charter).await.unwrap();
    let harness = Harness {
        vault: Arc::clone(&vault),
        asker: asker(Role::Harness),
        instance: OnceLock::new(),
    };
    let opening = harness
        .call(
            "open_session",
            json!({"session": "sesn_1", "epoch": 1, "instance": "hrn_1", "head": [0, ""]}),
        )
        .await
        .unwrap();
    let tools = Tools {
        vault: Arc::clone(&vault),
        asker: asker(Role::Tools),
        registered: OnceLock::new(),
        recorded: tokio::sync::OnceCell::new(),
    };
    let own = KeyPair::generate().unwrap();
    tools
        .call(
            "register_tools",
            json!({"instance": "tools_1", "key": own.public().to_string()}),
        )
        .await
        .unwrap();
    tools
        .call(
            "accept",
            json!({"opening": opening["opening"], "session": "sesn_1", "epoch": 1}),
        )
        .await
        .unwrap();
    let authorize = json!({
        "request_id": "r1", "session": "sesn_1", "epoch": 1, "grant": opening["model_grant"], "tool": "model",
        "destination": {"scheme": "https", "host": "api.example.com", "port": 443},
        "method": "POST", "path": "/v1/messages", "digest": HASH,
    });
    let credential = row["id"].as_str().unwrap().to_owned();
    World {
        _directory: directory,
        vault,
        admin,
        tools,
        authorize,
        credential,
    }
}

#[tokio::test]
async fn without_a_durable_intent_nothing_is_released() {
    let world = world().await;
    world.vault.fail_audit(true).await;
    let refused = world
        .tools
        .call("authorize_use", world.authorize.clone())
        .await
        .unwrap_err();
    assert_eq!(refused.code, "audit_failed");
    assert!(!serde_json::to_string(&refused).unwrap().contains("release"));
    // The log recovers: the same request is decided then, not answered from memory.
    world.vault.fail_audit(false).await;
    let answer = world
        .tools
        .call("authorize_use", world.authorize.clone())
        .await
        .unwrap();
    assert!(answer["release"]["ct"].is_string());
}

#[tokio::test]
async fn a_change_that_cannot_be_recorded_is_not_acknowledged_and_a_widening_one_has_no_effect() {
    let world = world().await;
    world.vault.fail_audit(true).await;
    let permit = json!({"permit": {
        "tool": "tracker", "tool_hash": HASH, "credential": world.credential, "principals": ["*"],
    }});
    assert_eq!(
        world
            .admin
            .call("permit_tool", permit)
            .await
            .unwrap_err()
            .code,
        "audit_failed"
    );
    let permits = world.admin.call("list_permits", json!({})).await.unwrap();
    assert_eq!(permits["permits"], json!([]));
    // Status always answers.
    assert_eq!(
        world.admin.call("status", json!({})).await.unwrap()["state"],
        "open"
    );
}

#[tokio::test]
async fn an_archive_that_cannot_be_recorded_refuses_all_the_same() {
    let world = world().await;
    world.vault.fail_audit(true).await;
    let archived = world
        .admin
        .call("archive", json!({"credential": world.credential}))
        .await;
    assert_eq!(archived.unwrap_err().code, "audit_failed");
    world.vault.fail_audit(false).await;
    let refused = world
        .tools
        .call("authorize_use", world.authorize.clone())
        .await
        .unwrap_err();
    assert_eq!(refused.code, "credential_archived");
}

#[tokio::test]
async fn a_change_committed_before_a_crash_is_told_by_the_log_after_it() {
    let world = world().await;
    world.vault.fail_audit(true).await;
    let archived = world
        .admin
        .call("archive", json!({"credential": world.credential}))
        .await;
    assert_eq!(archived.unwrap_err().code, "audit_failed");
    let World {
        _directory: directory,
        vault,
        admin,
        tools,
        ..
    } = world;
    drop((admin, tools));
    drop(Arc::into_inner(vault).unwrap());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let vault = Vault::start(
        &directory.path().join("vault"),
        &directory.path().join("vault.pub"),
        clock,
    )
    .await
    .unwrap();
    let open = vault.unsealed().await.unwrap();
    let told = open.trail.read(0, 100).unwrap();
    assert_eq!(
        told.iter()
            .filter(|record| record.entry.op == Op::Archive)
            .count(),
        1
    );
}
