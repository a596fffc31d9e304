//! Heads: what parses, what is refused and why, bounds at their edges, every split.

use wire::Span;
use wire::head::{
    FieldId, HeadError, HeadLimits, Method, Parse, RequestHead, ResponseHead, TargetForm, Version,
};

use crate::bodies::{request_of, response_of};

const LIMITS: HeadLimits = HeadLimits {
    head_bytes_max: 32 * 1024,
    fields_max: 128,
};

/// Parses at every split, whole, and byte by byte: all must agree.
fn parse(input: &[u8]) -> Result<Option<RequestHead>, HeadError> {
    let whole = request_of(&[input], &LIMITS);
    let bytes: Vec<&[u8]> = input.chunks(1).collect();
    let mut others = vec![request_of(&bytes, &LIMITS)];
    others
        .extend((0..=input.len()).map(|cut| request_of(&[&input[..cut], &input[cut..]], &LIMITS)));
    for other in others {
        match (&whole, &other) {
            (Ok(whole), Ok(other)) => {
                assert_eq!((whole.bytes(), whole.rest()), (other.bytes(), other.rest()));
                assert_eq!(
                    (whole.fields(), whole.target()),
                    (other.fields(), other.target())
                );
            }
            // A split may show another fault of the same head first.
            (Err(_), Err(_)) => {}
            _ => panic!(
                "{:?}: {:?} or {:?}",
                String::from_utf8_lossy(input),
                whole.is_ok(),
                other.is_ok()
            ),
        }
    }
    whole.map(|head| (!head.bytes().is_empty()).then_some(head))
}

#[test]
fn a_request_gives_its_parts() {
    let input = b"POST /v1/chat?a=1&b HTTP/1.1\r\nHost: api.example.com:443\r\nX-Empty:\r\nx-odd: \t a\tb \xff\x80 \t \r\n\r\nbody";
    let head = parse(input).expect("valid").expect("complete");
    assert_eq!(head.method(), Method::Post);
    assert_eq!(head.method_str(), "POST");
    assert_eq!(head.version(), Version::Http11);
    assert_eq!(head.form(), TargetForm::Origin);
    assert_eq!(head.target(), b"/v1/chat?a=1&b");
    assert_eq!(head.path(), b"/v1/chat");
    assert_eq!(head.query(), Some(&b"a=1&b"[..]));
    assert_eq!(head.path_span(), Span { start: 5, end: 13 });
    assert_eq!(head.query_span(), Some(Span { start: 14, end: 19 }));
    assert_eq!(head.authority(), None);
    assert_eq!(head.host(), Some(&b"api.example.com:443"[..]));
    assert_eq!(head.rest(), b"body");
    assert_eq!(head.bytes().len(), input.len() - 4);
    assert_eq!(head.buffered(), input.len());
    let fields: Vec<(&[u8], &[u8], FieldId)> = head
        .fields()
        .iter()
        .map(|field| (head.name(field), head.value(field), field.id))
        .collect();
    assert_eq!(
        fields,
        [
            (&b"Host"[..], &b"api.example.com:443"[..], FieldId::Host),
            (b"X-Empty", b"", FieldId::Other),
            (b"x-odd", b"a\tb \xff\x80", FieldId::Other),
        ]
    );
    let mut at = head.fields()[0].line.start;
    for field in head.fields() {
        assert_eq!(field.line.start, at);
        assert!(field.line.of(head.bytes()).ends_with(b"\r\n"));
        at = field.line.end;
    }
    assert_eq!(at as usize + 2, head.bytes().len());
}

#[test]
fn requests_that_are_refused() {
    use HeadError::*;
    let check = |input: &[u8], error: HeadError| match parse(input) {
        Err(found) => assert_eq!(found, error, "{:?}", String::from_utf8_lossy(input)),
        Ok(_) => panic!("{:?} is not refused", String::from_utf8_lossy(input)),
    };
    let line = |line: &[u8], error| check(&[line, b"\r\nHost: a\r\n\r\n"].concat(), error);
    let field = |field: &[u8], error| {
        check(
            &[b"GET / HTTP/1.1\r\nHost: a\r\n", field, b"\r\n\r\n"].concat(),
            error,
        )
    };

    // Line ends.
    check(b"GET / HTTP/1.1\nHost: a\n\n", LineEnding);
    check(b"GET / HTTP/1.1\r\nHost: a\n\r\n", LineEnding);
    check(b"GET / HTTP/1.1\r\nHost: a\r\n\n", LineEnding);
    check(b"GET / HTTP/1.1\nHost: a\r\n\r\n", LineEnding);
    check(b"GET / HTTP/1.1\rHost: a\r\n\r\n", LineEnding);
    check(b"GET / HTTP/1.1\r\nHost: a\r\n\rX: b\r\n\r\n", LineEnding);
    check(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", LineEnding);
    check(b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", LineEnding);
    check(
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        LeadingBlankLines,
    );
    check(b"\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", LineEnding);
    field(b"X: a\rb", LineEnding);
    field(b"X: a\nb", LineEnding);
    field(b"X: a\r\r", LineEnding);

    // The request line.
    line(b"GET  / HTTP/1.1", TargetBytes);
    line(b"GET /  HTTP/1.1", TargetBytes);
    line(b"GET /a b HTTP/1.1", TargetBytes);
    line(b" GET / HTTP/1.1", RequestLine);
    line(b"GET / HTTP/1.1 ", RequestLine);
    line(b"GET\t/ HTTP/1.1", RequestLine);
    line(b"GET /", RequestLine);
    line(b"GET", RequestLine);
    line(b"GET / http/1.1", RequestLine);
    line(b"GET / HTTP/1.1x", RequestLine);
    line(b"GET / HTTP/11", RequestLine);
    line(b"GET / HTTPS/1.1", RequestLine);
    line(b"G(T / HTTP/1.1", RequestLine);
    line(b"G\xc3\xa4T / HTTP/1.1", RequestLine);
    line(b": / HTTP/1.1", RequestLine);
    line(b"GET / HTTP/1.2", Version);
    line(b"GET / HTTP/0.9", Version);
    line(b"GET / HTTP/2.0", Version);
    check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Version);
    line(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1",
        MethodTooLong,
    );

    // Targets.
    line(b"GET /#a HTTP/1.1", TargetBytes);
    line(b"GET /a\tb HTTP/1.1", TargetBytes);
    line(b"GET /a\0 HTTP/1.1", TargetBytes);
    line(b"GET /\x7f HTTP/1.1", TargetBytes);
    line(b"GET /\xc3\xa4 HTTP/1.1", TargetBytes);
    line(b"GET /\xff HTTP/1.1", TargetBytes);
    line(b"GET a HTTP/1.1", TargetForm);
    line(b"GET * HTTP/1.1", TargetForm);
    line(b"GET ?a HTTP/1.1", TargetForm);
    line(b"OPTIONS ** HTTP/1.1", TargetForm);
    line(b"OPTIONS *?a HTTP/1.1", TargetForm);
    line(b"GET a.example:443 HTTP/1.1", TargetForm);
    line(b"GET ftp://a.example/ HTTP/1.1", TargetForm);
    line(b"GET http:/a.example/ HTTP/1.1", TargetForm);
    line(b"GET http:///a HTTP/1.1", TargetForm);
    line(b"GET http://u@a.example/ HTTP/1.1", TargetForm);
    line(b"GET http://u:p@a.example/ HTTP/1.1", TargetForm);
    line(b"GET http://a.example:/ HTTP/1.1", TargetForm);
    line(b"GET http://a.example:99999/ HTTP/1.1", TargetForm);
    line(b"GET http://a.example\\b/ HTTP/1.1", TargetForm);
    line(b"CONNECT / HTTP/1.1", TargetForm);
    line(b"CONNECT a.example HTTP/1.1", TargetForm);
    line(b"CONNECT http://a.example/ HTTP/1.1", TargetForm);
    line(b"CONNECT u@a.example:443 HTTP/1.1", TargetForm);
    line(b"CONNECT a.example:443/x HTTP/1.1", TargetForm);

    // Fields.
    field(b"X : a", FieldName);
    field(b"X\t: a", FieldName);
    field(b": a", FieldName);
    field(b"X", FieldName);
    field(b" X: a", FieldName);
    field(b"\tX: a", FieldName);
    field(b"X(: a", FieldName);
    field(b"X\xc3\xa4: a", FieldName);
    field(b"X\0: a", FieldName);
    field(b"X: a\r\n b", FieldName);
    field(b"X: a\r\n\tb", FieldName);
    field(b"X: a\0b", FieldValue);
    field(b"X: \x01", FieldValue);
    field(b"X: a\x7f", FieldValue);
    field(b"X: a\x0bb", FieldValue);
    check(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", FieldName);

    // Host.
    check(b"GET / HTTP/1.1\r\n\r\n", HostMissing);
    check(b"GET http://a.example/ HTTP/1.1\r\n\r\n", HostMissing);
    check(b"GET / HTTP/1.1\r\nX-Host: a\r\n\r\n", HostMissing);
    check(
        b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
        HostRepeated,
    );
    check(
        b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        HostRepeated,
    );
    for host in [
        "", "a b", "a,b", "a/b", "u@a", "a:", "a:x", "a:0", "[::1", "::1", "a\u{e4}", "a%2eb",
        "http://a",
    ] {
        check(
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(),
            HostMalformed,
        );
        check(
            format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes(),
            HostMalformed,
        );
    }

    let options = |count: usize| {
        (0..count)
            .map(|n| format!("x-{n}"))
            .collect::<Vec<_>>()
            .join(",")
    };
    field(
        format!("Connection: {}", options(33)).as_bytes(),
        ConnectionOptionsTooMany,
    );
    field(
        format!("Connection: {}\r\nConnection: y", options(32)).as_bytes(),
        ConnectionOptionsTooMany,
    );
    assert!(
        parse(
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: close,, {}\r\n\r\n",
                options(32)
            )
            .as_bytes()
        )
        .is_ok()
    );
}

#[test]
fn every_byte_is_judged_wherever_it_stands() {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    for byte in 0..=255u8 {
        let place = |before: &[u8], behind: &[u8]| {
            request_of(&[&[before, &[byte], behind].concat()], &LIMITS)
                .is_ok_and(|head| !head.bytes().is_empty())
        };
        let method = place(b"G", b"T / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(method, token(byte), "{byte:#x} in a method");
        let path = place(b"GET /a", b"b HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(
            path,
            (0x21..0x7f).contains(&byte) && byte != b'#',
            "{byte:#x} in a path"
        );
        let query = place(b"GET /?a", b"b HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(query, path, "{byte:#x} in a query");
        let name = place(b"GET / HTTP/1.1\r\nHost: a\r\nx", b"y: z\r\n\r\n");
        assert_eq!(name, token(byte) || byte == b':', "{byte:#x} in a name");
        let value = place(b"GET / HTTP/1.1\r\nHost: a\r\nx: y", b"z\r\n\r\n");
        assert_eq!(
            value,
            byte == b'\t' || (byte >= b' ' && byte != 0x7f),
            "{byte:#x} in a value"
        );
        let edge = place(b"GET / HTTP/1.1\r\nHost: a\r\nx: y", b"\r\n\r\n");
        assert_eq!(edge, value, "{byte:#x} at the end of a value");
        let host = place(b"GET / HTTP/1.1\r\nHost: a", b"b\r\n\r\n");
        assert_eq!(
            host,
            byte.is_ascii_alphanumeric() || b"-._".contains(&byte),
            "{byte:#x} in a host"
        );

        let place = |before: &[u8], behind: &[u8]| {
            response_of(&[&[before, &[byte], behind].concat()])
                .is_ok_and(|head| !head.bytes().is_empty())
        };
        let reason = place(b"HTTP/1.1 200 O", b"K\r\n\r\n");
        assert_eq!(
            reason,
            byte == b'\t' || (byte >= b' ' && byte != 0x7f),
            "{byte:#x} in a reason"
        );
        let name = place(b"HTTP/1.1 200 OK\r\nx", b"y: z\r\n\r\n");
        assert_eq!(
            name,
            token(byte) || byte == b':',
            "{byte:#x} in a response's name"
        );
        let value = place(b"HTTP/1.1 200 OK\r\nx: y", b"z\r\n\r\n");
        assert_eq!(value, reason, "{byte:#x} in a response's value");
    }
}

#[test]
fn targets_of_every_form() {
    let check =
        |line: &str, form: TargetForm, authority: Option<&str>, path: &str, query: Option<&str>| {
            let input = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
            let head = parse(input.as_bytes()).expect(line).expect("complete");
            assert_eq!(head.form(), form, "{line}");
            assert_eq!(head.authority(), authority.map(str::as_bytes), "{line}");
            assert_eq!(head.path(), path.as_bytes(), "{line}");
            assert_eq!(head.query(), query.map(str::as_bytes), "{line}");
        };
    use TargetForm::*;
    check("GET /", Origin, None, "/", None);
    check("GET /?", Origin, None, "/", Some(""));
    check("GET /a?b?c", Origin, None, "/a", Some("b?c"));
    check("GET //a/b", Origin, None, "//a/b", None);
    check("GET /http://a", Origin, None, "/http://a", None);
    check(
        "GET /a?q={\"x\":[1,\"<|^>\"]}\\`",
        Origin,
        None,
        "/a",
        Some("q={\"x\":[1,\"<|^>\"]}\\`"),
    );
    check("GET /a\\b|c", Origin, None, "/a\\b|c", None);
    check(
        "GET http://a.example",
        Absolute,
        Some("a.example"),
        "/",
        None,
    );
    check(
        "GET http://a.example?x",
        Absolute,
        Some("a.example"),
        "/",
        Some("x"),
    );
    check(
        "GET HTTPS://a.example:443/p?x",
        Absolute,
        Some("a.example:443"),
        "/p",
        Some("x"),
    );
    check(
        "GET http://[::1]:80/p",
        Absolute,
        Some("[::1]:80"),
        "/p",
        None,
    );
    check("OPTIONS *", Asterisk, None, "*", None);
    check("OPTIONS /p", Origin, None, "/p", None);
    check(
        "OPTIONS http://a.example",
        Absolute,
        Some("a.example"),
        "*",
        None,
    );
    check(
        "OPTIONS http://a.example?x",
        Absolute,
        Some("a.example"),
        "/",
        Some("x"),
    );
    check(
        "OPTIONS http://a.example/",
        Absolute,
        Some("a.example"),
        "/",
        None,
    );
    check(
        "CONNECT a.example:443",
        Authority,
        Some("a.example:443"),
        "",
        None,
    );
}

#[test]
fn methods() {
    for (token, method, idempotent) in [
        ("GET", Method::Get, true),
        ("HEAD", Method::Head, true),
        ("POST", Method::Post, false),
        ("PUT", Method::Put, true),
        ("DELETE", Method::Delete, true),
        ("PATCH", Method::Patch, false),
        ("OPTIONS", Method::Options, true),
        ("TRACE", Method::Trace, true),
        ("TRACK", Method::Track, false),
        ("get", Method::Other, false),
        ("PROPFIND", Method::Other, false),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF", Method::Other, false),
    ] {
        let input = format!("{token} / HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = parse(input.as_bytes()).expect(token).expect("complete");
        assert_eq!((head.method(), head.method_str()), (method, token));
        assert_eq!(method.is_idempotent(), idempotent, "{token}");
    }
}

#[test]
fn connections_are_kept_or_not() {
    for (version, fields, keep) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, CLOSE ,y\r\n", false),
        ("1.1", "Connection: x\r\nconnection: close\r\n", false),
        ("1.1", "Connection: keep-alive, close\r\n", false),
        ("1.1", "Connection: closed\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let input = format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
        let head = parse(input.as_bytes()).expect("valid").expect("complete");
        assert_eq!(head.keep_alive(), keep, "{version} {fields:?}");
        let input = format!("HTTP/{version} 200 OK\r\n{fields}\r\n");
        let head = response_of(&[input.as_bytes()]).expect("valid");
        assert_eq!(head.keep_alive(), keep, "{version} {fields:?}");
    }
}

#[test]
fn expectations_upgrades_and_loops() {
    let head = |version: &str, fields: &str| {
        let input = format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
        parse(input.as_bytes()).expect("valid").expect("complete")
    };
    for (version, fields, expected) in [
        ("1.1", "Expect: 100-continue\r\n", true),
        ("1.1", "expect: 100-Continue\r\n", true),
        ("1.1", "Expect: 200-ok\r\n", false),
        ("1.1", "", false),
        ("1.0", "Expect: 100-continue\r\n", false),
    ] {
        assert_eq!(
            head(version, fields).expects_continue(),
            expected,
            "{version} {fields:?}"
        );
    }
    for (version, fields, expected) in [
        (
            "1.1",
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
            Some("websocket"),
        ),
        (
            "1.1",
            "Connection: keep-alive, upgrade\r\nUpgrade: h2c, websocket\r\n",
            Some("h2c, websocket"),
        ),
        ("1.1", "Upgrade: websocket\r\n", None),
        ("1.1", "Connection: upgrade\r\n", None),
        ("1.1", "Connection: upgrade\r\nUpgrade:\r\n", None),
        (
            "1.1",
            "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
            None,
        ),
        ("1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n", None),
    ] {
        assert_eq!(
            head(version, fields).upgrade(),
            expected.map(str::as_bytes),
            "{version} {fields:?}"
        );
    }
    for (fields, expected) in [
        ("CDN-Loop: abc\r\n", true),
        ("cdn-loop: other, ABC;v=1\r\n", true),
        ("CDN-Loop: other\r\nCDN-Loop: x , abc ; a=\"b\"\r\n", true),
        ("CDN-Loop: abcd, ab\r\n", false),
        ("CDN-Loop:\r\n", false),
        ("X: abc\r\n", false),
        ("", false),
    ] {
        assert_eq!(
            head("1.1", fields).cdn_loop_contains(b"abc"),
            expected,
            "{fields:?}"
        );
    }
}

#[test]
fn names_are_classified_once() {
    let names = [
        ("host2", FieldId::Other),
        ("content-length", FieldId::ContentLength),
        ("TRANSFER-ENCODING", FieldId::TransferEncoding),
        ("Te", FieldId::Te),
        ("trailer", FieldId::Trailer),
        ("Keep-Alive", FieldId::KeepAlive),
        ("Proxy-Connection", FieldId::ProxyConnection),
        ("Proxy-Authenticate", FieldId::ProxyAuthenticate),
        ("Proxy-Authentication-Info", FieldId::ProxyAuthenticate),
        ("Proxy-Authorization", FieldId::ProxyAuthorization),
        ("HTTP2-Settings", FieldId::Http2Settings),
        ("Expect", FieldId::Expect),
        ("CDN-Loop", FieldId::CdnLoop),
        ("Cookie", FieldId::Cookie),
        ("Accept-Encoding", FieldId::AcceptEncoding),
        ("accept_encoding", FieldId::AcceptEncoding),
        ("CONTENT-ENCODING", FieldId::ContentEncoding),
        ("Alt-Svc", FieldId::AltSvc),
        ("Upgrade", FieldId::Upgrade),
        ("Connection", FieldId::Connection),
        ("content_length", FieldId::Shadow),
        ("Transfer_Encoding", FieldId::Shadow),
        ("CDN_Loop", FieldId::Shadow),
        ("keep_alive", FieldId::Shadow),
        ("claviger", FieldId::Own),
        ("Claviger-Reason", FieldId::Own),
        ("CLAVIGER_request-id", FieldId::Own),
        ("clavigers", FieldId::Other),
        ("x-claviger-reason", FieldId::Other),
        ("Authorization", FieldId::Other),
        ("X", FieldId::Other),
    ];
    let mut input = String::from("GET / HTTP/1.1\r\nHost: a\r\n");
    for (name, _) in names {
        input += &format!("{name}: 1\r\n");
    }
    let head = request_of(&[(input + "\r\n").as_bytes()], &LIMITS).expect("valid");
    let found: Vec<FieldId> = head.fields()[1..].iter().map(|field| field.id).collect();
    assert_eq!(found, names.map(|(_, id)| id));
}

#[test]
fn bounds_hold_at_their_edges() {
    let limits = HeadLimits {
        head_bytes_max: 200,
        fields_max: 3,
    };
    let sized = |len: usize| {
        let mut head = String::from("GET / HTTP/1.1\r\nHost: a\r\nX: ");
        head += &"v".repeat(len - head.len() - 4);
        head + "\r\n\r\n"
    };
    let parse = |input: &str, step: usize| {
        let pieces: Vec<&[u8]> = input.as_bytes().chunks(step).collect();
        request_of(&pieces, &limits).map(|head| head.bytes().len())
    };
    for step in [1, 7, 1000] {
        assert_eq!(parse(&sized(200), step), Ok(200));
        assert_eq!(parse(&sized(201), step), Err(HeadError::HeadTooLarge));
        assert_eq!(
            parse(&sized(201)[..200], step),
            Err(HeadError::HeadTooLarge)
        );
        assert_eq!(parse(&sized(201)[..199], step), Ok(0));
        assert_eq!(
            parse(&format!("GET /{}", "a".repeat(195)), step),
            Err(HeadError::TargetTooLong)
        );
        assert_eq!(
            parse(
                &format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(195)),
                step
            ),
            Err(HeadError::TargetTooLong)
        );
        // What follows the head does not count.
        assert_eq!(parse(&(sized(100) + &"b".repeat(500)), step), Ok(100));
        let fields = |count: usize| {
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
                "X: 1\r\n".repeat(count - 1)
            )
        };
        assert_eq!(parse(&fields(3), step), Ok(fields(3).len()));
        assert_eq!(parse(&fields(4), step), Err(HeadError::FieldsTooMany));
    }
    let many = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: 1\r\n".repeat(count - 1)
        )
    };
    let generous = HeadLimits {
        head_bytes_max: 1 << 20,
        fields_max: 100_000,
    };
    assert!(request_of(&[many(256).as_bytes()], &generous).is_ok());
    assert_eq!(
        request_of(&[many(257).as_bytes()], &generous).err(),
        Some(HeadError::FieldsTooMany)
    );
    let unset = HeadLimits {
        head_bytes_max: 0,
        fields_max: 0,
    };
    assert_eq!(
        request_of(&[b"G"], &unset).err(),
        Some(HeadError::TargetTooLong)
    );
}

#[test]
fn an_incomplete_head_waits_but_a_hopeless_one_does_not() {
    let partial = |input: &[u8]| request_of(&[input], &LIMITS).map(|head| head.bytes().is_empty());
    for input in [
        &b""[..],
        b"\r",
        b"\r\n",
        b"G",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r",
    ] {
        assert_eq!(
            partial(input),
            Ok(true),
            "{:?}",
            String::from_utf8_lossy(input)
        );
    }
    // None of these could ever become valid, so none may hold a connection until its deadline.
    for input in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: a\n",
        b"\r\n\r\n",
        b"GET / HTTP/3",
    ] {
        assert!(
            partial(input).is_err(),
            "{:?}",
            String::from_utf8_lossy(input)
        );
    }
}

#[test]
fn pipelined_requests_come_one_by_one() {
    let mut head = RequestHead::new();
    head.buffer().extend_from_slice(b"\r\nPOST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\nGET /3 HT");
    assert_eq!(head.parse(&LIMITS), Ok(Parse::Complete));
    assert_eq!((head.path(), &head.rest()[..4]), (&b"/1"[..], &b"body"[..]));
    head.finish(4);
    assert_eq!(head.parse(&LIMITS), Ok(Parse::Complete));
    assert_eq!((head.path(), head.host()), (&b"/2"[..], Some(&b"b"[..])));
    assert!(head.fields().len() == 1);
    head.finish(0);
    assert_eq!(head.parse(&LIMITS), Ok(Parse::Partial));
    head.buffer()
        .extend_from_slice(b"TP/1.1\r\nHost: c\r\n\r\n");
    assert_eq!(head.parse(&LIMITS), Ok(Parse::Complete));
    assert_eq!(head.path(), b"/3");
    head.finish(usize::MAX / 2);
    assert_eq!(head.buffered(), 0);
}

#[test]
fn responses_give_their_parts() {
    let head = response_of(&[b"HTTP/1.1 404 Not \xe9 Found\r\nX: y\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nbody"]).expect("valid");
    assert_eq!(
        (head.status(), head.version(), head.rest()),
        (404, Version::Http11, &b"body"[..])
    );
    assert_eq!(head.upgrade(), Some(&b"websocket"[..]));
    assert_eq!(head.name(&head.fields()[0]), b"X");
    assert_eq!(head.value(&head.fields()[0]), b"y");
    for (line, status) in [
        ("HTTP/1.1 200", 200),
        ("HTTP/1.1 100 ", 100),
        ("HTTP/1.0 599 x", 599),
        ("HTTP/1.1 200  two spaces", 200),
    ] {
        for cut in 0..line.len() {
            let input = format!("{line}\r\nX:\r\n\r\n");
            let head =
                response_of(&[&input.as_bytes()[..cut], &input.as_bytes()[cut..]]).expect(line);
            assert_eq!(head.status(), status, "{line}");
        }
    }
    let mut head = ResponseHead::default();
    head.buffer()
        .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
    for status in [100, 200] {
        assert_eq!(head.parse(&LIMITS), Ok(Parse::Complete));
        assert_eq!(head.status(), status);
        head.finish(0);
    }
    assert_eq!(head.buffered(), 0);
}

#[test]
fn responses_that_are_refused() {
    use HeadError::*;
    let check = |input: &[u8], errors: &[HeadError]| {
        for cut in 0..=input.len() {
            match response_of(&[&input[..cut], &input[cut..]]) {
                Err(error) => assert!(
                    errors.contains(&error),
                    "{:?}: {error:?}",
                    String::from_utf8_lossy(input)
                ),
                Ok(_) => panic!("{:?} is not refused", String::from_utf8_lossy(input)),
            }
        }
    };
    for line in [
        "HTTP/1.1 99 x",
        "HTTP/1.1 600 x",
        "HTTP/1.1 000 x",
        "HTTP/1.1 2000 x",
        "HTTP/1.1 20 x",
        "HTTP/1.1 2x0 x",
        "HTTP/1.1  200 x",
        "HTTP/1.1\t200 x",
        "HTTP/1.1 200\tx",
        "HTTP/1.2 200 OK",
        "HTTP/2 200 OK",
        "http/1.1 200 OK",
        "ICY 200 OK",
        " HTTP/1.1 200 OK",
        "HTTP/1.1",
        "200 OK",
    ] {
        check(
            format!("{line}\r\n\r\n").as_bytes(),
            &[StatusLine, Version, LineEnding],
        );
    }
    check(b"\r\nHTTP/1.1 200 OK\r\n\r\n", &[LeadingBlankLines]);
    check(b"\nHTTP/1.1 200 OK\r\n\r\n", &[LeadingBlankLines]);
    check(b"HTTP/1.1 200 OK\n\n", &[LineEnding]);
    check(b"HTTP/1.1 200 OK\r\nX: y\n\r\n", &[LineEnding]);
    check(b"HTTP/1.1 200 O\rK\r\n\r\n", &[LineEnding, StatusLine]);
    check(b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n", &[FieldName]);
    check(b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", &[FieldName]);
    check(b"HTTP/1.1 200 OK\r\nX: y\0\r\n\r\n", &[FieldValue]);
    check(b"HTTP/1.1 200 OK\r\n: y\r\n\r\n", &[FieldName]);
}

#[test]
fn errors_quote_nothing_and_name_the_cure() {
    use HeadError::*;
    let all = [
        (LeadingBlankLines, 400),
        (LineEnding, 400),
        (ControlByte, 400),
        (RequestLine, 400),
        (MethodTooLong, 501),
        (TargetBytes, 400),
        (TargetForm, 400),
        (Version, 505),
        (StatusLine, 400),
        (FieldName, 400),
        (FieldValue, 400),
        (TargetTooLong, 414),
        (HeadTooLarge, 431),
        (FieldsTooMany, 431),
        (HostMissing, 400),
        (HostRepeated, 400),
        (HostMalformed, 400),
        (ConnectionOptionsTooMany, 400),
    ];
    for (at, (error, status)) in all.iter().enumerate() {
        assert_eq!(error.status(), *status, "{error:?}");
        assert!(
            error
                .reason()
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{error:?}"
        );
        assert!(
            all[..at]
                .iter()
                .all(|(other, _)| other.reason() != error.reason())
        );
    }
    let secret = b"GET /?key=hunter22 HTTP/1.1\r\nHost: a\r\nAuthorization: hunter22\0\r\n\r\n";
    let error = request_of(&[secret], &LIMITS).expect_err("refused");
    assert!(!format!("{error} {error:?}").contains("hunter22"));
}
