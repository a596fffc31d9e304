//! `/status` and `/headers`: a status and fields of the client's choice.

use serde_json::json;

use super::bad_request;
use crate::connection::{After, Connection, Gone};
use crate::http::response::{is_field_name, is_field_value};
use crate::http::uri;
use crate::keys::AuthScheme;

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
