//! One model request: its start, its stream, and everything that its message brings, in one append.

use std::time::Duration;

use bytes::Bytes;
use claviger_session::NewEvent;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{Turn, ended};
use crate::context::{self, Strategy};
use crate::error::HarnessError;
use crate::log::{error_body, event_id, hash, session_error};
use crate::model::{ModelError, Piece, Reply};
use crate::presence::{is_absent, is_fenced};
use crate::publish::Publisher;
use crate::route::Hand;
use crate::state::State;

/// Pieces of a stream that may wait to be published; more are shed.
const PROGRESS_QUEUE: usize = 4096;
/// The refusal of a vault that has to be unsealed, and the pauses between attempts then.
const SEALED: &str = "vault_sealed";
const SEALED_PAUSE: Duration = Duration::from_millis(250);
const MAX_SEALED_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause before a request is repeated.
const MAX_PAUSE: Duration = Duration::from_secs(60);

impl Turn {
    /// Asks the model, and appends what came of it.
    pub(super) async fn request(&mut self) -> Result<(), HarnessError> {
        let answered = self.log.state().idle_seq;
        if let Some(pause) = self.pause.take() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = Self::interrupted(&mut self.interrupts, answered) => {
                    return self.log.refresh(0).await;
                }
            }
        }
        let Some(strategy) = self.log.state().strategy() else {
            let reason = "the log pins a strategy that this version does not know".to_owned();
            return Err(HarnessError::UnreadableLog { reason });
        };
        let (mut events, toolbox) = self.preface(strategy);
        let state = self.log.state();
        let body =
            context::render(&state.conversation, &state.agent, &toolbox, strategy).to_string();
        let start = event_id();
        let start_event =
            json!({"request_hash": hash(body.as_bytes()), "strategy": strategy.name()});
        events.push(NewEvent::new("span.model_request_start", start_event).with_id(start.as_str()));

        // The stream begins while the start is being written; nothing of it is passed on before
        // the start is durable, and a start that is refused drops it.
        let message = event_id();
        let (progress, seen) = mpsc::channel(PROGRESS_QUEUE);
        let (open, gate) = oneshot::channel();
        let publisher = Publisher {
            client: self.performer.clients.session.clone(),
            session: self.log.session().clone(),
            epoch: self.log.epoch(),
            message: message.clone(),
        };
        let model = self.performer.clients.model.clone();
        let session = self.performer.session.clone();
        let epoch = self.performer.epoch;
        let waits_for_seal = self.is_sealed;
        let exchange = async move {
            let mut is_shed = false;
            let mut see = move |piece: Piece| {
                // What was published stays a prefix: after one loss nothing follows.
                is_shed = is_shed || progress.try_send(piece).is_err();
            };
            let streaming = async move {
                let (body, mut pause) = (Bytes::from(body), SEALED_PAUSE);
                loop {
                    match model.send(&session, epoch, body.clone(), &mut see).await {
                        // The session was told by the attempt before; it waits for the operator.
                        Err(error) if waits_for_seal && error.code == SEALED => {
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(MAX_SEALED_PAUSE);
                        }
                        reply => break reply,
                    }
                }
            };
            tokio::join!(streaming, publisher.run(gate, seen)).0
        };
        let mut exchange = Box::pin(exchange);
        let is_started = {
            let mut append = std::pin::pin!(self.log.decide(events));
            let mut early = None;
            loop {
                tokio::select! {
                    biased;
                    started = &mut append => break started?,
                    // Cannot end: the publisher waits for the gate.
                    reply = &mut exchange, if early.is_none() => early = Some(reply),
                }
            }
        };
        if !is_started {
            return Ok(());
        }
        open.send(()).ok();
        let reply = tokio::select! {
            reply = &mut exchange => reply,
            () = Self::interrupted(&mut self.interrupts, answered) => {
                drop(exchange);
                let error = json!({"type": "interrupted", "message": "the user interrupted this request"});
                self.log.record(vec![ended(&start, &error)]).await?;
                return Ok(());
            }
        };
        match reply {
            Ok(reply) => {
                let events = self.brought(&start, &message, reply);
                self.log.record(events).await
            }
            Err(error) => self.request_failed(&start, &error).await,
        }
    }

    /// What stands before the request's start, and the tools it will offer: `policy.pinned` where
    /// strategy or tools are not in the log as they are now.
    fn preface(&self, strategy: Strategy) -> (Vec<NewEvent>, crate::route::Toolbox) {
        let state = self.log.state();
        let mut events: Vec<NewEvent> = self.log.running().into_iter().collect();
        let pinned = (strategy.name().to_owned(), self.rows.clone());
        if state.pinned.as_ref() == Some(&pinned) {
            return (events, state.toolbox.clone());
        }
        events.push(NewEvent::new(
            "policy.pinned",
            json!({"strategy": strategy.name(), "tools": self.rows}),
        ));
        (events, crate::route::Toolbox::new(&state.agent, &self.rows))
    }

    async fn request_failed(
        &mut self,
        start: &str,
        error: &ModelError,
    ) -> Result<(), HarnessError> {
        if is_fenced(&error.code) {
            return Err(HarnessError::Fenced);
        }
        let is_absent = is_absent(&error.code);
        self.is_sealed = error.code == SEALED;
        let failures = self.log.state().failures;
        let retry_status = match (
            error.is_retryable || is_absent,
            State::is_last_failure(failures),
        ) {
            (false, _) => "terminal",
            (true, true) => "exhausted",
            (true, false) => "retrying",
        };
        tracing::warn!(session = %self.log.session(), code = error.code, status = error.status, retry_status, "model request failed");
        let mut body = error_body(error.api_type(), &error.to_string(), retry_status);
        body["code"] = json!(error.code);
        let told =
            session_error(error.api_type(), &error.to_string(), retry_status).caused_by(start);
        self.log.record(vec![ended(start, &body), told]).await?;
        if is_absent {
            // Tools has forgotten the session, by a restart: it is told again.
            self.performer
                .presence
                .present()
                .await
                .map_err(|error| match error.code() {
                    code if is_fenced(code) => HarnessError::Fenced,
                    _ => HarnessError::OpeningLost,
                })?;
        } else if retry_status == "retrying" {
            self.pause = Some(
                error
                    .retry_after
                    .unwrap_or_else(|| self.backoff(failures))
                    .min(MAX_PAUSE),
            );
        }
        Ok(())
    }

    /// Doubles with each failure; between half and all of it, so that many harnesses do not return
    /// together.
    fn backoff(&self, failures: u32) -> Duration {
        let full = self
            .performer
            .clients
            .backoff
            .saturating_mul(1 << failures.min(10))
            .min(MAX_PAUSE);
        let [byte, ..] = uuid::Uuid::new_v4().into_bytes();
        full / 2 + full.mul_f64(f64::from(byte) / 512.0)
    }

    /// The events that a complete message brings.
    fn brought(&self, start: &str, message_id: &str, reply: Reply) -> Vec<NewEvent> {
        let Reply {
            mut message,
            mut incomplete,
            ttft,
            elapsed,
        } = reply;
        self.rename_known_uses(&mut message, &mut incomplete);
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let content = message["content"].as_array().cloned().unwrap_or_default();
        let usage = message["usage"].clone();
        let is_refused = message["stop_reason"] == "refusal";
        let mut events = Vec::new();
        if content.iter().any(|block| {
            block["type"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("thinking"))
        }) {
            events.push(NewEvent::new("agent.thinking", json!({})));
        }
        let response =
            json!({"message": message, "request_ms": millis(elapsed), "ttft_ms": millis(ttft)});
        events.push(NewEvent::new("model.response", response));
        let texts: Vec<&Value> = content
            .iter()
            .filter(|block| {
                block["type"] == "text"
                    && block["text"].as_str().is_some_and(|text| !text.is_empty())
            })
            .collect();
        if !texts.is_empty() {
            events.push(
                NewEvent::new("agent.message", json!({"content": texts})).with_id(message_id),
            );
        }
        let count = |name: &str| usage[name].as_u64().unwrap_or(0);
        let model_usage = json!({
            "input_tokens": count("input_tokens"),
            "output_tokens": count("output_tokens"),
            "cache_read_input_tokens": count("cache_read_input_tokens"),
            "cache_creation_input_tokens": count("cache_creation_input_tokens"),
        });
        let end =
            json!({"model_request_start_id": start, "is_error": false, "model_usage": model_usage});
        events.push(NewEvent::new("span.model_request_end", end));
        if !is_refused {
            events.extend(
                context::tool_uses(&content).map(|block| self.tool_use(block, &incomplete)),
            );
        }
        events
            .into_iter()
            .map(|event| event.caused_by(start))
            .collect()
    }

    fn tool_use(&self, block: &Value, incomplete: &[String]) -> NewEvent {
        let id = block["id"].as_str().unwrap_or("");
        let name = block["name"].as_str().unwrap_or("");
        let offered = self.log.state().toolbox.find(name);
        let mut payload = json!({"name": name, "input": block["input"], "model_tool_use_id": id});
        let denied = match offered {
            None => Some("unknown_tool"),
            Some(_) if incomplete.iter().any(|known| known == id) => Some("input_incomplete"),
            Some(_) => None,
        };
        let hand = offered.map_or(Hand::Sandbox, |tool| tool.hand);
        if hand != Hand::Client {
            payload["evaluated_permission"] = json!(match (denied, offered) {
                (Some(_), _) => "deny",
                (None, Some(tool)) if tool.is_allowed => "allow",
                _ => "ask",
            });
            if let Some(tool) = offered {
                payload["evaluation"] = json!({"type": tool.policy});
            }
        }
        if let Some(reason) = denied {
            payload["denied_because"] = json!(reason);
        }
        if let Some(server) = offered.and_then(|tool| tool.server.as_ref()) {
            payload["mcp_server_name"] = json!(server);
        }
        let kind = match hand {
            Hand::Client => "agent.custom_tool_use",
            Hand::Mcp => "agent.mcp_tool_use",
            Hand::Sandbox => "agent.tool_use",
        };
        NewEvent::new(kind, payload)
    }

    /// Some models number their tool uses from one in every message. A key must never name two
    /// calls, so an id that was seen before gets a new name; everything else stays as it came.
    fn rename_known_uses(&self, message: &mut Value, incomplete: &mut [String]) {
        let mut here: Vec<String> = Vec::new();
        let Some(content) = message["content"].as_array_mut() else {
            return;
        };
        for block in content
            .iter_mut()
            .filter(|block| block["type"] == "tool_use")
        {
            let id = block["id"].as_str().unwrap_or("").to_owned();
            let is_name = (1..=128).contains(&id.len())
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
            if is_name && !here.contains(&id) && !self.log.state().knows_use(&id) {
                here.push(id);
                continue;
            }
            let fresh = format!("toolu_{}", uuid::Uuid::new_v4().simple());
            incomplete
                .iter_mut()
                .filter(|known| **known == id)
                .for_each(|known| fresh.clone_into(known));
            block["id"] = json!(fresh);
            here.push(fresh);
        }
    }
}
