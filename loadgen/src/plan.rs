//! A run, fully decided: nothing in here is optional that should have been settled before.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Nanos;
use crate::rate::{Course, Step};
use crate::request::{Request, RequestKind};
use crate::rt::DriverChoice;
use crate::schedule::Arrivals;
use crate::target::Target;
use crate::watch::Watched;

/// Everything the workers need to know. Shared by all threads, never changed.
#[derive(Clone)]
pub struct Plan {
    /// What is driven; at least one.
    pub targets: Arc<[Target]>,
    /// How requests come about.
    pub load: Load,
    /// How the open loop's rate runs; none in a closed loop.
    pub course: Option<Course>,
    /// Connections per target, over all threads.
    pub connections: usize,
    /// Worker threads.
    pub threads: usize,
    /// CPUs to pin them to, in turn; empty pins nothing.
    pub cpus: Vec<usize>,
    /// Time before measuring begins.
    pub warmup: Duration,
    /// The measured time.
    pub duration: Duration,
    /// How long one target is driven before the next has its turn. The whole run with one target.
    pub slice: Duration,
    /// How long after its due time a request may be without a complete answer.
    pub timeout: Duration,
    /// How long before a due time a thread wakes at most, to spin the rest.
    pub spin: Duration,
    /// A connection per request.
    pub new_connection: bool,
    /// Requests after which a connection is closed and another one opened.
    pub requests_per_connection: u64,
    /// Idle connections per target, over all threads.
    pub idle: usize,
    /// How often each of them sends a request; never if zero.
    pub idle_every: Duration,
    /// Whether figures are kept for each request of a target too.
    pub by_request: bool,
    /// The driver asked for.
    pub driver: DriverChoice,
    /// Generator lag at p99 beyond which the run is invalid.
    pub lag_bound: Duration,
    /// Seeds arrivals and resampling.
    pub seed: u64,
    /// Processes whose CPU time is reported too.
    pub watched: Vec<Watched>,
}

/// How requests come about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// They are due when the schedule says, whatever the server does.
    Open {
        /// Requests per second, over all threads and targets; the mean, if it changes.
        rate: f64,
        /// Their spacing.
        arrivals: Arrivals,
    },
    /// Each connection sends the next one as soon as the last was answered.
    Closed,
}

impl Plan {
    /// Connections to each target that `thread` holds.
    pub fn connections_of(&self, thread: usize) -> usize {
        self.share(self.connections, thread)
    }

    /// Idle connections to each target that `thread` holds.
    pub fn idle_of(&self, thread: usize) -> usize {
        self.share(self.idle, thread)
    }

    /// How often an idle connection sends something, if it ever does.
    pub fn idle_every_nanos(&self) -> Option<Nanos> {
        Some(nanos(self.idle_every)).filter(|&every| every > 0)
    }

    /// Whether anything waits for an alarm.
    pub fn has_alarms(&self) -> bool {
        let waits = |request: &Request| match request.kind {
            RequestKind::WebSocket(conversation) => conversation.pause > 0,
            _ => request.think > 0,
        };
        let mut requests = self
            .targets
            .iter()
            .flat_map(|target: &Target| &target.requests);
        self.idle > 0 && self.idle_every_nanos().is_some() || requests.any(waits)
    }

    /// Descriptors that the run needs: a socket per connection, and some of everything else.
    pub fn descriptors(&self) -> u64 {
        ((self.connections + self.idle) * self.targets.len() + DESCRIPTORS_OTHER) as u64
    }

    fn share(&self, all: usize, thread: usize) -> usize {
        all / self.threads + usize::from(thread < all % self.threads)
    }

    /// The parts of the measured time that have figures of their own.
    pub fn steps(&self) -> Vec<Step> {
        let steps = |course: &Course| course.steps(nanos(self.duration));
        self.course.as_ref().map_or(Vec::new(), steps)
    }

    /// The slices of the run, given the time at which it starts.
    pub fn timeline(&self, start: Nanos) -> Timeline {
        let measure_from = start + nanos(self.warmup);
        Timeline {
            start,
            measure_from,
            end: measure_from + nanos(self.duration),
            slice: nanos(self.slice).max(1),
            targets: self.targets.len(),
        }
    }
}

/// Descriptors beside connections: rings, timers, files, and sockets that are being replaced.
const DESCRIPTORS_OTHER: usize = 256;

/// Converts a duration; beyond 584 years it saturates.
pub fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}

/// When what is driven and measured. The warm-up has slices too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// When the load starts.
    pub start: Nanos,
    /// When measuring starts.
    pub measure_from: Nanos,
    /// When the load ends.
    pub end: Nanos,
    slice: Nanos,
    targets: usize,
}

impl Timeline {
    /// The target under load at `at`.
    ///
    /// Rounds alternate their order (A B, B A, A B ...), so that a slow drift of the machine does
    /// not always favour the same one.
    #[inline]
    pub fn target_at(&self, at: Nanos) -> usize {
        if self.targets == 1 {
            return 0;
        }
        let slice = (at.saturating_sub(self.start) / self.slice) as usize;
        let (round, place) = (slice / self.targets, slice % self.targets);
        match round % 2 {
            0 => place,
            _ => self.targets - 1 - place,
        }
    }

    /// The measured round (a slice for each target) that holds `at`, which must not lie in the
    /// warm-up. The plan makes the warm-up whole rounds.
    #[inline]
    pub fn round_index(&self, at: Nanos) -> usize {
        (at.saturating_sub(self.measure_from) / (self.slice * self.targets as Nanos)) as usize
    }

    /// How long `target` was under load between two points in time.
    pub fn driven(&self, target: usize, from: Nanos, to: Nanos) -> Nanos {
        let (mut at, to) = (from.max(self.start), to.min(self.end));
        if self.targets == 1 {
            return to.saturating_sub(at);
        }
        let mut sum = 0;
        while at < to {
            let end = self.slice_end(at).min(to);
            if self.target_at(at) == target {
                sum += end - at;
            }
            at = end;
        }
        sum
    }

    /// When the slice after the one that holds `at` begins.
    pub fn slice_end(&self, at: Nanos) -> Nanos {
        let index = at.saturating_sub(self.start) / self.slice;
        self.start + (index + 1).saturating_mul(self.slice)
    }

    /// Whether a request due then counts.
    #[inline]
    pub fn measures(&self, due: Nanos) -> bool {
        due >= self.measure_from && due < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(targets: usize) -> Timeline {
        Timeline {
            start: 1000,
            measure_from: 1200,
            end: 2000,
            slice: 100,
            targets,
        }
    }

    #[test]
    fn targets_take_turns_in_alternating_order() {
        let two = timeline(2);
        let order: Vec<_> = (0..8).map(|n| two.target_at(1000 + n * 100)).collect();
        assert_eq!(order, [0, 1, 1, 0, 0, 1, 1, 0]);
        let three = timeline(3);
        let order: Vec<_> = (0..7).map(|n| three.target_at(1050 + n * 100)).collect();
        assert_eq!(order, [0, 1, 2, 2, 1, 0, 0]);
        assert_eq!(timeline(1).target_at(5000), 0);
    }

    #[test]
    fn rounds_and_the_ends_of_slices() {
        let t = timeline(2);
        assert_eq!(t.round_index(1200), 0);
        assert_eq!(t.round_index(1399), 0);
        assert_eq!(t.round_index(1400), 1);
        assert_eq!(t.slice_end(1000), 1100);
        assert_eq!(t.slice_end(1099), 1100);
        assert!(!t.measures(1199) && t.measures(1200) && !t.measures(2000));
        let driven = |target, from, to| t.driven(target, from, to);
        assert_eq!((driven(0, 1200, 2000), driven(1, 1200, 2000)), (400, 400));
        assert_eq!((driven(0, 1250, 1420), driven(1, 1250, 1420)), (120, 50));
        assert_eq!(driven(1, 1900, 5000) + driven(0, 1900, 5000), 100);
        assert_eq!(timeline(1).driven(0, 0, 1700), 700);
    }
}
