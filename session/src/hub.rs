//! What is live: tails of events, passing values, leases and the work on offer.

mod board;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{broadcast, watch};

pub(crate) use crate::hub::board::Board;

use crate::error::SessionError;
use crate::event::Event;
use crate::id::SessionId;

/// Live items that may wait for a tail before it reads them from the store instead.
const TOPIC_QUEUE: usize = 128;

/// A live item of one stream.
#[derive(Clone, Debug)]
pub(crate) enum Live {
    Ephemeral(Arc<Value>),
    Event(Arc<Event>),
}

/// Carries what was committed to whoever listens; holds nothing that the store does not know.
#[derive(Debug)]
pub(crate) struct Hub {
    topics: Mutex<HashMap<SessionId, broadcast::Sender<Live>>>,
    board: Mutex<Board>,
    /// Counts changes of the board.
    changes: watch::Sender<u64>,
}

impl Hub {
    pub(crate) fn new(board: Board) -> Self {
        Self {
            topics: Mutex::default(),
            board: Mutex::new(board),
            changes: watch::Sender::new(0),
        }
    }

    /// Subscribes to the live items of a stream.
    pub(crate) fn topic(self: &Arc<Self>, session: &SessionId) -> Topic {
        let mut topics = locked(&self.topics);
        let sender = topics
            .entry(session.clone())
            .or_insert_with(|| broadcast::Sender::new(TOPIC_QUEUE));
        Topic {
            hub: Arc::clone(self),
            session: session.clone(),
            items: Some(sender.subscribe()),
        }
    }

    /// Announces committed events.
    pub(crate) fn appended(&self, session: &SessionId, events: &[Event], has_work: bool) {
        if let Some(topic) = locked(&self.topics).get(session) {
            for event in events {
                // No receiver left means that nobody listens any more.
                drop(topic.send(Live::Event(Arc::new(event.clone()))));
            }
        }
        if session.is_session() {
            let news = events.iter().any(|e| crate::work::Work::is_input(&e.kind));
            self.change(|board| board.set_work(session, has_work, news));
        }
    }

    /// Sends a passing value if `epoch` is still the newest that is known here; `None` when no epoch is known.
    pub(crate) fn publish(
        &self,
        session: &SessionId,
        epoch: u64,
        value: Value,
    ) -> Result<Option<Value>, SessionError> {
        // The board stays locked while sending: once a greater epoch is acknowledged, nothing older gets through.
        let board = locked(&self.board);
        match board.epoch(session) {
            Some(newest) if newest != epoch => Err(SessionError::Fenced { epoch: newest }),
            Some(_) => {
                self.send(session, value);
                Ok(None)
            }
            None => Ok(Some(value)),
        }
    }

    /// As [`publish`](Self::publish), with the epoch that the store knew a moment ago.
    pub(crate) fn publish_as_of(
        &self,
        session: &SessionId,
        epoch: u64,
        stored: u64,
        value: Value,
    ) -> Result<(), SessionError> {
        let board = locked(&self.board);
        let newest = board.epoch(session).unwrap_or(stored);
        if newest != epoch {
            return Err(SessionError::Fenced { epoch: newest });
        }
        self.send(session, value);
        Ok(())
    }

    fn send(&self, session: &SessionId, value: Value) {
        if let Some(topic) = locked(&self.topics).get(session) {
            drop(topic.send(Live::Ephemeral(Arc::new(value))));
        }
    }

    /// Returns who else holds the lease and for how many more milliseconds.
    pub(crate) fn held_by_other(&self, session: &SessionId, owner: &str) -> Option<(String, u64)> {
        locked(&self.board).held_by_other(session, owner, Instant::now())
    }

    /// Notes a committed lease.
    pub(crate) fn leased(&self, session: &SessionId, owner: &str, epoch: u64, ttl_ms: u64) {
        let deadline = Instant::now() + Duration::from_millis(ttl_ms);
        self.change(|board| board.lease(session, owner, epoch, deadline));
    }

    /// Notes a renewed lease.
    pub(crate) fn renewed(&self, session: &SessionId, owner: &str, epoch: u64, ttl_ms: u64) {
        self.leased(session, owner, epoch, ttl_ms);
    }

    /// Notes a released lease.
    pub(crate) fn released(&self, session: &SessionId) {
        self.change(|board| board.release(session));
    }

    /// Waits for the next session on offer after `cursor`, a position of the board.
    pub(crate) async fn next_offer(&self, cursor: u64) -> (u64, SessionId) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let (offer, deadline) = {
                let mut board = locked(&self.board);
                board.expire(Instant::now());
                (board.offer_after(cursor), board.next_deadline())
            };
            if let Some(offer) = offer {
                return offer;
            }
            let expiry = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender lives as long as `self`, so that this cannot fail.
                _ = changes.changed() => {}
                () = expiry => {}
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Board)) {
        change(&mut locked(&self.board));
        self.changes.send_modify(|count| *count += 1);
    }
}

/// A subscription to one stream; the topic goes with its last subscription.
#[derive(Debug)]
pub(crate) struct Topic {
    hub: Arc<Hub>,
    session: SessionId,
    items: Option<broadcast::Receiver<Live>>,
}

impl Topic {
    /// Returns the next live item, `None` when some were missed and must be read from the store.
    pub(crate) async fn next(&mut self) -> Option<Live> {
        self.items.as_mut()?.recv().await.ok()
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let mut topics = locked(&self.hub.topics);
        self.items = None;
        if topics
            .get(&self.session)
            .is_some_and(|t| t.receiver_count() == 0)
        {
            topics.remove(&self.session);
        }
    }
}

/// Locks; a thread that panicked left plain values behind, which stay usable.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
