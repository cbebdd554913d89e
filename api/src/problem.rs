//! What the caller is told when a request is not carried out.

use axum::Json;
use axum::response::{IntoResponse, Response};
use claviger_session::SessionError;
use claviger_vault_protocol::WireError;
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

/// A refusal: status, the API's error type, a stable code, one sentence and, where there is one, the cure.
///
/// Never quotes a value of the request; field names only.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    code: String,
    message: String,
    fix: Option<String>,
}

pub(crate) type Answer<T> = Result<T, Problem>;

impl Problem {
    pub(crate) fn new(
        status: StatusCode,
        code: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            fix: None,
        }
    }

    /// A request that breaks a rule.
    pub(crate) fn invalid(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// A field with a value that it may not have.
    pub(crate) fn field(path: &str, rule: &str) -> Self {
        Self::invalid("invalid_field", format!("{path}: {rule}"))
    }

    pub(crate) fn conflict(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("{what}_not_found"),
            format!("no such {what}"),
        )
    }

    pub(crate) fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "key_required",
            "a valid API key is required",
        )
        .with_fix("send the key as x-api-key or as Authorization: Bearer")
    }

    pub(crate) fn forbidden(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    pub(crate) fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    pub(crate) fn code(&self) -> &str {
        &self.code
    }

    /// The API's error type for this status.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            408 | 504 => "timeout_error",
            409 => "conflict_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            529 => "overloaded_error",
            _ => "api_error",
        }
    }

    /// Renders the error envelope.
    pub(crate) fn render(&self, request_id: &str) -> Response {
        let mut details = Map::new();
        details.insert("error_code".to_owned(), self.code.clone().into());
        if let Some(fix) = &self.fix {
            details.insert("fix".to_owned(), fix.clone().into());
        }
        let body = json!({
            "type": "error",
            "error": {"type": self.kind(), "message": self.message, "details": Value::Object(details)},
            "request_id": request_id,
        });
        let mut response = (self.status, Json(body)).into_response();
        // The official SDKs repeat a 409 twice unless told not to.
        if self.status == StatusCode::CONFLICT {
            response
                .headers_mut()
                .insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

impl IntoResponse for Problem {
    /// Leaves the body to [`crate::gate::frame`], which knows the request's id.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<SessionError> for Problem {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::NotFound => {
                Self::new(StatusCode::NOT_FOUND, "not_found", "no such object")
            }
            SessionError::Invalid { reason } => Self::invalid("invalid_event", reason),
            SessionError::Conflict { .. }
            | SessionError::Fenced { .. }
            | SessionError::Held { .. } => {
                Self::conflict("concurrent_change", "the object changed meanwhile")
            }
            SessionError::Disconnected => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "session_unreachable",
                "the session store cannot be reached",
            ),
            error => {
                tracing::error!(%error, "session store");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "session_store_failed",
                    "the session store failed",
                )
            }
        }
    }
}

impl From<WireError> for Problem {
    fn from(error: WireError) -> Self {
        let refusal = match error {
            WireError::Refused(refusal) => refusal,
            other => {
                tracing::warn!(error = %other, "vault");
                return Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    other.code(),
                    "the vault did not answer",
                );
            }
        };
        let status = match refusal.code.as_str() {
            "key_unknown" => return Self::unauthenticated(),
            "vault_sealed" | "vault_uninitialized" => StatusCode::SERVICE_UNAVAILABLE,
            "credential_not_found" | "charter_not_found" => StatusCode::NOT_FOUND,
            "name_taken" => StatusCode::CONFLICT,
            "principal_not_permitted" | "operator_authentication_required" | "unknown_verb" => {
                StatusCode::FORBIDDEN
            }
            "malformed_request"
            | "credential_archived"
            | "empty_secret"
            | "secret_has_line_break"
            | "secret_too_short"
            | "binding_immutable" => StatusCode::BAD_REQUEST,
            code => {
                tracing::warn!(code, "the vault refused");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let problem = Self::new(status, refusal.code, refusal.message);
        match refusal.fix {
            Some(fix) => problem.with_fix(fix),
            None => problem,
        }
    }
}
