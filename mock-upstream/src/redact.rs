//! Hiding credentials in what is reported about a request.
//!
//! Two nets: whatever stands in a place where credentials stand, and whatever contains a valid
//! key wherever it stands, as it is or percent-encoded (other encodings are not seen through). Hidden text is replaced by its fingerprint, so that a test can still
//! tell one key from another.

use std::cmp::Reverse;
use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::http::uri;
use crate::keys::{KEY_PARAMETERS, KeySet};

/// Decides what of a request may be reported as it arrived.
#[derive(Debug)]
pub struct Redactor<'k> {
    keys: &'k KeySet,
    reveal: bool,
}

impl<'k> Redactor<'k> {
    /// Hides credentials and these keys, unless `reveal` says that everything may be shown.
    pub fn new(keys: &'k KeySet, reveal: bool) -> Self {
        Redactor { keys, reveal }
    }

    /// The value of a header field, as text or as its fingerprint.
    pub fn field(&self, name: &[u8], value: &[u8]) -> String {
        match self.reveal {
            false if is_credential_field(name) && !value.is_empty() => fingerprint(value),
            _ => self.text(value),
        }
    }

    /// A request target, with the values of credential-like parameters hidden.
    pub fn target(&self, target: &[u8]) -> String {
        let Some(mark) = memchr::memchr(b'?', target).filter(|_| !self.reveal) else {
            return self.text(target);
        };
        let mut out = self.text(&target[..=mark]);
        for (index, pair) in target[mark + 1..].split(|&byte| byte == b'&').enumerate() {
            if index > 0 {
                out.push('&');
            }
            match memchr::memchr(b'=', pair) {
                Some(equals) if is_credential_parameter(&pair[..equals]) => {
                    out.push_str(&latin1(&pair[..=equals]));
                    if !pair[equals + 1..].is_empty() {
                        out.push_str(&fingerprint(&pair[equals + 1..]));
                    }
                }
                _ => out.push_str(&self.text(pair)),
            }
        }
        out
    }

    /// Any other text: valid keys within it are hidden, also if they are percent-encoded in whole
    /// or in part.
    pub fn text(&self, text: &[u8]) -> String {
        let mut found = Vec::new();
        if !self.reveal {
            for reading in readings(text) {
                found.extend(self.keys.iter().flat_map(|key| reading.find(key)));
            }
        }
        if found.is_empty() {
            return latin1(text);
        }
        // Of two keys that begin at the same place the longer is the one that was meant.
        found.sort_by_key(|(range, _)| (range.start, Reverse(range.end)));
        let mut out = Vec::with_capacity(text.len());
        let mut done = 0;
        for (range, key) in found {
            if range.start >= done {
                out.extend_from_slice(&text[done..range.start]);
                out.extend_from_slice(fingerprint(key).as_bytes());
            }
            // What is left of an overlapping key goes with the one before it.
            done = done.max(range.end);
        }
        out.extend_from_slice(&text[done..]);
        latin1(&out)
    }
}

/// A text as somebody may read it, and where each of its bytes stands in the text that arrived.
struct Reading {
    bytes: Vec<u8>,
    /// Where each byte begins; one more than there are bytes: the last is the end of the text.
    starts: Vec<usize>,
}

impl Reading {
    fn verbatim(text: &[u8]) -> Self {
        Reading {
            bytes: text.to_vec(),
            starts: (0..=text.len()).collect(),
        }
    }

    /// What percent-decoding makes of it, `+` being read as `plus`. `None` if that changes nothing.
    fn decoded(&self, plus: u8) -> Option<Self> {
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        let mut place = 0;
        while let Some(&byte) = self.bytes.get(place) {
            starts.push(self.starts[place]);
            let digits = self.bytes.get(place + 1..place + 3).unwrap_or(&[]);
            let encoded = match digits {
                [high, low] if byte == b'%' => uri::hex(*high).zip(uri::hex(*low)),
                _ => None,
            };
            match encoded {
                Some((high, low)) => bytes.push(high << 4 | low),
                None if byte == b'+' => bytes.push(plus),
                None => bytes.push(byte),
            }
            place += if encoded.is_some() { 3 } else { 1 };
        }
        starts.push(*self.starts.last()?);
        (bytes != self.bytes).then_some(Reading { bytes, starts })
    }

    /// Where `key` stands in the text that arrived.
    fn find<'k>(&self, key: &'k [u8]) -> Vec<(Range<usize>, &'k [u8])> {
        memchr::memmem::find_iter(&self.bytes, key)
            .map(|at| (self.starts[at]..self.starts[at + key.len()], key))
            .collect()
    }
}

/// The text itself, and what up to [`DECODINGS_MAX`] rounds of percent-decoding make of it, `+`
/// being a plus as in paths, or a space as in forms.
fn readings(text: &[u8]) -> Vec<Reading> {
    let mut readings = vec![Reading::verbatim(text)];
    if memchr::memchr2(b'%', b'+', text).is_some() {
        for plus in [b'+', b' '] {
            let mut last = 0;
            for _ in 0..DECODINGS_MAX {
                let Some(reading) = readings[last].decoded(plus) else {
                    break;
                };
                last = readings.len();
                readings.push(reading);
            }
        }
    }
    readings
}

/// So often may a key be percent-encoded and still be found. A key that was encoded more often is
/// shown as it arrived.
const DECODINGS_MAX: usize = 3;

/// `sha256:` and the hex digest.
pub fn fingerprint(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// UTF-8 as it is, anything else byte by byte as U+0000 to U+00FF, so that nothing is lost.
pub fn latin1(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().map(|&byte| byte as char).collect(),
    }
}

/// Names that hold credentials, `_` counting as `-`.
fn is_credential_field(name: &[u8]) -> bool {
    let name: Vec<u8> = name
        .iter()
        .map(|byte| match byte.to_ascii_lowercase() {
            b'_' => b'-',
            byte => byte,
        })
        .collect();
    name == b"cookie"
        || name == b"authorization"
        || name == b"proxy-authorization"
        || (name != b"sec-websocket-key"
            && name != b"idempotency-key"
            && name.split(|&byte| byte == b'-').any(|word| {
                matches!(
                    word,
                    b"key" | b"apikey" | b"token" | b"secret" | b"auth" | b"password"
                )
            }))
}

fn is_credential_parameter(name: &[u8]) -> bool {
    let name = uri::decode(name).to_ascii_lowercase();
    KEY_PARAMETERS
        .iter()
        .chain(&["token", "secret", "password", "auth", "signature", "sig"])
        .any(|known| name == known.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_credentials_by_place() {
        let keys = KeySet::default();
        let redactor = Redactor::new(&keys, false);
        let print = fingerprint(b"Bearer x");
        assert_eq!(redactor.field(b"AUTHORIZATION", b"Bearer x"), print);
        assert_eq!(redactor.field(b"x_api_key", b"Bearer x"), print);
        assert_eq!(redactor.field(b"X-Monkey", b"see"), "see");
        assert_eq!(redactor.field(b"Sec-WebSocket-Key", b"see"), "see");
        assert_eq!(
            redactor.target(b"/p?a=1&k%65y=v&key="),
            format!("/p?a=1&k%65y={}&key=", fingerprint(b"v"))
        );
        let open = Redactor::new(&keys, true);
        assert_eq!(open.field(b"Authorization", b"Bearer x"), "Bearer x");
        assert_eq!(open.target(b"/p?key=v"), "/p?key=v");
    }

    #[test]
    fn hides_valid_keys_anywhere() {
        let keys = KeySet::new(["s3cret"]);
        let redactor = Redactor::new(&keys, false);
        let print = fingerprint(b"s3cret");
        assert_eq!(redactor.text(b"a s3cret b"), format!("a {print} b"));
        assert_eq!(
            redactor.target(b"/s3cret?x=s3cret"),
            format!("/{print}?x={print}")
        );
        assert_eq!(redactor.field(b"X-Note", b"s3crets"), format!("{print}s"));
    }

    #[test]
    fn hides_percent_encoded_keys_too() {
        let keys = KeySet::new(["real-key", "a b+c%"]);
        let redactor = Redactor::new(&keys, false);
        let (real, other) = (fingerprint(b"real-key"), fingerprint(b"a b+c%"));
        for (text, shown) in [
            ("real%2Dkey", real.clone()),
            ("%72%65%61%6c%2d%6b%65%79!", format!("{real}!")),
            ("x%2Freal%252Dkey%2Fy", format!("x%2F{real}%2Fy")),
            ("1 real%25252dkey 2", format!("1 {real} 2")),
            ("a+b%2Bc%25", other.clone()),
            ("a%20b%2bc%25", other.clone()),
            ("a%20b+c%25&%", format!("{other}&%")),
            ("real%2Dke", "real%2Dke".into()),
            ("real%2", "real%2".into()),
            ("real-key real%2Dkey", format!("{real} {real}")),
        ] {
            assert_eq!(redactor.text(text.as_bytes()), shown, "{text}");
        }
        assert_eq!(
            redactor.target(b"/r%65al-key?x=real%2Dkey&y=1"),
            format!("/{real}?x={real}&y=1")
        );
        let overlapping = KeySet::new(["abc", "cde", "abcd"]);
        let redactor = Redactor::new(&overlapping, false);
        assert_eq!(
            redactor.text(b"abcdef"),
            format!("{}f", fingerprint(b"abcd"))
        );
    }

    #[test]
    fn loses_no_byte() {
        assert_eq!(latin1("\u{e9}".as_bytes()), "\u{e9}");
        assert_eq!(latin1(b"\xe9"), "\u{e9}");
    }
}
