//! Bodies on their way through, in both directions, with constant memory.
//!
//! Framing is never copied: what comes in is read as data, and framed anew for
//! the other side (RFC 9112, section 6). Whatever is at hand goes out at once, so
//! an event stream arrives event by event.

use std::io;
use std::ops::Range;
use std::time::Duration;

use wire::chunked::{ChunkError, ChunkedDecoder, chunk_header};
use wire::framing::BodyFraming;
use wire::names::NameSet;
use wire::scrub::Scrubber;

use crate::rt;
use crate::transport::{Filled, Incoming, Outgoing, SEND_PENDING_BYTES};

/// After so many flushes a body lets other tasks of its core run.
pub const FLUSHES_PER_TURN: u32 = 16;

/// Bytes that a record and a chunk header add, at most, to what is pending.
const OVERHEAD_BYTES: usize = 64;

/// Reads a body out of its framing.
#[derive(Debug)]
pub enum BodyReader {
    /// Nothing, or everything has been read.
    Done,
    /// So many bytes are still to come.
    Length(u64),
    /// Chunks are still to come.
    Chunked(Box<ChunkedDecoder>),
    /// All until the peer closes.
    UntilClose,
}

/// Writes a body in its new framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyWriter {
    /// As it is: a length was announced, or the connection's end is the body's.
    Plain,
    /// In chunks.
    Chunked,
}

/// Why a body did not come through.
#[derive(Debug)]
pub enum BodyError {
    /// Whoever sends it broke off, was too slow, or failed.
    Source(io::Error),
    /// Whoever sends it broke the framing.
    Framing,
    /// Whoever receives it is gone or does not read.
    Sink,
    /// It is larger than the route allows.
    TooLarge,
}

/// Both ends of a body's way, and what was carried.
pub struct Body<'r> {
    pub reader: BodyReader,
    pub writer: BodyWriter,
    /// Data bytes so far.
    pub bytes: u64,
    /// Largest body allowed.
    pub bytes_max: u64,
    /// Trailer fields that are dropped, besides those that never pass.
    pub strip_trailers: &'r NameSet,
    /// Times that it was found.
    pub hits: usize,
    /// Searched for in trailers: those with a hit are dropped, all of them.
    pub scrubber: Option<&'r Scrubber>,
}

impl BodyReader {
    pub fn new(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::None | BodyFraming::Length(0) => BodyReader::Done,
            BodyFraming::Length(length) => BodyReader::Length(length),
            BodyFraming::Chunked => BodyReader::Chunked(Box::new(ChunkedDecoder::new())),
            BodyFraming::UntilClose => BodyReader::UntilClose,
        }
    }

    pub fn is_done(&self) -> bool {
        match self {
            BodyReader::Done => true,
            BodyReader::Chunked(decoder) => decoder.is_done(),
            BodyReader::Length(_) | BodyReader::UntilClose => false,
        }
    }

    /// Takes from the front of `input`: how much was used, and which of it is data.
    fn read(&mut self, input: &[u8]) -> Result<(usize, Range<usize>), ChunkError> {
        match self {
            BodyReader::Done => Ok((0, 0..0)),
            BodyReader::Length(remaining) => {
                let n =
                    usize::try_from(*remaining).map_or(input.len(), |left| left.min(input.len()));
                *remaining -= n as u64;
                if *remaining == 0 {
                    *self = BodyReader::Done;
                }
                Ok((n, 0..n))
            }
            BodyReader::Chunked(decoder) => {
                let decoded = decoder.decode(input)?;
                Ok((decoded.used, decoded.data))
            }
            BodyReader::UntilClose => Ok((input.len(), 0..input.len())),
        }
    }
}

impl Body<'_> {
    /// Reads what `input` holds of the body and appends it to `out`, framed for
    /// the other side, the end included. For what came along with a head, so that
    /// both leave in one message. Returns how much of `input` was used.
    pub fn copy_into(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BodyError> {
        let mut used = 0;
        while !self.reader.is_done() {
            let (n, data) = self
                .reader
                .read(&input[used..])
                .map_err(|_| BodyError::Framing)?;
            let data = &input[used..][data];
            self.count(data.len())?;
            if !data.is_empty() {
                match self.writer {
                    BodyWriter::Plain => out.extend_from_slice(data),
                    BodyWriter::Chunked => {
                        out.extend_from_slice(chunk_header(data.len(), &mut [0; 18]));
                        out.extend_from_slice(data);
                        out.extend_from_slice(b"\r\n");
                    }
                }
            }
            used += n;
            if n == 0 {
                break;
            }
        }
        if self.reader.is_done() {
            self.end_into(out);
        }
        Ok(used)
    }

    /// The framing's own end.
    fn end_into(&mut self, out: &mut Vec<u8>) {
        if self.writer != BodyWriter::Chunked {
            return;
        }
        out.extend_from_slice(wire::chunked::LAST_CHUNK);
        if let BodyReader::Chunked(decoder) = &self.reader {
            let found = self
                .scrubber
                .and_then(|scrubber| scrubber.find(decoder.trailers()));
            match found {
                Some(_) => self.hits += 1,
                None => wire::rewrite::trailers(decoder.trailers(), self.strip_trailers, out),
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    fn count(&mut self, n: usize) -> Result<(), BodyError> {
        self.bytes += n as u64;
        if self.bytes > self.bytes_max {
            return Err(BodyError::TooLarge);
        }
        Ok(())
    }

    /// Carries the rest of the body over, to its end.
    pub async fn carry(
        &mut self,
        from: &mut Incoming<'_>,
        to: &mut Outgoing<'_>,
        read_timeout: Duration,
        write_timeout: Duration,
    ) -> Result<(), BodyError> {
        let mut pending = 0;
        let mut flushes = 0u32;
        if self.reader.is_done() {
            return to.flush(write_timeout).await.map_err(|_| BodyError::Sink);
        }
        loop {
            let ready = match from.ready().map_err(BodyError::Source)? {
                Some(ready) => ready,
                None => {
                    // Nothing more at hand: what there is must not wait.
                    to.flush(write_timeout).await.map_err(|_| BodyError::Sink)?;
                    pending = 0;
                    flushes += 1;
                    if flushes.is_multiple_of(FLUSHES_PER_TURN) {
                        rt::yield_now().await;
                    }
                    from.fill(read_timeout).await.map_err(BodyError::Source)?
                }
            };
            match ready {
                Filled::Data => {
                    pending += from.take(|chunk| self.pass(chunk, to))?;
                    if self.reader.is_done() {
                        break;
                    }
                }
                Filled::End => {
                    // A clean end is the body's own end only where no length was announced.
                    if !matches!(self.reader, BodyReader::UntilClose) {
                        return Err(BodyError::Source(io::ErrorKind::UnexpectedEof.into()));
                    }
                    self.reader = BodyReader::Done;
                    break;
                }
            }
            if pending >= SEND_PENDING_BYTES {
                to.flush(write_timeout).await.map_err(|_| BodyError::Sink)?;
                pending = 0;
            }
        }
        let mut end = Vec::new();
        self.end_into(&mut end);
        if !end.is_empty() {
            to.write(&[&end]).map_err(|_| BodyError::Sink)?;
        }
        to.flush(write_timeout).await.map_err(|_| BodyError::Sink)
    }

    /// One piece of input, straight from where it was decrypted to where it is
    /// encrypted, as one chunk and one record whatever its own chunks were. Returns
    /// how much was used, and how much was written.
    fn pass(&mut self, input: &[u8], to: &mut Outgoing<'_>) -> (usize, Result<usize, BodyError>) {
        let mut used = 0;
        let mut data: [&[u8]; PARTS_MAX] = [&[]; PARTS_MAX];
        let mut parts = 0;
        let mut bytes = 0;
        while used < input.len() && !self.reader.is_done() && parts < PARTS_MAX {
            let (n, range) = match self.reader.read(&input[used..]) {
                Ok(read) => read,
                Err(_) => return (used, Err(BodyError::Framing)),
            };
            if !range.is_empty() {
                data[parts] = &input[used..][range];
                bytes += data[parts].len();
                parts += 1;
            }
            used += n;
            if n == 0 {
                break;
            }
        }
        if bytes == 0 {
            return (used, Ok(0));
        }
        if let Err(error) = self.count(bytes) {
            return (used, Err(error));
        }
        let sent = match self.writer {
            BodyWriter::Plain => to.write(&data[..parts]),
            BodyWriter::Chunked => {
                let mut header = [0; 18];
                let mut slices: [&[u8]; PARTS_MAX + 2] = [&[]; PARTS_MAX + 2];
                slices[0] = chunk_header(bytes, &mut header);
                slices[1..=parts].copy_from_slice(&data[..parts]);
                slices[parts + 1] = b"\r\n";
                to.write(&slices[..parts + 2])
            }
        };
        match sent {
            Ok(()) => (used, Ok(bytes + OVERHEAD_BYTES)),
            Err(_) => (used, Err(BodyError::Sink)),
        }
    }
}

/// Chunks of the source that are put into one of ours.
const PARTS_MAX: usize = 30;

#[cfg(test)]
mod tests;
