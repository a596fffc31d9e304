//! Content codings (RFC 9110, section 8.4.1), for APIs that compress and callers that
//! look into what they got.
//!
//! It lacks brotli's compression, which would be the largest part of this program: what
//! is made here is brotli all right, but stored (RFC 7932, section 9.2).

use std::io;

use miniz_oxide::deflate::{compress_to_vec, compress_to_vec_zlib};
use miniz_oxide::inflate::{decompress_to_vec, decompress_to_vec_zlib};

/// How hard deflate tries, of 10.
const LEVEL: u8 = 6;

/// Bytes of a gzip header with nothing optional in it (RFC 1952, section 2.3).
const GZIP_HEADER_BYTES: usize = 10;

/// Codes a text; any coding that is not known leaves it as it is.
pub fn encode(coding: &str, text: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => [
            &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff][..],
            &compress_to_vec(text, LEVEL),
            &crc32(text).to_le_bytes(),
            &(text.len() as u32).to_le_bytes(),
        ]
        .concat(),
        "deflate" => compress_to_vec_zlib(text, LEVEL),
        "br" => {
            let mut coded = Vec::new();
            // At most 2^16 bytes each: MNIBBLES 0, MLEN - 1, ISUNCOMPRESSED, from the
            // fourth bit on; in the first one the window's size stands before them, and
            // none of its bits is set.
            for (number, part) in text.chunks(1 << 16).enumerate() {
                let length = (part.len() - 1) as u32;
                let header = (length | (1 << 16)) << if number == 0 { 4 } else { 3 };
                coded.extend_from_slice(&header.to_le_bytes()[..3]);
                coded.extend_from_slice(part);
            }
            // ISLAST, ISLASTEMPTY.
            coded.push(3);
            coded
        }
        _ => text.to_vec(),
    }
}

/// Undoes a coding, as far as it goes, with zeros behind what was cut; one that is not
/// known is left as it is.
pub fn decode(coding: &str, coded: &[u8]) -> Vec<u8> {
    let all_or_some = |decoded: Result<Vec<u8>, miniz_oxide::inflate::DecompressError>| {
        decoded.unwrap_or_else(|error| error.output)
    };
    match coding {
        "gzip" => all_or_some(decompress_to_vec(
            coded.get(GZIP_HEADER_BYTES..).unwrap_or_default(),
        )),
        "deflate" => all_or_some(decompress_to_vec_zlib(coded)),
        "br" => {
            let mut decoded = Vec::new();
            let mut rest = coded;
            // Whatever came before an error has been written.
            let _: io::Result<()> = brotli_decompressor::BrotliDecompress(&mut rest, &mut decoded);
            decoded
        }
        _ => coded.to_vec(),
    }
}

/// The checksum of gzip (RFC 1952, section 8).
fn crc32(text: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in text {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_coded_is_decoded_and_parts_of_it_too() {
        let text: Vec<u8> = (0..200_000u32)
            .flat_map(|number| (number * 7).to_string().into_bytes())
            .take(200_000)
            .collect();
        for coding in ["gzip", "deflate", "br", "identity"] {
            for length in [1, 100, 1 << 16, (1 << 16) + 1, 200_000] {
                let coded = encode(coding, &text[..length]);
                assert_eq!(
                    decode(coding, &coded),
                    &text[..length],
                    "{coding}, {length}"
                );
            }
            let part = &encode(coding, &text)[..40_000];
            let decoded = decode(coding, part);
            let same = decoded.iter().zip(&text).take_while(|(a, b)| a == b);
            let same = same.count();
            assert!(same > 30_000, "{coding}: {same}");
            assert!(decoded[same..].iter().all(|&byte| byte == 0), "{coding}");
        }
        // Of RFC 1952's own checksum, the usual check value.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
