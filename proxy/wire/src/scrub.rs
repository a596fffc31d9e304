//! Finding a secret in what comes back, in the forms in which APIs echo it.
//!
//! The searcher works on one contiguous piece at a time. Whoever streams keeps the last
//! [`Scrubber::unfinished`] bytes of a piece back, so that no hit straddles two pieces, and so that
//! nothing waits that cannot be the start of one; [`Sieve`](crate::sieve::Sieve) does that. What
//! replaces a hit is the caller's choice.
//!
//! It lacks decompression: [`Inspector`](crate::inspect::Inspector) unfolds a coded body for it.

mod escape;

use core::fmt;
use core::ops::Range;

use zeroize::{Zeroize, Zeroizing};

use crate::target;
use escape::{ESCAPE_BYTES_MAX, Escape, INTRODUCERS};

/// Searches for any of a set of needles. They, and the tables made of them, are overwritten when it
/// is dropped.
///
/// The search is Wu and Manber's: a window as long as the shortest needle slides over the input, and
/// a table says, by the window's last three bytes, how far it may move at once. A key of 40 bytes is
/// thus searched for by looking at about every thirtieth byte, in all its forms at once.
///
/// No list of needles holds every mixture of escaped characters and bare ones, so a second search
/// ([`of_secrets`](Self::of_secrets)) looks at escapes alone: the first one in a disguised secret
/// stands for one of its characters, and what goes before stands bare.
pub struct Scrubber {
    /// Longest first, no duplicates, each at least [`NEEDLE_BYTES_MIN`] long.
    needles: Vec<Zeroizing<Vec<u8>>>,
    /// By [`block_hash`]: how far the window may move when it ends in such a block; 0 means that a
    /// needle may start where the window does. Empty if there is no needle.
    shifts: Zeroizing<Vec<u8>>,
    /// Bytes of the window: the shortest needle's length, at most [`WINDOW_BYTES_MAX`].
    window: usize,
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
        let window = needles
            .last()
            .map_or(0, |shortest| shortest.len().min(WINDOW_BYTES_MAX));
        let mut shifts = Zeroizing::new(Vec::new());
        if !needles.is_empty() {
            shifts.resize(BLOCKS, (window - BLOCK_BYTES + 1) as u8);
        }
        for needle in &needles {
            for (at, block) in needle[..window].windows(BLOCK_BYTES).enumerate() {
                let shift = &mut shifts[block_hash([block[0], block[1], block[2]])];
                *shift = (*shift).min((window - BLOCK_BYTES - at) as u8);
            }
        }
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
            shifts,
            window,
            disguised,
            places,
            beginnings,
            ends_with_line,
        }
    }

    /// The first hit; of several that start there, the longest.
    #[must_use]
    pub fn find(&self, hay: &[u8]) -> Option<Range<usize>> {
        let bare = self.find_needle(hay, 0);
        // Behind the first hit none is the first.
        let end = bare.as_ref().map_or(hay.len(), |bare| bare.start);
        self.find_disguised(hay, 0, end).or(bare)
    }

    /// Every hit, in order; those that overlap are one. `hits` is cleared first.
    pub fn find_all(&self, hay: &[u8], hits: &mut Vec<Range<usize>>) {
        hits.clear();
        let mut at = 0;
        while let Some(hit) = self.find_needle(hay, at) {
            at = hit.end;
            hits.push(hit);
        }
        let bare = hits.len();
        at = 0;
        while let Some(hit) = self.find_disguised(hay, at, hay.len()) {
            at = hit.end;
            hits.push(hit);
        }
        if hits.len() > bare {
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

    fn find_needle(&self, hay: &[u8], from: usize) -> Option<Range<usize>> {
        // Made once: the table's length is then known to be what the hash gives.
        let shifts: &[u8; BLOCKS] = self.shifts[..].try_into().ok()?;
        let mut end = from + self.window;
        while let Some(&[a, b, c]) = hay.get(end.wrapping_sub(BLOCK_BYTES)..end) {
            let shift = usize::from(shifts[block_hash([a, b, c])]);
            if shift == 0 {
                let start = end - self.window;
                if let Some(needle) = self.needle_at(&hay[start..]) {
                    return Some(start..start + needle.len());
                }
                end += 1;
            } else {
                end += shift;
            }
        }
        None
    }

    /// The first secret with an escape in it, of which that escape stands in `from..end`.
    fn find_disguised(&self, hay: &[u8], from: usize, end: usize) -> Option<Range<usize>> {
        if self.disguised.is_empty() {
            return None;
        }
        let [percent, backslash, ampersand] = INTRODUCERS;
        memchr::memchr3_iter(percent, backslash, ampersand, &hay[from..end])
            .find_map(|at| self.disguised_at(hay, from, from + at))
    }

    /// A secret whose first escape stands at `at`, and which begins at `from` or later.
    fn disguised_at(&self, hay: &[u8], from: usize, at: usize) -> Option<Range<usize>> {
        let escape = Escape::read(&hay[at..]);
        let readings = [escape.once, escape.twice];
        for (character, _) in readings.into_iter().flatten() {
            // From the back: the hit that begins first.
            for &[index, place] in self.places.of(character) {
                let (needle, place) = (&self.disguised[index as usize], place as usize);
                if at - from >= place
                    && hay[at - place..at] == needle[..place]
                    && let Disguise::Whole(length) = disguise(&needle[place..], &hay[at..])
                {
                    return Some(at - place..at + length);
                }
            }
        }
        None
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
        let cut_off = |needle: &[u8]| disguise(needle, rest) == Disguise::CutOff;
        if INTRODUCERS.contains(&rest[0]) && self.disguised.iter().any(|needle| cut_off(needle)) {
            return true;
        }
        let beginnings = self.beginnings.of(rest[0]).iter();
        beginnings.copied().any(|[index, is_disguised]| {
            let needle = &self.needles[index as usize];
            rest.len() < needle.len() && needle.starts_with(rest)
                || is_disguised == 1 && cut_off(needle)
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

    #[inline(never)]
    fn needle_at(&self, hay: &[u8]) -> Option<&[u8]> {
        self.needles
            .iter()
            .find(|needle| hay.starts_with(needle))
            .map(|needle| &needle[..])
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

/// Where a block stands in the table of shifts. Blocks that share a place only make steps shorter.
#[inline]
fn block_hash([a, b, c]: [u8; BLOCK_BYTES]) -> usize {
    let mixed = u32::from(a) << 10 ^ u32::from(b) << 5 ^ u32::from(c);
    mixed as usize % BLOCKS
}

/// Bytes below which a needle is left out: it would be found everywhere and garble what passes.
const NEEDLE_BYTES_MIN: usize = 4;

/// Bytes that choose a step of the search. At most [`NEEDLE_BYTES_MIN`].
const BLOCK_BYTES: usize = 3;

/// Entries of the table of steps: small enough to stay in the first-level cache, large enough that
/// the blocks of a dozen needles leave most of it empty.
const BLOCKS: usize = 8192;

/// Bytes of the search window, so that a step fits a byte. Longer needles are searched by their first
/// bytes and compared whole.
const WINDOW_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
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
