//! Streams model requests over the link to tools: HTTP/2 with prior knowledge.

use std::time::Duration;

use bytes::Bytes;
use claviger_vault_protocol::present::{EPOCH_HEADER, SESSION_HEADER};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::message::{Accumulator, Complete, Seen};
use super::sse::Parser;

/// Longest error body that is read.
const MAX_ERROR_BYTES: usize = 256 << 10;
/// Longest message of a model that does not stream.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// How long the client waits for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For a link to tools.
    pub(crate) link: Duration,
    /// For the answer's head; local models may read a long prompt first.
    pub(crate) head: Duration,
    /// Between two chunks of a stream; upstreams send pings well within it.
    pub(crate) idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            link: Duration::from_secs(15),
            head: Duration::from_secs(300),
            idle: Duration::from_secs(120),
        }
    }
}

/// Text that a stream brought before its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Piece {
    /// Position of its block in the message.
    pub(crate) block: u64,
    /// What follows what came before in the block.
    pub(crate) text: String,
}

/// A complete answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reply {
    /// The raw message.
    pub(crate) message: Value,
    /// Ids of `tool_use` blocks whose input was cut off.
    pub(crate) incomplete: Vec<String>,
    /// From sending to the first content.
    pub(crate) ttft: Duration,
    /// From sending to the end.
    pub(crate) elapsed: Duration,
}

/// Why a model request gave no message.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{code}: {message}")]
pub(crate) struct ModelError {
    /// The API's error type, or a code of tools or of this client.
    pub(crate) code: String,
    /// What was said about it.
    pub(crate) message: String,
    /// HTTP status, where there was an answer.
    pub(crate) status: Option<u16>,
    /// Whether the same request may succeed later.
    pub(crate) is_retryable: bool,
    /// When the other side wants to be asked again.
    pub(crate) retry_after: Option<Duration>,
}

impl ModelError {
    fn passing(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            status: None,
            is_retryable: true,
            retry_after: None,
        }
    }

    /// Type of the `session.error` that tells of this.
    pub(crate) fn api_type(&self) -> &'static str {
        match (self.code.as_str(), self.status) {
            ("overloaded_error", _) | (_, Some(529)) => "model_overloaded_error",
            ("rate_limit_error", _) | (_, Some(429)) => "model_rate_limited_error",
            ("billing_error", _) | (_, Some(402)) => "billing_error",
            _ => "model_request_failed_error",
        }
    }
}

/// Sends model requests over the newest link; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ModelClient {
    current: watch::Receiver<Option<SendRequest<Full<Bytes>>>>,
    patience: Patience,
}

impl ModelClient {
    /// Makes a client over the newest of `links` and the future that drives its connections.
    pub(crate) fn new(
        links: mpsc::Receiver<UnixStream>,
        patience: Patience,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, current) = watch::channel(None);
        (Self { current, patience }, drive(links, sender))
    }

    /// Sends one request and puts its streamed answer together; `see` gets what comes on the way.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream; the model stops.
    pub(crate) async fn send(
        &self,
        session: &str,
        epoch: u64,
        body: Bytes,
        see: impl FnMut(Piece) + Send,
    ) -> Result<Reply, ModelError> {
        let sent_at = Instant::now();
        let request = Request::post("http://tools/v1/messages")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "text/event-stream")
            .header("anthropic-version", "2023-06-01")
            .header(SESSION_HEADER, session)
            .header(EPOCH_HEADER, epoch)
            .body(Full::new(body))
            .map_err(|error| ModelError {
                is_retryable: false,
                ..ModelError::passing("malformed_request", error.to_string())
            })?;
        let unreachable = |error: &dyn std::fmt::Display| {
            ModelError::passing("peer_unreachable", format!("tools: {error}"))
        };
        let mut sender = self.connected().await?;
        let answered = timeout(self.patience.head, async {
            sender.ready().await?;
            sender.send_request(request).await
        });
        let response = answered
            .await
            .map_err(|_elapsed| {
                ModelError::passing("timeout_error", "no answer to the model request")
            })?
            .map_err(|error| unreachable(&error))?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        let is_stream = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_none_or(|value| !value.starts_with("application/json"));
        let (
            Complete {
                message,
                incomplete,
            },
            ttft,
        ) = if is_stream {
            self.read_stream(response.into_body(), sent_at, see).await?
        } else {
            (
                read_whole(response.into_body(), self.patience.head).await?,
                sent_at.elapsed(),
            )
        };
        Ok(Reply {
            message,
            incomplete,
            ttft,
            elapsed: sent_at.elapsed(),
        })
    }

    async fn connected(&self) -> Result<SendRequest<Full<Bytes>>, ModelError> {
        let mut current = self.current.clone();
        let waited = timeout(
            self.patience.link,
            current.wait_for(|sender| sender.as_ref().is_some_and(|sender| !sender.is_closed())),
        );
        match waited.await {
            Ok(Ok(sender)) => sender
                .clone()
                .ok_or_else(|| ModelError::passing("peer_unreachable", "no link to tools")),
            _ => Err(ModelError::passing("peer_unreachable", "no link to tools")),
        }
    }

    async fn read_stream(
        &self,
        mut body: Incoming,
        sent_at: Instant,
        mut see: impl FnMut(Piece) + Send,
    ) -> Result<(Complete, Duration), ModelError> {
        let mut parser = Parser::default();
        let mut accumulator = Accumulator::default();
        let mut ttft = None;
        let malformed = |error: &dyn std::fmt::Display| {
            ModelError::passing("malformed_stream", error.to_string())
        };
        while !accumulator.is_stopped() {
            let frame = timeout(self.patience.idle, body.frame())
                .await
                .map_err(|_elapsed| {
                    ModelError::passing("timeout_error", "the model's stream fell silent")
                })?;
            let Some(frame) = frame else { break };
            let frame =
                frame.map_err(|error| ModelError::passing("stream_cut", error.to_string()))?;
            let Ok(chunk) = frame.into_data() else {
                continue;
            };
            for event in parser.push(&chunk).map_err(|error| malformed(&error))? {
                let data: Value = serde_json::from_str(&event.data)
                    .map_err(|_| malformed(&"an event that is no JSON"))?;
                if data.get("type").and_then(Value::as_str) == Some("error")
                    || event.event == "error"
                {
                    return Err(api_error(&data, None, &HeaderMap::new()));
                }
                match accumulator
                    .apply(&data)
                    .map_err(|error| malformed(&error))?
                {
                    Some(Seen::Text(block, text)) => {
                        ttft.get_or_insert_with(|| sent_at.elapsed());
                        see(Piece { block, text });
                    }
                    Some(Seen::Began) => drop(ttft.get_or_insert_with(|| sent_at.elapsed())),
                    None => {}
                }
            }
        }
        if !accumulator.is_stopped() {
            return Err(ModelError::passing(
                "stream_cut",
                "the model's stream ended before its message",
            ));
        }
        let complete = accumulator.finish().map_err(|error| malformed(&error))?;
        Ok((complete, ttft.unwrap_or_else(|| sent_at.elapsed())))
    }
}

async fn drive(
    mut links: mpsc::Receiver<UnixStream>,
    current: watch::Sender<Option<SendRequest<Full<Bytes>>>>,
) {
    // Requests under way keep their older connection until it ends by itself.
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            link = links.recv() => {
                let Some(link) = link else { break };
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
                match builder.handshake(TokioIo::new(link)).await {
                    Ok((sender, connection)) => {
                        current.send_replace(Some(sender));
                        connections.push(connection);
                    }
                    Err(error) => tracing::debug!(%error, "a model link did not come up"),
                }
            }
            Some(ended) = connections.next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a model link ended");
                }
            }
        }
    }
    while connections.next().await.is_some() {}
}

async fn read_whole(body: Incoming, patience: Duration) -> Result<Complete, ModelError> {
    let cut = |reason: String| ModelError::passing("stream_cut", reason);
    let collected = timeout(patience, Limited::new(body, MAX_MESSAGE_BYTES).collect());
    let bytes = collected
        .await
        .map_err(|_elapsed| cut("the answer stopped coming".to_owned()))?
        .map_err(|error| cut(error.to_string()))?
        .to_bytes();
    let message: Value = serde_json::from_slice(&bytes)
        .map_err(|error| ModelError::passing("malformed_stream", error.to_string()))?;
    if message.get("type").and_then(Value::as_str) == Some("error") {
        return Err(api_error(&message, None, &HeaderMap::new()));
    }
    if !message.get("content").is_some_and(Value::is_array) {
        return Err(ModelError::passing(
            "malformed_stream",
            "an answer without content",
        ));
    }
    Ok(Complete {
        message,
        incomplete: Vec::new(),
    })
}

async fn refusal(response: Response<Incoming>) -> ModelError {
    let (head, body) = response.into_parts();
    let collected = timeout(
        Duration::from_secs(10),
        Limited::new(body, MAX_ERROR_BYTES).collect(),
    )
    .await;
    let bytes = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        _ => Bytes::new(),
    };
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    api_error(&body, Some(head.status), &head.headers)
}

/// Reads `{"type":"error","error":{"type","message"}}`; tools may add its own `code`.
fn api_error(body: &Value, status: Option<StatusCode>, headers: &HeaderMap) -> ModelError {
    let error = body.get("error").unwrap_or(body);
    let text = |name: &str| error.get(name).and_then(Value::as_str);
    let code = text("code")
        .or_else(|| text("type"))
        .unwrap_or("api_error")
        .to_owned();
    let told = headers
        .get("x-should-retry")
        .and_then(|value| value.to_str().ok());
    let by_status = status
        .map(|status| matches!(status.as_u16(), 408 | 409 | 425 | 429) || status.is_server_error());
    let by_code = matches!(
        code.as_str(),
        "overloaded_error"
            | "api_error"
            | "rate_limit_error"
            | "timeout_error"
            | "vault_sealed"
            | "peer_unreachable"
    );
    let is_retryable = match told {
        Some("true") => true,
        Some("false") => false,
        _ => by_status.unwrap_or(false) || by_code,
    };
    ModelError {
        message: text("message").map_or_else(
            || {
                status.map_or_else(
                    || "an error without text".to_owned(),
                    |status| format!("the model answered {status}"),
                )
            },
            str::to_owned,
        ),
        code,
        status: status.map(|status| status.as_u16()),
        is_retryable,
        retry_after: retry_after(headers),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms")
        .map(|ms| ms / 1000.0)
        .or_else(|| number("retry-after"))?;
    Duration::try_from_secs_f64(seconds).ok()
}
