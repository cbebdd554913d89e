//! `/v1/sessions/{id}/events`: what was said and done.

pub(crate) mod input;
mod stream;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use claviger_session::{Event, Query};
use http::HeaderMap;
use serde_json::{Map, Value, json};

use crate::app::{Caller, Shared};
use crate::body::Document;
use crate::field::Fields;
use crate::gate::RequestId;
use crate::page::{Parameters, cursor};
use crate::problem::{Answer, Problem};
use crate::session::live;

/// Types that are shown without being named: those of the Managed Agents API. Ours are shown to who names them.
const PUBLIC: [&str; 23] = [
    "agent.custom_tool_use",
    "agent.mcp_tool_result",
    "agent.mcp_tool_use",
    "agent.message",
    "agent.thinking",
    "agent.thread_context_compacted",
    "agent.tool_result",
    "agent.tool_use",
    "session.deleted",
    "session.error",
    "session.status_idle",
    "session.status_rescheduled",
    "session.status_running",
    "session.status_terminated",
    "session.updated",
    "session.usage",
    "span.model_request_end",
    "span.model_request_start",
    "user.custom_tool_result",
    "user.interrupt",
    "user.message",
    "user.tool_confirmation",
    "user.tool_result",
];

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/sessions/{id}/events", post(send).get(list))
        .route("/v1/sessions/{id}/events/stream", get(stream::stream))
}

async fn send(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    Extension(request): Extension<RequestId>,
    Document(body): Document,
) -> Answer<Json<Value>> {
    let fields = Fields::of(&body, "")?;
    fields.only(&["events"])?;
    let events = input::events(&fields)?;
    let (id, session) = app.session(&caller, &id).await?;
    live(&session)?;
    input::confirmable(&app, &id, &events).await?;
    let key = input::idempotency_key(&headers, &caller, id.as_str())?.unwrap_or(request.0);
    // Answered once the events are durable: from here on they survive everything.
    let stored = app.log.append_input(&id, &key, events).await?;
    let data: Vec<_> = stored.iter().map(rendered).collect();
    Ok(Json(json!({"data": data})))
}

async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Answer<Json<Value>> {
    let (id, _) = app.session(&caller, &id).await?;
    let limit = parameters.limit(100, 1_000)?;
    let descending = parameters.descending(false)?;
    let created = parameters.created()?;
    let mut query = Query {
        kinds: wanted(&parameters)?,
        descending,
        ..Query::default()
    };
    if let Some(at) = parameters.cursor(descending)? {
        let at = at
            .parse()
            .map_err(|_| Problem::field("page", "is no cursor of this list"))?;
        if descending {
            query.before = Some(at);
        } else {
            query.after = at;
        }
    }
    let mut events: Vec<Event> = Vec::new();
    // One more than asked for tells whether there is a next page.
    while events.len() <= limit {
        query.limit = limit + 1;
        let read = app.log.read(&id, query.clone()).await?;
        let is_last = read.len() < query.limit;
        if let Some(last) = read.last() {
            if descending {
                query.before = Some(last.seq);
            } else {
                query.after = last.seq;
            }
        }
        events.extend(read.into_iter().filter(|event| created.admits(event.at)));
        if is_last {
            break;
        }
    }
    let more = events.len() > limit;
    events.truncate(limit);
    let next = events
        .last()
        .filter(|_| more)
        .map(|event| cursor(descending, &event.seq.to_string()));
    let data: Vec<_> = events.iter().map(rendered).collect();
    Ok(Json(json!({"data": data, "next_page": next})))
}

/// Types that a request wants to see.
fn wanted(parameters: &Parameters) -> Answer<Vec<String>> {
    let named = parameters.many("types");
    if named.len() > 100 {
        return Err(Problem::field("types", "must have at most 100 items"));
    }
    let kinds = if named.is_empty() {
        PUBLIC.to_vec()
    } else {
        named
    };
    Ok(kinds.into_iter().map(str::to_owned).collect())
}

/// Renders an event as the API shows it: its content beside its id, type and time.
fn rendered(event: &Event) -> Value {
    let mut out = Map::new();
    out.insert("id".to_owned(), event.id.clone().into());
    out.insert("type".to_owned(), event.kind.clone().into());
    out.insert("processed_at".to_owned(), event.at.to_string().into());
    match &event.payload {
        Value::Object(payload) => {
            for (name, value) in payload {
                out.entry(name).or_insert_with(|| value.clone());
            }
        }
        Value::Null => {}
        other => drop(out.insert("payload".to_owned(), other.clone())),
    }
    Value::Object(out)
}
