//! [`Decoder`]: undoes one content coding, piece by piece.
//!
//! What arrives is decoded as far as it goes: every symbol whose last bit is there has been given out
//! when [`Decoder::decode`] returns, but for zstd's, which are given out block by block
//! ([`Decoder::is_pending`]). Checksums are not compared, since whatever they say, what was
//! decoded is what a reader may see.
//!
//! It lacks bounds on how much comes out: whoever takes it counts, and says when it is enough.

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use zeroize::Zeroizing;

use super::Uninspected;
use super::zstd::Zstd;
use crate::coding::Coding;

/// Takes decoded text; an error ends the decoding.
pub(super) type Take<'t> = dyn FnMut(&[u8]) -> Result<(), Uninspected> + 't;

/// Undoes one coding.
pub(super) enum Decoder {
    Gzip(Gzip),
    Deflate(Deflate),
    Brotli(Box<Brotli>),
    Zstd(Box<Zstd>),
}

impl Decoder {
    pub(super) fn new(coding: Coding) -> Self {
        match coding {
            Coding::Gzip => Decoder::Gzip(Gzip {
                at: Part::Fixed(0),
                flags: 0,
                inflate: Inflate::new(),
            }),
            Coding::Deflate => Decoder::Deflate(Deflate {
                at: Wrapping::Unknown(None),
                inflate: Inflate::new(),
            }),
            Coding::Brotli => Decoder::Brotli(Box::new(Brotli {
                // Strict: windows beyond those of RFC 7932 are refused.
                state: BrotliState::new_strict(
                    StandardAlloc::default(),
                    StandardAlloc::default(),
                    StandardAlloc::default(),
                ),
                text: Zeroizing::new(vec![0; TEXT_BYTES]),
                is_done: false,
            })),
            Coding::Zstd => Decoder::Zstd(Box::new(Zstd::new())),
        }
    }

    /// Bytes that were taken, and how many of them were before what is pending. Counted where anything ever is.
    pub(super) fn taken(&self) -> u64 {
        match self {
            Decoder::Zstd(zstd) => zstd.taken(),
            _ => 0,
        }
    }

    /// See [`taken`](Self::taken).
    pub(super) fn settled(&self) -> u64 {
        match self {
            Decoder::Zstd(zstd) => zstd.taken() - zstd.pending_bytes() as u64,
            _ => 0,
        }
    }

    /// Whether bytes were taken whose text was not given out. Somebody who looks closely may read some
    /// of it in them.
    pub(super) fn is_pending(&self) -> bool {
        match self {
            Decoder::Gzip(_) | Decoder::Deflate(_) | Decoder::Brotli(_) => false,
            Decoder::Zstd(zstd) => zstd.pending_bytes() > 0,
        }
    }

    /// Decodes all of `input`, and hands out what it says in order.
    pub(super) fn decode(&mut self, input: &[u8], take: &mut Take<'_>) -> Result<(), Uninspected> {
        match self {
            Decoder::Gzip(gzip) => gzip.decode(input, take),
            Decoder::Deflate(deflate) => deflate.decode(input, take),
            Decoder::Brotli(brotli) => brotli.decode(input, take),
            Decoder::Zstd(zstd) => zstd.decode(input, take),
        }
    }
}

/// RFC 1952: members, one after the other.
pub(super) struct Gzip {
    at: Part,
    /// Of this member.
    flags: u8,
    inflate: Inflate,
}

/// Where in a member the next byte stands (RFC 1952, section 2.3).
#[derive(Clone, Copy)]
enum Part {
    /// In the ten bytes that each member begins with, of which so many were read.
    Fixed(u8),
    /// In the length of the extra field: its first byte, once that was read.
    ExtraLength(Option<u8>),
    /// In the extra field, of which so many bytes are to come.
    Extra(u16),
    /// In the file's name, which a zero ends.
    Name,
    /// In the comment, likewise.
    Comment,
    /// In the header's own checksum, of which so many bytes were read.
    HeaderSum(u8),
    /// In the deflated text.
    Text,
    /// In checksum and length, of which so many bytes were read.
    Trailer(u8),
}

impl Gzip {
    fn decode(&mut self, input: &[u8], take: &mut Take<'_>) -> Result<(), Uninspected> {
        let mut rest = input;
        while let Some((&byte, behind)) = rest.split_first() {
            if let Part::Text = self.at {
                let (used, is_done) = self.inflate.decode(rest, FLAGS_RAW, take)?;
                rest = &rest[used..];
                if is_done {
                    self.at = Part::Trailer(0);
                }
            } else {
                self.at = self.step(byte)?;
                rest = behind;
            }
        }
        Ok(())
    }

    /// Takes one byte of what stands around the text.
    fn step(&mut self, byte: u8) -> Result<Part, Uninspected> {
        Ok(match self.at {
            Part::Fixed(at) => {
                let is_wrong = match at {
                    0 => byte != 0x1f,
                    1 => byte != 0x8b,
                    // Deflate is the only method there is.
                    2 => byte != 8,
                    3 => {
                        self.flags = byte;
                        byte & FLAGS_RESERVED != 0
                    }
                    // Time, extra flags, operating system.
                    _ => false,
                };
                if is_wrong {
                    return Err(Uninspected::Malformed);
                }
                match at {
                    9 => self.behind(Part::Fixed(9)),
                    at => Part::Fixed(at + 1),
                }
            }
            Part::ExtraLength(None) => Part::ExtraLength(Some(byte)),
            Part::ExtraLength(Some(low)) => match u16::from_le_bytes([low, byte]) {
                0 => self.behind(Part::Extra(0)),
                length => Part::Extra(length),
            },
            Part::Extra(left @ 2..) => Part::Extra(left - 1),
            part @ (Part::Name | Part::Comment) if byte != 0 => part,
            Part::HeaderSum(0) => Part::HeaderSum(1),
            part @ (Part::Extra(_) | Part::Name | Part::Comment | Part::HeaderSum(_)) => {
                self.behind(part)
            }
            Part::Trailer(at @ ..TRAILER_LAST) => Part::Trailer(at + 1),
            // Another member may follow; nothing else may.
            Part::Trailer(_) => Part::Fixed(0),
            Part::Text => Part::Text,
        })
    }

    /// What follows a part of the header; the text's decoder is ready when that is next.
    fn behind(&mut self, part: Part) -> Part {
        let has = |flag: u8| self.flags & flag != 0;
        let passed = match part {
            Part::Fixed(_) | Part::ExtraLength(_) => 0,
            Part::Extra(_) => 1,
            Part::Name => 2,
            Part::Comment => 3,
            Part::HeaderSum(_) | Part::Text | Part::Trailer(_) => 4,
        };
        if passed < 1 && has(FLAG_EXTRA) {
            Part::ExtraLength(None)
        } else if passed < 2 && has(FLAG_NAME) {
            Part::Name
        } else if passed < 3 && has(FLAG_COMMENT) {
            Part::Comment
        } else if passed < 4 && has(FLAG_HEADER_SUM) {
            Part::HeaderSum(0)
        } else {
            self.inflate.begin();
            Part::Text
        }
    }
}

/// What is called `deflate`: with zlib's wrapping, as it should be, or bare.
pub(super) struct Deflate {
    at: Wrapping,
    inflate: Inflate,
}

#[derive(Clone, Copy)]
enum Wrapping {
    /// The first two bytes tell; the first of them, once it is there.
    Unknown(Option<u8>),
    /// With these flags of the decoder.
    Known(u32),
    /// Nothing may follow.
    Done,
}

impl Deflate {
    fn decode(&mut self, input: &[u8], take: &mut Take<'_>) -> Result<(), Uninspected> {
        let Some((&next, behind)) = input.split_first() else {
            return Ok(());
        };
        match self.at {
            Wrapping::Unknown(None) => {
                self.at = Wrapping::Unknown(Some(next));
                self.decode(behind, take)
            }
            Wrapping::Unknown(Some(first)) => {
                // RFC 1950, section 2.2: deflate, a window of at most 32 KiB, and a check. No
                // encoder begins a bare text with such a byte: it would be an uncompressed block
                // with padding that is not zero.
                let is_zlib = first & 0x0f == 8
                    && first >> 4 <= 7
                    && u16::from_be_bytes([first, next]).is_multiple_of(31);
                self.at = Wrapping::Known(if is_zlib { FLAGS_ZLIB } else { FLAGS_RAW });
                self.text(&[first], take)?;
                self.text(input, take)
            }
            Wrapping::Known(_) | Wrapping::Done => self.text(input, take),
        }
    }

    fn text(&mut self, input: &[u8], take: &mut Take<'_>) -> Result<(), Uninspected> {
        let Wrapping::Known(flags) = self.at else {
            return Err(Uninspected::Malformed);
        };
        let (used, is_done) = self.inflate.decode(input, flags, take)?;
        if is_done {
            self.at = Wrapping::Done;
            if used < input.len() {
                return Err(Uninspected::Malformed);
            }
        }
        Ok(())
    }
}

/// RFC 1951.
struct Inflate {
    state: Box<DecompressorOxide>,
    /// The last [`WINDOW_BYTES`] that were decoded, in a ring.
    window: Zeroizing<Vec<u8>>,
    /// Where in the ring the next byte goes.
    at: usize,
}

impl Inflate {
    fn new() -> Self {
        Self {
            state: Box::default(),
            window: Zeroizing::new(vec![0; WINDOW_BYTES]),
            at: 0,
        }
    }

    /// Another text follows.
    fn begin(&mut self) {
        self.state.init();
        self.at = 0;
    }

    /// How much of `input` was used, and whether the text is over.
    fn decode(
        &mut self,
        input: &[u8],
        flags: u32,
        take: &mut Take<'_>,
    ) -> Result<(usize, bool), Uninspected> {
        let mut used = 0;
        loop {
            let (status, read, written) = decompress(
                &mut self.state,
                &input[used..],
                &mut self.window,
                self.at,
                flags,
            );
            used += read;
            let end = self.at + written;
            if written > 0 {
                take(&self.window[self.at..end])?;
            }
            self.at = end % WINDOW_BYTES;
            match status {
                TINFLStatus::Done => return Ok((used, true)),
                TINFLStatus::NeedsMoreInput => return Ok((used, false)),
                TINFLStatus::HasMoreOutput => {}
                _ => return Err(Uninspected::Malformed),
            }
        }
    }
}

/// RFC 7932.
pub(super) struct Brotli {
    /// Its window has up to 16 MiB, which the body chooses; memory that nothing was written to is not
    /// taken from the machine.
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    /// Where decoded text is put on its way.
    text: Zeroizing<Vec<u8>>,
    is_done: bool,
}

impl Brotli {
    fn decode(&mut self, input: &[u8], take: &mut Take<'_>) -> Result<(), Uninspected> {
        if input.is_empty() {
            return Ok(());
        }
        if self.is_done {
            return Err(Uninspected::Malformed);
        }
        let (mut left, mut used) = (input.len(), 0);
        loop {
            let (mut room, mut written, mut total) = (self.text.len(), 0, 0);
            let result = BrotliDecompressStream(
                &mut left,
                &mut used,
                input,
                &mut room,
                &mut written,
                &mut self.text,
                &mut total,
                &mut self.state,
            );
            if written > 0 {
                take(&self.text[..written])?;
            }
            match result {
                BrotliResult::NeedsMoreOutput => {}
                BrotliResult::NeedsMoreInput => return Ok(()),
                BrotliResult::ResultSuccess => {
                    self.is_done = true;
                    return if left == 0 {
                        Ok(())
                    } else {
                        Err(Uninspected::Malformed)
                    };
                }
                BrotliResult::ResultFailure => return Err(Uninspected::Malformed),
            }
        }
    }
}

/// Deflate's largest distance (RFC 1951, section 2), and what the decoder writes in as a ring.
const WINDOW_BYTES: usize = 32 * 1024;

/// Bytes that brotli's decoder gives out at once.
const TEXT_BYTES: usize = 16 * 1024;

const FLAGS_RAW: u32 = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;

const FLAGS_ZLIB: u32 = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT
    | inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER
    | inflate_flags::TINFL_FLAG_IGNORE_ADLER32;

// Flags of a gzip member (RFC 1952, section 2.3.1).
const FLAG_HEADER_SUM: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const FLAGS_RESERVED: u8 = 0b1110_0000;

/// The last byte of a member's trailer, counted from 0.
const TRAILER_LAST: u8 = 7;
