//! The machine's monotonic clock, as a number that other processes on this machine can compare.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`. Two processes on one machine (in one time namespace) read the
/// same clock, so that a receiver may subtract a sender's stamp. 0 if the clock cannot be read,
/// which no supported kernel does.
pub fn monotonic_nanos() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        // Both are never negative for this clock.
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back() {
        let first = monotonic_nanos();
        assert!(first > 0 && monotonic_nanos() >= first);
    }
}
