//! [`Fingerprint`]: which key it is, without the key.
//!
//! For people and tickets: the key that `hunt` found in a service's file is the one
//! that `explain` would write, or it is another one. It is short, so that it can be
//! compared by eye, and not keyed, so that every machine says the same.
//!
//! It lacks what a password hash has: whoever can guess the key can see that the
//! guess was right. Keys of providers cannot be guessed; a secret that is short
//! enough that it might be has no fingerprint.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};

/// Bytes of SHA-256 that are shown, in hexadecimal. Of a million keys, two have the same
/// fingerprint by chance with a probability of 0.2 %.
const FINGERPRINT_BYTES: usize = 6;

/// Bytes below which a secret has no fingerprint: a short one could be found by trying.
pub const FINGERPRINT_KEY_BYTES_MIN: usize = 16;

/// The first bytes of a key's SHA-256. Shown as `sha256:0123456789ab`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; FINGERPRINT_BYTES]);

impl Fingerprint {
    /// The fingerprint of a key, without the line's end behind it. `None` of one that is
    /// shorter than [`FINGERPRINT_KEY_BYTES_MIN`].
    pub fn of(key: &[u8]) -> Option<Self> {
        if key.len() < FINGERPRINT_KEY_BYTES_MIN {
            return None;
        }
        let digest = digest(&SHA256, key);
        let mut bytes = [0; FINGERPRINT_BYTES];
        bytes.copy_from_slice(&digest.as_ref()[..FINGERPRINT_BYTES]);
        Some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_sha256() {
        // FIPS 180-2, appendix B.2.
        let text = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        let fingerprint = Fingerprint::of(text).expect("long enough");
        assert_eq!(fingerprint.to_string(), "sha256:248d6a61d206");
        assert_eq!(Fingerprint::of(&text[..15]), None);
    }
}
