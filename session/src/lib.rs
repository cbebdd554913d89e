//! The memory: an append-only event log per session.
//!
//! A session's log is everything that happened in it, in order, hash-chained and durable before it is acknowledged.
//! Whoever holds the log can go on: harnesses come and go. One process, the `session` role, opens the store; all others
//! use [`SessionClient`] over a link.
//!
//! - **append** compares the stream's head and epoch and writes in one transaction, or answers `Conflict` or `Fenced`.
//! - **lease** hands out epochs. Time decides only when another may try; the epoch decides whether a write is valid.
//! - **tail** delivers stored events, then live ones, without gap or duplicate, across reconnects.
//! - **watch** names sessions with work that nobody holds.
//!
//! This crate must not know models, tools, sandboxes, HTTP or secrets.
#![forbid(unsafe_code)]

pub mod chain;
mod client;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod error;
mod event;
mod hub;
mod id;
mod protocol;
mod query;
pub mod role;
mod sqlite;
mod store;
pub mod transcript;
pub mod work;

pub use chain::verify;
pub use client::SessionClient;
pub use error::{ChainError, SessionError};
pub use event::{
    Event, EventText, MAX_APPEND_BYTES, MAX_APPEND_EVENTS, MAX_PAYLOAD_BYTES, NewEvent,
};
pub use id::SessionId;
pub use query::{Lease, Query, StreamRow, Tailed};
pub use sqlite::SqliteStore;
pub use store::{Page, SessionStore, TextPage};
