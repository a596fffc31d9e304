//! [`Zstd`]: undoes RFC 8878, block by block.
//!
//! A block is given out as soon as its last byte is there; what is stored bare in a block, as it comes.
//! Encoders end a block where they flush, so an event of a stream does not wait. Windows are those of
//! RFC 9659: at most [`WINDOW_BYTES_MAX`].
//!
//! It lacks dictionaries (a frame that names one is refused), the frame's checksum and its announced
//! length: whatever they say, what was decoded is what a reader may see.
//!
//! Why it is here: a crate in Rust alone gives text out when it leaves the window, by which time an
//! event stream has stalled; the C library would read a peer's bytes without the compiler's guard.

mod bits;
mod fse;
mod huffman;
mod sequences;

use zeroize::Zeroizing;

use super::Uninspected;
use super::decode::Take;
use huffman::Literals;
use sequences::Sequences;

/// Undoes one body: frames, one after the other, and such as are to be skipped.
pub(super) struct Zstd {
    at: Part,
    taken: u64,
    /// What has come of the part under way, where it is needed whole. At most [`BLOCK_BYTES_MAX`].
    part: Zeroizing<Vec<u8>>,
    /// The window of this frame, in bytes. At most [`WINDOW_BYTES_MAX`].
    window_bytes: usize,
    /// Whether a checksum stands behind this frame.
    has_sum: bool,
    text: Text,
    literals: Literals,
    sequences: Sequences,
}

/// Where the next byte stands (RFC 8878, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// In a frame's first four bytes.
    Magic,
    /// In the length of a frame that is to be skipped.
    SkipLength,
    /// In such a frame, of which so many bytes are to come.
    Skip(u32),
    /// In a frame's header, which has so many bytes as far as is known.
    Header(usize),
    /// In the three bytes in front of a block.
    BlockHeader,
    /// In a bare block, of which so many bytes are to come.
    Bare { left: usize, last: bool },
    /// At the one byte that is to be repeated so often.
    Repeated { times: usize, last: bool },
    /// In a compressed block of so many bytes.
    Compressed { length: usize, last: bool },
    /// In the checksum behind a frame.
    Sum,
}

impl Zstd {
    pub(super) fn new() -> Self {
        Self {
            at: Part::Magic,
            taken: 0,
            part: Zeroizing::default(),
            window_bytes: 0,
            has_sum: false,
            text: Text::default(),
            literals: Literals::new(),
            sequences: Sequences::new(),
        }
    }

    /// Bytes that were taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes that were taken and whose text has not been given out: part of a block.
    pub(super) fn pending_bytes(&self) -> usize {
        match self.at {
            Part::Compressed { .. } => self.part.len(),
            _ => 0,
        }
    }

    pub(super) fn decode(
        &mut self,
        mut input: &[u8],
        take: &mut Take<'_>,
    ) -> Result<(), Uninspected> {
        while !input.is_empty() {
            let used = self.step(input, take).ok_or(Uninspected::Malformed)??;
            self.taken += used as u64;
            input = &input[used..];
        }
        Ok(())
    }

    /// Goes on by one part, or by a piece of one: how much of `input` was used. `None` is a fault of the
    /// body's; an error is the taker's.
    fn step(&mut self, input: &[u8], take: &mut Take<'_>) -> Option<Result<usize, Uninspected>> {
        let needed = match self.at {
            Part::Magic | Part::SkipLength | Part::Sum => 4,
            Part::Header(length) => length,
            Part::BlockHeader => 3,
            Part::Compressed { length, .. } => length,
            Part::Repeated { .. } => 1,
            Part::Skip(left) => {
                let n = input.len().min(left as usize);
                self.at = match left - n as u32 {
                    0 => Part::Magic,
                    left => Part::Skip(left),
                };
                return Some(Ok(n));
            }
            Part::Bare { left, last } => {
                let n = input.len().min(left);
                self.at = match left - n {
                    0 => self.behind_block(last),
                    left => Part::Bare { left, last },
                };
                self.text.make_room(self.window_bytes);
                self.text.bytes.extend_from_slice(&input[..n]);
                return Some(take(&input[..n]).map(|()| n));
            }
        };
        let n = input.len().min(needed - self.part.len());
        self.part.extend_from_slice(&input[..n]);
        if self.at == Part::Magic && !may_begin_frame(&self.part) {
            return None;
        }
        if self.part.len() < needed {
            return Some(Ok(n));
        }
        let mut part = std::mem::take(&mut self.part);
        let outcome = self.take_part(&part, take)?;
        if !matches!(self.at, Part::Header(length) if length > part.len()) {
            part.clear();
        }
        if let Part::Compressed { length, .. } = self.at
            && part.capacity() < length
        {
            // Whole at once: a Vec that grows leaves what it held in memory behind it.
            part = Zeroizing::new(Vec::with_capacity(length));
        }
        self.part = part;
        Some(outcome.map(|()| n))
    }

    /// Takes a part that is there whole.
    fn take_part(&mut self, part: &[u8], take: &mut Take<'_>) -> Option<Result<(), Uninspected>> {
        self.at = match self.at {
            Part::Magic => match u32::from_le_bytes(part.try_into().ok()?) {
                MAGIC => Part::Header(1),
                magic if magic & !0xf == MAGIC_SKIPPED => Part::SkipLength,
                _ => return None,
            },
            Part::SkipLength => match u32::from_le_bytes(part.try_into().ok()?) {
                0 => Part::Magic,
                length => Part::Skip(length),
            },
            Part::Header(1) if header_bytes(part[0]) > 1 => Part::Header(header_bytes(part[0])),
            Part::Header(_) => {
                self.begin_frame(part)?;
                Part::BlockHeader
            }
            Part::BlockHeader => self.begin_block(part)?,
            Part::Repeated { times, last } => {
                let from = self.text.make_room(self.window_bytes);
                self.text.bytes.resize(from + times, part[0]);
                self.at = self.behind_block(last);
                return Some(take(&self.text.bytes[from..]));
            }
            Part::Compressed { last, .. } => {
                let from = self.text.make_room(self.window_bytes);
                self.block(part)?;
                self.at = self.behind_block(last);
                return Some(take(&self.text.bytes[from..]));
            }
            Part::Sum => Part::Magic,
            // Never needed whole.
            Part::Skip(_) | Part::Bare { .. } => return None,
        };
        Some(Ok(()))
    }

    /// RFC 8878, section 3.1.1.1.
    fn begin_frame(&mut self, header: &[u8]) -> Option<()> {
        let (&descriptor, rest) = header.split_first()?;
        let (window, rest) = if is_single(descriptor) {
            (None, rest)
        } else {
            let (&window, rest) = rest.split_first()?;
            (Some(window), rest)
        };
        let (dictionary, size) = rest.split_at_checked(dictionary_bytes(descriptor))?;
        // A dictionary's number may be 0, which says nothing.
        if descriptor & RESERVED != 0 || dictionary.iter().any(|&byte| byte != 0) {
            return None;
        }
        let window_bytes = match window {
            Some(window) => {
                let base = 1u64 << (10 + (window >> 3));
                base + base / 8 * u64::from(window & 7)
            }
            None => {
                let mut bytes = [0; 8];
                bytes[..size.len()].copy_from_slice(size);
                let offset = if size.len() == 2 { 256 } else { 0 };
                u64::from_le_bytes(bytes).checked_add(offset)?
            }
        };
        if window_bytes > WINDOW_BYTES_MAX as u64 {
            return None;
        }
        self.window_bytes = window_bytes as usize;
        self.has_sum = descriptor & HAS_SUM != 0;
        self.text.bytes.clear();
        self.literals.begin_frame();
        self.sequences.begin_frame();
        Some(())
    }

    /// RFC 8878, section 3.1.1.2.
    fn begin_block(&mut self, header: &[u8]) -> Option<Part> {
        let header = u32::from_le_bytes([header[0], header[1], header[2], 0]);
        let last = header & 1 != 0;
        let length = (header >> 3) as usize;
        if length > self.window_bytes.min(BLOCK_BYTES_MAX) {
            return None;
        }
        Some(match (header >> 1) & 3 {
            0 if length == 0 => self.behind_block(last),
            0 => Part::Bare { left: length, last },
            1 => Part::Repeated {
                times: length,
                last,
            },
            2 if length > 0 => Part::Compressed { length, last },
            // Nobody writes one; those who read it take it for empty.
            2 => self.behind_block(last),
            _ => return None,
        })
    }

    fn behind_block(&self, last: bool) -> Part {
        match last {
            false => Part::BlockHeader,
            true if self.has_sum => Part::Sum,
            true => Part::Magic,
        }
    }

    /// RFC 8878, section 3.1.1.3: puts a compressed block's text behind the one before.
    fn block(&mut self, block: &[u8]) -> Option<()> {
        let used = self.literals.read(block)?;
        let mut literals = self.literals.text();
        let text = &mut self.text.bytes;
        let end_max = text.len() + BLOCK_BYTES_MAX;
        self.sequences.read(&block[used..], |sequence| {
            let (own, rest) = literals.split_at_checked(sequence.literals)?;
            literals = rest;
            if text.len() + own.len() + sequence.length > end_max {
                return None;
            }
            text.extend_from_slice(own);
            let from = text.len().checked_sub(sequence.offset)?;
            repeat(text, from, sequence.length);
            Some(())
        })?;
        if text.len() + literals.len() > end_max {
            return None;
        }
        text.extend_from_slice(literals);
        Some(())
    }
}

/// Appends `length` bytes of `text` from `from` on; what is appended may be among them.
fn repeat(text: &mut Vec<u8>, from: usize, length: usize) {
    let mut left = length;
    while left > 0 {
        // Twice as much each time, where the two overlap.
        let n = left.min(text.len() - from);
        text.extend_from_within(from..from + n);
        left -= n;
    }
}

/// What was decoded, as far back as the window reaches.
#[derive(Default)]
struct Text {
    bytes: Zeroizing<Vec<u8>>,
}

impl Text {
    /// Makes room for one block behind what there is, and returns where that goes. What no window reaches
    /// any more is forgotten, now and then.
    fn make_room(&mut self, window_bytes: usize) -> usize {
        let kept = self.bytes.len().min(window_bytes);
        let spare = (window_bytes / 2).max(BLOCK_BYTES_MAX);
        if self.bytes.len() >= window_bytes + spare {
            let from = self.bytes.len() - kept;
            self.bytes.copy_within(from.., 0);
            self.bytes.truncate(kept);
        }
        let needed = self.bytes.len() + BLOCK_BYTES_MAX;
        if self.bytes.capacity() < needed {
            // By hand: a Vec that grows leaves what it held in memory behind it.
            let capacity = (needed * 2).min(window_bytes + spare + BLOCK_BYTES_MAX);
            let mut grown = Zeroizing::new(Vec::with_capacity(capacity.max(needed)));
            grown.extend_from_slice(&self.bytes);
            self.bytes = grown;
        }
        self.bytes.len()
    }
}

/// Whether a frame may begin so, one that is to be skipped included.
fn may_begin_frame(front: &[u8]) -> bool {
    let skipped = front.first().map_or(MAGIC_SKIPPED, |&first| {
        MAGIC_SKIPPED | u32::from(first & 0xf)
    });
    let known = [MAGIC, skipped];
    known
        .iter()
        .any(|magic| magic.to_le_bytes().starts_with(front))
}

/// Bytes of a frame's header, by its first one, which is counted.
fn header_bytes(descriptor: u8) -> usize {
    let size = match (descriptor >> 6, is_single(descriptor)) {
        (0, single) => usize::from(single),
        (flag, _) => 1 << flag,
    };
    1 + usize::from(!is_single(descriptor)) + dictionary_bytes(descriptor) + size
}

fn dictionary_bytes(descriptor: u8) -> usize {
    [0, 1, 2, 4][usize::from(descriptor & 3)]
}

/// Whether the whole text is the window.
fn is_single(descriptor: u8) -> bool {
    descriptor & 0x20 != 0
}

// Bits of a frame header's first byte (RFC 8878, section 3.1.1.1.1).
const RESERVED: u8 = 1 << 3;
const HAS_SUM: u8 = 1 << 2;

const MAGIC: u32 = 0xfd2f_b528;

/// With any last four bits.
const MAGIC_SKIPPED: u32 = 0x184d_2a50;

/// RFC 9659, section 3: a body's window has at most 8 MiB; a larger one is refused.
const WINDOW_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A block and its text have at most so many bytes (RFC 8878, section 3.1.1.2.4).
const BLOCK_BYTES_MAX: usize = 128 * 1024;

#[cfg(test)]
mod tests;
