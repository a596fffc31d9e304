//! Checksums that providers put into their keys, so that a search can be sure.

use crate::config::Checksum;

/// Characters of a checked key behind its prefix: what is random, then the check.
const RANDOM_BYTES: usize = 30;
const CHECK_BYTES: usize = 6;

/// Whether the characters behind a key's prefix check themselves. `None` where there are not as many
/// as the checksum is defined for: the provider also has keys of another kind.
pub fn holds(checksum: Checksum, payload: &[u8]) -> Option<bool> {
    match checksum {
        Checksum::Crc32Base62 => {
            let is_defined = payload.len() == RANDOM_BYTES + CHECK_BYTES
                && payload.iter().all(u8::is_ascii_alphanumeric);
            let (random, check) = payload.split_at_checked(RANDOM_BYTES)?;
            is_defined.then(|| base62(crc32(random)) == check)
        }
    }
}

/// CRC-32 as in Ethernet and zip (ISO 3309), bit by bit: thirty bytes of the few texts that have the
/// shape of a key.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL_REFLECTED: u32 = 0xedb8_8320;
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL_REFLECTED * (crc & 1))
        })
    })
}

/// Six digits, the greatest first. 62^6 is more than 2^32.
fn base62(mut number: u32) -> [u8; CHECK_BYTES] {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut digits = [b'0'; CHECK_BYTES];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(number % 62) as usize];
        number /= 62;
    }
    digits
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `prefix`, 30 characters, and their checksum.
    pub fn checked(prefix: &str, random: &str) -> String {
        assert_eq!(random.len(), RANDOM_BYTES);
        let check = base62(crc32(random.as_bytes()));
        format!("{prefix}{random}{}", String::from_utf8_lossy(&check))
    }

    #[test]
    fn the_check_value_of_crc32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_token_that_was_published_checks() {
        // Printed, long revoked, in explanations of the format.
        let token = ["zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ", "0mLq17"].concat();
        let kind = Checksum::Crc32Base62;
        assert_eq!(holds(kind, token.as_bytes()), Some(true));
        assert_eq!(holds(kind, &token.as_bytes()[1..]), None, "another length");
        let other = token.replace("zQ", "zR");
        assert_eq!(holds(kind, other.as_bytes()), Some(false));
    }
}
