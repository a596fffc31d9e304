//! [`FrameSieve`]: a server's WebSocket frames on their way to a caller (RFC 6455), searched for a
//! key.
//!
//! A message is one text, however it is cut into frames. What may become a hit is held back to the
//! message's end at most, together with the frames behind it, so that nothing changes its place. A
//! hit is overwritten with as many bytes as it has: the frames' lengths stay true.
//!
//! It lacks extensions: a frame that says it was made by one cannot be looked into, and is an error.
//! Whoever uses this sees to it that none is negotiated.

use core::ops::Range;

use zeroize::Zeroize;

use crate::scrub::Scrubber;
use crate::sieve::{OnHit, overwrite};

/// Why frames cannot be looked into. After one of these nothing more may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// RFC 6455, section 5.2: bits that only an extension gives a meaning, which may be anything.
    #[error("a frame has reserved bits set, although no extension was negotiated")]
    Extension,
    /// RFC 6455, section 5.2: an opcode without a meaning.
    #[error("a frame has a reserved opcode")]
    Opcode,
    /// RFC 6455, section 5.1: a server must not mask.
    #[error("a frame from the server is masked")]
    Masked,
    /// RFC 6455, section 5.2: the highest bit must not be set.
    #[error("a frame's length has more than 63 bits")]
    Length,
    /// RFC 6455, section 5.5: at most 125 bytes, never in fragments.
    #[error("a control frame is too long or fragmented")]
    Control,
    /// RFC 6455, section 5.4: a continuation of nothing, or a message inside another.
    #[error("fragments of messages are out of order")]
    Fragments,
    /// Too much came while a message's last bytes had to be held back ([`HELD_BYTES_MAX`]).
    #[error("too many frames between two fragments of a message")]
    Flood,
}

/// Searches the frames of one connection, one direction.
#[derive(Debug)]
pub struct FrameSieve<'s> {
    scrubber: &'s Scrubber,
    on_hit: OnHit,
    /// The frames, from the first byte that is held back.
    wire: Vec<u8>,
    /// What of the message under way was not yet searched to its end, and where it stands.
    message: Text,
    /// The same of a control frame, which may stand between two fragments.
    control: Text,
    /// A header that has not come whole: how many bytes of it there are.
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    /// Of the frame under way.
    remaining: u64,
    frame: Frame,
    /// A message was begun and its last frame has not come.
    in_message: bool,
    spans: Vec<Range<usize>>,
    hits: usize,
}

/// Payload, and where in `wire` it stands.
#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    /// Start in `bytes`, start in `wire`, of each stretch; each reaches to the next one's start.
    stretches: Vec<(usize, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// Between frames, or in a header.
    None,
    /// Of a message; `last` ends it.
    Data { last: bool },
    /// Close, ping or pong.
    Control,
}

impl<'s> FrameSieve<'s> {
    /// Nothing is allocated before the first frame.
    #[must_use]
    pub fn new(scrubber: &'s Scrubber, on_hit: OnHit) -> Self {
        Self {
            scrubber,
            on_hit,
            wire: Vec::new(),
            message: Text::default(),
            control: Text::default(),
            header: [0; HEADER_BYTES_MAX],
            header_bytes: 0,
            remaining: 0,
            frame: Frame::None,
            in_message: false,
            spans: Vec::new(),
            hits: 0,
        }
    }

    /// Takes what follows on the connection, and appends to `out` what may go on.
    ///
    /// # Errors
    /// [`FrameError`] where frames cannot be looked into; `out` is then as it was.
    pub fn pass(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        while !input.is_empty() {
            let used = match self.frame {
                Frame::None => self.take_header(input)?,
                Frame::Data { .. } | Frame::Control => self.take_payload(input),
            };
            input = &input[used..];
            if self.frame != Frame::None && self.remaining == 0 {
                self.end_frame();
            }
        }
        let held_from = self.search_message(false).min(self.control_start());
        if self.wire.len() - held_from > HELD_BYTES_MAX {
            return Err(FrameError::Flood);
        }
        out.extend_from_slice(&self.wire[..held_from]);
        self.wire.drain(..held_from);
        self.message.moved_by(held_from);
        self.control.moved_by(held_from);
        Ok(())
    }

    /// How often something was found so far.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.hits
    }

    fn take_header(&mut self, input: &[u8]) -> Result<usize, FrameError> {
        let mut used = 0;
        while self.header_bytes < header_length(&self.header[..self.header_bytes]) {
            let Some(&byte) = input.get(used) else {
                return Ok(used);
            };
            self.header[self.header_bytes] = byte;
            self.header_bytes += 1;
            used += 1;
        }
        let header = &self.header[..self.header_bytes];
        let (first, second) = (header[0], header[1]);
        let last = first & 0x80 != 0;
        if first & 0x70 != 0 {
            return Err(FrameError::Extension);
        }
        if second & 0x80 != 0 {
            return Err(FrameError::Masked);
        }
        self.remaining = match &header[2..] {
            [] => u64::from(second & 0x7f),
            longer => longer
                .iter()
                .fold(0, |length, &byte| length << 8 | u64::from(byte)),
        };
        if self.remaining >> 63 != 0 {
            return Err(FrameError::Length);
        }
        self.frame = match (first & 0x0f, self.in_message) {
            (0, true) | (1 | 2, false) => Frame::Data { last },
            (0, false) | (1 | 2, true) => return Err(FrameError::Fragments),
            (8..=10, _) if last && self.remaining <= CONTROL_BYTES_MAX => Frame::Control,
            (8..=10, _) => return Err(FrameError::Control),
            _ => return Err(FrameError::Opcode),
        };
        if let Frame::Data { last } = self.frame {
            self.in_message = !last;
        }
        self.wire
            .extend_from_slice(&self.header[..self.header_bytes]);
        self.header_bytes = 0;
        Ok(used)
    }

    fn take_payload(&mut self, input: &[u8]) -> usize {
        let n = usize::try_from(self.remaining).map_or(input.len(), |left| left.min(input.len()));
        self.remaining -= n as u64;
        let text = match self.frame {
            Frame::Control => &mut self.control,
            Frame::Data { .. } | Frame::None => &mut self.message,
        };
        text.append(&input[..n], self.wire.len());
        self.wire.extend_from_slice(&input[..n]);
        n
    }

    fn end_frame(&mut self) {
        match self.frame {
            Frame::Control => {
                self.scrubber.find_all(&self.control.bytes, &mut self.spans);
                self.control_hits();
            }
            Frame::Data { last: true } => {
                self.search_message(true);
            }
            Frame::Data { last: false } | Frame::None => {}
        }
        self.frame = Frame::None;
    }

    fn control_hits(&mut self) {
        self.hits += self.spans.len();
        if self.on_hit == OnHit::Redact {
            self.control.overwrite(&self.spans, &mut self.wire);
        }
        self.control.clear();
    }

    /// Where the control frame under way begins; all of it waits for its end.
    fn control_start(&self) -> usize {
        let start = self.control.stretches.first();
        start.map_or(self.wire.len(), |&(_, wire)| wire)
    }

    /// Searches what there is of the message, and forgets what was searched to its end. Returns
    /// where in `wire` that begins which is not.
    fn search_message(&mut self, ends: bool) -> usize {
        self.scrubber.find_all(&self.message.bytes, &mut self.spans);
        self.hits += self.spans.len();
        if self.on_hit == OnHit::Redact {
            self.message.overwrite(&self.spans, &mut self.wire);
        }
        let searched = self.spans.last().map_or(0, |last| last.end);
        let rest = &self.message.bytes[searched..];
        let unfinished = if ends {
            0
        } else {
            self.scrubber.unfinished(rest)
        };
        self.message.keep_last(unfinished);
        let start = self.message.stretches.first();
        start.map_or(self.wire.len(), |&(_, wire)| wire)
    }
}

impl Text {
    fn append(&mut self, bytes: &[u8], wire: usize) {
        if !bytes.is_empty() {
            self.stretches.push((self.bytes.len(), wire));
            self.bytes.extend_from_slice(bytes);
        }
    }

    fn overwrite(&self, spans: &[Range<usize>], wire: &mut [u8]) {
        for span in spans {
            let mut hit = self.bytes[span.clone()].to_vec();
            overwrite(&mut hit);
            for (at, byte) in span.clone().zip(&hit) {
                // A hit may reach over several frames, with headers between.
                let stretch = self.stretches.partition_point(|&(start, _)| start <= at) - 1;
                let (start, begins) = self.stretches[stretch];
                wire[begins + at - start] = *byte;
            }
        }
    }

    fn keep_last(&mut self, n: usize) {
        if n == 0 {
            self.clear();
            return;
        }
        let cut = self.bytes.len() - n;
        self.bytes[..cut].zeroize();
        self.bytes.drain(..cut);
        let first = self.stretches.partition_point(|&(start, _)| start <= cut) - 1;
        self.stretches.drain(..first);
        for (start, wire) in &mut self.stretches {
            *wire += cut.saturating_sub(*start);
            *start = start.saturating_sub(cut);
        }
    }

    fn moved_by(&mut self, n: usize) {
        for (_, wire) in &mut self.stretches {
            *wire -= n;
        }
    }

    fn clear(&mut self) {
        self.bytes.zeroize();
        self.stretches.clear();
    }
}

/// Bytes of a header, as far as these tell: at least as many as are needed to know more.
fn header_length(header: &[u8]) -> usize {
    match header {
        [] | [_] => 2,
        // A masked one is an error before its mask is read.
        [_, second, ..] => match second & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        },
    }
}

/// Bytes of the longest header without a mask (RFC 6455, section 5.2).
const HEADER_BYTES_MAX: usize = 10;

/// Bytes of a control frame's payload (RFC 6455, section 5.5). A longer one ends the connection.
const CONTROL_BYTES_MAX: u64 = 125;

/// Bytes that may wait behind what may become a hit: control frames and empty fragments. Beyond it
/// the connection ends.
pub const HELD_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"sk-live-0123456789abcdef";
    const GONE: &[u8] = b"redactedredactedredacted";

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            n @ 0..=125 => frame.push(n as u8),
            n @ 126..=0xffff => {
                frame.push(126);
                frame.extend_from_slice(&(n as u16).to_be_bytes());
            }
            n => {
                frame.push(127);
                frame.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        frame
    }

    fn sift(pieces: &[&[u8]]) -> Result<(Vec<u8>, usize), FrameError> {
        let scrubber = Scrubber::of_secrets(&[KEY], &[]);
        let mut sieve = FrameSieve::new(&scrubber, OnHit::Redact);
        let mut out = Vec::new();
        for piece in pieces {
            sieve.pass(piece, &mut out)?;
        }
        Ok((out, sieve.hits()))
    }

    /// The frames, cut in two at every byte, and byte by byte.
    #[track_caller]
    fn check(frames: &[Vec<u8>], expected: &[Vec<u8>], hits: usize) {
        let (frames, expected) = (frames.concat(), expected.concat());
        let cuts = frames.len().min(600);
        for cut in (0..=cuts).chain([frames.len()]) {
            let (before, after) = frames.split_at(cut);
            assert_eq!(
                sift(&[before, after]),
                Ok((expected.clone(), hits)),
                "cut at {cut}"
            );
        }
        let bytes: Vec<&[u8]> = frames.chunks(1).collect();
        assert_eq!(sift(&bytes), Ok((expected, hits)), "byte by byte");
    }

    const TEXT: u8 = 0x81;
    const TEXT_BEGINS: u8 = 0x01;
    const CONTINUES: u8 = 0x00;
    const ENDS: u8 = 0x80;
    const CLOSE: u8 = 0x88;
    const PING: u8 = 0x89;

    #[test]
    fn a_key_in_a_message_is_overwritten() {
        let (key, gone) = (KEY, GONE);
        check(&[frame(TEXT, key)], &[frame(TEXT, gone)], 1);
        check(&[frame(0x82, key)], &[frame(0x82, gone)], 1);
        check(&[frame(PING, key)], &[frame(PING, gone)], 1);
        check(
            &[frame(CLOSE, &[b"\x03\xe8", key].concat())],
            &[frame(CLOSE, &[b"\x03\xe8", gone].concat())],
            1,
        );
        let around = |middle: &[u8]| [&[b'a'; 130][..], middle, &[b'b'; 70_000]].concat();
        check(
            &[frame(TEXT, &around(key)), frame(TEXT, b"x")],
            &[frame(TEXT, &around(gone)), frame(TEXT, b"x")],
            1,
        );
    }

    #[test]
    fn a_key_in_fragments_is_overwritten() {
        for at in 0..=KEY.len() {
            let fragments = |key: &[u8]| {
                [
                    frame(TEXT_BEGINS, &key[..at]),
                    frame(PING, b"sk-"),
                    frame(CONTINUES, b""),
                    frame(ENDS, &key[at..]),
                    frame(TEXT, b"next"),
                ]
            };
            check(&fragments(KEY), &fragments(GONE), 1);
        }
    }

    #[test]
    fn messages_are_not_one_text() {
        let frames = [frame(TEXT, &KEY[..9]), frame(TEXT, &KEY[9..])];
        check(&frames, &frames, 0);
        // Nor is a ping part of the message that it interrupts.
        let frames = [
            frame(TEXT_BEGINS, &KEY[..9]),
            frame(PING, &KEY[9..]),
            frame(ENDS, b""),
        ];
        check(&frames, &frames, 0);
    }

    #[test]
    fn a_message_never_waits_for_the_next() {
        let scrubber = Scrubber::of_secrets(&[KEY], &[]);
        let mut sieve = FrameSieve::new(&scrubber, OnHit::Redact);
        for message in [&b"yes"[..], b"sk-live", b"", b"sk-live-0123456789abcde"] {
            let frame = frame(TEXT, message);
            let mut out = Vec::new();
            assert_eq!(sieve.pass(&frame, &mut out), Ok(()));
            assert_eq!(out, frame);
        }
    }

    #[test]
    fn what_cannot_be_looked_into_is_an_error() {
        let begun = [frame(TEXT_BEGINS, b"a"), frame(TEXT, b"b")].concat();
        for (frames, error) in [
            (frame(0xc1, b"a"), FrameError::Extension),
            (frame(0xa1, b"a"), FrameError::Extension),
            (frame(0x83, b"a"), FrameError::Opcode),
            (frame(0x8b, b"a"), FrameError::Opcode),
            (vec![TEXT, 0x81, 1, 2, 3, 4, 5], FrameError::Masked),
            (
                vec![TEXT, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
                FrameError::Length,
            ),
            (frame(PING, &[b'a'; 126]), FrameError::Control),
            (frame(0x09, b"a"), FrameError::Control),
            (frame(ENDS, b"a"), FrameError::Fragments),
            (begun, FrameError::Fragments),
        ] {
            assert_eq!(sift(&[&frames]), Err(error));
        }
    }

    #[test]
    fn frames_that_wait_are_bounded() {
        let scrubber = Scrubber::of_secrets(&[KEY], &[]);
        let mut sieve = FrameSieve::new(&scrubber, OnHit::Redact);
        let mut out = Vec::new();
        assert_eq!(sieve.pass(&frame(TEXT_BEGINS, b"sk-"), &mut out), Ok(()));
        let ping = frame(PING, &[b'p'; 125]);
        let ended = (0..HELD_BYTES_MAX).find_map(|_| sieve.pass(&ping, &mut out).err());
        assert_eq!(ended, Some(FrameError::Flood));
    }
}
