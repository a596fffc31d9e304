//! The latencies of one slice of time, kept so small that a run may have thousands of slices.
//!
//! Values go into bins of 0.1 % width. Bins are buffered as they come and folded into a sorted
//! list of counts when the buffer is full.

use crate::clock::Nanos;

/// A multiset of latencies to within 0.1 %.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Sorted by bin; no bin twice.
    folded: Vec<(u32, u32)>,
    fresh: Vec<u32>,
}

impl Samples {
    /// Adds one latency.
    #[inline]
    pub fn add(&mut self, value: Nanos) {
        self.fresh.push(bin(value));
        if self.fresh.len() >= FRESH_MAX {
            self.fold();
        }
    }

    /// Adds all of another's.
    pub fn merge(&mut self, mut other: Self) {
        self.fold();
        other.fold();
        self.fold_in(&other.folded);
    }

    /// The counts by bin, sorted.
    pub fn bins(&mut self) -> &[(u32, u32)] {
        self.fold();
        &self.folded
    }

    fn fold(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        self.fresh.sort_unstable();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for bin in self.fresh.drain(..) {
            match runs.last_mut() {
                Some((last, n)) if *last == bin => *n += 1,
                _ => runs.push((bin, 1)),
            }
        }
        self.fold_in(&runs);
    }

    fn fold_in(&mut self, runs: &[(u32, u32)]) {
        let ours = std::mem::take(&mut self.folded);
        let mut merged = Vec::with_capacity(ours.len() + runs.len());
        let (mut a, mut b) = (ours.iter().peekable(), runs.iter().peekable());
        while let (Some(&&left), Some(&&right)) = (a.peek(), b.peek()) {
            match left.0.cmp(&right.0) {
                std::cmp::Ordering::Less => {
                    merged.push(left);
                    a.next();
                }
                std::cmp::Ordering::Greater => {
                    merged.push(right);
                    b.next();
                }
                std::cmp::Ordering::Equal => {
                    merged.push((left.0, left.1.saturating_add(right.1)));
                    a.next();
                    b.next();
                }
            }
        }
        merged.extend(a);
        merged.extend(b);
        self.folded = merged;
    }
}

/// Fresh bins held before they are folded: 64 KiB per slice.
const FRESH_MAX: usize = 16 * 1024;

/// Bits of a value that its bin keeps: 1024 bins per doubling, 0.1 % wide.
const BIN_BITS: u32 = 10;

/// The bin of a value. Monotonic; values below 2^11 have a bin each.
#[inline]
pub fn bin(value: Nanos) -> u32 {
    let octave = (Nanos::BITS - 1 - (value | 1).leading_zeros()).max(BIN_BITS);
    let shift = octave - BIN_BITS;
    (shift << BIN_BITS) + (value >> shift) as u32
}

/// The smallest value of a bin.
pub fn bin_start(bin: u32) -> Nanos {
    let mantissa_bins = 1 << BIN_BITS;
    if bin < 2 * mantissa_bins {
        return Nanos::from(bin);
    }
    let shift = (bin >> BIN_BITS) - 1;
    Nanos::from(bin - (shift << BIN_BITS)) << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_narrow_ordered_and_invertible() {
        let mut value: Nanos = 0;
        let mut last = None;
        while value < 1 << 62 {
            let b = bin(value);
            assert!(last.is_none_or(|last| b >= last), "{value}");
            last = Some(b);
            let (start, end) = (bin_start(b), bin_start(b + 1));
            assert!(start <= value && value < end, "{value} in {start}..{end}");
            assert!(end - start <= 1 + value / 1000, "{value}: {start}..{end}");
            value = value + 1 + value / 777;
        }
    }

    #[test]
    fn folding_and_merging_lose_nothing() {
        let mut all = Samples::default();
        let mut half = Samples::default();
        for n in 0..50_000u64 {
            if n % 2 == 0 {
                all.add(n % 300);
            } else {
                half.add(n % 300);
            }
        }
        all.merge(half);
        let bins = all.bins();
        assert_eq!(bins.iter().map(|&(_, n)| n).sum::<u32>(), 50_000);
        assert_eq!(bins.len(), 300);
        assert!(bins.windows(2).all(|w| w[0].0 < w[1].0));
        assert!(bins.iter().all(|&(_, n)| n == 166 || n == 167));
    }
}
