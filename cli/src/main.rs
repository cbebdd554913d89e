//! The program `claviger`: every role is this binary in a process of its own.

use std::process::ExitCode;

/// Freed memory is wiped in every role: a secret that passed through a buffer does not stay in it.
#[global_allocator]
static ALLOCATOR: claviger_vault_memory::ZeroOnFree<std::alloc::System> =
    claviger_vault_memory::ZeroOnFree(std::alloc::System);

fn main() -> ExitCode {
    claviger::run()
}
