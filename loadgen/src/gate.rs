//! `--fail-if`: conditions that turn a measurement into an exit code.

use std::fmt;

/// A condition such as `p99>5ms`, `proxy:errors>0.1%` or `diff.p50>60us`.
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
    /// The difference of a quantile to the last target, nanoseconds.
    Difference(f64),
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
    /// A sentence with the forms that are understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "--fail-if `{text}`: write METRIC, one of > >= < <=, and a value, such as \
                 'p99>5ms', 'errors>0.1%', 'rps<9900', 'mean>=1ms', 'max>1s', 'lag.p99>50us', \
                 'diff.p50>60us'; NAME: in front makes it about one target"
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
        let (metric, bound) = match name {
            "errors" => match value.strip_suffix('%') {
                Some(percent) => (Metric::ErrorShare, number(percent).map(|n| n / 100.0)),
                None => (Metric::Errors, number(value)),
            },
            "rps" => (Metric::Rate, number(value)),
            "mean" => (Metric::LatencyMean, time(value)),
            "max" => (Metric::Latency(1.0), time(value)),
            _ => {
                let (make, name): (fn(f64) -> Metric, _) =
                    if let Some(name) = name.strip_prefix("lag.") {
                        (Metric::Lag, name)
                    } else if let Some(name) = name.strip_prefix("diff.") {
                        (Metric::Difference, name)
                    } else {
                        (Metric::Latency, name)
                    };
                let quantile = match name {
                    "max" => Some(1.0),
                    _ => name.strip_prefix('p').and_then(number).map(|p| p / 100.0),
                };
                let quantile = quantile
                    .filter(|q| (0.0..=1.0).contains(q))
                    .ok_or_else(refuse)?;
                (make(quantile), time(value))
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
            (
                "p99.9 >= 2s",
                None,
                Metric::Latency(0.9990000000000001),
                2e9,
                1.9e9,
            ),
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
        ] {
            let gate = Gate::parse(text).unwrap();
            assert_eq!(gate.target.as_deref(), target, "{text}");
            match (gate.metric, metric) {
                (Metric::Latency(a), Metric::Latency(b)) => assert!((a - b).abs() < 1e-9),
                (a, b) => assert_eq!(a, b, "{text}"),
            }
            assert!(gate.holds(holds) && !gate.holds(not), "{text}");
        }
        for text in [
            "", "p99", "p99>", "p99>5", "p101>5ms", "q>1ms", "errors>x", "p99=5ms", "p99>-1ms",
            "rps<1ms",
        ] {
            assert!(Gate::parse(text).is_err(), "{text}");
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
