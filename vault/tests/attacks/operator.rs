//! The operator's socket, passphrase and seal.

use claviger_vault_protocol::PublicKey;
use claviger_vault_protocol::admin::{
    Init, Nothing, OfCredential, PermitTool, SEAL_PURPOSE, SealChoice, Status, Unseal,
};
use claviger_vault_protocol::client::AdminVault;
use serde_json::json;

use crate::fixture::{
    Home, Instance, Peer, Running, authentication, code, init, passphrase, put, rotate,
};

const PASSPHRASE: &str = "correct horse battery";

async fn status(admin: &Peer<AdminVault>) -> Status {
    admin.client.status(&Nothing {}).await.unwrap()
}

async fn with_operator_passphrase() -> (Home, Running, Peer<AdminVault>, PublicKey, String) {
    let home = Home::new();
    let running = home.start();
    let admin = running.admin().await;
    let session_key = status(&admin).await.session_key;
    let query = Init {
        operator_passphrase: authentication(&session_key, "init", PASSPHRASE).passphrase,
        ..init()
    };
    let made = admin.client.init(&query).await.unwrap();
    let key = PublicKey::parse(&made.key).unwrap();
    (home, running, admin, key, session_key)
}

#[tokio::test]
async fn widening_asks_for_the_passphrase_and_narrowing_never_does() {
    let (_home, _running, admin, key, session_key) = with_operator_passphrase().await;
    assert!(status(&admin).await.operator_passphrase);
    let query = put(key, "vlt_local", "tracker", "long enough 1");
    assert_eq!(
        code(admin.client.put(&query).await),
        "operator_authentication_required"
    );
    let permitted = put(key, "vlt_local", "tracker", "long enough 1");
    let with = |verb: &str| authentication(&session_key, verb, PASSPHRASE);
    let row = admin
        .client
        .put(&claviger_vault_protocol::admin::Put {
            auth: with("put"),
            ..permitted
        })
        .await
        .unwrap();
    // An authentication is for one verb, and for one time.
    let spent = with("rotate");
    let mut query = rotate(key, &row.id, "long enough 2");
    query.auth = with("put");
    assert_eq!(code(admin.client.rotate(&query).await), "malformed_request");
    query.auth = spent.clone();
    admin.client.rotate(&query).await.unwrap();
    assert_eq!(
        code(admin.client.rotate(&query).await),
        "operator_authentication_required"
    );
    assert_eq!(
        code(admin.raw("create_key", json!({"label": "x"})).await),
        "operator_authentication_required"
    );
    let permit = claviger_vault_protocol::admin::Permit {
        tool: "tracker".to_owned(),
        tool_hash: crate::fixture::HASH.to_owned(),
        credential: row.id.clone(),
        principals: vec![claviger_vault_protocol::Principal::operator(1)],
        methods: vec![],
    };
    let query = PermitTool {
        auth: claviger_vault_protocol::admin::Authentication::default(),
        permit,
    };
    assert_eq!(
        code(admin.client.permit_tool(&query).await),
        "operator_authentication_required"
    );
    admin
        .client
        .archive(&OfCredential {
            credential: row.id,
            principal: None,
        })
        .await
        .unwrap();
    admin.client.seal(&Nothing {}).await.unwrap();
}

#[tokio::test]
async fn wrong_passphrases_are_recorded_and_slowed_down() {
    let (home, _running, admin, key, session_key) = with_operator_passphrase().await;
    let attempt = async |text: &str| {
        let mut query = put(key, "vlt_local", "tracker", "long enough 1");
        query.auth = authentication(&session_key, "put", text);
        admin.client.put(&query).await
    };
    for _ in 0..3 {
        assert_eq!(
            code(attempt("a wrong passphrase").await),
            "wrong_passphrase"
        );
    }
    assert_eq!(
        code(attempt(PASSPHRASE).await),
        "too_many_attempts",
        "also the right one waits"
    );
    home.clock.pass(1_000);
    attempt(PASSPHRASE).await.unwrap();
    let records = admin
        .raw("read_audit", json!({"after": 0, "limit": 100}))
        .await
        .unwrap();
    let failed = records["records"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["reason_code"] == "wrong_passphrase")
        .count();
    assert_eq!(failed, 3);
}

#[tokio::test]
async fn a_sealed_vault_tells_its_status_and_nothing_else() {
    let home = Home::new();
    let running = home.start();
    let admin = running.admin().await;
    assert_eq!(
        code(admin.raw("list", json!({})).await),
        "vault_uninitialized"
    );
    let sealed = passphrase(
        &status(&admin).await.session_key,
        SEAL_PURPOSE,
        "passphrase",
        PASSPHRASE,
    );
    let made = admin
        .client
        .init(&Init {
            seal: SealChoice::Passphrase { passphrase: sealed },
            ..init()
        })
        .await
        .unwrap();
    assert_eq!(
        code(admin.client.init(&init()).await),
        "already_initialized"
    );
    let key = PublicKey::parse(&made.key).unwrap();
    admin
        .client
        .put(&put(key, "vlt_local", "tracker", "long enough 1"))
        .await
        .unwrap();
    drop(admin);
    running.stop().await.unwrap();

    let running = home.start();
    let admin = running.admin().await;
    let told = status(&admin).await;
    assert_eq!(
        (told.state.as_str(), told.seals.as_slice()),
        ("sealed", ["passphrase".to_owned()].as_slice())
    );
    assert_eq!(told.key.as_deref(), Some(made.key.as_str()));
    for verb in [
        "put",
        "rotate",
        "list",
        "show",
        "archive",
        "permit_tool",
        "list_permits",
        "create_key",
        "read_audit",
    ] {
        assert_eq!(
            code(admin.raw(verb, json!({})).await),
            "vault_sealed",
            "{verb}"
        );
    }
    let tools = running.tools("tools", &Instance::new("tools_1")).await;
    assert_eq!(
        code(tools.raw("list_permits", json!({})).await),
        "vault_sealed"
    );
    let harness = running.harness("harness-1").await;
    assert_eq!(
        code(harness.raw("open_session", json!({})).await),
        "vault_sealed"
    );

    let unseal = |text: &str| Unseal {
        passphrase: passphrase(&told.session_key, SEAL_PURPOSE, "passphrase", text),
    };
    assert_eq!(
        code(admin.client.unseal(&unseal("a wrong passphrase")).await),
        "wrong_passphrase"
    );
    assert_eq!(
        admin
            .client
            .unseal(&unseal(PASSPHRASE))
            .await
            .unwrap()
            .state,
        "open"
    );
    // The registration made while sealed serves now, and the failed attempt is on record.
    tools.raw("list_permits", json!({})).await.unwrap();
    let records = admin
        .raw("read_audit", json!({"after": 0, "limit": 100}))
        .await
        .unwrap();
    let records = records["records"].as_array().unwrap();
    assert!(
        records
            .iter()
            .any(|r| r["op"] == "unseal" && r["reason_code"] == "wrong_passphrase")
    );
    for op in ["init", "start", "unseal", "put", "read_audit"] {
        let is_told = |r: &serde_json::Value| r["op"] == op;
        assert!(records.iter().any(is_told) || op == "read_audit", "{op}");
    }
    assert_eq!(
        admin.client.seal(&Nothing {}).await.unwrap().state,
        "sealed"
    );
    assert_eq!(
        code(tools.raw("list_permits", json!({})).await),
        "vault_sealed"
    );
    assert_eq!(
        admin
            .client
            .unseal(&unseal(PASSPHRASE))
            .await
            .unwrap()
            .state,
        "open"
    );
}

#[tokio::test]
async fn a_user_who_is_no_operator_gets_no_connection() {
    let home = Home::new();
    let mut options = home.options();
    options.operators = vec![rustix::process::getuid().as_raw() + 1];
    let running = home.start_with(options);
    let admin = running.admin().await;
    let answer = tokio::time::timeout(
        std::time::Duration::from_millis(300),
        admin.client.status(&Nothing {}),
    )
    .await;
    assert!(answer.is_err() || answer.unwrap().is_err());
}

#[tokio::test]
async fn a_key_file_unseals_at_start_and_a_wrong_one_does_not() {
    let home = Home::new();
    let running = home.start();
    let admin = running.admin().await;
    admin.client.init(&init()).await.unwrap();
    drop(admin);
    running.stop().await.unwrap();
    let running = home.start();
    assert_eq!(status(&running.admin().await).await.state, "open");
    running.stop().await.unwrap();
    let key = home.vault().join("seal.key");
    std::fs::remove_file(&key).unwrap();
    assert_eq!(home.refusal().await.code(), "file_unusable");
    std::fs::write(&key, [7; 32]).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    assert_eq!(home.refusal().await.code(), "seal_refused");
}

#[tokio::test]
async fn scan_exists_in_a_demos_home_alone() {
    for is_demo in [false, true] {
        let home = Home::new();
        let running = home.start();
        let admin = running.admin().await;
        admin
            .client
            .init(&Init {
                demo: is_demo,
                ..init()
            })
            .await
            .unwrap();
        let refused = code(admin.raw("scan", json!({"fingerprints": null})).await);
        assert_eq!(
            refused,
            if is_demo {
                "malformed_request"
            } else {
                "unknown_verb"
            }
        );
    }
}
