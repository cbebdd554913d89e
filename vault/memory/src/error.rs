use std::io;

/// Why secret memory, hardening or a scan is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// A fingerprint set or a pattern breaks the rules of [`crate::scan::Fingerprints`]; the asker fixes it.
    #[error("fingerprints refused: {reason}")]
    Fingerprints {
        /// Which rule was broken; never a part of the pattern.
        reason: &'static str,
    },
    /// The limit on locked memory is reached; the operator raises `LimitMEMLOCK=` (systemd) or `ulimit -l`.
    #[error(
        "no locked memory left for {requested_bytes} more bytes (limit {limit_bytes} bytes): raise RLIMIT_MEMLOCK"
    )]
    LockLimit {
        /// Size of the region that was asked for.
        requested_bytes: usize,
        /// `RLIMIT_MEMLOCK` (soft) at that moment; `u64::MAX` = none.
        limit_bytes: u64,
    },
    /// The operating system gives no randomness; nothing can be done but to stop.
    #[error("the operating system gives no random bytes")]
    Random,
    /// The arena does not behave as it should; the process must not hold secrets.
    #[error("secret memory does not pass its self-test: {reason}")]
    SelfTest {
        /// What was expected and did not happen.
        reason: &'static str,
    },
    /// A system call was refused; the operator looks at the named call's permissions.
    #[error("{call} was refused by the operating system")]
    System {
        /// Name of the call.
        call: &'static str,
        /// The answer.
        source: io::Error,
    },
}

impl MemoryError {
    pub(crate) fn system(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { call, source }
    }
}
