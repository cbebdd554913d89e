//! `accept`: tools takes an opening, once per instance.

use claviger_vault_protocol::opening::Accept;
use claviger_vault_protocol::{Opening, Refusal};

use super::open::Opened;
use super::{Phase, grants, refusal};
use crate::audit::{Decision, Entry, Kind, Label, Op};
use crate::store::Change;
use crate::vault::{Asker, Registered, State, Unsealed};

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
    state: &mut State,
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
        tools: opening.tools.clone(),
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
