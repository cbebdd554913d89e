//! The HTTP face: Managed Agents API and event streams.
//!
//! Every API object is an event stream in the session store; its state is the fold of its events. Credentials are the
//! vault's: this crate cuts a secret out of a request's raw bytes, seals it to the vault's key and forgets it.
//!
//! This crate must not know the vault's storage, sandboxes, mcp-tools or the model's wire format.
#![forbid(unsafe_code)]

mod error;
pub mod role;

pub use error::ApiError;
