//! `/ws`: a WebSocket that echoes (RFC 6455).
//!
//! Each data frame comes back as it came, fragments included; pings are answered; a close frame
//! ends the connection. Clients must mask. No extension and no subprotocol is negotiated.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::connection::{After, Connection, Gone};

/// Completes the handshake and echoes until either side has enough.
pub(super) async fn answer(conn: &mut Connection) -> Result<After, Gone> {
    let version = conn.head.field("Sec-WebSocket-Version");
    let key = conn
        .head
        .field("Sec-WebSocket-Key")
        .filter(|key| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16));
    let (Some(key), true) = (key, conn.head.wants_websocket()) else {
        conn.close_afterwards();
        super::refuse(conn, 400, "bad_request", "not a WebSocket handshake");
        return Ok(After::Linger);
    };
    if conn.head.method() != b"GET" || version != Some(b"13") {
        conn.close_afterwards();
        let content = br#"{"error":"upgrade_required","message":"version 13 is spoken here"}"#;
        conn.respond(426)
            .field("Sec-WebSocket-Version", "13")
            .content("application/json", content);
        return Ok(After::Linger);
    }
    let accept = accept(key);
    conn.respond(101)
        .field("Upgrade", "websocket")
        .field("Connection", "Upgrade")
        .field("Sec-WebSocket-Accept", &accept)
        .bare();
    echo(conn).await
}

async fn echo(conn: &mut Connection) -> Result<After, Gone> {
    loop {
        let frame = match Frame::parse(conn.stream.input()) {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                if !conn.stream.fill().await? {
                    return Err(Gone::Client);
                }
                continue;
            }
            Err(code) => {
                write_frame(
                    conn.stream.outbox(),
                    FIN | OPCODE_CLOSE,
                    &code.to_be_bytes(),
                );
                return Ok(After::Linger);
            }
        };
        let mut payload = conn.stream.input()[frame.head_bytes..frame.bytes()].to_vec();
        for (byte, mask) in payload.iter_mut().zip(frame.mask.iter().cycle()) {
            *byte ^= mask;
        }
        conn.stream.consume(frame.bytes());
        match frame.first & 0x0f {
            OPCODE_CLOSE => {
                write_frame(conn.stream.outbox(), FIN | OPCODE_CLOSE, &payload);
                return Ok(After::Close);
            }
            OPCODE_PING => write_frame(conn.stream.outbox(), FIN | OPCODE_PONG, &payload),
            OPCODE_PONG => {}
            _ => write_frame(conn.stream.outbox(), frame.first, &payload),
        }
        if conn.stream.outbox().len() > FRAME_BYTES_MAX {
            conn.stream.flush().await?;
        }
    }
}

/// `Sec-WebSocket-Accept` for this key (RFC 6455, section 4.2.2).
fn accept(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

/// A whole frame at the beginning of the input.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    /// FIN, reserved bits and opcode, as they came.
    first: u8,
    mask: [u8; 4],
    head_bytes: usize,
    payload_bytes: usize,
}

impl Frame {
    fn bytes(&self) -> usize {
        self.head_bytes + self.payload_bytes
    }

    /// `Ok(None)`: not all of it is there. `Err`: the status code to close with.
    fn parse(input: &[u8]) -> Result<Option<Frame>, u16> {
        let [first, second, rest @ ..] = input else {
            return Ok(None);
        };
        let opcode = first & 0x0f;
        let known = matches!(opcode, 0..=2 | OPCODE_CLOSE | OPCODE_PING | OPCODE_PONG);
        if first & RESERVED != 0 || !known || second & MASKED == 0 {
            return Err(CLOSE_PROTOCOL_ERROR);
        }
        let (length, length_bytes) = match (second & !MASKED, rest) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
            (127, [a, b, c, d, e, f, g, h, ..]) => {
                (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8)
            }
            (126 | 127, _) => return Ok(None),
            (length, _) => (u64::from(length), 0),
        };
        let control = opcode >= OPCODE_CLOSE;
        if control && (length > 125 || first & FIN == 0) {
            return Err(CLOSE_PROTOCOL_ERROR);
        }
        if length > FRAME_BYTES_MAX as u64 {
            return Err(CLOSE_TOO_BIG);
        }
        let Some([a, b, c, d, payload @ ..]) = rest.get(length_bytes..) else {
            return Ok(None);
        };
        if (payload.len() as u64) < length {
            return Ok(None);
        }
        Ok(Some(Frame {
            first: *first,
            mask: [*a, *b, *c, *d],
            head_bytes: 2 + length_bytes + 4,
            payload_bytes: length as usize,
        }))
    }
}

/// Appends an unmasked frame.
fn write_frame(out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    out.push(first);
    match payload.len() {
        length @ 0..=125 => out.push(length as u8),
        length @ 126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const OPCODE_CLOSE: u8 = 8;
const OPCODE_PING: u8 = 9;
const OPCODE_PONG: u8 = 10;
const CLOSE_PROTOCOL_ERROR: u16 = 1002;
const CLOSE_TOO_BIG: u16 = 1009;

/// A frame with a larger payload closes the connection with code 1009.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_as_the_rfc_says() {
        assert_eq!(
            accept(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn parses_frames_of_every_length_form() {
        for length in [0usize, 125, 126, 65_535, 65_536] {
            let mut input = Vec::new();
            write_frame(&mut input, FIN | 2, &vec![7; length]);
            input[1] |= MASKED;
            let head = input.len() - length;
            input.splice(head..head, [1, 2, 3, 4]);
            for cut in [0, 1, head, input.len() - 1] {
                assert_eq!(
                    Frame::parse(&input[..cut]),
                    Ok(None),
                    "{length} cut at {cut}"
                );
            }
            let frame = Frame::parse(&input).unwrap().expect("whole");
            assert_eq!((frame.payload_bytes, frame.mask), (length, [1, 2, 3, 4]));
            assert_eq!(frame.bytes(), input.len());
        }
    }

    #[test]
    fn refuses_what_clients_must_not_send() {
        let refused = |input: &[u8], code| assert_eq!(Frame::parse(input), Err(code));
        refused(&[0x81, 0x01, b'x'], CLOSE_PROTOCOL_ERROR);
        refused(&[0xc1, 0x81], CLOSE_PROTOCOL_ERROR);
        refused(&[0x83, 0x81], CLOSE_PROTOCOL_ERROR);
        refused(&[0x09, 0x80], CLOSE_PROTOCOL_ERROR);
        refused(&[0x89, 0xfe, 0, 126], CLOSE_PROTOCOL_ERROR);
        refused(&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1], CLOSE_TOO_BIG);
    }
}
