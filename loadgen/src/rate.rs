//! How many requests per second are due, and how that changes during a run. Pure arithmetic.

use crate::clock::{Nanos, SECOND};

/// The rate over the time of a run, as pieces on which it is constant or changes evenly.
///
/// Its use is the inverse: when the n-th request is due.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// In order; the last one may be endless.
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    /// Nanoseconds since the start.
    begin: f64,
    /// Length in nanoseconds; infinite on an endless one.
    length: f64,
    /// Requests due before it.
    before: f64,
    /// Requests per nanosecond at its begin.
    from: f64,
    /// Requests per nanosecond at its end.
    to: f64,
}

impl Piece {
    fn requests(&self) -> f64 {
        self.length * (self.from + self.to) / 2.0
    }

    /// When the request with this number in the piece is due, from its begin.
    fn due(&self, number: f64) -> f64 {
        if self.from == self.to {
            return number / self.from;
        }
        if number <= 0.0 {
            return 0.0;
        }
        // number = from t + slope t^2 / 2, solved in the form that does not cancel.
        let slope = (self.to - self.from) / self.length;
        let root = (self.from * self.from + 2.0 * slope * number)
            .max(0.0)
            .sqrt();
        2.0 * number / (self.from + root)
    }
}

impl Profile {
    /// A rate for ever, in requests per second.
    pub fn constant(rate: f64) -> Self {
        Self {
            pieces: vec![Piece {
                begin: 0.0,
                length: f64::INFINITY,
                before: 0.0,
                from: rate / SECOND as f64,
                to: rate / SECOND as f64,
            }],
        }
    }

    /// Pieces one after the other: their lengths, and the rates per second at both ends.
    pub fn of(pieces: &[(Nanos, f64, f64)]) -> Self {
        let mut all: Vec<Piece> = Vec::new();
        for &(length, from, to) in pieces {
            let (begin, before) = match all.last() {
                Some(last) => (last.begin + last.length, last.before + last.requests()),
                None => (0.0, 0.0),
            };
            all.push(Piece {
                begin,
                length: length as f64,
                before,
                from: from / SECOND as f64,
                to: to / SECOND as f64,
            });
        }
        Self { pieces: all }
    }

    /// When request `number` (a position among requests, not necessarily whole) is due, in
    /// nanoseconds since the start. Infinite if it never is.
    ///
    /// `hint` remembers the piece between calls with rising numbers.
    #[inline]
    pub fn due(&self, number: f64, hint: &mut usize) -> f64 {
        while let Some(piece) = self.pieces.get(*hint) {
            let inside = number - piece.before;
            if piece.length == f64::INFINITY || inside < piece.requests() {
                return piece.begin + piece.due(inside);
            }
            *hint += 1;
        }
        f64::INFINITY
    }
}

/// What the user asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Course {
    /// One rate.
    Constant(f64),
    /// From one rate evenly to another, over the measured time.
    Ramp(f64, f64),
    /// One rate after the other, each for the same share of the measured time.
    Steps(Vec<f64>),
}

/// A part of the measured time with figures of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Nanoseconds into the measured time at which it begins.
    pub begin: Nanos,
    /// And at which it ends.
    pub end: Nanos,
    /// Mean rate per second.
    pub rate: f64,
}

impl Course {
    /// The mean rate over the measured time.
    pub fn mean(&self) -> f64 {
        match self {
            Self::Constant(rate) => *rate,
            Self::Ramp(from, to) => (from + to) / 2.0,
            Self::Steps(rates) => rates.iter().sum::<f64>() / rates.len() as f64,
        }
    }

    /// The rate over the measured time as a line: corners of nanoseconds and requests per second.
    pub fn corners(&self, measured: Nanos) -> Vec<(Nanos, f64)> {
        match self {
            Self::Constant(rate) => vec![(0, *rate), (measured, *rate)],
            Self::Ramp(from, to) => vec![(0, *from), (measured, *to)],
            Self::Steps(_) => (self.steps(measured).iter())
                .flat_map(|step| [(step.begin, step.rate), (step.end, step.rate)])
                .collect(),
        }
    }

    /// The rates in words.
    pub fn words(&self) -> String {
        match self {
            // A search halves its rates; nobody reads the tenth digit.
            Self::Constant(rate) => format!("{}/s", (rate * 1e3).round() / 1e3),
            Self::Ramp(from, to) => format!("ramp from {from}/s to {to}/s"),
            Self::Steps(rates) => {
                let rates: Vec<String> = rates.iter().map(f64::to_string).collect();
                format!("steps of {}/s", rates.join(", "))
            }
        }
    }

    /// The profile of the whole run. The warm-up runs at the first rate.
    pub fn profile(&self, warmup: Nanos, measured: Nanos) -> Profile {
        let first = match self {
            Self::Constant(rate) => return Profile::constant(*rate),
            Self::Ramp(from, _) => *from,
            Self::Steps(rates) => rates[0],
        };
        let mut pieces = vec![(warmup, first, first)];
        match self {
            Self::Constant(_) => {}
            Self::Ramp(from, to) => pieces.push((measured, *from, *to)),
            Self::Steps(rates) => pieces.extend(
                self.steps(measured)
                    .iter()
                    .zip(rates)
                    .map(|(step, &rate)| (step.end - step.begin, rate, rate)),
            ),
        }
        Profile::of(&pieces)
    }

    /// The parts of the measured time that have figures of their own; none at one rate.
    pub fn steps(&self, measured: Nanos) -> Vec<Step> {
        let count = match self {
            Self::Constant(_) => return Vec::new(),
            Self::Ramp(..) => RAMP_STEPS,
            Self::Steps(rates) => rates.len(),
        };
        let edge = |n: usize| (u128::from(measured) * n as u128 / count as u128) as Nanos;
        (0..count)
            .map(|n| Step {
                begin: edge(n),
                end: edge(n + 1),
                rate: match self {
                    Self::Ramp(from, to) => {
                        from + (to - from) * (n as f64 + 0.5) / RAMP_STEPS as f64
                    }
                    Self::Steps(rates) => rates[n],
                    Self::Constant(rate) => *rate,
                },
            })
            .collect()
    }
}

/// Parts into which a ramp is cut for its figures.
const RAMP_STEPS: usize = 10;

/// Steps that a run may have; each has a histogram on each thread.
pub const STEPS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    fn dues(profile: &Profile, count: usize) -> Vec<f64> {
        let mut hint = 0;
        (0..count)
            .map(|n| profile.due(n as f64, &mut hint))
            .collect()
    }

    #[test]
    fn steps_follow_each_other_without_a_gap() {
        let course = Course::Steps(vec![1000.0, 2000.0, 500.0]);
        let profile = course.profile(10 * MS, 30 * MS);
        let all = dues(&profile, 46);
        assert_eq!(all[0], 0.0);
        // Ten in the warm-up, ten, twenty and five in the steps.
        let count = |from: f64, to: f64| all.iter().filter(|&&due| due >= from && due < to).count();
        assert_eq!(count(0.0, 10e6), 10);
        assert_eq!(count(10e6, 20e6), 10);
        assert_eq!(count(20e6, 30e6), 20);
        assert_eq!(count(30e6, 40e6), 5);
        assert_eq!(all[45], f64::INFINITY);
        assert_eq!(course.mean(), 3500.0 / 3.0);
        let steps = course.steps(30 * MS);
        assert_eq!(
            (steps[1].begin, steps[1].end, steps[1].rate),
            (10 * MS, 20 * MS, 2000.0)
        );
    }

    #[test]
    fn ramps_have_the_requests_of_their_mean_and_the_rates_of_their_ends() {
        for (from, to) in [
            (100.0, 1900.0),
            (1900.0, 100.0),
            (0.0, 2000.0),
            (2000.0, 0.0),
        ] {
            let course = Course::Ramp(from, to);
            let all = dues(&course.profile(0, 1000 * MS), 1001);
            let within = all.iter().filter(|due| due.is_finite()).count();
            assert!((999..=1001).contains(&within), "{from}..{to}: {within}");
            assert!(all.windows(2).all(|w| w[0] < w[1] || w[1] == f64::INFINITY));
            // Half of the time has the share of the requests that its mean rate gives it.
            let early = all.iter().filter(|&&due| due < 0.5e9).count() as f64;
            let want = (from + (from + to) / 2.0) / 2.0 * 0.5;
            assert!((early - want).abs() < 2.0, "{from}..{to}: {early}, {want}");
            assert_eq!(course.steps(1000 * MS).len(), RAMP_STEPS);
        }
    }
}
