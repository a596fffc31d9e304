//! Request bodies: a decoder that is fed whatever has arrived and hands out the content.
//!
//! As strict as the head: chunk sizes are plain hex digits, lines end in CRLF, and trailers obey
//! the rules for header fields.

use super::head::{Framing, HeadError, split_field};
use super::uri::hex;

/// Decodes one body. Feed it with [`BodyDecoder::step`] until it says [`Decoded::End`].
pub struct BodyDecoder {
    state: State,
    trailers: Vec<(Vec<u8>, Vec<u8>)>,
    trailer_bytes: usize,
}

/// What a step found. `consumed` bytes of the input are done with in every case.
pub enum Decoded<'i> {
    /// Content. Call again.
    Content {
        /// Bytes of the input that this step used up.
        consumed: usize,
        /// The content among them.
        content: &'i [u8],
    },
    /// Nothing can be said before more bytes arrive.
    NeedMore {
        /// Bytes of the input that this step used up.
        consumed: usize,
    },
    /// The body is complete.
    End {
        /// Bytes of the input that this step used up.
        consumed: usize,
    },
}

/// Why a body was refused. The connection cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// No digits, other characters, or more than 15 of them (RFC 9112, section 7.1).
    #[error("malformed chunk size")]
    ChunkSize,
    /// A chunk is not followed by CRLF, or a chunk line not ended by it.
    #[error("malformed chunk")]
    Chunk,
    /// A chunk line longer than [`CHUNK_LINE_BYTES_MAX`].
    #[error("a chunk line is too long")]
    ChunkLine,
    /// More than [`TRAILER_BYTES_MAX`] bytes of trailers.
    #[error("the trailers are too large")]
    TrailersTooLarge,
    /// A trailer breaks the rules for header fields.
    #[error("malformed trailer: {0}")]
    Trailer(HeadError),
}

enum State {
    Length { remaining: u64 },
    ChunkLine,
    ChunkContent { remaining: u64 },
    ChunkEnd,
    Trailers,
    End,
}

impl BodyDecoder {
    /// A decoder for a body that is delimited so.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::End,
            Framing::Length(remaining) => State::Length { remaining },
            Framing::Chunked => State::ChunkLine,
        };
        BodyDecoder {
            state,
            trailers: Vec::new(),
            trailer_bytes: 0,
        }
    }

    /// Whether the whole body has been seen.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// The trailers, in order; complete once the body is.
    pub fn into_trailers(self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.trailers
    }

    /// Decodes as far as the next piece of content, the end, or the end of `input`.
    pub fn step<'i>(&mut self, input: &'i [u8]) -> Result<Decoded<'i>, BodyError> {
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            match &mut self.state {
                State::End => return Ok(Decoded::End { consumed }),
                State::Length { remaining } | State::ChunkContent { remaining } => {
                    let length = (*remaining).min(rest.len() as u64) as usize;
                    if length == 0 {
                        return Ok(Decoded::NeedMore { consumed });
                    }
                    *remaining -= length as u64;
                    if *remaining == 0 {
                        self.state = match self.state {
                            State::ChunkContent { .. } => State::ChunkEnd,
                            _ => State::End,
                        };
                    }
                    return Ok(Decoded::Content {
                        consumed: consumed + length,
                        content: &rest[..length],
                    });
                }
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        consumed += 2;
                        self.state = State::ChunkLine;
                    }
                    [] | [b'\r'] => return Ok(Decoded::NeedMore { consumed }),
                    _ => return Err(BodyError::Chunk),
                },
                State::ChunkLine => {
                    let Some((line, length)) = line(rest)? else {
                        return match rest.len() > CHUNK_LINE_BYTES_MAX {
                            true => Err(BodyError::ChunkLine),
                            false => Ok(Decoded::NeedMore { consumed }),
                        };
                    };
                    consumed += length;
                    self.state = match chunk_size(line)? {
                        0 => State::Trailers,
                        remaining => State::ChunkContent { remaining },
                    };
                }
                State::Trailers => {
                    let Some((line, length)) = line(rest)? else {
                        return match self.trailer_bytes + rest.len() > TRAILER_BYTES_MAX {
                            true => Err(BodyError::TrailersTooLarge),
                            false => Ok(Decoded::NeedMore { consumed }),
                        };
                    };
                    consumed += length;
                    self.trailer_bytes += length;
                    if self.trailer_bytes > TRAILER_BYTES_MAX {
                        return Err(BodyError::TrailersTooLarge);
                    }
                    if line.is_empty() {
                        self.state = State::End;
                    } else {
                        let (name, value) = split_field(line).map_err(BodyError::Trailer)?;
                        self.trailers
                            .push((line[name].to_vec(), line[value].to_vec()));
                    }
                }
            }
        }
    }
}

/// The first line without its CRLF, and its length with it. `None`: no whole line yet.
fn line(input: &[u8]) -> Result<Option<(&[u8], usize)>, BodyError> {
    match memchr::memchr(b'\n', input) {
        None => Ok(None),
        Some(newline) => match input[..newline].split_last() {
            Some((b'\r', line)) => Ok(Some((line, newline + 1))),
            _ => Err(BodyError::Chunk),
        },
    }
}

/// `1*HEXDIG [ chunk-ext ]`. Extensions are skipped, as RFC 9112, section 7.1.1 asks, provided
/// that they begin with `;` and hold no control characters.
fn chunk_size(line: &[u8]) -> Result<u64, BodyError> {
    let digits = line
        .iter()
        .position(|&byte| hex(byte).is_none())
        .unwrap_or(line.len());
    if digits == 0 || digits > CHUNK_SIZE_DIGITS_MAX {
        return Err(BodyError::ChunkSize);
    }
    match line.get(digits) {
        None => {}
        Some(b';')
            if line[digits..]
                .iter()
                .all(|&byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) => {}
        Some(_) => return Err(BodyError::ChunkSize),
    }
    Ok(line[..digits].iter().fold(0, |size, &digit| {
        size << 4 | u64::from(hex(digit).unwrap_or(0))
    }))
}

/// Hex digits in a chunk size: 2^60 bytes are enough, and no shift can overflow.
const CHUNK_SIZE_DIGITS_MAX: usize = 15;

/// A chunk line (size and extensions) longer than this ends the connection.
pub const CHUNK_LINE_BYTES_MAX: usize = 4096;

/// More bytes of trailers than this end the connection.
pub const TRAILER_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    type Body = (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>, usize);

    /// Feeds `input` in pieces of `piece` bytes; `None` when it ends before the body does.
    fn decode(framing: Framing, input: &[u8], piece: usize) -> Result<Option<Body>, BodyError> {
        let mut decoder = BodyDecoder::new(framing);
        let (mut content, mut start, mut end) = (Vec::new(), 0, 0);
        loop {
            match decoder.step(&input[start..end])? {
                Decoded::Content {
                    consumed,
                    content: piece,
                } => {
                    content.extend_from_slice(piece);
                    start += consumed;
                }
                Decoded::NeedMore { consumed } => {
                    start += consumed;
                    if end == input.len() {
                        return Ok(None);
                    }
                    end = (end + piece).min(input.len());
                }
                Decoded::End { consumed } => {
                    let trailers = decoder.into_trailers();
                    return Ok(Some((content, trailers, start + consumed)));
                }
            }
        }
    }

    #[test]
    fn chunked_in_pieces_of_every_size() {
        let input = b"3\r\nabc\r\n10;ext=\"x\"\r\n0123456789abcdef\r\n0\r\nX-Sum:  1\r\n\r\nNEXT";
        for piece in 1..=input.len() {
            let (content, trailers, used) = decode(Framing::Chunked, input, piece)
                .expect("accepted")
                .expect("complete");
            assert_eq!(content, b"abc0123456789abcdef");
            assert_eq!(trailers, [(b"X-Sum".to_vec(), b"1".to_vec())]);
            assert_eq!(used, input.len() - 4);
        }
    }

    #[test]
    fn a_length_takes_no_more_than_it_says() {
        for piece in 1..6 {
            let (content, _, used) = decode(Framing::Length(3), b"abcdef", piece)
                .expect("accepted")
                .expect("complete");
            assert_eq!((content.as_slice(), used), (&b"abc"[..], 3));
        }
        assert_eq!(decode(Framing::Length(3), b"ab", 1), Ok(None));
        assert_eq!(
            decode(Framing::None, b"x", 1),
            Ok(Some((vec![], vec![], 0)))
        );
    }

    #[test]
    fn refuses_sloppy_chunks() {
        let refused = |input: &[u8], error| {
            assert_eq!(decode(Framing::Chunked, input, 64), Err(error), "{input:?}")
        };
        refused(b"\r\n", BodyError::ChunkSize);
        refused(b"0x3\r\n", BodyError::ChunkSize);
        refused(b"-1\r\n", BodyError::ChunkSize);
        refused(b"3 \r\n", BodyError::ChunkSize);
        refused(b"1234567890abcdef0\r\n", BodyError::ChunkSize);
        refused(b"3\nabc\r\n", BodyError::Chunk);
        refused(b"3\r\nabcd\r\n", BodyError::Chunk);
        refused(
            b"0\r\nbad name: x\r\n\r\n",
            BodyError::Trailer(HeadError::FieldName),
        );
        let long = [b"1;".as_slice(), &[b'a'; CHUNK_LINE_BYTES_MAX]].concat();
        assert_eq!(
            decode(Framing::Chunked, &long, long.len()),
            Err(BodyError::ChunkLine)
        );
    }
}
