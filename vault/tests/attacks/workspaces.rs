//! An api that was taken over, or mistaken: collections belong to their workspaces.

use claviger_vault::clock::Clock as _;
use claviger_vault_protocol::admin::{Authentication, CreateKey, List, OfCredential, Put};
use claviger_vault_protocol::{Principal, WireError};

use crate::fixture::{HOST, Instance, World, accept, binding, charter, code, put, rotate};

async fn second(world: &World) -> Principal {
    let query = CreateKey {
        auth: Authentication::default(),
        label: "second".to_owned(),
    };
    Principal::key(&world.admin.client.create_key(&query).await.unwrap().key)
}

fn of(mut query: Put, principal: &Principal) -> Put {
    query.principal = Some(principal.clone());
    query
}

#[tokio::test]
async fn the_first_put_claims_a_collection_and_no_other_workspace_reaches_it() {
    let world = World::new().await;
    let (first, other) = (&world.principal, second(&world).await);
    let key = world.vault_key;
    let api = &world.api.client;
    let row = api
        .put(&of(put(key, "vlt_aa", "github", "ghp-0123456789"), first))
        .await
        .unwrap();
    assert_eq!(
        code(
            api.put(&of(put(key, "vlt_aa", "more", "ghp-0123456789"), &other))
                .await
        ),
        "principal_not_permitted"
    );
    let asks = |principal: &Principal| OfCredential {
        credential: row.id.clone(),
        principal: Some(principal.clone()),
    };
    assert_eq!(code(api.show(&asks(&other)).await), "credential_not_found");
    assert_eq!(
        code(api.archive(&asks(&other)).await),
        "credential_not_found"
    );
    assert_eq!(
        code(api.delete(&asks(&other)).await),
        "credential_not_found"
    );
    let mut stolen = rotate(key, &row.id, "ghp-9876543210");
    stolen.principal = Some(other.clone());
    assert_eq!(code(api.rotate(&stolen).await), "credential_not_found");
    api.show(&asks(first)).await.unwrap();
    let nobody = OfCredential {
        credential: row.id.clone(),
        principal: None,
    };
    assert_eq!(code(api.show(&nobody).await), "malformed_request");
}

#[tokio::test]
async fn the_operators_collections_are_out_of_an_apis_reach() {
    let world = World::new().await;
    let api = &world.api.client;
    for collection in ["vlt_local", "vlt_system"] {
        let query = of(
            put(world.vault_key, collection, "planted", "sk-0123456789"),
            &world.principal,
        );
        assert_eq!(code(api.put(&query).await), "principal_not_permitted");
        let query = List {
            collection: Some(collection.to_owned()),
            include_archived: false,
        };
        assert_eq!(code(api.list(&query).await), "principal_not_permitted");
    }
    assert_eq!(
        code(api.list(&List::default()).await),
        "principal_not_permitted"
    );
    let tracker = OfCredential {
        credential: world.tracker.id.clone(),
        principal: Some(world.principal.clone()),
    };
    assert_eq!(code(api.archive(&tracker).await), "credential_not_found");
}

#[tokio::test]
async fn a_session_opens_its_own_workspaces_credentials_only() {
    let world = World::new().await;
    let other = second(&world).await;
    let key = world.vault_key;
    let api = &world.api.client;
    api.put(&of(
        put(key, "vlt_aa", "github", "ghp-0123456789"),
        &world.principal,
    ))
    .await
    .unwrap();
    let now = world.home.clock.wall_ms();
    let mut foreign = charter("sesn_2", &other, now);
    foreign.vaults = vec!["vlt_aa".to_owned()];
    assert_eq!(
        code(api.register_charter(&foreign).await),
        "principal_not_permitted"
    );
    // The operator's collection and a collection that is claimed later open nothing for a second key.
    foreign.vaults = vec!["vlt_local".to_owned(), "vlt_bb".to_owned()];
    api.register_charter(&foreign).await.unwrap();
    api.put(&of(
        put(key, "vlt_bb", "later", "ghp-0123456789"),
        &world.principal,
    ))
    .await
    .unwrap();
    let harness = world.running.harness("harness-1").await;
    let mut query = crate::fixture::open_session(1, "hrn_1");
    query.session = "sesn_2".to_owned();
    let opening = harness.client.open_session(&query).await.unwrap();
    let names: Vec<&str> = opening
        .grants
        .iter()
        .map(|envelope| envelope.name.as_str())
        .collect();
    assert_eq!(names, ["anthropic"], "only the model's key");
    let tools = world
        .running
        .tools("tools", &Instance::new("tools_1"))
        .await;
    assert_eq!(
        tools
            .client
            .accept(&accept(&opening))
            .await
            .unwrap()
            .grants
            .len(),
        1
    );
}

#[tokio::test]
async fn what_is_put_is_checked() {
    let world = World::new().await;
    let key = world.vault_key;
    let admin = &world.admin.client;
    let try_put = async |text: &str, change: &dyn Fn(&mut Put)| -> Result<(), WireError> {
        let mut query = put(key, "vlt_local", "fresh", text);
        change(&mut query);
        admin.put(&query).await.map(|_| ())
    };
    let asis = |_: &mut Put| {};
    assert_eq!(code(try_put("", &asis).await), "empty_secret");
    assert_eq!(
        code(try_put("with a\nline break", &asis).await),
        "secret_has_line_break"
    );
    assert_eq!(
        code(try_put("with a\rline break", &asis).await),
        "secret_has_line_break"
    );
    assert_eq!(
        code(try_put("with a zero\0byte", &asis).await),
        "secret_has_line_break"
    );
    assert_eq!(
        code(try_put("elevenbytes", &asis).await),
        "secret_too_short"
    );
    assert_eq!(
        code(try_put("long enough 1", &|put| put.secret = None).await),
        "empty_secret"
    );
    // A secret sealed for one name or binding does not serve another.
    assert_eq!(
        code(try_put("long enough 1", &|put| put.name = "renamed".to_owned()).await),
        "malformed_request"
    );
    let evil = binding("https://evil.example.com");
    assert_eq!(
        code(try_put("long enough 1", &|put| put.binding = evil.clone()).await),
        "malformed_request"
    );
    for wrong in ["", "with space", "a/b", &"x".repeat(65)] {
        assert_eq!(
            code(try_put("long enough 1", &|put| put.name = wrong.to_owned()).await),
            "malformed_request"
        );
    }
    for variable in ["PATH", "LD_PRELOAD", "HTTPS_PROXY", "lower", "1A", "A=B"] {
        let result = try_put("long enough 1", &|put| {
            put.variable = Some(variable.to_owned());
        })
        .await;
        assert_eq!(code(result), "malformed_request", "{variable}");
    }
    let mut upper = binding(HOST);
    upper.destination.host = "API.example.com".to_owned();
    assert_eq!(
        code(try_put("long enough 1", &|put| put.binding = upper.clone()).await),
        "malformed_request"
    );
    try_put("elevenbytes", &|put| put.short = true)
        .await
        .unwrap();
    assert_eq!(code(try_put("another secret", &asis).await), "name_taken");
}

#[tokio::test]
async fn an_unknown_key_is_refused_and_recorded() {
    let world = World::new().await;
    let query = claviger_vault_protocol::admin::AuthenticateKey {
        key_hash: "00".repeat(32),
    };
    assert_eq!(
        code(world.api.client.authenticate_key(&query).await),
        "key_unknown"
    );
    let records = world.records().await;
    assert!(
        records
            .iter()
            .any(|record| record["op"] == "authenticate" && record["reason_code"] == "key_unknown")
    );
}
