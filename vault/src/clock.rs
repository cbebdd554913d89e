//! Time as the vault sees it: wall time for what is stored, monotonic time for what must not jump.

use std::fmt::Debug;
use std::time::Instant;

/// A source of time; tests give their own.
pub trait Clock: Debug + Send + Sync {
    /// Unix milliseconds; may jump.
    fn wall_ms(&self) -> u64;

    /// Milliseconds since some moment of this process; never goes back.
    fn monotonic_ms(&self) -> u64;
}

/// The system's own clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Starts the monotonic count.
    #[must_use]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
