//! Each way to fail has its name, is counted once, and is never tried again.

use std::io::Write;
use std::net::TcpListener;

use crate::server::{NAME, Server, Then, ok};
use crate::{measure, run, shown, target};

#[test]
fn failures_are_told_apart() {
    for over_tls in [false, true] {
        let answer = |request: &crate::server::Request, out: &mut dyn Write| {
            match request.path() {
                "/reset" => return Ok(Then::Cut),
                "/truncated" => {
                    out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")?;
                    return Ok(Then::Close);
                }
                "/truncated-chunk" => {
                    out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")?;
                    return Ok(Then::Cut);
                }
                "/bad_status" => {
                    out.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")?;
                }
                "/wrong_body" => return ok(out, "hellO"),
                "/protocol" => {
                    out.write_all(b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello")?;
                    return Ok(Then::Close);
                }
                "/extra" => {
                    out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!")?;
                }
                // The answer never comes; the connection ends with loadgen.
                "/timeout" => out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell")?,
                _ => return ok(out, "hello"),
            }
            Ok(Then::Keep)
        };
        let server = match over_tls {
            true => Server::tls(answer),
            false => Server::plain(answer),
        };
        for (path, kind) in [
            ("/reset", "reset"),
            ("/truncated", "truncated"),
            ("/truncated-chunk", "truncated"),
            ("/bad_status", "bad_status"),
            ("/wrong_body", "wrong_body"),
            ("/protocol", "protocol"),
            ("/extra", "protocol"),
            ("/timeout", "timeout"),
        ] {
            let before = server.requests();
            let scheme = if over_tls { "https" } else { "http" };
            let (address, ca) = (server.address.to_string(), server.ca());
            let url = format!("{scheme}://{NAME}{path}");
            let mut args = vec![
                url.as_str(),
                "--connect",
                &address,
                "--rps",
                "50",
                "--duration",
                "200ms",
                "--warmup",
                "0ms",
                "--timeout",
                if kind == "timeout" { "300ms" } else { "10s" },
                "--connections",
                "16",
                "--expect-body",
                "hello",
                "--lag-bound",
                "10s",
                "--fail-if",
                "errors>50%",
            ];
            if over_tls {
                args.extend(["--cacert", shown(&ca)]);
            }
            let (code, document) = measure(&args);
            let seen = target(&document);
            assert_eq!(code, 1, "{url}");
            assert_eq!(
                (&seen["errors"][kind], &seen["requests"]),
                (&10.into(), &10.into()),
                "{url}: {seen:#}"
            );
            assert_eq!(
                server.requests() - before,
                10,
                "{url}: nothing is sent twice"
            );
            assert!(!seen["error_examples"].as_array().unwrap().is_empty());
        }
    }
}

#[test]
fn a_body_until_close_is_whole_only_if_tls_announces_the_end() {
    for (path, good) in [("/announced", 10), ("/cut", 0)] {
        let server = Server::tls(|request, out| {
            out.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello")?;
            Ok(match request.path() {
                "/announced" => Then::Close,
                _ => Then::Cut,
            })
        });
        let (_, document) = measure(&[
            &format!("https://{NAME}{path}"),
            "--connect",
            &server.address.to_string(),
            "--cacert",
            shown(&server.ca()),
            "--rps",
            "50",
            "--duration",
            "200ms",
            "--warmup",
            "0ms",
            "--expect-body",
            "hello",
            "--lag-bound",
            "10s",
        ]);
        let seen = target(&document);
        assert_eq!(seen["good"], good, "{path}");
        if good == 0 {
            assert_eq!(seen["errors"]["truncated"], 10);
        }
    }
}

#[test]
fn what_waits_for_a_connection_past_its_time_is_an_error_too() {
    let server = Server::plain(|_, _| Ok(Then::Keep));
    let (_, document) = measure(&[
        &format!("http://{}/", server.address),
        "--rps",
        "100",
        "--duration",
        "500ms",
        "--warmup",
        "0ms",
        "--timeout",
        "200ms",
        "--connections",
        "1",
        "--lag-bound",
        "10s",
    ]);
    let seen = target(&document);
    assert_eq!(seen["requests"], 50);
    assert_eq!(seen["good"], 0);
    let count = |kind: &str| seen["errors"][kind].as_u64().unwrap_or(0);
    assert_eq!(count("timeout") + count("unsent"), 50, "{}", seen["errors"]);
    assert!(
        count("timeout") > 0 && count("unsent") > 0,
        "{}",
        seen["errors"]
    );
    // Some waited so long that they were never sent.
    assert!(server.requests() < 50);
}

#[test]
fn a_run_without_one_good_answer_has_failed() {
    let server = Server::plain(|request, out| match request.path() {
        "/bad" => {
            out.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")?;
            Ok(Then::Keep)
        }
        _ => ok(out, ""),
    });
    let good = format!("good=http://{}/", server.address);
    let bad = format!("bad=http://{}/bad", server.address);
    for (targets, code, said) in [
        (vec![&good], 0, None),
        (vec![&bad], 1, Some("\nFAILED: no request succeeded\n")),
        (
            vec![&good, &bad],
            1,
            Some("\nFAILED: bad: no request succeeded\n"),
        ),
    ] {
        let mut args = vec!["--rps", "50", "--duration", "200ms", "--slice", "100ms"];
        args.extend(["--warmup", "0ms", "--lag-bound", "10s"]);
        for target in targets {
            args.extend(["--target", target]);
        }
        let output = run(&args);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert_eq!(text.contains("no request succeeded"), said.is_some());
        assert!(said.is_none_or(|said| text.contains(said)), "{text}");
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_said_before_the_run() {
    // A port that was free a moment ago, and that nothing listens on now.
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let output = run(&[&format!("http://{free}/"), "--concurrency", "2"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("connect") && text.contains(&free.to_string()),
        "{text}"
    );
}

#[test]
fn a_certificate_is_judged_unless_told_otherwise() {
    let server = Server::tls(|_, out| ok(out, "hello"));
    let other = Server::tls(|_, out| ok(out, "hello"));
    let (address, ca, foreign) = (server.address.to_string(), server.ca(), other.ca());
    let url = format!("https://{NAME}/");
    let base = [
        "--connect",
        &address,
        "--concurrency",
        "1",
        "--duration",
        "50ms",
        "--warmup",
        "0ms",
    ];
    for (url, extra, code, word) in [
        (url.as_str(), vec!["--cacert", shown(&ca)], 0, ""),
        (url.as_str(), vec!["--insecure"], 0, ""),
        (url.as_str(), vec!["--cacert", shown(&foreign)], 2, "tls"),
        (
            "https://other.example.com/",
            vec!["--cacert", shown(&ca)],
            2,
            "tls",
        ),
    ] {
        let output = run(&[&[url][..], &base, &extra].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{url} {extra:?}: {text}");
        assert!(text.contains(word), "{text}");
    }
}
