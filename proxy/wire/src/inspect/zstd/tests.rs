use std::io::{Read, Write};

use ::zstd::stream::{Decoder, Encoder};

use super::*;

/// Texts of different kinds: their decoded forms use every kind of block and table.
fn texts() -> Vec<Vec<u8>> {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut noise = |n: usize| -> Vec<u8> {
        let next = |_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as u8
        };
        (0..n).map(next).collect()
    };
    let items = |n: usize| -> Vec<u8> {
        (0..n)
            .flat_map(|number| {
                format!(
                    "{{\"id\": {number}, \"state\": \"{}\", \"amount\": {}}},\n",
                    ["open", "paid", "void"][number % 3],
                    number * number % 977
                )
                .into_bytes()
            })
            .collect()
    };
    let few = |n: usize, letters: &[u8], noise: Vec<u8>| -> Vec<u8> {
        let pick = |byte: u8| letters[usize::from(byte) % letters.len()];
        noise.into_iter().take(n).map(pick).collect()
    };
    vec![
        Vec::new(),
        b"x".to_vec(),
        b"a short text".to_vec(),
        b"abcabcabcabcabcabcabcabcabcabc".to_vec(),
        vec![0; 300_000],
        items(3),
        items(100),
        items(20_000),
        noise(1000),
        noise(200_000),
        few(5000, b"ab", noise(5000)),
        few(70_000, b"abcdefghijklmnopqrstuvwxyz", noise(70_000)),
        [
            noise(140_000),
            items(5000),
            vec![b'-'; 400_000],
            items(5000),
        ]
        .concat(),
        [items(4000), noise(3_000_000), items(4000)].concat(),
    ]
}

fn encode(text: &[u8], level: i32, set: impl FnOnce(&mut Encoder<'static, Vec<u8>>)) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), level).expect("an encoder");
    set(&mut encoder);
    encoder.write_all(text).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// What comes out, and whether all of it was well.
fn decode(
    pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
) -> (Vec<u8>, Result<bool, Uninspected>) {
    let mut zstd = Zstd::new();
    let mut text = Vec::new();
    for piece in pieces {
        let taken = zstd.decode(piece.as_ref(), &mut |decoded| {
            text.extend_from_slice(decoded);
            Ok(())
        });
        if let Err(error) = taken {
            return (text, Err(error));
        }
    }
    (text, Ok(zstd.pending_bytes() > 0))
}

#[track_caller]
fn check(coded: &[u8], text: &[u8]) {
    for size in [coded.len().max(1), 4096, 7] {
        let (decoded, ended) = decode(coded.chunks(size));
        assert!(decoded == text, "{} of {} bytes", decoded.len(), text.len());
        assert_eq!(ended, Ok(false));
    }
}

#[test]
fn what_the_reference_encodes_is_decoded() {
    for text in texts() {
        for level in [-7, 1, 2, 3, 5, 7, 9, 13, 16, 19] {
            check(&encode(&text, level, |_| {}), &text);
        }
        check(
            &encode(&text, 3, |encoder| {
                encoder.include_checksum(true).expect("a setting");
                encoder
                    .set_pledged_src_size(Some(text.len() as u64))
                    .expect("a setting");
                encoder.include_contentsize(true).expect("a setting");
            }),
            &text,
        );
        for window_log in [10, 12, 17, 23] {
            check(
                &encode(&text, 6, |encoder| {
                    encoder.window_log(window_log).expect("a setting");
                    encoder.long_distance_matching(true).expect("a setting");
                }),
                &text,
            );
        }
    }
}

/// What an encoder has flushed is given out, so that events do not wait.
#[test]
fn what_was_flushed_is_there() {
    for level in [1, 3, 19] {
        let mut encoder = Encoder::new(Vec::new(), level).expect("an encoder");
        let mut zstd = Zstd::new();
        for number in 0..2000 {
            let event = format!("data: {{\"number\": {number}}}\n\n");
            encoder.write_all(event.as_bytes()).expect("memory");
            encoder.flush().expect("memory");
            let coded = std::mem::take(encoder.get_mut());
            let mut text = Vec::new();
            let taken = zstd.decode(&coded, &mut |decoded| {
                text.extend_from_slice(decoded);
                Ok(())
            });
            assert_eq!((taken, zstd.pending_bytes() > 0), (Ok(()), false));
            assert_eq!(String::from_utf8_lossy(&text), event);
        }
    }
}

#[test]
fn frames_follow_each_other() {
    let skipped = |low: u8, length: usize| {
        let mut frame = vec![0x50 + low, 0x2a, 0x4d, 0x18];
        frame.extend_from_slice(&(length as u32).to_le_bytes());
        frame.resize(8 + length, b'#');
        frame
    };
    let one = encode(b"one ", 3, |_| {});
    let two = encode(b"two", 3, |encoder| {
        encoder.include_checksum(true).expect("a setting");
    });
    let coded = [skipped(0, 0), one, skipped(15, 300), two, skipped(7, 1)].concat();
    check(&coded, b"one two");
    let (_, ended) = decode([coded, b"more".to_vec()]);
    assert_eq!(ended, Err(Uninspected::Malformed));
}

#[test]
fn dictionaries_and_large_windows_are_refused() {
    // RFC 8878, section 3.1.1.1: the last two bits of the first byte say that a dictionary is named.
    let frame = |header: &[u8]| [&MAGIC.to_le_bytes()[..], header, b"\x01\0\0"].concat();
    for (header, expected) in [
        (&b"\x00\x68"[..], Ok(false)),
        (b"\x00\x69", Err(Uninspected::Malformed)),
        (b"\x00\x70", Err(Uninspected::Malformed)),
        (b"\x00\xff", Err(Uninspected::Malformed)),
        (b"\x01\x00\x00", Ok(false)),
        (b"\x01\x00\x01", Err(Uninspected::Malformed)),
        (b"\x02\x00\x00\x01", Err(Uninspected::Malformed)),
        (b"\x03\x00\x01\x00\x00\x00", Err(Uninspected::Malformed)),
        (b"\x20\x00", Ok(false)),
        (b"\xa0\x00\x00\x80\x00", Ok(false)),
        (b"\xa0\x01\x00\x80\x00", Err(Uninspected::Malformed)),
        (
            b"\xe0\xff\xff\xff\xff\xff\xff\xff\xff",
            Err(Uninspected::Malformed),
        ),
        (b"\x08\x00", Err(Uninspected::Malformed)),
    ] {
        assert_eq!(decode([frame(header)]).1, expected, "{header:x?}");
    }
    let text = vec![b'-'; 100];
    let large = encode(&text, 3, |encoder| {
        encoder.window_log(24).expect("a setting");
    });
    assert_eq!(decode([large]).1, Err(Uninspected::Malformed));
}

/// Part of a block may be text to somebody who looks closely: it is known that it was not shown.
#[test]
fn a_cut_body_is_no_error_and_known_to_be_cut_in_a_block() {
    let text = &texts()[7][..50_000];
    let coded = encode(text, 3, |_| {});
    let mut pending = 0;
    for end in 0..coded.len() {
        let (decoded, ended) = decode([&coded[..end]]);
        assert!(text.starts_with(&decoded));
        pending += usize::from(ended.expect("no error"));
    }
    assert!(pending > coded.len() / 2, "{pending} of {}", coded.len());
}

/// Nothing that is broken is decoded in another way than the reference does, nor takes it down.
#[test]
fn what_is_broken_is_refused_or_reads_the_same() {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let (mut same, mut refused, mut stricter) = (0, 0, 0);
    for text in texts().into_iter().filter(|text| text.len() <= 5000) {
        for level in [1, 5, 19] {
            let coded = encode(&text, level, |_| {});
            for _ in 0..3000 {
                let mut broken = coded.clone();
                for _ in 0..1 + next() % 3 {
                    let at = next() as usize % broken.len();
                    broken[at] ^= 1 << (next() % 8);
                }
                let mut expected = Vec::new();
                let mut decoder = Decoder::new(&broken[..]).expect("a decoder");
                decoder.window_log_max(23).expect("a setting");
                let read = decoder.take(1 << 24).read_to_end(&mut expected);
                let (decoded, ended) = decode([&broken]);
                match (read, ended) {
                    (Ok(_), Ok(_)) => {
                        assert!(decoded == expected, "another text");
                        same += 1;
                    }
                    // The reference does not look whether a stream of literals ends with its last bit.
                    (Ok(_), Err(_)) => stricter += 1,
                    (Err(_), _) => refused += 1,
                }
            }
        }
    }
    assert!(
        same > 100 && refused > 100 && stricter * 10 < same,
        "{same} {refused} {stricter}"
    );
}

/// The taker says when it is enough, and much is not made before it can.
#[test]
fn a_bomb_is_handed_out_piece_by_piece() {
    let coded = encode(&vec![0; 64 << 20], 19, |_| {});
    assert!(coded.len() < 10_000);
    let mut allowed = 1 << 20;
    let taken = Zstd::new().decode(&coded, &mut |decoded| {
        assert!(decoded.len() <= BLOCK_BYTES_MAX);
        allowed -= decoded.len().min(allowed);
        if allowed == 0 {
            Err(Uninspected::UnfoldsTooFar)
        } else {
            Ok(())
        }
    });
    assert_eq!(taken, Err(Uninspected::UnfoldsTooFar));
}

/// What is remembered is bounded by the window, whatever goes through.
#[test]
fn the_window_bounds_what_is_remembered() {
    let text = texts().pop().expect("the largest");
    let coded = encode(&text, 1, |encoder| {
        encoder.window_log(17).expect("a setting");
    });
    let mut zstd = Zstd::new();
    for piece in coded.chunks(4096) {
        zstd.decode(piece, &mut |_| Ok(())).expect("well-formed");
        let bound = (1 << 17) + 2 * BLOCK_BYTES_MAX;
        assert!(zstd.text.bytes.capacity() <= bound);
    }
}
