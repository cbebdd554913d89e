//! The client is a store like any other.

use futures_util::Stream;
use serde_json::Value;

use crate::client::SessionClient;
use crate::error::SessionError;
use crate::event::{Event, NewEvent};
use crate::id::SessionId;
use crate::query::{Lease, Query, StreamRow, Tailed};
use crate::store::{Page, SessionStore};

impl SessionStore for SessionClient {
    async fn append(
        &self,
        session: &SessionId,
        expected_seq: u64,
        epoch: u64,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Event>, SessionError> {
        Self::append(self, session, expected_seq, epoch, events).await
    }

    async fn append_input(
        &self,
        session: &SessionId,
        idempotency_key: &str,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Event>, SessionError> {
        Self::append_input(self, session, idempotency_key, events).await
    }

    async fn lease(
        &self,
        session: &SessionId,
        owner: &str,
        ttl_ms: u64,
    ) -> Result<Lease, SessionError> {
        Self::lease(self, session, owner, ttl_ms).await
    }

    async fn renew(
        &self,
        session: &SessionId,
        owner: &str,
        epoch: u64,
        ttl_ms: u64,
    ) -> Result<(), SessionError> {
        Self::renew(self, session, owner, epoch, ttl_ms).await
    }

    async fn release(
        &self,
        session: &SessionId,
        owner: &str,
        epoch: u64,
    ) -> Result<(), SessionError> {
        Self::release(self, session, owner, epoch).await
    }

    async fn page(&self, session: &SessionId, query: Query) -> Result<Page, SessionError> {
        self.first_page(session, query).await
    }

    async fn head(&self, session: &SessionId) -> Result<(u64, String, u64), SessionError> {
        Self::head(self, session).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&SessionId>,
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<StreamRow>, SessionError> {
        Self::list(self, prefix, after, limit, newest_first).await
    }

    fn tail(&self, session: &SessionId, after: u64) -> impl Stream<Item = Tailed> + Send + 'static {
        Self::tail(self, session, after)
    }

    fn watch(&self, owner: &str) -> impl Stream<Item = SessionId> + Send + 'static {
        Self::watch(self, owner)
    }

    async fn publish(
        &self,
        session: &SessionId,
        epoch: u64,
        value: Value,
    ) -> Result<(), SessionError> {
        Self::publish(self, session, epoch, value).await
    }
}
