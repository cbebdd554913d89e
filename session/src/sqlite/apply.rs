//! The rules of each write, inside the writer's transaction.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::error::SessionError;
use crate::event::{Draft, Event};
use crate::hub::Hub;
use crate::id::SessionId;
use crate::query::Lease;
use crate::sqlite::blobs::Blobs;
use crate::sqlite::rows::{MAX_SEQ, Rows, StreamState};
use crate::transcript::Transcript;
use crate::work::Work;

/// Transcripts kept in memory; a forgotten one is read again from its log.
const REMEMBERED: usize = 1024;

/// What a writer asks.
#[derive(Debug)]
pub(super) enum Act {
    Append {
        expected_seq: u64,
        epoch: u64,
        drafts: Vec<Draft>,
    },
    Input {
        key: String,
        drafts: Vec<Draft>,
    },
    Lease {
        owner: String,
        ttl_ms: u64,
    },
    Release {
        owner: String,
        epoch: u64,
    },
    Renew {
        owner: String,
        epoch: u64,
        ttl_ms: u64,
    },
}

/// What was done; it counts only once the transaction is committed.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Stored events; `fresh` unless an earlier call had written them.
    Events {
        events: Vec<Event>,
        fresh: bool,
        has_work: bool,
    },
    Leased(Lease),
    Released,
    Renewed,
}

/// Applies acts one after the other, remembering what later ones of the same transaction must know.
pub(super) struct Applier<'c> {
    rows: Rows<'c>,
    blobs: Blobs,
    hub: std::sync::Arc<Hub>,
    transcripts: HashMap<SessionId, Transcript>,
    /// Leases granted (or given back) in the open transaction, which the hub does not know yet.
    granted: HashMap<SessionId, Option<(String, u64)>>,
}

impl<'c> Applier<'c> {
    pub(super) fn new(rows: Rows<'c>, blobs: Blobs, hub: std::sync::Arc<Hub>) -> Self {
        Self {
            rows,
            blobs,
            hub,
            transcripts: HashMap::new(),
            granted: HashMap::new(),
        }
    }

    /// Ends a transaction; what was remembered of one that did not happen is forgotten.
    pub(super) fn end(&mut self, committed: bool) {
        self.granted.clear();
        if !committed || self.transcripts.len() > REMEMBERED {
            self.transcripts.clear();
        }
    }

    /// Applies one act. An answer other than `Store` has written nothing.
    pub(super) fn apply(
        &mut self,
        session: &SessionId,
        act: &Act,
    ) -> Result<Outcome, SessionError> {
        let state = self.rows.find(session)?;
        match act {
            Act::Append {
                expected_seq,
                epoch,
                drafts,
            } => self.append(session, state, *expected_seq, *epoch, drafts),
            Act::Input { key, drafts } => self.input(session, state, key, drafts),
            Act::Lease { owner, ttl_ms } => {
                let state = state.ok_or(SessionError::NotFound)?;
                self.lease(session, &state, owner, *ttl_ms)
            }
            Act::Release { owner, epoch } => {
                let state = state.ok_or(SessionError::NotFound)?;
                match &state.owner {
                    Some(holder) if holder == owner && state.epoch == *epoch => {
                        self.rows.release(state.stream)?;
                        self.granted.insert(session.clone(), None);
                        Ok(Outcome::Released)
                    }
                    // A repeat of a release whose answer was lost.
                    None if state.epoch == *epoch && *epoch > 0 => Ok(Outcome::Renewed),
                    _ => Err(SessionError::Fenced { epoch: state.epoch }),
                }
            }
            Act::Renew { owner, epoch, .. } => {
                let state = state.ok_or(SessionError::NotFound)?;
                if state.epoch == *epoch && state.owner.as_ref() == Some(owner) {
                    Ok(Outcome::Renewed)
                } else {
                    Err(SessionError::Fenced { epoch: state.epoch })
                }
            }
        }
    }

    fn append(
        &mut self,
        session: &SessionId,
        state: Option<StreamState>,
        expected_seq: u64,
        epoch: u64,
        drafts: &[Draft],
    ) -> Result<Outcome, SessionError> {
        if session.is_session() && epoch == 0 {
            return Err(SessionError::invalid(
                "an append to a session needs a lease",
            ));
        }
        let state = match state {
            Some(state) => state,
            None if session.is_session() || expected_seq != 0 || epoch != 0 => {
                return Err(SessionError::NotFound);
            }
            None => self
                .rows
                .create(session, Timestamp::now().as_microsecond())?,
        };
        if state.epoch != epoch {
            return Err(SessionError::Fenced { epoch: state.epoch });
        }
        if state.head != expected_seq {
            return self.own_or_conflict(session, &state, expected_seq, drafts);
        }
        if session.is_session() {
            self.check_transcript(session, &state, drafts)?;
        }
        self.write(session, &state, epoch, drafts)
    }

    /// A writer that finds its own events where it wanted to write them has written them before.
    fn own_or_conflict(
        &mut self,
        session: &SessionId,
        state: &StreamState,
        expected_seq: u64,
        drafts: &[Draft],
    ) -> Result<Outcome, SessionError> {
        let conflict = SessionError::Conflict { head: state.head };
        let last = expected_seq.saturating_add(drafts.len() as u64);
        if last > state.head {
            return Err(conflict);
        }
        let events =
            self.rows
                .events(session, state.stream, expected_seq + 1, last, &self.blobs)?;
        if events
            .iter()
            .map(|e| &e.id)
            .ne(drafts.iter().map(|d| &d.id))
        {
            return Err(conflict);
        }
        Ok(Outcome::Events {
            events,
            fresh: false,
            has_work: false,
        })
    }

    fn input(
        &mut self,
        session: &SessionId,
        state: Option<StreamState>,
        key: &str,
        drafts: &[Draft],
    ) -> Result<Outcome, SessionError> {
        if session.is_session()
            && let Some(draft) = drafts.iter().find(|d| Transcript::tracks(&d.kind))
        {
            return Err(SessionError::invalid(format!(
                "{} needs a lease",
                draft.kind
            )));
        }
        let state = match state {
            Some(state) => {
                if let Some((first, last)) = self.rows.find_input(state.stream, key)? {
                    let events =
                        self.rows
                            .events(session, state.stream, first, last, &self.blobs)?;
                    return Ok(Outcome::Events {
                        events,
                        fresh: false,
                        has_work: false,
                    });
                }
                state
            }
            None => self
                .rows
                .create(session, Timestamp::now().as_microsecond())?,
        };
        let outcome = self.write(session, &state, 0, drafts)?;
        let last = state.head + drafts.len() as u64;
        self.rows
            .insert_input(state.stream, key, state.head + 1, last)?;
        Ok(outcome)
    }

    fn lease(
        &mut self,
        session: &SessionId,
        state: &StreamState,
        owner: &str,
        ttl_ms: u64,
    ) -> Result<Outcome, SessionError> {
        if !session.is_session() {
            return Err(SessionError::invalid("only a session has a lease"));
        }
        let held = match self.granted.get(session) {
            Some(granted) => granted.clone().filter(|(holder, _)| holder != owner),
            None => self.hub.held_by_other(session, owner),
        };
        if let Some((by, expires_in_ms)) = held {
            return Err(SessionError::Held { by, expires_in_ms });
        }
        let epoch = state.epoch + 1;
        self.rows.lease(state.stream, epoch, owner, ttl_ms)?;
        self.granted
            .insert(session.clone(), Some((owner.to_owned(), ttl_ms)));
        Ok(Outcome::Leased(Lease {
            session: session.clone(),
            epoch,
            head: state.head,
            expires_in_ms: ttl_ms,
        }))
    }

    fn check_transcript(
        &mut self,
        session: &SessionId,
        state: &StreamState,
        drafts: &[Draft],
    ) -> Result<(), SessionError> {
        if !drafts.iter().any(|d| Transcript::tracks(&d.kind)) {
            return Ok(());
        }
        let mut transcript = match self.transcripts.remove(session) {
            Some(transcript) => transcript,
            None => {
                let mut transcript = Transcript::default();
                for event in self.rows.tracked(session, state.stream, &self.blobs)? {
                    // Stored events were accepted before.
                    transcript
                        .accept(&event.kind, &event.payload)
                        .map_err(|e| SessionError::store("read the transcript", e))?;
                }
                transcript
            }
        };
        for draft in drafts {
            // On refusal the half-advanced transcript is forgotten and will be read again.
            transcript
                .accept(&draft.kind, &draft.payload)
                .map_err(SessionError::invalid)?;
        }
        self.transcripts.insert(session.clone(), transcript);
        Ok(())
    }

    fn write(
        &mut self,
        session: &SessionId,
        before: &StreamState,
        epoch: u64,
        drafts: &[Draft],
    ) -> Result<Outcome, SessionError> {
        if before.head + drafts.len() as u64 >= MAX_SEQ {
            return Err(SessionError::invalid("the stream is full"));
        }
        // The clock may step back; a log's times do not.
        let at_us = Timestamp::now().as_microsecond().max(before.updated_us);
        let at = Timestamp::from_microsecond(at_us)
            .map_err(|e| SessionError::store("read the clock", e))?;
        let mut after = before.clone();
        after.updated_us = at_us;
        let mut events = Vec::with_capacity(drafts.len());
        for draft in drafts {
            after.head += 1;
            let mut event = Event {
                session: session.clone(),
                seq: after.head,
                id: draft.id.clone(),
                epoch,
                kind: draft.kind.clone(),
                at,
                causation: draft.causation.clone(),
                payload: draft.payload.clone(),
                prev_hash: std::mem::take(&mut after.hash),
                hash: String::new(),
            };
            event.hash = crate::chain::hash(&event, &draft.text);
            after.hash.clone_from(&event.hash);
            if session.is_session() {
                Work::fold(&mut after.work, event.seq, &event.kind, &event.payload);
            }
            self.rows.insert(before, &event, draft)?;
            events.push(event);
        }
        self.rows.advance(before, &after)?;
        Ok(Outcome::Events {
            events,
            fresh: true,
            has_work: after.work.is_open(),
        })
    }
}
