//! Who owns what: sandboxes, sessions, epochs, and the rules between them.

use std::collections::{HashMap, VecDeque};
use std::net::TcpListener;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Options;
use super::ledger::{Book, Fingerprint, Found, Verdict};
use super::live::{Sandbox, ZygoteLink};
use crate::wire::{Answer, Request};
use crate::{Execute, HandsError, Output, Resources, SandboxId, SandboxRow};

/// Sessions remembered without a sandbox; the longest unused are forgotten first.
const MAX_SESSIONS: usize = 10_000;
/// Lost sandboxes remembered per session.
const MAX_LOST: usize = 64;
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
struct Session {
    epoch: u64,
    book: Book,
    lost: VecDeque<SandboxId>,
    provisioning: usize,
    used: Instant,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<String, Session>,
    sandboxes: HashMap<SandboxId, Arc<Sandbox>>,
}

#[derive(Debug)]
pub(super) struct Owner {
    options: Options,
    state: Mutex<State>,
    zygote: tokio::sync::Mutex<Option<ZygoteLink>>,
    zygote_ended: CancellationToken,
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
            zygote_ended: CancellationToken::new(),
            news,
            tasks,
        })
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    pub(super) async fn zygote_ended(&self) {
        self.zygote_ended.cancelled().await;
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
        self.state().reserve(session, epoch, &self.options)?;
        let made = Sandbox::provision(session, &resources, &self.zygote, &self.zygote_ended).await;
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

    /// Takes note that a sandbox ended; if nobody destroyed it, it is lost.
    fn bury(&self, sandbox: &Sandbox) {
        let mut state = self.state();
        if state.sandboxes.remove(&sandbox.id).is_none() {
            return;
        }
        if let Some(session) = state.sessions.get_mut(&sandbox.session) {
            session.lost.push_back(sandbox.id.clone());
            if session.lost.len() > MAX_LOST {
                session.lost.pop_front();
            }
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

impl State {
    /// Lets an epoch in: the newest or a newer one, which fences all below it.
    fn claimed(&mut self, session: &str, epoch: u64) -> Result<&mut Self, HandsError> {
        if !self.sessions.contains_key(session) && self.sessions.len() >= MAX_SESSIONS {
            self.forget_a_session();
        }
        let entry = self
            .sessions
            .entry(session.to_owned())
            .or_insert_with(|| Session {
                epoch,
                book: Book::default(),
                lost: VecDeque::new(),
                provisioning: 0,
                used: Instant::now(),
            });
        if epoch < entry.epoch {
            return Err(HandsError::Fenced { epoch: entry.epoch });
        }
        entry.epoch = epoch;
        entry.used = Instant::now();
        Ok(self)
    }

    fn forget_a_session(&mut self) {
        let in_use = |name: &String, session: &Session| {
            session.provisioning > 0
                || session.book.is_busy()
                || self.sandboxes.values().any(|s| s.session == *name)
        };
        let idle = self
            .sessions
            .iter()
            .filter(|(name, session)| !in_use(name, session));
        if let Some(name) = idle
            .min_by_key(|(_, session)| session.used)
            .map(|(name, _)| name.clone())
        {
            self.sessions.remove(&name);
        }
    }

    fn sandbox(&self, session: &str, id: &SandboxId) -> Result<Arc<Sandbox>, HandsError> {
        if let Some(sandbox) = self
            .sandboxes
            .get(id)
            .filter(|sandbox| sandbox.session == session)
        {
            return Ok(Arc::clone(sandbox));
        }
        if self
            .sessions
            .get(session)
            .is_some_and(|entry| entry.lost.contains(id))
        {
            return Err(HandsError::Lost {
                sandbox: id.clone(),
            });
        }
        Err(HandsError::NotFound)
    }

    fn reserve(&mut self, session: &str, epoch: u64, options: &Options) -> Result<(), HandsError> {
        self.claimed(session, epoch)?;
        let provisioning: usize = self.sessions.values().map(|entry| entry.provisioning).sum();
        if self.sandboxes.len() + provisioning >= options.max_sandboxes {
            return Err(HandsError::refused(format!(
                "{} sandboxes are alive already",
                options.max_sandboxes
            )));
        }
        let alive = self
            .sandboxes
            .values()
            .filter(|sandbox| sandbox.session == session)
            .count();
        let most = options.max_sandboxes_per_session;
        if let Some(entry) = self.sessions.get_mut(session) {
            if alive + entry.provisioning >= most {
                return Err(HandsError::refused(format!(
                    "this session has {most} sandboxes already"
                )));
            }
            entry.provisioning += 1;
        }
        Ok(())
    }

    fn unreserve<T>(
        &mut self,
        session: &str,
        made: Result<T, HandsError>,
    ) -> Result<T, HandsError> {
        if let Some(entry) = self.sessions.get_mut(session) {
            entry.provisioning = entry.provisioning.saturating_sub(1);
        }
        made
    }
}

impl Sandbox {
    /// The descriptors of its listeners, `mcp` and `egress`.
    pub(super) fn listeners(&self) -> Option<[&TcpListener; 2]> {
        self.listeners.as_ref().map(|(mcp, egress)| [mcp, egress])
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
    use super::{State, check_environment};
    use crate::hands::Options;
    use crate::{HandsError, Resources};

    #[test]
    fn a_lower_epoch_is_fenced_and_a_greater_one_takes_over() {
        let mut state = State::default();
        assert!(state.claimed("sesn_a", 3).is_ok());
        assert!(state.claimed("sesn_a", 3).is_ok());
        assert!(state.claimed("sesn_a", 5).is_ok());
        assert_eq!(
            state.claimed("sesn_a", 4).err(),
            Some(HandsError::Fenced { epoch: 5 })
        );
        assert!(
            state.claimed("sesn_b", 1).is_ok(),
            "sessions do not fence each other"
        );
    }

    #[test]
    fn quotas_count_what_is_being_made() {
        let mut state = State::default();
        let options = Options {
            max_sandboxes: 3,
            max_sandboxes_per_session: 2,
        };
        assert!(state.reserve("sesn_a", 1, &options).is_ok());
        assert!(state.reserve("sesn_a", 1, &options).is_ok());
        assert!(matches!(
            state.reserve("sesn_a", 1, &options),
            Err(HandsError::Refused { .. })
        ));
        assert!(state.reserve("sesn_b", 1, &options).is_ok());
        assert!(matches!(
            state.reserve("sesn_c", 1, &options),
            Err(HandsError::Refused { .. })
        ));
        assert_eq!(state.unreserve("sesn_b", Ok(7)), Ok(7));
        assert!(state.reserve("sesn_c", 1, &options).is_ok());
    }

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
