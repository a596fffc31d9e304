//! What request and response heads share: the bytes, the field lines, and what was seen in them.

use super::{Field, FieldId, HEAD_BYTES_CEILING, HeadError, HeadLimits, classify};
use crate::Span;

/// Bytes and field positions of one head, recycled between exchanges.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// The head and whatever was received behind it.
    pub(super) buffer: Vec<u8>,
    /// Length of the head in `buffer`, blank line included; 0 while none is parsed.
    pub(super) head_len: usize,
    /// Bytes that a partial parse has already searched for the blank line. `scanned <= buffer.len()`.
    scanned: usize,
    /// Ordered by position; each line starts where the one before it ends.
    pub(super) fields: Vec<Field>,
    /// Connection options other than the ones `seen` has a flag for.
    pub(super) nominated: Vec<Span>,
    pub(super) seen: Seen,
}

/// What the field lines said about the message and the connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) hosts: u16,
    pub(super) host: Span,
    pub(super) length: LengthSeen,
    pub(super) transfer_coding: TransferCodingSeen,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade_nominated: bool,
    pub(super) upgrades: u16,
    pub(super) upgrade: Span,
    pub(super) expect_continue: bool,
}

/// What the Content-Length fields said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LengthSeen {
    /// No such field.
    #[default]
    Absent,
    /// One field with one number.
    One(u64),
    /// One field whose value is no number that fits 64 bits (a list included).
    Malformed,
    /// More than one field, equal or not.
    Repeated,
}

/// What the Transfer-Encoding fields said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TransferCodingSeen {
    /// No such field.
    #[default]
    Absent,
    /// One field that says `chunked` and nothing else.
    Chunked,
    /// Anything else.
    Other,
}

impl Block {
    /// Whether the buffer may hold a whole head. Cheap when called again with few new bytes: only
    /// those are searched, so a head that trickles in costs linear time.
    pub(super) fn may_be_complete(&mut self, limits: &HeadLimits) -> Result<bool, HeadError> {
        if self.scanned == 0 {
            // The usual case: the whole head came in one read, and httparse will find its end.
            return Ok(!self.buffer.is_empty());
        }
        let from = self.scanned.saturating_sub(BLANK_LINE.len() - 1);
        if memchr::memmem::find(&self.buffer[from..], BLANK_LINE).is_some() {
            return Ok(true);
        }
        self.note_partial(limits)?;
        Ok(false)
    }

    /// The head is not complete: checks the bound, and refuses line ends that would otherwise let a
    /// peer wait for a blank line that we never accept.
    pub(super) fn note_partial(&mut self, limits: &HeadLimits) -> Result<(), HeadError> {
        let from = self.scanned.saturating_sub(1);
        check_line_ends(&self.buffer, from)?;
        if self.buffer.len() >= limits.head_bytes_max {
            return Err(too_large(&self.buffer[..limits.head_bytes_max]));
        }
        self.scanned = self.buffer.len();
        Ok(())
    }

    /// Records the fields that httparse found in `buffer[..head_len]` and checks, on the raw bytes,
    /// that they and the start line (which ends at `start_line_end`) are all there is.
    pub(super) fn take_fields(
        buffer: &[u8],
        parsed: &[httparse::Header<'_>],
        head_len: usize,
        start_line_end: usize,
        fields: &mut Vec<Field>,
        nominated: &mut Vec<Span>,
    ) -> Result<Seen, HeadError> {
        if head_len > HEAD_BYTES_CEILING {
            return Err(too_large(&buffer[..HEAD_BYTES_CEILING]));
        }
        let head = &buffer[..head_len];
        // Every line brings one CR and one LF. If there are exactly as many control bytes as that,
        // and each line is found to end in CR LF below, there is no other control byte anywhere.
        if count_controls(head) != 2 * (parsed.len() + 2) {
            return Err(refused(HeadError::ControlByte, head));
        }
        let base = buffer.as_ptr() as usize;
        let mut seen = Seen::default();
        fields.clear();
        nominated.clear();
        let mut line_start = start_line_end;
        for header in parsed {
            let name = header.name.as_bytes();
            let name_end = line_start + name.len();
            if name.as_ptr() as usize - base != line_start || head[name_end] != b':' {
                return Err(HeadError::FieldName);
            }
            let mut value_start = header.value.as_ptr() as usize - base;
            let mut value_end = value_start + header.value.len();
            let mut line_end = value_end;
            while is_ows(head[line_end]) {
                line_end += 1;
            }
            if header.value.is_empty() {
                value_start = line_end;
                value_end = line_end;
            }
            if head[line_end..line_end + 2] != *b"\r\n" {
                return Err(HeadError::LineEnding);
            }
            line_end += 2;
            let id = classify(name);
            let value = Span::within(value_start, value_end);
            if id != FieldId::Other {
                seen.note(id, value, head, nominated)?;
            }
            fields.push(Field {
                name: Span::within(line_start, name_end),
                value,
                line: Span::within(line_start, line_end),
                id,
            });
            line_start = line_end;
        }
        if head[line_start..] != *b"\r\n" {
            return Err(HeadError::LineEnding);
        }
        Ok(seen)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.head_len]
    }

    pub(super) fn rest(&self) -> &[u8] {
        &self.buffer[self.head_len..]
    }

    pub(super) fn finish(&mut self, rest_consumed: usize) {
        let used = self
            .head_len
            .saturating_add(rest_consumed)
            .min(self.buffer.len());
        self.buffer.drain(..used);
        self.head_len = 0;
        self.scanned = 0;
        self.fields.clear();
        self.nominated.clear();
        self.seen = Seen::default();
    }
}

impl Seen {
    fn note(
        &mut self,
        id: FieldId,
        value: Span,
        head: &[u8],
        nominated: &mut Vec<Span>,
    ) -> Result<(), HeadError> {
        let bytes = value.of(head);
        match id {
            FieldId::Host => {
                self.hosts += 1;
                self.host = value;
            }
            FieldId::ContentLength => {
                self.length = match (self.length, parse_length(bytes)) {
                    (LengthSeen::Absent, Some(length)) => LengthSeen::One(length),
                    (LengthSeen::Absent, None) => LengthSeen::Malformed,
                    _ => LengthSeen::Repeated,
                };
            }
            FieldId::TransferEncoding => {
                let first = self.transfer_coding == TransferCodingSeen::Absent;
                self.transfer_coding = if first && bytes.eq_ignore_ascii_case(b"chunked") {
                    TransferCodingSeen::Chunked
                } else {
                    TransferCodingSeen::Other
                };
            }
            FieldId::Connection => self.note_options(value, head, nominated)?,
            FieldId::Upgrade => {
                self.upgrades += 1;
                self.upgrade = value;
            }
            FieldId::Expect if bytes.eq_ignore_ascii_case(b"100-continue") => {
                self.expect_continue = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn note_options(
        &mut self,
        value: Span,
        head: &[u8],
        nominated: &mut Vec<Span>,
    ) -> Result<(), HeadError> {
        for (option, span) in list_members(value.of(head)) {
            if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade_nominated = true;
            } else if nominated.len() == OPTIONS_MAX {
                return Err(HeadError::ConnectionOptionsTooMany);
            } else {
                let at = value.start as usize;
                nominated.push(Span::new(at + span.start, at + span.end));
            }
        }
        Ok(())
    }
}

/// The members of a comma-separated list, trimmed, empty ones left out.
pub(super) fn list_members(value: &[u8]) -> impl Iterator<Item = (&[u8], core::ops::Range<usize>)> {
    let mut start = 0;
    value.split(|&byte| byte == b',').filter_map(move |raw| {
        let at = start;
        start += raw.len() + 1;
        let lead = raw.iter().take_while(|&&byte| is_ows(byte)).count();
        let member = raw[lead..].trim_ascii_end();
        (!member.is_empty()).then(|| (member, at + lead..at + lead + member.len()))
    })
}

/// 1*tchar (RFC 9110 section 5.6.2).
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_tchar)
}

/// Space or tab.
pub(super) fn is_ows(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// 1*DIGIT of at most [`LENGTH_MAX`] (RFC 9110 section 8.6), and nothing else: no sign, no list.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let length = value.iter().try_fold(0u64, |length, &byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        length.checked_mul(10)?.checked_add(u64::from(digit))
    })?;
    (length <= LENGTH_MAX).then_some(length)
}

/// The longest body that may be announced, in bytes. RFC 9110, 8.6 sets no bound and warns of overflow: many
/// a server counts with a sign, and would take what is longer for a body of none.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// Bytes below 0x20 except TAB, and DEL.
fn count_controls(head: &[u8]) -> usize {
    // Small blocks with a byte-wide sum: the compiler turns each into a few vector additions.
    head.chunks(128)
        .map(|block| {
            block
                .iter()
                .map(|&byte| u8::from((byte < 0x20 && byte != b'\t') || byte == 0x7f))
                .fold(0u8, u8::wrapping_add) as usize
        })
        .sum()
}

/// Refuses an LF without CR before it and a CR without LF behind it, from `from` on. A CR at the
/// very end may still get its LF.
fn check_line_ends(bytes: &[u8], from: usize) -> Result<(), HeadError> {
    for at in memchr::memchr2_iter(b'\r', b'\n', &bytes[from..]).map(|at| from + at) {
        let fits = if bytes[at] == b'\r' {
            bytes.get(at + 1).is_none_or(|&next| next == b'\n')
        } else {
            at > 0 && bytes[at - 1] == b'\r'
        };
        if !fits {
            return Err(HeadError::LineEnding);
        }
    }
    Ok(())
}

/// The reason to give for refusing the head at the front of `buffer`: `error`, unless its lines do
/// not even end as they must.
#[cold]
pub(super) fn refused(error: HeadError, buffer: &[u8]) -> HeadError {
    let end =
        memchr::memmem::find(buffer, BLANK_LINE).map_or(buffer.len(), |at| at + BLANK_LINE.len());
    check_line_ends(&buffer[..end], 0).err().unwrap_or(error)
}

/// Which bound a head broke that does not end within `head`.
#[cold]
pub(super) fn too_large(head: &[u8]) -> HeadError {
    if memchr::memchr(b'\n', head).is_none() {
        HeadError::TargetTooLong
    } else {
        HeadError::HeadTooLarge
    }
}

/// The end of every head.
const BLANK_LINE: &[u8] = b"\r\n\r\n";

/// Connection options other than `close`, `keep-alive` and `upgrade`. At one more the head is
/// refused: each costs a comparison per field.
const OPTIONS_MAX: usize = 32;

/// Field lines that httparse gets room for; [`HeadLimits::fields_max`] cannot exceed it.
pub(super) const FIELDS_CEILING: usize = 256;
