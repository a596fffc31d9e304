//! What a run came to: computed once as [`Report`], then shown as a table, as JSON, second by second
//! or as a percentile file.

mod csv;
mod hgrm;
mod html;
mod load;
mod machine;
mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

pub use self::hgrm::hgrm_paths;
use self::machine::Machine;
use crate::board::{Interval, interval_length};
use crate::clock::{Nanos, SECOND};
use crate::compare::{self, Difference, Finding, QUANTILES};
use crate::failure::Kind;
use crate::find_max::Found;
use crate::gate::{Gate, Metric, Time};
use crate::plan::{Load, Plan, Timeline, nanos};
use crate::rt::Driver;
use crate::stats::{SseStats, Stats, TargetStats, WebSocketStats};
use crate::sys::CpuTime;
use crate::target::Target;
use crate::watch::{Cut, Observed, Usage};

/// A finished run. Its JSON form is what `--json` prints; times are microseconds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The version of this program.
    pub loadgen: &'static str,
    /// The command, secrets left out.
    pub command: Vec<String>,
    /// `open` or `closed`.
    pub mode: &'static str,
    /// The rate asked for, open loop; the mean of one that changes.
    pub rate_wanted: Option<f64>,
    /// How that rate ran, in words, open loop.
    #[serde(skip)]
    course: Option<String>,
    /// The same as a line over the planned time; empty in a closed loop.
    #[serde(skip)]
    wanted: Vec<(Nanos, f64)>,
    /// Threads.
    pub threads: usize,
    /// CPUs they were pinned to.
    pub cpus: Vec<usize>,
    /// Connections per target.
    pub connections: usize,
    /// What drove the sockets.
    pub driver: &'static str,
    /// The measured time, seconds.
    pub duration_s: f64,
    /// Whether a signal cut the run short: the figures are those of the part before it.
    pub partial: bool,
    /// That signal.
    pub stopped_by: Option<&'static str>,
    /// Requests that still had no answer shortly after it. They are in no other figure.
    pub in_flight: u64,
    /// Whether the generator kept its schedule well enough.
    pub valid: bool,
    /// What the reader must know before believing the figures.
    pub remarks: Vec<String>,
    /// One per target.
    pub targets: Vec<TargetReport>,
    /// Each target against the last, when there are several.
    pub comparisons: Vec<Comparison>,
    /// About the generator itself.
    pub generator: Generator,
    /// The processes that were watched.
    pub watched: BTreeMap<String, WatchedReport>,
    /// The conditions asked for.
    pub gates: Vec<GateReport>,
    /// What came of a search for the highest rate; the rest is about its last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub find_max: Option<Found>,
    /// When the run began, UTC.
    pub date: String,
    /// Where.
    pub machine: Machine,
    /// Spacing of arrivals, open loop.
    pub arrivals: Option<&'static str>,
    /// Time under load before the measured time, seconds.
    pub warmup_s: f64,
    /// How long each target was driven before the next had its turn, seconds.
    pub slice_s: f64,
    /// When an answer was given up, seconds.
    pub timeout_s: f64,
    /// Generator lag at p99 beyond which the run is invalid, microseconds.
    pub lag_bound_us: f64,
    /// Seed of arrivals and of resampling.
    pub seed: u64,
    /// How the run was cut short, if it was.
    #[serde(skip)]
    pub cut: Option<Cut>,
    /// How long each interval of the targets' series is.
    #[serde(skip)]
    interval: Nanos,
    /// One slice of each target.
    #[serde(skip)]
    round: Nanos,
    /// The measured time, from zero.
    #[serde(skip)]
    timeline: Timeline,
}

/// One target's figures.
#[derive(Debug, Serialize)]
pub struct TargetReport {
    /// Its name.
    pub name: String,
    /// Its URL without user, query and fragment.
    pub url: String,
    /// Where connections went.
    pub address: String,
    /// TLS version and cipher suite.
    pub tls: Option<String>,
    /// Requests due in the measured time, answered or not.
    pub requests: u64,
    /// Good answers among them.
    pub good: u64,
    /// Good answers that arrived within the measured time.
    pub good_in_time: u64,
    /// These per second of this target's share of the time.
    pub rps: f64,
    /// Failures by kind; kinds without any are left out.
    pub errors: BTreeMap<&'static str, u64>,
    /// All failures.
    pub errors_total: u64,
    /// Some failures in words.
    pub error_examples: Vec<String>,
    /// Answers by status.
    pub status: BTreeMap<u16, u64>,
    /// Body bytes received.
    pub body_bytes: u64,
    /// From when requests were due.
    pub latency: Latency,
    /// From when they were sent.
    pub latency_from_send: Latency,
    /// Connections and how long they took to open.
    pub connections: Connections,
    /// What its load was made of.
    #[serde(flatten)]
    pub load: load::LoadReport,
    #[serde(skip)]
    corrected: Histogram<u64>,
    #[serde(skip)]
    uncorrected: Histogram<u64>,
    #[serde(skip)]
    sse: Option<Box<SseStats>>,
    #[serde(skip)]
    websocket: Option<Box<WebSocketStats>>,
    #[serde(skip)]
    series: Vec<Interval>,
}

/// A distribution of times, microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p75: f64,
    pub p90: f64,
    pub p99: f64,
    #[serde(rename = "p99.9")]
    pub p999: f64,
    #[serde(rename = "p99.99")]
    pub p9999: f64,
    pub max: f64,
}

/// Connections of one target, during the whole run.
#[derive(Debug, Serialize)]
pub struct Connections {
    /// Opened.
    pub opened: u64,
    /// Of these, by a resumed TLS session.
    pub resumed: u64,
    /// Idle ones that the server closed.
    pub closed_idle: u64,
    /// Attempts that failed outside of a request.
    pub failed: u64,
    /// Time to open one.
    pub opening: Latency,
}

/// The generator's own figures.
#[derive(Debug, Serialize)]
pub struct Generator {
    /// How late requests were sent that found a connection free: the generator's own error.
    pub lag: Latency,
    /// How late requests were sent that had to wait for a connection: the server's doing.
    pub wait: Latency,
    /// CPU of the driving threads in the measured time without what was spun away, microseconds
    /// per good answer. Nothing without good answers.
    pub cpu_us_per_request: Option<f64>,
    /// Time spun away, waiting for due times, seconds.
    pub spun_s: f64,
    /// CPU of the driving threads in the measured time, spinning included: user time, seconds.
    pub cpu_user_s: f64,
    /// The same: system time, seconds.
    pub cpu_system_s: f64,
    /// Share of the driving threads' time that was work.
    pub cpu_share: f64,
    /// CPU of the whole process over its whole life, seconds.
    pub cpu_process_s: f64,
}

/// What a watched process used in the measured time. Nothing if it ended meanwhile.
#[derive(Debug, Serialize)]
pub struct WatchedReport {
    /// CPU, user and system together, seconds.
    pub cpu_s: Option<f64>,
    /// The same in microseconds per good answer, over all targets. Nothing without good answers.
    pub cpu_us_per_request: Option<f64>,
}

/// Two targets compared.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The first.
    pub subject: String,
    /// The second.
    pub baseline: String,
    /// Rounds that had answers from both.
    pub rounds: usize,
    /// One line per quantile.
    pub quantiles: Vec<ComparedQuantile>,
}

/// A quantile of two targets, microseconds.
#[derive(Debug, Serialize)]
pub struct ComparedQuantile {
    /// The quantile, 0 to 1.
    pub quantile: f64,
    /// The subject's.
    pub subject: f64,
    /// The baseline's.
    pub baseline: f64,
    /// Their difference.
    pub difference: f64,
    /// Lower end of the 95 % interval.
    pub low: Option<f64>,
    /// Upper end of it.
    pub high: Option<f64>,
    /// `slower`, `faster`, `below the noise` or `too few rounds`.
    pub finding: &'static str,
}

/// A condition and what came of it.
#[derive(Debug, Serialize)]
pub struct GateReport {
    /// As written.
    pub condition: String,
    /// The target it was held against.
    pub target: Option<String>,
    /// The measured value, for people.
    pub value: String,
    /// Whether the run fails by it.
    pub failed: bool,
}

impl Report {
    /// Computes everything from what was measured.
    pub fn new(
        plan: &Plan,
        gates: &[Gate],
        mut stats: Stats,
        observed: Observed,
        driver: Driver,
        command: Vec<String>,
    ) -> Self {
        let cut = observed.cut;
        let mut timeline = plan.timeline(0);
        if let Some(cut) = cut {
            timeline.end = timeline.measure_from + nanos(cut.measured);
        }
        if cut.is_some() {
            // The last round may lack a part of one target's slice.
            let whole = timeline.round_index(timeline.end);
            for target in &mut stats.targets {
                target.rounds.truncate(whole);
            }
        }
        let comparisons = compare_all(plan, &mut stats);
        let targets: Vec<TargetReport> = plan
            .targets
            .iter()
            .zip(std::mem::take(&mut stats.targets))
            .enumerate()
            .map(|(index, (target, stats))| {
                let driven = timeline.driven(index, timeline.measure_from, timeline.end);
                target_report(plan, target, stats, driven)
            })
            .collect();
        let good = targets.iter().map(|target| target.good_in_time).sum();
        let measured = timeline.end - timeline.measure_from;
        let generator = generator(plan, &stats, good, Duration::from_nanos(measured));
        let valid = stats.lag.value_at_quantile(0.99) <= crate::plan::nanos(plan.lag_bound);
        let mut report = Self {
            loadgen: env!("CARGO_PKG_VERSION"),
            command,
            mode: match plan.load {
                Load::Open { .. } => "open",
                Load::Closed => "closed",
            },
            rate_wanted: match plan.load {
                Load::Open { rate, .. } => Some(rate),
                Load::Closed => None,
            },
            course: plan.course.as_ref().map(crate::rate::Course::words),
            wanted: (plan.course.as_ref())
                .map_or(Vec::new(), |course| course.corners(nanos(plan.duration))),
            threads: plan.threads,
            cpus: plan.cpus.clone(),
            connections: plan.connections,
            driver: driver.name(),
            duration_s: measured as f64 / 1e9,
            partial: cut.is_some(),
            stopped_by: cut.map(|cut| cut.signal.name()),
            in_flight: stats.in_flight,
            valid,
            remarks: Vec::new(),
            targets,
            comparisons,
            generator,
            watched: watched(observed.usage, good),
            gates: Vec::new(),
            find_max: None,
            date: machine::date(observed.began),
            machine: Machine::read(),
            arrivals: match plan.load {
                Load::Open { arrivals, .. } => Some(arrivals.name()),
                Load::Closed => None,
            },
            warmup_s: plan.warmup.as_secs_f64(),
            slice_s: plan.slice.as_secs_f64(),
            timeout_s: plan.timeout.as_secs_f64(),
            lag_bound_us: plan.lag_bound.as_secs_f64() * 1e6,
            seed: plan.seed,
            cut,
            round: nanos(plan.slice) * plan.targets.len() as Nanos,
            interval: interval_length(plan.duration),
            timeline,
        };
        report.remarks = remarks(plan, &report);
        report.gates = gates
            .iter()
            .flat_map(|gate| judge(gate, &report, &stats))
            .collect();
        report
    }

    /// Whether a `--fail-if` condition held, or no request of some target succeeded.
    pub fn failed(&self) -> bool {
        self.gates.iter().any(|gate| gate.failed) || self.all_failed().next().is_some()
    }

    /// The targets of which not one request succeeded: their figures say nothing about a service. A
    /// target that nothing was due for, since a signal came first, is none of them.
    pub fn all_failed(&self) -> impl Iterator<Item = &TargetReport> {
        let stopped_early = |target: &TargetReport| self.partial && target.requests == 0;
        self.targets
            .iter()
            .filter(move |target| target.good == 0 && !stopped_early(target))
    }

    /// What was over in each stretch of `length` of the measured time, which is a multiple of the
    /// interval. Stretches after its end are there if something was over in them.
    fn moments(&self, target: usize, length: Nanos) -> Vec<Moment> {
        let measured = self.timeline.end - self.timeline.measure_from;
        let series = &self.targets[target].series;
        let each = (length / self.interval).max(1) as usize;
        let count = (measured.div_ceil(length) as usize).max(series.len().div_ceil(each));
        (0..count)
            .map(|index| {
                let from = index as Nanos * length;
                let start = self.timeline.measure_from + from;
                let mut seen = Interval::default();
                for interval in series.iter().skip(index * each).take(each) {
                    seen.merge(interval);
                }
                Moment {
                    from,
                    driven: self.timeline.driven(target, start, start + length),
                    seen,
                }
            })
            .collect()
    }

    /// The whole as one JSON document.
    ///
    /// # Errors
    /// None in practice; serde's signature has one.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

/// A stretch of the measured time.
struct Moment {
    /// When it began, counted from the beginning of the measured time.
    from: Nanos,
    /// How long the target was under load in it.
    driven: Nanos,
    /// What was over in it.
    seen: Interval,
}

impl Moment {
    /// Good answers per second under load; nothing if it was under none.
    fn rate(&self) -> Option<f64> {
        (self.driven > 0).then(|| self.seen.good as f64 * SECOND as f64 / self.driven as f64)
    }
}

fn target_report(plan: &Plan, target: &Target, stats: TargetStats, driven: Nanos) -> TargetReport {
    TargetReport {
        name: target.name.clone(),
        url: target.url.clone(),
        address: target.address.to_string(),
        requests: stats.requests(),
        good: stats.good,
        good_in_time: stats.good_in_time,
        rps: match driven {
            0 => 0.0,
            driven => stats.good_in_time as f64 * SECOND as f64 / driven as f64,
        },
        errors: Kind::ALL
            .into_iter()
            .zip(stats.failures)
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| (kind.name(), count))
            .collect(),
        errors_total: stats.failed(),
        error_examples: stats
            .examples
            .iter()
            .map(|(kind, detail)| format!("{}: {detail}", kind.name()))
            .collect(),
        status: stats
            .status
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(status, count)| (status as u16, *count))
            .collect(),
        body_bytes: stats.body_bytes,
        latency: latency(&stats.corrected),
        latency_from_send: latency(&stats.uncorrected),
        connections: Connections {
            opened: stats.connections_opened,
            resumed: stats.connections_resumed,
            closed_idle: stats.connections_closed_idle,
            failed: stats.connections_failed,
            opening: latency(&stats.opening),
        },
        load: load::LoadReport::new(plan, target, &stats),
        tls: stats.tls,
        corrected: stats.corrected,
        uncorrected: stats.uncorrected,
        sse: stats.sse,
        websocket: stats.websocket,
        series: stats.series,
    }
}

fn generator(plan: &Plan, stats: &Stats, good: u64, measured: Duration) -> Generator {
    let spun = Duration::from_nanos(stats.spun);
    let work = stats.cpu.total().saturating_sub(spun);
    let available = (measured.as_secs_f64() * plan.threads as f64).max(f64::MIN_POSITIVE);
    Generator {
        lag: latency(&stats.lag),
        wait: latency(&stats.wait),
        cpu_us_per_request: per_answer(work, good),
        spun_s: spun.as_secs_f64(),
        cpu_user_s: stats.cpu.user.as_secs_f64(),
        cpu_system_s: stats.cpu.system.as_secs_f64(),
        cpu_share: work.as_secs_f64() / available,
        cpu_process_s: CpuTime::of_process().total().as_secs_f64(),
    }
}

fn watched(usage: Usage, good: u64) -> BTreeMap<String, WatchedReport> {
    usage
        .into_iter()
        .map(|(name, cpu)| {
            let report = WatchedReport {
                cpu_s: cpu.map(|cpu| cpu.as_secs_f64()),
                cpu_us_per_request: cpu.and_then(|cpu| per_answer(cpu, good)),
            };
            (name, report)
        })
        .collect()
}

/// Microseconds of `cpu` for each of `good` answers.
fn per_answer(cpu: Duration, good: u64) -> Option<f64> {
    (good > 0).then(|| cpu.as_secs_f64() * 1e6 / good as f64)
}

fn compare_all(plan: &Plan, stats: &mut Stats) -> Vec<Comparison> {
    let Some((last, others)) = stats.targets.split_last_mut() else {
        return Vec::new();
    };
    let baseline = &plan.targets[others.len()].name;
    others
        .iter_mut()
        .zip(plan.targets.iter())
        .filter_map(|(stats, target)| {
            let (differences, rounds) =
                compare::compare(&mut stats.rounds, &mut last.rounds, &QUANTILES, plan.seed)?;
            Some(Comparison {
                subject: target.name.clone(),
                baseline: baseline.clone(),
                rounds,
                quantiles: differences.iter().map(compared).collect(),
            })
        })
        .collect()
}

fn compared(difference: &Difference) -> ComparedQuantile {
    ComparedQuantile {
        quantile: difference.quantile,
        subject: difference.subject / 1e3,
        baseline: difference.baseline / 1e3,
        difference: difference.value() / 1e3,
        low: difference.interval.map(|(low, _)| low / 1e3),
        high: difference.interval.map(|(_, high)| high / 1e3),
        finding: match difference.verdict() {
            Finding::Slower => "slower",
            Finding::Faster => "faster",
            Finding::BelowNoise => "below the noise",
            Finding::TooFewRounds => "too few rounds",
        },
    }
}

fn remarks(plan: &Plan, report: &Report) -> Vec<String> {
    let mut remarks = Vec::new();
    let own = &report.generator;
    if let Some(cut) = report.cut {
        remarks.push(format!(
            "PARTIAL: stopped by {} after {:.1} s of {:.1} s{}",
            cut.signal.name(),
            cut.measured.as_secs_f64(),
            plan.duration.as_secs_f64(),
            match (cut.measured, report.in_flight) {
                (Duration::ZERO, _) => "; that was in the warm-up, so nothing was measured".into(),
                (_, 0) => String::new(),
                (_, n) =>
                    format!("; {n} requests had no answer yet and are in none of these figures"),
            }
        ));
    }
    if !report.valid {
        remarks.push(format!(
            "INVALID: the generator sent requests {} late at p99 (bound {}); give it more \
             threads or CPUs of its own, or a lower rate",
            Time(own.lag.p99 * 1e3),
            Time(plan.lag_bound.as_nanos() as f64)
        ));
    }
    for target in report.all_failed() {
        remarks.push(match report.targets.len() {
            1 => "FAILED: no request succeeded".to_owned(),
            _ => format!("FAILED: {}: no request succeeded", target.name),
        });
    }
    if own.cpu_share > BUSY_SHARE {
        remarks.push(format!(
            "judge-bound: the generator worked {:.0} % of its threads' time; the target may be capable of more",
            own.cpu_share * 100.0
        ));
    }
    remarks
}

/// Above this share of its threads' time the generator itself is near its limit.
const BUSY_SHARE: f64 = 0.9;

fn judge(gate: &Gate, report: &Report, stats: &Stats) -> Vec<GateReport> {
    let verdict = |target: Option<&str>, value: f64| GateReport {
        condition: gate.text.clone(),
        target: target.map(str::to_owned),
        value: gate.show(value),
        failed: gate.holds(value),
    };
    if let Metric::Lag(quantile) = gate.metric {
        return vec![verdict(None, stats.lag.value_at_quantile(quantile) as f64)];
    }
    let wanted = |name: &str| gate.target.as_ref().is_none_or(|target| target == name);
    if let Metric::Difference(quantile) = gate.metric {
        return report
            .comparisons
            .iter()
            .filter(|comparison| wanted(&comparison.subject))
            .filter_map(|comparison| {
                let mut lines = comparison.quantiles.iter();
                let line = lines.find(|line| line.quantile == quantile)?;
                Some(verdict(Some(&comparison.subject), line.difference * 1e3))
            })
            .collect();
    }
    report
        .targets
        .iter()
        .filter(|target| wanted(&target.name))
        .map(|target| {
            if let Metric::Stream(time, at) = gate.metric {
                let value = time.value(at, target.sse.as_deref(), target.websocket.as_deref());
                return match value {
                    Some(value) => verdict(Some(&target.name), value),
                    None => GateReport {
                        condition: gate.text.clone(),
                        target: Some(target.name.clone()),
                        value: "nothing".to_owned(),
                        failed: true,
                    },
                };
            }
            let value = match gate.metric {
                Metric::Latency(quantile) => target.corrected.value_at_quantile(quantile) as f64,
                Metric::LatencyMean => target.corrected.mean(),
                Metric::Errors => target.errors_total as f64,
                Metric::Rate => target.rps,
                // Without a single request, nothing says that there were no errors.
                _ if target.requests == 0 => 1.0,
                _ => target.errors_total as f64 / target.requests as f64,
            };
            verdict(Some(&target.name), value)
        })
        .collect()
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    Latency {
        count: histogram.len(),
        mean: histogram.mean() / 1e3,
        p50: at(0.5),
        p75: at(0.75),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        p9999: at(0.9999),
        max: histogram.max() as f64 / 1e3,
    }
}

fn quantile_name(quantile: f64) -> String {
    match quantile {
        1.0 => "max".to_owned(),
        q => format!("p{}", (q * 1000.0).round() / 10.0),
    }
}

fn join(numbers: &[usize]) -> String {
    numbers
        .iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_have_their_usual_names() {
        let names: Vec<_> = QUANTILES.into_iter().map(quantile_name).collect();
        assert_eq!(names, ["p50", "p90", "p99", "p99.9", "max"]);
    }
}
