//! One link: many questions at once, each answered by its id.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Linked, Rights};
use crate::SessionId;
use crate::error::SessionError;
use crate::protocol::{Answer, Call, Frames, Reply, Request, encode, write_frames};
use crate::store::{SessionStore, TextPage};

/// Questions of one link that are worked on at once; further ones wait in the socket.
const MAX_OPEN: u32 = 256;
/// Tails and watches of one link.
const MAX_SUBSCRIPTIONS: usize = 8192;
/// Answers that may wait for the socket.
const WRITE_QUEUE: usize = 64;
/// How long open questions may take once the role stops, and how long the peer may take to read the answers.
const DRAIN: Duration = Duration::from_secs(1);

/// Leases taken over one link that were not given back over it.
type Leases = Arc<Mutex<HashMap<SessionId, (String, u64)>>>;

/// Serves one link until its peer is gone, breaks the protocol, or the role stops.
///
/// A link under the supervisor lives as long as its peer's process, so its end frees the time of the
/// leases taken over it: another harness need not wait for them to run out. Their epochs stay what
/// decides about writes (design rule 6), so freeing one too early costs a wake, never an event.
pub(super) async fn serve<S: SessionStore>(store: S, link: Linked, stop: CancellationToken) {
    let leases = Leases::default();
    converse(store.clone(), link, stop.clone(), Arc::clone(&leases)).await;
    if stop.is_cancelled() {
        return;
    }
    let left = std::mem::take(&mut *leases.lock().unwrap_or_else(PoisonError::into_inner));
    for (session, (owner, epoch)) in left {
        // Refused where another harness has it already, which is as good.
        drop(store.release(&session, &owner, epoch).await);
    }
}

async fn converse<S: SessionStore>(
    store: S,
    link: Linked,
    stop: CancellationToken,
    leases: Leases,
) {
    let Linked { rights, stream } = link;
    let (read, write) = stream.into_split();
    let (queue, queued) = mpsc::channel(WRITE_QUEUE);
    let mut frames = Frames::new(read);
    let mut connection = Connection {
        store,
        rights,
        leases,
        queue,
        open: Arc::new(Semaphore::new(MAX_OPEN as usize)),
        questions: JoinSet::new(),
        subscriptions: JoinSet::new(),
        handles: HashMap::new(),
    };
    let mut writer = pin!(write_frames(write, queued));
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = &mut writer => return,
            request = frames.next::<Request>() => match request {
                // While too many are open this waits; the answers that free it are written meanwhile.
                Some(request) => tokio::select! {
                    () = connection.take(request) => {}
                    () = &mut writer => return,
                },
                None => return,
            },
            _ = connection.questions.join_next(), if !connection.questions.is_empty() => {}
            ended = connection.subscriptions.join_next(), if !connection.subscriptions.is_empty() => {
                if let Some(Ok(id)) = ended {
                    connection.handles.remove(&id);
                }
            }
        }
    }
    // Stopping: no new questions, no more pushes, but answers to what was asked.
    let Connection {
        queue,
        mut questions,
        subscriptions,
        ..
    } = connection;
    drop(subscriptions);
    let drain = async {
        let finish = async {
            while questions.join_next().await.is_some() {}
            drop(queue);
        };
        tokio::join!(finish, writer);
    };
    // A peer that does not read in time loses its answers; it asks again elsewhere.
    drop(tokio::time::timeout(DRAIN, drain).await);
}

struct Connection<S> {
    store: S,
    rights: Rights,
    leases: Leases,
    queue: mpsc::Sender<Bytes>,
    open: Arc<Semaphore>,
    questions: JoinSet<()>,
    subscriptions: JoinSet<u64>,
    handles: HashMap<u64, AbortHandle>,
}

impl<S: SessionStore> Connection<S> {
    /// Starts work on one request.
    async fn take(&mut self, request: Request) {
        let id = request.id;
        if self.rights == Rights::Sessions && !is_for_harness(&request.call) {
            let error =
                SessionError::invalid("a harness reads and writes the logs of sessions alone");
            send(&self.queue, id, Answer::Error(error)).await;
            return;
        }
        match request.call {
            Call::Cancel { subscription } => {
                if let Some(handle) = self.handles.remove(&subscription) {
                    handle.abort();
                }
            }
            Call::Tail { session, after } => {
                let pushes = self.store.tail(&session, after);
                self.subscribe(id, pushes.map(Answer::Tailed)).await;
            }
            Call::Watch { owner } => {
                let pushes = self.store.watch(&owner);
                self.subscribe(id, pushes.map(Answer::Work)).await;
            }
            call => {
                // Never closed, so that this is always a permit.
                let permit = Arc::clone(&self.open).acquire_owned().await;
                let (store, queue) = (self.store.clone(), self.queue.clone());
                let leases = Arc::clone(&self.leases);
                self.questions.spawn(async move {
                    let owner = lease_owner(&call);
                    let answer = answer(&store, call).await.unwrap_or_else(Answer::Error);
                    note(&leases, owner, &answer);
                    send(&queue, id, answer).await;
                    drop(permit);
                });
            }
        }
    }

    async fn subscribe(&mut self, id: u64, pushes: impl Stream<Item = Answer> + Send + 'static) {
        if self.handles.len() >= MAX_SUBSCRIPTIONS || self.handles.contains_key(&id) {
            let error = SessionError::invalid("too many tails and watches on this link");
            send(&self.queue, id, Answer::Error(error)).await;
            return;
        }
        let queue = self.queue.clone();
        let handle = self.subscriptions.spawn(async move {
            let mut pushes = pin!(pushes);
            while let Some(push) = pushes.next().await {
                send(&queue, id, push).await;
            }
            send(&queue, id, Answer::Ended).await;
            id
        });
        self.handles.insert(id, handle);
    }
}

/// Whether a turn loop asks this: about one session, and never in a user's name.
fn is_for_harness(call: &Call) -> bool {
    match call {
        Call::Cancel { .. } | Call::Watch { .. } => true,
        Call::AppendInput { .. } | Call::List { .. } => false,
        Call::Append { session, .. }
        | Call::Head { session }
        | Call::Lease { session, .. }
        | Call::Publish { session, .. }
        | Call::Read { session, .. }
        | Call::Release { session, .. }
        | Call::Renew { session, .. }
        | Call::Tail { session, .. } => session.is_session(),
    }
}

/// Whose lease a question takes, renews or gives back.
fn lease_owner(call: &Call) -> Option<(SessionId, String, Option<u64>)> {
    match call {
        Call::Lease { session, owner, .. } | Call::Release { session, owner, .. } => {
            Some((session.clone(), owner.clone(), None))
        }
        Call::Renew {
            session,
            owner,
            epoch,
            ..
        } => Some((session.clone(), owner.clone(), Some(*epoch))),
        _ => None,
    }
}

/// Remembers what the link holds now.
fn note(leases: &Leases, asked: Option<(SessionId, String, Option<u64>)>, answer: &Answer) {
    let Some((session, owner, renewed)) = asked else {
        return;
    };
    let mut leases = leases.lock().unwrap_or_else(PoisonError::into_inner);
    match (answer, renewed) {
        (Answer::Leased(lease), _) => drop(leases.insert(session, (owner, lease.epoch))),
        (Answer::Done, Some(epoch)) => drop(leases.insert(session, (owner, epoch))),
        (Answer::Done, None) => drop(leases.remove(&session)),
        _ => {}
    }
}

/// Asks the store.
async fn answer<S: SessionStore>(store: &S, call: Call) -> Result<Answer, SessionError> {
    let events = |events| Answer::Events {
        events,
        more: false,
    };
    Ok(match call {
        Call::Append {
            session,
            expected_seq,
            epoch,
            events: new,
        } => events(store.append(&session, expected_seq, epoch, new).await?),
        Call::AppendInput {
            session,
            idempotency_key,
            events: new,
        } => events(store.append_input(&session, &idempotency_key, new).await?),
        Call::Head { session } => {
            let (seq, hash, epoch) = store.head(&session).await?;
            Answer::Head { seq, hash, epoch }
        }
        Call::Lease {
            session,
            owner,
            ttl_ms,
        } => Answer::Leased(store.lease(&session, &owner, ttl_ms).await?),
        Call::List {
            prefix,
            after,
            limit,
            newest_first,
        } => Answer::Streams(
            store
                .list(&prefix, after.as_ref(), limit, newest_first)
                .await?,
        ),
        Call::Publish {
            session,
            epoch,
            value,
        } => {
            store.publish(&session, epoch, value).await?;
            Answer::Done
        }
        Call::Read { session, query } => {
            let TextPage { events, more } = store.text_page(&session, query).await?;
            Answer::TextEvents { events, more }
        }
        Call::Release {
            session,
            owner,
            epoch,
        } => {
            store.release(&session, &owner, epoch).await?;
            Answer::Done
        }
        Call::Renew {
            session,
            owner,
            epoch,
            ttl_ms,
        } => {
            store.renew(&session, &owner, epoch, ttl_ms).await?;
            Answer::Done
        }
        Call::Cancel { .. } | Call::Tail { .. } | Call::Watch { .. } => {
            return Err(SessionError::invalid("not a question"));
        }
    })
}

/// Queues an answer; when the writer is gone the connection ends anyway.
async fn send(queue: &mpsc::Sender<Bytes>, id: u64, answer: Answer) {
    let frame = encode(&Reply { id, answer }).or_else(|error| {
        encode(&Reply {
            id,
            answer: Answer::Error(error),
        })
    });
    if let Ok(frame) = frame {
        drop(queue.send(frame).await);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::{NewEvent, Query, SessionClient, SqliteStore};

    fn client(store: &SqliteStore) -> (SessionClient, tokio::task::JoinHandle<()>) {
        client_with(store, Rights::Everything)
    }

    fn client_with(
        store: &SqliteStore,
        rights: Rights,
    ) -> (SessionClient, tokio::task::JoinHandle<()>) {
        let (ours, stream) = UnixStream::pair().unwrap();
        let linked = Linked { rights, stream };
        tokio::spawn(serve(store.clone(), linked, CancellationToken::new()));
        let (sender, links) = mpsc::channel(1);
        sender.try_send(ours).unwrap();
        let (client, driver) = SessionClient::new(links);
        let driver = tokio::spawn(async move {
            driver.await;
            drop(sender);
        });
        (client, driver)
    }

    #[tokio::test]
    async fn a_harness_cannot_speak_for_a_user_or_touch_what_is_no_session() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(directory.path()).unwrap();
        let (api, _api) = client(&store);
        let (harness, _harness) = client_with(&store, Rights::Sessions);
        let (session, agent) = (SessionId::random("sesn"), SessionId::random("agent"));
        let event = |kind: &str| vec![NewEvent::new(kind, serde_json::json!({"content": []}))];
        api.append_input(&session, "1", event("user.message"))
            .await
            .unwrap();
        api.append(&agent, 0, 0, event("agent.created"))
            .await
            .unwrap();

        let refused = |answer: Result<(), SessionError>| {
            assert!(
                matches!(answer, Err(SessionError::Invalid { .. })),
                "{answer:?}"
            );
        };
        refused(
            harness
                .append_input(&session, "2", event("user.message"))
                .await
                .map(drop),
        );
        refused(
            harness
                .append(&agent, 1, 0, event("agent.updated"))
                .await
                .map(drop),
        );
        refused(harness.lease(&agent, "hrn_1", 1_000).await.map(drop));
        refused(harness.read(&agent, Query::default()).await.map(drop));
        refused(harness.list("agent_", None, 10, false).await.map(drop));

        let lease = harness.lease(&session, "hrn_1", 60_000).await.unwrap();
        harness
            .append(
                &session,
                lease.head,
                lease.epoch,
                event("session.status_running"),
            )
            .await
            .unwrap();
        assert_eq!(api.head(&agent).await.unwrap().0, 1);
        let read = harness.read(&session, Query::default()).await.unwrap();
        assert_eq!(read.len(), 2);
    }

    #[tokio::test]
    async fn a_lease_does_not_outlive_the_link_of_a_dead_harness() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(directory.path()).unwrap();
        let session = SessionId::random("sesn");
        let (dying, process) = client(&store);
        let (other, _process) = client(&store);
        let hello = NewEvent::new("user.message", serde_json::json!({"content": []}));
        other
            .append_input(&session, "1", vec![hello])
            .await
            .unwrap();
        let lease = dying.lease(&session, "hrn_1", 3_600_000).await.unwrap();
        let held = other.lease(&session, "hrn_2", 3_600_000).await.unwrap_err();
        assert!(matches!(held, SessionError::Held { .. }), "{held:?}");
        process.abort();
        drop(dying);
        let taken = loop {
            match other.lease(&session, "hrn_2", 3_600_000).await {
                Err(SessionError::Held { .. }) => tokio::task::yield_now().await,
                taken => break taken.unwrap(),
            }
        };
        assert!(taken.epoch > lease.epoch);
        // The dead harness's epoch is fenced by the new one, not by the lost link.
        let (back, _process) = client(&store);
        let event = NewEvent::new("session.status_running", serde_json::json!({}));
        let refused = back
            .append(&session, lease.head, lease.epoch, vec![event])
            .await
            .unwrap_err();
        assert!(
            matches!(refused, SessionError::Fenced { .. }),
            "{refused:?}"
        );
    }
}
