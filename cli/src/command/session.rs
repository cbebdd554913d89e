//! `claviger session`: starts and follows agent sessions through the api's unix socket.

use serde_json::{Value, json};

use super::connect::{Events, api_request, whereabouts};
use crate::args::Session;
use crate::config::Config;
use crate::error::{CliError, Exit};
use crate::home::Home;
use crate::output::Output;

pub(crate) async fn run(session: Session, output: Output) -> Result<(), CliError> {
    let home = Home::from_environment()?;
    match session {
        Session::New {
            prompt,
            model,
            follow,
        } => {
            let prompt = if prompt == "-" {
                std::io::read_to_string(std::io::stdin())
                    .map_err(|error| CliError::internal("reading stdin").because(error))?
            } else {
                prompt
            };
            let model = match model {
                Some(model) => model,
                None => Config::load(&home.config_file)?.model.name,
            };
            let created = create(&home, Some(&prompt), &model, "session").await?;
            let id = created
                .get("id")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            if follow {
                output.note(&format!("session  {id}"));
                return tail(&home, &id, 0, false, output).await;
            }
            output.result(
                &json!({"schema": "claviger.session.new/v1", "id": id, "session": created}),
                &format!("session  {id}\nfollow   claviger session tail {id}"),
            );
            Ok(())
        }
        Session::List => {
            let list = api_request(&home, "GET", "/v1/sessions?limit=50", None).await?;
            let rows = list
                .get("data")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            let text: String = rows
                .iter()
                .map(|row| {
                    let text = |key: &str| {
                        row.get(key)
                            .and_then(Value::as_str)
                            .unwrap_or("-")
                            .to_owned()
                    };
                    format!(
                        "{:<40} {:<12} {}  {}\n",
                        text("id"),
                        text("status"),
                        text("created_at"),
                        text("title")
                    )
                })
                .collect();
            let text = if text.is_empty() {
                "no sessions yet: claviger session new \"Say hello\"\n".to_owned()
            } else {
                text
            };
            output.result(
                &json!({"schema": "claviger.session.list/v1", "sessions": rows}),
                &text,
            );
            Ok(())
        }
        Session::Show { id } => {
            let row = api_request(
                &home,
                "GET",
                &format!("/v1/sessions/{}", segment(&id)?),
                None,
            )
            .await?;
            let text = serde_json::to_string_pretty(&row).unwrap_or_default();
            output.result(
                &json!({"schema": "claviger.session.show/v1", "session": row}),
                &text,
            );
            Ok(())
        }
        Session::Tail { id, from, follow } => {
            tail(&home, segment(&id)?, from, follow, output).await
        }
    }
}

fn segment(id: &str) -> Result<&str, CliError> {
    if !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        Ok(id)
    } else {
        Err(
            CliError::usage("bad_id", format!("'{id}' is no session id"))
                .fix("claviger session list"),
        )
    }
}

/// Makes an agent, an environment and a session, with its first message where there is one.
pub(crate) async fn create(
    home: &Home,
    prompt: Option<&str>,
    model: &str,
    title: &str,
) -> Result<Value, CliError> {
    let up = whereabouts(home)?;
    let mcp = up.get("mcp").and_then(Value::as_str).unwrap_or_default();
    let agent = api_request(
        home,
        "POST",
        "/v1/agents",
        Some(&json!({
            "name": "claviger", "model": model,
            "system": "You work in a sandbox without network or keys. Tools that need credentials are offered by the MCP server 'claviger'.",
            "tools": [
                {"type": "agent_toolset_20260401", "configs": [{"name": "web_fetch", "enabled": false}, {"name": "web_search", "enabled": false}]},
                {"type": "mcp_toolset", "mcp_server_name": "claviger", "default_config": {"permission_policy": {"type": "always_allow"}}},
            ],
            "mcp_servers": [{"type": "url", "name": "claviger", "url": mcp}],
        })),
    )
    .await?;
    let environment = api_request(home, "POST", "/v1/environments", Some(&json!({"name": "local", "config": {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": []}}}))).await?;
    let mut body = json!({"agent": agent.get("id"), "environment_id": environment.get("id"), "title": title, "vault_ids": ["vlt_local"]});
    if let (Some(prompt), Some(object)) = (prompt, body.as_object_mut()) {
        object.insert(
            "initial_events".into(),
            json!([{"type": "user.message", "content": [{"type": "text", "text": prompt}]}]),
        );
    }
    api_request(home, "POST", "/v1/sessions", Some(&body)).await
}

/// Prints events as they come; ends at idle unless it follows.
async fn tail(
    home: &Home,
    id: &str,
    from: u64,
    follow: bool,
    output: Output,
) -> Result<(), CliError> {
    let mut events = Events::open(home, id, from).await?;
    while let Some((seq, event)) = events.next().await {
        if seq.is_none() {
            continue;
        }
        let kind = event
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned();
        if output.is_json() {
            output.line(&event.to_string());
        } else if let Some(text) = describe(&kind, &event) {
            output.line(&text);
        }
        if kind == "session.status_terminated" || (kind == "session.status_idle" && !follow) {
            return Ok(());
        }
    }
    Err(
        CliError::new(Exit::Unreachable, "peer_unreachable", "the stream ended")
            .fix(format!("claviger session tail {id}")),
    )
}

/// One event as a line for people; none for those that say nothing to them.
pub(crate) fn describe(kind: &str, event: &Value) -> Option<String> {
    let text = |key: &str| {
        event
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    let blocks = || -> String {
        let blocks = event
            .get("content")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let joined: Vec<String> = blocks
            .iter()
            .filter_map(|block| {
                block
                    .get("text")
                    .and_then(Value::as_str)
                    .map(ToOwned::to_owned)
            })
            .collect();
        joined.join("\n")
    };
    let short = |text: &str| -> String {
        let line: String = text
            .lines()
            .next()
            .unwrap_or("")
            .chars()
            .take(100)
            .collect();
        line
    };
    Some(match kind {
        "user.message" => format!("you        {}", blocks()),
        "agent.message" => format!("agent      {}", blocks()),
        "agent.tool_use" | "agent.mcp_tool_use" => {
            let input = event
                .get("input")
                .map(ToString::to_string)
                .unwrap_or_default();
            format!("call       {} {}", text("name"), short(&input))
        }
        "agent.tool_result" | "agent.mcp_tool_result" => {
            let failed = event.get("is_error").and_then(Value::as_bool) == Some(true);
            format!(
                "{}     {}",
                if failed { "failed" } else { "result" },
                short(&blocks())
            )
        }
        "session.error" => format!(
            "error      {}",
            event
                .pointer("/error/message")
                .and_then(Value::as_str)
                .unwrap_or("")
        ),
        "session.status_idle" => format!(
            "idle       {}",
            event
                .pointer("/stop_reason/type")
                .and_then(Value::as_str)
                .unwrap_or("")
        ),
        _ => return None,
    })
}
