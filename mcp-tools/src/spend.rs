//! The one path from a request to a credentialed request on the wire, and back.
//!
//! Order: strip what the client may not say; digest; the vault decides and makes the intent
//! durable; dial; only then open the release, inject, send, wipe; stream the answer back scrubbed;
//! record the outcome before its last byte. A use that the vault denies dials nothing.

mod answer;
mod request;

use std::sync::Arc;
use std::time::Duration;

use claviger_vault_memory::SecretBytes;
use claviger_vault_protocol::client::ToolsVault;
use claviger_vault_protocol::sealed::{self, RELEASE_PURPOSE};
use claviger_vault_protocol::usage::{AuthorizeUse, Authorized, RecordOutcome, Report, UseStatus};
use claviger_vault_protocol::{Destination, Envelope, KeyPair, PublicKey, Refusal, Slot};
use http::header::{self, HeaderValue};
use http::{Method, StatusCode, Uri};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, warn};

pub(crate) use answer::{Answer, BodyError};
pub(crate) use request::{Payload, Request, is_plain_path};

use crate::dial::Dialer;
use crate::error::from_vault;
use crate::inject;
use crate::openings::Live;
use crate::scrub::{Known, Scrubber};

/// How long a use may take, and how large what comes back may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Until the connection stands.
    pub(crate) connect: Duration,
    /// From there until the answer's head.
    pub(crate) head: Duration,
    /// Between two pieces of the body.
    pub(crate) idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            head: Duration::from_secs(60),
            idle: Duration::from_secs(60),
        }
    }
}

/// Spends grants.
pub(crate) struct Spender {
    vault: ToolsVault,
    vault_key: PublicKey,
    instance_key: KeyPair,
    dialer: Arc<Dialer>,
    tasks: TaskTracker,
}

impl Spender {
    /// Makes a spender of the instance that registered `instance_key` at the vault of `vault_key`.
    pub(crate) fn new(
        vault: ToolsVault,
        vault_key: PublicKey,
        instance_key: KeyPair,
        dialer: Arc<Dialer>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            vault,
            vault_key,
            instance_key,
            dialer,
            tasks,
        }
    }

    /// Sends `request` with the envelope's credential in its slot and answers what comes back, scrubbed.
    ///
    /// # Cancel safety
    /// Dropping the future or the answer ends the connection; the outcome is recorded all the same.
    pub(crate) async fn spend(
        &self,
        live: &Live,
        envelope: &Envelope,
        tool: &str,
        tool_hash: &str,
        request: Request,
        limits: Limits,
    ) -> Result<Answer, Refusal> {
        let Request {
            method,
            mut url,
            mut headers,
            body,
        } = request;
        let binding = &envelope.binding;
        let destination = Destination::of(&url).ok_or_else(|| {
            Refusal::new(
                "destination_not_bound",
                "the request goes to no http or https host",
            )
        })?;
        if !is_plain_path(url.path()) {
            return Err(Refusal::new(
                "path_not_bound",
                "the path holds an escaped dot segment, slash or backslash trick",
            ));
        }
        if matches!(method, Method::CONNECT | Method::TRACE) {
            return Err(Refusal::new(
                "method_not_bound",
                format!("{method} is never sent with a credential"),
            ));
        }
        let dropped = inject::strip(&mut url, &mut headers, &binding.slot);
        let ask = AuthorizeUse {
            request_id: format!("req_{}", uuid::Uuid::new_v4().simple()),
            session: live.session.clone(),
            epoch: live.epoch,
            grant: envelope.grant.clone(),
            tool: tool.to_owned(),
            tool_hash: tool_hash.to_owned(),
            destination: destination.clone(),
            method: method.as_str().to_owned(),
            path: url.path().to_owned(),
            digest: request::digest(&method, &destination, &url, &headers, &body),
        };
        let report = async {
            if !dropped.is_empty() {
                debug!(session = %live.session, tool, dropped = dropped.len(), "client-supplied credentials dropped");
                self.report(
                    live,
                    tool,
                    "client_credential_dropped",
                    Some(destination.clone()),
                )
                .await;
            }
        };
        let ((), authorized) = tokio::join!(report, self.vault.authorize_use(&ask));
        let authorized = authorized.map_err(from_vault)?;
        let outcome = Outcome::new(self.vault.clone(), self.tasks.clone(), &authorized);
        // The vault decided; this only guards against deciding about one thing and doing another.
        if let Err(code) = binding.admits(&destination, &ask.method, &ask.path) {
            outcome.fail(code).await;
            return Err(Refusal::new(
                code,
                "the request lies outside the credential's binding",
            ));
        }

        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let mut outgoing = http::Request::new(body.into_body());
        *outgoing.method_mut() = method;
        let prepared = target.parse::<Uri>().ok().zip(host_header(&destination));
        let Some((uri, host)) = prepared else {
            outcome.fail("arguments_invalid").await;
            return Err(Refusal::new(
                "arguments_invalid",
                "the request's address has no valid form on the wire",
            ));
        };
        *outgoing.uri_mut() = uri;
        *outgoing.headers_mut() = headers;
        outgoing.headers_mut().insert(header::HOST, host);
        outgoing.headers_mut().insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );

        match self
            .exchange(live, envelope, &authorized, &destination, outgoing, limits)
            .await
        {
            Ok((response, scrubber, connection)) => {
                answer::begin(response, scrubber, connection, outcome, limits).await
            }
            Err(refusal) => {
                outcome.fail(&refusal.code).await;
                Err(refusal)
            }
        }
    }

    /// Records something that was refused before any use; a vault that does not answer is logged.
    pub(crate) async fn report(
        &self,
        live: &Live,
        tool: &str,
        reason: &str,
        destination: Option<Destination>,
    ) {
        let report = Report {
            session: live.session.clone(),
            epoch: live.epoch,
            reason: reason.to_owned(),
            tool: tool.to_owned(),
            destination,
        };
        if let Err(error) = self.vault.report(&report).await {
            warn!(session = %live.session, reason, code = error.code(), "report was not recorded");
        }
    }

    /// Dials, opens the release, injects, sends, and waits for the answer's head.
    async fn exchange(
        &self,
        live: &Live,
        envelope: &Envelope,
        authorized: &Authorized,
        destination: &Destination,
        mut outgoing: http::Request<request::OutgoingBody>,
        limits: Limits,
    ) -> Result<
        (
            http::Response<hyper::body::Incoming>,
            Scrubber,
            AbortOnDropHandle<()>,
        ),
        Refusal,
    > {
        let stream = self.dialer.open(destination, limits.connect).await?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(1 << 18)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| cut(destination))?;
        let driver = self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                // Hyper's texts name what was wrong, never bytes of the exchange.
                debug!(%error, "upstream connection ended");
            }
        });
        let driver = AbortOnDropHandle::new(driver);
        let scrubber = {
            let secret = self.open(live, envelope, authorized)?;
            if let Some(secret) = &secret {
                let (head, body) = outgoing.into_parts();
                let mut head = head;
                inject::inject(
                    &mut head.uri,
                    &mut head.headers,
                    &envelope.binding.slot,
                    secret,
                )?;
                outgoing = http::Request::from_parts(head, body);
            }
            scrubber(envelope, secret.as_ref())
        };
        // Hyper drops the head, and with it the injected value, when it is written.
        let response = tokio::time::timeout(limits.head, sender.send_request(outgoing))
            .await
            .map_err(|_| {
                Refusal::new(
                    "upstream_timeout",
                    format!("{} did not answer in time", destination.origin()),
                )
            })?;
        let response = response.map_err(|error| {
            debug!(%error, host = %destination.host, "no answer");
            cut(destination)
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Refusal::new(
                "upstream_malformed",
                "the upstream switched protocols unasked",
            ));
        }
        Ok((response, scrubber, driver))
    }

    /// Opens the secret that the vault released for exactly this use; none for a credential without.
    fn open(
        &self,
        live: &Live,
        envelope: &Envelope,
        authorized: &Authorized,
    ) -> Result<Option<SecretBytes>, Refusal> {
        let Some(release) = &authorized.release else {
            return if matches!(envelope.binding.slot, Slot::None) {
                Ok(None)
            } else {
                Err(does_not_open("it holds no key"))
            };
        };
        let use_id = authorized.use_id.as_str().as_bytes();
        let key = self
            .instance_key
            .open_from(self.vault_key, release, RELEASE_PURPOSE, use_id)
            .map_err(|_| does_not_open("it was not made by the vault for this use"))?;
        let binding = serde_json::to_vec(&envelope.binding)
            .map_err(|_| does_not_open("its binding has no form"))?;
        let associated = sealed::grant_associated(
            &live.session,
            live.epoch,
            envelope.grant.as_str(),
            envelope.credential.as_str(),
            authorized.version,
            &binding,
        );
        let ciphertext = authorized
            .ciphertext
            .as_deref()
            .unwrap_or(&envelope.ciphertext);
        sealed::open_grant(&key, ciphertext, &associated)
            .map(Some)
            .map_err(|_| {
                does_not_open(
                    "the grant does not belong to this session, epoch, version and binding",
                )
            })
    }
}

fn scrubber(envelope: &Envelope, secret: Option<&SecretBytes>) -> Scrubber {
    let username = match &envelope.binding.slot {
        Slot::Basic { username } => Some(username.as_str()),
        _ => None,
    };
    match secret {
        Some(secret) => Scrubber::new(&[Known {
            name: &envelope.name,
            secret: secret.expose(),
            basic_username: username,
        }]),
        None => Scrubber::new(&[]),
    }
}

fn host_header(destination: &Destination) -> Option<HeaderValue> {
    let host = if destination.host.contains(':') {
        format!("[{}]", destination.host)
    } else {
        destination.host.clone()
    };
    let is_default = matches!(
        (destination.scheme.as_str(), destination.port),
        ("http", 80) | ("https", 443)
    );
    let text = if is_default {
        host
    } else {
        format!("{host}:{}", destination.port)
    };
    HeaderValue::try_from(text).ok()
}

fn does_not_open(why: &str) -> Refusal {
    Refusal::new(
        "release_not_opened",
        format!("the vault's release does not open: {why}"),
    )
}

fn cut(destination: &Destination) -> Refusal {
    Refusal::new(
        "upstream_unreachable",
        format!(
            "{} ended the connection without an answer",
            destination.origin()
        ),
    )
}

/// The outcome of one use: recorded exactly once, even where the use is dropped half-way.
pub(crate) struct Outcome {
    vault: ToolsVault,
    tasks: TaskTracker,
    record: Option<RecordOutcome>,
}

impl Outcome {
    fn new(vault: ToolsVault, tasks: TaskTracker, authorized: &Authorized) -> Self {
        let record = RecordOutcome {
            use_id: authorized.use_id.clone(),
            // What is true if this is dropped before anything else is known.
            status: UseStatus::Unknown,
            http_status: 0,
            bytes: 0,
            scrubbed: 0,
            reason: None,
        };
        Self {
            vault,
            tasks,
            record: Some(record),
        }
    }

    /// Changes what would be recorded.
    fn note(&mut self, change: impl FnOnce(&mut RecordOutcome)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }

    /// Records a use that gave no answer.
    async fn fail(mut self, reason: &str) {
        self.note(|record| {
            record.status = UseStatus::Failed;
            record.reason = Some(reason.to_owned());
        });
        self.settle().await;
    }

    /// Records what was noted.
    async fn settle(&mut self) {
        if let Some(record) = self.record.take() {
            send(self.vault.clone(), record).await;
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Some(record) = self.record.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            self.tasks
                .spawn_on(send(self.vault.clone(), record), &runtime);
        }
    }
}

async fn send(vault: ToolsVault, record: RecordOutcome) {
    if let Err(error) = vault.record_outcome(&record).await {
        warn!(use_id = %record.use_id, code = error.code(), "outcome was not recorded");
    }
}

#[cfg(test)]
mod tests;
