use claviger_vault_protocol::{CredentialKind, Slot};
use serde_json::{Value, json};

use crate::support::{ALICE, BOB, Server, assert_fields, assert_made, id};

async fn vault(server: &Server) -> String {
    id(&server
        .post("/v1/vaults", json!({"display_name": "Alice"}))
        .await)
}

#[tokio::test]
async fn a_vault_is_made_changed_archived_and_deleted() {
    let server = Server::start().await;
    let made = server
        .post(
            "/v1/vaults",
            json!({"display_name": "Alice", "metadata": {"k": "v"}}),
        )
        .await;
    assert_made(&made, "vlt_", "vault");
    assert_fields(
        &made,
        &[
            "id",
            "type",
            "display_name",
            "metadata",
            "created_at",
            "updated_at",
            "archived_at",
        ],
    );
    let path = format!("/v1/vaults/{}", id(&made));
    let changed = server
        .post(&path, json!({"display_name": "A", "metadata": {"k": null}}))
        .await;
    assert_eq!(
        (&changed["display_name"], &changed["metadata"]),
        (&json!("A"), &json!({}))
    );
    assert_eq!(
        server.get("/v1/vaults").await,
        json!({"data": [changed], "next_page": null})
    );
    server
        .refused(
            "POST",
            "/v1/vaults",
            json!({"display_name": ""}),
            400,
            "invalid_field",
        )
        .await;

    let credentials = format!("{path}/credentials");
    let auth = json!({"type": "static_bearer", "mcp_server_url": "https://x.example/mcp", "token": "tok-0123456789"});
    let credential = server.post(&credentials, json!({"auth": auth})).await;
    let archived = server.post(&format!("{path}/archive"), Value::Null).await;
    assert!(archived["archived_at"].is_string());
    let credential = server
        .get(&format!("{credentials}/{}", id(&credential)))
        .await;
    assert!(
        credential["archived_at"].is_string(),
        "archiving a vault archives what is in it"
    );
    server
        .refused(
            "POST",
            &credentials,
            json!({"auth": auth}),
            400,
            "vault_archived",
        )
        .await;
    let (agent, environment) = server.workplace().await;
    let session = json!({"agent": agent, "environment_id": environment, "vault_ids": [id(&made)]});
    server
        .refused(
            "POST",
            "/v1/sessions",
            session.clone(),
            400,
            "vault_archived",
        )
        .await;

    let deleted = server.call(ALICE, "DELETE", &path, Value::Null).await.ok();
    assert_eq!(deleted, json!({"id": id(&made), "type": "vault_deleted"}));
    assert!(
        server.vault.state.lock().unwrap().rows.is_empty(),
        "deleting a vault deletes what is in it"
    );
    server
        .refused("GET", &path, Value::Null, 404, "vault_not_found")
        .await;
    server
        .refused("POST", "/v1/sessions", session, 404, "vault_not_found")
        .await;
}

#[tokio::test]
async fn a_static_bearer_is_bound_to_its_server_and_sealed_to_the_vault() {
    let server = Server::start().await;
    let vault = vault(&server).await;
    let path = format!("/v1/vaults/{vault}/credentials");
    let url = "https://MCP.example.com:8443/team/mcp/";
    let auth =
        json!({"type": "static_bearer", "mcp_server_url": url, "token": "tok-\u{e9}\"0123456789"});
    let made = server
        .post(
            &path,
            json!({"auth": auth, "display_name": "c", "metadata": {"k": "v"}}),
        )
        .await;
    assert_made(&made, "vcrd_", "vault_credential");
    assert_fields(
        &made,
        &[
            "id",
            "type",
            "vault_id",
            "display_name",
            "metadata",
            "auth",
            "created_at",
            "updated_at",
            "archived_at",
        ],
    );
    assert_eq!(
        made["auth"],
        json!({"type": "static_bearer", "mcp_server_url": url})
    );
    assert_eq!(
        (
            &made["vault_id"],
            &made["display_name"],
            &made["metadata"],
            &made["archived_at"]
        ),
        (&json!(vault), &json!("c"), &json!({"k": "v"}), &Value::Null)
    );
    {
        let state = server.vault.state.lock().unwrap();
        let row = &state.rows[0];
        assert_eq!(state.secrets[&id(&made)], "tok-\u{e9}\"0123456789");
        assert_eq!(
            row.binding.destination.origin(),
            "https://mcp.example.com:8443"
        );
        assert_eq!(row.binding.path_prefixes, ["/team/mcp"]);
        assert!(row.binding.methods.is_empty() && row.variable.is_none());
        assert_eq!(row.kind, CredentialKind::Bearer);
        assert_eq!(
            row.binding.slot,
            Slot::Header {
                name: "authorization".into(),
                prefix: "Bearer ".into()
            }
        );
        assert_eq!(
            state.principals[0].as_ref().unwrap().as_str(),
            format!("key:{ALICE}")
        );
    }
    // The same server in another spelling is the same credential.
    let again = json!({"type": "static_bearer", "mcp_server_url": "https://mcp.example.com:8443/team/mcp", "token": "other-0123456789"});
    server
        .refused("POST", &path, json!({"auth": again}), 409, "name_taken")
        .await;
    let root = json!({"type": "static_bearer", "mcp_server_url": "https://mcp.example.com:8443", "token": "other-0123456789"});
    server.post(&path, json!({"auth": root})).await;
    assert!(
        server.vault.state.lock().unwrap().rows[1]
            .binding
            .path_prefixes
            .is_empty()
    );
}

#[tokio::test]
async fn a_variable_is_bound_to_one_host() {
    let server = Server::start().await;
    let vault = vault(&server).await;
    let path = format!("/v1/vaults/{vault}/credentials");
    let auth = |networking: Value| json!({"type": "environment_variable", "secret_name": "API_KEY", "secret_value": "val-0123456789", "networking": networking});
    let limited = |hosts: Value| json!({"type": "limited", "allowed_hosts": hosts});
    for networking in [
        json!({"type": "unrestricted"}),
        limited(json!([])),
        limited(json!(["a.example", "b.example"])),
        limited(json!(["*.example"])),
    ] {
        let reply = server
            .refused(
                "POST",
                &path,
                json!({"auth": auth(networking)}),
                400,
                "binding_needs_one_host",
            )
            .await;
        assert!(reply.body["error"]["details"]["fix"].is_string());
    }
    server
        .refused(
            "POST",
            &path,
            json!({"auth": auth(Value::Null)}),
            400,
            "binding_needs_one_host",
        )
        .await;
    server
        .refused(
            "POST",
            &path,
            json!({"auth": auth(limited(json!(["https://u@x/"])))}),
            400,
            "invalid_field",
        )
        .await;
    for location in [
        json!({"body": true}),
        json!({"header": true, "body": true}),
        json!({}),
        Value::Null,
    ] {
        let mut auth = auth(limited(json!(["a.example"])));
        auth["injection_location"] = location;
        server
            .refused(
                "POST",
                &path,
                json!({"auth": auth}),
                400,
                "slot_not_supported",
            )
            .await;
    }
    let made = server
        .post(
            &path,
            json!({"auth": auth(limited(json!(["api.example.com"])))}),
        )
        .await;
    let shown = json!({
        "type": "environment_variable",
        "secret_name": "API_KEY",
        "networking": {"type": "limited", "allowed_hosts": ["api.example.com"]},
        "injection_location": {"header": true, "body": false},
    });
    assert_eq!(made["auth"], shown);
    {
        let state = server.vault.state.lock().unwrap();
        assert_eq!(state.rows[0].variable.as_deref(), Some("API_KEY"));
        assert_eq!(state.rows[0].name, "API_KEY");
        assert_eq!(
            state.rows[0].binding.destination.origin(),
            "https://api.example.com:443"
        );
        assert_eq!(state.secrets[&id(&made)], "val-0123456789");
    }
    server
        .refused(
            "POST",
            &path,
            json!({"auth": auth(limited(json!(["c.example"])))}),
            409,
            "name_taken",
        )
        .await;
}

#[tokio::test]
async fn an_update_gives_a_new_secret_and_never_a_wider_binding() {
    let server = Server::start().await;
    let vault = vault(&server).await;
    let credentials = format!("/v1/vaults/{vault}/credentials");
    let networking = json!({"type": "limited", "allowed_hosts": ["api.example.com"]});
    let auth = json!({"type": "environment_variable", "secret_name": "K", "secret_value": "old-0123456789", "networking": networking});
    let made = server.post(&credentials, json!({"auth": auth})).await;
    let path = format!("{credentials}/{}", id(&made));
    let update = json!({"type": "environment_variable", "secret_value": "new-0123456789", "networking": networking, "injection_location": {"body": false}});
    let changed = server
        .post(
            &path,
            json!({"auth": update, "display_name": "d", "metadata": {"a": "b"}}),
        )
        .await;
    assert_eq!(
        server.vault.state.lock().unwrap().secrets[&id(&made)],
        "new-0123456789"
    );
    assert_eq!(
        (&changed["display_name"], &changed["metadata"]),
        (&json!("d"), &json!({"a": "b"}))
    );
    assert_eq!(changed["auth"], made["auth"]);
    assert_ne!(changed["updated_at"], made["updated_at"]);
    assert_eq!(server.get(&path).await, changed);
    let renamed = server.post(&path, json!({"display_name": "e"})).await;
    assert_eq!(
        (&renamed["display_name"], &renamed["metadata"]),
        (&json!("e"), &json!({"a": "b"}))
    );
    assert_eq!(
        server.vault.state.lock().unwrap().rows[0].version,
        2,
        "a name is no new secret"
    );

    for (auth, code) in [
        (
            json!({"type": "static_bearer", "token": "x-0123456789"}),
            "auth_type_immutable",
        ),
        (
            json!({"type": "environment_variable", "secret_name": "OTHER"}),
            "binding_immutable",
        ),
        (
            json!({"type": "environment_variable", "networking": {"type": "limited", "allowed_hosts": ["evil.example"]}}),
            "binding_immutable",
        ),
        (
            json!({"type": "environment_variable", "networking": {"type": "unrestricted"}}),
            "binding_needs_one_host",
        ),
        (
            json!({"type": "environment_variable", "injection_location": {"body": true}}),
            "binding_immutable",
        ),
        (
            json!({"type": "environment_variable", "token": "x-0123456789"}),
            "unknown_field",
        ),
        (
            json!({"type": "environment_variable", "secret_value": ""}),
            "empty_secret",
        ),
    ] {
        server
            .refused("POST", &path, json!({"auth": auth}), 400, code)
            .await;
    }
    assert_eq!(
        server.vault.state.lock().unwrap().secrets[&id(&made)],
        "new-0123456789"
    );

    let archived = server.post(&format!("{path}/archive"), Value::Null).await;
    assert!(archived["archived_at"].is_string());
    server
        .refused(
            "POST",
            &path,
            json!({"display_name": "f"}),
            400,
            "credential_archived",
        )
        .await;
    assert_eq!(server.get(&credentials).await["data"], json!([]));
    assert_eq!(
        server
            .get(&format!("{credentials}?include_archived=true"))
            .await["data"],
        json!([archived])
    );
    // An archived credential's name is free again.
    server.post(&credentials, json!({"auth": auth})).await;
    let deleted = server.call(ALICE, "DELETE", &path, Value::Null).await.ok();
    assert_eq!(
        deleted,
        json!({"id": id(&made), "type": "vault_credential_deleted"})
    );
    server
        .refused("GET", &path, Value::Null, 404, "credential_not_found")
        .await;
}

#[tokio::test]
async fn credentials_are_paged_and_bounded() {
    let server = Server::start().await;
    let vault = vault(&server).await;
    let path = format!("/v1/vaults/{vault}/credentials");
    let auth = |at: usize| json!({"auth": {"type": "static_bearer", "mcp_server_url": format!("https://h{at}.example"), "token": "tok-0123456789"}});
    let mut ids = Vec::new();
    for at in 0..20 {
        ids.push(id(&server.post(&path, auth(at)).await));
    }
    server
        .refused("POST", &path, auth(20), 400, "too_many_credentials")
        .await;
    ids.reverse();
    let first = server.get(&format!("{path}?limit=15")).await;
    let rest = server
        .get(&format!(
            "{path}?limit=15&page={}",
            first["next_page"].as_str().unwrap()
        ))
        .await;
    let all = [
        first["data"].as_array().unwrap().clone(),
        rest["data"].as_array().unwrap().clone(),
    ]
    .concat();
    assert_eq!(all.iter().map(id).collect::<Vec<_>>(), ids);
    assert_eq!(rest["next_page"], Value::Null);
}

#[tokio::test]
async fn a_secret_that_is_missing_misplaced_or_no_text_is_refused() {
    let server = Server::start().await;
    let vault = vault(&server).await;
    let path = format!("/v1/vaults/{vault}/credentials");
    let bearer = |token: Value| json!({"auth": {"type": "static_bearer", "mcp_server_url": "https://x.example", "token": token}});
    server
        .refused("POST", &path, bearer(Value::Null), 400, "invalid_field")
        .await;
    server
        .refused(
            "POST",
            &path,
            bearer(json!(123_456_789_012_u64)),
            400,
            "invalid_field",
        )
        .await;
    server
        .refused(
            "POST",
            &path,
            bearer(json!(["tok-0123456789"])),
            400,
            "unexpected_secret",
        )
        .await;
    server
        .refused("POST", &path, bearer(json!("")), 400, "empty_secret")
        .await;
    let mut misplaced = bearer(json!("tok-0123456789"));
    misplaced["token"] = "tok-0123456789".into();
    server
        .refused("POST", &path, misplaced, 400, "unknown_field")
        .await;
    let oauth = json!({"auth": {"type": "mcp_oauth", "mcp_server_url": "https://x.example", "access_token": "tok-0123456789"}});
    server
        .refused("POST", &path, oauth, 400, "mcp_oauth_not_supported")
        .await;
    let twice = r#"{"auth":{"type":"static_bearer","mcp_server_url":"https://x.example","token":"tok-0123456789","token":"tok-9876543210"}}"#;
    let reply = server
        .raw("POST", &path, &[("x-api-key", ALICE)], twice.into())
        .await;
    reply.assert_refused(400, "unexpected_secret");
    assert_eq!(
        reply.headers["connection"], "close",
        "the buffer that saw a secret goes with its connection"
    );
    for url in [
        "ftp://x",
        "nonsense",
        "https://u:p@x.example",
        "https://x.example/?token=1",
        "https://x.example/#f",
    ] {
        let auth = json!({"auth": {"type": "static_bearer", "mcp_server_url": url, "token": "tok-0123456789"}});
        server
            .refused("POST", &path, auth, 400, "invalid_field")
            .await;
    }
    assert!(server.vault.state.lock().unwrap().rows.is_empty());
}

#[tokio::test]
async fn a_vault_is_its_makers_and_the_local_one_everyones_to_use() {
    let server = Server::start().await;
    let vault = vault(&server).await;
    let path = format!("/v1/vaults/{vault}");
    let auth = json!({"auth": {"type": "static_bearer", "mcp_server_url": "https://x.example", "token": "tok-0123456789"}});
    for (method, path, body) in [
        ("GET", path.clone(), Value::Null),
        ("POST", path.clone(), json!({"display_name": "mine"})),
        ("DELETE", path.clone(), Value::Null),
        ("POST", format!("{path}/archive"), Value::Null),
        ("GET", format!("{path}/credentials"), Value::Null),
        ("POST", format!("{path}/credentials"), auth.clone()),
    ] {
        server
            .call(BOB, method, &path, body)
            .await
            .assert_refused(404, "vault_not_found");
    }
    assert_eq!(
        server
            .call(BOB, "GET", "/v1/vaults", Value::Null)
            .await
            .ok()["data"],
        json!([])
    );
    // An operator who acts on a key's vault acts for its owner.
    server
        .local("POST", &format!("{path}/credentials"), &[], auth.clone())
        .await
        .ok();
    assert_eq!(
        server.vault.state.lock().unwrap().principals[0]
            .as_ref()
            .unwrap()
            .as_str(),
        format!("key:{ALICE}")
    );

    let local = server.get("/v1/vaults/vlt_local").await;
    assert_fields(
        &local,
        &[
            "id",
            "type",
            "display_name",
            "metadata",
            "created_at",
            "updated_at",
            "archived_at",
        ],
    );
    server.vault.state.lock().unwrap().rows[0].collection = "vlt_local".into();
    let rows = server.get("/v1/vaults/vlt_local/credentials").await;
    assert_eq!(rows["data"][0]["vault_id"], "vlt_local");
    for key in [ALICE, BOB] {
        server
            .call(
                key,
                "POST",
                "/v1/vaults/vlt_local/credentials",
                auth.clone(),
            )
            .await
            .assert_refused(403, "operators_vault");
        server
            .call(key, "DELETE", "/v1/vaults/vlt_local", Value::Null)
            .await
            .assert_refused(403, "operators_vault");
        server
            .call(key, "GET", "/v1/vaults/vlt_system", Value::Null)
            .await
            .assert_refused(404, "vault_not_found");
        server
            .call(key, "GET", "/v1/vaults/vlt_system/credentials", Value::Null)
            .await
            .assert_refused(404, "vault_not_found");
    }
}

#[tokio::test]
async fn a_sealed_vault_is_said_to_be_sealed() {
    let server = Server::start().await;
    let vault = vault(&server).await;
    let refusal = claviger_vault_protocol::Refusal::new("vault_sealed", "the vault is sealed")
        .with_fix("claviger vault unseal");
    server.vault.state.lock().unwrap().refusal = Some(refusal);
    let reply = server
        .refused(
            "GET",
            &format!("/v1/vaults/{vault}/credentials"),
            Value::Null,
            503,
            "vault_sealed",
        )
        .await;
    assert_eq!(
        reply.body["error"]["details"]["fix"],
        "claviger vault unseal"
    );
}
