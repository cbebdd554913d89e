//! Reads request bodies: capped, with a deadline, secrets cut out on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use claviger_vault_protocol::SecretBytes;
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::Value;
use zeroize::Zeroize as _;

use crate::problem::{Answer, Problem};
use crate::secret_field::{Cut, ScanError, Scanner, SecretField};

/// Largest body.
pub(crate) const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
/// How long a body may take to arrive.
const DEADLINE: Duration = Duration::from_secs(60);

/// Set when the request held a secret: its connection, whose read buffer has seen it, is closed after the answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldSecret(Arc<AtomicBool>);

impl HeldSecret {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A body that may hold no secret.
#[derive(Debug)]
pub(crate) struct Document(pub(crate) Value);

/// A body that may hold secrets, which wait beside it.
#[derive(Debug)]
pub(crate) struct SecretDocument {
    pub(crate) value: Value,
    secrets: Vec<SecretField>,
}

impl SecretDocument {
    /// Takes the secret at a path; none where it is absent or `null`.
    pub(crate) fn take(&mut self, path: &[&str]) -> Answer<Option<SecretBytes>> {
        let Some(at) = self.secrets.iter().position(|field| field.path == path) else {
            return Ok(None);
        };
        match self.secrets.remove(at).text {
            Some(text) => Ok(Some(text)),
            None => Err(Problem::field(&path.join("."), "must be a string")),
        }
    }

    /// Refuses what nobody took: a secret in a place that is no place for one, or given twice.
    pub(crate) fn finish(self) -> Answer<()> {
        match self.secrets.first() {
            None => Ok(()),
            Some(field) => Err(unexpected(field)),
        }
    }
}

fn unexpected(field: &SecretField) -> Problem {
    // Keys above the secret come from the caller; only the last one, which is on our list, is repeated.
    let name = field
        .path
        .iter()
        .rev()
        .find(|key| key.parse::<usize>().is_err())
        .map_or("secret", String::as_str);
    Problem::invalid(
        "unexpected_secret",
        format!("field {name} holds a secret and does not belong here"),
    )
    .with_fix("secrets are given to vaults: POST /v1/vaults/{vault_id}/credentials")
}

impl<S: Sync> FromRequest<S> for SecretDocument {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Answer<Self> {
        let held = request
            .extensions()
            .get::<HeldSecret>()
            .cloned()
            .unwrap_or_default();
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > MAX_BODY_BYTES) {
            return Err(too_large());
        }
        // A body that is given up half-way may have held one.
        held.0.store(true, Ordering::Relaxed);
        let cut = tokio::time::timeout(DEADLINE, receive(request.into_body()))
            .await
            .map_err(|_| {
                Problem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "body_timeout",
                    "the body did not arrive in time",
                )
            })??;
        held.0.store(!cut.secrets.is_empty(), Ordering::Relaxed);
        let value =
            serde_json::from_slice(&cut.body).map_err(|_| malformed(ScanError::Malformed))?;
        Ok(Self {
            value,
            secrets: cut.secrets,
        })
    }
}

impl<S: Sync> FromRequest<S> for Document {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Answer<Self> {
        let SecretDocument { value, secrets } =
            SecretDocument::from_request(request, state).await?;
        match secrets.first() {
            None => Ok(Self(value)),
            Some(field) => Err(unexpected(field)),
        }
    }
}

async fn receive(mut body: Body) -> Answer<Cut> {
    let mut scanner = Scanner::new();
    let mut left = MAX_BODY_BYTES;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| Problem::invalid("body_incomplete", "the body ended early"))?;
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        let pushed = match left.checked_sub(bytes.len()) {
            Some(rest) => {
                left = rest;
                scanner.push(&bytes).map_err(malformed)
            }
            None => Err(too_large()),
        };
        wipe(bytes);
        pushed?;
    }
    scanner.finish().map_err(malformed)
}

/// Wipes a piece of the body where it is ours alone; otherwise it dies with the connection's buffer.
fn wipe(bytes: Bytes) {
    if let Ok(mut bytes) = bytes.try_into_mut() {
        bytes.as_mut().zeroize();
    }
}

fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        "a body holds at most 32 MiB",
    )
}

fn malformed(error: ScanError) -> Problem {
    let code = match error {
        ScanError::Memory => {
            return Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "secret_memory_exhausted",
                "no secret memory is left",
            );
        }
        ScanError::Malformed => "malformed_json",
        ScanError::ManySecrets => "too_many_secrets",
        ScanError::SecretTooLong => "secret_too_long",
        ScanError::TooDeep => "nested_too_deep",
    };
    Problem::invalid(code, format!("body: {error}"))
}
