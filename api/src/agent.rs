//! `/v1/agents`: versioned configurations.

pub(crate) mod tool;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use claviger_session::{Query, SessionError};
use serde_json::{Map, Value, json};

use crate::app::{App, Caller, Shared};
use crate::body::Document;
use crate::field::Fields;
use crate::object::{AGENT, Object, stale_version};
use crate::page::{Listing, Parameters, cursor};
use crate::problem::{Answer, Problem};

const FIELDS: [&str; 11] = [
    "name",
    "model",
    "description",
    "system",
    "tools",
    "mcp_servers",
    "skills",
    "multiagent",
    "execution_identity",
    "metadata",
    "version",
];

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/agents", post(create).get(list))
        .route("/v1/agents/{id}", get(retrieve).post(update))
        .route("/v1/agents/{id}/archive", post(archive))
        .route("/v1/agents/{id}/versions", get(versions))
}

async fn create(
    State(app): State<Shared>,
    caller: Caller,
    Document(body): Document,
) -> Answer<Json<Value>> {
    let fields = Fields::of(&body, "")?;
    fields.only(&FIELDS[..10])?;
    let mut agent = patched(&Map::new(), &fields)?;
    agent.insert("version".to_owned(), 1.into());
    Ok(Json(app.create(AGENT, &caller, agent).await?))
}

async fn list(State(app): State<Shared>, caller: Caller, listing: Listing) -> Answer<Json<Value>> {
    Ok(Json(app.list(AGENT, &caller, &listing).await?))
}

async fn retrieve(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Answer<Json<Value>> {
    let version = parameters.number("version")?;
    let (agent, _) = app.agent(&caller, &id, version).await?;
    Ok(Json(agent))
}

async fn update(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    Document(body): Document,
) -> Answer<Json<Value>> {
    let fields = Fields::of(&body, "")?;
    fields.only(&FIELDS)?;
    let expected = match fields.value("version") {
        None => None,
        Some(version) => {
            let version = version.as_u64().filter(|version| *version > 0);
            Some(version.ok_or_else(|| Problem::field("version", "must be a number from 1"))?)
        }
    };
    // Without a version the change applies to whatever is newest, however often that changes meanwhile.
    for _ in 0..8 {
        let (id, object) = app.own_object(AGENT, &caller, &id).await?;
        object.live(AGENT)?;
        let version = version_of(&object.body);
        if expected.is_some_and(|expected| expected != version) {
            return Err(stale_version());
        }
        let mut agent = patched(&object.body, &fields)?;
        if agent == object.body {
            return Ok(Json(object.render(AGENT, &id)));
        }
        agent.insert("version".to_owned(), (version + 1).into());
        match app
            .change(AGENT, &id, &object, "updated", json!({"object": agent}))
            .await
        {
            Err(problem) if problem.code() == "concurrent_change" => {}
            done => return done.map(Json),
        }
    }
    Err(stale_version())
}

async fn archive(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    Ok(Json(app.archive(AGENT, &caller, &id).await?))
}

async fn versions(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Answer<Json<Value>> {
    let limit = parameters.limit(20, 100)?;
    let before = match parameters.cursor(true)? {
        None => u64::MAX,
        Some(at) => at
            .parse()
            .map_err(|_| Problem::field("page", "is no cursor of this list"))?,
    };
    let mut all = app.agent_versions(&caller, &id).await?;
    all.reverse();
    all.retain(|agent| {
        agent["version"]
            .as_u64()
            .is_some_and(|version| version < before)
    });
    let more = all.len() > limit;
    all.truncate(limit);
    let next = all
        .last()
        .filter(|_| more)
        .map(|agent| cursor(true, &agent["version"].to_string()));
    Ok(Json(json!({"data": all, "next_page": next})))
}

impl App {
    /// An agent as rendered, at a version or the newest one, and whether it is archived.
    pub(crate) async fn agent(
        &self,
        caller: &Caller,
        id: &str,
        version: Option<u64>,
    ) -> Answer<(Value, bool)> {
        let (stream, object) = self.object(AGENT, caller, id).await?;
        let is_archived = object.archived_at.is_some();
        if version.is_none_or(|version| version == version_of(&object.body)) {
            return Ok((object.render(AGENT, &stream), is_archived));
        }
        let all = self.agent_versions(caller, id).await?;
        let agent = all
            .into_iter()
            .find(|agent| agent["version"].as_u64() == version);
        Ok((
            agent.ok_or_else(|| Problem::not_found("agent_version"))?,
            is_archived,
        ))
    }

    /// All versions of an agent, oldest first.
    async fn agent_versions(&self, caller: &Caller, id: &str) -> Answer<Vec<Value>> {
        let (stream, object) = self.object(AGENT, caller, id).await?;
        let kinds = vec!["agent.created".to_owned(), "agent.updated".to_owned()];
        let events = match self
            .log
            .read(
                &stream,
                Query {
                    kinds,
                    ..Query::default()
                },
            )
            .await
        {
            Err(SessionError::NotFound) => return Err(Problem::not_found("agent")),
            other => other?,
        };
        let version = |event: claviger_session::Event| {
            let body = event.payload["object"]
                .as_object()
                .cloned()
                .unwrap_or_default();
            Object {
                body,
                updated_at: event.at,
                ..object.clone()
            }
            .render(AGENT, &stream)
        };
        Ok(events.into_iter().map(version).collect())
    }
}

fn version_of(agent: &Map<String, Value>) -> u64 {
    agent.get("version").and_then(Value::as_u64).unwrap_or(0)
}

/// Applies the fields of a request to an agent (an empty one to make it) and checks the whole.
///
/// What is absent stays, `null` clears what can be cleared, lists are replaced.
pub(crate) fn patched(
    current: &Map<String, Value>,
    fields: &Fields<'_>,
) -> Answer<Map<String, Value>> {
    let mut agent = Map::new();
    let kept = |name: &str, default: Value| current.get(name).cloned().unwrap_or(default);

    let name = match fields.present("name") {
        None if !current.is_empty() => kept("name", Value::Null),
        _ => fields.required("name", 256)?.into(),
    };
    agent.insert("name".to_owned(), name);
    for (name, most) in [("description", 2_048), ("system", 100_000)] {
        let value = match fields.present(name) {
            None => kept(name, Value::Null),
            Some(_) => fields
                .text(name, most)?
                .filter(|text| !text.is_empty())
                .into(),
        };
        agent.insert(name.to_owned(), value);
    }
    let model = match fields.present("model") {
        None if !current.is_empty() => kept("model", Value::Null),
        Some(value) if !value.is_null() => model(value, &fields.path("model"))?,
        _ => return Err(Problem::field("model", "is required")),
    };
    agent.insert("model".to_owned(), model);
    let tools = match fields.present("tools") {
        None => kept("tools", json!([])),
        Some(_) => tool::resolved(fields)?,
    };
    let servers = match fields.present("mcp_servers") {
        None => kept("mcp_servers", json!([])),
        Some(_) => tool::mcp_servers(fields)?,
    };
    tool::cross_checked(&tools, &servers)?;
    agent.insert("tools".to_owned(), tools);
    agent.insert("mcp_servers".to_owned(), servers);
    fields.without("skills", "skills_not_supported")?;
    fields.without("multiagent", "multiagent_not_supported")?;
    if let Some(identity) = fields.object("execution_identity")?
        && identity.value("type") != Some(&json!("service_account"))
    {
        return Err(Problem::invalid(
            "execution_identity_not_supported",
            "execution_identity: only service_account",
        ));
    }
    agent.insert("skills".to_owned(), json!([]));
    agent.insert("multiagent".to_owned(), Value::Null);
    agent.insert(
        "execution_identity".to_owned(),
        json!({"type": "service_account"}),
    );
    agent.insert(
        "metadata".to_owned(),
        fields.metadata(current.get("metadata"))?,
    );
    agent.insert("version".to_owned(), kept("version", Value::Null));
    Ok(agent)
}

/// A model by name or with its settings, always resolved to the long form.
fn model(value: &Value, path: &str) -> Answer<Value> {
    let wrapped;
    let fields = match value {
        Value::String(_) => {
            wrapped = json!({"id": value});
            Fields::of(&wrapped, path)?
        }
        _ => Fields::of(value, path)?,
    };
    fields.only(&["id", "effort", "speed", "inference_geo"])?;
    let id = fields.required("id", 256)?;
    let effort = match fields.value("effort") {
        None => "high",
        Some(Value::String(effort)) => effort,
        Some(effort) => Fields::of(effort, fields.path("effort"))?.required("type", 16)?,
    };
    if !["low", "medium", "high", "xhigh", "max"].contains(&effort) {
        return Err(Problem::field(
            &fields.path("effort"),
            "must be low, medium, high, xhigh or max",
        ));
    }
    let speed = fields.text("speed", 16)?.unwrap_or("standard");
    if !["standard", "fast"].contains(&speed) {
        return Err(Problem::field(
            &fields.path("speed"),
            "must be standard or fast",
        ));
    }
    let geo = fields.text("inference_geo", 64)?;
    Ok(json!({"id": id, "effort": {"type": effort}, "speed": speed, "inference_geo": geo}))
}
