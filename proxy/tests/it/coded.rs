//! Nothing leaks back in compressed answers either: they are decoded to be searched, and pass as they
//! came or not at all. What cannot be searched is refused, or marked where the route says so. The judge
//! is curl, which decodes what it gets as callers do.

use std::io::Write;
use std::sync::{Mutex, mpsc};

use crate::echo::{curl, site_with};
use crate::harness::leak::Leak;
use crate::harness::scripted::Peer;
use crate::harness::world::{HOST, bearer_route};
use crate::harness::{Scripted, World};
use crate::reload::rename_over;

/// Codes a text: all of it, or what is flushed after each part.
type Code = fn(&[u8]) -> Vec<u8>;
type CodeParts = Box<dyn FnMut(&[u8]) -> Vec<u8>>;

/// Ways of coding a body, with what Content-Encoding says of them.
const CODINGS: [(&str, Code); 9] = [
    ("gzip", gzip),
    ("x-gzip", gzip),
    ("deflate", zlib),
    ("deflate", bare_deflate),
    ("br", brotli),
    ("zstd", zstd),
    ("gzip, br", |text| brotli(&gzip(text))),
    ("br, zstd", |text| zstd(&brotli(text))),
    ("deflate, gzip", |text| gzip(&zlib(text))),
];

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn zlib(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn bare_deflate(text: &[u8]) -> Vec<u8> {
    let mut encoder =
        flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn brotli(text: &[u8]) -> Vec<u8> {
    let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
    encoder.write_all(text).expect("memory takes it");
    encoder.into_inner()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    zstd::encode_all(text, 3).expect("memory takes it")
}

pub(crate) fn target(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}

/// What comes before and after the key is long enough for it to be cut off, and to be compressed.
fn text_with(secret: &str) -> String {
    let items: String = (0..40)
        .map(|number| format!("{{\"id\": {number}, \"state\": \"open\"}}, "))
        .collect();
    format!("[{items}{{\"you_sent\": \"{secret}\"}}, {items}null]\n")
}

/// In how many ways [`send_body`] sends.
const WAYS: usize = 3;

/// Sends a body: whole with its head, in chunks of a byte, or with a length in many pieces.
fn send_body(peer: &mut Peer, coding: &str, body: &[u8], way: usize) {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\n");
    let length = format!("Content-Length: {}\r\n\r\n", body.len());
    match way {
        0 => {
            peer.send([head.as_bytes(), length.as_bytes(), body].concat());
        }
        1 => {
            let mut all = head.into_bytes();
            all.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for &byte in body {
                all.extend_from_slice(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']);
            }
            all.extend_from_slice(b"0\r\n\r\n");
            peer.send(all);
        }
        _ => {
            peer.send([head, length].concat());
            for piece in body.chunks(10) {
                peer.send(piece);
            }
        }
    }
}

/// Which of [`CODINGS`] a test's number stands for, and in which way the body is sent. curl takes bare
/// deflate for what it is only if it gets its first bytes at once.
fn numbered(number: usize) -> (&'static str, Code, usize) {
    const BARE: usize = 3;
    let (coding, code) = CODINGS[number / WAYS];
    let way = if number / WAYS == BARE {
        0
    } else {
        number % WAYS
    };
    (coding, code, way)
}

/// `/clean/3`, `/key/3`: the coding times [`WAYS`], plus the way.
fn send_numbered(peer: &mut Peer, head: &str, key: &str) {
    let (kind, number) = target(head)[1..].split_once('/').expect("/kind/number");
    let number: usize = number.parse().expect("a number");
    let (coding, code, way) = numbered(number);
    let text = text_with(if kind == "key" { key } else { "nothing" });
    send_body(peer, coding, &code(text.as_bytes()), way);
}

#[test]
fn a_key_in_a_compressed_body_does_not_pass() {
    let (claviger, _upstream, world) = site_with("", None, send_numbered);
    let key = std::fs::read_to_string(world.path("key")).expect("the key");
    let leak = Leak::of(&key);
    let fail = ["--compressed", "--fail"];
    for number in 0..CODINGS.len() * WAYS {
        let (coding, _, way) = numbered(number);
        // What holds no key arrives, and is what was sent.
        let clean = format!("/clean/{number}");
        let fine = curl(&claviger, &world, &clean, &fail)
            .finish()
            .expect_code(0);
        assert_eq!(fine.out_text(), text_with("nothing"), "{coding}");

        let path = format!("/key/{number}");
        let refused = curl(&claviger, &world, &path, &fail).finish();
        assert_ne!(refused.status.code(), Some(0), "{coding} {number}");
        let place = format!("what curl made of {path} ({coding})");
        leak.assert_none(&place, &refused.out);
        let record = claviger.audit_of(&path);
        assert_eq!(record["reason"], "key_echoed", "{record}");
        assert_eq!(record["scrubbed"], 1, "{record}");
        if way != WAYS - 1 {
            // It was there with the head, so nothing was sent.
            assert_eq!(record["status"], 502, "{record}");
        }
    }
}

/// That the key was in those bodies, and that curl would have shown it.
#[test]
fn a_reporting_route_passes_the_compressed_key() {
    // Not one of the world's keys: it does come through here, and the search would say so.
    let key = "reported-key-0123456789abcdef";
    let (claviger, _upstream, world) =
        site_with("on_echo = \"report\"\n", Some(key), send_numbered);
    let leak = Leak::of(key);
    for number in 0..CODINGS.len() * WAYS {
        let path = format!("/key/{number}");
        let shown = curl(&claviger, &world, &path, &["--compressed", "--fail"])
            .finish()
            .expect_code(0);
        assert_eq!(shown.out_text(), text_with(key));
        assert!(leak.search(&shown.out).is_some());
        assert_eq!(claviger.audit_of(&path)["scrubbed"], 1);
    }
}

/// Each event leaves when its sender has flushed it, and the one with the key does not.
#[test]
fn compressed_events_arrive_one_by_one() {
    for coding in ["gzip", "br", "zstd"] {
        let (go, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (claviger, upstream, world) = site_with("", None, move |peer, _, key| {
            let gate = gate.lock().expect("one connection");
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n\r\n"));
            let mut encoder: CodeParts = if coding == "br" {
                let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
                Box::new(move |text: &[u8]| {
                    encoder.write_all(text).expect("memory takes it");
                    encoder.flush().expect("memory takes it");
                    std::mem::take(encoder.get_mut())
                })
            } else if coding == "zstd" {
                let mut encoder =
                    zstd::stream::Encoder::new(Vec::new(), 3).expect("memory takes it");
                Box::new(move |text: &[u8]| {
                    encoder.write_all(text).expect("memory takes it");
                    encoder.flush().expect("memory takes it");
                    std::mem::take(encoder.get_mut())
                })
            } else {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                Box::new(move |text: &[u8]| {
                    encoder.write_all(text).expect("memory takes it");
                    encoder.flush().expect("memory takes it");
                    std::mem::take(encoder.get_mut())
                })
            };
            for event in [
                "data: 1\n\n".to_owned(),
                format!("data: {}\n\n", &key[..15]),
                "data: \\\n\n".to_owned(),
                format!("data: {key}\n\n"),
            ] {
                if gate.recv().is_err() {
                    return;
                }
                let event = encoder(event.as_bytes());
                peer.tell(event.len().to_string());
                let header = format!("{:x}\r\n", event.len());
                peer.send([header.as_bytes(), &event, b"\r\n"].concat());
            }
            peer.wait_end();
        });
        let mut client = claviger.connect(&world);
        client.send(format!("GET /events HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        assert_eq!(client.head().status, 200);
        for _ in 0..3 {
            go.send(()).expect("the script waits");
            let length: usize = upstream.told().parse().expect("a length");
            let mut got = 0;
            while got < length {
                got += client.chunk().1.len();
            }
            assert_eq!(got, length);
        }
        go.send(()).expect("the script waits");
        assert_eq!(client.read_to_end(), b"");
        assert_eq!(claviger.audit_of("/events")["reason"], "key_echoed");
    }
}

/// What cannot be searched: the path, the status line and fields, the body, and why.
fn uninspectable() -> Vec<(&'static str, &'static str, Vec<u8>, &'static str)> {
    let text = text_with("nothing");
    let text = text.as_bytes();
    vec![
        (
            "/compress",
            "200 OK\r\nContent-Encoding: compress",
            b"\x1f\x9d\x90".to_vec(),
            "unknown_coding",
        ),
        (
            "/dictionary",
            "200 OK\r\nContent-Encoding: zstd",
            b"(\xb5/\xfd\x01\x00\x01\x01\x00\x00".to_vec(),
            "malformed",
        ),
        (
            "/window",
            "200 OK\r\nContent-Encoding: zstd",
            b"(\xb5/\xfd\x00\x70\x01\x00\x00".to_vec(),
            "malformed",
        ),
        (
            "/cut-block",
            "200 OK\r\nContent-Encoding: zstd",
            zstd(text)[..100].to_vec(),
            "malformed",
        ),
        (
            "/zstd-bomb",
            "200 OK\r\nContent-Encoding: zstd",
            zstd(&vec![b'0'; 6 << 20]),
            "unfolds_too_far",
        ),
        (
            "/nonsense",
            "200 OK\r\nContent-Encoding: utf-8",
            text.to_vec(),
            "unknown_coding",
        ),
        (
            "/thrice",
            "200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Encoding: gzip",
            gzip(&gzip(&gzip(text))),
            "unknown_coding",
        ),
        (
            "/lie",
            "200 OK\r\nContent-Encoding: gzip",
            text.to_vec(),
            "malformed",
        ),
        (
            "/behind",
            "200 OK\r\nContent-Encoding: gzip",
            [&gzip(text)[..], b"more"].concat(),
            "malformed",
        ),
        (
            "/bomb",
            "200 OK\r\nContent-Encoding: br",
            brotli(&vec![b'0'; 6 << 20]),
            "unfolds_too_far",
        ),
        (
            "/part",
            "206 Partial Content\r\nContent-Range: bytes 0-9/1000\r\nContent-Encoding: gzip",
            gzip(text)[..10].to_vec(),
            "partial",
        ),
    ]
}

fn send_uninspectable(peer: &mut Peer, head: &str, key: &str) {
    let path = target(head);
    if let Some((_, head, body, _)) = uninspectable().into_iter().find(|row| row.0 == path) {
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
        peer.send([head.as_bytes(), &body].concat());
        return;
    }
    match path {
        // The answers to these have no body.
        "/head" => peer.send(
            "HTTP/1.1 200 OK\r\nContent-Encoding: compress\r\nContent-Length: 7\r\n\r\n",
        ),
        "/unmodified" => peer.send("HTTP/1.1 304 Not Modified\r\nContent-Encoding: compress\r\n\r\n"),
        "/nothing" => peer.send("HTTP/1.1 204 No Content\r\nContent-Encoding: compress\r\n\r\n"),
        // A part of what is not coded can be searched.
        "/plain-part" => peer.send(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/9\r\nContent-Length: 4\r\n\r\npart",
        ),
        "/empty" => {
            peer.send("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n")
        }
        "/none" => {
            peer.send("HTTP/1.1 200 OK\r\nContent-Encoding: compress\r\nContent-Length: 0\r\n\r\n")
        }
        "/raw-key" => {
            let length = key.len();
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Encoding: compress\r\nContent-Length: {length}\r\n\r\n{key}"
            ))
        }
        other => panic!("{other} is not asked for"),
    };
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let (claviger, _upstream, world) = site_with("", None, send_uninspectable);
    let rows = uninspectable();
    for (path, _, _, why) in &rows {
        let answer = claviger.get(&world, path);
        answer.expect_own(502, "answer_not_inspected");
        let record = claviger.audit_of(path);
        assert_eq!(record["uninspected"], *why, "{record}");
        assert_eq!(record["refused_by"], "policy", "{record}");
    }
    claviger.wait_count("answers_uninspected", rows.len() as u64);
    let mut client = claviger.connect(&world);
    let head = client.call(format!("HEAD /head HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(head.expect(200).field("content-encoding"), Some("compress"));
    for (path, status, body) in [
        ("/unmodified", 304, ""),
        ("/nothing", 204, ""),
        ("/plain-part", 206, "part"),
        ("/empty", 200, ""),
        ("/none", 200, ""),
    ] {
        assert_eq!(client.get(HOST, path).expect(status).text(), body, "{path}");
        assert_eq!(
            claviger.audit_of(path)["uninspected"],
            serde_json::Value::Null
        );
    }
}

#[test]
fn what_cannot_be_searched_passes_where_it_may() {
    for lines in ["on_uninspected = \"mark\"\n", "on_echo = \"report\"\n"] {
        let (claviger, _upstream, world) = site_with(lines, None, send_uninspectable);
        let rows = uninspectable();
        for (path, head, body, why) in &rows {
            let answer = claviger.get(&world, path);
            let status = head[..3].parse().expect("a status");
            assert_eq!(answer.expect(status).body, *body, "{path}");
            let record = claviger.audit_of(path);
            assert_eq!(record["uninspected"], *why, "{record}");
            assert_eq!(record["refused_by"], serde_json::Value::Null, "{record}");
        }
        claviger.wait_count("answers_uninspected", rows.len() as u64);
        if lines.contains("mark") {
            // It is still searched as it comes.
            let answer = claviger.get(&world, "/raw-key");
            answer.expect_own(502, "key_echoed");
        }
    }
}

/// A body that goes wrong after its beginning has passed is cut, and does not look whole.
#[test]
fn a_lie_in_the_middle_is_cut() {
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (claviger, _upstream, world) = site_with("", None, move |peer, _, _| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"begun\n").expect("memory takes it");
        encoder.flush().expect("memory takes it");
        let begun = std::mem::take(encoder.get_mut());
        let length = begun.len() + 20;
        peer.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n"
        ));
        peer.send(begun);
        if gate.lock().expect("one connection").recv().is_ok() {
            // A block of a type that there is not.
            peer.send([0xff; 20]);
        }
    });
    let cut = curl(&claviger, &world, "/later", &["--compressed"]);
    cut.out
        .wait("the beginning", |text| text.contains("begun").then_some(()));
    go.send(()).expect("the script waits");
    let cut = cut.finish();
    assert_eq!(cut.out_text(), "begun\n");
    assert_ne!(cut.status.code(), Some(0));
    let record = claviger.audit_of("/later");
    assert_eq!(record["reason"], "answer_not_inspected", "{record}");
    assert_eq!(record["uninspected"], "malformed", "{record}");
}

#[test]
fn only_what_can_be_searched_is_asked_for() {
    let script = |peer: &mut Peer, head: &str, _: &str| {
        let asked: Vec<&str> = head
            .lines()
            .filter(|line| line.to_ascii_lowercase().starts_with("accept-encoding"))
            .collect();
        peer.tell(asked.join(" | "));
        peer.answer("fine");
    };
    let rows = [
        (
            "accept-encoding: gzip, deflate, br",
            "accept-encoding: gzip, deflate, br",
        ),
        (
            "Accept-Encoding: gzip;q=0.5, br;q=1.0, zstd, dcz",
            "Accept-Encoding: gzip;q=0.5, br;q=1.0, zstd",
        ),
        ("Accept-Encoding: dcz", "Accept-Encoding: identity"),
        (
            "Accept-Encoding: *;q=0.5",
            "Accept-Encoding: gzip;q=0.5, br;q=0.5",
        ),
        (
            "Accept-Encoding: dcz\r\nAccept-Encoding: br",
            "Accept-Encoding: identity | Accept-Encoding: br",
        ),
        ("X-None: 1", ""),
    ];
    let (claviger, upstream, world) = site_with("", None, script);
    // A key that is too short to be searched for.
    let (unsearched, unsearched_upstream, other_world) = site_with("", Some("short"), script);
    for (sent, expected) in rows {
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{sent}\r\n\r\n");
        let answer = claviger.connect(&world).call(&request);
        assert_eq!(upstream.told(), expected);
        answer.expect(200);
        let answer = unsearched.connect(&other_world).call(&request);
        let as_sent = sent.replace("\r\n", " | ");
        let expected = if expected.is_empty() { "" } else { &as_sent };
        assert_eq!(unsearched_upstream.told(), expected);
        answer.expect(200);
    }
}

/// After a rotation the provider may honour the earlier key for long, so that does not pass either.
#[test]
fn an_earlier_key_does_not_pass() {
    let world = World::new();
    let (old, key_file) = world.key_file("key");
    let new = world.key();
    let upstream = Scripted::start(&world, HOST, {
        let old = old.clone();
        move |peer| {
            while let Some(head) = peer.head() {
                let key = head
                    .lines()
                    .find_map(|line| line.strip_prefix("Authorization: Bearer "));
                peer.tell(key.unwrap_or("no key"));
                match target(&head) {
                    "/head" => {
                        peer.send(format!(
                            "HTTP/1.1 200 OK\r\nX-Key: {old}\r\nContent-Length: 0\r\n\r\n"
                        ));
                    }
                    "/body" => {
                        peer.answer(&old);
                    }
                    "/coded" => send_body(peer, "gzip", &gzip(old.as_bytes()), 0),
                    _ => {
                        peer.answer("fine");
                    }
                }
            }
        }
    });
    let claviger = world.start(&format!(
        "{}{}{}",
        world.base(),
        upstream.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    assert_eq!(claviger.get(&world, "/").expect(200).text(), "fine");
    assert_eq!(upstream.told(), old);
    let mark = claviger.log().mark();
    rename_over(&key_file, &new);
    claviger.wait_reloaded(mark);
    crate::harness::eventually("the new key in use", || {
        claviger.get(&world, "/").expect(200);
        (upstream.told() == new).then_some(())
    });
    let redacted = "redacted".repeat(old.len() / 8);
    let answer = claviger.get(&world, "/head");
    assert_eq!(answer.expect(200).field("x-key"), Some("redacted"));
    assert_eq!(claviger.get(&world, "/body").expect(200).text(), redacted);
    claviger.get(&world, "/coded").expect_own(502, "key_echoed");
}
