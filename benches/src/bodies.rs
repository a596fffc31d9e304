//! Bodies: chunks decoded, and searched for the key.

use std::hint::black_box;

use wire::chunked::{ChunkedDecoder, chunk_header};
use wire::sieve::{OnHit, Sieve};

use crate::heads::scrubber;
use crate::{Case, Run};

/// Bytes of a body's data in these cases.
const BODY_BYTES: usize = 64 * 1024;

pub fn cases() -> Vec<Case> {
    vec![
        Case::of_bytes("chunked/64-KiB-in-chunks-of-64", BODY_BYTES, || {
            decode(64, b"")
        }),
        Case::of_bytes("chunked/64-KiB-in-chunks-of-1024", BODY_BYTES, || {
            decode(1024, b"")
        }),
        Case::of_bytes("chunked/64-KiB-in-chunks-of-16384", BODY_BYTES, || {
            decode(16 * 1024, b"")
        }),
        Case::of_bytes("chunked/64-KiB-with-trailers", BODY_BYTES, || {
            decode(
                16 * 1024,
                b"X-Checksum: 0123456789abcdef\r\nX-Cost: 12\r\nServer-Timing: total;dur=12\r\n",
            )
        }),
        Case::of_bytes("scrub/64-KiB-without-a-hit", BODY_BYTES, search),
        Case::of_bytes("sieve/1-KiB-at-once", 1024, || sift(JSON, 1024, 1024)),
        Case::of_bytes("sieve/64-KiB-in-pieces-of-16384", BODY_BYTES, || {
            sift(JSON, BODY_BYTES, 16 * 1024)
        }),
        Case::of_bytes("sieve/64-KiB-of-escapes", BODY_BYTES, || {
            sift(ESCAPES, BODY_BYTES, 16 * 1024)
        }),
        Case::of_bytes("sieve/64-KiB-of-events", BODY_BYTES, || {
            sift(EVENT, BODY_BYTES, EVENT.len())
        }),
    ]
}

fn decode(chunk: usize, trailers: &'static [u8]) -> Run {
    let mut body = Vec::new();
    for _ in 0..BODY_BYTES / chunk {
        body.extend_from_slice(chunk_header(chunk, &mut [0; 18]));
        body.resize(body.len() + chunk, b'x');
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n");
    body.extend_from_slice(trailers);
    body.extend_from_slice(b"\r\n");
    Box::new(move || {
        let mut decoder = ChunkedDecoder::new();
        let mut input = black_box(&body[..]);
        let mut data = 0;
        while !decoder.is_done() {
            let decoded = decoder.decode(input).expect("a valid body");
            data += decoded.data.len();
            input = &input[decoded.used..];
        }
        assert_eq!(data, BODY_BYTES);
        assert_eq!(decoder.trailers(), trailers);
    })
}

/// What an API answers.
const JSON: &[u8] =
    b"{\"id\":\"chatcmpl-123\",\"content\":\"Lorem ipsum dolor sit amet 0123456789\"}";

/// Text in JSON in JSON: more escapes than usual, some of them of characters that keys have.
const ESCAPES: &[u8] =
    b"{\\\"url\\\":\\\"https:\\/\\/example.com\\/a%2Fb%20c\\\",\\n\\u00e9 &amp; ";

/// An event of a stream.
const EVENT: &[u8] =
    b"data: {\"id\":\"chatcmpl-123\",\"choices\":[{\"delta\":{\"content\":\" tokens\"}}]}\n\n";

fn body_of(text: &[u8], bytes: usize) -> Vec<u8> {
    text.iter().copied().cycle().take(bytes).collect()
}

fn sift(text: &[u8], bytes: usize, piece: usize) -> Run {
    let scrubber = scrubber();
    let body = body_of(text, bytes);
    Box::new(move || {
        let mut sieve = Sieve::new(&scrubber, OnHit::Redact);
        let mut passed = 0;
        let mut rest = black_box(&body[..]);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(piece.min(rest.len()));
            passed += sieve.pass(&[piece], after.is_empty()).0.len();
            rest = after;
        }
        assert_eq!((passed, sieve.hits()), (bytes, 0));
    })
}

fn search() -> Run {
    let scrubber = scrubber();
    let body = body_of(JSON, BODY_BYTES);
    Box::new(move || assert_eq!(scrubber.find(black_box(&body)), None))
}
