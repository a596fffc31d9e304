//! [`Route`]: which requests, to where, with which key, under which rules.

use std::sync::Arc;
use std::time::Duration;

use wire::head::Method;
use wire::names::{NameSet, ParamSet};

use crate::access::Callers;
use crate::credential::Credential;
use crate::upstream::{CredentialId, Upstream};

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
    /// Where it leads.
    pub upstream: Arc<Upstream>,
    /// The key that is written; `None` strips and writes nothing.
    pub credential: Option<(CredentialId, Arc<Credential>)>,
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
    /// Upgrade tokens that may pass, in lower case (`websocket` by default).
    pub upgrades: Vec<Box<str>>,
    /// Endpoints that are refused: those that read or mint keys.
    pub refused: Vec<Endpoint>,
    /// Whether an exchange needs a place on the audit trail before the key is written.
    pub audit_required: bool,
    /// Largest request body in bytes; past it 413. `u64::MAX` is no limit.
    pub body_bytes_max: u64,
    /// Overrides the upstream's limit, for a provider that thinks for long.
    pub response_head_timeout: Option<Duration>,
}

impl Route {
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
                let mut whole = instead.strip_suffix(b"/").unwrap_or(instead).to_vec();
                if !rest.starts_with(b"/") {
                    whole.push(b'/');
                }
                whole.extend_from_slice(rest);
                whole
            }
        }
    }

    /// How many bytes of the path are cut when `upstream_path` takes their place.
    pub(crate) fn path_cut(&self) -> usize {
        // The slash that ends the prefix stays, as the first of what follows.
        self.path.len() - usize::from(self.path.ends_with(b"/"))
    }
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
/// and what lies under the path is meant too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `None` is every method.
    method: Option<Box<str>>,
    /// Segments in lower case; `None` is any.
    segments: Vec<Option<Box<[u8]>>>,
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
        Ok(Self {
            method: (method != "*").then(|| method.into()),
            segments: path
                .split('/')
                .filter(|segment| !segment.is_empty())
                .map(|segment| {
                    (segment != "*").then(|| segment.to_ascii_lowercase().into_bytes().into())
                })
                .collect(),
        })
    }

    /// Whether a request is for this endpoint, however its path is spelled:
    /// percent-encoding, letter case, empty and dot segments and parameters make
    /// no difference. `HEAD` is `GET` here.
    pub fn matches(&self, method: Method, method_str: &str, path: &[u8]) -> bool {
        if let Some(wanted) = &self.method {
            let method_str = if method == Method::Head {
                "GET"
            } else {
                method_str
            };
            if **wanted != *method_str {
                return false;
            }
        }
        let plain = plain_segments(path);
        plain.len() >= self.segments.len()
            && self
                .segments
                .iter()
                .zip(&plain)
                .all(|(wanted, segment)| wanted.as_ref().is_none_or(|wanted| **wanted == **segment))
    }
}

/// The path's segments as the most lenient upstream would read them.
fn plain_segments(path: &[u8]) -> Vec<Vec<u8>> {
    let mut decoded = path.to_vec();
    // Twice, since some upstreams sit behind a proxy that decodes once.
    for _ in 0..2 {
        decoded = percent_decode(&decoded);
    }
    let mut segments: Vec<Vec<u8>> = Vec::new();
    for segment in decoded.split(|&byte| byte == b'/' || byte == b'\\') {
        let segment = segment
            .split(|&byte| byte == b';')
            .next()
            .unwrap_or_default();
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            _ => segments.push(segment.to_ascii_lowercase()),
        }
    }
    segments
}

fn percent_decode(bytes: &[u8]) -> Vec<u8> {
    let hex = |byte: Option<&u8>| byte.and_then(|&byte| char::from(byte).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%'
            && let (Some(high), Some(low)) = (hex(bytes.get(at + 1)), hex(bytes.get(at + 2)))
        {
            decoded.push((high * 16 + low) as u8);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    decoded
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
    fn endpoints_match_every_spelling() {
        let endpoint = Endpoint::parse("POST /v3/api_keys").expect("an endpoint");
        for (method, path, expected) in [
            ("POST", "/v3/api_keys", true),
            ("POST", "/v3/api_keys/", true),
            ("POST", "/v3/api_keys/abc", true),
            ("POST", "/V3/API_KEYS", true),
            ("POST", "/v3/%61pi_keys", true),
            ("POST", "/v3/%2561pi_keys", true),
            ("POST", "//v3//api_keys", true),
            ("POST", "/x/../v3/./api_keys", true),
            ("POST", "/v3%2fapi_keys", true),
            ("POST", "/v3/api_keys;x=1", true),
            ("POST", "/v3\\api_keys", true),
            ("GET", "/v3/api_keys", false),
            ("POST", "/v3/api_keys_more", false),
            ("POST", "/v3/mail/send", false),
            ("POST", "/v3", false),
        ] {
            assert_eq!(
                endpoint.matches(Method::Post, method, path.as_bytes()),
                expected,
                "{method} {path}"
            );
        }
        let any = Endpoint::parse("* /v1/organization/*/keys").expect("an endpoint");
        assert!(any.matches(Method::Delete, "DELETE", b"/v1/organization/o1/keys/k1"));
        assert!(!any.matches(Method::Delete, "DELETE", b"/v1/organization/keys"));
        let get = Endpoint::parse("GET /keys").expect("an endpoint");
        assert!(
            get.matches(Method::Head, "HEAD", b"/keys"),
            "HEAD reads what GET reads"
        );
        for wrong in ["/v3/api_keys", "POST v3", "post /v3"] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }
}
