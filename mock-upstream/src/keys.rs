//! The keys that clients must present, where they may present them, and what a stranger learns.
//!
//! A [`KeyRing`] is shared by all workers and may be replaced while they run; each worker looks
//! at a generation number per request and fetches the new [`KeySet`] only when it has changed.
//! No key is ever printed: `Debug` shows counts.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::http::{Head, uri};
use crate::published::Published;

/// The valid keys, shared and replaceable.
pub type KeyRing = Published<KeySet>;

/// One immutable set of valid keys.
#[derive(Default)]
pub struct KeySet {
    keys: HashSet<Box<[u8]>>,
}

/// Where a key must stand in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthScheme {
    /// `Authorization: Bearer KEY` (RFC 6750).
    Bearer,
    /// `Authorization: Basic base64(KEY)`, where the key is `user:password` (RFC 7617).
    Basic,
    /// A header field of this name.
    Header(String),
    /// A query parameter of this name.
    Query(String),
    /// Any of the customary places; a valid key in one of them is enough.
    Any,
    /// No key is needed.
    None,
}

/// What came of a request's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A valid key, found in this place, or none was needed (`"none"`).
    Granted(&'static str),
    /// No credential in any place where one was looked for.
    Missing,
    /// Credentials, none of them valid.
    Wrong,
}

impl KeySet {
    /// A set of these keys. Empty ones are left out: they would let everybody in.
    pub fn new<K: Into<Vec<u8>>>(keys: impl IntoIterator<Item = K>) -> Self {
        KeySet {
            keys: keys
                .into_iter()
                .map(|key| Box::<[u8]>::from(key.into()))
                .filter(|key| !key.is_empty())
                .collect(),
        }
    }

    /// One key a line; blank lines and white space around keys do not count.
    pub fn from_lines(text: &str) -> Self {
        KeySet::new(text.lines().map(|line| line.trim().as_bytes()))
    }

    /// Whether `key` is valid.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.keys.contains(key)
    }

    /// How many keys are valid.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is valid.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// All keys, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.iter().map(AsRef::as_ref)
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({} keys)", self.keys.len())
    }
}

impl AuthScheme {
    /// Checks the credentials of one request.
    pub fn check(&self, head: &Head, keys: &KeySet) -> Access {
        if *self == AuthScheme::None {
            return Access::Granted("none");
        }
        let mut seen = false;
        let mut granted = None;
        self.each_presented(head, &mut |place, key| {
            seen = true;
            if keys.contains(key) {
                granted = Some(place);
            }
            granted.is_some()
        });
        match (granted, seen) {
            (Some(place), _) => Access::Granted(place),
            (None, true) => Access::Wrong,
            (None, false) => Access::Missing,
        }
    }

    /// The valid key that this request presents, or else the first credential of any kind.
    pub fn presented(&self, head: &Head, keys: &KeySet) -> Option<Vec<u8>> {
        let mut found = None;
        let scheme = match self {
            AuthScheme::None => &AuthScheme::Any,
            scheme => scheme,
        };
        scheme.each_presented(head, &mut |_, key| {
            let valid = keys.contains(key);
            if valid || found.is_none() {
                found = Some(key.to_vec());
            }
            valid
        });
        found
    }

    /// Calls `visit` with each credential and its place until it returns true.
    fn each_presented(&self, head: &Head, visit: &mut dyn FnMut(&'static str, &[u8]) -> bool) {
        match self {
            AuthScheme::None => {}
            AuthScheme::Bearer => {
                if let Some(key) = head.authorization().and_then(bearer) {
                    visit("bearer", key);
                }
            }
            AuthScheme::Basic => {
                if let Some(key) = head.authorization().and_then(basic) {
                    visit("basic", &key);
                }
            }
            AuthScheme::Header(name) => {
                if let Some(key) = head.field(name) {
                    visit("header", key);
                }
            }
            AuthScheme::Query(name) => {
                if let Some(key) = uri::value(head.query(), name) {
                    visit("query", &key);
                }
            }
            AuthScheme::Any => any(head, visit),
        }
    }
}

fn any(head: &Head, visit: &mut dyn FnMut(&'static str, &[u8]) -> bool) {
    if let Some(value) = head.authorization() {
        if let Some(key) = bearer(value) {
            if visit("bearer", key) {
                return;
            }
        } else if let Some(pair) = basic(value) {
            // Stripe takes the key as user, Mailgun and Twilio as password.
            let colon = memchr::memchr(b':', &pair).unwrap_or(pair.len());
            let user = &pair[..colon];
            let password = pair.get(colon + 1..).unwrap_or(b"");
            if visit("basic", &pair) || visit("basic", user) || visit("basic", password) {
                return;
            }
        } else if visit("authorization", value) {
            return;
        }
    }
    for (name, value) in head.fields() {
        if KEY_FIELDS
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
            && visit("header", value)
        {
            return;
        }
    }
    if head.query().is_empty() {
        return;
    }
    for (name, value) in uri::pairs(head.query()) {
        let name = uri::decode(name);
        if KEY_PARAMETERS
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
            && visit("query", &uri::decode(value))
        {
            return;
        }
    }
}

/// The token of `Bearer TOKEN` (or GitHub's older `token TOKEN`), the scheme in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let space = memchr::memchr(b' ', value)?;
    let (scheme, token) = (&value[..space], &value[space + 1..]);
    let known = scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"token");
    known.then(|| token.trim_ascii())
}

/// The decoded pair of `Basic base64(user:password)`.
fn basic(value: &[u8]) -> Option<Cow<'static, [u8]>> {
    let space = memchr::memchr(b' ', value)?;
    if !value[..space].eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let decoded = STANDARD.decode(value[space + 1..].trim_ascii()).ok()?;
    Some(Cow::Owned(decoded))
}

impl FromStr for AuthScheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |name: &str| match name.is_empty() {
            true => Err(format!("`{text}` lacks a name, as in `{text}X-API-Key`")),
            false => Ok(name.to_string()),
        };
        match text.split_once(':') {
            Some(("header", name)) => named(name).map(AuthScheme::Header),
            Some(("query", name)) => named(name).map(AuthScheme::Query),
            None if text == "bearer" => Ok(AuthScheme::Bearer),
            None if text == "basic" => Ok(AuthScheme::Basic),
            None if text == "any" => Ok(AuthScheme::Any),
            None if text == "none" => Ok(AuthScheme::None),
            _ => Err("expected bearer, basic, header:NAME, query:NAME, any or none".to_string()),
        }
    }
}

/// Header fields in which providers take keys, besides `Authorization`.
pub const KEY_FIELDS: &[&str] = &[
    "X-API-Key",
    "Api-Key",
    "X-Goog-Api-Key",
    "Ocp-Apim-Subscription-Key",
    "X-Auth-Token",
    "Private-Token",
];

/// Query parameters in which providers take keys.
pub const KEY_PARAMETERS: &[&str] = &["key", "api_key", "apikey", "api-key", "access_token"];

#[cfg(test)]
mod tests {
    use super::*;

    fn head(target: &str, fields: &str) -> Head {
        let input = format!("GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        let mut head = Head::default();
        head.parse(input.as_bytes()).unwrap().expect("complete");
        head
    }

    #[track_caller]
    fn check(scheme: &str, target: &str, fields: &str, access: Access) {
        let keys = KeySet::new(["real", "user:pass"]);
        let scheme: AuthScheme = scheme.parse().unwrap();
        assert_eq!(scheme.check(&head(target, fields), &keys), access);
    }

    #[test]
    fn each_scheme_reads_its_own_place() {
        use Access::*;
        check(
            "bearer",
            "/",
            "authorization: bearer real\r\n",
            Granted("bearer"),
        );
        check("bearer", "/", "Authorization: Bearer real2\r\n", Wrong);
        check("bearer", "/?key=real", "X-API-Key: real\r\n", Missing);
        check(
            "basic",
            "/",
            "Authorization: Basic dXNlcjpwYXNz\r\n",
            Granted("basic"),
        );
        check("basic", "/", "Authorization: Bearer real\r\n", Missing);
        check("header:X-Mine", "/", "x-mine: real\r\n", Granted("header"));
        check("header:X-Mine", "/", "x-mine: fake\r\n", Wrong);
        check("query:key", "/?k%65y=re%61l", "", Granted("query"));
        check("query:key", "/?key=", "", Wrong);
        check("none", "/", "", Granted("none"));
    }

    #[test]
    fn any_takes_the_customary_places() {
        use Access::*;
        check(
            "any",
            "/",
            "Authorization: token real\r\n",
            Granted("bearer"),
        );
        // `real:` and `api:real`
        check(
            "any",
            "/",
            "Authorization: Basic cmVhbDo=\r\n",
            Granted("basic"),
        );
        check(
            "any",
            "/",
            "Authorization: Basic YXBpOnJlYWw=\r\n",
            Granted("basic"),
        );
        check("any", "/", "x-goog-api-key: real\r\n", Granted("header"));
        check("any", "/?a=b&Key=real", "", Granted("query"));
        check("any", "/?a=real", "", Missing);
        check(
            "any",
            "/",
            "Authorization: Bearer no\r\nx-api-key: no\r\n",
            Wrong,
        );
    }

    #[test]
    fn a_ring_is_replaced_whole() {
        let ring = KeyRing::new(KeySet::from_lines("one\n\n two \n"));
        assert_eq!(ring.current().len(), 2);
        let before = ring.generation();
        ring.replace(KeySet::new(["three"]));
        assert_ne!(ring.generation(), before);
        assert!(ring.current().contains(b"three") && !ring.current().contains(b"one"));
        assert_eq!(format!("{:?}", ring.current()), "KeySet(1 keys)");
    }
}
