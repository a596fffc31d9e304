//! The moment at which all threads begin, and the one at which they stop early.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};

use crate::board::Board;
use crate::clock::{Clock, MILLISECOND, Nanos};

/// What all threads of a run agree on before it starts.
pub struct Start {
    /// The clock that all threads share.
    pub clock: Clock,
    /// What each driving thread shows of itself.
    pub boards: Vec<Arc<Board>>,
    gate: Barrier,
    /// The common start; zero before it is agreed upon.
    at: AtomicU64,
    /// When the user stopped the run; `Nanos::MAX` if nobody did.
    stop_at: AtomicU64,
    abandoned: AtomicBool,
    reason: Mutex<Option<String>>,
    active: AtomicUsize,
    idle: AtomicUsize,
}

impl Start {
    /// A start for `threads` driving threads and `targets` targets.
    pub fn new(threads: usize, targets: usize) -> Self {
        Self {
            clock: Clock::start(),
            boards: (0..threads)
                .map(|_| Arc::new(Board::new(targets)))
                .collect(),
            gate: Barrier::new(threads),
            at: AtomicU64::new(0),
            stop_at: AtomicU64::new(Nanos::MAX),
            abandoned: AtomicBool::new(false),
            reason: Mutex::new(None),
            active: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
        }
    }

    /// A thread has these connections. Said before it [agrees](Start::agree).
    pub fn ready(&self, active: usize, idle: usize) {
        self.active.fetch_add(active, Ordering::Relaxed);
        self.idle.fetch_add(idle, Ordering::Relaxed);
    }

    /// The line that tells that everything is open, once all have agreed.
    pub fn ready_line(&self) -> String {
        format!(
            "ready: {} active, {} idle connections",
            self.active.load(Ordering::Relaxed),
            self.idle.load(Ordering::Relaxed)
        )
    }

    /// Why the run was abandoned before it began, if it was.
    pub fn abandoned(&self) -> Option<String> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The common start for whoever only watches; `None` while threads are getting ready.
    pub fn agreed(&self) -> Option<Nanos> {
        match self.at.load(Ordering::Acquire) {
            0 => None,
            at => Some(at),
        }
    }

    /// Ends the run as soon as all threads can have noticed.
    pub fn stop(&self) {
        let at = self.clock.now() + STOP_MARGIN;
        self.stop_at.fetch_min(at, Ordering::Relaxed);
    }

    /// When the run was stopped; never is `Nanos::MAX`.
    #[inline]
    pub fn stopped_at(&self) -> Nanos {
        self.stop_at.load(Ordering::Relaxed)
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
        // The barrier orders these accesses, except for the watcher's.
        let leads = self.gate.wait().is_leader();
        if leads && !self.abandoned.load(Ordering::Relaxed) {
            self.at
                .store(self.clock.now() + START_MARGIN, Ordering::Release);
        }
        self.gate.wait();
        (!self.abandoned.load(Ordering::Relaxed)).then(|| self.at.load(Ordering::Relaxed))
    }
}

/// Time between the last thread's readiness and the common start.
const START_MARGIN: Nanos = 5 * MILLISECOND;

/// Time between the wish to stop and the end of the load. Driving threads look at least every
/// 50 ms, so all of them end at the same moment.
const STOP_MARGIN: Nanos = 60 * MILLISECOND;
