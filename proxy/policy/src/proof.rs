//! What callers show to prove who they are: [`Token`]s and [`Identity`]s.
//!
//! A token is kept as its SHA-256 digest alone and compared without regard to
//! where it differs; what a request shows is hashed and forgotten. Nothing here
//! can give a token back.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use wire::head::RequestHead;
use wire::target::{params, percent_decode};
use zeroize::Zeroizing;

use crate::route::Route;
use crate::secret::Secret;

/// A shorter token can be guessed.
pub const TOKEN_BYTES_MIN: usize = 16;

/// Values of one request that are tried as a token. Further ones are not looked at.
const PRESENTED_MAX: usize = 8;

/// A longer value is not a token; it is not hashed.
pub const TOKEN_BYTES_MAX: usize = 4096;

/// The field that is there for tokens alone. It is never forwarded, as none of this
/// prefix is.
pub const TOKEN_FIELD: &str = "claviger-token";

/// Why a secret cannot be a token. The texts never quote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Guessable.
    #[error("the token has fewer than {TOKEN_BYTES_MIN} bytes and could be guessed")]
    Short,
    /// No field could carry it.
    #[error("the token has more than {TOKEN_BYTES_MAX} bytes")]
    Long,
    /// It could not stand in a header field.
    #[error(
        "the token contains a blank, a control character or a character beyond ASCII; a token is one word of printable ASCII"
    )]
    NotAWord,
}

/// What a caller may show. `Debug` shows its version.
pub struct Token {
    digest: [u8; SHA256_OUTPUT_LEN],
    version: Box<str>,
}

impl Token {
    /// Keeps the digest of `secret`, of which one trailing line break is taken off.
    /// `version` is what the audit trail calls it: it must say nothing of it.
    ///
    /// # Errors
    /// [`TokenError`] when it cannot be one.
    pub fn new(version: &str, secret: &Secret) -> Result<Self, TokenError> {
        let bytes = secret.expose();
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        match bytes.len() {
            ..TOKEN_BYTES_MIN => return Err(TokenError::Short),
            TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX => {}
            _ => return Err(TokenError::Long),
        }
        if !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::NotAWord);
        }
        Ok(Self {
            digest: hash(bytes),
            version: version.into(),
        })
    }

    /// What the audit trail calls it.
    pub fn version(&self) -> &str {
        &self.version
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({})", self.version)
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.digest, &other.digest).is_ok()
            && self.version == other.version
    }
}

impl Eq for Token {}

fn hash(bytes: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut out = [0; SHA256_OUTPUT_LEN];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// What a verified client certificate says of its holder: its subject alternative
/// names (RFC 5280, section 4.2.1.6). The common name is not one of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    dns_names: Vec<Box<str>>,
    uris: Vec<Box<str>>,
}

impl Identity {
    /// From the names as the certificate has them.
    pub fn new<'a>(
        dns_names: impl IntoIterator<Item = &'a str>,
        uris: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self {
            dns_names: dns_names
                .into_iter()
                .map(|name| name.to_ascii_lowercase().into())
                .collect(),
            uris: uris.into_iter().map(Box::from).collect(),
        }
    }

    /// Whether this, in lower case, is among its host names.
    pub fn has_dns_name(&self, name: &str) -> bool {
        self.dns_names.iter().any(|own| **own == *name)
    }

    /// Whether this is among its URIs.
    pub fn has_uri(&self, uri: &str) -> bool {
        self.uris.iter().any(|own| **own == *uri)
    }
}

/// The kinds of proof by which somebody was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proofs(u8);

impl Proofs {
    /// Where it calls from, and nothing else.
    pub const ADDRESS: Proofs = Proofs(1);

    pub(crate) fn of(address: bool, token: bool, certificate: bool) -> Self {
        Self(u8::from(address) | u8::from(token) << 1 | u8::from(certificate) << 2)
    }

    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }

    /// In the audit trail's words.
    pub fn as_str(self) -> &'static str {
        match self.0 {
            1 => "address",
            2 => "token",
            3 => "address+token",
            4 => "certificate",
            5 => "address+certificate",
            6 => "token+certificate",
            7 => "address+token+certificate",
            _ => "nothing",
        }
    }
}

/// What a request shows that may be a token: the field of ours, and whatever stands
/// where an API's key would, since that is where an unmodified service puts what it
/// was given as its key. All of these places are stripped.
pub struct Presented<'r> {
    head: &'r RequestHead,
    /// `None` looks at the field of ours alone.
    route: Option<&'r Route>,
    /// Made when the first caller with tokens is asked for.
    digests: std::cell::OnceCell<Vec<[u8; SHA256_OUTPUT_LEN]>>,
}

impl<'r> Presented<'r> {
    pub(crate) fn new(head: &'r RequestHead, route: &'r Route) -> Self {
        Self {
            head,
            route: Some(route),
            digests: std::cell::OnceCell::new(),
        }
    }

    /// What the field that is there for tokens shows, and no other place.
    pub(crate) fn in_own_field(head: &'r RequestHead) -> Self {
        Self {
            head,
            route: None,
            digests: std::cell::OnceCell::new(),
        }
    }

    /// Which of the tokens was shown.
    pub(crate) fn find(&self, tokens: &[Token]) -> Option<usize> {
        if tokens.is_empty() {
            return None;
        }
        let shown = self.digests.get_or_init(|| self.digests());
        let mut found = None;
        // Each is compared with each, whatever came of those before.
        for (at, token) in tokens.iter().enumerate() {
            for digest in shown {
                if verify_slices_are_equal(digest, &token.digest).is_ok() {
                    found = found.or(Some(at));
                }
            }
        }
        found
    }

    fn digests(&self) -> Vec<[u8; SHA256_OUTPUT_LEN]> {
        let mut digests = Vec::new();
        let mut note = |value: &[u8]| {
            let fits = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&value.len());
            if fits && digests.len() < PRESENTED_MAX {
                digests.push(hash(value));
            }
        };
        let head = self.head;
        for field in head.fields() {
            let name = head.name(field);
            let value = head.value(field).trim_ascii();
            if name.eq_ignore_ascii_case(TOKEN_FIELD.as_bytes()) {
                note(value);
            } else if self
                .route
                .is_some_and(|route| route.strip_fields.contains(name))
            {
                match scheme(value) {
                    // RFC 7617: the password, behind the first colon; or the user's name, as
                    // APIs do that have nothing else (Stripe).
                    Some((b"basic", rest)) => {
                        let Ok(pair) = STANDARD.decode(rest).map(Zeroizing::new) else {
                            continue;
                        };
                        let colon = pair.iter().position(|&byte| byte == b':');
                        let colon = colon.unwrap_or(pair.len());
                        note(&pair[..colon]);
                        note(pair.get(colon + 1..).unwrap_or_default());
                    }
                    Some((_, rest)) => note(rest),
                    None => note(value),
                }
            }
        }
        if let Some(route) = self.route
            && let Some(query) = head.query()
        {
            for param in params(query) {
                let name = &query[param.name.clone()];
                // What stays goes on to the API.
                let is_stripped =
                    route.strip_params.contains(name) && !route.keep_params.contains(name);
                if is_stripped {
                    let value = query[param.name.end..param.whole.end]
                        .strip_prefix(b"=")
                        .unwrap_or_default();
                    note(&Zeroizing::new(percent_decode(value)));
                }
            }
        }
        digests
    }
}

/// `Bearer abc` as the scheme, if it is a usual one, and what follows it.
fn scheme(value: &[u8]) -> Option<(&'static [u8], &[u8])> {
    let blank = value.iter().position(|&byte| byte == b' ')?;
    let (word, rest) = value.split_at(blank);
    let known: [&[u8]; 5] = [b"bearer", b"basic", b"token", b"key", b"apikey"];
    let word = known
        .into_iter()
        .find(|known| word.eq_ignore_ascii_case(known))?;
    Some((word, rest.trim_ascii_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Result<Token, TokenError> {
        Token::new("v1", &Secret::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn what_can_be_a_token() {
        for (text, expected) in [
            ("0123456789abcdef", Ok(())),
            ("0123456789abcdef\n", Ok(())),
            ("0123456789abcdef\r\n", Ok(())),
            ("0123456789abcde", Err(TokenError::Short)),
            ("", Err(TokenError::Short)),
            ("0123456789 abcdef", Err(TokenError::NotAWord)),
            ("0123456789abcdef\n\n", Err(TokenError::NotAWord)),
            ("0123456789abcdef\u{e9}", Err(TokenError::NotAWord)),
            (&"x".repeat(TOKEN_BYTES_MAX), Ok(())),
            (&"x".repeat(TOKEN_BYTES_MAX + 1), Err(TokenError::Long)),
        ] {
            assert_eq!(token(text).map(drop), expected, "{text}");
        }
    }

    #[test]
    fn nothing_of_a_token_is_shown() {
        let token = token("0123456789abcdef").expect("a token");
        assert_eq!(format!("{token:?}"), "Token(v1)");
    }

    #[test]
    fn a_certificates_names() {
        let identity = Identity::new(["Edge.Example.com"], ["spiffe://example.com/Edge"]);
        assert!(identity.has_dns_name("edge.example.com"));
        assert!(!identity.has_dns_name("example.com"));
        assert!(identity.has_uri("spiffe://example.com/Edge"));
        assert!(!identity.has_uri("spiffe://example.com/edge"));
        assert!(!identity.has_uri("edge.example.com"));
    }
}
