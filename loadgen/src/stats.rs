//! What is counted, per thread first and merged at the end.

use hdrhistogram::Histogram;

use crate::board::Interval;
use crate::clock::{Nanos, SECOND};
use crate::failure::{Failure, Kind};
use crate::samples::Samples;
use crate::sys::CpuTime;

/// Everything one thread measured; all threads' together after [`Stats::merge`].
#[derive(Clone, Debug)]
pub struct Stats {
    /// One per target, in the plan's order.
    pub targets: Vec<TargetStats>,
    /// How late requests were sent that found a connection free (and taken up, that found none).
    pub lag: Histogram<u64>,
    /// How late requests were sent that had to wait for a connection.
    pub wait: Histogram<u64>,
    /// CPU used by the driving threads within the measured time, spinning included.
    pub cpu: CpuTime,
    /// How much of it was spun away, waiting for a due time.
    pub spun: Nanos,
    /// Requests that still had no answer when a stopped run was over.
    pub in_flight: u64,
}

/// What was measured of one target.
#[derive(Clone, Debug)]
pub struct TargetStats {
    /// From due to the last byte of the answer.
    pub corrected: Histogram<u64>,
    /// From the send to the last byte of the answer.
    pub uncorrected: Histogram<u64>,
    /// Time to open a connection, handshake included.
    pub opening: Histogram<u64>,
    /// Good answers to requests that were due in the measured time.
    pub good: u64,
    /// Good answers that arrived within the measured time: the throughput.
    pub good_in_time: u64,
    /// Failures by kind, in the order of [`Kind::ALL`].
    pub failures: [u64; Kind::ALL.len()],
    /// A few failures in words.
    pub examples: Vec<(Kind, String)>,
    /// Answers by status, as index.
    pub status: Vec<u64>,
    /// Body bytes received.
    pub body_bytes: u64,
    /// Connections opened during the whole run, warm-up included.
    pub connections_opened: u64,
    /// Of these, handshakes that resumed a session.
    pub connections_resumed: u64,
    /// Idle connections that the server closed.
    pub connections_closed_idle: u64,
    /// Connections that failed to open outside of any request.
    pub connections_failed: u64,
    /// The TLS version, cipher suite and key exchange group of the first connection.
    pub tls: Option<String>,
    /// Latencies by round, when targets are compared.
    pub rounds: Vec<Samples>,
    /// What was over in each interval of the measured time and shortly after it. Later intervals
    /// in which nothing was over are missing.
    pub series: Vec<Interval>,
    /// Connections opened within the measured time.
    pub connections_opened_in_time: u64,
    /// Of these, handshakes that resumed a session.
    pub connections_resumed_in_time: u64,
    /// Body bytes received within the measured time, whenever their requests were due.
    pub bytes_received: u64,
    /// Body bytes sent within the measured time.
    pub bytes_sent: u64,
    /// Idle connections.
    pub idle: IdleStats,
    /// By request, where a target has several.
    pub requests: Vec<PartStats>,
    /// By step, where the rate changes.
    pub steps: Vec<PartStats>,
    /// Event streams, if there were any.
    pub sse: Option<Box<SseStats>>,
    /// WebSockets, if there were any.
    pub websocket: Option<Box<WebSocketStats>>,
}

/// Connections that do next to nothing, and their requests, which enter no other figure.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdleStats {
    /// Opened before the start.
    pub opened: u64,
    /// Could not be opened.
    pub failed: u64,
    /// Lost afterwards: closed by the server or broken. They are not opened again.
    pub lost: u64,
    /// Good answers.
    pub good: u64,
    /// Requests without a good answer.
    pub errors: u64,
}

/// A part of a target's requests: those of one name, or of one step.
#[derive(Clone, Debug)]
pub struct PartStats {
    /// Good answers.
    pub good: u64,
    /// Of these, answered before the measured time, or the step, was over.
    pub good_in_time: u64,
    /// Failures by kind, in the order of [`Kind::ALL`].
    pub failures: [u64; Kind::ALL.len()],
    /// Body bytes received.
    pub body_bytes: u64,
    /// From due to the last byte of the answer.
    pub corrected: Histogram<u64>,
}

/// What was measured of event streams, within the measured time.
#[derive(Clone, Debug)]
pub struct SseStats {
    /// Events.
    pub events: u64,
    /// From when the request was due to the first event.
    pub first_event: Histogram<u64>,
    /// From one event to the next.
    pub gap: Histogram<u64>,
    /// How far a gap is off: from the announced one, or from the one at the sender.
    pub jitter: Histogram<u64>,
    /// From the sender's stamp to the arrival.
    pub delay: Histogram<u64>,
}

/// What was measured of WebSockets, within the measured time.
#[derive(Clone, Debug)]
pub struct WebSocketStats {
    /// Messages that came back.
    pub messages: u64,
    /// From sending the request to upgrade to the answer.
    pub handshake: Histogram<u64>,
    /// From sending a message to the last byte of its echo.
    pub round_trip: Histogram<u64>,
}

impl Stats {
    /// Nothing measured of `targets` targets.
    pub fn new(targets: usize) -> Self {
        Self {
            targets: (0..targets).map(|_| TargetStats::new()).collect(),
            lag: histogram(),
            wait: histogram(),
            cpu: CpuTime::default(),
            spun: 0,
            in_flight: 0,
        }
    }

    /// Adds what another thread measured.
    pub fn merge(&mut self, other: Self) {
        for (ours, theirs) in self.targets.iter_mut().zip(other.targets) {
            ours.merge(theirs);
        }
        add(&mut self.lag, &other.lag);
        add(&mut self.wait, &other.wait);
        self.cpu += other.cpu;
        self.spun += other.spun;
        self.in_flight += other.in_flight;
    }
}

impl TargetStats {
    fn new() -> Self {
        Self {
            corrected: histogram(),
            uncorrected: histogram(),
            opening: histogram(),
            good: 0,
            good_in_time: 0,
            failures: [0; Kind::ALL.len()],
            examples: Vec::new(),
            status: vec![0; 1000],
            body_bytes: 0,
            connections_opened: 0,
            connections_resumed: 0,
            connections_closed_idle: 0,
            connections_failed: 0,
            tls: None,
            rounds: Vec::new(),
            series: Vec::new(),
            connections_opened_in_time: 0,
            connections_resumed_in_time: 0,
            bytes_received: 0,
            bytes_sent: 0,
            idle: IdleStats::default(),
            requests: Vec::new(),
            steps: Vec::new(),
            sse: None,
            websocket: None,
        }
    }

    /// Counts a failure and keeps its words if few are known.
    pub fn fail(&mut self, failure: Failure) {
        self.failures[failure.kind as usize] += 1;
        self.example(failure);
    }

    /// Keeps the words of a failure if few are known.
    pub fn example(&mut self, failure: Failure) {
        let known = self
            .examples
            .iter()
            .filter(|(kind, _)| *kind == failure.kind);
        let mut count = 0;
        for (_, detail) in known {
            if *detail == failure.detail {
                return;
            }
            count += 1;
        }
        if count < EXAMPLES_PER_KIND_MAX {
            self.examples.push((failure.kind, failure.detail));
        }
    }

    /// All failures.
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Good answers and failures.
    pub fn requests(&self) -> u64 {
        self.good + self.failed()
    }

    /// The samples of round `index`, counted from the start of the measured time.
    pub fn round(&mut self, index: usize) -> &mut Samples {
        if self.rounds.len() <= index {
            self.rounds.resize_with(index + 1, Samples::default);
        }
        &mut self.rounds[index]
    }

    /// The figures of request `index`.
    pub fn request(&mut self, index: usize) -> &mut PartStats {
        part(&mut self.requests, index)
    }

    /// The figures of step `index`.
    pub fn step(&mut self, index: usize) -> &mut PartStats {
        part(&mut self.steps, index)
    }

    fn merge(&mut self, other: Self) {
        add(&mut self.corrected, &other.corrected);
        add(&mut self.uncorrected, &other.uncorrected);
        add(&mut self.opening, &other.opening);
        self.good += other.good;
        self.good_in_time += other.good_in_time;
        for (ours, theirs) in self.failures.iter_mut().zip(other.failures) {
            *ours += theirs;
        }
        for (kind, detail) in other.examples {
            self.example(Failure { kind, detail });
        }
        for (ours, theirs) in self.status.iter_mut().zip(other.status) {
            *ours += theirs;
        }
        self.body_bytes += other.body_bytes;
        self.connections_opened += other.connections_opened;
        self.connections_resumed += other.connections_resumed;
        self.connections_closed_idle += other.connections_closed_idle;
        self.connections_failed += other.connections_failed;
        self.tls = self.tls.take().or(other.tls);
        for (index, samples) in other.rounds.into_iter().enumerate() {
            self.round(index).merge(samples);
        }
        if self.series.len() < other.series.len() {
            self.series
                .resize_with(other.series.len(), Interval::default);
        }
        for (ours, theirs) in self.series.iter_mut().zip(&other.series) {
            ours.merge(theirs);
        }
        self.connections_opened_in_time += other.connections_opened_in_time;
        self.connections_resumed_in_time += other.connections_resumed_in_time;
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.idle.merge(other.idle);
        for (index, theirs) in other.requests.into_iter().enumerate() {
            self.request(index).merge(&theirs);
        }
        for (index, theirs) in other.steps.into_iter().enumerate() {
            self.step(index).merge(&theirs);
        }
        if let Some(theirs) = other.sse {
            self.sse.get_or_insert_default().merge(&theirs);
        }
        if let Some(theirs) = other.websocket {
            self.websocket.get_or_insert_default().merge(&theirs);
        }
    }
}

impl IdleStats {
    fn merge(&mut self, other: Self) {
        self.opened += other.opened;
        self.failed += other.failed;
        self.lost += other.lost;
        self.good += other.good;
        self.errors += other.errors;
    }
}

impl PartStats {
    /// Good answers and failures.
    pub fn requests(&self) -> u64 {
        self.good + self.failed()
    }

    /// All failures.
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    fn merge(&mut self, other: &Self) {
        self.good += other.good;
        self.good_in_time += other.good_in_time;
        for (ours, theirs) in self.failures.iter_mut().zip(other.failures) {
            *ours += theirs;
        }
        self.body_bytes += other.body_bytes;
        add(&mut self.corrected, &other.corrected);
    }
}

impl Default for PartStats {
    fn default() -> Self {
        Self {
            good: 0,
            good_in_time: 0,
            failures: [0; Kind::ALL.len()],
            body_bytes: 0,
            corrected: histogram(),
        }
    }
}

impl SseStats {
    fn merge(&mut self, other: &Self) {
        self.events += other.events;
        add(&mut self.first_event, &other.first_event);
        add(&mut self.gap, &other.gap);
        add(&mut self.jitter, &other.jitter);
        add(&mut self.delay, &other.delay);
    }
}

impl Default for SseStats {
    fn default() -> Self {
        Self {
            events: 0,
            first_event: histogram(),
            gap: histogram(),
            jitter: histogram(),
            delay: histogram(),
        }
    }
}

impl WebSocketStats {
    fn merge(&mut self, other: &Self) {
        self.messages += other.messages;
        add(&mut self.handshake, &other.handshake);
        add(&mut self.round_trip, &other.round_trip);
    }
}

impl Default for WebSocketStats {
    fn default() -> Self {
        Self {
            messages: 0,
            handshake: histogram(),
            round_trip: histogram(),
        }
    }
}

fn part(parts: &mut Vec<PartStats>, index: usize) -> &mut PartStats {
    if parts.len() <= index {
        parts.resize_with(index + 1, PartStats::default);
    }
    &mut parts[index]
}

/// Records a duration; what lies beyond the histogram's end counts as its end.
#[inline]
pub fn record(histogram: &mut Histogram<u64>, value: Nanos) {
    histogram.saturating_record(value);
}

/// Different details kept per kind of failure; further ones are only counted.
const EXAMPLES_PER_KIND_MAX: usize = 3;

/// The longest latency told apart: an hour. Longer ones are counted as this.
const LATENCY_MAX: Nanos = 3600 * SECOND;

/// The shortest latency told apart, in nanoseconds. Together with three digits it keeps the part
/// of a histogram that a run touches within the processor's caches.
const LATENCY_MIN: Nanos = 64;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_MIN, LATENCY_MAX, 3)
        .expect("constant bounds that the histogram accepts")
}

fn add(ours: &mut Histogram<u64>, theirs: &Histogram<u64>) {
    ours.add(theirs).expect("histograms of the same bounds");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_examples_are_kept_and_all_are_counted() {
        let mut stats = TargetStats::new();
        for n in 0..10 {
            stats.fail(Failure::new(Kind::Reset, format!("reason {}", n % 5)));
        }
        assert_eq!(stats.failures[Kind::Reset as usize], 10);
        assert_eq!(stats.examples.len(), EXAMPLES_PER_KIND_MAX);
    }

    #[test]
    fn kinds_index_their_counters() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }

    #[test]
    fn merging_adds() {
        let mut a = Stats::new(1);
        let mut b = Stats::new(1);
        record(&mut a.targets[0].corrected, 1000);
        record(&mut b.targets[0].corrected, 2_000_000);
        b.targets[0].round(2).add(5);
        b.targets[0].good = 3;
        a.merge(b);
        assert_eq!(a.targets[0].corrected.len(), 2);
        assert_eq!(a.targets[0].rounds.len(), 3);
        assert_eq!(a.targets[0].good, 3);
    }
}
