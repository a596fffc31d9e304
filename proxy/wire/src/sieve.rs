//! [`Sieve`]: a stream on its way to a caller, searched for a key.
//!
//! What is clean goes on at once, from where it lies. Held back is only what may be the beginning of
//! a hit, which is usually nothing, and always nothing behind a line's end: so an event of an event
//! stream leaves as soon as it has arrived. A hit is overwritten with as many bytes as it has, so
//! that every length that was announced stays true.
//!
//! It lacks framing: what it is given is one text, without chunk headers between.

use core::ops::Range;

use zeroize::{Zeroize, Zeroizing};

use crate::scrub::Scrubber;

/// What becomes of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHit {
    /// It is overwritten.
    Redact,
    /// It stays; whoever asks for [`Sieve::hits`] decides.
    Report,
}

/// Searches one text that comes in pieces.
#[derive(Debug)]
pub struct Sieve<'s> {
    scrubber: &'s Scrubber,
    on_hit: OnHit,
    /// What may be the beginning of a hit. Shorter than [`Scrubber::hit_bytes_max`].
    held: Zeroizing<Vec<u8>>,
    /// What was held and what came after it, in one piece; or a piece with a hit, overwritten.
    joined: Vec<u8>,
    spans: Vec<Range<usize>>,
    hits: usize,
}

impl<'s> Sieve<'s> {
    /// Nothing is allocated until a hit, or something that may become one, is seen.
    #[must_use]
    pub fn new(scrubber: &'s Scrubber, on_hit: OnHit) -> Self {
        Self {
            scrubber,
            on_hit,
            held: Zeroizing::default(),
            joined: Vec::new(),
            spans: Vec::new(),
            hits: 0,
        }
    }

    /// Takes what follows in the text, and returns what may go on: what was held before, and all of
    /// this but what is held now. With `last` the text ends here, and nothing is held. Beside it, how
    /// often something was found in it.
    pub fn pass<'a>(&'a mut self, parts: &[&'a [u8]], last: bool) -> (&'a [u8], usize) {
        if let [piece] = parts
            && self.held.is_empty()
        {
            let clean = self.search(piece, last);
            if self.on_hit == OnHit::Report || self.spans.is_empty() {
                return (&piece[..clean], self.spans.len());
            }
            self.joined.clear();
            self.joined.extend_from_slice(&piece[..clean]);
        } else {
            let mut joined = core::mem::take(&mut self.joined);
            joined.clear();
            joined.extend_from_slice(&self.held);
            for part in parts {
                joined.extend_from_slice(part);
            }
            let clean = self.search(&joined, last);
            joined.truncate(clean);
            self.joined = joined;
        }
        if self.on_hit == OnHit::Redact {
            for span in &self.spans {
                overwrite(&mut self.joined[span.clone()]);
            }
        }
        (&self.joined, self.spans.len())
    }

    /// Finds what is to be found, and keeps what may become a hit. Returns how much of `piece` may
    /// go on.
    fn search(&mut self, piece: &[u8], last: bool) -> usize {
        self.scrubber.find_all(piece, &mut self.spans);
        self.hits += self.spans.len();
        let searched = self.spans.last().map_or(0, |last| last.end);
        let unfinished = if last {
            0
        } else {
            self.scrubber.unfinished(&piece[searched..])
        };
        let clean = piece.len() - unfinished;
        self.held.zeroize();
        self.held.extend_from_slice(&piece[clean..]);
        clean
    }

    /// Whether something waits for what comes next, or for the text's end.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// How many bytes wait.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// How often something was found so far.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.hits
    }
}

impl Drop for Sieve<'_> {
    fn drop(&mut self) {
        // With `OnHit::Report` the key may be in it.
        if self.hits > 0 {
            self.joined.zeroize();
        }
    }
}

/// Puts [`REDACTED`] over all of it, again and again.
pub(crate) fn overwrite(hit: &mut [u8]) {
    for (byte, &with) in hit.iter_mut().zip(REDACTED.iter().cycle()) {
        *byte = with;
    }
}

/// What stands in a key's place. Letters that need no escape anywhere, and decode as base64.
pub(crate) const REDACTED: &[u8] = b"redacted";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scrub;

    const KEY: &[u8] = b"sk-live/0123+abcDEF==\"x";

    /// Everything that stands for the key, and nothing that only resembles it.
    fn disguises() -> Vec<String> {
        let each =
            |write: fn(u8) -> String| -> String { KEY.iter().map(|&byte| write(byte)).collect() };
        let mut all: Vec<String> = scrub::forms(KEY)
            .into_iter()
            .map(|form| String::from_utf8(form).expect("text"))
            .collect();
        all.extend([
            each(|byte| format!("%{byte:02x}")),
            each(|byte| format!("%{byte:02X}")),
            each(|byte| format!("%25{byte:02X}")),
            each(|byte| format!("\\u{byte:04x}")),
            each(|byte| format!("\\u{byte:04X}")),
            each(|byte| format!("\\x{byte:02x}")),
            each(|byte| format!("&#{byte};")),
            each(|byte| format!("&#x{byte:x};")),
            // One reader's choice of characters is not another's.
            each(|byte| match byte {
                b'-' | b'"' => format!("%{byte:02X}"),
                _ => char::from(byte).to_string(),
            }),
            each(|byte| match byte {
                b'/' => "\\/".to_owned(),
                b'"' => "\\u0022".to_owned(),
                b'+' => "\\u002B".to_owned(),
                _ => char::from(byte).to_string(),
            }),
            "s%6B-live/0123%2babcDEF=%3D%22x".to_owned(),
        ]);
        all
    }

    fn scrubber() -> Scrubber {
        Scrubber::of_secrets(&[KEY], &[])
    }

    fn sift(scrubber: &Scrubber, pieces: &[&[u8]]) -> (Vec<u8>, usize) {
        let mut sieve = Sieve::new(scrubber, OnHit::Redact);
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(sieve.pass(&[piece], false).0);
        }
        out.extend_from_slice(sieve.pass(&[], true).0);
        (out, sieve.hits())
    }

    #[test]
    fn a_key_in_two_pieces_is_found_wherever_it_is_cut() {
        let scrubber = scrubber();
        for disguise in disguises() {
            let text = format!("{{\"a\": \"100% {disguise} \\n\"}}");
            let expected = format!(
                "{{\"a\": \"100% {} \\n\"}}",
                String::from_utf8(REDACTED.repeat(40)).expect("text")[..disguise.len()].to_owned()
            );
            for cut in 0..=text.len() {
                let (before, after) = text.as_bytes().split_at(cut);
                let (out, hits) = sift(&scrubber, &[before, after]);
                let out = String::from_utf8(out).expect("text");
                assert_eq!((&*out, hits), (&*expected, 1), "{text} cut at {cut}");
            }
            let expected = expected.into_bytes();
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            let (out, hits) = sift(&scrubber, &bytes);
            assert_eq!((out, hits), (expected, 1), "byte by byte");
        }
    }

    #[test]
    fn parts_are_one_text() {
        let scrubber = scrubber();
        let parts: Vec<&[u8]> = KEY.chunks(5).collect();
        let mut sieve = Sieve::new(&scrubber, OnHit::Redact);
        assert_eq!(
            sieve.pass(&parts, false),
            (&b"redactedredactedredacte"[..], 1)
        );
        assert_eq!(sieve.hits(), 1);
    }

    #[test]
    fn another_key_passes_untouched() {
        let scrubber = scrubber();
        for disguise in disguises() {
            // Another character in the middle, of the same kind.
            let at = disguise.len() / 2;
            let Some(at) = (at..disguise.len()).find(|&at| {
                let byte = disguise.as_bytes()[at];
                byte.is_ascii_digit() && byte != b'9'
            }) else {
                continue;
            };
            let mut other = disguise.clone().into_bytes();
            other[at] += 1;
            for cut in 0..=other.len() {
                let (before, after) = other.split_at(cut);
                assert_eq!(sift(&scrubber, &[before, after]), (other.clone(), 0));
            }
        }
    }

    #[test]
    fn what_ends_in_a_line_end_leaves_at_once() {
        let scrubber = scrubber();
        let mut sieve = Sieve::new(&scrubber, OnHit::Redact);
        for event in [
            &b"data: {\"text\":\"sk-live\"}\n\n"[..],
            b"data: \\\n\n",
            b"data: sk-live/0123\n\n",
        ] {
            assert_eq!(sieve.pass(&[event], false).0, event);
        }
        // And what does not is held no longer than it may become a key.
        assert_eq!(sieve.pass(&[b"yes"], false).0, b"ye");
        assert_eq!(sieve.pass(&[b"k"], false).0, b"");
        assert_eq!(sieve.pass(&[b"y"], false).0, b"sky");
        assert_eq!(sieve.hits(), 0);
    }

    #[test]
    fn reported_hits_stay() {
        let scrubber = scrubber();
        let mut sieve = Sieve::new(&scrubber, OnHit::Report);
        let mut out = sieve.pass(&[&KEY[..9]], false).0.to_vec();
        out.extend_from_slice(sieve.pass(&[&KEY[9..], b"."], true).0);
        assert_eq!(out, [KEY, b"."].concat());
        assert_eq!(sieve.hits(), 1);
    }

    /// Whatever the text and wherever it is cut, the pieces say what the whole would.
    #[test]
    fn pieces_agree_with_the_whole() {
        // Neither overlaps with itself or the other: of two that overlap, pieces may show one only.
        let key = b"aab%a\\b&";
        let scrubber = Scrubber::of_secrets(&[key], &[b"xyaz"]);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) % bound
        };
        let words = [
            "a",
            "a",
            "b",
            "b",
            "%",
            "%25",
            "%61",
            "%2561",
            "\\\\",
            "\\u0061",
            "\\x62",
            "&amp;",
            "&#98;",
            "&",
            "\\",
            "\n",
            "aab%a\\b&",
            "xy",
            "z",
        ];
        let mut hits_seen = 0;
        for _ in 0..20_000 {
            let text: String = (0..below(14))
                .map(|_| words[below(words.len() as u64) as usize])
                .collect();
            let text = text.as_bytes();
            let (whole, hits) = sift(&scrubber, &[text]);
            hits_seen += hits;
            let cut = below(text.len() as u64 + 1) as usize;
            let (before, after) = text.split_at(cut);
            let (pieces, _) = sift(&scrubber, &[before, after]);
            assert_eq!(
                String::from_utf8_lossy(&pieces),
                String::from_utf8_lossy(&whole),
                "{:?} cut at {cut}",
                String::from_utf8_lossy(text)
            );
        }
        assert!(hits_seen > 1000, "the texts hold keys");
    }
}
