//! [`Inspector`]: looks into a coded body on its way to a caller.
//!
//! A body is decoded only to be searched, and what goes on are the bytes that came. So a hit cannot be
//! overwritten, it can only end the body. A byte goes on when all that can be decoded from it and what
//! came before it has been shown clean; what may be the beginning of a hit waits, as in a
//! [`Sieve`]. What an encoder has flushed is decoded to its last character,
//! so an event of an event stream leaves as soon as it has arrived.
//!
//! The bytes themselves are searched as they came, too: a coding has places for text that no decoder
//! gives out, such as a file's name.
//!
//! Work and memory are bounded, whatever a body unfolds to: [`RATIO_MAX`], [`DECODED_BYTES_MAX`],
//! [`HELD_BYTES_MAX`]; nothing that is decoded is kept but each decoder's window, 32 KiB for gzip and
//! deflate, at most 16 MiB for br (RFC 7932, section 9.1; the larger windows that some encoders make
//! are refused) and 8 MiB for zstd (RFC 9659), half as much again while it moves.
//!
//! It lacks bodies that begin in the middle (206), and what a coding that is not known hides. It does
//! not look into archives that a body delivers as they are.

mod decode;
mod zstd;

use core::fmt;
use std::collections::VecDeque;

use zeroize::{Zeroize, Zeroizing};

use crate::coding::{CODINGS_MAX, Codings};
use crate::scrub::Scrubber;
use crate::sieve::{OnHit, Sieve};
use decode::Decoder;

/// Why a body is not searched, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Uninspected {
    /// Its coding is not known, or there are too many on top of each other.
    #[error("its Content-Encoding cannot be decoded here")]
    UnknownCoding,
    /// It is a part of a coded body (206), which cannot be decoded without what goes before.
    #[error("it is a part of a coded body")]
    Partial,
    /// It is not what its Content-Encoding says.
    #[error("it is not coded as its Content-Encoding says")]
    Malformed,
    /// It unfolds to too much: [`RATIO_MAX`], [`DECODED_BYTES_MAX`].
    #[error("it unfolds to too much")]
    UnfoldsTooFar,
    /// More than [`HELD_BYTES_MAX`] would have to wait.
    #[error("too much of it decodes to what may become a key")]
    HeldTooMuch,
}

impl Uninspected {
    /// The word for it on the audit trail.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Uninspected::UnknownCoding => "unknown_coding",
            Uninspected::Partial => "partial",
            Uninspected::Malformed => "malformed",
            Uninspected::UnfoldsTooFar => "unfolds_too_far",
            Uninspected::HeldTooMuch => "held_too_much",
        }
    }
}

/// What came of a piece.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed<'a> {
    /// What may go on: of what was held before, and of this piece.
    pub clean: &'a [u8],
    /// How often the key was found in it. Unless hits are to be reported only, nothing is clean then,
    /// and the body ends here.
    pub hits: usize,
    /// Said once, when it turns out: from here on, the body is searched as it is. What is clean may go
    /// on if such bodies may; otherwise the body ends here.
    pub uninspected: Option<Uninspected>,
}

/// Searches one coded body that comes in pieces.
pub struct Inspector<'s> {
    /// The one that is undone first, first.
    decoders: Vec<Decoder>,
    look: Look<'s>,
    /// Searches what came as it came.
    raw: Sieve<'s>,
    on_hit: OnHit,
    /// Nothing is decoded any more.
    is_blind: bool,
    /// Bytes of the body that came, and that went on.
    seen: u64,
    gone: u64,
    /// Where what is before may turn out to be clean, while a decoder has not given out all its text.
    marks: VecDeque<Mark>,
    /// What came and has not been shown clean. At most [`HELD_BYTES_MAX`].
    held: Zeroizing<Vec<u8>>,
    /// What was held and what came after it, in one piece.
    joined: Zeroizing<Vec<u8>>,
}

impl<'s> Inspector<'s> {
    /// A decoder takes about 45 KiB, br and zstd what the module's text says.
    #[must_use]
    pub fn new(codings: Codings, scrubber: &'s Scrubber, on_hit: OnHit) -> Self {
        let codings = codings.applied().iter().rev();
        Self::over(
            codings.copied().map(Decoder::new).collect(),
            scrubber,
            on_hit,
            false,
        )
    }

    /// One that decodes nothing, for a body that cannot be.
    #[must_use]
    pub fn blind(scrubber: &'s Scrubber, on_hit: OnHit) -> Self {
        Self::over(Vec::new(), scrubber, on_hit, true)
    }

    fn over(decoders: Vec<Decoder>, scrubber: &'s Scrubber, on_hit: OnHit, is_blind: bool) -> Self {
        Self {
            decoders,
            look: Look {
                text: Sieve::new(scrubber, OnHit::Report),
                allowed: DECODED_BYTES_MAX,
            },
            raw: Sieve::new(scrubber, OnHit::Report),
            on_hit,
            is_blind,
            seen: 0,
            gone: 0,
            marks: VecDeque::new(),
            held: Zeroizing::default(),
            joined: Zeroizing::default(),
        }
    }

    /// Takes what follows. With `last` the body ends here, and nothing is held. A body that ends before
    /// its coding does is no error, if whatever a reader can make of it has been searched.
    pub fn pass<'a>(&'a mut self, parts: &[&'a [u8]], last: bool) -> Passed<'a> {
        let hits_before = self.hits();
        let mut uninspected = None;
        let mut total = 0;
        // Of what was held and this piece.
        let mut clean = 0;
        for step in parts.iter().flat_map(|part| part.chunks(STEP_BYTES)) {
            if let Err(why) = self.look_into(step) {
                self.is_blind = true;
                uninspected = Some(why);
            }
            total += step.len();
            self.seen += step.len() as u64;
            if self.is_clean() {
                clean = self.settled().map_or(clean, |at| (at - self.gone) as usize);
            }
            self.mark();
        }
        let all = self.held.len() + total;
        let waiting = all - clean;
        if last {
            clean = all;
            if !self.is_blind && self.is_pending() {
                self.is_blind = true;
                uninspected = Some(Uninspected::Malformed);
            }
        } else if waiting > HELD_BYTES_MAX {
            self.is_blind = true;
            uninspected = Some(Uninspected::HeldTooMuch);
            clean = all;
        }
        let hits = self.hits() - hits_before;
        if hits > 0 && self.on_hit == OnHit::Redact {
            self.held.zeroize();
            return Passed {
                clean: &[],
                hits,
                uninspected,
            };
        }
        self.gone += clean as u64;
        Passed {
            clean: self.split(parts, clean),
            hits,
            uninspected,
        }
    }

    /// Whether something waits for what comes next, or for the body's end.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// How often the key was found so far. What stands in a body uncompressed is found twice, and counts
    /// once.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.look.text.hits().max(self.raw.hits())
    }

    fn look_into(&mut self, step: &[u8]) -> Result<(), Uninspected> {
        self.raw.pass(&[step], false);
        if self.is_blind {
            return Ok(());
        }
        self.look.allow(step.len());
        unfold(&mut self.decoders, step, &mut self.look)
    }

    /// Whether something was taken that has not been decoded yet.
    fn is_pending(&self) -> bool {
        self.decoders.iter().any(Decoder::is_pending)
    }

    /// Up to where all text has been given out; `None` if nowhere behind what has gone on.
    fn settled(&mut self) -> Option<u64> {
        if self.is_blind || self.on_hit == OnHit::Report || !self.is_pending() {
            self.marks.clear();
            return Some(self.seen);
        }
        let decoders = &self.decoders;
        let is_settled = |mark: &Mark| {
            let mut each = decoders.iter().zip(mark.taken);
            each.all(|(decoder, taken)| taken <= decoder.settled())
        };
        let mut settled = None;
        while let Some(mark) = self.marks.front()
            && is_settled(mark)
        {
            settled = Some(mark.seen);
            self.marks.pop_front();
        }
        settled
    }

    /// Remembers where it is, now and then.
    fn mark(&mut self) {
        let since = self.marks.back().map_or(self.gone, |mark| mark.seen);
        if self.is_blind || !self.is_pending() || self.seen - since < MARK_BYTES {
            return;
        }
        let mut taken = [0; CODINGS_MAX];
        for (taken, decoder) in taken.iter_mut().zip(&self.decoders) {
            *taken = decoder.taken();
        }
        self.marks.push_back(Mark {
            seen: self.seen,
            taken,
        });
    }

    /// Whether nothing of what was given out may still become a hit.
    fn is_clean(&self) -> bool {
        let text_is_clean = self.is_blind || !self.look.text.is_holding();
        self.on_hit == OnHit::Report || text_is_clean && self.raw.held_bytes() < RAW_HELD_BYTES_MIN
    }

    /// Holds back what is behind the first `clean` bytes of what was held and this, and returns those.
    fn split<'a>(&'a mut self, parts: &[&'a [u8]], clean: usize) -> &'a [u8] {
        if self.held.is_empty()
            && let [part] = parts
        {
            let (clean, rest) = part.split_at(clean);
            self.held.extend_from_slice(rest);
            return clean;
        }
        self.joined.clear();
        core::mem::swap(&mut self.joined, &mut self.held);
        let kept = self.joined.len().min(clean);
        self.held.extend_from_slice(&self.joined[kept..]);
        self.joined.truncate(kept);
        let mut left = clean - kept;
        for part in parts {
            let (clean, rest) = part.split_at(left.min(part.len()));
            left -= clean.len();
            self.joined.extend_from_slice(clean);
            self.held.extend_from_slice(rest);
        }
        &self.joined
    }
}

impl fmt::Debug for Inspector<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector")
            .field("decoders", &self.decoders.len())
            .field("held", &self.held.len())
            .finish()
    }
}

/// A place in the body.
struct Mark {
    /// Bytes of the body before it.
    seen: u64,
    /// Bytes that each decoder had taken there.
    taken: [u64; CODINGS_MAX],
}

/// Where decoded text goes: into a search, and nowhere else.
struct Look<'s> {
    text: Sieve<'s>,
    /// Bytes that may be decoded still, until more arrives.
    allowed: usize,
}

impl Look<'_> {
    fn allow(&mut self, arrived: usize) {
        let more = arrived.saturating_mul(RATIO_MAX);
        self.allowed = self.allowed.saturating_add(more).min(DECODED_BYTES_MAX);
    }

    fn count(&mut self, decoded: usize) -> Result<(), Uninspected> {
        let left = self.allowed.checked_sub(decoded);
        self.allowed = left.ok_or(Uninspected::UnfoldsTooFar)?;
        Ok(())
    }
}

/// Decodes `input`, and what that decodes to, as far as it goes.
fn unfold(decoders: &mut [Decoder], input: &[u8], look: &mut Look<'_>) -> Result<(), Uninspected> {
    let Some((first, further)) = decoders.split_first_mut() else {
        look.text.pass(&[input], false);
        return Ok(());
    };
    first.decode(input, &mut |decoded| {
        // Of every decoder: one inside may give out nothing, and still have work.
        look.count(decoded.len())?;
        unfold(further, decoded, look)
    })
}

/// How many times its size a body may unfold to, in the long run. Past it, the body is not looked into
/// any further. Text rarely passes 20, tables of zeros 200; deflate ends at 1,032, br nowhere.
pub const RATIO_MAX: usize = 250;

/// How far the decoded text may run ahead of that ratio: so a small body of few different letters is no
/// attack, and no piece costs a core more than some milliseconds.
pub const DECODED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that may wait until what they decode to is shown clean. Past it, the body is not looked into
/// any further: only one made for it decodes so much to the beginning of a key. A block of zstd, which
/// waits for its end, has at most half of it.
pub const HELD_BYTES_MAX: usize = 256 * 1024;

/// Bytes that are decoded at once. What waits is known to within so many bytes.
const STEP_BYTES: usize = 4 * 1024;

/// Marks are so many bytes apart, so that a body that comes byte by byte has few.
const MARK_BYTES: u64 = 1024;

/// The body as it came waits only if it ends in so many bytes of a key: coded bytes look like chance,
/// and fewer than these would be found in it by chance.
const RAW_HELD_BYTES_MIN: usize = 8;

#[cfg(test)]
mod tests;
