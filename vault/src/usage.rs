//! Uses: decide, make the intent durable, and only then release a grant's key.

mod requests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::sealed::RELEASE_PURPOSE;
use claviger_vault_protocol::usage::{AuthorizeUse, Authorized, RecordOutcome, Report, UseStatus};
use claviger_vault_protocol::{CredentialId, Destination, Principal, Refusal, UseId};
use sha2::{Digest as _, Sha256};

use crate::audit::{self, Decision, Digest, Entry, Kind, Label, Op, Outcome, Record};
use crate::credential::{is_method, is_name};
use crate::opening;
use crate::permit::{self, Facts, GrantFacts};
use crate::vault::{Asker, Registered, State, Unsealed};
use requests::Requests;

/// Outcomes that are remembered so that a repeated one is no error.
const SETTLED: usize = 4096;

/// Uses that are under way, and answers to recent requests.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    under_way: HashMap<UseId, UnderWay>,
    settled: VecDeque<UseId>,
    requests: Requests,
}

/// A use whose intent is durable and whose outcome is not known yet.
#[derive(Debug)]
struct UnderWay {
    intent: u64,
    /// The tools instance that it was released to; none for one from before this start.
    instance: Option<String>,
    entry: Entry,
}

/// The handle of a use: the number of its intent, which joins them also after a restart.
fn use_id(seq: u64) -> UseId {
    UseId::from(format!("use_{seq:016x}"))
}

impl Uses {
    /// Takes in an intent from before this start, whose outcome nobody knows.
    pub(crate) fn restore(&mut self, intent: &Record) {
        let under_way = UnderWay {
            intent: intent.seq,
            instance: None,
            entry: intent.entry.clone(),
        };
        self.under_way.insert(use_id(intent.seq), under_way);
    }

    fn settle(&mut self, id: &UseId) {
        self.under_way.remove(id);
        self.settled.push_back(id.clone());
        if self.settled.len() > SETTLED {
            self.settled.pop_front();
        }
    }
}

/// What a decision found, where it allows.
struct Judged {
    credential: CredentialId,
    name: String,
    version: u32,
    principal: Principal,
    policy_version: u64,
    key: Option<Arc<SecretBytes>>,
    /// The secret's newest version under the grant's key, where its carrier has an older one.
    ciphertext: Option<String>,
}

/// `authorize_use`.
pub(crate) async fn authorize(
    open: &Unsealed,
    asker: &Asker,
    tools: &Registered,
    query: AuthorizeUse,
) -> Result<Authorized, Refusal> {
    check(&query)?;
    let fingerprint = serde_json::to_vec(&query)
        .map(|bytes| Sha256::digest(&bytes).into())
        .unwrap_or_default();
    let slot = open
        .state()
        .uses
        .requests
        .slot(&tools.instance, &query.request_id, fingerprint);
    let slot = slot.ok_or_else(|| {
        Refusal::new(
            "malformed_request",
            "this request id was used for another request",
        )
    })?;
    let mut is_first = false;
    let decided = slot
        .get_or_try_init(|| {
            is_first = true;
            decide(open, asker, tools, &query)
        })
        .await?
        .clone()?;
    if !is_first {
        // The answer is the one that was recorded, but nothing is released any more that was
        // revoked meanwhile.
        judge(open, &open.state(), tools, &query).map_err(refusal)?;
    }
    Ok(decided)
}

/// The outer error is a failure, which a repeat may overcome; the inner one is a decision.
async fn decide(
    open: &Unsealed,
    asker: &Asker,
    tools: &Registered,
    query: &AuthorizeUse,
) -> Result<Result<Authorized, Refusal>, Refusal> {
    let judged = judge(open, &open.state(), tools, query);
    let judged = match judged {
        Ok(judged) => judged,
        Err(reason) => {
            open.deny(asker, reason, intent(query, Decision::Deny))
                .await;
            return Ok(Err(refusal(reason)));
        }
    };
    let entry = Entry {
        principal: Some(Label::new(judged.principal.as_str())),
        credential_id: Some(Label::new(judged.credential.as_str())),
        credential_name: Some(Label::new(&judged.name)),
        credential_version: Some(u64::from(judged.version)),
        policy_version: Some(judged.policy_version),
        ..intent(query, Decision::Allow)
    };
    let appended = open.trail.append(entry.clone()).await?;
    let id = use_id(appended.seq);
    let under_way = UnderWay {
        intent: appended.seq,
        instance: Some(tools.instance.clone()),
        entry,
    };
    let judged = {
        let mut state = open.state();
        state.uses.under_way.insert(id.clone(), under_way);
        // What was revoked while the intent went to disk is not released.
        let again = judge(open, &state, tools, query);
        if let Ok(judged) = &again {
            let now = open.clock.wall_ms();
            state.credentials.count_use(&judged.credential, now);
            if let Some(live) = state.openings.get_mut(&query.session) {
                live.used(now);
            }
        }
        again
    };
    let judged = match judged {
        Ok(judged) => judged,
        Err(reason) => {
            fail(open, &id, reason).await;
            return Ok(Err(refusal(reason)));
        }
    };
    let release = match &judged.key {
        None => None,
        Some(key) => {
            match open
                .key_pair
                .seal_to(tools.key, key, RELEASE_PURPOSE, id.as_str().as_bytes())
            {
                Ok(sealed) => Some(sealed),
                Err(_) => {
                    fail(open, &id, "not_registered").await;
                    return Ok(Err(refusal("not_registered")));
                }
            }
        }
    };
    Ok(Ok(Authorized {
        use_id: id,
        audit_seq: appended.seq,
        release,
        ciphertext: judged.ciphertext,
        version: judged.version,
    }))
}

/// Gathers the facts and decides; everything under one lock, so that facts are of one moment.
fn judge(
    open: &Unsealed,
    state: &State,
    tools: &Registered,
    query: &AuthorizeUse,
) -> Result<Judged, &'static str> {
    let live = state
        .openings
        .get(&query.session)
        .ok_or("opening_not_found")?;
    let grant = live.grant(&query.grant);
    let facts = Facts {
        now_ms: open.clock.wall_ms(),
        standing: live.standing(tools),
        newest_epoch: live.newest_epoch(),
        expires_at_ms: live.charter().expires_at_ms,
        is_seat: live.is_seat(),
        principal: &live.charter().principal,
        tools: &live.charter().tools,
        opened_tools: live.opened_tools(),
        grant: grant.map(|grant| GrantFacts {
            credential: state.credentials.get(&grant.credential),
            credential_id: &grant.credential,
            by_tool_only: grant.by_tool_only,
            is_model: live.is_model_grant(&query.grant),
        }),
        permit: state.permits.get(&query.tool),
    };
    permit::decide(query, &facts)?;
    let grant = grant.ok_or("grant_not_found")?;
    let credential = state
        .credentials
        .get(&grant.credential)
        .ok_or("credential_not_found")?;
    let key = live.key(&query.grant).map(Arc::clone);
    if key.is_none() && state.credentials.secret(&credential.id).is_some() {
        return Err("opening_void");
    }
    let ciphertext = match &key {
        Some(key) if credential.version > grant.version => Some(
            opening::seal(
                open,
                state,
                credential,
                &query.session,
                query.epoch,
                &query.grant,
                key,
            )
            .map_err(|error| error.code())?,
        ),
        _ => None,
    };
    Ok(Judged {
        credential: credential.id.clone(),
        name: credential.name.clone(),
        version: credential.version,
        principal: live.charter().principal.clone(),
        policy_version: state.permits.version(),
        key,
        ciphertext,
    })
}

/// Records that an intent came to nothing.
async fn fail(open: &Unsealed, id: &UseId, reason: &'static str) {
    let entry = {
        let mut state = open.state();
        let entry = state
            .uses
            .under_way
            .get(id)
            .map(|under_way| outcome(under_way, Outcome::Failed));
        state.uses.settle(id);
        entry
    };
    if let Some(entry) = entry {
        drop(
            open.trail
                .append_lazy(Entry {
                    reason_code: Some(Label::new(reason)),
                    ..entry
                })
                .await,
        );
    }
}

/// `record_outcome`: written before the answer, its fsync not awaited.
pub(crate) async fn record_outcome(
    open: &Unsealed,
    tools: &Registered,
    query: RecordOutcome,
) -> Result<(), Refusal> {
    let entry = {
        let state = open.state();
        let Some(under_way) = state.uses.under_way.get(&query.use_id) else {
            if state.uses.settled.contains(&query.use_id) {
                return Ok(());
            }
            return Err(Refusal::new(
                "use_not_found",
                "no use of this name is under way",
            ));
        };
        if under_way
            .instance
            .as_ref()
            .is_some_and(|instance| instance != &tools.instance)
        {
            return Err(Refusal::new(
                "use_not_found",
                "this use was released to another tools instance",
            ));
        }
        let how = match query.status {
            UseStatus::Failed => Outcome::Failed,
            UseStatus::Ok => Outcome::Ok,
            _ => Outcome::Unknown,
        };
        Entry {
            status: (query.http_status > 0).then_some(query.http_status),
            bytes: Some(query.bytes),
            count: Some(query.scrubbed),
            reason_code: query.reason.as_deref().and_then(reason_label),
            ..outcome(under_way, how)
        }
    };
    open.trail.append_lazy(entry).await?;
    open.state().uses.settle(&query.use_id);
    Ok(())
}

/// `report`: something was refused before any use.
pub(crate) async fn report(open: &Unsealed, asker: &Asker, query: Report) -> Result<(), Refusal> {
    let Some(reason) = reason_label(&query.reason) else {
        return Err(Refusal::new(
            "malformed_request",
            "a reason code is lower-case words joined by _",
        ));
    };
    if !is_name(&query.tool) || query.session.len() > 128 {
        return Err(Refusal::new(
            "malformed_request",
            "the report names no tool or no session",
        ));
    }
    let entry = Entry {
        session: Some(Label::new(&query.session)),
        epoch: Some(query.epoch),
        tool: Some(Label::new(&query.tool)),
        destination: query.destination.as_ref().map(destination),
        ..asker.entry(Kind::Intent, Op::Report)
    };
    open.deny(asker, reason.as_str(), entry).await;
    Ok(())
}

/// The outcome of an intent from before this start.
pub(crate) fn unknown_outcome(intent: &Record) -> Entry {
    Entry::outcome_of(intent, Outcome::Unknown)
}

fn outcome(under_way: &UnderWay, how: Outcome) -> Entry {
    let told = under_way.entry.clone();
    Entry {
        principal: told.principal,
        session: told.session,
        epoch: told.epoch,
        tool: told.tool,
        request_id: told.request_id,
        credential_id: told.credential_id,
        credential_version: told.credential_version,
        outcome: Some(how),
        intent: Some(under_way.intent),
        ..Entry::new(Kind::Outcome, told.op)
    }
}

fn intent(query: &AuthorizeUse, decision: Decision) -> Entry {
    Entry {
        decision,
        session: Some(Label::new(&query.session)),
        epoch: Some(query.epoch),
        tool: Some(Label::new(&query.tool)),
        request_id: Some(Label::new(&query.request_id)),
        destination: Some(destination(&query.destination)),
        method: Some(Label::new(&query.method)),
        path: Some(Entry::path_of(&query.path)),
        digest: Digest::parse(&query.digest),
        ..Entry::new(Kind::Intent, Op::AuthorizeUse)
    }
}

fn destination(destination: &Destination) -> audit::Destination {
    audit::Destination {
        scheme: Label::new(&destination.scheme),
        host: Label::new(&destination.host),
        port: destination.port,
    }
}

/// A reason code as the caller gives it, if it is one: free text has no place in the log.
fn reason_label(reason: &str) -> Option<Label> {
    let is_code = (1..=64).contains(&reason.len())
        && reason
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    is_code.then(|| Label::new(reason))
}

fn check(query: &AuthorizeUse) -> Result<(), Refusal> {
    let malformed = |why: &str| Err(Refusal::new("malformed_request", why));
    if !is_name(&query.request_id) {
        return malformed("a request id is 1 to 64 of A-Z a-z 0-9 _ . -");
    }
    // Another change's name would pass for it when the log is compared with the store.
    if query.request_id.starts_with(crate::vault::CHANGE) {
        return malformed("this request id is reserved");
    }
    if !is_name(&query.tool) || query.session.len() > 128 {
        return malformed("the request names no tool or no session");
    }
    if Digest::parse(&query.digest).is_none() {
        return malformed("the digest is not a hex SHA-256");
    }
    if !is_method(&query.method) || !query.path.starts_with('/') || query.path.contains(['?', '#'])
    {
        return malformed("a use has an upper-case method and a path without its query");
    }
    // The prefix rule of a binding is about segments; a path that upstreams may read otherwise is
    // not within it.
    let decoded = query.path.to_ascii_lowercase().replace("%2e", ".");
    if decoded
        .split(['/', '\\'])
        .any(|segment| matches!(segment, "." | ".."))
        || decoded.contains('\\')
        || decoded.contains("%5c")
    {
        return malformed("the path has dot segments or backslashes");
    }
    Ok(())
}

fn refusal(reason: &'static str) -> Refusal {
    let refusal = Refusal::new(
        reason,
        format!("the use is not permitted: {}", reason.replace('_', " ")),
    );
    match permit::fix(reason) {
        Some(fix) => refusal.with_fix(fix),
        None => refusal,
    }
}
