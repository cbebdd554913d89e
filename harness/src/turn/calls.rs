//! The tool calls of one assistant message: intents first, then all at once, then their outcomes.

use claviger_sandbox::{HandsError, SandboxId};
use claviger_session::NewEvent;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};

use super::{Turn, lost, provisioned};
use crate::error::HarnessError;
use crate::hand::Outcome;
use crate::log::hash;
use crate::route::Hand;
use crate::state::{Call, Permission, Verdict};

/// Calls carried out at one time; more follow when these are done.
const MAX_CALLS: usize = 100;
/// Outcomes written by one append.
const MAX_OUTCOMES: usize = 32;

impl Turn {
    /// Carries out or refuses the calls at these positions.
    pub(super) async fn calls(&mut self, mut ready: Vec<usize>) -> Result<(), HarnessError> {
        ready.truncate(MAX_CALLS);
        let answered = self.log.state().idle_seq;
        let calls: Vec<Call> = ready
            .iter()
            .map(|&at| self.log.state().calls[at].clone())
            .collect();
        let wants_sandbox = calls
            .iter()
            .any(|call| call.hand == Hand::Sandbox && !call.has_intent && refusal(call).is_none());
        let sandbox = if wants_sandbox {
            Some(self.provision().await?)
        } else {
            None
        };

        let mut events: Vec<NewEvent> = self.log.running().into_iter().collect();
        if let Some(spare) = &self.spare {
            events.push(provisioned(spare));
        }
        let mut begun: Vec<(Call, bool)> = Vec::new();
        for mut call in calls {
            if call.has_intent {
                begun.push((call, true));
                continue;
            }
            match immediate(&call, sandbox.as_ref()) {
                Some(outcome) => {
                    events.push(intent(&call));
                    events.extend(self.outcome(&call, outcome));
                }
                None => {
                    if let (Hand::Sandbox, Some(Ok(sandbox))) = (call.hand, &sandbox) {
                        call.sandbox = Some(sandbox.clone());
                    }
                    events.push(intent(&call));
                    begun.push((call, false));
                }
            }
        }
        if !events.is_empty() && !self.log.decide(events).await? {
            return Ok(());
        }
        self.spare = None;
        self.run_calls(begun, answered).await
    }

    /// Ends all open calls, because the user asked to.
    pub(super) async fn interrupt(&mut self) -> Result<(), HarnessError> {
        let open: Vec<Call> = self
            .log
            .state()
            .calls
            .iter()
            .filter(|call| !call.is_closed)
            .cloned()
            .collect();
        let running = open
            .iter()
            .filter(|call| call.has_intent)
            .find_map(|call| call.sandbox.clone());
        if let Some(sandbox) = running {
            let (hands, session) = (&self.performer.clients.hands, &self.performer.session);
            super::fenced(
                hands
                    .interrupt(session, self.performer.epoch, &sandbox)
                    .await,
            )?
            .ok();
        }
        let outcomes = futures_util::future::join_all(
            open.iter().map(|call| self.performer.interrupted(call)),
        )
        .await;
        for (call, outcome) in open.iter().zip(outcomes) {
            let mut events: Vec<NewEvent> = if call.has_intent {
                Vec::new()
            } else {
                vec![intent(call)]
            };
            events.extend(self.outcome(call, outcome?));
            self.log.record(events).await?;
        }
        Ok(())
    }

    async fn run_calls(
        &mut self,
        begun: Vec<(Call, bool)>,
        answered: u64,
    ) -> Result<(), HarnessError> {
        let running = FuturesUnordered::new();
        for (call, is_resumed) in begun {
            let performer = self.performer.clone();
            let is_repeatable = self
                .log
                .state()
                .toolbox
                .find(&call.name)
                .is_some_and(|tool| tool.is_repeatable);
            running.push(async move {
                let outcome = performer.perform(&call, is_repeatable, is_resumed).await;
                (call, outcome)
            });
        }
        let mut finished = running.ready_chunks(MAX_OUTCOMES);
        loop {
            let chunk = tokio::select! {
                biased;
                chunk = finished.next() => chunk,
                // What runs is left to its hand; the next step asks the hand to stop and what it did.
                () = Self::interrupted(&mut self.interrupts, answered) => return self.log.refresh(0).await,
            };
            let Some(chunk) = chunk else { return Ok(()) };
            let mut events = Vec::new();
            let mut failed = None;
            let mut is_loss_written = false;
            for (call, outcome) in chunk {
                match outcome {
                    Ok(outcome) => {
                        let is_newest =
                            call.sandbox.is_some() && call.sandbox == self.log.state().sandbox;
                        if outcome.status == "lost" && is_newest && !is_loss_written {
                            is_loss_written = true;
                            events.extend(call.sandbox.as_ref().map(lost));
                        }
                        events.extend(self.outcome(&call, outcome));
                    }
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                Some(HarnessError::Fenced) => return Err(HarnessError::Fenced),
                Some(error) => {
                    if !events.is_empty() {
                        self.log.record(events).await?;
                    }
                    return Err(error);
                }
                None => self.log.record(events).await?,
            }
        }
    }

    /// `tool.outcome` and the API's result event.
    fn outcome(&self, call: &Call, mut outcome: Outcome) -> Vec<NewEvent> {
        let is_lost = outcome.status == "lost";
        let ran_in_new = call.hand == Hand::Sandbox && call.sandbox.is_some() && !is_lost;
        let tells_loss = is_lost || (ran_in_new && self.log.state().has_untold_loss);
        if tells_loss && !is_lost {
            let note = "Note: the earlier sandbox was lost with its files and processes; this is a new, empty one.";
            outcome
                .content
                .insert(0, json!({"type": "text", "text": note}));
        }
        let mut payload = json!({
            "tool_use_id": call.id, "status": outcome.status, "content": outcome.content,
            "is_error": outcome.is_error, "elapsed_ms": outcome.elapsed_ms,
        });
        if tells_loss {
            payload["tells_loss"] = Value::Bool(true);
        }
        let mut events =
            vec![NewEvent::new("tool.outcome", payload).caused_by(call.event_id.as_str())];
        let result = match call.hand {
            Hand::Client => None,
            Hand::Mcp => Some(("agent.mcp_tool_result", "mcp_tool_use_id")),
            Hand::Sandbox => Some(("agent.tool_result", "tool_use_id")),
        };
        if let Some((kind, field)) = result {
            let payload = json!({field: call.event_id, "content": outcome.content, "is_error": outcome.is_error});
            events.push(NewEvent::new(kind, payload).caused_by(call.event_id.as_str()));
        }
        events
    }
}

/// The durable word that a call is about to have its effect.
fn intent(call: &Call) -> NewEvent {
    let mut payload = json!({
        "tool_use_id": call.id, "hand": call.hand.as_str(), "name": call.name,
        "input_hash": hash(call.input.to_string().as_bytes()),
    });
    if let Some(sandbox) = &call.sandbox {
        payload["sandbox"] = json!(sandbox);
    }
    NewEvent::new("tool.intent", payload).caused_by(call.event_id.as_str())
}

/// The outcome of a call that no hand is asked for.
fn immediate(call: &Call, sandbox: Option<&Result<SandboxId, HandsError>>) -> Option<Outcome> {
    if let Some(text) = refusal(call) {
        return Some(Outcome::error("error", text));
    }
    match (call.hand, sandbox) {
        (Hand::Sandbox, Some(Err(error))) => Some(Outcome::error(
            "error",
            format!("sandbox_unavailable: {error}"),
        )),
        (Hand::Client, _) => call.answer.clone().map(|(content, is_error)| Outcome {
            status: if is_error { "error" } else { "ok" },
            content,
            is_error,
            elapsed_ms: 0,
        }),
        _ => None,
    }
}

/// Why a call is not carried out, for the model.
fn refusal(call: &Call) -> Option<String> {
    match (&call.permission, &call.verdict) {
        (Permission::Deny(reason), _) if reason == "input_incomplete" => Some(
            "input_incomplete: the message was cut off within this call's input, so it was not carried out.".to_owned(),
        ),
        (Permission::Deny(reason), _) => Some(format!("{reason}: there is no tool named {}.", call.name)),
        (Permission::Ask, Some(Verdict::Deny(Some(message)))) => Some(format!("denied: the user denied this call: {message}")),
        (Permission::Ask, Some(Verdict::Deny(None))) => Some("denied: the user denied this call.".to_owned()),
        _ => None,
    }
}
