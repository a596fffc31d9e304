//! Bodies on their way through, in both directions, with constant memory.
//!
//! Framing is never copied: what comes in is read as data, and framed anew for
//! the other side (RFC 9112, section 6). Whatever is at hand goes out at once, so
//! an event stream arrives event by event. What an upstream sends is searched for
//! the key on the way ([`Sieve`], and [`Inspector`] where it is coded); what may become
//! a hit waits for the next bytes.

use std::io;
use std::ops::Range;
use std::time::Duration;

use policy::{OnEcho, OnUninspected};
use wire::chunked::{ChunkError, ChunkedDecoder, chunk_header};
use wire::coding::Codings;
use wire::framing::BodyFraming;
use wire::inspect::{Inspector, Uninspected};
use wire::names::NameSet;
use wire::scrub::Scrubber;
use wire::sieve::{OnHit, Sieve};

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
    /// It contains the key, and that must not pass. Nothing of the piece with the key
    /// has left.
    Echo,
    /// It cannot be searched for the key, and the route refuses that.
    Uninspected,
}

/// Both ends of a body's way, and what was carried.
pub struct Body<'r> {
    pub reader: BodyReader,
    pub writer: BodyWriter,
    /// Data bytes so far.
    pub bytes: u64,
    /// Largest body allowed.
    pub bytes_max: u64,
    /// How slowly it may come in.
    pub pace: Option<Pace>,
    /// Trailer fields that are dropped, besides those that never pass.
    pub strip_trailers: &'r NameSet,
    /// What an upstream's body is searched with.
    pub search: Option<Search<'r>>,
}

/// The least rate at which a body must come in. A limit between two reads alone lets a caller hold an
/// upstream's connection for as long as it likes, by a byte now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Bytes per second.
    rate_min: u64,
    /// Waiting that is free.
    grace_ms: u64,
    /// Time spent waiting for the sender. What the receiver takes is not the sender's.
    waited_ms: u64,
}

impl Pace {
    /// At least `rate_min` bytes per second of waiting, after `grace` of it; 0 is any rate.
    pub fn new(rate_min: u64, grace: Duration) -> Option<Self> {
        (rate_min > 0).then_some(Self {
            rate_min,
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
            waited_ms: 0,
        })
    }

    /// Counts time that was waited. `false`: the `bytes` so far are too few for it.
    fn keeps_up(&mut self, waited_ms: u64, bytes: u64) -> bool {
        self.waited_ms += waited_ms;
        let counted = self.waited_ms.saturating_sub(self.grace_ms);
        bytes.saturating_mul(1000) >= counted.saturating_mul(self.rate_min)
    }
}

/// Searches a body for the key, trailers included.
pub struct Search<'r> {
    scrubber: &'r Scrubber,
    on_echo: OnEcho,
    look: Look<'r>,
    on_uninspected: OnUninspected,
    uninspected: Option<Uninspected>,
    trailer_hits: usize,
}

/// How a body is looked at.
enum Look<'r> {
    /// As it comes.
    Plain(Sieve<'r>),
    /// Decoded, or it would be if it could.
    Coded(Box<Inspector<'r>>),
}

impl<'r> Search<'r> {
    /// Of a body that is not coded.
    pub fn new(scrubber: &'r Scrubber, on_echo: OnEcho) -> Self {
        let sieve = Sieve::new(scrubber, on_hit(on_echo));
        Self::looking(Look::Plain(sieve), scrubber, on_echo)
    }

    /// Of a coded one. A hit in it cannot be overwritten, so it is blocked.
    pub fn coded(
        codings: Codings,
        scrubber: &'r Scrubber,
        on_echo: OnEcho,
        on_uninspected: OnUninspected,
    ) -> Self {
        let inspector = Inspector::new(codings, scrubber, on_hit(on_echo));
        Self {
            on_uninspected,
            ..Self::looking(Look::Coded(Box::new(inspector)), scrubber, on_echo)
        }
    }

    /// Of one that cannot be decoded, for a route that lets such answers pass: it is
    /// searched as it comes.
    pub fn blind(why: Uninspected, scrubber: &'r Scrubber, on_echo: OnEcho) -> Self {
        let inspector = Inspector::blind(scrubber, on_hit(on_echo));
        Self {
            on_uninspected: OnUninspected::Mark,
            uninspected: Some(why),
            ..Self::looking(Look::Coded(Box::new(inspector)), scrubber, on_echo)
        }
    }

    fn looking(look: Look<'r>, scrubber: &'r Scrubber, on_echo: OnEcho) -> Self {
        Self {
            scrubber,
            on_echo,
            look,
            on_uninspected: OnUninspected::Refuse,
            uninspected: None,
            trailer_hits: 0,
        }
    }

    /// How often the key was found.
    pub fn hits(&self) -> usize {
        let body_hits = match &self.look {
            Look::Plain(sieve) => sieve.hits(),
            Look::Coded(inspector) => inspector.hits(),
        };
        body_hits + self.trailer_hits
    }

    /// Whether something waits for the body's end.
    fn is_holding(&self) -> bool {
        match &self.look {
            Look::Plain(sieve) => sieve.is_holding(),
            Look::Coded(inspector) => inspector.is_holding(),
        }
    }

    /// Whether what was found must not pass.
    fn blocks(&self) -> bool {
        self.on_echo == OnEcho::Block && self.hits() > 0
    }

    /// What of this may go on.
    fn pass<'a>(&'a mut self, parts: &[&'a [u8]], is_last: bool) -> Result<&'a [u8], BodyError> {
        match &mut self.look {
            Look::Plain(sieve) => match sieve.pass(parts, is_last) {
                (_, 1..) if self.on_echo == OnEcho::Block => Err(BodyError::Echo),
                (clean, _) => Ok(clean),
            },
            Look::Coded(inspector) => {
                let passed = inspector.pass(parts, is_last);
                self.uninspected = self.uninspected.or(passed.uninspected);
                if passed.hits > 0 && self.on_echo != OnEcho::Report {
                    return Err(BodyError::Echo);
                }
                if passed.uninspected.is_some() && self.on_uninspected == OnUninspected::Refuse {
                    return Err(BodyError::Uninspected);
                }
                Ok(passed.clean)
            }
        }
    }

    /// Whether these may pass: those with a hit are dropped, all of them.
    fn passes_trailers(&mut self, trailers: &[u8]) -> bool {
        let found = self.scrubber.find(trailers).is_some();
        self.trailer_hits += usize::from(found);
        !found || self.on_echo == OnEcho::Report
    }
}

/// What a sieve does for a route. What is blocked never leaves, redacted or not.
pub fn on_hit(on_echo: OnEcho) -> OnHit {
    match on_echo {
        OnEcho::Redact | OnEcho::Block => OnHit::Redact,
        OnEcho::Report => OnHit::Report,
    }
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
                let is_last = self.reader.is_done();
                self.writer
                    .frame(sift(&mut self.search, data, is_last)?, out);
            }
            used += n;
            if n == 0 {
                break;
            }
        }
        if self.reader.is_done() {
            self.end_into(out)?;
        }
        Ok(used)
    }

    /// What was held back, and the framing's own end.
    fn end_into(&mut self, out: &mut Vec<u8>) -> Result<(), BodyError> {
        if self.search.as_ref().is_some_and(Search::is_holding) {
            self.writer.frame(sift(&mut self.search, &[], true)?, out);
        }
        if self.writer != BodyWriter::Chunked {
            return Ok(());
        }
        out.extend_from_slice(wire::chunked::LAST_CHUNK);
        if let BodyReader::Chunked(decoder) = &self.reader {
            let trailers = decoder.trailers();
            let pass = match &mut self.search {
                Some(search) if !trailers.is_empty() => search.passes_trailers(trailers),
                _ => true,
            };
            if self.search.as_ref().is_some_and(Search::blocks) {
                return Err(BodyError::Echo);
            }
            if pass {
                wire::rewrite::trailers(trailers, self.strip_trailers, out);
            }
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// How often the key was found.
    pub fn hits(&self) -> usize {
        self.search.as_ref().map_or(0, Search::hits)
    }

    /// Why the body was not searched, or not to its end.
    pub fn uninspected(&self) -> Option<Uninspected> {
        self.search.as_ref().and_then(|search| search.uninspected)
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
                    let asked_ms = from.now_ms();
                    let filled = from.fill(read_timeout).await.map_err(BodyError::Source)?;
                    if let Some(pace) = &mut self.pace
                        && !pace.keeps_up(from.now_ms() - asked_ms, self.bytes)
                    {
                        return Err(BodyError::Source(io::ErrorKind::TimedOut.into()));
                    }
                    filled
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
                    #[cfg(test)]
                    if crate::simulation::is(crate::simulation::Break::EndsCutBodies) {
                        self.reader = BodyReader::Done;
                        break;
                    }
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
        self.end_into(&mut end)?;
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
        #[cfg(test)]
        if self.reader.is_done() && crate::simulation::is(crate::simulation::Break::DropsLastPart) {
            return (used, Ok(0));
        }
        if bytes == 0 {
            return (used, Ok(0));
        }
        if let Err(error) = self.count(bytes) {
            return (used, Err(error));
        }
        let sent = match &mut self.search {
            None => self.writer.write(&data[..parts], bytes, to),
            Some(search) => match search.pass(&data[..parts], self.reader.is_done()) {
                Ok(clean) => {
                    bytes = clean.len();
                    self.writer.write(&[clean], bytes, to)
                }
                Err(error) => return (used, Err(error)),
            },
        };
        match sent {
            Ok(()) => (used, Ok(bytes + OVERHEAD_BYTES)),
            Err(_) => (used, Err(BodyError::Sink)),
        }
    }
}

impl BodyWriter {
    /// Appends some of the body to `out`.
    fn frame(self, data: &[u8], out: &mut Vec<u8>) {
        match self {
            _ if data.is_empty() => {}
            BodyWriter::Plain => out.extend_from_slice(data),
            BodyWriter::Chunked => {
                out.extend_from_slice(chunk_header(data.len(), &mut [0; 18]));
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Writes so many bytes of the body as one message.
    fn write(self, data: &[&[u8]], bytes: usize, to: &mut Outgoing<'_>) -> io::Result<()> {
        match self {
            // An empty chunk would be the last one (RFC 9112, section 7.1).
            _ if bytes == 0 => Ok(()),
            BodyWriter::Plain => to.write(data),
            BodyWriter::Chunked => {
                let mut header = [0; 18];
                let mut slices: [&[u8]; PARTS_MAX + 2] = [&[]; PARTS_MAX + 2];
                slices[0] = chunk_header(bytes, &mut header);
                slices[1..=data.len()].copy_from_slice(data);
                slices[data.len() + 1] = b"\r\n";
                to.write(&slices[..data.len() + 2])
            }
        }
    }
}

/// What of `data` may go on: all of it, where nothing is searched for.
fn sift<'a>(
    search: &'a mut Option<Search<'_>>,
    data: &'a [u8],
    is_last: bool,
) -> Result<&'a [u8], BodyError> {
    match search {
        None => Ok(data),
        Some(search) => search.pass(&[data], is_last),
    }
}

/// Chunks of the source that are put into one of ours.
const PARTS_MAX: usize = 30;

#[cfg(test)]
mod tests;
