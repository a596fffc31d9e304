//! Latencies as somebody measured them, from a file that histogram tools write.
//!
//! Two forms, told apart by their lines: HdrHistogram's percentile distribution (`.hgrm`: value,
//! percentile, total count, 1/(1-percentile)), between whose rows values are interpolated; and
//! plain `value count` lines, which are drawn as they stand. Lines that begin with `#`, blank
//! lines and the heading of an `.hgrm` file are skipped.

use std::time::Duration;

use serde::Deserialize;

use crate::units::SPAN_MAX;

/// A recorded distribution.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Invariant: not empty; both values and counts up to a row never fall.
    rows: Vec<Row>,
    /// Values between rows are possible.
    continuous: bool,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    nanos: u64,
    /// How many recorded values are at most `nanos`.
    count_up_to: u64,
}

/// What the values count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Nanoseconds.
    Ns,
    /// Microseconds: what `loadgen --hgrm` writes.
    #[default]
    Us,
    /// Milliseconds.
    Ms,
    /// Seconds.
    S,
}

impl Unit {
    /// Reads `ns`, `us`, `ms` or `s`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "ns" => Ok(Unit::Ns),
            "us" => Ok(Unit::Us),
            "ms" => Ok(Unit::Ms),
            "s" => Ok(Unit::S),
            _ => Err(format!("`unit={text}`: expected ns, us, ms or s")),
        }
    }

    fn nanos(self) -> f64 {
        match self {
            Unit::Ns => 1.0,
            Unit::Us => 1e3,
            Unit::Ms => 1e6,
            Unit::S => 1e9,
        }
    }
}

impl Recorded {
    /// Reads either form.
    ///
    /// # Errors
    ///
    /// The number of the first line that is neither, and what was expected.
    pub fn parse(text: &str, unit: Unit) -> Result<Self, String> {
        let mut rows: Vec<Row> = Vec::new();
        let mut columns = 0;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') || line.starts_with("Value") {
                continue;
            }
            let refused = |what: &str| Err(format!("line {number}: {what}"));
            let words: Vec<&str> = line.split_whitespace().collect();
            if columns == 0 {
                columns = words.len();
            }
            let counted = match words.as_slice() {
                // The last row of an .hgrm file has `inf` for its fourth column, or none.
                [value, percentile, count] | [value, percentile, count, _] if columns > 2 => {
                    match percentile.parse::<f64>() {
                        Ok(percentile) if (0.0..=1.0).contains(&percentile) => Some((value, count)),
                        _ => return refused("the percentile is not a number from 0 to 1"),
                    }
                }
                [value, count] if columns == 2 => Some((value, count)),
                _ => None,
            };
            let Some((value, count)) = counted else {
                return refused(
                    "expected `value count`, or value, percentile, total count and 1/(1-percentile)",
                );
            };
            let nanos = match value.parse::<f64>() {
                Ok(value) if value >= 0.0 && value * unit.nanos() <= SPAN_MAX.as_nanos() as f64 => {
                    (value * unit.nanos()).round() as u64
                }
                _ => return refused("the value is no time from 0 to 24 hours"),
            };
            let Ok(count) = count.parse::<u64>() else {
                return refused("the count is no whole number");
            };
            rows.push(Row {
                nanos,
                count_up_to: count,
            });
            if rows.len() > ROWS_MAX {
                return refused(&format!("more than {ROWS_MAX} rows"));
            }
        }
        let continuous = columns > 2;
        if !continuous {
            rows.sort_by_key(|row| row.nanos);
            let mut total = 0u64;
            for row in &mut rows {
                total = total.saturating_add(row.count_up_to);
                row.count_up_to = total;
            }
        }
        let falls = |pair: &[Row]| {
            pair[0].nanos > pair[1].nanos || pair[0].count_up_to > pair[1].count_up_to
        };
        if rows.windows(2).any(falls) {
            return Err("values and total counts must not fall from row to row".into());
        }
        match rows.last() {
            Some(last) if last.count_up_to > 0 => Ok(Recorded { rows, continuous }),
            _ => Err("there is no value in it".into()),
        }
    }

    /// How many values were recorded.
    pub fn total(&self) -> u64 {
        self.rows.last().map_or(0, |row| row.count_up_to)
    }

    /// The value below which this part (0 to 1, 1 excluded) of the recorded ones lies.
    pub fn at(&self, part: f64) -> Duration {
        let rank = part * self.total() as f64;
        let index = self
            .rows
            .partition_point(|row| row.count_up_to as f64 <= rank)
            .min(self.rows.len() - 1);
        let row = self.rows[index];
        let nanos = match index.checked_sub(1).map(|before| self.rows[before]) {
            Some(before) if self.continuous && row.count_up_to > before.count_up_to => {
                let width = (row.count_up_to - before.count_up_to) as f64;
                let within = (rank - before.count_up_to as f64) / width;
                before.nanos as f64 + within * (row.nanos - before.nanos) as f64
            }
            _ => row.nanos as f64,
        };
        Duration::from_nanos(nanos as u64)
    }
}

/// A histogram of more rows is refused; HdrHistogram's own have a few hundred.
const ROWS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_and_count() {
        let recorded = Recorded::parse("# mine\n200 10\n\n100 90\n", Unit::Ms).unwrap();
        assert_eq!(recorded.total(), 100);
        for (part, millis) in [(0.0, 100), (0.89, 100), (0.9, 200), (0.999, 200)] {
            assert_eq!(recorded.at(part), Duration::from_millis(millis), "{part}");
        }
    }

    #[test]
    fn percentiles() {
        let text = "       Value     Percentile TotalCount 1/(1-Percentile)\n\n\
            \x20  100.000 0.000000000000          1           1.00\n\
            \x20  200.000 0.500000000000         50           2.00\n\
            \x20  400.000 0.990000000000         99         100.00\n\
            \x20 1000.000 1.000000000000        100          inf\n\
            #[Mean    =      200.000, StdDeviation   =      80.000]\n\
            #[Max     =     1000.000, Total count    =         100]\n";
        let recorded = Recorded::parse(text, Unit::Us).unwrap();
        assert_eq!(recorded.at(0.0), Duration::from_micros(100));
        assert_eq!(recorded.at(0.5), Duration::from_micros(200));
        assert_eq!(recorded.at(0.745), Duration::from_micros(300));
        assert_eq!(recorded.at(0.99), Duration::from_micros(400));
        assert_eq!(recorded.at(0.995).as_micros(), 700);
    }

    #[test]
    fn refuses_with_the_line() {
        for (text, part) in [
            ("", "no value"),
            ("1 0\n", "no value"),
            ("1 1\n2\n", "line 2: expected"),
            ("1 x\n", "line 1: the count"),
            ("-1 1\n", "line 1: the value"),
            ("1 2 3\n", "line 1: the percentile"),
            ("2 0.5 5 2\n1 1 10 inf\n", "must not fall"),
        ] {
            let error = Recorded::parse(text, Unit::Us).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
