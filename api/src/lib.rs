//! The HTTP face: Managed Agents API and event streams.
//!
//! Every API object is an event stream in the session store; its state is the fold of its events. Credentials are the
//! vault's: this crate cuts a secret out of a request's raw bytes, seals it to the vault's key and forgets it.
//!
//! This crate must not know the vault's storage, sandboxes, mcp-tools or the model's wire format.
#![forbid(unsafe_code)]

mod agent;
mod app;
mod body;
mod credential;
mod environment;
mod error;
mod event;
mod field;
mod gate;
mod listen;
mod object;
mod page;
mod problem;
pub mod role;
mod secret_field;
mod session;
mod vault;

pub use error::ApiError;
