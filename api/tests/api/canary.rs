use std::path::Path;

use serde_json::{Value, json};

use crate::support::{ALICE, Server, id};

const CANARY: &str = "canary-7f3a9c51e2";

fn files_below(directory: &Path, out: &mut Vec<(std::path::PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, out);
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            out.push((path, bytes));
        }
    }
}

/// Gives a marked secret to every endpoint in every place where one might end up, then looks everywhere.
#[tokio::test]
async fn a_secret_is_in_no_answer_and_in_no_file() {
    let server = Server::start().await;
    let vault = id(&server
        .post("/v1/vaults", json!({"display_name": "v"}))
        .await);
    let credentials = format!("/v1/vaults/{vault}/credentials");
    let (agent, environment) = server.workplace().await;
    let session = server.session().await;
    let bearer = json!({"type": "static_bearer", "mcp_server_url": "https://x.example/mcp", "token": CANARY});
    let networking = json!({"type": "limited", "allowed_hosts": ["x.example"]});
    let variable = json!({"type": "environment_variable", "secret_name": "K", "secret_value": CANARY, "networking": networking});
    let first = id(&server.post(&credentials, json!({"auth": bearer})).await);
    let second = id(&server.post(&credentials, json!({"auth": variable})).await);
    server
        .post(&format!("{credentials}/{first}"), json!({"auth": bearer}))
        .await;
    server
        .post(
            &format!("{credentials}/{second}"),
            json!({"auth": variable, "display_name": "d"}),
        )
        .await;

    // Where no secret belongs, each of the list's fields is cut and refused.
    let mut places = vec![
        format!("/v1/agents/{agent}"),
        format!("/v1/environments/{environment}"),
        format!("/v1/sessions/{session}"),
        format!("/v1/sessions/{session}/events"),
        format!("/v1/vaults/{vault}"),
        format!("{credentials}/{first}"),
    ];
    places.extend(
        [
            "/v1/agents",
            "/v1/environments",
            "/v1/sessions",
            "/v1/vaults",
        ]
        .map(str::to_owned),
    );
    places.push(credentials.clone());
    for path in &places {
        for field in [
            "token",
            "secret_value",
            "access_token",
            "refresh_token",
            "client_secret",
            "authorization_token",
            "ToKeN",
        ] {
            for body in [
                json!({field: CANARY}),
                json!({"metadata": {field: CANARY}, "name": "n", "model": "m", "display_name": "d"}),
                json!({"auth": {"type": "mcp_oauth", "refresh": {field: CANARY}}}),
                json!({"auth": {"type": "static_bearer", "mcp_server_url": "https://y.example", field: [CANARY, {"deep": [{field: CANARY}]}]}}),
                json!({"resources": [{"type": "github_repository", field: CANARY}]}),
                json!([[{field: CANARY}]]),
            ] {
                let reply = server.call(ALICE, "POST", path, body).await;
                assert!(reply.status >= 400, "{path} {field}");
                assert_eq!(reply.headers["connection"], "close");
            }
        }
        // What is no JSON, or ends early, is not kept either.
        for body in [
            format!(r#"{{"auth":{{"type":"static_bearer","token":"{CANARY}"}}"#),
            format!(r#"{{"auth":{{"token":"{CANARY}" "x"}}}}"#),
            format!(r#"{{"auth":{{"token":"{CANARY}\u12"}}}}"#),
            format!(r#"{{"auth":{{"token":"{CANARY}"#),
        ] {
            let reply = server
                .raw("POST", path, &[("x-api-key", ALICE)], body.into())
                .await;
            reply.assert_refused(400, "malformed_json");
            assert_eq!(reply.headers["connection"], "close");
        }
    }
    // The vault's answers, errors included.
    server
        .refused(
            "POST",
            &credentials,
            json!({"auth": bearer}),
            409,
            "name_taken",
        )
        .await;
    server
        .call(
            ALICE,
            "POST",
            "/v1/vaults/vlt_local/credentials",
            json!({"auth": bearer}),
        )
        .await
        .assert_refused(403, "operators_vault");
    let refusal =
        claviger_vault_protocol::Refusal::new("audit_failed", "the audit log cannot be written");
    server.vault.state.lock().unwrap().refusal = Some(refusal);
    let reply = server
        .call(
            ALICE,
            "POST",
            &format!("{credentials}/{first}"),
            json!({"auth": bearer}),
        )
        .await;
    assert_eq!(reply.status, 500);
    server.vault.state.lock().unwrap().refusal = None;

    // Everything that can be read.
    for path in places {
        if !path.starts_with(&credentials) && path.ends_with("events") {
            server
                .get(&format!(
                    "{path}?types[]=session.created&types[]=session.updated"
                ))
                .await;
        }
        server.get(&format!("{path}?include_archived=true")).await;
    }
    for path in [
        format!("{credentials}/{first}"),
        format!("{credentials}/{second}"),
    ] {
        server.post(&format!("{path}/archive"), Value::Null).await;
        server.call(ALICE, "DELETE", &path, Value::Null).await.ok();
    }
    server
        .call(ALICE, "DELETE", &format!("/v1/vaults/{vault}"), Value::Null)
        .await
        .ok();

    let stored = server
        .vault
        .state
        .lock()
        .unwrap()
        .secrets
        .values()
        .filter(|secret| *secret == CANARY)
        .count();
    assert_eq!(stored, 2, "the vault did get it");
    let answers = server.answers.lock().unwrap().join("\n");
    assert!(answers.len() > 10_000 && answers.contains("unexpected_secret"));
    assert!(!answers.contains(CANARY));
    let mut files = Vec::new();
    files_below(server.directory.path(), &mut files);
    assert!(
        files
            .iter()
            .any(|(path, bytes)| path.ends_with("session/session.db") && !bytes.is_empty())
    );
    for (path, bytes) in files {
        assert!(
            !bytes
                .windows(CANARY.len())
                .any(|window| window == CANARY.as_bytes()),
            "{}",
            path.display()
        );
    }
}
