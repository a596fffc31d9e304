//! The control port: what tests ask and change while the mock runs.
//!
//! Clear text and without a key: bind it to the loopback interface only.

use std::sync::Arc;

use serde_json::json;

use crate::connection::{After, BodyWish, Connection, Gone};
use crate::handlers::refuse;
use crate::keys::KeySet;
use crate::stats;

/// Answers one request on the control port.
pub async fn answer(conn: &mut Connection) -> Result<After, Gone> {
    let body = conn
        .read_body(BodyWish {
            keep_bytes_max: BODY_BYTES_MAX,
            digest: false,
        })
        .await?;
    let settings = Arc::clone(&conn.worker.settings);
    match (conn.head.method(), conn.head.path()) {
        (b"GET" | b"HEAD", b"/__stats") => {
            let mut report = stats::report(settings.stats.iter().map(|stats| &**stats));
            report["keys"] = json!(settings.keys.current().len());
            let content = format!("{report}\n");
            conn.respond(200)
                .content("application/json", content.as_bytes());
        }
        (b"PUT", b"/__keys") => {
            let text = body.content.and_then(|body| String::from_utf8(body).ok());
            let keys = text.map(|text| KeySet::from_lines(&text));
            match keys.filter(|keys| !keys.is_empty()) {
                Some(keys) => {
                    settings.keys.replace(keys);
                    conn.respond(204).bare();
                }
                None => refuse(
                    conn,
                    400,
                    "bad_request",
                    "expected one key a line, at least one",
                ),
            }
        }
        (_, b"/__stats" | b"/__keys") => {
            refuse(conn, 405, "method_not_allowed", "GET /__stats, PUT /__keys");
        }
        _ => refuse(conn, 404, "not_found", "there are /__stats and /__keys"),
    }
    Ok(After::KeepAlive)
}

/// A larger body is answered 400.
const BODY_BYTES_MAX: usize = 1024 * 1024;
