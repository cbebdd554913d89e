//! What comes back from a use: scrubbed, streamed, its outcome recorded before the last byte.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use claviger_vault_protocol::Refusal;
use claviger_vault_protocol::usage::UseStatus;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use http::header;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::{Limits, Outcome};
use crate::scrub::Scrubber;

/// An upstream's answer without a trace of the secret. The reason phrase and trailers of the
/// upstream are not part of it: nobody needs them, and what does not exist cannot leak.
pub(crate) struct Answer {
    /// Status.
    pub(crate) status: StatusCode,
    /// Headers, scrubbed, without those of one hop and without `content-length`, which scrubbing changes.
    pub(crate) headers: HeaderMap,
    /// Body, scrubbed.
    pub(crate) body: AnswerBody,
}

/// Why a body ended early.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BodyError {
    /// The upstream broke off.
    #[error("the upstream ended its answer early")]
    Cut,
    /// Nothing came for too long.
    #[error("the upstream stopped sending")]
    TimedOut,
}

/// A scrubbed body. Dropping it ends the upstream connection and records the outcome.
pub(crate) struct AnswerBody {
    pieces: BoxStream<'static, Result<Bytes, BodyError>>,
    scrubber: Arc<Mutex<Scrubber>>,
}

/// A whole answer, up to a limit.
pub(crate) struct Collected {
    /// The scrubbed body.
    pub(crate) bytes: Bytes,
    /// Whether there was more.
    pub(crate) is_truncated: bool,
    scrubber: Arc<Mutex<Scrubber>>,
}

impl Collected {
    /// The body as JSON. Decoding can put a secret together that was escaped letter by letter, so
    /// every string is scrubbed once more; the flag says whether that changed anything.
    pub(crate) fn json(&self) -> Option<(Value, bool)> {
        if self.is_truncated {
            return None;
        }
        let value = serde_json::from_slice(&self.bytes).ok()?;
        let mut scrubber = self.scrubber.lock().unwrap_or_else(PoisonError::into_inner);
        let before = scrubber.hits();
        let value = scrub_strings(value, &mut scrubber);
        Some((value, scrubber.hits() > before))
    }
}

fn scrub_strings(value: Value, scrubber: &mut Scrubber) -> Value {
    let text = |text: String, scrubber: &mut Scrubber| match scrubber.value(text.as_bytes()) {
        Some(scrubbed) => String::from_utf8_lossy(&scrubbed).into_owned(),
        None => text,
    };
    match value {
        Value::String(string) => Value::String(text(string, scrubber)),
        Value::Array(items) => items
            .into_iter()
            .map(|item| scrub_strings(item, scrubber))
            .collect(),
        Value::Object(map) => {
            let pairs = map
                .into_iter()
                .map(|(key, item)| (text(key, scrubber), scrub_strings(item, scrubber)));
            Value::Object(pairs.collect())
        }
        other => other,
    }
}

impl Stream for AnswerBody {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.poll_next_unpin(context)
    }
}

impl Answer {
    /// Reads the body up to `max_bytes`.
    pub(crate) async fn collect(mut self, max_bytes: usize) -> Result<Collected, BodyError> {
        let mut all = BytesMut::new();
        let mut is_truncated = false;
        while let Some(piece) = self.body.next().await {
            let piece = piece?;
            let room = max_bytes - all.len();
            is_truncated = piece.len() > room;
            all.extend_from_slice(&piece[..piece.len().min(room)]);
            if is_truncated {
                break;
            }
        }
        Ok(Collected {
            bytes: all.freeze(),
            is_truncated,
            scrubber: self.body.scrubber,
        })
    }
}

/// Headers of one hop, and what scrubbing makes untrue.
const OWN_HEADERS: &[&str] = &[
    "connection",
    "content-length",
    "content-md5",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

pub(super) async fn begin(
    response: http::Response<Incoming>,
    mut scrubber: Scrubber,
    connection: AbortOnDropHandle<()>,
    mut outcome: Outcome,
    limits: Limits,
) -> Result<Answer, Refusal> {
    let (head, body) = response.into_parts();
    let mut headers = head.headers;
    let status = head.status;
    outcome.note(|record| {
        record.status = UseStatus::Ok;
        record.http_status = status.as_u16();
    });
    let is_encoded = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|value| {
            !value.as_bytes().trim_ascii().is_empty()
                && !value
                    .as_bytes()
                    .trim_ascii()
                    .eq_ignore_ascii_case(b"identity")
        });
    if is_encoded {
        outcome.note(|record| record.reason = Some("encoding_not_supported".to_owned()));
        outcome.settle().await;
        return Err(Refusal::new(
            "encoding_not_supported",
            "the upstream compressed its answer although it was asked not to; it cannot be scrubbed",
        ));
    }
    for name in OWN_HEADERS {
        headers.remove(*name);
    }
    scrubber.headers(&mut headers);
    let scrubber = Arc::new(Mutex::new(scrubber));
    let pieces = stream(body, Arc::clone(&scrubber), connection, outcome, limits).boxed();
    Ok(Answer {
        status,
        headers,
        body: AnswerBody { pieces, scrubber },
    })
}

struct Flow {
    body: Incoming,
    scrubber: Arc<Mutex<Scrubber>>,
    outcome: Outcome,
    bytes: u64,
    idle: std::time::Duration,
    connection: AbortOnDropHandle<()>,
    is_done: bool,
}

impl Flow {
    fn scrubber(&self) -> MutexGuard<'_, Scrubber> {
        // Only the reader of the body and its own collection share it, one after the other.
        self.scrubber.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a piece that is about to go back. Noted before it goes, so that a dropped body tells.
    fn count(&mut self, piece: &Bytes) {
        self.bytes += piece.len() as u64;
        let (bytes, scrubbed) = (self.bytes, self.scrubber().hits());
        self.outcome.note(|record| {
            record.bytes = bytes;
            record.scrubbed = scrubbed;
        });
    }

    async fn end(&mut self, reason: Option<&str>) {
        self.is_done = true;
        if let Some(reason) = reason {
            self.outcome
                .note(|record| record.reason = Some(reason.to_owned()));
        }
        self.outcome.settle().await;
        self.connection.abort();
    }
}

fn stream(
    body: Incoming,
    scrubber: Arc<Mutex<Scrubber>>,
    connection: AbortOnDropHandle<()>,
    outcome: Outcome,
    limits: Limits,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
    let flow = Flow {
        body,
        scrubber,
        outcome,
        bytes: 0,
        idle: limits.idle,
        connection,
        is_done: false,
    };
    futures_util::stream::unfold(flow, |mut flow| async move {
        loop {
            if flow.is_done {
                return None;
            }
            let frame = match tokio::time::timeout(flow.idle, flow.body.frame()).await {
                Ok(Some(Ok(frame))) => Some(frame),
                Ok(None) => None,
                Ok(Some(Err(error))) => {
                    debug!(%error, "upstream body");
                    flow.end(Some("upstream_cut")).await;
                    return Some((Err(BodyError::Cut), flow));
                }
                Err(_) => {
                    flow.end(Some("upstream_timeout")).await;
                    return Some((Err(BodyError::TimedOut), flow));
                }
            };
            // Only a body of known length says at its last piece that it is the last.
            let is_last = frame.is_none() || flow.body.is_end_stream();
            let mut piece = match frame.map(hyper::body::Frame::into_data) {
                Some(Ok(data)) => flow.scrubber().push(data),
                // Trailers are not passed on.
                Some(Err(_)) | None => Bytes::new(),
            };
            if is_last {
                let rest = flow.scrubber().finish();
                if piece.is_empty() {
                    piece = rest;
                } else if !rest.is_empty() {
                    piece = [piece, rest].concat().into();
                }
                flow.count(&piece);
                flow.end(None).await;
            } else if !piece.is_empty() {
                flow.count(&piece);
            }
            if !piece.is_empty() {
                return Some((Ok(piece), flow));
            }
        }
    })
}
