//! The table for people.

use std::fmt::Write as _;

use super::{Latency, Report, join, quantile_name};
use crate::gate::Time;

impl Report {
    /// The table for people, with more quantiles if it is no wider than `columns`, or if nothing
    /// limits it.
    pub fn text(&self, columns: Option<usize>) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut out, columns);
        out
    }

    fn write_text(&self, out: &mut String, columns: Option<usize>) -> std::fmt::Result {
        let rate = match &self.course {
            Some(course) => format!("open loop, {course}"),
            None => "closed loop".to_owned(),
        };
        let pinned = match self.cpus.as_slice() {
            [] => String::new(),
            cpus => format!(" on CPU {}", join(cpus)),
        };
        writeln!(
            out,
            "loadgen {}: {rate}, {:.1} s measured, {} connections{}, {} thread{}{pinned}, {}",
            self.loadgen,
            self.duration_s,
            self.connections,
            if self.targets.len() > 1 {
                " per target"
            } else {
                ""
            },
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            self.driver,
        )?;
        let width = self
            .targets
            .iter()
            .map(|target| target.name.len())
            .max()
            .unwrap_or(0)
            .max("from the send".len() + 2);
        let quantiles = quantiles(columns, width + COUNTS_WIDTH);
        write!(
            out,
            "\n{:width$} {:>9} {:>9} {:>8}",
            "", "requests", "good/s", "errors"
        )?;
        for (name, _) in &quantiles {
            write!(out, " {name:>8}")?;
        }
        writeln!(out)?;
        for target in &self.targets {
            write!(
                out,
                "{:width$} {:>9} {:>9.0} {:>8}",
                target.name, target.requests, target.rps, target.errors_total
            )?;
            write_latency(out, &target.latency, &quantiles)?;
            if self.rate_wanted.is_some() {
                write!(
                    out,
                    "{:width$} {:>9} {:>9} {:>8}",
                    "  from the send", "", "", ""
                )?;
                write_latency(out, &target.latency_from_send, &quantiles)?;
            }
        }
        if self.rate_wanted.is_some() {
            writeln!(
                out,
                "Latency counts from when a request was due; beneath it, from when it was sent."
            )?;
        }
        for target in &self.targets {
            write!(out, "\n{}: {}", target.name, target.url)?;
            writeln!(
                out,
                " at {}{}",
                target.address,
                target
                    .tls
                    .as_ref()
                    .map_or(String::new(), |tls| format!(", {tls}"))
            )?;
            let connections = &target.connections;
            write!(out, "  connections: {} opened", connections.opened)?;
            if connections.opened > 0 {
                write!(
                    out,
                    " in {} p50, {} p99",
                    Time(connections.opening.p50 * 1e3),
                    Time(connections.opening.p99 * 1e3)
                )?;
            }
            for (count, what) in [
                (connections.resumed, "resumed"),
                (connections.closed_idle, "closed by the server while idle"),
                (connections.failed, "failed to open"),
            ] {
                if count > 0 {
                    write!(out, ", {count} {what}")?;
                }
            }
            writeln!(out)?;
            let status: Vec<_> = target
                .status
                .iter()
                .map(|(status, count)| format!("{status}: {count}"))
                .collect();
            if !status.is_empty() {
                writeln!(out, "  status {}", status.join(", "))?;
            }
            target.load.write_text(out)?;
            if target.errors_total > 0 {
                let kinds: Vec<_> = target
                    .errors
                    .iter()
                    .map(|(kind, count)| format!("{kind} {count}"))
                    .collect();
                writeln!(out, "  errors: {}", kinds.join(", "))?;
            }
            for example in &target.error_examples {
                writeln!(out, "    e.g. {example}")?;
            }
        }
        for comparison in &self.comparisons {
            writeln!(
                out,
                "\n{} minus {}, {} rounds, 95 % interval:",
                comparison.subject, comparison.baseline, comparison.rounds
            )?;
            for line in &comparison.quantiles {
                let interval = match (line.low, line.high) {
                    (Some(low), Some(high)) => {
                        format!("[{}, {}]", Signed(low * 1e3), Signed(high * 1e3))
                    }
                    _ => String::new(),
                };
                writeln!(
                    out,
                    "  {:<6} {:>9}  {:<22} {}",
                    quantile_name(line.quantile),
                    Signed(line.difference * 1e3).to_string(),
                    interval,
                    match line.finding {
                        "slower" => String::new(),
                        "faster" => "(faster)".to_owned(),
                        other => other.to_owned(),
                    }
                )?;
            }
        }
        let own = &self.generator;
        writeln!(out)?;
        if self.rate_wanted.is_some() {
            writeln!(
                out,
                "generator lag: {} p50, {} p99, {} max",
                Time(own.lag.p50 * 1e3),
                Time(own.lag.p99 * 1e3),
                Time(own.lag.max * 1e3),
            )?;
            if own.wait.count > 0 {
                writeln!(
                    out,
                    "{} requests waited for one of {} connections to become free: {} p50, {} p99, \
                     {} max; their latency includes this wait, as a caller's would",
                    own.wait.count,
                    self.connections,
                    Time(own.wait.p50 * 1e3),
                    Time(own.wait.p99 * 1e3),
                    Time(own.wait.max * 1e3),
                )?;
            }
        }
        writeln!(
            out,
            "generator CPU: {}{:.0} % of its threads' time ({:.2} s user, {:.2} s system, of which {:.2} s spun away)",
            own.cpu_us_per_request.map_or(String::new(), |cpu| format!(
                "{cpu:.2} us per good answer, "
            )),
            own.cpu_share * 100.0,
            own.cpu_user_s,
            own.cpu_system_s,
            own.spun_s
        )?;
        for (name, watched) in &self.watched {
            match (watched.cpu_s, watched.cpu_us_per_request) {
                (_, Some(cpu)) => writeln!(out, "{name} CPU: {cpu:.2} us per good answer")?,
                (Some(cpu), None) => writeln!(out, "{name} CPU: {cpu:.3} s")?,
                (None, None) => writeln!(out, "{name} CPU: unknown, the process is gone")?,
            }
        }
        for remark in &self.remarks {
            writeln!(out, "{remark}")?;
        }
        if let Some(found) = &self.find_max {
            write!(out, "\n{}", found.text())?;
        }
        for gate in &self.gates {
            writeln!(
                out,
                "{}: {}{} (measured {})",
                if gate.failed { "FAILED" } else { "passed" },
                gate.target
                    .as_ref()
                    .map_or(String::new(), |name| format!("{name}: ")),
                gate.condition,
                gate.value
            )?;
        }
        Ok(())
    }
}

/// Width of the counts before the latencies: requests, good answers per second, errors.
const COUNTS_WIDTH: usize = 10 + 10 + 9;

/// A column of latencies.
type Column = (&'static str, fn(&Latency) -> f64);

/// All columns of latencies, and whether a narrow table has them too.
const COLUMNS: [(Column, bool); 8] = [
    (("mean", |latency| latency.mean), true),
    (("p50", |latency| latency.p50), true),
    (("p75", |latency| latency.p75), false),
    (("p90", |latency| latency.p90), true),
    (("p99", |latency| latency.p99), true),
    (("p99.9", |latency| latency.p999), true),
    (("p99.99", |latency| latency.p9999), false),
    (("max", |latency| latency.max), true),
];

/// The columns that there is room for behind the first `taken` characters.
fn quantiles(columns: Option<usize>, taken: usize) -> Vec<Column> {
    let all = columns.is_none_or(|columns| taken + COLUMNS.len() * 9 <= columns);
    COLUMNS
        .into_iter()
        .filter(|(_, always)| all || *always)
        .map(|(column, _)| column)
        .collect()
}

fn write_latency(out: &mut String, latency: &Latency, quantiles: &[Column]) -> std::fmt::Result {
    if latency.count == 0 {
        // Nothing was measured, which is not the same as zero.
        return writeln!(out, "{}", format!(" {:>8}", "-").repeat(quantiles.len()));
    }
    for (_, value) in quantiles {
        write!(out, " {:>8}", Time(value(latency) * 1e3))?;
    }
    writeln!(out)
}

/// A difference of times, with its sign.
struct Signed(f64);

impl std::fmt::Display for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 >= 0.0 {
            f.write_str("+")?;
        }
        Time(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_no_wider_than_it_may_be() {
        let names = |columns| -> Vec<_> {
            let chosen = quantiles(columns, 44);
            chosen.into_iter().map(|(name, _)| name).collect()
        };
        let narrow = ["mean", "p50", "p90", "p99", "p99.9", "max"];
        assert_eq!(names(Some(115)), narrow);
        assert_eq!(names(Some(80)), narrow);
        for wide in [names(Some(116)), names(None)] {
            assert_eq!(wide.len(), 8);
            assert!(wide.contains(&"p75") && wide.contains(&"p99.99"));
        }
    }
}
