//! `/redirect` and `/leak`: answers that lead elsewhere, without and with the key.

use serde_json::json;

use super::{bad_request, refuse};
use crate::connection::{After, Connection, Gone};
use crate::http::response::is_field_value;
use crate::http::uri;

/// `/redirect?to=URL&status=302`.
pub(super) fn redirect(conn: &mut Connection) -> Result<After, Gone> {
    let query = conn.head.query();
    let status = match uri::number(query, "status", 300..=399) {
        Ok(status) => status.unwrap_or(302) as u16,
        Err(message) => return Ok(bad_request(conn, &message)),
    };
    let to = uri::value(query, "to").map(|to| to.into_owned());
    match to {
        Some(to) if is_field_value(&to) => {
            conn.respond(status)
                .field_bytes(b"Location", &to)
                .content("text/plain", b"");
            Ok(After::KeepAlive)
        }
        _ => Ok(bad_request(
            conn,
            "`to` must be there, and fit into a header field, as in `to=https://host/path`",
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
    let (status, in_content) = match (
        uri::number(query, "status", 200..=599),
        uri::flag(query, "body"),
    ) {
        (Ok(status), Ok(in_content)) => (status.unwrap_or(302) as u16, in_content),
        (Err(message), _) | (_, Err(message)) => return Ok(bad_request(conn, &message)),
    };
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
