//! Bodies: chunks decoded, and searched for the key, compressed ones too.

use std::hint::black_box;
use std::io::Write;

use wire::chunked::{ChunkedDecoder, chunk_header};
use wire::coding::{Coding, Codings};
use wire::inspect::Inspector;
use wire::scrub::Scrubber;
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
        Case::of_bytes("search/64-KiB-copied-and-not-searched", BODY_BYTES, copy),
        Case::of_bytes("search/64-KiB-of-random-bytes", BODY_BYTES, || {
            search_in(random(BODY_BYTES), 1)
        }),
        Case::of_bytes("search/64-KiB-of-base64", BODY_BYTES, || {
            search_in(letters(BASE64), 1)
        }),
        Case::of_bytes("search/64-KiB-of-hexadecimal", BODY_BYTES, || {
            search_in(letters(HEXADECIMAL), 1)
        }),
        Case::of_bytes("search/64-KiB-of-json", BODY_BYTES, || {
            search_in(body_of(JSON, BODY_BYTES), 1)
        }),
        Case::of_bytes("search/64-KiB-of-html", BODY_BYTES, || {
            search_in(body_of(HTML, BODY_BYTES), 1)
        }),
        Case::of_bytes("search/64-KiB-of-events", BODY_BYTES, || {
            search_in(body_of(EVENT, BODY_BYTES), 1)
        }),
        Case::of_bytes("search/64-KiB-of-json-for-2-keys", BODY_BYTES, || {
            search_in(body_of(JSON, BODY_BYTES), 2)
        }),
        Case::of_bytes("search/64-KiB-of-json-for-8-keys", BODY_BYTES, || {
            search_in(body_of(JSON, BODY_BYTES), 8)
        }),
        Case::of_bytes(
            "search/64-KiB-of-random-bytes-for-8-keys",
            BODY_BYTES,
            || search_in(random(BODY_BYTES), 8),
        ),
        Case::of_bytes("inspect/64-KiB-of-records-in-gzip", BODY_BYTES, || {
            inspect(Coding::Gzip)
        }),
        Case::of_bytes("inspect/64-KiB-of-records-in-br", BODY_BYTES, || {
            inspect(Coding::Brotli)
        }),
        Case::of_bytes("inspect/64-KiB-of-records-in-zstd", BODY_BYTES, || {
            inspect(Coding::Zstd)
        }),
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

/// A page: entities, percent-encoded links.
const HTML: &[u8] = b"<li class=\"item\"><a href=\"/x?a=1&amp;b=%2Fpath%20to\">Lorem ipsum dolor</a> &nbsp; &lt;sit&gt;</li>\n";

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

const HEXADECIMAL: &[u8; 16] = b"0123456789abcdef";

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

/// The same bytes each time, as if by chance.
fn random(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Such letters of an alphabet whose length is a power of two.
fn letters(alphabet: &[u8]) -> Vec<u8> {
    let letter = |byte: u8| alphabet[usize::from(byte) % alphabet.len()];
    random(BODY_BYTES).into_iter().map(letter).collect()
}

fn copy() -> Run {
    let body = body_of(JSON, BODY_BYTES);
    let mut to = vec![0; BODY_BYTES];
    Box::new(move || {
        to.copy_from_slice(black_box(&body));
        black_box(&to);
    })
}

/// Searches in pieces as large as a TLS record.
fn search_in(body: Vec<u8>, keys: usize) -> Run {
    let keys: Vec<Vec<u8>> = (0..keys)
        .map(|key| {
            let chance = random(40 * (key + 1));
            let letter = |byte: &u8| BASE64[usize::from(*byte) % 62];
            chance[40 * key..].iter().map(letter).collect()
        })
        .collect();
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let scrubber = Scrubber::of_secrets(&keys, &[]);
    let mut hits = Vec::new();
    Box::new(move || {
        for piece in black_box(&body[..]).chunks(PIECE_BYTES) {
            scrubber.find_all(piece, &mut hits);
            assert!(hits.is_empty());
        }
    })
}

/// Decodes and searches, in such pieces; of records that differ, so that the ratio is what APIs see.
fn inspect(coding: Coding) -> Run {
    let mut text = Vec::new();
    for (number, chance) in random(BODY_BYTES).chunks_exact(8).enumerate() {
        let id = u64::from_le_bytes(chance.try_into().expect("eight bytes"));
        let record = format!(
            "{{\"id\":\"item_{id:016x}\",\"number\":{number},\"object\":\"list.item\",\"amount\":{},\"currency\":\"eur\",\"description\":null}},\n",
            id % 100_000,
        );
        text.extend_from_slice(record.as_bytes());
    }
    text.truncate(BODY_BYTES);
    let coded = match coding {
        Coding::Brotli => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
            encoder.write_all(&text).expect("memory takes it");
            encoder.into_inner()
        }
        Coding::Zstd => zstd::encode_all(&text[..], 3).expect("memory takes it"),
        _ => {
            let level = flate2::Compression::default();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(&text).expect("memory takes it");
            encoder.finish().expect("memory takes it")
        }
    };
    let scrubber = scrubber();
    Box::new(move || {
        let codings = Codings::one(coding);
        let mut inspector = Inspector::new(codings, &scrubber, OnHit::Redact);
        let mut passed = 0;
        for piece in black_box(&coded[..]).chunks(PIECE_BYTES) {
            let came = inspector.pass(&[piece], false);
            assert!(came.hits == 0 && came.uninspected.is_none());
            passed += came.clean.len();
        }
        passed += inspector.pass(&[], true).clean.len();
        assert_eq!(passed, coded.len());
    })
}

/// Bytes that arrive at once, as many as a TLS record has.
const PIECE_BYTES: usize = 16 * 1024;
