use serde_json::{Value, json};

use crate::support::{BOB, MCP_URL, Server, assert_fields, assert_made, id};

const FIELDS: [&str; 16] = [
    "id",
    "type",
    "name",
    "version",
    "model",
    "tools",
    "mcp_servers",
    "skills",
    "metadata",
    "execution_identity",
    "created_at",
    "updated_at",
    "archived_at",
    "description",
    "system",
    "multiagent",
];

#[tokio::test]
async fn a_small_agent_is_answered_with_every_field_resolved() {
    let server = Server::start().await;
    let agent = server
        .post(
            "/v1/agents",
            json!({"name": "Coder", "model": "claude-opus-5-5"}),
        )
        .await;
    assert_fields(&agent, &FIELDS);
    assert_made(&agent, "agent_", "agent");
    assert_eq!(agent["name"], "Coder");
    assert_eq!(agent["version"], 1);
    assert_eq!(
        agent["model"],
        json!({"id": "claude-opus-5-5", "effort": {"type": "high"}, "speed": "standard", "inference_geo": null})
    );
    for list in ["tools", "mcp_servers", "skills"] {
        assert_eq!(agent[list], json!([]));
    }
    assert_eq!(agent["metadata"], json!({}));
    assert_eq!(
        agent["execution_identity"],
        json!({"type": "service_account"})
    );
    for absent in ["archived_at", "description", "system", "multiagent"] {
        assert_eq!(agent[absent], Value::Null);
    }
    assert_eq!(
        server.get(&format!("/v1/agents/{}", id(&agent))).await,
        agent
    );
}

#[tokio::test]
async fn toolsets_are_resolved_with_their_own_defaults() {
    let server = Server::start().await;
    let agent = server
        .post(
            "/v1/agents",
            json!({
                "name": "a",
                "model": {"id": "m", "effort": "low", "speed": "fast", "inference_geo": "eu"},
                "description": "d", "system": "s", "metadata": {"k": "v"},
                "tools": [
                    {"type": "agent_toolset_20260401", "configs": [
                        {"name": "bash", "permission_policy": {"type": "always_ask"}},
                        {"name": "web_fetch", "enabled": false},
                    ]},
                    {"type": "mcp_toolset", "mcp_server_name": "tracker", "configs": [{"name": "tracker_list", "enabled": false}]},
                ],
                "mcp_servers": [{"type": "url", "name": "tracker", "url": format!("{MCP_URL}/tracker")}],
            }),
        )
        .await;
    assert_eq!(
        agent["model"],
        json!({"id": "m", "effort": {"type": "low"}, "speed": "fast", "inference_geo": "eu"})
    );
    let allow = json!({"type": "always_allow"});
    let ask = json!({"type": "always_ask"});
    assert_eq!(
        agent["tools"],
        json!([
            {"type": "agent_toolset_20260401", "configs": [
                {"name": "bash", "type": "bash", "enabled": true, "permission_policy": ask},
                {"name": "web_fetch", "type": "web_fetch", "enabled": false, "permission_policy": allow},
            ], "default_config": {"enabled": true, "permission_policy": allow}},
            {"type": "mcp_toolset", "mcp_server_name": "tracker", "configs": [
                {"name": "tracker_list", "enabled": false, "permission_policy": ask},
            ], "default_config": {"enabled": true, "permission_policy": ask}},
        ])
    );
    assert_eq!(
        agent["mcp_servers"],
        json!([{"type": "url", "name": "tracker", "url": format!("{MCP_URL}/tracker")}])
    );
    assert_eq!(
        (&agent["description"], &agent["system"]),
        (&json!("d"), &json!("s"))
    );
    assert_eq!(agent["metadata"], json!({"k": "v"}));
}

#[tokio::test]
async fn an_update_makes_a_version_only_where_something_changed() {
    let server = Server::start().await;
    let made = server
        .post(
            "/v1/agents",
            json!({"name": "a", "model": "m", "system": "one", "metadata": {"x": "1", "y": "2"}}),
        )
        .await;
    let path = format!("/v1/agents/{}", id(&made));
    let two = server
        .post(
            &path,
            json!({"version": 1, "system": "two", "metadata": {"x": null, "z": "3"}}),
        )
        .await;
    assert_eq!(
        (&two["version"], &two["system"], &two["name"]),
        (&json!(2), &json!("two"), &json!("a"))
    );
    assert_eq!(two["metadata"], json!({"y": "2", "z": "3"}));
    assert_eq!(two["created_at"], made["created_at"]);
    assert_ne!(two["updated_at"], made["updated_at"]);
    let same = server.post(&path, json!({"system": "two"})).await;
    assert_eq!(same, two);
    server
        .refused(
            "POST",
            &path,
            json!({"version": 1, "system": "three"}),
            409,
            "version_conflict",
        )
        .await;
    let three = server.post(&path, json!({"system": null})).await;
    assert_eq!(
        (&three["version"], &three["system"]),
        (&json!(3), &Value::Null)
    );

    let versions = server.get(&format!("{path}/versions")).await;
    assert_eq!(versions["next_page"], Value::Null);
    let numbers: Vec<_> = versions["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|agent| agent["version"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [3, 2, 1]);
    let page = server.get(&format!("{path}/versions?limit=2")).await;
    let rest = server
        .get(&format!(
            "{path}/versions?limit=2&page={}",
            page["next_page"].as_str().unwrap()
        ))
        .await;
    assert_eq!(rest["data"].as_array().unwrap().len(), 1);
    assert_eq!(rest["data"][0]["system"], "one");
    for version in versions["data"].as_array().unwrap() {
        assert_fields(version, &FIELDS);
    }
    assert_eq!(
        server.get(&format!("{path}?version=2")).await["system"],
        "two"
    );
    server
        .refused(
            "GET",
            &format!("{path}?version=9"),
            Value::Null,
            404,
            "agent_version_not_found",
        )
        .await;
}

#[tokio::test]
async fn concurrent_updates_are_all_kept() {
    let server = Server::start().await;
    let path = format!(
        "/v1/agents/{}",
        id(&server
            .post("/v1/agents", json!({"name": "a", "model": "m"}))
            .await)
    );
    let update = |key: &'static str| server.post(&path, json!({"metadata": {key: "1"}}));
    tokio::join!(update("a"), update("b"), update("c"), update("d"));
    let agent = server.get(&path).await;
    assert_eq!(agent["version"], 5);
    assert_eq!(agent["metadata"].as_object().unwrap().len(), 4);
}

#[tokio::test]
async fn an_archived_agent_stays_readable_and_takes_nothing_more() {
    let server = Server::start().await;
    let agent = id(&server
        .post("/v1/agents", json!({"name": "a", "model": "m"}))
        .await);
    let environment = id(&server.post("/v1/environments", json!({"name": "e"})).await);
    let path = format!("/v1/agents/{agent}");
    let archived = server.post(&format!("{path}/archive"), Value::Null).await;
    assert!(archived["archived_at"].is_string());
    assert_eq!(
        server.post(&format!("{path}/archive"), Value::Null).await,
        archived,
        "a repeat changes nothing"
    );
    assert_eq!(server.get(&path).await, archived);
    server
        .refused("POST", &path, json!({"name": "b"}), 400, "agent_archived")
        .await;
    server
        .refused(
            "POST",
            "/v1/sessions",
            json!({"agent": agent, "environment_id": environment}),
            400,
            "agent_archived",
        )
        .await;
    assert_eq!(server.get("/v1/agents").await["data"], json!([]));
    assert_eq!(
        server.get("/v1/agents?include_archived=true").await["data"],
        json!([archived])
    );
    server
        .refused("DELETE", &path, Value::Null, 405, "unknown_method")
        .await;
}

#[tokio::test]
async fn lists_are_paged_newest_first_and_filtered() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        ids.push(id(&server
            .post("/v1/agents", json!({"name": name, "model": "m"}))
            .await));
    }
    ids.reverse();
    let mut found = Vec::new();
    let mut path = "/v1/agents?limit=2".to_owned();
    loop {
        let page = server.get(&path).await;
        assert_fields(&page, &["data", "next_page"]);
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 2);
        found.extend(data.iter().map(id));
        match page["next_page"].as_str() {
            Some(next) => path = format!("/v1/agents?limit=2&page={next}"),
            None => break,
        }
    }
    assert_eq!(found, ids);
    let third = server.get(&format!("/v1/agents/{}", ids[2])).await;
    let at = third["created_at"].as_str().unwrap();
    let later = server
        .get(&format!("/v1/agents?created_at%5Bgte%5D={at}"))
        .await;
    assert_eq!(
        later["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(id)
            .collect::<Vec<_>>(),
        ids[..3]
    );
    let earlier = server
        .get(&format!("/v1/agents?created_at%5Blt%5D={at}"))
        .await;
    assert_eq!(earlier["data"].as_array().unwrap().len(), 2);
    for query in [
        "limit=0",
        "limit=101",
        "limit=x",
        "page=zzz",
        "page=asc.agent_1",
        "page=desc.agent_none",
        "include_archived=maybe",
        "created_at[gte]=soon",
    ] {
        server
            .refused(
                "GET",
                &format!("/v1/agents?{query}"),
                Value::Null,
                400,
                "invalid_field",
            )
            .await;
    }
}

#[tokio::test]
async fn what_an_agent_cannot_be_is_refused_with_its_reason() {
    let server = Server::start().await;
    let toolset = |config: Value| json!({"name": "a", "model": "m", "tools": [{"type": "agent_toolset_20260401", "configs": [config]}]});
    let mcp = json!({"type": "mcp_toolset", "mcp_server_name": "x"});
    let server_x = json!({"type": "url", "name": "x", "url": MCP_URL});
    for (body, code) in [
        (json!([]), "invalid_field"),
        (json!({"model": "m"}), "invalid_field"),
        (json!({"name": "", "model": "m"}), "invalid_field"),
        (json!({"name": "a"}), "invalid_field"),
        (json!({"name": "a", "model": 7}), "invalid_field"),
        (
            json!({"name": "a", "model": {"id": "m", "effort": "extreme"}}),
            "invalid_field",
        ),
        (
            json!({"name": "a", "model": "m", "system": "x".repeat(100_001)}),
            "invalid_field",
        ),
        (
            json!({"name": "a", "model": "m", "surprise": 1}),
            "unknown_field",
        ),
        (
            json!({"name": "a", "model": "m", "version": 1}),
            "unknown_field",
        ),
        (
            json!({"name": "a", "model": "m", "metadata": {"k": 1}}),
            "invalid_metadata",
        ),
        (
            json!({"name": "a", "model": "m", "tools": [{"type": "custom", "name": "x"}]}),
            "custom_tools_not_supported",
        ),
        (
            json!({"name": "a", "model": "m", "skills": [{"type": "anthropic"}]}),
            "skills_not_supported",
        ),
        (
            json!({"name": "a", "model": "m", "multiagent": {"type": "coordinator"}}),
            "multiagent_not_supported",
        ),
        (
            json!({"name": "a", "model": "m", "execution_identity": {"type": "aws_role"}}),
            "execution_identity_not_supported",
        ),
        (toolset(json!({"name": "teleport"})), "invalid_field"),
        (
            toolset(json!({"name": "web_search"})),
            "web_tools_not_supported",
        ),
        (
            toolset(json!({"name": "bash", "permission_policy": {"type": "auto"}})),
            "auto_policy_not_supported",
        ),
        (
            json!({"name": "a", "model": "m", "tools": [mcp]}),
            "mcp_server_unknown",
        ),
        (
            json!({"name": "a", "model": "m", "mcp_servers": [server_x]}),
            "mcp_server_unused",
        ),
        (
            json!({"name": "a", "model": "m", "tools": [mcp, mcp], "mcp_servers": [server_x]}),
            "invalid_field",
        ),
        (
            json!({"name": "a", "model": "m", "tools": [mcp], "mcp_servers": [server_x, server_x]}),
            "invalid_field",
        ),
        (
            json!({"name": "a", "model": "m", "tools": [mcp], "mcp_servers": [{"type": "url", "name": "x", "url": "http://u:p@h/"}]}),
            "invalid_field",
        ),
    ] {
        server.refused("POST", "/v1/agents", body, 400, code).await;
    }
    assert_eq!(server.get("/v1/agents").await["data"], json!([]));
}

#[tokio::test]
async fn an_agent_is_its_makers_and_an_operators_agent_is_for_all_to_use() {
    let server = Server::start().await;
    let agent = id(&server
        .post("/v1/agents", json!({"name": "a", "model": "m"}))
        .await);
    let path = format!("/v1/agents/{agent}");
    server
        .call(BOB, "GET", &path, Value::Null)
        .await
        .assert_refused(404, "agent_not_found");
    server
        .call(BOB, "POST", &path, json!({"name": "b"}))
        .await
        .assert_refused(404, "agent_not_found");
    assert_eq!(
        server
            .call(BOB, "GET", "/v1/agents", Value::Null)
            .await
            .ok()["data"],
        json!([])
    );
    assert_eq!(
        server.local("GET", &path, &[], Value::Null).await.ok()["id"],
        *agent
    );

    let shared = id(&server
        .local(
            "POST",
            "/v1/agents",
            &[],
            json!({"name": "shared", "model": "m"}),
        )
        .await
        .ok());
    let path = format!("/v1/agents/{shared}");
    assert_eq!(
        server.call(BOB, "GET", &path, Value::Null).await.ok()["name"],
        "shared"
    );
    server
        .call(BOB, "POST", &path, json!({"name": "mine"}))
        .await
        .assert_refused(403, "not_owner");
    server
        .call(BOB, "POST", &format!("{path}/archive"), Value::Null)
        .await
        .assert_refused(403, "not_owner");
}
