//! The Messages API, lossless: what the model said is kept as it came, known to us or not.
//!
//! Nothing here names a key: requests go over the link to tools, which injects it.

mod client;
mod message;
mod sse;

pub(crate) use client::{ModelClient, ModelError, Patience, Piece, Reply};
