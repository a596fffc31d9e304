//! `/echo` and `/upload`: telling the client what arrived.

use serde_json::json;

use super::{bad_request, report, send_json};
use crate::connection::{After, Body, Connection, Gone};
use crate::http::uri;
use crate::keys::Access;
use crate::redact::{Redactor, hex};

pub(super) fn echo(conn: &mut Connection, access: Access, body: &Body) -> Result<After, Gone> {
    let with_content = match uri::flag(conn.head.query(), "body") {
        Ok(with_content) => with_content,
        Err(message) => return Ok(bad_request(conn, &message)),
    };
    let mut report = report::of(conn, access, body);
    if with_content {
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
