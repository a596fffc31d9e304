//! Chance that can be had again: draws that depend on a seed and on their place alone.
//!
//! The n-th draw of a seed is the same in every run and whichever worker asks for it, so that a
//! run with several workers replays as a set, and one with a single worker in order.

use std::f64::consts::TAU;
use std::hash::{BuildHasher as _, Hasher as _};

/// A number in `0.0..1.0`: draw `place` of the stream `stream` of this seed.
pub fn uniform(seed: u64, stream: u64, place: u64) -> f64 {
    let bits = mix(seed ^ mix(stream).wrapping_add(place.wrapping_mul(GOLDEN)));
    // 53 bits: all that an f64 in this range can tell apart.
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// A draw from the standard normal distribution (by Box and Muller's method).
pub fn normal(seed: u64, stream: u64, place: u64) -> f64 {
    // Not zero: its logarithm is taken.
    let radius = 1.0 - uniform(seed, stream, 2 * place);
    let angle = uniform(seed, stream, 2 * place + 1);
    (-2.0 * radius.ln()).sqrt() * (TAU * angle).cos()
}

/// A seed for when nobody gave one. Small enough for JSON numbers in any language.
pub fn fresh_seed() -> u64 {
    let hasher = std::collections::hash_map::RandomState::new();
    hasher.build_hasher().finish() >> 12
}

/// Steele, Lea and Flood's SplitMix64 finalizer.
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(GOLDEN);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// 2^64 divided by the golden ratio, made odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replays_and_spreads() {
        let sum: f64 = (0..10_000).map(|place| uniform(7, 0, place)).sum();
        assert!((sum / 10_000.0 - 0.5).abs() < 0.01, "{sum}");
        assert_eq!(uniform(7, 1, 42), uniform(7, 1, 42));
        assert_ne!(uniform(7, 1, 42), uniform(8, 1, 42));
        assert_ne!(uniform(7, 1, 42), uniform(7, 2, 42));
        let normals: Vec<f64> = (0..10_000).map(|place| normal(7, 0, place)).collect();
        let mean = normals.iter().sum::<f64>() / 10_000.0;
        let variance = normals.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / 10_000.0;
        assert!(
            mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
    }
}
