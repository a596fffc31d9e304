//! Reads one HTTP/1.1 response, strictly, from whatever pieces the network delivers.
//!
//! A judge that forgives sees no mistakes: bare line feeds, folded headers, two different
//! lengths, a length beside chunked and anything else that RFC 9112 forbids a server are
//! [`Malformed`]. It does no I/O and reads no clock; bodies are held against a [`Check`] as they
//! pass, and not kept.

use memchr::memmem;

use crate::pattern;
use crate::request::Check;
use crate::sse::EventReader;

/// Reads responses one after the other on a connection; [`ResponseReader::begin`] starts each.
#[derive(Debug)]
pub struct ResponseReader {
    phase: Phase,
    /// The head or the chunk line so far, when it did not arrive in one piece. Empty otherwise.
    partial: Vec<u8>,
    to_head: bool,
    status: u16,
    keep_alive: bool,
    body_bytes: u64,
    check: Check,
    body_matches: bool,
    /// The body so far, where the check looks for something in it, up to a bound.
    kept: Vec<u8>,
    events: EventReader,
    /// The `Sec-WebSocket-Accept` that turns the connection into a WebSocket, if that was asked.
    upgrade: Option<Vec<u8>>,
}

/// Where in a response we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Head,
    Length { remaining: u64 },
    ChunkSize,
    ChunkData { remaining: u64 },
    ChunkEnd,
    Trailers,
    UntilClose,
    Done,
}

/// The server broke HTTP/1.1's framing. The text names the rule and quotes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// What a 101 says about the protocol that follows.
#[derive(Clone, Copy, Debug, Default)]
struct Upgrade {
    connection: bool,
    websocket: bool,
    accepted: bool,
}

/// What an end of the stream means at this point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// The body was to end with the connection, and has.
    Complete,
    /// Nothing of the response had arrived.
    BeforeResponse,
    /// The response broke off.
    Truncated,
}

impl ResponseReader {
    /// A reader that holds each body against `check`.
    pub fn new(check: Check) -> Self {
        Self {
            phase: Phase::Done,
            partial: Vec::new(),
            to_head: false,
            status: 0,
            keep_alive: true,
            body_bytes: 0,
            check,
            body_matches: true,
            kept: Vec::new(),
            events: EventReader::default(),
            upgrade: None,
        }
    }

    /// Holds the bodies of the responses to come against another check.
    pub fn set_check(&mut self, check: &Check) {
        self.check.clone_from(check);
    }

    /// Expects a new response. `to_head` says that the request was HEAD: no body will follow.
    pub fn begin(&mut self, to_head: bool) {
        self.phase = Phase::Head;
        self.partial.clear();
        self.to_head = to_head;
        self.status = 0;
        self.keep_alive = true;
        self.body_bytes = 0;
        self.body_matches = true;
        self.upgrade = None;
        match self.check {
            Check::Holds(_) => self.kept.clear(),
            Check::Events { .. } => self.events.clear(),
            _ => {}
        }
    }

    /// Expects the answer to a request to become a WebSocket. 101 with this
    /// `Sec-WebSocket-Accept` ends the response, and with it HTTP; any other status is an answer.
    pub fn begin_upgrade(&mut self, accept: Vec<u8>) {
        self.begin(false);
        self.upgrade = Some(accept);
    }

    /// Takes bytes until the response is complete and returns how many it took.
    ///
    /// # Errors
    /// [`Malformed`] on the first byte that breaks the framing; the connection is then useless.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && self.phase != Phase::Done {
            let rest = &bytes[at..];
            at += match self.phase {
                Phase::Head => self.head(rest)?,
                Phase::Length { remaining } => {
                    let n = clamp(remaining, rest.len());
                    self.body(&rest[..n]);
                    let remaining = remaining - n as u64;
                    self.phase = match remaining {
                        0 => Phase::Done,
                        _ => Phase::Length { remaining },
                    };
                    n
                }
                Phase::ChunkSize => self.chunk_size(rest)?,
                Phase::ChunkData { remaining } => {
                    let n = clamp(remaining, rest.len());
                    self.body(&rest[..n]);
                    let remaining = remaining - n as u64;
                    self.phase = match remaining {
                        0 => Phase::ChunkEnd,
                        _ => Phase::ChunkData { remaining },
                    };
                    n
                }
                Phase::ChunkEnd => {
                    let (used, line) = self.line(rest)?;
                    if let Some(line) = line {
                        if !line.is_empty() {
                            return Err(Malformed("chunk data is longer than its size"));
                        }
                        self.phase = Phase::ChunkSize;
                    }
                    used
                }
                Phase::Trailers => {
                    let (used, line) = self.line(rest)?;
                    if let Some(line) = line {
                        if line.is_empty() {
                            self.phase = Phase::Done;
                        } else {
                            field(&line)?;
                        }
                    }
                    used
                }
                Phase::UntilClose => {
                    self.body(rest);
                    rest.len()
                }
                Phase::Done => 0,
            };
        }
        Ok(at)
    }

    /// Judges the end of the stream, and completes a response that only the end delimits.
    pub fn end(&mut self) -> AtEnd {
        match self.phase {
            Phase::UntilClose => {
                self.phase = Phase::Done;
                AtEnd::Complete
            }
            Phase::Head if self.partial.is_empty() => AtEnd::BeforeResponse,
            _ => AtEnd::Truncated,
        }
    }

    /// True between responses.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// The status code of the final response; 0 before it arrived.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the connection may carry another request.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Body bytes so far, framing removed.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Whether the complete body is the expected one.
    pub fn body_matches(&self) -> bool {
        if self.to_head {
            // A HEAD has no body to compare.
            return true;
        }
        match &self.check {
            Check::Nothing => true,
            Check::Bytes(expected) => self.body_matches && self.body_bytes == expected.len() as u64,
            Check::Pattern { length } => {
                self.body_matches && length.is_none_or(|length| length == self.body_bytes)
            }
            Check::Holds(text) => memmem::find(&self.kept, text.as_bytes()).is_some(),
            Check::Events { count } => count.is_none_or(|count| count == self.events.count()),
        }
    }

    /// The events of the stream that arrived since the last call.
    pub fn take_events(&mut self) -> std::vec::Drain<'_, crate::sse::Event> {
        self.events.take()
    }

    #[inline]
    fn body(&mut self, bytes: &[u8]) {
        if !matches!(self.check, Check::Nothing) {
            self.check_body(bytes);
        }
        self.body_bytes += bytes.len() as u64;
    }

    fn check_body(&mut self, bytes: &[u8]) {
        match &self.check {
            Check::Nothing => {}
            Check::Bytes(expected) => {
                let from = usize::try_from(self.body_bytes).unwrap_or(usize::MAX);
                self.body_matches &= expected
                    .get(from..from.saturating_add(bytes.len()))
                    .is_some_and(|part| part == bytes);
            }
            Check::Pattern { .. } => self.body_matches &= pattern::matches(self.body_bytes, bytes),
            Check::Holds(_) => {
                let room = ANSWER_BYTES_MAX - self.kept.len();
                self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Check::Events { .. } => self.events.feed(bytes),
        }
    }

    /// Consumes up to a whole head and, with it, chooses the phase that follows.
    fn head(&mut self, rest: &[u8]) -> Result<usize, Malformed> {
        if self.partial.is_empty()
            && let Some(end) = memmem::find(rest, b"\r\n\r\n")
        {
            self.parse_head(&rest[..end])?;
            return Ok(end + 4);
        }
        // In pieces. The blank line may straddle two of them: search from three bytes before the
        // seam.
        let seam = self.partial.len();
        let from = seam.saturating_sub(3);
        let taken = rest.len().min(HEAD_BYTES_MAX - seam);
        self.partial.extend_from_slice(&rest[..taken]);
        if let Some(end) = memmem::find(&self.partial[from..], b"\r\n\r\n") {
            let end = from + end;
            let head = std::mem::take(&mut self.partial);
            self.parse_head(&head[..end])?;
            return Ok(end + 4 - seam);
        }
        // A server that ends lines wrongly never sends what we search for: tell it from a slow one.
        let bare = memchr::memchr_iter(b'\n', &self.partial[seam..])
            .map(|at| seam + at)
            .any(|at| at == 0 || self.partial[at - 1] != b'\r');
        if bare {
            return Err(Malformed("a line that ends in a bare line feed"));
        }
        if self.partial.len() == HEAD_BYTES_MAX {
            return Err(Malformed("the response head exceeds 64 KiB"));
        }
        Ok(taken)
    }

    fn parse_head(&mut self, head: &[u8]) -> Result<(), Malformed> {
        let mut lines = Lines { rest: Some(head) };
        let status_line = lines.next().unwrap_or(b"");
        let (version_minor, status) = parse_status_line(status_line)?;

        let mut length: Option<u64> = None;
        let mut chunked = false;
        let mut close = version_minor == 0;
        let mut upgrade = Upgrade::default();
        for line in lines {
            let (name, value) = field(line)?;
            // Only three names matter. The first letter and the length tell nearly all others apart.
            match (name.len(), name[0] | 0x20) {
                (14, b'c') if name.eq_ignore_ascii_case(b"content-length") => {
                    let value = parse_decimal(value)?;
                    // RFC 9112, 6.3: differing lengths are unrecoverable. Equal ones a recipient
                    // may forgive; a judge counts them as what they are, the same length twice.
                    if length.is_some_and(|earlier| earlier != value) {
                        return Err(Malformed("two different Content-Length values"));
                    }
                    length = Some(value);
                }
                (17, b't') if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                    if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Malformed("a Transfer-Encoding other than one `chunked`"));
                    }
                    chunked = true;
                }
                (10, b'c') if name.eq_ignore_ascii_case(b"connection") => {
                    for token in value.split(|&byte| byte == b',') {
                        let token = token.trim_ascii();
                        if token.eq_ignore_ascii_case(b"close") {
                            close = true;
                        } else if token.eq_ignore_ascii_case(b"keep-alive") && version_minor == 0 {
                            close = false;
                        }
                        upgrade.connection |= token.eq_ignore_ascii_case(b"upgrade");
                    }
                }
                (7, b'u') if name.eq_ignore_ascii_case(b"upgrade") => {
                    upgrade.websocket = value.eq_ignore_ascii_case(b"websocket");
                }
                (20, b's') if name.eq_ignore_ascii_case(b"sec-websocket-accept") => {
                    upgrade.accepted = self.upgrade.as_deref() == Some(value);
                }
                _ => {}
            }
        }

        if (100..200).contains(&status) {
            if status == 101 {
                return self.switch_protocols(upgrade);
            }
            // An interim response: the final one follows.
            self.phase = Phase::Head;
            return Ok(());
        }
        self.status = status;
        // RFC 9112, 6.3, in its order.
        let bodiless = self.to_head || status == 204 || status == 304;
        self.phase = if chunked {
            if length.is_some() {
                return Err(Malformed("Content-Length beside Transfer-Encoding"));
            }
            if version_minor == 0 {
                return Err(Malformed("Transfer-Encoding in HTTP/1.0"));
            }
            if bodiless {
                Phase::Done
            } else {
                Phase::ChunkSize
            }
        } else if bodiless {
            Phase::Done
        } else {
            match length {
                Some(0) => Phase::Done,
                Some(remaining) => Phase::Length { remaining },
                None => {
                    close = true;
                    Phase::UntilClose
                }
            }
        };
        self.keep_alive = !close;
        Ok(())
    }

    /// RFC 6455, 4.1: what makes a 101 the beginning of a WebSocket.
    fn switch_protocols(&mut self, upgrade: Upgrade) -> Result<(), Malformed> {
        if self.upgrade.is_none() {
            return Err(Malformed("101 without a request to upgrade"));
        }
        if !upgrade.connection || !upgrade.websocket {
            return Err(Malformed(
                "101 without `Connection: Upgrade` and `Upgrade: websocket`",
            ));
        }
        if !upgrade.accepted {
            return Err(Malformed(
                "101 with a wrong Sec-WebSocket-Accept, or without one",
            ));
        }
        self.status = 101;
        self.keep_alive = false;
        self.phase = Phase::Done;
        Ok(())
    }

    fn chunk_size(&mut self, rest: &[u8]) -> Result<usize, Malformed> {
        let (used, line) = self.line(rest)?;
        if let Some(line) = line {
            let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
            // Sixteen digits fill a u64; more could only overflow it.
            if digits == 0 || digits > 16 {
                return Err(Malformed(
                    "a chunk size that is no hexadecimal number of 64 bits",
                ));
            }
            let after = &line[digits..];
            let extension = after.trim_ascii_start();
            if !(extension.is_empty() && after.is_empty() || extension.starts_with(b";")) {
                return Err(Malformed("bytes after a chunk size that are no extension"));
            }
            let remaining = line[..digits].iter().fold(0u64, |size, &digit| {
                size << 4 | u64::from((digit as char).to_digit(16).unwrap_or(0))
            });
            self.phase = match remaining {
                0 => Phase::Trailers,
                _ => Phase::ChunkData { remaining },
            };
        }
        Ok(used)
    }

    /// Takes one line that ends in CRLF, which may come in pieces.
    fn line(&mut self, rest: &[u8]) -> Result<(usize, Option<Vec<u8>>), Malformed> {
        let (used, complete) = match memchr::memchr(b'\n', rest) {
            Some(at) => (at + 1, true),
            None => (rest.len(), false),
        };
        if self.partial.len() + used > LINE_BYTES_MAX {
            return Err(Malformed("a chunk or trailer line exceeds 8 KiB"));
        }
        self.partial.extend_from_slice(&rest[..used]);
        if !complete {
            return Ok((used, None));
        }
        let mut line = std::mem::take(&mut self.partial);
        if !line.ends_with(b"\r\n") {
            return Err(Malformed("a line that ends in a bare line feed"));
        }
        line.truncate(line.len() - 2);
        if line.contains(&b'\r') {
            return Err(Malformed("a bare carriage return"));
        }
        Ok((used, Some(line)))
    }
}

/// A head of more bytes is [`Malformed`].
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Of a body in which something is looked for, bytes that are kept; the rest is not searched.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// A chunk-size line (with its extensions) or a trailer of more bytes is [`Malformed`].
const LINE_BYTES_MAX: usize = 8 * 1024;

fn clamp(remaining: u64, available: usize) -> usize {
    usize::try_from(remaining).map_or(available, |remaining| remaining.min(available))
}

/// Splits at CRLF.
struct Lines<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        // Lines are short: the line feed is found first, and its CR is checked by `field`.
        match memchr::memchr(b'\n', rest) {
            Some(at) if at > 0 && rest[at - 1] == b'\r' => {
                self.rest = Some(&rest[at + 1..]);
                Some(&rest[..at - 1])
            }
            _ => {
                self.rest = None;
                Some(rest)
            }
        }
    }
}

fn parse_status_line(line: &[u8]) -> Result<(u8, u16), Malformed> {
    let [
        b'H',
        b'T',
        b'T',
        b'P',
        b'/',
        b'1',
        b'.',
        minor @ (b'0' | b'1'),
        b' ',
        a,
        b,
        c,
        rest @ ..,
    ] = line
    else {
        return Err(Malformed("a status line that is not `HTTP/1.x nnn reason`"));
    };
    let digits = [*a, *b, *c];
    if !digits.iter().all(u8::is_ascii_digit) || digits[0] == b'0' {
        return Err(Malformed("a status code that is not three digits from 100"));
    }
    // The reason may be empty, and many servers leave its space out too.
    if !rest.is_empty() && rest[0] != b' ' {
        return Err(Malformed("a status code that is not three digits from 100"));
    }
    if rest.iter().any(|&byte| is_control(byte)) {
        return Err(Malformed("a control byte in the status line"));
    }
    let status = digits
        .iter()
        .fold(0u16, |status, digit| status * 10 + u16::from(digit - b'0'));
    Ok((minor - b'0', status))
}

/// Splits a header line into name and trimmed value.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let colon = memchr::memchr(b':', line).ok_or(Malformed("a header line without a colon"))?;
    let name = &line[..colon];
    // RFC 9112, 5.1 and 5.2: no space before the colon, and no folded lines. Both begin or end the
    // name with a byte that is no token character.
    if name.is_empty() || !name.iter().all(|&byte| TOKEN[usize::from(byte)]) {
        return Err(Malformed(
            "a header name that is no token, or a folded line",
        ));
    }
    let value = &line[colon + 1..];
    if value.iter().any(|&byte| is_control(byte)) {
        return Err(Malformed("a control byte in a header value"));
    }
    Ok((name, value.trim_ascii()))
}

fn is_control(byte: u8) -> bool {
    byte < 0x20 && byte != b'\t' || byte == 0x7f
}

/// RFC 9110, 5.6.2.
static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric()
            || matches!(
                byte as u8,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        byte += 1;
    }
    table
};

fn parse_decimal(value: &[u8]) -> Result<u64, Malformed> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Malformed("a Content-Length that is no decimal number"));
    }
    value
        .iter()
        .try_fold(0u64, |sum, digit| {
            sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .ok_or(Malformed("a Content-Length beyond 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a response came to.
    #[derive(Debug, PartialEq, Eq)]
    enum Seen {
        Whole {
            status: u16,
            body: u64,
            keep: bool,
            left: usize,
        },
        Open,
        Bad,
    }

    fn read(pieces: &[&[u8]], to_head: bool, close: bool) -> Seen {
        let mut reader = ResponseReader::new(Check::Nothing);
        reader.begin(to_head);
        let mut left = 0;
        for piece in pieces {
            match reader.feed(piece) {
                Ok(used) => left += piece.len() - used,
                Err(_) => return Seen::Bad,
            }
        }
        if close && !reader.is_done() && reader.end() != AtEnd::Complete {
            return Seen::Open;
        }
        if !reader.is_done() {
            return Seen::Open;
        }
        Seen::Whole {
            status: reader.status(),
            body: reader.body_bytes(),
            keep: reader.keep_alive(),
            left,
        }
    }

    /// Reads `response` whole and split at every byte: the split must not matter.
    fn check(response: &str, close: bool, want: &Seen) {
        let bytes = response.as_bytes();
        assert_eq!(&read(&[bytes], false, close), want, "whole: {response:?}");
        for at in 1..bytes.len() {
            let (a, b) = bytes.split_at(at);
            assert_eq!(
                &read(&[a, b], false, close),
                want,
                "split at {at}: {response:?}"
            );
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(
            &read(&single, false, close),
            want,
            "byte by byte: {response:?}"
        );
    }

    fn whole(status: u16, body: u64, keep: bool) -> Seen {
        Seen::Whole {
            status,
            body,
            keep,
            left: 0,
        }
    }

    #[test]
    fn framings() {
        for (response, close, want) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
                false,
                whole(200, 3, true),
            ),
            (
                "HTTP/1.1 200\r\ncontent-length:0\r\n\r\n",
                false,
                whole(200, 0, true),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
                false,
                whole(200, 2, true),
            ),
            (
                "HTTP/1.1 204 No Content\r\n\r\n",
                false,
                whole(204, 0, true),
            ),
            (
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
                false,
                whole(304, 0, true),
            ),
            (
                "HTTP/1.1 500 Oh\r\nConnection: x, Close\r\nContent-Length: 1\r\n\r\n!",
                false,
                whole(500, 1, false),
            ),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n!",
                false,
                whole(200, 1, false),
            ),
            (
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n!",
                false,
                whole(200, 1, true),
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\nto the end",
                true,
                whole(200, 10, false),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0a;x=\"y\"\r\n0123456789\r\n0\r\n\r\n",
                false,
                whole(200, 13, true),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n00\r\nX-Sum: 7\r\n\r\n",
                false,
                whole(200, 1, true),
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 201 Made\r\nContent-Length: 0\r\n\r\n",
                false,
                whole(201, 0, true),
            ),
        ] {
            check(response, close, &want);
        }
    }

    #[test]
    fn incomplete_responses_stay_open() {
        for response in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
            "HTTP/1.1 200 OK\r\nContent-Le",
        ] {
            check(response, true, &Seen::Open);
        }
    }

    #[test]
    fn what_a_judge_must_not_forgive() {
        for response in [
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
            "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\na",
            "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\na",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\na",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\nab\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\n",
            "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
        ] {
            check(response, true, &Seen::Bad);
        }
    }

    #[test]
    fn a_head_request_has_no_body_whatever_the_length_says() {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n";
        assert_eq!(read(&[response], true, false), whole(200, 0, true));
    }

    #[test]
    fn bytes_after_the_response_are_left() {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1";
        assert_eq!(
            read(&[response], false, false),
            Seen::Whole {
                status: 200,
                body: 1,
                keep: true,
                left: 8
            }
        );
    }

    #[test]
    fn bodies_are_compared_across_pieces() {
        for (body, matches) in [
            ("hello", true),
            ("hellO", false),
            ("hell", false),
            ("hello!", false),
        ] {
            let response = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            for at in 0..response.len() {
                let mut reader = ResponseReader::new(Check::Bytes(b"hello"[..].into()));
                reader.begin(false);
                let (a, b) = response.as_bytes().split_at(at);
                reader.feed(a).unwrap();
                reader.feed(b).unwrap();
                assert!(reader.is_done());
                assert_eq!(reader.body_matches(), matches, "{body} split at {at}");
            }
        }
    }

    #[test]
    fn an_endless_head_is_refused() {
        let mut reader = ResponseReader::new(Check::Nothing);
        reader.begin(false);
        reader.feed(b"HTTP/1.1 200 OK\r\n").unwrap();
        let refused = (0..3000).any(|_| {
            reader
                .feed(b"X-Filler: 0123456789012345678901234567\r\n")
                .is_err()
        });
        assert!(refused);
    }

    #[test]
    fn the_end_tells_nothing_from_something() {
        let mut reader = ResponseReader::new(Check::Nothing);
        reader.begin(false);
        assert_eq!(reader.end(), AtEnd::BeforeResponse);
        reader.feed(b"HTTP").unwrap();
        assert_eq!(reader.end(), AtEnd::Truncated);
    }
}
