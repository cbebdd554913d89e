//! The api role over real listeners, the real session role and a scripted vault.

mod agents;
mod canary;
mod environments;
mod events;
mod gate;
mod sessions;
mod stream;
mod support;
mod vaults;
