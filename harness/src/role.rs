//! The harness role: watches for sessions with work and runs their turns.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use claviger_sandbox::client::HandsClient;
use claviger_session::{SessionClient, SessionError, SessionId, Tailed};
use claviger_vault_protocol::client::{HarnessVault, ToolsLink};
use claviger_vault_protocol::opening::EndOpening;
use claviger_vault_protocol::present::At;
use claviger_vault_protocol::wire::Link;
use futures_util::{Stream, StreamExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::HarnessError;
use crate::log::{Log, session_error};
use crate::model::{ModelClient, Patience};
use crate::wake::{Clients, Held, close_failed, wake};

/// How long giving a session back may take.
const RELEASE: Duration = Duration::from_secs(2);
/// How long a session rests that lost its opening, before it is woken again.
const REOPEN: Duration = Duration::from_millis(500);

/// How one harness behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// This instance's name, `hrn_..`, fresh at each start; the owner of its leases.
    pub instance: String,
    /// Most sessions with a running turn at one time.
    pub max_sessions: usize,
    /// How long a lease lasts without renewal, in milliseconds.
    pub lease_ttl_ms: u64,
}

/// The links of a harness; each receiver gets a fresh stream whenever the peer restarts.
#[derive(Debug)]
pub struct Links {
    /// To the session role.
    pub session: mpsc::Receiver<UnixStream>,
    /// To the hands.
    pub hands: mpsc::Receiver<UnixStream>,
    /// To the vault, with a harness's verbs.
    pub vault: mpsc::Receiver<UnixStream>,
    /// To mcp-tools, in the verbs of `present`.
    pub tools: mpsc::Receiver<UnixStream>,
    /// To mcp-tools' model route, HTTP/2.
    pub model: mpsc::Receiver<UnixStream>,
}

/// How long the role waits for others; tests wait less.
#[derive(Clone, Copy, Debug)]
struct Tuning {
    patience: Patience,
    backoff: Duration,
    /// Between two looks for sandboxes of ended sessions.
    sweep: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            patience: Patience::default(),
            backoff: Duration::from_millis(500),
            sweep: Duration::from_secs(5),
        }
    }
}

/// Runs turns of the sessions that have work until `stop`; leases are released on the way out.
///
/// # Errors
/// [`HarnessError`] where the role cannot go on at all; a failing session does not end it.
pub async fn run(
    options: Options,
    links: Links,
    stop: CancellationToken,
) -> Result<(), HarnessError> {
    run_tuned(options, Tuning::default(), links, stop).await
}

async fn run_tuned(
    options: Options,
    tuning: Tuning,
    links: Links,
    stop: CancellationToken,
) -> Result<(), HarnessError> {
    tracing::info!(instance = %options.instance, max_sessions = options.max_sessions, "harness starts");
    let (session, session_driver) = SessionClient::new(links.session);
    let (hands, hands_driver) = HandsClient::new(links.hands);
    let (vault, vault_driver) = Link::new("vault", links.vault, None);
    let (tools_links, generations, tap) = tapped(links.tools);
    let (tools, tools_driver) = Link::new("tools", tools_links, None);
    let (model, model_driver) = ModelClient::new(links.model, tuning.patience);
    // Dropping the set ends the drivers.
    let mut drivers = JoinSet::new();
    drivers.spawn(session_driver);
    drivers.spawn(hands_driver);
    drivers.spawn(vault_driver);
    drivers.spawn(tap);
    drivers.spawn(tools_driver);
    drivers.spawn(model_driver);
    drivers.spawn(crate::sweep::run(
        session.clone(),
        hands.clone(),
        tuning.sweep,
        stop.clone(),
    ));
    let clients = Clients {
        session,
        hands,
        vault: HarnessVault(vault),
        tools: ToolsLink(tools),
        model,
        generations,
        backoff: tuning.backoff,
    };
    let work = Box::pin(clients.session.watch(&options.instance));
    serve(&options, &clients, work, &stop).await;
    tracing::info!(instance = %options.instance, "harness stops");
    Ok(())
}

/// Passes links on and counts them.
fn tapped(
    mut links: mpsc::Receiver<UnixStream>,
) -> (
    mpsc::Receiver<UnixStream>,
    watch::Receiver<u64>,
    impl Future<Output = ()> + Send,
) {
    let (forward, forwarded) = mpsc::channel(1);
    let (count, generations) = watch::channel(0);
    let tap = async move {
        while let Some(link) = links.recv().await {
            if forward.send(link).await.is_err() {
                return;
            }
            count.send_modify(|count| *count += 1);
        }
    };
    (forwarded, generations, tap)
}

async fn serve(
    options: &Options,
    clients: &Clients,
    mut work: impl Stream<Item = SessionId> + Unpin,
    stop: &CancellationToken,
) {
    let mut turns: JoinSet<()> = JoinSet::new();
    let mut busy: HashMap<task::Id, SessionId> = HashMap::new();
    // Named again while a turn was still giving its lease back.
    let mut again: HashSet<SessionId> = HashSet::new();
    let start =
        |turns: &mut JoinSet<()>, busy: &mut HashMap<task::Id, SessionId>, session: SessionId| {
            let (clients, options, stop, name) = (
                clients.clone(),
                options.clone(),
                stop.clone(),
                session.clone(),
            );
            let task = turns.spawn(async move {
                if let Err(error) = attend(&clients, &options, &session, &stop).await {
                    tracing::debug!(%session, %error, "turn left");
                }
            });
            busy.insert(task.id(), name);
        };
    let max_sessions = options.max_sessions.max(1);
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => {}
            named = work.next(), if busy.len() < max_sessions => match named {
                Some(session) if busy.values().any(|held| *held == session) => drop(again.insert(session)),
                Some(session) => start(&mut turns, &mut busy, session),
                None => break,
            },
            Some(left) = turns.join_next_with_id() => {
                let task = match left {
                    Ok((task, ())) => task,
                    Err(error) => {
                        tracing::error!(%error, "a turn ended abruptly");
                        error.id()
                    }
                };
                if let Some(session) = busy.remove(&task)
                    && again.remove(&session)
                {
                    start(&mut turns, &mut busy, session);
                }
            }
        }
    }
    while turns.join_next().await.is_some() {}
}

/// Takes a session's lease and works until there is nothing to do, the lease is lost, or `stop`.
async fn attend(
    clients: &Clients,
    options: &Options,
    session: &SessionId,
    stop: &CancellationToken,
) -> Result<(), HarnessError> {
    let taking = async {
        tokio::join!(
            clients
                .session
                .lease(session, &options.instance, options.lease_ttl_ms),
            clients.session.head(session)
        )
    };
    let (lease, head) = tokio::select! {
        taken = taking => taken,
        () = stop.cancelled() => return Err(HarnessError::Stopped),
    };
    let lease = match lease {
        // Another harness was faster.
        Err(SessionError::Held { .. }) => return Ok(()),
        other => other?,
    };
    let (seq, hash, _) = head?;
    let held = Held {
        session: session.clone(),
        epoch: lease.epoch,
        head: lease.head,
        witness: (seq, hash),
    };
    tracing::info!(%session, epoch = held.epoch, head = held.head, "session woken");
    // Every arm but the first means: drop what runs, at once and everything.
    let result = tokio::select! {
        biased;
        () = stop.cancelled() => Err(HarnessError::Stopped),
        () = renewed_until_lost(clients, options, &held) => Err(HarnessError::Fenced),
        result = Box::pin(work_on(clients, options, &held)) => result,
    };
    match result {
        Ok(()) | Err(HarnessError::Stopped) => give_back(clients, options, &held).await,
        Err(HarnessError::OpeningLost) => {
            sleep(REOPEN).await;
            give_back(clients, options, &held).await;
        }
        Err(HarnessError::Fenced) => tracing::info!(%session, epoch = held.epoch, "fenced"),
        // The lease runs out by itself: that is the pause before the next attempt.
        Err(ref error) => {
            tracing::warn!(%session, epoch = held.epoch, %error, "session left to its lease");
        }
    }
    result
}

async fn work_on(clients: &Clients, options: &Options, held: &Held) -> Result<(), HarnessError> {
    let (interrupt, interrupts) = watch::channel(0);
    let watching = watch_interrupts(clients, held, interrupt);
    let working = async {
        let Some(mut turn) = wake(clients, &options.instance, held, interrupts).await? else {
            return Ok(());
        };
        let presence = std::sync::Arc::clone(&turn.performer().presence);
        let result = tokio::select! {
            result = turn.run() => result,
            () = async {
                presence.keep(clients.generations.clone()).await;
                std::future::pending::<()>().await;
            } => Ok(()),
        };
        match result {
            // No other harness could do better with this log: say so instead of trying for ever.
            Err(
                error @ (HarnessError::UnreadableLog { .. }
                | HarnessError::Session(SessionError::Invalid { .. })),
            ) => {
                tracing::error!(session = %held.session, %error, "the turn cannot go on");
                give_up(clients, held, turn.head(), &error).await
            }
            other => other,
        }
    };
    tokio::select! {
        result = working => result,
        () = watching => Err(SessionError::Disconnected.into()),
    }
}

async fn give_up(
    clients: &Clients,
    held: &Held,
    head: u64,
    error: &HarnessError,
) -> Result<(), HarnessError> {
    let mut log = Log::read(&clients.session, &held.session, held.epoch, head).await?;
    log.record(vec![session_error(
        "unknown_error",
        &error.to_string(),
        "terminal",
    )])
    .await?;
    close_failed(&mut log).await
}

/// Shows the newest `user.interrupt` as soon as it is in the log.
async fn watch_interrupts(clients: &Clients, held: &Held, newest: watch::Sender<u64>) {
    let mut tail = Box::pin(clients.session.tail(&held.session, held.head));
    while let Some(tailed) = tail.next().await {
        if let Tailed::Event(event) = tailed
            && event.kind == "user.interrupt"
        {
            newest.send_replace(event.seq);
        }
    }
}

/// Renews the lease three times in its life; ends when it belongs to somebody else.
async fn renewed_until_lost(clients: &Clients, options: &Options, held: &Held) {
    let period = Duration::from_millis((options.lease_ttl_ms / 3).max(10));
    loop {
        sleep(period).await;
        match clients
            .session
            .renew(
                &held.session,
                &options.instance,
                held.epoch,
                options.lease_ttl_ms,
            )
            .await
        {
            Err(SessionError::Fenced { .. } | SessionError::NotFound) => return,
            // Time alone fences nobody: as long as no other takes the lease, it is ours.
            Err(error) => tracing::warn!(session = %held.session, %error, "lease not renewed"),
            Ok(()) => {}
        }
    }
}

/// Ends the opening and releases the lease, so that the next harness need not wait.
async fn give_back(clients: &Clients, options: &Options, held: &Held) {
    let name = held.session.as_str().to_owned();
    let at = At {
        session: name.clone(),
        epoch: held.epoch,
    };
    let closing = async {
        let head = clients
            .session
            .head(&held.session)
            .await
            .ok()
            .map(|(seq, hash, _)| (seq, hash));
        let end = EndOpening {
            session: name,
            epoch: held.epoch,
            head,
        };
        let (withdrawn, ended) =
            tokio::join!(clients.tools.withdraw(&at), clients.vault.end_opening(&end));
        for error in [withdrawn.err(), ended.err()].into_iter().flatten() {
            tracing::debug!(session = %held.session, code = error.code(), "opening not ended");
        }
    };
    timeout(RELEASE, closing).await.ok();
    let release = clients
        .session
        .release(&held.session, &options.instance, held.epoch);
    if !matches!(timeout(RELEASE, release).await, Ok(Ok(()))) {
        tracing::debug!(session = %held.session, "lease not released");
    }
}

#[cfg(test)]
mod tests;
