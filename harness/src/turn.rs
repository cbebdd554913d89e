//! The loop: decide from the log, act, append; again until the session is idle.

mod calls;
mod request;

use std::time::Duration;

use claviger_sandbox::{HandsError, Resources, SandboxId};
use claviger_session::NewEvent;
use claviger_vault_protocol::present::ToolRow;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::error::HarnessError;
use crate::hand::Performer;
use crate::log::Log;
use crate::state::{Step, Stop};

/// One session at work under one epoch.
#[derive(Debug)]
pub(crate) struct Turn {
    log: Log,
    performer: Performer,
    /// The session's MCP tools as tools lists them now.
    rows: Vec<ToolRow>,
    /// Number of the newest `user.interrupt` that the tail has shown.
    interrupts: watch::Receiver<u64>,
    /// How long to wait before the next model request.
    pause: Option<Duration>,
    /// The last model request found the vault sealed.
    is_sealed: bool,
    /// A sandbox that was made and is not in the log yet.
    spare: Option<SandboxId>,
}

/// The end of a model request whose harness is gone.
pub(crate) fn abandoned(request: &str) -> NewEvent {
    ended(
        request,
        &json!({"type": "abandoned", "message": "the harness that made this request is gone"}),
    )
}

/// The end of a model request without a message.
fn ended(request: &str, error: &Value) -> NewEvent {
    let usage = json!({"input_tokens": 0, "output_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0});
    let payload = json!({"model_request_start_id": request, "is_error": true, "model_usage": usage, "error": error});
    NewEvent::new("span.model_request_end", payload).caused_by(request)
}

impl Turn {
    pub(crate) fn new(
        log: Log,
        performer: Performer,
        rows: Vec<ToolRow>,
        interrupts: watch::Receiver<u64>,
    ) -> Self {
        Self {
            log,
            performer,
            rows,
            interrupts,
            pause: None,
            is_sealed: false,
            spare: None,
        }
    }

    /// The performer's view of tools, to be kept while the turn runs.
    pub(crate) fn performer(&self) -> &Performer {
        &self.performer
    }

    /// Goes on until there is nothing to do.
    ///
    /// # Cancel safety
    /// May be dropped anywhere: the log says what was begun.
    pub(crate) async fn run(&mut self) -> Result<(), HarnessError> {
        self.settle_hands().await?;
        loop {
            let step = self.log.state().step();
            tracing::debug!(session = %self.log.session(), epoch = self.log.epoch(), head = self.log.head(), ?step, "step");
            match step {
                Step::CloseRequest(request) => {
                    self.log.decide(vec![abandoned(&request)]).await?;
                }
                Step::Done => return Ok(()),
                Step::Idle(stop) => self.idle(&stop).await?,
                Step::Interrupt => self.interrupt().await?,
                Step::Request => self.request().await?,
                Step::Tools(ready) => self.calls(ready).await?,
            }
        }
    }

    /// Head of the log, for the vault's witness.
    pub(crate) fn head(&self) -> u64 {
        self.log.head()
    }

    /// Makes log and hands agree about the sandbox that an earlier epoch left.
    async fn settle_hands(&mut self) -> Result<(), HarnessError> {
        let live = self.performer.live.clone();
        match self.log.state().sandbox.clone() {
            Some(sandbox) if live.contains(&sandbox) => self.name(&sandbox).await?,
            Some(sandbox) => self.log.record(vec![lost(&sandbox)]).await?,
            // Made by a harness that died before it could say so.
            None => {
                if let Some(sandbox) = live.first() {
                    self.log.record(vec![provisioned(sandbox)]).await?;
                    self.name(sandbox).await?;
                }
            }
        }
        let kept = self.log.state().sandbox.clone();
        for sandbox in live
            .iter()
            .filter(|sandbox| Some(*sandbox) != kept.as_ref())
        {
            let destroyed = self.performer.clients.hands.destroy(
                &self.performer.session,
                self.performer.epoch,
                sandbox,
            );
            fenced(destroyed.await)?.ok();
        }
        Ok(())
    }

    /// Has the sandbox's listeners served. Without them it has no way out, which its programs see.
    async fn name(&self, sandbox: &SandboxId) -> Result<(), HarnessError> {
        let tools = self.log.state().toolbox.allowed_mcp();
        match self
            .performer
            .presence
            .name_sandbox(sandbox.as_str(), tools)
            .await
        {
            Err(error) if crate::presence::is_fenced(error.code()) => Err(HarnessError::Fenced),
            Err(error) => {
                tracing::warn!(session = %self.log.session(), code = error.code(), "sandbox not named");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The sandbox to run calls in, made if there is none; not in the log yet where `spare` holds it.
    async fn provision(&mut self) -> Result<Result<SandboxId, HandsError>, HarnessError> {
        if let Some(sandbox) = self
            .log
            .state()
            .sandbox
            .clone()
            .or_else(|| self.spare.clone())
        {
            return Ok(Ok(sandbox));
        }
        let resources = Resources {
            environment: self.performer.presence.environment(),
            listeners: true,
            ..Resources::default()
        };
        let (hands, session, epoch) = (
            &self.performer.clients.hands,
            &self.performer.session,
            self.performer.epoch,
        );
        let made = match fenced(hands.provision(session, epoch, resources.clone()).await)? {
            // Perhaps it was made, perhaps the hands are new: attaching tells.
            Err(HandsError::Disconnected) => {
                match fenced(hands.attach(session, epoch).await)??.first() {
                    Some(sandbox) => Ok(sandbox.clone()),
                    None => fenced(hands.provision(session, epoch, resources).await)?,
                }
            }
            other => other,
        };
        let sandbox = match made {
            Ok(sandbox) => sandbox,
            Err(HandsError::Disconnected) => return Err(HandsError::Disconnected.into()),
            Err(error) => return Ok(Err(error)),
        };
        self.performer.live.push(sandbox.clone());
        self.spare = Some(sandbox.clone());
        self.name(&sandbox).await?;
        Ok(Ok(sandbox))
    }

    async fn idle(&mut self, stop: &Stop) -> Result<(), HarnessError> {
        let state = self.log.state();
        let reason = match stop {
            Stop::EndTurn => json!({"type": "end_turn"}),
            Stop::Refusal => json!({"type": "refusal"}),
            Stop::RequiresAction(ids) => json!({"type": "requires_action", "event_ids": ids}),
            Stop::RetriesExhausted => json!({"type": "retries_exhausted"}),
        };
        // Input that comes between this decision and the append makes a conflict, so `head` is what
        // was seen.
        let mut payload =
            json!({"stop_reason": reason, "handled_seq": state.handled_at(self.log.head(), stop)});
        if *stop == Stop::Refusal && !state.stop_details.is_null() {
            payload["stop_details"] = state.stop_details.clone();
        }
        let events = vec![
            NewEvent::new("session.usage", json!({"usage": state.usage()})),
            NewEvent::new("session.status_idle", payload),
        ];
        self.log.decide(events).await.map(drop)
    }

    /// Waits until the user interrupts what runs now.
    async fn interrupted(interrupts: &mut watch::Receiver<u64>, after: u64) {
        if interrupts.wait_for(|seq| *seq > after).await.is_err() {
            // Nobody watches any more: the turn is being dropped.
            std::future::pending::<()>().await;
        }
    }
}

fn lost(sandbox: &SandboxId) -> NewEvent {
    NewEvent::new("hand.lost", json!({"sandbox": sandbox}))
}

fn provisioned(sandbox: &SandboxId) -> NewEvent {
    NewEvent::new("hand.provisioned", json!({"sandbox": sandbox}))
}

/// Tells a fenced answer of the hands from all others.
fn fenced<T>(answer: Result<T, HandsError>) -> Result<Result<T, HandsError>, HarnessError> {
    match answer {
        Err(HandsError::Fenced { .. }) => Err(HarnessError::Fenced),
        other => Ok(other),
    }
}
