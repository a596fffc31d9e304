//! What a key looks like: the shapes that providers' keys are known to have.
//!
//! Shapes are data (`presets/*.toml`): a prefix, a least length, and what follows
//! the prefix. Deliberately missing: regular expressions, and any attempt to
//! recognise a key without a prefix. A value that stands where a reference is
//! expected is refused whatever it looks like; shapes find the ones that stand
//! where nobody expects a key. What only *looks* like a key is one here, since a
//! configuration has no place for either; [`hunt`](crate::hunt), which reads what
//! others wrote, looks closer.

use std::ops::Range;

use super::presets;

/// A shape that keys of some provider have.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// How such a key begins.
    pub prefix: String,
    /// Its least length, prefix included.
    pub bytes_min: usize,
    /// Its greatest length, prefix included, where the provider has one.
    pub bytes_max: Option<usize>,
    /// What follows the prefix.
    #[serde(default)]
    pub alphabet: Alphabet,
    /// Digits that check the others.
    pub checksum: Option<Checksum>,
    /// Whose it is, where no preset says so.
    pub title: Option<String>,
    /// Whether `hunt` looks for it: most texts of this shape are keys.
    #[serde(default = "yes")]
    pub hunted: bool,
}

/// The characters of a key behind its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alphabet {
    /// Letters, digits, `-` and `_`.
    #[default]
    Urlsafe,
    /// The same and `.`: a key of several parts.
    Token,
    /// Letters and digits.
    Alphanumeric,
    /// Capital letters and digits.
    Upper,
    /// `0` to `9` and `a` to `f`.
    Hex,
}

/// How a key checks itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub enum Checksum {
    /// 30 characters, and their CRC-32 in six digits to the base of 62.
    #[serde(rename = "crc32-base62")]
    Crc32Base62,
}

fn yes() -> bool {
    true
}

impl Alphabet {
    /// Whether it has this character.
    pub fn has(self, byte: u8) -> bool {
        match self {
            Alphabet::Urlsafe => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
            Alphabet::Token => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'),
            Alphabet::Alphanumeric => byte.is_ascii_alphanumeric(),
            Alphabet::Upper => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Alphabet::Hex => byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'),
        }
    }
}

impl Shape {
    /// How many bytes at the beginning of `text`, which begins with the prefix, could be one key.
    pub fn run(&self, text: &[u8]) -> usize {
        let payload = text.get(self.prefix.len()..).unwrap_or_default();
        let run = payload
            .iter()
            .position(|&byte| !self.alphabet.has(byte))
            .unwrap_or(payload.len());
        self.prefix.len().min(text.len()) + run
    }
}

/// Tokens of at least this length are hidden in a line that is not TOML.
const DOUBTFUL_BYTES_MIN: usize = 12;

/// Fields whose values are shown even if the file is not TOML, unless a part
/// of the value is long enough to be a key.
const HARMLESS: [&str; 10] = [
    "name", "preset", "host", "path", "address", "upstream", "callers", "workers", "port",
    "methods",
];

/// The bytes of every token that has the shape of a known provider's key.
pub fn keys_in(text: &str) -> Vec<Range<usize>> {
    // Of a private key, everything behind its first line belongs to it.
    let end = pem_start(text).unwrap_or(text.len());
    let mut found: Vec<Range<usize>> = tokens(&text[..end])
        .filter(|token| is_key(&text[token.clone()]))
        .collect();
    if end < text.len() {
        found.push(end..text.len());
    }
    found
}

/// Whether some part of the text has the shape of a known provider's key.
pub fn has_key(text: &str) -> bool {
    !keys_in(text).is_empty()
}

/// Whether an unknown name may be the tail of a key that slipped there. Names of
/// ours have no digits.
pub fn may_be_key(name: &str) -> bool {
    has_key(name)
        || (name.len() >= DOUBTFUL_BYTES_MIN && name.bytes().any(|byte| byte.is_ascii_digit()))
}

/// Of a line of a file that is not TOML: the bytes that cannot be proven
/// harmless. `sections` and `fields` are the names that the configuration knows;
/// whatever else stands where a name belongs may be the middle of a key.
pub fn doubtful(line: &str, sections: &[&str], fields: &[&str]) -> Vec<Range<usize>> {
    let body = line.trim_start();
    let indent = line.len() - body.len();
    let header = body.trim_start_matches('[');
    let section = header
        .split(['.', ']', ' ', '='])
        .next()
        .unwrap_or_default();
    let start = if header.len() < body.len() && sections.contains(&section) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.\"*]".contains(&byte);
        if section != "credential" && header.trim_end().bytes().all(plain) {
            return long_tokens(line);
        }
        line.len() - header.len() + section.len()
    } else {
        match body.split_once('=') {
            Some((name, rest)) if HARMLESS.contains(&name.trim()) && is_whole(rest.trim()) => {
                return long_tokens(line);
            }
            Some((name, rest)) if fields.contains(&name.trim()) => {
                let blank = rest.len() - rest.trim_start().len();
                indent + name.len() + 1 + blank
            }
            _ => indent,
        }
    };
    std::iter::once(start..line.len())
        .filter(|range| !range.is_empty())
        .collect()
}

/// Whether a value is one value: no other line's end has got into it.
fn is_whole(value: &str) -> bool {
    let quotes = value.matches(['"', '\'']).count();
    let ends = |open, close| value.len() > 1 && value.starts_with(open) && value.ends_with(close);
    !value.contains('=')
        && match quotes {
            0 => value.bytes().all(|byte| byte.is_ascii_digit()),
            2 if ends('"', '"') || ends('\'', '\'') => true,
            _ => quotes.is_multiple_of(2) && ends('[', ']'),
        }
}

fn long_tokens(line: &str) -> Vec<Range<usize>> {
    tokens(line)
        .filter(|token| {
            let text = &line[token.clone()];
            // Host names, addresses and paths have separators; keys are one run.
            text.split(['.', ':', '/'])
                .any(|run| run.len() >= DOUBTFUL_BYTES_MIN)
                && text
                    .bytes()
                    .any(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
        })
        .collect()
}

fn is_key(token: &str) -> bool {
    presets::shapes().any(|shape| {
        token.starts_with(&shape.prefix)
            && shape.run(token.as_bytes()) >= shape.bytes_min
            // A name such as `sk-service-account` has no digit; a key of any
            // length worth the name has.
            && token[shape.prefix.len()..].bytes().any(|byte| byte.is_ascii_digit())
    })
}

/// Runs of the characters that keys are made of: `file://sk-...` and `key=sk-...`
/// have one that is a key.
fn tokens(text: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    let is_part =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+' | b'~');
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && !is_part(bytes[at]) {
            at += 1;
        }
        let start = at;
        while at < bytes.len() && is_part(bytes[at]) {
            at += 1;
        }
        (start < at).then_some(start..at)
    })
}

fn pem_start(text: &str) -> Option<usize> {
    text.match_indices("-----BEGIN ")
        .find(|(at, _)| text[*at..].contains("PRIVATE KEY"))
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_and_names_are_not() {
        for (text, keys) in [
            ("sk-PLANTED0123456789abcdef", 1),
            ("Bearer sk-PLANTED0123456789abcdef", 1),
            ("file://sk-PLANTED0123456789abcdef", 1),
            (
                "https://x.example.com/?key=AIzaPLANTED0123456789abcdefPLANTED01234",
                1,
            ),
            (
                "SG.PLANTED01234567.89abcdef,ghp_PLANTED0123456789abcdef0123456789abcd",
                2,
            ),
            ("sk_live_PLANTED0123456789", 1),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIE", 1),
            ("-----BEGIN CERTIFICATE-----", 0),
            ("sk-service-account-for-tests", 0),
            ("sk-1", 0),
            ("key-management", 0),
            ("/etc/claviger/keys/openai", 0),
            ("api.example.com", 0),
            ("AIza", 0),
        ] {
            assert_eq!(keys_in(text).len(), keys, "{text}");
        }
    }

    #[test]
    fn every_shape_is_found() {
        for shape in presets::shapes() {
            let key = format!(
                "{}{:0>width$}",
                shape.prefix,
                7,
                width = shape.bytes_min - shape.prefix.len()
            );
            assert_eq!(key.len(), shape.bytes_min);
            assert!(has_key(&key), "{}", shape.prefix);
            // `sk-ant-` is an `sk-` too, which may be shorter.
            let shorter = &key[..key.len() - 1];
            let matching = presets::shapes().filter(|other| key.starts_with(&other.prefix));
            let alone = matching.count() == 1;
            assert!(
                !alone || !has_key(shorter),
                "{}: shorter is none",
                shape.prefix
            );
        }
    }
}
