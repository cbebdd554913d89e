use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{ALICE, BOB, Server};

#[tokio::test]
async fn both_generations_of_sdks_are_let_in_by_their_key() {
    let server = Server::start().await;
    let bearer = format!("Bearer {ALICE}");
    for headers in [
        [("x-api-key", ALICE), ("anthropic-version", "2023-06-01")],
        [
            ("authorization", bearer.as_str()),
            ("anthropic-version", "2026-10-21"),
        ],
    ] {
        let old = server
            .raw("GET", "/v1/agents?beta=true", &headers, Vec::new())
            .await
            .ok();
        let new = server
            .raw("GET", "/v1/agents", &headers, Vec::new())
            .await
            .ok();
        assert_eq!(old, new);
    }
}

#[tokio::test]
async fn nobody_gets_in_over_tcp_without_a_good_key() {
    let server = Server::start().await;
    for headers in [
        vec![],
        vec![("x-api-key", "wrong")],
        vec![("x-api-key", "")],
        vec![("authorization", "Bearer wrong")],
        vec![("authorization", "Basic Y2xhdmlnZXI=")],
        vec![
            ("x-api-key", ALICE),
            ("authorization", "Bearer clv-key-bob"),
        ],
        vec![("x-api-key", ALICE), ("x-api-key", BOB)],
    ] {
        for (method, path) in [
            ("GET", "/v1/agents"),
            ("POST", "/v1/sessions"),
            ("GET", "/v1/sessions/sesn_1/events/stream"),
        ] {
            server
                .raw(method, path, &headers, Vec::new())
                .await
                .assert_refused(401, "key_required");
        }
    }
}

#[tokio::test]
async fn a_foreign_host_or_page_is_refused_before_its_key_is_looked_at() {
    let server = Server::start().await;
    let port = server.address.port();
    let key = ("x-api-key", ALICE);
    for host in [
        "evil.example",
        &format!("evil.example:{port}"),
        "127.0.0.1:1",
        "localhost",
    ] {
        server
            .raw("GET", "/v1/agents", &[("host", host), key], Vec::new())
            .await
            .assert_refused(403, "foreign_host");
    }
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
    ] {
        server
            .raw("GET", "/v1/agents", &[(name, value), key], Vec::new())
            .await
            .assert_refused(403, "foreign_host");
    }
    assert_eq!(server.vault.state.lock().unwrap().authentications, 0);
    let own = format!("http://localhost:{port}");
    server
        .raw("GET", "/v1/agents", &[("origin", &own), key], Vec::new())
        .await
        .ok();
}

#[tokio::test]
async fn an_operator_needs_no_key_on_the_socket_and_anyone_else_does() {
    let server = Server::start().await;
    let made = server
        .local(
            "POST",
            "/v1/agents",
            &[],
            json!({"name": "a", "model": "m"}),
        )
        .await
        .ok();
    let environment = server
        .local("POST", "/v1/environments", &[], json!({"name": "e"}))
        .await
        .ok();
    let body = json!({"agent": made["id"], "environment_id": environment["id"], "vault_ids": ["vlt_local"]});
    server.local("POST", "/v1/sessions", &[], body).await.ok();
    let charter = server.vault.state.lock().unwrap().charters[0].clone();
    assert_eq!(
        charter.principal.as_str(),
        format!("operator:uid:{}", server.uid)
    );
    assert_eq!(charter.vaults, ["vlt_local"]);
    // A key decides where one is given, and a wrong one is no way in.
    server
        .local("GET", "/v1/agents", &[("x-api-key", "wrong")], Value::Null)
        .await
        .assert_refused(401, "key_required");

    let stranger = Server::start_with(|uid| vec![uid + 1]).await;
    stranger
        .local("GET", "/v1/agents", &[], Value::Null)
        .await
        .assert_refused(401, "key_required");
    stranger
        .local("GET", "/v1/agents", &[("x-api-key", ALICE)], Value::Null)
        .await
        .ok();
}

#[tokio::test]
async fn the_vaults_word_on_a_key_is_remembered_for_a_moment() {
    let server = Server::start().await;
    for _ in 0..5 {
        server.get("/v1/agents").await;
    }
    assert_eq!(server.vault.state.lock().unwrap().authentications, 1);
    server
        .call("wrong", "GET", "/v1/agents", Value::Null)
        .await
        .assert_refused(401, "key_required");
    server
        .call("wrong", "GET", "/v1/agents", Value::Null)
        .await
        .assert_refused(401, "key_required");
    assert_eq!(
        server.vault.state.lock().unwrap().authentications,
        3,
        "a refusal is not remembered"
    );
}

#[tokio::test]
async fn every_refusal_has_the_envelope() {
    let server = Server::start().await;
    server
        .refused("GET", "/v1/nothing", Value::Null, 404, "unknown_path")
        .await;
    server
        .refused("GET", "/", Value::Null, 404, "unknown_path")
        .await;
    server
        .refused("PUT", "/v1/agents", Value::Null, 405, "unknown_method")
        .await;
    server
        .refused(
            "GET",
            "/v1/agents/sesn_1",
            Value::Null,
            404,
            "agent_not_found",
        )
        .await;
    server
        .refused(
            "GET",
            "/v1/agents/..%2f..%2fetc",
            Value::Null,
            404,
            "agent_not_found",
        )
        .await;
    server
        .refused(
            "GET",
            "/v1/agents/agent_%00",
            Value::Null,
            404,
            "agent_not_found",
        )
        .await;
    for body in ["", "{", "nope", "\u{feff}{}", "{\"a\":1}x"] {
        let reply = server
            .raw("POST", "/v1/agents", &[("x-api-key", ALICE)], body.into())
            .await;
        reply.assert_refused(400, "malformed_json");
    }
    let deep = format!("{}{}", "[".repeat(65), "]".repeat(65)).into_bytes();
    server
        .raw("POST", "/v1/agents", &[("x-api-key", ALICE)], deep)
        .await
        .assert_refused(400, "nested_too_deep");
    let reply = server.get("/v1/agents").await;
    assert_eq!(reply["data"], json!([]));
}

#[tokio::test]
async fn a_body_over_the_cap_is_refused() {
    let server = Server::start().await;
    let mut body = br#"{"name":"a","model":"m","system":""#.to_vec();
    body.resize(33 * 1024 * 1024, b'x');
    let reply = tokio::time::timeout(
        Duration::from_secs(30),
        server.raw("POST", "/v1/agents", &[("x-api-key", ALICE)], body),
    )
    .await;
    reply.unwrap().assert_refused(413, "body_too_large");
}

#[tokio::test]
async fn the_role_ends_when_told_to() {
    let server = Server::start().await;
    let session = server.session().await;
    let mut frames = server
        .stream(&format!("/v1/sessions/{session}/events/stream"), None)
        .await;
    assert_eq!(frames.next_any().await.unwrap().event, "ping");
    server.api_stop.cancel();
    assert_eq!(frames.next().await, None, "streams end with the role");
    tokio::time::timeout(Duration::from_secs(5), async {
        while tokio::net::TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the listener closes");
}
