//! Which events may follow which, so that every log can be rendered for a model.
//!
//! A tool result without its call, a call answered twice or two open model requests make a conversation that model
//! APIs refuse for good. Such events are refused at append instead.

use std::collections::HashMap;

use serde_json::Value;

/// The part of a session's past that decides what may come next.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Transcript {
    request_is_open: bool,
    tools: HashMap<String, Use>,
}

/// How far a tool use has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Use {
    Asked,
    Intended,
    Finished,
}

impl Transcript {
    /// The types that this module rules on; all others may come at any time.
    pub const KINDS: [&'static str; 5] = [
        "model.response",
        "span.model_request_end",
        "span.model_request_start",
        "tool.intent",
        "tool.outcome",
    ];

    /// Says whether events of this type are ruled on, and so are for lease holders only.
    pub fn tracks(kind: &str) -> bool {
        Self::KINDS.contains(&kind)
    }

    /// Takes the next event, or says which rule it breaks and changes nothing.
    ///
    /// # Errors
    ///
    /// The rule, naming the tool use where there is one.
    pub fn accept(&mut self, kind: &str, payload: &Value) -> Result<(), String> {
        match kind {
            "span.model_request_start" if self.request_is_open => {
                return Err("a model request is already open".into());
            }
            "span.model_request_start" => self.request_is_open = true,
            "span.model_request_end" => self.request_is_open = false,
            "model.response" if !self.request_is_open => {
                return Err("a model response needs an open model request".into());
            }
            "model.response" => {
                self.request_is_open = false;
                for id in tool_uses(payload) {
                    self.tools.entry(id.to_owned()).or_insert(Use::Asked);
                }
            }
            "tool.intent" => {
                let id = tool_use_id(kind, payload)?;
                match self.tools.get_mut(id) {
                    Some(state @ Use::Asked) => *state = Use::Intended,
                    Some(Use::Intended) => {
                        return Err(format!("tool use {id} already has an intent"));
                    }
                    Some(Use::Finished) => {
                        return Err(format!("tool use {id} already has an outcome"));
                    }
                    None => return Err(format!("no model response asked for tool use {id}")),
                }
            }
            "tool.outcome" => {
                let id = tool_use_id(kind, payload)?;
                match self.tools.get_mut(id) {
                    Some(state @ Use::Intended) => *state = Use::Finished,
                    Some(Use::Finished) => {
                        return Err(format!("tool use {id} already has an outcome"));
                    }
                    Some(Use::Asked) | None => return Err(format!("tool use {id} has no intent")),
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Says whether a model request has neither its response nor its end.
    pub fn request_is_open(&self) -> bool {
        self.request_is_open
    }

    /// Returns the tool uses with an intent and no outcome, in no particular order.
    pub fn open_intents(&self) -> impl Iterator<Item = &str> {
        self.tools
            .iter()
            .filter(|(_, state)| **state == Use::Intended)
            .map(|(id, _)| id.as_str())
    }
}

/// Returns the ids of the tools that a `model.response` asks for.
fn tool_uses(payload: &Value) -> impl Iterator<Item = &str> {
    payload
        .pointer("/message/content")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|block| block["type"] == "tool_use")
        .filter_map(|block| block["id"].as_str())
}

fn tool_use_id<'a>(kind: &str, payload: &'a Value) -> Result<&'a str, String> {
    payload["tool_use_id"]
        .as_str()
        .filter(|id| !id.is_empty())
        .ok_or_else(|| format!("{kind} names no tool_use_id"))
}

#[cfg(test)]
mod tests;
