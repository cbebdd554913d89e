//! The one thread that writes: it drains what is queued, commits it together, then answers.

use std::fs::File;
use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::error::SessionError;
use crate::hub::Hub;
use crate::id::SessionId;
use crate::sqlite::apply::{Act, Applier, Outcome};
use crate::sqlite::blobs::Blobs;
use crate::sqlite::rows::Rows;

/// Writes that may wait for the thread.
const QUEUE: usize = 1024;
/// Most events of one commit.
const GROUP_EVENTS: usize = 512;
/// Most payload bytes of one commit; what was started is finished.
const GROUP_BYTES: usize = 1024 * 1024;

/// Where a write is answered.
type Reply = oneshot::Sender<Result<Outcome, SessionError>>;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Ends the thread.
    Close { closed: oneshot::Sender<()> },
    /// Runs on the writer's own connection, to make it fail.
    #[cfg(test)]
    Sabotage(&'static str),
    /// Writes.
    Write {
        session: SessionId,
        act: Act,
        reply: Reply,
    },
}

/// One write of a group.
struct Write {
    session: SessionId,
    act: Act,
    reply: Reply,
}

/// The thread's own things.
pub(super) struct Writer {
    connection: Connection,
    hub: Arc<Hub>,
    blobs: Blobs,
    queue: mpsc::Receiver<Command>,
    /// Held until the file is closed.
    lock: File,
}

impl Writer {
    /// Starts the thread and returns its queue.
    pub(super) fn start(
        connection: Connection,
        lock: File,
        hub: Arc<Hub>,
        blobs: Blobs,
    ) -> Result<mpsc::Sender<Command>, SessionError> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let writer = Self {
            connection,
            hub,
            blobs,
            queue,
            lock,
        };
        std::thread::Builder::new()
            .name("session-writer".into())
            .spawn(move || writer.run())
            .map_err(|e| SessionError::store("start the writer", e))?;
        Ok(sender)
    }

    fn run(mut self) {
        let closed = match self.serve() {
            Ok(closed) => closed,
            Err(error) => {
                tracing::error!(%error, "the session store's writer ends");
                None
            }
        };
        // In this order: the file first, then the lock, then the word that both are free.
        drop(self.connection);
        drop(self.lock);
        drop(self.queue);
        drop(closed);
    }

    /// Serves until told to close; an error means that the connection is beyond use.
    fn serve(&mut self) -> Result<Option<oneshot::Sender<()>>, SessionError> {
        let rows = Rows::prepare(&self.connection)?;
        let mut applier = Applier::new(rows, self.blobs.clone(), Arc::clone(&self.hub));
        loop {
            let Some(first) = self.queue.blocking_recv() else {
                return Ok(None);
            };
            let mut closing = None;
            let mut group = Vec::new();
            let (mut events, mut bytes) = (0, 0);
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Close { closed } => {
                        closing = Some(closed);
                        break;
                    }
                    #[cfg(test)]
                    Command::Sabotage(sql) => self.connection.execute_batch(sql)?,
                    Command::Write {
                        session,
                        act,
                        reply,
                    } => {
                        let (more_events, more_bytes) = weigh(&act);
                        events += more_events;
                        bytes += more_bytes;
                        group.push(Write {
                            session,
                            act,
                            reply,
                        });
                    }
                }
                if events >= GROUP_EVENTS || bytes >= GROUP_BYTES {
                    break;
                }
                next = self.queue.try_recv().ok();
            }
            commit_group(&self.connection, &self.hub, &mut applier, group)?;
            if closing.is_some() {
                return Ok(closing);
            }
        }
    }
}

/// Commits a group together or, when that fails, each write alone, so that one cannot spoil the others.
fn commit_group(
    connection: &Connection,
    hub: &Hub,
    applier: &mut Applier<'_>,
    group: Vec<Write>,
) -> Result<(), SessionError> {
    if group.is_empty() {
        return Ok(());
    }
    let acts: Vec<(&SessionId, &Act)> = group.iter().map(|w| (&w.session, &w.act)).collect();
    let result = transact(connection, applier, &acts)?;
    let failure = match result {
        Ok(outcomes) => {
            for (write, outcome) in group.into_iter().zip(outcomes) {
                answer(hub, write, outcome);
            }
            return Ok(());
        }
        Err(failure) => failure,
    };
    let alone = group.len() == 1;
    for write in group {
        let outcome = if alone {
            Err(failure.clone())
        } else {
            match transact(connection, applier, &[(&write.session, &write.act)])? {
                Ok(mut outcomes) => outcomes.pop().unwrap_or_else(|| Err(failure.clone())),
                Err(error) => Err(error),
            }
        };
        answer(hub, write, outcome);
    }
    Ok(())
}

/// The answers of a group, or why none of it happened.
type Answers = Result<Vec<Result<Outcome, SessionError>>, SessionError>;

/// Applies acts in one transaction. The outer error means that not even the rollback worked.
fn transact(
    connection: &Connection,
    applier: &mut Applier<'_>,
    acts: &[(&SessionId, &Act)],
) -> Result<Answers, SessionError> {
    let result = attempt(connection, applier, acts);
    applier.end(result.is_ok());
    if result.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK")?;
    }
    Ok(result)
}

fn attempt(
    connection: &Connection,
    applier: &mut Applier<'_>,
    acts: &[(&SessionId, &Act)],
) -> Answers {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let mut outcomes = Vec::with_capacity(acts.len());
    for (session, act) in acts {
        match applier.apply(session, act) {
            Err(SessionError::Store(reason)) => return Err(SessionError::Store(reason)),
            outcome => outcomes.push(outcome),
        }
    }
    connection.execute_batch("COMMIT")?;
    Ok(outcomes)
}

/// Tells the hub what was committed, then the writer. In this order: an acknowledged lease fences at once.
fn answer(hub: &Hub, write: Write, outcome: Result<Outcome, SessionError>) {
    match (&outcome, &write.act) {
        (
            Ok(Outcome::Events {
                events,
                fresh: true,
                has_work,
            }),
            _,
        ) => hub.appended(&write.session, events, *has_work),
        (Ok(Outcome::Leased(lease)), Act::Lease { owner, ttl_ms }) => {
            hub.leased(&write.session, owner, lease.epoch, *ttl_ms);
        }
        (Ok(Outcome::Released), _) => hub.released(&write.session),
        (
            Ok(Outcome::Renewed),
            Act::Renew {
                owner,
                epoch,
                ttl_ms,
            },
        ) => {
            hub.renewed(&write.session, owner, *epoch, *ttl_ms);
        }
        _ => {}
    }
    // The caller may have gone; what it asked is done all the same.
    drop(write.reply.send(outcome));
}

fn weigh(act: &Act) -> (usize, usize) {
    match act {
        Act::Append { drafts, .. } | Act::Input { drafts, .. } => {
            let inline = drafts.iter().filter(|d| d.blob.is_none());
            (drafts.len(), inline.map(|d| d.text.len()).sum())
        }
        Act::Lease { .. } | Act::Release { .. } | Act::Renew { .. } => (1, 0),
    }
}
