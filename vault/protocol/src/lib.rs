//! The wire to the vault: request and answer types, sealing and opening, typed clients.
//!
//! Every connection to the vault is MCP in stdio framing over a unix socket; each verb is an MCP
//! tool whose arguments and structured result are the types of this crate. Which verbs a
//! connection may call depends on its [`Role`], decided by the vault, never by the caller.
//!
//! Secrets on this wire are always [`Sealed`]: to the vault's pinned key on the way in, to one
//! tools instance's ephemeral key on the way out. This crate must not know how the vault stores
//! or seals anything, and it knows no HTTP.
#![forbid(unsafe_code)]

pub mod admin;
pub mod binding;
pub mod charter;
pub mod client;
pub mod error;
pub mod id;
pub mod opening;
pub mod present;
pub mod sealed;
pub mod usage;
pub mod wire;

/// The memory that a secret is in before it is sealed and after it is opened.
pub use claviger_vault_memory::SecretBytes;

pub use binding::{Binding, CredentialKind, Destination, Slot};
pub use charter::Charter;
pub use error::{Refusal, WireError};
pub use id::{CredentialId, GrantId, OpeningId, Principal, Role, UseId};
pub use opening::{Envelope, Opening};
pub use sealed::{KeyPair, PublicKey, Sealed};
