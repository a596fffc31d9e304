//! A WebSocket client (RFC 6455) that sends messages and wants each of them back.
//!
//! It offers no extension and no subprotocol. Messages leave as one masked frame; echoes may come
//! in fragments. A server that masks, sets reserved bits, or sends frames out of turn breaks the
//! protocol and is counted as doing so.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::alarm::Purpose;
use crate::core::Core;
use crate::failure::{Failure, Kind};
use crate::pattern;
use crate::request::{Conversation, Outgoing, Rest};
use crate::response::ResponseReader;
use crate::schedule::Random;
use crate::slot::Slot;
use crate::stats::record;
use crate::stream::{Received, Sent, Stream, Taken};

/// `Sec-WebSocket-Key`, a new one for each connection.
pub struct Key(String);

impl Key {
    /// Draws a key.
    pub fn new(random: &mut Random) -> Self {
        let nonce = [random.bits().to_be_bytes(), random.bits().to_be_bytes()].concat();
        Self(STANDARD.encode(nonce))
    }

    /// The header line.
    pub fn header_line(&self) -> String {
        format!("Sec-WebSocket-Key: {}\r\n", self.0)
    }

    /// The `Sec-WebSocket-Accept` that answers it.
    pub fn accept(&self) -> Vec<u8> {
        let mut hash = Sha1::new();
        hash.update(&self.0);
        hash.update(GUID);
        STANDARD.encode(hash.finalize()).into_bytes()
    }
}

/// RFC 6455, 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The header lines that ask for a WebSocket, beside the key.
pub const UPGRADE_LINES: [&str; 3] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
];

/// Shakes hands, holds the conversation and closes in order. False, as the connection is spent; an
/// answer other than 101 leaves it usable if the server says so.
///
/// # Errors
/// The first thing that went wrong.
pub async fn converse<W: Future<Output = io::Result<()>>>(
    core: &Rc<Core>,
    slot: &Rc<Slot>,
    stream: &mut Stream<W>,
    reader: &mut ResponseReader,
    request: &[u8],
    conversation: Conversation,
    random: &mut Random,
) -> Result<bool, Failure> {
    let mut wire = Wire {
        slot,
        stream,
        frames: FrameReader::default(),
    };
    let began = core.clock().now();
    wire.send(request).await?;
    while !reader.is_done() {
        let frames = &mut wire.frames;
        let received = wire
            .stream
            .receive(slot, |piece| {
                let used = reader
                    .feed(piece)
                    .map_err(|malformed| Failure::new(Kind::Protocol, malformed.0))?;
                match (reader.is_done(), reader.status()) {
                    // The server may send frames right behind its 101.
                    (true, 101) => frames.extend(&piece[used..]),
                    _ if used < piece.len() => {
                        return Err(Failure::new(Kind::Protocol, "bytes after the response"));
                    }
                    _ => {}
                }
                Ok(Taken::More)
            })
            .await?;
        if matches!(received, Received::End { .. }) && !reader.is_done() {
            return Err(Failure::new(
                Kind::Reset,
                "closed before the answer to the upgrade",
            ));
        }
    }
    if reader.status() != 101 {
        return Ok(reader.keep_alive());
    }
    let now = core.clock().now();
    core.websocket(slot.target, now, |stats| {
        record(&mut stats.handshake, now - began);
    });
    let traffic = core.traffic(slot.target);
    for number in 0..conversation.messages {
        if number > 0 && conversation.pause > 0 {
            let until = core.clock().now() + conversation.pause;
            core.alarms().set(until, slot.clone(), Purpose::Resume);
            slot.wait_for_resume().await?;
        }
        let payload = message(u64::from(number), conversation.message_bytes);
        let sent = core.clock().now();
        wire.send(&frame(BINARY, &payload, random)).await?;
        traffic.sent.set(traffic.sent.get() + payload.len() as u64);
        let echo = wire.message(random).await?;
        if echo != payload {
            return Err(Failure::new(
                Kind::WrongBody,
                "a message other than the one sent came back",
            ));
        }
        traffic
            .received
            .set(traffic.received.get() + echo.len() as u64);
        let now = core.clock().now();
        core.websocket(slot.target, now, |stats| {
            stats.messages += 1;
            record(&mut stats.round_trip, now - sent);
        });
    }
    wire.send(&frame(CLOSE, &NORMAL_CLOSURE.to_be_bytes(), random))
        .await?;
    wire.closed().await?;
    Ok(false)
}

/// Each message is another part of the pattern, so that an echo of the wrong one is noticed.
fn message(number: u64, length: usize) -> Vec<u8> {
    let mut payload = Vec::with_capacity(length);
    while payload.len() < length {
        let at = number * 251 + payload.len() as u64;
        payload.extend_from_slice(pattern::piece(at, (length - payload.len()) as u64));
    }
    payload
}

/// A connection that speaks frames.
struct Wire<'a, W> {
    slot: &'a Rc<Slot>,
    stream: &'a mut Stream<W>,
    frames: FrameReader,
}

impl<W: Future<Output = io::Result<()>>> Wire<'_, W> {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let nothing = Cell::new(0);
        let mut outgoing = Outgoing::new(bytes, &Rest::None, &nothing);
        let frames = &mut self.frames;
        let sent = self
            .stream
            .send(&mut outgoing, self.slot, |piece| {
                frames.extend(piece);
                Ok(Taken::More)
            })
            .await?;
        match sent {
            Sent::All | Sent::Answered => Ok(()),
            Sent::Closed { .. } => Err(ended()),
        }
    }

    /// The next whole message. Pings are answered on the way.
    async fn message(&mut self, random: &mut Random) -> Result<Vec<u8>, Failure> {
        let mut whole = Vec::new();
        let mut fragmented = false;
        loop {
            let Frame {
                last,
                opcode,
                payload,
            } = self.frame().await?;
            match opcode {
                PING => self.send(&frame(PONG, &payload, random)).await?,
                PONG => {}
                CLOSE => {
                    return Err(Failure::new(
                        Kind::Truncated,
                        "the server closed the WebSocket",
                    ));
                }
                TEXT | BINARY if !fragmented => whole = payload,
                CONTINUATION if fragmented => whole.extend_from_slice(&payload),
                _ => return Err(protocol("a frame out of turn")),
            }
            if whole.len() > MESSAGE_BYTES_MAX {
                return Err(protocol("a message beyond 64 MiB"));
            }
            if matches!(opcode, TEXT | BINARY | CONTINUATION) {
                if last {
                    return Ok(whole);
                }
                fragmented = true;
            }
        }
    }

    /// Waits for the server's close frame, or its end. Data before it is nobody's.
    async fn closed(&mut self) -> Result<(), Failure> {
        loop {
            match self.frame().await {
                Ok(Frame { opcode: CLOSE, .. }) => return Ok(()),
                Ok(Frame {
                    opcode: PING | PONG,
                    ..
                }) => {}
                Ok(_) => return Err(protocol("a message that nobody asked for")),
                // RFC 6455, 7.1.1 wants a close frame, and then the end.
                Err(failure) if failure.kind == Kind::Truncated => {
                    return Err(Failure::new(
                        Kind::Truncated,
                        "closed without a close frame",
                    ));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn frame(&mut self) -> Result<Frame, Failure> {
        loop {
            if let Some(frame) = self.frames.next()? {
                return Ok(frame);
            }
            let frames = &mut self.frames;
            let received = self
                .stream
                .receive(self.slot, |piece| {
                    frames.extend(piece);
                    Ok(Taken::More)
                })
                .await?;
            if matches!(received, Received::End { .. }) {
                // The last frame may have come with the end.
                return self.frames.next()?.ok_or_else(ended);
            }
        }
    }
}

fn ended() -> Failure {
    Failure::new(
        Kind::Truncated,
        "the connection ended within the conversation",
    )
}

fn protocol(rule: &'static str) -> Failure {
    Failure::new(Kind::Protocol, format!("WebSocket: {rule}"))
}

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    /// FIN: the last of its message.
    last: bool,
    opcode: u8,
    payload: Vec<u8>,
}

/// Cuts bytes into frames.
#[derive(Debug, Default)]
struct FrameReader {
    bytes: Vec<u8>,
}

impl FrameReader {
    fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, once all of it is there.
    fn next(&mut self) -> Result<Option<Frame>, Failure> {
        let &[first, second, ref rest @ ..] = self.bytes.as_slice() else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(protocol(
                "reserved bits that no extension has given a meaning",
            ));
        }
        if second & 0x80 != 0 {
            return Err(protocol("a server must not mask"));
        }
        let (length, head) = match second & 0x7f {
            126 => match rest {
                [a, b, ..] => (u64::from(u16::from_be_bytes([*a, *b])), 4),
                _ => return Ok(None),
            },
            127 => match rest.first_chunk::<8>() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 2),
        };
        let opcode = first & 0x0f;
        let last = first & 0x80 != 0;
        if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
            return Err(protocol("an opcode that is not defined"));
        }
        if opcode >= CLOSE && (!last || length > 125) {
            return Err(protocol("a control frame in fragments or beyond 125 bytes"));
        }
        if length > MESSAGE_BYTES_MAX as u64 {
            return Err(protocol("a frame beyond 64 MiB"));
        }
        let end = head + length as usize;
        if self.bytes.len() < end {
            return Ok(None);
        }
        let payload = self.bytes[head..end].to_vec();
        self.bytes.drain(..end);
        Ok(Some(Frame {
            last,
            opcode,
            payload,
        }))
    }
}

/// A whole message in one frame, masked as a client must (RFC 6455, 5.3).
fn frame(opcode: u8, payload: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 14);
    out.push(0x80 | opcode);
    match payload.len() {
        length @ 0..126 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask = (random.bits() as u32).to_be_bytes();
    out.extend_from_slice(&mask);
    out.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    out
}

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// RFC 6455, 7.4.1.
const NORMAL_CLOSURE: u16 = 1000;

/// Larger messages are not sent, and larger echoes are refused.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_of_the_rfc() {
        // RFC 6455, 1.3.
        let key = Key("dGhlIHNhbXBsZSBub25jZQ==".to_owned());
        assert_eq!(key.accept(), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let mut random = Random::new(1);
        let (a, b) = (Key::new(&mut random), Key::new(&mut random));
        assert_ne!(a.0, b.0);
        assert_eq!(STANDARD.decode(&a.0).unwrap().len(), 16);
    }

    #[test]
    fn frames_are_masked_and_sized_as_the_rfc_says() {
        for (length, head) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let payload = message(3, length);
            let out = frame(BINARY, &payload, &mut Random::new(7));
            assert_eq!(out.len(), head + 4 + length);
            assert_eq!(out[0], 0x82);
            assert_eq!(out[1] & 0x80, 0x80);
            let mask = &out[head..head + 4];
            let plain: Vec<u8> = out[head + 4..]
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, mask)| byte ^ mask)
                .collect();
            assert!(plain == payload);
        }
        assert_ne!(message(1, 100), message(2, 100));
    }

    /// What a server sends, unmasked.
    fn served(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            length @ 0..126 => out.push(length as u8),
            length => {
                out.push(126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn frames_are_read_however_they_are_cut() {
        let bytes = [
            served(0x02, &[7; 300]),
            served(0x89, b"ping"),
            served(0x80, b"end"),
        ]
        .concat();
        for at in 0..=bytes.len() {
            let mut reader = FrameReader::default();
            let mut seen = Vec::new();
            for piece in [&bytes[..at], &bytes[at..]] {
                reader.extend(piece);
                while let Some(frame) = reader.next().unwrap() {
                    seen.push((frame.last, frame.opcode, frame.payload.len()));
                }
            }
            assert_eq!(
                seen,
                [
                    (false, BINARY, 300),
                    (true, PING, 4),
                    (true, CONTINUATION, 3)
                ]
            );
        }
    }

    #[test]
    fn what_a_server_must_not_send() {
        for bytes in [
            vec![0x82, 0x81, 0, 0, 0, 0, 0],
            vec![0xc2, 0],
            vec![0x83, 0],
            vec![0x09, 0],
            vec![0x88, 126, 0, 200],
            vec![0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0],
        ] {
            let mut reader = FrameReader::default();
            reader.extend(&bytes);
            let failure = reader.next().expect_err("refused");
            assert_eq!(failure.kind, Kind::Protocol, "{bytes:?}");
        }
    }
}
