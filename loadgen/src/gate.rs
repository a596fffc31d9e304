//! Conditions: those of `--fail-if` turn a measurement into an exit code, those of `--slo` are what
//! `--find-max` searches for.

use std::fmt;

use hdrhistogram::Histogram;

use crate::compare::QUANTILES;
use crate::stats::{SseStats, WebSocketStats};

/// A condition such as `p99>5ms`, `proxy:errors>0.1%`, `diff.p50>60us` or `sse.delay.p99>20ms`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// As the user wrote it.
    pub text: String,
    /// The target it is about; none means each of them.
    pub target: Option<String>,
    /// What is looked at.
    pub metric: Metric,
    comparison: Comparison,
    /// The bound, in nanoseconds, a share, or a plain number.
    bound: f64,
}

/// What a gate looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// A quantile of the corrected latency, nanoseconds.
    Latency(f64),
    /// The mean of the corrected latency, nanoseconds.
    LatencyMean,
    /// Failures over requests.
    ErrorShare,
    /// Failures.
    Errors,
    /// Good answers per second.
    Rate,
    /// A quantile of the generator's lag, nanoseconds.
    Lag(f64),
    /// The difference of a quantile to the last target, nanoseconds. One of [`QUANTILES`].
    Difference(f64),
    /// A time of event streams or WebSockets, nanoseconds.
    Stream(StreamTime, At),
}

/// Where in a distribution to look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum At {
    /// A quantile, 0 to 1.
    Quantile(f64),
    /// The mean.
    Mean,
}

/// A time of event streams or WebSockets that a gate may be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamTime {
    /// From when a request was due to its first event.
    FirstEvent,
    /// From one event to the next.
    Gap,
    /// How far gaps are off.
    Jitter,
    /// From the sender's stamp to the arrival.
    Delay,
    /// From sending the request to upgrade to the answer.
    Handshake,
    /// From sending a message to the last byte of its echo.
    RoundTrip,
}

impl StreamTime {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::FirstEvent,
        Self::Gap,
        Self::Jitter,
        Self::Delay,
        Self::Handshake,
        Self::RoundTrip,
    ];

    /// Its name in a condition, which is its path in a target's JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstEvent => "sse.first_event",
            Self::Gap => "sse.gap",
            Self::Jitter => "sse.jitter",
            Self::Delay => "sse.delay",
            Self::Handshake => "websocket.handshake",
            Self::RoundTrip => "websocket.round_trip",
        }
    }

    /// Whether it is about event streams, and not about WebSockets.
    pub fn is_sse(self) -> bool {
        !matches!(self, Self::Handshake | Self::RoundTrip)
    }

    /// Where in its distribution `at` lies, nanoseconds. Nothing without a single value, for then
    /// nothing says that the time was good.
    pub fn value(
        self,
        at: At,
        sse: Option<&SseStats>,
        websocket: Option<&WebSocketStats>,
    ) -> Option<f64> {
        let values: &Histogram<u64> = match self {
            Self::FirstEvent => &sse?.first_event,
            Self::Gap => &sse?.gap,
            Self::Jitter => &sse?.jitter,
            Self::Delay => &sse?.delay,
            Self::Handshake => &websocket?.handshake,
            Self::RoundTrip => &websocket?.round_trip,
        };
        (!values.is_empty()).then(|| match at {
            At::Quantile(quantile) => values.value_at_quantile(quantile) as f64,
            At::Mean => values.mean(),
        })
    }
}

impl Metric {
    /// The metric that a condition names.
    fn named(name: &str) -> Option<Self> {
        let stream = StreamTime::ALL.into_iter().find_map(|time| {
            let rest = name.strip_prefix(time.name())?.strip_prefix('.')?;
            Some((time, rest))
        });
        Some(match (name, stream) {
            ("rps", _) => Self::Rate,
            ("mean", _) => Self::LatencyMean,
            (_, Some((time, "mean"))) => Self::Stream(time, At::Mean),
            (_, Some((time, rest))) => Self::Stream(time, At::Quantile(quantile(rest)?)),
            _ => {
                if let Some(rest) = name.strip_prefix("lag.") {
                    Self::Lag(quantile(rest)?)
                } else if let Some(rest) = name.strip_prefix("diff.") {
                    Self::Difference(quantile(rest).filter(|q| QUANTILES.contains(q))?)
                } else {
                    Self::Latency(quantile(name)?)
                }
            }
        })
    }
}

/// `p99.9` or `max`, as a share from 0 to 1.
fn quantile(name: &str) -> Option<f64> {
    match name {
        "max" => Some(1.0),
        // Rounded so that `p99.9` is the same 0.999 as in [`QUANTILES`].
        _ => (name.strip_prefix('p').and_then(number)).map(|p| (p * 1e10).round() / 1e12),
    }
    .filter(|q| (0.0..=1.0).contains(q))
}

/// The names that there are, for the error about one that is not.
fn names() -> String {
    let streams: String = StreamTime::ALL
        .map(|time| format!(", {}.pN", time.name()))
        .concat();
    format!(
        "errors, rps, mean, max, pN (p50, p99.9), lag.pN, diff.p50, diff.p90, diff.p99, diff.p99.9, \
         diff.max{streams}; `mean` and `max` may stand for the pN of sse and websocket, `max` for that of lag"
    )
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Above,
    AtLeast,
    Below,
    AtMost,
}

impl Gate {
    /// Parses `[TARGET:]METRIC OP VALUE`.
    ///
    /// # Errors
    /// A sentence with the forms that are understood, or the names that there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "`{text}`: write METRIC, one of > >= < <=, and a value, such as 'p99>5ms', \
                 'errors>0.1%', 'rps<9900', 'mean>=1ms', 'max>1s', 'lag.p99>50us', 'diff.p50>60us', \
                 'sse.delay.p99>20ms'; NAME: in front makes it about one target"
            )
        };
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let at = compact.find(['<', '>']).ok_or_else(refuse)?;
        let (left, right) = compact.split_at(at);
        let (comparison, value) = if let Some(value) = right.strip_prefix(">=") {
            (Comparison::AtLeast, value)
        } else if let Some(value) = right.strip_prefix("<=") {
            (Comparison::AtMost, value)
        } else if let Some(value) = right.strip_prefix('>') {
            (Comparison::Above, value)
        } else {
            (Comparison::Below, &right[1..])
        };
        let (target, name) = match left.rsplit_once(':') {
            Some((target, name)) => (Some(target.to_owned()), name),
            None => (None, left),
        };
        let (metric, bound) = match (name, value.strip_suffix('%')) {
            ("errors", Some(percent)) => (Metric::ErrorShare, number(percent).map(|n| n / 100.0)),
            ("errors", None) => (Metric::Errors, number(value)),
            _ => {
                let metric = Metric::named(name).ok_or_else(|| {
                    format!(
                        "`{text}`: there is no metric `{name}`; there are {}",
                        names()
                    )
                })?;
                let bound = match metric {
                    Metric::Rate => number(value),
                    _ => time(value),
                };
                (metric, bound)
            }
        };
        Ok(Self {
            text: text.to_owned(),
            target,
            metric,
            comparison,
            bound: bound.ok_or_else(refuse)?,
        })
    }

    /// Whether the condition holds for `value`, that is, whether the run fails by it.
    pub fn holds(&self, value: f64) -> bool {
        match self.comparison {
            Comparison::Above => value > self.bound,
            Comparison::AtLeast => value >= self.bound,
            Comparison::Below => value < self.bound,
            Comparison::AtMost => value <= self.bound,
        }
    }

    /// The bound, in nanoseconds, a share, or a plain number.
    pub fn bound(&self) -> f64 {
        self.bound
    }

    /// Shows a value in the metric's unit.
    pub fn show(&self, value: f64) -> String {
        match self.metric {
            Metric::ErrorShare => format!("{:.3}%", value * 100.0),
            Metric::Errors => format!("{value:.0}"),
            Metric::Rate => format!("{value:.1}/s"),
            _ => Time(value).to_string(),
        }
    }
}

/// A time in nanoseconds, shown in the unit that reads best, with three or four digits.
#[derive(Clone, Copy, Debug)]
pub struct Time(pub f64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0.abs() {
            n if n < 999_500.0 => (self.0 / 1e3, "us"),
            n if n < 999_500_000.0 => (self.0 / 1e6, "ms"),
            _ => (self.0 / 1e9, "s"),
        };
        let digits = match value.abs() {
            v if v < 9.995 => 2,
            v if v < 99.95 => 1,
            _ => 0,
        };
        f.pad(&format!("{value:.digits$}{unit}"))
    }
}

fn number(text: &str) -> Option<f64> {
    text.parse()
        .ok()
        .filter(|value: &f64| value.is_finite() && *value >= 0.0)
}

/// A time with its unit, in nanoseconds. A bare number is refused: nobody agrees on its unit.
pub fn time(text: &str) -> Option<f64> {
    for (unit, factor) in [
        ("ns", 1.0),
        ("us", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 6e10),
        ("h", 3.6e12),
    ] {
        if let Some(value) = text.strip_suffix(unit) {
            return Some(number(value)? * factor);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        for (text, target, metric, holds, not) in [
            (
                "p99>5ms",
                None,
                Metric::Latency(0.99),
                5_000_001.0,
                5_000_000.0,
            ),
            ("p99.9 >= 2s", None, Metric::Latency(0.999), 2e9, 1.9e9),
            (
                "a:b:errors>0.1%",
                Some("a:b"),
                Metric::ErrorShare,
                0.0011,
                0.001,
            ),
            ("errors>0", None, Metric::Errors, 1.0, 0.0),
            ("rps<100", None, Metric::Rate, 99.0, 100.0),
            ("mean<=1us", None, Metric::LatencyMean, 1000.0, 1001.0),
            ("max>1ns", None, Metric::Latency(1.0), 2.0, 1.0),
            ("lag.p99>50us", None, Metric::Lag(0.99), 50_001.0, 50_000.0),
            (
                "diff.p50>60us",
                None,
                Metric::Difference(0.5),
                60_001.0,
                -60_001.0,
            ),
            (
                "diff.p99.9>1ms",
                None,
                Metric::Difference(0.999),
                1_000_001.0,
                1e6,
            ),
            (
                "sse.first_event.p99>5ms",
                None,
                Metric::Stream(StreamTime::FirstEvent, At::Quantile(0.99)),
                5_000_001.0,
                5e6,
            ),
            (
                "a:sse.jitter.max > 1ms",
                Some("a"),
                Metric::Stream(StreamTime::Jitter, At::Quantile(1.0)),
                1_000_001.0,
                1e6,
            ),
            (
                "websocket.round_trip.mean>=1ms",
                None,
                Metric::Stream(StreamTime::RoundTrip, At::Mean),
                1e6,
                999_999.0,
            ),
        ] {
            let gate = Gate::parse(text).unwrap();
            assert_eq!(gate.target.as_deref(), target, "{text}");
            assert_eq!(gate.metric, metric, "{text}");
            assert!(gate.holds(holds) && !gate.holds(not), "{text}");
        }
        for text in [
            "",
            "p99",
            "p99>",
            "p99>5",
            "p101>5ms",
            "q>1ms",
            "errors>x",
            "p99=5ms",
            "p99>-1ms",
            "rps<1ms",
            "sse.delay.p99>5",
        ] {
            assert!(Gate::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_metric_that_does_not_exist_is_told_those_that_do() {
        for name in [
            "p101",
            "lag.mean",
            // Nothing is compared at other quantiles than those.
            "diff.p95",
            "sse.p99",
            "sse.first_event",
            "sse.first_eventp99",
            "sse.round_trip.p99",
            "websocket.delay.p99",
        ] {
            let error = Gate::parse(&format!("{name}>1ms")).unwrap_err();
            assert!(error.contains(&format!("no metric `{name}`")), "{error}");
            for time in StreamTime::ALL {
                assert!(error.contains(time.name()), "{error}");
            }
            for other in ["errors", "rps", "mean", "max", "lag.pN"] {
                assert!(error.contains(other), "{error}");
            }
            let compared = QUANTILES.map(|q| match q {
                1.0 => "diff.max".to_owned(),
                q => format!("diff.p{}", (q * 1000.0).round() / 10.0),
            });
            assert!(compared.iter().all(|name| error.contains(name)), "{error}");
        }
    }

    #[test]
    fn times_read_well() {
        for (nanos, text) in [
            (0.0, "0.00us"),
            (950.0, "0.95us"),
            (12_340.0, "12.3us"),
            (999_400.0, "999us"),
            (999_600.0, "1.00ms"),
            (-45_600.0, "-45.6us"),
            (3.2e9, "3.20s"),
        ] {
            assert_eq!(Time(nanos).to_string(), text);
        }
        assert_eq!(format!("[{:>8}]", Time(1000.0)), "[  1.00us]");
    }
}
