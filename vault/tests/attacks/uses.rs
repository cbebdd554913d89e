//! Rule 3: no durable intent, no plaintext; and every way out of the binding.

use claviger_vault_protocol::admin::{
    Authentication, List, OfCredential, Permit, PermitTool, RevokeTool,
};
use claviger_vault_protocol::usage::{AuthorizeUse, RecordOutcome, Report, UseStatus};
use claviger_vault_protocol::{Destination, KeyPair, UseId};

use crate::fixture::{HASH, Instance, SECRET, SESSION, World, a_use, code, open_session, rotate};

#[tokio::test]
async fn a_release_opens_for_the_registered_instance_alone() {
    let world = World::new().await;
    let (opening, instance, tools) = world.live().await;
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
    let stranger = Instance {
        name: instance.name.clone(),
        key: KeyPair::generate().unwrap(),
    };
    assert!(
        world
            .spend(&stranger, &opening, "tracker", &authorized)
            .is_none()
    );
    // The release of one use does not pass for that of another, nor for another grant's.
    let mut moved = authorized.clone();
    moved.use_id = UseId::from("use_other");
    assert!(
        world
            .spend(&instance, &opening, "tracker", &moved)
            .is_none()
    );
    assert!(
        world
            .spend(&instance, &opening, "anthropic", &authorized)
            .is_none()
    );
}

#[tokio::test]
async fn the_intent_is_in_the_log_before_the_answer() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    let authorized = tools
        .client
        .authorize_use(&a_use(&opening, "r1"))
        .await
        .unwrap();
    let files = std::fs::read_dir(world.home.vault().join("audit")).unwrap();
    let log: String = files
        .map(|file| file.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jsonl")
        })
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let line = log
        .lines()
        .find(|line| line.contains("\"authorize_use\""))
        .unwrap();
    let record: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(record["seq"], authorized.audit_seq);
    assert_eq!(record["kind"], "intent");
    assert_eq!(record["credential_id"], world.tracker.id.as_str());
    assert_eq!(record["destination"]["host"], "api.example.com");
    assert_eq!(record["digest"], HASH);
}

#[tokio::test]
async fn every_way_out_of_binding_and_permit_is_refused_with_its_code() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    let mut number = 0;
    let mut refused = async |reason: &str, change: &dyn Fn(&mut AuthorizeUse)| {
        number += 1;
        let mut query = a_use(&opening, &format!("r{number}"));
        change(&mut query);
        assert_eq!(
            code(tools.client.authorize_use(&query).await),
            reason,
            "{query:?}"
        );
    };
    let destination = |text: &str| Destination::parse(text).unwrap();
    refused("destination_not_bound", &|q| {
        q.destination = destination("https://evil.example.com");
    })
    .await;
    refused("destination_not_bound", &|q| {
        q.destination = destination("http://api.example.com");
    })
    .await;
    refused("destination_not_bound", &|q| {
        q.destination = destination("https://api.example.com:8443");
    })
    .await;
    refused("destination_not_bound", &|q| {
        q.destination.host = "api.example.com.".to_owned();
    })
    .await;
    refused("destination_not_bound", &|q| {
        q.destination.host = "API.example.com".to_owned();
    })
    .await;
    refused("method_not_bound", &|q| q.method = "DELETE".to_owned()).await;
    refused("path_not_bound", &|q| q.path = "/v2/issues".to_owned()).await;
    refused("path_not_bound", &|q| q.path = "/v10".to_owned()).await;
    refused("malformed_request", &|q| q.path = "/v1/../admin".to_owned()).await;
    refused("malformed_request", &|q| {
        q.path = "/v1/%2E%2e/admin".to_owned();
    })
    .await;
    refused("malformed_request", &|q| q.path = "/v1/x?key=1".to_owned()).await;
    refused("malformed_request", &|q| q.method = "post".to_owned()).await;
    refused("malformed_request", &|q| q.digest = "none".to_owned()).await;
    refused("malformed_request", &|q| {
        q.request_id = "change_0".to_owned();
    })
    .await;
    refused("tool_changed", &|q| q.tool_hash = HASH.replace('a', "b")).await;
    refused("tool_changed", &|q| q.tool_hash = String::new()).await;
    refused("tool_not_permitted", &|q| q.tool = "other".to_owned()).await;
    refused("grant_not_found", &|q| q.grant = "grant_other".into()).await;
    refused("opening_not_found", &|q| {
        q.session = "sesn_other".to_owned();
    })
    .await;
    refused("opening_not_found", &|q| q.epoch = 2).await;
    let denied = world
        .records()
        .await
        .into_iter()
        .filter(|r| r["op"] == "authorize_use" && r["decision"] == "deny");
    assert!(denied.count() >= 12, "denials are on record");
}

#[tokio::test]
async fn the_model_key_is_for_the_model_route_and_nothing_else() {
    let world = World::new().await;
    let (opening, instance, tools) = world.live().await;
    let model = opening.model_grant.clone().unwrap();
    let with = |tool: &str, request_id: &str| {
        let mut query = a_use(&opening, request_id);
        query.grant = model.clone();
        query.tool = tool.to_owned();
        query
    };
    assert_eq!(
        code(tools.client.authorize_use(&with("tracker", "r1")).await),
        "tool_not_permitted"
    );
    assert_eq!(
        code(tools.client.authorize_use(&with("egress", "r2")).await),
        "tool_not_permitted"
    );
    let authorized = tools
        .client
        .authorize_use(&with("model", "r3"))
        .await
        .unwrap();
    assert_eq!(
        world
            .spend(&instance, &opening, "anthropic", &authorized)
            .unwrap(),
        b"sk-ant-model-key"
    );
    let mut tracker = a_use(&opening, "r4");
    tracker.tool = "model".to_owned();
    assert_eq!(
        code(tools.client.authorize_use(&tracker).await),
        "tool_not_permitted"
    );
}

#[tokio::test]
async fn the_gateway_spends_a_chartered_credential_within_its_binding() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    let mut egress = a_use(&opening, "r1");
    egress.tool = "egress".to_owned();
    egress.tool_hash = String::new();
    tools.client.authorize_use(&egress).await.unwrap();
    egress.request_id = "r2".to_owned();
    egress.destination = Destination::parse("https://evil.example.com").unwrap();
    assert_eq!(
        code(tools.client.authorize_use(&egress).await),
        "destination_not_bound"
    );
}

#[tokio::test]
async fn an_archived_credential_is_refused_from_the_answer_on_also_to_a_repeat() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    tools
        .client
        .authorize_use(&a_use(&opening, "r1"))
        .await
        .unwrap();
    let query = OfCredential {
        credential: world.tracker.id.clone(),
        principal: None,
    };
    let row = world.admin.client.archive(&query).await.unwrap();
    assert!(row.archived_at_ms.is_some() && row.uses == 1);
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r2")).await),
        "credential_archived"
    );
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r1")).await),
        "credential_archived"
    );
    let harness = world.running.harness("harness-1").await;
    let next = harness
        .client
        .open_session(&open_session(2, "hrn_1"))
        .await
        .unwrap();
    assert!(
        next.grants
            .iter()
            .all(|envelope| envelope.name != "tracker")
    );
}

#[tokio::test]
async fn a_deleted_credential_and_a_revoked_tool_are_refused() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    world
        .admin
        .client
        .revoke_tool(&RevokeTool {
            tool: "tracker".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r1")).await),
        "tool_not_permitted"
    );
    let query = OfCredential {
        credential: world.tracker.id.clone(),
        principal: None,
    };
    world.admin.client.delete(&query).await.unwrap();
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r2")).await),
        "credential_not_found"
    );
    let left = world
        .admin
        .client
        .list(&List {
            collection: None,
            include_archived: true,
        })
        .await
        .unwrap();
    assert!(
        left.credentials
            .iter()
            .all(|row| row.id != world.tracker.id)
    );
}

#[tokio::test]
async fn a_permit_narrows_by_principal_and_method() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    let permit = |principal: &claviger_vault_protocol::Principal, methods: &[&str]| PermitTool {
        auth: Authentication::default(),
        permit: Permit {
            tool: "tracker".to_owned(),
            tool_hash: HASH.to_owned(),
            credential: world.tracker.id.clone(),
            principals: vec![principal.clone()],
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
        },
    };
    world
        .admin
        .client
        .permit_tool(&permit(&world.principal, &["GET"]))
        .await
        .unwrap();
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r1")).await),
        "method_not_permitted"
    );
    let other = claviger_vault_protocol::Principal::operator(1);
    world
        .admin
        .client
        .permit_tool(&permit(&other, &[]))
        .await
        .unwrap();
    assert_eq!(
        code(tools.client.authorize_use(&a_use(&opening, "r2")).await),
        "principal_not_permitted"
    );
}

#[tokio::test]
async fn a_repeat_gets_the_same_decision_over_any_connection() {
    let world = World::new().await;
    let (opening, instance, tools) = world.live().await;
    let first = tools
        .client
        .authorize_use(&a_use(&opening, "r1"))
        .await
        .unwrap();
    assert_eq!(
        tools
            .client
            .authorize_use(&a_use(&opening, "r1"))
            .await
            .unwrap(),
        first
    );
    drop(tools);
    let tools = world.running.tools("tools", &instance).await;
    assert_eq!(
        tools
            .client
            .authorize_use(&a_use(&opening, "r1"))
            .await
            .unwrap(),
        first
    );
    let mut other = a_use(&opening, "r1");
    other.path = "/v1/other".to_owned();
    assert_eq!(
        code(tools.client.authorize_use(&other).await),
        "malformed_request"
    );
    let intents = world
        .records()
        .await
        .into_iter()
        .filter(|record| record["kind"] == "intent")
        .count();
    assert_eq!(intents, 1);
}

#[tokio::test]
async fn a_live_grant_follows_a_rotation() {
    let world = World::new().await;
    let (opening, instance, tools) = world.live().await;
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
    let authorized = tools
        .client
        .authorize_use(&a_use(&opening, "r1"))
        .await
        .unwrap();
    assert_eq!(authorized.version, 2);
    assert!(authorized.ciphertext.is_some());
    assert_eq!(
        world
            .spend(&instance, &opening, "tracker", &authorized)
            .unwrap(),
        b"the-second-secret"
    );
}

#[tokio::test]
async fn a_credential_put_after_the_opening_is_not_in_it() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    let later = crate::fixture::put(world.vault_key, "vlt_local", "later", "a-later-secret-1");
    let row = world.admin.client.put(&later).await.unwrap();
    let permit = Permit {
        tool: "later".to_owned(),
        tool_hash: HASH.to_owned(),
        credential: row.id,
        principals: vec![world.principal.clone()],
        methods: vec![],
    };
    world
        .admin
        .client
        .permit_tool(&PermitTool {
            auth: Authentication::default(),
            permit,
        })
        .await
        .unwrap();
    let mut query = a_use(&opening, "r1");
    query.tool = "later".to_owned();
    assert_eq!(
        code(tools.client.authorize_use(&query).await),
        "tool_not_permitted"
    );
}

#[tokio::test]
async fn an_outcome_joins_its_intent_once_and_counts() {
    let world = World::new().await;
    let (opening, _, tools) = world.live().await;
    let authorized = tools
        .client
        .authorize_use(&a_use(&opening, "r1"))
        .await
        .unwrap();
    let outcome = RecordOutcome {
        use_id: authorized.use_id.clone(),
        status: UseStatus::Ok,
        http_status: 201,
        bytes: 512,
        scrubbed: 2,
        reason: Some("Not a code: sk-secret".to_owned()),
    };
    tools.client.record_outcome(&outcome).await.unwrap();
    tools.client.record_outcome(&outcome).await.unwrap();
    let records = world.records().await;
    let told: Vec<_> = records
        .iter()
        .filter(|record| record["kind"] == "outcome")
        .collect();
    assert_eq!(told.len(), 1);
    assert_eq!(
        (&told[0]["ref"], &told[0]["status"]),
        (&authorized.audit_seq.into(), &201.into())
    );
    assert!(
        told[0]["reason_code"].is_null(),
        "free text has no place in the log"
    );
    let mut unknown = outcome;
    unknown.use_id = UseId::from("use_other");
    assert_eq!(
        code(tools.client.record_outcome(&unknown).await),
        "use_not_found"
    );
    let query = OfCredential {
        credential: world.tracker.id.clone(),
        principal: None,
    };
    assert_eq!(world.admin.client.show(&query).await.unwrap().uses, 1);
}

#[tokio::test]
async fn a_flood_of_denials_is_counted_and_not_written_out() {
    let world = World::new().await;
    let (_, _, tools) = world.live().await;
    let report = Report {
        session: SESSION.to_owned(),
        epoch: 1,
        reason: "placeholder_outside_slot".to_owned(),
        tool: "egress".to_owned(),
        destination: None,
    };
    for _ in 0..200 {
        tools.client.report(&report).await.unwrap();
    }
    let reports = world
        .records()
        .await
        .into_iter()
        .filter(|record| record["op"] == "report")
        .count();
    assert_eq!(reports, 16);
}
