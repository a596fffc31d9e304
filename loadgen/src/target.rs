//! Where the load goes and what is sent there: a [`Target`] has its request rendered once.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

/// One server under load, ready to be driven: nothing about it is looked up during the run.
pub struct Target {
    /// The name by which reports and gates call it.
    pub name: String,
    /// The URL as given.
    pub url: String,
    /// Where connections go.
    pub address: SocketAddr,
    /// TLS settings and the name to verify; none for `http`.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// The whole request, as it goes out.
    pub request: Arc<[u8]>,
    /// True for HEAD, whose responses have no body.
    pub is_head: bool,
    /// The statuses that count as success.
    pub expected_status: StatusSet,
    /// The body that counts as success.
    pub expected_body: Option<Arc<[u8]>>,
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

/// What the request is made of.
pub struct RequestParts<'a> {
    /// The method.
    pub method: &'a str,
    /// The URL it goes to.
    pub url: &'a Url,
    /// `Name: value` lines as the user wrote them; they replace the defaults.
    pub headers: &'a [String],
    /// The body; `Content-Length` is added when there is one, or when the method usually has one.
    pub body: &'a [u8],
    /// Asks the server to close after its answer.
    pub close: bool,
}

/// Renders the request, head and body in one piece, so that it leaves in one write.
///
/// # Errors
/// When the method or a header could not be sent as written.
pub fn render(parts: &RequestParts<'_>) -> Result<Arc<[u8]>, String> {
    let token = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b))
    };
    if !token(parts.method) {
        return Err("-X: the method is not a token such as GET".into());
    }
    let mut lines: Vec<(&str, String)> = Vec::new();
    for header in parts.headers {
        let (name, value) = header
            .split_once(':')
            .ok_or("-H: a header is written as 'Name: value'")?;
        let value = value.trim();
        if !token(name) || value.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f) {
            return Err(format!(
                "-H: `{}` has a name that is no token or a control byte in its value",
                name.trim()
            ));
        }
        lines.push((name, value.to_owned()));
    }
    let given = |wanted: &str| {
        lines
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(wanted))
    };
    let mut defaults = Vec::new();
    if !given("host") {
        defaults.push(("Host", parts.url.authority()));
    }
    if !given("user-agent") {
        defaults.push((
            "User-Agent",
            format!("loadgen/{}", env!("CARGO_PKG_VERSION")),
        ));
    }
    if !given("accept") {
        defaults.push(("Accept", "*/*".into()));
    }
    let has_framing = given("content-length") || given("transfer-encoding");
    if !has_framing && (!parts.body.is_empty() || matches!(parts.method, "POST" | "PUT" | "PATCH"))
    {
        defaults.push(("Content-Length", parts.body.len().to_string()));
    }
    if parts.close && !given("connection") {
        defaults.push(("Connection", "close".into()));
    }
    let mut request = format!("{} {} HTTP/1.1\r\n", parts.method, parts.url.path).into_bytes();
    for (name, value) in defaults.iter().chain(&lines) {
        request.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(parts.body);
    Ok(request.into())
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

    fn rendered(
        method: &str,
        headers: &[&str],
        body: &[u8],
        close: bool,
    ) -> Result<String, String> {
        let headers: Vec<String> = headers.iter().map(|&h| h.to_owned()).collect();
        let url = Url::parse("https://api.example.com/v1?x=1").unwrap();
        let parts = RequestParts {
            method,
            url: &url,
            headers: &headers,
            body,
            close,
        };
        render(&parts).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn requests() {
        let agent = concat!("User-Agent: loadgen/", env!("CARGO_PKG_VERSION"), "\r\n");
        assert_eq!(
            rendered("GET", &[], b"", false).unwrap(),
            format!("GET /v1?x=1 HTTP/1.1\r\nHost: api.example.com\r\n{agent}Accept: */*\r\n\r\n")
        );
        assert_eq!(
            rendered(
                "POST",
                &["accept: text/plain", "HOST:b", "User-Agent: me"],
                b"hi",
                true
            )
            .unwrap(),
            "POST /v1?x=1 HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\naccept: text/plain\r\nHOST: b\r\nUser-Agent: me\r\n\r\nhi"
        );
        assert!(
            rendered("POST", &[], b"", false)
                .unwrap()
                .contains("Content-Length: 0\r\n")
        );
        assert!(rendered("G T", &[], b"", false).is_err());
        assert!(rendered("GET", &["no colon"], b"", false).is_err());
        assert!(rendered("GET", &["A: b\r\nC: d"], b"", false).is_err());
    }

    #[test]
    fn refusing_a_header_does_not_show_its_value() {
        let error =
            rendered("GET", &["Authorization: Bearer hunter2\u{7}"], b"", false).unwrap_err();
        assert!(
            error.contains("Authorization") && !error.contains("hunter2"),
            "{error}"
        );
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
