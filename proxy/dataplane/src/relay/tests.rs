use std::io::Write;
use std::net::{Shutdown, TcpStream};

use futures_util::future::join;
use wire::names::NameSet;

use super::*;
use crate::test_support::{
    Bench, KEY, LONG, arrived, credential, elsewhere, is_quiet, on_each_driver, pattern,
    read_exactly, until,
};
use crate::transport::Transport;

/// What must become of a body.
#[derive(Debug, Clone, Copy)]
enum Expected {
    /// These bytes and these trailer lines.
    Whole(&'static str, &'static str),
    /// The source broke off.
    CutShort,
    /// The source broke the framing.
    Malformed,
    /// It is larger than ten bytes.
    TooLarge,
}

use Expected::{CutShort, Malformed, TooLarge, Whole};

/// Bodies may be so large here.
const BYTES_MAX: u64 = 10;

fn body(framing: BodyFraming, writer: BodyWriter, strip: &NameSet) -> Body<'_> {
    Body {
        reader: BodyReader::new(framing),
        writer,
        bytes: 0,
        bytes_max: BYTES_MAX,
        pace: None,
        strip_trailers: strip,
        search: None,
    }
}

/// Data and trailers of a chunked body that must be whole, by an independent reader.
#[track_caller]
fn unchunk(mut text: &str) -> (String, String) {
    let mut data = String::new();
    loop {
        let (size, rest) = text.split_once("\r\n").expect("a size line");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            let trailers = match rest {
                "\r\n" => "",
                _ => rest.strip_suffix("\r\n").expect("an empty line at the end"),
            };
            return (data, trailers.to_owned());
        }
        let (chunk, rest) = rest.split_at(size);
        data.push_str(chunk);
        text = rest.strip_prefix("\r\n").expect("the chunk's end");
    }
}

/// Carries `input` for every way of splitting it into what came along with the head
/// and what comes later; the source then closes if it is `closing`.
async fn check(
    bench: &Bench,
    framing: BodyFraming,
    writer: BodyWriter,
    input: &str,
    closing: bool,
    expected: Expected,
) {
    let strip = NameSet::new(["x-api-key"]);
    // Connections on which everything went well carry the next body too.
    let mut kept = None;
    for split in 0..=input.len() {
        let (with_head, later) = input.as_bytes().split_at(split);
        let context = format!("{framing:?} to {writer:?}, {input:?} split at {split}");
        let (mut from, mut source, mut to, mut sink) = match kept.take() {
            Some(kept) => kept,
            None => pairs(bench).await,
        };
        let mut body = body(framing, writer, &strip);
        let mut first = Vec::new();
        let copied = body.copy_into(with_head, &mut first);
        let carried = match copied {
            Ok(used) => {
                assert!(
                    used == with_head.len() || body.reader.is_done(),
                    "{context}"
                );
                let mut outgoing = to.outgoing();
                outgoing.write(&[&first]).expect("clear text");
                source.write_all(later).expect("it is open");
                if closing {
                    source.shutdown(Shutdown::Write).expect("it is open");
                }
                body.carry(&mut from.incoming(), &mut outgoing, LONG, LONG)
                    .await
            }
            Err(error) => Err(error),
        };
        let out = String::from_utf8(arrived(&mut sink)).expect("text");
        match (carried, expected) {
            (Ok(()), Whole(data, trailers)) => {
                match writer {
                    BodyWriter::Plain => assert_eq!(out, data, "{context}"),
                    BodyWriter::Chunked => {
                        assert_eq!(unchunk(&out), (data.into(), trailers.into()), "{context}");
                    }
                }
                assert_eq!(body.bytes, data.len() as u64, "{context}");
                assert!(body.reader.is_done(), "{context}");
                if !closing && !from.incoming().has_leftover() {
                    kept = Some((from, source, to, sink));
                }
            }
            (Err(error), expected) => {
                let fits = match &error {
                    BodyError::Source(error) => {
                        error.kind() == io::ErrorKind::UnexpectedEof && matches!(expected, CutShort)
                    }
                    BodyError::Framing => matches!(expected, Malformed),
                    BodyError::TooLarge => matches!(expected, TooLarge),
                    BodyError::Sink | BodyError::Echo | BodyError::Uninspected => false,
                };
                assert!(fits, "{error:?} instead of {expected:?}: {context}");
                // Nothing that is not whole may look whole.
                assert!(
                    writer == BodyWriter::Plain || !out.contains("0\r\n\r\n"),
                    "{out:?}: {context}"
                );
                assert!(
                    out.len() < 60 && body.bytes <= 2 * BYTES_MAX + 10,
                    "{context}"
                );
            }
            (Ok(()), expected) => panic!("{out:?} instead of {expected:?}: {context}"),
        }
    }
}

#[test]
fn lengths() {
    on_each_driver(async || {
        let bench = Bench::new();
        for writer in [BodyWriter::Plain, BodyWriter::Chunked] {
            for (length, input, closing, expected) in [
                (0, "", false, Whole("", "")),
                (5, "hello", false, Whole("hello", "")),
                (5, "hello", true, Whole("hello", "")),
                // What follows is the next message's.
                (5, "helloHTTP/1.1 200", false, Whole("hello", "")),
                (10, "0123456789", false, Whole("0123456789", "")),
                (5, "hell", true, CutShort),
                (5, "", true, CutShort),
                (11, "0123456789a", false, TooLarge),
            ] {
                check(
                    &bench,
                    BodyFraming::Length(length),
                    writer,
                    input,
                    closing,
                    expected,
                )
                .await;
            }
        }
    });
}

#[test]
fn chunks() {
    on_each_driver(async || {
        let bench = Bench::new();
        for writer in [BodyWriter::Chunked, BodyWriter::Plain] {
            for (input, closing, expected) in [
                ("0\r\n\r\n", false, Whole("", "")),
                ("5\r\nhello\r\n0\r\n\r\n", false, Whole("hello", "")),
                ("1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", false, Whole("abc", "")),
                (
                    "5;x=\"y\"\r\nhello\r\n000\r\n\r\n",
                    true,
                    Whole("hello", ""),
                ),
                ("5\r\nhello\r\n0\r\n\r\nHTTP/1.1", false, Whole("hello", "")),
                (
                    "A\r\n0123456789\r\n0\r\n\r\n",
                    false,
                    Whole("0123456789", ""),
                ),
                ("5\r\nhello\r\n", true, CutShort),
                ("5\r\nhello\r\n0\r\n", true, CutShort),
                ("5\r\nhel", true, CutShort),
                ("", true, CutShort),
                ("5\nhello\r\n0\r\n\r\n", false, Malformed),
                ("x\r\n", false, Malformed),
                ("3\r\nhello\r\n0\r\n\r\n", false, Malformed),
                ("b\r\n0123456789a\r\n0\r\n\r\n", false, TooLarge),
                ("6\r\n012345\r\n6\r\n678901\r\n0\r\n\r\n", false, TooLarge),
            ] {
                check(
                    &bench,
                    BodyFraming::Chunked,
                    writer,
                    input,
                    closing,
                    expected,
                )
                .await;
            }
        }
    });
}

#[test]
fn trailers() {
    on_each_driver(async || {
        let bench = Bench::new();
        for (input, expected) in [
            (
                "1\r\na\r\n0\r\nX-Sum: 7\r\n\r\n",
                Whole("a", "X-Sum: 7\r\n"),
            ),
            (
                "0\r\nX-Sum: 7\r\nGrpc-Status: 0\r\n\r\n",
                Whole("", "X-Sum: 7\r\nGrpc-Status: 0\r\n"),
            ),
            // A slot for keys, a field that frames, one that authenticates.
            (
                "0\r\nX_Api_Key: k\r\nX-Sum: 7\r\nx-api-key: k\r\n\r\n",
                Whole("", "X-Sum: 7\r\n"),
            ),
            (
                "0\r\nContent-Length: 3\r\nAuthorization: k\r\nHost: x\r\n\r\n",
                Whole("", ""),
            ),
            ("0\r\nX-Sum : 7\r\n\r\n", Malformed),
            ("0\r\nX-Sum: 7\n\r\n", Malformed),
        ] {
            check(
                &bench,
                BodyFraming::Chunked,
                BodyWriter::Chunked,
                input,
                false,
                expected,
            )
            .await;
        }
    });
}

/// A trailer is the last place in which an upstream could hand out the key.
#[test]
fn trailers_with_the_key_are_dropped() {
    on_each_driver(async || {
        let bench = Bench::new();
        let strip = NameSet::default();
        let credential = credential();
        let hex: String = KEY.bytes().map(|byte| format!("{byte:02x}")).collect();
        for (trailers, passes) in [
            ("X-Sum: 7\r\n".to_owned(), true),
            (format!("X-Sum: 7\r\nX-Echo: Bearer {KEY}\r\n"), false),
            (format!("X-{KEY}: 1\r\n"), false),
            (format!("X-Echo: {hex}\r\n"), false),
        ] {
            let text = format!("1\r\na\r\n0\r\n{trailers}\r\n");
            for split in [0, 6, text.len() - 10, text.len()] {
                let (mut from, mut source) = bench.socket().await;
                let (mut to, mut sink) = bench.socket().await;
                let mut body = Body {
                    search: Some(Search::new(credential.scrubber(), OnEcho::Redact)),
                    ..body(BodyFraming::Chunked, BodyWriter::Chunked, &strip)
                };
                let mut first = Vec::new();
                body.copy_into(&text.as_bytes()[..split], &mut first)
                    .expect("good chunks");
                let mut outgoing = to.outgoing();
                outgoing.write(&[&first]).expect("clear text");
                source.write_all(&text.as_bytes()[split..]).expect("open");
                body.carry(&mut from.incoming(), &mut outgoing, LONG, LONG)
                    .await
                    .expect("good chunks");
                let out = String::from_utf8(arrived(&mut sink)).expect("text");
                let expected = if passes { &*trailers } else { "" };
                assert_eq!(unchunk(&out), ("a".to_owned(), expected.to_owned()));
                assert_eq!(body.hits(), usize::from(!passes));
                assert!(!out.contains(KEY));
            }
        }
    });
}

#[test]
fn until_the_connection_ends() {
    on_each_driver(async || {
        let bench = Bench::new();
        for writer in [BodyWriter::Plain, BodyWriter::Chunked] {
            for (input, expected) in [
                ("", Whole("", "")),
                ("hello", Whole("hello", "")),
                ("0\r\n\r\n", Whole("0\r\n\r\n", "")),
                ("0123456789a", TooLarge),
            ] {
                check(
                    &bench,
                    BodyFraming::UntilClose,
                    writer,
                    input,
                    true,
                    expected,
                )
                .await;
            }
        }
    });
}

/// With TLS the end must be said: a FIN can come from anybody on the way.
#[test]
fn a_fin_does_not_end_a_body_under_tls() {
    on_each_driver(async || {
        let bench = Bench::new();
        let strip = NameSet::default();
        for says_goodbye in [true, false] {
            let (mut from, mut source) = bench.client().await;
            let (mut to, mut sink) = bench.socket().await;
            source.write_all(b"hello").expect("it is open");
            if says_goodbye {
                source.conn.send_close_notify();
                source.flush().expect("it is open");
            }
            source.sock.shutdown(Shutdown::Write).expect("it is open");
            let mut body = body(BodyFraming::UntilClose, BodyWriter::Chunked, &strip);
            let carried = body
                .carry(&mut from.incoming(), &mut to.outgoing(), LONG, LONG)
                .await;
            let out = arrived(&mut sink);
            if says_goodbye {
                carried.expect("a clean end");
                assert_eq!(out, b"5\r\nhello\r\n0\r\n\r\n");
            } else {
                assert!(matches!(carried, Err(BodyError::Source(_))));
                assert_eq!(out, b"5\r\nhello\r\n");
            }
        }
    });
}

/// Small chunks of the source become few of ours, and none of its bytes are lost.
#[test]
fn many_small_chunks_are_gathered() {
    on_each_driver(async || {
        let bench = Bench::new();
        let strip = NameSet::default();
        let text = pattern(10 * PARTS_MAX + 7);
        let mut input = Vec::new();
        for byte in &text {
            input.extend_from_slice(&[b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
        }
        input.extend_from_slice(b"0\r\n\r\n");
        let (mut from, mut source) = bench.socket().await;
        let (mut to, mut sink) = bench.socket().await;
        source.write_all(&input).expect("it fits");
        let mut body = Body {
            bytes_max: u64::MAX,
            pace: None,
            ..body(BodyFraming::Chunked, BodyWriter::Chunked, &strip)
        };
        body.carry(&mut from.incoming(), &mut to.outgoing(), LONG, LONG)
            .await
            .expect("good chunks");
        assert_eq!(body.bytes, text.len() as u64);
        let out = arrived(&mut sink);
        assert!(out.len() < text.len() + 12 * 8, "{} bytes", out.len());
        // Plain, it is the text itself.
        let (mut from, mut source) = bench.socket().await;
        let (mut to, mut sink) = bench.socket().await;
        source.write_all(&input).expect("it fits");
        let mut body = Body {
            writer: BodyWriter::Plain,
            reader: BodyReader::new(BodyFraming::Chunked),
            ..body
        };
        body.carry(&mut from.incoming(), &mut to.outgoing(), LONG, LONG)
            .await
            .expect("good chunks");
        assert_eq!(arrived(&mut sink), text);
    });
}

#[test]
fn events_do_not_wait_for_one_another() {
    on_each_driver(async || {
        let bench = Bench::new();
        let strip = NameSet::default();
        let (mut from, mut source) = bench.socket().await;
        let (mut to, mut sink) = bench.socket().await;
        let mut body = Body {
            bytes_max: u64::MAX,
            pace: None,
            ..body(BodyFraming::UntilClose, BodyWriter::Plain, &strip)
        };
        let (mut incoming, mut outgoing) = (from.incoming(), to.outgoing());
        let (carried, ()) = join(
            body.carry(&mut incoming, &mut outgoing, LONG, LONG),
            async {
                for event in 0..40u8 {
                    let event = [b'a' + event % 26; 9];
                    source.write_all(&event).expect("it is open");
                    until(|| !is_quiet(&sink)).await;
                    assert_eq!(read_exactly(&mut sink, 9), event);
                }
                source.shutdown(Shutdown::Write).expect("it is open");
            },
        )
        .await;
        carried.expect("a clean end");
    });
}

/// More than all buffers on the way hold: the source waits for the sink.
#[test]
fn a_large_body_passes() {
    const LARGE: usize = 24 * 1024 * 1024 + 5;
    on_each_driver(async || {
        let bench = Bench::new();
        let strip = NameSet::default();
        let (mut from, source) = bench.socket().await;
        let (mut to, sink) = bench.socket().await;
        let sending = elsewhere(move || {
            let mut source = source;
            source.write_all(&pattern(LARGE)).expect("it is taken");
            source
        });
        let receiving = elsewhere(move || {
            let mut sink = sink;
            assert!(read_exactly(&mut sink, LARGE) == pattern(LARGE));
        });
        let mut body = Body {
            bytes_max: u64::MAX,
            pace: None,
            ..body(BodyFraming::Length(LARGE as u64), BodyWriter::Plain, &strip)
        };
        let (mut incoming, mut outgoing) = (from.incoming(), to.outgoing());
        let carrying = body.carry(&mut incoming, &mut outgoing, LONG, LONG);
        let (carried, _) = join(carrying, join(sending, receiving)).await;
        carried.expect("it is all there");
        assert_eq!(body.bytes, LARGE as u64);
    });
}

async fn pairs(bench: &Bench) -> (Transport, TcpStream, Transport, TcpStream) {
    let (from, source) = bench.socket().await;
    let (to, sink) = bench.socket().await;
    (from, source, to, sink)
}

#[test]
fn either_end_may_be_too_slow() {
    on_each_driver(async || {
        let bench = Bench::new();
        let strip = NameSet::default();
        let limit = Duration::from_secs(5);
        let (mut from, mut source, mut to, mut sink) = pairs(&bench).await;
        let mut slow = body(BodyFraming::Length(9), BodyWriter::Plain, &strip);
        let (mut incoming, mut outgoing) = (from.incoming(), to.outgoing());
        let (carried, ()) = join(
            slow.carry(&mut incoming, &mut outgoing, limit, LONG),
            async {
                // Each read has the whole time.
                for now_ms in [4_000, 8_000] {
                    source.write_all(b"abc").expect("it is open");
                    until(|| !is_quiet(&sink)).await;
                    assert_eq!(read_exactly(&mut sink, 3), b"abc");
                    bench.tick.sweep_at(now_ms, false);
                }
                bench.tick.sweep_at(20_000, false);
            },
        )
        .await;
        assert!(
            matches!(&carried, Err(BodyError::Source(error)) if error.kind() == io::ErrorKind::TimedOut),
            "{carried:?}"
        );

        let (mut from, source, mut to, sink) = pairs(&bench).await;
        let mut large = Body {
            bytes_max: u64::MAX,
            pace: None,
            ..body(BodyFraming::UntilClose, BodyWriter::Plain, &strip)
        };
        // It is given up by the sink's end, which nobody reads.
        let sending = elsewhere(move || {
            let mut source = source;
            let _ = source.write_all(&pattern(32 * 1024 * 1024));
        });
        let carrying = async {
            let carried = {
                let (mut incoming, mut outgoing) = (from.incoming(), to.outgoing());
                let carrying = large.carry(&mut incoming, &mut outgoing, LONG, limit);
                let late = async {
                    let mut now_ms = bench.tick.now_ms();
                    loop {
                        rt::sleep(Duration::from_millis(20)).await;
                        now_ms += 6_000;
                        bench.tick.sweep_at(now_ms, false);
                    }
                };
                let (carrying, late) = (std::pin::pin!(carrying), std::pin::pin!(late));
                match futures_util::future::select(carrying, late).await {
                    futures_util::future::Either::Left((carried, _)) => carried,
                    futures_util::future::Either::Right(((), _)) => unreachable!("it loops"),
                }
            };
            drop(from);
            carried
        };
        let (carried, ()) = join(carrying, sending).await;
        assert!(matches!(carried, Err(BodyError::Sink)), "{carried:?}");
        assert!(to.watch().is_send_late());
        drop(sink);
    });
}

#[test]
fn a_sink_that_is_gone() {
    on_each_driver(async || {
        let bench = Bench::new();
        let strip = NameSet::default();
        let (mut from, source, mut to, sink) = pairs(&bench).await;
        drop(sink);
        let mut body = Body {
            bytes_max: u64::MAX,
            pace: None,
            ..body(BodyFraming::UntilClose, BodyWriter::Plain, &strip)
        };
        let sending = elsewhere(move || {
            let mut source = source;
            let _ = source.write_all(&pattern(32 * 1024 * 1024));
        });
        let carrying = async {
            let carried = body
                .carry(&mut from.incoming(), &mut to.outgoing(), LONG, LONG)
                .await;
            drop(from);
            carried
        };
        let (carried, ()) = join(carrying, sending).await;
        assert!(matches!(carried, Err(BodyError::Sink)), "{carried:?}");
    });
}

#[test]
fn a_body_must_keep_up_after_its_grace() {
    let mut pace = Pace::new(100, Duration::from_secs(10)).expect("a rate");
    assert!(pace.keeps_up(10_000, 0), "the grace");
    assert!(pace.keeps_up(1_000, 100));
    assert!(!pace.keeps_up(10, 100), "one byte more was due");
    assert!(pace.keeps_up(0, 101));
    // Many bytes at first are credit for later.
    assert!(pace.keeps_up(100_000, 20_000));
    assert_eq!(Pace::new(0, Duration::ZERO), None, "any rate will do");
}
