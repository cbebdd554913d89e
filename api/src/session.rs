//! `/v1/sessions`: an agent at work in an environment.

mod create;
pub(crate) mod state;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use claviger_session::{NewEvent, SessionError, SessionId};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::app::{App, Caller, Shared};
use crate::body::Document;
use crate::field::Fields;
use crate::gate::RequestId;
use crate::page::{Listing, Parameters};
use crate::problem::{Answer, Problem};
use crate::session::state::SessionState;

/// Prefix of session ids.
const PREFIX: &str = "sesn_";
/// Attempts to write exactly after what was read.
const ATTEMPTS: usize = 8;
/// How long the api may hold a session that it ends.
const LEASE_TTL_MS: u64 = 5_000;

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/sessions", post(create::create).get(list))
        .route(
            "/v1/sessions/{id}",
            get(retrieve).post(update).delete(delete),
        )
        .route("/v1/sessions/{id}/archive", post(archive))
}

async fn retrieve(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    let (id, session) = app.session(&caller, &id).await?;
    Ok(Json(session.render(&id, Timestamp::now())))
}

async fn list(
    State(app): State<Shared>,
    caller: Caller,
    parameters: Parameters,
) -> Answer<Json<Value>> {
    let listing = Listing::of(&parameters)?;
    let statuses = parameters.many("statuses");
    if !statuses
        .iter()
        .all(|status| ["idle", "rescheduling", "running", "terminated"].contains(status))
    {
        return Err(Problem::field(
            "statuses",
            "must be idle, rescheduling, running or terminated",
        ));
    }
    let agent = parameters.one("agent_id");
    let version: Option<u64> = parameters.number("agent_version")?;
    let now = Timestamp::now();
    let pick = |id: &SessionId, session: &SessionState| {
        let is_wanted = caller.owns(&session.owner)
            && !session.is_deleted
            && (listing.include_archived || session.archived_at.is_none())
            && (statuses.is_empty() || statuses.contains(&session.status()))
            && agent.is_none_or(|agent| session.agent()["id"] == *agent)
            && (agent.is_none()
                || version.is_none_or(|version| session.agent()["version"] == version));
        is_wanted.then(|| session.render(id, now))
    };
    let mut page = listing
        .collect(&app.log, PREFIX, &app.sessions, pick)
        .await?;
    page["prev_page"] = Value::Null;
    Ok(Json(page))
}

async fn update(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    request: axum::Extension<RequestId>,
    Document(body): Document,
) -> Answer<Json<Value>> {
    let (id, session) = app.session(&caller, &id).await?;
    let fields = Fields::of(&body, "")?;
    for (name, code) in [
        ("vault_ids", "vault_ids_immutable"),
        ("agent", "session_agent_immutable"),
        ("budget", "budget_not_supported"),
    ] {
        if fields.present(name).is_some() {
            return Err(Problem::invalid(
                code,
                format!("{name}: cannot be changed: the charter of a session is fixed"),
            ));
        }
    }
    fields.only(&["title", "metadata"])?;
    live(&session)?;
    let mut changed = Map::new();
    if fields.present("title").is_some() {
        changed.insert("title".to_owned(), title(&fields)?);
    }
    if fields.present("metadata").is_some() {
        changed.insert("metadata".to_owned(), fields.metadata(session.metadata())?);
    }
    if changed.is_empty() {
        return Ok(Json(session.render(&id, Timestamp::now())));
    }
    let event = NewEvent::new("session.updated", Value::Object(changed));
    app.log.append_input(&id, &request.0.0, vec![event]).await?;
    let session = app.sessions.current(&app.log, &id).await?;
    Ok(Json(session.render(&id, Timestamp::now())))
}

async fn archive(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    let (id, session) = app.end(&caller, &id, "session.archived").await?;
    Ok(Json(session.render(&id, Timestamp::now())))
}

async fn delete(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    let (id, _) = app.end(&caller, &id, "session.deleted").await?;
    Ok(Json(json!({"id": id.as_str(), "type": "session_deleted"})))
}

fn title(fields: &Fields<'_>) -> Answer<Value> {
    Ok(fields
        .text("title", 1_024)?
        .filter(|title| !title.is_empty())
        .into())
}

fn running() -> Problem {
    Problem::invalid("session_running", "the session is running")
        .with_fix("send user.interrupt and wait for session.status_idle")
}

/// Refuses what an ended session cannot do any more.
pub(crate) fn live(session: &SessionState) -> Answer<()> {
    if session.archived_at.is_some() {
        return Err(Problem::invalid(
            "session_archived",
            "the session is archived",
        ));
    }
    if session.status() == "terminated" {
        return Err(Problem::invalid(
            "session_terminated",
            "the session is terminated",
        ));
    }
    Ok(())
}

impl App {
    /// A session that is the caller's.
    pub(crate) async fn session(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Answer<(SessionId, SessionState)> {
        let absent = || Problem::not_found("session");
        let id: SessionId = id
            .parse()
            .ok()
            .filter(|_| id.starts_with(PREFIX))
            .ok_or_else(absent)?;
        let session = match self.sessions.current(&self.log, &id).await {
            Err(SessionError::NotFound) => return Err(absent()),
            other => other?,
        };
        if session.is_deleted || !caller.owns(&session.owner) {
            return Err(absent());
        }
        Ok((id, session))
    }

    /// Ends a session that does nothing, atomically: the end is written exactly after the state that was read.
    async fn end(
        &self,
        caller: &Caller,
        id: &str,
        kind: &str,
    ) -> Answer<(SessionId, SessionState)> {
        for _ in 0..ATTEMPTS {
            let (id, _) = self.session(caller, id).await?;
            // The head first: what the fold sees beyond it makes the append fail, not lie.
            let (head, _, epoch) = self.log.head(&id).await?;
            let session = self.sessions.current(&self.log, &id).await?;
            if session.is_busy() {
                return Err(running());
            }
            if kind == "session.archived" && session.archived_at.is_some() {
                return Ok((id, session));
            }
            // A session that no harness ever woke has no epoch to write under: take one.
            let owner = format!("api_{}", uuid::Uuid::now_v7().simple());
            let leased = match epoch {
                0 => match self.log.lease(&id, &owner, LEASE_TTL_MS).await {
                    Err(SessionError::Held { .. }) => return Err(running()),
                    lease => Some(lease?.epoch),
                },
                _ => None,
            };
            let mut events = Vec::new();
            if session.status() != "terminated" {
                let payload = json!({"handled_seq": head});
                events.push(NewEvent::new("session.status_terminated", payload));
            }
            events.push(NewEvent::new(kind, json!({"principal": caller.principal})));
            let appended = self
                .log
                .append(&id, head, leased.unwrap_or(epoch), events)
                .await;
            if let Some(epoch) = leased {
                // Where this fails the lease runs out by itself.
                drop(self.log.release(&id, &owner, epoch).await);
            }
            match appended {
                Err(SessionError::Conflict { .. } | SessionError::Fenced { .. }) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {
                    let session = self.sessions.current(&self.log, &id).await?;
                    return Ok((id, session));
                }
            }
        }
        Err(Problem::conflict(
            "concurrent_change",
            "the session changes too fast; try again",
        ))
    }
}
