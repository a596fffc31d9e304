//! The request head: request line and field lines, as owned bytes plus positions.
//!
//! [`Head::parse`] may be called again and again while bytes arrive; it resumes at the first
//! line that it has not seen whole, and it allocates nothing once its buffers have grown.

use std::fmt;
use std::ops::Range;

use super::uri;

/// One request head. Reused from request to request on a connection.
///
/// Invariant: every range lies within `bytes`, which is complete only after
/// [`Head::parse`] has returned `Ok(true)`.
#[derive(Default)]
pub struct Head {
    bytes: Vec<u8>,
    /// Bytes of the input that form whole, accepted lines.
    parsed: usize,
    method: Range<usize>,
    target: Range<usize>,
    /// The part of the target that names a resource: `/path?query`, also of an absolute-form.
    resource: Range<usize>,
    version: Version,
    fields: Vec<(Range<usize>, Range<usize>)>,
    authorization: Option<usize>,
    host: Option<usize>,
    hosts: u8,
    content_length: Option<u64>,
    chunked: bool,
    connection_close: bool,
    connection_keep_alive: bool,
    expect_continue: bool,
    upgrade_websocket: bool,
    connection_upgrade: bool,
}

/// How long the request's body is (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Neither `Content-Length` nor `Transfer-Encoding`: a request without a body.
    None,
    /// Exactly so many bytes follow the head. May be zero.
    Length(u64),
    /// Chunks follow the head, then trailers.
    Chunked,
}

/// The minor version of HTTP/1 that the client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// `HTTP/1.0`: no chunked coding, and the connection closes unless the client asks.
    Http10,
    /// `HTTP/1.1`.
    #[default]
    Http11,
}

/// Why a head was refused. The text never quotes what arrived: keys live there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// RFC 9112, section 2.2 lets a recipient accept a bare LF; a judge does not.
    #[error("a line does not end in CRLF")]
    BareLf,
    /// A CR inside a line (RFC 9112, section 2.2).
    #[error("a line contains a bare CR")]
    BareCr,
    /// A head may begin with a blank line only to tolerate old clients (RFC 9112, section 2.2).
    #[error("the request begins with a blank line")]
    LeadingBlankLine,
    /// Not `method SP target SP HTTP/1.x`.
    #[error("malformed request line")]
    RequestLine,
    /// Something else than `HTTP/1.0` or `HTTP/1.1`.
    #[error("unsupported HTTP version")]
    Version,
    /// Neither origin-form, absolute-form nor `OPTIONS *`, or a byte that may not stand there.
    #[error("malformed request target")]
    Target,
    /// A name that is no token, or white space before the colon (RFC 9112, section 5.1).
    #[error("malformed field name")]
    FieldName,
    /// A control character in a value (RFC 9110, section 5.5).
    #[error("malformed field value")]
    FieldValue,
    /// A line that begins with white space (RFC 9112, section 5.2).
    #[error("a field value is folded over several lines")]
    Folded,
    /// More than [`HEAD_BYTES_MAX`] bytes. Answered 431.
    #[error("the request head is too large")]
    TooLarge,
    /// More than [`FIELDS_MAX`] fields. Answered 431.
    #[error("the request has too many header fields")]
    TooManyFields,
    /// None, or several, where HTTP/1.1 asks for exactly one (RFC 9112, section 3.2).
    #[error("an HTTP/1.1 request needs exactly one Host field")]
    Host,
    /// Not digits only, too large, or given twice.
    #[error("malformed or repeated Content-Length")]
    ContentLength,
    /// Anything but exactly `chunked`. Answered 501.
    #[error("a transfer coding other than chunked")]
    TransferCoding,
    /// Both lengths given, or chunked in HTTP/1.0: request smuggling (RFC 9112, section 6.1).
    #[error("ambiguous message framing")]
    AmbiguousFraming,
    /// An expectation other than `100-continue` (RFC 9110, section 10.1.1). Answered 417.
    #[error("an unknown expectation")]
    Expectation,
}

impl HeadError {
    /// The status code with which this error is answered.
    pub fn status(self) -> u16 {
        match self {
            HeadError::TooLarge | HeadError::TooManyFields => 431,
            HeadError::TransferCoding => 501,
            HeadError::Expectation => 417,
            HeadError::Version => 505,
            _ => 400,
        }
    }
}

impl Head {
    /// Forgets the last request and keeps the buffers.
    pub fn reset(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        let mut fields = std::mem::take(&mut self.fields);
        bytes.clear();
        fields.clear();
        *self = Head {
            bytes,
            fields,
            ..Head::default()
        };
    }

    /// Reads as many whole lines of `input` as there are. `input` begins where the head begins
    /// and may only grow between calls. `Ok(Some(n))`: the head is complete, is `n` bytes long
    /// and has been copied out of `input`.
    pub fn parse(&mut self, input: &[u8]) -> Result<Option<usize>, HeadError> {
        loop {
            let rest = &input[self.parsed..];
            let Some(newline) = memchr::memchr(b'\n', rest) else {
                return match input.len() > HEAD_BYTES_MAX {
                    true => Err(HeadError::TooLarge),
                    false => Ok(None),
                };
            };
            if self.parsed + newline >= HEAD_BYTES_MAX {
                return Err(HeadError::TooLarge);
            }
            let start = self.parsed;
            let line = match rest[..newline].split_last() {
                Some((b'\r', line)) => line,
                _ => return Err(HeadError::BareLf),
            };
            self.parsed += newline + 1;
            if start == 0 {
                self.request_line(line)?;
            } else if line.is_empty() {
                self.finish()?;
                self.bytes.extend_from_slice(&input[..self.parsed]);
                return Ok(Some(self.parsed));
            } else {
                self.field_line(line, start)?;
            }
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), HeadError> {
        if line.is_empty() {
            return Err(HeadError::LeadingBlankLine);
        }
        let method_end = memchr::memchr(b' ', line).ok_or(HeadError::RequestLine)?;
        let target_end = memchr::memrchr(b' ', line).ok_or(HeadError::RequestLine)?;
        if method_end == 0 || target_end <= method_end + 1 {
            return Err(HeadError::RequestLine);
        }
        let (method, target) = (&line[..method_end], &line[method_end + 1..target_end]);
        if !method.iter().all(|&byte| is_token(byte)) {
            return Err(HeadError::RequestLine);
        }
        self.version = match &line[target_end + 1..] {
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/1.0" => Version::Http10,
            version if version.starts_with(b"HTTP/") => return Err(HeadError::Version),
            _ => return Err(HeadError::RequestLine),
        };
        let resource = uri::resource(method, target).ok_or(HeadError::Target)?;
        self.method = 0..method_end;
        self.target = method_end + 1..target_end;
        self.resource = method_end + 1 + resource..target_end;
        Ok(())
    }

    fn field_line(&mut self, line: &[u8], start: usize) -> Result<(), HeadError> {
        if self.fields.len() == FIELDS_MAX {
            return Err(HeadError::TooManyFields);
        }
        let (name, value) = split_field(line)?;
        let index = self.fields.len();
        self.note(&line[name.clone()], &line[value.clone()], index)?;
        self.fields.push((
            start + name.start..start + name.end,
            start + value.start..start + value.end,
        ));
        Ok(())
    }

    /// Remembers what the fields say about framing and about the connection.
    fn note(&mut self, name: &[u8], value: &[u8], index: usize) -> Result<(), HeadError> {
        // Lengths first: most fields are none of these, and a comparison of lengths is free.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                self.host = Some(index);
                self.hosts = self.hosts.saturating_add(1);
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadError::Expectation);
                }
                self.expect_continue = true;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade_websocket |= has_list_member(value, b"websocket");
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.connection_close |= has_list_member(value, b"close");
                self.connection_keep_alive |= has_list_member(value, b"keep-alive");
                self.connection_upgrade |= has_list_member(value, b"upgrade");
            }
            13 if name.eq_ignore_ascii_case(b"authorization") => {
                self.authorization.get_or_insert(index);
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.content_length.is_some() {
                    return Err(HeadError::ContentLength);
                }
                self.content_length = Some(decimal(value).ok_or(HeadError::ContentLength)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked {
                    return Err(HeadError::AmbiguousFraming);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadError::TransferCoding);
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), HeadError> {
        let hosts_wanted = match self.version {
            Version::Http11 => self.hosts == 1,
            Version::Http10 => self.hosts <= 1,
        };
        if !hosts_wanted {
            return Err(HeadError::Host);
        }
        // RFC 9112, 6.1: a length beside chunked may be request smuggling, and HTTP/1.0 knows
        // no transfer codings. A judge does not guess.
        if self.chunked && (self.content_length.is_some() || self.version == Version::Http10) {
            return Err(HeadError::AmbiguousFraming);
        }
        Ok(())
    }

    /// The method, as it arrived.
    pub fn method(&self) -> &[u8] {
        &self.bytes[self.method.clone()]
    }

    /// The request target, as it arrived.
    pub fn target(&self) -> &[u8] {
        &self.bytes[self.target.clone()]
    }

    /// `/path?query` of the target, also where the target is an absolute URI.
    pub fn resource(&self) -> &[u8] {
        &self.bytes[self.resource.clone()]
    }

    /// The path, without the query, still percent-encoded.
    pub fn path(&self) -> &[u8] {
        let resource = self.resource();
        match memchr::memchr(b'?', resource) {
            Some(mark) => &resource[..mark],
            None => resource,
        }
    }

    /// The query without its `?`, still percent-encoded; empty when there is none.
    pub fn query(&self) -> &[u8] {
        let resource = self.resource();
        match memchr::memchr(b'?', resource) {
            Some(mark) => &resource[mark + 1..],
            None => b"",
        }
    }

    /// The version in the request line.
    pub fn version(&self) -> Version {
        self.version
    }

    /// All fields in order, names as spelt, values without the white space around them.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields
            .iter()
            .map(|(name, value)| (&self.bytes[name.clone()], &self.bytes[value.clone()]))
    }

    /// The first field of this name, in any case.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields()
            .find(|(candidate, _)| candidate.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// The first `Authorization` field, noted while parsing so that no search is needed.
    pub fn authorization(&self) -> Option<&[u8]> {
        let (_, value) = &self.fields[self.authorization?];
        Some(&self.bytes[value.clone()])
    }

    /// The `Host` field. Always present in HTTP/1.1.
    pub fn host(&self) -> Option<&[u8]> {
        let (_, value) = &self.fields[self.host?];
        Some(&self.bytes[value.clone()])
    }

    /// How the body is delimited.
    pub fn framing(&self) -> Framing {
        match (self.chunked, self.content_length) {
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::None,
        }
    }

    /// Whether the client wants the connection to stay (RFC 9112, section 9.3).
    pub fn keep_alive(&self) -> bool {
        match self.version {
            Version::Http11 => !self.connection_close,
            Version::Http10 => self.connection_keep_alive && !self.connection_close,
        }
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    /// An HTTP/1.0 client that says so is ignored (RFC 9110, section 10.1.1).
    pub fn expects_continue(&self) -> bool {
        self.expect_continue && self.version == Version::Http11
    }

    /// Whether this is a WebSocket handshake, as far as `Connection` and `Upgrade` tell.
    pub fn wants_websocket(&self) -> bool {
        self.upgrade_websocket && self.connection_upgrade && self.version == Version::Http11
    }

    /// Whether the answer must not have a body.
    pub fn is_head_request(&self) -> bool {
        self.method() == b"HEAD"
    }
}

/// Keys live in heads: no byte of one is shown.
impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Head({} bytes, {} fields)",
            self.bytes.len(),
            self.fields.len()
        )
    }
}

/// Splits `name: value`, checks both, and trims the value. Shared with trailers.
pub fn split_field(line: &[u8]) -> Result<(Range<usize>, Range<usize>), HeadError> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(HeadError::Folded);
    }
    let colon = memchr::memchr(b':', line).ok_or(HeadError::FieldName)?;
    if colon == 0 || !line[..colon].iter().all(|&byte| is_token(byte)) {
        return Err(HeadError::FieldName);
    }
    let mut start = colon + 1;
    let mut end = line.len();
    while start < end && matches!(line[start], b' ' | b'\t') {
        start += 1;
    }
    while end > start && matches!(line[end - 1], b' ' | b'\t') {
        end -= 1;
    }
    for &byte in &line[start..end] {
        match byte {
            b'\r' => return Err(HeadError::BareCr),
            b'\t' | b' '..=b'~' | 0x80.. => {}
            _ => return Err(HeadError::FieldValue),
        }
    }
    Ok((0..colon, start..end))
}

/// Whether `value`, a comma-separated list, has this member in any case.
pub fn has_list_member(value: &[u8], member: &[u8]) -> bool {
    value
        .split(|&byte| byte == b',')
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(member))
}

/// `1*DIGIT` that fits in 63 bits; nothing else, no sign, no white space.
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number <= i64::MAX as u64).then_some(number)
}

/// `tchar` of RFC 9110, section 5.6.2.
pub fn is_token(byte: u8) -> bool {
    TOKEN[byte as usize]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let is = (byte as u8).is_ascii_alphanumeric()
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
        table[byte] = is;
        byte += 1;
    }
    table
};

/// A head larger than this is answered 431 and the connection closes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A head with more fields than this is answered 431 and the connection closes.
pub const FIELDS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(input: &[u8]) -> Result<Option<(Head, usize)>, HeadError> {
        let mut head = Head::default();
        Ok(head.parse(input)?.map(|length| (head, length)))
    }

    #[track_caller]
    fn refused(input: &str, error: HeadError) {
        assert_eq!(parse(input.as_bytes()).err(), Some(error), "{input:?}");
    }

    #[track_caller]
    fn accepted(input: &str) -> Head {
        let (head, length) = parse(input.as_bytes())
            .expect("accepted")
            .expect("complete");
        assert_eq!(length, input.len());
        head
    }

    #[test]
    fn a_plain_request() {
        let head = accepted("GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-Odd:  v \t\r\nEmpty:\r\n\r\n");
        assert_eq!(head.method(), b"GET");
        assert_eq!(head.target(), b"/a?b=c");
        assert_eq!(head.path(), b"/a");
        assert_eq!(head.query(), b"b=c");
        assert_eq!(head.framing(), Framing::None);
        assert!(head.keep_alive());
        let fields: Vec<_> = head.fields().collect();
        assert_eq!(
            fields,
            [(&b"Host"[..], &b"x"[..]), (b"X-Odd", b"v"), (b"Empty", b"")]
        );
    }

    #[test]
    fn arrives_byte_by_byte() {
        let input = b"POST /u HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
        let mut head = Head::default();
        let end = input.len() - 3;
        for split in 0..end {
            assert_eq!(head.parse(&input[..split]), Ok(None), "at {split}");
        }
        assert_eq!(head.parse(input), Ok(Some(end)));
        assert_eq!(head.framing(), Framing::Length(3));
        head.reset();
        assert_eq!(head.parse(input), Ok(Some(end)));
    }

    #[test]
    fn refuses_what_a_lenient_server_would_take() {
        refused("GET / HTTP/1.1\nHost: x\n\n", HeadError::BareLf);
        refused("\r\nGET / HTTP/1.1\r\n", HeadError::LeadingBlankLine);
        refused("GET  / HTTP/1.1\r\n", HeadError::Target);
        refused("GET /\r\n", HeadError::RequestLine);
        refused("G@T / HTTP/1.1\r\n", HeadError::RequestLine);
        refused("GET / HTTP/2.0\r\n", HeadError::Version);
        refused("GET x HTTP/1.1\r\n", HeadError::Target);
        refused("GET /a#b HTTP/1.1\r\n", HeadError::Target);
        refused("GET /\u{e9} HTTP/1.1\r\n", HeadError::Target);
        refused("GET / HTTP/1.1\r\nHost : x\r\n", HeadError::FieldName);
        refused("GET / HTTP/1.1\r\nHost: x\r\n y\r\n", HeadError::Folded);
        refused("GET / HTTP/1.1\r\nA: b\rc\r\n", HeadError::BareCr);
        refused("GET / HTTP/1.1\r\nA: b\0c\r\n", HeadError::FieldValue);
        refused("GET / HTTP/1.1\r\n\r\n", HeadError::Host);
        refused(
            "GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n",
            HeadError::Host,
        );
        refused(
            "GET / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n",
            HeadError::Expectation,
        );
    }

    #[test]
    fn refuses_ambiguous_framing() {
        let with = |fields: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        for length in ["+1", "-1", "1,1", "0x1", "", "99999999999999999999"] {
            refused(
                &with(&format!("Content-Length: {length}\r\n")),
                HeadError::ContentLength,
            );
        }
        refused(
            &with("Content-Length: 1\r\nContent-Length: 1\r\n"),
            HeadError::ContentLength,
        );
        refused(
            &with("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
            HeadError::AmbiguousFraming,
        );
        refused(
            &with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            HeadError::AmbiguousFraming,
        );
        for coding in ["gzip, chunked", "chunked, identity", "xchunked", ""] {
            refused(
                &with(&format!("Transfer-Encoding: {coding}\r\n")),
                HeadError::TransferCoding,
            );
        }
        refused(
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            HeadError::AmbiguousFraming,
        );
    }

    #[test]
    fn bounds_the_head() {
        let mut input = String::from("GET / HTTP/1.1\r\nHost: x\r\n");
        for _ in 0..FIELDS_MAX {
            input.push_str("a: b\r\n");
        }
        refused(&input, HeadError::TooManyFields);
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(HEAD_BYTES_MAX));
        refused(&long, HeadError::TooLarge);
        refused(&long[..HEAD_BYTES_MAX + 1], HeadError::TooLarge);
    }

    #[test]
    fn persistence_follows_the_version() {
        let keep = |input| accepted(input).keep_alive();
        assert!(!keep("GET / HTTP/1.0\r\n\r\n"));
        assert!(keep("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
        assert!(!keep(
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n"
        ));
    }

    #[test]
    fn absolute_form_names_a_resource() {
        let head = accepted("GET http://h:1/p?q HTTP/1.1\r\nHost: h:1\r\n\r\n");
        assert_eq!(head.target(), b"http://h:1/p?q");
        assert_eq!(head.resource(), b"/p?q");
        let head = accepted("GET https://h HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(head.path(), b"");
        let head = accepted("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(head.path(), b"*");
    }
}
