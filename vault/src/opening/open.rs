//! `open_session`: the first of an epoch opens; its own repeat gets the same bytes, anyone else nothing.

use claviger_vault_protocol::opening::OpenSession;
use claviger_vault_protocol::{Opening, OpeningId, Refusal};

use super::{GREATEST_STEP, Opener, Phase, Stored, grants, refusal};
use crate::audit::{Decision, Digest, Entry, Kind, Label, Op};
use crate::store::Change;
use crate::vault::{Asker, Pending, State, Unsealed};

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

pub(super) type Opened = (Opening, Option<Pending>);

fn try_open(
    open: &Unsealed,
    state: &mut State,
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
        tools: charter.tools,
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
