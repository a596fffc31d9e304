use std::io::{Read, Write};

use super::*;
use crate::coding::Coding;

const KEY: &[u8] = b"sk-live-0123456789abcdef";

const CODINGS: [Coding; 4] = [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd];

/// `{"model":"m-1","you_sent":"Bearer KEY","usage":{"in":12,"out":345},"note":"sk-live keys are sk-live
/// keys"}` and a line's end, as zlib 1.3, brotli 1.1 and zstd 1.5 write it.
const VECTORS: [(Coding, &str); 9] = [
    (
        Coding::Gzip,
        "1f8b08000000000002034dcb4b0a83301405d0795711ee3801e3a7b56fd88d9454af45d404f22988b8f74e3ae8f4c039b085912b049bb1d0d8437926fa0cc1832e32aab49875fed054b66edaee7aebefee358c9ca051927b137260f6105b6b8492214ddb9d1a3e6442f0db6ae19e948b54ff80f3f205e385717480000000",
    ),
    (
        Coding::Deflate,
        "789c4dcb4b0a83301405d0795711ee3801e3a7b56fd88d9454af45d404f22988b8f74e3ae8f4c039b085912b049bb1d0d8437926fa0cc1832e32aab49875fed054b66edaee7aebefee358c9ca051927b137260f6105b6b8492214ddb9d1a3e6442f0db6ae19e948b54ff80f3f205f5572817",
    ),
    (
        Coding::Deflate,
        "4dcb4b0a83301405d0795711ee3801e3a7b56fd88d9454af45d404f22988b8f74e3ae8f4c039b085912b049bb1d0d8437926fa0cc1832e32aab49875fed054b66edaee7aebefee358c9ca051927b137260f6105b6b8492214ddb9d1a3e6442f0db6ae19e948b54ff80f3f205",
    ),
    (
        Coding::Brotli,
        "1b7f00808cd315f3a284751f21c92c04758df466f92bf54922a3755814fa82430ed803cdbee59061c485a6319b8f895f9c13e8659db8c73d5cf36103411e2ff922d656eeea239735dd302ddb713d3f4ed22c2f889c8d977a806e488cfb86e28fa4005bfb57f1920b001f",
    ),
    (
        Coding::Brotli,
        "8b3f000080aaaaaaeaffee9793029f55015c6df1458f7eba38a8bbb13b28a89a29808aaa021818181bc0816bb818ce017026ec0fac796182c36a2c34f6dcdec2adc2e1455f5894449342a7b9da619ce6dbfdf1f49fefc21f349af83fe10e840dce0e1ab955b8719a4f8d2d57c241a249a15345eea27ca1926852e85491bbe0bc0c",
    ),
    (
        Coding::Zstd,
        "28b52ffd00587503001287181c7069752614840edd86ec10c69403000a8300aaffff945ce6d5b98a08808677bea1438676be21ab1f9f736a2809a28ef2391d4bed183fea2fd84a272bbe2410ac40180894043956409dc134aa2d8287ec06aba3fb1ee49b4e5ecab1baf9f21c3f010200529003832c9801",
    ),
    (
        Coding::Zstd,
        "28b52ffd0068450300d246171960af0e5bad9c5954d4d15b832088539fbce87d32311d18d609c075d634b25a75c4ce6f3be5db450c02dfdef9061f5f42b7f8fdc47adfee74c32c11398c821804f802d71424b9a832da347672be955d953babb73f379d2f7533a75b010200341cc120c366",
    ),
    (
        Coding::Zstd,
        "28b52ffd04487503001287181c7069752614840edd86ec10c69403000a8300aaffff945ce6d5b98a08808677bea1438676be21ab1f9f736a2809a28ef2391d4bed183fea2fd84a272bbe2410ac40180894043956409dc134aa2d8287ec06aba3fb1ee49b4e5ecab1baf9f21c3f010200529003832c9801d4efb185",
    ),
    (
        Coding::Zstd,
        "28b52ffd00480104007b226d6f64656c223a226d2d31222c22796f755f73656e74223a2242656172657220736b2d6c6976652d30313233343536373839616263646566222c227573616765223a7b22696e223a31322c226f7574223a3334357d2c226e6f7465223a22736b2d6c697665206b6579732061726520736b2d6c697665206b657973227d0a",
    ),
];

/// Three events, each flushed, as the same libraries write them: `data: {"delta":"Hello"}`, `data:
/// {"delta":" world"}`, `data: [DONE]`. The last piece is the end.
const EVENTS: [(Coding, [&str; 4]); 3] = [
    (
        Coding::Gzip,
        [
            "1f8b08000000000000034a492c49b452a8564a49cd294954b252f248cdc9c957aae5e202000000ffff",
            "4a41935028cf2fca4901c900000000ffff",
            "82c844bbf8fbb9c6727101000000ffff",
            "0300419cf65441000000",
        ],
    ),
    (
        Coding::Brotli,
        [
            "0b0c80646174613a207b2264656c7461223a2248656c6c6f227d0a0a",
            "c800805f0a842c055944992c00851e6e1903",
            "6800805f5261ab2b09504493784941f83100",
            "03",
        ],
    ),
    (
        Coding::Zstd,
        [
            "28b52ffd0058c80000646174613a207b2264656c7461223a2248656c6c6f227d0a0a",
            "8400005020776f726c64227d0a0a01008c4c20",
            "700000646174613a205b444f4e455d0a0a",
            "010000",
        ],
    ),
];

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("a digit") as u8;
    let pairs = text.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

/// Encoders that can be asked for what they have so far.
enum Encoder {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Deflate(flate2::write::ZlibEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(::zstd::stream::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding) -> Self {
        let level = flate2::Compression::default();
        match coding {
            Coding::Gzip => Self::Gzip(flate2::write::GzEncoder::new(Vec::new(), level)),
            Coding::Deflate => Self::Deflate(flate2::write::ZlibEncoder::new(Vec::new(), level)),
            Coding::Brotli => Self::Brotli(Box::new(brotli::CompressorWriter::new(
                Vec::new(),
                4096,
                5,
                20,
            ))),
            Coding::Zstd => {
                Self::Zstd(::zstd::stream::Encoder::new(Vec::new(), 3).expect("an encoder"))
            }
        }
    }

    /// What it gives out for this text when it is flushed.
    fn flush(&mut self, text: &[u8]) -> Vec<u8> {
        let writer: &mut dyn Write = match self {
            Self::Gzip(encoder) => encoder,
            Self::Deflate(encoder) => encoder,
            Self::Brotli(encoder) => encoder,
            Self::Zstd(encoder) => encoder,
        };
        writer.write_all(text).expect("memory takes it");
        writer.flush().expect("memory takes it");
        core::mem::take(match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Deflate(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        })
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.finish().expect("memory takes it"),
            Self::Deflate(encoder) => encoder.finish().expect("memory takes it"),
            Self::Brotli(encoder) => encoder.into_inner(),
            Self::Zstd(encoder) => encoder.finish().expect("memory takes it"),
        }
    }
}

fn coded(coding: Coding, text: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(coding);
    let mut coded = encoder.flush(text);
    coded.extend(encoder.finish());
    coded
}

fn scrubber() -> Scrubber {
    Scrubber::of_secrets(&[KEY], &[])
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    out: Vec<u8>,
    hits: usize,
    uninspected: Option<Uninspected>,
}

/// What becomes of a body in these pieces, on a route that refuses what it cannot look into.
fn inspect(codings: Codings, pieces: &[&[u8]]) -> Outcome {
    let scrubber = scrubber();
    let mut inspector = Inspector::new(codings, &scrubber, OnHit::Redact);
    let mut outcome = Outcome {
        out: Vec::new(),
        hits: 0,
        uninspected: None,
    };
    for (at, piece) in pieces.iter().enumerate() {
        let passed = inspector.pass(&[piece], at + 1 == pieces.len());
        outcome.hits += passed.hits;
        outcome.uninspected = passed.uninspected;
        if outcome.hits > 0 || outcome.uninspected.is_some() {
            break;
        }
        outcome.out.extend_from_slice(passed.clean);
    }
    outcome
}

/// All of `body` passes.
fn passes(body: &[u8]) -> Outcome {
    Outcome {
        out: body.to_vec(),
        hits: 0,
        uninspected: None,
    }
}

/// What another decoder makes of a body that was broken off.
fn decoded(coding: Coding, body: &[u8]) -> Vec<u8> {
    let bare = match coding {
        Coding::Gzip => body.get(10..),
        Coding::Deflate if body.first() == Some(&0x78) => body.get(2..),
        Coding::Deflate => Some(body),
        Coding::Brotli => {
            let mut text = Vec::new();
            let mut decoder = Decoder::new(coding);
            let outcome = decoder.decode(body, &mut |piece| {
                text.extend_from_slice(piece);
                Ok(())
            });
            assert_eq!(outcome, Ok(()));
            return text;
        }
        Coding::Zstd => {
            let mut decoder = ::zstd::stream::Decoder::new(body).expect("a decoder");
            let mut text = Vec::new();
            let mut room = [0; 1024];
            while let Ok(read @ 1..) = decoder.read(&mut room) {
                text.extend_from_slice(&room[..read]);
            }
            return text;
        }
    };
    let mut decoder = flate2::Decompress::new(false);
    let mut text = vec![0; 64 * 1024];
    let status = decoder.decompress(
        bare.unwrap_or_default(),
        &mut text,
        flate2::FlushDecompress::Sync,
    );
    assert!(status.is_ok() || bare.is_none_or(<[u8]>::is_empty));
    text.truncate(decoder.total_out() as usize);
    text
}

#[test]
fn what_real_encoders_wrote_is_read() {
    for (coding, hex) in VECTORS {
        let body = unhex(hex);
        let text = decoded(coding, &body);
        assert!(text.starts_with(b"{\"model\":\"m-1\",\"you_sent\":\"Bearer sk-live"));
        assert!(text.ends_with(b"\"note\":\"sk-live keys are sk-live keys\"}\n"));
        let codings = Codings::one(coding);
        for cut in 0..=body.len() {
            let (before, after) = body.split_at(cut);
            let outcome = inspect(codings, &[before, after]);
            assert_eq!(
                (outcome.hits, outcome.uninspected),
                (1, None),
                "{coding:?} at {cut}"
            );
            assert!(body.starts_with(&outcome.out), "{coding:?} at {cut}");
            let left = decoded(coding, &outcome.out);
            assert!(
                memchr::memmem::find(&left, b"Bearer s").is_none(),
                "{coding:?} at {cut}: {:?} went out",
                String::from_utf8_lossy(&left)
            );
        }
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(inspect(codings, &bytes).hits, 1, "{coding:?} byte by byte");
        // And what is not the key passes.
        let scrubber = Scrubber::of_secrets(&[b"sk-live-0123456789abcdeg"], &[]);
        for size in [1, 7, body.len()] {
            let mut inspector = Inspector::new(codings, &scrubber, OnHit::Redact);
            let mut out = Vec::new();
            for piece in body.chunks(size) {
                out.extend_from_slice(inspector.pass(&[piece], false).clean);
            }
            out.extend_from_slice(inspector.pass(&[], true).clean);
            assert_eq!((out, inspector.hits()), (body.clone(), 0), "{coding:?}");
        }
    }
}

/// An event that its sender has flushed leaves at once.
#[test]
fn flushed_events_do_not_wait() {
    for (coding, events) in EVENTS {
        let scrubber = scrubber();
        let mut inspector = Inspector::new(Codings::one(coding), &scrubber, OnHit::Redact);
        let mut whole = Vec::new();
        for event in events {
            let event = unhex(event);
            let passed = inspector.pass(&[&event], false);
            assert_eq!((passed.clean, passed.uninspected), (&event[..], None));
            whole.extend_from_slice(&event);
        }
        let text = decoded(coding, &whole);
        assert!(text.ends_with(b"data: {\"delta\":\" world\"}\n\ndata: [DONE]\n\n"));
    }
    for coding in CODINGS {
        let scrubber = scrubber();
        let mut inspector = Inspector::new(Codings::one(coding), &scrubber, OnHit::Redact);
        let mut encoder = Encoder::new(coding);
        for number in 0..50 {
            let event = encoder.flush(format!("data: {number} sk-live-0123\n\n").as_bytes());
            assert_eq!(
                inspector.pass(&[&event], false).clean,
                event,
                "{coding:?} {number}"
            );
        }
        let event = encoder.flush(&[b"data: ", KEY, b"\n\n"].concat());
        assert_eq!(inspector.pass(&[&event], false).hits, 1);
    }
}

#[test]
fn codings_on_top_of_each_other() {
    let text = [b"{\"you_sent\":\"", KEY, b"\"}"].concat();
    let other = text.to_ascii_uppercase();
    for inner in CODINGS {
        for outer in CODINGS {
            let codings = Codings::one(inner).and(outer).expect("two are allowed");
            let body = coded(outer, &coded(inner, &text));
            for cut in 0..body.len() {
                let (before, after) = body.split_at(cut);
                assert_eq!(
                    inspect(codings, &[before, after]).hits,
                    1,
                    "{codings:?} at {cut}"
                );
            }
            let body = coded(outer, &coded(inner, &other));
            let pieces: Vec<&[u8]> = body.chunks(3).collect();
            assert_eq!(inspect(codings, &pieces), passes(&body), "{codings:?}");
        }
    }
}

/// What is clean passes as it came, and what waits is let go when the body ends.
#[test]
fn what_is_clean_passes_as_it_came() {
    let mut text = b"data: sk-live-0123 \\u0073\n\n".repeat(300);
    text.extend_from_slice(&KEY[..20]);
    for coding in CODINGS {
        let body = coded(coding, &text);
        for size in [1, 7, 1000, body.len()] {
            let pieces: Vec<&[u8]> = body.chunks(size).collect();
            assert_eq!(inspect(Codings::one(coding), &pieces), passes(&body));
        }
        // Several parts at once are one piece.
        let scrubber = scrubber();
        let mut inspector = Inspector::new(Codings::one(coding), &scrubber, OnHit::Redact);
        let parts: Vec<&[u8]> = body.chunks(50).collect();
        let mut out = inspector.pass(&parts, false).clean.to_vec();
        assert!(
            inspector.is_holding(),
            "it ends in the beginning of the key"
        );
        out.extend_from_slice(inspector.pass(&[], true).clean);
        assert_eq!(out, body);
    }
}

#[test]
fn a_body_that_ends_early_is_no_error() {
    for coding in CODINGS {
        let body = coded(coding, b"hello, world");
        for end in 0..body.len() {
            let body = &body[..end];
            assert_eq!(inspect(Codings::one(coding), &[body]), passes(body));
        }
    }
}

#[test]
fn gzip_headers_and_members() {
    let gzip = Codings::one(Coding::Gzip);
    let text = [b"you sent ", KEY].concat();
    let with_header = |name: &str, text: &[u8]| {
        let mut encoder = flate2::GzBuilder::new()
            .extra(vec![7; 300])
            .filename(name)
            .comment("a comment")
            .write(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    };
    let first = with_header("name", b"hello");
    // Its flags say that a checksum of the header follows.
    let mut sum = coded(Coding::Gzip, b"hello");
    sum[3] |= 1 << 1;
    sum.splice(10..10, [0xab, 0xcd]);
    for before in [first, sum] {
        let clean = [&before[..], &before].concat();
        let body = [&before[..], &coded(Coding::Gzip, &text)].concat();
        for cut in 0..=body.len() {
            let (head, tail) = body.split_at(cut);
            assert_eq!(inspect(gzip, &[head, tail]).hits, 1, "at {cut}");
            let (head, tail) = clean.split_at(cut.min(clean.len()));
            assert_eq!(inspect(gzip, &[head, tail]), passes(&clean), "at {cut}");
        }
    }
    // A key where no decoder looks for text.
    let name = core::str::from_utf8(KEY).expect("text");
    let hidden = with_header(name, b"hello");
    for cut in 0..hidden.len() {
        let (head, tail) = hidden.split_at(cut);
        let outcome = inspect(gzip, &[head, tail]);
        assert_eq!(outcome.hits, 1, "at {cut}");
        assert!(
            memchr::memmem::find(&outcome.out, &KEY[..8]).is_none(),
            "at {cut}"
        );
    }
}

#[test]
fn lies_are_told() {
    let malformed = |coding, body: &[u8]| {
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        for pieces in [&[body][..], &bytes] {
            let outcome = inspect(Codings::one(coding), pieces);
            assert_eq!(
                outcome.uninspected,
                Some(Uninspected::Malformed),
                "{coding:?}"
            );
            assert!(outcome.out.len() < body.len());
        }
    };
    for coding in CODINGS {
        malformed(coding, b"not coded at all, whatever it says");
        // Something behind the end.
        malformed(coding, &[&coded(coding, b"hello")[..], b"?"].concat());
    }
    // Reserved flags, and another method than deflate.
    let gzip = coded(Coding::Gzip, b"hello");
    for (at, byte) in [(3, 0x20), (3, 0x80), (2, 7)] {
        let mut body = gzip.clone();
        body[at] = byte;
        malformed(Coding::Gzip, &body);
    }
    // A window of 2^30, which RFC 7932 does not know.
    malformed(Coding::Brotli, &[0x11, 0x1e, 0x03, 0x03]);
}

#[test]
fn bombs_are_not_unfolded() {
    for coding in CODINGS {
        let bomb = coded(coding, &vec![b'0'; 8 << 20]);
        let outcome = inspect(Codings::one(coding), &[&bomb]);
        assert_eq!(
            outcome.uninspected,
            Some(Uninspected::UnfoldsTooFar),
            "{coding:?}"
        );
        // In small pieces, too, and at the end of much that was none.
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let mut text: Vec<u8> = (0..1 << 20).map(|_| noise()).collect();
        text.resize(24 << 20, b'0');
        let body = coded(coding, &text);
        let pieces: Vec<&[u8]> = body.chunks(16 * 1024).collect();
        let outcome = inspect(Codings::one(coding), &pieces);
        assert_eq!(
            outcome.uninspected,
            Some(Uninspected::UnfoldsTooFar),
            "{coding:?}"
        );
        assert!(
            outcome.out.len() >= 1 << 19,
            "{coding:?}: {}",
            outcome.out.len()
        );
        // What is small may be anything.
        let small = coded(coding, &vec![b'0'; 1 << 20]);
        assert_eq!(inspect(Codings::one(coding), &[&small]), passes(&small));
        // A bomb in a coding that is a bomb itself.
        let twice = Codings::one(coding).and(Coding::Gzip).expect("two");
        let outcome = inspect(twice, &[&coded(Coding::Gzip, &bomb)]);
        assert_eq!(
            outcome.uninspected,
            Some(Uninspected::UnfoldsTooFar),
            "{coding:?}"
        );
    }
}

/// Blocks of no text behind the beginning of a key.
#[test]
fn not_everything_may_wait() {
    let scrubber = scrubber();
    let codings = Codings::one(Coding::Gzip);
    let mut inspector = Inspector::new(codings, &scrubber, OnHit::Redact);
    let mut encoder = Encoder::new(Coding::Gzip);
    let begun = encoder.flush(b"hello sk-live");
    let mut sent = begun.len();
    let mut out = inspector.pass(&[&begun], false).clean.to_vec();
    let nothing = [0, 0, 0, 0xff, 0xff].repeat(1000);
    let uninspected = loop {
        let passed = inspector.pass(&[&nothing], false);
        sent += nothing.len();
        if let Some(why) = passed.uninspected {
            // A route that lets such bodies pass gets all of it.
            out.extend_from_slice(passed.clean);
            break why;
        }
        assert_eq!(passed.clean, b"");
        assert!(inspector.held.len() <= HELD_BYTES_MAX);
    };
    assert_eq!(uninspected, Uninspected::HeldTooMuch);
    assert_eq!(out.len(), sent);
    assert!(sent > HELD_BYTES_MAX);
}

/// What is not decoded is searched as it is.
#[test]
fn the_blind_search_on() {
    let scrubber = scrubber();
    let mut inspector = Inspector::new(Codings::one(Coding::Gzip), &scrubber, OnHit::Redact);
    let passed = inspector.pass(&[b"no gzip"], false);
    assert_eq!(passed.clean, b"no gzip");
    assert_eq!(passed.uninspected, Some(Uninspected::Malformed));
    let blind = Inspector::blind(&scrubber, OnHit::Redact);
    for mut inspector in [inspector, blind] {
        let passed = inspector.pass(&[b"any thing ", &KEY[..20]], false);
        assert_eq!(passed.clean, b"any thing ");
        assert_eq!(passed.uninspected, None);
        assert_eq!(inspector.pass(&[b"."], false).clean.len(), 21);
        let passed = inspector.pass(&[KEY], false);
        assert_eq!((passed.clean, passed.hits), (&b""[..], 1));
    }
}

#[test]
fn reported_hits_pass() {
    let text = [b"{\"you_sent\":\"", KEY, b"\"}"].concat();
    let scrubber = scrubber();
    for coding in CODINGS {
        let body = coded(coding, &text);
        let mut inspector = Inspector::new(Codings::one(coding), &scrubber, OnHit::Report);
        for byte in body.chunks(1) {
            assert_eq!(inspector.pass(&[byte], false).clean, byte);
        }
        assert_eq!(inspector.hits(), 1);
        assert!(!inspector.is_holding());
    }
}

/// Uncompressed text counts once.
#[test]
fn a_key_in_a_stored_block_counts_once() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(KEY).expect("memory takes it");
    let body = encoder.finish().expect("memory takes it");
    assert!(memchr::memmem::find(&body, KEY).is_some());
    assert_eq!(inspect(Codings::one(Coding::Gzip), &[&body]).hits, 1);
}

#[test]
fn debug_shows_nothing_of_the_body() {
    let scrubber = scrubber();
    let mut inspector = Inspector::new(Codings::one(Coding::Gzip), &scrubber, OnHit::Redact);
    inspector.pass(&[&coded(Coding::Gzip, &KEY[..20])], false);
    let shown = format!("{inspector:?}");
    assert!(
        shown.starts_with("Inspector { decoders: 1, held: "),
        "{shown}"
    );
}

/// Blocks that come in pieces of any size wait for their ends and no longer, however many follow each other.
#[test]
fn large_bodies_flow() {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut text = Vec::new();
    for number in 0..30_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        text.extend_from_slice(
            format!("{{\"id\": \"{random:016x}\", \"at\": {number}}},\n").as_bytes(),
        );
    }
    for coding in CODINGS {
        for codings in [
            Codings::one(coding),
            Codings::one(coding).and(Coding::Gzip).expect("two"),
            Codings::one(Coding::Gzip).and(coding).expect("two"),
            Codings::one(coding).and(coding).expect("two"),
        ] {
            let mut body = text.clone();
            for &coding in codings.applied() {
                body = coded(coding, &body);
            }
            for size in [700, 4096, 16 * 1024, 60_000] {
                let pieces: Vec<&[u8]> = body.chunks(size).collect();
                assert!(
                    inspect(codings, &pieces) == passes(&body),
                    "{codings:?} in pieces of {size}"
                );
            }
        }
    }
}
