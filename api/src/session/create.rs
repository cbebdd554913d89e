//! `POST /v1/sessions`: charter first, then the first event.

use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use claviger_session::{NewEvent, SessionId};
use claviger_vault_protocol::Charter;
use http::HeaderMap;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::agent;
use crate::app::{App, Caller, Shared};
use crate::body::Document;
use crate::event::input;
use crate::field::Fields;
use crate::gate::RequestId;
use crate::object::{AGENT, ENVIRONMENT, VAULT};
use crate::problem::{Answer, Problem};

/// How long a charter lasts.
const CHARTER_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Name of the credential that pays for the model.
const MODEL_CREDENTIAL: &str = "anthropic";
/// Most vaults of a session.
const MAX_VAULTS: usize = 50;

pub(super) async fn create(
    State(app): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
    Extension(request): Extension<RequestId>,
    Document(body): Document,
) -> Answer<Json<Value>> {
    let fields = Fields::of(&body, "")?;
    fields.without("budget", "budget_not_supported")?;
    fields.without("resources", "resources_not_supported")?;
    fields.only(&[
        "agent",
        "environment_id",
        "title",
        "metadata",
        "vault_ids",
        "initial_events",
        "budget",
        "resources",
    ])?;
    let key = input::idempotency_key(&headers, &caller, "sessions")?;
    // A repeat of the same request makes the same session.
    let id = match &key {
        Some(key) => {
            let digest = hex::encode(Sha256::digest(key));
            format!("sesn_{}", digest.get(..32).unwrap_or_default()).parse::<SessionId>()?
        }
        None => SessionId::random("sesn"),
    };
    let agent = app.snapshot(&caller, &fields).await?;
    let environment_id = fields.required("environment_id", 256)?;
    let (environment_id, environment) = app.object(ENVIRONMENT, &caller, environment_id).await?;
    environment.live(ENVIRONMENT)?;
    let vaults = app.attached(&caller, &fields).await?;
    let tools = agent::tool::definitions(&agent, &app.mcp_url)?;
    let initial = input::initial_events(&fields)?;
    let payload = json!({
        "agent": agent,
        "environment_id": environment_id.as_str(),
        "environment": environment.body.get("config"),
        "vault_ids": vaults,
        "title": super::title(&fields)?,
        "metadata": fields.metadata(None)?,
        "principal": caller.principal,
    });
    // A session that exists without a charter could never open anything; a charter without a session expires unused.
    let expires =
        Timestamp::now().as_millisecond().unsigned_abs() + CHARTER_LIFETIME.as_secs() * 1_000;
    app.vault
        .register_charter(&Charter {
            session: id.as_str().to_owned(),
            principal: caller.principal.clone(),
            vaults,
            agent: format!(
                "{}@{}",
                agent["id"].as_str().unwrap_or_default(),
                agent["version"]
            ),
            model_credential: MODEL_CREDENTIAL.to_owned(),
            tools,
            expires_at_ms: expires,
        })
        .await?;
    let mut events = vec![NewEvent::new("session.created", payload)];
    events.extend(initial);
    app.log
        .append_input(&id, &key.unwrap_or(request.0), events)
        .await?;
    let (id, session) = app.session(&caller, id.as_str()).await?;
    Ok(Json(session.render(&id, Timestamp::now())))
}

impl App {
    /// The agent of a new session as it will stay for it, in one of its three forms.
    async fn snapshot(&self, caller: &Caller, fields: &Fields<'_>) -> Answer<Value> {
        let (id, version, overrides) = match fields.value("agent") {
            Some(Value::String(id)) => (id.as_str(), None, None),
            Some(reference @ Value::Object(_)) => {
                let reference = Fields::of(reference, "agent")?;
                let version = match reference.value("version") {
                    None => None,
                    Some(version) => Some(version.as_u64().ok_or_else(|| {
                        Problem::field("agent.version", "must be a number from 1")
                    })?),
                };
                let id = reference.required("id", 256)?;
                match reference.required("type", 64)? {
                    "agent" => {
                        reference.only(&["type", "id", "version"])?;
                        (id, version, None)
                    }
                    "agent_with_overrides" => {
                        reference.only(&[
                            "type",
                            "id",
                            "version",
                            "model",
                            "system",
                            "tools",
                            "mcp_servers",
                            "skills",
                        ])?;
                        (id, version, fields.value("agent"))
                    }
                    _ => {
                        return Err(Problem::field(
                            "agent.type",
                            "must be agent or agent_with_overrides",
                        ));
                    }
                }
            }
            _ => return Err(Problem::field("agent", "is required: an id or an object")),
        };
        let (mut agent, is_archived) = self.agent(caller, id, version).await?;
        if is_archived {
            return Err(Problem::invalid("agent_archived", "the agent is archived"));
        }
        if let (Some(overrides), Some(current)) = (overrides, agent.as_object()) {
            let patched = agent::patched(current, &Fields::of(overrides, "agent")?)?;
            for name in ["model", "system", "tools", "mcp_servers"] {
                agent[name] = patched.get(name).cloned().unwrap_or_default();
            }
        }
        if let Some(agent) = agent.as_object_mut() {
            for name in ["created_at", "updated_at", "archived_at", "metadata"] {
                agent.shift_remove(name);
            }
            agent.insert("type".to_owned(), AGENT.noun.into());
        }
        Ok(agent)
    }

    /// The vaults of a new session, in the given order.
    async fn attached(&self, caller: &Caller, fields: &Fields<'_>) -> Answer<Vec<String>> {
        let mut vaults: Vec<String> = Vec::new();
        for id in fields.texts("vault_ids", MAX_VAULTS)? {
            let (id, vault) = self.vault(caller, id).await?;
            vault.live(VAULT)?;
            if !vaults.iter().any(|other| other == id.as_str()) {
                vaults.push(id.as_str().to_owned());
            }
        }
        Ok(vaults)
    }
}
