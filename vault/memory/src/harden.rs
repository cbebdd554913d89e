//! Closes the process: no core files, no reader of the same user, no new programs, no network.
//!
//! Everything here narrows and cannot be taken back. Seccomp filters apply to all threads; the other
//! settings belong to the process, except "no new privileges", which new threads inherit: call
//! [`process`] before any thread is started.

use std::collections::BTreeMap;
use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use serde::{Deserialize, Serialize};

use crate::arena::{Arena, Protection};
use crate::error::MemoryError;

/// What [`process`] achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardened {
    /// Protection of the memory that secrets will live in.
    pub memory: Protection,
}

/// Makes the process fit to hold secrets: the three settings below, and an arena that passes its self-test.
///
/// # Errors
/// [`MemoryError::System`] naming the refused call; [`MemoryError::SelfTest`] for the arena.
pub fn process() -> Result<Hardened, MemoryError> {
    forbid_debuggers()?;
    forbid_core_files()?;
    forbid_new_privileges()?;
    raise_lock_limit();
    let memory = Arena::global().start()?;
    Ok(Hardened { memory })
}

/// Takes the process's memory and descriptors from other programs of the same user (`PR_SET_DUMPABLE` 0).
///
/// # Errors
/// [`MemoryError::System`] if the kernel refuses.
pub fn forbid_debuggers() -> Result<(), MemoryError> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(io::Error::from)
        .map_err(MemoryError::system("prctl(PR_SET_DUMPABLE)"))
}

/// Lets no core file be written (`RLIMIT_CORE` 0, soft and hard).
///
/// # Errors
/// [`MemoryError::System`] if the kernel refuses.
pub fn forbid_core_files() -> Result<(), MemoryError> {
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .map_err(io::Error::from)
    .map_err(MemoryError::system("setrlimit(RLIMIT_CORE)"))
}

/// Lets no program started from here gain rights (`PR_SET_NO_NEW_PRIVS`); this thread and those it starts.
///
/// # Errors
/// [`MemoryError::System`] if the kernel refuses.
pub fn forbid_new_privileges() -> Result<(), MemoryError> {
    rustix::thread::set_no_new_privs(true)
        .map_err(io::Error::from)
        .map_err(MemoryError::system("prctl(PR_SET_NO_NEW_PRIVS)"))
}

/// Refuses fork, vfork and exec with `EPERM` in all threads; threads can still be started.
///
/// # Errors
/// [`MemoryError::System`] if the filter cannot be installed.
pub fn forbid_new_processes() -> Result<(), MemoryError> {
    let mut refused = BTreeMap::new();
    #[cfg(target_arch = "x86_64")]
    for call in [libc::SYS_fork, libc::SYS_vfork] {
        refused.insert(call, vec![]);
    }
    for call in [libc::SYS_execve, libc::SYS_execveat] {
        refused.insert(call, vec![]);
    }
    refused.insert(libc::SYS_clone, vec![makes_no_thread()?]);
    // The other numbering of the same calls on this processor (x32).
    #[cfg(target_arch = "x86_64")]
    for number in [libc::SYS_clone, libc::SYS_fork, libc::SYS_vfork, 520, 545] {
        refused.insert(X32 | number, vec![]);
    }
    install(refused, libc::EPERM)?;
    // clone3 hides its flags behind a pointer. `ENOSYS` makes the C library fall back to clone.
    let mut absent = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    #[cfg(target_arch = "x86_64")]
    absent.insert(X32 | libc::SYS_clone3, vec![]);
    install(absent, libc::ENOSYS)
}

/// Refuses every socket that is not a unix socket with `EPERM`, in all threads.
///
/// Refuses io_uring too, which makes sockets without `socket`. Sockets that are already open, or that a
/// peer hands over, keep working.
///
/// # Errors
/// [`MemoryError::System`] if the filter cannot be installed.
pub fn forbid_network() -> Result<(), MemoryError> {
    let family = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Ne,
        unsigned(libc::AF_UNIX),
    )
    .map_err(refused_filter)?;
    let rule = SeccompRule::new(vec![family]).map_err(refused_filter)?;
    let mut refused = BTreeMap::from([
        (libc::SYS_socket, vec![rule.clone()]),
        (libc::SYS_io_uring_setup, vec![]),
        (libc::SYS_io_uring_enter, vec![]),
        (libc::SYS_io_uring_register, vec![]),
    ]);
    #[cfg(target_arch = "x86_64")]
    {
        refused.insert(X32 | libc::SYS_socket, vec![rule]);
        refused.insert(X32 | libc::SYS_io_uring_setup, vec![]);
        refused.insert(X32 | libc::SYS_io_uring_enter, vec![]);
        refused.insert(X32 | libc::SYS_io_uring_register, vec![]);
    }
    install(refused, libc::EPERM)
}

#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// True for a `clone` that starts a process: the bit that makes it a thread is missing.
fn makes_no_thread() -> Result<SeccompRule, MemoryError> {
    let thread = unsigned(libc::CLONE_THREAD);
    let condition = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(thread),
        0,
    )
    .map_err(refused_filter)?;
    SeccompRule::new(vec![condition]).map_err(refused_filter)
}

fn install(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> Result<(), MemoryError> {
    let here = TargetArch::try_from(std::env::consts::ARCH).map_err(refused_filter)?;
    let answer = SeccompAction::Errno(errno.unsigned_abs());
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, answer, here).map_err(refused_filter)?;
    let program = BpfProgram::try_from(filter).map_err(refused_filter)?;
    seccompiler::apply_filter_all_threads(&program).map_err(refused_filter)
}

fn refused_filter(error: impl std::error::Error + Send + Sync + 'static) -> MemoryError {
    MemoryError::System {
        call: "seccomp",
        source: io::Error::other(error),
    }
}

fn unsigned(value: libc::c_int) -> u64 {
    u64::from(value.unsigned_abs())
}

/// Takes all the locked memory that the hard limit allows; the arena reports what it could get.
fn raise_lock_limit() {
    let limit = rustix::process::getrlimit(Resource::Memlock);
    let _ = rustix::process::setrlimit(
        Resource::Memlock,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
}
