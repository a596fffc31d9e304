//! [`sieve`] and [`frames`]: streams that are searched for a key, however they are cut.

use wire::frames::{FrameError, FrameSieve};
use wire::scrub::Scrubber;
use wire::sieve::{OnHit, Sieve};

/// What is searched for.
const KEY: &[u8] = b"the-real-key/+16";

/// A text is searched alike whole and in pieces; it keeps its length; no form of the key that a plain
/// reading finds goes on; and where nothing is found, not a byte is another.
///
/// The first byte says whether finds are overwritten, the second how long the pieces are.
pub fn sieve(data: &[u8]) {
    let [options, size, input @ ..] = data else {
        return;
    };
    let on_hit = on_hit(*options);
    let scrubber = Scrubber::of_secrets(&[KEY], &[]);
    let (whole, whole_hits) = sieved(&scrubber, on_hit, &[input]);
    let pieces: Vec<&[u8]> = input.chunks(usize::from(*size).max(1)).collect();
    let (in_pieces, hits) = sieved(&scrubber, on_hit, &pieces);
    assert_eq!(whole_hits > 0, hits > 0, "pieces change what is found");
    for (out, hits) in [(&whole, whole_hits), (&in_pieces, hits)] {
        assert_eq!(out.len(), input.len(), "the length is another");
        match on_hit {
            OnHit::Redact => assert!(!holds_key(out), "the key went on"),
            OnHit::Report => assert_eq!(holds_key(out), holds_key(input)),
        }
        if on_hit == OnHit::Report || hits == 0 {
            assert_eq!(out, input, "other bytes went on");
        }
    }
    assert!(!holds_key(input) || whole_hits > 0, "the key was not found");
}

fn sieved(scrubber: &Scrubber, on_hit: OnHit, pieces: &[&[u8]]) -> (Vec<u8>, usize) {
    let mut sieve = Sieve::new(scrubber, on_hit);
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(sieve.pass(&[piece], false).0);
        assert!(sieve.held_bytes() < scrubber.hit_bytes_max());
    }
    out.extend_from_slice(sieve.pass(&[], true).0);
    assert!(!sieve.is_holding());
    (out, sieve.hits())
}

/// Frames are searched alike whole and in pieces: the same is refused, and what goes on are the frames
/// that came, in their order and with their lengths, without the key in any message.
///
/// Of the first byte, the lowest bit says whether finds are overwritten, the next whether the input is
/// frames as they are or payloads to make frames of. The second byte says how long the pieces are.
pub fn frames(data: &[u8]) {
    let [options, size, input @ ..] = data else {
        return;
    };
    let on_hit = on_hit(*options);
    let made = if options & 2 == 0 {
        input.to_vec()
    } else {
        made_of(input)
    };
    let scrubber = Scrubber::of_secrets(&[KEY], &[]);
    let (whole, whole_ended) = framed(&scrubber, on_hit, &[&made]);
    let pieces: Vec<&[u8]> = made.chunks(usize::from(*size).max(1)).collect();
    let (in_pieces, ended) = framed(&scrubber, on_hit, &pieces);
    assert_eq!(
        whole_ended.is_ok(),
        ended.is_ok(),
        "pieces change what is refused"
    );
    let came = plain_frames(&made);
    for (out, ended) in [(&whole, &whole_ended), (&in_pieces, &ended)] {
        assert!(out.len() <= made.len());
        let went = plain_frames(out);
        assert!(went.len() <= came.len());
        for (one, other) in went.iter().zip(&came) {
            assert_eq!(one.0, other.0, "another header");
        }
        if matches!(ended, Ok(0)) || on_hit == OnHit::Report {
            assert!(made.starts_with(out), "other bytes went on");
        }
        if on_hit == OnHit::Redact {
            for message in plain_messages(&went) {
                assert!(!holds_key(&message), "the key went on");
            }
        }
        // Nothing is under way that could be held back for what follows.
        if ended.is_ok() && is_closed(&came) && plain_length(&came) == made.len() {
            assert_eq!(out.len(), made.len(), "something did not go on");
        }
    }
}

fn framed(
    scrubber: &Scrubber,
    on_hit: OnHit,
    pieces: &[&[u8]],
) -> (Vec<u8>, Result<usize, FrameError>) {
    let mut sieve = FrameSieve::new(scrubber, on_hit);
    let mut out = Vec::new();
    for piece in pieces {
        let before = out.len();
        if let Err(error) = sieve.pass(piece, &mut out) {
            assert_eq!(out.len(), before, "an error lets something pass");
            return (out, Err(error));
        }
    }
    (out, Ok(sieve.hits()))
}

/// Frames of a well-behaved server: of each two bytes the first says what frame it is, the second how
/// long.
fn made_of(mut input: &[u8]) -> Vec<u8> {
    let mut made = Vec::new();
    let mut in_message = false;
    while let [kind, length, rest @ ..] = input {
        let (payload, rest) = rest.split_at(usize::from(length & 127).min(rest.len()));
        input = rest;
        let last = kind & 0x80;
        let first = match kind & 7 {
            // A control frame is whole.
            0 => 0x80 | [0x8, 0x9, 0xa][usize::from(kind >> 3 & 3) % 3],
            _ if in_message => last,
            _ => last | 1 | (kind >> 3 & 1),
        };
        if first & 0x08 == 0 {
            in_message = last == 0;
        }
        let payload = if first & 0x08 == 0 {
            payload
        } else {
            &payload[..payload.len().min(125)]
        };
        made.push(first);
        match payload.len() {
            length @ 0..=125 => made.push(length as u8),
            length => made.extend_from_slice(&[126, 0, length as u8]),
        }
        made.extend_from_slice(payload);
    }
    made
}

/// Whether the last message has ended, and the last frame is whole.
fn is_closed(frames: &[Frame<'_>]) -> bool {
    let message = frames
        .iter()
        .rev()
        .find(|(header, ..)| header[0] & 0x08 == 0);
    message.is_none_or(|(header, ..)| header[0] & 0x80 != 0)
        && frames.last().is_none_or(|(.., is_whole)| *is_whole)
}

/// A header, the payload as far as it is there, and whether that is all of it.
type Frame<'f> = (&'f [u8], &'f [u8], bool);

/// The frames that bytes begin with, up to one whose header is not whole.
fn plain_frames(mut bytes: &[u8]) -> Vec<Frame<'_>> {
    let mut frames = Vec::new();
    while let [_, second, ..] = bytes {
        let header = match second & 127 {
            126 => 4,
            127 => 10,
            _ => 2,
        } + usize::from(second & 0x80) / 32;
        let Some((head, rest)) = bytes.split_at_checked(header) else {
            break;
        };
        let length = match second & 127 {
            126 => u64::from(u16::from_be_bytes([head[2], head[3]])),
            127 => head[2..10]
                .iter()
                .fold(0, |sum, &byte| (sum << 8) | u64::from(byte)),
            short => u64::from(short),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let is_whole = length <= rest.len();
        let (payload, rest) = rest.split_at(length.min(rest.len()));
        frames.push((head, payload, is_whole));
        bytes = rest;
    }
    frames
}

fn plain_length(frames: &[Frame<'_>]) -> usize {
    frames
        .iter()
        .map(|(header, payload, _)| header.len() + payload.len())
        .sum()
}

/// The texts of all messages and control frames.
fn plain_messages(frames: &[Frame<'_>]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut under_way = Vec::new();
    for (header, payload, _) in frames {
        if header[0] & 0x08 != 0 {
            messages.push(payload.to_vec());
            continue;
        }
        under_way.extend_from_slice(payload);
        if header[0] & 0x80 != 0 {
            messages.push(std::mem::take(&mut under_way));
        }
    }
    messages.push(under_way);
    messages
}

fn on_hit(options: u8) -> OnHit {
    if options & 1 == 0 {
        OnHit::Redact
    } else {
        OnHit::Report
    }
}

/// Whether a plain reading finds the key: as it is, in hexadecimal of one case, or with each byte
/// percent-encoded.
fn holds_key(text: &[u8]) -> bool {
    let each = |write: fn(&u8) -> String| KEY.iter().map(write).collect::<String>();
    let forms = [
        KEY.to_vec(),
        each(|byte| format!("{byte:02x}")).into_bytes(),
        each(|byte| format!("{byte:02X}")).into_bytes(),
        each(|byte| format!("%{byte:02X}")).into_bytes(),
        each(|byte| format!("\\u{byte:04x}")).into_bytes(),
    ];
    forms
        .iter()
        .any(|form| text.windows(form.len()).any(|window| window == form))
}
