//! A body that needs no memory: every byte follows from its position.
//!
//! Byte `i` is the top byte of `(i mod 65521) * 2654435761 mod 2^32`. That is what mock-upstream
//! documents for `/bytes/N`; the arithmetic is repeated here, so that the two sides check each
//! other. The period is a prime, so a shifted, repeated or missing block does not go unnoticed.

use std::sync::LazyLock;

use rustls::CipherSuite;
use rustls::crypto::hash::Hash;

/// The byte at position `i` is `TABLE[i mod PERIOD]`; one piece more, so that any piece is one slice.
static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    (0..PERIOD + PIECE_BYTES_MAX)
        .map(|i| (((i % PERIOD) as u32).wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
});

/// The largest prime below 2^16.
const PERIOD: usize = 65_521;

/// The most bytes that [`piece`] returns at once.
pub const PIECE_BYTES_MAX: usize = 64 * 1024;

/// The bytes at `from` and after it: `length` of them, or [`PIECE_BYTES_MAX`] if that is less.
pub fn piece(from: u64, length: u64) -> &'static [u8] {
    let from = (from % PERIOD as u64) as usize;
    let length = length.min(PIECE_BYTES_MAX as u64) as usize;
    &TABLE[from..from + length]
}

/// Whether `bytes` are those at `from`.
pub fn matches(from: u64, bytes: &[u8]) -> bool {
    let mut at = from;
    bytes.chunks(PIECE_BYTES_MAX).all(|chunk| {
        let same = piece(at, chunk.len() as u64) == chunk;
        at += chunk.len() as u64;
        same
    })
}

/// SHA-256 of the first `length` bytes, in lower-case hexadecimal.
pub fn digest(length: u64) -> String {
    let mut context = sha256().start();
    let mut at = 0;
    while at < length {
        let part = piece(at, length - at);
        context.update(part);
        at += part.len() as u64;
    }
    hex(context.finish().as_ref())
}

/// SHA-256 of `bytes`, in lower-case hexadecimal.
pub fn digest_of(bytes: &[u8]) -> String {
    hex(sha256().hash(bytes).as_ref())
}

/// The hash of a cipher suite that we link anyway.
fn sha256() -> &'static dyn Hash {
    rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES
        .iter()
        .find(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256)
        .and_then(|suite| suite.tls13())
        .map(|suite| suite.common.hash_provider)
        .expect("TLS_AES_128_GCM_SHA256 is mandatory in TLS 1.3")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_follow_from_their_position() {
        let byte = |i: u64| (((i % 65_521) as u32).wrapping_mul(2_654_435_761) >> 24) as u8;
        for from in [0, 1, 65_520, 65_521, 1_000_000_007] {
            let piece = piece(from, 100_000);
            assert_eq!(piece.len(), PIECE_BYTES_MAX);
            for (i, &seen) in piece.iter().enumerate() {
                assert_eq!(seen, byte(from + i as u64));
            }
        }
    }

    #[test]
    fn a_shift_or_a_flipped_bit_is_noticed_wherever_it_is() {
        let mut bytes: Vec<u8> = piece(5, 65_000).to_vec();
        bytes.extend_from_slice(piece(65_005, 65_000));
        assert!(matches(5, &bytes));
        assert!(!matches(6, &bytes));
        for at in [0, 64_999, 65_000, 129_999] {
            bytes[at] ^= 1;
            assert!(!matches(5, &bytes), "{at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn digests() {
        // FIPS 180-4, the empty message and "abc".
        assert_eq!(
            digest(0),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            digest_of(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let long: Vec<u8> = [piece(0, 65_521), piece(0, 40_000)].concat();
        assert_eq!(digest(105_521), digest_of(&long));
    }
}
