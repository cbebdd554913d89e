//! What comes back from a use: scrubbed, streamed, its outcome recorded before the last byte.

use std::pin::Pin;
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
pub(crate) struct AnswerBody(BoxStream<'static, Result<Bytes, BodyError>>);

impl Stream for AnswerBody {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl Answer {
    /// Reads the body up to `max_bytes`; the flag says whether there was more.
    pub(crate) async fn collect(mut self, max_bytes: usize) -> Result<(Bytes, bool), BodyError> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.body.next().await {
            let piece = piece?;
            if all.len() + piece.len() > max_bytes {
                all.extend_from_slice(&piece[..max_bytes - all.len()]);
                return Ok((all.freeze(), true));
            }
            all.extend_from_slice(&piece);
        }
        Ok((all.freeze(), false))
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
    let is_encoded = headers.get_all(header::CONTENT_ENCODING).iter().any(|value| {
        !value.as_bytes().trim_ascii().is_empty() && !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity")
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
    let body = stream(body, scrubber, connection, outcome, limits);
    Ok(Answer { status, headers, body: AnswerBody(body.boxed()) })
}

struct Flow {
    body: Incoming,
    scrubber: Scrubber,
    outcome: Outcome,
    bytes: u64,
    idle: std::time::Duration,
    connection: AbortOnDropHandle<()>,
    is_done: bool,
}

impl Flow {
    /// Counts a piece that is about to go back. Noted before it goes, so that a dropped body tells.
    fn count(&mut self, piece: &Bytes) {
        self.bytes += piece.len() as u64;
        let (bytes, scrubbed) = (self.bytes, self.scrubber.hits());
        self.outcome.note(|record| {
            record.bytes = bytes;
            record.scrubbed = scrubbed;
        });
    }

    async fn end(&mut self, reason: Option<&str>) {
        self.is_done = true;
        if let Some(reason) = reason {
            self.outcome.note(|record| record.reason = Some(reason.to_owned()));
        }
        self.outcome.settle().await;
        self.connection.abort();
    }
}

fn stream(
    body: Incoming,
    scrubber: Scrubber,
    connection: AbortOnDropHandle<()>,
    outcome: Outcome,
    limits: Limits,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
    let flow = Flow { body, scrubber, outcome, bytes: 0, idle: limits.idle, connection, is_done: false };
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
                Some(Ok(data)) => flow.scrubber.push(data),
                // Trailers are not passed on.
                Some(Err(_)) | None => Bytes::new(),
            };
            if is_last {
                let rest = flow.scrubber.finish();
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
