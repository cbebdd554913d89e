//! The model route: the Messages API for harnesses, spending the session's model credential.
//!
//! HTTP/2 with prior knowledge on each link. A request names its session and epoch, and is answered only if the very
//! harness that asks presented exactly that opening here, over its other link; its model grant is then spent like any other, so that each model call is decided
//! and recorded, a keyless one included. The answer passes piece by piece as it comes.

mod refusal;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use claviger_vault_protocol::Refusal;
use claviger_vault_protocol::present::{EPOCH_HEADER, SESSION_HEADER};
use futures_util::StreamExt as _;
use http::header;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;
use url::Url;

use self::refusal::error_response;
use crate::role::Linked;
use crate::shared::Shared;
use crate::spend::{BodyError, Limits, Payload, Request};

/// The tool's name in the vault's decisions and records.
const TOOL: &str = "model";
/// The Messages API's own limit on a request.
const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
/// How long the harness may take to send a request's body.
const BODY: Duration = Duration::from_secs(60);
/// A model may think long before its first byte, and between two.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(10),
    head: Duration::from_secs(600),
    idle: Duration::from_secs(300),
};
/// What may be asked of the model's server.
const PATHS: &[&str] = &["/v1/messages", "/v1/messages/count_tokens"];
/// What of the harness's headers goes on. Everything else stays here, credentials of any name among it.
const KEPT: &[&str] = &[
    "accept",
    "anthropic-beta",
    "anthropic-version",
    "content-type",
    "user-agent",
];

type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Serves the model route on every link that arrives until `stop`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut links: mpsc::Receiver<Linked>,
    base_url: Url,
    stop: CancellationToken,
) {
    let base_url = Arc::new(base_url);
    loop {
        let linked = tokio::select! {
            () = stop.cancelled() => return,
            linked = links.recv() => linked,
        };
        // No link comes any more; those that are go on being served by their own tasks.
        let Some(linked) = linked else { return };
        let work = serve(
            Arc::clone(&shared),
            linked,
            Arc::clone(&base_url),
            stop.clone(),
        );
        shared.tasks.spawn(work);
    }
}

/// Runs hyper's part of a connection among the tasks that the role waits for.
#[derive(Clone, Debug)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// Serves one harness's link until it leaves or `stop`.
async fn serve(shared: Arc<Shared>, linked: Linked, base_url: Arc<Url>, stop: CancellationToken) {
    let Linked { peer, stream } = linked;
    let peer: Arc<str> = peer.into();
    let executor = Tracked(shared.tasks.clone());
    let service = service_fn(move |request| {
        let (shared, base_url, peer) = (
            Arc::clone(&shared),
            Arc::clone(&base_url),
            Arc::clone(&peer),
        );
        async move { Ok::<_, Infallible>(answer(&shared, &peer, &base_url, request).await) }
    });
    let mut builder = http2::Builder::new(executor);
    builder
        .max_concurrent_streams(1024)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 22)
        .max_header_list_size(64 * 1024);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "model link ended");
    }
}

async fn answer(
    shared: &Shared,
    peer: &str,
    base_url: &Url,
    request: http::Request<Incoming>,
) -> Response<Body> {
    match forward(shared, peer, base_url, request).await {
        Ok(response) => response,
        Err((status, refusal)) => {
            debug!(code = %refusal.code, "model call refused");
            error_response(status, &refusal)
        }
    }
}

async fn forward(
    shared: &Shared,
    peer: &str,
    base_url: &Url,
    request: http::Request<Incoming>,
) -> Result<Response<Body>, (StatusCode, Refusal)> {
    let (head, body) = request.into_parts();
    if !PATHS.contains(&head.uri.path()) {
        return Err((
            StatusCode::NOT_FOUND,
            Refusal::new("unknown_path", "the model route has no such path"),
        ));
    }
    if head.method != Method::POST {
        return Err((
            StatusCode::METHOD_NOT_ALLOWED,
            Refusal::new("method_not_allowed", "only POST is answered"),
        ));
    }
    // Some clients ask for beta features this way; nothing else belongs into the query.
    let query = match head.uri.query() {
        None | Some("") => None,
        Some("beta=true") => Some("beta=true"),
        Some(_) => return Err(malformed("a query other than beta=true")),
    };
    let session = only(&head.headers, SESSION_HEADER)?;
    let epoch: u64 = only(&head.headers, EPOCH_HEADER)?
        .parse()
        .map_err(|_| malformed("the epoch is not a number"))?;
    let not_found = |why: String| {
        (
            StatusCode::FORBIDDEN,
            Refusal::new("opening_not_found", why),
        )
    };
    let live = shared
        .openings
        .live(session, epoch)
        .filter(|live| !live.is_seat() && shared.presenters.has(peer, session, epoch))
        .ok_or_else(|| {
            not_found("this session was not presented here at this epoch, or is over".to_owned())
        })?;
    let envelope = live.model_envelope().ok_or_else(|| {
        let refusal = Refusal::new(
            "grant_not_found",
            "this session's charter has no model credential",
        )
        .with_fix("claviger secret list");
        (StatusCode::FORBIDDEN, refusal)
    })?;

    let kept = head
        .headers
        .iter()
        .filter(|(name, _)| KEPT.contains(&name.as_str()));
    let headers = kept
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut url = base_url.clone();
    url.set_path(&format!(
        "{}{}",
        base_url.path().trim_end_matches('/'),
        head.uri.path()
    ));
    url.set_query(query);
    url.set_fragment(None);
    let body = read(body).await?;

    let request = Request {
        method: Method::POST,
        url,
        headers,
        body: Payload::Full(body),
    };
    let answer = shared
        .spender
        .spend(&live, envelope, TOOL, "", request, LIMITS)
        .await
        .map_err(|refusal| (crate::egress::status_of(&refusal.code), refusal))?;
    let mut response = Response::new(
        StreamBody::new(answer.body.map(|piece| piece.map(Frame::data))).boxed_unsync(),
    );
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    // The harness keeps no cookies: it would carry what the model's host set into another session.
    response.headers_mut().remove(header::SET_COOKIE);
    Ok(response)
}

async fn read(body: Incoming) -> Result<Bytes, (StatusCode, Refusal)> {
    let collected = tokio::time::timeout(BODY, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let refusal = Refusal::new("body_too_large", "the request is larger than 32 MiB");
            Err((StatusCode::PAYLOAD_TOO_LARGE, refusal))
        }
        Ok(Err(_)) => Err(malformed("the request's body broke off")),
        Err(_) => Err((
            StatusCode::REQUEST_TIMEOUT,
            Refusal::new("request_timeout", "the request's body did not come in time"),
        )),
    }
}

/// The value of a header that is there exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, (StatusCode, Refusal)> {
    let mut values = headers.get_all(name).iter();
    match (
        values.next().and_then(|value| value.to_str().ok()),
        values.next(),
    ) {
        (Some(value), None) => Ok(value),
        _ => Err(malformed(&format!(
            "the header {name} is not there exactly once"
        ))),
    }
}

fn malformed(message: &str) -> (StatusCode, Refusal) {
    (
        StatusCode::BAD_REQUEST,
        Refusal::new("malformed_request", message),
    )
}
