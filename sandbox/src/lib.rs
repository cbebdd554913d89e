//! The hands: where code runs and files live.
//!
//! A sandbox is cattle: provisioned on demand, told to run tools, destroyed. It holds no secret and has no network but
//! two loopback listeners that the host answers. The `hands` role owns every sandbox of a machine, fences its callers by
//! epoch and remembers the result of each call by key; [`client`] is how a harness speaks to it, [`handover`] how the
//! listeners reach the role that answers them.
//!
//! ```text
//! harness --hands link--> hands --zygote--> pid 1 of a sandbox --> the tools: bash, read, write, edit, glob, grep
//!                           '---attach link (descriptors)--> tools
//! ```
//!
//! This crate must not know the vault, models, HTTP or any secret.
#![deny(unsafe_code)]

pub mod client;
pub mod doctor;
pub mod error;
pub mod handover;
pub mod hands;
mod inside;
mod missing;
mod namespaces;
mod passing;
mod resources;
#[expect(
    unsafe_code,
    reason = "the one room for system calls without a safe wrapper"
)]
mod sys;
mod wire;
mod zygote;

pub use error::HandsError;
pub use resources::{Execute, Ledger, Limits, Output, Resources, SandboxId, SandboxRow};
