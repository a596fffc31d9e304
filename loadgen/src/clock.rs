//! One time base for a run: nanoseconds since an origin that every thread shares.
//!
//! Plain integers instead of `Instant`, so that a schedule, a deadline and a latency are all
//! one subtraction apart.

use std::time::Instant;

/// A point in time, in nanoseconds since the origin of the run's [`Clock`].
pub type Nanos = u64;

/// Nanoseconds in a second.
pub const SECOND: Nanos = 1_000_000_000;

/// Nanoseconds in a millisecond.
pub const MILLISECOND: Nanos = 1_000_000;

/// The run's monotonic clock. Copies share the origin, so their readings compare across threads.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    /// CLOCK_MONOTONIC at the origin.
    origin_monotonic: u64,
}

impl Clock {
    /// A clock that reads zero now.
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
            origin_monotonic: crate::sys::monotonic(),
        }
    }

    /// The time now.
    #[inline]
    pub fn now(&self) -> Nanos {
        // 2^64 ns are 584 years.
        self.origin.elapsed().as_nanos() as Nanos
    }

    /// How long ago another process of this machine read `monotonic` from its CLOCK_MONOTONIC.
    /// Zero if it lies ahead, as a stamp from another machine may.
    pub fn since_monotonic(&self, now: Nanos, monotonic: u64) -> Nanos {
        (self.origin_monotonic + now).saturating_sub(monotonic)
    }
}
