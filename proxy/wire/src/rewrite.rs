//! Heads, edited without being moved.
//!
//! An edit is a [`Plan`]: a list of pieces that name ranges of the received head, short texts of our
//! own, and slices that the caller holds (the key). Whoever sends the head gathers the slices; the
//! key is never copied on the way, and nothing is allocated once a plan is warm.
//!
//! This module decides nothing: which names are stripped and what is written in their place comes
//! with the edit. It does know what a proxy must never pass on: hop-by-hop fields, the framing of
//! the other side, names that only we may write.

use core::ops::Range;

use crate::coding;
use crate::framing::BodyFraming;
use crate::head::{
    Field, FieldId, Method, RequestHead, ResponseHead, TargetForm, Version, classify,
};
use crate::names::{NameSet, ParamSet, eq_folded};
use crate::sieve::REDACTED;
use crate::{Span, scrub, target};

/// One piece of an edited head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the received head, untouched.
    Head(Span),
    /// Bytes of the plan's own text.
    Text(Span),
    /// The caller's slice with this index: never copied.
    External(u8),
}

/// The edited head as a list of pieces. Recycled: clearing keeps its memory.
#[derive(Debug, Default)]
pub struct Plan {
    pieces: Vec<Piece>,
    text: Vec<u8>,
    stripped: Stripped,
    /// Ranges of the head that a scrubber found, in order, not overlapping.
    hits: Vec<Range<usize>>,
}

impl Plan {
    /// An empty plan, which holds no memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the edit, keeps the memory.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.text.clear();
        self.stripped.clear();
        self.hits.clear();
    }

    /// The pieces, in the order in which they are sent.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// What the edit removed, by name.
    #[must_use]
    pub fn stripped(&self) -> &Stripped {
        &self.stripped
    }

    /// Appends the edited head to `out` as slices: of `head` (the bytes the plan was made from), of
    /// the plan's text, and of `externals` by index.
    ///
    /// # Panics
    /// If `head` is not the head the plan was made from, or an external is missing.
    pub fn slices<'a>(&'a self, head: &'a [u8], externals: &[&'a [u8]], out: &mut Vec<&'a [u8]>) {
        out.extend(self.pieces.iter().map(|piece| match *piece {
            Piece::Head(span) => span.of(head),
            Piece::Text(span) => span.of(&self.text),
            Piece::External(index) => externals[usize::from(index)],
        }));
    }

    /// Bytes of the edited head.
    ///
    /// # Panics
    /// If an external is missing.
    #[must_use]
    pub fn len(&self, externals: &[&[u8]]) -> usize {
        self.pieces
            .iter()
            .map(|piece| match *piece {
                Piece::Head(span) | Piece::Text(span) => span.len(),
                Piece::External(index) => externals[usize::from(index)].len(),
            })
            .sum()
    }

    /// Adds bytes of the head; joins them to the piece before if they follow it directly.
    fn head(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        match self.pieces.last_mut() {
            Some(Piece::Head(last)) if last.end == span.start => last.end = span.end,
            _ => self.pieces.push(Piece::Head(span)),
        }
    }

    /// Adds bytes of our own.
    #[inline]
    fn text(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.text.len();
        self.text.extend_from_slice(bytes);
        let end = self.text.len();
        match self.pieces.last_mut() {
            Some(Piece::Text(last)) => last.end = end as u32,
            _ => self.pieces.push(Piece::Text(Span::new(start, end))),
        }
    }

    fn external(&mut self, index: u8) {
        self.pieces.push(Piece::External(index));
    }

    fn framing(&mut self, framing: BodyFraming) {
        match framing {
            BodyFraming::Length(length) => {
                self.text(b"Content-Length: ");
                self.text(itoa::Buffer::new().format(length).as_bytes());
                self.text(b"\r\n");
            }
            BodyFraming::Chunked => self.text(b"Transfer-Encoding: chunked\r\n"),
            BodyFraming::None | BodyFraming::UntilClose => {}
        }
    }
}

/// Names of what was removed, for the audit record: lower-case header names, `?name` for query
/// parameters. Names only, never values; each once; bounded.
#[derive(Debug, Default)]
pub struct Stripped {
    names: String,
    /// End of each name in `names`.
    ends: Vec<u16>,
    truncated: bool,
}

impl Stripped {
    /// The names, in the order of their first removal.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let name = &self.names[start..usize::from(end)];
            start = usize::from(end);
            name
        })
    }

    /// Whether nothing was removed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether more was removed than there was room to name.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    fn clear(&mut self) {
        self.names.clear();
        self.ends.clear();
        self.truncated = false;
    }

    fn add(&mut self, mark: &str, name: &str) {
        let fits = |known: &str| known.strip_prefix(mark) == Some(name);
        if self.iter().any(fits) {
            return;
        }
        if self.ends.len() == STRIPPED_MAX || mark.len() + name.len() > STRIPPED_NAME_BYTES_MAX {
            self.truncated = true;
            return;
        }
        self.names.push_str(mark);
        self.names.push_str(name);
        self.ends.push(self.names.len() as u16);
    }

    /// Adds a name that the peer spelt: only tokens get here, so lower-casing is all it needs.
    fn add_received(&mut self, name: &[u8]) {
        let mut lower = [0u8; STRIPPED_NAME_BYTES_MAX];
        let Some(lower) = lower.get_mut(..name.len()) else {
            self.truncated = true;
            return;
        };
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        if let Ok(lower) = core::str::from_utf8(lower) {
            self.add("", lower);
        }
    }
}

/// What becomes of a request's head on its way upstream.
#[derive(Clone, Copy, Debug)]
pub struct RequestEdit<'a> {
    /// Bytes cut from the front of the path (explicit mode). More than the path has means all of it.
    pub path_strip: usize,
    /// Put in their place. It and what follows are joined by exactly one `/`, and the result always
    /// starts with `/`.
    pub path_insert: &'a [u8],
    /// Value of the one Host field written, which is the first field.
    pub host: &'a [u8],
    /// Fields to remove.
    pub strip_fields: &'a NameSet,
    /// Query parameters to remove.
    pub strip_params: &'a ParamSet,
    /// Query parameters to keep although `strip_params` names them.
    pub keep_params: &'a ParamSet,
    /// Whether Cookie goes too.
    pub strip_cookies: bool,
    /// External index of a whole `Name: value\r\n` line.
    pub inject_line: Option<u8>,
    /// External index of `name=value`, already encoded; placed first in the query.
    pub inject_param: Option<u8>,
    /// The body's framing towards the upstream: our own line is written, theirs is removed. `None`
    /// and `UntilClose` write no line; a request cannot have the latter.
    pub framing: BodyFraming,
    /// `Some(token)` writes `Connection: upgrade` and `Upgrade: token`; without it no upgrade passes.
    pub upgrade: Option<&'a [u8]>,
    /// Pass `Expect: 100-continue` on. Any other expectation is removed.
    pub expect_continue: bool,
    /// The answer will be searched. Then no WebSocket extension is offered (RFC 6455, section 9): each
    /// of them may change what a frame's bytes mean, as `permessage-deflate` does. And only content
    /// codings that can be looked into are asked for ([`coding::write_acceptable`]).
    pub searched: bool,
    /// Further complete lines (CDN-Loop, Via and its kin), each with its CRLF; copied into the plan.
    pub lines: &'a [&'a [u8]],
}

/// Plans a request's head as the upstream shall see it.
///
/// Absolute-form becomes origin-form, HTTP/1.0 becomes HTTP/1.1. Hop-by-hop fields go, and those
/// that Connection nominates; but a nomination never removes what we write, nor CDN-Loop. What the
/// caller says of where the request came from (Via, Forwarded and their kin) goes, and fields
/// named `claviger-*` and `_` spellings of names that steer a proxy go in any case. The query is
/// edited as bytes, never decoded and encoded again: what stays, stays byte for byte.
pub fn request(head: &RequestHead, edit: &RequestEdit<'_>, plan: &mut Plan) {
    plan.clear();
    request_line(head, edit, plan);
    plan.text(b"Host: ");
    plan.text(edit.host);
    plan.text(b"\r\n");
    for field in head.fields() {
        let name = head.name(field);
        let keep = match field.id {
            FieldId::Other | FieldId::AcceptEncoding | FieldId::ContentEncoding => {
                match edit.strip_fields.get(name) {
                    Some(known) => {
                        plan.stripped.add("", known);
                        false
                    }
                    None if edit.searched && eq_folded(name, WEBSOCKET_EXTENSIONS) => false,
                    None if is_nominated(name, head.nominated(), head.bytes()) => false,
                    None if edit.searched && field.id == FieldId::AcceptEncoding => {
                        accept_encoding(field, head, plan)
                    }
                    None => true,
                }
            }
            FieldId::CdnLoop => true,
            FieldId::Expect => {
                edit.expect_continue
                    && head.expects_continue()
                    && head.value(field).eq_ignore_ascii_case(b"100-continue")
            }
            FieldId::Trailer => edit.framing == BodyFraming::Chunked,
            FieldId::Cookie if edit.strip_cookies || edit.strip_fields.contains(name) => {
                plan.stripped.add("", "cookie");
                false
            }
            FieldId::Cookie | FieldId::AltSvc => {
                !is_nominated(name, head.nominated(), head.bytes())
            }
            FieldId::ProxyAuthorization | FieldId::Origin | FieldId::Own | FieldId::Shadow => {
                plan.stripped.add_received(name);
                false
            }
            _ => false,
        };
        if keep {
            plan.head(field.line);
        }
    }
    for line in edit.lines {
        plan.text(line);
    }
    if let Some(index) = edit.inject_line {
        plan.external(index);
    }
    plan.framing(edit.framing);
    upgrade(edit.upgrade, plan);
    plan.text(b"\r\n");
}

/// What becomes of a response's head on its way to the caller.
#[derive(Clone, Copy, Debug)]
pub struct ResponseEdit<'a> {
    /// The body's framing towards the caller: our own line is written, theirs is removed. `None`
    /// and `UntilClose` write no line.
    pub framing: BodyFraming,
    /// Write `Connection: close`.
    pub close: bool,
    /// The caller speaks HTTP/1.0: a kept connection must be announced. The status line says
    /// HTTP/1.1 all the same (RFC 9110 section 2.5).
    pub http10: bool,
    /// `Some(token)` writes `Connection: upgrade` and `Upgrade: token`, for a 101.
    pub upgrade: Option<&'a [u8]>,
    /// Looks for the key in what is passed on.
    pub scrubber: Option<&'a scrub::Scrubber>,
    /// Keep Content-Length although there is no body (HEAD, 304). Only with `BodyFraming::None`.
    pub keep_length: bool,
    /// Further fields to remove.
    pub strip_fields: Option<&'a NameSet>,
}

/// Plans a response's head as the caller shall see it; returns how often the scrubber found
/// something in the head received.
///
/// Hop-by-hop fields go, those that Connection nominates, Alt-Svc (it would lead around us),
/// `claviger-*` and what `strip_fields` names. Each hit is replaced by `redacted`; one that is not wholly inside a value takes the
/// whole line with it, and one that reaches out of the reason phrase the phrase.
pub fn response(head: &ResponseHead, edit: &ResponseEdit<'_>, plan: &mut Plan) -> usize {
    plan.clear();
    if let Some(scrubber) = edit.scrubber {
        scrubber.find_all(head.bytes(), &mut plan.hits);
    }
    status_line(head, plan);
    let keep_length = edit.keep_length && edit.framing == BodyFraming::None;
    for field in head.fields() {
        let name = head.name(field);
        let keep = match field.id {
            FieldId::Other
            | FieldId::Cookie
            | FieldId::Host
            | FieldId::Expect
            | FieldId::AcceptEncoding
            | FieldId::ContentEncoding
            | FieldId::Origin => {
                !is_nominated(name, head.nominated(), head.bytes())
                    && !edit.strip_fields.is_some_and(|strip| strip.contains(name))
            }
            FieldId::ContentLength => keep_length,
            FieldId::Trailer => edit.framing == BodyFraming::Chunked,
            FieldId::CdnLoop => true,
            _ => false,
        };
        if keep {
            scrubbed_line(field.line, field.value, plan);
        }
    }
    plan.framing(edit.framing);
    if edit.close {
        plan.text(b"Connection: close\r\n");
    } else if edit.http10 && edit.upgrade.is_none() {
        plan.text(b"Connection: keep-alive\r\n");
    }
    upgrade(edit.upgrade, plan);
    plan.text(b"\r\n");
    plan.hits.len()
}

/// Copies trailer lines (as [`ChunkedDecoder::trailers`](crate::chunked::ChunkedDecoder::trailers)
/// gives them) to `out`, without those that may not stand in a trailer (framing, routing,
/// authentication, content format, hop-by-hop: RFC 9110 section 6.5.1) and those in `strip`.
pub fn trailers(lines: &[u8], strip: &NameSet, out: &mut Vec<u8>) {
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let name = &line[..colon];
        let forbidden = classify(name) != FieldId::Other
            || strip.contains(name)
            || TRAILER_FORBIDDEN.iter().any(|known| eq_folded(name, known))
            || crate::names::starts_folded(name, b"content-")
            || crate::names::starts_folded(name, b"proxy-");
        if !forbidden {
            out.extend_from_slice(line);
        }
    }
}

fn request_line(head: &RequestHead, edit: &RequestEdit<'_>, plan: &mut Plan) {
    let target = head.target_span();
    plan.head(Span {
        start: 0,
        end: target.start,
    });
    if head.form() == TargetForm::Authority || head.form() == TargetForm::Asterisk {
        plan.head(target);
    } else if head.method() == Method::Options && head.path() == b"*" {
        // RFC 9112, 3.2.4: `OPTIONS http://host` means the server as a whole.
        plan.text(b"*");
    } else {
        path(head, edit, plan);
        query(head, edit, plan);
    }
    match head.version() {
        Version::Http11 => plan.head(Span {
            start: target.end,
            end: head.line_end(),
        }),
        Version::Http10 => plan.text(b" HTTP/1.1\r\n"),
    }
}

fn path(head: &RequestHead, edit: &RequestEdit<'_>, plan: &mut Plan) {
    let span = head.path_span();
    let cut = edit.path_strip.min(span.len()) as u32;
    let kept = Span {
        start: span.start + cut,
        end: span.end,
    };
    let kept_rooted = kept.of(head.bytes()).first() == Some(&b'/');
    if !edit.path_insert.is_empty() {
        if edit.path_insert[0] != b'/' {
            plan.text(b"/");
        }
        match edit.path_insert {
            [insert @ .., b'/'] if kept_rooted => plan.text(insert),
            insert => plan.text(insert),
        }
        if !kept.is_empty() && !kept_rooted && !edit.path_insert.ends_with(b"/") {
            plan.text(b"/");
        }
    } else if !kept_rooted {
        plan.text(b"/");
    }
    plan.head(kept);
}

/// Writes the query without what is stripped. A kept parameter keeps the separator before it, so the
/// only separator that goes with a removed one is its own; right behind the injected parameter stands
/// `&`, since not every server ends a value at `;`.
fn query(head: &RequestHead, edit: &RequestEdit<'_>, plan: &mut Plan) {
    enum Before {
        Path,
        Injected,
        Kept,
    }
    let mut before = Before::Path;
    if let Some(index) = edit.inject_param {
        plan.text(b"?");
        plan.external(index);
        before = Before::Injected;
    }
    let Some(query) = head.query_span() else {
        return;
    };
    let bytes = query.of(head.bytes());
    if bytes.is_empty() && edit.inject_param.is_none() {
        plan.head(Span {
            start: query.start - 1,
            end: query.end,
        });
    }
    for param in target::params(bytes) {
        let name = &bytes[param.name];
        if let Some(known) = edit.strip_params.get(name)
            && !edit.keep_params.contains(name)
        {
            plan.stripped.add("?", known);
            continue;
        }
        let start = query.start + param.whole.start as u32;
        let end = query.start + param.whole.end as u32;
        // The byte before a parameter is the `?` or its separator.
        let joint = Span {
            start: start - 1,
            end: start,
        };
        match before {
            Before::Path if start == query.start => plan.head(joint),
            Before::Path => plan.text(b"?"),
            Before::Injected => plan.text(b"&"),
            Before::Kept => plan.head(joint),
        }
        plan.head(Span { start, end });
        before = Before::Kept;
    }
}

/// Whether the field may stay as it is. If not, one in its place is planned.
fn accept_encoding(field: &Field, head: &RequestHead, plan: &mut Plan) -> bool {
    let value = head.value(field);
    if coding::is_acceptable(value) {
        return true;
    }
    plan.text(b"Accept-Encoding: ");
    coding::write_acceptable(value, |bytes| plan.text(bytes));
    plan.text(b"\r\n");
    false
}

fn upgrade(token: Option<&[u8]>, plan: &mut Plan) {
    if let Some(token) = token {
        plan.text(b"Connection: upgrade\r\nUpgrade: ");
        plan.text(token);
        plan.text(b"\r\n");
    }
}

/// Writes the status line, always as HTTP/1.1 and always with the space that stands before a reason,
/// even an absent one.
fn status_line(head: &ResponseHead, plan: &mut Plan) {
    let end = head.line_end();
    let reason = head.reason_span();
    let as_received = head.version() == Version::Http11 && reason.start > STATUS_END;
    if as_received && scrubbed_line(Span { start: 0, end }, reason, plan) {
        return;
    }
    plan.text(b"HTTP/1.1 ");
    plan.head(Span {
        start: VERSION_LEN + 1,
        end: STATUS_END,
    });
    plan.text(b" ");
    if !scrubbed_line(
        Span {
            start: reason.start,
            end,
        },
        reason,
        plan,
    ) {
        plan.text(b"\r\n");
    }
}

/// Adds a line of the head, with the hits in `value` replaced. If a hit touches the line elsewhere,
/// replacing it could change what the line is: then nothing is added, and the answer is false.
fn scrubbed_line(line: Span, value: Span, plan: &mut Plan) -> bool {
    if plan.hits.is_empty() {
        plan.head(line);
        return true;
    }
    let hits = core::mem::take(&mut plan.hits);
    let touching = || {
        hits.iter()
            .map(|hit| Span::new(hit.start, hit.end))
            .filter(|hit| hit.start < line.end && hit.end > line.start)
    };
    let replaceable = touching().all(|hit| hit.start >= value.start && hit.end <= value.end);
    if replaceable {
        let mut at = line.start;
        for hit in touching() {
            plan.head(Span {
                start: at,
                end: hit.start,
            });
            plan.text(REDACTED);
            at = hit.end;
        }
        plan.head(Span {
            start: at,
            end: line.end,
        });
    }
    plan.hits = hits;
    replaceable
}

/// Whether Connection names this field. One without options of its own, which is nearly every one,
/// costs a comparison of lengths.
#[inline]
fn is_nominated(name: &[u8], nominated: &[Span], bytes: &[u8]) -> bool {
    nominated
        .iter()
        .any(|span| span.of(bytes).eq_ignore_ascii_case(name))
}

/// RFC 6455, section 11.3.2.
const WEBSOCKET_EXTENSIONS: &[u8] = b"sec-websocket-extensions";

/// Names that [`Stripped`] holds. Further ones set [`Stripped::truncated`].
const STRIPPED_MAX: usize = 32;

/// Bytes of one name in [`Stripped`]. A longer one sets [`Stripped::truncated`] instead.
const STRIPPED_NAME_BYTES_MAX: usize = 128;

/// Bytes of `HTTP/1.1`.
const VERSION_LEN: u32 = 8;

/// Bytes of `HTTP/1.1 200`.
const STATUS_END: u32 = 12;

/// Beside hop-by-hop names, `content-*` and `proxy-*`: fields that must not stand in a trailer.
const TRAILER_FORBIDDEN: &[&[u8]] = &[
    b"age",
    b"authorization",
    b"cache-control",
    b"date",
    b"expires",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"location",
    b"max-forwards",
    b"pragma",
    b"range",
    b"retry-after",
    b"set-cookie",
    b"vary",
    b"warning",
    b"www-authenticate",
];
