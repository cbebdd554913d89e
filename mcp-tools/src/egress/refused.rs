//! What the gateway answers when it does not forward.

use bytes::Bytes;
use claviger_vault_protocol::Refusal;
use http::StatusCode;

/// A refusal on its way to the program inside the sandbox, and to the vault where it is an alarm.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) refusal: Refusal,
    /// Whether the connection can carry another request: never after a head or body that was not read to its end.
    pub(super) closes: bool,
    /// Whether the vault is told, so that the audit log holds it.
    pub(super) reported: bool,
}

impl Refused {
    /// A request that does not parse, or means two things at once. Nothing after it on the connection is read.
    pub(super) fn malformed(code: &str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            refusal: Refusal::new(code, message),
            closes: true,
            reported: false,
        }
    }

    /// A request that is understood and not allowed.
    pub(super) fn forbidden(code: &str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            refusal: Refusal::new(code, message),
            closes: false,
            reported: false,
        }
    }

    /// As an alarm: the vault records it.
    pub(super) fn alarming(mut self) -> Self {
        self.reported = true;
        self
    }

    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(super) fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.refusal = self.refusal.with_fix(fix);
        self
    }

    /// The answer's body, `{"code":..,"message":..,"fix":..}` and a line end.
    pub(super) fn body(&self) -> Bytes {
        let mut text = serde_json::to_vec(&self.refusal).unwrap_or_default();
        text.push(b'\n');
        text.into()
    }
}

/// The HTTP status for a refusal that came from the vault or from spending.
pub(crate) fn status_of(code: &str) -> StatusCode {
    match code {
        "arguments_invalid" | "malformed_request" => StatusCode::BAD_REQUEST,
        "encoding_not_supported"
        | "tls_not_usable"
        | "upstream_malformed"
        | "upstream_not_verified"
        | "upstream_unreachable" => StatusCode::BAD_GATEWAY,
        "internal" | "peer_malformed" | "release_not_opened" | "secret_unusable" => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        "audit_failed"
        | "not_registered"
        | "peer_timeout"
        | "peer_unreachable"
        | "vault_sealed"
        | "vault_uninitialized"
        | "vault_unreachable" => StatusCode::SERVICE_UNAVAILABLE,
        "upstream_timeout" => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::FORBIDDEN,
    }
}
