//! What a reader asks and what a lease holder gets.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::Event;
use crate::id::SessionId;

/// A slice of a stream.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Query {
    /// Only events with a greater number; 0 starts at the beginning.
    pub after: u64,
    /// Only events with a smaller number.
    pub before: Option<u64>,
    /// At most this many events, counted after the filter.
    pub limit: usize,
    /// Only these types; empty means all.
    pub kinds: Vec<String>,
    /// Newest first.
    pub descending: bool,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            after: 0,
            before: None,
            limit: usize::MAX,
            kinds: Vec::new(),
            descending: false,
        }
    }
}

/// The right to write to a session until somebody else takes a greater epoch.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Lease {
    /// The session.
    pub session: SessionId,
    /// The fencing number; greater than every earlier one.
    pub epoch: u64,
    /// Number of the newest event when the lease was granted.
    pub head: u64,
    /// Milliseconds in which no other owner may take it.
    pub expires_in_ms: u64,
}

/// One line of the list of streams.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StreamRow {
    /// The stream.
    pub session: SessionId,
    /// Number of the newest event.
    pub head: u64,
    /// When its first event was accepted.
    pub created_at: Timestamp,
    /// When its newest event was accepted.
    pub updated_at: Timestamp,
}

/// What a tail carries.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tailed {
    /// A passing value, published by the lease holder and never stored.
    Ephemeral(Value),
    /// A durable event; numbers ascend by one.
    Event(Event),
}
