//! What happened in each second, as comma-separated values (RFC 4180).

use std::fmt::Write as _;

use super::Report;
use crate::clock::SECOND;
use crate::failure::Kind;

impl Report {
    /// A row per second and target, by when answers were complete. Runs longer than an hour have
    /// longer rows; `seconds` tells.
    pub fn csv(&self) -> String {
        let mut out = String::from("time_s,seconds,target,driven_s,requests,good,rps,errors");
        for kind in Kind::ALL {
            let _ = write!(out, ",{}", kind.name());
        }
        for (name, _) in QUANTILES {
            let _ = write!(out, ",{name}_us");
        }
        out.push_str("\r\n");
        let length = SECOND.max(self.interval);
        let targets: Vec<_> = self
            .targets
            .iter()
            .enumerate()
            .map(|(index, target)| (&target.name, self.moments(index, length)))
            .collect();
        let rows = targets.iter().map(|(_, moments)| moments.len()).max();
        for row in 0..rows.unwrap_or(0) {
            for (name, moments) in &targets {
                let Some(moment) = moments.get(row) else {
                    continue;
                };
                let seen = &moment.seen;
                let _ = write!(
                    out,
                    "{},{},{},{},{},{},",
                    seconds(moment.from),
                    seconds(length),
                    field(name),
                    seconds(moment.driven),
                    seen.requests(),
                    seen.good,
                );
                if let Some(rate) = moment.rate() {
                    let _ = write!(out, "{rate:.1}");
                }
                let _ = write!(out, ",{}", seen.failed());
                for count in seen.failures {
                    let _ = write!(out, ",{count}");
                }
                for (_, quantile) in QUANTILES {
                    out.push(',');
                    if let Some(value) = seen.quantile(quantile) {
                        let _ = write!(out, "{:.1}", value / 1e3);
                    }
                }
                out.push_str("\r\n");
            }
        }
        out
    }
}

/// Columns of latency, in the header's order.
const QUANTILES: [(&str, f64); 7] = [
    ("p50", 0.5),
    ("p75", 0.75),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
    ("max", 1.0),
];

fn seconds(nanos: crate::clock::Nanos) -> f64 {
    // Milliseconds are enough, and no float shows more digits than it was given.
    (nanos as f64 / 1e6).round() / 1e3
}

/// A field that may hold anything.
fn field(text: &str) -> String {
    match text.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_need_it_are_quoted() {
        for (text, written) in [
            ("plain name", "plain name"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("two\r\nlines", "\"two\r\nlines\""),
        ] {
            assert_eq!(field(text), written);
        }
    }
}
