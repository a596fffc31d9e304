//! What a driving thread shows of itself while it works, and what it keeps of each moment.
//!
//! A [`Board`] holds counters that only ever grow and that only their thread writes: a relaxed load
//! and a relaxed store each, which on every processor that we know are the instructions of a plain
//! `+= 1`. One other thread reads them now and then ([`Reading`]) and takes differences. Neither
//! waits for the other, and a reading may be torn between two counters: it is for looking at.
//!
//! What the report says of each moment is exact instead: the [`Recorder`] reads its own board
//! whenever an interval ends, and keeps the difference as an [`Interval`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Nanos, SECOND};
use crate::failure::Kind;
use crate::plan::{Plan, Timeline, nanos};

/// One thread's counters, over the whole run.
#[derive(Debug)]
pub struct Board {
    targets: Vec<TargetBoard>,
    lag: Buckets,
}

#[derive(Debug)]
struct TargetBoard {
    good: Counter,
    failures: [Counter; Kind::ALL.len()],
    latency: Buckets,
}

/// Counts that one thread writes and any may read.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    #[inline]
    fn increment(&self) {
        // There is one writer, so nothing is lost between the load and the store.
        self.0
            .store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram of fixed size: [`BUCKETS_PER_DOUBLING`] per doubling.
#[derive(Debug)]
struct Buckets(Box<[Counter]>);

impl Buckets {
    fn new() -> Self {
        Self((0..BUCKETS).map(|_| Counter::default()).collect())
    }

    #[inline]
    fn record(&self, value: Nanos) {
        self.0[bucket(value)].increment();
    }
}

impl Board {
    /// A board for `targets` targets, all at zero.
    pub fn new(targets: usize) -> Self {
        Self {
            targets: (0..targets)
                .map(|_| TargetBoard {
                    good: Counter::default(),
                    failures: std::array::from_fn(|_| Counter::default()),
                    latency: Buckets::new(),
                })
                .collect(),
            lag: Buckets::new(),
        }
    }
}

/// What boards showed at one moment, or between two.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// One per target.
    pub targets: Vec<Interval>,
    /// How late the generator was.
    pub lag: Distribution,
}

impl Reading {
    /// The sum of all boards now.
    pub fn of(boards: &[Arc<Board>]) -> Self {
        let targets = boards.first().map_or(0, |board| board.targets.len());
        Self {
            targets: (0..targets)
                .map(|target| {
                    let mut sum = Interval::default();
                    for board in boards {
                        sum.merge(&board.targets[target].read());
                    }
                    sum
                })
                .collect(),
            lag: {
                let mut sum = Distribution::default();
                for board in boards {
                    sum.merge(&Distribution::of(&board.lag));
                }
                sum
            },
        }
    }

    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let nothing = Interval::default();
        Self {
            targets: self
                .targets
                .iter()
                .enumerate()
                .map(|(n, now)| now.since(earlier.targets.get(n).unwrap_or(&nothing)))
                .collect(),
            lag: self.lag.since(&earlier.lag),
        }
    }
}

impl TargetBoard {
    fn read(&self) -> Interval {
        let latency = Distribution::of(&self.latency);
        Interval {
            good: self.good.read(),
            failures: std::array::from_fn(|kind| self.failures[kind].read()),
            max: latency.highest(),
            latency,
        }
    }
}

/// What came of requests within a stretch of time, by when they were over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// Good answers.
    pub good: u64,
    /// Failures by kind, in the order of [`Kind::ALL`].
    pub failures: [u64; Kind::ALL.len()],
    /// Corrected latency of good answers, timeouts and what was never sent.
    pub latency: Distribution,
    /// The longest of these latencies.
    pub max: Nanos,
}

impl Interval {
    /// All failures.
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Good answers and failures.
    pub fn requests(&self) -> u64 {
        self.good + self.failed()
    }

    /// Adds another stretch of time, or another thread's share of this one.
    pub fn merge(&mut self, other: &Self) {
        self.good += other.good;
        for (ours, theirs) in self.failures.iter_mut().zip(other.failures) {
            *ours += theirs;
        }
        self.latency.merge(&other.latency);
        self.max = self.max.max(other.max);
    }

    /// A quantile of the latency: exact at 1, otherwise to within 1.6 %. `None` without any.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        match quantile >= 1.0 {
            true => (self.max > 0).then_some(self.max as f64),
            false => self
                .latency
                .quantile(quantile)
                .map(|value| value.min(self.max as f64)),
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        let latency = self.latency.since(&earlier.latency);
        Self {
            good: self.good - earlier.good,
            failures: std::array::from_fn(|kind| self.failures[kind] - earlier.failures[kind]),
            max: latency.highest(),
            latency,
        }
    }
}

/// Times in buckets of 3 % width, of which most are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Bucket and count, sorted; no bucket twice and none without a count.
    counts: Vec<(u16, u64)>,
}

impl Distribution {
    fn of(buckets: &Buckets) -> Self {
        Self {
            counts: buckets
                .0
                .iter()
                .enumerate()
                .map(|(index, counter)| (index as u16, counter.read()))
                .filter(|&(_, count)| count > 0)
                .collect(),
        }
    }

    /// Lower end (nanoseconds), upper end and count of each bucket that holds something.
    pub fn buckets(&self) -> impl Iterator<Item = (Nanos, Nanos, u64)> + '_ {
        self.counts.iter().map(|&(index, count)| {
            let index = usize::from(index);
            (bucket_start(index), bucket_start(index + 1), count)
        })
    }

    /// How many times it holds.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|&(_, count)| count).sum()
    }

    /// The middle of the bucket that holds a quantile, nanoseconds.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let rank = ((quantile * self.count() as f64).ceil() as u64).max(1);
        let mut seen = 0;
        self.buckets().find_map(|(low, high, count)| {
            seen += count;
            (seen >= rank).then_some((low + high) as f64 / 2.0)
        })
    }

    fn highest(&self) -> Nanos {
        self.buckets().last().map_or(0, |(_, high, _)| high)
    }

    fn merge(&mut self, other: &Self) {
        if other.counts.is_empty() {
            return;
        }
        // Two sorted lists one after the other: this sort merges them.
        self.counts.extend_from_slice(&other.counts);
        self.counts.sort_by_key(|&(index, _)| index);
        self.counts.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            kept.1 += if same { later.1 } else { 0 };
            same
        });
    }

    fn since(&self, earlier: &Self) -> Self {
        let mut before = earlier.counts.iter().peekable();
        Self {
            counts: self
                .counts
                .iter()
                .filter_map(|&(index, count)| {
                    // Counts only grow, so each bucket of the earlier reading is in this one too.
                    let known = before
                        .next_if(|&&(other, _)| other == index)
                        .map_or(0, |&(_, count)| count);
                    (count > known).then(|| (index, count - known))
                })
                .collect(),
        }
    }
}

/// A driving thread's pen: writes on its board, and keeps what was measured of each interval.
#[derive(Debug)]
pub struct Recorder {
    board: Arc<Board>,
    /// `None` before the load starts.
    measure_from: Option<Nanos>,
    length: Nanos,
    /// When the board is read next: the end of the interval under way, or of the warm-up.
    next: Nanos,
    /// The board at the beginning of the interval under way. Empty before the measured time.
    seen: Vec<Interval>,
    /// The longest latency of the interval under way, by target.
    max: Vec<Nanos>,
    /// By target, then by interval.
    series: Vec<Vec<Interval>>,
}

impl Recorder {
    /// A recorder of a run that has not started.
    pub fn new(plan: &Plan, board: Arc<Board>) -> Self {
        let targets = plan.targets.len();
        Self {
            board,
            measure_from: None,
            length: interval_length(plan.duration),
            next: Nanos::MAX,
            seen: Vec::new(),
            max: vec![0; targets],
            series: vec![Vec::new(); targets],
        }
    }

    /// The load starts.
    pub fn start(&mut self, timeline: Timeline) {
        self.measure_from = Some(timeline.measure_from);
        self.next = timeline.measure_from;
    }

    /// A good answer.
    #[inline]
    pub fn good(&mut self, target: usize, due: Nanos, now: Nanos) {
        if self.counts(due, now) {
            self.board.targets[target].good.increment();
            self.latency(target, now.saturating_sub(due));
        }
    }

    /// A failure of a request that was due at `due`. Its latency counts if `timed` says so.
    pub fn failed(&mut self, target: usize, due: Nanos, now: Nanos, kind: Kind, timed: bool) {
        if self.counts(due, now) {
            self.board.targets[target].failures[kind as usize].increment();
            if timed {
                self.latency(target, now.saturating_sub(due));
            }
        }
    }

    /// The generator was late by `late`.
    #[inline]
    pub fn lag(&self, late: Nanos) {
        self.board.lag.record(late);
    }

    /// Closes the last interval and returns all of them, by target.
    pub fn finish(&mut self) -> Vec<Vec<Interval>> {
        if !self.seen.is_empty() {
            self.turn(self.next);
        }
        std::mem::take(&mut self.series)
    }

    #[inline]
    fn latency(&mut self, target: usize, latency: Nanos) {
        self.board.targets[target].latency.record(latency);
        self.max[target] = self.max[target].max(latency);
    }

    /// Whether to count: in the measured time only what is measured, before it everything.
    #[inline]
    fn counts(&mut self, due: Nanos, now: Nanos) -> bool {
        if now >= self.next {
            self.turn(now);
        }
        self.seen.is_empty() || self.measure_from.is_some_and(|from| due >= from)
    }

    /// Ends the interval under way and begins the one that holds `now`.
    #[cold]
    fn turn(&mut self, now: Nanos) {
        let Some(from) = self.measure_from else {
            return;
        };
        let reading: Vec<Interval> = self.board.targets.iter().map(TargetBoard::read).collect();
        if !self.seen.is_empty() {
            let index = ((self.next - from) / self.length - 1) as usize;
            for (target, series) in self.series.iter_mut().enumerate() {
                let mut interval = reading[target].since(&self.seen[target]);
                interval.max = self.max[target];
                if interval.requests() > 0 {
                    let index = index.min(INTERVALS_MAX - 1);
                    if series.len() <= index {
                        series.resize_with(index + 1, Interval::default);
                    }
                    series[index].merge(&interval);
                }
            }
        }
        self.seen = reading;
        self.max.fill(0);
        self.next = from + ((now.saturating_sub(from)) / self.length + 1) * self.length;
    }
}

/// How long the intervals of a run of `duration` are: a tenth of a second, then one second, then as
/// many as keep them below [`INTERVALS_WANTED_MAX`].
pub fn interval_length(duration: Duration) -> Nanos {
    let needed = nanos(duration).div_ceil(INTERVALS_WANTED_MAX);
    match needed <= SECOND / 10 {
        true => SECOND / 10,
        false => needed.div_ceil(SECOND) * SECOND,
    }
}

/// Intervals that a run is cut into at most. Longer runs have longer ones. Each takes one to three
/// kilobytes per target and thread.
const INTERVALS_WANTED_MAX: u64 = 3600;

/// Intervals kept, those after the end (answers that came late) included. What is over later still
/// counts for the last one.
const INTERVALS_MAX: usize = 4000;

/// Bits of a value that its bucket keeps: 32 buckets per doubling, 3 % wide.
const BUCKET_BITS: u32 = 5;

/// The longest time told apart, two hours; longer ones count as this.
const BUCKETED_MAX: Nanos = 7200 * SECOND;

/// Buckets from zero to [`BUCKETED_MAX`].
const BUCKETS: usize = bucket_of(BUCKETED_MAX) + 1;

#[inline]
fn bucket(value: Nanos) -> usize {
    bucket_of(value.min(BUCKETED_MAX))
}

#[inline]
const fn bucket_of(value: Nanos) -> usize {
    let octave = Nanos::BITS - 1 - (value | (1 << BUCKET_BITS)).leading_zeros();
    let shift = octave - BUCKET_BITS;
    ((shift as usize) << BUCKET_BITS) + (value >> shift) as usize
}

fn bucket_start(bucket: usize) -> Nanos {
    let per_doubling = 1 << BUCKET_BITS;
    if bucket < 2 * per_doubling {
        return bucket as Nanos;
    }
    let shift = bucket / per_doubling - 1;
    ((bucket - shift * per_doubling) as Nanos) << shift
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MILLISECOND;

    #[test]
    fn buckets_are_narrow_ordered_and_invertible() {
        let mut value: Nanos = 0;
        while value < BUCKETED_MAX {
            let b = bucket(value);
            let (start, end) = (bucket_start(b), bucket_start(b + 1));
            assert!(start <= value && value < end, "{value} in {start}..{end}");
            assert!(end - start <= 1 + value / 32, "{value}: {start}..{end}");
            value = value + 1 + value / 77;
        }
        assert_eq!(bucket(Nanos::MAX), BUCKETS - 1);
        assert!(BUCKETS < usize::from(u16::MAX));
    }

    #[test]
    fn intervals_fit_the_run() {
        for (seconds, length) in [
            (1, SECOND / 10),
            (360, SECOND / 10),
            (361, SECOND),
            (3600, SECOND),
            (3601, 2 * SECOND),
            (86_400, 24 * SECOND),
        ] {
            assert_eq!(
                interval_length(Duration::from_secs(seconds)),
                length,
                "{seconds} s"
            );
        }
    }

    fn recorder(from: Nanos) -> Recorder {
        let mut recorder = Recorder {
            board: Arc::new(Board::new(2)),
            measure_from: None,
            length: SECOND,
            next: Nanos::MAX,
            seen: Vec::new(),
            max: vec![0; 2],
            series: vec![Vec::new(); 2],
        };
        recorder.measure_from = Some(from);
        recorder.next = from;
        recorder
    }

    #[test]
    fn each_interval_holds_what_ended_in_it() {
        let mut recorder = recorder(10 * SECOND);
        let at = |s: f64| (s * SECOND as f64) as Nanos;
        // The warm-up shows, but is not kept; nor is a straggler from it.
        recorder.good(0, at(9.0), at(9.1));
        assert_eq!(Reading::of(&[recorder.board.clone()]).targets[0].good, 1);
        recorder.good(0, at(9.9), at(10.2));
        recorder.good(0, at(10.0), at(10.3));
        recorder.failed(1, at(10.1), at(10.4), Kind::BadStatus, false);
        // Two seconds without anything, then a slow answer and one after the end.
        recorder.good(0, at(10.5), at(13.5));
        recorder.failed(0, at(13.0), at(15.1), Kind::Timeout, true);
        let series = recorder.finish();
        let counts: Vec<u64> = series[0].iter().map(Interval::requests).collect();
        assert_eq!(counts, [1, 0, 0, 1, 0, 1]);
        assert_eq!(series[0][0].quantile(1.0), Some(300.0 * MILLISECOND as f64));
        assert_eq!(series[0][3].max, 3 * SECOND);
        assert_eq!(series[0][5].failures[Kind::Timeout as usize], 1);
        assert_eq!(series[0][5].latency.count(), 1);
        assert_eq!(series[1][0].failed(), 1);
        assert_eq!(series[1][0].latency.count(), 0);
        assert_eq!(series[1][0].quantile(0.5), None);
    }

    #[test]
    fn readings_subtract_and_add() {
        let recorder = &mut recorder(0);
        let boards = [recorder.board.clone(), Arc::new(Board::new(2))];
        let mut before = Reading::of(&boards);
        for n in 1..=100u64 {
            recorder.good(0, 0, n * MILLISECOND);
            if n == 50 {
                before = Reading::of(&boards);
            }
        }
        recorder.lag(5000);
        let between = Reading::of(&boards).since(&before);
        assert_eq!(between.targets[0].good, 50);
        let p50 = between.targets[0].quantile(0.5).unwrap();
        assert!((p50 / 75e6 - 1.0).abs() < 0.03, "{p50}");
        assert_eq!(between.lag.count(), 1);
        assert_eq!(between.targets[1], Interval::default());
    }
}
