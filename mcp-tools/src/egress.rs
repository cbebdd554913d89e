//! The sandbox's gateway for ordinary programs: an HTTP forward proxy that spends placeholders.
//!
//! A program inside a sandbox talks to `127.0.0.1:7001` as its proxy. The listener is the identity: whatever arrives there
//! is of that sandbox, and is answered only while the harness of the session's epoch has the sandbox named. A request goes
//! on if one of the session's credentials is bound to its destination and its placeholder stands in that credential's slot,
//! alone; then the one path of [`crate::spend`] takes it. Everything else is refused with a code, a cause and a cure.
//!
//! ```text
//! head (strict) -> named? -> target (canonical) -> bound? -> body (whole, bounded) -> placeholders -> spend -> answer
//! ```
//!
//! `CONNECT` is refused: the gateway cannot look into a tunnel. A program writes `http://` for a host that is bound with
//! https, and the gateway speaks TLS to the upstream.

mod attach;
mod connection;
mod head;
mod placeholder;
mod refused;
mod rules;
mod target;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use claviger_sandbox::handover::AttachReceiver;
use claviger_vault_protocol::{Destination, OpeningId};
use futures_util::StreamExt as _;
use http::{Method, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::attach::Attachments;
use self::connection::{Connection, Fault, MAX_BODY_BYTES};
use self::head::{Framing, Head};
use self::placeholder::{Found, Placeholders};
use self::refused::Refused;
pub(crate) use self::refused::status_of;
use self::target::Target;
use crate::openings::{Attachment, Live};
use crate::shared::Shared;
use crate::spend::{Limits, Payload, Request};

/// The tool's name in the vault's decisions and records.
const TOOL: &str = "egress";
/// KiB of bodies that one sandbox may have in our memory at a time; further bodies wait for their turn.
const MAX_HELD_KIB: usize = 64 * 1024;
/// A body larger than this is searched where it cannot hold other requests up.
const LONG_SEARCH_BYTES: usize = 128 * 1024;
/// How long a refusal waits for its record.
const REPORT: Duration = Duration::from_secs(5);

/// Serves what the hands attach until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, mut attach: AttachReceiver, stop: CancellationToken) {
    let mut attachments = Attachments::new(shared, stop.clone());
    loop {
        let handover = tokio::select! {
            () = stop.cancelled() => break,
            handover = attach.next() => handover,
        };
        match handover {
            Some(handover) => attachments.take(handover),
            // No more will be attached; those that are go on being served.
            None => {
                stop.cancelled().await;
                break;
            }
        }
    }
}

/// The gateway of one sandbox.
struct Gateway {
    shared: Arc<Shared>,
    attached: Arc<Attachment>,
    /// What to search for, made once per opening.
    searched: Mutex<Option<(OpeningId, Arc<Placeholders>)>>,
    /// What is left of [`MAX_HELD_KIB`].
    held: Semaphore,
}

impl Gateway {
    fn new(shared: Arc<Shared>, attached: Attachment) -> Self {
        Self {
            shared,
            attached: Arc::new(attached),
            searched: Mutex::new(None),
            held: Semaphore::new(MAX_HELD_KIB),
        }
    }

    /// Answers one connection, request after request.
    async fn talk(&self, stream: TcpStream) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "TCP_NODELAY was not set");
        }
        let mut connection = Connection::new(stream);
        loop {
            let head = match connection.head().await {
                Ok(Some(head)) => head,
                Ok(None) => break,
                Err(Fault::Gone) => return connection.abort(),
                Err(Fault::Refused(refused)) => {
                    self.tell(None, None, &refused).await;
                    if connection.refuse(None, &refused).await.is_err() {
                        return;
                    }
                    break;
                }
            };
            // Boxed, so that an idle connection does not keep room for a request.
            match Box::pin(self.exchange(&mut connection, &head)).await {
                Ok(()) if head.keeps_alive => {}
                Ok(()) => break,
                // An answer that broke off must not look complete.
                Err(Fault::Gone) => return connection.abort(),
                Err(Fault::Refused(refused)) => {
                    if connection.refuse(Some(&head), &refused).await.is_err()
                        || refused.closes
                        || !head.keeps_alive
                    {
                        break;
                    }
                }
            }
        }
        connection.close().await;
    }

    /// Answers one request. A refusal that is returned was told to the vault and is still to be written.
    async fn exchange(
        &self,
        connection: &mut Connection<TcpStream>,
        head: &Head,
    ) -> Result<(), Fault> {
        let live = self.live().map_err(|refused| unread(refused, head))?;
        if head.method == Method::CONNECT {
            return Err(connect_not_supported().into());
        }
        let mut destination = None;
        let found = Target::of(head).and_then(|target| {
            destination = Some(target.destination.clone());
            rules::bound(&live, target)
        });
        let target = match found {
            Ok(target) => target,
            Err(refused) => {
                // A placeholder on its way to a host of nobody's is probing, whatever the answer.
                let is_probing =
                    refused.refusal.code == rules::NOT_ALLOWED && self.is_probing(&live, head);
                let refused = if is_probing {
                    refused.alarming()
                } else {
                    refused
                };
                self.tell(Some(&live), destination, &refused).await;
                return Err(unread(refused, head).into());
            }
        };
        let _held = self.hold(head).await;
        let body = connection.body(head).await?;
        let planned = match self.placeholders(&live) {
            Ok(placeholders) => {
                let in_body = search(&placeholders, &body).await;
                rules::plan(&live, &placeholders, head, &target, in_body)
            }
            Err(refused) => Err(refused),
        };
        let plan = match planned {
            Ok(plan) => plan,
            Err(refused) => {
                self.tell(Some(&live), Some(target.destination), &refused)
                    .await;
                return Err(refused.into());
            }
        };
        let request = Request {
            method: head.method.clone(),
            url: plan.url,
            headers: plan.headers,
            body: Payload::Full(body),
        };
        let dropping = async {
            if plan.dropped {
                self.report(&live, "client_credential_dropped", Some(target.destination))
                    .await;
            }
        };
        let spending =
            self.shared
                .spender
                .spend(&live, plan.envelope, TOOL, "", request, Limits::default());
        let ((), spent) = tokio::join!(dropping, spending);
        let mut answer = spent.map_err(|refusal| Refused {
            status: status_of(&refusal.code),
            refusal,
            closes: false,
            reported: false,
        })?;
        let ending = connection
            .answer(head, answer.status, &answer.headers, head.keeps_alive)
            .await?;
        while let Some(piece) = answer.body.next().await {
            let piece = piece.map_err(|_| Fault::Gone)?;
            connection.chunk(ending, piece).await?;
        }
        connection.end(ending).await
    }

    /// Waits for room for the request's body; a chunked one may become as large as any.
    async fn hold(&self, head: &Head) -> Option<SemaphorePermit<'_>> {
        let bytes = match head.framing {
            Framing::Chunked => MAX_BODY_BYTES as u64,
            Framing::Length(length) => length.min(MAX_BODY_BYTES as u64),
        };
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        self.held.acquire_many(kib).await.ok()
    }

    /// The opening that this sandbox speaks for at this moment.
    fn live(&self) -> Result<Arc<Live>, Refused> {
        self.shared
            .openings
            .by_sandbox(&self.attached)
            .map(|(live, _)| live)
            .ok_or_else(|| {
                Refused::forbidden(
                    "sandbox_not_named",
                    "no harness speaks for this sandbox at the moment",
                )
                .with_fix("try again when the session runs")
            })
    }

    fn placeholders(&self, live: &Live) -> Result<Arc<Placeholders>, Refused> {
        let mut searched = self.searched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, placeholders)) = searched.as_ref()
            && *id == live.id
        {
            return Ok(Arc::clone(placeholders));
        }
        let placeholders = Placeholders::of(live.opening())
            .map(Arc::new)
            .map_err(|_| {
                Refused::forbidden(
                    "internal",
                    "the session has too many placeholders to search for",
                )
                .with_status(StatusCode::INTERNAL_SERVER_ERROR)
            })?;
        *searched = Some((live.id.clone(), Arc::clone(&placeholders)));
        Ok(placeholders)
    }

    fn is_probing(&self, live: &Live, head: &Head) -> bool {
        self.placeholders(live).is_ok_and(|placeholders| {
            placeholders.find(head.target.as_bytes()).is_some()
                || head
                    .headers
                    .values()
                    .any(|value| placeholders.find(value.as_bytes()).is_some())
        })
    }

    /// Has the vault record a refusal that is an alarm.
    async fn tell(&self, live: Option<&Live>, destination: Option<Destination>, refused: &Refused) {
        debug!(sandbox = %self.attached.sandbox, code = %refused.refusal.code, "egress refused");
        if let Some(live) = live
            && refused.reported
        {
            self.report(live, &refused.refusal.code, destination).await;
        }
    }

    async fn report(&self, live: &Live, reason: &str, destination: Option<Destination>) {
        let report = self.shared.spender.report(live, TOOL, reason, destination);
        if tokio::time::timeout(REPORT, report).await.is_err() {
            warn!(sandbox = %self.attached.sandbox, reason, "report was not recorded in time");
        }
    }
}

/// Looks for a placeholder in a body.
async fn search(placeholders: &Arc<Placeholders>, body: &Bytes) -> Option<Found> {
    if body.len() < LONG_SEARCH_BYTES {
        return placeholders.find(body);
    }
    let (placeholders, body) = (Arc::clone(placeholders), body.clone());
    let searching = tokio::task::spawn_blocking(move || placeholders.find(&body));
    // A search that did not end well found what must not leave.
    searching.await.unwrap_or(Some(Found::Own))
}

/// A refusal made before the body was read: the connection ends with it, unless there is no body.
fn unread(mut refused: Refused, head: &Head) -> Refused {
    refused.closes |= head.framing != Framing::Length(0);
    refused
}

fn connect_not_supported() -> Refused {
    let mut refused = Refused::forbidden("connect_not_supported", "a tunnel cannot be looked into, so none is opened")
        .with_status(StatusCode::NOT_IMPLEMENTED)
        .with_fix(
            "write http:// instead of https:// for a bound host: the gateway speaks TLS to it; or call the MCP tool at \
             $CLAVIGER_MCP_URL",
        );
    refused.closes = true;
    refused
}
