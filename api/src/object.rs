//! API objects as event streams: the stream's name is the object's id, its state the fold of its events.

pub(crate) mod fold;

use claviger_session::{Event, NewEvent, SessionClient, SessionError, SessionId};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::app::{App, Caller};
use crate::object::fold::{Fold, Folds};
use crate::page::Listing;
use crate::problem::{Answer, Problem};

/// Streams read at once for a list.
const BATCH: usize = 50;
/// Streams looked at for one page, those that the caller may not see included.
const MAX_SCANNED: usize = 2_000;

/// A kind of object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// Prefix of its ids.
    pub(crate) prefix: &'static str,
    /// Its `type`, and the first half of its events' types.
    pub(crate) noun: &'static str,
    /// Whether every caller may see and use those that an operator made.
    pub(crate) is_shared: bool,
}

pub(crate) const AGENT: Kind = Kind {
    prefix: "agent_",
    noun: "agent",
    is_shared: true,
};
pub(crate) const ENVIRONMENT: Kind = Kind {
    prefix: "env_",
    noun: "environment",
    is_shared: true,
};
pub(crate) const VAULT: Kind = Kind {
    prefix: "vlt_",
    noun: "vault",
    is_shared: false,
};

/// The current state of an object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object {
    /// Number of its newest event.
    pub(crate) seq: u64,
    /// Principal of whoever made it.
    pub(crate) owner: String,
    /// Its fields, without id, type and times.
    pub(crate) body: Map<String, Value>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) archived_at: Option<Timestamp>,
    pub(crate) is_deleted: bool,
    /// Of a vault: what was changed of its credentials' descriptions, by credential.
    pub(crate) descriptions: Map<String, Value>,
}

impl Fold for Object {
    const KINDS: &'static [&'static str] = &[];

    fn apply(&mut self, event: &Event) {
        self.seq = event.seq;
        let action = event.kind.split_once('.').map_or("", |(_, action)| action);
        match (event.kind.as_str(), action) {
            ("credential.updated", _) => {
                if let Some(id) = event.payload["credential_id"].as_str() {
                    let mut description = event.payload.clone();
                    description["updated_at"] = event.at.to_string().into();
                    self.descriptions.insert(id.to_owned(), description);
                }
                return;
            }
            (_, "created") => {
                event.payload["principal"]
                    .as_str()
                    .unwrap_or_default()
                    .clone_into(&mut self.owner);
                self.created_at = event.at;
            }
            (_, "archived") => self.archived_at = self.archived_at.or(Some(event.at)),
            (_, "deleted") => self.is_deleted = true,
            _ => {}
        }
        if let Value::Object(body) = &event.payload["object"] {
            self.body.clone_from(body);
        }
        self.updated_at = event.at;
    }

    fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

impl Object {
    /// Renders the object as the API shows it.
    pub(crate) fn render(&self, kind: Kind, id: &SessionId) -> Value {
        let mut out = Map::new();
        out.insert("id".to_owned(), id.as_str().into());
        out.insert("type".to_owned(), kind.noun.into());
        out.extend(self.body.clone());
        out.insert("created_at".to_owned(), self.created_at.to_string().into());
        out.insert("updated_at".to_owned(), self.updated_at.to_string().into());
        out.insert(
            "archived_at".to_owned(),
            self.archived_at.map(|at| at.to_string()).into(),
        );
        Value::Object(out)
    }

    /// Refuses a change of what is archived.
    pub(crate) fn live(&self, kind: Kind) -> Answer<()> {
        match self.archived_at {
            None => Ok(()),
            Some(_) => Err(Problem::invalid(
                &format!("{}_archived", kind.noun),
                format!("the {} is archived", kind.noun),
            )),
        }
    }

    fn is_visible(&self, kind: Kind, caller: &Caller) -> bool {
        !self.is_deleted
            && (caller.owns(&self.owner) || kind.is_shared && self.owner.starts_with("operator:"))
    }
}

/// Reads an id of this kind; another is as good as none.
pub(crate) fn id_of(kind: Kind, text: &str) -> Answer<SessionId> {
    text.parse()
        .ok()
        .filter(|_| text.starts_with(kind.prefix))
        .ok_or_else(|| Problem::not_found(kind.noun))
}

impl App {
    /// An object that the caller may see.
    pub(crate) async fn object(
        &self,
        kind: Kind,
        caller: &Caller,
        id: &str,
    ) -> Answer<(SessionId, Object)> {
        let id = id_of(kind, id)?;
        let object = match self.objects.current(&self.log, &id).await {
            Err(SessionError::NotFound) => return Err(Problem::not_found(kind.noun)),
            other => other?,
        };
        // An object of somebody else is as absent as one that never was.
        if !object.is_visible(kind, caller) {
            return Err(Problem::not_found(kind.noun));
        }
        Ok((id, object))
    }

    /// An object that the caller may change.
    pub(crate) async fn own_object(
        &self,
        kind: Kind,
        caller: &Caller,
        id: &str,
    ) -> Answer<(SessionId, Object)> {
        let (id, object) = self.object(kind, caller, id).await?;
        if !caller.owns(&object.owner) {
            return Err(Problem::forbidden(
                "not_owner",
                format!(
                    "this {} is an operator's: it can be used, not changed",
                    kind.noun
                ),
            ));
        }
        Ok((id, object))
    }

    /// Makes an object and renders it.
    pub(crate) async fn create(
        &self,
        kind: Kind,
        caller: &Caller,
        body: Map<String, Value>,
    ) -> Answer<Value> {
        let id = SessionId::random(kind.prefix);
        let payload = json!({"principal": caller.principal, "object": body});
        self.log
            .append(
                &id,
                0,
                0,
                vec![NewEvent::new(format!("{}.created", kind.noun), payload)],
            )
            .await?;
        let object = self.objects.current(&self.log, &id).await?;
        Ok(object.render(kind, &id))
    }

    /// Appends to an object exactly after the state that was read, and renders the new state.
    pub(crate) async fn change(
        &self,
        kind: Kind,
        id: &SessionId,
        object: &Object,
        action: &str,
        payload: Value,
    ) -> Answer<Value> {
        let event = NewEvent::new(format!("{}.{action}", kind.noun), payload);
        self.log.append(id, object.seq, 0, vec![event]).await?;
        let object = self.objects.current(&self.log, id).await?;
        Ok(object.render(kind, id))
    }

    /// Archives an object; a repeat changes nothing.
    pub(crate) async fn archive(&self, kind: Kind, caller: &Caller, id: &str) -> Answer<Value> {
        let (id, object) = self.own_object(kind, caller, id).await?;
        if object.archived_at.is_some() {
            return Ok(object.render(kind, &id));
        }
        self.change(kind, &id, &object, "archived", json!({})).await
    }

    /// Deletes an object: nobody finds it again.
    pub(crate) async fn delete(&self, kind: Kind, caller: &Caller, id: &str) -> Answer<Value> {
        let (id, object) = self.own_object(kind, caller, id).await?;
        self.change(kind, &id, &object, "deleted", json!({}))
            .await?;
        Ok(json!({"id": id.as_str(), "type": format!("{}_deleted", kind.noun)}))
    }

    /// One page of the objects of a kind that the caller may see.
    pub(crate) async fn list(
        &self,
        kind: Kind,
        caller: &Caller,
        listing: &Listing,
    ) -> Answer<Value> {
        let pick = |id: &SessionId, object: &Object| {
            let is_wanted = object.is_visible(kind, caller)
                && (listing.include_archived || object.archived_at.is_none());
            is_wanted.then(|| object.render(kind, id))
        };
        listing
            .collect(&self.log, kind.prefix, &self.objects, pick)
            .await
    }
}

impl Listing {
    /// Walks the streams of a prefix until a page is full.
    pub(crate) async fn collect<T: Fold>(
        &self,
        log: &SessionClient,
        prefix: &str,
        folds: &Folds<T>,
        pick: impl Fn(&SessionId, &T) -> Option<Value>,
    ) -> Answer<Value> {
        let mut data = Vec::new();
        let mut after = self.after.clone();
        let mut last_taken = None;
        for _ in 0..MAX_SCANNED / BATCH {
            let rows = log
                .list(prefix, after.as_ref(), BATCH, self.newest_first)
                .await;
            let rows = rows.map_err(|error| match error {
                SessionError::NotFound => Problem::field("page", "is no cursor of this list"),
                other => other.into(),
            })?;
            for row in &rows {
                let state = folds.current(log, &row.session).await?;
                if let Some(item) = self
                    .created
                    .admits(state.created_at())
                    .then(|| pick(&row.session, &state))
                    .flatten()
                {
                    if data.len() == self.limit {
                        return Ok(self.page(data, last_taken.as_ref()));
                    }
                    data.push(item);
                    last_taken = Some(row.session.clone());
                }
            }
            if rows.len() < BATCH {
                return Ok(self.page(data, None));
            }
            after = rows.last().map(|row| row.session.clone());
        }
        Ok(self.page(data, after.as_ref()))
    }
}

/// The typed error for a stale version.
pub(crate) fn stale_version() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "version_conflict",
        "the agent has a newer version",
    )
    .with_fix("read the agent again and repeat the change on its current version")
}
