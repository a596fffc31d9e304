//! Chunked bodies: what is read, what is refused, and the bounds at their edges.

use wire::chunked::{ChunkError, ChunkedDecoder, LAST_CHUNK, chunk_header};
use wire::names::NameSet;
use wire::rewrite;

/// Data, trailers, and how many bytes are left behind the body.
type Read = (Vec<u8>, Vec<u8>, usize);

/// Feeds `input` cut at `cut`. `None`: the body is not done.
fn read(input: &[u8], cut: usize) -> Result<Option<Read>, ChunkError> {
    let mut decoder = ChunkedDecoder::new();
    let mut data = Vec::new();
    let mut used = 0;
    for piece in [&input[..cut], &input[cut..]] {
        let mut piece = piece;
        while !decoder.is_done() {
            let decoded = decoder.decode(piece)?;
            if decoded.used == 0 {
                break;
            }
            data.extend_from_slice(&piece[decoded.data.clone()]);
            used += decoded.used;
            piece = &piece[decoded.used..];
        }
    }
    Ok(decoder
        .is_done()
        .then(|| (data, decoder.trailers().to_vec(), input.len() - used)))
}

#[test]
fn bodies_read_the_same_however_they_are_split() {
    let check = |input: &str, data: &str, trailers: &str, left: usize| {
        for cut in 0..=input.len() {
            let expected = (data.as_bytes().to_vec(), trailers.as_bytes().to_vec(), left);
            assert_eq!(
                read(input.as_bytes(), cut),
                Ok(Some(expected)),
                "{input:?} cut at {cut}"
            );
        }
    };
    check("0\r\n\r\n", "", "", 0);
    check("5\r\nhello\r\n0\r\n\r\n", "hello", "", 0);
    check(
        "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        "hello world",
        "",
        0,
    );
    check(
        "A\r\n0123456789\r\na\r\n0123456789\r\n00\r\n\r\n",
        "01234567890123456789",
        "",
        0,
    );
    check(
        "0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n",
        "hello",
        "",
        0,
    );
    check("5;a\r\nhello\r\n0;b=\"c d\"\r\n\r\n", "hello", "", 0);
    check("5 \t;a=b;c\r\nhello\r\n0\r\n\r\n", "hello", "", 0);
    check("4\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n", "", 0);
    check(
        "1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n",
        "x",
        "A: b\r\nC:\r\n",
        0,
    );
    check("0\r\n\r\nGET / HTTP/1.1\r\n", "", "", 16);
    check("1\r\nx\r\n0\r\nA: b\r\n\r\n\r\n", "x", "A: b\r\n", 2);
}

#[test]
fn malformed_bodies_are_refused_however_they_are_split() {
    use ChunkError::*;
    let check = |input: &[u8], error: ChunkError| {
        for cut in 0..=input.len() {
            assert_eq!(
                read(input, cut),
                Err(error),
                "{:?} cut at {cut}",
                String::from_utf8_lossy(input)
            );
        }
    };
    check(b"\r\n", Size);
    check(b";a\r\n", Size);
    check(b" 5\r\nhello\r\n", Size);
    check(b"-5\r\n", Size);
    check(b"+5\r\n", Size);
    check(b"0x5\r\n", Size);
    check(b"g\r\n", Size);
    check(b"5_\r\n", Size);
    check(b"5\nhello\n0\n\n", Size);
    check(b"5 \r\nhello\r\n", Size);
    check(b"5 6\r\nhello\r\n", Size);
    check(b"5\r\nhello0\r\n\r\n", LineEnding);
    check(b"5\r\nhello!\r\n", LineEnding);
    check(b"5\r\nhello\n0\r\n\r\n", LineEnding);
    check(b"5\r\nhello\r0\r\n\r\n", LineEnding);
    check(b"5\rhello", LineEnding);
    check(b"5;a\nhello\r\n", Extension);
    check(b"5;a\0\r\n", Extension);
    check(b"5;a\x7f\r\n", Extension);
    check(b"5;a\rb\r\n", LineEnding);
    check(b"00000000000000005\r\n", SizeTooLarge);
    check(b"fffffffffffffffff\r\n", SizeTooLarge);
    check(b"0\r\n\n", LineEnding);
    check(b"0\r\n\rx", LineEnding);
    check(b"0\r\nA: b\n\r\n", LineEnding);
    check(b"0\r\nA: b\rc\r\n\r\n", LineEnding);
    check(b"0\r\nA b\r\n\r\n", Trailer);
    check(b"0\r\nA : b\r\n\r\n", Trailer);
    check(b"0\r\n: b\r\n\r\n", Trailer);
    check(b"0\r\nA: b\r\n c\r\n\r\n", Trailer);
    check(b"0\r\nA: \0\r\n\r\n", Trailer);
}

#[test]
fn unfinished_bodies_are_not_done() {
    for input in [
        "",
        "5",
        "5\r",
        "5\r\n",
        "5\r\nhell",
        "5\r\nhello",
        "5\r\nhello\r\n",
        "0",
        "0\r\n",
        "0\r\n\r",
        "0\r\nA: b\r\n",
    ] {
        for cut in 0..=input.len() {
            assert_eq!(read(input.as_bytes(), cut), Ok(None), "{input:?}");
        }
    }
}

#[test]
fn bounds_hold_at_their_edges() {
    let extension = |len: usize| format!("1;{}\r\nx\r\n", "e".repeat(len - 1));
    let read = |input: &str| read(input.as_bytes(), 0).map(|body| body.is_some());
    assert_eq!(read(&(extension(256) + "0\r\n\r\n")), Ok(true));
    assert_eq!(
        read(&(extension(257) + "0\r\n\r\n")),
        Err(ChunkError::ExtensionTooLarge)
    );
    assert_eq!(read(&(extension(256).repeat(64) + "0\r\n\r\n")), Ok(true));
    assert_eq!(
        read(&(extension(256).repeat(64) + "0;\r\n\r\n")),
        Err(ChunkError::ExtensionTooLarge)
    );

    // 8 KiB: the line, its CRLF, and the blank line.
    let trailer = |len: usize| format!("0\r\nA:{}\r\n\r\n", "v".repeat(len - 6));
    assert_eq!(read(&trailer(8192)), Ok(true));
    assert_eq!(read(&trailer(8193)), Err(ChunkError::TrailersTooLarge));

    // The largest size is taken at its word, whatever comes of it.
    assert_eq!(read("ffffffffffffffff\r\nx"), Ok(false));
}

#[test]
fn data_is_never_copied_or_held_back() {
    let mut decoder = ChunkedDecoder::new();
    let decoded = decoder.decode(b"5\r\nhe").expect("valid");
    assert_eq!((decoded.used, decoded.data), (5, 3..5));
    let decoded = decoder.decode(b"llo\r\n3\r\nabc").expect("valid");
    assert_eq!((decoded.used, decoded.data), (3, 0..3));
    let decoded = decoder.decode(b"\r\n3\r\nabc").expect("valid");
    assert_eq!((decoded.used, decoded.data), (8, 5..8));
    assert_eq!(decoder.trailers(), b"");
    assert!(!decoder.is_done());
}

#[test]
fn chunk_headers_are_plain_hexadecimal() {
    for (len, expected) in [
        (0, "0\r\n"),
        (1, "1\r\n"),
        (15, "f\r\n"),
        (16, "10\r\n"),
        (500, "1f4\r\n"),
        (usize::MAX, "ffffffffffffffff\r\n"),
    ] {
        assert_eq!(chunk_header(len, &mut [0; 18]), expected.as_bytes());
    }
    assert_eq!(chunk_header(0, &mut [b'x'; 18]), LAST_CHUNK);
}

#[test]
fn trailers_lose_what_may_not_stand_there() {
    let strip = NameSet::new(["x-api-key"]);
    let mut out = b"kept: before\r\n".to_vec();
    rewrite::trailers(
        b"X-Checksum: 1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: a\r\nAuthorization: x\r\n\
          content-type: x\r\nContent-MD5: x\r\nSet-Cookie: a\r\nCookie: a\r\nConnection: close\r\nTE: x\r\nTrailer: x\r\n\
          X_Api_Key: 2\r\nClaviger-Id: 1\r\ntransfer_encoding: x\r\nProxy-Authorization: x\r\nCache-Control: x\r\n\
          CDN-Loop: x\r\nExpect: x\r\nUpgrade: x\r\nServer-Timing: db;dur=53\r\n",
        &strip,
        &mut out,
    );
    assert_eq!(
        String::from_utf8_lossy(&out),
        "kept: before\r\nX-Checksum: 1\r\nServer-Timing: db;dur=53\r\n"
    );
}
