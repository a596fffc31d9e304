//! `/bytes/N`: a body of any size, whose every byte is known.

use std::sync::LazyLock;

use super::bad_request;
use crate::connection::{After, Connection, Gone};
use crate::http::response::{chunk, last_chunk};
use crate::http::{Version, uri};
use crate::stream::BULK_BYTES;

/// `/bytes/N`, with `?chunked=1`, or with `?close=1` delimited by the end of the connection.
pub(super) async fn bytes(conn: &mut Connection, length: u64) -> Result<After, Gone> {
    let query = conn.head.query();
    let old = conn.head.version() == Version::Http10;
    let (until_close, chunked) = match (uri::flag(query, "close"), uri::flag(query, "chunked")) {
        (Ok(until_close), Ok(chunked)) => (until_close, chunked && !until_close && !old),
        (Err(message), _) | (_, Err(message)) => return Ok(bad_request(conn, &message)),
    };
    if until_close {
        conn.close_afterwards();
    }
    let response = conn
        .respond(200)
        .field("Content-Type", "application/octet-stream");
    match (until_close, chunked) {
        (true, _) => response.bare(),
        (_, true) => response.chunked(),
        _ => response.announce(length),
    };
    if conn.head.is_head_request() {
        return Ok(After::KeepAlive);
    }
    let mut offset = 0;
    while offset < length {
        let piece = pattern(offset, length - offset);
        if chunked {
            chunk(conn.stream.outbox(), piece);
            conn.stream.flush().await?;
        } else {
            conn.stream.flush_with(piece).await?;
        }
        offset += piece.len() as u64;
    }
    if chunked {
        last_chunk(conn.stream.outbox(), &[]);
    }
    Ok(After::KeepAlive)
}

/// The bytes of `/bytes` from `offset` on: as many as are handy, at most `length`, at least one.
///
/// Byte `i` is the top byte of `(i mod 65521) * 2654435761 mod 2^32`. The period is a prime, so
/// that a buffer sent twice or left out is noticed whatever its size.
pub fn pattern(offset: u64, length: u64) -> &'static [u8] {
    static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
        (0..PATTERN_PERIOD + BULK_BYTES as u64)
            .map(|i| {
                let mixed = ((i % PATTERN_PERIOD) as u32).wrapping_mul(2_654_435_761);
                (mixed >> 24) as u8
            })
            .collect()
    });
    let start = (offset % PATTERN_PERIOD) as usize;
    let length = length.min(BULK_BYTES as u64) as usize;
    &PATTERN[start..start + length]
}

const PATTERN_PERIOD: u64 = 65_521;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_what_it_says() {
        let at = |i: u64| (((i % 65_521) as u32).wrapping_mul(2_654_435_761) >> 24) as u8;
        for offset in [0, 1, 65_520, 65_521, 1 << 33] {
            let piece = pattern(offset, 100_000);
            assert_eq!(piece.len(), BULK_BYTES);
            for (i, &byte) in (offset..).zip(piece) {
                assert_eq!(byte, at(i));
            }
        }
        assert_eq!(pattern(7, 3).len(), 3);
    }
}
