//! Openings: a charter opened for one session and epoch, carried by those who cannot read it.
//!
//! `opened -> accepted -> live -> ended`. The same harness instance may repeat its own request until
//! tools has accepted; any other second opening of an epoch is refused and flagged.

mod charter;
mod grants;
mod seat;

use std::collections::HashMap;
use std::sync::Arc;

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::opening::{Accept, EndOpening, OpenSession};
use claviger_vault_protocol::{Charter, CredentialId, GrantId, Opening, OpeningId, Refusal};
use serde::{Deserialize, Serialize};

use crate::audit::{Decision, Digest, Entry, Kind, Label, Op};
use crate::clock::Clock;
use crate::error::VaultError;
use crate::store::{Change, Class};
use crate::vault::{Asker, Registered, Unsealed};

pub(crate) use charter::register;
pub(crate) use grants::seal;
pub(crate) use seat::open_seat;

/// Greatest step from one epoch to the next.
const GREATEST_STEP: u64 = 1_000;
/// How long an opening waits to be accepted.
const ACCEPT_WITHIN_MS: u64 = 60_000;

/// Who opened: the process by the supervisor's word and by its own, both of which outlive a restart
/// of the vault.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Opener {
    connection: String,
    instance: String,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Opened,
    Accepted,
    Live,
    Ended,
}

/// A tools instance as an opening remembers it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Acceptor {
    instance: String,
    key: String,
}

/// One grant as stored.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Grant {
    pub(crate) grant: GrantId,
    pub(crate) credential: CredentialId,
    /// Version of the ciphertext that its carrier has.
    pub(crate) version: u32,
    pub(crate) placeholder: String,
    /// Opened for a permitted tool alone, not by a collection of the charter.
    pub(crate) by_tool_only: bool,
    /// The grant's key, wrapped; none for a credential without a secret.
    key: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Stored {
    id: OpeningId,
    epoch: u64,
    opener: Opener,
    head: (u64, String),
    phase: Phase,
    opened_at_ms: u64,
    acceptor: Option<Acceptor>,
    model_grant: Option<GrantId>,
    grants: Vec<Grant>,
    /// What was answered, kept until it is accepted.
    answer: Option<Opening>,
}

/// A session or seat as stored.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Session {
    charter: Charter,
    is_seat: bool,
    newest_epoch: u64,
    opening: Option<Stored>,
}

/// A session with what is only in memory.
#[derive(Debug)]
pub(crate) struct Live {
    session: Session,
    keys: HashMap<GrantId, Arc<SecretBytes>>,
    /// When it was opened, on the clock of this process.
    opened_monotonic_ms: Option<u64>,
    /// Which registration of the acceptor accepted it; none before the first one of this process.
    registration: Option<u64>,
    /// The store has an older expiry.
    is_touched: bool,
}

/// All sessions and seats.
#[derive(Debug, Default)]
pub(crate) struct Openings(HashMap<String, Live>);

impl Live {
    fn new(session: Session) -> Self {
        Self {
            session,
            keys: HashMap::new(),
            opened_monotonic_ms: None,
            registration: None,
            is_touched: false,
        }
    }

    pub(crate) fn charter(&self) -> &Charter {
        &self.session.charter
    }

    pub(crate) fn is_seat(&self) -> bool {
        self.session.is_seat
    }

    pub(crate) fn newest_epoch(&self) -> u64 {
        self.session.newest_epoch
    }

    pub(crate) fn key(&self, grant: &GrantId) -> Option<&Arc<SecretBytes>> {
        self.keys.get(grant)
    }

    pub(crate) fn grant(&self, grant: &GrantId) -> Option<&Grant> {
        self.session
            .opening
            .as_ref()?
            .grants
            .iter()
            .find(|candidate| &candidate.grant == grant)
    }

    pub(crate) fn is_model_grant(&self, grant: &GrantId) -> bool {
        self.session
            .opening
            .as_ref()
            .is_some_and(|opening| opening.model_grant.as_ref() == Some(grant))
    }

    /// How far the opening has come for one tools instance.
    pub(crate) fn standing(&self, tools: &Registered) -> crate::permit::Standing {
        use crate::permit::Standing;
        match &self.session.opening {
            None => Standing::Ended,
            Some(opening) => match opening.phase {
                Phase::Ended => Standing::Ended,
                Phase::Opened => Standing::NotAccepted,
                Phase::Accepted | Phase::Live if opening.acceptor == Some(tools.into()) => {
                    Standing::Accepted
                }
                Phase::Accepted | Phase::Live => Standing::NotAccepted,
            },
        }
    }

    /// Marks the first use, and renews a seat's lease.
    pub(crate) fn used(&mut self, now_ms: u64) {
        if let Some(opening) = self
            .session
            .opening
            .as_mut()
            .filter(|opening| opening.phase == Phase::Accepted)
        {
            opening.phase = Phase::Live;
            self.is_touched = true;
        }
        if self.session.is_seat {
            seat::renew(&mut self.session.charter, now_ms);
            self.is_touched = true;
        }
    }

    fn is_overdue(&self, clock: &dyn Clock) -> bool {
        let Some(opening) = self
            .session
            .opening
            .as_ref()
            .filter(|opening| opening.phase == Phase::Opened)
        else {
            return false;
        };
        let by_wall = clock.wall_ms().saturating_sub(opening.opened_at_ms);
        let by_process = self
            .opened_monotonic_ms
            .map_or(0, |opened| clock.monotonic_ms().saturating_sub(opened));
        by_wall.max(by_process) >= ACCEPT_WITHIN_MS
    }

    /// Ends the opening: its keys are wiped, its epoch is spent.
    fn end(&mut self) {
        self.keys.clear();
        if let Some(opening) = &mut self.session.opening {
            opening.phase = Phase::Ended;
            opening.answer = None;
            for grant in &mut opening.grants {
                grant.key = None;
            }
        }
    }

    fn store(&self, change: &mut Change) -> Result<(), VaultError> {
        change.put(Class::Session, &self.session.charter.session, &self.session)
    }

    fn entry(&self, op: Op, decision: Decision) -> Entry {
        Entry {
            decision,
            principal: Some(Label::new(self.session.charter.principal.as_str())),
            session: Some(Label::new(&self.session.charter.session)),
            epoch: Some(self.session.newest_epoch),
            ..Entry::new(Kind::Opening, op)
        }
    }
}

impl From<&Registered> for Acceptor {
    fn from(tools: &Registered) -> Self {
        Self {
            instance: tools.instance.clone(),
            key: tools.key.to_string(),
        }
    }
}

impl Openings {
    pub(crate) fn get(&self, session: &str) -> Option<&Live> {
        self.0.get(session)
    }

    pub(crate) fn get_mut(&mut self, session: &str) -> Option<&mut Live> {
        self.0.get_mut(session)
    }

    /// Number of openings that are neither ended nor void.
    pub(crate) fn count_live(&self) -> u64 {
        let is_live = |live: &&Live| {
            live.session
                .opening
                .as_ref()
                .is_some_and(|o| o.phase != Phase::Ended)
        };
        self.0.values().filter(is_live).count() as u64
    }

    /// Takes a stored session in, with the keys of its grants.
    pub(crate) fn restore(
        &mut self,
        session: Session,
        unwrap: impl Fn(&str, &str) -> Result<SecretBytes, VaultError>,
    ) -> Result<(), VaultError> {
        let mut live = Live::new(session);
        if let Some(opening) = live
            .session
            .opening
            .as_ref()
            .filter(|opening| opening.phase != Phase::Ended)
        {
            for grant in &opening.grants {
                if let Some(wrapped) = &grant.key {
                    live.keys.insert(
                        grant.grant.clone(),
                        Arc::new(unwrap(grant.grant.as_str(), wrapped)?),
                    );
                }
            }
        }
        self.0.insert(live.session.charter.session.clone(), live);
        Ok(())
    }

    /// Puts what is ahead of the store, and what has run out, into a change; tells what to record.
    pub(crate) fn tick(&mut self, clock: &dyn Clock, change: &mut Change) -> Vec<Entry> {
        let mut entries = Vec::new();
        let now = clock.wall_ms();
        self.0.retain(|name, live| {
            let is_over = live.session.charter.expires_at_ms <= now;
            let is_open = live
                .session
                .opening
                .as_ref()
                .is_some_and(|opening| opening.phase != Phase::Ended);
            if is_open && (is_over || live.is_overdue(clock)) {
                live.end();
                let reason = if is_over {
                    "charter_expired"
                } else {
                    "opening_void"
                };
                entries.push(Entry {
                    reason_code: Some(Label::new(reason)),
                    ..live.entry(Op::EndOpening, Decision::None)
                });
                live.is_touched = true;
            }
            if is_over
                && (live.session.is_seat || live.session.charter.expires_at_ms + KEEP_MS <= now)
            {
                change.delete(Class::Session, name);
                return false;
            }
            if std::mem::take(&mut live.is_touched) {
                // A row of plain fields always has a JSON form.
                drop(live.store(change));
            }
            true
        });
        entries
    }

    fn end_seats_of(&mut self, is_gone: impl Fn(&str) -> bool, change: &mut Change) {
        self.0.retain(|name, live| {
            let acceptor = live
                .session
                .opening
                .as_ref()
                .and_then(|opening| opening.acceptor.as_ref());
            let ends = live.session.is_seat
                && acceptor.is_some_and(|acceptor| is_gone(&acceptor.instance));
            if ends {
                change.delete(Class::Session, name);
            }
            !ends
        });
    }
}

/// How long an expired charter is kept, so that its session's epochs stay spent.
const KEEP_MS: u64 = 24 * 3_600_000;

/// `open_session`.
pub(crate) async fn open_session(
    open: &Unsealed,
    asker: &Asker,
    query: OpenSession,
) -> Result<Opening, Refusal> {
    if query.epoch == 0 || query.instance.is_empty() || query.instance.len() > 128 {
        return Err(Refusal::new(
            "malformed_request",
            "an opening names an epoch from 1 and a harness instance",
        ));
    }
    let opener = Opener {
        connection: asker.instance.clone(),
        instance: query.instance.clone(),
    };
    let opened = {
        let mut state = open.state();
        try_open(open, &mut state, &opener, &query)
    };
    match opened {
        Ok((answer, None)) => Ok(answer),
        Ok((answer, Some(pending))) => {
            open.finish(pending).await?;
            Ok(answer)
        }
        Err(reason) => {
            let is_flag = matches!(reason, "already_open");
            let entry = Entry {
                session: Some(Label::new(&query.session)),
                epoch: Some(query.epoch),
                harness: Some(Label::new(&query.instance)),
                ..asker.entry(
                    Kind::Opening,
                    if is_flag { Op::Flag } else { Op::OpenSession },
                )
            };
            open.deny(asker, reason, entry).await;
            Err(refusal(reason))
        }
    }
}

type Opened = (Opening, Option<crate::vault::Pending>);

fn try_open(
    open: &Unsealed,
    state: &mut crate::vault::State,
    opener: &Opener,
    query: &OpenSession,
) -> Result<Opened, &'static str> {
    let now = open.clock.wall_ms();
    let live = state
        .openings
        .get_mut(&query.session)
        .filter(|live| !live.is_seat())
        .ok_or("charter_not_found")?;
    if now >= live.session.charter.expires_at_ms {
        return Err("charter_expired");
    }
    let newest = live.session.newest_epoch;
    if query.epoch < newest {
        return Err("epoch_stale");
    }
    if query.epoch == newest {
        let overdue = live.is_overdue(open.clock.as_ref());
        let opening = live.session.opening.as_ref().ok_or("opening_void")?;
        let is_repeat = &opening.opener == opener && opening.head == query.head;
        return match (&opening.answer, opening.phase) {
            (Some(answer), Phase::Opened) if is_repeat && !overdue => Ok((answer.clone(), None)),
            (_, Phase::Opened) if is_repeat => Err("opening_void"),
            (_, Phase::Ended) if is_repeat => Err("opening_void"),
            _ => Err("already_open"),
        };
    }
    let step = query.epoch - newest;
    if step > GREATEST_STEP {
        return Err("epoch_step_too_large");
    }
    let charter = live.session.charter.clone();
    let (selected, model) = grants::select(state, &charter, &open.first_key());
    let made = grants::make(open, state, &charter.session, query.epoch, &selected)?;
    let model_grant = model
        .and_then(|model| {
            made.envelopes
                .iter()
                .find(|envelope| envelope.credential == model)
        })
        .map(|envelope| envelope.grant.clone());
    let answer = Opening {
        opening: OpeningId::random(),
        session: charter.session.clone(),
        epoch: query.epoch,
        principal: charter.principal.clone(),
        tools: charter.tools.clone(),
        model_grant: model_grant.clone(),
        grants: made.envelopes,
        expires_at_ms: charter.expires_at_ms,
    };
    let live = state
        .openings
        .get_mut(&query.session)
        .ok_or("charter_not_found")?;
    live.session.newest_epoch = query.epoch;
    live.session.opening = Some(Stored {
        id: answer.opening.clone(),
        epoch: query.epoch,
        opener: opener.clone(),
        head: query.head.clone(),
        phase: Phase::Opened,
        opened_at_ms: now,
        acceptor: None,
        model_grant,
        grants: made.grants,
        answer: Some(answer.clone()),
    });
    // The former opening's keys go with this assignment: a lower epoch is fenced from here on.
    live.keys = made.keys;
    live.opened_monotonic_ms = Some(open.clock.monotonic_ms());
    live.registration = None;
    let mut change = Change::default();
    live.store(&mut change).map_err(|_| "internal")?;
    let entry = Entry {
        harness: Some(Label::new(&opener.instance)),
        // The session log's head: its outside witness is this record.
        count: Some(query.head.0),
        digest: Digest::parse(&query.head.1),
        reason_code: (step > 1).then(|| Label::new(&format!("{}_epochs_void", step - 1))),
        ..live.entry(Op::OpenSession, Decision::Allow)
    };
    Ok((
        answer,
        Some(open.enqueue(change, entry).map_err(|_| "internal")?),
    ))
}

/// `accept`.
pub(crate) async fn accept(
    open: &Unsealed,
    asker: &Asker,
    tools: &Registered,
    is_current: impl Fn(&str) -> bool,
    query: Accept,
) -> Result<Opening, Refusal> {
    let accepted = {
        let mut state = open.state();
        try_accept(open, &mut state, tools, is_current, &query)
    };
    match accepted {
        Ok((answer, pending)) => {
            if let Some(pending) = pending {
                open.finish(pending).await?;
            }
            Ok(answer)
        }
        Err(reason) => {
            let entry = Entry {
                session: Some(Label::new(&query.session)),
                epoch: Some(query.epoch),
                ..asker.entry(Kind::Opening, Op::Accept)
            };
            open.deny(asker, reason, entry).await;
            Err(refusal(reason))
        }
    }
}

fn try_accept(
    open: &Unsealed,
    state: &mut crate::vault::State,
    tools: &Registered,
    is_current: impl Fn(&str) -> bool,
    query: &Accept,
) -> Result<Opened, &'static str> {
    let live = state
        .openings
        .get(&query.session)
        .filter(|live| !live.is_seat())
        .ok_or("opening_not_found")?;
    if query.epoch < live.session.newest_epoch {
        return Err("epoch_stale");
    }
    let opening = live
        .session
        .opening
        .as_ref()
        .filter(|opening| opening.id == query.opening && opening.epoch == query.epoch)
        .ok_or("opening_not_found")?;
    if open.clock.wall_ms() >= live.session.charter.expires_at_ms {
        return Err("charter_expired");
    }
    match opening.phase {
        Phase::Ended => return Err("opening_void"),
        Phase::Opened if live.is_overdue(open.clock.as_ref()) => return Err("opening_void"),
        Phase::Opened => {}
        Phase::Accepted | Phase::Live => {
            let by_same = opening.acceptor == Some(tools.into());
            // The same instance may ask once more only over a new connection, where the first
            // answer may have been lost; another one only after the first is gone.
            let is_again = by_same && live.registration != Some(tools.registration);
            let is_next = !by_same
                && !opening
                    .acceptor
                    .as_ref()
                    .is_some_and(|first| is_current(&first.instance));
            if !(is_again || is_next) {
                return Err("already_accepted");
            }
        }
    }
    let envelopes = grants::renew(open, state, &query.session)?;
    let live = state
        .openings
        .get_mut(&query.session)
        .ok_or("opening_not_found")?;
    live.registration = Some(tools.registration);
    let charter = live.session.charter.clone();
    let opening = live.session.opening.as_mut().ok_or("opening_not_found")?;
    for grant in &mut opening.grants {
        if let Some(envelope) = envelopes
            .iter()
            .find(|envelope| envelope.grant == grant.grant)
        {
            grant.version = envelope.version;
        }
    }
    if opening.phase == Phase::Opened {
        opening.phase = Phase::Accepted;
    }
    opening.acceptor = Some(tools.into());
    opening.answer = None;
    let answer = Opening {
        opening: opening.id.clone(),
        session: charter.session,
        epoch: opening.epoch,
        principal: charter.principal,
        tools: charter.tools,
        model_grant: opening.model_grant.clone(),
        grants: envelopes,
        expires_at_ms: charter.expires_at_ms,
    };
    let mut change = Change::default();
    live.store(&mut change).map_err(|_| "internal")?;
    let entry = Entry {
        count: Some(answer.grants.len() as u64),
        ..live.entry(Op::Accept, Decision::Allow)
    };
    Ok((
        answer,
        Some(open.enqueue(change, entry).map_err(|_| "internal")?),
    ))
}

/// `end_opening` by whoever holds the opening: its harness, or the tools instance of a seat.
pub(crate) async fn end_opening(
    open: &Unsealed,
    asker: &Asker,
    tools: Option<&Registered>,
    query: EndOpening,
) -> Result<(), Refusal> {
    let ended = {
        let mut state = open.state();
        try_end(open, &mut state, asker, tools, &query)
    };
    match ended {
        Ok(Some(pending)) => Ok(open.finish(pending).await?),
        Ok(None) => Ok(()),
        Err(reason) => {
            let entry = Entry {
                session: Some(Label::new(&query.session)),
                epoch: Some(query.epoch),
                ..asker.entry(Kind::Opening, Op::EndOpening)
            };
            open.deny(asker, reason, entry).await;
            Err(refusal(reason))
        }
    }
}

fn try_end(
    open: &Unsealed,
    state: &mut crate::vault::State,
    asker: &Asker,
    tools: Option<&Registered>,
    query: &EndOpening,
) -> Result<Option<crate::vault::Pending>, &'static str> {
    let live = state
        .openings
        .get_mut(&query.session)
        .ok_or("opening_not_found")?;
    if query.epoch < live.session.newest_epoch {
        return Err("epoch_stale");
    }
    let opening = live
        .session
        .opening
        .as_ref()
        .filter(|o| o.epoch == query.epoch)
        .ok_or("opening_not_found")?;
    let is_holder = match tools {
        Some(tools) => live.session.is_seat && opening.acceptor == Some(tools.into()),
        None => !live.session.is_seat && opening.opener.connection == asker.instance,
    };
    if !is_holder {
        return Err("opening_not_found");
    }
    if opening.phase == Phase::Ended {
        return Ok(None);
    }
    live.end();
    let entry = Entry {
        count: query.head.as_ref().map(|head| head.0),
        digest: query.head.as_ref().and_then(|head| Digest::parse(&head.1)),
        ..live.entry(Op::EndOpening, Decision::Allow)
    };
    let mut change = Change::default();
    if live.session.is_seat {
        change.delete(Class::Session, &query.session);
        state.openings.0.remove(&query.session);
    } else {
        live.store(&mut change).map_err(|_| "internal")?;
    }
    Ok(Some(open.enqueue(change, entry).map_err(|_| "internal")?))
}

/// Ends the seats of tools instances that are gone, when another one registers.
pub(crate) async fn end_seats(
    open: &Unsealed,
    is_current: impl Fn(&str) -> bool,
) -> Result<(), Refusal> {
    let ticket = {
        let mut state = open.state();
        let mut change = Change::default();
        state
            .openings
            .end_seats_of(|instance| !is_current(instance), &mut change);
        open.store.enqueue(change)
    };
    Ok(open.store.committed(ticket).await?)
}

fn refusal(reason: &'static str) -> Refusal {
    let message = match reason {
        "already_accepted" => "another accept took this opening",
        "already_open" => "this epoch was opened before; the attempt is recorded",
        "charter_expired" => "the session's charter has run out",
        "charter_not_found" => "this session has no charter",
        "epoch_stale" => "a newer epoch of this session exists",
        "epoch_step_too_large" => "an epoch follows the former one by at most 1,000",
        "opening_not_found" => "there is no such opening",
        "opening_void" => "the opening was not accepted in time or has ended; its epoch is spent",
        _ => "the opening could not be made",
    };
    let refusal = Refusal::new(reason, message);
    match reason {
        "opening_void" | "epoch_stale" => {
            refusal.with_fix("wake the session again with a new lease")
        }
        _ => refusal,
    }
}
