//! [`Searcher`]: every key in one text.
//!
//! All prefixes are looked for in one pass. Where one stands at the beginning of a word, what
//! follows is measured by its shape and must check itself or look random. A second pass finds
//! the variables in which programs expect keys. A third decodes what is base64, as Kubernetes'
//! secrets and `Basic` credentials are, and looks for prefixes there. Keys that Claviger
//! manages are found in every form that it removes from answers.

use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use policy::{Credential, Fingerprint};
use zeroize::Zeroizing;

use super::checksum;
use super::made_up::is_made_up;
use crate::config::{self, Preset, Shape};

/// Characters below which a run is not decoded as base64: nothing shorter holds a key.
const BASE64_RUN_MIN: usize = 24;

/// Characters of a variable's value below which it is no key: passwords for a test, ports, names.
const VALUE_BYTES_MIN: usize = 16;

/// Bytes of the longest key. What goes on for longer is an image or a certificate.
const KEY_BYTES_MAX: usize = 4096;

/// Looks for keys in texts.
#[derive(Debug)]
pub struct Searcher {
    prefixes: AhoCorasick,
    /// By pattern of `prefixes`: the shapes that begin so.
    shapes: Vec<Vec<(Owner, &'static Shape)>>,
    names: AhoCorasick,
    /// By pattern of `names`: whose keys stand there.
    owners: Vec<Vec<Owner>>,
    managed: Vec<Arc<Credential>>,
    base64: [GeneralPurpose; 2],
}

/// Whose key it is.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// The provider's name.
    pub title: &'static str,
    /// Its preset, if there is one.
    pub preset: Option<&'static Preset>,
}

/// A key in a text.
#[derive(Debug, Clone)]
pub struct Hit {
    /// Where: the key itself, or what has to be decoded to see it.
    pub range: Range<usize>,
    /// Whose it may be. Empty if only the configuration knows it.
    pub owners: Vec<Owner>,
    /// Which key.
    pub fingerprint: Option<Fingerprint>,
    /// Why it is one.
    pub known_by: KnownBy,
    /// The name in Claviger's configuration, if it is managed.
    pub managed: Option<String>,
}

/// Why something is taken for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownBy {
    /// It has the shape of a provider's keys.
    Shape,
    /// It has the shape, and its checksum holds: there is no doubt.
    Checksum,
    /// It has the shape once it is decoded from base64.
    Base64,
    /// It is the value of a variable in which programs expect a key.
    Variable,
    /// It is a key of Claviger's configuration.
    Configuration,
}

impl Searcher {
    /// Looks for keys of known shapes, and for these.
    pub fn new(managed: &[Arc<Credential>]) -> Self {
        let mut prefixes: Vec<&str> = Vec::new();
        let mut shapes: Vec<Vec<(Owner, &'static Shape)>> = Vec::new();
        for (title, preset, shape) in
            config::shapes_by_provider().filter(|(.., shape)| shape.hunted)
        {
            let entry = (Owner { title, preset }, shape);
            match prefixes.iter().position(|prefix| *prefix == shape.prefix) {
                Some(at) => shapes[at].push(entry),
                None => {
                    prefixes.push(&shape.prefix);
                    shapes.push(vec![entry]);
                }
            }
        }
        let mut names: Vec<&str> = Vec::new();
        let mut owners: Vec<Vec<Owner>> = Vec::new();
        for (title, preset, name) in config::variables_by_provider() {
            let owner = Owner { title, preset };
            match names.iter().position(|known| *known == name) {
                Some(at) => owners[at].push(owner),
                None => {
                    names.push(name);
                    owners.push(vec![owner]);
                }
            }
        }
        let lenient = GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true);
        Self {
            prefixes: automaton(&prefixes),
            shapes,
            names: automaton(&names),
            owners,
            managed: managed.to_vec(),
            base64: [
                GeneralPurpose::new(&alphabet::STANDARD, lenient),
                GeneralPurpose::new(&alphabet::URL_SAFE, lenient),
            ],
        }
    }

    /// Every key in the text, in order. Of those that overlap, the one that is known best.
    pub fn search(&self, text: &[u8]) -> Vec<Hit> {
        let mut hits = self.managed_in(text);
        self.prefixed_in(text, &mut hits);
        self.encoded_in(text, &mut hits);
        self.assigned_in(text, &mut hits);
        hits.sort_by_key(|hit| hit.range.start);
        hits
    }

    fn managed_in(&self, text: &[u8]) -> Vec<Hit> {
        let mut hits = Vec::new();
        let mut ranges = Vec::new();
        for credential in &self.managed {
            credential.scrubber().find_all(text, &mut ranges);
            for range in ranges.drain(..) {
                let hit = Hit {
                    range,
                    owners: Vec::new(),
                    fingerprint: credential.fingerprint(),
                    known_by: KnownBy::Configuration,
                    managed: Some(credential.name().to_owned()),
                };
                add(&mut hits, hit);
            }
        }
        hits
    }

    fn prefixed_in(&self, text: &[u8], hits: &mut Vec<Hit>) {
        for found in self.prefixes.find_iter(text) {
            if !begins_word(text, found.start()) {
                continue;
            }
            for (owner, shape) in &self.shapes[found.pattern().as_usize()] {
                if let Some((length, known_by)) = key_at(&text[found.start()..], shape) {
                    let range = found.start()..found.start() + length;
                    let fingerprint = Fingerprint::of(&text[range.clone()]);
                    if fingerprint.is_some_and(is_published) {
                        continue;
                    }
                    let hit = Hit {
                        range,
                        owners: vec![*owner],
                        fingerprint,
                        known_by,
                        managed: None,
                    };
                    add(hits, hit);
                }
            }
        }
    }

    /// Keys in base64: the place is that of the whole run, the fingerprint that of the key.
    fn encoded_in(&self, text: &[u8], hits: &mut Vec<Hit>) {
        let is_part =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_');
        let mut at = 0;
        while at < text.len() {
            if !is_part(text[at]) {
                at += 1;
                continue;
            }
            let run = text[at..]
                .iter()
                .position(|&byte| !is_part(byte))
                .unwrap_or(text.len() - at);
            if run >= BASE64_RUN_MIN {
                let range = at..at + run;
                for engine in &self.base64 {
                    // A last character alone has six bits: it is part of something else.
                    let whole = &text[range.start..range.end - usize::from(run % 4 == 1)];
                    let mut inside = Zeroizing::new(vec![0; whole.len()]);
                    let Ok(length) = engine.decode_slice(whole, &mut inside) else {
                        continue;
                    };
                    let mut decoded = Vec::new();
                    self.prefixed_in(&inside[..length], &mut decoded);
                    for hit in decoded {
                        add(
                            hits,
                            Hit {
                                range: range.clone(),
                                known_by: KnownBy::Base64,
                                ..hit
                            },
                        );
                    }
                }
            }
            at += run;
        }
    }

    fn assigned_in(&self, text: &[u8], hits: &mut Vec<Hit>) {
        for found in self.names.find_iter(text) {
            let before = found.start().checked_sub(1).map(|at| text[at]);
            if before.is_some_and(|byte| byte.is_ascii_alphanumeric()) {
                continue;
            }
            let Some(range) = value_after(text, found.end()) else {
                continue;
            };
            let value = &text[range.clone()];
            let fingerprint = Fingerprint::of(value);
            if is_made_up(value) || fingerprint.is_some_and(is_published) {
                continue;
            }
            let hit = Hit {
                range,
                owners: self.owners[found.pattern().as_usize()].clone(),
                fingerprint,
                known_by: KnownBy::Variable,
                managed: None,
            };
            add(hits, hit);
        }
    }
}

/// Of the prefixes that begin at a place, the longest: `sk-ant-` and not `sk-`.
fn automaton(patterns: &[&str]) -> AhoCorasick {
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(patterns)
        .unwrap_or_else(|error| panic!("a few dozen short words fit in an automaton: {error}"))
}

/// Adds a hit, unless its bytes are those of one that is there; that one learns whose key it is.
fn add(hits: &mut Vec<Hit>, hit: Hit) {
    let same = hits
        .iter_mut()
        .find(|other| other.range.start < hit.range.end && hit.range.start < other.range.end);
    match same {
        None => hits.push(hit),
        Some(other) => {
            let is_same_place = other.range == hit.range || other.managed.is_some();
            for owner in hit.owners {
                let known = other.owners.iter().any(|known| known.title == owner.title);
                if is_same_place && !known && hit.known_by != KnownBy::Variable {
                    other.owners.push(owner);
                }
            }
        }
    }
}

/// Whether a word may begin here: behind no letter, digit, `-` or `_`, but behind the escapes that end in
/// one (`%3D`, `\n`).
fn begins_word(text: &[u8], at: usize) -> bool {
    let before = &text[..at];
    match before {
        [.., b'%', high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => true,
        [.., b'\\', b'n' | b'r' | b't'] => true,
        [.., last] => !(last.is_ascii_alphanumeric() || matches!(last, b'-' | b'_')),
        [] => true,
    }
}

/// The length of the key of this shape with which the text begins, if it is one.
fn key_at(text: &[u8], shape: &Shape) -> Option<(usize, KnownBy)> {
    let text = &text[..text.len().min(KEY_BYTES_MAX)];
    let run = shape.run(text);
    // What ends a sentence or a name is no part of a key.
    let length = text[..run].trim_ascii_end_of(b".-_").len();
    if length < shape.bytes_min
        || shape.bytes_max.is_some_and(|max| length > max)
        || run == KEY_BYTES_MAX
    {
        return None;
    }
    let payload = &text[shape.prefix.len()..length];
    match shape
        .checksum
        .and_then(|kind| checksum::holds(kind, payload))
    {
        Some(true) => Some((length, KnownBy::Checksum)),
        Some(false) => None,
        None => (!is_made_up(payload)).then_some((length, KnownBy::Shape)),
    }
}

trait TrimEndOf {
    fn trim_ascii_end_of(&self, characters: &[u8]) -> &[u8];
}

impl TrimEndOf for [u8] {
    fn trim_ascii_end_of(&self, characters: &[u8]) -> &[u8] {
        let end = self
            .iter()
            .rposition(|byte| !characters.contains(byte))
            .map_or(0, |last| last + 1);
        &self[..end]
    }
}

/// Where the value stands that is given to the name that ends here: `NAME=value`, `NAME: "value"`,
/// `"NAME", "value"`, `ENV NAME value`, `NAME</key><string>value`, and in the next line `value: value`.
fn value_after(text: &[u8], end: usize) -> Option<Range<usize>> {
    /// Characters between a name and its value, and those of a second line's name among them.
    const BETWEEN_BYTES_MAX: usize = 64;
    let is_value = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_' | b'.' | b':' | b'+' | b'/' | b'=' | b'~')
    };
    let limit = text.len().min(end + BETWEEN_BYTES_MAX);
    // Longer names that only begin like this one.
    if text
        .get(end)
        .is_some_and(|&byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        return None;
    }
    let mut at = end;
    let mut lines = 0;
    loop {
        let rest = &text[at..limit];
        match rest.first()? {
            b'\n' => {
                lines += 1;
                at += 1;
                // A manifest's `value:` in the next line, and nothing else there.
                let word = text[at..limit].trim_ascii_start();
                if lines > 1 || !(word.starts_with(b"value:") || word.starts_with(b"\"value\":")) {
                    return None;
                }
                at = limit - word.len() + word.iter().position(|&byte| byte == b':')? + 1;
            }
            b' ' | b'\t' | b'\r' | b'"' | b'\'' | b'=' | b':' | b',' | b'>' | b']' | b')'
            | b'(' => at += 1,
            b'<' => at += rest.iter().position(|&byte| byte == b'>')? + 1,
            _ => break,
        }
    }
    let value = &text[at..];
    let run = value
        .iter()
        .position(|&byte| !is_value(byte))
        .unwrap_or(value.len());
    // A call, an expansion or a template is no value: `os.environ(`, `vault:secret/{`.
    let is_cut = value
        .get(run)
        .is_some_and(|byte| matches!(byte, b'(' | b'{' | b'[' | b'$'));
    let is_reference =
        memchr::memmem::find(&value[..run], b"://").is_some() || value.starts_with(b"/");
    let fits = (VALUE_BYTES_MIN..=KEY_BYTES_MAX).contains(&run);
    (fits && at > end && !is_cut && !is_reference).then_some(at..at + run)
}

/// Whether the key stands in its provider's documentation.
fn is_published(fingerprint: Fingerprint) -> bool {
    let shown = fingerprint.to_string();
    config::published().contains(&shown)
}
