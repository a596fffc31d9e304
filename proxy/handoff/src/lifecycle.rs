//! [`Lifecycle`]: whether the process serves, retires, drains or stops; [`Turns`]:
//! whether a core's loop still turns.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections are accepted and served.
    Serving,
    /// Another process accepts on the same sockets. What is open here goes on until
    /// its next answer, which says `Connection: close`; an idle connection is left
    /// its turn, since its next request may be on the way.
    Retiring,
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
            1 => Phase::Retiring,
            2 => Phase::Draining,
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

/// How often one core's loop has come round: its sign of life, once per tick. On a
/// cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Turns(AtomicU64);

impl Turns {
    /// The core has ended as it should, and will not come round again.
    const ENDED: u64 = u64::MAX;

    /// The loop has come round. Called by one thread, and never by a request.
    pub fn add_one(&self) {
        let turns = self.0.load(Ordering::Relaxed);
        self.0.store(turns.wrapping_add(1), Ordering::Relaxed);
    }

    /// No further turn is to be expected.
    pub fn end(&self) {
        self.0.store(Self::ENDED, Ordering::Relaxed);
    }

    /// Turns so far; `None` once the core has ended.
    pub fn so_far(&self) -> Option<u64> {
        let turns = self.0.load(Ordering::Relaxed);
        (turns != Self::ENDED).then_some(turns)
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

    #[test]
    fn every_phase_is_read_as_it_was_set() {
        let life = Lifecycle::default();
        for phase in [Phase::Retiring, Phase::Draining, Phase::Stopping] {
            life.advance(phase);
            assert_eq!(life.phase(), phase);
        }
    }

    #[test]
    fn turns_are_counted_until_the_end() {
        let turns = Turns::default();
        turns.add_one();
        turns.add_one();
        assert_eq!(turns.so_far(), Some(2));
        turns.end();
        assert_eq!(turns.so_far(), None);
    }
}
