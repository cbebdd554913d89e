//! Runs the newest link: sends what is asked, hands out what comes back, and starts over on the next link.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::pin;

use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::error::SessionError;
use crate::protocol::{Answer, Call, Frames, Reply, Request, encode, write_frames};

/// Frames that may wait for the socket.
const WRITE_QUEUE: usize = 64;
/// Calls that may wait for a link before new ones wait outside.
const MAX_WAITING: usize = 1024;

/// What the handles ask of the driver.
#[derive(Debug)]
pub(super) enum Command {
    /// One question, one answer.
    Call {
        id: u64,
        frame: Bytes,
        retry: bool,
        answer: oneshot::Sender<Result<Answer, SessionError>>,
    },
    /// The reader of a tail or watch is gone.
    Cancel { id: u64 },
    /// One question, any number of answers; the sender is dropped when they can no longer be delivered in full.
    Subscribe {
        id: u64,
        frame: Bytes,
        pushes: mpsc::Sender<Answer>,
    },
}

/// A question on its way.
struct Waiting {
    frame: Bytes,
    retry: bool,
    answer: oneshot::Sender<Result<Answer, SessionError>>,
}

#[derive(Default)]
struct State {
    calls: BTreeMap<u64, Waiting>,
    subscriptions: HashMap<u64, mpsc::Sender<Answer>>,
    /// Subscriptions that could not be sent yet, in order.
    outgoing: VecDeque<Bytes>,
}

/// Why a link is no longer used.
enum Ended {
    Lost,
    Replaced(UnixStream),
    Unused,
}

/// Drives all calls of a client over the newest link.
pub(super) async fn drive(
    mut links: mpsc::Receiver<UnixStream>,
    mut commands: mpsc::Receiver<Command>,
) {
    let mut state = State::default();
    loop {
        let link = tokio::select! {
            link = links.recv() => link,
            command = commands.recv(), if state.calls.len() < MAX_WAITING => {
                let Some(command) = command else { return };
                state.accept(command, false);
                continue;
            }
        };
        // With the sender of links gone there will never be another one; dropping the state answers everyone.
        let Some(mut link) = link else { return };
        loop {
            state.resend();
            let ended = converse(link, &mut state, &mut links, &mut commands).await;
            state.lose();
            match ended {
                Ended::Lost => break,
                Ended::Replaced(next) => link = next,
                Ended::Unused => return,
            }
        }
    }
}

/// Uses one link until it breaks, a newer one arrives or nobody needs it.
async fn converse(
    link: UnixStream,
    state: &mut State,
    links: &mut mpsc::Receiver<UnixStream>,
    commands: &mut mpsc::Receiver<Command>,
) -> Ended {
    let (read, write) = link.into_split();
    let (queue, queued) = mpsc::channel(WRITE_QUEUE);
    let mut frames = Frames::new(read);
    let mut writer = pin!(write_frames(write, queued));
    let mut more_links = true;
    loop {
        // Reading never waits for writing: that is what keeps two full pipes from waiting for each other.
        tokio::select! {
            () = &mut writer => return Ended::Lost,
            link = links.recv(), if more_links => match link {
                Some(link) => return Ended::Replaced(link),
                None => more_links = false,
            },
            reply = frames.next::<Reply>() => match reply {
                Some(reply) => state.deliver(reply),
                None => return Ended::Lost,
            },
            permit = queue.reserve(), if !state.outgoing.is_empty() => {
                let Ok(permit) = permit else { return Ended::Lost };
                if let Some(frame) = state.outgoing.pop_front() {
                    permit.send(frame);
                }
            },
            command = commands.recv(), if state.outgoing.len() < WRITE_QUEUE => match command {
                Some(command) => state.accept(command, true),
                None => return Ended::Unused,
            },
        }
    }
}

impl State {
    /// Takes a command; without a link it waits for the next one, unless it may not be repeated.
    fn accept(&mut self, command: Command, linked: bool) {
        match command {
            Command::Call {
                id,
                frame,
                retry,
                answer,
            } => {
                if !linked && !retry {
                    // The caller may have given up already; then nobody needs the answer.
                    drop(answer.send(Err(SessionError::Disconnected)));
                    return;
                }
                if linked {
                    self.outgoing.push_back(frame.clone());
                }
                self.calls.insert(
                    id,
                    Waiting {
                        frame,
                        retry,
                        answer,
                    },
                );
            }
            Command::Cancel { id } => self.cancel(id),
            Command::Subscribe { id, frame, pushes } => {
                self.outgoing.push_back(frame);
                self.subscriptions.insert(id, pushes);
            }
        }
    }

    /// Hands an answer to whoever waits for it.
    fn deliver(&mut self, reply: Reply) {
        if let Some(waiting) = self.calls.remove(&reply.id) {
            let answer = match reply.answer {
                Answer::Error(error) => Err(error),
                answer => Ok(answer),
            };
            drop(waiting.answer.send(answer));
            return;
        }
        let Some(pushes) = self.subscriptions.get(&reply.id) else {
            return;
        };
        let ended = matches!(reply.answer, Answer::Ended | Answer::Error(_));
        if ended {
            self.subscriptions.remove(&reply.id);
        } else if pushes.try_send(reply.answer).is_err() {
            // A reader that lags is dropped and comes back at its own position, so that it holds up nobody else.
            self.cancel(reply.id);
        }
    }

    fn cancel(&mut self, subscription: u64) {
        if self.subscriptions.remove(&subscription).is_some() {
            let request = Request {
                id: subscription,
                call: Call::Cancel { subscription },
            };
            self.outgoing.extend(encode(&request));
        }
    }

    /// Queues every open call again for a new link.
    fn resend(&mut self) {
        self.calls.retain(|_, waiting| !waiting.answer.is_closed());
        for waiting in self.calls.values().rev() {
            self.outgoing.push_front(waiting.frame.clone());
        }
    }

    /// Ends what cannot go on over another link.
    fn lose(&mut self) {
        self.outgoing.clear();
        self.subscriptions.clear();
        let (keep, end): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.calls)
            .into_iter()
            .partition(|(_, waiting)| waiting.retry);
        self.calls = keep;
        for waiting in end.into_values() {
            drop(waiting.answer.send(Err(SessionError::Disconnected)));
        }
    }
}
