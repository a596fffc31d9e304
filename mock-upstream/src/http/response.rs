//! Writing responses into a connection's outbox.
//!
//! A [`Response`] appends to a `Vec<u8>` that the caller owns and reuses, so that head and body
//! leave in one write. It never fails: values that could split the head are the caller's business
//! to check ([`is_field_value`]), and are replaced by spaces if the caller did not.

use std::io::Write as _;

use super::head::is_token;

/// A response head under construction, in the outbox.
#[must_use = "finish it with one of `content`, `chunked`, `until_close`, `announce` or `bare`"]
pub struct Response<'o> {
    out: &'o mut Vec<u8>,
    omit_content: bool,
}

impl<'o> Response<'o> {
    /// Starts a response: status line, `Server` and `Date`. With `omit_content` (an answer to
    /// `HEAD`) the head is written as for `GET` and the content is left out.
    pub fn start(out: &'o mut Vec<u8>, status: u16, date: &str, omit_content: bool) -> Self {
        let _ = write!(
            out,
            "HTTP/1.1 {status} {}\r\nServer: mock-upstream\r\nDate: {date}\r\n",
            reason(status)
        );
        Response { out, omit_content }
    }

    /// Adds a field.
    pub fn field(self, name: &str, value: &str) -> Self {
        self.field_bytes(name.as_bytes(), value.as_bytes())
    }

    /// Adds a field whose value need not be UTF-8.
    pub fn field_bytes(self, name: &[u8], value: &[u8]) -> Self {
        debug_assert!(is_field_name(name) && is_field_value(value));
        self.out.extend_from_slice(name);
        self.out.extend_from_slice(b": ");
        let start = self.out.len();
        self.out.extend_from_slice(value);
        for byte in &mut self.out[start..] {
            if matches!(byte, b'\r' | b'\n' | 0) {
                *byte = b' ';
            }
        }
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Adds `Connection: close` if the connection will close.
    pub fn closing(self, close: bool) -> Self {
        match close {
            true => self.field("Connection", "close"),
            false => self,
        }
    }

    /// Ends the head with `Content-Length` and appends the whole content.
    pub fn content(self, kind: &str, content: &[u8]) {
        let omit = self.omit_content;
        let out = self
            .field("Content-Type", kind)
            .announce(content.len() as u64);
        if !omit {
            out.extend_from_slice(content);
        }
    }

    /// Ends the head with `Content-Length`; the caller sends the content.
    pub fn announce(self, length: u64) -> &'o mut Vec<u8> {
        let _ = write!(self.out, "Content-Length: {length}\r\n\r\n");
        self.out
    }

    /// Ends the head with `Transfer-Encoding: chunked`; the caller sends chunks.
    pub fn chunked(self) -> &'o mut Vec<u8> {
        self.out
            .extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
        self.out
    }

    /// Ends the head of a response that has no content and no length (1xx, 204, 304), or whose
    /// content lasts until the connection closes.
    pub fn bare(self) -> &'o mut Vec<u8> {
        self.out.extend_from_slice(b"\r\n");
        self.out
    }
}

/// Appends one chunk. An empty one is left out, since it would end the body.
pub fn chunk(out: &mut Vec<u8>, content: &[u8]) {
    if !content.is_empty() {
        let _ = write!(out, "{:x}\r\n", content.len());
        out.extend_from_slice(content);
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends the last chunk and the trailers.
pub fn last_chunk(out: &mut Vec<u8>, trailers: &[(&str, &str)]) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        let _ = write!(out, "{name}: {value}\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether `name` may stand before the colon.
pub fn is_field_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| is_token(byte))
}

/// Whether `value` may stand after the colon.
pub fn is_field_value(value: &[u8]) -> bool {
    value
        .iter()
        .all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

/// The reason phrase of IANA's registry of status codes; of 418, which the registry keeps unused,
/// that of RFC 2324; `Unknown` for codes that nobody has assigned.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_head_and_content() {
        let mut out = Vec::new();
        Response::start(&mut out, 200, "D", false)
            .field("A", "b")
            .closing(true)
            .content("text/plain", b"hi");
        assert_eq!(
            out,
            b"HTTP/1.1 200 OK\r\nServer: mock-upstream\r\nDate: D\r\nA: b\r\n\
              Connection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
        );
        out.clear();
        Response::start(&mut out, 200, "D", true).content("text/plain", b"hi");
        assert!(out.ends_with(b"Content-Length: 2\r\n\r\n"));
    }

    #[test]
    fn every_assigned_status_has_its_phrase() {
        let assigned = (100..=103)
            .chain(200..=208)
            .chain([226])
            .chain((300..=308).filter(|status| *status != 306))
            .chain(400..=418)
            .chain((421..=431).filter(|status| ![427, 430].contains(status)))
            .chain([451])
            .chain((500..=511).filter(|status| *status != 509));
        for status in assigned {
            assert_ne!(reason(status), "Unknown", "{status}");
        }
        assert_eq!(reason(103), "Early Hints");
        assert_eq!(reason(418), "I'm a teapot");
        assert_eq!(reason(599), "Unknown");
    }

    #[test]
    fn writes_chunks() {
        let mut out = Vec::new();
        chunk(&mut out, b"");
        chunk(&mut out, b"0123456789abcdef");
        last_chunk(&mut out, &[("T", "v")]);
        assert_eq!(out, b"10\r\n0123456789abcdef\r\n0\r\nT: v\r\n\r\n");
    }
}
