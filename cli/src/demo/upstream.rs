//! The upstream: a small issue tracker that answers 401 without its key.
//!
//! On `/api/echo` it is hostile: it quotes the key that it received in a header, in the body, raw,
//! in base64, in hex, percent-encoded and inside JSON. It records every request with what it saw,
//! key included: that record is the one place where the key may stand.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::error::CliError;

/// The script of an upstream.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Script {
    /// Where to listen; port 0 picks one.
    pub(crate) listen: String,
    /// File that gets the address once it listens.
    pub(crate) address_file: PathBuf,
    /// File that gets one JSON line a request.
    pub(crate) record: PathBuf,
    /// Hex SHA-256 of the key: the upstream's own configuration does not hold it.
    pub(crate) key_sha256: String,
}

struct Tracker {
    key_sha256: String,
    issues: Mutex<Vec<Value>>,
    record: Mutex<std::fs::File>,
}

pub(crate) async fn serve(script: &Path) -> Result<(), CliError> {
    let script: Script = super::stage::read_script(script)?;
    let record = std::fs::File::create(&script.record)
        .map_err(|error| CliError::file("writing", &script.record, &error))?;
    let tracker = Arc::new(Tracker {
        key_sha256: script.key_sha256,
        issues: Mutex::new(Vec::new()),
        record: Mutex::new(record),
    });
    let router = Router::new()
        .route("/api/issues", get(list).post(create))
        .route("/api/issues/{number}", get(show))
        .route("/api/echo", post(echo))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&tracker),
            authenticate,
        ))
        .with_state(tracker);
    super::stage::listen(&script.listen, &script.address_file, router).await
}

fn presented(headers: &HeaderMap) -> String {
    let value = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    value.strip_prefix("Bearer ").unwrap_or("").to_owned()
}

async fn authenticate(
    State(tracker): State<Arc<Tracker>>,
    request: Request,
    next: Next,
) -> Response {
    let key = presented(request.headers());
    let accepted = hex::encode(Sha256::digest(key.as_bytes())) == tracker.key_sha256;
    let line = json!({"method": request.method().as_str(), "path": request.uri().path(), "authorization": request.headers().get("authorization").and_then(|value| value.to_str().ok()), "accepted": accepted});
    if let Ok(mut record) = tracker.record.lock() {
        drop(writeln!(record, "{line}"));
    }
    if !accepted {
        return (
            StatusCode::UNAUTHORIZED,
            Json(json!({"error": "a valid key is needed"})),
        )
            .into_response();
    }
    next.run(request).await
}

async fn list(State(tracker): State<Arc<Tracker>>) -> Json<Value> {
    Json(json!({"issues": *tracker.issues.lock().unwrap_or_else(PoisonError::into_inner)}))
}

async fn create(
    State(tracker): State<Arc<Tracker>>,
    Json(mut issue): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let mut issues = tracker
        .issues
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let number = issues.len() + 1;
    if let Some(object) = issue.as_object_mut() {
        object.insert("number".into(), json!(number));
        object.insert("state".into(), json!("open"));
    }
    issues.push(issue.clone());
    (StatusCode::CREATED, Json(issue))
}

async fn show(
    State(tracker): State<Arc<Tracker>>,
    axum::extract::Path(number): axum::extract::Path<usize>,
) -> Response {
    let issues = tracker
        .issues
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    match number.checked_sub(1).and_then(|index| issues.get(index)) {
        Some(issue) => Json(issue.clone()).into_response(),
        None => (
            StatusCode::NOT_FOUND,
            Json(json!({"error": "no such issue"})),
        )
            .into_response(),
    }
}

/// Quotes the key in every way that a careless or hostile service might.
async fn echo(headers: HeaderMap) -> Response {
    let key = presented(&headers);
    let percent: String = key.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let body = json!({
        "debug": format!("you sent: Authorization: Bearer {key}"),
        "base64": base64::engine::general_purpose::STANDARD.encode(&key),
        "base64_shifted": base64::engine::general_purpose::STANDARD.encode(format!("x{key}")),
        "url_base64": base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!("yy{key}")),
        "hex": hex::encode(&key),
        "percent": percent,
        "nested": json!({"authorization": format!("Bearer {key}")}).to_string(),
    });
    let mut response = Json(body).into_response();
    if let Ok(value) = HeaderValue::from_str(&format!("seen={key}")) {
        response.headers_mut().insert("x-debug", value.clone());
        response.headers_mut().insert("set-cookie", value);
    }
    response
}
