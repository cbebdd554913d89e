//! Events that a client may send.

use claviger_session::{NewEvent, Query, SessionId};
use http::HeaderMap;
use serde_json::{Map, Value, json};

use crate::app::{App, Caller};
use crate::field::Fields;
use crate::problem::{Answer, Problem};

/// Most events of one request.
const MAX_EVENTS: usize = 100;
/// Most events that a session is created with.
const MAX_INITIAL: usize = 50;

/// Reads `events` of a send.
pub(crate) fn events(fields: &Fields<'_>) -> Answer<Vec<NewEvent>> {
    let events = fields.list("events", MAX_EVENTS)?;
    if events.is_empty() {
        return Err(Problem::field("events", "must hold at least one event"));
    }
    events
        .into_iter()
        .map(|(path, event)| read(&Fields::of(event, path)?))
        .collect()
}

/// Reads `initial_events` of a new session: all or none.
pub(crate) fn initial_events(fields: &Fields<'_>) -> Answer<Vec<NewEvent>> {
    let events = fields.list("initial_events", MAX_INITIAL)?;
    let read_one = |(path, event): (String, &Value)| {
        if event["type"] != "user.message" {
            return Err(Problem::invalid(
                "event_type_not_supported",
                format!("{path}: must be a user.message"),
            ));
        }
        read(&Fields::of(event, path)?)
    };
    events.into_iter().map(read_one).collect()
}

fn read(event: &Fields<'_>) -> Answer<NewEvent> {
    let kind = event.required("type", 64)?;
    let payload = match kind {
        "user.message" => {
            event.only(&["type", "content"])?;
            json!({"content": content(event)?})
        }
        "user.interrupt" => {
            event.only(&["type", "session_thread_id"])?;
            event.without("session_thread_id", "threads_not_supported")?;
            json!({})
        }
        "user.tool_confirmation" => confirmation(event)?,
        _ => {
            return Err(Problem::invalid(
                "event_type_not_supported",
                format!(
                    "{}: must be user.message, user.interrupt or user.tool_confirmation",
                    event.path("type")
                ),
            ));
        }
    };
    Ok(NewEvent::new(kind, payload))
}

fn content(event: &Fields<'_>) -> Answer<Vec<Value>> {
    let blocks = event.list("content", 1_000)?;
    if blocks.is_empty() {
        return Err(Problem::field(
            &event.path("content"),
            "must hold at least one block",
        ));
    }
    let check = |(path, value): (String, &Value)| {
        let block = Fields::of(value, path)?;
        match block.required("type", 32)? {
            "text" => {
                block.required("text", usize::MAX)?;
            }
            "image" | "document" => {
                let source = block
                    .object("source")?
                    .ok_or_else(|| Problem::field(&block.path("source"), "is required"))?;
                match source.required("type", 32)? {
                    "base64" => {
                        source.required("data", usize::MAX)?;
                        source.required("media_type", 128)?;
                    }
                    "text" => {
                        source.required("data", usize::MAX)?;
                    }
                    "url" => {
                        source.required("url", 8_192)?;
                    }
                    _ => {
                        let path = source.path("type");
                        return Err(Problem::invalid(
                            "source_not_supported",
                            format!("{path}: must be base64, text or url"),
                        ));
                    }
                }
            }
            _ => {
                return Err(Problem::field(
                    &block.path("type"),
                    "must be text, image or document",
                ));
            }
        }
        Ok(value.clone())
    };
    blocks.into_iter().map(check).collect()
}

fn confirmation(event: &Fields<'_>) -> Answer<Value> {
    event.only(&["type", "tool_use_id", "result", "deny_message"])?;
    let mut payload = Map::new();
    payload.insert(
        "tool_use_id".to_owned(),
        event.required("tool_use_id", 256)?.into(),
    );
    let result = event.required("result", 16)?;
    if !["allow", "deny"].contains(&result) {
        return Err(Problem::field(
            &event.path("result"),
            "must be allow or deny",
        ));
    }
    payload.insert("result".to_owned(), result.into());
    if let Some(message) = event.text("deny_message", 10_000)? {
        if result == "allow" {
            return Err(Problem::field(
                &event.path("deny_message"),
                "goes with deny only",
            ));
        }
        payload.insert("deny_message".to_owned(), message.into());
    }
    Ok(Value::Object(payload))
}

/// Refuses a confirmation of what never asked for one, or was answered already.
pub(crate) async fn confirmable(app: &App, session: &SessionId, events: &[NewEvent]) -> Answer<()> {
    let named = |event: &NewEvent| event.payload["tool_use_id"].as_str().map(str::to_owned);
    let confirmed: Vec<String> = events
        .iter()
        .filter(|event| event.kind == "user.tool_confirmation")
        .filter_map(named)
        .collect();
    if confirmed.is_empty() {
        return Ok(());
    }
    let kinds = [
        "agent.mcp_tool_use",
        "agent.tool_use",
        "user.tool_confirmation",
    ]
    .map(str::to_owned)
    .to_vec();
    let past = app
        .log
        .read(
            session,
            Query {
                kinds,
                ..Query::default()
            },
        )
        .await?;
    for (at, id) in confirmed.iter().enumerate() {
        let asks = |event: &&claviger_session::Event| {
            event.id == *id && event.payload["evaluated_permission"] == "ask"
        };
        if !past.iter().any(|event| asks(&event)) {
            return Err(Problem::invalid(
                "tool_use_not_found",
                "tool_use_id: no tool use with this id asks for confirmation",
            ));
        }
        let again = past.iter().any(|event| {
            event.kind == "user.tool_confirmation" && event.payload["tool_use_id"] == **id
        });
        if again || confirmed.iter().skip(at + 1).any(|other| other == id) {
            return Err(Problem::invalid(
                "tool_use_confirmed",
                "tool_use_id: the tool use was confirmed or denied already",
            ));
        }
    }
    Ok(())
}

/// The key under which a repeat of this request is known, where the client gave one (`Idempotency-Key`).
pub(crate) fn idempotency_key(
    headers: &HeaderMap,
    caller: &Caller,
    about: &str,
) -> Answer<Option<String>> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = key
        .to_str()
        .ok()
        .filter(|key| (1..=255).contains(&key.len()));
    let key = key
        .ok_or_else(|| Problem::field("Idempotency-Key", "must be 1 to 255 visible characters"))?;
    let digest = {
        use sha2::Digest as _;
        sha2::Sha256::digest(format!("{}\n{about}\n{key}", caller.principal))
    };
    Ok(Some(format!("idem_{}", hex::encode(digest))))
}
