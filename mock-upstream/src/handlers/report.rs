//! Telling what arrived, for `/echo` and for the record.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::connection::{Body, Connection};
use crate::http::Version;
use crate::keys::Access;
use crate::redact::{Redactor, hex};

/// Everything about the request at hand, credentials hidden unless `--reveal` was given.
pub fn of(conn: &Connection, access: Access, body: &Body) -> Value {
    let keys = conn.worker.keys();
    let redactor = Redactor::new(&keys, conn.worker.settings.reveal);
    let pairs = |pairs: &mut dyn Iterator<Item = (&[u8], &[u8])>| -> Vec<Value> {
        pairs
            .map(|(name, value)| json!([redactor.text(name), redactor.field(name, value)]))
            .collect()
    };
    let mut report = json!({
        "method": redactor.text(conn.head.method()),
        "target": redactor.target(conn.head.target()),
        "version": match conn.head.version() {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
        },
        "headers": pairs(&mut conn.head.fields()),
        "authorized": matches!(access, Access::Granted(_)),
        "auth": match access {
            Access::Granted(place) => place,
            Access::Missing => "missing",
            Access::Wrong => "wrong",
        },
        "body_read": body.read,
        "connection": conn.number,
        "request": conn.requests,
        "peer": conn.peer.to_string(),
        "tls": Value::Null,
    });
    if let Some(key) = conn.worker.settings.auth.presented(&conn.head, &keys) {
        report["auth_sha256"] = json!(hex(&Sha256::digest(key)));
    }
    if body.read {
        report["body_bytes"] = json!(body.bytes);
        let mut trailers = body
            .trailers
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_slice()));
        report["trailers"] = json!(pairs(&mut trailers));
    }
    if let Some(digest) = body.sha256 {
        report["body_sha256"] = json!(hex(&digest));
    }
    if let Some(tls) = &conn.tls {
        report["tls"] = json!({
            "version": tls.version,
            "cipher_suite": tls.cipher_suite,
            "group": tls.group,
            "sni": tls.server_name,
            "alpn": tls.alpn,
            "resumed": tls.resumed,
        });
    }
    report
}
