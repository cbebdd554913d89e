//! `end_opening`, and the end of seats whose tools instance is gone.

use claviger_vault_protocol::Refusal;
use claviger_vault_protocol::opening::EndOpening;

use super::{Phase, refusal};
use crate::audit::{Decision, Digest, Entry, Kind, Label, Op};
use crate::store::{Change, Class};
use crate::vault::{Asker, Pending, Registered, State, Unsealed};

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
    state: &mut State,
    asker: &Asker,
    tools: Option<&Registered>,
    query: &EndOpening,
) -> Result<Option<Pending>, &'static str> {
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
