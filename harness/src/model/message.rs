//! Puts a streamed message together as raw JSON.
//!
//! Known deltas are applied as documented. Unknown ones follow one general rule (text is appended,
//! lists are extended, anything else is set), so that a block of a kind made tomorrow survives.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A message in the making.
#[derive(Debug, Default)]
pub(crate) struct Accumulator {
    message: Map<String, Value>,
    blocks: BTreeMap<u64, Value>,
    /// Text of `input_json_delta`s by block.
    inputs: BTreeMap<u64, String>,
    is_stopped: bool,
}

/// A message that is complete.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Complete {
    /// The raw message.
    pub(crate) message: Value,
    /// Ids of `tool_use` blocks whose input was cut off; their `input` is an empty object.
    pub(crate) incomplete: Vec<String>,
}

/// What a stream event brought that others may want to see at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Seen {
    /// Text of the block at this index.
    Text(u64, String),
    /// A block began.
    Began,
}

/// An event that does not fit where it came.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the model's stream is malformed: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

impl Accumulator {
    /// Applies one stream event, by the `type` in its data.
    pub(crate) fn apply(&mut self, event: &Value) -> Result<Option<Seen>, Malformed> {
        match event.get("type").and_then(Value::as_str).unwrap_or("") {
            "message_start" => {
                let message = event.get("message").and_then(Value::as_object);
                self.message = message
                    .ok_or(Malformed("message_start without a message"))?
                    .clone();
                Ok(None)
            }
            "content_block_start" => {
                let block = event.get("content_block").filter(|block| block.is_object());
                let block = block.ok_or(Malformed("content_block_start without a block"))?;
                self.blocks.insert(index(event)?, block.clone());
                Ok(Some(Seen::Began))
            }
            "content_block_delta" => self.apply_delta(event),
            "message_delta" => {
                self.apply_message_delta(event);
                Ok(None)
            }
            "message_stop" => {
                self.is_stopped = true;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Whether the message's end was seen.
    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Gives the message out.
    pub(crate) fn finish(mut self) -> Result<Complete, Malformed> {
        if self.message.is_empty() {
            return Err(Malformed("a message without a start"));
        }
        let mut incomplete = Vec::new();
        for (index, text) in self.inputs {
            let Some(block) = self.blocks.get_mut(&index) else {
                continue;
            };
            let input = match serde_json::from_str::<Value>(&text) {
                Ok(input @ Value::Object(_)) => input,
                // Models send nothing at all for an empty input.
                _ if text.trim().is_empty() => continue,
                _ => {
                    let id = block.get("id").and_then(Value::as_str).unwrap_or_default();
                    incomplete.push(id.to_owned());
                    json!({})
                }
            };
            block["input"] = input;
        }
        self.message
            .insert("content".to_owned(), self.blocks.into_values().collect());
        Ok(Complete {
            message: Value::Object(self.message),
            incomplete,
        })
    }

    fn apply_delta(&mut self, event: &Value) -> Result<Option<Seen>, Malformed> {
        let index = index(event)?;
        let block = self.blocks.get_mut(&index).and_then(Value::as_object_mut);
        let block = block.ok_or(Malformed("a delta for a block that did not start"))?;
        let delta = event.get("delta").and_then(Value::as_object);
        let delta = delta.ok_or(Malformed("content_block_delta without a delta"))?;
        match delta.get("type").and_then(Value::as_str).unwrap_or("") {
            "input_json_delta" => {
                let text = delta
                    .get("partial_json")
                    .and_then(Value::as_str)
                    .unwrap_or("");
                self.inputs.entry(index).or_default().push_str(text);
                Ok(None)
            }
            "citations_delta" => {
                if let Some(citation) = delta.get("citation") {
                    let citations = block.entry("citations").or_insert(Value::Null);
                    merge(citations, &json!([citation]));
                }
                Ok(None)
            }
            kind => {
                for (name, value) in delta.iter().filter(|(name, _)| *name != "type") {
                    merge(block.entry(name.as_str()).or_insert(Value::Null), value);
                }
                let text = delta.get("text").and_then(Value::as_str);
                Ok(text
                    .filter(|_| kind == "text_delta")
                    .map(|text| Seen::Text(index, text.to_owned())))
            }
        }
    }

    fn apply_message_delta(&mut self, event: &Value) {
        let Some(fields) = event.as_object() else {
            return;
        };
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("type", _) => {}
                ("delta", Value::Object(delta)) => self.message.extend(delta.clone()),
                ("usage", Value::Object(usage)) => {
                    let total = self.message.entry("usage").or_insert_with(|| json!({}));
                    if let Value::Object(total) = total {
                        // Cumulative numbers; a null says nothing new.
                        total.extend(
                            usage
                                .clone()
                                .into_iter()
                                .filter(|(_, value)| !value.is_null()),
                        );
                    }
                }
                _ => {
                    self.message.insert(name.clone(), value.clone());
                }
            }
        }
    }
}

fn index(event: &Value) -> Result<u64, Malformed> {
    event
        .get("index")
        .and_then(Value::as_u64)
        .ok_or(Malformed("an event without its index"))
}

/// Appends text to text and lists to lists; sets anything else.
fn merge(slot: &mut Value, value: &Value) {
    match (slot, value) {
        (Value::String(old), Value::String(new)) => old.push_str(new),
        (Value::Array(old), Value::Array(new)) => old.extend(new.iter().cloned()),
        (slot, value) => *slot = value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(events: &[Value]) -> Complete {
        let mut accumulator = Accumulator::default();
        for event in events {
            accumulator.apply(event).unwrap();
        }
        accumulator.finish().unwrap()
    }

    fn start() -> Value {
        json!({"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [],
            "usage": {"input_tokens": 5, "output_tokens": 1, "new_counter": {"a": 1}}, "unheard_of": [1]}})
    }

    #[test]
    fn text_thinking_and_tool_input_come_together() {
        let done = complete(&[
            start(),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "a"}}),
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "b"}}),
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "citations_delta", "citation": {"n": 1}}}),
            json!({"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}}),
            json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{\"b\": 1, "}}),
            json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "\"a\": 2}"}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_details": null}, "usage": {"output_tokens": 9, "input_tokens": null}, "context_management": {"x": 1}}),
            json!({"type": "message_stop"}),
        ]);
        assert_eq!(done.incomplete, Vec::<String>::new());
        assert_eq!(
            done.message.to_string(),
            json!({"id": "msg_1", "role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "text", "text": "ab", "citations": [{"n": 1}]},
                {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"b": 1, "a": 2}},
            ], "usage": {"input_tokens": 5, "output_tokens": 9, "new_counter": {"a": 1}}, "unheard_of": [1],
            "stop_reason": "tool_use", "stop_details": null, "context_management": {"x": 1}})
            .to_string()
        );
    }

    #[test]
    fn unknown_blocks_deltas_and_stop_reasons_survive() {
        let done = complete(&[
            start(),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "hologram", "rays": ["a"], "title": "x", "depth": null}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "hologram_delta", "rays": ["b"], "title": "y", "depth": 3}}),
            json!({"type": "brand_new_event", "index": 9}),
            json!({"type": "message_delta", "delta": {"stop_reason": "bored"}}),
        ]);
        assert_eq!(
            done.message["content"],
            json!([{"type": "hologram", "rays": ["a", "b"], "title": "xy", "depth": 3}])
        );
        assert_eq!(done.message["stop_reason"], "bored");
    }

    #[test]
    fn a_cut_off_tool_input_is_named_and_emptied() {
        let done = complete(&[
            start(),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{\"command\": \"rm"}}),
        ]);
        assert_eq!(done.incomplete, ["toolu_1"]);
        assert_eq!(done.message["content"][0]["input"], json!({}));
    }

    #[test]
    fn a_delta_without_its_block_is_malformed() {
        let mut accumulator = Accumulator::default();
        let event = json!({"type": "content_block_delta", "index": 4, "delta": {"type": "text_delta", "text": "x"}});
        assert!(accumulator.apply(&event).is_err());
        assert!(accumulator.finish().is_err());
    }
}
