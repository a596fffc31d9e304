//! A request's head.

use core::mem::MaybeUninit;
use core::ops::Range;

use super::block::{
    Block, FIELDS_CEILING, LengthSeen, TransferCodingSeen, is_token, list_members, refused,
    too_large,
};
use super::{Field, FieldId, HeadError, HeadLimits, Parse, Version};
use crate::{Span, target};

/// A request's head. Owns its bytes: the head plus whatever was received behind it.
///
/// One value serves a connection's requests in turn, and its memory is reused: append what was
/// received to [`buffer`](Self::buffer), [`parse`](Self::parse), and when the exchange is over
/// [`finish`](Self::finish). Everything but `buffer`, `parse`, `finish` and `buffered` is meaningful
/// only after `parse` returned [`Parse::Complete`].
#[derive(Debug)]
pub struct RequestHead {
    block: Block,
    method: Method,
    method_span: Span,
    target: Span,
    form: TargetForm,
    authority: Span,
    path: Span,
    query: Option<Span>,
    version: Version,
    /// An empty line was skipped before this head; a second one is refused.
    blank_skipped: bool,
}

impl RequestHead {
    /// An empty head, which holds no memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            block: Block::default(),
            method: Method::Other,
            method_span: Span::default(),
            target: Span::default(),
            form: TargetForm::Origin,
            authority: Span::default(),
            path: Span::default(),
            query: None,
            version: Version::Http11,
            blank_skipped: false,
        }
    }

    /// Where received bytes are appended. Bytes already there must not change until `finish`.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.block.buffer
    }

    /// Looks for a complete head at the front of the buffer. May be called after every read.
    ///
    /// # Errors
    /// Any departure from RFC 9112's grammar, any breach of `limits`. The connection is unusable
    /// afterwards: answer [`HeadError::status`] and close.
    pub fn parse(&mut self, limits: &HeadLimits) -> Result<Parse, HeadError> {
        self.block.head_len = 0;
        if self.skip_blank_line()? == Parse::Partial || !self.block.may_be_complete(limits)? {
            return Ok(Parse::Partial);
        }

        let mut headers = [const { MaybeUninit::uninit() }; FIELDS_CEILING];
        let room = &mut headers[..limits.fields_max.min(FIELDS_CEILING)];
        let mut request = httparse::Request::new(&mut []);
        let buffer = &self.block.buffer[..];
        let head_len = match request.parse_with_uninit_headers(buffer, room) {
            Ok(httparse::Status::Complete(head_len)) => head_len,
            Ok(httparse::Status::Partial) => {
                self.block.note_partial(limits)?;
                return Ok(Parse::Partial);
            }
            Err(error) => return Err(refusal(error, buffer)),
        };
        if head_len > limits.head_bytes_max {
            return Err(too_large(&buffer[..limits.head_bytes_max]));
        }
        let (Some(method), Some(uri), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Err(HeadError::RequestLine);
        };

        // The request line, byte for byte: method SP target SP HTTP/1.x CR LF.
        let method_span = Span::new(0, method.len());
        let target = Span::new(method.len() + 1, method.len() + 1 + uri.len());
        let line_end = target.range().end + VERSION_TAIL_LEN;
        let tail: &[u8] = if minor == 0 {
            b" HTTP/1.0\r\n"
        } else {
            b" HTTP/1.1\r\n"
        };
        if method.as_ptr() != buffer.as_ptr()
            || uri.as_ptr() as usize - buffer.as_ptr() as usize != target.range().start
            || buffer[method.len()] != b' '
            || buffer.get(target.range().end..line_end) != Some(tail)
        {
            return Err(request_line_refusal(buffer));
        }
        if method.len() > METHOD_BYTES_MAX {
            return Err(HeadError::MethodTooLong);
        }

        self.block.seen = Block::take_fields(
            buffer,
            request.headers,
            head_len,
            line_end,
            &mut self.block.fields,
            &mut self.block.nominated,
        )?;
        self.version = if minor == 0 {
            Version::Http10
        } else {
            Version::Http11
        };
        self.method = Method::from_token(method.as_bytes());
        self.method_span = method_span;
        self.target = target;
        self.split_target()?;
        self.check_host()?;
        self.block.head_len = head_len;
        Ok(Parse::Complete)
    }

    /// The head, through its blank line.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.block.bytes()
    }

    /// The bytes received behind the head: body, or the next request.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        self.block.rest()
    }

    /// Forgets the head and the first `rest_consumed` bytes behind it; what follows (a pipelined
    /// request) stays and is parsed next.
    pub fn finish(&mut self, rest_consumed: usize) {
        self.block.finish(rest_consumed);
        self.blank_skipped = false;
    }

    /// All bytes held, parsed or not.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.block.buffer.len()
    }

    /// The method, as far as the proxy knows it.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// The method as received.
    #[must_use]
    pub fn method_str(&self) -> &str {
        // A token is ASCII, so this never falls back.
        core::str::from_utf8(self.at(self.method_span)).unwrap_or_default()
    }

    /// The request target as received.
    #[must_use]
    pub fn target(&self) -> &[u8] {
        self.at(self.target)
    }

    /// Which of the four forms the target has.
    #[must_use]
    pub fn form(&self) -> TargetForm {
        self.form
    }

    /// The path, undecoded and without the query. Starts with `/` in origin-form; `/` for an absolute
    /// URL without one; `*` for `OPTIONS *` (and for OPTIONS with a bare absolute URL, which means
    /// the same: RFC 9112 section 3.2.4); empty for CONNECT.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        if !self.path.is_empty() {
            return self.at(self.path);
        }
        match (self.form, self.method) {
            (TargetForm::Authority, _) => b"",
            (_, Method::Options) if self.query.is_none() => b"*",
            _ => b"/",
        }
    }

    /// The query, without its `?`. `Some` of nothing when the target ends in `?`.
    #[must_use]
    pub fn query(&self) -> Option<&[u8]> {
        self.query.map(|query| self.at(query))
    }

    /// The authority of an absolute URL, or CONNECT's target.
    #[must_use]
    pub fn authority(&self) -> Option<&[u8]> {
        (!self.authority.is_empty()).then(|| self.at(self.authority))
    }

    /// The value of the one Host field. `None` only with HTTP/1.0.
    #[must_use]
    pub fn host(&self) -> Option<&[u8]> {
        (self.block.seen.hosts == 1).then(|| self.at(self.block.seen.host))
    }

    /// The version the caller speaks.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The field lines, in order.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.block.fields
    }

    /// A field's name as received.
    #[must_use]
    pub fn name(&self, field: &Field) -> &[u8] {
        self.at(field.name)
    }

    /// A field's value without the white space around it.
    #[must_use]
    pub fn value(&self, field: &Field) -> &[u8] {
        self.at(field.value)
    }

    /// Whether the caller wants to use the connection again (RFC 9112 section 9.3).
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        let seen = &self.block.seen;
        match self.version {
            Version::Http11 => !seen.close,
            Version::Http10 => seen.keep_alive && !seen.close,
        }
    }

    /// Whether the caller waits for `100 Continue`. HTTP/1.0 callers cannot (RFC 9110 section 10.1.1).
    #[must_use]
    pub fn expects_continue(&self) -> bool {
        self.block.seen.expect_continue && self.version == Version::Http11
    }

    /// Whether a CDN-Loop field (RFC 8586) names `token`. Compared without regard to case, and
    /// parameters behind the token are passed over.
    #[must_use]
    pub fn cdn_loop_contains(&self, token: &[u8]) -> bool {
        self.fields()
            .iter()
            .filter(|field| field.id == FieldId::CdnLoop)
            .any(|field| {
                list_members(self.value(field)).any(|(member, _)| {
                    let id = member
                        .split(|&byte| byte == b';')
                        .next()
                        .unwrap_or_default();
                    id.trim_ascii().eq_ignore_ascii_case(token)
                })
            })
    }

    /// The value of the Upgrade field, if Connection nominates it. `None` with HTTP/1.0 and when
    /// there are several such fields: we pass on one protocol or none.
    #[must_use]
    pub fn upgrade(&self) -> Option<&[u8]> {
        let seen = &self.block.seen;
        let asked = seen.upgrade_nominated && seen.upgrades == 1 && !seen.upgrade.is_empty();
        (asked && self.version == Version::Http11).then(|| self.at(seen.upgrade))
    }

    /// Where the path stands. Empty (and behind the authority) for an absolute URL without a path.
    #[must_use]
    pub fn path_span(&self) -> Span {
        self.path
    }

    /// Where the query stands, without its `?`.
    #[must_use]
    pub fn query_span(&self) -> Option<Span> {
        self.query
    }

    pub(crate) fn target_span(&self) -> Span {
        self.target
    }

    /// End of the request line, CRLF included.
    pub(crate) fn line_end(&self) -> u32 {
        self.target.end + VERSION_TAIL_LEN as u32
    }

    pub(crate) fn length_seen(&self) -> LengthSeen {
        self.block.seen.length
    }

    pub(crate) fn transfer_coding_seen(&self) -> TransferCodingSeen {
        self.block.seen.transfer_coding
    }

    /// Connection options other than close, keep-alive and upgrade.
    pub(crate) fn nominated(&self) -> &[Span] {
        &self.block.nominated
    }

    fn at(&self, span: Span) -> &[u8] {
        span.of(&self.block.buffer)
    }

    /// RFC 9112 section 2.2: skip at least one empty line before the request line. We skip one.
    fn skip_blank_line(&mut self) -> Result<Parse, HeadError> {
        let buffer = &mut self.block.buffer;
        match buffer[..] {
            [b'\r'] => Ok(Parse::Partial),
            [b'\r', b'\n', ..] if self.blank_skipped => Err(HeadError::LeadingBlankLines),
            [b'\r', b'\n', ..] => {
                buffer.drain(..2);
                self.blank_skipped = true;
                self.skip_blank_line()
            }
            [b'\r' | b'\n', ..] => Err(HeadError::LineEnding),
            _ => Ok(Parse::Complete),
        }
    }

    /// Finds out the target's form and its parts (RFC 9112 section 3.2).
    fn split_target(&mut self) -> Result<(), HeadError> {
        let Range { start, end } = self.target.range();
        let target = &self.block.buffer[start..end];
        if !target_bytes_allowed(target) {
            return Err(HeadError::TargetBytes);
        }
        self.authority = Span::default();
        self.query = None;
        if self.method == Method::Connect {
            let (_, Some(_)) = target::authority_host(target).ok_or(HeadError::TargetForm)? else {
                return Err(HeadError::TargetForm);
            };
            self.form = TargetForm::Authority;
            self.authority = self.target;
            self.path = Span::new(end, end);
            return Ok(());
        }
        let path_start = match target {
            [b'/', ..] => {
                self.form = TargetForm::Origin;
                start
            }
            [b'*'] if self.method == Method::Options => {
                self.form = TargetForm::Asterisk;
                start
            }
            _ => {
                let scheme = scheme_len(target).ok_or(HeadError::TargetForm)?;
                let behind = &target[scheme..];
                let len = memchr::memchr2(b'/', b'?', behind).unwrap_or(behind.len());
                target::authority_host(&behind[..len]).ok_or(HeadError::TargetForm)?;
                self.form = TargetForm::Absolute;
                self.authority = Span::new(start + scheme, start + scheme + len);
                start + scheme + len
            }
        };
        let behind = &self.block.buffer[path_start..end];
        match memchr::memchr(b'?', behind) {
            Some(at) => {
                self.path = Span::new(path_start, path_start + at);
                self.query = Some(Span::new(path_start + at + 1, end));
            }
            None => self.path = Span::new(path_start, end),
        }
        Ok(())
    }

    /// RFC 9112 section 3.2: exactly one Host, well-formed; HTTP/1.0 may leave it out.
    fn check_host(&self) -> Result<(), HeadError> {
        let seen = &self.block.seen;
        match (seen.hosts, self.version) {
            (0, Version::Http10) => Ok(()),
            (0, Version::Http11) => Err(HeadError::HostMissing),
            (1, _) => match target::authority_host(self.at(seen.host)) {
                Some(_) => Ok(()),
                None => Err(HeadError::HostMalformed),
            },
            _ => Err(HeadError::HostRepeated),
        }
    }
}

impl Default for RequestHead {
    fn default() -> Self {
        Self::new()
    }
}

/// A request's method. Method names are case-sensitive (RFC 9110 section 9.1): `get` is `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// PATCH.
    Patch,
    /// OPTIONS.
    Options,
    /// TRACE: echoes the request, key included.
    Trace,
    /// TRACK: some servers' TRACE.
    Track,
    /// CONNECT.
    Connect,
    /// Any other token.
    Other,
}

impl Method {
    /// The method that a token names.
    #[must_use]
    pub fn from_token(token: &[u8]) -> Self {
        match token {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"PATCH" => Self::Patch,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            b"TRACK" => Self::Track,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    /// Whether repeating the request is harmless by definition (RFC 9110 section 9.2.2). Unknown
    /// methods are taken not to be.
    #[must_use]
    pub fn is_idempotent(self) -> bool {
        matches!(
            self,
            Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options | Self::Trace
        )
    }
}

/// The four forms of a request target (RFC 9112 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`.
    Origin,
    /// `http://host/path?query` or https.
    Absolute,
    /// `host:port`, CONNECT only.
    Authority,
    /// `*`, OPTIONS only.
    Asterisk,
}

/// Visible ASCII but `#`. That is more than RFC 3986 allows (`|{}^"<>` and the backslash are in):
/// SDKs send them raw, and each is one byte with one meaning to whoever splits the target.
fn target_bytes_allowed(target: &[u8]) -> bool {
    target.chunks(128).all(|block| {
        block
            .iter()
            .map(|&byte| u8::from(!(0x21..=0x7e).contains(&byte) || byte == b'#'))
            .fold(0u8, |bad, byte| bad | byte)
            == 0
    })
}

/// Length of `http://` or `https://` at the front of `target`, in any case.
fn scheme_len(target: &[u8]) -> Option<usize> {
    [&b"http://"[..], b"https://"]
        .into_iter()
        .find_map(|scheme| {
            let front = target.get(..scheme.len())?;
            front.eq_ignore_ascii_case(scheme).then_some(scheme.len())
        })
}

/// What httparse's refusal means. It stops at the first byte it dislikes and says little; this looks
/// at the raw request line for the reason that helps.
#[cold]
fn refusal(error: httparse::Error, buffer: &[u8]) -> HeadError {
    let error = match error {
        httparse::Error::TooManyHeaders => return HeadError::FieldsTooMany,
        httparse::Error::HeaderName => HeadError::FieldName,
        httparse::Error::HeaderValue => HeadError::FieldValue,
        // Also what httparse says of a line that goes on behind the version.
        _ => return request_line_refusal(buffer),
    };
    refused(error, buffer)
}

#[cold]
fn request_line_refusal(buffer: &[u8]) -> HeadError {
    refused(request_line_fault(buffer), buffer)
}

fn request_line_fault(buffer: &[u8]) -> HeadError {
    let end = memchr::memchr2(b'\r', b'\n', buffer).unwrap_or(buffer.len());
    let line = &buffer[..end];
    let is_version = |part: &[u8]| {
        matches!(part, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit())
    };
    let Some(first) = memchr::memchr(b' ', line) else {
        return HeadError::RequestLine;
    };
    let behind = &line[first + 1..];
    let (target, version) = match memchr::memrchr(b' ', behind) {
        Some(last) if is_version(&behind[last + 1..]) => {
            (&behind[..last], Some(&behind[last + 1..]))
        }
        _ => (
            behind
                .split(|&byte| byte == b' ')
                .next()
                .unwrap_or_default(),
            None,
        ),
    };
    if !is_token(&line[..first]) || target.is_empty() {
        HeadError::RequestLine
    } else if !target_bytes_allowed(target) {
        HeadError::TargetBytes
    } else if version.is_some() {
        HeadError::Version
    } else {
        HeadError::RequestLine
    }
}

/// Bytes of ` HTTP/1.1` and CR LF.
const VERSION_TAIL_LEN: usize = 11;

/// Bytes of a method. Longer ones are answered 501.
const METHOD_BYTES_MAX: usize = 32;
