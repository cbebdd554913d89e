//! A request before it has a credential: its parts, its canonical digest, its body.

use bytes::Bytes;
use claviger_vault_protocol::Destination;
use http::{HeaderMap, Method};
use http_body_util::Full;
use sha2::{Digest as _, Sha256};
use url::Url;

/// What hyper sends.
pub(super) type OutgoingBody = Full<Bytes>;

/// A request without its credential.
pub(crate) struct Request {
    /// Method.
    pub(crate) method: Method,
    /// Where to; the same parsed value serves the decision and the dial.
    pub(crate) url: Url,
    /// Headers of the client; credentials and hop-by-hop headers are dropped.
    pub(crate) headers: HeaderMap,
    /// Body.
    pub(crate) body: Payload,
}

/// A request's body.
pub(crate) enum Payload {
    /// None.
    Empty,
    /// All of it.
    Full(Bytes),
}

impl Payload {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Full(bytes) => bytes,
        }
    }

    pub(super) fn into_body(self) -> OutgoingBody {
        match self {
            Self::Empty => Full::default(),
            Self::Full(bytes) => Full::new(bytes),
        }
    }
}

/// Hex SHA-256 of the canonical request: every part with its length, headers sorted.
pub(super) fn digest(
    method: &Method,
    to: &Destination,
    url: &Url,
    headers: &HeaderMap,
    body: &Payload,
) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(b"claviger/request/v1");
    part(method.as_str().as_bytes());
    part(to.origin().as_bytes());
    part(url.path().as_bytes());
    part(url.query().unwrap_or_default().as_bytes());
    let mut lines: Vec<(&str, &[u8])> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    lines.sort_unstable();
    part(&(lines.len() as u64).to_be_bytes());
    for (name, value) in lines {
        part(name.as_bytes());
        part(value);
    }
    part(body.bytes());
    hex::encode(hash.finalize())
}

/// Whether no decoding of the path, once or more, makes a dot segment of it: what a lenient
/// upstream sees stays below what was decided about.
pub(crate) fn is_plain_path(path: &str) -> bool {
    let mut text = path.as_bytes().to_vec();
    for _ in 0..4 {
        if text
            .split(|byte| matches!(byte, b'/' | b'\\'))
            .any(|part| matches!(part, b"." | b".."))
        {
            return false;
        }
        let decoded: Vec<u8> = percent_encoding::percent_decode(&text).collect();
        if decoded.iter().any(u8::is_ascii_control) {
            return false;
        }
        if decoded == text {
            return true;
        }
        text = decoded;
    }
    // Escaped more than three times over: nobody means that.
    false
}
