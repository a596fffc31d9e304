//! Answers that are written wrongly: a whole, right answer is taken apart and put together again
//! with one defect.
//!
//! The parts come from this program's own writer, so that taking them apart needs no care.

use serde::Deserialize;

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Defect {
    /// `Content-Length` announces one byte less than follow.
    LengthShort,
    /// `Content-Length` announces one byte more than follow.
    LengthLong,
    /// `Content-Length` and `Transfer-Encoding: chunked`; the body is chunked.
    LengthAndChunked,
    /// Two different `Content-Length`.
    TwoLengths,
    /// `Content-Length: -1`.
    NegativeLength,
    /// `Content-Length: +N`.
    PlusLength,
    /// `Transfer-Encoding: chunked, identity`.
    UnknownCoding,
    /// A chunk size that is no number.
    BadChunkSize,
    /// A chunk size beyond 64 bits.
    HugeChunkSize,
    /// The last chunk (`0`) and the end of the trailers never come.
    MissingLastChunk,
    /// A chunk without the CRLF behind its content.
    MissingChunkEnd,
    /// A field that goes on in a second line.
    ObsFold,
    /// Head lines end in LF.
    BareLf,
    /// A NUL in a field value.
    NulInHead,
    /// A bare CR in a field value.
    BareCr,
    /// `Content-Type : x`.
    SpaceBeforeColon,
    /// A field line without a colon.
    NoColon,
    /// A status line with a status of four digits.
    BadStatus,
    /// A status line that is none.
    BadStatusLine,
    /// `HTTP/2.0` in the status line.
    Http2StatusLine,
    /// The bytes with which an HTTP/2 server begins: a SETTINGS frame.
    Http2Preface,
    /// `HTTP/0.9`: content without a head.
    NoHead,
}

/// Writes `answer` (one whole response, its body with a length, chunked or until the end of the
/// connection) again, with this defect.
pub fn spoil(answer: &[u8], defect: Defect) -> Vec<u8> {
    let parts = Parts::of(answer);
    let mut status = parts.status;
    let mut fields: Vec<Vec<u8>> = parts.fields;
    let content = parts.content;
    let length = |number: String| format!("Content-Length: {number}").into_bytes();
    let exact = length(content.len().to_string());
    let chunked = b"Transfer-Encoding: chunked".to_vec();
    let mut line_end: &[u8] = b"\r\n";
    let mut body = content.clone();
    match defect {
        Defect::LengthShort => fields.push(length(content.len().saturating_sub(1).to_string())),
        Defect::LengthLong => fields.push(length((content.len() + 1).to_string())),
        Defect::LengthAndChunked => {
            fields.extend([exact, chunked]);
            body = in_chunks(&content, b"\r\n", true);
        }
        Defect::TwoLengths => fields.extend([exact, length((content.len() + 1).to_string())]),
        Defect::NegativeLength => fields.push(length("-1".into())),
        Defect::PlusLength => fields.push(length(format!("+{}", content.len()))),
        Defect::UnknownCoding => {
            fields.push(b"Transfer-Encoding: chunked, identity".to_vec());
            body = in_chunks(&content, b"\r\n", true);
        }
        Defect::BadChunkSize => {
            fields.push(chunked);
            body = [b"0x3\r\n", &content[..], b"\r\n0\r\n\r\n"].concat();
        }
        Defect::HugeChunkSize => {
            fields.push(chunked);
            body = [b"10000000000000001\r\n", &content[..], b"\r\n0\r\n\r\n"].concat();
        }
        Defect::MissingLastChunk => {
            fields.push(chunked);
            body = in_chunks(&content, b"\r\n", false);
        }
        Defect::MissingChunkEnd => {
            fields.push(chunked);
            body = in_chunks(&content, b"", true);
        }
        Defect::ObsFold => fields.extend([b"X-Folded: one\r\n two".to_vec(), exact]),
        Defect::BareLf => {
            fields.push(exact);
            line_end = b"\n";
        }
        Defect::NulInHead => fields.extend([b"X-Nul: a\0b".to_vec(), exact]),
        Defect::BareCr => fields.extend([b"X-Cr: a\rb".to_vec(), exact]),
        Defect::SpaceBeforeColon => fields.extend([b"X-Space : a".to_vec(), exact]),
        Defect::NoColon => fields.extend([b"X-No-Colon".to_vec(), exact]),
        Defect::BadStatus => {
            status = b"HTTP/1.1 2000 OK".to_vec();
            fields.push(exact);
        }
        Defect::BadStatusLine => {
            status = b"200 OK HTTP/1.1".to_vec();
            fields.push(exact);
        }
        Defect::Http2StatusLine => {
            status = [b"HTTP/2.0", status.get(8..).unwrap_or(b" 200 OK")].concat();
            fields.push(exact);
        }
        // RFC 9113, section 3.4: a SETTINGS frame, here an empty one.
        Defect::Http2Preface => return vec![0, 0, 0, 4, 0, 0, 0, 0, 0],
        Defect::NoHead => return content,
    }
    let mut out = status;
    for field in fields {
        out.extend_from_slice(line_end);
        out.extend_from_slice(&field);
    }
    out.extend_from_slice(line_end);
    out.extend_from_slice(line_end);
    out.extend_from_slice(&body);
    out
}

/// Adds `bytes` of fields to a whole answer's head, in lines of at most a KiB.
pub fn enlarge(answer: &[u8], bytes: usize) -> Vec<u8> {
    let head = head_length(answer).saturating_sub(2);
    let mut out = answer[..head].to_vec();
    let end = head + bytes;
    let mut number = 0;
    while out.len() < end {
        let name = format!("X-Fill-{number}: ");
        let fill = (end - out.len())
            .min(1024)
            .saturating_sub(name.len() + 2)
            .max(1);
        out.extend_from_slice(name.as_bytes());
        out.resize(out.len() + fill, b'x');
        out.extend_from_slice(b"\r\n");
        number += 1;
    }
    out.extend_from_slice(&answer[head..]);
    out
}

struct Parts {
    status: Vec<u8>,
    /// Without those that frame the body.
    fields: Vec<Vec<u8>>,
    content: Vec<u8>,
}

impl Parts {
    fn of(answer: &[u8]) -> Self {
        let (head, body) = answer.split_at(head_length(answer));
        let mut lines = head
            .split(|&byte| byte == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .filter(|line| !line.is_empty());
        let status = lines.next().unwrap_or(b"HTTP/1.1 200 OK").to_vec();
        let (framing, fields): (Vec<&[u8]>, Vec<&[u8]>) = lines.partition(|line| {
            line.starts_with(b"Content-Length:") || line.starts_with(b"Transfer-Encoding:")
        });
        let content = match framing.iter().any(|line| line.starts_with(b"Transfer")) {
            true => out_of_chunks(body),
            false => body.to_vec(),
        };
        Parts {
            status,
            fields: fields.into_iter().map(<[u8]>::to_vec).collect(),
            content,
        }
    }
}

fn head_length(answer: &[u8]) -> usize {
    memchr::memmem::find(answer, b"\r\n\r\n").map_or(answer.len(), |end| end + 4)
}

/// The content as one chunk.
fn in_chunks(content: &[u8], end: &[u8], last: bool) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", content.len()).into_bytes();
    out.extend_from_slice(content);
    out.extend_from_slice(end);
    if last {
        out.extend_from_slice(b"0\r\n\r\n");
    }
    out
}

fn out_of_chunks(mut body: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(end) = memchr::memmem::find(body, b"\r\n") {
        let size = std::str::from_utf8(&body[..end])
            .ok()
            .and_then(|digits| usize::from_str_radix(digits, 16).ok());
        match size {
            Some(size) if size > 0 && body.len() >= end + 4 + size => {
                content.extend_from_slice(&body[end + 2..end + 2 + size]);
                body = &body[end + 4 + size..];
            }
            _ => break,
        }
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 3\r\n\r\nabc";

    #[test]
    fn one_defect_and_nothing_else() {
        let spoilt = |defect| String::from_utf8(spoil(PLAIN, defect)).unwrap();
        let head = "HTTP/1.1 200 OK\r\nA: b\r\n";
        assert_eq!(
            spoilt(Defect::LengthShort),
            format!("{head}Content-Length: 2\r\n\r\nabc")
        );
        assert_eq!(
            spoilt(Defect::LengthLong),
            format!("{head}Content-Length: 4\r\n\r\nabc")
        );
        assert_eq!(
            spoilt(Defect::LengthAndChunked),
            format!(
                "{head}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            )
        );
        assert_eq!(
            spoilt(Defect::MissingChunkEnd),
            format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc0\r\n\r\n")
        );
        assert_eq!(
            spoilt(Defect::BareLf),
            "HTTP/1.1 200 OK\nA: b\nContent-Length: 3\n\nabc"
        );
        assert_eq!(spoilt(Defect::NoHead), "abc");
        assert!(spoilt(Defect::Http2StatusLine).starts_with("HTTP/2.0 200 OK\r\n"));
    }

    #[test]
    fn chunked_answers_are_understood() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nT: v\r\n\r\n";
        assert_eq!(spoil(answer, Defect::NoHead), b"abc");
    }

    #[test]
    fn heads_grow_by_what_was_asked() {
        for bytes in [100, 1024, 5000, 100_000] {
            let large = enlarge(PLAIN, bytes);
            let grown = large.len() - PLAIN.len();
            assert!((bytes..bytes + 32).contains(&grown), "{bytes} {grown}");
            assert!(large.ends_with(b"\r\n\r\nabc"));
        }
    }
}
