//! Where a session stands, folded from its log: everything that decides the next step.

mod call;

use std::collections::HashSet;

use claviger_sandbox::SandboxId;
use claviger_session::Event;
use claviger_vault_protocol::present::ToolRow;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::context::{Conversation, Strategy};
use crate::route::Toolbox;

pub(crate) use call::{Call, Permission, Verdict};

/// Attempts at one model request before the turn is given up.
const MAX_FAILURES: u32 = 8;

/// The types that [`State`] reads; all others are for other readers of the log.
pub(crate) const KINDS: [&str; 21] = [
    "agent.custom_tool_use",
    "agent.mcp_tool_use",
    "agent.tool_use",
    "hand.lost",
    "hand.provisioned",
    "model.response",
    "policy.pinned",
    "session.created",
    "session.status_idle",
    "session.status_rescheduled",
    "session.status_running",
    "session.status_terminated",
    "session.wake",
    "span.model_request_end",
    "span.model_request_start",
    "tool.intent",
    "tool.outcome",
    "user.custom_tool_result",
    "user.interrupt",
    "user.message",
    "user.tool_confirmation",
];

/// The newest `session.status_*`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Status {
    Idle,
    #[default]
    New,
    Rescheduled,
    Running,
    Terminated,
}

/// A session's state.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) is_created: bool,
    pub(crate) agent: Agent,
    pub(crate) pinned: Option<(String, Vec<ToolRow>)>,
    pub(crate) toolbox: Toolbox,
    pub(crate) conversation: Conversation,
    pub(crate) status: Status,
    /// The open model request.
    pub(crate) open_request: Option<String>,
    /// Calls of the newest assistant message.
    pub(crate) calls: Vec<Call>,
    /// The sandbox that the log says is there.
    pub(crate) sandbox: Option<SandboxId>,
    /// A sandbox was lost and the model has not been told.
    pub(crate) has_untold_loss: bool,
    pub(crate) failures: u32,
    pub(crate) is_failed_for_good: bool,
    pub(crate) last_stop: Option<String>,
    pub(crate) stop_details: Value,
    usage: [u64; 4],
    seen_uses: HashSet<String>,
    /// Number of the newest idle event, of the newest input, and what idle says is handled.
    pub(crate) idle_seq: u64,
    last_input: u64,
    handled: u64,
    last_interrupt: u64,
}

/// What to do next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Close a model request that a dead harness left open.
    CloseRequest(String),
    /// Nothing to do.
    Done,
    /// Say why the session waits now.
    Idle(Stop),
    /// End all open calls, because the user asked to.
    Interrupt,
    /// Ask the model.
    Request,
    /// Carry out or refuse these calls (by position).
    Tools(Vec<usize>),
}

/// Why a session is idle.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Stop {
    EndTurn,
    Refusal,
    RequiresAction(Vec<String>),
    RetriesExhausted,
}

impl State {
    /// Takes the next event.
    pub(crate) fn apply(&mut self, event: &Event) {
        self.conversation.apply(event);
        let payload = &event.payload;
        match event.kind.as_str() {
            "session.created" => {
                self.is_created = true;
                self.agent = Agent::of(payload);
                self.toolbox = Toolbox::new(&self.agent, &[]);
            }
            "policy.pinned" => {
                let rows: Vec<ToolRow> = payload
                    .get("tools")
                    .and_then(|rows| serde_json::from_value(rows.clone()).ok())
                    .unwrap_or_default();
                self.toolbox = Toolbox::new(&self.agent, &rows);
                self.pinned = Some((payload["strategy"].as_str().unwrap_or("").to_owned(), rows));
            }
            "hand.provisioned" => {
                self.sandbox = payload["sandbox"]
                    .as_str()
                    .and_then(|name| name.parse().ok());
            }
            "hand.lost" => {
                self.has_untold_loss = true;
                if self.sandbox.as_ref().map(SandboxId::as_str) == payload["sandbox"].as_str() {
                    self.sandbox = None;
                }
            }
            "span.model_request_start" => self.open_request = Some(event.id.clone()),
            "span.model_request_end" => self.end_request(payload),
            "model.response" => self.take_response(&payload["message"]),
            "tool.outcome" if payload["tells_loss"] == true => self.has_untold_loss = false,
            kind if kind.starts_with("session.status_") => self.take_status(event),
            _ => {}
        }
        call::apply(&mut self.calls, event);
        if is_input(&event.kind) {
            self.last_input = event.seq;
            if event.kind == "user.interrupt" {
                self.last_interrupt = event.seq;
            }
        }
    }

    /// The strategy in force: the pinned one, else the one that the agent asks for.
    pub(crate) fn strategy(&self) -> Option<Strategy> {
        let name = self
            .pinned
            .as_ref()
            .map(|(name, _)| name.as_str())
            .or(self.agent.strategy.as_deref());
        name.map_or_else(|| Some(Strategy::default()), Strategy::named)
    }

    /// Whether a tool use of this id was ever asked for.
    pub(crate) fn knows_use(&self, id: &str) -> bool {
        self.seen_uses.contains(id)
    }

    /// Whether an interrupt came that no idle has answered.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.last_interrupt > self.idle_seq
    }

    /// Tokens of the whole session, as in `session.usage`.
    pub(crate) fn usage(&self) -> Value {
        let [input, output, cache_read, cache_creation] = self.usage;
        json!({
            "input_tokens": input, "output_tokens": output,
            "cache_read_input_tokens": cache_read, "cache_creation_input_tokens": cache_creation,
        })
    }

    /// What an idle event at `head` may call handled: input that waits for the next turn is not.
    pub(crate) fn handled_at(&self, head: u64, stop: &Stop) -> u64 {
        match (stop, self.conversation.first_queued()) {
            (Stop::RequiresAction(_), _) | (_, None) => head,
            (_, Some(first)) => first - 1,
        }
    }

    /// Whether one more failure after this many ends the turn.
    pub(crate) fn is_last_failure(failures: u32) -> bool {
        failures + 1 >= MAX_FAILURES
    }

    /// Decides the next step from the log alone, so that any harness would decide the same.
    pub(crate) fn step(&self) -> Step {
        if !self.is_created || self.status == Status::Terminated {
            return Step::Done;
        }
        if let Some(request) = &self.open_request {
            return Step::CloseRequest(request.clone());
        }
        let open: Vec<usize> = (0..self.calls.len())
            .filter(|&at| !self.calls[at].is_closed)
            .collect();
        if self.is_interrupted() {
            return if open.is_empty() {
                Step::Idle(Stop::EndTurn)
            } else {
                Step::Interrupt
            };
        }
        if !open.is_empty() {
            let ready: Vec<usize> = open
                .iter()
                .copied()
                .filter(|&at| self.calls[at].is_ready())
                .collect();
            if !ready.is_empty() {
                return Step::Tools(ready);
            }
            if self.status == Status::Idle && self.last_input <= self.handled {
                return Step::Done;
            }
            return Step::Idle(Stop::RequiresAction(
                open.iter()
                    .map(|&at| self.calls[at].event_id.clone())
                    .collect(),
            ));
        }
        if self.is_failed_for_good || self.failures >= MAX_FAILURES {
            return Step::Idle(Stop::RetriesExhausted);
        }
        if self.conversation.wants_answer() {
            return Step::Request;
        }
        if self.status == Status::Idle && self.last_input <= self.handled {
            return Step::Done;
        }
        if self.status == Status::New && self.last_input == 0 {
            return Step::Done;
        }
        Step::Idle(match self.last_stop.as_deref() {
            Some("refusal") => Stop::Refusal,
            _ => Stop::EndTurn,
        })
    }

    fn end_request(&mut self, payload: &Value) {
        self.open_request = None;
        for (total, name) in self.usage.iter_mut().zip([
            "input_tokens",
            "output_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
        ]) {
            *total += payload["model_usage"][name].as_u64().unwrap_or(0);
        }
        match payload["error"]["retry_status"]["type"].as_str() {
            Some("retrying") => self.failures += 1,
            Some("exhausted" | "terminal") => self.is_failed_for_good = true,
            _ => {}
        }
    }

    fn take_response(&mut self, message: &Value) {
        self.open_request = None;
        self.failures = 0;
        self.last_stop = message["stop_reason"].as_str().map(str::to_owned);
        self.stop_details = message.get("stop_details").cloned().unwrap_or(Value::Null);
        let content = message["content"].as_array().map_or(&[][..], Vec::as_slice);
        self.seen_uses.extend(
            crate::context::tool_uses(content)
                .filter_map(|block| block["id"].as_str())
                .map(str::to_owned),
        );
    }

    fn take_status(&mut self, event: &Event) {
        if self.status == Status::Terminated {
            return;
        }
        match event.kind.as_str() {
            "session.status_idle" => {
                self.status = Status::Idle;
                self.idle_seq = event.seq;
                self.handled = event.payload["handled_seq"]
                    .as_u64()
                    .unwrap_or(self.handled);
                self.failures = 0;
                self.is_failed_for_good = false;
                self.last_stop = None;
            }
            "session.status_rescheduled" => self.status = Status::Rescheduled,
            "session.status_running" => self.status = Status::Running,
            "session.status_terminated" => self.status = Status::Terminated,
            _ => {}
        }
    }
}

fn is_input(kind: &str) -> bool {
    matches!(
        kind,
        "session.wake"
            | "user.custom_tool_result"
            | "user.interrupt"
            | "user.message"
            | "user.tool_confirmation"
    )
}
