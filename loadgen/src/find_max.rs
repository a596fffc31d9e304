//! `--find-max`: the highest rate at which an objective holds.
//!
//! The method: the rate is doubled until the objective fails, then the gap between the highest rate
//! that held and the lowest that did not is halved until it is [`PRECISION`]. Each probe is an open
//! loop of its own, warmed up, and long enough for [`TAIL`] requests beyond its highest percentile.
//! A rate counts as failed when it failed twice, for one bad moment proves nothing; and the result
//! is what held in a run of the full `--duration` at the end. Whether a probe failed by the target
//! or because the generator itself could do no more is told apart.

use std::time::Duration;

use serde::Serialize;

use crate::failure::Kind;
use crate::gate::{At, Gate, Metric, Time};
use crate::live;
use crate::plan::{Load, Plan, nanos};
use crate::rate::Course;
use crate::stats::{Stats, TargetStats};

/// What has to hold: `p99<5ms,errors<0.1%`.
#[derive(Clone, Debug)]
pub struct Objective {
    text: String,
    conditions: Vec<Gate>,
}

impl Objective {
    /// Parses conditions that are separated by commas.
    ///
    /// # Errors
    /// A sentence with the forms that are understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let condition = |part: &str| {
            let gate = Gate::parse(part)?;
            let looks_at_probes = matches!(
                gate.metric,
                Metric::Latency(_)
                    | Metric::LatencyMean
                    | Metric::ErrorShare
                    | Metric::Errors
                    | Metric::Stream(..)
            );
            match gate.target.is_none() && part.contains('<') && looks_at_probes {
                true => Ok(gate),
                false => Err(format!(
                    "`{part}`: write what has to hold, with < or <= and commas between, such as \
                     'p99<5ms,errors<0.1%', 'mean<1ms', 'max<=1s' or 'sse.first_event.p99<50ms'; \
                     rps, lag, diff and a target's name have no place here"
                )),
            }
        };
        Ok(Self {
            text: text.to_owned(),
            conditions: text.split(',').map(condition).collect::<Result<_, _>>()?,
        })
    }

    /// What has to hold.
    pub fn conditions(&self) -> &[Gate] {
        &self.conditions
    }

    /// The conditions that do not hold, with what was measured.
    fn broken(&self, stats: &Stats, connections: usize) -> Vec<String> {
        let target = &stats.targets[0];
        let requests = target.requests();
        if requests == 0 {
            return vec!["not a single request was due".to_owned()];
        }
        self.conditions
            .iter()
            .filter_map(|condition| {
                let shown = match value(condition.metric, stats, connections) {
                    Some(value) if condition.holds(value) => return None,
                    Some(value) => condition.show(value),
                    None => "nothing".to_owned(),
                };
                Some(format!("{} (measured {shown})", condition.text))
            })
            .collect()
    }

    /// How long a probe at `rate` must last to say something about the highest percentile.
    fn length(&self, rate: f64, longest: Duration) -> Duration {
        let share = self
            .conditions
            .iter()
            .map(|condition| match condition.metric {
                Metric::Latency(quantile) | Metric::Stream(_, At::Quantile(quantile)) => {
                    (1.0 - quantile).max(SHARE_MIN)
                }
                _ => 1.0,
            })
            .fold(SHARE_ERRORS, f64::min);
        Duration::from_secs_f64(TAIL / (share * rate))
            .max(PROBE_MIN)
            .min(longest)
    }
}

/// What was measured; nothing where there were no values.
fn value(metric: Metric, stats: &Stats, connections: usize) -> Option<f64> {
    let target = &stats.targets[0];
    Some(match metric {
        Metric::Stream(time, at) => {
            return time.value(at, target.sse.as_deref(), target.websocket.as_deref());
        }
        Metric::Latency(quantile) => target.corrected.value_at_quantile(quantile) as f64,
        Metric::LatencyMean => target.corrected.mean(),
        Metric::Errors => failed(target, connections) as f64,
        _ => failed(target, connections) as f64 / target.requests().max(1) as f64,
    })
}

/// Failures that count against an objective. The end of a probe cuts off what waits for a connection
/// at that moment: up to one request per connection is the queue of any server that keeps up, and is
/// no error. More is a backlog, of which each counts.
fn failed(target: &TargetStats, connections: usize) -> u64 {
    match target.failures[Kind::Unsent as usize] {
        queue if queue <= connections as u64 => target.failed() - queue,
        _ => target.failed(),
    }
}

/// What came of a search. Times are microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// What had to hold.
    pub slo: String,
    /// The highest rate that held in the run of full length, requests per second.
    pub rate: Option<f64>,
    /// The bound that its 99th percentile had, nanoseconds, for the plot.
    #[serde(skip)]
    pub p99_bound: Option<f64>,
    /// What kept it from being higher: `target`, `generator`, or `nothing` up to the last probe.
    pub limited_by: &'static str,
    /// Every probe, in order; the last are the runs of full length.
    pub probes: Vec<Probe>,
}

/// One run of a search.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// The rate asked for.
    pub rate: f64,
    /// Good answers per second.
    pub achieved: f64,
    /// Its measured time, seconds.
    pub duration_s: f64,
    /// Median of the latency.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Requests without a good answer, of all; without those that the probe's end cut off.
    pub error_share: f64,
    /// 99th percentile of the generator's lag.
    pub lag_p99: f64,
    /// Share of the driving threads' time that was work.
    pub cpu_share: f64,
    /// Whether everything held.
    pub holds: bool,
    /// Why not.
    pub broken: Vec<String>,
    /// Whether the generator was at its own limit.
    pub generator_limited: bool,
    /// Whether it was a run of full length that confirms.
    pub confirmation: bool,
}

impl Probe {
    fn new(objective: &Objective, plan: &Plan, stats: &Stats, confirmation: bool) -> Self {
        let rate = plan.course.as_ref().map_or(0.0, Course::mean);
        let seconds = plan.duration.as_secs_f64();
        let target = &stats.targets[0];
        let at = |quantile| target.corrected.value_at_quantile(quantile) as f64 / 1e3;
        let spun = Duration::from_nanos(stats.spun);
        let cpu = stats.cpu.total().saturating_sub(spun).as_secs_f64();
        let cpu_share = cpu / (seconds * plan.threads as f64);
        let lag = stats.lag.value_at_quantile(0.99);
        let generator_limited = lag > nanos(plan.lag_bound) || cpu_share > BUSY;
        let achieved = target.good_in_time as f64 / seconds;
        let mut broken = objective.broken(stats, plan.connections);
        if lag > nanos(plan.lag_bound) {
            broken.push(format!(
                "the generator lagged by {} at p99",
                Time(lag as f64)
            ));
        }
        Self {
            rate,
            achieved,
            duration_s: seconds,
            p50: at(0.5),
            p99: at(0.99),
            error_share: failed(target, plan.connections) as f64 / target.requests().max(1) as f64,
            lag_p99: lag as f64 / 1e3,
            cpu_share,
            holds: broken.is_empty(),
            broken,
            generator_limited,
            confirmation,
        }
    }

    /// Its line for people.
    pub fn line(&self) -> String {
        format!(
            "{:>9.0}/s for {:>4.1} s: p50 {}, p99 {}, errors {:.3}%{}: {}",
            self.rate,
            self.duration_s,
            Time(self.p50 * 1e3),
            Time(self.p99 * 1e3),
            self.error_share * 100.0,
            if self.confirmation {
                ", to confirm"
            } else {
                ""
            },
            match (self.holds, self.generator_limited) {
                (true, false) => "holds".to_owned(),
                (true, true) => "holds, with the generator near its limit".to_owned(),
                (false, false) => format!("fails: {}", self.broken.join(", ")),
                (false, true) => {
                    format!(
                        "fails, with the generator at its limit: {}",
                        self.broken.join(", ")
                    )
                }
            }
        )
    }
}

impl Found {
    /// Its lines of the table.
    pub fn text(&self) -> String {
        let mut out = format!("highest rate at which {} holds: ", self.slo);
        match self.rate {
            Some(rate) => out.push_str(&format!(
                "{rate:.0}/s, limited by {}",
                match self.limited_by {
                    "nothing" => "nothing that was tried",
                    "generator" => "the generator, not the target: give it more threads or CPUs",
                    _ => "the target",
                }
            )),
            None => out.push_str("none that was tried"),
        }
        out.push('\n');
        for probe in &self.probes {
            out.push_str(&format!("  {}\n", probe.line()));
        }
        out
    }
}

/// Searches. `drive` runs a plan; the last plan run is the one whose whole report is shown.
///
/// # Errors
/// That of `drive`, when a run could not start.
pub fn search<T>(
    base: &Plan,
    objective: &Objective,
    mut drive: impl FnMut(Plan) -> Result<Ran<T>, String>,
) -> Result<(Found, T), String> {
    let mut bracket = Bracket::new();
    let mut probes = Vec::new();
    let mut probe = |rate: f64, confirmation: bool| {
        let mut plan = base.clone();
        plan.course = Some(Course::Constant(rate));
        if let Load::Open { rate: mean, .. } = &mut plan.load {
            *mean = rate;
        }
        if !confirmation {
            plan.duration = objective.length(rate, base.duration);
        }
        plan.slice = plan.warmup + plan.duration;
        let ran = drive(plan.clone())?;
        let probe = Probe::new(objective, &plan, &ran.stats, confirmation);
        live::say(&probe.line());
        probes.push(probe.clone());
        Ok::<_, String>((probe, ran))
    };
    while let Some(rate) = bracket.next() {
        let (mut one, mut ran) = probe(rate, false)?;
        if !one.holds && !ran.cut {
            (one, ran) = probe(rate, false)?;
        }
        if ran.cut {
            return Ok((Found::new(objective, None, "nothing", probes), ran.rest));
        }
        bracket.note(rate, one.holds, one.generator_limited);
    }
    // The bracket is known to within its precision; what holds for a moment may not hold for long.
    let mut rate = bracket.low.unwrap_or(RATE_MIN);
    let mut confirmations = 0;
    loop {
        let (one, ran) = probe(rate, true)?;
        confirmations += 1;
        if one.holds || ran.cut || confirmations == CONFIRMATIONS_MAX {
            let found = (one.holds && !ran.cut).then_some(rate);
            let by_generator = bracket.generator_limited || !one.holds && one.generator_limited;
            let limited_by = match (bracket.high, by_generator) {
                (None, _) if confirmations == 1 => "nothing",
                (_, true) => "generator",
                (_, false) => "target",
            };
            return Ok((Found::new(objective, found, limited_by, probes), ran.rest));
        }
        bracket.generator_limited |= one.generator_limited;
        rate *= STEP_DOWN;
    }
}

/// A run of a search.
pub struct Ran<T> {
    /// What was measured.
    pub stats: Stats,
    /// Whether the user stopped it.
    pub cut: bool,
    /// Whatever its caller makes of it.
    pub rest: T,
}

impl Found {
    fn new(
        objective: &Objective,
        rate: Option<f64>,
        limited_by: &'static str,
        probes: Vec<Probe>,
    ) -> Self {
        Self {
            slo: objective.text.clone(),
            rate,
            p99_bound: (objective.conditions.iter())
                .find(|condition| condition.metric == Metric::Latency(0.99))
                .map(Gate::bound),
            limited_by,
            probes,
        }
    }
}

/// Between which rates the highest one lies.
#[derive(Debug)]
struct Bracket {
    /// The highest rate that held.
    low: Option<f64>,
    /// The lowest rate that failed.
    high: Option<f64>,
    /// Whether the generator was at its limit there.
    generator_limited: bool,
    tried: usize,
}

impl Bracket {
    fn new() -> Self {
        Self {
            low: None,
            high: None,
            generator_limited: false,
            tried: 0,
        }
    }

    /// The rate to try next; none when enough is known.
    fn next(&self) -> Option<f64> {
        if self.tried == RATES_MAX {
            return None;
        }
        match (self.low, self.high) {
            (None, None) => Some(RATE_FIRST),
            (Some(low), None) => Some(low * 2.0),
            (None, Some(high)) if high > RATE_MIN => Some((high / 4.0).max(RATE_MIN)),
            (Some(low), Some(high)) if high / low > 1.0 + PRECISION => Some((low + high) / 2.0),
            _ => None,
        }
    }

    fn note(&mut self, rate: f64, holds: bool, generator_limited: bool) {
        self.tried += 1;
        if holds {
            self.low = Some(rate);
        } else {
            self.high = Some(rate);
            self.generator_limited = generator_limited;
        }
    }
}

/// Where the search begins, requests per second.
const RATE_FIRST: f64 = 500.0;

/// Below this rate it gives up.
const RATE_MIN: f64 = 1.0;

/// The search ends when the lowest rate that failed is this little above the highest that held.
const PRECISION: f64 = 0.03;

/// Rates that are tried at most; the search then ends with what it knows.
const RATES_MAX: usize = 24;

/// Runs of full length at most, each at [`STEP_DOWN`] of the rate before.
const CONFIRMATIONS_MAX: usize = 4;

/// How far to step down when a run of full length does not hold.
const STEP_DOWN: f64 = 0.95;

/// The least time of a probe.
const PROBE_MIN: Duration = Duration::from_secs(2);

/// Requests beyond the highest percentile that a probe must have.
const TAIL: f64 = 20.0;

/// A maximum takes as long as this percentile's complement.
const SHARE_MIN: f64 = 0.001;

/// Requests of which one failure must be seen.
const SHARE_ERRORS: f64 = 0.01;

/// Above this share of its threads' time the generator is at its limit.
const BUSY: f64 = 0.9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::record;

    /// Searches with a target that holds up to `limit`, and returns the bracket.
    fn bracket(limit: f64) -> Bracket {
        let mut bracket = Bracket::new();
        while let Some(rate) = bracket.next() {
            bracket.note(rate, rate <= limit, false);
        }
        bracket
    }

    #[test]
    fn the_limit_is_enclosed_with_few_probes() {
        for limit in [1.5, 3.0, 499.0, 500.0, 9_999.0, 123_456.0] {
            let found = bracket(limit);
            let (low, high) = (found.low.unwrap(), found.high.unwrap());
            assert!(low <= limit && limit < high, "{limit}: {low}..{high}");
            assert!(high / low <= 1.0 + PRECISION, "{limit}: {low}..{high}");
            assert!(found.tried < RATES_MAX);
        }
    }

    #[test]
    fn a_search_without_a_limit_ends_all_the_same() {
        assert_eq!(bracket(f64::INFINITY).tried, RATES_MAX);
        assert_eq!(bracket(0.0).low, None);
    }

    #[test]
    fn objectives() {
        let objective = Objective::parse("p99<5ms, errors<0.1%,max<=1s").unwrap();
        assert_eq!(objective.conditions.len(), 3);
        for text in [
            "",
            "p99>5ms",
            "p99<5",
            "x:p99<5ms",
            "lag.p99<5ms",
            "rps<5",
            "p99<5ms,",
        ] {
            let error = Objective::parse(text).unwrap_err();
            assert!(error.contains("p99"), "{text}: {error}");
        }
        let error = Objective::parse("p99<5ms,sse.dealy.p99<5ms").unwrap_err();
        assert!(error.contains("sse.delay.pN"), "{error}");
    }

    #[test]
    fn a_stream_that_nothing_was_measured_of_does_not_hold() {
        let objective = Objective::parse("sse.first_event.p99<5ms").unwrap();
        let mut stats = Stats::new(1);
        stats.targets[0].good = 1_000;
        assert_eq!(
            objective.broken(&stats, 1),
            ["sse.first_event.p99<5ms (measured nothing)"]
        );
        let sse = stats.targets[0].sse.get_or_insert_default();
        record(&mut sse.first_event, 4_000_000);
        assert!(objective.broken(&stats, 1).is_empty());
        let sse = stats.targets[0].sse.get_or_insert_default();
        record(&mut sse.first_event, 6_000_000);
        assert_eq!(objective.broken(&stats, 1).len(), 1);
    }

    #[test]
    fn the_end_of_a_probe_is_no_error_and_a_backlog_is() {
        for text in ["errors<0.1%", "errors<1"] {
            let objective = Objective::parse(text).unwrap();
            let broken = |unsent: u64, reset: u64| {
                let mut stats = Stats::new(1);
                stats.targets[0].good = 1_000;
                stats.targets[0].failures[Kind::Unsent as usize] = unsent;
                stats.targets[0].failures[Kind::Reset as usize] = reset;
                !objective.broken(&stats, 32).is_empty()
            };
            assert!(!broken(0, 0) && !broken(32, 0), "{text}");
            assert!(broken(33, 0) && broken(32, 2), "{text}");
        }
    }

    #[test]
    fn probes_last_long_enough_for_their_percentile() {
        let longest = Duration::from_secs(60);
        let length = |text: &str, rate| Objective::parse(text).unwrap().length(rate, longest);
        assert_eq!(length("p99<1ms", 10_000.0), PROBE_MIN);
        assert_eq!(length("p99.9<1ms", 1_000.0).as_secs_f64().round(), 20.0);
        assert_eq!(length("p99.9<1ms", 10.0), longest);
    }
}
