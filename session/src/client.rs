//! The remote store: the same log over a link to the session role.

mod driver;
mod store;
mod subscription;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::Stream;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::client::driver::Command;
use crate::error::SessionError;
use crate::event::{Event, NewEvent, draft_all, is_shallow, name_all};
use crate::id::SessionId;
use crate::protocol::{Answer, Call, Request, encode};
use crate::query::{Lease, Query, StreamRow, Tailed};
use crate::store::{Page, SessionStore};

/// How long a call waits for its answer, links that come and go included.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Commands that may wait for the driver.
const COMMAND_QUEUE: usize = 256;

/// A handle to the log, cheap to clone; calls of all clones share one link.
///
/// Calls that may be repeated safely (all but [`publish`](Self::publish)) outlive a broken link: they are sent again
/// over the next one. After 30 seconds without an answer a call ends with [`SessionError::Disconnected`]; the outcome
/// of an append that ended so is unknown, and repeating it *with the same event ids* is safe.
#[derive(Clone, Debug)]
pub struct SessionClient {
    commands: mpsc::Sender<Command>,
    next_id: Arc<AtomicU64>,
}

impl SessionClient {
    /// Makes a client over the newest of `links`, and the future that drives it.
    ///
    /// The caller runs the future; it ends when all clones are dropped, or when `links` is closed and the last link
    /// has broken.
    pub fn new(
        links: mpsc::Receiver<UnixStream>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let client = Self {
            commands,
            next_id: Arc::new(AtomicU64::new(1)),
        };
        (client, driver::drive(links, queue))
    }

    /// Appends events after `expected_seq` under the lease `epoch` and returns them as stored, durable.
    ///
    /// Streams other than sessions need no lease: `expected_seq` 0 and `epoch` 0 create one.
    ///
    /// # Errors
    ///
    /// `Conflict` when the head is elsewhere and the events there are not these, `Fenced` when the epoch is not the
    /// stream's, `Invalid` when the transcript would become invalid, `NotFound`, `Store`, `Disconnected`.
    pub async fn append(
        &self,
        session: &SessionId,
        expected_seq: u64,
        epoch: u64,
        mut events: Vec<NewEvent>,
    ) -> Result<Vec<Event>, SessionError> {
        // Named here, so that a repeat over the next link is recognised by its ids.
        name_all(&mut events);
        let events = checked(events)?;
        self.events(Call::Append {
            session: session.clone(),
            expected_seq,
            epoch,
            events,
        })
        .await
    }

    /// Appends input, which needs no lease, creating the stream if it is new; a repeat of the key returns the events
    /// of the first time.
    ///
    /// # Errors
    ///
    /// `Invalid` for kinds that only a lease holder may write, `Store`, `Disconnected`.
    pub async fn append_input(
        &self,
        session: &SessionId,
        idempotency_key: &str,
        mut events: Vec<NewEvent>,
    ) -> Result<Vec<Event>, SessionError> {
        name_all(&mut events);
        let events = checked(events)?;
        self.events(Call::AppendInput {
            session: session.clone(),
            idempotency_key: idempotency_key.to_owned(),
            events,
        })
        .await
    }

    /// Takes the lease of a session: the epoch grows by one and every earlier holder is fenced.
    ///
    /// # Errors
    ///
    /// `Held` while another owner's lease is unexpired, `NotFound`, `Invalid`, `Store`, `Disconnected`.
    pub async fn lease(
        &self,
        session: &SessionId,
        owner: &str,
        ttl_ms: u64,
    ) -> Result<Lease, SessionError> {
        let call = Call::Lease {
            session: session.clone(),
            owner: owner.to_owned(),
            ttl_ms,
        };
        match self.call(call, true).await? {
            Answer::Leased(lease) => Ok(lease),
            other => Err(unexpected(other)),
        }
    }

    /// Extends a lease by `ttl_ms` from now; works after its time has run out as long as nobody took it.
    ///
    /// # Errors
    ///
    /// `Fenced` when the lease was taken or released, `NotFound`, `Invalid`, `Disconnected`.
    pub async fn renew(
        &self,
        session: &SessionId,
        owner: &str,
        epoch: u64,
        ttl_ms: u64,
    ) -> Result<(), SessionError> {
        self.done(
            Call::Renew {
                session: session.clone(),
                owner: owner.to_owned(),
                epoch,
                ttl_ms,
            },
            true,
        )
        .await
    }

    /// Gives a lease back, so that others need not wait; a repeat is harmless.
    ///
    /// # Errors
    ///
    /// `Fenced` when the lease was taken by somebody else, `NotFound`, `Store`, `Disconnected`.
    pub async fn release(
        &self,
        session: &SessionId,
        owner: &str,
        epoch: u64,
    ) -> Result<(), SessionError> {
        self.done(
            Call::Release {
                session: session.clone(),
                owner: owner.to_owned(),
                epoch,
            },
            true,
        )
        .await
    }

    /// Reads a slice of a stream.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Store`, `Disconnected`.
    pub async fn read(&self, session: &SessionId, q: Query) -> Result<Vec<Event>, SessionError> {
        SessionStore::read(self, session, q).await
    }

    /// Returns number and hash of the newest event, and the epoch of the newest lease (0 when there was none).
    ///
    /// # Errors
    ///
    /// `NotFound`, `Store`, `Disconnected`.
    pub async fn head(&self, session: &SessionId) -> Result<(u64, String, u64), SessionError> {
        let session = session.clone();
        match self.call(Call::Head { session }, true).await? {
            Answer::Head { seq, hash, epoch } => Ok((seq, hash, epoch)),
            other => Err(unexpected(other)),
        }
    }

    /// Lists streams whose name has this prefix (`sesn_`; empty for all) in the order of their creation.
    ///
    /// # Errors
    ///
    /// `Invalid` for another kind of prefix, `NotFound` when `after` does not exist, `Store`, `Disconnected`.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&SessionId>,
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<StreamRow>, SessionError> {
        let call = Call::List {
            prefix: prefix.to_owned(),
            after: after.cloned(),
            limit,
            newest_first,
        };
        match self.call(call, true).await? {
            Answer::Streams(rows) => Ok(rows),
            other => Err(unexpected(other)),
        }
    }

    /// Follows a stream: stored events after `after`, then live ones and what is published; a stream that does not
    /// exist yet is waited for.
    ///
    /// Events come without gap or duplicate across reconnects; passing values may be lost there. It ends only when it
    /// is dropped (or the driver has ended).
    pub fn tail(
        &self,
        session: &SessionId,
        after: u64,
    ) -> impl Stream<Item = Tailed> + Send + 'static + use<> {
        subscription::tail(self.clone(), session.clone(), after)
    }

    /// Names sessions with unhandled work and no live lease, each again when its lease runs out or is released with
    /// work left, and when new input comes.
    ///
    /// It ends only when it is dropped (or the driver has ended).
    pub fn watch(&self, owner: &str) -> impl Stream<Item = SessionId> + Send + 'static + use<> {
        subscription::watch(self.clone(), owner.to_owned())
    }

    /// Sends a passing value to everyone who tails the session; it is never stored.
    ///
    /// # Errors
    ///
    /// `Fenced` when the epoch is not the stream's, `NotFound`, `Disconnected` (never repeated by itself).
    pub async fn publish(
        &self,
        session: &SessionId,
        epoch: u64,
        value: Value,
    ) -> Result<(), SessionError> {
        if !is_shallow(&value, 100) {
            return Err(SessionError::invalid(
                "a published value nests deeper than 100 levels",
            ));
        }
        self.done(
            Call::Publish {
                session: session.clone(),
                epoch,
                value,
            },
            false,
        )
        .await
    }

    async fn first_page(&self, session: &SessionId, query: Query) -> Result<Page, SessionError> {
        let session = session.clone();
        match self.call(Call::Read { session, query }, true).await? {
            Answer::Events { events, more } => Ok(Page { events, more }),
            other => Err(unexpected(other)),
        }
    }

    async fn events(&self, call: Call) -> Result<Vec<Event>, SessionError> {
        match self.call(call, true).await? {
            Answer::Events { events, .. } => Ok(events),
            other => Err(unexpected(other)),
        }
    }

    async fn done(&self, call: Call, retry: bool) -> Result<(), SessionError> {
        match self.call(call, retry).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Sends a call and waits for its one answer.
    async fn call(&self, call: Call, retry: bool) -> Result<Answer, SessionError> {
        let id = self.next_id();
        let frame = encode(&Request { id, call })?;
        let (answer, answered) = oneshot::channel();
        let command = Command::Call {
            id,
            frame,
            retry,
            answer,
        };
        let exchange = async {
            self.commands
                .send(command)
                .await
                .map_err(|_| SessionError::Disconnected)?;
            answered.await.map_err(|_| SessionError::Disconnected)?
        };
        tokio::time::timeout(CALL_DEADLINE, exchange)
            .await
            .map_err(|_| SessionError::Disconnected)?
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// Refuses here what the role would refuse: a frame that it cannot parse would cost the link and be sent again.
fn checked(events: Vec<NewEvent>) -> Result<Vec<NewEvent>, SessionError> {
    draft_all(events).map(|drafts| {
        drafts
            .into_iter()
            .map(|draft| NewEvent {
                id: Some(draft.id),
                kind: draft.kind,
                causation: draft.causation,
                payload: draft.payload,
            })
            .collect()
    })
}

fn unexpected(answer: Answer) -> SessionError {
    match answer {
        Answer::Error(error) => error,
        _ => SessionError::store("session link", "the answer does not fit the question"),
    }
}

#[cfg(test)]
mod tests;
