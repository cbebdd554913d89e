//! MCP over streamable HTTP: `/mcp` for direct clients with a key, and a sandbox's own listener.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use claviger_vault_protocol::Refusal;
use http::{HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::tower::{
    StreamableHttpServerConfig, StreamableHttpService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::key::Keys;
use super::{Admitted, Caller, Server, not_named, origin};
use crate::definition::is_name;
use crate::openings::Attachment;
use crate::shared::Shared;

/// Largest request body.
const MAX_BODY_BYTES: usize = 4 << 20;
/// Connections of direct clients at a time.
const MAX_CONNECTIONS: usize = 1024;
/// Connections of one sandbox at a time; the others of this process are not its to use up.
pub(super) const MAX_SANDBOX_CONNECTIONS: usize = 256;
/// How long the head of a request may take, an idle connection's next one included.
const HEAD_DEADLINE: Duration = Duration::from_secs(75);
/// How long open answers may take when the role ends.
const DRAIN: Duration = Duration::from_secs(2);

/// Who may speak to a listener.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    /// Whoever brings a key.
    Keyed,
    /// A sandbox: the listener inside it is its identity.
    Sandbox(Arc<Attachment>),
}

#[derive(Clone)]
struct Front {
    shared: Arc<Shared>,
    door: Door,
    local: SocketAddr,
    keys: Arc<Keys>,
    service: StreamableHttpService<Server, LocalSessionManager>,
}

/// Serves a sandbox's `mcp` listener until `stop`; the listener's descriptor came from the hands.
pub(crate) async fn serve_sandbox(
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    attached: Arc<Attachment>,
    stop: CancellationToken,
) {
    match listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener))
    {
        Ok(listener) => serve(shared, listener, Door::Sandbox(attached), stop).await,
        Err(error) => {
            warn!(sandbox = attached.sandbox, %error, "a sandbox's listener cannot be served");
        }
    }
}

/// Serves MCP on a TCP listener until `stop`.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    door: Door,
    stop: CancellationToken,
) {
    let local = match listener.local_addr() {
        Ok(local) => local,
        Err(error) => {
            warn!(%error, "a listener has no address");
            return;
        }
    };
    // One request, one answer, one write: no session to keep, no stream to stall.
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .with_max_request_body_bytes(MAX_BODY_BYTES)
        .with_cancellation_token(stop.child_token())
        .with_allowed_hosts([
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
            local.ip().to_string(),
        ]);
    let server = Server::new(Arc::clone(&shared), None);
    let service = StreamableHttpService::new(
        move || Ok(server.clone()),
        Arc::new(LocalSessionManager::default()),
        config,
    );
    let front = Front {
        shared,
        door,
        local,
        keys: Arc::default(),
        service,
    };
    let places = match front.door {
        Door::Keyed => MAX_CONNECTIONS,
        Door::Sandbox(_) => MAX_SANDBOX_CONNECTIONS,
    };
    let router = Router::new().fallback(answer).with_state(front);
    accept(&listener, places, &router, &stop).await;
}

/// Serves at most `places` connections at a time until `stop`; more wait in the listener's queue.
async fn accept(listener: &TcpListener, places: usize, router: &Router, stop: &CancellationToken) {
    let places = Arc::new(Semaphore::new(places));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let work = connection(stream, router.clone(), stop.clone());
                connections.spawn(async move {
                    work.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, or the peer is gone already: the listener itself is fine.
                warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        connections.shutdown().await;
    }
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    // Without TCP_NODELAY an answer of two writes waits 40 ms for the peer's acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY was not set");
    }
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        router.clone().oneshot(request.map(Body::new))
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

async fn answer(State(front): State<Front>, mut request: Request) -> Response {
    match front.admit(&mut request).await {
        Ok(()) => {
            let response = front.service.handle(request).await;
            response.map(Body::new)
        }
        Err(refusal) => refused(&refusal),
    }
}

impl Front {
    /// Decides who asks, puts that into the request, and takes the key out of it.
    async fn admit(&self, request: &mut Request) -> Result<(), Refusal> {
        let caller = match &self.door {
            Door::Keyed => {
                origin::check(request.headers(), request.uri(), self.local)?;
                Caller::Client(
                    self.keys
                        .holder(&self.shared.vault, request.headers())
                        .await?,
                )
            }
            Door::Sandbox(attached) => {
                origin::check(request.headers(), request.uri(), self.local)?;
                if self.shared.openings.by_sandbox(attached).is_none() {
                    return Err(not_named());
                }
                Caller::Sandbox(Arc::clone(attached))
            }
        };
        let only = match request.uri().path() {
            "/mcp" | "/mcp/" => None,
            path => match path.strip_prefix("/mcp/") {
                Some(name) if is_name(name) => Some(name.to_owned()),
                _ => {
                    return Err(Refusal::new(
                        "not_found",
                        "MCP is at /mcp, one definition of it at /mcp/NAME",
                    ));
                }
            },
        };
        request.headers_mut().remove(header::AUTHORIZATION);
        request.extensions_mut().insert(Admitted { caller, only });
        Ok(())
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal.code.as_str() {
        "not_found" => StatusCode::NOT_FOUND,
        "origin_not_allowed" => StatusCode::FORBIDDEN,
        "unauthenticated" => StatusCode::UNAUTHORIZED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response =
        (status, axum::Json(serde_json::json!({ "error": refusal }))).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"claviger\""),
        );
    }
    response
}
