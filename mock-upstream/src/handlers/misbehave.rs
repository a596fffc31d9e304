//! Endpoints that are slow or behave badly, as real APIs are and do at times. (What goes wrong at
//! the control port's word is [`crate::faults`].)

use std::time::Duration;

use serde_json::json;

use super::bytes::pattern;
use super::{bad_request, send_json};
use crate::connection::{After, Connection, Gone};
use crate::http::{BodyDecoder, Decoded};

/// `/early/N`: answers 413 once N bytes of the body have arrived (or all of it), without reading
/// the rest and without asking for it. `/early/0` answers at once.
pub(super) async fn early(conn: &mut Connection, bytes: u64) -> Result<After, Gone> {
    let mut decoder = BodyDecoder::new(conn.head.framing());
    let mut seen = 0;
    while seen < bytes && !conn.head.expects_continue() {
        let (consumed, more) = match decoder.step(conn.stream.input()).map_err(Gone::Malformed)? {
            Decoded::Content { consumed, content } => {
                seen += content.len() as u64;
                (consumed, false)
            }
            Decoded::NeedMore { consumed } => (consumed, true),
            Decoded::End { .. } => break,
        };
        conn.stream.consume(consumed);
        if more && !conn.stream.fill().await? {
            return Err(Gone::Client);
        }
    }
    conn.close_afterwards();
    super::refuse(conn, 413, "too_large", "the body is too large");
    Ok(After::Linger)
}

/// `/truncate/N`: announces N bytes, sends half of them, and is gone without a `close_notify`.
pub(super) async fn truncate(conn: &mut Connection, length: u64) -> Result<After, Gone> {
    conn.respond(200)
        .field("Content-Type", "application/octet-stream")
        .announce(length);
    let half = length / 2;
    let mut offset = 0;
    while offset < half {
        let piece = pattern(offset, half - offset);
        conn.stream.flush_with(piece).await?;
        offset += piece.len() as u64;
    }
    conn.stream.flush().await?;
    Ok(After::Cut)
}

/// `/hangup/MS`: an ordinary answer that does not say `Connection: close`, and the end of the
/// connection MS milliseconds later, while it idles in the client's pool.
pub(super) async fn hangup(conn: &mut Connection, millis: u64) -> Result<After, Gone> {
    conn.respond(200).content("text/plain", b"goodbye\n");
    conn.pause(Duration::from_millis(millis)).await?;
    Ok(After::Close)
}

/// `/delay/MS`: an answer that takes its time.
pub(super) async fn delay(conn: &mut Connection, millis: u64) -> Result<After, Gone> {
    conn.pause(Duration::from_millis(millis)).await?;
    send_json(conn, 200, &json!({"delayed_ms": millis}));
    Ok(After::KeepAlive)
}

/// `/slow-head/MS`: the response head takes MS milliseconds, in pieces of a few bytes.
pub(super) async fn slow_head(conn: &mut Connection, millis: u64) -> Result<After, Gone> {
    if millis == 0 {
        return Ok(bad_request(conn, "a slow head takes at least 1 ms"));
    }
    // Answers to earlier, pipelined requests must not be slowed down too.
    conn.stream.flush().await?;
    conn.respond(200).content("text/plain", b"slow\n");
    let whole = std::mem::take(conn.stream.outbox());
    let gaps = SLOW_HEAD_PIECES - 1;
    let gap: Duration = Duration::from_millis(millis) / gaps as u32;
    for (index, piece) in whole
        .chunks(whole.len().div_ceil(SLOW_HEAD_PIECES))
        .enumerate()
    {
        if index > 0 {
            conn.pause(gap).await?;
        }
        conn.stream.flush_with(piece).await?;
    }
    Ok(After::KeepAlive)
}

/// How many pieces a slow head comes in.
const SLOW_HEAD_PIECES: usize = 8;
