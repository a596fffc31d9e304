//! Bodies stream both ways, whole and in time, whatever their framing, and what
//! is not a body (upgrades, interim answers, early ends) is treated as what it is.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::harness::world::{Claviger, HOST, Site, bearer_route};
use crate::harness::{Answer, Client, Scripted, World, eventually};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Bytes without a short period, so that a piece lost or repeated is noticed.
fn payload(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

#[track_caller]
fn assert_uploaded(answer: &Answer, body: &[u8]) {
    let seen = answer.expect(200).json();
    assert_eq!(seen["bytes"], body.len());
    assert_eq!(seen["sha256"], sha256(body));
}

#[test]
fn uploads() {
    let site = Site::new();
    let mut client = site.connect();
    for length in [0, 1, 100, 16 * 1024, 1 << 20, 9 << 20] {
        let body = payload(length);
        let head =
            format!("POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n");
        assert_uploaded(&client.call([head.as_bytes(), &body].concat()), &body);
    }
    for (length, size) in [(0, 1), (1, 1), (1000, 1), (1 << 20, 777), (9 << 20, 70_000)] {
        let body = payload(length);
        let head =
            format!("POST /upload HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_uploaded(
            &client.call([head.as_bytes(), &chunked(&body, size)].concat()),
            &body,
        );
    }
    let record = site.claviger.wait_audit("the largest upload", |record| {
        (record["bytes_in"] == 9 << 20).then(|| record.clone())
    });
    assert_eq!(record["status"], 200);
}

#[test]
fn downloads() {
    let site = Site::new();
    let mut client = site.connect();
    let mut digests = Vec::new();
    let length = 9 << 20;
    for query in ["", "?chunked=1", "?close=1"] {
        let answer = client.get(HOST, &format!("/bytes/{length}{query}"));
        assert_eq!(answer.expect(200).body.len(), length, "{query}");
        digests.push(sha256(&answer.body));
        // Ours is chunked where theirs ended with the connection, so ours stays open.
        assert_eq!(answer.field("connection"), None, "{query}");
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "the same bytes each time");
    assert_eq!(client.get(HOST, "/bytes/0").expect(200).body, b"");
}

#[test]
fn answers_without_a_body() {
    let site = Site::new();
    let mut client = site.connect();
    let answer = client.call(format!("HEAD /bytes/5000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(answer.expect(200).field("content-length"), Some("5000"));
    for status in [204, 304] {
        assert_eq!(
            client
                .get(HOST, &format!("/status/{status}"))
                .expect(status)
                .body,
            b""
        );
    }
    client.get(HOST, "/ok").expect(200);
}

#[test]
fn several_requests_in_one_packet() {
    let site = Site::new();
    let mut client = site.connect();
    let one = |n: usize| format!("GET /echo?n={n} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let post = format!("POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\nhello");
    client.send([one(1), post, one(2), one(3)].concat());
    assert_eq!(client.answer().expect(200).json()["target"], "/echo?n=1");
    assert_uploaded(&client.answer(), b"hello");
    assert_eq!(client.answer().expect(200).json()["target"], "/echo?n=2");
    assert_eq!(client.answer().expect(200).json()["target"], "/echo?n=3");
}

#[test]
fn http_1_0_callers() {
    let site = Site::new();
    let mut client = site.connect();
    let answer = client.call(format!(
        "GET /bytes/3000?chunked=1 HTTP/1.0\r\nHost: {HOST}\r\n\r\n"
    ));
    assert_eq!(answer.expect(200).field("transfer-encoding"), None);
    assert_eq!(answer.body.len(), 3000);
    client.expect_end();
}

/// Each event is sent only after the caller has the one before: nothing on the way
/// may wait for more.
#[test]
fn events_arrive_one_by_one() {
    let world = World::new();
    let (_, key_file) = world.key_file("key");
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let upstream = Scripted::start(&world, HOST, move |peer| {
        let gate = gate.lock().expect("one connection");
        while peer.head().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
            for number in 0..20 {
                if gate.recv().is_err() {
                    return;
                }
                let event = format!("data: {number}\n\n");
                peer.send(format!("{:x}\r\n{event}\r\n", event.len()));
            }
            peer.send("0\r\n\r\n");
        }
    });
    let claviger = world.start(&format!(
        "{}{}{}",
        world.base(),
        upstream.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    let mut client = claviger.connect(&world);
    client.send(format!("GET /events HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    // The head comes before the first event.
    let head = client.head();
    assert_eq!(head.field("content-type"), Some("text/event-stream"));
    for number in 0..20 {
        go.send(()).expect("the script waits");
        assert_eq!(client.chunk().1, format!("data: {number}\n\n").as_bytes());
    }
    assert_eq!(client.chunk().1, b"");
    assert_eq!(client.read_until(b"\r\n"), b"\r\n");
}

#[test]
fn trailers_of_an_answer() {
    let site = Site::new();
    let mut client = site.connect();
    let answer = client.call(format!(
        "POST /trailers HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nContent-Length: 5\r\n\r\nhello"
    ));
    assert_eq!(answer.expect(200).body, b"trailers follow\n");
    assert_eq!(
        answer.trailers,
        [
            format!("X-Body-Sha256: {}", sha256(b"hello")),
            "X-Body-Bytes: 5".to_owned()
        ]
    );
    client.get(HOST, "/ok").expect(200);
}

#[test]
fn expect_100_continue() {
    let site = Site::new();
    let mut client = site.connect();
    client.send(format!(
        "POST /upload HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    ));
    assert_eq!(
        client.head().status,
        100,
        "the body is sent when it is asked for"
    );
    client.send("hello");
    assert_uploaded(&client.answer(), b"hello");

    // An API that does not want it says so, and is not sent it.
    let mut client = site.connect();
    client.send(format!("POST /early/0 HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 500000\r\n\r\n"));
    let answer = client.answer();
    answer.expect(413);
    assert_eq!(answer.interim, [] as [u16; 0]);
}

/// An answer before the end of the upload reaches a caller that is still sending.
#[test]
fn an_early_answer() {
    let site = Site::new();
    let mut client = site.connect();
    client.send(format!(
        "POST /early/1000 HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 50000000\r\n\r\n"
    ));
    client.send(payload(100_000));
    client.answer().expect(413);
}

/// RFC 6455: a masked text frame of the client, and the same unmasked from the server.
#[test]
fn websocket() {
    let site = Site::new();
    let mut client = site.connect();
    let answer = client.call(format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer wrong\r\n\r\n"
    ));
    assert_eq!(answer.status, 101, "{}", answer.text());
    assert_eq!(
        answer.field("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        "RFC 6455, section 1.3"
    );
    assert_eq!(
        answer.field("upgrade").map(str::to_lowercase).as_deref(),
        Some("websocket")
    );
    for text in ["hello", "again", "a little longer than that"] {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![0x81, 0x80 | text.len() as u8];
        frame.extend_from_slice(&mask);
        frame.extend(
            text.bytes()
                .zip(mask.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        client.send(frame);
        let echoed = client.read_exact(2 + text.len());
        assert_eq!(echoed[..2], [0x81, text.len() as u8]);
        assert_eq!(echoed[2..], *text.as_bytes());
    }
    // A masked close frame, answered by one; then both ends are gone.
    client.send([0x88, 0x80, 0, 0, 0, 0]);
    let rest = client.read_to_end();
    assert_eq!(rest.first(), Some(&0x88));
    let record = site.claviger.audit_of("/ws");
    assert_eq!(record["status"], 101);
    assert!(
        record["bytes_in"].as_u64() > Some(30) && record["bytes_out"].as_u64() > Some(30),
        "{record}"
    );
}

/// An upgrade that the route does not list is not offered to the API: an `h2c`
/// tunnel would carry requests past everything that we do.
#[test]
fn other_upgrades_do_not_pass() {
    let site = Site::new();
    for upgrade in ["h2c", "TLS/1.0", "websocket, h2c", "foo"] {
        let answer = site.connect().call(format!(
            "GET /echo HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
        ));
        let headers = answer.expect(200).json()["headers"]
            .to_string()
            .to_lowercase();
        assert!(
            !headers.contains("upgrade") && !headers.contains("http2-settings"),
            "{upgrade}: {headers}"
        );
    }
}

/// Runs one exchange against an upstream that has begun its answer (or not), lets
/// the caller go, and measures how long the upstream's connection outlives it.
#[track_caller]
fn measure_hangup(answer: &'static str, politely: bool) {
    let world = World::new();
    let (_, key_file) = world.key_file("key");
    let upstream = Scripted::start(&world, HOST, move |peer| {
        while peer.head().is_some() {
            peer.send(answer);
            peer.tell("asked");
            peer.wait_end();
            peer.tell("ended");
        }
    });
    let claviger = world.start(&format!(
        "{}{}{}",
        world.base(),
        upstream.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    let mut client = claviger.connect(&world);
    client.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(upstream.told(), "asked");
    if !answer.is_empty() {
        assert_eq!(client.head().status, 200);
    }
    let left = Instant::now();
    if politely {
        client.close_write();
    }
    drop(client);
    loop {
        // Warm connections may come and go beside it.
        if upstream.told() == "ended" {
            break;
        }
    }
    let took = left.elapsed();
    assert!(
        took < Duration::from_secs(1),
        "the upstream was kept for {took:?}"
    );
    assert_eq!(claviger.audit_of("/slow")["reason"], "caller_gone");
}

#[test]
fn a_caller_that_leaves_while_waiting_ends_the_upstream_exchange() {
    measure_hangup("", false);
    measure_hangup("", true);
}

#[test]
fn a_caller_that_leaves_amid_the_answer_ends_the_upstream_exchange() {
    measure_hangup(
        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun",
        false,
    );
    measure_hangup(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
        true,
    );
}

/// Half an answer must never look like a whole one.
#[test]
fn a_cut_answer_is_cut_for_the_caller_too() {
    let site = Site::new();
    let mut client = site.connect();
    client.send(format!(
        "GET /truncate/200000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    ));
    let head = client.head();
    assert_eq!(head.field("content-length"), Some("200000"));
    assert!(client.read_to_end().len() < 200_000);
    let record = site.claviger.audit_of("/truncate/200000");
    assert_eq!(record["refused_by"], "upstream", "{record}");

    let world = World::new();
    let (_, key_file) = world.key_file("key");
    let upstream = Scripted::start(&world, HOST, |peer| {
        if peer.head().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
            peer.close();
        }
    });
    let claviger = world.start(&format!(
        "{}{}{}",
        world.base(),
        upstream.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    let mut client = claviger.connect(&world);
    client.send(format!("GET /cut HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    let all = client.read_to_end();
    assert!(
        !all.ends_with(b"0\r\n\r\n"),
        "{}",
        String::from_utf8_lossy(&all)
    );
}

/// Where only the connection's end ends an answer, a plain end would make half of it the whole.
/// Who has closed its sending direction alone still reads.
#[test]
fn a_caller_of_http_1_0_that_has_finished_sending_sees_a_cut_as_one() {
    let world = World::new();
    let (_, key_file) = world.key_file("key");
    let upstream = Scripted::start(&world, HOST, |peer| {
        if peer.head().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
            peer.wait_end();
        }
    });
    let claviger = world.start(&format!(
        "{}[[listener]]\nname = \"clear\"\naddress = \"127.0.0.2:0\"\ntls = false\n{}{}",
        world.base(),
        upstream.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    let address = claviger.addresses_of("clear")[0];
    let mut client = Client::clear(address, world.transcript()).expect("it listens");
    client.send(format!("GET /cut HTTP/1.0\r\nHost: {HOST}\r\n\r\n"));
    let head = client.head();
    assert_eq!(head.status, 200);
    assert_eq!(head.field("content-length"), None);
    client.close_write();
    let end = loop {
        match client.fill() {
            Ok(1..) => {}
            end => break end,
        }
    };
    let end = end.map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    assert_eq!(claviger.audit_of("/cut")["reason"], "caller_gone");
}

/// A byte now and then is no pause, and would hold the upstream's connection for ever.
#[test]
fn a_body_that_drips_is_cut() {
    let site = Site::build(&[], |world, mock, key_file| {
        let server = "head_timeout = \"300ms\"\nbody_rate_min = 10000\n[audit]";
        format!(
            "{}{}{}",
            world.base().replace("[audit]", server),
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    let mut client = site.connect();
    client.get(HOST, "/ok").expect(200);
    // Nothing else may lie in the socket when the answer is waited for.
    let pause = Some(Duration::from_millis(20));
    client.socket().set_read_timeout(pause).expect("a timeout");
    client.send(format!(
        "POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\n"
    ));
    let begun = Instant::now();
    while client.socket().peek(&mut [0]).is_err() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "it goes on for ever"
        );
        client.send("x");
    }
    client
        .socket()
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a timeout");
    client.answer().expect_own(408, "request_body_timeout");
    assert_eq!(site.claviger.audit_of("/upload")["refused_by"], "caller");
    // As slow a body that is short enough is none of this.
    let mut client = site.connect();
    let body = payload(100_000);
    let head = format!("POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\n");
    assert_uploaded(&client.call([head.as_bytes(), &body].concat()), &body);
}

/// A reader that is slower than the API holds the API back; nothing piles up.
#[test]
fn memory_stays_constant() {
    let site = Site::new();
    let mut client = site.connect();
    client.get(HOST, "/bytes/1000000").expect(200);
    let before = resident_kib(&site.claviger);
    let length = 96 << 20;
    client.send(format!(
        "GET /bytes/{length} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    ));
    let head = client.head();
    assert_eq!(
        head.field("content-length"),
        Some(length.to_string().as_str())
    );
    // The API stops sending once every buffer on the way is full.
    let stalled = eventually("the API to be held back", || {
        let first = sent_by(&site);
        std::thread::sleep(Duration::from_millis(50));
        (sent_by(&site) == first).then_some(first)
    });
    assert!(
        stalled < (length as u64) / 2,
        "{stalled} bytes were taken from the API, and the caller has read none"
    );
    let grown = resident_kib(&site.claviger).saturating_sub(before);
    // Buffers for one exchange, and a few of the allocator's steps of 4 MiB; the body is
    // six times that.
    assert!(grown < 16 * 1024, "{grown} KiB more for one slow reader");
    assert_eq!(client.read_exact(length).len(), length);
}

/// Bytes that the mock's process has written to anything, as the kernel counts.
fn sent_by(site: &Site) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", site.mock.process().pid()))
        .expect("our own child");
    io.lines()
        .find_map(|line| line.strip_prefix("wchar: ")?.parse().ok())
        .expect("wchar")
}

fn resident_kib(claviger: &Claviger) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", claviger.pid())).expect("our own child");
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .expect("VmRSS")
}
