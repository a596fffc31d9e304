//! Hiding credentials in what is reported about a request.
//!
//! Two nets: whatever stands in a place where credentials stand, and whatever contains a valid
//! key wherever it stands. Hidden text is replaced by its fingerprint, so that a test can still
//! tell one key from another.

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

    /// Any other text: valid keys within it are hidden.
    pub fn text(&self, text: &[u8]) -> String {
        let mut hidden = None::<Vec<u8>>;
        if !self.reveal {
            for key in self.keys.iter() {
                let current = hidden.as_deref().unwrap_or(text);
                if memchr::memmem::find(current, key).is_some() {
                    hidden = Some(replace(current, key, fingerprint(key).as_bytes()));
                }
            }
        }
        latin1(hidden.as_deref().unwrap_or(text))
    }
}

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

fn replace(text: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut start = 0;
    for found in memchr::memmem::find_iter(text, what) {
        out.extend_from_slice(&text[start..found]);
        out.extend_from_slice(with);
        start = found + what.len();
    }
    out.extend_from_slice(&text[start..]);
    out
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
    fn loses_no_byte() {
        assert_eq!(latin1("\u{e9}".as_bytes()), "\u{e9}");
        assert_eq!(latin1(b"\xe9"), "\u{e9}");
    }
}
