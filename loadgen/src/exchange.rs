//! One exchange: a request goes out, its answer is read and timed. Failures are returned, never
//! retried.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use crate::clock::Nanos;
use crate::core::Core;
use crate::failure::{Failure, Kind};
use crate::request::{Check, Choice, Form, Outgoing, Request, RequestKind};
use crate::response::{AtEnd, ResponseReader};
use crate::schedule::Random;
use crate::slot::Slot;
use crate::stream::{Received, Sent, Stream, Taken};
use crate::websocket;

/// What a connection needs for its exchanges, whatever they are. It outlives the connection's
/// reconnects.
pub struct Exchange {
    core: Rc<Core>,
    slot: Rc<Slot>,
    reader: ResponseReader,
    /// The request whose check the reader holds.
    current: Choice,
    /// A request whose head is not the same for all connections.
    composed: Vec<u8>,
    /// For what must differ each time: keys and masks of WebSockets.
    random: Random,
}

impl Exchange {
    /// For the connections of `slot`.
    pub fn new(core: Rc<Core>, slot: Rc<Slot>) -> Self {
        let target = &core.plan().targets[slot.target];
        let current = Choice::default();
        let reader = ResponseReader::new(target.requests[0].forms[0].check.clone());
        let random = Random::new(core.plan().seed ^ (slot.index as u64).wrapping_mul(0x9e37_79b9));
        Self {
            core,
            slot,
            reader,
            current,
            composed: Vec::new(),
            random,
        }
    }

    /// The answer that was read last.
    pub fn answer(&self) -> &ResponseReader {
        &self.reader
    }

    /// Does what `choice` says. `due` is what time to the first event counts from.
    ///
    /// Returns whether the connection may be used again.
    ///
    /// # Errors
    /// Why there is no complete answer.
    pub async fn run<W: Future<Output = std::io::Result<()>>>(
        &mut self,
        stream: &mut Stream<W>,
        choice: Choice,
        due: Nanos,
    ) -> Result<bool, Failure> {
        let core = self.core.clone();
        let target = &core.plan().targets[self.slot.target];
        let request = &target.requests[choice.request as usize];
        let form = &request.forms[choice.form as usize];
        if choice != self.current {
            self.current = choice;
            self.reader.set_check(&form.check);
        }
        let caller = target.caller_of(self.slot.index).map(|line| &*line.0);
        if let RequestKind::WebSocket(conversation) = request.kind {
            let key = websocket::Key::new(&mut self.random);
            let lines = [caller.unwrap_or_default(), key.header_line().as_bytes()].concat();
            compose(&mut self.composed, form, &lines);
            self.reader.begin_upgrade(key.accept());
            return websocket::converse(
                &core,
                &self.slot,
                stream,
                &mut self.reader,
                &self.composed,
                conversation,
                &mut self.random,
            )
            .await;
        }
        let bytes = match caller {
            None => &form.bytes,
            Some(line) => {
                compose(&mut self.composed, form, line);
                &self.composed
            }
        };
        self.reader.begin(request.is_head);
        let traffic = core.traffic(self.slot.target);
        traffic
            .sent
            .set(traffic.sent.get() + form.body_bytes_inline());
        let mut outgoing = Outgoing::new(bytes, &form.rest, &traffic.sent);
        let reader = &mut self.reader;
        loop {
            let sent = stream
                .send(&mut outgoing, &self.slot, |piece| feed(reader, piece))
                .await?;
            match sent {
                Sent::All => break,
                // The server wants the rest all the same.
                Sent::Answered if reader.keep_alive() && reader.status() < 400 => {}
                // RFC 9112, 9.5: whoever refuses a body reads no more of it, and neither do we send it.
                Sent::Answered => {
                    count(&traffic.received, 0, reader);
                    return Ok(false);
                }
                Sent::Closed { clean } => {
                    judge_end(reader, clean)?;
                    count(&traffic.received, 0, reader);
                    return Ok(false);
                }
            }
        }
        let mut events = EventTimes::of(request, form, due);
        let mut counted = 0;
        while !reader.is_done() {
            let received = stream
                .receive(&self.slot, |piece| feed(reader, piece))
                .await?;
            counted = count(&traffic.received, counted, reader);
            if let Some(events) = &mut events {
                events.note(&core, self.slot.target, reader);
            }
            if let Received::End { clean } = received {
                judge_end(reader, clean)?;
                break;
            }
        }
        Ok(reader.keep_alive())
    }
}

/// Gives a piece of the answer to its reader.
fn feed(reader: &mut ResponseReader, piece: &[u8]) -> Result<Taken, Failure> {
    match reader.feed(piece) {
        Ok(used) if used < piece.len() => {
            Err(Failure::new(Kind::Protocol, "bytes after the response"))
        }
        Ok(_) if reader.is_done() => Ok(Taken::Enough),
        Ok(_) => Ok(Taken::More),
        Err(malformed) => Err(Failure::new(Kind::Protocol, malformed.0)),
    }
}

/// Adds the body bytes that are not counted yet, and returns how many are counted now.
fn count(received: &Cell<u64>, counted: u64, reader: &ResponseReader) -> u64 {
    let now = reader.body_bytes();
    received.set(received.get() + now - counted);
    now
}

/// Whether an answer that ends with the connection is a whole one.
fn judge_end(reader: &mut ResponseReader, clean: bool) -> Result<(), Failure> {
    match reader.end() {
        AtEnd::Complete if clean => Ok(()),
        AtEnd::Complete => Err(Failure::new(
            Kind::Truncated,
            "the body ends with the connection, but TLS did not announce the end",
        )),
        AtEnd::BeforeResponse => Err(Failure::new(
            Kind::Reset,
            "closed before a byte of the answer",
        )),
        AtEnd::Truncated => Err(Failure::new(Kind::Truncated, "closed within the answer")),
    }
}

/// Puts header lines into a request, behind its others.
fn compose(composed: &mut Vec<u8>, form: &Form, lines: &[u8]) {
    composed.clear();
    composed.extend_from_slice(&form.bytes[..form.head_end]);
    composed.extend_from_slice(lines);
    composed.extend_from_slice(&form.bytes[form.head_end..]);
}

/// The times of one stream's events.
struct EventTimes {
    due: Nanos,
    every: Option<Nanos>,
    /// When the last event arrived and was sent.
    last: Option<(Nanos, Option<u64>)>,
}

impl EventTimes {
    /// For requests that are answered by a stream.
    fn of(request: &Request, form: &Form, due: Nanos) -> Option<Self> {
        let RequestKind::Sse { every } = request.kind else {
            return None;
        };
        debug_assert!(matches!(form.check, Check::Events { .. }));
        Some(Self {
            due,
            every,
            last: None,
        })
    }

    /// Times the events that have just arrived.
    fn note(&mut self, core: &Core, target: usize, reader: &mut ResponseReader) {
        let now = core.clock().now();
        for event in reader.take_events() {
            let first = self.last.is_none().then(|| now.saturating_sub(self.due));
            let gap = self.last.map(|(last, _)| now - last);
            let expected = self.every.or_else(|| {
                let (_, sent_last) = self.last?;
                Some(event.sent?.saturating_sub(sent_last?))
            });
            core.event(target, now, |stats| {
                let delay = event
                    .sent
                    .map(|sent| core.clock().since_monotonic(now, sent));
                let jitter = gap
                    .zip(expected)
                    .map(|(gap, expected)| gap.abs_diff(expected));
                for (histogram, value) in [
                    (&mut stats.first_event, first),
                    (&mut stats.gap, gap),
                    (&mut stats.jitter, jitter),
                    (&mut stats.delay, delay),
                ] {
                    if let Some(value) = value {
                        crate::stats::record(histogram, value);
                    }
                }
            });
            self.last = Some((now, event.sent));
        }
    }
}
