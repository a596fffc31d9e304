//! [`is_made_up`]: telling a key from what people write in its place.
//!
//! Keys are random. `sk_live_your_key_here`, `xxxx`, `1234567890` and `sk-service-account-2`
//! are not. Each rule is wide enough that a random text of sixteen characters breaks it less
//! often than once in ten thousand; each is there for texts that stand in real repositories.

/// Words that stand in examples. None is shorter than five characters: a shorter one is in some key by
/// chance.
const WORDS: [&[u8]; 17] = [
    b"example",
    b"placeholder",
    b"changeme",
    b"change-me",
    b"change_me",
    b"redacted",
    b"replace",
    b"dummy",
    b"xxxxx",
    b"insert",
    b"hidden",
    b"test-key",
    b"your-",
    b"your_",
    b"yourkey",
    b"yourtoken",
    b"yourapi",
];

/// Letters of the longest word: a longer run of one kind is no word.
const WORD_BYTES_MAX: usize = 14;

/// Shannon's entropy per character below which a text is a pattern. Sixteen random hexadecimal digits
/// have 3.2 on average.
const ENTROPY_BITS_MIN: f64 = 2.3;

/// Whether somebody wrote this, rather than a provider's random numbers.
pub fn is_made_up(payload: &[u8]) -> bool {
    has_word(payload)
        || is_name(payload)
        || is_sequence(payload)
        || entropy(payload) < ENTROPY_BITS_MIN
}

fn has_word(payload: &[u8]) -> bool {
    let lower = zeroize::Zeroizing::new(payload.to_ascii_lowercase());
    WORDS
        .iter()
        .any(|word| memchr::memmem::find(&lower, word).is_some())
}

/// Words and numbers with `-`, `_` and `.` between: `service-account-for-tests-2`.
fn is_name(payload: &[u8]) -> bool {
    let is_word = |run: &[u8]| {
        let Some((_, tail)) = run.split_first() else {
            return true;
        };
        let all = |kind: fn(&u8) -> bool| run.iter().all(kind);
        let capitalised = run[0].is_ascii_uppercase() && tail.iter().all(u8::is_ascii_lowercase);
        run.len() <= WORD_BYTES_MAX
            && (all(u8::is_ascii_lowercase)
                || all(u8::is_ascii_uppercase)
                || all(u8::is_ascii_digit)
                || capitalised)
    };
    payload
        .split(|byte| matches!(byte, b'-' | b'_' | b'.'))
        .all(is_word)
}

/// `1234567890`, `abcdefgh`, `00000000`: each character is the last one's neighbour or the last one,
/// for more than half of them.
fn is_sequence(payload: &[u8]) -> bool {
    let pairs = payload.len().saturating_sub(1);
    let near = payload
        .windows(2)
        .filter(|pair| pair[0].abs_diff(pair[1]) <= 1)
        .count();
    near * 2 > pairs
}

fn entropy(payload: &[u8]) -> f64 {
    let mut counts = [0_usize; 256];
    for &byte in payload {
        counts[usize::from(byte)] += 1;
    }
    let total = payload.len() as f64;
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| {
            let share = count as f64 / total;
            -share * share.log2()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_told() {
        for text in [
            "your_key_here",
            "xxxxxxxxxxxxxxxxxxxxxxxx",
            "XXXXXXXXXXXXXXXXXXXXXXXX",
            "IOSFODNN7EXAMPLE",
            "1234567890abcdefghijklmn",
            "0123456789abcdef0123456789abcdef",
            "00000000-0000-0000-0000-000000000000",
            "service-account-for-tests-2",
            "ababababababababababab",
            "circle-fade-dot-12-animation",
            "",
        ] {
            assert!(is_made_up(text.as_bytes()), "{text}");
        }
    }

    /// Random texts of every alphabet that keys have, in the lengths that they have.
    #[test]
    fn what_is_random_is_not() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % bound
        };
        let digits = "0123456789";
        let lower = "abcdefghijklmnopqrstuvwxyz";
        let base62 = format!("{digits}{lower}{}", lower.to_uppercase());
        for (alphabet, length) in [
            (base62.clone(), 16),
            (base62.clone(), 24),
            (format!("{base62}-_"), 20),
            (format!("{base62}-_"), 100),
            ("0123456789abcdef".to_owned(), 32),
            (format!("{digits}{}", lower.to_uppercase()), 16),
        ] {
            const DRAWS: usize = 20_000;
            let wrong = (0..DRAWS)
                .filter(|_| {
                    let text: Vec<u8> = (0..length)
                        .map(|_| alphabet.as_bytes()[draw(alphabet.len())])
                        .collect();
                    is_made_up(&text)
                })
                .count();
            assert!(
                wrong <= DRAWS / 5_000,
                "{wrong} of {DRAWS} in {length} of {alphabet}"
            );
        }
    }
}
