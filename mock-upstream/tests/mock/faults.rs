//! Every fault, as a real client sees it: rustls over plain sockets, and curl.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use super::client::{Client, Mock};
use serde_json::{Value, json};

const BEARER: &str = "Authorization: Bearer real-key-1234567890\r\n";

fn mock(extra: &[&str]) -> Mock {
    let mut arguments = vec!["--key", "real-key-1234567890", "--control", "127.0.0.1:0"];
    arguments.extend_from_slice(extra);
    Mock::start(&arguments)
}

/// Puts one rule in force.
#[track_caller]
fn fault(mock: &Mock, rule: Value) {
    let document = json!({"rules": [rule]}).to_string();
    let response = mock.control("PUT", "/__faults", document.as_bytes());
    assert_eq!(
        response.status,
        200,
        "{}",
        String::from_utf8_lossy(&response.content)
    );
}

/// Everything that the server says to one request until the connection ends, and how it ends.
fn raw(client: &mut Client, target: &str) -> (Vec<u8>, Result<(), ErrorKind>) {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n").as_bytes());
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match client.stream.read(&mut buffer) {
            Ok(0) => return (bytes, Ok(())),
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) => return (bytes, Err(error.kind())),
        }
    }
}

/// The error of a handshake that must fail.
fn handshake_error(mock: &Mock) -> String {
    match mock.connect_to(mock.addresses[0]) {
        Ok(_) => panic!("the handshake succeeded"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn applied(mock: &Mock, kind: &str, count: u64) {
    assert_eq!(mock.stats()["faults"][kind], count);
    assert_eq!(mock.stats()["panics"], 0);
}

#[test]
fn answers_end_where_and_how_the_rule_says() {
    let mock = mock(&[]);
    let reset = Err(ErrorKind::ConnectionReset);
    let cut = Err(ErrorKind::UnexpectedEof);
    for (kind, end) in [("reset", reset), ("truncate", Ok(())), ("cut", cut)] {
        fault(&mock, json!({"action": {kind: {"at": 40}}}));
        assert_eq!((raw(&mut mock.connect(), "/ok").0.len(), kind), (40, kind));
        fault(&mock, json!({"action": {kind: {"at": 0}}}));
        assert_eq!(raw(&mut mock.connect(), "/ok"), (vec![], end));
        fault(
            &mock,
            json!({"action": {kind: {"at": 20000, "from": "body"}}}),
        );
        let (bytes, how) = raw(&mut mock.connect(), "/bytes/200000");
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        assert_eq!((bytes.len() - head, how), (20_000, end), "{kind}");
        // Behind the answer, if nothing else is said.
        fault(&mock, json!({"action": {kind: {}}}));
        let (bytes, how) = raw(&mut mock.connect(), "/ok");
        assert!(bytes.ends_with(b"\r\n\r\nok\n"), "{kind}");
        assert_eq!(how, end, "{kind}");
        applied(&mock, kind, 4);
    }
    mock.control("DELETE", "/__faults", b"");
    assert_eq!(
        mock.connect().request("GET", "/ok", BEARER, b"").status,
        200
    );
}

#[test]
fn answers_stall_and_drip() {
    let mock = mock(&[]);
    fault(
        &mock,
        json!({"action": {"stall": {"at": 20, "time": "300ms"}}}),
    );
    let started = Instant::now();
    assert_eq!(
        mock.connect().request("GET", "/ok", BEARER, b"").content,
        b"ok\n"
    );
    assert!(started.elapsed() >= Duration::from_millis(300));

    // For good: the bytes come, and then nothing, until the client has had enough.
    fault(&mock, json!({"action": {"stall": {"at": 20}}}));
    let socket = TcpStream::connect(mock.addresses[0]).unwrap();
    drop(socket);
    let mut client = mock.connect();
    client.send(format!("GET /ok HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n").as_bytes());
    let mut first = [0; 64];
    assert_eq!(client.stream.read(&mut first).unwrap(), 20);
    assert_eq!(mock.stats()["connections_open"], 1);
    drop(client);
    mock.await_stats(|stats| stats["connections_open"] == 0);

    fault(
        &mock,
        json!({"action": {"drip": {"bytes": 16, "every": "5ms"}}}),
    );
    let started = Instant::now();
    let answer = mock.connect().request("GET", "/bytes/100", BEARER, b"");
    assert_eq!(answer.content.len(), 100);
    // A head of more than 100 bytes, and the content: at least 12 pauses.
    assert!(started.elapsed() >= Duration::from_millis(60));
    applied(&mock, "stall", 2);
    applied(&mock, "drip", 1);
}

#[test]
fn alerts_and_records_within_a_session() {
    let mock = mock(&[]);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = mock.client_config(&[version], &[]);
        let ends = |rule: Value| -> (usize, String) {
            fault(&mock, rule);
            let mut client = mock.connect_with(&config).expect("connects");
            client.send(format!("GET /ok HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n").as_bytes());
            let mut bytes = Vec::new();
            let error = client.stream.read_to_end(&mut bytes).unwrap_err();
            (bytes.len(), format!("{error:?}"))
        };
        let (length, error) =
            ends(json!({"action": {"alert": {"at": 30, "alert": "internal_error"}}}));
        // rustls hands out nothing that came together with what is wrong.
        assert!(length == 30 || length == 0, "{length}");
        assert!(error.contains("AlertReceived(InternalError)"), "{error}");
        let (length, error) = ends(json!({"action": {"bad_record": {"at": 30}}}));
        assert!(length == 30 || length == 0, "{length}");
        assert!(error.contains("DecryptError"), "{error}");
    }
    applied(&mock, "alert", 2);
    applied(&mock, "bad_record", 2);
}

#[test]
fn handshakes_fail_as_told() {
    let mock = mock(&[]);
    for (alert, expected) in [
        ("handshake_failure", "HandshakeFailure"),
        ("unrecognized_name", "UnrecognisedName"),
        ("protocol_version", "ProtocolVersion"),
    ] {
        fault(&mock, json!({"action": {"hello_alert": {"alert": alert}}}));
        let error = handshake_error(&mock);
        assert!(error.contains(expected), "{error}");
    }
    fault(&mock, json!({"action": "garbage_hello"}));
    let error = handshake_error(&mock);
    assert!(error.contains("corrupt message"), "{error}");
    for (flaw, expected) in [
        ("expired", "expired"),
        ("not_yet_valid", "not valid yet"),
        ("wrong_name", "not valid for name"),
        ("unknown_ca", "UnknownIssuer"),
        ("self_signed", "UnknownIssuer"),
    ] {
        fault(&mock, json!({"action": {"certificate": {"flaw": flaw}}}));
        let error = handshake_error(&mock);
        assert!(error.contains(expected), "{flaw}: {error}");
    }
    fault(
        &mock,
        json!({"action": {"slow_handshake": {"delay": "250ms"}}}),
    );
    let started = Instant::now();
    assert_eq!(
        mock.connect().request("GET", "/ok", BEARER, b"").status,
        200
    );
    assert!(started.elapsed() >= Duration::from_millis(250));
    for (kind, count) in [
        ("hello_alert", 3),
        ("garbage_hello", 1),
        ("certificate", 5),
        ("slow_handshake", 1),
    ] {
        applied(&mock, kind, count);
    }
    // By name: nobody else notices.
    fault(
        &mock,
        json!({"sni": "other.example.com", "action": {"certificate": {"flaw": "expired"}}}),
    );
    assert_eq!(
        mock.connect().request("GET", "/ok", BEARER, b"").status,
        200
    );
    fault(
        &mock,
        json!({"sni": "api.example.com", "count": 1, "action": {"hang_up": {"how": "reset"}}}),
    );
    let error = mock.connect_to(mock.addresses[0]).err().expect("fails");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(
        mock.connect().request("GET", "/ok", BEARER, b"").status,
        200
    );
}

#[test]
fn a_ticket_does_not_get_around_a_bad_certificate() {
    let mock = mock(&[]);
    let config = mock.client_config(&[&rustls::version::TLS13], &[]);
    for _ in 0..2 {
        let mut client = mock.connect_with(&config).expect("connects");
        assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 200);
    }
    assert_eq!(mock.stats()["resumed"], 1);
    fault(
        &mock,
        json!({"action": {"certificate": {"flaw": "expired"}}}),
    );
    assert!(mock.connect_with(&config).is_err());
}

#[test]
fn connections_end_before_they_begin() {
    let mock = mock(&["--workers", "2"]);
    let attempt = || -> std::io::Result<usize> {
        let mut socket = TcpStream::connect(mock.addresses[0])?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        // The reset may be here already; whichever call comes first is told.
        socket.write_all(&[22, 3, 1])?;
        socket.read(&mut [0; 16])
    };
    fault(&mock, json!({"action": {"hang_up": {"how": "reset"}}}));
    assert_eq!(attempt().unwrap_err().kind(), ErrorKind::ConnectionReset);
    fault(
        &mock,
        json!({"action": {"hang_up": {"how": "close", "after": "hello"}}}),
    );
    assert!(handshake_error(&mock).contains("eof") || applied_close(&mock));
    for round in 0..3 {
        fault(&mock, json!({"action": "refuse"}));
        assert_eq!(
            attempt().unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{round}"
        );
        assert_eq!(mock.control("DELETE", "/__faults", b"").status, 204);
        let mut client = mock.connect();
        assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 200);
    }
    fault(&mock, json!({"action": "silence"}));
    let mut socket = TcpStream::connect(mock.addresses[0]).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    socket.write_all(b"anything").unwrap();
    let error = socket.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    mock.await_stats(|stats| stats["faults"]["silence"] == 1);
    drop(socket);
    mock.await_stats(|stats| stats["connections_open"] == 0);
}

/// rustls words an early end in more ways than one; the counter is what counts then.
fn applied_close(mock: &Mock) -> bool {
    mock.stats()["faults"]["hang_up"] == 2
}

#[test]
fn framing_is_wrong_in_one_way_at_a_time() {
    let mock = Mock::start(&["--plain", "--auth", "none", "--control", "127.0.0.1:0"]);
    // What must be in the answer to `/ok`, and what must not.
    for (defect, has, lacks) in [
        (
            "length_short",
            "Content-Length: 2\r\n\r\nok\n",
            "Content-Length: 3",
        ),
        (
            "length_long",
            "Content-Length: 4\r\n\r\nok\n",
            "Content-Length: 3",
        ),
        (
            "length_and_chunked",
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n",
            "\r\n\r\nok",
        ),
        (
            "two_lengths",
            "Content-Length: 3\r\nContent-Length: 4\r\n\r\nok\n",
            "chunked",
        ),
        (
            "negative_length",
            "Content-Length: -1\r\n",
            "Content-Length: 3",
        ),
        ("plus_length", "Content-Length: +3\r\n", "Content-Length: 3"),
        (
            "unknown_coding",
            "Transfer-Encoding: chunked, identity\r\n",
            "Content-Length",
        ),
        ("bad_chunk_size", "\r\n\r\n0x3\r\nok\n", "Content-Length"),
        (
            "huge_chunk_size",
            "\r\n\r\n10000000000000001\r\nok\n",
            "Content-Length",
        ),
        ("missing_last_chunk", "\r\n\r\n3\r\nok\n\r\n", "0\r\n\r\n"),
        (
            "missing_chunk_end",
            "\r\n\r\n3\r\nok\n0\r\n\r\n",
            "Content-Length",
        ),
        ("obs_fold", "X-Folded: one\r\n two\r\n", "chunked"),
        ("bare_lf", "HTTP/1.1 200 OK\nServer: ", "\r"),
        ("nul_in_head", "X-Nul: a\0b\r\n", "chunked"),
        ("bare_cr", "X-Cr: a\rb\r\n", "chunked"),
        ("space_before_colon", "X-Space : a\r\n", "chunked"),
        ("no_colon", "X-No-Colon\r\n", "chunked"),
        ("bad_status", "HTTP/1.1 2000 OK\r\n", "chunked"),
        ("bad_status_line", "200 OK HTTP/1.1\r\n", "HTTP/1.1 200"),
        ("http2_status_line", "HTTP/2.0 200 OK\r\n", "HTTP/1.1"),
        ("http2_preface", "\0\0\0\u{4}\0\0\0\0\0", "HTTP"),
        ("no_head", "ok\n", "HTTP"),
    ] {
        fault(
            &mock,
            json!({"action": {"framing": {"defect": defect, "close": true}}}),
        );
        let mut client = mock.connect_plain(mock.addresses[0]);
        let (bytes, end) = raw(&mut client, "/ok");
        let text = String::from_utf8(bytes).unwrap();
        assert!(
            text.contains(has) && !text.contains(lacks),
            "{defect}: {text:?}"
        );
        assert_eq!(end, Ok(()), "{defect}");
    }
    applied(&mock, "framing", 22);
    // The connection stays if nothing else is said, and what is too much to hold passes unharmed.
    fault(
        &mock,
        json!({"count": 2, "action": {"framing": {"defect": "length_short"}}}),
    );
    let mut client = mock.connect_plain(mock.addresses[0]);
    assert_eq!(client.request("GET", "/ok", "", b"").content, b"ok");
    let mut client = mock.connect_plain(mock.addresses[0]);
    assert_eq!(
        client
            .request("GET", "/bytes/2000000", "", b"")
            .content
            .len(),
        2_000_000
    );
    assert_eq!(client.request("GET", "/ok", "", b"").content, b"ok\n");
}

#[test]
fn more_comes_than_was_asked_for() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    fault(
        &mock,
        json!({"count": 1, "action": {"extra_bytes": {"text": "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"}}}),
    );
    assert_eq!(client.request("GET", "/ok", BEARER, b"").content, b"ok\n");
    assert_eq!(client.response().content, b"evil");

    fault(
        &mock,
        json!({"count": 1, "action": {"unasked": {"after": "100ms"}}}),
    );
    let started = Instant::now();
    assert_eq!(client.request("GET", "/ok", BEARER, b"").content, b"ok\n");
    assert_eq!(client.response().content, b"unasked\n");
    assert!(started.elapsed() >= Duration::from_millis(100));

    fault(
        &mock,
        json!({"count": 1, "action": {"flood": {"count": 3000, "status": 102}}}),
    );
    assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 102);
    let interim = (0..)
        .take_while(|_| client.response().status == 102)
        .count();
    assert_eq!(interim, 2999);

    fault(&mock, json!({"count": 1, "action": "switch"}));
    assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 101);
    assert_eq!(client.response().status, 200);

    fault(
        &mock,
        json!({"count": 1, "action": {"large_head": {"bytes": 300_000}}}),
    );
    let answer = client.request("GET", "/ok", BEARER, b"");
    assert!(answer.head.len() > 290, "{}", answer.head.len());
    assert_eq!(client.request("GET", "/ok", BEARER, b"").content, b"ok\n");
    for kind in ["extra_bytes", "unasked", "flood", "switch", "large_head"] {
        applied(&mock, kind, 1);
    }
}

#[test]
fn rules_pick_the_nth_request_over_all_workers() {
    let mock = mock(&["--workers", "3"]);
    fault(
        &mock,
        json!({"path": "/ok", "nth": 4, "action": {"reset": {"at": 0}}}),
    );
    let outcomes: Vec<bool> = (0..6).map(|_| raw_status(&mock)).collect();
    assert_eq!(outcomes, [true, true, true, false, true, true]);
    let report = mock.control("GET", "/__faults", b"").json();
    assert_eq!(report["rules"][0]["seen"], 6);
    assert_eq!(report["rules"][0]["applied"], 1);
}

/// Whether `/ok` is answered on a new connection.
fn raw_status(mock: &Mock) -> bool {
    let mut client = mock.connect();
    client.send(
        format!("GET /ok HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{BEARER}\r\n").as_bytes(),
    );
    let mut bytes = Vec::new();
    client.stream.read_to_end(&mut bytes).is_ok() && bytes.starts_with(b"HTTP/1.1 200")
}

/// Debian's curl names what it sees by its exit code.
#[test]
fn curl_agrees() {
    let mock = mock(&[]);
    let port = mock.addresses[0].port();
    for (rule, code) in [
        (json!({"action": {"reset": {"at": 10}}}), 56),
        (json!({"action": {"truncate": {"at": 0}}}), 52),
        (
            json!({"action": {"truncate": {"at": 1, "from": "body"}}}),
            18,
        ),
        (
            json!({"action": {"framing": {"defect": "length_long", "close": true}}}),
            18,
        ),
        (
            json!({"action": {"hello_alert": {"alert": "handshake_failure"}}}),
            35,
        ),
        (json!({"action": {"certificate": {"flaw": "expired"}}}), 60),
        (
            json!({"action": {"certificate": {"flaw": "wrong_name"}}}),
            60,
        ),
        (json!({"action": {"stall": {"at": 10}}}), 28),
        (json!({"action": "refuse"}), 7),
    ] {
        fault(&mock, rule.clone());
        let output = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--http1.1",
                "--max-time",
                "2",
                "--noproxy",
                "*",
            ])
            .args(["--resolve", &format!("api.example.com:{port}:127.0.0.1")])
            .arg("--cacert")
            .arg(mock.ca())
            .args(["--header", BEARER.trim_end()])
            .arg(format!("https://api.example.com:{port}/bytes/100"))
            .output()
            .expect("curl is missing: run `scripts/test --setup` once");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{rule}: {text}");
    }
}
