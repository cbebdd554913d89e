//! What the model is shown: a pure function of events and strategy.
//!
//! The log is never shortened for the model's sake; a [`Strategy`] decides what of it is rendered.
//! Rules of the rendering: assistant messages are the stored raw content; all results of one
//! assistant message stand in one user message, before any text; input that came while tools
//! were at work waits for the turn's end, because text after tool results invites empty answers;
//! neighbouring user messages become one.

mod strategy;

use std::collections::HashMap;

use claviger_session::Event;
use serde_json::{Map, Value, json};

use crate::agent::Agent;
use crate::route::Toolbox;

pub(crate) use strategy::Strategy;

/// Most tokens of one answer unless the agent chooses.
const MAX_TOKENS: u64 = 16_000;
/// Blocks between two cache breakpoints; a breakpoint is found again within 20.
const BREAKPOINT_BLOCKS: usize = 15;
/// Breakpoints in the messages; the API takes four in all and the prefix has one.
const MESSAGE_BREAKPOINTS: usize = 3;

/// The conversation so far, folded from events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversation {
    entries: Vec<Entry>,
    queued: Vec<(u64, Vec<Value>)>,
    /// The newest assistant message waits for results or for its continuation.
    is_open: bool,
    /// User content was rendered that no assistant message has answered.
    is_unanswered: bool,
}

#[derive(Clone, Debug)]
enum Entry {
    Assistant(Vec<Value>),
    Input(Vec<Value>),
    Results(Vec<String>, HashMap<String, Value>),
}

impl Conversation {
    /// Takes the next event.
    pub(crate) fn apply(&mut self, event: &Event) {
        match event.kind.as_str() {
            "user.message" => {
                let content = event.payload["content"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                self.queued.push((event.seq, content));
            }
            "span.model_request_start" => self.flush(),
            "model.response" => self.take_response(&event.payload["message"]),
            "tool.outcome" => self.take_outcome(&event.payload),
            "session.status_idle" if event.payload["stop_reason"]["type"] != "requires_action" => {
                self.is_open = false;
                self.is_unanswered = false;
            }
            _ => {}
        }
    }

    /// Whether a model request is due: results, a paused message or input wait for an answer.
    pub(crate) fn wants_answer(&self) -> bool {
        self.is_open || self.is_unanswered || !self.queued.is_empty()
    }

    /// Number of the first input that no request has carried yet.
    pub(crate) fn first_queued(&self) -> Option<u64> {
        self.queued.first().map(|(seq, _)| *seq)
    }

    fn flush(&mut self) {
        if !self.is_open {
            let queued = std::mem::take(&mut self.queued);
            self.entries
                .extend(queued.into_iter().map(|(_, content)| Entry::Input(content)));
        }
        self.is_unanswered = true;
    }

    fn take_response(&mut self, message: &Value) {
        self.is_unanswered = false;
        let content = message["content"].as_array().cloned().unwrap_or_default();
        let stop_reason = message["stop_reason"].as_str().unwrap_or("");
        // A refused message sent back would be refused again; an empty one is not accepted.
        if stop_reason == "refusal" || content.is_empty() {
            self.is_open = false;
            return;
        }
        let ids: Vec<String> = tool_uses(&content)
            .filter_map(|block| block["id"].as_str())
            .map(str::to_owned)
            .collect();
        self.entries.push(Entry::Assistant(content));
        self.is_open = !ids.is_empty() || stop_reason == "pause_turn";
        if !ids.is_empty() {
            self.entries.push(Entry::Results(ids, HashMap::new()));
        }
    }

    fn take_outcome(&mut self, payload: &Value) {
        let Some(id) = payload["tool_use_id"].as_str() else {
            return;
        };
        let found = self.entries.iter_mut().rev().find_map(|entry| match entry {
            Entry::Results(ids, found) if ids.iter().any(|known| known == id) => Some(found),
            _ => None,
        });
        if let Some(found) = found {
            found.insert(id.to_owned(), result_block(id, payload));
        }
    }
}

/// The `tool_use` blocks of an assistant message.
pub(crate) fn tool_uses(content: &[Value]) -> impl Iterator<Item = &Value> {
    content.iter().filter(|block| block["type"] == "tool_use")
}

/// Renders the request that is due now.
pub(crate) fn render(
    conversation: &Conversation,
    agent: &Agent,
    toolbox: &Toolbox,
    strategy: Strategy,
) -> Value {
    let mut due = conversation.clone();
    due.flush();
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(agent.model));
    body.insert(
        "max_tokens".to_owned(),
        json!(agent.max_tokens.unwrap_or(MAX_TOKENS)),
    );
    if let Some(effort) = &agent.effort {
        body.insert("output_config".to_owned(), json!({"effort": effort}));
    }
    let mut tools: Vec<Value> = toolbox
        .offered()
        .iter()
        .map(|tool| tool.definition.clone())
        .collect();
    let breakpoint = json!({"type": "ephemeral"});
    // One breakpoint covers tools and system: it goes to whichever comes last.
    if let (None, Some(last)) = (&agent.system, tools.last_mut()) {
        last["cache_control"] = breakpoint.clone();
    }
    if !tools.is_empty() {
        body.insert("tools".to_owned(), Value::Array(tools));
    }
    if let Some(system) = &agent.system {
        body.insert(
            "system".to_owned(),
            json!([{"type": "text", "text": system, "cache_control": breakpoint}]),
        );
    }
    let mut messages = messages(&due, strategy);
    mark(&mut messages, &breakpoint);
    body.insert("messages".to_owned(), Value::Array(messages));
    body.insert("stream".to_owned(), Value::Bool(true));
    Value::Object(body)
}

fn messages(conversation: &Conversation, strategy: Strategy) -> Vec<Value> {
    let results = conversation
        .entries
        .iter()
        .filter(|entry| matches!(entry, Entry::Results(..)))
        .count();
    let mut cleared = strategy.cleared(results);
    let mut messages: Vec<Value> = Vec::with_capacity(conversation.entries.len());
    for entry in &conversation.entries {
        match entry {
            Entry::Assistant(content) => {
                messages.push(json!({"role": "assistant", "content": content}));
            }
            Entry::Input(content) => push_user(&mut messages, content.iter().cloned()),
            Entry::Results(ids, found) => {
                let is_cleared = cleared > 0;
                cleared = cleared.saturating_sub(1);
                let block = |id: &String| match found.get(id) {
                    Some(block) if is_cleared => strategy::clear(block),
                    Some(block) => block.clone(),
                    None => result_block(
                        id,
                        &json!({"content": [{"type": "text", "text": "no result"}], "is_error": true}),
                    ),
                };
                push_user(&mut messages, ids.iter().map(block));
            }
        }
    }
    messages
}

fn push_user(messages: &mut Vec<Value>, blocks: impl Iterator<Item = Value>) {
    if let Some(last) = messages.last_mut().filter(|last| last["role"] == "user")
        && let Some(content) = last["content"].as_array_mut()
    {
        content.extend(blocks);
        return;
    }
    let content: Vec<Value> = blocks.collect();
    if !content.is_empty() {
        messages.push(json!({"role": "user", "content": content}));
    }
}

fn result_block(id: &str, payload: &Value) -> Value {
    let mut block = json!({"type": "tool_result", "tool_use_id": id});
    if payload["content"]
        .as_array()
        .is_some_and(|content| !content.is_empty())
    {
        block["content"] = payload["content"].clone();
    }
    if payload["is_error"] == true {
        block["is_error"] = Value::Bool(true);
    }
    block
}

/// Marks the end and, going back, a block about every [`BREAKPOINT_BLOCKS`]; only in user
/// messages, because assistant content is sent back untouched.
fn mark(messages: &mut [Value], breakpoint: &Value) {
    let mut left = MESSAGE_BREAKPOINTS;
    let mut distance = BREAKPOINT_BLOCKS;
    for message in messages.iter_mut().rev() {
        let is_user = message["role"] == "user";
        let Some(content) = message["content"].as_array_mut() else {
            continue;
        };
        for block in content.iter_mut().rev() {
            if left == 0 {
                return;
            }
            if is_user && distance >= BREAKPOINT_BLOCKS && is_markable(block) {
                block["cache_control"] = breakpoint.clone();
                left -= 1;
                distance = 0;
            }
            distance += 1;
        }
    }
}

fn is_markable(block: &Value) -> bool {
    match block["type"].as_str() {
        Some("text") => block["text"].as_str().is_some_and(|text| !text.is_empty()),
        Some("tool_result" | "image" | "document") => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
