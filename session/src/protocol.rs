//! Frames on the `session` link: a 4-byte big-endian length, then one JSON document.
//!
//! Requests carry an id that their answers repeat, so that many are in flight at once. A tail or watch answers with any
//! number of pushes until it is cancelled or ended.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::error::SessionError;
use crate::event::{Event, EventText, NewEvent};
use crate::id::SessionId;
use crate::query::{Lease, Query, StreamRow, Tailed};

/// Largest frame that either side accepts.
pub(crate) const MAX_FRAME_BYTES: usize = 32 * 1024 * 1024;

/// What a client sends.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) call: Call,
}

/// What can be asked.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    Append {
        session: SessionId,
        expected_seq: u64,
        epoch: u64,
        events: Vec<NewEvent>,
    },
    AppendInput {
        session: SessionId,
        idempotency_key: String,
        events: Vec<NewEvent>,
    },
    /// Ends the tail or watch with this request id; has no answer.
    Cancel {
        subscription: u64,
    },
    Head {
        session: SessionId,
    },
    Lease {
        session: SessionId,
        owner: String,
        ttl_ms: u64,
    },
    List {
        prefix: String,
        after: Option<SessionId>,
        limit: usize,
        newest_first: bool,
    },
    Publish {
        session: SessionId,
        epoch: u64,
        value: Value,
    },
    Read {
        session: SessionId,
        query: Query,
    },
    Release {
        session: SessionId,
        owner: String,
        epoch: u64,
    },
    Renew {
        session: SessionId,
        owner: String,
        epoch: u64,
        ttl_ms: u64,
    },
    Tail {
        session: SessionId,
        after: u64,
    },
    Watch {
        owner: String,
    },
}

/// What the server sends.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Reply {
    pub(crate) id: u64,
    pub(crate) answer: Answer,
}

/// An answer or a push.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done,
    /// A tail or watch has ended on the server's side.
    Ended,
    Error(SessionError),
    Events {
        events: Vec<Event>,
        /// The server stopped at its page size, not at the end.
        more: bool,
    },
    Head {
        seq: u64,
        hash: String,
        epoch: u64,
    },
    Leased(Lease),
    /// As `Events`, from a store that has not read the payloads.
    #[serde(rename = "events", skip_deserializing)]
    TextEvents {
        events: Vec<EventText>,
        more: bool,
    },
    Streams(Vec<StreamRow>),
    Tailed(Tailed),
    Work(SessionId),
}

/// The receiving half of a connection; `next` on it may be cancelled.
pub(crate) struct Frames(FramedRead<OwnedReadHalf, LengthDelimitedCodec>);

impl Frames {
    pub(crate) fn new(read: OwnedReadHalf) -> Self {
        Self(FramedRead::new(read, codec()))
    }

    /// Returns the next document, `None` when the peer is gone or does not follow the protocol.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        let frame = match self.0.next().await? {
            Ok(frame) => frame,
            Err(error) => {
                tracing::warn!(%error, "session link broken");
                return None;
            }
        };
        match serde_json::from_slice(&frame) {
            Ok(document) => Some(document),
            Err(error) => {
                // The position only: the text of the frame is not for the log.
                tracing::warn!(
                    line = error.line(),
                    column = error.column(),
                    "malformed frame, closing the link"
                );
                None
            }
        }
    }
}

/// Renders one document as the content of a frame.
pub(crate) fn encode<T: Serialize>(document: &T) -> Result<Bytes, SessionError> {
    let text = serde_json::to_vec(document).map_err(|e| SessionError::invalid(e.to_string()))?;
    if text.len() > MAX_FRAME_BYTES {
        return Err(SessionError::invalid("the request or answer is too large"));
    }
    Ok(text.into())
}

/// Writes queued frames until the queue closes or the peer is gone.
pub(crate) async fn write_frames(write: OwnedWriteHalf, mut queue: mpsc::Receiver<Bytes>) {
    let mut sink = FramedWrite::new(write, codec());
    while let Some(frame) = queue.recv().await {
        let mut next = Some(frame);
        while let Some(frame) = next {
            if sink.feed(frame).await.is_err() {
                return;
            }
            next = queue.try_recv().ok();
        }
        if SinkExt::<Bytes>::flush(&mut sink).await.is_err() {
            return;
        }
    }
}

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .max_frame_length(MAX_FRAME_BYTES)
        .new_codec()
}
