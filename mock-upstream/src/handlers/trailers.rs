//! `/trailers`: a chunked answer with trailers.

use super::bad_request;
use crate::connection::{After, Body, Connection, Gone};
use crate::http::Version;
use crate::http::response::{chunk, last_chunk};
use crate::redact::hex;

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
