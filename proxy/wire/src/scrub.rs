//! Finding a secret in what comes back, in the forms in which APIs echo it.
//!
//! The searcher works on one contiguous piece; whoever streams keeps
//! [`Scrubber::needle_bytes_max`]` - 1` bytes back, so that no hit straddles two pieces.

use core::fmt;
use core::ops::Range;

use zeroize::Zeroizing;

use crate::target;

/// Searches for any of a set of needles. They are overwritten when it is dropped.
pub struct Scrubber {
    needles: Vec<Zeroizing<Vec<u8>>>,
}

impl Scrubber {
    /// A searcher for these needles; see [`forms`]. Needles under 4 bytes are left out: they would
    /// be found everywhere.
    #[must_use]
    pub fn new(needles: &[&[u8]]) -> Self {
        let mut needles: Vec<Zeroizing<Vec<u8>>> = needles
            .iter()
            .filter(|needle| needle.len() >= NEEDLE_BYTES_MIN)
            .map(|needle| Zeroizing::new(needle.to_vec()))
            .collect();
        needles.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        Self { needles }
    }

    /// The first hit; of several that start there, the longest.
    #[must_use]
    pub fn find(&self, hay: &[u8]) -> Option<Range<usize>> {
        self.needles
            .iter()
            .filter_map(|needle| {
                let start = memchr::memmem::find(hay, needle)?;
                Some(start..start + needle.len())
            })
            .min_by_key(|hit| hit.start)
    }

    /// Whether there is nothing to find.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.needles.is_empty()
    }

    /// Length of the longest needle, 0 if there is none.
    #[must_use]
    pub fn needle_bytes_max(&self) -> usize {
        self.needles.first().map_or(0, |needle| needle.len())
    }
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrubber")
            .field("needles", &self.needles.len())
            .finish()
    }
}

/// The forms in which a secret may come back: raw, percent-encoded (digits in either case),
/// form-encoded, base64 in its three alignments (the part that does not depend on the neighbours,
/// both alphabets), hexadecimal in either case. No form twice.
#[must_use]
pub fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms: Vec<Vec<u8>> = Vec::new();
    let mut note = |form: Vec<u8>| {
        if !form.is_empty() && !forms.contains(&form) {
            forms.push(form);
        }
    };
    note(secret.to_vec());
    let mut upper = Vec::new();
    target::percent_encode_query(secret, &mut upper);
    note(encoded(secret, b"0123456789abcdef", |byte| {
        target::is_unreserved(byte)
    }));
    note(upper);
    for digits in [b"0123456789ABCDEF", b"0123456789abcdef"] {
        // The WHATWG form encoding: `*` stays, `~` does not, a space becomes `+`.
        let stays = |byte: u8| {
            byte == b' ' || byte == b'*' || (byte != b'~' && target::is_unreserved(byte))
        };
        let mut form = encoded(secret, digits, stays);
        form.iter_mut()
            .filter(|byte| **byte == b' ')
            .for_each(|byte| *byte = b'+');
        note(form);
        note(
            secret
                .iter()
                .flat_map(|byte| {
                    [
                        digits[usize::from(byte >> 4)],
                        digits[usize::from(byte & 15)],
                    ]
                })
                .collect(),
        );
    }
    for alphabet in [b"+/", b"-_"] {
        for offset in 0..3 {
            note(base64_inner(secret, offset, *alphabet));
        }
    }
    forms
}

fn encoded(secret: &[u8], digits: &[u8; 16], stays: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 * secret.len());
    for &byte in secret {
        if stays(byte) {
            out.push(byte);
        } else {
            out.extend([
                b'%',
                digits[usize::from(byte >> 4)],
                digits[usize::from(byte & 15)],
            ]);
        }
    }
    out
}

/// The characters that base64 gives for `secret` when `offset` bytes stand before it in a group of
/// three, without those that also depend on a neighbour.
fn base64_inner(secret: &[u8], offset: usize, last_two: [u8; 2]) -> Vec<u8> {
    let bit = |at: usize| secret[at / 8] >> (7 - at % 8) & 1;
    let first = (8 * offset).div_ceil(6);
    let end = 8 * (offset + secret.len()) / 6;
    (first..end)
        .map(|character| {
            let start = 6 * character - 8 * offset;
            let value = (start..start + 6).fold(0u8, |value, at| value << 1 | bit(at));
            match value {
                0..26 => b'A' + value,
                26..52 => b'a' + value - 26,
                52..62 => b'0' + value - 52,
                _ => last_two[usize::from(value - 62)],
            }
        })
        .collect()
}

/// Bytes below which a needle is left out: it would be found everywhere and garble what passes.
const NEEDLE_BYTES_MIN: usize = 4;
