//! One model of latency: a distribution and how to draw from it.

use std::fmt;
use std::time::Duration;

use super::histogram::{Recorded, Unit};
use crate::draws::{normal, uniform};
use crate::units::{SPAN_MAX, Span};

/// A distribution of latencies.
#[derive(Clone, Debug)]
pub enum Model {
    /// Always the same.
    Fixed(Span),
    /// The logarithm is normally distributed: most answers near the median, some far above.
    LogNormal {
        /// Half of the answers take longer.
        median: Span,
        /// The standard deviation of the logarithm; 0 to [`SIGMA_MAX`].
        sigma: f64,
    },
    /// Two kinds of answers, such as cache hits and misses; each spread like a log-normal.
    Bimodal {
        /// The median of the fast ones.
        fast: Span,
        /// The median of the slow ones.
        slow: Span,
        /// How many are slow: 0 to 1.
        share: f64,
        /// The spread of both.
        sigma: f64,
    },
    /// As somebody measured it.
    Recorded(Recorded),
}

impl Model {
    /// Reads `fixed:20ms`, `lognormal:median=20ms,sigma=0.5`,
    /// `bimodal:fast=5ms,slow=200ms,share=0.05[,sigma=0.1]` or (if `files` may be read)
    /// `histogram:FILE[,unit=us]`.
    ///
    /// # Errors
    ///
    /// A sentence that says what was expected.
    pub fn parse(text: &str, files: bool) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').ok_or_else(|| expected(text))?;
        match kind {
            "fixed" => Span::parse(rest).map(Model::Fixed),
            "lognormal" => {
                let mut parts = Parts::new(rest)?;
                let model = Model::LogNormal {
                    median: parts.span("median")?,
                    sigma: parts.number("sigma", None, SIGMA_MAX)?,
                };
                parts.end(model)
            }
            "bimodal" => {
                let mut parts = Parts::new(rest)?;
                let model = Model::Bimodal {
                    fast: parts.span("fast")?,
                    slow: parts.span("slow")?,
                    share: parts.number("share", None, 1.0)?,
                    sigma: parts.number("sigma", Some(0.0), SIGMA_MAX)?,
                };
                parts.end(model)
            }
            "histogram" if files => {
                let (file, unit) = match rest.rsplit_once(",unit=") {
                    Some((file, unit)) => (file, Unit::parse(unit)?),
                    None => (rest, Unit::default()),
                };
                let text = std::fs::read_to_string(file)
                    .map_err(|error| format!("reading the histogram {file}: {error}"))?;
                Recorded::parse(&text, unit)
                    .map(Model::Recorded)
                    .map_err(|error| format!("the histogram {file}: {error}"))
            }
            "histogram" => Err(
                "files are not read at the control port's word: send the lines as `histogram`"
                    .into(),
            ),
            _ => Err(expected(text)),
        }
    }

    /// The latency of request number `place` of the rule number `stream`.
    pub fn draw(&self, seed: u64, stream: u64, place: u64) -> Duration {
        let spread = |median: Span, sigma: f64| {
            let factor = match sigma {
                0.0 => 1.0,
                sigma => (sigma * normal(seed, stream, place)).exp(),
            };
            let nanos = median.0.as_nanos() as f64 * factor;
            Duration::from_nanos(nanos as u64).min(SPAN_MAX)
        };
        match self {
            Model::Fixed(span) => span.0,
            Model::LogNormal { median, sigma } => spread(*median, *sigma),
            Model::Bimodal {
                fast,
                slow,
                share,
                sigma,
            } => match uniform(seed, !stream, place) < *share {
                true => spread(*slow, *sigma),
                false => spread(*fast, *sigma),
            },
            Model::Recorded(recorded) => recorded.at(uniform(seed, stream, place)),
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Model::Fixed(span) => write!(f, "fixed:{span}"),
            Model::LogNormal { median, sigma } => {
                write!(f, "lognormal:median={median},sigma={sigma}")
            }
            Model::Bimodal {
                fast,
                slow,
                share,
                sigma,
            } => write!(
                f,
                "bimodal:fast={fast},slow={slow},share={share},sigma={sigma}"
            ),
            Model::Recorded(recorded) => {
                write!(f, "histogram of {} values", recorded.total())
            }
        }
    }
}

/// `name=value` pairs, each taken once.
struct Parts<'t>(Vec<(&'t str, &'t str)>);

impl<'t> Parts<'t> {
    fn new(text: &'t str) -> Result<Self, String> {
        text.split(',')
            .map(|part| part.split_once('=').ok_or_else(|| expected(text)))
            .collect::<Result<_, _>>()
            .map(Parts)
    }

    fn take(&mut self, name: &str) -> Option<&'t str> {
        let index = self
            .0
            .iter()
            .position(|(candidate, _)| *candidate == name)?;
        Some(self.0.remove(index).1)
    }

    fn span(&mut self, name: &str) -> Result<Span, String> {
        let text = self
            .take(name)
            .ok_or_else(|| format!("`{name}=TIME` is missing"))?;
        Span::parse(text)
    }

    fn number(&mut self, name: &str, default: Option<f64>, max: f64) -> Result<f64, String> {
        match (self.take(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(format!("`{name}=NUMBER` is missing")),
            (Some(text), _) => text
                .parse()
                .ok()
                .filter(|number| (0.0..=max).contains(number))
                .ok_or_else(|| format!("`{name}={text}`: expected a number from 0 to {max}")),
        }
    }

    fn end(self, model: Model) -> Result<Model, String> {
        match self.0.first() {
            None => Ok(model),
            Some((name, _)) => Err(format!("`{name}` is unknown here, or given twice")),
        }
    }
}

fn expected(text: &str) -> String {
    format!(
        "`{text}` is no latency model: expected fixed:20ms, lognormal:median=20ms,sigma=0.5, \
         bimodal:fast=5ms,slow=200ms,share=0.05 or histogram:FILE"
    )
}

/// At this spread a thousandth of the answers takes 1,000,000,000 times the median: enough.
pub const SIGMA_MAX: f64 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn quantile(model: &str, quantile: f64) -> f64 {
        let model = Model::parse(model, false).unwrap();
        let mut draws: Vec<Duration> = (0..20_000).map(|place| model.draw(1, 2, place)).collect();
        draws.sort();
        draws[(quantile * 20_000.0) as usize].as_secs_f64() * 1e3
    }

    #[test]
    fn draws_have_the_distribution_that_was_asked_for() {
        let near =
            |is: f64, should: f64| assert!((is / should - 1.0).abs() < 0.06, "{is} {should}");
        assert_eq!(quantile("fixed:0.25ms", 0.9), 0.25);
        let model = "lognormal:median=20ms,sigma=0.5";
        near(quantile(model, 0.5), 20.0);
        near(quantile(model, 0.8413), 20.0 * 0.5f64.exp());
        near(quantile(model, 0.1587), 20.0 * (-0.5f64).exp());
        let model = "bimodal:fast=5ms,slow=200ms,share=0.05";
        assert_eq!(quantile(model, 0.93), 5.0);
        assert_eq!(quantile(model, 0.97), 200.0);
    }

    #[test]
    fn reads_what_it_writes_and_refuses_the_rest() {
        for text in [
            "fixed:20ms",
            "lognormal:median=20ms,sigma=0.5",
            "bimodal:fast=5ms,slow=200ms,share=0.05,sigma=0.1",
        ] {
            assert_eq!(Model::parse(text, false).unwrap().to_string(), text);
        }
        for (text, part) in [
            ("fixed", "is no latency model"),
            ("uniform:1ms", "is no latency model"),
            ("fixed:1", "no length of time"),
            ("lognormal:median=1ms", "`sigma=NUMBER` is missing"),
            ("lognormal:median=1ms,sigma=-1", "from 0 to 10"),
            ("lognormal:median=1ms,sigma=NaN", "from 0 to 10"),
            ("lognormal:median=1ms,sigma=1,mode=2", "`mode` is unknown"),
            ("bimodal:fast=1ms,slow=2ms,share=1.1", "from 0 to 1"),
        ] {
            let error = Model::parse(text, false).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let error = Model::parse("histogram:/nonexistent", true).unwrap_err();
        assert!(error.contains("/nonexistent"), "{error}");
    }
}
