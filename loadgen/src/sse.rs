//! Server-sent events as they arrive: where each ends, and the clock that its sender put in.
//!
//! Pure: it reads bytes, not clocks. An event is what ends in a blank line and holds data (WHATWG
//! HTML, 9.2.6); comments that keep a connection alive are none. `data: [DONE]`, with which
//! chat-completion APIs close their streams, ends a stream and is not counted. A field
//! `"monotonic_ns":N` in the data is taken for the sender's CLOCK_MONOTONIC, which on one machine
//! is ours too.

use memchr::memmem;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The sender's monotonic clock when it sent the event, nanoseconds.
    pub sent: Option<u64>,
}

/// Reads the events of one stream.
#[derive(Debug, Default)]
pub struct EventReader {
    /// The line so far, up to a bound.
    line: Vec<u8>,
    /// Whether the last byte was a carriage return, whose line feed may follow.
    after_return: bool,
    has_data: bool,
    sent: Option<u64>,
    /// All events of the stream.
    count: u64,
    /// Those that nobody has taken yet.
    fresh: Vec<Event>,
}

impl EventReader {
    /// Forgets everything: a new stream begins.
    pub fn clear(&mut self) {
        self.line.clear();
        self.after_return = false;
        self.has_data = false;
        self.sent = None;
        self.count = 0;
        self.fresh.clear();
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if self.after_return && !rest.is_empty() {
            // CR and LF end one line, even when they come in two pieces.
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            self.after_return = false;
        }
        while let Some(at) = memchr::memchr2(b'\n', b'\r', rest) {
            self.extend(&rest[..at]);
            self.end_line();
            let crlf = rest[at..].starts_with(b"\r\n");
            self.after_return = rest[at] == b'\r' && at + 1 == rest.len();
            rest = &rest[at + 1 + usize::from(crlf)..];
        }
        self.extend(rest);
    }

    /// How many events there were in the stream.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The events since the last call.
    pub fn take(&mut self) -> std::vec::Drain<'_, Event> {
        self.fresh.drain(..)
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX - self.line.len();
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end_line(&mut self) {
        if self.line.is_empty() {
            if self.has_data {
                self.count += 1;
                self.fresh.push(Event { sent: self.sent });
            }
            self.has_data = false;
            self.sent = None;
            return;
        }
        if let Some(data) = self.line.strip_prefix(b"data:") {
            if data.trim_ascii() != b"[DONE]" {
                self.has_data = true;
                self.sent = self.sent.or_else(|| stamp(data));
            }
        } else if self.line == b"data" {
            self.has_data = true;
        }
        self.line.clear();
    }
}

/// The number behind `"monotonic_ns":`.
fn stamp(data: &[u8]) -> Option<u64> {
    let at = memmem::find(data, STAMP)?;
    let digits = data[at + STAMP.len()..].trim_ascii_start();
    let end = digits
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(digits.len());
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

const STAMP: &[u8] = b"\"monotonic_ns\":";

/// Bytes of a line that are looked at. What goes beyond is skipped: a stamp stands at the front.
const LINE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<Option<u64>> {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for piece in pieces {
            reader.feed(piece);
            events.extend(reader.take().map(|event| event.sent));
        }
        assert_eq!(reader.count(), events.len() as u64);
        events
    }

    #[test]
    fn events_are_found_however_they_are_cut() {
        for (stream, want) in [
            (
                "id: 0\ndata: {\"sent_us\":1,\"monotonic_ns\":17}\n\ndata: {\"monotonic_ns\": 18}\n\ndata: [DONE]\n\n",
                vec![Some(17), Some(18)],
            ),
            ("data: a\r\n\r\ndata:b\r\ndata: c\r\n\r\n", vec![None, None]),
            ("data\r\rdata: x\r\r", vec![None, None]),
            (": ping\n\nevent: end\n\n\n\ndata: x\n\n", vec![None]),
            ("data: unfinished\n", vec![]),
            (
                "data: {\"monotonic_ns\":99999999999999999999999}\n\n",
                vec![None],
            ),
        ] {
            let bytes = stream.as_bytes();
            assert_eq!(read(&[bytes]), want, "{stream:?}");
            for at in 0..=bytes.len() {
                let (a, b) = bytes.split_at(at);
                assert_eq!(read(&[a, b]), want, "{stream:?} cut at {at}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(read(&single), want, "{stream:?} byte by byte");
        }
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut reader = EventReader::default();
        for _ in 0..100 {
            reader.feed(&[b'x'; 10_000]);
        }
        assert_eq!(reader.line.len(), LINE_BYTES_MAX);
        reader.feed(b"\ndata: 1\n\n");
        assert_eq!(reader.count(), 1);
    }
}
