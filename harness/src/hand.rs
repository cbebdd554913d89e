//! Carrying one call out at its hand, or finding out what became of it.

use std::sync::Arc;
use std::time::Duration;

use claviger_sandbox::{Execute, HandsError, Ledger, Output, SandboxId};
use claviger_vault_protocol::WireError;
use claviger_vault_protocol::present;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::error::HarnessError;
use crate::presence::{Presence, is_absent, is_fenced, is_passing};
use crate::route::Hand;
use crate::state::Call;
use crate::wake::Clients;

/// Attempts over a hand that went away and came back.
const ATTEMPTS: u32 = 3;
/// What `hands` allows a command that names no time.
const COMMAND_MS: u64 = 120_000;
/// What the harness waits beyond the command's own time.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a call waits for a sealed vault or an unreachable peer of tools.
const SEALED: Duration = Duration::from_secs(600);
/// How long an interrupted call may take to say what it did.
const GRACE: Duration = Duration::from_secs(3);

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// `ok`, `error`, `unknown`, `interrupted` or `lost`.
    pub(crate) status: &'static str,
    pub(crate) content: Vec<Value>,
    pub(crate) is_error: bool,
    pub(crate) elapsed_ms: u64,
}

impl Outcome {
    /// An error that the model reads.
    pub(crate) fn error(status: &'static str, text: impl Into<String>) -> Self {
        let text: String = text.into();
        Self {
            status,
            content: vec![json!({"type": "text", "text": text})],
            is_error: true,
            elapsed_ms: 0,
        }
    }

    fn of(output: Output) -> Self {
        Self {
            status: if output.is_error { "error" } else { "ok" },
            content: output.content,
            is_error: output.is_error,
            elapsed_ms: output.elapsed_ms,
        }
    }

    fn lost() -> Self {
        Self::error(
            "lost",
            "sandbox_lost: the sandbox that ran this call is gone, with its files and processes; how far the call came \
             is not known. The next call to a sandbox tool starts a new, empty sandbox.",
        )
    }

    pub(crate) fn interrupted() -> Self {
        Self::error(
            "interrupted",
            "interrupted: the user interrupted this call.",
        )
    }

    fn unknown() -> Self {
        Self::error(
            "unknown",
            "outcome_unknown: the connection was lost while this call was under way. It may or may not have had its \
             effect, and it was not repeated. Check before calling it again.",
        )
    }
}

/// Carries calls out for one session and epoch.
#[derive(Clone, Debug)]
pub(crate) struct Performer {
    pub(crate) clients: Clients,
    pub(crate) presence: Arc<Presence>,
    pub(crate) session: String,
    pub(crate) epoch: u64,
    /// Sandboxes that were alive when this epoch attached or were made since.
    pub(crate) live: Vec<SandboxId>,
}

impl Performer {
    /// Carries a call out whose intent is durable. `is_resumed` says that another harness may have
    /// begun it: then it is only repeated where its key or its nature makes that harmless.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the call at its hand; its key finds it again.
    pub(crate) async fn perform(
        &self,
        call: &Call,
        is_repeatable: bool,
        is_resumed: bool,
    ) -> Result<Outcome, HarnessError> {
        match call.hand {
            Hand::Sandbox => self.perform_in_sandbox(call, is_resumed).await,
            Hand::Mcp if is_resumed && !is_repeatable => Ok(Outcome::unknown()),
            Hand::Mcp => self.perform_by_tools(call, is_repeatable).await,
            // The client answers by itself; an intent without its answer was cut off before.
            Hand::Client => {
                Ok(call
                    .answer
                    .clone()
                    .map_or_else(Outcome::unknown, |(content, is_error)| Outcome {
                        status: if is_error { "error" } else { "ok" },
                        content,
                        is_error,
                        elapsed_ms: 0,
                    }))
            }
        }
    }

    /// What became of a call that was told to stop.
    pub(crate) async fn interrupted(&self, call: &Call) -> Result<Outcome, HarnessError> {
        if call.hand != Hand::Sandbox || !call.has_intent {
            return Ok(Outcome::interrupted());
        }
        let end = Instant::now() + GRACE;
        while Instant::now() < end {
            match timeout(
                GRACE,
                self.clients
                    .hands
                    .result(&self.session, self.epoch, &self.key(call)),
            )
            .await
            {
                Ok(Ok(Ledger::Done(output))) => {
                    let outcome = Outcome::of(output);
                    let status = if outcome.is_error {
                        "interrupted"
                    } else {
                        "ok"
                    };
                    return Ok(Outcome { status, ..outcome });
                }
                Ok(Ok(Ledger::Running)) => sleep(Duration::from_millis(20)).await,
                Ok(Err(HandsError::Fenced { .. })) => return Err(HarnessError::Fenced),
                _ => break,
            }
        }
        Ok(Outcome::interrupted())
    }

    fn key(&self, call: &Call) -> String {
        format!("{}/{}", self.session, call.id)
    }

    async fn perform_in_sandbox(
        &self,
        call: &Call,
        is_resumed: bool,
    ) -> Result<Outcome, HarnessError> {
        let Some(sandbox) = call.sandbox.clone() else {
            return Ok(Outcome::lost());
        };
        let key = self.key(call);
        if is_resumed {
            match self
                .clients
                .hands
                .result(&self.session, self.epoch, &key)
                .await
            {
                Ok(Ledger::Done(output)) => return Ok(Outcome::of(output)),
                Err(HandsError::Fenced { .. }) => return Err(HarnessError::Fenced),
                Err(HandsError::Disconnected) => return Err(HandsError::Disconnected.into()),
                Err(HandsError::Lost { .. }) => return Ok(Outcome::lost()),
                // Running or never begun: the key below joins the one and starts the other.
                _ if !self.live.contains(&sandbox) => return Ok(Outcome::lost()),
                _ => {}
            }
        }
        let asked_ms = call
            .input
            .get("timeout_ms")
            .and_then(Value::as_u64)
            .unwrap_or(0);
        let deadline = Duration::from_millis(asked_ms.max(COMMAND_MS)) + MARGIN;
        for attempt in 1.. {
            let execute = Execute {
                session: self.session.clone(),
                epoch: self.epoch,
                sandbox: sandbox.clone(),
                key: key.clone(),
                name: call.name.clone(),
                input: call.input.clone(),
                timeout_ms: 0,
            };
            let Ok(answered) = timeout(deadline, self.clients.hands.execute(execute)).await else {
                return Ok(Outcome::error(
                    "unknown",
                    "outcome_unknown: the sandbox gave no answer in time.",
                ));
            };
            match answered {
                Ok(output) => return Ok(Outcome::of(output)),
                Err(HandsError::Fenced { .. }) => return Err(HarnessError::Fenced),
                Err(HandsError::Lost { .. }) => return Ok(Outcome::lost()),
                Err(error @ (HandsError::Disconnected | HandsError::NotFound)) => {
                    // Perhaps new hands: they know the session only once it is attached.
                    let live = self.clients.hands.attach(&self.session, self.epoch).await;
                    match live {
                        Ok(live) if !live.contains(&sandbox) => return Ok(Outcome::lost()),
                        Ok(_) if attempt < ATTEMPTS => {}
                        Err(HandsError::Fenced { .. }) => return Err(HarnessError::Fenced),
                        _ => return Err(error.into()),
                    }
                }
                Err(error) => return Ok(Outcome::error("error", error.to_string())),
            }
        }
        Ok(Outcome::lost())
    }

    async fn perform_by_tools(
        &self,
        call: &Call,
        is_repeatable: bool,
    ) -> Result<Outcome, HarnessError> {
        let query = present::Call {
            session: self.session.clone(),
            epoch: self.epoch,
            key: self.key(call),
            tool: call.name.clone(),
            arguments: call.input.clone(),
        };
        let began = Instant::now();
        let mut attempt = 0;
        let mut pause = Duration::from_millis(250);
        loop {
            attempt += 1;
            let error = match self.clients.tools.call(&query).await {
                Ok(called) => {
                    return Ok(Outcome {
                        status: if called.is_error { "error" } else { "ok" },
                        content: called.content,
                        is_error: called.is_error,
                        elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                    });
                }
                Err(error) => error,
            };
            match &error {
                WireError::Refused(refusal) if is_fenced(&refusal.code) => {
                    return Err(HarnessError::Fenced);
                }
                // Refused before anything was done: presenting again and repeating is safe.
                WireError::Refused(refusal) if is_absent(&refusal.code) => {
                    if attempt > ATTEMPTS {
                        return Err(HarnessError::OpeningLost);
                    }
                    self.present().await?;
                }
                WireError::Refused(_) if is_passing(&error) && began.elapsed() < SEALED => {
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
                WireError::Refused(refusal) => {
                    let fix = refusal
                        .fix
                        .as_ref()
                        .map(|fix| format!(" ({fix})"))
                        .unwrap_or_default();
                    return Ok(Outcome::error("error", format!("{refusal}{fix}")));
                }
                // The call may be under way.
                _ if is_repeatable && attempt < ATTEMPTS => self.present().await?,
                _ => return Ok(Outcome::unknown()),
            }
        }
    }

    async fn present(&self) -> Result<(), HarnessError> {
        match self.presence.present().await {
            Err(WireError::Refused(refusal)) if is_fenced(&refusal.code) => {
                Err(HarnessError::Fenced)
            }
            Err(WireError::Refused(_)) => Err(HarnessError::OpeningLost),
            // The next attempt shows whether tools is back.
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
