//! What is sent: a [`Request`] has everything rendered before the run, so that choosing one and
//! sending it is all that is left to do.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use crate::clock::Nanos;
use crate::pattern;
use crate::schedule::Random;
use crate::target::{StatusSet, Url};

/// One of the things that callers of a target do.
pub struct Request {
    /// Its name in reports.
    pub name: String,
    /// How often it is chosen, next to the other requests of the target.
    pub weight: u32,
    /// What it is.
    pub kind: RequestKind,
    /// The forms it takes, equally likely; at least one. Several when it has a size distribution.
    pub forms: Vec<Form>,
    /// True for HEAD, whose responses have no body.
    pub is_head: bool,
    /// The statuses that count as success.
    pub expected_status: StatusSet,
    /// How long after its due time it may be without a complete answer, if not as long as others.
    pub timeout: Option<Nanos>,
    /// How long a connection of a closed loop rests after it.
    pub think: Nanos,
}

/// What a request is, and how its answer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// One request, one answer.
    Http,
    /// The answer is a stream of server-sent events, each of which is timed.
    Sse {
        /// The time between events that the stream announces, if the user told it.
        every: Option<Nanos>,
    },
    /// The connection becomes a WebSocket, on which messages come back.
    WebSocket(Conversation),
}

/// What is said over a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Messages sent one after the other, each after the echo of the last.
    pub messages: u32,
    /// Bytes of each.
    pub message_bytes: usize,
    /// Rest between an echo and the next message.
    pub pause: Nanos,
}

/// A request as it goes out, and what must come back.
pub struct Form {
    /// The head, and the body too if it is small: what leaves in one write.
    pub bytes: Vec<u8>,
    /// Where in `bytes` the last header line has ended, and one more may be put in.
    pub head_end: usize,
    /// The rest of the body.
    pub rest: Rest,
    /// What the answer's body must be.
    pub check: Check,
}

impl Form {
    /// Bytes of the whole body.
    #[cfg(test)]
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes_inline()
            + match &self.rest {
                Rest::None => 0,
                Rest::Bytes(bytes, at) => (bytes.len() - at) as u64,
                Rest::Pattern { from, end } => end - from,
            }
    }

    /// Bytes of the body that leave with the head.
    pub fn body_bytes_inline(&self) -> u64 {
        (self.bytes.len() - self.head_end - 2) as u64
    }
}

/// The part of a body that does not leave with the head.
#[derive(Clone)]
pub enum Rest {
    /// There is none.
    None,
    /// These bytes from this position on.
    Bytes(Arc<[u8]>, usize),
    /// The [`pattern`] from this position on, up to a length.
    Pattern {
        /// Position of the first byte.
        from: u64,
        /// Position after the last byte.
        end: u64,
    },
}

/// What an answer's body must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Anything.
    Nothing,
    /// Exactly these bytes.
    Bytes(Arc<[u8]>),
    /// The [`pattern`], of this length if one is given.
    Pattern {
        /// Bytes in all.
        length: Option<u64>,
    },
    /// A text that holds this one: the digest of what was sent.
    Holds(Arc<str>),
    /// Server-sent events, this many if a number is given.
    Events {
        /// Events in all, the closing `[DONE]` not counted.
        count: Option<u64>,
    },
}

/// What the body of a request is made of.
#[derive(Clone)]
pub enum Body {
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// That much of the [`pattern`].
    Pattern(u64),
}

impl Body {
    /// Its length.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Pattern(length) => *length,
        }
    }

    /// Its SHA-256 in hexadecimal.
    pub fn digest(&self) -> String {
        match self {
            Self::Bytes(bytes) => pattern::digest_of(bytes),
            Self::Pattern(length) => pattern::digest(*length),
        }
    }
}

impl fmt::Debug for Request {
    // Neither the rendered bytes nor anything made of them: keys live there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("name", &self.name)
            .field("weight", &self.weight)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// What a request is made of.
pub struct RequestParts<'a> {
    /// The method.
    pub method: &'a str,
    /// The URL it goes to.
    pub url: &'a Url,
    /// Path and query, if not the URL's.
    pub path: Option<&'a str>,
    /// `Name: value` lines as the user wrote them; they replace the defaults.
    pub headers: &'a [String],
    /// The body; `Content-Length` is added when there is one, or when the method usually has one.
    pub body: &'a Body,
    /// Asks the server to close after its answer.
    pub close: bool,
    /// What must come back.
    pub check: Check,
}

/// Why a request cannot be sent as written.
#[derive(Debug)]
pub struct Unsendable {
    /// What is wrong with it.
    pub fault: Fault,
    /// A sentence with the cure.
    pub text: String,
}

/// Where a mistake lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// In the method.
    Method,
    /// In the header of this name, or in some header.
    Header(&'static str),
}

fn header_fault(name: &'static str, text: impl Into<String>) -> Unsendable {
    Unsendable {
        fault: Fault::Header(name),
        text: text.into(),
    }
}

/// Renders a request. A body that fits is put behind the head, so that both leave in one write.
///
/// # Errors
/// When the method or a header could not be sent as written.
pub fn render(parts: RequestParts<'_>) -> Result<Form, Unsendable> {
    if !is_token(parts.method) {
        return Err(Unsendable {
            fault: Fault::Method,
            text: "-X: the method is not a token such as GET".into(),
        });
    }
    let mut lines: Vec<(&str, &str)> = Vec::new();
    for header in parts.headers {
        lines.push(header_line(header).map_err(|error| header_fault("", format!("-H: {error}")))?);
    }
    let given = |wanted: &str| {
        lines
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(wanted))
    };
    agree(&lines, &parts)?;
    let mut defaults: Vec<(&str, Cow<'_, str>)> = Vec::new();
    if !given("host") {
        defaults.push(("Host", parts.url.authority().into()));
    }
    if !given("user-agent") {
        defaults.push((
            "User-Agent",
            concat!("loadgen/", env!("CARGO_PKG_VERSION")).into(),
        ));
    }
    if !given("accept") {
        defaults.push(("Accept", "*/*".into()));
    }
    let body_bytes = parts.body.bytes();
    let has_framing = given("content-length") || given("transfer-encoding");
    if !has_framing && (body_bytes > 0 || matches!(parts.method, "POST" | "PUT" | "PATCH")) {
        defaults.push(("Content-Length", body_bytes.to_string().into()));
    }
    if parts.close && !given("connection") {
        defaults.push(("Connection", "close".into()));
    }
    let path = parts.path.unwrap_or(&parts.url.path);
    let mut bytes = format!("{} {path} HTTP/1.1\r\n", parts.method).into_bytes();
    let shown = defaults.iter().map(|(name, value)| (*name, value.as_ref()));
    for (name, value) in shown.chain(lines.iter().copied()) {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    let head_end = bytes.len();
    bytes.extend_from_slice(b"\r\n");
    let rest = match parts.body {
        Body::Bytes(body) if body.len() <= BODY_WITH_HEAD_MAX => {
            bytes.extend_from_slice(body);
            Rest::None
        }
        Body::Bytes(body) => Rest::Bytes(body.clone(), 0),
        Body::Pattern(length) if *length <= BODY_WITH_HEAD_MAX as u64 => {
            bytes.extend_from_slice(pattern::piece(0, *length));
            Rest::None
        }
        Body::Pattern(length) => Rest::Pattern {
            from: 0,
            end: *length,
        },
    };
    Ok(Form {
        bytes,
        head_end,
        rest,
        check: parts.check,
    })
}

/// Sees that headers set by hand say of the target and the body what is so. A server would wait for
/// bytes that never come, or take the rest of a body for a request, and the figures would be its
/// errors' and not its own.
fn agree(lines: &[(&str, &str)], parts: &RequestParts<'_>) -> Result<(), Unsendable> {
    let values = |wanted: &str| -> Vec<&str> {
        lines
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| *value)
            .collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let body_bytes = parts.body.bytes();
    match lengths.as_slice() {
        [] => {}
        [length] if *length == body_bytes.to_string() => {}
        _ => {
            return Err(header_fault(
                "content-length",
                format!(
                    "-H Content-Length: the body has {body_bytes} bytes; leave the header out, it is set"
                ),
            ));
        }
    }
    match (codings.as_slice(), parts.body) {
        ([], _) => {}
        ([coding], Body::Bytes(body))
            if coding.eq_ignore_ascii_case("chunked") && lengths.is_empty() && is_chunked(body) => {
        }
        _ => {
            return Err(header_fault(
                "transfer-encoding",
                "-H Transfer-Encoding: bodies are sent as given, and this one is not in chunks; \
                 leave the header out, or write 'chunked' and a body in chunks",
            ));
        }
    }
    let url = parts.url;
    let authority = url.authority();
    let full = match url.port_shown {
        Some(_) => authority.clone(),
        None => format!("{authority}:{}", url.port),
    };
    match values("host").as_slice() {
        [] => Ok(()),
        [host]
            if [&authority, &full]
                .iter()
                .any(|own| own.eq_ignore_ascii_case(host)) =>
        {
            Ok(())
        }
        _ => Err(header_fault(
            "host",
            format!(
                "-H Host: the URL says {authority}; write the host into the URL, and --connect ADDR:PORT \
                 to go elsewhere"
            ),
        )),
    }
}

/// Whether the bytes are a whole body in chunks (RFC 9112, 7.1), without extensions or trailers.
fn is_chunked(mut body: &[u8]) -> bool {
    loop {
        let Some(end) = body.windows(2).position(|two| two == b"\r\n") else {
            return false;
        };
        let size = std::str::from_utf8(&body[..end])
            .ok()
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let Some(size) = size else { return false };
        let Some((chunk, rest)) = body[end + 2..].split_at_checked(size) else {
            return false;
        };
        match rest.strip_prefix(b"\r\n") {
            Some(rest) if chunk.is_empty() => return rest.is_empty(),
            Some(rest) => body = rest,
            None => return false,
        }
    }
}

/// Splits `Name: value`.
///
/// # Errors
/// When it could not be sent as written. The value is never quoted.
pub fn header_line(header: &str) -> Result<(&str, &str), String> {
    let (name, value) = header
        .split_once(':')
        .ok_or("a header is written as 'Name: value'")?;
    let value = value.trim();
    if !is_token(name) || value.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f) {
        return Err(format!(
            "`{}` has a name that is no token or a control byte in its value",
            name.trim()
        ));
    }
    Ok((name, value))
}

/// RFC 9110, 5.6.2.
pub fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b))
}

/// The bytes of one request on their way out.
pub struct Outgoing<'a> {
    piece: &'a [u8],
    rest: Rest,
    /// Counts what of the rest is on its way.
    rest_sent: &'a Cell<u64>,
}

impl<'a> Outgoing<'a> {
    /// `bytes` first, then `rest`, of which what is sent is added to `rest_sent`.
    pub fn new(bytes: &'a [u8], rest: &Rest, rest_sent: &'a Cell<u64>) -> Self {
        Self {
            piece: bytes,
            rest: rest.clone(),
            rest_sent,
        }
    }

    /// What goes out next; empty when all is sent.
    pub fn piece(&self) -> &[u8] {
        if !self.piece.is_empty() {
            return self.piece;
        }
        match &self.rest {
            Rest::None => &[],
            Rest::Bytes(bytes, at) => &bytes[*at..],
            Rest::Pattern { from, end } => pattern::piece(*from, end - from),
        }
    }

    /// The first `count` bytes of the piece are on their way.
    pub fn advance(&mut self, count: usize) {
        if !self.piece.is_empty() {
            self.piece = &self.piece[count..];
            return;
        }
        self.rest_sent.set(self.rest_sent.get() + count as u64);
        match &mut self.rest {
            Rest::None => {}
            Rest::Bytes(_, at) => *at += count,
            Rest::Pattern { from, .. } => *from += count as u64,
        }
    }
}

/// Chooses what is sent next: the n-th choice depends on the seed and the weights alone.
#[derive(Clone, Debug)]
pub struct Chooser {
    random: Random,
    /// Of each request: the weights up to it, and the number of its forms.
    requests: Vec<(u64, usize)>,
}

/// A chosen request: indices into a target's requests and that one's forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Which request.
    pub request: u32,
    /// In which form.
    pub form: u32,
}

impl Chooser {
    /// A chooser among `requests`.
    pub fn new(requests: &[Request], seed: u64) -> Self {
        let mut sum = 0;
        Self {
            // Apart from the arrivals, which have the same seed.
            random: Random::new(seed ^ 0x6368_6f6f_7365_7221),
            requests: requests
                .iter()
                .map(|request| {
                    sum += u64::from(request.weight);
                    (sum, request.forms.len())
                })
                .collect(),
        }
    }

    /// The next choice.
    #[inline]
    pub fn choose(&mut self) -> Choice {
        match self.requests.as_slice() {
            [(_, 1)] => Choice::default(),
            _ => self.draw(),
        }
    }

    fn draw(&mut self) -> Choice {
        let all = self.requests.last().map_or(1, |(sum, _)| *sum);
        let drawn = self.random.below(all as usize) as u64;
        let request = self
            .requests
            .partition_point(|&(sum, _)| sum <= drawn)
            .min(self.requests.len() - 1);
        Choice {
            request: request as u32,
            form: self.random.below(self.requests[request].1) as u32,
        }
    }
}

/// Bodies up to this size are rendered behind the head; larger ones are sent from where they are.
const BODY_WITH_HEAD_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn form(method: &str, headers: &[&str], body: &Body, close: bool) -> Result<Form, String> {
        let headers: Vec<String> = headers.iter().map(|&h| h.to_owned()).collect();
        let url = Url::parse("https://api.example.com/v1?x=1").unwrap();
        render(RequestParts {
            method,
            url: &url,
            path: None,
            headers: &headers,
            body,
            close,
            check: Check::Nothing,
        })
        .map_err(|error| error.text)
    }

    fn rendered(
        method: &str,
        headers: &[&str],
        body: &[u8],
        close: bool,
    ) -> Result<String, String> {
        form(method, headers, &Body::Bytes(body.into()), close)
            .map(|form| String::from_utf8(form.bytes).unwrap())
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
                &[
                    "accept: text/plain",
                    "HOST:api.example.com:443",
                    "User-Agent: me"
                ],
                b"hi",
                true
            )
            .unwrap(),
            "POST /v1?x=1 HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\naccept: text/plain\r\nHOST: api.example.com:443\r\nUser-Agent: me\r\n\r\nhi"
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
    fn headers_that_contradict_body_or_target_are_refused() {
        for (headers, body, word) in [
            (&["Content-Length: 3"][..], "hi", "2 bytes"),
            (&["content-length: +2"], "hi", "2 bytes"),
            (
                &["Content-Length: 2", "Content-Length: 2"],
                "hi",
                "leave the header out",
            ),
            (&["Content-Length: 1"], "", "0 bytes"),
            (&["Transfer-Encoding: chunked"], "hi", "Transfer-Encoding"),
            (
                &["Transfer-Encoding: chunked"],
                "5\r\nhell\r\n0\r\n\r\n",
                "in chunks",
            ),
            (&["Transfer-Encoding: chunked"], "0\r\n\r\nx", "in chunks"),
            (
                &["Transfer-Encoding: gzip, chunked"],
                "0\r\n\r\n",
                "in chunks",
            ),
            (
                &["Transfer-Encoding: chunked", "Content-Length: 5"],
                "0\r\n\r\n",
                "in chunks",
            ),
            (&["Host: other"], "", "--connect"),
            (&["host: api.example.com:80"], "", "--connect"),
            (
                &["Host: api.example.com", "Host: api.example.com"],
                "",
                "api.example.com",
            ),
        ] {
            let error = rendered("POST", headers, body.as_bytes(), false).unwrap_err();
            assert!(error.contains(word), "{headers:?}: {error}");
        }
        for (headers, body) in [
            (&["Content-Length: 2", "Host: API.example.com"][..], "hi"),
            (&["Transfer-Encoding: Chunked"], "2\r\nhi\r\n0\r\n\r\n"),
            (&["Transfer-Encoding: chunked"], "0\r\n\r\n"),
        ] {
            let text = rendered("POST", headers, body.as_bytes(), false).unwrap();
            assert!(text.contains(headers[0]) && text.ends_with(body), "{text}");
            assert_eq!(
                text.matches("ontent-Length").count() + text.matches("ransfer").count(),
                1
            );
        }
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
    fn bodies_leave_whole_in_whatever_steps() {
        let bytes: Arc<[u8]> = (0..100_000u32).map(|n| n as u8).collect();
        for (body, want) in [
            (Body::Bytes(bytes.clone()), bytes.to_vec()),
            (Body::Bytes(bytes[..9].into()), bytes[..9].to_vec()),
            (
                Body::Pattern(150_000),
                [
                    pattern::piece(0, 65_521),
                    pattern::piece(0, 65_521),
                    pattern::piece(0, 150_000 - 2 * 65_521),
                ]
                .concat(),
            ),
            (Body::Pattern(10), pattern::piece(0, 10).to_vec()),
        ] {
            let form = form("PUT", &[], &body, false).unwrap();
            assert_eq!(form.body_bytes(), want.len() as u64);
            for step in [1_000, 7, usize::MAX] {
                let rest_sent = Cell::new(0);
                let mut outgoing = Outgoing::new(&form.bytes, &form.rest, &rest_sent);
                let mut sent = Vec::new();
                while !outgoing.piece().is_empty() {
                    let n = outgoing.piece().len().min(step);
                    sent.extend_from_slice(&outgoing.piece()[..n]);
                    outgoing.advance(n);
                }
                assert_eq!(
                    form.body_bytes_inline() + rest_sent.get(),
                    form.body_bytes()
                );
                assert!(sent[form.head_end..] == [&b"\r\n"[..], &want].concat());
            }
        }
    }

    fn request(weight: u32, forms: usize) -> Request {
        Request {
            name: String::new(),
            weight,
            kind: RequestKind::Http,
            forms: (0..forms)
                .map(|_| form("GET", &[], &Body::Pattern(0), false).unwrap())
                .collect(),
            is_head: false,
            expected_status: StatusSet::success(),
            timeout: None,
            think: 0,
        }
    }

    #[test]
    fn requests_are_chosen_by_weight_and_the_same_for_a_seed() {
        let requests = [request(1, 1), request(6, 2), request(3, 1)];
        let draw = |seed| -> Vec<Choice> {
            let mut chooser = Chooser::new(&requests, seed);
            (0..10_000).map(|_| chooser.choose()).collect()
        };
        let all = draw(1);
        assert_eq!(all, draw(1));
        assert_ne!(all, draw(2));
        for (request, form, share) in [(0, 0, 0.1), (1, 0, 0.3), (1, 1, 0.3), (2, 0, 0.3)] {
            let seen = all
                .iter()
                .filter(|choice| **choice == Choice { request, form })
                .count() as f64
                / all.len() as f64;
            assert!((seen - share).abs() < 0.02, "{request}/{form}: {seen}");
        }
    }
}
