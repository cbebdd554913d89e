//! Everything that tools knows about live sessions, seats and named sandboxes.
//!
//! An entry here is the vault's own word (its answer to `accept` or `open_seat`), never the
//! presenter's. It carries ciphertext only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use claviger_vault_protocol::client::ToolsVault;
use claviger_vault_protocol::opening::{Accept, EndOpening, OpenSeat};
use claviger_vault_protocol::present::At;
use claviger_vault_protocol::{Envelope, GrantId, Opening, OpeningId, Principal, Refusal};
use tracing::{debug, info};

use crate::error::from_vault;

/// How long before its end a seat is opened anew.
const SEAT_MARGIN_MS: u64 = 5_000;
/// A seat younger than this is not opened anew for a credential that it lacks.
const SEAT_MIN_AGE_MS: u128 = 1_000;

/// One live opening: a session at an epoch, or a seat.
#[derive(Debug)]
pub(crate) struct Live {
    /// The session, or `seat_..`.
    pub(crate) session: String,
    /// Its epoch.
    pub(crate) epoch: u64,
    /// For whom.
    pub(crate) principal: Principal,
    /// The opening's identifier: whoever knows it was given it by the vault.
    pub(crate) id: OpeningId,
    opening: Opening,
    since: Instant,
}

impl Live {
    fn new(opening: Opening) -> Self {
        Self {
            session: opening.session.clone(),
            epoch: opening.epoch,
            principal: opening.principal.clone(),
            id: opening.opening.clone(),
            opening,
            since: Instant::now(),
        }
    }

    /// The opening as the vault gave it.
    pub(crate) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Whether this is a direct client's seat.
    pub(crate) fn is_seat(&self) -> bool {
        self.session.starts_with("seat_")
    }

    /// The grant of the model's credential.
    pub(crate) fn model_envelope(&self) -> Option<&Envelope> {
        let grant = self.opening.model_grant.as_ref()?;
        self.envelope(grant)
    }

    /// A grant by its identifier.
    pub(crate) fn envelope(&self, grant: &GrantId) -> Option<&Envelope> {
        self.opening
            .grants
            .iter()
            .find(|envelope| envelope.grant == *grant)
    }

    /// Every grant that a tool or the sandbox's gateway may name; the model's is not among them.
    pub(crate) fn tool_envelopes(&self) -> impl Iterator<Item = &Envelope> {
        self.opening
            .grants
            .iter()
            .filter(|envelope| Some(&envelope.grant) != self.opening.model_grant.as_ref())
    }

    /// Whether the charter lets tools of this definition be called.
    pub(crate) fn has_tool(&self, definition: &str) -> bool {
        self.opening
            .tools
            .iter()
            .any(|tool| tool == "*" || tool == definition)
    }

    fn is_expired(&self, margin_ms: u64) -> bool {
        now_ms().saturating_add(margin_ms) >= self.opening.expires_at_ms
    }
}

/// A sandbox as the hands attached it: the identity behind its two listeners.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// The sandbox.
    pub(crate) sandbox: String,
    /// The session that it was attached for.
    pub(crate) session: String,
    /// The newest epoch that it was attached with.
    epoch: AtomicU64,
}

impl Attachment {
    /// A sandbox attached for a session at an epoch.
    pub(crate) fn new(sandbox: &str, session: &str, epoch: u64) -> Self {
        Self {
            sandbox: sandbox.to_owned(),
            session: session.to_owned(),
            epoch: AtomicU64::new(epoch),
        }
    }

    /// The hands attached the sandbox with a newer epoch; an older one changes nothing.
    pub(crate) fn raise(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Named {
    session: String,
    epoch: u64,
    tools: Vec<String>,
}

#[derive(Debug, Default)]
struct Table {
    sessions: HashMap<String, Arc<Live>>,
    sandboxes: HashMap<String, Named>,
}

type SeatCell = Arc<tokio::sync::Mutex<Option<Arc<Live>>>>;

/// The live openings of this tools instance.
pub(crate) struct Openings {
    vault: ToolsVault,
    table: Mutex<Table>,
    seats: Mutex<HashMap<Principal, SeatCell>>,
}

impl Openings {
    /// Makes an empty table.
    pub(crate) fn new(vault: ToolsVault) -> Self {
        Self {
            vault,
            table: Mutex::default(),
            seats: Mutex::default(),
        }
    }

    /// Accepts at the vault what a harness presents, and keeps the vault's answer.
    ///
    /// The same opening again is answered without asking: its identifier proves that the vault gave
    /// it to the presenter.
    pub(crate) async fn present(&self, opening: Opening) -> Result<At, Refusal> {
        let at = At {
            session: opening.session.clone(),
            epoch: opening.epoch,
        };
        match self.newest(&opening.session) {
            Some(live) if live.epoch > opening.epoch => {
                return Err(stale(&opening.session, live.epoch));
            }
            Some(live) if live.epoch == opening.epoch && live.id == opening.opening => {
                return Ok(at);
            }
            _ => {}
        }
        let accepted = self
            .vault
            .accept(&Accept {
                opening: opening.opening,
                session: opening.session,
                epoch: opening.epoch,
            })
            .await
            .map_err(from_vault)?;
        if accepted.session != at.session || accepted.epoch != at.epoch {
            return Err(Refusal::new(
                "peer_malformed",
                "the vault accepted another opening than the one presented",
            ));
        }
        info!(session = %at.session, epoch = at.epoch, grants = accepted.grants.len(), "opening accepted");
        let mut table = self.table();
        if let Some(live) = table.sessions.get(&at.session)
            && live.epoch > at.epoch
        {
            return Err(stale(&at.session, live.epoch));
        }
        // Sandboxes named under an older epoch must be named again by the new harness.
        table
            .sandboxes
            .retain(|_, named| named.session != at.session || named.epoch == at.epoch);
        table
            .sessions
            .insert(at.session.clone(), Arc::new(Live::new(accepted)));
        Ok(at)
    }

    /// The opening of a session at exactly this epoch, if it is the newest and not over.
    pub(crate) fn live(&self, session: &str, epoch: u64) -> Option<Arc<Live>> {
        self.newest(session).filter(|live| live.epoch == epoch)
    }

    /// The newest opening of a session that is not over.
    pub(crate) fn newest(&self, session: &str) -> Option<Arc<Live>> {
        self.table()
            .sessions
            .get(session)
            .filter(|live| !live.is_expired(0))
            .cloned()
    }

    /// As [`Self::live`], with the refusal that the caller gets otherwise.
    pub(crate) fn require(&self, session: &str, epoch: u64) -> Result<Arc<Live>, Refusal> {
        match self.newest(session) {
            Some(live) if live.epoch == epoch => Ok(live),
            Some(live) if live.epoch > epoch => Err(stale(session, live.epoch)),
            _ => Err(not_accepted(session, epoch)),
        }
    }

    /// Forgets a session at an epoch; a newer epoch is left alone.
    pub(crate) fn withdraw(&self, session: &str, epoch: u64) {
        let mut table = self.table();
        if table
            .sessions
            .get(session)
            .is_some_and(|live| live.epoch == epoch)
        {
            table.sessions.remove(session);
            table.sandboxes.retain(|_, named| named.session != session);
            debug!(session, epoch, "opening withdrawn");
        }
    }

    /// From now on the sandbox's listeners answer for this session; its `mcp` listener offers `tools`.
    pub(crate) fn name_sandbox(
        &self,
        session: &str,
        epoch: u64,
        sandbox: String,
        tools: Vec<String>,
    ) -> Result<(), Refusal> {
        let mut table = self.table();
        match table.sessions.get(session) {
            Some(live) if live.epoch == epoch && !live.is_expired(0) => {}
            Some(live) if live.epoch > epoch => return Err(stale(session, live.epoch)),
            _ => return Err(not_accepted(session, epoch)),
        }
        if table
            .sandboxes
            .get(&sandbox)
            .is_some_and(|named| named.session != session)
        {
            return Err(Refusal::new(
                "sandbox_of_another_session",
                "the sandbox belongs to another session",
            ));
        }
        info!(session, epoch, sandbox, "sandbox named");
        table.sandboxes.insert(
            sandbox,
            Named {
                session: session.to_owned(),
                epoch,
                tools,
            },
        );
        Ok(())
    }

    /// The live opening that an attached sandbox speaks for, and the tools its `mcp` listener offers.
    ///
    /// # Security
    /// Named by a harness of an epoch that the hands have left, or for another session than theirs, is not named.
    pub(crate) fn by_sandbox(&self, attached: &Attachment) -> Option<(Arc<Live>, Vec<String>)> {
        let table = self.table();
        let named = table.sandboxes.get(&attached.sandbox)?;
        let live = table.sessions.get(&named.session)?;
        let is_theirs =
            live.session == attached.session && live.epoch >= attached.epoch.load(Ordering::SeqCst);
        (is_theirs && live.epoch == named.epoch && !live.is_expired(0))
            .then(|| (Arc::clone(live), named.tools.clone()))
    }

    /// Forgets a sandbox that is gone.
    pub(crate) fn forget_sandbox(&self, sandbox: &str) {
        self.table().sandboxes.remove(sandbox);
    }

    /// The seat of an authenticated principal, opened on first use and again when it is over.
    pub(crate) async fn seat(
        &self,
        principal: &Principal,
        client: &str,
    ) -> Result<Arc<Live>, Refusal> {
        let cell = self.seat_cell(principal);
        // One opening at a time for each principal; others wait for it and use the same seat.
        let mut seat = cell.lock().await;
        if let Some(live) = seat.as_ref()
            && !live.is_expired(SEAT_MARGIN_MS)
        {
            return Ok(Arc::clone(live));
        }
        let query = OpenSeat {
            principal: principal.clone(),
            client: client.to_owned(),
        };
        let opening = self.vault.open_seat(&query).await.map_err(from_vault)?;
        if opening.principal != *principal || !opening.session.starts_with("seat_") {
            return Err(Refusal::new(
                "peer_malformed",
                "the vault opened another seat than the one asked for",
            ));
        }
        let live = Arc::new(Live::new(opening));
        info!(seat = %live.session, principal = %principal, "seat opened");
        *seat = Some(Arc::clone(&live));
        Ok(live)
    }

    /// Ends a seat that the vault no longer honours or that lacks a grant, so that the next call opens
    /// another; false where the seat is too young for that to help.
    pub(crate) async fn renew_seat(&self, live: &Live, lacks_grant: bool) -> bool {
        if lacks_grant && live.since.elapsed().as_millis() < SEAT_MIN_AGE_MS {
            return false;
        }
        let cell = self.seat_cell(&live.principal);
        let mut seat = cell.lock().await;
        if seat.as_ref().is_some_and(|current| current.id == live.id) {
            *seat = None;
            drop(seat);
            let end = EndOpening {
                session: live.session.clone(),
                epoch: live.epoch,
                head: None,
            };
            if let Err(error) = self.vault.end_opening(&end).await {
                debug!(seat = %live.session, code = error.code(), "seat was not ended");
            }
        }
        true
    }

    fn seat_cell(&self, principal: &Principal) -> SeatCell {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(seats.entry(principal.clone()).or_default())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is consistent after every statement; a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stale(session: &str, newest: u64) -> Refusal {
    Refusal::new(
        "epoch_stale",
        format!("session {session} is at epoch {newest}"),
    )
}

fn not_accepted(session: &str, epoch: u64) -> Refusal {
    Refusal::new(
        "opening_not_accepted",
        format!("session {session} was not presented at epoch {epoch}"),
    )
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
