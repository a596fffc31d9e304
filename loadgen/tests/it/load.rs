//! Loads of every kind: scenarios, streams, bodies, idle connections, changing rates.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use serde_json::Value;

use crate::mock::Mock;
use crate::server::{NAME, Server, Then, ok};
use crate::{measure, number, run, shown, target};

/// Runs against `mock` with `args` behind what every run needs.
fn measure_mock(mock: &Mock, path: &str, args: &[&str]) -> (i32, Value) {
    let (url, ca) = (format!("https://{NAME}{path}"), mock.ca());
    let base = [
        url.as_str(),
        "--connect",
        &mock.address,
        "--cacert",
        shown(&ca),
        "--warmup",
        "0ms",
        "--lag-bound",
        "10s",
        "--timeout",
        "60s",
    ];
    measure(&[&base, args].concat())
}

#[test]
fn the_example_scenarios_run_without_an_error() {
    let mock = Mock::start();
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut seen = 0;
    for entry in fs::read_dir(scenarios).unwrap() {
        let path = entry.unwrap().path();
        let (code, document) = measure_mock(
            &mock,
            "/",
            &[
                "--scenario",
                shown(&path),
                "--concurrency",
                "8",
                "--duration",
                "1500ms",
            ],
        );
        let figures = target(&document);
        assert_eq!(code, 0, "{path:?}");
        assert_eq!(figures["errors_total"], 0, "{path:?}: {figures:#}");
        let parts = figures["by_request"].as_array().unwrap();
        assert!(parts.len() > 1, "{path:?}");
        let sum: f64 = parts.iter().map(|part| number(&part["good"])).sum();
        assert_eq!(sum, number(&figures["good"]), "{path:?}");
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn the_mix_is_that_of_the_weights_and_the_same_for_a_seed() {
    let paths = std::sync::Arc::new(Mutex::new(Vec::new()));
    let there = paths.clone();
    let server = Server::plain(move |request, out| {
        there.lock().unwrap().push(request.path().to_owned());
        ok(out, "")
    });
    let file = server.file("mix.toml");
    fs::write(
        &file,
        "[[request]]\nname='a'\nweight=3\npath='/a'\n[[request]]\nname='b'\npath='/b'\nexpect_status='404'",
    )
    .unwrap();
    let url = format!("http://{}/", server.address);
    let mut runs = Vec::new();
    for seed in ["1", "1", "2"] {
        let (_, document) = measure(&[
            &url,
            "--scenario",
            shown(&file),
            "--rps",
            "400",
            "--duration",
            "1s",
            "--warmup",
            "0ms",
            "--connections",
            "1",
            "--lag-bound",
            "10s",
            "--seed",
            seed,
        ]);
        let figures = target(&document);
        let [a, b] = [0, 1].map(|index| &figures["by_request"][index]);
        assert!((number(&a["requests"]) - 300.0).abs() < 60.0, "{a}");
        assert_eq!(a["errors_total"], 0);
        assert_eq!(b["errors"]["bad_status"], b["requests"]);
        assert_eq!(b["errors_total"], figures["errors_total"]);
        runs.push(std::mem::take(&mut *paths.lock().unwrap()));
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[test]
fn a_stream_without_the_time_asked_for_fails() {
    let server = Server::plain(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\ndata: a\n\ndata: b\n\n")?;
        Ok(Then::Keep)
    });
    let (code, document) = measure(&[
        &format!("http://{}/", server.address),
        "--kind",
        "sse",
        "--rps",
        "20",
        "--duration",
        "500ms",
        "--warmup",
        "0ms",
        "--lag-bound",
        "10s",
        "--fail-if",
        "sse.gap.max>10s",
        "--fail-if",
        "sse.delay.p99>10s",
    ]);
    assert_eq!(code, 1, "{document:#}");
    let gate = |index: usize| &document["gates"][index];
    assert_eq!(gate(0)["failed"], false);
    // Events without a stamp have no delay, and that is not a small one.
    assert_eq!(gate(1)["failed"], true);
    assert_eq!(gate(1)["value"], "nothing");
}

#[test]
fn events_and_messages_are_timed_one_by_one() {
    let mock = Mock::start();
    let (code, document) = measure_mock(
        &mock,
        "/sse?n=4&ms=30",
        &[
            "--kind",
            "sse",
            "--rps",
            "20",
            "--duration",
            "1s",
            "--fail-if",
            "sse.first_event.p99>5s",
            "--fail-if",
            "sse.gap.p50<25ms",
        ],
    );
    assert_eq!(code, 0);
    let figures = target(&document);
    assert_eq!(figures["good"], 20);
    let sse = &figures["sse"];
    assert!(number(&sse["events"]) >= 60.0, "{sse:#}");
    assert!(number(&sse["gap"]["p50"]) >= 25_000.0, "{sse:#}");
    assert_eq!(
        sse["delay"]["count"], sse["events"],
        "each carries its sender's clock: {sse:#}"
    );
    assert!(number(&sse["delay"]["p50"]) < 10_000.0, "{sse:#}");
    assert!(number(&sse["first_event"]["p50"]) < 30_000.0, "{sse:#}");

    let (code, document) = measure_mock(
        &mock,
        "/ws",
        &[
            "--kind",
            "websocket",
            "--rps",
            "20",
            "--duration",
            "500ms",
            "--fail-if",
            "websocket.handshake.max>50s",
            "--fail-if",
            "websocket.round_trip.p50>=1ns",
        ],
    );
    assert_eq!(code, 1, "its last condition holds");
    let failed = |index: usize| document["gates"][index]["failed"].as_bool();
    assert_eq!((failed(0), failed(1)), (Some(false), Some(true)));
    let figures = target(&document);
    assert_eq!(
        (&figures["good"], &figures["status"]["101"]),
        (&10.into(), &10.into())
    );
    let websocket = &figures["websocket"];
    assert!(number(&websocket["messages"]) >= 50.0, "{websocket:#}");
    assert!(number(&websocket["round_trip"]["p50"]) > 0.0);
    assert!(number(&websocket["handshake"]["count"]) >= 5.0);
}

#[test]
fn streams_that_are_not_what_they_should_be_are_errors() {
    let server = Server::plain(|request, out| {
        match request.path() {
            "/short" => {
                out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndata: 1\n\n")?;
            }
            "/refuses" => {
                ok(out, "no WebSocket here")?;
            }
            "/wrong-accept" => {
                out.write_all(
                    b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
                )?;
            }
            _ => return Ok(Then::Cut),
        }
        Ok(Then::Keep)
    });
    let file = server.file("wrong.toml");
    for (path, entry, kind) in [
        ("/short", "kind='sse'\nexpect_events=2", "wrong_body"),
        ("/cut", "kind='sse'", "reset"),
        ("/refuses", "kind='websocket'", "bad_status"),
        ("/wrong-accept", "kind='websocket'", "protocol"),
    ] {
        fs::write(
            &file,
            format!("[[request]]\nname='x'\npath='{path}'\n{entry}"),
        )
        .unwrap();
        let url = format!("http://{}/", server.address);
        let (_, document) = measure(&[
            &url,
            "--scenario",
            shown(&file),
            "--rps",
            "50",
            "--duration",
            "100ms",
            "--warmup",
            "0ms",
            "--lag-bound",
            "10s",
        ]);
        assert_eq!(target(&document)["errors"][kind], 5, "{path}: {document:#}");
    }
}

#[test]
fn bodies_are_verified_byte_by_byte_both_ways() {
    let mock = Mock::start();
    for (path, extra, received, sent) in [
        ("/bytes/3000000", &[][..], 3e6, 0.0),
        ("/upload", &["--data-size", "3MB"][..], 0.0, 3e6),
    ] {
        let args = [
            &["--verify", "--concurrency", "1", "--duration", "500ms"],
            extra,
        ]
        .concat();
        let (code, document) = measure_mock(&mock, path, &args);
        let figures = target(&document);
        assert_eq!(code, 0);
        assert_eq!(figures["errors_total"], 0, "{figures:#}");
        assert!(number(&figures["good"]) >= 1.0);
        assert!(
            number(&figures["bytes_received"]) >= received,
            "{figures:#}"
        );
        assert!(number(&figures["bytes_sent"]) >= sent, "{figures:#}");
    }
    // One byte of a megabyte is wrong; a digest is that of something else.
    let server = Server::plain(|request, out| match request.path() {
        "/download" => {
            let mut body: Vec<u8> = (0..1_000_000u64)
                .map(|i| (((i % 65_521) as u32).wrapping_mul(2_654_435_761) >> 24) as u8)
                .collect();
            body[777_777] ^= 1;
            write!(
                out,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                body.len()
            )?;
            out.write_all(&body)?;
            Ok(Then::Keep)
        }
        _ => ok(
            out,
            "{\"sha256\":\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"}",
        ),
    });
    for (path, extra) in [
        ("/download", &[][..]),
        ("/upload", &["--data-size", "1KiB"][..]),
    ] {
        let url = format!("http://{}{path}", server.address);
        let args = [
            &url,
            "--verify",
            "--rps",
            "50",
            "--duration",
            "100ms",
            "--warmup",
            "0ms",
            "--lag-bound",
            "10s",
        ];
        let (_, document) = measure(&[&args, extra].concat());
        assert_eq!(
            target(&document)["errors"]["wrong_body"],
            5,
            "{path}: {document:#}"
        );
    }
}

#[test]
fn an_answer_that_comes_before_the_upload_is_over_is_judged_by_its_status() {
    let mock = Mock::start();
    for path in ["/early/0", "/early/100000"] {
        let args = [
            "--data-size",
            "32MiB",
            "--rps",
            "20",
            "--duration",
            "500ms",
            "--connections",
            "10",
        ];
        let (_, document) = measure_mock(&mock, path, &args);
        let figures = target(&document);
        assert_eq!(figures["status"]["413"], 10, "{path}: {figures:#}");
        assert_eq!(figures["errors"]["bad_status"], 10, "{path}: {figures:#}");
        assert_eq!(figures["errors_total"], 10, "{path}: {figures:#}");
    }
}

#[test]
fn idle_connections_are_held_beside_the_load() {
    let server = Server::tls(|_, out| ok(out, "hello"));
    let (url, ca) = (format!("https://{NAME}/"), server.ca());
    let address = server.address.to_string();
    let base = [
        url.as_str(),
        "--connect",
        &address,
        "--cacert",
        shown(&ca),
        "--rps",
        "50",
        "--duration",
        "500ms",
        "--warmup",
        "0ms",
        "--lag-bound",
        "10s",
        "--connections",
        "2",
    ];
    let (code, document) = measure(&[&base[..], &["--idle", "30"]].concat());
    assert_eq!(code, 0);
    let idle = &target(&document)["idle"];
    assert_eq!(
        (&idle["opened"], &idle["lost"], &idle["good"]),
        (&30.into(), &0.into(), &0.into())
    );
    assert_eq!(server.connections(), 32);
    assert_eq!(server.requests(), 25, "they are idle");

    let output = run(&[&base[..], &["--idle", "20", "--idle-every", "200ms"]].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("ready: 2 active, 20 idle connections\n"),
        "{error}"
    );
    let requests = server.requests() - 25;
    assert!((25 + 20..=25 + 60).contains(&requests), "{requests}");
}

#[test]
fn idle_connections_that_the_server_closes_are_counted_as_lost() {
    let server = Server::plain(|request, out| {
        ok(out, "")?;
        Ok(match request.path() {
            "/close" => Then::Close,
            _ => Then::Keep,
        })
    });
    let (_, document) = measure(&[
        &format!("http://{}/close", server.address),
        "--concurrency",
        "1",
        "--duration",
        "500ms",
        "--warmup",
        "0ms",
        "--idle",
        "10",
        "--idle-every",
        "100ms",
    ]);
    let idle = &target(&document)["idle"];
    assert_eq!(
        (&idle["opened"], &idle["lost"], &idle["good"]),
        (&10.into(), &10.into(), &10.into())
    );
}

#[test]
fn connections_are_replaced_after_their_share_of_requests() {
    let most = std::sync::Arc::new(Mutex::new(0));
    let there = most.clone();
    let server = Server::tls(move |request, out| {
        let mut most = there.lock().unwrap();
        *most = request.earlier.max(*most);
        ok(out, "")
    });
    let (url, ca) = (format!("https://{NAME}/"), server.ca());
    let (code, document) = measure(&[
        &url,
        "--connect",
        &server.address.to_string(),
        "--cacert",
        shown(&ca),
        "--rps",
        "100",
        "--duration",
        "500ms",
        "--warmup",
        "0ms",
        "--connections",
        "2",
        "--lag-bound",
        "10s",
        "--requests-per-connection",
        "5",
        "--resume",
    ]);
    assert_eq!(code, 0);
    let figures = target(&document);
    assert_eq!(figures["errors_total"], 0);
    assert_eq!(*most.lock().unwrap(), 4, "each carries five");
    let opened = number(&figures["connections"]["opened"]);
    assert!((10.0..=12.0).contains(&opened), "{opened}");
    assert!(number(&figures["connections"]["resumed"]) >= 6.0);
    assert!(number(&figures["connections_opened_in_time"]) >= 7.0);
    assert!(number(&figures["connections"]["opening"]["p50"]) > 0.0);
}

#[test]
fn each_connection_presents_its_own_key_and_no_key_is_shown() {
    let seen = std::sync::Arc::new(Mutex::new(std::collections::BTreeMap::new()));
    let there = seen.clone();
    let server = Server::plain(move |request, out| {
        let key = request.headers["authorization"].clone();
        *there.lock().unwrap().entry(key).or_insert(0) += 1;
        ok(out, "")
    });
    let keys = server.file("keys");
    fs::write(&keys, "s3cret-one\ns3cret-two\n\ns3cret-three\n").unwrap();
    let output = run(&[
        &format!("http://{}/", server.address),
        "--caller-keys",
        shown(&keys),
        "--caller-header",
        "Authorization: Bearer {}",
        "--concurrency",
        "6",
        "--duration",
        "200ms",
        "--warmup",
        "0ms",
        "--json",
    ]);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    let seen = seen.lock().unwrap();
    let names: Vec<&str> = seen.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "Bearer s3cret-one",
            "Bearer s3cret-three",
            "Bearer s3cret-two"
        ]
    );
}

#[test]
fn connections_take_turns_with_client_certificates() {
    let server = Server::mutual(2, |_, out| ok(out, ""));
    let (url, ca, address) = (
        format!("https://{NAME}/"),
        server.ca(),
        server.address.to_string(),
    );
    let files = [
        "client-0.pem",
        "client-0.key",
        "client-1.pem",
        "client-1.key",
    ]
    .map(|name| server.file(name));
    let [cert, key, other_cert, other_key] = [0, 1, 2, 3].map(|index| shown(&files[index]));
    let base = [
        url.as_str(),
        "--connect",
        &address,
        "--cacert",
        shown(&ca),
        "--concurrency",
        "4",
        "--duration",
        "100ms",
        "--warmup",
        "0ms",
    ];
    let pairs = [
        "--client-cert",
        cert,
        "--client-key",
        key,
        "--client-cert",
        other_cert,
        "--client-key",
        other_key,
    ];
    let (code, document) = measure(&[&base[..], &pairs].concat());
    assert_eq!(code, 0);
    assert_eq!(target(&document)["errors_total"], 0);
    let mut clients = server.seen.clients.lock().unwrap().clone();
    assert_eq!(clients.len(), 4);
    clients.sort();
    clients.dedup();
    assert_eq!(clients.len(), 2, "each certificate was presented");

    // The key of another certificate, and no key at all.
    for (wrong, words) in [(other_key, "--client-key"), (cert, "no private key")] {
        let output = run(&[&base[..], &["--client-cert", cert, "--client-key", wrong]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn steps_have_figures_of_their_own() {
    let server = Server::plain(|_, out| ok(out, ""));
    let url = format!("http://{}/", server.address);
    let base = [
        url.as_str(),
        "--duration",
        "900ms",
        "--warmup",
        "100ms",
        "--lag-bound",
        "10s",
    ];
    let (code, document) = measure(&[&base[..], &["--steps", "100,400,200"]].concat());
    assert_eq!(code, 0);
    let figures = target(&document);
    assert_eq!(figures["requests"], 210);
    let steps = figures["steps"].as_array().unwrap();
    let requests: Vec<f64> = steps.iter().map(|step| number(&step["requests"])).collect();
    assert_eq!(requests, [30.0, 120.0, 60.0]);
    assert_eq!(steps[1]["rate_wanted"], 400.0);

    let (_, document) = measure(&[&base[..], &["--ramp", "0..400"]].concat());
    let figures = target(&document);
    assert!((number(&figures["requests"]) - 180.0).abs() <= 1.0);
    let steps = figures["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 10);
    for (option, rates, words) in [
        ("--ramp", "0..40", "open loop, ramp from 0/s to 40/s, "),
        ("--steps", "20,40", "open loop, steps of 20, 40/s, "),
    ] {
        let output = run(&[&base[..], &[option, rates]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.lines().next().unwrap().contains(words), "{text}");
    }
    assert!(number(&steps[0]["requests"]) < number(&steps[9]["requests"]));
}

#[test]
fn a_closed_loop_rests_as_long_as_it_is_told() {
    let server = Server::plain(|_, out| ok(out, ""));
    let (code, document) = measure(&[
        &format!("http://{}/", server.address),
        "--concurrency",
        "5",
        "--think",
        "50ms",
        "--duration",
        "1s",
        "--warmup",
        "0ms",
    ]);
    assert_eq!(code, 0);
    // At most 20 per connection; fewer on a busy machine.
    let good = number(&target(&document)["good"]);
    assert!((20.0..=105.0).contains(&good), "{good}");
}

#[test]
fn the_highest_rate_that_holds_is_found_and_every_probe_shown() {
    // Two connections that each take 5 ms: never more than 400 per second.
    let server = Server::plain(|_, out| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        ok(out, "")
    });
    let url = format!("http://{}/", server.address);
    let base = [
        url.as_str(),
        "--find-max",
        "--connections",
        "2",
        "--warmup",
        "0ms",
        "--duration",
        "600ms",
        "--lag-bound",
        "10s",
        "--timeout",
        "2s",
    ];
    let (code, document) = measure(&[&base[..], &["--slo", "p50<200ms,errors<5%"]].concat());
    assert_eq!(code, 0, "{document:#}");
    let found = &document["find_max"];
    let rate = number(&found["rate"]);
    assert!((5.0..=600.0).contains(&rate), "{found:#}");
    let probes = found["probes"].as_array().unwrap();
    assert!(probes.len() >= 3);
    assert_eq!(probes.last().unwrap()["confirmation"], true);
    assert_eq!(probes.last().unwrap()["holds"], true);
    assert!(probes.iter().any(|probe| probe["holds"] == false));
    assert_eq!(document["rate_wanted"], found["rate"]);
}

#[test]
fn mistakes_are_named_with_their_cure() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty");
    fs::write(&empty, "\n").unwrap();
    let url = "http://127.0.0.1:1/";
    for (args, words) in [
        (&["--find-max"][..], &["--slo"][..]),
        (
            &["--find-max", "--slo", "p99>5ms"],
            &["p99<5ms,errors<0.1%"],
        ),
        (&["--ramp", "5"], &["100..5000"]),
        (&["--steps", "5,0"], &["1000,2000,5000"]),
        (&["--steps", "5", "--rps", "5"], &["--rps"]),
        (&["--think", "5ms", "--rps", "5"], &["--think"]),
        (&["--caller-keys", shown(&empty)], &["--caller-header"]),
        (
            &["--caller-keys", shown(&empty), "--caller-header", "X-Key"],
            &["holds no key", "one a line"],
        ),
        (&["--client-cert", "a.pem"], &["pairs"]),
        (&["--data-size", "5 apples"], &["10MiB"]),
        (&["--verify", "--expect-body", "x"], &["--expect-body"]),
        (&["--verify", "--kind", "sse"], &["--verify"]),
        (&["--kind", "upload"], &["body"]),
        (&["--scenario", "/nonexistent.toml"], &["/nonexistent.toml"]),
        (&["--scenario", shown(&empty), "--data", "x"], &["--data"]),
        (
            &["--requests-per-connection", "0"],
            &["--requests-per-connection"],
        ),
        (&["--idle", "2000000000"], &["open files", "ulimit"]),
    ] {
        let output = run(&[&[url][..], args].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        for word in words {
            assert!(
                error.contains(word),
                "{args:?}: `{word}` is not in: {error}"
            );
        }
    }
}
