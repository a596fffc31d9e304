//! [`Leak`]: looks for a key, in any form that a leak would take.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use memchr::memmem;

/// Every form of one key.
#[derive(Debug)]
pub struct Leak {
    forms: Vec<(&'static str, Vec<u8>)>,
}

/// Shorter than this, a form is found by chance.
const FORM_BYTES_MIN: usize = 8;

impl Leak {
    /// Of `key`: raw (whole and each half), percent-encoded (as little as allowed
    /// and every byte, upper and lower case), form-encoded, JSON-escaped, base64
    /// (both alphabets, the three alignments) and hex (both cases).
    pub fn of(key: &str) -> Self {
        let raw = key.as_bytes();
        assert!(
            raw.len() >= 2 * FORM_BYTES_MIN,
            "a key this short is found by chance"
        );
        let (first, second) = raw.split_at(raw.len() / 2);
        let mut forms = vec![
            ("raw", raw.to_vec()),
            ("first half", first.to_vec()),
            ("second half", second.to_vec()),
            ("URL-encoded", percent(raw, unreserved, true)),
            ("URL-encoded, lower case", percent(raw, unreserved, false)),
            ("URL-encoded, every byte", percent(raw, |_| false, true)),
            (
                "URL-encoded, every byte, lower case",
                percent(raw, |_| false, false),
            ),
            (
                "form-encoded",
                percent(raw, |byte| unreserved(byte) || byte == b' ', true),
            ),
            (
                "JSON with escaped slashes",
                key.replace('/', "\\/").into_bytes(),
            ),
            ("hex", hex(raw, false)),
            ("HEX", hex(raw, true)),
        ];
        for (name, engine) in [
            ("base64", &STANDARD_NO_PAD),
            ("base64url", &URL_SAFE_NO_PAD),
        ] {
            for alignment in 0..3 {
                forms.push((
                    name,
                    aligned(
                        engine
                            .encode([&vec![0; alignment], raw].concat())
                            .as_bytes(),
                        alignment,
                        raw.len(),
                    ),
                ));
            }
        }
        forms.retain(|(_, form)| form.len() >= FORM_BYTES_MIN);
        Self { forms }
    }

    /// The name of the first form that `hay` holds, and where.
    pub fn search(&self, hay: &[u8]) -> Option<(&'static str, usize)> {
        self.forms
            .iter()
            .find_map(|(name, form)| memmem::find(hay, form).map(|at| (*name, at)))
    }

    /// Asserts that `hay` holds no form of the key, and proves on the spot that
    /// the search would have found one: each form, planted in the middle of the
    /// same bytes, is found.
    #[track_caller]
    pub fn assert_none(&self, place: &str, hay: &[u8]) {
        if let Some((form, at)) = self.search(hay) {
            panic!("the key ({form}) is in {place}, at byte {at}");
        }
        for (name, form) in &self.forms {
            let (before, after) = hay.split_at(hay.len() / 2);
            // Large hay is mostly bodies: its last and first bytes are enough around the plant.
            let before = &before[before.len().saturating_sub(4096)..];
            let after = &after[..after.len().min(4096)];
            let planted = [before, form, after].concat();
            assert!(
                self.search(&planted).is_some(),
                "the search is blind: {name}, planted in {place}, was not found"
            );
        }
    }
}

/// The characters of an encoding that depend on the key alone: those that also
/// encode a neighbour's bits are cut off.
fn aligned(encoded: &[u8], alignment: usize, len: usize) -> Vec<u8> {
    let first = (alignment * 8).div_ceil(6);
    let last = (alignment + len) * 8 / 6;
    encoded[first..last].to_vec()
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn percent(bytes: &[u8], plain: impl Fn(u8) -> bool, upper: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in bytes {
        match byte {
            b' ' if plain(b' ') => out.push(b'+'),
            byte if plain(byte) => out.push(byte),
            byte if upper => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            byte => out.extend_from_slice(format!("%{byte:02x}").as_bytes()),
        }
    }
    out
}

fn hex(bytes: &[u8], upper: bool) -> Vec<u8> {
    bytes
        .iter()
        .map(|byte| {
            if upper {
                format!("{byte:02X}")
            } else {
                format!("{byte:02x}")
            }
        })
        .collect::<String>()
        .into_bytes()
}

#[test]
fn every_form_is_found_and_nothing_else() {
    let key = "sk-live+Zp/7 Q9x4c=Yd81mRt0";
    let leak = Leak::of(key);
    let base64 = base64::engine::general_purpose::STANDARD;
    for planted in [
        key.to_owned(),
        "sk-live%2BZp%2F7%20Q9x4c%3DYd81mRt0".to_owned(),
        "sk-live%2bZp%2f7%20Q9x4c%3dYd81mRt0".to_owned(),
        "sk-live%2BZp%2F7+Q9x4c%3DYd81mRt0".to_owned(),
        "sk-live+Zp\\/7 Q9x4c=Yd81mRt0".to_owned(),
        base64.encode(key),
        base64.encode(format!("u:{key}")),
        base64.encode(format!("user:{key}@")),
        base64.encode(format!("use:{key}/x")),
        key.bytes().map(|byte| format!("{byte:02x}")).collect(),
        key.bytes().map(|byte| format!("{byte:02X}")).collect(),
        key.bytes().map(|byte| format!("%{byte:02X}")).collect(),
        // Cut short by a limit somewhere.
        key[..key.len() - 3].to_owned(),
    ] {
        let hay = format!("{{\"path\":\"/v1?x={planted}&y\"}}");
        assert!(leak.search(hay.as_bytes()).is_some(), "{planted}");
    }
    leak.assert_none(
        "other text",
        b"sk-live and nothing more; c2stbGl2ZQ==; sk-live%2B",
    );
    leak.assert_none("nothing", b"");
}
