//! `/v1/environments`: what a session's sandbox is like.

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use crate::app::{Caller, Shared};
use crate::body::Document;
use crate::field::Fields;
use crate::object::ENVIRONMENT;
use crate::page::Listing;
use crate::problem::{Answer, Problem};

const MANAGERS: [&str; 6] = ["apt", "cargo", "gem", "go", "npm", "pip"];

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/environments", post(create).get(list))
        .route(
            "/v1/environments/{id}",
            get(retrieve).post(update).delete(delete),
        )
        .route("/v1/environments/{id}/archive", post(archive))
}

async fn create(
    State(app): State<Shared>,
    caller: Caller,
    Document(body): Document,
) -> Answer<Json<Value>> {
    let environment = patched(&Map::new(), &Fields::of(&body, "")?)?;
    Ok(Json(app.create(ENVIRONMENT, &caller, environment).await?))
}

async fn list(State(app): State<Shared>, caller: Caller, listing: Listing) -> Answer<Json<Value>> {
    Ok(Json(app.list(ENVIRONMENT, &caller, &listing).await?))
}

async fn retrieve(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    let (id, object) = app.object(ENVIRONMENT, &caller, &id).await?;
    Ok(Json(object.render(ENVIRONMENT, &id)))
}

async fn update(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    Document(body): Document,
) -> Answer<Json<Value>> {
    let (id, object) = app.own_object(ENVIRONMENT, &caller, &id).await?;
    object.live(ENVIRONMENT)?;
    let environment = patched(&object.body, &Fields::of(&body, "")?)?;
    Ok(Json(
        app.change(
            ENVIRONMENT,
            &id,
            &object,
            "updated",
            json!({"object": environment}),
        )
        .await?,
    ))
}

async fn delete(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    Ok(Json(app.delete(ENVIRONMENT, &caller, &id).await?))
}

async fn archive(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<Value>> {
    Ok(Json(app.archive(ENVIRONMENT, &caller, &id).await?))
}

fn patched(current: &Map<String, Value>, fields: &Fields<'_>) -> Answer<Map<String, Value>> {
    fields.only(&["name", "config", "description", "metadata", "scope"])?;
    let kept = |name: &str, default: Value| current.get(name).cloned().unwrap_or(default);
    let name = match fields.present("name") {
        None if !current.is_empty() => kept("name", Value::Null),
        _ => fields.required("name", 256)?.into(),
    };
    let description = match fields.present("description") {
        None => kept("description", Value::Null),
        Some(_) => fields
            .text("description", 2_048)?
            .filter(|text| !text.is_empty())
            .into(),
    };
    let config = match fields.object("config")? {
        None if !current.is_empty() => kept("config", Value::Null),
        None => config(&Fields::of(&json!({"type": "cloud"}), "config")?, current)?,
        Some(given) => config(&given, current)?,
    };
    let scope = match fields.text("scope", 32)? {
        None => kept("scope", "organization".into()),
        Some(scope @ ("organization" | "account")) => scope.into(),
        Some(_) => return Err(Problem::field("scope", "must be organization or account")),
    };
    let metadata = fields.metadata(current.get("metadata"))?;
    Ok(Map::from_iter([
        ("name".to_owned(), name),
        ("description".to_owned(), description),
        ("config".to_owned(), config),
        ("scope".to_owned(), scope),
        ("metadata".to_owned(), metadata),
    ]))
}

fn config(config: &Fields<'_>, current: &Map<String, Value>) -> Answer<Value> {
    let current_type = current.get("config").map(|config| config["type"].clone());
    match (config.required("type", 32)?, current_type) {
        (given, Some(current)) if current != given => {
            return Err(Problem::invalid(
                "invalid_config_type_change",
                "config.type cannot be changed",
            ));
        }
        ("cloud", _) => {}
        ("self_hosted", _) => {
            return Err(Problem::invalid(
                "self_hosted_not_supported",
                "config.type: workers of your own are not supported",
            )
            .with_fix("cloud: the sandboxes of this installation"));
        }
        _ => return Err(Problem::field("config.type", "must be cloud")),
    }
    config.only(&["type", "networking", "packages"])?;
    if let Some(packages) = config.object("packages")? {
        for manager in MANAGERS {
            packages.without(manager, "packages_not_supported")?;
        }
    }
    let networking = match config.object("networking")? {
        None => json!({"type": "unrestricted"}),
        Some(networking) => match networking.required("type", 32)? {
            "unrestricted" => json!({"type": "unrestricted"}),
            "limited" => {
                networking.only(&[
                    "type",
                    "allowed_hosts",
                    "allow_mcp_servers",
                    "allow_package_managers",
                ])?;
                let hosts = networking.texts("allowed_hosts", 256)?;
                if !hosts.iter().all(|host| is_host(host)) {
                    return Err(Problem::field(
                        "config.networking.allowed_hosts",
                        "hosts are bare names or *.name",
                    ));
                }
                json!({
                    "type": "limited",
                    "allowed_hosts": hosts,
                    "allow_mcp_servers": networking.flag("allow_mcp_servers")?.unwrap_or(false),
                    "allow_package_managers": networking.flag("allow_package_managers")?.unwrap_or(false),
                })
            }
            _ => {
                return Err(Problem::field(
                    "config.networking.type",
                    "must be unrestricted or limited",
                ));
            }
        },
    };
    let mut packages = Map::from_iter([("type".to_owned(), "packages".into())]);
    packages.extend(MANAGERS.map(|manager| (manager.to_owned(), json!([]))));
    Ok(json!({"type": "cloud", "networking": networking, "packages": packages}))
}

fn is_host(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    !name.is_empty()
        && name.len() <= 253
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
}
