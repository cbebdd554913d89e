//! What is written: one event of a stream.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::SessionError;
use crate::id::SessionId;

/// Largest payload of one event, as JSON text.
pub const MAX_PAYLOAD_BYTES: usize = 12 * 1024 * 1024;
/// Largest sum of payloads of one append.
pub const MAX_APPEND_BYTES: usize = 24 * 1024 * 1024;
/// Most events of one append.
pub const MAX_APPEND_EVENTS: usize = 512;
/// Deepest nesting of a payload; readers refuse what a parser's recursion limit would.
const MAX_DEPTH: usize = 100;
/// Longest id, kind or causation.
const MAX_NAME_BYTES: usize = 256;

/// One durable event of a stream.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Event {
    /// The stream.
    pub session: SessionId,
    /// Position in the stream, dense from 1.
    pub seq: u64,
    /// The event's own name, `sevt_` and a version 7 uuid unless the writer chose one.
    pub id: String,
    /// Epoch of the lease it was written under; 0 for input, which needs no lease.
    pub epoch: u64,
    /// What happened, `domain.action`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When the store accepted it; never earlier than the event before it.
    pub at: Timestamp,
    /// Id of the event that led to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation: Option<String>,
    /// The content.
    pub payload: Value,
    /// Hash of the event before it, 64 zeros for the first.
    pub prev_hash: String,
    /// SHA-256 over all fields above, in hexadecimal; see [`crate::chain`].
    pub hash: String,
}

/// A stored event whose payload is still the text that was written, to be passed on without reading it.
#[derive(Clone, Debug, Serialize)]
pub struct EventText {
    pub(crate) session: SessionId,
    pub(crate) seq: u64,
    pub(crate) id: String,
    pub(crate) epoch: u64,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) causation: Option<String>,
    pub(crate) payload: Box<RawValue>,
    pub(crate) prev_hash: String,
    pub(crate) hash: String,
}

impl EventText {
    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// `Store` when it is not JSON.
    pub fn parse(self) -> Result<Event, SessionError> {
        Ok(Event {
            payload: serde_json::from_str(self.payload.get())
                .map_err(|e| SessionError::store("read a payload", e))?,
            session: self.session,
            seq: self.seq,
            id: self.id,
            epoch: self.epoch,
            kind: self.kind,
            at: self.at,
            causation: self.causation,
            prev_hash: self.prev_hash,
            hash: self.hash,
        })
    }
}

impl TryFrom<Event> for EventText {
    type Error = SessionError;

    fn try_from(event: Event) -> Result<Self, Self::Error> {
        Ok(Self {
            payload: serde_json::value::to_raw_value(&event.payload)
                .map_err(|e| SessionError::store("render a payload", e))?,
            session: event.session,
            seq: event.seq,
            id: event.id,
            epoch: event.epoch,
            kind: event.kind,
            at: event.at,
            causation: event.causation,
            prev_hash: event.prev_hash,
            hash: event.hash,
        })
    }
}

/// An event that a writer wants to append.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NewEvent {
    /// The event's name; made by the client when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What happened, `domain.action`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Id of the event that led to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation: Option<String>,
    /// The content.
    pub payload: Value,
}

impl NewEvent {
    /// Makes an event of this kind; the client names it when it is sent.
    pub fn new(kind: impl Into<String>, payload: Value) -> Self {
        Self {
            id: None,
            kind: kind.into(),
            causation: None,
            payload,
        }
    }

    /// Gives the event a name chosen by the writer.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Names the event that led to this one.
    #[must_use]
    pub fn caused_by(mut self, id: impl Into<String>) -> Self {
        self.causation = Some(id.into());
        self
    }
}

/// An event whose shape was checked and whose payload was rendered: what stores write.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) causation: Option<String>,
    pub(crate) payload: Value,
    /// The payload's JSON text; the hash covers exactly these bytes.
    pub(crate) text: String,
    /// Name of the blob that holds the text, once it is durable.
    pub(crate) blob: Option<String>,
}

/// Names the unnamed events, so that a repeated append can be recognised.
pub(crate) fn name_all(events: &mut [NewEvent]) {
    for event in events {
        event.id.get_or_insert_with(crate::id::event_id);
    }
}

/// Checks the shape of a whole append and renders its payloads.
pub(crate) fn draft_all(mut events: Vec<NewEvent>) -> Result<Vec<Draft>, SessionError> {
    if events.is_empty() || events.len() > MAX_APPEND_EVENTS {
        return Err(SessionError::invalid(format!(
            "an append holds 1 to {MAX_APPEND_EVENTS} events"
        )));
    }
    name_all(&mut events);
    let mut drafts: Vec<Draft> = Vec::with_capacity(events.len());
    let mut total = 0;
    for event in events {
        let draft = draft(event)?;
        total += draft.text.len();
        if total > MAX_APPEND_BYTES {
            return Err(SessionError::invalid(format!(
                "the payloads of one append exceed {MAX_APPEND_BYTES} bytes"
            )));
        }
        if drafts.iter().any(|other| other.id == draft.id) {
            return Err(SessionError::invalid(
                "two events of one append share an id",
            ));
        }
        drafts.push(draft);
    }
    Ok(drafts)
}

fn draft(event: NewEvent) -> Result<Draft, SessionError> {
    let is_kind = |kind: &str| {
        kind.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'.')
            && kind.split('.').all(|part| !part.is_empty())
    };
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= MAX_NAME_BYTES
            && name.bytes().all(|b| b.is_ascii_graphic())
    };
    if event.kind.len() > MAX_NAME_BYTES || !is_kind(&event.kind) {
        return Err(SessionError::invalid(
            "an event's type is lower-case words joined by dots",
        ));
    }
    let id = event.id.unwrap_or_else(crate::id::event_id);
    if !is_name(&id) || !event.causation.as_deref().is_none_or(is_name) {
        return Err(SessionError::invalid(
            "an event's id is 1 to 256 visible ASCII characters",
        ));
    }
    if !is_shallow(&event.payload, MAX_DEPTH) {
        return Err(SessionError::invalid(format!(
            "a payload nests deeper than {MAX_DEPTH} levels"
        )));
    }
    let text = event.payload.to_string();
    if text.len() > MAX_PAYLOAD_BYTES {
        return Err(SessionError::invalid(format!(
            "a payload exceeds {MAX_PAYLOAD_BYTES} bytes"
        )));
    }
    Ok(Draft {
        id,
        kind: event.kind,
        causation: event.causation,
        payload: event.payload,
        text,
        blob: None,
    })
}

/// Says whether `value` nests at most `depth` levels.
pub(crate) fn is_shallow(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth > 0 && items.iter().all(|v| is_shallow(v, depth - 1)),
        Value::Object(fields) => depth > 0 && fields.values().all(|v| is_shallow(v, depth - 1)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(event: NewEvent) -> String {
        draft_all(vec![event]).unwrap_err().to_string()
    }

    #[test]
    fn an_append_of_bad_shape_is_refused_with_its_rule() {
        assert!(
            draft_all(vec![])
                .unwrap_err()
                .to_string()
                .contains("1 to 512")
        );
        assert!(refusal(NewEvent::new("User.Message", json!({}))).contains("type"));
        assert!(refusal(NewEvent::new("a..b", json!({}))).contains("type"));
        assert!(refusal(NewEvent::new("a", json!({})).with_id("a b")).contains("id"));
        assert!(
            refusal(NewEvent::new("a", json!("x".repeat(MAX_PAYLOAD_BYTES)))).contains("exceeds")
        );
        let mut deep = json!(1);
        for _ in 0..101 {
            deep = json!([deep]);
        }
        assert!(refusal(NewEvent::new("a", deep)).contains("nests"));
        let twins = vec![
            NewEvent::new("a", json!({})).with_id("x"),
            NewEvent::new("a", json!({})).with_id("x"),
        ];
        assert!(
            draft_all(twins)
                .unwrap_err()
                .to_string()
                .contains("share an id")
        );
    }

    #[test]
    fn an_event_renders_its_kind_as_type() {
        let event = NewEvent::new("user.message", json!({"content": []})).with_id("sevt_1");
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"id":"sevt_1","type":"user.message","payload":{"content":[]}}"#
        );
    }
}
