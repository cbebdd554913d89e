//! The brain: turn loop, context, model client, routing.
//!
//! A harness holds nothing that must survive. It takes a session's lease, reads the log, calls the
//! model, routes tool calls to hands and appends what happened; another harness goes on from the
//! log alone. Whatever it does is durable as an intent before it has an effect.
//!
//! This crate must not know any secret: the vault gives it ciphertext that it cannot read, tools
//! injects the model's key, and a sandbox gets placeholders. It links neither the vault nor tools,
//! only their wire.
#![forbid(unsafe_code)]

mod error;
pub mod role;

pub use error::HarnessError;
