//! The real binary, driven over real sockets by a client that shares no code with it.

mod client;
mod control;
mod faults;

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use client::{Client, Mock, Response, sha256_hex};
use nix::sys::signal::Signal;
use serde_json::Value;

const KEY: &str = "real-key-1234567890";
const BEARER: &str = "Authorization: Bearer real-key-1234567890\r\n";

/// A mock with TLS and one key.
fn mock(extra: &[&str]) -> Mock {
    let mut arguments = vec!["--key", KEY, "--control", "127.0.0.1:0"];
    arguments.extend_from_slice(extra);
    Mock::start(&arguments)
}

fn get(mock: &Mock, target: &str) -> Response {
    mock.connect().request("GET", target, BEARER, b"")
}

#[test]
fn ends_with_zero_on_sigterm_and_sigint() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mock = mock(&["--workers", "2"]);
        // A connection under way does not delay the end.
        let mut client = mock.connect();
        client.send(b"GET /delay/60000 HTTP/1.1\r\n");
        assert_eq!(mock.end(signal), Some(0));
    }
}

#[test]
fn ends_by_itself() {
    let started = Instant::now();
    let mut mock = mock(&["--max-seconds", "1"]);
    assert_eq!(mock.wait(), Some(0));
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[test]
fn refuses_options_that_cannot_work_and_says_what_to_do() {
    for (arguments, cure) in [
        (&["--key", "k"][..], "--self-signed DIR"),
        (&["--plain"], "--auth none"),
        (&["--plain", "--key", "k", "--style", "x"], "openai"),
        (&["--plain", "--key-file", "/nonexistent"], "/nonexistent"),
        (
            &["--plain", "--key", "k", "--listen", "192.0.2.1:1"],
            "192.0.2.1:1",
        ),
        (
            &[
                "--cert",
                "/nonexistent",
                "--cert-key",
                "/nonexistent",
                "--key",
                "k",
            ],
            "/nonexistent",
        ),
        (&["--plain", "--key", "k", "--cpus", "9999"], "9999"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_mock-upstream"))
            .args(arguments)
            .args(["--max-seconds", "10"])
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(text.contains(cure), "{arguments:?}: {text}");
    }
}

#[test]
fn echo_tells_exactly_what_arrived() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    client.send(
        b"POST /echo?b=2&a=%31&key=other HTTP/1.1\r\nhOsT: api.example.com\r\n\
          X-Twice: 1\r\nAuthorization: Bearer real-key-1234567890\r\nx-twice:2  \r\n\
          X_Api_Key: other\r\nX-Latin: \xe9\r\nContent-Length: 5\r\n\r\nhello",
    );
    let echo = client.response().json();
    assert_eq!(echo["method"], "POST");
    let other = format!("sha256:{}", sha256_hex(b"other"));
    assert_eq!(echo["target"], format!("/echo?b=2&a=%31&key={other}"));
    let bearer = format!("sha256:{}", sha256_hex(format!("Bearer {KEY}").as_bytes()));
    let expected = serde_json::json!([
        ["hOsT", "api.example.com"],
        ["X-Twice", "1"],
        ["Authorization", bearer],
        ["x-twice", "2"],
        ["X_Api_Key", other],
        ["X-Latin", "\u{e9}"],
        ["Content-Length", "5"],
    ]);
    assert_eq!(echo["headers"], expected);
    assert_eq!(echo["auth"], "bearer");
    assert_eq!(echo["auth_sha256"], sha256_hex(KEY.as_bytes()));
    assert_eq!(echo["body_bytes"], 5);
    assert_eq!(echo["body_sha256"], sha256_hex(b"hello"));
    assert_eq!(echo["tls"]["version"], "TLSv1_3");
    // Chosen by the mock: this client offers AES-256 first.
    assert_eq!(echo["tls"]["cipher_suite"], "TLS13_AES_128_GCM_SHA256");
    assert_eq!(echo["tls"]["group"], "X25519");
    assert_eq!(echo["tls"]["sni"], "api.example.com");
    assert_eq!(echo["tls"]["alpn"], "http/1.1");
    assert_eq!(echo["request"], 1);
    assert!(echo.get("body").is_none());
    assert!(!echo.to_string().contains(KEY));

    // The same connection counts on; another has another number.
    let fields = format!("{BEARER}Content-Type: text/plain\r\n");
    let again = client.request("PUT", "/echo?body=1", &fields, "h\u{e9}".as_bytes());
    let again = again.json();
    assert_eq!(again["request"], 2);
    assert_eq!(again["connection"], echo["connection"]);
    assert_eq!(again["body"], "h\u{e9}");
    let other = mock.connect().request("GET", "/echo", BEARER, b"").json();
    assert_ne!(other["connection"], echo["connection"]);
}

#[test]
fn echo_reveals_only_when_told_to() {
    let mock = mock(&["--reveal"]);
    let echo = get(&mock, "/echo?key=x").json();
    assert_eq!(echo["target"], "/echo?key=x");
    assert!(echo.to_string().contains(&format!("Bearer {KEY}")));
}

#[test]
fn resumes_sessions_on_both_versions_and_counts_them() {
    let mock = mock(&["--workers", "2"]);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = mock.client_config(&[version], &[b"http/1.1"]);
        let mut resumed = Vec::new();
        for _ in 0..3 {
            let mut client = mock.connect_with(&config).expect("connects");
            let echo = client.request("GET", "/echo", BEARER, b"").json();
            assert_eq!(echo["tls"]["version"], format!("{:?}", version.version));
            resumed.push(echo["tls"]["resumed"] == true);
        }
        assert_eq!(resumed, [false, true, true]);
    }
    let stats = mock.stats();
    assert_eq!(
        (&stats["handshakes"], &stats["resumed"]),
        (&6.into(), &4.into())
    );
    assert_eq!(stats["endpoints"]["echo"], 6);
}

#[test]
fn speaks_http_1_1_only() {
    let mock = mock(&[]);
    let config = mock.client_config(&[&rustls::version::TLS13], &[b"h2"]);
    let error = mock.connect_with(&config).err().expect("is refused");
    assert!(
        error.to_string().contains("NoApplicationProtocol"),
        "{error}"
    );
    mock.await_stats(|stats| stats["handshakes_failed"] == 1);
}

#[test]
fn refuses_in_the_style_of_the_provider() {
    let mock = mock(&[]);
    for (method, target, fields, status, text) in [
        ("GET", "/echo", "", 401, "no API key"),
        (
            "GET",
            "/echo",
            "Authorization: Bearer wrong\r\n",
            401,
            "not valid",
        ),
        (
            "GET",
            "/ok",
            "Authorization: Bearer wrong\r\n",
            401,
            "not valid",
        ),
        (
            "GET",
            "/v1/models",
            "",
            401,
            "You didn't provide an API key",
        ),
        (
            "GET",
            "/v1/models",
            "Authorization: Bearer wrong\r\n",
            401,
            "invalid_api_key",
        ),
        (
            "GET",
            "/v1/balance",
            "Authorization: Bearer wrong\r\n",
            401,
            "Invalid API Key",
        ),
        (
            "GET",
            "/youtube/v3/search?key=wrong",
            "",
            400,
            "API key not valid",
        ),
        ("GET", "/youtube/v3/search", "", 403, "PERMISSION_DENIED"),
        (
            "POST",
            "/v3/mail/send",
            "Authorization: Bearer wrong\r\n",
            401,
            "authorization grant",
        ),
        (
            "POST",
            "/v1/messages",
            "x-api-key: wrong\r\n",
            401,
            "invalid x-api-key",
        ),
        (
            "GET",
            "/user",
            "Authorization: token wrong\r\n",
            401,
            "Bad credentials",
        ),
    ] {
        let mut client = mock.connect();
        let response = client.request(method, target, fields, b"");
        assert_eq!(response.status, status, "{target}");
        let content = String::from_utf8(response.content).unwrap();
        assert!(content.contains(text), "{target}: {content}");
        assert!(
            !content.contains("wrong") || text == "wrong",
            "{target}: {content}"
        );
        // The connection stays.
        assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 200);
    }
    assert_eq!(mock.stats()["unauthorized"], 11);
    assert_eq!(
        mock.connect().request("GET", "/healthz", "", b"").status,
        200
    );
}

#[test]
fn one_style_and_one_slot_for_everything() {
    let mock = mock(&["--style", "google", "--auth", "header:X-Mine"]);
    let refused = mock.connect().request("GET", "/echo", BEARER, b"");
    assert_eq!(refused.status, 403);
    let fields = format!("x-mine: {KEY}\r\n");
    let echo = mock.connect().request("GET", "/echo", &fields, b"").json();
    assert_eq!(echo["auth"], "header");
    assert!(!echo.to_string().contains(KEY));
}

#[test]
fn a_large_body_without_a_key_is_refused_unread() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    client.send(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\nstart");
    let response = client.response();
    assert_eq!(response.status, 401);
    assert_eq!(response.field("Connection"), Some("close"));
    assert!(client.at_end());
}

#[test]
fn keys_are_replaced_while_running() {
    let mock = mock(&["--workers", "2"]);
    let mut clients: Vec<Client> = (0..8).map(|_| mock.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 200);
    }
    let put = mock.control("PUT", "/__keys", b"new-1\n\nnew-2\n");
    assert_eq!(put.status, 204);
    for client in &mut clients {
        assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 401);
        let fields = "Authorization: Bearer new-2\r\n";
        assert_eq!(client.request("GET", "/ok", fields, b"").status, 200);
    }
    assert_eq!(mock.stats()["keys"], 2);
    assert_eq!(mock.control("PUT", "/__keys", b"\n").status, 400);
    assert_eq!(mock.control("GET", "/__keys", b"").status, 405);
    assert_eq!(mock.control("GET", "/", b"").status, 404);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    let mut burst = Vec::new();
    for index in 0..500 {
        let path = match index % 3 {
            0 => "/ok".to_string(),
            1 => format!("/status/{}", 200 + index % 90),
            _ => format!("/bytes/{index}"),
        };
        write!(burst, "GET {path} HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n").unwrap();
    }
    // Small enough for the sockets' buffers: neither side can block the other for good.
    client.send(&burst);
    let responses: Vec<_> = (0..500).map(|_| client.response()).collect();
    for (index, response) in responses.iter().enumerate() {
        match index % 3 {
            0 => assert_eq!(response.content, b"ok\n"),
            1 => assert_eq!(usize::from(response.status), 200 + index % 90),
            _ => assert_eq!(response.content.len(), index),
        }
    }
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    let request = format!(
        "POST /echo?body=1 HTTP/1.1\r\nHost: x\r\n{BEARER}Transfer-Encoding: chunked\r\n\r\n\
         3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\nAuthorization: t\r\n\r\n"
    );
    for byte in request.as_bytes() {
        client.send(&[*byte]);
    }
    let echo = client.response().json();
    assert_eq!(echo["body"], "abcde");
    let hidden = format!("sha256:{}", sha256_hex(b"t"));
    let trailers = serde_json::json!([["X-Sum", "1"], ["Authorization", hidden]]);
    assert_eq!(echo["trailers"], trailers);
}

#[test]
fn uploads_are_digested() {
    let mock = mock(&[]);
    let body: Vec<u8> = (0..3_000_000u32)
        .map(|i| (i * 7 + (i >> 9)) as u8)
        .collect();
    let mut client = mock.connect();
    let report = client.request("PUT", "/upload", BEARER, &body).json();
    assert_eq!(report["bytes"], body.len());
    assert_eq!(report["sha256"], sha256_hex(&body));

    let mut chunked =
        format!("POST /upload HTTP/1.1\r\nHost: x\r\n{BEARER}Transfer-Encoding: chunked\r\n\r\n")
            .into_bytes();
    for piece in body.chunks(70_001) {
        write!(chunked, "{:X}\r\n", piece.len()).unwrap();
        chunked.extend_from_slice(piece);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    client.send(&chunked);
    assert_eq!(client.response().json()["sha256"], sha256_hex(&body));
}

#[test]
fn asks_for_the_body_when_the_client_waits() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    let head = |path| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\n{BEARER}\
             Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
    };
    client.send(head("/echo").as_bytes());
    assert_eq!(client.response().status, 100);
    client.send(b"abc");
    assert_eq!(client.response().json()["body_sha256"], sha256_hex(b"abc"));
    // Refused without being asked.
    client.send(head("/early/1000").as_bytes());
    assert_eq!(client.response().status, 413);
    let mut client = mock.connect();
    client.send(head("/upload").replace("Bearer", "Basic").as_bytes());
    assert_eq!(client.response().status, 401);
}

#[test]
fn head_requests_get_the_head_only() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    for (target, length) in [
        ("/ok", Some("3")),
        ("/bytes/12345", Some("12345")),
        ("/sse?n=1", None),
    ] {
        client.send(format!("HEAD {target} HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n").as_bytes());
        let response = client.head();
        assert_eq!(response.status, 200);
        assert_eq!(response.field("Content-Length"), length);
    }
    assert_eq!(client.request("GET", "/ok", BEARER, b"").content, b"ok\n");
}

#[test]
fn malformed_requests_are_refused_and_the_connection_closed() {
    let mock = mock(&[]);
    let many = "a: b\r\n".repeat(300);
    let cases = [
        ("GET /ok HTTP/1.1\nHost: x\n\n".to_string(), 400),
        ("\r\nGET /ok HTTP/1.1\r\nHost: x\r\n\r\n".to_string(), 400),
        ("GET /ok HTTP/1.1\r\n\r\n".to_string(), 400),
        ("GET /ok HTTP/3.0\r\n\r\n".to_string(), 505),
        (format!("GET /ok HTTP/1.1\r\nHost: x\r\n{many}\r\n"), 431),
        (
            "POST /ok HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_string(),
            501,
        ),
        (
            "POST /ok HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
                .to_string(),
            400,
        ),
        (
            format!(
                "POST /echo HTTP/1.1\r\nHost: x\r\n{BEARER}Transfer-Encoding: chunked\r\n\r\nzz\r\n"
            ),
            400,
        ),
    ];
    for (request, status) in &cases {
        let mut client = mock.connect();
        client.send(request.as_bytes());
        let response = client.response();
        assert_eq!(response.status, *status, "{request:?}");
        assert_eq!(response.field("Connection"), Some("close"));
        assert!(client.at_end(), "{request:?}");
    }
    assert_eq!(mock.stats()["malformed"], cases.len());
}

#[test]
fn http_1_0_clients_get_what_they_understand() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    client.send(format!("GET /ok HTTP/1.0\r\nConnection: keep-alive\r\n{BEARER}\r\n").as_bytes());
    let response = client.response();
    assert_eq!(response.field("Connection"), Some("keep-alive"));
    client.send(format!("GET /sse?n=2&ms=0 HTTP/1.0\r\n{BEARER}\r\n").as_bytes());
    let response = client.response();
    assert_eq!(response.field("Transfer-Encoding"), None);
    assert!(response.content.ends_with(b"data: [DONE]\n\n"));
    assert!(client.at_end());
}

#[test]
fn downloads_in_every_framing() {
    let mock = mock(&[]);
    let expected: Vec<u8> = (0..300_000u64)
        .map(|i| (((i % 65_521) as u32).wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for (query, field, value) in [
        ("", "Content-Length", Some("300000")),
        ("?chunked=1", "Transfer-Encoding", Some("chunked")),
        ("?close=1", "Connection", Some("close")),
    ] {
        let response = get(&mock, &format!("/bytes/300000{query}"));
        assert_eq!(response.field(field), value);
        assert!(response.content == expected, "{query}");
        assert!(response.clean, "{query}");
    }
    assert_eq!(get(&mock, "/bytes/0").content, b"");
    assert_eq!(get(&mock, "/bytes/x").status, 400);
}

#[test]
fn events_arrive_one_by_one() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    client.send(format!("GET /sse?n=3&ms=400 HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n").as_bytes());
    let head = client.head();
    assert_eq!(head.field("Content-Type"), Some("text/event-stream"));
    let mut events = Vec::new();
    while let Some(chunk) = client.chunk() {
        events.push((SystemTime::now(), String::from_utf8(chunk).unwrap()));
    }
    assert_eq!(events.len(), 4);
    assert!(events[0].1.starts_with("id: 0\ndata: {"));
    assert_eq!(events[3].1, "data: [DONE]\n\n");
    // The first event was here before the last was sent: nothing was held back.
    let json = events[2].1.trim_end().split_once("data: ").unwrap().1;
    let event = serde_json::from_str::<Value>(json).unwrap();
    let sent = event["sent_us"].as_u64().unwrap();
    // The other stamp is of a clock that this process reads too: it is not ahead of us.
    let stamp = event["monotonic_ns"].as_u64().unwrap();
    let now = mock_upstream::clock::monotonic_nanos();
    assert!(stamp <= now && now - stamp < 20_000_000_000);
    assert!(events[0].0 < UNIX_EPOCH + Duration::from_micros(sent));
    assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 200);
}

#[test]
fn web_sockets_echo() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    let upgrade = |version: u8| {
        format!(
            "GET /ws HTTP/1.1\r\nHost: x\r\n{BEARER}Connection: keep-alive, Upgrade\r\n\
             Upgrade: WebSocket\r\nSec-WebSocket-Version: {version}\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    };
    client.send(upgrade(13).as_bytes());
    let response = client.head();
    assert_eq!(response.status, 101);
    let accept = response.field("Sec-WebSocket-Accept");
    assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));

    let long = vec![b'x'; 70_000];
    for (first, payload, answer) in [
        (0x81, &b"text"[..], 0x81),
        (0x82, &long, 0x82),
        (0x01, b"fragment", 0x01),
        (0x89, b"ping", 0x8a),
        (0x80, b"", 0x80),
    ] {
        client.send(&client::masked_frame(first, payload));
        let (opcode, content) = client.frame();
        assert_eq!(opcode, answer);
        assert!(content == payload);
    }
    client.send(&client::masked_frame(0x88, &[0x03, 0xe8]));
    assert_eq!(client.frame(), (0x88, vec![0x03, 0xe8]));
    assert!(client.at_end());

    let mut client = mock.connect();
    client.send(upgrade(8).as_bytes());
    assert_eq!(client.response().status, 426);
    assert_eq!(get(&mock, "/ws").status, 400);
    let mut client = mock.connect();
    client.send(upgrade(13).as_bytes());
    assert_eq!(client.head().status, 101);
    // Unmasked: a protocol error.
    client.send(&[0x81, 1, b'x']);
    assert_eq!(client.frame(), (0x88, vec![0x03, 0xea]));
}

#[test]
fn answers_as_told() {
    let mock = mock(&[]);
    assert_eq!(get(&mock, "/status/503").status, 503);
    assert_eq!(get(&mock, "/status/204").content, b"");
    assert_eq!(get(&mock, "/status/99").status, 400);
    let response = get(&mock, "/headers?Link=%3C/a%3E&Link=b&X-A=c+d&:status=201");
    assert_eq!(response.status, 201);
    let links: Vec<_> = response.fields("Link").collect();
    assert_eq!(links, ["</a>", "b"]);
    assert_eq!(response.field("X-A"), Some("c d"));
    for bad in ["X=a%0d%0aB:c", "a%20b=c", "Content-Length=9", ":status=100"] {
        assert_eq!(get(&mock, &format!("/headers?{bad}")).status, 400, "{bad}");
    }
    let response = get(&mock, "/redirect?to=https://h/x%3Fy&status=307");
    assert_eq!(response.status, 307);
    assert_eq!(response.field("Location"), Some("https://h/x?y"));
    assert_eq!(get(&mock, "/redirect").status, 400);
    let response = get(&mock, "/trailers");
    let expected = ("x-body-sha256".to_string(), sha256_hex(b""));
    assert!(response.trailers.contains(&expected));
    assert_eq!(get(&mock, "/nothing").status, 404);
    let mut client = mock.connect();
    let first = client.request("GET", "/hints/2", BEARER, b"");
    assert_eq!(first.field("Link"), Some("</0.css>; rel=preload"));
    assert_eq!((first.status, client.response().status), (103, 103));
    assert_eq!(client.response().json()["hints"], 2);
    let started = Instant::now();
    assert_eq!(get(&mock, "/delay/120").status, 200);
    assert!(started.elapsed() >= Duration::from_millis(120));
}

#[test]
fn parameters_out_of_range_are_refused_with_a_sentence() {
    let mock = mock(&[]);
    for (target, part) in [
        ("/sse?n=-1", "`n` must be a whole number from 0 to"),
        (
            "/sse?n=2&ms=fast",
            "`ms` must be a whole number from 0 to 3600000",
        ),
        ("/sse?ms=3600001", "`ms` must be"),
        (
            "/redirect?to=/x&status=200",
            "`status` must be a whole number from 300 to 399",
        ),
        ("/redirect?to=/x&status=x", "`status` must be"),
        ("/redirect?status=302", "`to` must be there"),
        (
            "/leak?status=99",
            "`status` must be a whole number from 200 to 599",
        ),
        ("/leak?body=yes", "`body` must be 0 or 1"),
        ("/echo?body=-1", "`body` must be 0 or 1"),
        ("/bytes/5?chunked=yes", "`chunked` must be 0 or 1"),
        ("/bytes/5?close=2", "`close` must be 0 or 1"),
        ("/bytes/-5", "needs a whole number"),
        ("/delay/3600001", "at most 3600000 milliseconds"),
        ("/hangup/3600001", "at most 3600000 milliseconds"),
        ("/slow-head/3600001", "at most 3600000 milliseconds"),
    ] {
        let response = get(&mock, target);
        let text = String::from_utf8(response.content).unwrap();
        assert_eq!(response.status, 400, "{target}: {text}");
        assert!(text.contains(part), "{target}: {text}");
    }
    let mut client = mock.connect();
    let head = client.request("GET", "/sse?n=0&ms=0", BEARER, b"");
    assert_eq!(head.content, b"data: [DONE]\n\n");
    assert_eq!(
        client
            .request("GET", "/bytes/0?close=0", BEARER, b"")
            .status,
        200
    );
}

#[test]
fn leaks_the_key_where_real_apis_do() {
    let mock = Mock::start(&["--key", "k y/1"]);
    let mut client = mock.connect();
    client.send(b"GET /leak?key=k%20y%2f1&body=1&status=200 HTTP/1.1\r\nHost: api.test\r\n\r\n");
    let response = client.response();
    let next = "https://api.test/next?key=k%20y%2F1";
    assert_eq!(response.field("Location"), Some(next));
    assert_eq!(
        response.field("Link"),
        Some(&*format!("<{next}&page=2>; rel=\"next\""))
    );
    assert_eq!(response.json()["key"], "k y/1");
}

#[test]
fn misbehaves_as_told() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    client.send(format!("GET /drop HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n").as_bytes());
    let mut rest = Vec::new();
    // No `close_notify`: rustls calls that an unexpected end.
    assert!(client.stream.read_to_end(&mut rest).is_err() && rest.is_empty());

    let mut client = mock.connect();
    client.send(format!("GET /truncate/1000 HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n").as_bytes());
    assert_eq!(client.head().field("Content-Length"), Some("1000"));
    let mut rest = Vec::new();
    assert!(client.stream.read_to_end(&mut rest).is_err());
    assert_eq!(rest.len() + client.buffered(), 500);

    let started = Instant::now();
    assert_eq!(get(&mock, "/slow-head/140").content, b"slow\n");
    assert!(started.elapsed() >= Duration::from_millis(140));

    let mut client = mock.connect();
    let response = client.request("GET", "/hangup/1", BEARER, b"");
    assert_eq!(response.field("Connection"), None);
    assert!(client.at_end());

    // The answer survives although most of the body is still on its way.
    let mut client = mock.connect();
    let head =
        format!("POST /early/10 HTTP/1.1\r\nHost: x\r\n{BEARER}Content-Length: 9000000\r\n\r\n");
    let request = [head.as_bytes(), &vec![b'x'; 9_000_000]].concat();
    client.send_as_far_as_it_goes(&request);
    let response = client.response();
    assert_eq!(response.status, 413);
    assert_eq!(response.field("Connection"), Some("close"));
}

#[test]
fn notices_clients_that_leave() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    client.send(format!("GET /delay/60000 HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n").as_bytes());
    mock.await_stats(|stats| stats["endpoints"]["delay"] == 1);
    assert_eq!(mock.stats()["connections_open"], 1);
    drop(client);
    let stats = mock.await_stats(|stats| stats["connections_open"] == 0);
    assert_eq!(stats["abandoned"], 1);
}

#[test]
fn closes_idle_connections() {
    let mock = mock(&["--idle-timeout", "2"]);
    let mut idle = mock.connect();
    assert_eq!(idle.request("GET", "/ok", BEARER, b"").status, 200);
    // A connection that the server keeps waiting is not idle.
    assert_eq!(get(&mock, "/delay/4500").status, 200);
    assert!(idle.at_end());
    assert_eq!(mock.stats()["idle_closed"], 1);
}

#[test]
fn closes_after_so_many_requests() {
    let mock = mock(&["--requests-per-connection", "3"]);
    let mut client = mock.connect();
    let request = format!("GET /ok HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n");
    client.send(request.repeat(5).as_bytes());
    for close in [None, None, Some("close")] {
        assert_eq!(client.response().field("Connection"), close);
    }
    assert!(client.at_end());
}

#[test]
fn personalities_answer_like_their_models() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    let json = format!("{BEARER}Content-Type: application/json\r\n");
    let chat = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let answer = client
        .request("POST", "/v1/chat/completions", &json, chat)
        .json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "m");
    assert_eq!(answer["choices"][0]["message"]["content"], "You said: hi");

    let chat = br#"{"stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let stream = client.request("POST", "/v1/chat/completions", &json, chat);
    let text = String::from_utf8(stream.content).unwrap();
    let content: String = text
        .split("\n\n")
        .filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok())
        .filter_map(|chunk| {
            Some(
                chunk["choices"][0]["delta"]["content"]
                    .as_str()?
                    .to_string(),
            )
        })
        .collect();
    assert_eq!(content, "You said: hi");
    assert!(text.ends_with("data: [DONE]\n\n"));

    let sent = client.request("POST", "/v3/mail/send", &json, b"{}");
    assert_eq!(sent.status, 202);
    assert!(sent.field("X-Message-Id").is_some());

    let form = format!("{BEARER}Content-Type: application/x-www-form-urlencoded\r\n");
    let customer = client
        .request("POST", "/v1/customers", &form, b"email=a%40b.c")
        .json();
    assert_eq!(customer["email"], "a@b.c");

    let target = format!("/v1beta/models/gemini:generateContent?key={KEY}");
    let answer = client
        .request("POST", &target, "", br#"{"contents":[]}"#)
        .json();
    assert_eq!(answer["modelVersion"], "gemini");
}

#[test]
fn personalities_come_from_files_too() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("p.json");
    std::fs::write(
        &file,
        r#"{"styles": {"own": {"missing": {"status": 403, "json": "m"}, "wrong": {"status": 403, "json": "w"}}},
            "personalities": [{"name": "Own", "style": "own", "routes": [
                {"method": "GET", "path": "/own/{x}", "json": {"x": "{{path.x}}"}}]}]}"#,
    )
    .unwrap();
    let mock = mock(&["--personalities", file.to_str().unwrap()]);
    assert_eq!(get(&mock, "/own/1").json()["x"], "1");
    assert_eq!(mock.connect().request("GET", "/own/1", "", b"").status, 403);
}

#[test]
fn records_every_request() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("record");
    let mock = mock(&["--record", file.to_str().unwrap(), "--workers", "2"]);
    for index in 0..10 {
        let body = vec![b'x'; index];
        get(&mock, "/ok");
        mock.connect().request("POST", "/status/200", BEARER, &body);
        mock.connect().request("GET", "/early/0", "", b"");
    }
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains(KEY));
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a whole line"))
        .collect();
    assert_eq!(lines.len(), 30);
    assert_eq!(lines[28]["body_sha256"], sha256_hex(b"xxxxxxxxx"));
    assert_eq!(lines[29]["auth"], "missing");
    assert_eq!(lines[29]["authorized"], false);
}

#[test]
fn both_drivers_and_several_workers_and_addresses() {
    for driver in ["epoll", "auto"] {
        let mock = mock(&[
            "--driver",
            driver,
            "--workers",
            "3",
            "--listen",
            "127.0.0.1:0",
            "--listen",
            "[::1]:0",
        ]);
        assert_eq!(mock.addresses.len(), 2);
        for _ in 0..12 {
            let mut client = mock.connect();
            assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 200);
            let body = client.request("GET", "/bytes/200000", BEARER, b"").content;
            assert_eq!(body.len(), 200_000);
            assert_eq!(client.request("GET", "/delay/5", BEARER, b"").status, 200);
        }
        let mut client = mock.connect_to(mock.addresses[1]).expect("connects");
        assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 200);
        assert_eq!(mock.stats()["connections"], 13);
    }
}

#[test]
fn clear_text_when_asked() {
    let mock = Mock::start(&["--plain", "--auth", "none"]);
    let mut client = mock.connect_plain(mock.addresses[0]);
    let echo = client.request("GET", "/echo", "", b"").json();
    assert_eq!(echo["tls"], Value::Null);
    assert_eq!(echo["auth"], "none");
    let body = client.request("GET", "/bytes/200000", "", b"").content;
    assert_eq!(body.len(), 200_000);
}

#[test]
fn runs_within_a_process_too() {
    use clap::Parser as _;
    let options = mock_upstream::cli::Options::parse_from(["mock", "--plain", "--key", "k"]);
    let running = mock_upstream::server::start(&options, None).expect("starts");
    let stream = std::net::TcpStream::connect(running.listening[0]).expect("connects");
    let mut client = Client::over(Box::new(stream));
    let fields = "Authorization: Bearer k\r\n";
    assert_eq!(client.request("GET", "/ok", fields, b"").status, 200);
    running.stop().expect("stops");
    assert!(client.at_end());
}

/// Debian's curl, as an unmodified client would be.
#[test]
fn curl_agrees() {
    let mock = mock(&[]);
    let port = mock.addresses[0].port();
    let url = |path: &str| format!("https://api.example.com:{port}{path}");
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail-with-body",
                "--max-time",
                "10",
            ])
            .args(["--noproxy", "*", "--resolve"])
            .arg(format!("api.example.com:{port}:127.0.0.1"))
            .arg("--cacert")
            .arg(mock.ca())
            .args(["--header", BEARER.trim_end()])
            .args(arguments)
            .output()
            .expect("curl is missing: run `scripts/test --setup` once");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(
            output.status.success(),
            "{arguments:?}: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    };
    let directory = tempfile::tempdir().unwrap();
    let body = vec![b'x'; 200_000];
    let expected = sha256_hex(&body);
    let file = directory.path().join("body");
    std::fs::write(&file, &body).unwrap();
    let body = format!("@{}", file.display());
    for extra in [
        &["-H", "Expect: 100-continue"][..],
        &["-H", "Transfer-Encoding: chunked"],
    ] {
        let uploaded = curl(&[&["--data-binary", &body, &url("/upload")], extra].concat());
        assert!(uploaded.contains(&expected), "{uploaded}");
    }
    // Three requests on one connection.
    let twice = curl(&[&url("/echo"), &url("/ok"), &url("/echo")]);
    assert!(
        twice.contains("\"request\":1") && twice.contains("\"request\":3"),
        "{twice}"
    );
    assert!(curl(&["--no-buffer", &url("/sse?n=2&ms=1")]).ends_with("data: [DONE]\n\n"));
    assert!(curl(&["--raw", &url("/trailers")]).contains("X-Body-Bytes: 0"));
}
