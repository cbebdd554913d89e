//! What every store of the log can do.

use futures_util::Stream;
use serde_json::Value;

use crate::error::SessionError;
use crate::event::{Event, EventText, NewEvent};
use crate::id::SessionId;
use crate::query::{Lease, Query, StreamRow, Tailed};

/// A part of an answer that would be too large at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The events, in the order of the query.
    pub events: Vec<Event>,
    /// The store stopped at its page size: more events may match after the last one.
    pub more: bool,
}

/// A page to be passed on; see [`EventText`].
#[derive(Clone, Debug, Default)]
pub struct TextPage {
    /// The events, in the order of the query.
    pub events: Vec<EventText>,
    /// The store stopped at its page size: more events may match after the last one.
    pub more: bool,
}

impl TextPage {
    /// Reads the payloads.
    ///
    /// # Errors
    ///
    /// `Store` when one is not JSON.
    pub fn parse(self) -> Result<Page, SessionError> {
        let events = self.events.into_iter().map(EventText::parse);
        Ok(Page {
            events: events.collect::<Result<_, _>>()?,
            more: self.more,
        })
    }
}

/// A store of the log: SQLite here, or the session role at the other end of a link.
///
/// The contract of each call is told at [`SessionClient`](crate::SessionClient); the suite in `conformance` checks it.
pub trait SessionStore: Clone + Send + Sync + 'static {
    /// Appends under a lease, comparing head and epoch.
    fn append(
        &self,
        session: &SessionId,
        expected_seq: u64,
        epoch: u64,
        events: Vec<NewEvent>,
    ) -> impl Future<Output = Result<Vec<Event>, SessionError>> + Send;

    /// Appends input once per key, creating the stream.
    fn append_input(
        &self,
        session: &SessionId,
        idempotency_key: &str,
        events: Vec<NewEvent>,
    ) -> impl Future<Output = Result<Vec<Event>, SessionError>> + Send;

    /// Takes the lease.
    fn lease(
        &self,
        session: &SessionId,
        owner: &str,
        ttl_ms: u64,
    ) -> impl Future<Output = Result<Lease, SessionError>> + Send;

    /// Extends the lease.
    fn renew(
        &self,
        session: &SessionId,
        owner: &str,
        epoch: u64,
        ttl_ms: u64,
    ) -> impl Future<Output = Result<(), SessionError>> + Send;

    /// Gives the lease back.
    fn release(
        &self,
        session: &SessionId,
        owner: &str,
        epoch: u64,
    ) -> impl Future<Output = Result<(), SessionError>> + Send;

    /// Reads the first page of a slice.
    fn page(
        &self,
        session: &SessionId,
        query: Query,
    ) -> impl Future<Output = Result<Page, SessionError>> + Send;

    /// Reads the first page of a slice for somebody else; stores that keep payloads as text need not parse them.
    fn text_page(
        &self,
        session: &SessionId,
        query: Query,
    ) -> impl Future<Output = Result<TextPage, SessionError>> + Send {
        async {
            let Page { events, more } = self.page(session, query).await?;
            let events = events.into_iter().map(EventText::try_from);
            Ok(TextPage {
                events: events.collect::<Result<_, _>>()?,
                more,
            })
        }
    }

    /// Returns number and hash of the newest event, and the epoch.
    fn head(
        &self,
        session: &SessionId,
    ) -> impl Future<Output = Result<(u64, String, u64), SessionError>> + Send;

    /// Lists streams in the order of their creation.
    fn list(
        &self,
        prefix: &str,
        after: Option<&SessionId>,
        limit: usize,
        newest_first: bool,
    ) -> impl Future<Output = Result<Vec<StreamRow>, SessionError>> + Send;

    /// Follows a stream; may end when the store fails.
    fn tail(&self, session: &SessionId, after: u64) -> impl Stream<Item = Tailed> + Send + 'static;

    /// Names sessions with work and no live lease.
    fn watch(&self, owner: &str) -> impl Stream<Item = SessionId> + Send + 'static;

    /// Sends a passing value to all tails.
    fn publish(
        &self,
        session: &SessionId,
        epoch: u64,
        value: Value,
    ) -> impl Future<Output = Result<(), SessionError>> + Send;

    /// Reads a whole slice, page by page.
    fn read(
        &self,
        session: &SessionId,
        query: Query,
    ) -> impl Future<Output = Result<Vec<Event>, SessionError>> + Send {
        let mut query = query;
        async move {
            let mut all: Vec<Event> = Vec::new();
            loop {
                let Page { events, more } = self.page(session, query.clone()).await?;
                query.limit = query.limit.saturating_sub(events.len());
                if let Some(last) = events.last() {
                    if query.descending {
                        query.before = Some(last.seq);
                    } else {
                        query.after = last.seq;
                    }
                }
                let more = more && !events.is_empty() && query.limit > 0;
                if all.is_empty() {
                    all = events;
                } else {
                    all.extend(events);
                }
                if !more {
                    return Ok(all);
                }
            }
        }
    }
}
