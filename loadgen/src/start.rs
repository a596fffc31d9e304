//! The moment at which all threads begin.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};

use crate::clock::{Clock, MILLISECOND, Nanos};

/// What all threads of a run agree on before it starts.
pub struct Start {
    /// The clock that all threads share.
    pub clock: Clock,
    gate: Barrier,
    at: AtomicU64,
    abandoned: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl Start {
    /// A start for `threads` threads, whoever just watches included.
    pub fn new(threads: usize) -> Self {
        Self {
            clock: Clock::start(),
            gate: Barrier::new(threads),
            at: AtomicU64::new(0),
            abandoned: AtomicBool::new(false),
            reason: Mutex::new(None),
        }
    }

    /// Why the run was abandoned before it began, if it was.
    pub fn abandoned(&self) -> Option<String> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for all threads, and returns the common start, or `None` if one of them cannot.
    pub fn agree(&self, ready: Result<(), String>) -> Option<Nanos> {
        if let Err(reason) = ready {
            self.abandoned.store(true, Ordering::Relaxed);
            self.reason
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(reason);
        }
        if self.gate.wait().is_leader() {
            self.at
                .store(self.clock.now() + START_MARGIN, Ordering::Relaxed);
        }
        // The barrier orders these accesses.
        self.gate.wait();
        (!self.abandoned.load(Ordering::Relaxed)).then(|| self.at.load(Ordering::Relaxed))
    }
}

/// Time between the last thread's readiness and the common start.
const START_MARGIN: Nanos = 5 * MILLISECOND;
