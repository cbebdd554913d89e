//! `/v1/vaults`: collections of credentials.

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use claviger_session::SessionId;
use claviger_vault_protocol::Principal;
use claviger_vault_protocol::admin::OfCredential;
use serde_json::{Map, Value, json};

use crate::app::{App, Caller, Shared};
use crate::body::Document;
use crate::credential;
use crate::field::Fields;
use crate::object::{Object, VAULT};
use crate::page::Listing;
use crate::problem::{Answer, Problem};

/// The operator's own collection: everyone's sessions may use it, only `claviger secret` changes it.
pub(crate) const LOCAL: &str = "vlt_local";
/// Holds model keys; no caller ever sees it.
const SYSTEM: &str = "vlt_system";

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/vaults", post(create).get(list))
        .route("/v1/vaults/{id}", get(retrieve).post(update).delete(delete))
        .route("/v1/vaults/{id}/archive", post(archive))
        .merge(credential::routes())
}

async fn create(
    State(app): State<Shared>,
    caller: Caller,
    Document(body): Document,
) -> Answer<Json<Value>> {
    let vault = patched(&Map::new(), &Fields::of(&body, "")?)?;
    Ok(Json(app.create(VAULT, &caller, vault).await?))
}

async fn list(State(app): State<Shared>, caller: Caller, listing: Listing) -> Answer<Json<Value>> {
    Ok(Json(app.list(VAULT, &caller, &listing).await?))
}

async fn retrieve(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    let (id, vault) = app.vault(&caller, &id).await?;
    Ok(Json(vault.render(VAULT, &id)))
}

async fn update(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    Document(body): Document,
) -> Answer<Json<Value>> {
    let (id, vault) = app.own_vault(&caller, &id).await?;
    vault.live(VAULT)?;
    let object = patched(&vault.body, &Fields::of(&body, "")?)?;
    Ok(Json(
        app.change(VAULT, &id, &vault, "updated", json!({"object": object}))
            .await?,
    ))
}

async fn archive(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    let (stream, vault) = app.own_vault(&caller, &id).await?;
    // First the record, so that no session starts with it; then the secrets.
    let shown = app.archive(VAULT, &caller, stream.as_str()).await?;
    for row in app
        .credentials(&stream, true)
        .await?
        .into_iter()
        .filter(|row| row.archived_at_ms.is_none())
    {
        let principal = Some(Principal::from(vault.owner.clone()));
        app.vault
            .archive(&OfCredential {
                credential: row.id,
                principal,
            })
            .await?;
    }
    Ok(Json(shown))
}

async fn delete(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    let (stream, vault) = app.own_vault(&caller, &id).await?;
    // First the secrets: a failure in between leaves a vault that can be deleted again.
    for row in app.credentials(&stream, true).await? {
        let principal = Some(Principal::from(vault.owner.clone()));
        app.vault
            .delete(&OfCredential {
                credential: row.id,
                principal,
            })
            .await?;
    }
    Ok(Json(app.delete(VAULT, &caller, stream.as_str()).await?))
}

fn patched(current: &Map<String, Value>, fields: &Fields<'_>) -> Answer<Map<String, Value>> {
    fields.only(&["display_name", "metadata"])?;
    let name = match (fields.present("display_name"), current.get("display_name")) {
        (None, Some(name)) => name.clone(),
        _ => fields.required("display_name", 255)?.into(),
    };
    let metadata = fields.metadata(current.get("metadata"))?;
    Ok(Map::from_iter([
        ("display_name".to_owned(), name),
        ("metadata".to_owned(), metadata),
    ]))
}

impl App {
    /// A vault that the caller may see; the operator's own has no stream.
    pub(crate) async fn vault(&self, caller: &Caller, id: &str) -> Answer<(SessionId, Object)> {
        match id {
            LOCAL => {
                let body = json!({"display_name": "Local", "metadata": {}});
                let body = body.as_object().cloned().unwrap_or_default();
                let id = LOCAL.parse().map_err(|_| Problem::not_found(VAULT.noun))?;
                Ok((
                    id,
                    Object {
                        owner: LOCAL.to_owned(),
                        body,
                        ..Object::default()
                    },
                ))
            }
            SYSTEM => Err(Problem::not_found(VAULT.noun)),
            id => self.object(VAULT, caller, id).await,
        }
    }

    /// A vault that the caller may change.
    pub(crate) async fn own_vault(&self, caller: &Caller, id: &str) -> Answer<(SessionId, Object)> {
        if id == LOCAL {
            return Err(Problem::forbidden(
                "operators_vault",
                "the operator's own vault is not changed by the api",
            )
            .with_fix("claviger secret add, rotate, archive or delete"));
        }
        if id == SYSTEM {
            return Err(Problem::not_found(VAULT.noun));
        }
        self.own_object(VAULT, caller, id).await
    }
}
