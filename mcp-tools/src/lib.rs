//! The tools that spend keys: MCP server, injection, scrub, egress, model route.
//!
//! A request becomes a credentialed request in exactly one place, the module `spend`: the vault
//! decides and records, its release opens here, the secret goes into the credential's one slot, the
//! answer comes back scrubbed. Sessions reach this crate through a harness, a sandbox's two
//! listeners or a seat of a direct MCP client; all of them end in that one place.
//!
//! This crate must not know how the vault stores anything, nor what a session is about.
#![forbid(unsafe_code)]

mod call;
mod catalog;
pub mod definition;
mod dial;
mod egress;
mod error;
mod inject;
mod model;
mod openings;
mod presenters;
pub mod role;
mod scan;
mod scrub;
mod server;
mod shared;
mod spend;
#[cfg(test)]
mod testing;
mod tool;
mod verbs;

pub use definition::Definition;
pub use error::ToolsError;
