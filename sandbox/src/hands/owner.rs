//! Who owns what: sandboxes, sessions, epochs, and the rules between them.

use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Options;
use super::ledger::{Fingerprint, Found, Verdict};
use super::live::{Sandbox, ZygoteLink};
use super::state::{MAX_NAME_BYTES, State};
use crate::wire::{Answer, Request};
use crate::{Execute, HandsError, Output, Resources, SandboxId, SandboxRow};

/// How long `provision` waits until a connected tools role has been sent the listeners.
const HANDOVER_DEADLINE: Duration = Duration::from_secs(2);

/// What the attach link is told.
#[derive(Debug)]
pub(super) enum News {
    Attached {
        sandbox: Arc<Sandbox>,
        epoch: u64,
        sent: Option<oneshot::Sender<()>>,
    },
    Detached(SandboxId),
}

#[derive(Debug)]
pub(super) struct Owner {
    options: Options,
    state: Mutex<State>,
    zygote: tokio::sync::Mutex<Option<ZygoteLink>>,
    zygote_broken: CancellationToken,
    news: mpsc::UnboundedSender<News>,
    tasks: TaskTracker,
}

impl Owner {
    pub(super) fn new(
        options: Options,
        zygote: StdStream,
        news: mpsc::UnboundedSender<News>,
        tasks: TaskTracker,
    ) -> Result<Self, HandsError> {
        Ok(Self {
            options,
            state: Mutex::default(),
            zygote: tokio::sync::Mutex::new(Some(ZygoteLink::new(zygote)?)),
            zygote_broken: CancellationToken::new(),
            news,
            tasks,
        })
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    pub(super) async fn zygote_is_broken(&self) {
        self.zygote_broken.cancelled().await;
    }

    /// Kills every sandbox.
    pub(super) fn end_all(&self) {
        self.state()
            .sandboxes
            .values()
            .for_each(|sandbox| sandbox.kill());
    }

    /// The sandboxes to hand over, with the epochs of their sessions.
    pub(super) fn alive(&self) -> Vec<(Arc<Sandbox>, u64)> {
        let state = self.state();
        let epoch = |sandbox: &Sandbox| {
            state
                .sessions
                .get(&sandbox.session)
                .map_or(0, |session| session.epoch)
        };
        state
            .sandboxes
            .values()
            .map(|sandbox| (Arc::clone(sandbox), epoch(sandbox)))
            .collect()
    }

    pub(super) async fn handle(self: &Arc<Self>, request: Request) -> Result<Answer, HandsError> {
        match request {
            Request::Attach { session, epoch } => {
                self.attach(&session, epoch).map(Answer::Attached)
            }
            Request::Destroy {
                session,
                epoch,
                sandbox,
            } => self
                .destroy(&session, epoch, &sandbox)
                .await
                .map(|()| Answer::Done),
            Request::Execute { call } => self.execute(call).await.map(Answer::Output),
            Request::Interrupt {
                session,
                epoch,
                sandbox,
            } => {
                self.state()
                    .claimed(&session, epoch)?
                    .sandbox(&session, &sandbox)?
                    .interrupt();
                Ok(Answer::Done)
            }
            Request::List => Ok(Answer::Rows(self.list())),
            Request::Provision {
                session,
                epoch,
                resources,
            } => self
                .provision(&session, epoch, resources)
                .await
                .map(Answer::Provisioned),
            Request::Result {
                session,
                epoch,
                key,
            } => {
                let mut state = self.state();
                state.claimed(&session, epoch)?;
                state
                    .sessions
                    .get(&session)
                    .map_or(Ok(crate::Ledger::Unknown), |s| s.book.look_up(&key))
                    .map(Answer::Ledger)
            }
        }
    }

    fn attach(&self, session: &str, epoch: u64) -> Result<Vec<SandboxId>, HandsError> {
        let mut state = self.state();
        let state = state.claimed(session, epoch)?;
        let mut live = Vec::new();
        for sandbox in state
            .sandboxes
            .values()
            .filter(|sandbox| sandbox.session == session)
        {
            live.push(sandbox.id.clone());
            sandbox.touch();
            if sandbox.listeners.is_some() {
                // Without a reader there is no attach link; its next one is told everything anyway.
                self.news
                    .send(News::Attached {
                        sandbox: Arc::clone(sandbox),
                        epoch,
                        sent: None,
                    })
                    .ok();
            }
        }
        live.sort();
        Ok(live)
    }

    async fn provision(
        self: &Arc<Self>,
        session: &str,
        epoch: u64,
        resources: Resources,
    ) -> Result<SandboxId, HandsError> {
        check_environment(&resources)?;
        if let Some(limit) = resources.limits.exceeds(&self.options.max_limits) {
            return Err(HandsError::refused(format!(
                "the limit `{limit}` is more than these hands give"
            )));
        }
        self.state().reserve(session, epoch, &self.options)?;
        let made = Sandbox::provision(session, &resources, &self.zygote, &self.zygote_broken).await;
        let (sandbox, control) = {
            let mut state = self.state();
            let (sandbox, control) = state.unreserve(session, made)?;
            // Another epoch may have attached meanwhile; its sandbox list was made without this one.
            if let Err(error) = state.claimed(session, epoch) {
                sandbox.kill();
                return Err(error);
            }
            let sandbox = Arc::new(sandbox);
            state
                .sandboxes
                .insert(sandbox.id.clone(), Arc::clone(&sandbox));
            (sandbox, control)
        };
        let (owner, driven) = (Arc::clone(self), Arc::clone(&sandbox));
        self.tasks.spawn(async move {
            driven.drive(control).await;
            owner.bury(&driven);
        });
        tracing::info!(
            session,
            sandbox = %sandbox.id,
            provision_us = u64::try_from(sandbox.provisioning.as_micros()).unwrap_or(u64::MAX),
            "sandbox provisioned"
        );
        if sandbox.listeners.is_some() {
            let (sent, was_sent) = oneshot::channel();
            let news = News::Attached {
                sandbox: Arc::clone(&sandbox),
                epoch,
                sent: Some(sent),
            };
            if self.news.send(news).is_ok() {
                // Late or never is no error: the next attach link is told again.
                tokio::time::timeout(HANDOVER_DEADLINE, was_sent).await.ok();
            }
        }
        Ok(sandbox.id.clone())
    }

    async fn execute(self: &Arc<Self>, call: Execute) -> Result<Output, HandsError> {
        let (session, epoch) = (call.session.clone(), call.epoch);
        if call.key.len() > MAX_NAME_BYTES {
            return Err(HandsError::refused(format!(
                "a key has at most {MAX_NAME_BYTES} bytes"
            )));
        }
        let mut verdict = {
            let mut state = self.state();
            state.claimed(&session, epoch)?;
            let fingerprint = Fingerprint::of(&call.sandbox, &call.name, &call.input);
            let entry = state
                .sessions
                .get(&session)
                .map(|s| s.book.find(&call.key, fingerprint))
                .transpose()?;
            match entry {
                Some(Found::Done(verdict)) => return verdict,
                Some(Found::Running(verdict)) => verdict,
                Some(Found::New) | None => {
                    let sandbox = state.sandbox(&session, &call.sandbox)?;
                    sandbox.touch();
                    let Some(entry) = state.sessions.get_mut(&session) else {
                        return Err(HandsError::NotFound);
                    };
                    let teller = entry.book.open(&call.key, fingerprint);
                    let verdict = teller.subscribe();
                    let owner = Arc::clone(self);
                    // Its own task: the caller may go away, the call and its record go on.
                    self.tasks.spawn(async move {
                        let (session, key) = (call.session.clone(), call.key.clone());
                        let verdict: Verdict = sandbox.execute(call).await;
                        if let Some(entry) = owner.state().sessions.get_mut(&session) {
                            entry.book.close(&key, verdict.clone());
                        }
                        teller.send_replace(Some(verdict));
                    });
                    verdict
                }
            }
        };
        let verdict = match verdict.wait_for(Option::is_some).await {
            Ok(verdict) => verdict.clone().unwrap_or(Err(HandsError::Disconnected)),
            Err(_closed) => Err(HandsError::internal(
                "a call",
                "its task ended without an answer",
            )),
        };
        // The answer is recorded; a caller that was fenced meanwhile does not get it.
        self.state().claimed(&session, epoch)?;
        verdict
    }

    async fn destroy(&self, session: &str, epoch: u64, id: &SandboxId) -> Result<(), HandsError> {
        let sandbox = {
            let mut state = self.state();
            let state = state.claimed(session, epoch)?;
            match state
                .sandboxes
                .get(id)
                .filter(|sandbox| sandbox.session == session)
                .cloned()
            {
                Some(sandbox) => {
                    state.sandboxes.remove(id);
                    sandbox
                }
                // Gone already, which is what was asked for.
                None => return Ok(()),
            }
        };
        sandbox.kill();
        // Before the processes are gone: the listeners have nothing to say any more.
        self.news.send(News::Detached(id.clone())).ok();
        sandbox.gone.cancelled().await;
        tracing::info!(session, sandbox = %id, "sandbox destroyed");
        Ok(())
    }

    /// Ends the sandboxes that nobody has had a use for in so long; their sessions hear that they are lost.
    pub(super) fn reap(&self, max_idle: Duration) {
        // Under the lock that every new call takes, so that none begins in between.
        for sandbox in self.state().sandboxes.values() {
            if sandbox.idle() > max_idle {
                tracing::info!(session = sandbox.session, sandbox = %sandbox.id, "idle sandbox ended");
                sandbox.kill();
            }
        }
    }

    /// Takes note that a sandbox ended; if nobody destroyed it, it is lost.
    fn bury(&self, sandbox: &Sandbox) {
        if !self.state().bury(sandbox) {
            return;
        }
        tracing::warn!(session = sandbox.session, sandbox = %sandbox.id, "sandbox lost");
        self.news.send(News::Detached(sandbox.id.clone())).ok();
    }

    fn list(&self) -> Vec<SandboxRow> {
        let number = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
        let mut rows: Vec<SandboxRow> = self
            .alive()
            .into_iter()
            .map(|(sandbox, epoch)| SandboxRow {
                sandbox: sandbox.id.clone(),
                session: sandbox.session.clone(),
                epoch,
                pid: sandbox.pid,
                running: sandbox.running(),
                age_ms: number(sandbox.made.elapsed().as_millis()),
                provision_us: number(sandbox.provisioning.as_micros()),
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.age_ms));
        rows
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name is letters, digits and underscores; neither part holds a NUL. Sizes are bounded by the zygote's frame.
fn check_environment(resources: &Resources) -> Result<(), HandsError> {
    let is_name = |name: &str| {
        let starts_well = name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        starts_well && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let mut bytes = 0;
    for (name, value) in &resources.environment {
        if !is_name(name) {
            return Err(HandsError::refused(format!(
                "`{name}` is no name of a variable"
            )));
        }
        if value.contains('\0') {
            return Err(HandsError::refused(format!(
                "the variable `{name}` holds a NUL character"
            )));
        }
        bytes += name.len() + value.len() + 2;
    }
    if bytes > 1 << 17 {
        return Err(HandsError::refused("the environment is limited to 128 KiB"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_environment;
    use crate::Resources;

    #[test]
    fn environment_names_cannot_smuggle_assignments() {
        for name in ["", "A=B", "1A", "A B", "LD\nX", "Ü"] {
            let environment = [(name.to_owned(), "x".to_owned())].into();
            let resources = Resources {
                environment,
                ..Resources::default()
            };
            assert!(check_environment(&resources).is_err(), "{name:?}");
        }
        let environment = [("GOOD_1".to_owned(), "any = text".to_owned())].into();
        assert!(
            check_environment(&Resources {
                environment,
                ..Resources::default()
            })
            .is_ok()
        );
    }
}
