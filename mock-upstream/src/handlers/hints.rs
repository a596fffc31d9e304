//! `/hints`: interim answers before the final one.

use serde_json::json;

use super::{bad_request, send_json};
use crate::connection::{After, Connection, Gone};
use crate::http::Version;

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

/// More interim answers than this are refused.
const HINTS_MAX: u64 = 100;
