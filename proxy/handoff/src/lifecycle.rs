//! [`Lifecycle`]: whether the process serves, drains or stops.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections are accepted and served.
    Serving,
    /// No connection is accepted; what is in flight is finished, and keep-alive
    /// callers are told `Connection: close`.
    Draining,
    /// The limit for draining is over: everything is closed.
    Stopping,
}

/// The process's phase, set by whoever handles signals and read by each core.
#[derive(Debug, Default)]
pub struct Lifecycle {
    phase: AtomicU8,
    workers_gone: AtomicU64,
}

impl Lifecycle {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            _ => Phase::Stopping,
        }
    }

    /// Moves on to `phase`; a life does not go backwards.
    pub fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    /// A worker says that it has ended.
    pub fn worker_gone(&self) {
        self.workers_gone.fetch_add(1, Ordering::Release);
    }

    /// How many workers have ended.
    pub fn workers_gone(&self) -> u64 {
        self.workers_gone.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_does_not_go_backwards() {
        let life = Lifecycle::default();
        assert_eq!(life.phase(), Phase::Serving);
        life.advance(Phase::Stopping);
        life.advance(Phase::Draining);
        assert_eq!(life.phase(), Phase::Stopping);
    }
}
