//! Endpoints that behave well.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::{bad_request, refuse, report};
use crate::clock;
use crate::connection::{After, Body, Connection, Gone};
use crate::http::response::{chunk, is_field_name, is_field_value, last_chunk};
use crate::http::{Version, uri};
use crate::keys::{Access, AuthScheme};
use crate::redact::{Redactor, hex};
use crate::stream::BULK_BYTES;
use crate::worker::OK_CONTENT;

pub(super) fn ok(conn: &mut Connection) -> Result<After, Gone> {
    conn.respond(200).content("text/plain", OK_CONTENT);
    Ok(After::KeepAlive)
}

pub(super) fn echo(conn: &mut Connection, access: Access, body: &Body) -> Result<After, Gone> {
    let mut report = report::of(conn, access, body);
    if uri::flag(conn.head.query(), "body") {
        let text = body
            .content
            .as_deref()
            .filter(|content| std::str::from_utf8(content).is_ok());
        let keys = conn.worker.keys();
        let redactor = Redactor::new(&keys, conn.worker.settings.reveal);
        report["body"] = json!(text.map(|text| redactor.text(text)));
    }
    send_json(conn, 200, &report);
    Ok(After::KeepAlive)
}

pub(super) fn upload(conn: &mut Connection, body: &Body) -> Result<After, Gone> {
    let report = json!({
        "bytes": body.bytes,
        "sha256": body.sha256.map(|digest| hex(&digest)),
    });
    send_json(conn, 200, &report);
    Ok(After::KeepAlive)
}

/// `/bytes/N`, with `?chunked=1`, or with `?close=1` delimited by the end of the connection.
pub(super) async fn bytes(conn: &mut Connection, length: u64) -> Result<After, Gone> {
    let query = conn.head.query();
    let old = conn.head.version() == Version::Http10;
    let until_close = uri::flag(query, "close");
    let chunked = !until_close && !old && uri::flag(query, "chunked");
    if until_close {
        conn.close_afterwards();
    }
    let response = conn
        .respond(200)
        .field("Content-Type", "application/octet-stream");
    match (until_close, chunked) {
        (true, _) => response.bare(),
        (_, true) => response.chunked(),
        _ => response.announce(length),
    };
    if conn.head.is_head_request() {
        return Ok(After::KeepAlive);
    }
    let mut offset = 0;
    while offset < length {
        let piece = pattern(offset, length - offset);
        if chunked {
            chunk(conn.stream.outbox(), piece);
            conn.stream.flush().await?;
        } else {
            conn.stream.flush_with(piece).await?;
        }
        offset += piece.len() as u64;
    }
    if chunked {
        last_chunk(conn.stream.outbox(), &[]);
    }
    Ok(After::KeepAlive)
}

/// The bytes of `/bytes` from `offset` on: as many as are handy, at most `length`, at least one.
///
/// Byte `i` is the top byte of `(i mod 65521) * 2654435761 mod 2^32`. The period is a prime, so
/// that a buffer sent twice or left out is noticed whatever its size.
pub fn pattern(offset: u64, length: u64) -> &'static [u8] {
    static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
        (0..PATTERN_PERIOD + BULK_BYTES as u64)
            .map(|i| {
                let mixed = ((i % PATTERN_PERIOD) as u32).wrapping_mul(2_654_435_761);
                (mixed >> 24) as u8
            })
            .collect()
    });
    let start = (offset % PATTERN_PERIOD) as usize;
    let length = length.min(BULK_BYTES as u64) as usize;
    &PATTERN[start..start + length]
}

const PATTERN_PERIOD: u64 = 65_521;

/// `/sse?n=5&ms=50`: `n` events `ms` apart, each sent by itself, then `[DONE]`.
pub(super) async fn events(conn: &mut Connection) -> Result<After, Gone> {
    let query = conn.head.query();
    let count = match conn.head.is_head_request() {
        true => 0,
        false => uri::number(query, "n").unwrap_or(5),
    };
    let gap = duration(uri::number(query, "ms").unwrap_or(50));
    let mut sender = EventSender::begin(conn, &[]);
    for index in 0..count {
        if index > 0 {
            sender.conn.pause(gap).await?;
        }
        let event = format!(
            "id: {index}\ndata: {{\"index\":{index},\"sent_us\":{},\"monotonic_ns\":{}}}\n\n",
            unix_micros(),
            clock::monotonic_nanos()
        );
        sender.send(event.as_bytes()).await?;
    }
    sender.send(b"data: [DONE]\n\n").await?;
    Ok(sender.end())
}

/// Sends server-sent events: in chunks, or to an HTTP/1.0 client until the connection closes.
pub(super) struct EventSender<'c> {
    /// The connection that the events go to.
    pub(super) conn: &'c mut Connection,
    chunked: bool,
}

impl<'c> EventSender<'c> {
    /// Appends the head. Events follow.
    pub(super) fn begin(conn: &'c mut Connection, fields: &[(String, String)]) -> Self {
        let chunked = conn.head.version() == Version::Http11;
        if !chunked {
            conn.close_afterwards();
        }
        let mut response = conn
            .respond(200)
            .field("Content-Type", "text/event-stream")
            .field("Cache-Control", "no-cache");
        for (name, value) in fields {
            response = response.field(name, value);
        }
        match chunked {
            true => response.chunked(),
            false => response.bare(),
        };
        EventSender { conn, chunked }
    }

    /// Sends one event at once.
    pub(super) async fn send(&mut self, event: &[u8]) -> Result<(), Gone> {
        if !self.conn.head.is_head_request() {
            let outbox = self.conn.stream.outbox();
            match self.chunked {
                true => chunk(outbox, event),
                false => outbox.extend_from_slice(event),
            }
        }
        self.conn.stream.flush().await?;
        Ok(())
    }

    /// Ends the stream of events.
    pub(super) fn end(self) -> After {
        if self.chunked && !self.conn.head.is_head_request() {
            last_chunk(self.conn.stream.outbox(), &[]);
        }
        After::KeepAlive
    }
}

/// `/status/N`: final status codes only.
pub(super) fn status(conn: &mut Connection, status: u64) -> Result<After, Gone> {
    match status {
        204 | 304 => {
            conn.respond(status as u16).bare();
        }
        200..=599 => {
            let content = json!({"status": status}).to_string();
            conn.respond(status as u16)
                .content("application/json", content.as_bytes());
        }
        _ => return Ok(bad_request(conn, "a status from 200 to 599 is needed")),
    }
    Ok(After::KeepAlive)
}

pub(super) async fn delay(conn: &mut Connection, millis: u64) -> Result<After, Gone> {
    conn.pause(duration(millis)).await?;
    send_json(conn, 200, &json!({"delayed_ms": millis}));
    Ok(After::KeepAlive)
}

/// `/headers?Name=value&...`: repeated names make repeated fields. `:status=N` sets the status.
pub(super) fn headers(conn: &mut Connection) -> Result<After, Gone> {
    let slot = match &conn.worker.settings.auth {
        AuthScheme::Query(name) => name.as_str(),
        _ => "",
    };
    let Some((status, fields)) = wanted_fields(conn.head.query(), slot) else {
        let message = "a name, a value or the status cannot stand in a response head";
        return Ok(bad_request(conn, message));
    };
    let mut response = conn.respond(status);
    for (name, value) in &fields {
        response = response.field_bytes(name, value);
    }
    let content = json!({"fields": fields.len()}).to_string();
    response.content("application/json", content.as_bytes());
    Ok(After::KeepAlive)
}

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The status and the fields that the query asks for; `None` if they cannot be sent. `key_slot`
/// is the parameter in which the key itself stands, which is no field.
fn wanted_fields(query: &[u8], key_slot: &str) -> Option<(u16, Fields)> {
    let mut status = 200;
    let mut fields = Vec::new();
    for (name, value) in uri::pairs(query) {
        let (name, value) = (uri::decode(name), uri::decode(value));
        if name.as_ref() == b":status" {
            status = std::str::from_utf8(&value).ok()?.parse().ok()?;
        } else if is_reserved(&name) || !is_field_name(&name) || !is_field_value(&value) {
            return None;
        } else if name.as_ref() != key_slot.as_bytes() {
            fields.push((name.into_owned(), value.into_owned()));
        }
    }
    (200..=599).contains(&status).then_some((status, fields))
}

/// Fields that frame the answer are ours; `/truncate` and its like bend them.
fn is_reserved(name: &[u8]) -> bool {
    [&b"content-length"[..], b"transfer-encoding", b"connection"]
        .iter()
        .any(|reserved| name.eq_ignore_ascii_case(reserved))
}

/// `/redirect?to=URL&status=302`.
pub(super) fn redirect(conn: &mut Connection) -> Result<After, Gone> {
    let query = conn.head.query();
    let status = uri::number(query, "status").unwrap_or(302);
    let to = uri::value(query, "to").map(|to| to.into_owned());
    match to {
        Some(to) if is_field_value(&to) && (300..=399).contains(&status) => {
            conn.respond(status as u16)
                .field_bytes(b"Location", &to)
                .content("text/plain", b"");
            Ok(After::KeepAlive)
        }
        _ => Ok(bad_request(
            conn,
            "to=URL is needed; status=N may be from 300 to 399",
        )),
    }
}

/// `/leak`: the key comes back, percent-encoded, in `Location` and `Link`, as APIs with keys in
/// the query do it; with `?status=N` (default 302), and with `?body=1` in the content too.
pub(super) fn leak(conn: &mut Connection) -> Result<After, Gone> {
    let settings = &conn.worker.settings;
    let Some(key) = settings.auth.presented(&conn.head, &conn.worker.keys()) else {
        refuse(conn, 400, "bad_request", "no key was presented");
        return Ok(After::KeepAlive);
    };
    let query = conn.head.query();
    let status = uri::number(query, "status")
        .filter(|status| (200..=599).contains(status))
        .unwrap_or(302) as u16;
    let in_content = uri::flag(query, "body");
    let host = String::from_utf8_lossy(conn.head.host().unwrap_or(b"localhost")).into_owned();
    let next = format!("https://{host}/next?key={}", uri::encode(&key));
    let content = match in_content {
        true => json!({"next": next, "key": String::from_utf8_lossy(&key)}).to_string(),
        false => json!({}).to_string(),
    };
    conn.respond(status)
        .field("Location", &next)
        .field("Link", &format!("<{next}&page=2>; rel=\"next\""))
        .content("application/json", content.as_bytes());
    Ok(After::KeepAlive)
}

/// `/trailers`: chunked, with the digest of the request's body behind it.
pub(super) fn trailers(conn: &mut Connection, body: &Body) -> Result<After, Gone> {
    if conn.head.version() == Version::Http10 {
        return Ok(bad_request(conn, "trailers need HTTP/1.1"));
    }
    let digest = body.sha256.map_or_else(String::new, |digest| hex(&digest));
    let omit = conn.head.is_head_request();
    let outbox = conn
        .respond(200)
        .field("Content-Type", "text/plain")
        .field("Trailer", "X-Body-Sha256, X-Body-Bytes")
        .chunked();
    if !omit {
        chunk(outbox, b"trailers follow\n");
        let length = body.bytes.to_string();
        last_chunk(
            outbox,
            &[("X-Body-Sha256", &digest), ("X-Body-Bytes", &length)],
        );
    }
    Ok(After::KeepAlive)
}

/// `/hints/N`: N times `103 Early Hints` (RFC 8297), each sent by itself, and then the answer.
pub(super) async fn hints(conn: &mut Connection, count: u64) -> Result<After, Gone> {
    if conn.head.version() == Version::Http10 || count > HINTS_MAX {
        let message = "interim answers need HTTP/1.1, and there are at most 100";
        return Ok(bad_request(conn, message));
    }
    for index in 0..count {
        let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: </{index}.css>; rel=preload\r\n\r\n");
        conn.stream.outbox().extend_from_slice(hint.as_bytes());
        conn.stream.flush().await?;
    }
    send_json(conn, 200, &json!({"hints": count}));
    Ok(After::KeepAlive)
}

fn send_json(conn: &mut Connection, status: u16, value: &serde_json::Value) {
    let mut content = value.to_string();
    content.push('\n');
    conn.respond(status)
        .content("application/json", content.as_bytes());
}

/// A pause of so many milliseconds, within reason.
pub(super) fn duration(millis: u64) -> Duration {
    Duration::from_millis(millis).min(PAUSE_MAX)
}

fn unix_micros() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_micros())
}

/// More interim answers than this are refused.
const HINTS_MAX: u64 = 100;

/// No request can make the server wait longer than this at a time.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_what_it_says() {
        let at = |i: u64| (((i % 65_521) as u32).wrapping_mul(2_654_435_761) >> 24) as u8;
        for offset in [0, 1, 65_520, 65_521, 1 << 33] {
            let piece = pattern(offset, 100_000);
            assert_eq!(piece.len(), BULK_BYTES);
            for (i, &byte) in (offset..).zip(piece) {
                assert_eq!(byte, at(i));
            }
        }
        assert_eq!(pattern(7, 3).len(), 3);
    }
}
