//! The caller's end of the `hands` link.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::wire::{self, Answer, Answered, Asked, Request};
use crate::{Execute, HandsError, Ledger, Output, Resources, SandboxId, SandboxRow};

/// How long a request waits for a link before it is answered `Disconnected`.
const LINK_DEADLINE: Duration = Duration::from_secs(15);

/// Speaks to the hands; cheap to clone, many calls at once over one link.
#[derive(Clone, Debug)]
pub struct HandsClient {
    requests: mpsc::Sender<Pending>,
}

impl HandsClient {
    /// Makes a client of the newest link that arrives, and the future that drives it (the caller spawns it).
    ///
    /// A request that may be repeated is asked again over the next link when its own ends; any other is answered
    /// [`HandsError::Disconnected`]. The driver ends when every clone of the client is dropped.
    pub fn new(
        links: mpsc::Receiver<UnixStream>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (requests, inbox) = mpsc::channel(256);
        (
            Self { requests },
            Driver {
                links,
                inbox,
                unsent: VecDeque::new(),
                next: 1,
            }
            .run(),
        )
    }

    /// Claims a session for an epoch and names its live sandboxes; every lower epoch is fenced from now on.
    ///
    /// # Errors
    /// `Fenced` when a greater epoch has attached; `Disconnected`.
    pub async fn attach(&self, session: &str, epoch: u64) -> Result<Vec<SandboxId>, HandsError> {
        match self
            .ask(Request::Attach {
                session: session.to_owned(),
                epoch,
            })
            .await?
        {
            Answer::Attached(live) => Ok(live),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a sandbox.
    ///
    /// # Errors
    /// `Unsupported` when a layer of isolation is missing; `Refused` at a quota; `Fenced`; `Disconnected`, after which
    /// `attach` tells whether it was made.
    pub async fn provision(
        &self,
        session: &str,
        epoch: u64,
        resources: Resources,
    ) -> Result<SandboxId, HandsError> {
        match self
            .ask(Request::Provision {
                session: session.to_owned(),
                epoch,
                resources,
            })
            .await?
        {
            Answer::Provisioned(sandbox) => Ok(sandbox),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a tool once per key: a repeat waits for the running call or returns the recorded answer.
    ///
    /// # Errors
    /// `Lost` when the sandbox died before the answer; `NotFound`; `Refused` for a reused key; `Fenced`; `Disconnected`.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the call; its answer stays in the ledger.
    pub async fn execute(&self, call: Execute) -> Result<Output, HandsError> {
        match self.ask(Request::Execute { call }).await? {
            Answer::Output(output) => Ok(output),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks what became of a key.
    ///
    /// # Errors
    /// `Lost` when its sandbox died under it; `Fenced`; `Disconnected`.
    pub async fn result(&self, session: &str, epoch: u64, key: &str) -> Result<Ledger, HandsError> {
        match self
            .ask(Request::Result {
                session: session.to_owned(),
                epoch,
                key: key.to_owned(),
            })
            .await?
        {
            Answer::Ledger(ledger) => Ok(ledger),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends what runs in a sandbox now; each such call answers with an error that says so.
    ///
    /// # Errors
    /// `NotFound`; `Fenced`; `Disconnected`.
    pub async fn interrupt(
        &self,
        session: &str,
        epoch: u64,
        sandbox: &SandboxId,
    ) -> Result<(), HandsError> {
        let sandbox = sandbox.clone();
        self.ask(Request::Interrupt {
            session: session.to_owned(),
            epoch,
            sandbox,
        })
        .await
        .map(drop)
    }

    /// Ends a sandbox and everything in it; one that is already gone is no error.
    ///
    /// # Errors
    /// `Fenced`; `Disconnected`.
    pub async fn destroy(
        &self,
        session: &str,
        epoch: u64,
        sandbox: &SandboxId,
    ) -> Result<(), HandsError> {
        let sandbox = sandbox.clone();
        self.ask(Request::Destroy {
            session: session.to_owned(),
            epoch,
            sandbox,
        })
        .await
        .map(drop)
    }

    /// Lists every sandbox of these hands.
    ///
    /// # Errors
    /// `Disconnected`.
    pub async fn list(&self) -> Result<Vec<SandboxRow>, HandsError> {
        match self.ask(Request::List).await? {
            Answer::Rows(rows) => Ok(rows),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, request: Request) -> Result<Answer, HandsError> {
        let (answer, answered) = oneshot::channel();
        let pending = Pending {
            request,
            answer,
            asked_at: Instant::now(),
        };
        self.requests
            .send(pending)
            .await
            .map_err(|_closed| HandsError::Disconnected)?;
        answered.await.unwrap_or(Err(HandsError::Disconnected))
    }
}

fn unexpected(answer: &Answer) -> HandsError {
    HandsError::internal(
        "answer of another kind",
        format!("{:?}", std::mem::discriminant(answer)),
    )
}

#[derive(Debug)]
struct Pending {
    request: Request,
    answer: oneshot::Sender<Result<Answer, HandsError>>,
    asked_at: Instant,
}

struct Driver {
    links: mpsc::Receiver<UnixStream>,
    inbox: mpsc::Receiver<Pending>,
    unsent: VecDeque<Pending>,
    next: u64,
}

/// Why one link's service ended.
enum Ended {
    Client,
    Link,
    NewLink(UnixStream),
}

impl Driver {
    async fn run(mut self) {
        let mut current: Option<UnixStream> = None;
        loop {
            let link = match current.take() {
                Some(link) => link,
                None => match self.wait_for_link().await {
                    Some(link) => link,
                    None => return,
                },
            };
            match self.serve(link).await {
                Ended::Client => return,
                Ended::Link => {}
                Ended::NewLink(link) => current = Some(link),
            }
        }
    }

    /// Keeps requests until a link comes; answers those whose patience ends.
    async fn wait_for_link(&mut self) -> Option<UnixStream> {
        let mut links_open = true;
        loop {
            if !links_open {
                // No link can come any more: whoever asks is told at once.
                for pending in self.unsent.drain(..) {
                    refuse(pending);
                }
            }
            let deadline = self
                .unsent
                .front()
                .map(|pending| pending.asked_at + LINK_DEADLINE);
            let patience = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                link = self.links.recv(), if links_open => match link {
                    Some(link) => return Some(link),
                    None => links_open = false,
                },
                pending = self.inbox.recv() => self.unsent.push_back(pending?),
                () = patience => if let Some(pending) = self.unsent.pop_front() { refuse(pending); },
            }
        }
    }

    async fn serve(&mut self, link: UnixStream) -> Ended {
        let (mut sink, mut answers) = wire::frames(link).split();
        let (outbox, mut outgoing) = mpsc::unbounded_channel::<Bytes>();
        let mut writer = pin!(async move {
            while let Some(frame) = outgoing.recv().await {
                if sink.send(frame).await.is_err() {
                    break;
                }
            }
        });
        let mut in_flight: HashMap<u64, Pending> = HashMap::new();
        for pending in std::mem::take(&mut self.unsent) {
            self.post(pending, &outbox, &mut in_flight);
        }
        let mut links_open = true;
        let ended = loop {
            tokio::select! {
                () = &mut writer => break Ended::Link,
                frame = answers.next() => match frame {
                    Some(Ok(frame)) => {
                        let Ok(Answered { id, answer }) = wire::decode(&frame) else { break Ended::Link };
                        if let Some(pending) = in_flight.remove(&id) {
                            // A caller that went away needs no answer.
                            pending.answer.send(answer).ok();
                        }
                    }
                    Some(Err(_)) | None => break Ended::Link,
                },
                link = self.links.recv(), if links_open => match link {
                    Some(link) => break Ended::NewLink(link),
                    None => links_open = false,
                },
                pending = self.inbox.recv() => match pending {
                    Some(pending) => self.post(pending, &outbox, &mut in_flight),
                    None => break Ended::Client,
                },
            }
        };
        let mut left: Vec<_> = in_flight.into_iter().collect();
        left.sort_unstable_by_key(|(id, _)| *id);
        for (_, mut pending) in left {
            if pending.request.is_idempotent() {
                // Its patience for a new link starts now, however long it has been running.
                pending.asked_at = Instant::now();
                self.unsent.push_back(pending);
            } else {
                refuse(pending);
            }
        }
        ended
    }

    fn post(
        &mut self,
        pending: Pending,
        outbox: &mpsc::UnboundedSender<Bytes>,
        sent: &mut HashMap<u64, Pending>,
    ) {
        if pending.answer.is_closed() {
            return;
        }
        let id = self.next;
        self.next += 1;
        let asked = Asked {
            id,
            request: pending.request.clone(),
        };
        match wire::encode(&asked) {
            Ok(frame) => {
                // A closed outbox means the writer ended; the serving loop sees that next and keeps the request.
                outbox.send(frame).ok();
                sent.insert(id, pending);
            }
            Err(error) => drop(pending.answer.send(Err(error))),
        }
    }
}

fn refuse(pending: Pending) {
    pending.answer.send(Err(HandsError::Disconnected)).ok();
}
