//! What a key looks like: the shapes that providers' keys are known to have.
//!
//! Shapes are data (`presets/*.toml`, `presets/shapes.toml`): a prefix and a
//! least length. Deliberately missing: regular expressions, and any attempt to
//! recognise a key without a prefix. A value that stands where a reference is
//! expected is refused whatever it looks like; shapes find the ones that stand
//! where nobody expects a key.

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
    let mut found: Vec<Range<usize>> = Vec::new();
    for at in pem_starts(text) {
        // A private key: everything behind it belongs to it.
        found.push(at..text.len());
        return found;
    }
    for token in tokens(text) {
        if is_key(&text[token.clone()]) {
            found.push(token);
        }
    }
    found
}

/// Whether some part of the text has the shape of a known provider's key.
pub fn has_key(text: &str) -> bool {
    !keys_in(text).is_empty()
}

/// Of a line that is not TOML: the bytes that cannot be proven harmless.
pub fn doubtful(line: &str) -> Vec<Range<usize>> {
    let body = line.trim_start();
    let indent = line.len() - body.len();
    if body.starts_with('[') {
        return long_tokens(line);
    }
    match body.split_once('=') {
        Some((name, _)) if HARMLESS.contains(&name.trim()) => long_tokens(line),
        Some((name, rest)) => {
            let blank = rest.len() - rest.trim_start().len();
            let value = indent + name.len() + 1 + blank;
            if value < line.len() {
                vec![value..line.len()]
            } else {
                Vec::new()
            }
        }
        None if body.is_empty() => Vec::new(),
        None => vec![indent..line.len()],
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
        token.len() >= shape.bytes_min
            && token.starts_with(&shape.prefix)
            // A name such as `sk-service-account` has no digit; a key of any
            // length worth the name has.
            && token[shape.prefix.len()..].bytes().any(|byte| byte.is_ascii_digit())
    })
}

/// Runs of the characters that keys are made of, and every tail of such a run
/// that begins behind a separator: `file://sk-...` and `key=sk-...` hide one.
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

fn pem_starts(text: &str) -> impl Iterator<Item = usize> + '_ {
    text.match_indices("-----BEGIN ")
        .filter(|(at, _)| text[*at..].contains("PRIVATE KEY"))
        .map(|(at, _)| at)
}
