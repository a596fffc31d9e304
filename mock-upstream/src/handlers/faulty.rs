//! Answering while a fault rule has taken the request.

use super::properly;
use crate::connection::{After, Connection, Gone};
use crate::faults::Action;
use crate::faults::defect::{enlarge, spoil};
use crate::faults::wreck::Wreck;
use crate::http::response::reason;
use crate::steering::Steering;

/// Answers with this fault.
pub(super) async fn answer(
    conn: &mut Connection,
    steering: &Steering,
    action: &Action,
) -> Result<After, Gone> {
    conn.worker.stats.fault(action);
    // Answers to earlier, pipelined requests are not part of this.
    conn.stream.flush().await?;
    if let Some(wreck) = Wreck::of(action) {
        let alarm = std::rc::Rc::clone(&conn.worker.alarm);
        conn.stream.wreck(wreck, &alarm);
        let after = properly(conn, steering).await?;
        conn.stream.end_of_answer().await?;
        return Ok(after);
    }
    match action {
        Action::Flood(flood) => {
            let interim = format!("HTTP/1.1 {} {}\r\n\r\n", flood.status, reason(flood.status));
            for _ in 0..flood.count {
                conn.stream.outbox().extend_from_slice(interim.as_bytes());
                if conn.stream.outbox().len() > FLOOD_BYTES_AT_ONCE {
                    conn.stream.flush().await?;
                }
            }
            properly(conn, steering).await
        }
        Action::Switch => {
            let switch =
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: mock\r\n\r\n";
            conn.stream.outbox().extend_from_slice(switch);
            properly(conn, steering).await
        }
        Action::ExtraBytes(extra) => {
            let after = properly(conn, steering).await?;
            conn.stream
                .outbox()
                .extend_from_slice(extra.text.as_bytes());
            conn.stream.flush().await?;
            Ok(after)
        }
        Action::Unasked(unasked) => {
            let after = properly(conn, steering).await?;
            conn.pause(unasked.after.0).await?;
            conn.respond(200).content("text/plain", UNASKED);
            conn.stream.flush().await?;
            Ok(after)
        }
        Action::Framing(framing) => {
            let after = rewritten(conn, steering, |answer| spoil(answer, framing.defect)).await?;
            Ok(match framing.close {
                true => After::Close,
                false => after,
            })
        }
        Action::LargeHead(large) => {
            rewritten(conn, steering, |answer| {
                enlarge(answer, large.bytes as usize)
            })
            .await
        }
        _ => properly(conn, steering).await,
    }
}

/// Holds the answer back until it is whole, and sends what `rewrite` makes of it.
async fn rewritten(
    conn: &mut Connection,
    steering: &Steering,
    rewrite: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<After, Gone> {
    // What goes both ways has no whole answer.
    if conn.head.wants_websocket() {
        return properly(conn, steering).await;
    }
    conn.stream.hold();
    let outcome = properly(conn, steering).await;
    if conn.stream.release() && outcome.is_ok() {
        let answer = std::mem::take(conn.stream.outbox());
        *conn.stream.outbox() = rewrite(&answer);
    }
    conn.stream.flush().await?;
    outcome
}

/// Interim answers leave in pieces of this size.
const FLOOD_BYTES_AT_ONCE: usize = 64 * 1024;

/// The content of an answer that nobody asked for.
const UNASKED: &[u8] = b"unasked\n";
