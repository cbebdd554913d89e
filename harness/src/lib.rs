//! The brain: turn loop, context, model client, routing.
//!
//! A harness holds nothing that must survive. It takes a session's lease, reads the log, calls the
//! model, routes tool calls to hands and appends what happened; another harness goes on from the
//! log alone. Whatever it does is durable as an intent before it has an effect.
//!
//! ```text
//! watch -> lease -> open_session | read | attach -> present -> step, step, ... -> idle -> release
//! step = request | calls | interrupt | idle | close what a crash left open   (decided from the log)
//! ```
//!
//! This crate must not know any secret: the vault gives it ciphertext that it cannot read, tools
//! injects the model's key, and a sandbox gets placeholders. It links neither the vault nor tools,
//! only their wire.
#![forbid(unsafe_code)]

mod agent;
mod context;
mod error;
mod hand;
mod log;
mod model;
mod presence;
mod publish;
pub mod role;
mod route;
mod state;
mod sweep;
mod turn;
mod wake;

pub use error::HarnessError;
