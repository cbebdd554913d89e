//! A session's current state, folded from its events.

use claviger_session::{Event, SessionId};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::object::fold::Fold;

/// The state of a session. One fold decides status and everything shown beside it, so that they always agree.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionState {
    pub(crate) owner: String,
    created: Map<String, Value>,
    created_at: Timestamp,
    updated_at: Timestamp,
    pub(crate) archived_at: Option<Timestamp>,
    pub(crate) is_deleted: bool,
    newest_status: Newest,
    /// Number of the newest input, and up to which input the harness says that it has handled all.
    last_input: u64,
    handled: u64,
    running_since: Option<Timestamp>,
    active_ms: i64,
    usage: Usage,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Newest {
    #[default]
    Idle,
    Rescheduling,
    Running,
    Terminated,
}

#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    input: u64,
    output: u64,
    cache_read: u64,
    cache_creation: u64,
}

impl Fold for SessionState {
    const KINDS: &'static [&'static str] = &[
        "session.archived",
        "session.created",
        "session.deleted",
        "session.status_idle",
        "session.status_rescheduled",
        "session.status_running",
        "session.status_terminated",
        "session.updated",
        "session.wake",
        "span.model_request_end",
        "user.custom_tool_result",
        "user.interrupt",
        "user.message",
        "user.tool_confirmation",
    ];

    fn apply(&mut self, event: &Event) {
        self.updated_at = event.at;
        let payload = &event.payload;
        match event.kind.as_str() {
            "session.created" => {
                self.created = payload.as_object().cloned().unwrap_or_default();
                payload["principal"]
                    .as_str()
                    .unwrap_or_default()
                    .clone_into(&mut self.owner);
                self.created_at = event.at;
            }
            "session.updated" => {
                for name in ["title", "metadata"] {
                    if let Some(value) = payload.get(name) {
                        self.created.insert(name.to_owned(), value.clone());
                    }
                }
            }
            "session.archived" => self.archived_at = self.archived_at.or(Some(event.at)),
            "session.deleted" => self.is_deleted = true,
            "span.model_request_end" => self.usage.add(&payload["model_usage"]),
            "session.status_running" => self.turn(Newest::Running, event.at),
            "session.status_rescheduled" => self.turn(Newest::Rescheduling, event.at),
            "session.status_terminated" => self.turn(Newest::Terminated, event.at),
            "session.status_idle" => {
                self.handled = payload["handled_seq"].as_u64().unwrap_or(self.handled);
                self.turn(Newest::Idle, event.at);
            }
            _ => self.last_input = event.seq,
        }
    }

    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

impl Usage {
    fn add(&mut self, usage: &Value) {
        let count = |name: &str| usage[name].as_u64().unwrap_or(0);
        self.input += count("input_tokens");
        self.output += count("output_tokens");
        self.cache_read += count("cache_read_input_tokens");
        self.cache_creation += count("cache_creation_input_tokens");
    }
}

impl SessionState {
    fn turn(&mut self, status: Newest, at: Timestamp) {
        if self.newest_status == Newest::Terminated {
            return;
        }
        if let Some(since) = self.running_since.take() {
            self.active_ms += (at.as_millisecond() - since.as_millisecond()).max(0);
        }
        if status == Newest::Running {
            self.running_since = Some(at);
        }
        self.newest_status = status;
    }

    /// The API's status: work that waits for a harness runs already.
    pub(crate) fn status(&self) -> &'static str {
        match self.newest_status {
            Newest::Terminated => "terminated",
            _ if self.archived_at.is_some() || self.is_deleted => "terminated",
            Newest::Rescheduling => "rescheduling",
            Newest::Running => "running",
            Newest::Idle if self.last_input > self.handled => "running",
            Newest::Idle => "idle",
        }
    }

    /// Whether a turn runs or waits to run.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.status(), "running" | "rescheduling")
    }

    pub(crate) fn agent(&self) -> &Value {
        self.created.get("agent").unwrap_or(&Value::Null)
    }

    pub(crate) fn metadata(&self) -> Option<&Value> {
        self.created.get("metadata")
    }

    /// Renders the session as the API shows it.
    pub(crate) fn render(&self, id: &SessionId, now: Timestamp) -> Value {
        let field = |name: &str| self.created.get(name).cloned().unwrap_or(Value::Null);
        let seconds = |ms: i64| {
            serde_json::Number::from_f64(
                std::time::Duration::from_millis(ms.unsigned_abs()).as_secs_f64(),
            )
        };
        let running = self
            .running_since
            .map_or(0, |since| now.as_millisecond() - since.as_millisecond());
        let active = seconds(self.active_ms + running.max(0));
        let end = if self.status() == "terminated" {
            self.updated_at
        } else {
            now
        };
        let duration = seconds((end.as_millisecond() - self.created_at.as_millisecond()).max(0));
        json!({
            "id": id.as_str(),
            "type": "session",
            "agent": field("agent"),
            "environment_id": field("environment_id"),
            "status": self.status(),
            "title": field("title"),
            "metadata": field("metadata"),
            "vault_ids": field("vault_ids"),
            "resources": [],
            "outcome_evaluations": [],
            "budget": null,
            "deployment_id": null,
            "stats": {"active_seconds": active, "duration_seconds": duration},
            "usage": {
                "input_tokens": self.usage.input,
                "output_tokens": self.usage.output,
                "cache_read_input_tokens": self.usage.cache_read,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": self.usage.cache_creation,
                    "ephemeral_1h_input_tokens": 0,
                },
                "active_seconds": active,
            },
            "created_at": self.created_at.to_string(),
            "updated_at": self.updated_at.to_string(),
            "archived_at": self.archived_at.map(|at| at.to_string()),
        })
    }
}
