//! What an upstream learns of where a request came from: nothing, or what the route says, and never
//! what a caller says of itself.

use crate::world::Expected::{By, Upstream};
use crate::world::{Connection, Written, check, clear, tls};

/// Everything that a caller may say of where it comes from.
const CLAIMS: [&str; 10] = [
    "Via: 1.1 caller-secret",
    "Forwarded: for=caller-secret",
    "X-Forwarded-For: caller-secret",
    "X-Forwarded-Host: caller-secret",
    "X-Forwarded-Proto: caller-secret",
    "x_forwarded_for: caller-secret",
    "X-Forwarded_Host: caller-secret",
    "X_FORWARDED_PROTO: caller-secret",
    "forwarded: for=caller-secret;proto=https",
    "VIA: 1.0 caller-secret",
];

#[test]
fn nothing_is_told_by_default() {
    let mut request = vec!["GET /x HTTP/1.1", "Host: api.example.com"];
    request.extend(CLAIMS);
    let written = check(
        tls("api.example.com"),
        &request,
        Upstream(&[
            "GET /x HTTP/1.1",
            "Host: root.upstream.example",
            "CDN-Loop: clv-5f1e",
            "Authorization: Bearer real-key-of-root-0123456789",
        ]),
    );
    assert!(written.stripped.contains(&"x-forwarded-for".to_owned()));
    assert!(written.stripped.contains(&"via".to_owned()));
}

#[test]
fn what_a_caller_claims_is_replaced() {
    let mut request = vec!["GET /x HTTP/1.1", "Host: told.example.com:443"];
    request.extend(CLAIMS);
    check(
        tls("told.example.com").from("10.0.0.1"),
        &request,
        Upstream(&[
            "GET /x HTTP/1.1",
            "Host: told.upstream.example",
            "X-Forwarded-For: 10.0.0.1",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: told.example.com:443",
            "Forwarded: for=10.0.0.1;host=\"told.example.com:443\";proto=https",
            "Via: 1.1 claviger",
            "CDN-Loop: clv-5f1e",
            "Authorization: Bearer real-key-of-told-0123456789",
        ]),
    );
}

fn told(connection: Connection, version: &str, fields: &[&str]) -> Written {
    let line = format!("GET / HTTP/{version}");
    let mut request = vec![line.as_str(), "Host: told.example.com"];
    request.extend(fields);
    check(connection, &request, By("told"))
}

#[track_caller]
fn lines(written: &Written, expected: &[&str]) {
    for line in expected {
        let line = format!("\r\n{line}\r\n");
        assert!(written.text.contains(&line), "{line} in {}", written.text);
    }
}

#[test]
fn addresses_are_written_as_each_field_has_them() {
    let written = told(tls("told.example.com").from("fd00::1"), "1.1", &[]);
    lines(
        &written,
        &[
            "X-Forwarded-For: fd00::1",
            // RFC 7239, section 6: an IPv6 address stands in brackets and quotes.
            "Forwarded: for=\"[fd00::1]\";host=told.example.com;proto=https",
        ],
    );
    // IPv4 over an IPv6 socket is IPv4.
    let written = told(tls("told.example.com").from("::ffff:10.0.0.1"), "1.1", &[]);
    lines(&written, &["X-Forwarded-For: 10.0.0.1"]);
    // RFC 9110, 7.6.3: the version that was received.
    let written = told(clear().from("10.0.0.1"), "1.0", &[]);
    lines(
        &written,
        &[
            "X-Forwarded-Proto: http",
            "Forwarded: for=10.0.0.1;host=told.example.com;proto=http",
            "Via: 1.0 claviger",
        ],
    );
}

#[test]
fn what_a_trusted_proxy_says_stays_in_front() {
    let proxy = || tls("told.example.com").from("10.9.0.7");
    let written = told(
        proxy(),
        "1.1",
        &[
            "X-Forwarded-For: 192.0.2.1",
            "x-forwarded-for: 192.0.2.2, 10.9.0.8",
            "X-Forwarded-Proto: http",
            "X-Forwarded-Host: asked.example.com:8080",
            "Forwarded: for=_hidden;by=\"[::1]:99\", for=unknown",
            "Via: 1.0 fred, 1.1 inner (a (comment))",
            // Not its own spelling, so nobody's.
            "X_Forwarded_For: caller-secret",
        ],
    );
    lines(
        &written,
        &[
            "X-Forwarded-For: 192.0.2.1, 192.0.2.2, 10.9.0.8, 10.9.0.7",
            "X-Forwarded-Proto: http",
            "X-Forwarded-Host: asked.example.com:8080",
            "Forwarded: for=_hidden;by=\"[::1]:99\", for=unknown, for=10.9.0.7;host=told.example.com;proto=https",
            "Via: 1.0 fred, 1.1 inner (a (comment)), 1.1 claviger",
        ],
    );
    // Nominated or not: CVE-2024-45410.
    let written = told(
        proxy(),
        "1.1",
        &[
            "Connection: x-forwarded-for, forwarded, via",
            "X-Forwarded-For: 192.0.2.1",
        ],
    );
    lines(
        &written,
        &[
            "X-Forwarded-For: 192.0.2.1, 10.9.0.7",
            "Forwarded: for=10.9.0.7;host=told.example.com;proto=https",
            "Via: 1.1 claviger",
        ],
    );
}

#[test]
fn what_would_swallow_ours_is_dropped() {
    for (field, ours) in [
        (
            "Forwarded: for=\"caller-secret",
            "Forwarded: for=10.9.0.7;host=told.example.com;proto=https",
        ),
        (
            "Forwarded: for=caller-secret;",
            "Forwarded: for=10.9.0.7;host=told.example.com;proto=https",
        ),
        ("Via: 1.1 caller-secret (open", "Via: 1.1 claviger"),
        (
            "X-Forwarded-For: \"caller-secret",
            "X-Forwarded-For: 10.9.0.7",
        ),
        (
            "X-Forwarded-Proto: caller-secret",
            "X-Forwarded-Proto: https",
        ),
        (
            "X-Forwarded-Host: caller-secret/x",
            "X-Forwarded-Host: told.example.com",
        ),
    ] {
        let written = told(tls("told.example.com").from("10.9.0.7"), "1.1", &[field]);
        lines(&written, &[ours]);
    }
    // Of a single value there are not two.
    let written = told(
        tls("told.example.com").from("10.9.0.7"),
        "1.1",
        &["X-Forwarded-Proto: http", "X-Forwarded-Proto: http"],
    );
    lines(&written, &["X-Forwarded-Proto: https"]);
}
