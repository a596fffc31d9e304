//! What is sent, over which connections, and how much of it.

use std::fs;
use std::sync::atomic::Ordering;

use crate::server::{NAME, Server, Then, ok};
use crate::{measure, number, run, shown, target};

#[test]
fn an_open_loop_sends_exactly_what_its_schedule_says() {
    for arrivals in ["constant", "poisson"] {
        let server = Server::tls(|_, out| ok(out, "hello"));
        let (code, document) = measure(&[
            &format!("https://{NAME}/ok?a=b"),
            "--connect",
            &server.address.to_string(),
            "--cacert",
            shown(&server.ca()),
            "--rps",
            "400",
            "--arrivals",
            arrivals,
            "--warmup",
            "250ms",
            "--duration",
            "1s",
            "--connections",
            "4",
            "--lag-bound",
            "10s",
        ]);
        assert_eq!(code, 0);
        let seen = target(&document);
        let requests = number(&seen["requests"]);
        match arrivals {
            "constant" => assert_eq!(requests, 400.0),
            _ => assert!((requests - 400.0).abs() < 120.0, "{requests}"),
        }
        assert_eq!(seen["good"], seen["requests"]);
        assert_eq!(seen["errors_total"], 0);
        assert_eq!(seen["status"]["200"], seen["requests"]);
        assert_eq!(number(&seen["body_bytes"]), 5.0 * requests);
        assert_eq!(seen["latency"]["count"], seen["requests"]);
        // The first that is offered: the server takes the client's order.
        assert_eq!(seen["tls"], "TLSv1_3 TLS13_AES_128_GCM_SHA256 X25519");
        assert_eq!(seen["connections"]["opened"], 4);
        assert_eq!(server.connections(), 4);
        if arrivals == "constant" {
            assert_eq!(server.requests(), 500, "warm-up included");
        }
        let request = server.last_request();
        assert_eq!(request.line, "GET /ok?a=b HTTP/1.1");
        assert_eq!(request.headers["host"], NAME);
    }
}

#[test]
fn a_closed_loop_keeps_every_connection_busy_on_both_drivers() {
    for driver in ["auto", "epoll"] {
        let server = Server::plain(|_, out| ok(out, "hello"));
        let (code, document) = measure(&[
            &format!("http://{}/", server.address),
            "--concurrency",
            "3",
            "--threads",
            "2",
            "--duration",
            "300ms",
            "--warmup",
            "50ms",
            "--driver",
            driver,
        ]);
        assert_eq!(code, 0);
        let seen = target(&document);
        assert_eq!(seen["errors_total"], 0);
        assert!(number(&seen["good"]) > 30.0);
        assert_eq!(server.connections(), 3);
        // Those in the warm-up, and the last one of each connection, may not be counted.
        assert!(server.requests() as f64 >= number(&seen["good"]));
        if driver == "epoll" {
            assert_eq!(document["driver"], "epoll");
        }
    }
}

#[test]
fn a_new_connection_for_each_request_resumes_only_if_asked_to() {
    for resume in [false, true] {
        let server = Server::tls(|request, out| {
            assert_eq!(request.headers["connection"], "close");
            ok(out, "hello")?;
            Ok(Then::Close)
        });
        let (address, ca) = (server.address.to_string(), server.ca());
        let url = format!("https://{NAME}/");
        let mut args = vec![
            url.as_str(),
            "--connect",
            &address,
            "--cacert",
            shown(&ca),
            "--rps",
            "100",
            "--duration",
            "500ms",
            "--warmup",
            "100ms",
            "--new-connection",
            "--lag-bound",
            "10s",
        ];
        if resume {
            args.push("--resume");
        }
        let (code, document) = measure(&args);
        assert_eq!(code, 0);
        let seen = target(&document);
        assert_eq!(seen["good"], 50);
        assert_eq!(server.connections(), 60);
        assert_eq!(server.requests(), 60);
        let resumed = server.seen.resumed.load(Ordering::SeqCst);
        assert_eq!(seen["connections"]["resumed"], resumed);
        match resume {
            // The first ones find no ticket yet.
            true => assert!(resumed > 30, "{resumed}"),
            false => assert_eq!(resumed, 0),
        }
    }
}

#[test]
fn connections_that_the_server_closes_between_requests_are_weather_not_errors() {
    let server = Server::tls(|request, out| {
        ok(out, "hello")?;
        // Without a word in the answer, as an idle timeout does it.
        Ok(match request.earlier {
            4 => Then::Close,
            _ => Then::Keep,
        })
    });
    let (code, document) = measure(&[
        &format!("https://{NAME}/"),
        "--connect",
        &server.address.to_string(),
        "--cacert",
        shown(&server.ca()),
        "--rps",
        "200",
        "--duration",
        "500ms",
        "--warmup",
        "0ms",
        "--connections",
        "10",
        "--lag-bound",
        "10s",
    ]);
    assert_eq!(code, 0);
    let seen = target(&document);
    // A generator that was held up sends what is overdue at once, and may do so in
    // the moment between an answer and the server's close. Such a request is lost,
    // and nothing else is: it is an error that says so, and it is not sent again.
    let lost = number(&seen["errors_total"]);
    assert_eq!(number(&seen["good"]) + lost, 100.0, "{}", seen["errors"]);
    let count = |kind: &str| seen["errors"][kind].as_f64().unwrap_or(0.0);
    assert_eq!(
        count("reset") + count("truncated"),
        lost,
        "{}",
        seen["errors"]
    );
    assert!(lost <= 20.0, "at most one for each close: {lost}");
    let served = number(&seen["good"]) as u64;
    assert_eq!(server.requests() as u64, served, "nothing is sent twice");
    let closed = number(&seen["connections"]["closed_idle"]);
    assert!(
        closed + lost >= 10.0,
        "{closed} closed while idle, {lost} lost"
    );
}

#[test]
fn bodies_go_out_and_come_back_whole() {
    let server = Server::tls(|request, out| {
        assert!(request.line.starts_with("PUT /upload HTTP/1.1"));
        let (a, b) = request.body.split_at(request.body.len() / 3);
        out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for part in [a, b] {
            write!(out, "{:x}\r\n", part.len())?;
            out.write_all(part)?;
            out.write_all(b"\r\n")?;
        }
        out.write_all(b"0\r\n\r\n")?;
        Ok(Then::Keep)
    });
    // More than sockets and TLS buffers hold at once.
    let body: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let file = server.file("body");
    fs::write(&file, &body).unwrap();
    let (code, document) = measure(&[
        &format!("https://{NAME}/upload"),
        "--connect",
        &server.address.to_string(),
        "--cacert",
        shown(&server.ca()),
        "-X",
        "PUT",
        "-H",
        "Content-Type: application/octet-stream",
        "--data-file",
        shown(&file),
        "--expect-body-file",
        shown(&file),
        "--concurrency",
        "2",
        "--duration",
        "500ms",
        "--warmup",
        "0ms",
    ]);
    assert_eq!(code, 0);
    let seen = target(&document);
    assert_eq!(seen["errors_total"], 0, "{}", seen["error_examples"]);
    let good = number(&seen["good"]);
    assert!(good >= 1.0);
    assert_eq!(number(&seen["body_bytes"]), good * body.len() as f64);
    assert_eq!(
        server.last_request().headers["content-type"],
        "application/octet-stream"
    );
}

#[test]
fn secrets_of_the_command_line_stay_out_of_the_report() {
    let server = Server::plain(|request, out| {
        assert_eq!(request.headers["authorization"], "Bearer s3cret-value");
        ok(out, "")
    });
    let file = server.file("headers");
    fs::write(&file, "Authorization: Bearer s3cret-value\n").unwrap();
    let url = format!("http://{}/?key=s3cret-value", server.address);
    for header in [
        "Authorization: Bearer s3cret-value".to_owned(),
        format!("@{}", shown(&file)),
    ] {
        for json in [true, false] {
            let mut args = vec![
                url.as_str(),
                "-H",
                &header,
                "--concurrency",
                "1",
                "--duration",
                "20ms",
                "--warmup",
                "0ms",
            ];
            if json {
                args.push("--json");
            }
            let output = run(&args);
            assert_eq!(output.status.code(), Some(0));
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(
                text.contains("/") && !text.contains("s3cret-value"),
                "{text}"
            );
        }
    }
}
