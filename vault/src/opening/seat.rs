//! Seats: the opening of a direct MCP client, for its authenticated principal, leased and renewed by use.

use claviger_vault_protocol::opening::OpenSeat;
use claviger_vault_protocol::{Charter, Opening, OpeningId, Refusal};

use super::{Live, Opener, Phase, Session, Stored, grants};
use crate::audit::{Decision, Entry, Kind, Label, Op};
use crate::permit;
use crate::store::Change;
use crate::vault::{Asker, Registered, Unsealed};

/// How long a seat lives without use.
const LEASE_MS: u64 = 3_600_000;
/// Most seats at once.
const MOST: usize = 1024;

/// Puts a seat's end off.
pub(super) fn renew(charter: &mut Charter, now_ms: u64) {
    charter.expires_at_ms = now_ms.saturating_add(LEASE_MS);
}

/// `open_seat`.
pub(crate) async fn open_seat(
    open: &Unsealed,
    asker: &Asker,
    tools: &Registered,
    query: OpenSeat,
) -> Result<Opening, Refusal> {
    let opened = {
        let state = open.state();
        let is_operator = query.principal.as_str().starts_with("operator:uid:");
        if !is_operator && !state.api_keys.is_holder(&query.principal) {
            Err("principal_not_permitted")
        } else if state
            .openings
            .0
            .values()
            .filter(|live| live.is_seat())
            .count()
            >= MOST
        {
            Err("too_many_seats")
        } else {
            drop(state);
            make(open, tools, &query)
        }
    };
    match opened {
        Ok((answer, pending)) => {
            open.finish(pending).await?;
            Ok(answer)
        }
        Err(reason) => {
            let entry = Entry {
                principal: Some(Label::new(query.principal.as_str())),
                ..asker.entry(Kind::Opening, Op::OpenSeat)
            };
            open.deny(asker, reason, entry).await;
            Err(Refusal::new(reason, "this principal gets no seat"))
        }
    }
}

fn make(
    open: &Unsealed,
    tools: &Registered,
    query: &OpenSeat,
) -> Result<(Opening, crate::vault::Pending), &'static str> {
    let mut state = open.state();
    let named: Vec<String> = state
        .permits
        .iter()
        .filter(|permit| permit::names(permit, &query.principal))
        .map(|permit| permit.tool.clone())
        .collect();
    let mut charter = Charter {
        session: format!("seat_{}", uuid::Uuid::new_v4().simple()),
        principal: query.principal.clone(),
        vaults: Vec::new(),
        agent: String::new(),
        model_credential: String::new(),
        tools: named,
        expires_at_ms: 0,
    };
    renew(&mut charter, open.clock.wall_ms());
    let (selected, _) = grants::select(&state, &charter, &open.first_key());
    let made = grants::make(open, &state, &charter.session, 1, &selected)?;
    let answer = Opening {
        opening: OpeningId::random(),
        session: charter.session.clone(),
        epoch: 1,
        principal: charter.principal.clone(),
        tools: charter.tools.clone(),
        model_grant: None,
        grants: made.envelopes,
        expires_at_ms: charter.expires_at_ms,
    };
    let mut live = Live::new(Session {
        is_seat: true,
        newest_epoch: 1,
        opening: Some(Stored {
            id: answer.opening.clone(),
            epoch: 1,
            opener: Opener {
                connection: String::new(),
                instance: tools.instance.clone(),
            },
            head: (0, String::new()),
            phase: Phase::Accepted,
            opened_at_ms: open.clock.wall_ms(),
            acceptor: Some(tools.into()),
            model_grant: None,
            tools: charter.tools.clone(),
            grants: made.grants,
            answer: None,
        }),
        charter,
    });
    live.keys = made.keys;
    live.registration = Some(tools.registration);
    let mut change = Change::default();
    live.store(&mut change).map_err(|_| "internal")?;
    let entry = Entry {
        count: Some(answer.grants.len() as u64),
        // What the client calls itself is recorded and decides nothing.
        tool: Some(Label::new(&query.client)),
        ..live.entry(Op::OpenSeat, Decision::Allow)
    };
    state.openings.0.insert(answer.session.clone(), live);
    Ok((answer, open.enqueue(change, entry).map_err(|_| "internal")?))
}
