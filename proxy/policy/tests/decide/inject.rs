//! What is written, byte for byte, and that nothing a caller sends changes it.

use policy::verdict::PoolKey;
use policy::{Caller, Verdict};
use wire::framing::BodyFraming;
use wire::rewrite::Plan;

use crate::world::Expected::{By, Upstream};
use crate::world::{REQUEST_ID, WORLD, check, parse, pool_key, tls};

#[test]
fn each_way_of_writing_a_key() {
    check(
        tls("api.example.com"),
        &[
            "GET /a?b=c HTTP/1.1",
            "Host: api.example.com",
            "Accept: */*",
        ],
        Upstream(&[
            "GET /a?b=c HTTP/1.1",
            "Host: root.upstream.example",
            "Accept: */*",
            "CDN-Loop: clv-5f1e",
            "Authorization: Bearer real-key-of-root-0123456789",
        ]),
    );
    check(
        tls("basic.example.com"),
        &["GET / HTTP/1.1", "Host: basic.example.com"],
        Upstream(&[
            "GET / HTTP/1.1",
            "Host: basic.upstream.example",
            "CDN-Loop: clv-5f1e",
            // base64 of `api:real-key-of-basic-0123456789`
            "Authorization: Basic YXBpOnJlYWwta2V5LW9mLWJhc2ljLTAxMjM0NTY3ODk=",
        ]),
    );
    check(
        tls("header.example.com"),
        &[
            "GET / HTTP/1.1",
            "Host: header.example.com",
            "x-goog-api-key: caller-secret",
        ],
        Upstream(&[
            "GET / HTTP/1.1",
            "Host: header.upstream.example",
            "CDN-Loop: clv-5f1e",
            "X-Goog-Api-Key: v1 real-key-of-header-0123456789;",
        ]),
    );
}

#[test]
fn a_key_in_the_query_comes_first() {
    for (query, expected) in [
        ("", "?key=real-key-of-query-0123456789"),
        ("?", "?key=real-key-of-query-0123456789"),
        ("?a=1", "?key=real-key-of-query-0123456789&a=1"),
        ("?a=1;b=2", "?key=real-key-of-query-0123456789&a=1;b=2"),
        ("?key=caller-secret", "?key=real-key-of-query-0123456789"),
        (
            "?K%45Y=caller-secret&a=1&key=caller-secret",
            "?key=real-key-of-query-0123456789&a=1",
        ),
        (
            "?a=1;key=caller-secret;b",
            "?key=real-key-of-query-0123456789&a=1;b",
        ),
    ] {
        check(
            tls("query.example.com"),
            &[
                &format!("GET /v1{query} HTTP/1.1"),
                "Host: query.example.com",
                "Authorization: Bearer caller-secret",
            ],
            Upstream(&[
                &format!("GET /v1{expected} HTTP/1.1"),
                "Host: query.upstream.example",
                "CDN-Loop: clv-5f1e",
            ]),
        );
    }
}

#[test]
fn a_nomination_never_alters_what_is_written() {
    for (host, route) in [
        ("api.example.com", "root"),
        ("header.example.com", "header"),
        ("query.example.com", "query"),
    ] {
        let host_field = format!("Host: {host}");
        let plain = [
            "POST /x?a=1 HTTP/1.1",
            &host_field,
            "Content-Length: 5",
            "Accept: */*",
        ];
        let expected = check(tls(host), &plain, By(route));
        for connection in [
            "Connection: authorization",
            "Connection: X-Goog-Api-Key, x_goog_api_key",
            "Connection: authorization, host, content-length",
            "Connection: Host,Content-Length,CDN-Loop,Authorization",
            "Connection: transfer-encoding, connection, keep-alive, close",
            "Connection: key, a, claviger-answer",
        ] {
            let mut request = plain.to_vec();
            request.insert(2, connection);
            request.push("Keep-Alive: timeout=5");
            let written = check(tls(host), &request, By(route));
            assert_eq!(written.text, expected.text, "{connection}");
        }
    }
    // What it does do is name what ends here (RFC 9110, 7.6.1).
    let written = check(
        tls("api.example.com"),
        &[
            "GET / HTTP/1.1",
            "Host: api.example.com",
            "Connection: x-hop, close",
            "X-Hop: 1",
            "X-End: 2",
        ],
        By("root"),
    );
    assert!(!written.text.contains("X-Hop") && written.text.contains("X-End: 2"));
}

#[test]
fn framing_is_ours() {
    check(
        tls("api.example.com"),
        &[
            "POST / HTTP/1.1",
            "Host: api.example.com",
            "content-length: 007",
            "Expect: 100-Continue",
        ],
        Upstream(&[
            "POST / HTTP/1.1",
            "Host: root.upstream.example",
            "Expect: 100-Continue",
            "CDN-Loop: clv-5f1e",
            "Authorization: Bearer real-key-of-root-0123456789",
            "Content-Length: 7",
        ]),
    );
    check(
        tls("api.example.com"),
        &[
            "POST / HTTP/1.1",
            "Host: api.example.com",
            "Transfer-Encoding: chunked",
            "TE: trailers",
            "Trailer: x-sum",
            "Transfer_Encoding: identity",
            "Content_Length: 3",
        ],
        Upstream(&[
            "POST / HTTP/1.1",
            "Host: root.upstream.example",
            "Trailer: x-sum",
            "CDN-Loop: clv-5f1e",
            "Authorization: Bearer real-key-of-root-0123456789",
            "Transfer-Encoding: chunked",
        ]),
    );
}

#[test]
fn old_versions_and_absolute_targets_become_ordinary() {
    check(
        tls("api.example.com"),
        &[
            "GET HTTPS://API.example.com:443?a=1 HTTP/1.0",
            "Accept: */*",
        ],
        Upstream(&[
            "GET /?a=1 HTTP/1.1",
            "Host: root.upstream.example",
            "Accept: */*",
            "CDN-Loop: clv-5f1e",
            "Authorization: Bearer real-key-of-root-0123456789",
        ]),
    );
}

#[test]
fn upgrades_pass_where_the_route_lists_them() {
    for (host, asked, passes) in [
        ("api.example.com", "websocket", Some("websocket")),
        ("api.example.com", "WebSocket", Some("websocket")),
        ("keep.example.com", "chat", Some("chat")),
        ("api.example.com", "chat", None),
        ("api.example.com", "h2c", None),
        ("api.example.com", "websocket, h2c", None),
        ("api.example.com", "TLS/1.0", None),
    ] {
        let written = check(
            tls(host),
            &[
                "GET / HTTP/1.1",
                &format!("Host: {host}"),
                "Connection: Upgrade, HTTP2-Settings",
                &format!("Upgrade: {asked}"),
                "HTTP2-Settings: AAMAAABkAAQAAP__",
            ],
            By(if host == "api.example.com" {
                "root"
            } else {
                "keep"
            }),
        );
        let lines = passes.map(|token| format!("Connection: upgrade\r\nUpgrade: {token}\r\n"));
        match lines {
            Some(lines) => assert!(written.text.contains(&lines), "{asked}: {}", written.text),
            None => assert!(!written.text.to_ascii_lowercase().contains("upgrade:")),
        }
        assert!(!written.text.to_ascii_lowercase().contains("http2-settings"));
    }
    // Not nominated, it is no request for an upgrade.
    let written = check(
        tls("api.example.com"),
        &[
            "GET / HTTP/1.1",
            "Host: api.example.com",
            "Upgrade: websocket",
        ],
        By("root"),
    );
    assert!(!written.text.contains("pgrade"));
}

/// Leads a request of `api.example.com` to a connection of another pool.
fn mislead(to: PoolKey) {
    let head = parse("GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n");
    let caller = Caller {
        address: [127, 0, 0, 1].into(),
        server_name: Some("api.example.com"),
        tls: true,
        identity: None,
    };
    let Verdict::Allow(permit) = WORLD.authorize("main", &caller, &head) else {
        panic!("this request is allowed");
    };
    let mut plan = Plan::new();
    let outbound = permit.inject(REQUEST_ID, &head, BodyFraming::None, None, false, &mut plan);
    let mut slices = Vec::new();
    outbound.slices(to, &plan, &head, &mut slices);
}

#[test]
fn the_right_pool_takes_it() {
    mislead(pool_key("root"));
}

#[test]
#[should_panic(expected = "a connection of another pool")]
fn another_upstream_never_gets_it() {
    mislead(PoolKey {
        upstream: pool_key("wild").upstream,
        ..pool_key("root")
    });
}

#[test]
#[should_panic(expected = "a connection of another pool")]
fn another_credential_s_connection_never_gets_it() {
    mislead(PoolKey {
        credential: pool_key("wild").credential,
        ..pool_key("root")
    });
}

#[test]
#[should_panic(expected = "a connection of another pool")]
fn a_connection_without_a_credential_never_gets_it() {
    mislead(PoolKey {
        credential: None,
        ..pool_key("root")
    });
}
