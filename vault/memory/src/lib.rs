//! Secret memory: arena, wiping, zero-on-free allocator, and the scan that proves them.
//!
//! A secret lives in [`SecretBytes`], a buffer of the process-wide [`Arena`]: memory that the kernel
//! itself does not map (`memfd_secret`) or, where that is missing, locked memory that is left out of
//! core files and of forked children. [`ZeroOnFree`] wipes what passes through the ordinary heap,
//! [`wipe_stack`] what a cryptographic call leaves on the stack, [`harden`] closes the process, and
//! [`scan`] looks for what is left.
//!
//! This crate knows nothing of credentials, seals, protocols or files: it must not depend on any
//! other layer.
#![deny(unsafe_code)]

pub mod arena;
mod error;
pub mod harden;
pub mod scan;
mod secret_bytes;
mod stack;
mod sys;
mod zero_on_free;

pub use arena::{Arena, Protection};
pub use error::MemoryError;
pub use scan::forms;
pub use secret_bytes::SecretBytes;
pub use stack::wipe_stack;
pub use zero_on_free::ZeroOnFree;
