//! The keys: sealed store, seals, policy, openings, audit.
//!
//! [`role::run`] is the whole daemon: it answers connections, each limited to the verbs of its role,
//! holds every stored secret sealed under the root key, decides each use, makes its intent durable
//! and only then releases a grant's key to the one tools instance that may open it.
//!
//! This crate must not know what a session is about, what a tool does, or any HTTP upstream; it
//! opens no network socket and starts no program.
#![forbid(unsafe_code)]

mod api_key;
pub mod audit;
pub mod cipher;
pub mod clock;
mod credential;
mod encoding;
mod endpoint;
mod error;
mod keys;
mod opening;
mod operator;
mod permit;
pub mod role;
mod seal;
mod store;
mod trail;
mod usage;
mod vault;

pub use error::VaultError;
