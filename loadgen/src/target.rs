//! Where the load goes: a [`Target`] is ready to be driven, and its URL and statuses are parsed.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::request::Request;

/// One server under load, ready to be driven: nothing about it is looked up during the run.
pub struct Target {
    /// The name by which reports and gates call it.
    pub name: String,
    /// The URL as it may be shown: without user, query and fragment.
    pub url: String,
    /// Where connections go.
    pub address: SocketAddr,
    /// How it is spoken to over TLS; none for `http`.
    pub tls: Option<TlsTarget>,
    /// What is sent; at least one.
    pub requests: Vec<Request>,
    /// Header lines of which each connection adds one to its requests, in turn: who calls.
    pub callers: Vec<CallerLine>,
}

/// TLS settings of a target.
pub struct TlsTarget {
    /// The name to verify.
    pub name: ServerName<'static>,
    /// One per client certificate, of which each connection uses one, in turn; at least one.
    pub configs: Vec<Arc<ClientConfig>>,
}

impl Target {
    /// The TLS settings of connection `index`.
    pub fn tls_of(&self, index: usize) -> Option<(&Arc<ClientConfig>, &ServerName<'static>)> {
        let tls = self.tls.as_ref()?;
        Some((&tls.configs[index % tls.configs.len()], &tls.name))
    }

    /// The header line that connection `index` adds, if there are any.
    pub fn caller_of(&self, index: usize) -> Option<&CallerLine> {
        match self.callers.as_slice() {
            [] => None,
            lines => Some(&lines[index % lines.len()]),
        }
    }
}

/// A header line that tells who calls, `\r\n` included. It holds a key and is never shown.
pub struct CallerLine(pub Vec<u8>);

impl fmt::Debug for CallerLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerLine(...)")
    }
}

/// An absolute URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// True for `https`.
    pub tls: bool,
    /// The host without brackets.
    pub host: String,
    /// The port, the scheme's default included.
    pub port: u16,
    /// The port if it was written and is not the scheme's default.
    pub port_shown: Option<u16>,
    /// Path and query; at least `/`.
    pub path: String,
}

impl Url {
    /// Parses `http://` and `https://` URLs.
    ///
    /// # Errors
    /// A sentence that says what is wrong; it does not quote the URL, whose query may hold a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (tls, rest) = if let Some(rest) = text.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            (false, rest)
        } else {
            return Err("a target is NAME=https://HOST[:PORT]/PATH, or with http://".into());
        };
        let rest = rest.split('#').next().unwrap_or("");
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(
                "credentials in the URL are not supported; use -H 'Authorization: ...'".into(),
            );
        }
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (host, after) = rest
                .split_once(']')
                .ok_or("an IPv6 address in a URL needs a closing bracket")?;
            (host, after.strip_prefix(':'))
        } else {
            match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        if host.is_empty() {
            return Err("the URL has no host".into());
        }
        let default = if tls { 443 } else { 80 };
        let port = match port {
            Some(port) => port
                .parse()
                .map_err(|_| "the URL's port is not a number from 0 to 65535")?,
            None => default,
        };
        let path = match path.chars().next() {
            Some('/') => path.to_owned(),
            Some(_) => format!("/{path}"),
            None => "/".to_owned(),
        };
        if path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(
                "the URL's path contains a space or a control byte; percent-encode it".into(),
            );
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            port_shown: (port != default).then_some(port),
            path,
        })
    }

    /// The value of the Host header.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match self.port_shown {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }
}

/// A set of statuses, such as `200,204,3xx`.
#[derive(Clone, PartialEq, Eq)]
pub struct StatusSet {
    /// Inclusive ranges.
    ranges: Vec<(u16, u16)>,
}

impl StatusSet {
    /// Success and redirection, the default.
    pub fn success() -> Self {
        Self {
            ranges: vec![(200, 399)],
        }
    }

    /// Success only: the default where a redirection is no answer.
    pub fn answered() -> Self {
        Self {
            ranges: vec![(200, 299)],
        }
    }

    /// One status.
    pub fn only(status: u16) -> Self {
        Self {
            ranges: vec![(status, status)],
        }
    }

    /// Parses a comma-separated list of codes (`204`), classes (`2xx`) and ranges (`200-299`).
    ///
    /// # Errors
    /// A sentence with an example.
    pub fn parse(text: &str) -> Result<Self, String> {
        let range = |part: &str| -> Option<(u16, u16)> {
            if let Some(class) = part.strip_suffix("xx") {
                let class: u16 = class.parse().ok().filter(|class| (1..=9).contains(class))?;
                return Some((class * 100, class * 100 + 99));
            }
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let (low, high) = (low.parse().ok()?, high.parse().ok()?);
            (low <= high && (100..=999).contains(&low) && high <= 999).then_some((low, high))
        };
        let ranges = text
            .split(',')
            .map(|part| range(part.trim()))
            .collect::<Option<Vec<_>>>()
            .ok_or("--expect-status takes codes, classes and ranges: 200,204,3xx or 200-299")?;
        Ok(Self { ranges })
    }

    /// Whether `status` is in the set.
    #[inline]
    pub fn contains(&self, status: u16) -> bool {
        self.ranges
            .iter()
            .any(|&(low, high)| (low..=high).contains(&status))
    }
}

impl fmt::Debug for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.ranges).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, authority, port, path, tls) in [
            ("https://a.example", "a.example", 443, "/", true),
            (
                "https://a.example:443/x?y=1#z",
                "a.example",
                443,
                "/x?y=1",
                true,
            ),
            (
                "https://a.example:8443?q",
                "a.example:8443",
                8443,
                "/?q",
                true,
            ),
            ("http://127.0.0.1:80/b", "127.0.0.1", 80, "/b", false),
            ("http://[::1]:8080/", "[::1]:8080", 8080, "/", false),
            ("https://[2001:db8::1]", "[2001:db8::1]", 443, "/", true),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!(url.authority(), authority, "{text}");
            assert_eq!(
                (url.port, url.path.as_str(), url.tls),
                (port, path, tls),
                "{text}"
            );
        }
        for text in [
            "ftp://a",
            "a.example",
            "https://",
            "https://u:p@h/",
            "https://h:x/",
            "https://[::1/",
            "http://h/a b",
        ] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn status_sets() {
        let set = StatusSet::parse("200, 204,3xx,500-503").unwrap();
        for (status, inside) in [
            (200, true),
            (201, false),
            (204, true),
            (399, true),
            (400, false),
            (502, true),
            (504, false),
        ] {
            assert_eq!(set.contains(status), inside, "{status}");
        }
        for text in ["", "2x", "20", "299-200", "xx", "0xx", "abc"] {
            assert!(StatusSet::parse(text).is_err(), "{text}");
        }
    }
}
