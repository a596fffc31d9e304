//! A response's head.

use core::mem::MaybeUninit;

use super::block::{Block, FIELDS_CEILING, LengthSeen, TransferCodingSeen, refused, too_large};
use super::{Field, HeadError, HeadLimits, Parse, Version};
use crate::Span;

/// A response's head. Owns its bytes, like [`RequestHead`](super::RequestHead), and is used the same way.
///
/// No empty line is skipped before a status line: nothing allows an upstream to send one, and it may
/// be the tail of another response.
#[derive(Debug)]
pub struct ResponseHead {
    block: Block,
    version: Version,
    status: u16,
    /// The reason phrase. If even the space before it is missing, it starts right behind the status.
    reason: Span,
    /// End of the status line, CRLF included.
    line_end: u32,
}

impl ResponseHead {
    /// An empty head, which holds no memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            block: Block::default(),
            version: Version::Http11,
            status: 0,
            reason: Span::default(),
            line_end: 0,
        }
    }

    /// Where received bytes are appended. Bytes already there must not change until `finish`.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.block.buffer
    }

    /// Looks for a complete head at the front of the buffer. May be called after every read.
    ///
    /// # Errors
    /// Any departure from RFC 9112's grammar, any breach of `limits`, a status outside 100..=599. The
    /// connection is unusable afterwards.
    pub fn parse(&mut self, limits: &HeadLimits) -> Result<Parse, HeadError> {
        self.block.head_len = 0;
        if let [b'\r' | b'\n', ..] = self.block.buffer[..] {
            return Err(HeadError::LeadingBlankLines);
        }
        if !self.block.may_be_complete(limits)? {
            return Ok(Parse::Partial);
        }
        let mut headers = [const { MaybeUninit::uninit() }; FIELDS_CEILING];
        let room = &mut headers[..limits.fields_max.min(FIELDS_CEILING)];
        let mut response = httparse::Response::new(&mut []);
        let buffer = &self.block.buffer[..];
        let parser = httparse::ParserConfig::default();
        let head_len = match parser.parse_response_with_uninit_headers(&mut response, buffer, room)
        {
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
        let line_end = memchr::memchr(b'\n', buffer).ok_or(HeadError::StatusLine)? + 1;
        let (version, status, reason) =
            status_line(&buffer[..line_end]).map_err(|error| refused(error, buffer))?;
        self.block.seen = Block::take_fields(
            buffer,
            response.headers,
            head_len,
            line_end,
            &mut self.block.fields,
            &mut self.block.nominated,
        )?;
        self.version = version;
        self.status = status;
        self.reason = reason;
        self.line_end = line_end as u32;
        self.block.head_len = head_len;
        Ok(Parse::Complete)
    }

    /// The head, through its blank line.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.block.bytes()
    }

    /// The bytes received behind the head.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        self.block.rest()
    }

    /// Forgets the head and the first `rest_consumed` bytes behind it.
    pub fn finish(&mut self, rest_consumed: usize) {
        self.block.finish(rest_consumed);
    }

    /// All bytes held, parsed or not.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.block.buffer.len()
    }

    /// The status, 100..=599.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The version the upstream speaks.
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

    /// Whether the upstream lets the connection be used again (RFC 9112 section 9.3).
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        let seen = &self.block.seen;
        match self.version {
            Version::Http11 => !seen.close,
            Version::Http10 => seen.keep_alive && !seen.close,
        }
    }

    /// The value of the one Upgrade field, if Connection nominates it.
    #[must_use]
    pub fn upgrade(&self) -> Option<&[u8]> {
        let seen = &self.block.seen;
        let offered = seen.upgrade_nominated && seen.upgrades == 1 && !seen.upgrade.is_empty();
        offered.then(|| self.at(seen.upgrade))
    }

    pub(crate) fn reason_span(&self) -> Span {
        self.reason
    }

    pub(crate) fn line_end(&self) -> u32 {
        self.line_end
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
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self::new()
    }
}

/// `HTTP/1.x SP 3DIGIT [SP reason] CR LF`. The space before an absent reason is required by
/// RFC 9112 section 4, but many servers leave it out, and nothing can be smuggled through it.
fn status_line(line: &[u8]) -> Result<(Version, u16, Span), HeadError> {
    let (version, behind) = match line {
        [
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            b'1',
            b' ',
            behind @ ..,
        ] => (Version::Http11, behind),
        [
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            b'0',
            b' ',
            behind @ ..,
        ] => (Version::Http10, behind),
        _ => return Err(HeadError::StatusLine),
    };
    let [
        a @ b'1'..=b'5',
        b @ b'0'..=b'9',
        c @ b'0'..=b'9',
        behind @ ..,
    ] = behind
    else {
        return Err(HeadError::StatusLine);
    };
    let status = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
    let end = line.len() - 2;
    match behind {
        [b'\r', b'\n'] => Ok((version, status, Span::new(end, end))),
        [b' ', .., b'\r', b'\n'] => Ok((version, status, Span::new(STATUS_LEN + 1, end))),
        _ => Err(HeadError::StatusLine),
    }
}

#[cold]
fn refusal(error: httparse::Error, buffer: &[u8]) -> HeadError {
    let error = match error {
        httparse::Error::TooManyHeaders => return HeadError::FieldsTooMany,
        httparse::Error::HeaderName => HeadError::FieldName,
        httparse::Error::HeaderValue => HeadError::FieldValue,
        httparse::Error::Version => HeadError::Version,
        _ => HeadError::StatusLine,
    };
    refused(error, buffer)
}

/// Bytes of `HTTP/1.1 200`.
const STATUS_LEN: usize = 12;
