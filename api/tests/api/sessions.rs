use serde_json::{Value, json};

use crate::support::{ALICE, BOB, MCP_URL, Server, assert_fields, assert_made, id};

const FIELDS: [&str; 18] = [
    "id",
    "type",
    "agent",
    "environment_id",
    "status",
    "title",
    "metadata",
    "vault_ids",
    "resources",
    "budget",
    "outcome_evaluations",
    "deployment_id",
    "stats",
    "usage",
    "created_at",
    "updated_at",
    "archived_at",
    "",
];

fn message(text: &str) -> Value {
    json!({"type": "user.message", "content": [{"type": "text", "text": text}]})
}

#[tokio::test]
async fn a_session_is_answered_with_every_field() {
    let server = Server::start().await;
    let (agent, environment) = server.workplace().await;
    let vault = id(&server
        .post("/v1/vaults", json!({"display_name": "v"}))
        .await);
    let made = server
        .post(
            "/v1/sessions",
            json!({
                "agent": agent, "environment_id": environment, "title": "t", "metadata": {"k": "v"},
                "vault_ids": [vault, "vlt_local", vault], "resources": [], "initial_events": [],
            }),
        )
        .await;
    assert_fields(&made, &FIELDS[..17]);
    assert_made(&made, "sesn_", "session");
    assert_eq!(made["status"], "idle");
    assert_eq!(
        (&made["title"], &made["metadata"]),
        (&json!("t"), &json!({"k": "v"}))
    );
    assert_eq!(made["vault_ids"], json!([vault, "vlt_local"]));
    assert_eq!(
        (&made["resources"], &made["outcome_evaluations"]),
        (&json!([]), &json!([]))
    );
    assert_fields(&made["stats"], &["active_seconds", "duration_seconds"]);
    assert_eq!(made["stats"]["active_seconds"], 0.0);
    assert!(made["stats"]["duration_seconds"].is_f64());
    assert_fields(
        &made["usage"],
        &[
            "input_tokens",
            "output_tokens",
            "cache_read_input_tokens",
            "cache_creation",
            "active_seconds",
        ],
    );
    assert_eq!(
        made["usage"]["cache_creation"],
        json!({"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0})
    );
    assert_fields(
        &made["agent"],
        &[
            "id",
            "type",
            "name",
            "version",
            "model",
            "tools",
            "mcp_servers",
            "skills",
            "execution_identity",
            "description",
            "system",
            "multiagent",
        ],
    );
    assert_eq!(
        (&made["agent"]["type"], &made["agent"]["id"]),
        (&json!("agent"), &json!(agent))
    );
    let read = server.get(&format!("/v1/sessions/{}", id(&made))).await;
    assert_eq!(
        (&read["agent"], &read["updated_at"]),
        (&made["agent"], &made["updated_at"])
    );
}

#[tokio::test]
async fn the_charter_is_registered_before_the_first_event_and_says_what_the_agent_may() {
    let server = Server::start().await;
    let (_, environment) = server.workplace().await;
    let toolset = |name: &str| json!({"type": "mcp_toolset", "mcp_server_name": name});
    let url = |name: &str, url: String| json!({"type": "url", "name": name, "url": url});
    let agent = server
        .post(
            "/v1/agents",
            json!({
                "name": "a", "model": "m", "tools": [toolset("t"), toolset("b")],
                "mcp_servers": [url("t", format!("{MCP_URL}/tracker")), url("b", format!("{MCP_URL}/billing"))],
            }),
        )
        .await;
    let body =
        json!({"agent": id(&agent), "environment_id": environment, "vault_ids": ["vlt_local"]});
    let session = id(&server.post("/v1/sessions", body.clone()).await);
    let charter = server.vault.state.lock().unwrap().charters[0].clone();
    assert_eq!(charter.session, session);
    assert_eq!(charter.principal.as_str(), format!("key:{ALICE}"));
    assert_eq!(charter.vaults, ["vlt_local"]);
    assert_eq!(charter.tools, ["billing", "tracker"]);
    assert_eq!(charter.model_credential, "anthropic");
    assert_eq!(charter.agent, format!("{}@1", id(&agent)));
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap();
    let day = 24 * 60 * 60 * 1000;
    assert!((now + day - 60_000..=now + day).contains(&charter.expires_at_ms));

    // Where the vault refuses the charter there is no session at all.
    let refusal = claviger_vault_protocol::Refusal::new("vault_sealed", "the vault is sealed");
    server.vault.state.lock().unwrap().refusal = Some(refusal);
    server
        .refused("POST", "/v1/sessions", body, 503, "vault_sealed")
        .await;
    assert_eq!(
        server
            .log
            .list("sesn_", None, 10, true)
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn an_agent_of_foreign_servers_gets_no_session() {
    let server = Server::start().await;
    let (agent, environment) = server.workplace().await;
    let overrides = json!({
        "type": "agent_with_overrides", "id": agent,
        "tools": [{"type": "mcp_toolset", "mcp_server_name": "gh"}],
        "mcp_servers": [{"type": "url", "name": "gh", "url": "https://mcp.example.com"}],
    });
    let body = json!({"agent": overrides, "environment_id": environment});
    let reply = server
        .refused(
            "POST",
            "/v1/sessions",
            body,
            400,
            "mcp_server_not_supported",
        )
        .await;
    assert!(
        reply.body["error"]["details"]["fix"]
            .as_str()
            .unwrap()
            .contains(MCP_URL)
    );
    assert!(server.vault.state.lock().unwrap().charters.is_empty());
}

#[tokio::test]
async fn the_agent_comes_in_three_forms() {
    let server = Server::start().await;
    let (agent, environment) = server.workplace().await;
    server
        .post(&format!("/v1/agents/{agent}"), json!({"system": "two"}))
        .await;
    let make = async |reference: Value| {
        server
            .post(
                "/v1/sessions",
                json!({"agent": reference, "environment_id": environment}),
            )
            .await
    };
    let newest = make(json!(agent)).await;
    assert_eq!(
        (&newest["agent"]["version"], &newest["agent"]["system"]),
        (&json!(2), &json!("two"))
    );
    let pinned = make(json!({"type": "agent", "id": agent, "version": 1})).await;
    assert_eq!(
        (&pinned["agent"]["version"], &pinned["agent"]["system"]),
        (&json!(1), &Value::Null)
    );
    let overridden = make(json!({
        "type": "agent_with_overrides", "id": agent, "version": 1, "model": "other", "system": "mine",
        "tools": [{"type": "agent_toolset_20260401"}],
    }))
    .await;
    assert_eq!(overridden["agent"]["model"]["id"], "other");
    assert_eq!(
        (
            &overridden["agent"]["version"],
            &overridden["agent"]["system"]
        ),
        (&json!(1), &json!("mine"))
    );
    assert_eq!(
        overridden["agent"]["tools"][0]["default_config"]["enabled"],
        true
    );
    assert_eq!(
        server.get(&format!("/v1/agents/{agent}")).await["system"],
        "two",
        "overrides stay with their session"
    );
    for (reference, status, code) in [
        (json!("agent_none"), 404, "agent_not_found"),
        (json!(7), 400, "invalid_field"),
        (json!({"type": "agent"}), 400, "invalid_field"),
        (
            json!({"type": "agent", "id": agent, "version": 9}),
            404,
            "agent_version_not_found",
        ),
        (
            json!({"type": "agent", "id": agent, "system": "x"}),
            400,
            "unknown_field",
        ),
        (
            json!({"type": "agent_with_overrides", "id": agent, "name": "x"}),
            400,
            "unknown_field",
        ),
        (
            json!({"type": "agent_with_overrides", "id": agent, "tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}),
            400,
            "mcp_server_unknown",
        ),
    ] {
        server
            .refused(
                "POST",
                "/v1/sessions",
                json!({"agent": reference, "environment_id": environment}),
                status,
                code,
            )
            .await;
    }
}

#[tokio::test]
async fn initial_events_start_the_session_and_come_all_or_none() {
    let server = Server::start().await;
    let (agent, environment) = server.workplace().await;
    let body = |events: Value| json!({"agent": agent, "environment_id": environment, "initial_events": events});
    let made = server
        .post(
            "/v1/sessions",
            body(json!([message("one"), message("two")])),
        )
        .await;
    assert_eq!(made["status"], "running");
    let events = server
        .get(&format!("/v1/sessions/{}/events", id(&made)))
        .await;
    let texts: Vec<_> = events["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["content"][0]["text"].clone())
        .collect();
    assert_eq!(texts, ["one", "two"]);
    let stored = server
        .log
        .read(
            &id(&made).parse().unwrap(),
            claviger_session::Query::default(),
        )
        .await
        .unwrap();
    assert_eq!(stored[0].kind, "session.created");
    assert_eq!(stored[0].payload["principal"], format!("key:{ALICE}"));
    assert_eq!(stored[0].payload["environment"]["type"], "cloud");

    for (events, code) in [
        (
            json!([message("one"), {"type": "user.define_outcome"}]),
            "event_type_not_supported",
        ),
        (
            json!([{"type": "user.interrupt"}]),
            "event_type_not_supported",
        ),
        (
            json!([{"type": "user.message", "content": []}]),
            "invalid_field",
        ),
        (json!(vec![message("x"); 51]), "invalid_field"),
    ] {
        server
            .refused("POST", "/v1/sessions", body(events), 400, code)
            .await;
    }
    assert_eq!(
        server.get("/v1/sessions").await["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn what_a_session_cannot_have_is_refused() {
    let server = Server::start().await;
    let (agent, environment) = server.workplace().await;
    let bobs = server
        .call(BOB, "POST", "/v1/vaults", json!({"display_name": "b"}))
        .await
        .ok();
    let with = |name: &str, value: Value| {
        let mut body = json!({"agent": agent, "environment_id": environment});
        body[name] = value;
        body
    };
    for (body, status, code) in [
        (
            with("budget", json!({"limit": 1})),
            400,
            "budget_not_supported",
        ),
        (
            with("resources", json!([{"type": "file"}])),
            400,
            "resources_not_supported",
        ),
        (
            with("vault_ids", json!(["vlt_none"])),
            404,
            "vault_not_found",
        ),
        (
            with("vault_ids", json!(["vlt_system"])),
            404,
            "vault_not_found",
        ),
        (
            with("vault_ids", json!([bobs["id"]])),
            404,
            "vault_not_found",
        ),
        (with("vault_ids", json!([7])), 400, "invalid_field"),
        (
            with("environment_id", json!("env_none")),
            404,
            "environment_not_found",
        ),
        (with("environment_id", Value::Null), 400, "invalid_field"),
        (with("surprise", json!(1)), 400, "unknown_field"),
        (
            with("metadata", json!({"k": "x".repeat(513)})),
            400,
            "invalid_metadata",
        ),
    ] {
        server
            .refused("POST", "/v1/sessions", body, status, code)
            .await;
    }
    assert!(server.vault.state.lock().unwrap().charters.is_empty());
}

#[tokio::test]
async fn a_repeat_with_the_same_idempotency_key_makes_one_session() {
    let server = Server::start().await;
    let (agent, environment) = server.workplace().await;
    let body =
        json!({"agent": agent, "environment_id": environment, "initial_events": [message("hi")]})
            .to_string();
    let headers = [("x-api-key", ALICE), ("idempotency-key", "one")];
    let first = server
        .raw("POST", "/v1/sessions", &headers, body.clone().into())
        .await
        .ok();
    let again = server
        .raw("POST", "/v1/sessions", &headers, body.into())
        .await
        .ok();
    assert_eq!(id(&first), id(&again));
    let events = server
        .get(&format!("/v1/sessions/{}/events", id(&first)))
        .await;
    assert_eq!(events["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_status_follows_the_log_and_sums_its_usage() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}");
    let status = async || {
        server.get(&path).await["status"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(status().await, "idle");
    server
        .post(
            &format!("{path}/events"),
            json!({"events": [message("hi")]}),
        )
        .await;
    assert_eq!(
        status().await,
        "running",
        "from the moment that the message is durable"
    );
    let usage = json!({"input_tokens": 10, "output_tokens": 2, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 4});
    server
        .harness(
            &session,
            vec![
                ("session.status_running", json!({})),
                ("span.model_request_start", json!({})),
                (
                    "span.model_request_end",
                    json!({"is_error": false, "model_usage": usage}),
                ),
            ],
        )
        .await;
    assert_eq!(status().await, "running");
    server
        .harness(&session, vec![("session.status_rescheduled", json!({}))])
        .await;
    assert_eq!(status().await, "rescheduling");
    server
        .harness(
            &session,
            vec![(
                "session.status_idle",
                json!({"stop_reason": {"type": "end_turn"}, "handled_seq": 2}),
            )],
        )
        .await;
    let idle = server.get(&path).await;
    assert_eq!(idle["status"], "idle");
    assert_eq!(
        (
            &idle["usage"]["input_tokens"],
            &idle["usage"]["output_tokens"]
        ),
        (&json!(10), &json!(2))
    );
    assert_eq!(
        idle["usage"]["cache_creation"]["ephemeral_5m_input_tokens"],
        4
    );
    assert_eq!(idle["usage"]["cache_read_input_tokens"], 3);
    // A message that came after what the harness handled keeps the session running.
    server
        .post(
            &format!("{path}/events"),
            json!({"events": [message("more")]}),
        )
        .await;
    server
        .harness(
            &session,
            vec![(
                "session.status_idle",
                json!({"stop_reason": {"type": "end_turn"}, "handled_seq": 2}),
            )],
        )
        .await;
    assert_eq!(status().await, "running");
    server
        .harness(&session, vec![("session.status_terminated", json!({}))])
        .await;
    assert_eq!(status().await, "terminated");
    let send = json!({"events": [message("late")]});
    server
        .refused(
            "POST",
            &format!("{path}/events"),
            send,
            400,
            "session_terminated",
        )
        .await;
}

#[tokio::test]
async fn an_update_changes_what_is_said_about_a_session_and_nothing_else() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}");
    let changed = server
        .post(&path, json!({"title": "t", "metadata": {"a": "1"}}))
        .await;
    assert_eq!(
        (&changed["title"], &changed["metadata"]),
        (&json!("t"), &json!({"a": "1"}))
    );
    let cleared = server
        .post(
            &path,
            json!({"title": null, "metadata": {"a": null, "b": "2"}}),
        )
        .await;
    assert_eq!(
        (&cleared["title"], &cleared["metadata"]),
        (&Value::Null, &json!({"b": "2"}))
    );
    for (body, code) in [
        (json!({"vault_ids": ["vlt_local"]}), "vault_ids_immutable"),
        (json!({"agent": {"tools": []}}), "session_agent_immutable"),
        (json!({"budget": null}), "budget_not_supported"),
        (json!({"environment_id": "env_1"}), "unknown_field"),
    ] {
        server.refused("POST", &path, body, 400, code).await;
    }
    let events = server
        .get(&format!("{path}/events?types[]=session.updated"))
        .await;
    assert_eq!(events["data"].as_array().unwrap().len(), 2);
    assert_eq!(events["data"][0]["title"], "t");
}

#[tokio::test]
async fn a_running_session_is_not_ended_and_an_idle_one_is() {
    let server = Server::start().await;
    let session = server.session().await;
    let path = format!("/v1/sessions/{session}");
    server
        .post(
            &format!("{path}/events"),
            json!({"events": [message("hi")]}),
        )
        .await;
    server
        .refused(
            "POST",
            &format!("{path}/archive"),
            Value::Null,
            400,
            "session_running",
        )
        .await;
    server
        .refused("DELETE", &path, Value::Null, 400, "session_running")
        .await;
    let idle = (
        "session.status_idle",
        json!({"stop_reason": {"type": "end_turn"}, "handled_seq": 2}),
    );
    server
        .harness(&session, vec![("session.status_running", json!({})), idle])
        .await;
    // Right after idle became visible: what is seen is what is so.
    let archived = server.post(&format!("{path}/archive"), Value::Null).await;
    assert_eq!(archived["status"], "terminated");
    assert!(archived["archived_at"].is_string());
    assert_eq!(
        server.post(&format!("{path}/archive"), Value::Null).await["archived_at"],
        archived["archived_at"]
    );
    server
        .refused(
            "POST",
            &format!("{path}/events"),
            json!({"events": [message("x")]}),
            400,
            "session_archived",
        )
        .await;
    server
        .refused(
            "POST",
            &path,
            json!({"title": "x"}),
            400,
            "session_archived",
        )
        .await;
    let events = server
        .get(&format!("{path}/events?order=desc&limit=1"))
        .await;
    assert_eq!(events["data"][0]["type"], "session.status_terminated");
    assert_eq!(server.get("/v1/sessions").await["data"], json!([]));
    assert_eq!(
        server.get("/v1/sessions?include_archived=true").await["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );

    let deleted = server.call(ALICE, "DELETE", &path, Value::Null).await.ok();
    assert_eq!(deleted, json!({"id": session, "type": "session_deleted"}));
    for (method, path) in [
        ("GET", path.clone()),
        ("DELETE", path.clone()),
        ("GET", format!("{path}/events")),
        ("GET", format!("{path}/events/stream")),
    ] {
        server
            .refused(method, &path, Value::Null, 404, "session_not_found")
            .await;
    }
    assert_eq!(
        server.get("/v1/sessions?include_archived=true").await["data"],
        json!([])
    );
}

#[tokio::test]
async fn a_session_that_never_ran_can_be_ended() {
    let server = Server::start().await;
    let (one, two) = (server.session().await, server.session().await);
    server
        .post(&format!("/v1/sessions/{one}/archive"), Value::Null)
        .await;
    server
        .call(ALICE, "DELETE", &format!("/v1/sessions/{two}"), Value::Null)
        .await
        .ok();
    // Nobody's lease stays behind.
    server
        .log
        .lease(&one.parse().unwrap(), "hrn_test", 1_000)
        .await
        .unwrap();
}

#[tokio::test]
async fn lists_are_filtered_ordered_and_paged() {
    let server = Server::start().await;
    let (agent, environment) = server.workplace().await;
    let (other, _) = server.workplace().await;
    let make = async |agent: &str, events: Value| {
        id(&server
            .post(
                "/v1/sessions",
                json!({"agent": agent, "environment_id": environment, "initial_events": events}),
            )
            .await)
    };
    let a = make(&agent, json!([])).await;
    let b = make(&agent, json!([message("hi")])).await;
    let c = make(&other, json!([])).await;
    let list = async |query: &str| {
        let page = server.get(&format!("/v1/sessions?{query}")).await;
        assert_fields(&page, &["data", "next_page", "prev_page"]);
        let ids: Vec<String> = page["data"].as_array().unwrap().iter().map(id).collect();
        (ids, page["next_page"].as_str().map(str::to_owned))
    };
    assert_eq!(list("").await.0, [c.clone(), b.clone(), a.clone()]);
    assert_eq!(list("order=asc").await.0, [a.clone(), b.clone(), c.clone()]);
    assert_eq!(
        list(&format!("agent_id={agent}")).await.0,
        [b.clone(), a.clone()]
    );
    assert_eq!(
        list(&format!("agent_id={agent}&agent_version=2")).await.0,
        Vec::<String>::new()
    );
    assert_eq!(
        list("statuses%5B%5D=running").await.0,
        std::slice::from_ref(&b)
    );
    assert_eq!(
        list("statuses%5B%5D=running&statuses%5B%5D=idle")
            .await
            .0
            .len(),
        3
    );
    let (first, next) = list("order=asc&limit=2").await;
    assert_eq!(first, [a, b]);
    assert_eq!(
        list(&format!("order=asc&limit=2&page={}", next.clone().unwrap())).await,
        (vec![c], None)
    );
    server
        .refused(
            "GET",
            &format!("/v1/sessions?order=desc&page={}", next.unwrap()),
            Value::Null,
            400,
            "invalid_field",
        )
        .await;
    server
        .refused(
            "GET",
            "/v1/sessions?statuses[]=asleep",
            Value::Null,
            400,
            "invalid_field",
        )
        .await;
    assert_eq!(
        server
            .call(BOB, "GET", "/v1/sessions", Value::Null)
            .await
            .ok()["data"],
        json!([])
    );
    assert_eq!(
        server
            .local("GET", "/v1/sessions", &[], Value::Null)
            .await
            .ok()["data"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}
