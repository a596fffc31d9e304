//! [`Route`]: which requests, to where, with which key, under which rules.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use wire::names::{NameSet, ParamSet};
use wire::target::readings;

use crate::access::Callers;
use crate::credential::Credential;
use crate::forwarding::Forwarding;
use crate::upstream::{CredentialId, Upstream};
use crate::verdict::PoolKey;

/// One route of one virtual host, with nothing left to decide.
#[derive(Debug, Clone)]
pub struct Route {
    /// The name in the configuration, and on the audit trail.
    pub name: Box<str>,
    /// Matches a path that equals it, or continues it at a `/`. Starts with `/`.
    pub path: Box<[u8]>,
    /// Methods that the route serves, in upper case. Empty: every one.
    pub methods: Vec<Box<str>>,
    /// Who may use it.
    pub callers: Callers,
    /// Who may not, whatever else is said of it.
    pub denied: Vec<IpNet>,
    /// Where it leads.
    pub upstream: Arc<Upstream>,
    /// The key that is written; `None` strips and writes nothing.
    pub credential: Option<(CredentialId, Arc<Credential>)>,
    /// Further ways, which take the request when the first one is out of reach, in this
    /// order. Only hubs have any: each of them does the same with a request.
    pub further: Vec<Way>,
    /// What takes the place of [`path`](Self::path) towards the upstream
    /// (explicit addressing); `None` forwards the path as it is.
    pub upstream_path: Option<Box<[u8]>>,
    /// Header fields that are removed. Contains the slot that the key goes into.
    pub strip_fields: NameSet,
    /// Query parameters that are removed. Contains the slot that the key goes into.
    pub strip_params: ParamSet,
    /// Query parameters that stay although `strip_params` names them; never the slot.
    pub keep_params: ParamSet,
    /// Whether the caller's cookies are removed.
    pub strip_cookies: bool,
    /// What the upstream learns of where a request came from; `None` is nothing.
    pub forwarding: Option<Forwarding>,
    /// Header fields that are removed from answers.
    pub strip_response_fields: NameSet,
    /// Upgrade tokens that may pass, in lower case (`websocket` by default).
    pub upgrades: Vec<Box<str>>,
    /// Endpoints that are refused: those that read or mint keys.
    pub refused: Vec<Endpoint>,
    /// Whether an exchange needs a place on the audit trail before the key is written.
    pub audit_required: bool,
    /// Whether a request with an `Idempotency-Key` may be repeated whatever its method.
    pub retry_with_idempotency_key: bool,
    /// Largest request body in bytes; past it 413. `u64::MAX` is no limit.
    pub body_bytes_max: u64,
    /// Overrides the upstream's limit, for a provider that thinks for long.
    pub response_head_timeout: Option<Duration>,
    /// What becomes of an answer that contains the key.
    pub on_echo: OnEcho,
    /// What becomes of an answer that cannot be searched for the key.
    pub on_uninspected: OnUninspected,
}

/// An upstream, and what is written for it.
#[derive(Debug, Clone)]
pub struct Way {
    /// Where it leads.
    pub upstream: Arc<Upstream>,
    /// The key that is written; `None` strips and writes nothing.
    pub credential: Option<(CredentialId, Arc<Credential>)>,
}

/// What becomes of an answer that contains the key that was written. It is counted and stands on the
/// audit trail in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnEcho {
    /// The key is overwritten, the rest passes.
    #[default]
    Redact,
    /// 502 instead of the answer; one that is under way is cut.
    Block,
    /// The answer passes with the key in it.
    Report,
}

/// What becomes of an answer whose body cannot be searched: in a coding that is not known, or not coded
/// as it says. It is counted and stands on the audit trail in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUninspected {
    /// 502 instead of the answer; one that is under way is cut.
    #[default]
    Refuse,
    /// The answer passes; its record says so.
    Mark,
}

impl Route {
    /// How many ways there are, at least one.
    pub fn ways(&self) -> usize {
        1 + self.further.len()
    }

    /// Every way, in order.
    pub fn every_way(
        &self,
    ) -> impl Iterator<Item = (&Arc<Upstream>, Option<&(CredentialId, Arc<Credential>)>)> {
        (0..self.ways()).map(|at| self.way(at))
    }

    /// Which pool of connections serves a way.
    ///
    /// # Panics
    /// When there is no such way.
    pub fn pool_key(&self, way: usize) -> PoolKey {
        let (upstream, credential) = self.way(way);
        PoolKey {
            upstream: upstream.id,
            credential: credential.map(|(id, _)| *id),
        }
    }

    /// The upstream of a way, counted from 0, and the credential for it.
    ///
    /// # Panics
    /// When there is no such way.
    pub fn way(&self, at: usize) -> (&Arc<Upstream>, Option<&(CredentialId, Arc<Credential>)>) {
        match at.checked_sub(1) {
            None => (&self.upstream, self.credential.as_ref()),
            Some(at) => (
                &self.further[at].upstream,
                self.further[at].credential.as_ref(),
            ),
        }
    }

    /// Whether `path` is this route's prefix or lies under it.
    pub fn covers(&self, path: &[u8]) -> bool {
        is_under(path, &self.path)
    }

    /// Whether the route serves this method.
    pub fn serves(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|served| **served == *method)
    }

    /// The path that the upstream will see.
    pub fn upstream_path_of(&self, path: &[u8]) -> Vec<u8> {
        match &self.upstream_path {
            None => path.to_vec(),
            Some(instead) => {
                let rest = path.get(self.path_cut()..).unwrap_or_default();
                let mut whole = without_last_slash(instead).to_vec();
                let joined = rest.starts_with(b"/") || (rest.is_empty() && !whole.is_empty());
                if !joined {
                    whole.push(b'/');
                }
                whole.extend_from_slice(rest);
                whole
            }
        }
    }

    /// Whether all these readings of an upstream path stay where
    /// [`upstream_path`](Self::upstream_path) leads.
    pub(crate) fn contains_upstream(&self, others: &[Vec<u8>]) -> bool {
        let Some(instead) = &self.upstream_path else {
            return true;
        };
        let prefix = without_last_slash(instead);
        // The operator's own prefix may be odd; it is read as the rest is.
        let Ok(prefixes) = readings(prefix) else {
            return false;
        };
        others.iter().all(|other| {
            is_under(other, prefix) || prefixes.iter().any(|prefix| is_under(other, prefix))
        })
    }

    /// How many bytes of the path are cut when `upstream_path` takes their place.
    pub(crate) fn path_cut(&self) -> usize {
        // The slash that ends the prefix stays, as the first of what follows.
        self.path.len() - usize::from(self.path.ends_with(b"/"))
    }
}

pub(crate) fn without_last_slash(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}

/// Whether `path` equals `prefix` or continues it at a segment's border.
fn is_under(path: &[u8], prefix: &[u8]) -> bool {
    match path.strip_prefix(prefix) {
        None => false,
        Some(rest) => rest.is_empty() || rest[0] == b'/' || prefix.ends_with(b"/"),
    }
}

/// An endpoint by method and path, as a provider's preset writes it: `POST
/// /v3/api_keys`, `* /v1/organization/*/keys`. A `*` segment is any one segment,
/// and what lies under the path is meant too, unless the path ends in `$`: `GET
/// /2010-04-01/Accounts/*$` is an account, and not its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `None` is every method.
    method: Option<Box<str>>,
    /// `None` is any.
    segments: Vec<Option<Box<[u8]>>>,
    /// What lies under the path is not meant.
    is_exact: bool,
}

impl Endpoint {
    /// Parses `METHOD /path`.
    ///
    /// # Errors
    /// What is wrong, in a sentence for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (method, path) = text
            .split_once(' ')
            .ok_or("expected METHOD and path, as in `POST /v3/api_keys`")?;
        let path = path.trim();
        if !path.starts_with('/') {
            return Err(format!("the path of `{text}` must start with `/`"));
        }
        if method != "*" && !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(format!(
                "`{method}` is not a method; use upper case, or `*`"
            ));
        }
        let (path, is_exact) = match path.strip_suffix('$') {
            Some(path) => (path, true),
            None => (path, false),
        };
        Ok(Self {
            method: (method != "*").then(|| method.into()),
            is_exact,
            segments: path
                .split('/')
                .filter(|segment| !segment.is_empty())
                .map(|segment| (segment != "*").then(|| segment.as_bytes().into()))
                .collect(),
        })
    }

    /// Whether the endpoint is one of this method. Letter case makes no difference,
    /// since some servers fold it; `HEAD` is `GET` here.
    pub fn serves(&self, method: &str) -> bool {
        self.method.as_ref().is_none_or(|wanted| {
            wanted.eq_ignore_ascii_case(method)
                || (**wanted == *"GET" && method.eq_ignore_ascii_case("HEAD"))
        })
    }

    /// Whether one reading of a path is this endpoint or lies under it. Letter case
    /// and empty segments make no difference; other spellings are other readings
    /// ([`wire::target::readings`]), and the caller asks for each of them.
    pub fn covers(&self, path: &[u8]) -> bool {
        self.covers_segments(segments(path))
    }

    /// The same of a path that was split for several endpoints.
    pub(crate) fn covers_split(&self, path: &Split<'_>) -> bool {
        if path.count < self.segments.len().min(SEGMENTS_SPLIT) {
            return false;
        }
        if self.segments.len() < SEGMENTS_SPLIT {
            self.covers_segments(path.first[..path.count].iter().copied())
        } else {
            self.covers(path.whole)
        }
    }

    fn covers_segments<'p>(&self, mut segments: impl Iterator<Item = &'p [u8]>) -> bool {
        let begins = self.segments.iter().all(|wanted| {
            segments.next().is_some_and(|segment| {
                wanted
                    .as_ref()
                    .is_none_or(|wanted| is_segment(segment, wanted))
            })
        });
        begins && !(self.is_exact && segments.next().is_some())
    }
}

/// A path's segments, for asking several endpoints about it.
pub(crate) struct Split<'p> {
    whole: &'p [u8],
    /// The first ones, as many as there are up to [`SEGMENTS_SPLIT`].
    first: [&'p [u8]; SEGMENTS_SPLIT],
    count: usize,
}

impl<'p> Split<'p> {
    pub(crate) fn new(whole: &'p [u8]) -> Self {
        let mut split = Self {
            whole,
            first: [&[]; SEGMENTS_SPLIT],
            count: 0,
        };
        for (place, segment) in split.first.iter_mut().zip(segments(whole)) {
            *place = segment;
            split.count += 1;
        }
        split
    }
}

/// Segments that a [`Split`] holds. An endpoint of as many or more has the path split
/// for itself alone.
const SEGMENTS_SPLIT: usize = 12;

fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|segment| !segment.is_empty())
}

/// Whether a lenient server may take a segment for the one that is wanted: in any
/// case, with a format's suffix, or with blanks behind it, encoded or not.
fn is_segment(segment: &[u8], wanted: &[u8]) -> bool {
    segment
        .split_at_checked(wanted.len())
        .is_some_and(|(begins, rest)| {
            begins.eq_ignore_ascii_case(wanted)
                && (rest.is_empty()
                    || matches!(rest[0], b'.' | b' ' | b'\t')
                    || rest.starts_with(b"%20")
                    || rest.starts_with(b"%09"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_at_segments() {
        for (path, prefix, expected) in [
            ("/v1", "/v1", true),
            ("/v1/", "/v1", true),
            ("/v1/x", "/v1", true),
            ("/v1x", "/v1", false),
            ("/v1", "/v1/", false),
            ("/v1/x", "/v1/", true),
            ("/", "/", true),
            ("/anything", "/", true),
            ("*", "/", false),
        ] {
            assert_eq!(
                is_under(path.as_bytes(), prefix.as_bytes()),
                expected,
                "{path} under {prefix}"
            );
        }
    }

    #[test]
    fn what_a_lenient_server_takes_for_an_endpoint() {
        let endpoint = Endpoint::parse("* /v3/api_keys").expect("an endpoint");
        for (path, expected) in [
            ("/v3/api_keys.json", true),
            ("/v3/api_keys%20", true),
            ("/v3/api_keys%09/x", true),
            ("/v3/API_KEYS.", true),
            ("/v3/api_keys2", false),
            ("/v3/api_key", false),
        ] {
            assert_eq!(endpoint.covers(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn an_exact_endpoint_ends_where_it_ends() {
        let endpoint = Endpoint::parse("GET /2010-04-01/Accounts/*$").expect("an endpoint");
        assert!(endpoint.covers(b"/2010-04-01/Accounts/AC1.json"));
        assert!(endpoint.covers(b"/2010-04-01/accounts/AC1.json/"));
        assert!(!endpoint.covers(b"/2010-04-01/Accounts/AC1/Messages.json"));
        assert!(!endpoint.covers(b"/2010-04-01/Accounts"));
    }

    #[test]
    fn a_split_path_is_covered_as_the_whole_one_is() {
        for wanted in 1..=2 * SEGMENTS_SPLIT {
            for exact in ["", "$"] {
                let text = format!("* {}{exact}", "/a".repeat(wanted));
                let endpoint = Endpoint::parse(&text).expect("an endpoint");
                for has in 0..=2 * SEGMENTS_SPLIT + 1 {
                    let path = "//a".repeat(has);
                    let expected = has == wanted || (has > wanted && exact.is_empty());
                    let split = Split::new(path.as_bytes());
                    assert_eq!(endpoint.covers_split(&split), expected, "{text} {path}");
                    assert_eq!(endpoint.covers(path.as_bytes()), expected, "{text} {path}");
                }
            }
        }
    }

    #[test]
    fn endpoints_are_methods_and_prefixes() {
        let endpoint = |text| Endpoint::parse(text).expect("an endpoint");
        let post = endpoint("POST /v3/api_keys");
        for (method, path, expected) in [
            ("POST", "/v3/api_keys", true),
            ("POST", "/v3/api_keys/", true),
            ("POST", "/v3/api_keys/abc", true),
            ("POST", "/V3/API_KEYS", true),
            ("post", "/v3/api_keys", true),
            ("POST", "//v3//api_keys", true),
            ("post", "/v3/api_keys", true),
            ("GET", "/v3/api_keys", false),
            ("HEAD", "/v3/api_keys", false),
            ("POST", "/v3/api_keys_more", false),
            ("POST", "/v3/mail/send", false),
            ("POST", "/v3", false),
        ] {
            assert_eq!(
                post.serves(method) && post.covers(path.as_bytes()),
                expected,
                "{method} {path}"
            );
        }
        let any = endpoint("* /v1/organization/*/keys");
        assert!(any.serves("DELETE") && any.covers(b"/v1/organization/o1/keys/k1"));
        assert!(!any.covers(b"/v1/organization/keys"));
        let get = endpoint("GET /keys");
        assert!(get.serves("HEAD"), "HEAD reads what GET reads");
        for wrong in ["/v3/api_keys", "POST v3", "post /v3"] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }
}
