use serde_json::{Value, json};

use crate::support::{BOB, Server, assert_fields, assert_made, id};

#[tokio::test]
async fn an_environment_is_made_changed_archived_and_deleted() {
    let server = Server::start().await;
    let made = server
        .post("/v1/environments", json!({"name": "e", "config": {"type": "cloud", "networking": {"type": "unrestricted"}}}))
        .await;
    assert_made(&made, "env_", "environment");
    assert_fields(
        &made,
        &[
            "id",
            "type",
            "name",
            "description",
            "config",
            "scope",
            "metadata",
            "created_at",
            "updated_at",
            "archived_at",
        ],
    );
    let packages = json!({"type": "packages", "apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": []});
    assert_eq!(
        made["config"],
        json!({"type": "cloud", "networking": {"type": "unrestricted"}, "packages": packages})
    );
    assert_eq!(
        (&made["scope"], &made["description"], &made["archived_at"]),
        (&json!("organization"), &Value::Null, &Value::Null)
    );

    let path = format!("/v1/environments/{}", id(&made));
    let limited = json!({"type": "limited", "allowed_hosts": ["a.example", "*.b.example"]});
    let changed = server
        .post(&path, json!({"description": "d", "metadata": {"k": "v"}, "config": {"type": "cloud", "networking": limited}}))
        .await;
    assert_eq!(
        changed["config"]["networking"],
        json!({"type": "limited", "allowed_hosts": ["a.example", "*.b.example"], "allow_mcp_servers": false, "allow_package_managers": false})
    );
    assert_eq!(
        (&changed["name"], &changed["description"]),
        (&json!("e"), &json!("d"))
    );
    assert_eq!(server.get(&path).await, changed);
    assert_eq!(
        server.get("/v1/environments").await,
        json!({"data": [changed], "next_page": null})
    );
    server
        .refused(
            "POST",
            &path,
            json!({"config": {"type": "self_hosted"}}),
            400,
            "invalid_config_type_change",
        )
        .await;

    let archived = server.post(&format!("{path}/archive"), Value::Null).await;
    assert!(archived["archived_at"].is_string());
    server
        .refused(
            "POST",
            &path,
            json!({"name": "f"}),
            400,
            "environment_archived",
        )
        .await;
    let agent = id(&server
        .post("/v1/agents", json!({"name": "a", "model": "m"}))
        .await);
    let session = json!({"agent": agent, "environment_id": id(&made)});
    server
        .refused(
            "POST",
            "/v1/sessions",
            session.clone(),
            400,
            "environment_archived",
        )
        .await;
    assert_eq!(server.get("/v1/environments").await["data"], json!([]));

    server
        .call(BOB, "DELETE", &path, Value::Null)
        .await
        .assert_refused(404, "environment_not_found");
    let deleted = server
        .call(crate::support::ALICE, "DELETE", &path, Value::Null)
        .await
        .ok();
    assert_eq!(
        deleted,
        json!({"id": id(&made), "type": "environment_deleted"})
    );
    server
        .refused("GET", &path, Value::Null, 404, "environment_not_found")
        .await;
    server
        .refused("DELETE", &path, Value::Null, 404, "environment_not_found")
        .await;
    server
        .refused(
            "POST",
            "/v1/sessions",
            session,
            404,
            "environment_not_found",
        )
        .await;
    assert_eq!(
        server.get("/v1/environments?include_archived=true").await["data"],
        json!([])
    );
}

#[tokio::test]
async fn what_is_not_there_is_refused_not_ignored() {
    let server = Server::start().await;
    let with = |config: Value| json!({"name": "e", "config": config});
    for (body, code) in [
        (json!({}), "invalid_field"),
        (
            with(json!({"type": "self_hosted"})),
            "self_hosted_not_supported",
        ),
        (with(json!({"type": "moon"})), "invalid_field"),
        (
            with(json!({"type": "cloud", "packages": {"pip": ["x"]}})),
            "packages_not_supported",
        ),
        (
            with(
                json!({"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["https://x"]}}),
            ),
            "invalid_field",
        ),
        (with(json!({"type": "cloud", "gpu": 1})), "unknown_field"),
        (json!({"name": "e", "scope": "galaxy"}), "invalid_field"),
    ] {
        server
            .refused("POST", "/v1/environments", body, 400, code)
            .await;
    }
    server
        .refused(
            "GET",
            "/v1/environments/agent_1",
            Value::Null,
            404,
            "environment_not_found",
        )
        .await;
    server
        .refused(
            "GET",
            "/v1/environments/env_none",
            Value::Null,
            404,
            "environment_not_found",
        )
        .await;
}
