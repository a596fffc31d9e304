//! HdrHistogram's percentile format, for its plotter.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;

use super::Report;

impl Report {
    /// A target's corrected latencies in HdrHistogram's percentile format, values in milliseconds, as
    /// its plotter expects.
    pub fn hgrm(&self, target: usize) -> String {
        hgrm(&self.targets[target].corrected)
    }
}

/// The files of the targets: `path` itself for one, with the target's name in it for each of several.
pub fn hgrm_paths(path: &Path, targets: &[&str]) -> Vec<PathBuf> {
    match targets {
        [_] => vec![path.to_owned()],
        several => several.iter().map(|name| with_name(path, name)).collect(),
    }
}

fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut out = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let mut seen = 0;
    for step in histogram.iter_quantiles(5) {
        seen += step.count_since_last_iteration();
        let quantile = step.quantile_iterated_to();
        let value = step.value_iterated_to() as f64 / 1e6;
        let _ = match quantile {
            q if q < 1.0 => writeln!(
                out,
                "{value:>12.6} {q:>14.12} {seen:>10} {:>14.2}",
                1.0 / (1.0 - q)
            ),
            q => writeln!(out, "{value:>12.6} {q:>14.12} {seen:>10}"),
        };
    }
    let _ = write!(
        out,
        "#[Mean    = {:>12.6}, StdDeviation   = {:>12.6}]\n#[Max     = {:>12.6}, Total count    = {:>12}]\n#[Buckets = {:>12}, SubBuckets     = {:>12}]\n",
        histogram.mean() / 1e6,
        histogram.stdev() / 1e6,
        histogram.max() as f64 / 1e6,
        histogram.len(),
        histogram.buckets(),
        2048
    );
    out
}

fn with_name(path: &Path, name: &str) -> PathBuf {
    match path.extension() {
        Some(extension) => {
            let mut longer = std::ffi::OsString::from(name);
            longer.push(".");
            longer.push(extension);
            path.with_extension(longer)
        }
        None => path.with_extension(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_files_have_the_form_that_plotters_read() {
        let mut histogram = Histogram::<u64>::new_with_bounds(64, 1_000_000_000_000, 3).unwrap();
        for n in 1..=1000u64 {
            histogram.record(n * 10_000).unwrap();
        }
        let text = hgrm(&histogram);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains("Value") && lines[0].contains("1/(1-Percentile)"));
        let columns: Vec<f64> = lines[2]
            .split_whitespace()
            .map(|column| column.parse().unwrap())
            .collect();
        assert_eq!(columns.len(), 4);
        let last = lines.iter().rfind(|line| !line.starts_with('#')).unwrap();
        let columns: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(
            (columns.len(), columns[1], columns[2]),
            (3, "1.000000000000", "1000")
        );
        assert!(text.contains("#[Mean    ="));
    }

    #[test]
    fn files_of_several_targets_are_told_apart() {
        assert_eq!(
            with_name(Path::new("/a/out.hgrm"), "x"),
            Path::new("/a/out.x.hgrm")
        );
        assert_eq!(with_name(Path::new("out"), "x"), Path::new("out.x"));
    }
}
