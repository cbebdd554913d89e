//! The session's log as one lease holder sees it: its state, its head and the way to write.

use std::time::Duration;

use claviger_session::{Event, NewEvent, Query, SessionClient, SessionError, SessionId};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::error::HarnessError;
use crate::state::{KINDS, State, Status};

/// Attempts at an append that the store answered with its own failure.
const STORE_ATTEMPTS: u32 = 5;

/// The log of one session under one epoch.
#[derive(Debug)]
pub(crate) struct Log {
    client: SessionClient,
    session: SessionId,
    epoch: u64,
    head: u64,
    state: State,
    /// Says who writes under this epoch; goes with the first append, so that it costs no write.
    announcement: Option<NewEvent>,
}

/// Makes the name of an event before it is written.
pub(crate) fn event_id() -> String {
    format!("sevt_{}", uuid::Uuid::now_v7().simple())
}

/// SHA-256 of a JSON text, in hexadecimal.
pub(crate) fn hash(text: &[u8]) -> String {
    hex::encode(Sha256::digest(text))
}

impl Log {
    /// Reads the log up to `head` or beyond.
    pub(crate) async fn read(
        client: &SessionClient,
        session: &SessionId,
        epoch: u64,
        head: u64,
    ) -> Result<Self, HarnessError> {
        let mut log = Self {
            client: client.clone(),
            session: session.clone(),
            epoch,
            head: 0,
            state: State::default(),
            announcement: None,
        };
        log.refresh(head).await?;
        Ok(log)
    }

    /// Has the first append begin with who holds the lease.
    pub(crate) fn announce(&mut self, owner: &str) {
        let event = NewEvent::new("lease.acquired", json!({"owner": owner}));
        self.announcement = Some(event.with_id(event_id()));
    }

    /// Where the session stands.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Number of the newest event that is known.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// The epoch of this writer.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The session.
    pub(crate) fn session(&self) -> &SessionId {
        &self.session
    }

    /// Reads what others appended; the head is at least `head` afterwards.
    pub(crate) async fn refresh(&mut self, head: u64) -> Result<(), HarnessError> {
        // Types that the state does not read are skipped, so the head may be further than the last
        // event that comes: whatever lies between is in the store already and concerns nobody here.
        let query = Query {
            after: self.head,
            kinds: KINDS.iter().map(|kind| (*kind).to_owned()).collect(),
            ..Query::default()
        };
        let events = self
            .client
            .read(&self.session, query)
            .await
            .map_err(stop_if_fenced)?;
        self.take(&events);
        self.head = self.head.max(head);
        Ok(())
    }

    /// Appends a decision; false where others wrote first, and then the state is up to date again
    /// and the decision has to be made anew.
    pub(crate) async fn decide(&mut self, events: Vec<NewEvent>) -> Result<bool, HarnessError> {
        match self.append(events).await {
            Ok(()) => Ok(true),
            Err(SessionError::Conflict { head }) => {
                self.refresh(head).await?;
                Ok(false)
            }
            Err(error) => Err(stop_if_fenced(error)),
        }
    }

    /// Appends what has happened, whatever others wrote meanwhile.
    pub(crate) async fn record(&mut self, mut events: Vec<NewEvent>) -> Result<(), HarnessError> {
        for event in &mut events {
            event.id.get_or_insert_with(event_id);
        }
        loop {
            match self.append(events.clone()).await {
                Ok(()) => return Ok(()),
                Err(SessionError::Conflict { head }) => self.refresh(head).await?,
                Err(error) => return Err(stop_if_fenced(error)),
            }
        }
    }

    /// The event that says the session runs, unless it says so already.
    pub(crate) fn running(&self) -> Option<NewEvent> {
        (self.state.status != Status::Running)
            .then(|| NewEvent::new("session.status_running", json!({})))
    }

    async fn append(&mut self, mut events: Vec<NewEvent>) -> Result<(), SessionError> {
        if let Some(announcement) = &self.announcement {
            events.insert(0, announcement.clone());
        }
        for event in &mut events {
            event.id.get_or_insert_with(event_id);
        }
        let mut attempt = 1;
        let stored = loop {
            // The ids make a repeat harmless where the first try did reach the store.
            match self
                .client
                .append(&self.session, self.head, self.epoch, events.clone())
                .await
            {
                Err(SessionError::Store(reason)) if attempt < STORE_ATTEMPTS => {
                    tracing::warn!(session = %self.session, reason, attempt, "append repeated");
                    tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
                    attempt += 1;
                }
                other => break other?,
            }
        };
        self.announcement = None;
        self.take(&stored);
        Ok(())
    }

    fn take(&mut self, events: &[Event]) {
        for event in events {
            if event.seq > self.head {
                self.head = event.seq;
                self.state.apply(event);
            }
        }
    }
}

fn stop_if_fenced(error: SessionError) -> HarnessError {
    match error {
        SessionError::Fenced { .. } => HarnessError::Fenced,
        other => other.into(),
    }
}

/// A `session.error` event.
pub(crate) fn session_error(kind: &str, message: &str, retry_status: &str) -> NewEvent {
    NewEvent::new(
        "session.error",
        json!({"error": error_body(kind, message, retry_status)}),
    )
}

/// The `error` object of `session.error`.
pub(crate) fn error_body(kind: &str, message: &str, retry_status: &str) -> Value {
    json!({"type": kind, "message": message, "retry_status": {"type": retry_status}})
}
