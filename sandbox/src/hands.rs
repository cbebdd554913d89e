//! The `hands` role: owns every sandbox of this machine, fences its callers, remembers what each call answered.
//!
//! It holds no log and no secret. Its death is the death of its sandboxes; a new one starts with none.

mod attach;
mod ledger;
mod live;
mod owner;
mod state;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::owner::Owner;
use crate::wire::{self, Answered, Asked};
pub use crate::zygote::{Zygote, start_zygote};
use crate::{HandsError, Limits};

/// How the role runs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The most that one sandbox may be given.
    pub max_limits: Limits,
    /// Sandboxes at once, all sessions together.
    pub max_sandboxes: usize,
    /// Sandboxes at once in one session.
    pub max_sandboxes_per_session: usize,
    /// How long a sandbox may run no call before it is ended, as lost.
    pub max_idle: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let max_limits = Limits {
            disk_bytes: 32 << 30,
            files: 10_000_000,
            memory_bytes: 64 << 30,
            open_files: 1 << 16,
            processes: 1 << 14,
        };
        Self {
            max_limits,
            max_sandboxes: 1024,
            max_sandboxes_per_session: 8,
            max_idle: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// Answers that one caller may be waiting for.
const MAX_IN_FLIGHT: usize = 1024;
/// The shortest, so that no option makes a loop without a pause of it.
const SHORTEST_PERIOD: Duration = Duration::from_millis(10);
/// The longest between two looks for idle sandboxes.
const REAP_PERIOD: Duration = Duration::from_secs(60);
/// How long the end of the role waits for its sandboxes to be gone.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// Runs the role until `stop`: answers every link of `links`, hands listeners over on the newest of `attach`.
///
/// # Errors
/// `Internal` when the zygote ends: no sandbox can be made any more, and those that lived have died with it.
pub async fn run(
    options: Options,
    mut zygote: Zygote,
    mut links: mpsc::Receiver<UnixStream>,
    attach: mpsc::Receiver<UnixStream>,
    stop: CancellationToken,
) -> Result<(), HandsError> {
    let link = zygote
        .take_link()
        .ok_or_else(|| HandsError::refused("a zygote serves one role"))?;
    let ending = zygote
        .watch()
        .map_err(|error| HandsError::internal("watch the zygote", error))?;
    let max_idle = options.max_idle;
    let mut reaping = tokio::time::interval(REAP_PERIOD.min(max_idle / 2).max(SHORTEST_PERIOD));
    let tasks = TaskTracker::new();
    let (events, news) = mpsc::unbounded_channel();
    let owner = Arc::new(Owner::new(options, link, events, tasks.clone())?);
    tasks.spawn(attach::serve(
        Arc::clone(&owner),
        news,
        attach,
        stop.clone(),
    ));

    let mut links_open = true;
    let result = loop {
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            _ = reaping.tick() => owner.reap(max_idle),
            () = owner.zygote_is_broken() => {
                break Err(HandsError::Internal { reason: "the zygote no longer answers".to_owned() });
            }
            _ = ending.readable() => {
                break Err(HandsError::Internal { reason: "the zygote ended, and every sandbox with it".to_owned() });
            }
            link = links.recv(), if links_open => match link {
                Some(link) => drop(tasks.spawn(answer(Arc::clone(&owner), link, stop.clone()))),
                None => links_open = false,
            },
        }
    };
    stop.cancel();
    owner.end_all();
    tasks.close();
    if tokio::time::timeout(END_DEADLINE, tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(tasks = tasks.len(), "the hands end while tasks still run");
    }
    result
}

/// Serves one caller until it goes away; what it started goes on.
async fn answer(owner: Arc<Owner>, link: UnixStream, stop: CancellationToken) {
    let (mut sink, mut requests) = wire::frames(link).split();
    let (outbox, mut outgoing) = mpsc::channel::<Answered>(64);
    let permits = Arc::new(tokio::sync::Semaphore::new(MAX_IN_FLIGHT));
    let mut writer = std::pin::pin!(async move {
        while let Some(Answered { id, answer }) = outgoing.recv().await {
            let encoded = wire::encode(&Answered { id, answer }).or_else(|error| {
                wire::encode(&Answered {
                    id,
                    answer: Err(error),
                })
            });
            let Ok(frame) = encoded else { break };
            if sink.send(frame).await.is_err() {
                break;
            }
        }
    });
    loop {
        let frame = tokio::select! {
            () = stop.cancelled() => return,
            () = &mut writer => return,
            frame = requests.next() => frame,
        };
        let Some(Ok(frame)) = frame else { return };
        let Asked { id, request } = match wire::decode(&frame) {
            Ok(asked) => asked,
            Err(error) => {
                tracing::warn!(%error, "a caller sent what is no request; its link is dropped");
                return;
            }
        };
        let (owner, outbox, stop) = (Arc::clone(&owner), outbox.clone(), stop.clone());
        let permit = Arc::clone(&permits).try_acquire_owned();
        owner.tasks().clone().spawn(async move {
            let answer = match permit {
                Err(_) => Err(HandsError::refused(format!(
                    "{MAX_IN_FLIGHT} requests of this caller are in flight"
                ))),
                Ok(_permit) => tokio::select! {
                    () = stop.cancelled() => Err(HandsError::Disconnected),
                    answer = owner.handle(request) => answer,
                },
            };
            // The caller may be gone; the ledger keeps what matters.
            outbox.send(Answered { id, answer }).await.ok();
        });
    }
}
