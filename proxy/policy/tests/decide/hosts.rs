//! Which virtual host a request is for: the server name, the `Host` field and an
//! absolute target must say the same.

use crate::world::Expected::{By, Denied};
use crate::world::{check, clear, tls};

#[test]
fn names_agree_or_the_key_is_not_used() {
    let api = tls("api.example.com");
    for (target, host, expected) in [
        ("/", "api.example.com", None),
        ("/", "API.Example.COM", None),
        ("/", "api.example.com.", None),
        ("/", "api.example.com:443", None),
        ("/", "api.example.com:8443", None),
        ("/", "API.example.com.:443", None),
        ("/", "bare.example.com", Some(())),
        ("/", "api.example.com.evil.test", Some(())),
        ("/", "xapi.example.com", Some(())),
        ("/", "api.example.com..", Some(())),
        ("/", "127.0.0.1", Some(())),
        ("/", "[::1]:443", Some(())),
        ("https://api.example.com/", "api.example.com", None),
        ("http://api.example.com", "api.example.com", None),
        ("HTTPS://API.EXAMPLE.COM:443/x", "api.example.com", None),
        ("https://bare.example.com/", "api.example.com", Some(())),
        ("https://api.example.com/", "bare.example.com", Some(())),
        ("https://bare.example.com/", "bare.example.com", Some(())),
        ("https://api.example.com./", "api.example.com.", None),
    ] {
        check(
            api,
            &[&format!("GET {target} HTTP/1.1"), &format!("Host: {host}")],
            match expected {
                None => By("root"),
                Some(()) => Denied(421, "misdirected_request"),
            },
        );
    }
}

#[test]
fn without_a_server_name_the_request_says_it() {
    for (request, expected) in [
        (&["GET / HTTP/1.1", "Host: api.example.com"][..], By("root")),
        (&["GET / HTTP/1.1", "Host: Api.Example.Com.:80"], By("root")),
        (&["GET http://api.example.com/ HTTP/1.0"], By("root")),
        (
            &[
                "GET http://api.example.com/ HTTP/1.1",
                "Host: bare.example.com",
            ],
            Denied(421, "misdirected_request"),
        ),
        (
            &["GET / HTTP/1.1", "Host: nobody.test"],
            Denied(421, "unknown_host"),
        ),
        (
            &["GET / HTTP/1.1", "Host: example.com"],
            Denied(421, "unknown_host"),
        ),
        (&["GET / HTTP/1.0"], Denied(400, "bad_host")),
    ] {
        check(clear(), request, expected);
    }
}

#[test]
fn http_1_0_may_leave_host_out_where_the_handshake_has_said_it() {
    check(tls("api.example.com"), &["GET / HTTP/1.0"], By("root"));
    check(
        tls("api.example.com"),
        &["GET / HTTP/1.0", "Host: bare.example.com"],
        Denied(421, "misdirected_request"),
    );
    check(
        tls("api.example.com"),
        &["GET https://bare.example.com/ HTTP/1.0"],
        Denied(421, "misdirected_request"),
    );
}

#[test]
fn a_wildcard_is_one_label() {
    for (name, expected) in [
        ("a.example.net", By("wild")),
        ("b-2.example.net", By("wild")),
        ("exact.example.net", By("exact")),
        ("example.net", Denied(421, "unknown_host")),
        ("a.b.example.net", Denied(421, "unknown_host")),
        ("x.exact.example.net", Denied(421, "unknown_host")),
        ("aexample.net", Denied(421, "unknown_host")),
    ] {
        check(
            clear(),
            &["GET / HTTP/1.1", &format!("Host: {name}")],
            expected,
        );
    }
    check(
        clear(),
        &["GET / HTTP/1.1", "Host: .example.net"],
        Denied(421, "unknown_host"),
    );
    // One certificate serves both names; the handshake was for one of them.
    check(
        tls("a.example.net"),
        &["GET / HTTP/1.1", "Host: b.example.net"],
        Denied(421, "misdirected_request"),
    );
    check(
        tls("a.example.net"),
        &["GET / HTTP/1.1", "Host: exact.example.net"],
        Denied(421, "misdirected_request"),
    );
}

#[test]
fn a_host_is_served_on_its_listeners_only() {
    let internal = ["GET / HTTP/1.1", "Host: internal.example.com"];
    check(tls("internal.example.com"), &internal, By("internal"));
    check(clear(), &internal, Denied(421, "unknown_host"));
    check(
        tls("internal.example.com").on("spare"),
        &internal,
        Denied(421, "unknown_host"),
    );
    let plain = ["GET / HTTP/1.1", "Host: clear.example.com"];
    check(clear(), &plain, By("clear"));
    check(clear().on("spare"), &plain, By("clear"));
    check(
        tls("clear.example.com"),
        &plain,
        Denied(421, "unknown_host"),
    );
}

#[test]
fn what_came_from_here_does_not_go_round_again() {
    let api = tls("api.example.com");
    for fields in [
        &["CDN-Loop: clv-5f1e"][..],
        &["cdn-loop: CLV-5F1E"],
        &["CDN-Loop: fastly, clv-5f1e; v=2 , cloudflare"],
        &[
            "CDN-Loop: fastly",
            "CDN-Loop: cloudflare",
            "Cdn-Loop: a,clv-5f1e",
        ],
        &["CDN-Loop: clv-5f1e", "Connection: cdn-loop"],
        &["Connection: close, CDN-Loop", "CDN-Loop: clv-5f1e"],
    ] {
        let mut request = vec!["GET /v3/mail HTTP/1.1", "Host: api.example.com"];
        request.extend(fields);
        check(api, &request, Denied(508, "loop_detected"));
    }
    for field in [
        "CDN-Loop: clv-5f1e0",
        "CDN-Loop: clv",
        "CDN-Loop: x;clv-5f1e",
    ] {
        let written = check(
            api,
            &[
                "GET / HTTP/1.1",
                "Host: api.example.com",
                field,
                "Connection: cdn-loop",
            ],
            By("root"),
        );
        assert!(written.text.contains(field), "others' marks stay");
    }
}
