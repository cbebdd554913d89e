//! The hash chain: each event's hash covers its fields and the hash of the event before it.
//!
//! Canonical form, so that anybody can recompute it: the text `claviger-event-v1`, then session, seq, id, epoch, kind,
//! at, causation, payload and prev_hash, each as an 8-byte big-endian length followed by that many bytes. Numbers are
//! 8-byte big-endian, `at` is nanoseconds since 1970 as 16 bytes big-endian, an absent causation has the length
//! 2^64 - 1 and no bytes, the payload is its compact JSON text.

use sha2::{Digest as _, Sha256};

use crate::error::ChainError;
use crate::event::Event;

/// The `prev_hash` of a stream's first event.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

const DOMAIN: &[u8] = b"claviger-event-v1";

/// Computes an event's hash; `payload` is the JSON text that is stored.
pub(crate) fn hash(event: &Event, payload: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(DOMAIN);
    let mut field = |bytes: Option<&[u8]>| {
        let length = bytes.map_or(u64::MAX, |b| b.len() as u64);
        digest.update(length.to_be_bytes());
        digest.update(bytes.unwrap_or_default());
    };
    field(Some(event.session.as_str().as_bytes()));
    field(Some(&event.seq.to_be_bytes()));
    field(Some(event.id.as_bytes()));
    field(Some(&event.epoch.to_be_bytes()));
    field(Some(event.kind.as_bytes()));
    field(Some(&event.at.as_nanosecond().to_be_bytes()));
    field(event.causation.as_deref().map(str::as_bytes));
    field(Some(payload.as_bytes()));
    field(Some(event.prev_hash.as_bytes()));
    hex::encode(digest.finalize())
}

/// Checks that `events` are a contiguous, unaltered part of one stream.
///
/// A part that starts later than 1 is checked against its own first `prev_hash`; compare that with a hash known from
/// elsewhere to anchor it.
///
/// # Errors
///
/// The first event whose hash, link, position or stream does not fit.
pub fn verify(events: &[Event]) -> Result<(), ChainError> {
    let mut before: Option<&Event> = None;
    for event in events {
        let broken = |reason| ChainError {
            seq: event.seq,
            reason,
        };
        match before {
            Some(previous) if event.session != previous.session => {
                return Err(broken("belongs to another stream"));
            }
            Some(previous) if previous.seq.checked_add(1) != Some(event.seq) => {
                return Err(broken("does not follow the event before it"));
            }
            Some(previous) if event.prev_hash != previous.hash => {
                return Err(broken("is not linked to the event before it"));
            }
            None if event.seq == 0 => return Err(broken("positions start at 1")),
            None if event.seq == 1 && event.prev_hash != GENESIS => {
                return Err(broken("claims a predecessor"));
            }
            _ => {}
        }
        if hash(event, &event.payload.to_string()) != event.hash {
            return Err(broken("was altered"));
        }
        before = Some(event);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
