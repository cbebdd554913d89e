//! Current states, remembered with the position that they are the state of.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use claviger_session::{Event, Query, SessionClient, SessionError, SessionId};
use jiff::Timestamp;

/// Most states remembered.
const MAX_STATES: usize = 4096;

/// A state made from events.
pub(crate) trait Fold: Clone + Default + Send + 'static {
    /// Types of the events that matter; empty for all.
    const KINDS: &'static [&'static str];

    /// Takes the next event.
    fn apply(&mut self, event: &Event);

    /// When it began, as answers show it.
    fn created_at(&self) -> Timestamp;
}

/// Remembers the state of streams, so that only what is new is read.
#[derive(Debug)]
pub(crate) struct Folds<T>(Mutex<HashMap<SessionId, (u64, T)>>);

impl<T> Default for Folds<T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<T: Fold> Folds<T> {
    /// The state of a stream as of now.
    pub(crate) async fn current(
        &self,
        log: &SessionClient,
        id: &SessionId,
    ) -> Result<T, SessionError> {
        let known = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned();
        let (mut seq, mut state) = known.unwrap_or_default();
        let kinds = T::KINDS.iter().map(|kind| (*kind).to_owned()).collect();
        let events = log
            .read(
                id,
                Query {
                    after: seq,
                    kinds,
                    ..Query::default()
                },
            )
            .await?;
        if let Some(last) = events.last() {
            seq = last.seq;
            events.iter().for_each(|event| state.apply(event));
            let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if states.len() >= MAX_STATES && !states.contains_key(id) {
                states.clear();
            }
            if states.get(id).is_none_or(|(known, _)| *known < seq) {
                states.insert(id.clone(), (seq, state.clone()));
            }
        }
        Ok(state)
    }
}
