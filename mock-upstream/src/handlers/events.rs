//! `/sse`, and the sending of server-sent events for everybody.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{PAUSE_MAX_MS, bad_request};
use crate::clock;
use crate::connection::{After, Connection, Gone};
use crate::http::response::{chunk, last_chunk};
use crate::http::{Version, uri};

/// `/sse?n=5&ms=50`: `n` events `ms` apart, each sent by itself, then `[DONE]`.
pub(super) async fn events(conn: &mut Connection) -> Result<After, Gone> {
    let query = conn.head.query();
    let (count, gap) = match (
        uri::number(query, "n", 0..=u64::MAX),
        uri::number(query, "ms", 0..=PAUSE_MAX_MS),
    ) {
        (Ok(count), Ok(millis)) => (count.unwrap_or(5), millis.unwrap_or(50)),
        (Err(message), _) | (_, Err(message)) => return Ok(bad_request(conn, &message)),
    };
    let count = match conn.head.is_head_request() {
        true => 0,
        false => count,
    };
    let gap = Duration::from_millis(gap);
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

fn unix_micros() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_micros())
}
