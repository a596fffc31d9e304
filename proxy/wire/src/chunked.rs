//! The chunked transfer coding (RFC 9112 section 7.1), read strictly and incrementally.
//!
//! The reader neither buffers nor copies body data: it says which bytes of the caller's buffer are
//! data. It keeps trailers, because they are checked as whole lines. Extensions are passed over: a
//! proxy writes chunks of its own.

use core::ops::Range;

use crate::head::is_token;

/// Strict incremental chunked reader: lines end in CR LF and nothing else, extensions are bounded
/// per chunk and in total, trailers are bounded.
#[derive(Debug)]
pub struct ChunkedDecoder {
    state: State,
    /// Bytes of extensions seen in this chunk and in all.
    extension_bytes: u32,
    extension_bytes_total: u32,
    /// Trailer lines, complete ones validated; the last may still be growing.
    trailers: Vec<u8>,
    /// Start of the trailer line being received. `line_start <= trailers.len()`.
    line_start: usize,
}

/// What one call of [`ChunkedDecoder::decode`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes at the front of the input that are done with.
    pub used: usize,
    /// Which of them are body data. May be empty.
    pub data: Range<usize>,
}

impl ChunkedDecoder {
    /// A reader at the start of a body.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Size { digits: 0, size: 0 },
            extension_bytes: 0,
            extension_bytes_total: 0,
            trailers: Vec::new(),
            line_start: 0,
        }
    }

    /// Reads from the front of `input`, up to the end of the next stretch of data. Call again with
    /// what is behind `used`, until `used` is 0 (more input is needed) or [`is_done`](Self::is_done).
    /// Bytes behind the body are never used.
    ///
    /// # Errors
    /// Any departure from the grammar, any breach of a bound. The body is unreadable afterwards.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, ChunkError> {
        let mut used = 0;
        while let Some(&byte) = input.get(used) {
            match self.state {
                State::Data { remaining } => {
                    let available = input.len() - used;
                    let taken = usize::try_from(remaining)
                        .map_or(available, |remaining| available.min(remaining));
                    let left = remaining - taken as u64;
                    self.state = if left == 0 {
                        State::DataCr
                    } else {
                        State::Data { remaining: left }
                    };
                    return Ok(Decoded {
                        used: used + taken,
                        data: used..used + taken,
                    });
                }
                State::Done => break,
                _ => self.step(byte)?,
            }
            used += 1;
        }
        Ok(Decoded {
            used,
            data: used..used,
        })
    }

    /// Whether the whole body was read, trailers and final blank line included.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The trailer section: validated lines, each with its CRLF, without the final blank line. Empty
    /// before the body is done.
    #[must_use]
    pub fn trailers(&self) -> &[u8] {
        if self.is_done() { &self.trailers } else { &[] }
    }

    fn step(&mut self, byte: u8) -> Result<(), ChunkError> {
        self.state = match (self.state, byte) {
            (State::Size { digits: 0, .. }, b'\r' | b';' | b' ' | b'\t') => {
                return Err(ChunkError::Size);
            }
            (State::Size { size, .. }, b'\r') => State::SizeLf { size },
            (State::Size { size, .. }, b';') => {
                self.extension_byte()?;
                State::Extension { size }
            }
            (State::Size { size, .. } | State::Space { size }, b' ' | b'\t') => {
                self.extension_byte()?;
                State::Space { size }
            }
            (State::Size { digits, size }, digit) => {
                let value = crate::names::hex(digit).ok_or(ChunkError::Size)?;
                if digits == SIZE_DIGITS_MAX {
                    return Err(ChunkError::SizeTooLarge);
                }
                State::Size {
                    digits: digits + 1,
                    size: size << 4 | u64::from(value),
                }
            }
            (State::Space { size }, b';') => {
                self.extension_byte()?;
                State::Extension { size }
            }
            (State::Space { .. }, _) => return Err(ChunkError::Size),
            (State::Extension { size }, b'\r') => State::SizeLf { size },
            (State::Extension { size }, b'"') => {
                self.extension_byte()?;
                State::Quoted { size }
            }
            (State::Quoted { size }, b'"') => {
                self.extension_byte()?;
                State::Extension { size }
            }
            (State::Quoted { size }, b'\\') => {
                self.extension_byte()?;
                State::Escaped { size }
            }
            (State::Extension { size }, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension_byte()?;
                State::Extension { size }
            }
            (State::Quoted { size } | State::Escaped { size }, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension_byte()?;
                State::Quoted { size }
            }
            // A line end inside a quoted string too: some readers would look for the quote behind it
            // (CVE-2026-2332, CVE-2026-33870).
            (State::Extension { .. } | State::Quoted { .. } | State::Escaped { .. }, _) => {
                return Err(ChunkError::Extension);
            }
            (State::SizeLf { size: 0 }, b'\n') => State::Trailer,
            (State::SizeLf { size }, b'\n') => {
                self.extension_bytes = 0;
                State::Data { remaining: size }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0, size: 0 },
            (State::SizeLf { .. } | State::DataCr | State::DataLf, _) => {
                return Err(ChunkError::LineEnding);
            }
            (State::Trailer, byte) => self.trailer_byte(byte)?,
            (state @ (State::Data { .. } | State::Done), _) => state,
        };
        Ok(())
    }

    fn extension_byte(&mut self) -> Result<(), ChunkError> {
        self.extension_bytes += 1;
        self.extension_bytes_total += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX
            || self.extension_bytes_total > EXTENSION_BYTES_TOTAL_MAX
        {
            return Err(ChunkError::ExtensionTooLarge);
        }
        Ok(())
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<State, ChunkError> {
        if self.trailers.len() == TRAILER_BYTES_MAX {
            return Err(ChunkError::TrailersTooLarge);
        }
        let after_cr =
            self.trailers.len() > self.line_start && self.trailers.last() == Some(&b'\r');
        if after_cr != (byte == b'\n') {
            return Err(ChunkError::LineEnding);
        }
        self.trailers.push(byte);
        if byte != b'\n' {
            return Ok(State::Trailer);
        }
        let line = &self.trailers[self.line_start..self.trailers.len() - 2];
        if line.is_empty() {
            self.trailers.truncate(self.line_start);
            return Ok(State::Done);
        }
        check_trailer(line)?;
        self.line_start = self.trailers.len();
        Ok(State::Trailer)
    }
}

impl Default for ChunkedDecoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a chunked body was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// No hexadecimal digits where a size must stand, or something else behind them.
    #[error("a chunk size is not hexadecimal digits")]
    Size,
    /// More than 16 digits.
    #[error("a chunk size has more than 16 digits")]
    SizeTooLarge,
    /// A control byte in an extension, or a quoted string without its end.
    #[error("a chunk extension contains a control byte or an open quote")]
    Extension,
    /// More bytes of extensions than allowed.
    #[error("chunk extensions are larger than allowed (256 bytes per chunk, 16 KiB per body)")]
    ExtensionTooLarge,
    /// A line does not end in CR LF, or a chunk's data is longer than its size.
    #[error("a chunk or one of its lines does not end in CR LF")]
    LineEnding,
    /// A trailer line is no field line.
    #[error("a trailer line is malformed")]
    Trailer,
    /// The trailer section is larger than allowed.
    #[error("the trailer section is larger than 8 KiB")]
    TrailersTooLarge,
}

impl ChunkError {
    /// The status that answers such a request: 400 or 431. For a response the exchange is cut.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::TrailersTooLarge => 431,
            _ => 400,
        }
    }

    /// A stable machine-readable name, in snake_case.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Size => "chunk_size",
            Self::SizeTooLarge => "chunk_size_too_large",
            Self::Extension => "chunk_extension",
            Self::ExtensionTooLarge => "chunk_extension_too_large",
            Self::LineEnding => "chunk_line_ending",
            Self::Trailer => "trailer",
            Self::TrailersTooLarge => "trailers_too_large",
        }
    }
}

/// Writes the line that opens a chunk of `len` bytes, CRLF included. A chunk of 0 bytes would end
/// the body, so `len` must not be 0 except for that.
pub fn chunk_header(len: usize, out: &mut [u8; 18]) -> &[u8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out[16] = b'\r';
    out[17] = b'\n';
    let mut at = 16;
    let mut left = len;
    loop {
        at -= 1;
        out[at] = DIGITS[left & 15];
        left >>= 4;
        if left == 0 {
            return &out[at..];
        }
    }
}

/// The chunk that ends a body. Trailer lines and a blank line follow.
pub const LAST_CHUNK: &[u8] = b"0\r\n";

/// Where in the grammar the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size {
        digits: u8,
        size: u64,
    },
    /// White space behind the size; only an extension may follow.
    Space {
        size: u64,
    },
    Extension {
        size: u64,
    },
    /// Inside a quoted string of an extension.
    Quoted {
        size: u64,
    },
    /// Behind a backslash in one.
    Escaped {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data {
        remaining: u64,
    },
    DataCr,
    DataLf,
    Trailer,
    Done,
}

/// A trailer line without its CRLF: token, colon, value without control bytes.
fn check_trailer(line: &[u8]) -> Result<(), ChunkError> {
    let colon = memchr::memchr(b':', line).ok_or(ChunkError::Trailer)?;
    let (name, value) = line.split_at(colon);
    let valid = is_token(name)
        && value
            .iter()
            .all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f));
    if valid {
        Ok(())
    } else {
        Err(ChunkError::Trailer)
    }
}

/// Hexadecimal digits of a chunk's size, leading zeros included: 16 fill 64 bits. More are refused.
const SIZE_DIGITS_MAX: u8 = 16;

/// Bytes of extension on one chunk, `;` and white space included. More are refused.
const EXTENSION_BYTES_MAX: u32 = 256;

/// Bytes of extension in a whole body. More are refused: nothing honest sends them, and each costs
/// a step that brings no data.
const EXTENSION_BYTES_TOTAL_MAX: u32 = 16 * 1024;

/// Bytes of the trailer section, blank line included. More are refused.
const TRAILER_BYTES_MAX: usize = 8 * 1024;
