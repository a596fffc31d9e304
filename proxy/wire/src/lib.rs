//! HTTP/1.x as bytes: heads, framing, chunks, targets, and the edits a proxy makes to them.
//!
//! `wire` never touches a socket, a clock or a random number: bytes go in, positions and decisions
//! come out. It holds no secret longer than a [`scrub::Scrubber`] lives, and it never copies the key
//! that is written into a request: a [`rewrite::Plan`] only says *where* the caller's slice goes.
//!
//! What it deliberately lacks: HTTP/2, routing, and changing what a content coding hides. Where
//! RFC 9112 lets a recipient be lenient, this crate refuses instead: two parsers that guess differently
//! are how requests are smuggled.
#![forbid(unsafe_code)]

pub mod chunked;
pub mod coding;
pub mod frames;
pub mod framing;
pub mod head;
pub mod inspect;
pub mod names;
pub mod proxy_header;
pub mod rewrite;
pub mod scrub;
pub mod sieve;
pub mod target;

/// A half-open range of positions in a head's bytes (or in a plan's text).
///
/// `start <= end`, and both fit `u32` because every head is bounded by
/// [`head::HeadLimits::head_bytes_max`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One behind the last byte.
    pub end: u32,
}

impl Span {
    /// A span from byte positions. Positions beyond `u32::MAX` cannot occur in a bounded head; they
    /// saturate rather than wrap, so a slip shows as a panic on use and never as another range.
    #[must_use]
    pub fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end);
        Self {
            start: u32::try_from(start).unwrap_or(u32::MAX),
            end: u32::try_from(end).unwrap_or(u32::MAX),
        }
    }

    /// The same within bytes that are known to be bounded, as a parsed head's are
    /// ([`head::HEAD_BYTES_CEILING`]): one comparison per head instead of two per position.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn within(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= head::HEAD_BYTES_CEILING);
        Self {
            start: start as u32,
            end: end as u32,
        }
    }

    /// The same as a `usize` range, for indexing.
    #[must_use]
    pub fn range(self) -> core::ops::Range<usize> {
        self.start as usize..self.end as usize
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The bytes of `head` it stands for.
    #[must_use]
    pub fn of(self, head: &[u8]) -> &[u8] {
        &head[self.range()]
    }
}
