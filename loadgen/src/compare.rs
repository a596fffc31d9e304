//! The difference between two targets, and whether it is more than noise.
//!
//! The targets were driven in turns. A round holds one slice of each, a fraction of a second
//! apart, so whatever else the machine did hit both alike. Rounds are resampled with replacement,
//! both slices of a round together; the quantiles of each resample are taken over all of its
//! requests, and the middle 95 % of their differences is the interval (percentile bootstrap).
//! Requests within a slice depend on each other, which is why slices and not requests are drawn.
//!
//! Resamples of few rounds vary less than fresh rounds would, so the plain interval is too narrow.
//! Its ends are therefore moved out to the quantiles that make the interval of a mean exact
//! (Hesterberg's expanded percentiles).
//!
//! The maximum hangs on a single request, and no resampling tells what a longer run would have
//! found: its interval says only how much it hangs on single rounds.

use crate::samples::{Samples, bin_start};
use crate::schedule::Random;

/// A quantile of two targets and their difference. Times in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The quantile, 0 to 1.
    pub quantile: f64,
    /// Its value at the first target.
    pub subject: f64,
    /// Its value at the second.
    pub baseline: f64,
    /// The middle 95 % of the resampled differences; `None` with too few rounds.
    pub interval: Option<(f64, f64)>,
}

impl Difference {
    /// The first target's value minus the second's.
    pub fn value(&self) -> f64 {
        self.subject - self.baseline
    }

    /// What may be said of it.
    pub fn verdict(&self) -> Finding {
        match self.interval {
            None => Finding::TooFewRounds,
            Some((low, high)) if low > 0.0 => {
                debug_assert!(high > 0.0);
                Finding::Slower
            }
            Some((_, high)) if high < 0.0 => Finding::Faster,
            Some(_) => Finding::BelowNoise,
        }
    }
}

/// What a difference says about the first target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The interval lies above zero.
    Slower,
    /// The interval lies below zero.
    Faster,
    /// The interval holds zero: nothing was shown.
    BelowNoise,
    /// No interval can be given.
    TooFewRounds,
}

/// Rounds without which no interval is given.
///
/// Were both targets alike, each round would favour either with the same chance. With five rounds,
/// all five go one way in 2 of 32 cases: more than the 5 % that the interval allows.
pub const ROUNDS_MIN: usize = 6;

/// Quantiles at which targets are compared; 1 is the maximum.
pub const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 1.0];

/// Compares `subject` with `baseline`, round by round, at the given quantiles. Rounds in which one
/// of the two has no answer are left out. `None` if none is left.
pub fn compare(
    subject: &mut [Samples],
    baseline: &mut [Samples],
    quantiles: &[f64],
    seed: u64,
) -> Option<(Vec<Difference>, usize)> {
    let mut bins: Vec<u32> = Vec::new();
    let mut rounds: Vec<[&[(u32, u32)]; 2]> = Vec::new();
    for (a, b) in subject.iter_mut().zip(baseline) {
        let pair = [a.bins(), b.bins()];
        if pair.iter().all(|side| !side.is_empty()) {
            bins.extend(
                pair.iter()
                    .flat_map(|side| side.iter().map(|&(bin, _)| bin)),
            );
            rounds.push(pair);
        }
    }
    if rounds.is_empty() {
        return None;
    }
    bins.sort_unstable();
    bins.dedup();
    // Bins become places in a dense array, so that a resample is a sum of short lists.
    let rounds: Vec<[Vec<(u32, u32)>; 2]> = rounds
        .iter()
        .map(|pair| {
            pair.map(|side| {
                side.iter()
                    .map(|&(bin, n)| (bins.partition_point(|&other| other < bin) as u32, n))
                    .collect()
            })
        })
        .collect();

    let mut counts = [vec![0u64; bins.len()], vec![0u64; bins.len()]];
    let mut evaluate = |drawn: &mut dyn Iterator<Item = usize>| -> [Vec<f64>; 2] {
        counts.iter_mut().for_each(|side| side.fill(0));
        for round in drawn {
            for (side, counts) in rounds[round].iter().zip(&mut counts) {
                for &(place, n) in side {
                    counts[place as usize] += u64::from(n);
                }
            }
        }
        [0, 1].map(|side| quantiles_of(&counts[side], &bins, quantiles))
    };
    let [subject, baseline] = evaluate(&mut (0..rounds.len()));

    let mut intervals = vec![None; quantiles.len()];
    if rounds.len() >= ROUNDS_MIN {
        let entries: usize = rounds.iter().flatten().map(Vec::len).sum();
        let resamples =
            (RESAMPLE_WORK_MAX / (entries + 4 * bins.len())).clamp(RESAMPLES_MIN, RESAMPLES_MAX);
        let mut random = Random::new(seed);
        let mut differences = vec![Vec::with_capacity(resamples); quantiles.len()];
        for _ in 0..resamples {
            let mut drawn = (0..rounds.len()).map(|_| random.below(rounds.len()));
            let [a, b] = evaluate(&mut drawn);
            for (n, list) in differences.iter_mut().enumerate() {
                list.push(a[n] - b[n]);
            }
        }
        for (list, interval) in differences.iter_mut().zip(&mut intervals) {
            list.sort_unstable_by(f64::total_cmp);
            let cut = (resamples as f64 * tail(rounds.len())) as usize;
            *interval = Some((list[cut], list[resamples - 1 - cut]));
        }
    }
    let differences = quantiles
        .iter()
        .zip(intervals)
        .enumerate()
        .map(|(n, (&quantile, interval))| Difference {
            quantile,
            subject: subject[n],
            baseline: baseline[n],
            interval,
        })
        .collect();
    Some((differences, rounds.len()))
}

/// The share of resamples to cut off at each end for a 95 % interval from `rounds` rounds, of which
/// there must be at least [`ROUNDS_MIN`].
fn tail(rounds: usize) -> f64 {
    let n = rounds as f64;
    let reach = student(n - 1.0) * (n / (n - 1.0)).sqrt();
    // The normal distribution's tail, to within 1e-7 (Abramowitz and Stegun, 26.2.17).
    let t = 1.0 / (1.0 + 0.231_641_9 * reach);
    let series = [
        0.319_381_530,
        -0.356_563_782,
        1.781_477_937,
        -1.821_255_978,
        1.330_274_429,
    ];
    let sum = series
        .iter()
        .rev()
        .fold(0.0, |sum, factor| (sum + factor) * t);
    (-reach * reach / 2.0).exp() / std::f64::consts::TAU.sqrt() * sum
}

/// The 97.5 % point of Student's distribution, by its expansion around the normal one's
/// (Abramowitz and Stegun, 26.7.5); from five degrees of freedom on to within 0.2 %.
fn student(freedom: f64) -> f64 {
    let z: f64 = 1.959_964;
    let terms = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
    ];
    terms
        .iter()
        .rev()
        .fold(0.0, |sum, term| (sum + term) / freedom)
        + z
}

/// The middle of the bin that holds each quantile. `quantiles` must ascend.
fn quantiles_of(counts: &[u64], bins: &[u32], quantiles: &[f64]) -> Vec<f64> {
    let total: u64 = counts.iter().sum();
    let mut places = counts.iter().zip(bins);
    let (mut seen, mut middle) = (0, 0.0);
    quantiles
        .iter()
        .map(|quantile| {
            let rank = ((quantile * total as f64).ceil() as u64).max(1);
            while seen < rank {
                let Some((&n, &bin)) = places.next() else {
                    break;
                };
                if n > 0 {
                    seen += n;
                    middle = (bin_start(bin) + bin_start(bin + 1)) as f64 / 2.0;
                }
            }
            middle
        })
        .collect()
}

/// Resamples when time allows; more do not move a 95 % interval visibly.
const RESAMPLES_MAX: usize = 2000;

/// Resamples however large the run; fewer leave too little beyond the interval's ends.
const RESAMPLES_MIN: usize = 1000;

/// Additions spent on resampling: about a second.
const RESAMPLE_WORK_MAX: usize = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of noisy latencies around `base`, with a shift that both targets of a round share.
    fn rounds(base: f64, count: usize, seed: u64) -> Vec<Samples> {
        let mut weather = Random::new(99);
        let mut random = Random::new(seed);
        (0..count)
            .map(|_| {
                let shift = 20_000.0 * weather.unit();
                let mut samples = Samples::default();
                for _ in 0..2000 {
                    let value = base + shift - 10_000.0 * random.unit().ln();
                    samples.add(value as u64);
                }
                samples
            })
            .collect()
    }

    #[test]
    fn a_real_difference_is_found_and_its_size_is_right() {
        let (found, count) = compare(
            &mut rounds(105_000.0, 30, 1),
            &mut rounds(100_000.0, 30, 2),
            &[0.5, 0.9],
            7,
        )
        .unwrap();
        assert_eq!(count, 30);
        let p50 = &found[0];
        let (low, high) = p50.interval.unwrap();
        assert!(low <= 5000.0 && 5000.0 <= high, "{low}..{high}");
        assert!((p50.value() - 5000.0).abs() < 700.0, "{}", p50.value());
        assert_eq!(p50.verdict(), Finding::Slower);
    }

    #[test]
    fn equal_targets_are_below_the_noise_about_as_often_as_promised() {
        let mut shown = 0;
        for seed in 0..40 {
            let (found, _) = compare(
                &mut rounds(100_000.0, 12, 1000 + seed),
                &mut rounds(100_000.0, 12, 2000 + seed),
                &[0.5],
                seed,
            )
            .unwrap();
            shown += usize::from(found[0].verdict() != Finding::BelowNoise);
        }
        assert!(
            shown <= 4,
            "{shown} of 40 equal pairs were called different"
        );
    }

    #[test]
    fn the_interval_holds_the_truth_as_often_as_promised() {
        // Each slice has weather of its own besides what the round shares: that is what an interval
        // over rounds has to cover.
        let slices = |base: f64, count: usize, random: &mut Random| -> Vec<Samples> {
            (0..count)
                .map(|_| {
                    let shift = 4000.0 * (random.unit() + random.unit() + random.unit());
                    let mut samples = Samples::default();
                    for _ in 0..50 {
                        samples.add((base + shift + 1000.0 * random.unit()) as u64);
                    }
                    samples
                })
                .collect()
        };
        for count in [6, 12, 30] {
            let mut random = Random::new(count as u64);
            let runs = 100;
            let held = (0..runs)
                .filter(|seed| {
                    let mut subject = slices(105_000.0, count, &mut random);
                    let mut baseline = slices(100_000.0, count, &mut random);
                    let found = compare(&mut subject, &mut baseline, &[0.5], *seed);
                    let (low, high) = found.unwrap().0[0].interval.unwrap();
                    (low..=high).contains(&5000.0)
                })
                .count();
            // 95 of 100, within three standard deviations of what 100 runs can tell.
            assert!(held >= 89, "{count} rounds: {held} of {runs}");
        }
    }

    #[test]
    fn tails_are_those_of_the_tables() {
        for (freedom, point) in [
            (5.0, 2.5706),
            (11.0, 2.2010),
            (29.0, 2.0452),
            (1e6, 1.95996),
        ] {
            let found = student(freedom);
            assert!((found / point - 1.0).abs() < 0.002, "{freedom}: {found}");
        }
        assert!(
            (tail(1_000_000) - 0.025).abs() < 1e-5,
            "{}",
            tail(1_000_000)
        );
        // Of six rounds: beyond 2.816 standard deviations.
        assert!((tail(6) - 0.00243).abs() < 3e-5, "{}", tail(6));
    }

    #[test]
    fn few_rounds_give_no_interval() {
        let (found, _) =
            compare(&mut rounds(1e5, 5, 1), &mut rounds(1e5, 5, 2), &[0.5], 0).unwrap();
        assert_eq!(found[0].verdict(), Finding::TooFewRounds);
        assert!(compare(&mut [], &mut [], &[0.5], 0).is_none());
    }

    #[test]
    fn quantiles_ascend_with_their_ranks() {
        let mut samples = Samples::default();
        for value in 1..=1000u64 {
            samples.add(value);
        }
        let bins: Vec<u32> = samples.bins().iter().map(|&(bin, _)| bin).collect();
        let found = quantiles_of(&vec![1; 1000], &bins, &[0.0, 0.5, 0.99, 1.0]);
        assert_eq!(found, [1.5, 500.5, 990.5, 1000.5]);
    }
}
