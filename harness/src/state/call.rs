//! One tool call of the newest assistant message, and how far it has come.

use claviger_sandbox::SandboxId;
use claviger_session::Event;
use serde_json::Value;

use crate::route::Hand;

/// A tool call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    /// The model's id of the tool use.
    pub(crate) id: String,
    /// Id of the `agent.*tool_use` event, which is the tool use's id in the API.
    pub(crate) event_id: String,
    pub(crate) name: String,
    pub(crate) input: Value,
    pub(crate) hand: Hand,
    pub(crate) permission: Permission,
    pub(crate) verdict: Option<Verdict>,
    /// Content and error flag that the client answered, for custom tools.
    pub(crate) answer: Option<(Vec<Value>, bool)>,
    pub(crate) has_intent: bool,
    /// The sandbox that the intent names.
    pub(crate) sandbox: Option<SandboxId>,
    /// Has its outcome.
    pub(crate) is_closed: bool,
}

/// What the agent's configuration says about a call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Permission {
    Allow,
    Ask,
    /// Never carried out; the reason.
    Deny(String),
}

/// What the user said about a call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Allow,
    Deny(Option<String>),
}

impl Call {
    /// Whether it can be carried out or refused now.
    pub(crate) fn is_ready(&self) -> bool {
        if self.has_intent {
            return true;
        }
        match (&self.permission, self.hand) {
            (Permission::Deny(_), _) => true,
            (_, Hand::Client) => self.answer.is_some(),
            (Permission::Allow, _) => true,
            (Permission::Ask, _) => self.verdict.is_some(),
        }
    }

    fn of(event: &Event, hand: Hand) -> Self {
        let payload = &event.payload;
        let text = |name: &str| payload[name].as_str().unwrap_or("").to_owned();
        Self {
            id: text("model_tool_use_id"),
            event_id: event.id.clone(),
            name: text("name"),
            input: payload["input"].clone(),
            hand,
            permission: match payload["evaluated_permission"].as_str() {
                Some("allow") => Permission::Allow,
                Some("deny") => Permission::Deny(text("denied_because")),
                None if hand == Hand::Client => match payload["denied_because"].as_str() {
                    Some(reason) => Permission::Deny(reason.to_owned()),
                    None => Permission::Allow,
                },
                _ => Permission::Ask,
            },
            verdict: None,
            answer: None,
            has_intent: false,
            sandbox: None,
            is_closed: false,
        }
    }
}

/// Takes the next event of the log.
pub(crate) fn apply(calls: &mut Vec<Call>, event: &Event) {
    let payload = &event.payload;
    match event.kind.as_str() {
        "model.response" => calls.clear(),
        "agent.tool_use" => calls.push(Call::of(event, Hand::Sandbox)),
        "agent.mcp_tool_use" => calls.push(Call::of(event, Hand::Mcp)),
        "agent.custom_tool_use" => calls.push(Call::of(event, Hand::Client)),
        "tool.intent" => {
            if let Some(call) = calls
                .iter_mut()
                .find(|call| payload["tool_use_id"] == call.id.as_str())
            {
                call.has_intent = true;
                call.sandbox = payload["sandbox"]
                    .as_str()
                    .and_then(|name| name.parse().ok());
            }
        }
        "tool.outcome" => {
            if let Some(call) = calls
                .iter_mut()
                .find(|call| payload["tool_use_id"] == call.id.as_str())
            {
                call.is_closed = true;
            }
        }
        "user.tool_confirmation" => {
            // The first word counts: a call may already be under way.
            let asked = calls
                .iter_mut()
                .find(|call| payload["tool_use_id"] == call.event_id.as_str());
            if let Some(call) = asked.filter(|call| call.verdict.is_none()) {
                let message = payload["deny_message"].as_str().map(str::to_owned);
                let is_allowed = payload["result"] == "allow";
                call.verdict = Some(if is_allowed {
                    Verdict::Allow
                } else {
                    Verdict::Deny(message)
                });
            }
        }
        "user.custom_tool_result" => {
            let asked = calls.iter_mut().find(|call| {
                call.hand == Hand::Client && payload["custom_tool_use_id"] == call.event_id.as_str()
            });
            if let Some(call) = asked.filter(|call| call.answer.is_none()) {
                let content = payload["content"].as_array().cloned().unwrap_or_default();
                call.answer = Some((content, payload["is_error"] == true));
            }
        }
        _ => {}
    }
}
