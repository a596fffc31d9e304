//! Edited heads, byte for byte.

use wire::framing::{self, BodyFraming};
use wire::head::{HeadLimits, Method};
use wire::names::{NameSet, ParamSet};
use wire::rewrite::{self, Piece, Plan, RequestEdit, ResponseEdit};
use wire::scrub::Scrubber;

use crate::bodies::{request_of, response_of};

/// What a case changes of the ordinary edit, in which nothing but the Host line is written.
#[derive(Clone, Copy)]
struct Case<'a> {
    path_strip: usize,
    path_insert: &'a str,
    strip_fields: &'a [&'a str],
    strip_params: &'a [&'a str],
    keep_params: &'a [&'a str],
    strip_cookies: bool,
    line: Option<&'a str>,
    param: Option<&'a str>,
    framing: Option<BodyFraming>,
    upgrade: Option<&'a str>,
    expect_continue: bool,
    searched: bool,
    lines: &'a [&'a [u8]],
}

const PLAIN: Case<'static> = Case {
    path_strip: 0,
    path_insert: "",
    strip_fields: &[],
    strip_params: &[],
    keep_params: &[],
    strip_cookies: false,
    line: None,
    param: None,
    framing: None,
    upgrade: None,
    expect_continue: false,
    searched: false,
    lines: &[],
};

/// The edited head, what the plan says was stripped, and the pieces.
fn edit(case: &Case<'_>, input: &str) -> (String, Vec<String>, Vec<Piece>) {
    let head = request_of(&[input.as_bytes()], &HeadLimits::default()).expect("a valid head");
    assert!(!head.bytes().is_empty(), "a complete head: {input:?}");
    let (strip_fields, strip_params, keep_params) = (
        NameSet::new(case.strip_fields),
        ParamSet::new(case.strip_params),
        ParamSet::new(case.keep_params),
    );
    let edit = RequestEdit {
        path_strip: case.path_strip,
        path_insert: case.path_insert.as_bytes(),
        host: b"up.example",
        strip_fields: &strip_fields,
        strip_params: &strip_params,
        keep_params: &keep_params,
        strip_cookies: case.strip_cookies,
        inject_line: case.line.map(|_| 0),
        inject_param: case.param.map(|_| 1),
        framing: case
            .framing
            .unwrap_or_else(|| framing::of_request(&head).expect("clear framing")),
        upgrade: case.upgrade.map(str::as_bytes),
        expect_continue: case.expect_continue,
        searched: case.searched,
        lines: case.lines,
    };
    let externals = [
        case.line.unwrap_or_default().as_bytes(),
        case.param.unwrap_or_default().as_bytes(),
    ];
    let mut plan = Plan::new();
    // Twice: a recycled plan must hold nothing of its last use.
    rewrite::request(&head, &edit, &mut plan);
    rewrite::request(&head, &edit, &mut plan);
    let mut slices = Vec::new();
    plan.slices(head.bytes(), &externals, &mut slices);
    let written = String::from_utf8_lossy(&slices.concat()).into_owned();
    assert_eq!(plan.len(&externals), slices.concat().len());
    (
        written,
        plan.stripped().iter().map(str::to_owned).collect(),
        plan.pieces().to_vec(),
    )
}

fn check(case: &Case<'_>, input: &str, expected: &str, stripped: &[&str]) {
    let (written, names, _) = edit(case, input);
    assert_eq!(written, expected, "from {input:?}");
    assert_eq!(names, stripped, "from {input:?}");
}

/// Checks the request line only.
fn check_line(case: &Case<'_>, line: &str, expected: &str) {
    let (written, ..) = edit(case, &format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n"));
    let found = written.split("\r\n").next().expect("a line");
    assert_eq!(found, format!("{expected} HTTP/1.1"), "from {line:?}");
}

/// Checks the fields only: `fields` follow `Host: a`, `expected` follows `Host: up.example`.
fn check_fields(case: &Case<'_>, fields: &str, expected: &str, stripped: &[&str]) {
    check(
        case,
        &format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"),
        &format!("GET / HTTP/1.1\r\nHost: up.example\r\n{expected}\r\n"),
        stripped,
    );
}

#[test]
fn a_whole_request() {
    let case = Case {
        strip_fields: &["authorization", "x-api-key"],
        strip_params: &["key"],
        strip_cookies: true,
        line: Some("Authorization: Bearer real\r\n"),
        lines: &[b"CDN-Loop: ours\r\n"],
        ..PLAIN
    };
    check(
        &case,
        "POST /v1/x?a=1&key=old HTTP/1.1\r\nAccept: */*\r\nhost: a\r\nAUTHORIZATION: Bearer no\r\nX_Api_Key: no\r\nContent-Length: 005\r\n\
         Cookie: c\r\nX-A: 1\r\nX-B:2\r\nauthorization: again\r\n\r\n",
        "POST /v1/x?a=1 HTTP/1.1\r\nHost: up.example\r\nAccept: */*\r\nX-A: 1\r\nX-B:2\r\nCDN-Loop: ours\r\n\
         Authorization: Bearer real\r\nContent-Length: 5\r\n\r\n",
        &["?key", "authorization", "x-api-key", "cookie"],
    );
}

#[test]
fn pieces_are_few_and_the_key_is_never_copied() {
    let case = Case {
        line: Some("X-Key: real\r\n"),
        strip_fields: &["x-key"],
        lines: &[b"CDN-Loop: ours\r\n"],
        ..PLAIN
    };
    let input = "GET /a HTTP/1.1\r\nHost: a\r\nB: 1\r\nC: 2\r\nX-Key: no\r\nD: 3\r\nE: 4\r\n\r\n";
    let (_, _, pieces) = edit(&case, input);
    assert!(
        matches!(
            pieces[..],
            [
                Piece::Head(_),
                Piece::Text(_),
                Piece::Head(_),
                Piece::Head(_),
                Piece::Text(_),
                Piece::External(0),
                Piece::Text(_)
            ]
        ),
        "{pieces:?}"
    );
    // Nothing removed before the Host line: the request line and its CRLF are one piece.
    assert_eq!(pieces[0], Piece::Head(wire::Span { start: 0, end: 17 }));
}

#[test]
fn request_lines() {
    let check = |line, expected| check_line(&PLAIN, line, expected);
    check("GET /a?b", "GET /a?b");
    check("GET /?", "GET /?");
    check("GET http://a.example/p?q", "GET /p?q");
    check("GET http://a.example", "GET /");
    check("GET http://a.example?q", "GET /?q");
    check("GET HTTPS://a.example:443/", "GET /");
    check("OPTIONS *", "OPTIONS *");
    check("OPTIONS http://a.example", "OPTIONS *");
    check("OPTIONS http://a.example/", "OPTIONS /");
    check("CONNECT a.example:443", "CONNECT a.example:443");

    let injecting = Case {
        param: Some("key=real"),
        ..PLAIN
    };
    let check = |line, expected| check_line(&injecting, line, expected);
    check("OPTIONS *", "OPTIONS *");
    check("GET http://a.example", "GET /?key=real");
    check("GET http://a.example?q", "GET /?key=real&q");

    let moved = |path_strip, path_insert| Case {
        path_strip,
        path_insert,
        ..PLAIN
    };
    for (path_strip, path_insert, line, expected) in [
        (13, "", "GET /proxy/gemini/v1/x?q", "GET /v1/x?q"),
        (13, "", "GET /proxy/gemini", "GET /"),
        (13, "", "GET /proxy/gemini?q", "GET /?q"),
        (14, "", "GET /proxy/gemini/v1", "GET /v1"),
        (999, "", "GET /proxy/gemini/v1", "GET /"),
        (13, "/v1beta", "GET /proxy/gemini/x", "GET /v1beta/x"),
        (13, "/v1beta/", "GET /proxy/gemini/x", "GET /v1beta/x"),
        (14, "/v1beta", "GET /proxy/gemini/x", "GET /v1beta/x"),
        (13, "/v1beta", "GET /proxy/gemini", "GET /v1beta"),
        (13, "/v1beta/", "GET /proxy/gemini", "GET /v1beta/"),
        (13, "v1beta", "GET /proxy/gemini/x", "GET /v1beta/x"),
        (13, "/", "GET /proxy/gemini/x", "GET /x"),
        (13, "/", "GET /proxy/gemini", "GET /"),
        (0, "/base", "GET /x", "GET /base/x"),
        (0, "/base", "GET /", "GET /base/"),
        (0, "/base", "GET http://a.example", "GET /base"),
        (6, "/v1", "GET http://a.example/proxy/x?q", "GET /v1/x?q"),
        (6, "/v1", "OPTIONS *", "OPTIONS *"),
    ] {
        check_line(&moved(path_strip, path_insert), line, expected);
    }
    let (written, ..) = edit(&PLAIN, "GET /a HTTP/1.0\r\nX: y\r\n\r\n");
    assert_eq!(
        written,
        "GET /a HTTP/1.1\r\nHost: up.example\r\nX: y\r\n\r\n"
    );
}

#[test]
fn queries_lose_what_is_stripped_and_nothing_else() {
    let strip = Case {
        strip_params: &["key", "access_token"],
        ..PLAIN
    };
    let keep = Case {
        keep_params: &["key"],
        ..strip
    };
    let inject = Case {
        param: Some("key=real"),
        ..strip
    };
    for (query, stripped, kept, injected) in [
        ("", "", "", "?key=real"),
        ("?", "?", "?", "?key=real"),
        ("?a=1", "?a=1", "?a=1", "?key=real&a=1"),
        ("?key=1", "", "?key=1", "?key=real"),
        ("?key", "", "?key", "?key=real"),
        ("?key=1&a=2", "?a=2", "?key=1&a=2", "?key=real&a=2"),
        ("?a=2&key=1", "?a=2", "?a=2&key=1", "?key=real&a=2"),
        (
            "?a=1&key=2&b=3",
            "?a=1&b=3",
            "?a=1&key=2&b=3",
            "?key=real&a=1&b=3",
        ),
        ("?key=1&key=2&KEY=3", "", "?key=1&key=2&KEY=3", "?key=real"),
        (
            "?k%65y=1&%6b%65%79=2&a",
            "?a",
            "?k%65y=1&%6b%65%79=2&a",
            "?key=real&a",
        ),
        (
            "?+key=1&key%20=2&a",
            "?a",
            "?+key=1&key%20=2&a",
            "?key=real&a",
        ),
        (
            "?a=1;key=2;b=3",
            "?a=1;b=3",
            "?a=1;key=2;b=3",
            "?key=real&a=1;b=3",
        ),
        ("?key=1;b=3", "?b=3", "?key=1;b=3", "?key=real&b=3"),
        ("?a&&key=1&&b", "?a&&&b", "?a&&key=1&&b", "?key=real&a&&&b"),
        (
            "?a%20b=c%2Bd+e&key=1",
            "?a%20b=c%2Bd+e",
            "?a%20b=c%2Bd+e&key=1",
            "?key=real&a%20b=c%2Bd+e",
        ),
        (
            "?keys=1&monkey=2&key[]=3",
            "?keys=1&monkey=2&key[]=3",
            "?keys=1&monkey=2&key[]=3",
            "?key=real&keys=1&monkey=2&key[]=3",
        ),
        ("?a=key=1", "?a=key=1", "?a=key=1", "?key=real&a=key=1"),
        ("?access_token=1&a", "?a", "?a", "?key=real&a"),
        (
            "?api-key=1",
            "?api-key=1",
            "?api-key=1",
            "?key=real&api-key=1",
        ),
        ("?=1&key=2", "?=1", "?=1&key=2", "?key=real&=1"),
        ("?&key=2", "?", "?&key=2", "?key=real&"),
        ("?key=2&", "?", "?key=2&", "?key=real&"),
    ] {
        let line = format!("GET /p{query}");
        check_line(&strip, &line, &format!("GET /p{stripped}"));
        check_line(&keep, &line, &format!("GET /p{kept}"));
        check_line(&inject, &line, &format!("GET /p{injected}"));
    }
    let (_, names, _) = edit(
        &strip,
        "GET /?K%45Y=secret&key=2&a=1&access_token=3 HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(names, ["?key", "?access_token"]);
}

#[test]
fn fields_that_never_pass() {
    for field in [
        "Connection: close",
        "connection: keep-alive",
        "Keep-Alive: timeout=5",
        "keep_alive: x",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Te: gzip",
        "Trailer: x",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABk",
        "Proxy-Authenticate: x",
        "Proxy-Authentication-Info: x",
        "Expect: 100-continue",
        "Expect: 200-ok",
    ] {
        check_fields(
            &PLAIN,
            &format!("A: 1\r\n{field}\r\nB: 2\r\n"),
            "A: 1\r\nB: 2\r\n",
            if field.starts_with("keep_") {
                &["keep_alive"]
            } else {
                &[]
            },
        );
    }
    for (field, name) in [
        ("Content_Length: 5", "content_length"),
        ("transfer_encoding: chunked", "transfer_encoding"),
        ("CDN_Loop: x", "cdn_loop"),
        ("Proxy-Authorization: Basic x", "proxy-authorization"),
        ("Proxy_Authorization: Basic x", "proxy_authorization"),
        ("Claviger-Reason: x", "claviger-reason"),
        ("cLaViGeR_Id: x", "claviger_id"),
        ("Claviger: x", "claviger"),
    ] {
        check_fields(
            &PLAIN,
            &format!("A: 1\r\n{field}\r\nB: 2\r\n"),
            "A: 1\r\nB: 2\r\n",
            &[name],
        );
    }
    check_fields(
        &PLAIN,
        "Host_: x\r\nX-Host: y\r\n",
        "Host_: x\r\nX-Host: y\r\n",
        &[],
    );
}

#[test]
fn connection_takes_away_what_it_names_and_no_more() {
    check_fields(
        &PLAIN,
        "Connection: x-a, X-B\r\nX-A: 1\r\nx-b: 2\r\nX-C: 3\r\nX-AB: 4\r\n",
        "X-C: 3\r\nX-AB: 4\r\n",
        &[],
    );
    check_fields(
        &PLAIN,
        "X-A: 1\r\nConnection: close\r\nConnection: x-a\r\n",
        "",
        &[],
    );
    check_fields(&PLAIN, "Connection: cookie\r\nCookie: 1\r\n", "", &[]);
    check_fields(
        &PLAIN,
        "Connection: CDN-Loop, cdn_loop\r\nCDN-Loop: other\r\n",
        "CDN-Loop: other\r\n",
        &[],
    );
    let ours = Case {
        strip_fields: &["authorization"],
        line: Some("Authorization: real\r\n"),
        lines: &[b"CDN-Loop: ours\r\n"],
        framing: Some(BodyFraming::Length(3)),
        ..PLAIN
    };
    check_fields(
        &ours,
        "Connection: host, authorization, cdn-loop, content-length, transfer-encoding\r\nAuthorization: no\r\nContent-Length: 3\r\nCDN-Loop: other\r\n",
        "CDN-Loop: other\r\nCDN-Loop: ours\r\nAuthorization: real\r\nContent-Length: 3\r\n",
        &["authorization"],
    );
}

#[test]
fn what_the_edit_asks_for_is_written() {
    let framed = |framing| Case {
        framing: Some(framing),
        ..PLAIN
    };
    check_fields(
        &framed(BodyFraming::Chunked),
        "Content-Length: 5\r\nTrailer: X-Sum\r\n",
        "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n",
        &[],
    );
    check_fields(
        &framed(BodyFraming::Length(u64::MAX)),
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 18446744073709551615\r\n",
        &[],
    );
    check_fields(&framed(BodyFraming::None), "Content-Length: 0\r\n", "", &[]);
    let upgrading = Case {
        upgrade: Some("websocket"),
        ..PLAIN
    };
    check_fields(
        &upgrading,
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Key: x\r\n",
        "Sec-WebSocket-Key: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
        &[],
    );
    let searched = Case {
        searched: true,
        ..PLAIN
    };
    check_fields(
        &searched,
        "accept-encoding: gzip;q=0.5, compress, br\r\nA: 1\r\nAccept-Encoding: dcz\r\naccept-encoding:BR, *;q=0\r\n",
        "Accept-Encoding: gzip;q=0.5, br\r\nA: 1\r\nAccept-Encoding: identity\r\naccept-encoding:BR, *;q=0\r\n",
        &[],
    );
    check_fields(
        &searched,
        "Connection: accept-encoding\r\nAccept-Encoding: zstd\r\n",
        "",
        &[],
    );
    check_fields(
        &searched,
        "Sec-WebSocket-Extensions: permessage-deflate\r\nContent-Encoding: zstd\r\n",
        "Content-Encoding: zstd\r\n",
        &[],
    );
    check_fields(
        &PLAIN,
        "Accept-Encoding: zstd\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        "Accept-Encoding: zstd\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        &[],
    );
    let expecting = Case {
        expect_continue: true,
        ..PLAIN
    };
    check_fields(
        &expecting,
        "Expect: 100-Continue\r\nExpect: other\r\n",
        "Expect: 100-Continue\r\n",
        &[],
    );
    check_fields(&expecting, "A: 1\r\n", "A: 1\r\n", &[]);
    check_fields(&PLAIN, "Cookie: a\r\n", "Cookie: a\r\n", &[]);
    check_fields(
        &Case {
            strip_fields: &["cookie"],
            ..PLAIN
        },
        "Cookie: a\r\n",
        "",
        &["cookie"],
    );
    check_fields(
        &Case {
            strip_fields: &["cdn-loop"],
            ..PLAIN
        },
        "CDN-Loop: a\r\n",
        "CDN-Loop: a\r\n",
        &[],
    );
    // The body is not ours to judge here, and obs-text passes.
    let head = request_of(
        &[b"GET / HTTP/1.1\r\nHost: a\r\nX: \xff\xfe\r\n\r\n"],
        &HeadLimits::default(),
    )
    .expect("valid");
    assert_eq!(head.value(&head.fields()[1]), b"\xff\xfe");
}

#[test]
fn the_record_of_what_was_stripped_is_bounded() {
    let mut fields = String::new();
    for n in 0..40 {
        fields += &format!("Claviger-{n}: x\r\nCLAVIGER-{n}: y\r\n");
    }
    let head = request_of(
        &[format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()],
        &HeadLimits::default(),
    )
    .expect("valid");
    let (none, no_params) = (NameSet::default(), ParamSet::default());
    let edit = RequestEdit {
        path_strip: 0,
        path_insert: b"",
        host: b"a",
        strip_fields: &none,
        strip_params: &no_params,
        keep_params: &no_params,
        strip_cookies: false,
        inject_line: None,
        inject_param: None,
        framing: BodyFraming::None,
        upgrade: None,
        expect_continue: false,
        searched: false,
        lines: &[],
    };
    let mut plan = Plan::new();
    rewrite::request(&head, &edit, &mut plan);
    assert_eq!(plan.stripped().iter().count(), 32);
    assert!(plan.stripped().truncated());
    assert_eq!(plan.stripped().iter().next(), Some("claviger-0"));

    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nClaviger-{}: x\r\n\r\n",
        "x".repeat(200)
    );
    let head = request_of(&[long.as_bytes()], &HeadLimits::default()).expect("valid");
    rewrite::request(&head, &edit, &mut plan);
    assert!(plan.stripped().is_empty() && plan.stripped().truncated());
    plan.clear();
    assert!(plan.pieces().is_empty() && !plan.stripped().truncated());
}

fn respond(input: &[u8], edit: &ResponseEdit<'_>) -> (String, usize) {
    let head = response_of(&[input]).expect("a valid head");
    assert!(!head.bytes().is_empty(), "a complete head");
    let mut plan = Plan::new();
    let hits = rewrite::response(&head, edit, &mut plan);
    let mut slices = Vec::new();
    plan.slices(head.bytes(), &[], &mut slices);
    (String::from_utf8_lossy(&slices.concat()).into_owned(), hits)
}

const QUIET: ResponseEdit<'static> = ResponseEdit {
    framing: BodyFraming::None,
    close: false,
    http10: false,
    upgrade: None,
    scrubber: None,
    keep_length: false,
    strip_fields: None,
};

#[test]
fn responses() {
    let check = |edit: ResponseEdit<'_>, input: &str, expected: &str| {
        assert_eq!(
            respond(format!("{input}\r\n").as_bytes(), &edit),
            (format!("{expected}\r\n"), 0),
            "from {input:?}"
        );
    };
    let length = ResponseEdit {
        framing: BodyFraming::Length(2),
        ..QUIET
    };
    let chunked = ResponseEdit {
        framing: BodyFraming::Chunked,
        ..QUIET
    };
    let until_close = ResponseEdit {
        framing: BodyFraming::UntilClose,
        close: true,
        ..QUIET
    };
    check(
        length,
        "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 2\r\nC: d\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\nC: d\r\nContent-Length: 2\r\n",
    );
    check(
        chunked,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n",
        "HTTP/1.1 200 OK\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n",
    );
    check(
        until_close,
        "HTTP/1.0 200 OK\r\nTrailer: x\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n",
    );
    check(
        length,
        "HTTP/1.1 200\r\n",
        "HTTP/1.1 200 \r\nContent-Length: 2\r\n",
    );
    check(
        length,
        "HTTP/1.1 200 \r\n",
        "HTTP/1.1 200 \r\nContent-Length: 2\r\n",
    );
    check(
        length,
        "HTTP/1.0 404\r\n",
        "HTTP/1.1 404 \r\nContent-Length: 2\r\n",
    );
    check(
        length,
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop, content-length\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nUpgrade: h2c\r\nAlt-Svc: h3=\":443\"\r\n\
         alt_svc: x\r\nProxy-Authenticate: x\r\nProxy-Connection: x\r\nClaviger-Reason: forged\r\nclaviger_id: forged\r\nSet-Cookie: a\r\nX: y\r\n",
        "HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nX: y\r\nContent-Length: 2\r\n",
    );
    check(
        QUIET,
        "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n",
        "HTTP/1.1 204 No Content\r\n",
    );
    let kept = ResponseEdit {
        keep_length: true,
        ..QUIET
    };
    check(
        kept,
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 70\r\nETag: x\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 70\r\nETag: x\r\n",
    );
    check(
        ResponseEdit {
            keep_length: true,
            ..length
        },
        "HTTP/1.1 200 OK\r\nContent-Length: 70\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
    );
    check(
        ResponseEdit {
            http10: true,
            ..length
        },
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n",
    );
    check(
        ResponseEdit {
            http10: true,
            close: true,
            ..length
        },
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n",
    );
    let upgraded = ResponseEdit {
        upgrade: Some(b"websocket"),
        ..QUIET
    };
    check(
        upgraded,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
    );
}

#[test]
fn named_fields_go_from_a_response() {
    let strip = NameSet::new(["set-cookie", "Strict-Transport-Security", "via", "alt-svc"]);
    let edit = ResponseEdit {
        strip_fields: Some(&strip),
        ..QUIET
    };
    let (written, _) = respond(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nVia: 1.1 x\r\nA: b\r\nset_cookie: c\r\nSTRICT-TRANSPORT-SECURITY: max-age=1\r\nAlt-Svc: h3\r\n\r\n",
        &edit,
    );
    assert_eq!(written, "HTTP/1.1 200 OK\r\nA: b\r\n\r\n");
    let (written, _) = respond(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nVia: 1.1 x\r\nX-Forwarded-For: 1\r\nAlt-Svc: h3\r\n\r\n",
        &QUIET,
    );
    assert_eq!(
        written,
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nVia: 1.1 x\r\nX-Forwarded-For: 1\r\n\r\n"
    );
}

#[test]
fn the_key_does_not_come_back_in_a_head() {
    let scrubber = Scrubber::new(&[b"the-real-key", b"dGhlLXJlYWwta2V5"]);
    let edit = ResponseEdit {
        scrubber: Some(&scrubber),
        ..QUIET
    };
    let check = |input: &str, expected: &str, hits: usize| {
        assert_eq!(
            respond(format!("{input}\r\n").as_bytes(), &edit),
            (format!("{expected}\r\n"), hits),
            "from {input:?}"
        );
    };
    check(
        "HTTP/1.1 200 OK\r\nA: the-real-kex\r\n",
        "HTTP/1.1 200 OK\r\nA: the-real-kex\r\n",
        0,
    );
    check(
        "HTTP/1.1 302 Found\r\nLocation: /x?key=the-real-key&a=1\r\nB: c\r\n",
        "HTTP/1.1 302 Found\r\nLocation: /x?key=redacted&a=1\r\nB: c\r\n",
        1,
    );
    check(
        "HTTP/1.1 200 OK\r\nLink: <a?the-real-key>, <b?the-real-key>\r\n",
        "HTTP/1.1 200 OK\r\nLink: <a?redacted>, <b?redacted>\r\n",
        2,
    );
    check(
        "HTTP/1.1 200 OK\r\nA: the-real-key\r\nB:dGhlLXJlYWwta2V5 \r\n",
        "HTTP/1.1 200 OK\r\nA: redacted\r\nB:redacted \r\n",
        2,
    );
    check(
        "HTTP/1.1 200 OK\r\nthe-real-key: a\r\nB: c\r\n",
        "HTTP/1.1 200 OK\r\nB: c\r\n",
        1,
    );
    check(
        "HTTP/1.1 401 bad the-real-key\r\nB: c\r\n",
        "HTTP/1.1 401 bad redacted\r\nB: c\r\n",
        1,
    );
    check(
        "HTTP/1.0 401 the-real-key\r\n",
        "HTTP/1.1 401 redacted\r\n",
        1,
    );
    check(
        "HTTP/1.1 200 OK\r\nKeep-Alive: the-real-key\r\nB: c\r\n",
        "HTTP/1.1 200 OK\r\nB: c\r\n",
        1,
    );

    // A key that looks like part of the grammar must not bend the head.
    let odd = Scrubber::new(&[b"1 200 OK", b"A: b", b"x: y z", b"200 s"]);
    let edit = ResponseEdit {
        scrubber: Some(&odd),
        ..QUIET
    };
    let (written, hits) = respond(b"HTTP/1.1 200 OK\r\nA: b\r\nC: x: y z\r\n\r\n", &edit);
    assert_eq!(
        (written.as_str(), hits),
        ("HTTP/1.1 200 \r\nC: redacted\r\n\r\n", 3)
    );
    let (written, hits) = respond(b"HTTP/1.0 200 s\r\n\r\n", &edit);
    assert_eq!((written.as_str(), hits), ("HTTP/1.1 200 \r\n\r\n", 1));
}

#[test]
fn head_responses_keep_their_length_through_both_halves() {
    let head = response_of(&[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"]).expect("valid");
    assert_eq!(
        framing::of_response(&head, Method::Head),
        Ok(BodyFraming::None)
    );
    let (written, _) = respond(
        head.bytes(),
        &ResponseEdit {
            keep_length: true,
            ..QUIET
        },
    );
    assert_eq!(written, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
}
