//! Tails and watches that outlive their links.

use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::mpsc;

use crate::client::SessionClient;
use crate::client::driver::Command;
use crate::id::SessionId;
use crate::protocol::{Answer, Call, Request, encode};
use crate::query::Tailed;

/// Pushes that may wait for a reader before it is sent back to its own position.
const PUSH_QUEUE: usize = 256;
/// Pause before a subscription that brought nothing is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// One subscription on one link; dropping it tells the role.
struct Subscription {
    client: SessionClient,
    id: u64,
    pushes: mpsc::Receiver<Answer>,
}

impl Subscription {
    /// Asks for pushes; `None` when the driver has ended.
    async fn open(client: &SessionClient, call: Call) -> Option<Self> {
        let id = client.next_id();
        let frame = encode(&Request { id, call }).ok()?;
        let (sender, pushes) = mpsc::channel(PUSH_QUEUE);
        let command = Command::Subscribe {
            id,
            frame,
            pushes: sender,
        };
        client.commands.send(command).await.ok()?;
        Some(Self {
            client: client.clone(),
            id,
            pushes,
        })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // When the queue is full the driver notices at the next push that nobody reads.
        drop(
            self.client
                .commands
                .try_send(Command::Cancel { id: self.id }),
        );
    }
}

struct Tail {
    client: SessionClient,
    session: SessionId,
    cursor: u64,
    current: Option<Subscription>,
    progressed: bool,
}

/// Follows a stream from `after`; see [`SessionClient::tail`].
pub(super) fn tail(
    client: SessionClient,
    session: SessionId,
    after: u64,
) -> impl Stream<Item = Tailed> + Send + 'static {
    let tail = Tail {
        client,
        session,
        cursor: after,
        current: None,
        progressed: true,
    };
    stream::unfold(tail, async |mut tail| {
        tail.next().await.map(|item| (item, tail))
    })
}

impl Tail {
    async fn next(&mut self) -> Option<Tailed> {
        loop {
            let Some(current) = &mut self.current else {
                if !std::mem::take(&mut self.progressed) {
                    tokio::time::sleep(PAUSE).await;
                }
                let call = Call::Tail {
                    session: self.session.clone(),
                    after: self.cursor,
                };
                self.current = Some(Subscription::open(&self.client, call).await?);
                continue;
            };
            match current.pushes.recv().await {
                Some(Answer::Tailed(Tailed::Event(event))) if event.seq <= self.cursor => {}
                Some(Answer::Tailed(Tailed::Event(event))) if event.seq == self.cursor + 1 => {
                    self.cursor = event.seq;
                    self.progressed = true;
                    return Some(Tailed::Event(event));
                }
                Some(Answer::Tailed(Tailed::Ephemeral(value))) => {
                    return Some(Tailed::Ephemeral(value));
                }
                // The link broke, the reader lagged or a number is missing: go on from the own position.
                _ => self.current = None,
            }
        }
    }
}

/// Follows the work; see [`SessionClient::watch`].
pub(super) fn watch(
    client: SessionClient,
    owner: String,
) -> impl Stream<Item = SessionId> + Send + 'static {
    let start = (client, owner, None::<Subscription>);
    stream::unfold(start, async |(client, owner, mut current)| {
        loop {
            let Some(subscription) = &mut current else {
                let owner = owner.clone();
                current = Some(Subscription::open(&client, Call::Watch { owner }).await?);
                continue;
            };
            if let Some(Answer::Work(session)) = subscription.pushes.recv().await {
                return Some((session, (client, owner, current)));
            }
            current = None;
            tokio::time::sleep(PAUSE).await;
        }
    })
}
