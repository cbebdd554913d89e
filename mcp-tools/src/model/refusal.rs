//! Our own refusals in the form of Messages API errors.

use bytes::Bytes;
use claviger_vault_protocol::Refusal;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::json;

use super::Body;

/// Codes of what passes by itself or by an operator's act, so that waiting helps.
const PASSING: &[&str] = &[
    "not_registered",
    "peer_timeout",
    "peer_unreachable",
    "request_timeout",
    "upstream_timeout",
    "upstream_unreachable",
    "vault_sealed",
    "vault_unreachable",
];

/// A refusal as the Messages API writes errors, with its stable code beside.
///
/// ```json
/// {"type":"error","error":{"type":"permission_error","message":"..","code":"opening_not_found"}}
/// ```
pub(super) fn error_response(status: StatusCode, refusal: &Refusal) -> Response<Body> {
    let mut error =
        json!({ "type": kind(status), "message": refusal.message, "code": refusal.code });
    if let Some(fix) = &refusal.fix {
        error["fix"] = json!(fix);
    }
    let text = json!({ "type": "error", "error": error }).to_string();
    let body = Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let retry = if PASSING.contains(&refusal.code.as_str()) {
        "true"
    } else {
        "false"
    };
    headers.insert("x-should-retry", HeaderValue::from_static(retry));
    if let Ok(code) = HeaderValue::from_str(&refusal.code) {
        headers.insert("claviger-refusal", code);
    }
    response
}

fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        413 => "request_too_large",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}
