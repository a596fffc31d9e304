//! When requests are due. Pure arithmetic: it neither waits nor reads a clock.
//!
//! A due time depends on the schedule alone, never on how long anything took. That is what makes
//! the load an open loop: a stalled server or a stalled generator shows up as latency instead of
//! as missing requests.

use crate::clock::Nanos;
use crate::rate::Profile;

/// How arrivals are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrivals {
    /// Evenly: request `n` is due at `start + n / rate`.
    Constant,
    /// At random, as from many callers who know nothing of each other: exponential gaps.
    Poisson,
}

impl Arrivals {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Poisson => "poisson",
        }
    }
}

/// The due times of one thread's share of the load, in order.
#[derive(Clone, Debug)]
pub struct Schedule {
    next: Nanos,
    start: Nanos,
    profile: Profile,
    /// Which piece of the profile we are in.
    piece: usize,
    /// Where among the requests of all threads we are.
    position: Position,
    threads: f64,
}

#[derive(Clone, Debug)]
enum Position {
    // Computed from `n` each time, so that rounding never adds up.
    Constant { first: f64, n: u64 },
    Poisson { at: f64, random: Random },
}

impl Schedule {
    /// The share of thread `thread` (from zero) of `threads` in the requests that are due by
    /// `profile` from `start` on. The threads' constant schedules interleave evenly.
    pub fn new(
        arrivals: Arrivals,
        profile: Profile,
        start: Nanos,
        thread: usize,
        threads: usize,
        seed: u64,
    ) -> Self {
        let position = match arrivals {
            Arrivals::Constant => Position::Constant {
                first: thread as f64,
                n: 0,
            },
            Arrivals::Poisson => Position::Poisson {
                at: 0.0,
                // Neighbouring seeds give unrelated sequences (splitmix64).
                random: Random::new(seed.wrapping_add(thread as u64)),
            },
        };
        let mut schedule = Self {
            next: start,
            start,
            profile,
            piece: 0,
            position,
            threads: threads as f64,
        };
        match schedule.position {
            Position::Constant { first, .. } => schedule.next = schedule.due(first),
            Position::Poisson { .. } => schedule.advance(),
        }
        schedule
    }

    /// When the next request is due.
    #[inline]
    pub fn next_due(&self) -> Nanos {
        self.next
    }

    /// Moves on to the request after it.
    #[inline]
    pub fn advance(&mut self) {
        let number = match &mut self.position {
            Position::Constant { first, n } => {
                *n += 1;
                *first + *n as f64 * self.threads
            }
            // The profile stretches and squeezes arrivals of one request per unit.
            Position::Poisson { at, random } => {
                *at -= random.unit().ln() * self.threads;
                *at
            }
        };
        self.next = self.due(number);
    }

    fn due(&mut self, number: f64) -> Nanos {
        // What is never due saturates.
        (self.start as f64 + self.profile.due(number, &mut self.piece)) as Nanos
    }
}

/// splitmix64: small, fast, and good enough for gaps and for resampling. Not for secrets.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// A number in `0..bound`. `bound` must not be zero.
    pub fn below(&mut self, bound: usize) -> usize {
        // The bias of a multiplication is below 2^-32 for every bound that we use.
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    fn dues(mut schedule: Schedule, count: usize) -> Vec<Nanos> {
        (0..count)
            .map(|_| {
                let due = schedule.next_due();
                schedule.advance();
                due
            })
            .collect()
    }

    #[test]
    fn constant_arrivals_do_not_drift() {
        // A third of a nanosecond is lost per gap if gaps are added up as integers.
        let all = dues(
            Schedule::new(Arrivals::Constant, Profile::constant(3e6), 0, 0, 1, 0),
            3_000_001,
        );
        assert_eq!(all[0], 0);
        assert_eq!(all[3_000_000], SECOND);
    }

    #[test]
    fn threads_interleave_to_the_whole_rate() {
        let mut all: Vec<_> = (0..3)
            .flat_map(|thread| {
                dues(
                    Schedule::new(
                        Arrivals::Constant,
                        Profile::constant(1000.0),
                        500,
                        thread,
                        3,
                        0,
                    ),
                    100,
                )
            })
            .collect();
        all.sort_unstable();
        for (n, due) in all.iter().enumerate() {
            assert_eq!(*due, 500 + n as u64 * 1_000_000);
        }
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        let all = dues(
            Schedule::new(Arrivals::Poisson, Profile::constant(10_000.0), 0, 0, 1, 7),
            100_001,
        );
        let gaps: Vec<f64> = all.windows(2).map(|w| (w[1] - w[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean / 100_000.0 - 1.0).abs() < 0.02, "mean {mean}");
        let ratio = variance.sqrt() / mean;
        assert!((ratio - 1.0).abs() < 0.03, "deviation over mean {ratio}");
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule() {
        let a = dues(
            Schedule::new(Arrivals::Poisson, Profile::constant(100.0), 0, 1, 2, 42),
            50,
        );
        let b = dues(
            Schedule::new(Arrivals::Poisson, Profile::constant(100.0), 0, 1, 2, 42),
            50,
        );
        let c = dues(
            Schedule::new(Arrivals::Poisson, Profile::constant(100.0), 0, 0, 2, 42),
            50,
        );
        assert_eq!(a, b);
        assert_ne!(a, c);
    }
}
