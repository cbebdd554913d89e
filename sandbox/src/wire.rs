//! Frames of the `hands` link: a 32-bit big-endian length, then JSON; many requests in flight, answers in any order.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::{Execute, HandsError, Ledger, Output, Resources, SandboxId, SandboxRow};

/// The longest frame either side accepts: an image of 5 MiB and its JSON fit, a runaway does not.
pub(crate) const MAX_FRAME_BYTES: usize = 32 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) id: u64,
    pub(crate) request: Request,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    Attach {
        session: String,
        epoch: u64,
    },
    Destroy {
        session: String,
        epoch: u64,
        sandbox: SandboxId,
    },
    Execute {
        call: Execute,
    },
    Interrupt {
        session: String,
        epoch: u64,
        sandbox: SandboxId,
    },
    List,
    Provision {
        session: String,
        epoch: u64,
        resources: Resources,
    },
    Result {
        session: String,
        epoch: u64,
        key: String,
    },
}

impl Request {
    /// Whether a second arrival of the same request changes nothing.
    pub(crate) fn is_idempotent(&self) -> bool {
        !matches!(self, Self::Provision { .. })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answered {
    pub(crate) id: u64,
    pub(crate) answer: Result<Answer, HandsError>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Attached(Vec<SandboxId>),
    Done,
    Ledger(Ledger),
    Output(Output),
    Provisioned(SandboxId),
    Rows(Vec<SandboxRow>),
}

pub(crate) type Frames = Framed<UnixStream, LengthDelimitedCodec>;

pub(crate) fn frames(stream: UnixStream) -> Frames {
    LengthDelimitedCodec::builder()
        .max_frame_length(MAX_FRAME_BYTES)
        .new_framed(stream)
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, HandsError> {
    let bytes =
        serde_json::to_vec(value).map_err(|error| HandsError::internal("encode a frame", error))?;
    if bytes.len() > MAX_FRAME_BYTES {
        return Err(HandsError::refused(format!(
            "a message is limited to {MAX_FRAME_BYTES} bytes"
        )));
    }
    Ok(bytes.into())
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, HandsError> {
    serde_json::from_slice(bytes).map_err(|error| HandsError::internal("decode a frame", error))
}
