//! [`Credential`]: a key with its name, its version and the way it is written.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use wire::scrub::Scrubber;
use wire::target::percent_encode_query;
use zeroize::Zeroizing;

use crate::fingerprint::Fingerprint;
use crate::secret::Secret;

/// Secrets shorter than this are not searched for in answers: they would be found
/// by chance, and garble what passes. `check` warns about them.
pub const SCRUB_BYTES_MIN: usize = 16;

/// Earlier values of a key that answers are still searched for. Past it the oldest is
/// forgotten, and its memory wiped. Providers keep two values valid at once, so one
/// suffices; the second is for a key that is replaced twice in a hurry.
pub const EARLIER_MAX: usize = 2;

/// How a key is written into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injection {
    /// `Authorization: Bearer KEY` (RFC 6750, section 2.1).
    Bearer,
    /// `Authorization: Basic base64(username:KEY)` (RFC 7617). Without a
    /// username the secret is the whole `user:password`.
    Basic {
        /// The fixed part before the colon, where the provider has one.
        username: Option<String>,
    },
    /// A header of the provider's own; `{key}` in the template is replaced.
    Header {
        /// The field name, written as given.
        name: String,
        /// The value, with `{key}` exactly once.
        template: String,
    },
    /// A query parameter.
    Query {
        /// The parameter's name, not yet encoded.
        name: String,
    },
}

impl Injection {
    /// The header that this writes, if it writes one.
    pub fn header_slot(&self) -> Option<&str> {
        match self {
            Injection::Bearer | Injection::Basic { .. } => Some("authorization"),
            Injection::Header { name, .. } => Some(name),
            Injection::Query { .. } => None,
        }
    }

    /// The query parameter that this writes, if it writes one.
    pub fn query_slot(&self) -> Option<&str> {
        match self {
            Injection::Query { name } => Some(name),
            _ => None,
        }
    }

    /// What an operator reads, with the value hidden.
    pub fn describe(&self) -> String {
        match self {
            Injection::Bearer => "Authorization: Bearer <hidden>".to_owned(),
            Injection::Basic {
                username: Some(user),
            } => {
                format!("Authorization: Basic base64({user}:<hidden>)")
            }
            Injection::Basic { username: None } => {
                "Authorization: Basic base64(<hidden>)".to_owned()
            }
            Injection::Header { name, template } => {
                format!("{name}: {}", template.replace("{key}", "<hidden>"))
            }
            Injection::Query { name } => format!("?{name}=<hidden>"),
        }
    }
}

/// Why a secret cannot be a credential. The texts never quote the secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CredentialError {
    /// Nothing was read.
    #[error("the secret is empty")]
    Empty,
    /// A line break or another control character would end the header early.
    #[error(
        "the secret contains a control character or line break inside; a key is one line of printable text"
    )]
    ControlCharacter,
    /// `basic` without a username needs `user:password`.
    #[error(
        "`basic` without `username` needs a secret of the form user:password, and there is no colon in it"
    )]
    BasicWithoutColon,
    /// A template without its slot, or with two.
    #[error("the template must contain {{key}} exactly once")]
    Template,
}

/// A key, ready to be written: rendered once, shared by every request.
pub struct Credential {
    name: Box<str>,
    version: Box<str>,
    fingerprint: Option<Fingerprint>,
    injection: Injection,
    /// The whole header line with its CRLF, or `name=value` for a query.
    rendered: Secret,
    scrubber: Arc<Scrubber>,
}

impl Credential {
    /// Renders `secret` as `injection` says. One trailing line break is taken
    /// off, since editors and `echo` put one there.
    ///
    /// `version` is what the audit trail calls this value: it must say nothing of it.
    ///
    /// # Errors
    /// [`CredentialError`] when the secret cannot be written that way.
    pub fn new(
        name: &str,
        version: &str,
        injection: Injection,
        secret: &Secret,
    ) -> Result<Self, CredentialError> {
        Self::after(name, version, injection, secret, &[])
    }

    /// The same for a key that has had these values before. They are never written, but
    /// the provider may still honour them, so answers are searched for them too.
    ///
    /// # Errors
    /// [`CredentialError`], about the present value only.
    pub fn after(
        name: &str,
        version: &str,
        injection: Injection,
        secret: &Secret,
        earlier: &[&Secret],
    ) -> Result<Self, CredentialError> {
        let key = line_of(secret);
        if key.is_empty() {
            return Err(CredentialError::Empty);
        }
        if key.iter().any(|&byte| byte < 0x20 || byte == 0x7f) {
            return Err(CredentialError::ControlCharacter);
        }
        // Sized ahead: a Vec that grows leaves copies of the key behind it.
        let mut rendered = Vec::with_capacity(64 + key.len() * 3 + 256);
        match &injection {
            Injection::Bearer => {
                rendered.extend_from_slice(b"Authorization: Bearer ");
                rendered.extend_from_slice(key);
                rendered.extend_from_slice(b"\r\n");
            }
            Injection::Basic { username } => {
                if username.is_none() && !key.contains(&b':') {
                    return Err(CredentialError::BasicWithoutColon);
                }
                let basic = basic_of(username.as_deref(), key);
                rendered.extend_from_slice(b"Authorization: Basic ");
                rendered.extend_from_slice(basic.as_bytes());
                rendered.extend_from_slice(b"\r\n");
            }
            Injection::Header { name, template } => {
                let mut parts = template.split("{key}");
                let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next())
                else {
                    return Err(CredentialError::Template);
                };
                rendered.reserve_exact(name.len() + template.len());
                rendered.extend_from_slice(name.as_bytes());
                rendered.extend_from_slice(b": ");
                rendered.extend_from_slice(before.as_bytes());
                rendered.extend_from_slice(key);
                rendered.extend_from_slice(after.as_bytes());
                rendered.extend_from_slice(b"\r\n");
            }
            Injection::Query { name } => {
                percent_encode_query(name.as_bytes(), &mut rendered);
                rendered.push(b'=');
                percent_encode_query(key, &mut rendered);
            }
        }
        let scrubber = scrubber_of(&injection, std::iter::once(&secret).chain(earlier));
        Ok(Self {
            name: name.into(),
            version: version.into(),
            fingerprint: Fingerprint::of(secret_part(&injection, key)),
            injection,
            rendered: Secret::new(rendered),
            scrubber: Arc::new(scrubber),
        })
    }

    /// The name in the configuration, and on the audit trail.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which value this is, in the source's own terms.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A name for the value that is the same wherever the value is, of its secret part alone.
    /// `None` where that is so short that it could be guessed.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// How it is written.
    pub fn injection(&self) -> &Injection {
        &self.injection
    }

    /// Finds the value, in its usual encodings, in what comes back.
    pub fn scrubber(&self) -> &Arc<Scrubber> {
        &self.scrubber
    }

    /// The rendered line or parameter, for a [`Permit`](crate::Permit) alone.
    pub(crate) fn rendered(&self) -> &[u8] {
        self.rendered.expose()
    }
}

/// What is written of a secret: all but one line's end behind it.
fn line_of(secret: &Secret) -> &[u8] {
    let key = secret.expose();
    let key = key.strip_suffix(b"\n").unwrap_or(key);
    key.strip_suffix(b"\r").unwrap_or(key)
}

/// The value of `Basic` for this username, or for a key that is the whole pair.
fn basic_of(username: Option<&str>, key: &[u8]) -> Zeroizing<String> {
    let Some(username) = username else {
        return Zeroizing::new(STANDARD.encode(key));
    };
    let mut pair = Zeroizing::new(Vec::with_capacity(username.len() + 1 + key.len()));
    pair.extend_from_slice(username.as_bytes());
    pair.push(b':');
    pair.extend_from_slice(key);
    Zeroizing::new(STANDARD.encode(&pair[..]))
}

/// Searches for these values of one key: for the secret part alone of each, and for how it
/// is written.
fn scrubber_of<'k>(
    injection: &Injection,
    values: impl Iterator<Item = &'k &'k Secret>,
) -> Scrubber {
    let mut secrets = Vec::new();
    let mut renderings = Vec::new();
    for value in values {
        let key = line_of(value);
        secrets.push(secret_part(injection, key));
        if let Injection::Basic { username } = injection {
            renderings.push(basic_of(username.as_deref(), key));
        }
    }
    let long_enough = |text: &&[u8]| text.len() >= SCRUB_BYTES_MIN;
    let renderings: Vec<&[u8]> = renderings
        .iter()
        .map(|text| text.as_bytes())
        .filter(long_enough)
        .collect();
    secrets.retain(long_enough);
    Scrubber::of_secrets(&secrets, &renderings)
}

/// What of a key must stay secret: all of it, unless it is a pair.
fn secret_part<'k>(injection: &Injection, key: &'k [u8]) -> &'k [u8] {
    match injection {
        Injection::Basic { username: None } => secret_of_pair(key),
        _ => key,
    }
}

/// Which part of `user:password` is the secret. An account's name stands in many an answer, and
/// redacting it would break them. But some APIs take the key for the name, with nothing or a single
/// letter behind it (`key:`, `key:x`).
fn secret_of_pair(pair: &[u8]) -> &[u8] {
    let mut parts = pair.splitn(2, |&byte| byte == b':');
    let (name, password) = (parts.next(), parts.next());
    match password {
        Some([] | [_]) | None => name.unwrap_or_default(),
        Some(password) => password,
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credential({} {})", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(injection: Injection, secret: &str, expected: Result<&str, CredentialError>) {
        let made = Credential::new("c", "v", injection, &Secret::new(secret.into()));
        match (made, expected) {
            (Ok(made), Ok(expected)) => {
                assert_eq!(made.rendered(), expected.as_bytes());
                let shown = format!("{made:?}");
                assert!(!shown.contains(secret.trim_end()), "Debug shows the secret");
            }
            (Err(made), Err(expected)) => assert_eq!(made, expected),
            (made, expected) => panic!("{made:?} is not {expected:?}"),
        }
    }

    #[test]
    fn rendering() {
        use CredentialError as E;
        use Injection as I;
        let basic = |user: Option<&str>| I::Basic {
            username: user.map(str::to_owned),
        };
        let header = |name: &str, template: &str| I::Header {
            name: name.into(),
            template: template.into(),
        };
        check(
            I::Bearer,
            "sk-12345678",
            Ok("Authorization: Bearer sk-12345678\r\n"),
        );
        check(
            I::Bearer,
            "sk-12345678\n",
            Ok("Authorization: Bearer sk-12345678\r\n"),
        );
        check(
            I::Bearer,
            "sk-12345678\r\n",
            Ok("Authorization: Bearer sk-12345678\r\n"),
        );
        check(I::Bearer, "", Err(E::Empty));
        check(I::Bearer, "\n", Err(E::Empty));
        check(I::Bearer, "sk\r\nX-Evil: 1", Err(E::ControlCharacter));
        check(I::Bearer, "sk-1\n\n", Err(E::ControlCharacter));
        check(
            basic(Some("api")),
            "key-1",
            Ok("Authorization: Basic YXBpOmtleS0x\r\n"),
        );
        check(
            basic(None),
            "AC1:token",
            Ok("Authorization: Basic QUMxOnRva2Vu\r\n"),
        );
        check(basic(None), "token", Err(E::BasicWithoutColon));
        check(header("X-Api-Key", "{key}"), "k", Ok("X-Api-Key: k\r\n"));
        check(
            header("X-Auth", "Token {key};v=1"),
            "k",
            Ok("X-Auth: Token k;v=1\r\n"),
        );
        check(header("X-Auth", "Token"), "k", Err(E::Template));
        check(header("X-Auth", "{key}{key}"), "k", Err(E::Template));
        check(
            I::Query { name: "key".into() },
            "a b&c=d/é",
            Ok("key=a%20b%26c%3Dd%2F%C3%A9"),
        );
    }

    #[test]
    fn the_scrubber_knows_what_was_written() {
        let secret = Secret::new(b"api:correct-horse-battery".to_vec());
        let credential = Credential::new("c", "v", Injection::Basic { username: None }, &secret)
            .expect("a pair");
        for hay in [
            &b"Location: /?p=correct-horse-battery"[..],
            b"X: YXBpOmNvcnJlY3QtaG9yc2UtYmF0dGVyeQ==",
        ] {
            assert!(credential.scrubber().find(hay).is_some());
        }
        assert!(credential.scrubber().find(b"Location: /?p=api").is_none());
    }

    #[test]
    fn earlier_values_are_searched_for_and_never_written() {
        let secret = |text: &str| Secret::new(text.into());
        let (new, old, older) = (
            secret("new-0123456789abcdef\n"),
            secret("old-0123456789abcdef\r\n"),
            secret("older-0123456789abcdef"),
        );
        let credential =
            Credential::after("c", "v", Injection::Bearer, &new, &[&old, &older]).expect("a key");
        assert_eq!(
            credential.rendered(),
            b"Authorization: Bearer new-0123456789abcdef\r\n"
        );
        let finds = |hay: &str| credential.scrubber().find(hay.as_bytes()).is_some();
        for value in ["new", "old", "older"] {
            assert!(finds(&format!("echo {value}-0123456789abcdef.")), "{value}");
            let encoded = STANDARD.encode(format!("{value}-0123456789abcdef"));
            assert!(finds(&encoded), "{value}");
        }
        assert!(!finds("echo other-0123456789abcdef."));
        // What was a pair is searched for as one, and one that is too short is not.
        let basic = Injection::Basic { username: None };
        let (new, old, short) = (
            secret("account:new-0123456789abcdef"),
            secret("account:old-0123456789abcdef"),
            secret("account:short"),
        );
        let credential = Credential::after("c", "v", basic, &new, &[&old, &short]).expect("a pair");
        let finds = |hay: &str| credential.scrubber().find(hay.as_bytes()).is_some();
        assert!(finds("old-0123456789abcdef"));
        assert!(finds(&STANDARD.encode("account:old-0123456789abcdef")));
        assert!(!finds("account:short") && !finds("account:"));
    }

    #[test]
    fn only_the_secret_part_is_searched_for() {
        let finds = |username: Option<&str>, secret: &str, hay: &str| {
            let injection = Injection::Basic {
                username: username.map(str::to_owned),
            };
            let secret = Secret::new(secret.into());
            let credential = Credential::new("c", "v", injection, &secret).expect("a pair");
            credential.scrubber().find(hay.as_bytes()).is_some()
        };
        let (account, token) = ("ACCOUNT-0123456789abcdef", "token-0123456789abcdef");
        let pair = format!("{account}:{token}");
        assert!(finds(None, &pair, token));
        assert!(finds(None, &pair, &pair));
        assert!(!finds(None, &pair, account));
        assert!(finds(Some(account), token, token));
        assert!(!finds(Some(account), token, account));
        // The key stands before the colon.
        for pair in [format!("{token}:"), format!("{token}:X")] {
            assert!(finds(None, &pair, token), "{pair}");
        }
        // Too short to be told from chance; the rendered pair is not.
        assert!(!finds(None, "a-long-account-name:hunter2", "hunter2"));
        assert!(!finds(
            None,
            "a-long-account-name:hunter2",
            "a-long-account-name"
        ));
        let rendered = STANDARD.encode("a-long-account-name:hunter2");
        assert!(finds(None, "a-long-account-name:hunter2", &rendered));
    }
}
