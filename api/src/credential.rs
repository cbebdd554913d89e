//! `/v1/vaults/{id}/credentials`: what the vault keeps, without its secrets.

mod auth;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use claviger_session::{NewEvent, SessionId};
use claviger_vault_protocol::admin::{
    Authentication, CredentialRow, List, OfCredential, PUT_PURPOSE, Put, Rotate,
};
use claviger_vault_protocol::{Principal, SecretBytes, sealed};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::app::{App, Caller, Shared};
use crate::body::SecretDocument;
use crate::field::Fields;
use crate::object::{Object, VAULT};
use crate::page::{Parameters, cursor};
use crate::problem::{Answer, Problem};

/// Most live credentials of a vault.
const MAX_CREDENTIALS: usize = 20;

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/vaults/{vault}/credentials", post(create).get(list))
        .route(
            "/v1/vaults/{vault}/credentials/{id}",
            get(retrieve).post(update).delete(delete),
        )
        .route("/v1/vaults/{vault}/credentials/{id}/archive", post(archive))
}

async fn create(
    State(app): State<Shared>,
    caller: Caller,
    Path(vault): Path<String>,
    mut document: SecretDocument,
) -> Answer<Json<Value>> {
    let (stream, vault) = app.own_vault(&caller, &vault).await?;
    vault.live(VAULT)?;
    let body = std::mem::take(&mut document.value);
    let fields = Fields::of(&body, "")?;
    fields.only(&["auth", "display_name", "metadata"])?;
    let auth = fields
        .object("auth")?
        .ok_or_else(|| Problem::field("auth", "is required"))?;
    let auth = auth::New::read(&auth)?;
    let secret = document.take(&["auth", auth.secret_field])?;
    document.finish()?;
    let secret = secret
        .ok_or_else(|| Problem::field(&format!("auth.{}", auth.secret_field), "is required"))?;
    let live = app.credentials(&stream, false).await?;
    if live.len() >= MAX_CREDENTIALS {
        return Err(Problem::invalid(
            "too_many_credentials",
            format!("a vault holds at most {MAX_CREDENTIALS} credentials"),
        ));
    }
    let metadata = json!({
        "display_name": fields.text("display_name", 255)?.filter(|name| !name.is_empty()),
        "metadata": fields.metadata(None)?,
        "auth": auth.shown,
    });
    let associated = Put::associated(stream.as_str(), &auth.name, auth.kind, &auth.binding);
    let row = app
        .vault
        .put(&Put {
            auth: Authentication::default(),
            collection: stream.as_str().to_owned(),
            name: auth.name,
            kind: auth.kind,
            binding: auth.binding,
            variable: auth.variable,
            secret: Some(app.sealed(secret, &associated)?),
            short: false,
            principal: Some(Principal::from(vault.owner.clone())),
            metadata,
        })
        .await?;
    Ok(Json(rendered(&row, &vault)))
}

async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Path(vault): Path<String>,
    parameters: Parameters,
) -> Answer<Json<Value>> {
    let (stream, vault) = app.vault(&caller, &vault).await?;
    let limit = parameters.limit(20, 100)?;
    let mut rows = app
        .credentials(&stream, parameters.flag("include_archived")?)
        .await?;
    rows.sort_unstable_by(|a, b| {
        (b.created_at_ms, b.id.as_str()).cmp(&(a.created_at_ms, a.id.as_str()))
    });
    let start = match parameters.cursor(true)? {
        None => 0,
        Some(at) => rows
            .iter()
            .position(|row| row.id.as_str() == at)
            .map(|at| at + 1)
            .ok_or_else(|| Problem::field("page", "is no cursor of this list"))?,
    };
    let more = rows.len() > start + limit;
    let rows: Vec<_> = rows.into_iter().skip(start).take(limit).collect();
    let next = rows
        .last()
        .filter(|_| more)
        .map(|row| cursor(true, row.id.as_str()));
    let data: Vec<_> = rows.iter().map(|row| rendered(row, &vault)).collect();
    Ok(Json(json!({"data": data, "next_page": next})))
}

async fn retrieve(
    State(app): State<Shared>,
    caller: Caller,
    Path((vault, id)): Path<(String, String)>,
) -> Answer<Json<Value>> {
    let (stream, vault) = app.vault(&caller, &vault).await?;
    Ok(Json(rendered(&app.credential(&stream, &id).await?, &vault)))
}

async fn update(
    State(app): State<Shared>,
    caller: Caller,
    Path((vault, id)): Path<(String, String)>,
    mut document: SecretDocument,
) -> Answer<Json<Value>> {
    let (stream, vault) = app.own_vault(&caller, &vault).await?;
    let mut row = app.credential(&stream, &id).await?;
    if row.archived_at_ms.is_some() {
        return Err(Problem::invalid(
            "credential_archived",
            "the credential is archived",
        ));
    }
    let body = std::mem::take(&mut document.value);
    let fields = Fields::of(&body, "")?;
    fields.only(&["auth", "display_name", "metadata"])?;
    let shown = rendered(&row, &vault);
    let secret = match fields.object("auth")? {
        None => None,
        Some(auth) => document.take(&["auth", auth::unchanged(&auth, &shown["auth"])?])?,
    };
    document.finish()?;
    let display_name = match fields.present("display_name") {
        None => shown["display_name"].clone(),
        Some(_) => fields
            .text("display_name", 255)?
            .filter(|name| !name.is_empty())
            .into(),
    };
    let metadata = fields.metadata(shown.get("metadata"))?;
    let principal = Some(Principal::from(vault.owner.clone()));
    if let Some(secret) = secret {
        let sealed = app.sealed(secret, row.id.as_str().as_bytes())?;
        let auth = Authentication::default();
        row = app
            .vault
            .rotate(&Rotate {
                auth,
                credential: row.id.clone(),
                secret: sealed,
                short: false,
                principal,
            })
            .await?;
    }
    let mut vault = vault;
    if display_name != shown["display_name"] || metadata != shown["metadata"] {
        let payload =
            json!({"credential_id": row.id, "display_name": display_name, "metadata": metadata});
        app.log
            .append(
                &stream,
                vault.seq,
                0,
                vec![NewEvent::new("credential.updated", payload)],
            )
            .await?;
        vault = app.vault(&caller, stream.as_str()).await?.1;
    }
    Ok(Json(rendered(&row, &vault)))
}

async fn archive(
    State(app): State<Shared>,
    caller: Caller,
    Path((vault, id)): Path<(String, String)>,
) -> Answer<Json<Value>> {
    let (stream, vault) = app.own_vault(&caller, &vault).await?;
    let row = app.credential(&stream, &id).await?;
    if row.archived_at_ms.is_some() {
        return Ok(Json(rendered(&row, &vault)));
    }
    let principal = Some(Principal::from(vault.owner.clone()));
    let row = app
        .vault
        .archive(&OfCredential {
            credential: row.id,
            principal,
        })
        .await?;
    Ok(Json(rendered(&row, &vault)))
}

async fn delete(
    State(app): State<Shared>,
    caller: Caller,
    Path((vault, id)): Path<(String, String)>,
) -> Answer<Json<Value>> {
    let (stream, vault) = app.own_vault(&caller, &vault).await?;
    let row = app.credential(&stream, &id).await?;
    let principal = Some(Principal::from(vault.owner));
    app.vault
        .delete(&OfCredential {
            credential: row.id.clone(),
            principal,
        })
        .await?;
    Ok(Json(
        json!({"id": row.id, "type": "vault_credential_deleted"}),
    ))
}

impl App {
    /// The credentials of a collection as the vault tells them.
    pub(crate) async fn credentials(
        &self,
        vault: &SessionId,
        include_archived: bool,
    ) -> Answer<Vec<CredentialRow>> {
        let list = List {
            collection: Some(vault.as_str().to_owned()),
            include_archived,
        };
        let mut rows = self.vault.list(&list).await?.credentials;
        rows.retain(|row| row.collection == vault.as_str());
        Ok(rows)
    }

    async fn credential(&self, vault: &SessionId, id: &str) -> Answer<CredentialRow> {
        let rows = self.credentials(vault, true).await?;
        rows.into_iter()
            .find(|row| row.id.as_str() == id)
            .ok_or_else(|| Problem::not_found("credential"))
    }

    /// Seals a secret to the vault; the plaintext ends here.
    fn sealed(&self, secret: SecretBytes, associated: &[u8]) -> Answer<sealed::Sealed> {
        if secret.is_empty() {
            return Err(Problem::invalid("empty_secret", "the secret is empty"));
        }
        let sealed = sealed::seal(self.vault_key, &secret, PUT_PURPOSE, associated);
        drop(secret);
        sealed.map_err(|error| {
            tracing::error!(%error, "sealing to the vault's key");
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "seal_failed",
                "the secret could not be sealed",
            )
        })
    }
}

/// Renders a credential. The row holds no secret, so nothing here can.
fn rendered(row: &CredentialRow, vault: &Object) -> Value {
    let changed = vault.descriptions.get(row.id.as_str());
    let described = |name: &str| changed.unwrap_or(&row.metadata).get(name).cloned();
    let time = |ms: u64| {
        i64::try_from(ms)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .unwrap_or_default()
    };
    let described_at =
        changed.and_then(|change| change["updated_at"].as_str()?.parse::<Timestamp>().ok());
    let updated_at = [
        Some(time(row.rotated_at_ms)),
        row.archived_at_ms.map(time),
        described_at,
    ];
    json!({
        "id": row.id,
        "type": "vault_credential",
        "vault_id": row.collection,
        "display_name": described("display_name").unwrap_or_else(|| row.name.clone().into()),
        "metadata": described("metadata").filter(Value::is_object).unwrap_or_else(|| json!({})),
        "auth": row.metadata.get("auth").cloned().unwrap_or_else(|| auth::shown(row)),
        "created_at": time(row.created_at_ms).to_string(),
        "updated_at": updated_at.into_iter().flatten().max().unwrap_or_default().to_string(),
        "archived_at": row.archived_at_ms.map(|ms| time(ms).to_string()),
    })
}
