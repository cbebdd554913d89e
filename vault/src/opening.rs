//! Openings: a charter opened for one session and epoch, carried by those who cannot read it.
//!
//! `opened -> accepted -> live -> ended`. The same harness instance may repeat its own request until
//! tools has accepted; any other second opening of an epoch is refused and flagged.

mod accept;
mod charter;
mod end;
mod grants;
mod open;
mod seat;

use std::collections::HashMap;
use std::sync::Arc;

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::{Charter, CredentialId, GrantId, Opening, OpeningId, Refusal};
use serde::{Deserialize, Serialize};

use crate::audit::{Decision, Entry, Kind, Label, Op};
use crate::clock::Clock;
use crate::error::VaultError;
use crate::store::{Change, Class};
use crate::vault::Registered;

pub(crate) use accept::accept;
pub(crate) use charter::register;
pub(crate) use end::{end_opening, end_seats};
pub(crate) use grants::seal;
pub(crate) use open::open_session;
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
    /// Tools of the charter when it was opened: a charter that grew since reaches the next opening.
    tools: Vec<String>,
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

    /// Tools that the opening was made for.
    pub(crate) fn opened_tools(&self) -> &[String] {
        self.session
            .opening
            .as_ref()
            .map_or(&[], |opening| opening.tools.as_slice())
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
