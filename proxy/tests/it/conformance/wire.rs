//! What the judge itself knows of HTTP/1.1: where an answer and a chunked body end. It shares nothing
//! with the code under test.

use memchr::memmem;

/// An answer, taken from what the caller received.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The head, through the blank line.
    pub head: String,
    /// The body without its framing, as far as it came.
    pub body: Vec<u8>,
    /// Whether it came to its end, as its framing says.
    pub complete: bool,
    /// Whether the connection's end is the body's.
    pub until_close: bool,
}

/// The answers at the front of `bytes`, and what is left. `is_head` says that none has a body.
pub fn replies(bytes: &[u8], is_head: bool) -> Result<(Vec<Reply>, &[u8]), String> {
    let mut replies = Vec::new();
    let mut rest = bytes;
    while let Some(at) = memmem::find(rest, b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&rest[..at + 4]).into_owned();
        let status = head
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| head.strip_prefix("HTTP/1.0 "))
            .and_then(|behind| behind.get(..3)?.parse().ok())
            .ok_or_else(|| format!("no status line: {head:?}"))?;
        rest = &rest[at + 4..];
        let mut reply = Reply {
            status,
            head,
            body: Vec::new(),
            complete: true,
            until_close: false,
        };
        let is_bodiless = is_head || matches!(status, 100..=199 | 204 | 304);
        let fields = |name: &str| -> Vec<String> {
            let lines = reply.head.split("\r\n").skip(1);
            lines
                .filter_map(|line| line.split_once(':'))
                .filter(|(field, _)| field.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim().to_owned())
                .collect()
        };
        let lengths = fields("content-length");
        let codings = fields("transfer-encoding");
        match (is_bodiless, &lengths[..], &codings[..]) {
            (true, ..) => {}
            (_, [], [coding]) if coding == "chunked" => {
                let (body, used) = unchunk(rest)?;
                reply.complete = used.is_some();
                reply.body = body;
                rest = &rest[used.unwrap_or(rest.len())..];
            }
            (_, [length], []) => {
                let length: usize = length.parse().map_err(|_| "Content-Length to the caller")?;
                let here = length.min(rest.len());
                reply.complete = here == length;
                reply.body = rest[..here].to_vec();
                rest = &rest[here..];
            }
            (_, [], []) => {
                reply.body = rest.to_vec();
                reply.until_close = true;
                rest = &[];
            }
            _ => return Err(format!("ambiguous framing to the caller: {:?}", reply.head)),
        }
        replies.push(reply);
        if status == 101 {
            // What follows is the tunnel's.
            return Ok((replies, &[]));
        }
    }
    Ok((replies, rest))
}

/// The length of the chunked body at the front of `bytes`; `None` while it is not all there.
pub fn chunked_len(bytes: &[u8]) -> Result<Option<usize>, String> {
    Ok(unchunk(bytes)?.1)
}

/// The data of a chunked body, and how many bytes it took if it is all there.
fn unchunk(bytes: &[u8]) -> Result<(Vec<u8>, Option<usize>), String> {
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = line(&bytes[at..]) else {
            return Ok((data, None));
        };
        let digits = core::str::from_utf8(line).map_err(|_| "a chunk's size")?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("a chunk's size: {digits:?}"));
        }
        let size = usize::from_str_radix(digits, 16).map_err(|_| "a chunk's size")?;
        at += line.len() + 2;
        if size == 0 {
            break;
        }
        let rest = &bytes[at..];
        data.extend_from_slice(&rest[..size.min(rest.len())]);
        if rest.len() < size + 2 {
            return Ok((data, None));
        }
        if rest[size..size + 2] != *b"\r\n" {
            return Err("a chunk without CRLF behind it".into());
        }
        at += size + 2;
    }
    loop {
        let Some(line) = line(&bytes[at..]) else {
            return Ok((data, None));
        };
        at += line.len() + 2;
        if line.is_empty() {
            return Ok((data, Some(at)));
        }
    }
}

/// The line at the front, without its CRLF.
fn line(bytes: &[u8]) -> Option<&[u8]> {
    memmem::find(bytes, b"\r\n").map(|end| &bytes[..end])
}
