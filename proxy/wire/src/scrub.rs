//! Finding a secret in what comes back, in the forms in which APIs echo it.
//!
//! The searcher works on one contiguous piece at a time. Whoever streams keeps the last
//! [`Scrubber::unfinished`] bytes of a piece back, so that no hit straddles two pieces, and so that
//! nothing waits that cannot be the start of one; [`Sieve`](crate::sieve::Sieve) does that. What
//! replaces a hit is the caller's choice.
//!
//! It lacks decompression: [`Inspector`](crate::inspect::Inspector) unfolds a coded body for it.

mod escape;
mod samples;

use core::fmt;
use core::ops::Range;

use zeroize::{Zeroize, Zeroizing};

use crate::target;
use escape::{ESCAPE_BYTES_MAX, Escape, INTRODUCERS};
use samples::{BLOCK_BYTES, Samples};

/// Searches for any of a set of needles. They, and the tables made of them, are overwritten when it
/// is dropped.
///
/// No hit is shorter than the shortest needle, so only every so many bytes of the input are looked at
/// ([`Samples`]): of a key of 40 characters four in thirty-seven, for all its forms at once. Where
/// a hit may stand around them, the needles are compared.
///
/// No list of needles holds every mixture of escaped characters and bare ones, so those of
/// [`of_secrets`](Self::of_secrets) are compared by their escapes, too: the first one in a disguised secret
/// stands for one of its characters, and what goes before stands bare.
pub struct Scrubber {
    /// Longest first, no duplicates, each at least [`NEEDLE_BYTES_MIN`] long.
    needles: Vec<Zeroizing<Vec<u8>>>,
    /// Where to look.
    samples: Samples,
    /// Those needles that are found with any of their characters escaped, too.
    disguised: Vec<Zeroizing<Vec<u8>>>,
    /// By character: which of `disguised` contain it, and where, the last place first.
    places: ByByte,
    /// By first byte: which of `needles` begin with it, and 1 for those that `disguised` has too.
    beginnings: ByByte,
    /// No needle contains a line's end, so none reaches over one.
    ends_with_line: bool,
}

impl Scrubber {
    /// A searcher for these needles; see [`forms`]. Needles under 4 bytes are left out: they would
    /// be found everywhere.
    #[must_use]
    pub fn new(needles: &[&[u8]]) -> Self {
        let owned = |needle: &&[u8]| Zeroizing::new(needle.to_vec());
        Self::searching(needles.iter().map(owned).collect(), Vec::new())
    }

    /// A searcher for secrets in all their [`forms`], and for further renderings of them. The secrets,
    /// their base64 and the renderings are found with any of their characters escaped, too. What is
    /// under 4 bytes is left out, as above.
    #[must_use]
    pub fn of_secrets(secrets: &[&[u8]], renderings: &[&[u8]]) -> Self {
        let mut needles: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        let mut disguised: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        for secret in secrets {
            needles.extend(forms(secret).into_iter().map(Zeroizing::new));
            disguised.extend(base64_forms(secret).into_iter().map(Zeroizing::new));
        }
        for text in secrets.iter().chain(renderings) {
            disguised.push(Zeroizing::new(text.to_vec()));
            needles.push(Zeroizing::new(text.to_vec()));
        }
        Self::searching(needles, disguised)
    }

    /// A searcher for everything that any of these finds.
    #[must_use]
    pub fn of_all<'a>(scrubbers: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut needles = Vec::new();
        let mut disguised = Vec::new();
        for scrubber in scrubbers {
            needles.extend(scrubber.needles.iter().cloned());
            disguised.extend(scrubber.disguised.iter().cloned());
        }
        Self::searching(needles, disguised)
    }

    fn searching(
        mut needles: Vec<Zeroizing<Vec<u8>>>,
        mut disguised: Vec<Zeroizing<Vec<u8>>>,
    ) -> Self {
        needles.retain(|needle| needle.len() >= NEEDLE_BYTES_MIN);
        disguised.retain(|needle| needle.len() >= NEEDLE_BYTES_MIN);
        disguised.sort_unstable_by(|a, b| a.cmp(b));
        disguised.dedup();
        needles.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        let samples = Samples::of(&needles, disguised.iter().map(|needle| &needle[..]));
        let places = disguised.iter().enumerate().flat_map(|(index, needle)| {
            let places = needle.iter().enumerate().rev();
            places.map(move |(place, &byte)| (byte, [index as u32, place as u32]))
        });
        let places = ByByte::new(places);
        let beginnings = needles.iter().enumerate().map(|(at, needle)| {
            let is_disguised = disguised
                .binary_search_by(|known| known.cmp(needle))
                .is_ok();
            (needle[0], [at as u32, u32::from(is_disguised)])
        });
        let beginnings = ByByte::new(beginnings);
        let ends_with_line = needles.iter().all(|needle| !needle.contains(&b'\n'));
        Self {
            needles,
            samples,
            disguised,
            places,
            beginnings,
            ends_with_line,
        }
    }

    /// The first hit; of several that start there, the longest.
    #[must_use]
    pub fn find(&self, hay: &[u8]) -> Option<Range<usize>> {
        let mut hits = Vec::new();
        self.search(hay, &mut hits);
        hits.into_iter()
            .min_by_key(|hit| (hit.start, usize::MAX - hit.end))
    }

    /// Every hit, in order; those that overlap are one. `hits` is cleared first.
    pub fn find_all(&self, hay: &[u8], hits: &mut Vec<Range<usize>>) {
        hits.clear();
        self.search(hay, hits);
        if hits.len() > 1 {
            hits.sort_unstable_by_key(|hit| hit.start);
            hits.dedup_by(|later, earlier| {
                let overlap = later.start < earlier.end;
                if overlap {
                    earlier.end = earlier.end.max(later.end);
                }
                overlap
            });
        }
    }

    /// Adds every hit there is, in no order, some of them more than once.
    fn search(&self, hay: &[u8], hits: &mut Vec<Range<usize>>) {
        if self.is_empty() {
            return;
        }
        // Escapes before it were looked at.
        let mut escapes_seen = 0;
        let mut from = 0;
        while let Some(sample) = self.samples.next(hay, from) {
            // A hit that this sample is the first one in begins behind the sample before. If it is
            // disguised, its first escape stands there too, or begins in the block at the latest...
            let begin = (sample + 1).saturating_sub(self.samples.stride());
            let mut end = sample + BLOCK_BYTES;
            for place in self.samples.places_at(hay, sample) {
                let needle = &self.needles[place.needle as usize];
                let Some(start) = sample.checked_sub(place.before as usize) else {
                    continue;
                };
                let both = needle.iter().zip(&hay[start..]);
                let alike = both.take_while(|(one, other)| one == other).count();
                if alike == needle.len() {
                    hits.push(start..start + alike);
                }
                // ... or the block is part of what goes bare before the first escape.
                end = end.max(start + alike + 1);
            }
            self.search_escapes(hay, escapes_seen.max(begin)..end.min(hay.len()), hits);
            escapes_seen = escapes_seen.max(end);
            from = sample + self.samples.stride();
        }
    }

    /// Adds the secrets whose first escape stands in this range.
    fn search_escapes(&self, hay: &[u8], range: Range<usize>, hits: &mut Vec<Range<usize>>) {
        let [percent, backslash, ampersand] = INTRODUCERS;
        let within = hay.get(range.clone()).unwrap_or_default();
        // Where there is one there are more: to be called for each costs more than to look at each byte.
        let Some(first) = memchr::memchr3(percent, backslash, ampersand, within) else {
            return;
        };
        for at in range.start + first..range.end {
            if INTRODUCERS.contains(&hay[at])
                && let Some(&next) = hay.get(at + 1)
                && self.samples.may_be_neighbours(hay[at], next)
            {
                self.search_escape(hay, at, hits);
            }
        }
    }

    /// Adds the secrets whose first escape stands at `at`.
    #[inline(never)]
    fn search_escape(&self, hay: &[u8], at: usize, hits: &mut Vec<Range<usize>>) {
        let escape = Escape::read(&hay[at..]);
        let readings = [escape.once, escape.twice];
        for (character, _) in readings.into_iter().flatten() {
            for &[index, place] in self.places.of(character) {
                let (needle, place) = (&self.disguised[index as usize], place as usize);
                if hay[..at].ends_with(&needle[..place])
                    && let Disguise::Whole(length) = disguise(&needle[place..], &hay[at..])
                {
                    hits.push(at - place..at + length);
                }
            }
        }
    }

    /// How many bytes at the end of `hay` could be the start of a hit that more input completes: the
    /// bytes to hold back when streaming. Fewer than [`hit_bytes_max`](Self::hit_bytes_max), usually
    /// 0, and always 0 where a line has just ended.
    ///
    /// Meant for input in which [`find`](Self::find) finds nothing more.
    #[must_use]
    pub fn unfinished(&self, hay: &[u8]) -> usize {
        let tail_of = |longest: usize| {
            let tail = &hay[hay.len() - longest.saturating_sub(1).min(hay.len())..];
            let line_end = memchr::memrchr(b'\n', tail).filter(|_| self.ends_with_line);
            line_end.map_or(tail, |at| &tail[at + 1..])
        };
        let mut tail = tail_of(self.hit_bytes_max());
        if tail.is_empty() {
            return 0;
        }
        let [percent, backslash, ampersand] = INTRODUCERS;
        if memchr::memchr3(percent, backslash, ampersand, tail).is_none() {
            // Nothing is disguised here, and bare needles are shorter.
            tail = tail_of(self.needle_bytes_max());
        }
        (0..tail.len())
            .find(|&at| self.may_become_hit(&tail[at..]))
            .map_or(0, |at| tail.len() - at)
    }

    fn may_become_hit(&self, rest: &[u8]) -> bool {
        if let [first, second, ..] = *rest
            && !self.samples.may_be_neighbours(first, second)
        {
            return false;
        }
        let cut_off = |needle: &[u8]| disguise(needle, rest) == Disguise::CutOff;
        let beginnings = self.beginnings.of(rest[0]).iter();
        let may_be_bare = beginnings.copied().any(|[index, is_disguised]| {
            let needle = &self.needles[index as usize];
            rest.len() < needle.len() && needle.starts_with(rest)
                || is_disguised == 1 && cut_off(needle)
        });
        if may_be_bare || !INTRODUCERS.contains(&rest[0]) {
            return may_be_bare;
        }
        let escape = Escape::read(rest);
        if escape.unfinished {
            // Of any character.
            return self.disguised.iter().any(|needle| cut_off(needle));
        }
        let readings = [escape.once, escape.twice].into_iter().flatten();
        readings
            .flat_map(|(character, _)| self.beginnings.of(character))
            .any(|&[index, is_disguised]| {
                is_disguised == 1 && cut_off(&self.needles[index as usize])
            })
    }

    /// Bytes of the longest hit there can be, 0 if there is none.
    #[must_use]
    pub fn hit_bytes_max(&self) -> usize {
        let longest = self.disguised.iter().map(|needle| needle.len()).max();
        self.needle_bytes_max()
            .max(ESCAPE_BYTES_MAX * longest.unwrap_or(0))
    }

    /// Whether there is nothing to find.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.needles.is_empty()
    }

    /// Length of the longest needle, 0 if there is none.
    #[must_use]
    pub fn needle_bytes_max(&self) -> usize {
        self.needles.first().map_or(0, |needle| needle.len())
    }
}

/// Pairs by byte, overwritten when dropped: they tell the needles.
struct ByByte {
    /// Where each byte's pairs begin, and where the last ones end.
    starts: Zeroizing<Vec<u32>>,
    pairs: Zeroizing<Vec<[u32; 2]>>,
}

impl ByByte {
    /// The pairs of a byte keep their order.
    fn new(pairs: impl Iterator<Item = (u8, [u32; 2])> + Clone) -> Self {
        let mut starts = Zeroizing::new(vec![0u32; 257]);
        for (byte, _) in pairs.clone() {
            starts[usize::from(byte) + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        // Filled in place: a vector that grows leaves copies behind.
        let mut next = Zeroizing::new(starts.to_vec());
        let mut sorted = Zeroizing::new(vec![[0; 2]; starts[256] as usize]);
        for (byte, pair) in pairs {
            let next = &mut next[usize::from(byte)];
            sorted[*next as usize] = pair;
            *next += 1;
        }
        Self {
            starts,
            pairs: sorted,
        }
    }

    fn of(&self, byte: u8) -> &[[u32; 2]] {
        let at = usize::from(byte);
        &self.pairs[self.starts[at] as usize..self.starts[at + 1] as usize]
    }
}

/// How far input goes on as a secret does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disguise {
    /// To its end, in so many bytes.
    Whole(usize),
    /// The input ends first.
    CutOff,
    /// It is something else.
    Other,
}

/// Compares the beginning of `input` with `secret`, any of whose characters may be escaped.
fn disguise(secret: &[u8], input: &[u8]) -> Disguise {
    let mut at = 0;
    for &expected in secret {
        let rest = &input[at..];
        let Some(&byte) = rest.first() else {
            return Disguise::CutOff;
        };
        let escape = if INTRODUCERS.contains(&byte) {
            Escape::read(rest)
        } else {
            Escape::default()
        };
        let readings = [escape.twice, escape.once, Some((byte, 1))];
        let fits = |(character, _): &(u8, usize)| *character == expected;
        match readings.into_iter().flatten().find(fits) {
            Some((_, length)) => at += length,
            None if escape.unfinished => return Disguise::CutOff,
            None => return Disguise::Other,
        }
    }
    Disguise::Whole(at)
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrubber")
            .field("needles", &self.needles.len())
            .finish()
    }
}

/// The forms in which a secret may come back: raw, percent-encoded (digits in either case, and once
/// more inside another URL), form-encoded, escaped as in JSON, a quoted string or HTML, base64 in its
/// three alignments (the part that does not depend on the neighbours, both alphabets), hexadecimal
/// in either case. No form twice: a key of letters and digits has nine at most.
///
/// Each form is as good as the secret; the caller overwrites them when done.
#[must_use]
pub fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms: Vec<Vec<u8>> = Vec::new();
    let mut note = |mut form: Vec<u8>| {
        if form.is_empty() || forms.contains(&form) {
            form.zeroize();
        } else {
            forms.push(form);
        }
    };
    note(secret.to_vec());
    for digits in [b"0123456789ABCDEF", b"0123456789abcdef"] {
        let percent = encoded(secret, digits, target::is_unreserved);
        note(encoded(&percent, digits, target::is_unreserved));
        note(percent);
        // The WHATWG form encoding: `*` stays, `~` does not, a space becomes `+`.
        let stays = |byte: u8| {
            byte == b' ' || byte == b'*' || (byte != b'~' && target::is_unreserved(byte))
        };
        let mut form = encoded(secret, digits, stays);
        form.iter_mut()
            .filter(|byte| **byte == b' ')
            .for_each(|byte| *byte = b'+');
        note(form);
        note(hex(secret, digits));
    }
    for escapes in [QUOTED, JSON_SLASH, JSON_UNICODE, HTML, HTML_NUMERIC] {
        note(escaped(secret, escapes));
    }
    base64_forms(secret).into_iter().for_each(note);
    forms
}

/// In its three alignments, in both alphabets.
fn base64_forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let alphabets = [b"+/", b"-_"].into_iter();
    alphabets
        .flat_map(|last_two| (0..3).map(|offset| base64_inner(secret, offset, *last_two)))
        .collect()
}

/// Bytes, and what stands for each.
type Escapes = &'static [(u8, &'static str)];

/// A quoted string (RFC 9110 section 5.6.4), and JSON as most write it.
const QUOTED: Escapes = &[(b'"', "\\\""), (b'\\', "\\\\")];

/// JSON as PHP writes it.
const JSON_SLASH: Escapes = &[(b'"', "\\\""), (b'\\', "\\\\"), (b'/', "\\/")];

/// JSON as Go writes it.
const JSON_UNICODE: Escapes = &[
    (b'"', "\\\""),
    (b'\\', "\\\\"),
    (b'&', "\\u0026"),
    (b'<', "\\u003c"),
    (b'>', "\\u003e"),
];

/// HTML as most write it.
const HTML: Escapes = &[
    (b'&', "&amp;"),
    (b'<', "&lt;"),
    (b'>', "&gt;"),
    (b'"', "&quot;"),
    (b'\'', "&#39;"),
];

/// HTML as Go's templates write it.
const HTML_NUMERIC: Escapes = &[
    (b'&', "&amp;"),
    (b'<', "&lt;"),
    (b'>', "&gt;"),
    (b'"', "&#34;"),
    (b'\'', "&#39;"),
    (b'+', "&#43;"),
];

fn escaped(secret: &[u8], escapes: Escapes) -> Vec<u8> {
    // Room for the longest escape everywhere: growing would leave a copy behind.
    let mut out = Vec::with_capacity(ESCAPE_BYTES_MAX * secret.len());
    for &byte in secret {
        match escapes.iter().find(|(known, _)| *known == byte) {
            Some((_, text)) => out.extend_from_slice(text.as_bytes()),
            None => out.push(byte),
        }
    }
    out
}

fn hex(secret: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * secret.len());
    out.extend(secret.iter().flat_map(|&byte| hex_pair(byte, digits)));
    out
}

fn hex_pair(byte: u8, digits: &[u8; 16]) -> [u8; 2] {
    [
        digits[usize::from(byte >> 4)],
        digits[usize::from(byte & 15)],
    ]
}

fn encoded(secret: &[u8], digits: &[u8; 16], stays: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 * secret.len());
    for &byte in secret {
        if stays(byte) {
            out.push(byte);
        } else {
            out.push(b'%');
            out.extend(hex_pair(byte, digits));
        }
    }
    out
}

/// The characters that base64 gives for `secret` when `offset` bytes stand before it in a group of
/// three, without those that also depend on a neighbour.
fn base64_inner(secret: &[u8], offset: usize, last_two: [u8; 2]) -> Vec<u8> {
    let bit = |at: usize| secret[at / 8] >> (7 - at % 8) & 1;
    let first = (8 * offset).div_ceil(6);
    let end = 8 * (offset + secret.len()) / 6;
    (first..end)
        .map(|character| {
            let start = 6 * character - 8 * offset;
            let value = (start..start + 6).fold(0u8, |value, at| value << 1 | bit(at));
            match value {
                0..26 => b'A' + value,
                26..52 => b'a' + value - 26,
                52..62 => b'0' + value - 52,
                _ => last_two[usize::from(value - 62)],
            }
        })
        .collect()
}

/// Bytes below which a needle is left out: it would be found everywhere and garble what passes.
const NEEDLE_BYTES_MIN: usize = BLOCK_BYTES;

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;

    fn scrubber(needles: &[&str]) -> Scrubber {
        let needles: Vec<&[u8]> = needles.iter().map(|needle| needle.as_bytes()).collect();
        Scrubber::new(&needles)
    }

    #[test]
    fn finds_the_first_and_longest() {
        let check = |needles: &[&str], hay: &str, expected: Option<Range<usize>>| {
            assert_eq!(
                scrubber(needles).find(hay.as_bytes()),
                expected,
                "{needles:?} in {hay}"
            );
        };
        check(&[], "anything", None);
        check(&["abc"], "abc is too short to search for", None);
        check(&["secret"], "", None);
        check(&["secret"], "secre", None);
        check(&["secret"], "secret", Some(0..6));
        check(&["secret"], "a secret here", Some(2..8));
        check(&["secret"], "ends in secret", Some(8..14));
        check(&["secret"], "SECRET", None);
        check(&["secret", "secretive"], "a secretive secret", Some(2..11));
        check(&["secret", "secretive"], "a secretiv", Some(2..8));
        check(&["aaaa"], "aaabaaaa", Some(4..8));
        check(&["later", "early bird"], "early bird, later", Some(0..10));
        let long = "0123456789".repeat(50);
        check(&[&long], &format!("x{long}"), Some(1..501));
        check(&[&long], &long[1..], None);
    }

    #[test]
    fn agrees_with_a_naive_search() {
        // Two letters make overlaps and near misses common.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut letters = |len: usize| -> Vec<u8> {
            (0..len)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    b'a' + (state >> 40 & 1) as u8
                })
                .collect()
        };
        for round in 0..2000 {
            let needles: Vec<Vec<u8>> = (0..1 + round % 4)
                .map(|n| letters(4 + (round + 3 * n) % 9))
                .collect();
            let hay = letters(round % 80);
            let slices: Vec<&[u8]> = needles.iter().map(Vec::as_slice).collect();
            let scrubber = Scrubber::new(&slices);
            let naive = (0..hay.len()).find_map(|at| {
                let longest = slices
                    .iter()
                    .filter(|n| hay[at..].starts_with(n))
                    .map(|n| n.len())
                    .max()?;
                Some(at..at + longest)
            });
            assert_eq!(scrubber.find(&hay), naive, "{needles:?} in {hay:?}");
            let held = (0..hay.len())
                .find(|&at| {
                    slices
                        .iter()
                        .any(|n| n.len() > hay.len() - at && n.starts_with(&hay[at..]))
                })
                .map_or(0, |at| hay.len() - at);
            assert_eq!(
                scrubber.unfinished(&hay),
                held,
                "{needles:?} at the end of {hay:?}"
            );
        }
    }

    /// What the search says, told by looking everywhere for everything.
    fn naive_hits(scrubber: &Scrubber, hay: &[u8]) -> Vec<Range<usize>> {
        let mut hits = Vec::new();
        for start in 0..hay.len() {
            let rest = &hay[start..];
            let bare = scrubber.needles.iter().filter(|n| rest.starts_with(n));
            hits.extend(bare.map(|needle| start..start + needle.len()));
            for needle in &scrubber.disguised {
                let alike = needle.iter().zip(rest).take_while(|(a, b)| a == b);
                for place in 0..=alike.count().min(needle.len() - 1) {
                    let escape = Escape::read(&rest[place.min(rest.len())..]);
                    let readings = [escape.once, escape.twice].into_iter().flatten();
                    let is_ours = readings.into_iter().any(|(read, _)| read == needle[place]);
                    if is_ours
                        && let Disguise::Whole(length) = disguise(&needle[place..], &rest[place..])
                    {
                        hits.push(start..start + place + length);
                    }
                }
            }
        }
        hits
    }

    /// The least and the most that may be held back: what begins one of the forms that there are, and
    /// what nothing is known to be wrong with.
    fn naive_unfinished(scrubber: &Scrubber, hay: &[u8]) -> Range<usize> {
        let line = hay.iter().rposition(|&byte| byte == b'\n');
        let line = line.filter(|_| scrubber.ends_with_line);
        let first = line.map_or(0, |at| at + 1);
        let held_if = |may_become: &dyn Fn(&[u8]) -> bool| {
            let start = (first..hay.len()).find(|&at| may_become(&hay[at..]));
            start.map_or(0, |at| hay.len() - at)
        };
        let is_bare = |rest: &[u8]| {
            let mut needles = scrubber.needles.iter();
            needles.any(|needle| needle.len() > rest.len() && needle.starts_with(rest))
        };
        // What contains introducers itself can be read in several ways, of which one is taken.
        let clear = |needle: &&Zeroizing<Vec<u8>>| !needle.iter().any(|b| INTRODUCERS.contains(b));
        let least = held_if(&|rest| {
            let mut disguised = scrubber.disguised.iter().filter(clear);
            is_bare(rest) || disguised.any(|needle| begins_a_form(needle, rest))
        });
        let most = held_if(&|rest| {
            let mut disguised = scrubber.disguised.iter();
            is_bare(rest) || disguised.any(|needle| disguise(needle, rest) == Disguise::CutOff)
        });
        least..most + 1
    }

    /// Whether more input can make a form of the needle of this.
    fn begins_a_form(needle: &[u8], input: &[u8]) -> bool {
        let Some((&character, needle)) = needle.split_first() else {
            return false;
        };
        spellings_of(character)
            .iter()
            .any(|spelling| match input.strip_prefix(&spelling[..]) {
                Some([]) => !needle.is_empty(),
                Some(rest) => begins_a_form(needle, rest),
                None => spelling.starts_with(input),
            })
    }

    /// The character itself, and all that stands for it.
    fn spellings_of(character: u8) -> &'static [Vec<u8>] {
        static ALL: OnceLock<Vec<Vec<Vec<u8>>>> = OnceLock::new();
        let of = |character: u8| {
            let mut all = vec![vec![character]];
            escape::spellings(character, |spelling| all.push(spelling.to_vec()));
            all.sort_unstable();
            all.dedup();
            all
        };
        &ALL.get_or_init(|| (0..=255).map(of).collect())[usize::from(character)]
    }

    fn check_against_naive(scrubber: &Scrubber, hay: &[u8]) -> usize {
        let naive = naive_hits(scrubber, hay);
        let mut covered = vec![false; hay.len()];
        for hit in &naive {
            covered[hit.clone()].fill(true);
        }
        let mut hits = Vec::new();
        scrubber.find_all(hay, &mut hits);
        let mut found = vec![false; hay.len()];
        for hit in &hits {
            assert!(!found[hit.clone()].contains(&true), "{hits:?} overlap");
            found[hit.clone()].fill(true);
        }
        let text = String::from_utf8_lossy(hay);
        assert_eq!(found, covered, "{hits:?}, not {naive:?} in {text:?}");
        let first = naive
            .iter()
            .min_by_key(|hit| (hit.start, usize::MAX - hit.end));
        assert_eq!(scrubber.find(hay).as_ref(), first, "in {text:?}");
        let rest = &hay[hits.last().map_or(0, |hit| hit.end)..];
        let (held, naive) = (scrubber.unfinished(rest), naive_unfinished(scrubber, rest));
        assert!(naive.contains(&held), "{held}, not {naive:?}, of {text:?}");
        hits.len()
    }

    /// Short needles of few characters, introducers among them: everything overlaps and nearly fits.
    #[test]
    fn agrees_with_a_naive_search_for_escapes() {
        let mut below = chance(0x853c_49e6_748f_ea9b);
        let characters = b"aab%\\&/2\n";
        let mut hits = 0;
        for _ in 0..10_000 {
            let mut text = |length: usize| -> Vec<u8> {
                (0..length)
                    .map(|_| characters[below(characters.len())])
                    .collect()
            };
            let (first, second, bare) = (text(4), text(7), text(5));
            let scrubber = Scrubber::of_secrets(&[&first], &[&second]);
            let plain = Scrubber::new(&[&first, &bare]);
            let mut hay = Vec::new();
            for _ in 0..below(5) {
                let from = [&first, &second, &bare][below(3)];
                write_disguised(from, &mut below, &mut hay);
            }
            hits += check_against_naive(&scrubber, &hay);
            check_against_naive(&plain, &hay);
        }
        assert!(hits > 3_000, "{hits}: the texts hold needles");
    }

    /// Keys as they are, whole, cut or with another character, between texts as they are.
    #[test]
    fn agrees_with_a_naive_search_for_keys() {
        let mut below = chance(0xda3e_39cb_94b9_5bdb);
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/+=.\"&";
        let mut hits = 0;
        for _ in 0..300 {
            let key = |below: &mut dyn FnMut(usize) -> usize| -> Vec<u8> {
                let length = 16 + below(70);
                (0..length)
                    .map(|_| alphabet[below(alphabet.len())])
                    .collect()
            };
            let keys: Vec<Vec<u8>> = (0..1 + below(3)).map(|_| key(&mut below)).collect();
            let slices: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            let scrubber = Scrubber::of_secrets(&slices, &[]);
            for _ in 0..4 {
                let mut hay = Vec::new();
                for _ in 0..1 + below(4) {
                    match below(6) {
                        0 => hay.extend((0..below(90)).map(|_| below(256) as u8)),
                        1 => hay.extend((0..below(90)).map(|_| alphabet[below(alphabet.len())])),
                        2 => write_disguised(b"{\"a\": 1}, https://a/b", &mut below, &mut hay),
                        kind => {
                            let needles = &scrubber.needles;
                            let mut needle = needles[below(needles.len())].to_vec();
                            match below(4) {
                                0 => needle.truncate(below(needle.len())),
                                1 => {
                                    let at = below(needle.len());
                                    needle[at] ^= 1;
                                }
                                _ => {}
                            }
                            if kind == 3 {
                                hay.extend_from_slice(&needle);
                            } else {
                                write_disguised(&needle, &mut below, &mut hay);
                            }
                        }
                    }
                }
                if below(3) == 0 {
                    hay.truncate(below(hay.len() + 1));
                }
                hits += check_against_naive(&scrubber, &hay);
            }
        }
        assert!(hits > 300, "{hits}: the texts hold keys");
    }

    /// One character escaped, in each way, at each place, and at each distance from the samples; of a key
    /// longer than what samples are of, too.
    #[test]
    fn one_escape_is_found_wherever_the_samples_stand() {
        for key in [
            &b"sk-0123/abcdef+XYZ=="[..],
            b"eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJhcGkiLCJzdWIiOiJjYWxsZXItMDAwMSJ9.Qm9keVRleHQtMDEyMw",
        ] {
            let scrubber = Scrubber::of_secrets(&[key], &[]);
            for place in 0..key.len() {
                for spelling in spellings_of(key[place]) {
                    let disguised = [&key[..place], spelling, &key[place + 1..]].concat();
                    for before in 0..=scrubber.samples.stride() {
                        let mut text = vec![b'\n'; before];
                        text.extend_from_slice(&disguised);
                        let hit = Some(before..text.len());
                        assert_eq!(scrubber.find(&text), hit, "{before} before {disguised:?}");
                    }
                }
            }
        }
    }

    /// Numbers below a bound, the same ones each time.
    fn chance(seed: u64) -> impl FnMut(usize) -> usize {
        let mut state = seed;
        move |bound| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % bound
        }
    }

    /// Writes `text` with none, some or all of its characters escaped, in any way.
    fn write_disguised(text: &[u8], below: &mut dyn FnMut(usize) -> usize, out: &mut Vec<u8>) {
        let bare_of_four = below(5);
        for &character in text {
            if below(4) < bare_of_four {
                out.push(character);
            } else {
                let spellings = spellings_of(character);
                out.extend_from_slice(&spellings[below(spellings.len())]);
            }
        }
    }

    #[test]
    fn holds_back_only_what_may_become_a_hit() {
        let scrubber = scrubber(&["secret", "ticket"]);
        for (hay, held) in [
            ("data: 1\n\n", 0),
            ("s", 1),
            ("a secre", 5),
            ("secrets", 1),
            ("tick", 4),
            ("tickets", 1),
            ("", 0),
        ] {
            assert_eq!(scrubber.unfinished(hay.as_bytes()), held, "{hay}");
        }
    }

    #[test]
    fn forms_cover_what_servers_echo() {
        let key = b"a+b/c d~e*\xff\"k";
        let forms = forms(key);
        let has = |form: &str| forms.iter().any(|known| known == form.as_bytes());
        assert!(forms.contains(&key.to_vec()));
        for form in [
            "a%2Bb%2Fc%20d~e%2A%FF%22k",
            "a%2bb%2fc%20d~e%2a%ff%22k",
            "a%2Bb%2Fc+d%7Ee*%FF%22k",
            "a%2bb%2fc+d%7ee*%ff%22k",
            "612b622f6320647e652aff226b",
            "612B622F6320647E652AFF226B",
            "a%252Bb%252Fc%2520d~e%252A%25FF%2522k",
        ] {
            assert!(has(form), "{form}");
        }
        for (at, form) in forms.iter().enumerate() {
            assert!(!forms[..at].contains(form), "form {at} stands twice");
        }
    }

    #[test]
    fn forms_cover_what_documents_escape() {
        let check = |key: &str, form: &str| {
            let forms = forms(key.as_bytes());
            assert!(
                forms.iter().any(|known| known == form.as_bytes()),
                "{key} as {form}"
            );
        };
        check("a\"b\\c/d", "a\\\"b\\\\c/d");
        check("a\"b\\c/d", "a\\\"b\\\\c\\/d");
        check("a&b<c>d", "a\\u0026b\\u003cc\\u003ed");
        check("a&b'c\"", "a&amp;b&#39;c&quot;");
        check("a+b'c\"", "a&#43;b&#39;c&#34;");
        // Nothing to escape, nothing to add: raw, two hexadecimal, three alignments in up to two alphabets.
        assert!(forms(b"abcXYZ0123").len() <= 9);
    }

    #[test]
    fn base64_is_found_whatever_stands_around_it() {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let encode = |bytes: &[u8]| -> Vec<u8> {
            bytes
                .chunks(3)
                .flat_map(|group| {
                    let bits = group
                        .iter()
                        .fold(0u32, |bits, &byte| bits << 8 | u32::from(byte))
                        << (8 * (3 - group.len()));
                    (0..=group.len()).map(move |at| ALPHABET[(bits >> (18 - 6 * at) & 63) as usize])
                })
                .collect()
        };
        let key = b"sk-live-0123?>~\xfe\xffABCdef";
        let forms = forms(key);
        let needles: Vec<&[u8]> = forms.iter().map(Vec::as_slice).collect();
        let scrubber = Scrubber::new(&needles);
        for before in 0..7 {
            for behind in 0..4 {
                let mut text = vec![b'u'; before];
                text.extend_from_slice(key);
                text.extend(vec![b'\xa5'; behind]);
                let standard = encode(&text);
                let url: Vec<u8> = standard
                    .iter()
                    .map(|byte| match byte {
                        b'+' => b'-',
                        b'/' => b'_',
                        other => *other,
                    })
                    .collect();
                assert!(
                    scrubber.find(&standard).is_some(),
                    "{before} before, {behind} behind"
                );
                assert!(
                    scrubber.find(&url).is_some(),
                    "{before} before, {behind} behind, url-safe"
                );
                text[before + 5] ^= 1;
                assert!(
                    scrubber.find(&encode(&text)).is_none(),
                    "another key is not ours"
                );
            }
        }
    }

    #[test]
    fn debug_shows_no_needle() {
        let shown = format!("{:?}", scrubber(&["hunter22"]));
        assert_eq!(shown, "Scrubber { needles: 1 }");
    }
}
