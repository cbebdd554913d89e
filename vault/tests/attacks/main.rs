//! Attacks on the vault's rules, over real sockets and with the clients that the other roles use.
#![expect(
    clippy::unwrap_used,
    reason = "what helpers of a test unwrap fails the test"
)]

mod fixture;
mod harness;
mod leaks;
mod openings;
mod operator;
mod restarts;
mod rollback;
mod uses;
mod workspaces;
