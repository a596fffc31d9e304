//! The control port, over real sockets: latency, limits, idempotency, records, counters, and what
//! it refuses.

use std::time::{Duration, Instant};

use super::client::{Client, Mock, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const BEARER: &str = "Authorization: Bearer real-key-1234567890\r\n";

fn mock(extra: &[&str]) -> Mock {
    let mut arguments = vec!["--key", "real-key-1234567890", "--control", "127.0.0.1:0"];
    arguments.extend_from_slice(extra);
    Mock::start(&arguments)
}

fn get(mock: &Mock, target: &str) -> Response {
    mock.connect().request("GET", target, BEARER, b"")
}

/// Sets something; the answer must be a success.
#[track_caller]
fn put(mock: &Mock, path: &str, document: Value) -> Response {
    let response = mock.control("PUT", path, document.to_string().as_bytes());
    let text = String::from_utf8_lossy(&response.content);
    assert!(matches!(response.status, 200 | 204), "{path}: {text}");
    response
}

#[test]
fn bad_documents_are_refused_with_a_sentence_and_change_nothing() {
    let mock = mock(&[]);
    put(
        &mock,
        "/__latency",
        json!({"rules": [{"path": "/x", "model": "fixed:1ms"}]}),
    );
    put(
        &mock,
        "/__limits",
        json!({"rules": [{"path": "/x", "requests": 9, "per": "1s"}]}),
    );
    put(
        &mock,
        "/__faults",
        json!({"rules": [{"path": "/x", "action": "switch"}]}),
    );
    for (path, document, part) in [
        (
            "/__latency",
            r#"{"rules": [{"model": "gauss:1"}]}"#,
            "lognormal:median=20ms",
        ),
        ("/__latency", r#"{"rule": []}"#, "unknown field `rule`"),
        ("/__latency", "[7,[]]", "expected an object"),
        ("/__faults", "[7,[]]", "expected an object"),
        ("/__limits", "[[]]", "expected an object"),
        (
            "/__limits",
            r#"{"rules": [{"requests": 1, "per": "soon"}]}"#,
            "as in `20ms`",
        ),
        (
            "/__limits",
            r#"{"rules": [{"requests": 1, "per": "1s", "style": "x"}]}"#,
            "there are anthropic",
        ),
        (
            "/__faults",
            r#"{"rules": [{"action": "boom"}]}"#,
            "rule 1: `action` cannot be `boom`",
        ),
        ("/__faults", "[", "EOF"),
        ("/__keys", "\n\n", "one key a line"),
    ] {
        let response = mock.control("PUT", path, document.as_bytes());
        let text = String::from_utf8(response.content).unwrap();
        assert_eq!(response.status, 400, "{path} {text}");
        let message: Value = serde_json::from_str(&text).unwrap();
        assert!(
            message["message"].as_str().unwrap().contains(part),
            "{text}"
        );
    }
    let latency = mock.control("GET", "/__latency", b"").json();
    assert_eq!(latency["rules"][0]["model"], "fixed:1ms");
    let limits = mock.control("GET", "/__limits", b"").json();
    assert_eq!(limits["rules"][0]["requests"], 9);
    let faults = mock.control("GET", "/__faults", b"").json();
    assert_eq!(faults["rules"][0]["action"], "switch");
    assert_eq!(mock.control("POST", "/__latency", b"").status, 405);
    assert_eq!(mock.control("GET", "/__none", b"").status, 404);
    assert_eq!(mock.control("GET", "/__records", b"").status, 400);
}

#[test]
fn answers_take_as_long_as_the_model_says_and_not_much_longer() {
    let mock = mock(&["--latency", "/ok=fixed:500us", "--seed", "7"]);
    let mut client = mock.connect();
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let started = Instant::now();
            assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 200);
            started.elapsed()
        })
        .collect();
    times.sort();
    // The lower bound is exact; the upper one allows for a busy machine, but not for timers that
    // round to 1 ms (the smallest would be).
    assert!(times[0] >= Duration::from_micros(500), "{:?}", times[0]);
    assert!(times[0] < Duration::from_micros(1000), "{:?}", times[0]);

    // The same seed draws the same latencies, whichever request they fall to.
    let rules = json!({"seed": 3, "rules": [{"path": "/status/", "model": "bimodal:fast=0ms,slow=60ms,share=0.5"}]});
    let slow = || -> Vec<bool> {
        let report = put(&mock, "/__latency", rules.clone()).json();
        assert_eq!(report["seed"], 3);
        let mut client = mock.connect();
        (0..12)
            .map(|_| {
                let started = Instant::now();
                client.request("GET", "/status/200", BEARER, b"");
                started.elapsed() >= Duration::from_millis(60)
            })
            .collect()
    };
    let first = slow();
    assert!(first.contains(&true) && first.contains(&false), "{first:?}");
    // A fast answer may be late on a busy machine, never early.
    let second = slow();
    assert!(first.iter().zip(&second).filter(|(a, b)| a != b).count() <= 2);
    assert_eq!(
        mock.control("GET", "/__latency", b"").json()["rules"][0]["drawn"],
        12
    );
    assert_eq!(mock.control("DELETE", "/__latency", b"").status, 204);
}

#[test]
fn limits_are_counted_per_key_over_all_workers_and_told_in_the_providers_dialect() {
    let mock = mock(&["--workers", "3"]);
    let keys = b"real-key-1234567890\nother-key";
    assert_eq!(mock.control("PUT", "/__keys", keys).status, 204);
    put(
        &mock,
        "/__limits",
        json!({"rules": [
            {"path": "/v1/chat", "requests": 3, "per": "1h"},
            {"path": "/user", "requests": 1, "per": "1h"},
            {"path": "/v3/", "requests": 1, "per": "1h"},
            {"path": "/v1/balance", "requests": 0, "per": "90s"},
            {"path": "/status/", "requests": 1, "per": "1h", "style": "generic"}]}),
    );
    let chat = |fields: &str| {
        mock.connect()
            .request("POST", "/v1/chat/completions", fields, b"{}")
    };
    let left: Vec<Option<String>> = (0..4)
        .map(|_| {
            chat(BEARER)
                .field("x-ratelimit-remaining-requests")
                .map(str::to_string)
        })
        .collect();
    assert_eq!(
        left.iter().flatten().collect::<Vec<_>>(),
        ["2", "1", "0", "0"]
    );
    let refused = chat(BEARER);
    assert_eq!(refused.status, 429);
    let retry: u64 = refused.field("Retry-After").unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&retry), "{retry}");
    let error: Value = serde_json::from_slice(&refused.content).unwrap();
    assert_eq!(error["error"]["code"], "rate_limit_exceeded");
    assert_eq!(chat("Authorization: Bearer other-key\r\n").status, 200);

    for (target, method, field, status) in [
        ("/user", "GET", "x-ratelimit-used", 429),
        ("/v3/mail/send", "POST", "X-RateLimit-Reset", 429),
        ("/status/200", "GET", "RateLimit", 429),
    ] {
        let answer = mock.connect().request(method, target, BEARER, b"{}");
        assert!(
            answer.status < 300 && answer.field(field).is_some(),
            "{target}"
        );
        let answer = mock.connect().request(method, target, BEARER, b"{}");
        assert_eq!(answer.status, status, "{target}");
        assert!(answer.field(field).is_some() && answer.field("Retry-After").is_some());
    }
    let policy = get(&mock, "/status/200");
    assert_eq!(
        policy.field("RateLimit-Policy"),
        Some("\"default\";q=1;w=3600")
    );
    assert!(
        policy
            .field("RateLimit")
            .unwrap()
            .starts_with("\"default\";r=0;t=3")
    );
    let stripe = get(&mock, "/v1/balance");
    assert_eq!(
        (stripe.status, stripe.field("Retry-After")),
        (429, Some("90"))
    );
    assert_eq!(mock.stats()["limited"], 7);
    mock.control("DELETE", "/__limits", b"");
    assert_eq!(get(&mock, "/v1/balance").status, 200);
}

#[test]
fn idempotency_keys_hold_over_all_workers() {
    let mock = mock(&["--workers", "3"]);
    let form = format!("{BEARER}Content-Type: application/x-www-form-urlencoded\r\n");
    let pay = |key: &str, body: &[u8]| {
        let fields = format!("{form}Idempotency-Key: {key}\r\n");
        mock.connect()
            .request("POST", "/v1/payment_intents", &fields, body)
    };
    let first = pay("k1", b"amount=1200&currency=eur&metadata[order]=7");
    assert_eq!(first.field("Idempotent-Replayed"), None);
    assert_eq!(first.field("Idempotency-Key"), Some("k1"));
    let intent = first.json();
    assert_eq!(intent["amount"], 1200);
    assert_eq!(intent["metadata"]["order"], "7");
    for _ in 0..6 {
        let again = pay("k1", b"amount=1200&currency=eur&metadata[order]=7");
        assert_eq!(again.field("Idempotent-Replayed"), Some("true"));
        assert_eq!(again.content, first.content);
        assert_eq!(again.field("Request-Id"), first.field("Request-Id"));
    }
    let other = pay("k1", b"amount=1300");
    assert_eq!(other.status, 400);
    let error: Value = serde_json::from_slice(&other.content).unwrap();
    assert_eq!(error["error"]["type"], "idempotency_error");
    assert_ne!(pay("k2", b"amount=1200").json()["id"], intent["id"]);

    // While the first is under way, the second is in conflict; when its client leaves, the key is
    // free again.
    put(
        &mock,
        "/__latency",
        json!({"rules": [{"path": "/v1/payment", "model": "fixed:1h"}]}),
    );
    let mut under_way = mock.connect();
    let request = format!(
        "POST /v1/payment_intents HTTP/1.1\r\nHost: x\r\n{form}Idempotency-Key: k3\r\nContent-Length: 8\r\n\r\namount=1"
    );
    under_way.send(request.as_bytes());
    mock.await_stats(|stats| stats["idempotency_keys"] == 3);
    mock.control("DELETE", "/__latency", b"");
    assert_eq!(pay("k3", b"amount=1").status, 409);
    drop(under_way);
    mock.await_stats(|stats| stats["idempotency_keys"] == 2);
    assert_eq!(pay("k3", b"amount=1").status, 200);
    assert_eq!(mock.stats()["replayed"], 6);
}

#[test]
fn chat_streams_tell_the_usage_if_asked() {
    let mock = mock(&[]);
    let fields = format!("{BEARER}Content-Type: application/json\r\n");
    let chunks = |options: &str| -> Vec<Value> {
        let body = format!(
            r#"{{"stream":true{options},"messages":[{{"role":"user","content":"hello there"}}]}}"#
        );
        let answer =
            mock.connect()
                .request("POST", "/v1/chat/completions", &fields, body.as_bytes());
        let text = String::from_utf8(answer.content).unwrap();
        text.split("\n\n")
            .filter_map(|event| serde_json::from_str(event.strip_prefix("data: ")?).ok())
            .collect()
    };
    for chunk in chunks("") {
        assert!(chunk.get("usage").is_none(), "{chunk}");
    }
    let mut told = chunks(r#","stream_options":{"include_usage":true}"#);
    let last = told.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    let usage = &last["usage"];
    let total =
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], total);
    for chunk in told {
        assert_eq!(chunk.get("usage"), Some(&Value::Null), "{chunk}");
    }
}

#[test]
fn raw_records_have_every_byte() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("raw");
    let mock = mock(&["--record-raw", file.to_str().unwrap(), "--workers", "2"]);
    let mut client = mock.connect();
    let odd = b"POST  /echo?x=%41 HTTP/1.1\r\n";
    let first = format!(
        "POST /echo?x=%41 HTTP/1.1\r\nhOST:  x \r\nX-Tab:\ta\t\r\n{BEARER}Transfer-Encoding: chunked\r\n\r\n\
         3;ext=\"q\" ;b\r\nabc\r\n00a\r\n0123456789\r\n0\r\nX-T:  v \r\n\r\n"
    );
    let second = format!("GET /ok HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n");
    // In pieces, pipelined: the record knows where one ends.
    let both = [first.as_bytes(), second.as_bytes()].concat();
    for piece in both.chunks(29) {
        client.send(piece);
    }
    assert_eq!(client.response().status, 200);
    assert_eq!(client.response().status, 200);
    client.send(odd);
    assert_eq!(client.response().status, 400);
    let mut late = mock.connect();
    let early = format!("POST /early/0 HTTP/1.1\r\nHost: x\r\n{BEARER}Content-Length: 5\r\n\r\n");
    late.send(early.as_bytes());
    assert_eq!(late.response().status, 413);

    let report = mock.control("GET", "/__records", b"").json();
    let records = report["records"].as_array().unwrap();
    let bytes = |index: usize| {
        STANDARD
            .decode(records[index]["base64"].as_str().unwrap())
            .unwrap()
    };
    assert_eq!(records.len(), 4, "{report}");
    assert_eq!(bytes(0), first.as_bytes());
    assert_eq!(bytes(1), second.as_bytes());
    assert_eq!(bytes(2), odd);
    assert_eq!(records[2]["error"], "malformed request target");
    assert_eq!(bytes(3), early.as_bytes());
    for (index, request) in [(0, 1), (1, 2), (2, 3), (3, 1)] {
        assert_eq!(records[index]["request"], request);
        assert_eq!(records[index]["truncated"], false);
    }
    assert_eq!(records[0]["connection"], records[2]["connection"]);
    let rest = mock.control("GET", "/__records?after=3", b"").json();
    assert_eq!(rest["records"].as_array().unwrap().len(), 1);
    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 4);
    assert_eq!(mock.control("DELETE", "/__records", b"").status, 204);
    let empty = mock.control("GET", "/__records", b"").json();
    assert_eq!(empty["records"], json!([]));
}

#[test]
fn raw_records_can_be_files_of_their_own() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let mock = mock(&["--record-raw", directory.path().to_str().unwrap()]);
    let mut client = mock.connect();
    let head = format!("POST /upload HTTP/1.1\r\nHost: x\r\n{BEARER}Content-Length: 3\r\n\r\n");
    let request = [head.as_bytes(), b"\0\xff\n"].concat();
    client.send(&request);
    assert_eq!(client.response().status, 200);
    let file = std::fs::read_dir(directory.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert!(file.file_name().to_str().unwrap().ends_with("-1.http"));
    assert_eq!(std::fs::read(file.path()).unwrap(), request);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn counters_tell_reuse_and_start_again() {
    let mock = mock(&[]);
    let mut client = mock.connect();
    for _ in 0..3 {
        assert_eq!(client.request("GET", "/ok", BEARER, b"").status, 200);
    }
    drop(client);
    let stats = mock.await_stats(|stats| stats["requests_per_connection"]["2-10"] == 1);
    assert_eq!(
        (&stats["requests_reused"], &stats["connections_used"]),
        (&json!(2), &json!(1))
    );
    let mut open = mock.connect();
    open.request("GET", "/ok", BEARER, b"");
    assert_eq!(mock.control("POST", "/__stats/reset", b"").status, 204);
    open.request("GET", "/ok", BEARER, b"");
    let stats = mock.stats();
    assert_eq!(stats["requests"], 1);
    assert_eq!(stats["requests_reused"], 1);
    assert_eq!(stats["connections"], 0);
    assert_eq!(stats["connections_open"], 1);
    assert_eq!(stats["endpoints"], json!({"ok": 1}));
}

#[test]
fn limits_and_faults_can_be_in_force_from_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> String {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let limits = write(
        "l",
        r#"{"rules": [{"path": "/ok", "requests": 1, "per": "1h"}]}"#,
    );
    let faults = write(
        "f",
        r#"{"rules": [{"path": "/healthz", "action": {"framing": {"defect": "length_short"}}}]}"#,
    );
    let histogram = write("h", "1000 1\n");
    let model = format!("/status/=histogram:{histogram},unit=us");
    let mock = mock(&[
        "--limits",
        &limits,
        "--faults",
        &faults,
        "--latency",
        &model,
    ]);
    assert_eq!(get(&mock, "/ok").status, 200);
    assert_eq!(get(&mock, "/ok").status, 429);
    assert_eq!(get(&mock, "/healthz").field("Content-Length"), Some("2"));
    let started = Instant::now();
    assert_eq!(get(&mock, "/status/200").status, 200);
    assert!(started.elapsed() >= Duration::from_millis(1));
}

#[test]
fn thousands_of_idle_connections() {
    // Whoever runs this may not have so many descriptors; then with as many as there are.
    let (soft, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard);
    let count = 2_000.min(hard as usize / 2);
    assert!(count > 400, "soft {soft}, hard {hard}");
    let mock = Mock::start(&[
        "--plain",
        "--auth",
        "none",
        "--control",
        "127.0.0.1:0",
        "--idle-timeout",
        "0",
    ]);
    let mut clients: Vec<Client> = (0..count)
        .map(|_| mock.connect_plain(mock.addresses[0]))
        .collect();
    mock.await_stats(|stats| stats["connections_open"] == count);
    for client in clients.iter_mut().step_by(97) {
        assert_eq!(client.request("GET", "/ok", "", b"").status, 200);
    }
}
