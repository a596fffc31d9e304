//! One character in the disguises in which documents and URLs write it.
//!
//! Whoever writes a document chooses which characters it escapes, so a key can come back with any
//! of its characters in disguise. [`Escape::read`] undoes one escape: `%2F` (and `%252F`, a URL in a
//! URL), `\/`, `\"`, `\u002f`, `\x2f`, `&#47;`, `&#x2f;`, `&amp;`.
//!
//! It lacks escapes of escapes beyond `%25`, names of characters beyond HTML's five, and characters
//! past ASCII, which such escapes write as code points and not as bytes.

/// What an escape may stand for. Several readings, since `%252F` is `%2F` to one reader and `/` to
/// the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Escape {
    /// The character and the escape's length.
    pub(super) once: Option<(u8, usize)>,
    /// The same if it is undone twice.
    pub(super) twice: Option<(u8, usize)>,
    /// The input ends before the escape does, so more input may make one of it.
    pub(super) unfinished: bool,
}

/// The bytes that an escape can begin with.
pub(super) const INTRODUCERS: [u8; 3] = [b'%', b'\\', b'&'];

/// Bytes of the longest escape that is known.
pub(super) const ESCAPE_BYTES_MAX: usize = 6;

/// HTML's names of characters, as far as writers of documents use them for ASCII.
const NAMES: [(u8, &[u8]); 5] = [
    (b'&', b"amp"),
    (b'<', b"lt"),
    (b'>', b"gt"),
    (b'"', b"quot"),
    (b'\'', b"apos"),
];

impl Escape {
    /// Reads the escape that `input` begins with, if it does.
    #[inline]
    pub(super) fn read(input: &[u8]) -> Self {
        match input.first() {
            Some(b'%') => Self::percent(input),
            Some(b'\\') => Self::backslash(input),
            Some(b'&') => Self::entity(input),
            _ => Self::default(),
        }
    }

    /// RFC 3986, section 2.1.
    fn percent(input: &[u8]) -> Self {
        let Some(value) = hex(&input[1..], 2) else {
            return Self::cut_off(&input[1..], 2, u8::is_ascii_hexdigit);
        };
        let mut read = Self {
            once: Some((value, 3)),
            ..Self::default()
        };
        if value == b'%' {
            match hex(&input[3..], 2) {
                Some(inner) => read.twice = Some((inner, 5)),
                None => {
                    read.unfinished =
                        Self::cut_off(&input[3..], 2, u8::is_ascii_hexdigit).unfinished;
                }
            }
        }
        read
    }

    /// JSON (RFC 8259, section 7), and what programming languages add to it.
    fn backslash(input: &[u8]) -> Self {
        let (digits, length) = match input.get(1) {
            None => {
                return Self {
                    unfinished: true,
                    ..Self::default()
                };
            }
            Some(b'u') => (4, 6),
            Some(b'x') => (2, 4),
            Some(&byte) if byte.is_ascii_punctuation() => {
                return Self {
                    once: Some((byte, 2)),
                    ..Self::default()
                };
            }
            Some(_) => return Self::default(),
        };
        match hex(&input[2..], digits) {
            Some(value) => Self {
                once: Some((value, length)),
                ..Self::default()
            },
            None => Self::cut_off(&input[2..], digits, u8::is_ascii_hexdigit),
        }
    }

    /// HTML's character references, as writers of documents make them.
    fn entity(input: &[u8]) -> Self {
        let shown = &input[..input.len().min(ESCAPE_BYTES_MAX)];
        let Some(end) = memchr::memchr(b';', shown) else {
            let plausible = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'#';
            return Self::cut_off(&input[1..], ESCAPE_BYTES_MAX - 1, plausible);
        };
        let value = match &shown[1..end] {
            [b'#', b'x' | b'X', digits @ ..] => hex(digits, digits.len()),
            [b'#', digits @ ..] => decimal(digits),
            name => NAMES
                .iter()
                .find(|(_, known)| *known == name)
                .map(|(character, _)| *character),
        };
        Self {
            once: value.map(|value| (value, end + 1)),
            ..Self::default()
        }
    }

    /// Not an escape, unless the input ends inside of what could be one.
    fn cut_off(rest: &[u8], wanted: usize, plausible: impl Fn(&u8) -> bool) -> Self {
        Self {
            unfinished: rest.len() < wanted && rest.iter().all(plausible),
            ..Self::default()
        }
    }
}

/// Every way of writing this character that [`Escape::read`] undoes, some of them more than once.
pub(super) fn spellings(character: u8, mut note: impl FnMut(&[u8])) {
    let mut write = |parts: &[&[u8]]| {
        let mut text = [0; ESCAPE_BYTES_MAX];
        let mut end = 0;
        for part in parts {
            text[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        note(&text[..end]);
    };
    let (high, low) = (usize::from(character >> 4), usize::from(character & 15));
    for digits in [b"0123456789abcdef", b"0123456789ABCDEF"] {
        for other_digits in [b"0123456789abcdef", b"0123456789ABCDEF"] {
            let pair = &[digits[high], other_digits[low]];
            for before in [&b"%"[..], b"%25", b"\\x", b"\\u00"] {
                write(&[before, pair]);
            }
            for before in [b"&#x", b"&#X"] {
                write(&[before, pair, b";"]);
                if high == 0 {
                    write(&[before, &pair[1..], b";"]);
                }
                if character == 0 {
                    write(&[before, b";"]);
                }
            }
        }
    }
    if character.is_ascii_punctuation() {
        write(&[b"\\", &[character]]);
    }
    let decimal = [100, 10, 1].map(|unit| b'0' + character / unit % 10);
    let zeros = decimal.iter().take_while(|digit| **digit == b'0').count();
    for skipped in 0..=zeros.min(2) {
        write(&[b"&#", &decimal[skipped..], b";"]);
    }
    for (_, name) in NAMES.iter().filter(|(named, _)| *named == character) {
        write(&[b"&", name, b";"]);
    }
}

/// The character that this many hexadecimal digits name, if it is one of a byte.
#[inline]
fn hex(input: &[u8], digits: usize) -> Option<u8> {
    let value = input.get(..digits)?.iter().try_fold(0u32, |value, &byte| {
        Some(value << 4 | char::from(byte).to_digit(16)?)
    })?;
    u8::try_from(value).ok()
}

/// The same for decimal digits, of which there is at least one.
fn decimal(digits: &[u8]) -> Option<u8> {
    let value = digits.iter().try_fold(0u32, |value, &byte| {
        Some(10 * value + char::from(byte).to_digit(10)?)
    })?;
    u8::try_from(value).ok().filter(|_| !digits.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings() {
        let read = |input: &str| Escape::read(input.as_bytes());
        for (input, once, twice, unfinished) in [
            ("%2Fx", Some((b'/', 3)), None, false),
            ("%2f", Some((b'/', 3)), None, false),
            ("%252F", Some((b'%', 3)), Some((b'/', 5)), false),
            ("%252", Some((b'%', 3)), None, true),
            ("%25", Some((b'%', 3)), None, true),
            ("%25 off", Some((b'%', 3)), None, false),
            ("%2", None, None, true),
            ("%", None, None, true),
            ("%2g", None, None, false),
            ("%g", None, None, false),
            ("\\/", Some((b'/', 2)), None, false),
            ("\\\"", Some((b'"', 2)), None, false),
            ("\\\\", Some((b'\\', 2)), None, false),
            ("\\n", None, None, false),
            ("\\", None, None, true),
            ("\\u002F!", Some((b'/', 6)), None, false),
            ("\\u002f", Some((b'/', 6)), None, false),
            ("\\u202f", None, None, false),
            ("\\u00", None, None, true),
            ("\\u0g", None, None, false),
            ("\\x2f", Some((b'/', 4)), None, false),
            ("\\x2", None, None, true),
            ("&amp;", Some((b'&', 5)), None, false),
            ("&quot;", Some((b'"', 6)), None, false),
            ("&#47;", Some((b'/', 5)), None, false),
            ("&#x2F;", Some((b'/', 6)), None, false),
            ("&#300;", None, None, false),
            ("&#+47;", None, None, false),
            ("&#;", None, None, false),
            ("&nbsp;", None, None, false),
            ("&am", None, None, true),
            ("&", None, None, true),
            ("& b", None, None, false),
            ("&longer", None, None, false),
            ("a", None, None, false),
            ("", None, None, false),
        ] {
            let expected = Escape {
                once,
                twice,
                unfinished,
            };
            assert_eq!(read(input), expected, "{input}");
        }
    }

    /// Every spelling is read, and whatever is read is a spelling: of texts of up to six bytes that an
    /// introducer begins, all that could be escapes.
    #[test]
    fn spellings_are_what_is_read() {
        let mut known = std::collections::HashSet::new();
        for character in 0..=255 {
            spellings(character, |spelling| {
                let escape = Escape::read(spelling);
                let whole = Some((character, spelling.len()));
                assert!(
                    escape.once == whole || escape.twice == whole,
                    "{spelling:?}"
                );
                known.insert((character, spelling.to_vec()));
            });
        }
        let mut seen = std::collections::HashSet::new();
        let mut check = |text: &[u8]| {
            let escape = Escape::read(text);
            for (character, length) in [escape.once, escape.twice].into_iter().flatten() {
                let read = (character, text[..length].to_vec());
                assert!(known.contains(&read), "{text:?}");
                seen.insert(read);
            }
        };
        // All texts with this beginning, and so many more bytes of the alphabet.
        fn texts(text: &mut Vec<u8>, more: usize, alphabet: &[u8], check: &mut impl FnMut(&[u8])) {
            check(text);
            if more > 0 {
                for &byte in alphabet {
                    text.push(byte);
                    texts(text, more - 1, alphabet, check);
                    text.pop();
                }
            }
        }
        let all: Vec<u8> = (0..=255).collect();
        texts(&mut b"%".to_vec(), 2, &all, &mut check);
        texts(&mut b"%25".to_vec(), 2, &all, &mut check);
        texts(&mut b"\\".to_vec(), 1, &all, &mut check);
        texts(&mut b"\\x".to_vec(), 2, &all, &mut check);
        texts(
            &mut b"\\u0".to_vec(),
            3,
            b"0123456789abcdefABCDEFgG+ ",
            &mut check,
        );
        texts(
            &mut b"&#".to_vec(),
            4,
            b"0123456789abcdefABCDEFxX+;",
            &mut check,
        );
        texts(&mut b"&".to_vec(), 5, b"ampltgquos;#", &mut check);
        assert_eq!(seen.len(), known.len());
    }

    /// What is cut off is called unfinished: otherwise a border between two reads would hide it.
    #[test]
    fn every_beginning_is_unfinished() {
        for whole in [
            "%2F", "%252F", "\\/", "\\u002f", "\\x2f", "&amp;", "&quot;", "&#47;", "&#x2f;",
        ] {
            assert!(Escape::read(whole.as_bytes()).once.is_some(), "{whole}");
            assert!(whole.len() <= ESCAPE_BYTES_MAX, "{whole}");
            for cut in 1..whole.len() {
                let read = Escape::read(&whole.as_bytes()[..cut]);
                assert!(read.unfinished, "{whole} cut at {cut}");
            }
        }
    }
}
