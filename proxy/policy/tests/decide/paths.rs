//! Which route a request takes: the longest prefix, then the method, and no path
//! that could be read as another route's.

use crate::world::Expected::{By, Denied, Offered, Upstream};
use crate::world::{Expected, check, tls};

const EVERY: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

#[track_caller]
fn at(host: &'static str, method: &str, path: &str, expected: Expected<'_>) {
    check(
        tls(host),
        &[
            &format!("{method} {path} HTTP/1.1"),
            &format!("Host: {host}"),
        ],
        expected,
    );
}

#[test]
fn the_longest_prefix_wins_and_then_the_method() {
    let api = "api.example.com";
    for (method, path, expected) in [
        ("GET", "/", By("root")),
        ("PURGE", "/anything", By("root")),
        ("GET", "/v3", By("root")),
        ("GET", "/v3/mailbox", By("root")),
        ("GET", "/V3/mail", By("root")),
        ("GET", "/v3/mail", By("mail-read")),
        ("HEAD", "/v3/mail/", By("mail-read")),
        ("GET", "/v3/mail?x=/v3/mail/draft", By("mail-read")),
        ("POST", "/v3/mail/send", By("mail-send")),
        ("PUT", "/v3/mail/drafts", By("mail-send")),
        ("PUT", "/v3/mail/draft/1", By("mail-draft")),
        // `root` would serve these, and is looser.
        (
            "DELETE",
            "/v3/mail",
            Offered(405, "method_not_served", "GET, HEAD, POST, PUT"),
        ),
        (
            "get",
            "/v3/mail",
            Offered(405, "method_not_served", "GET, HEAD, POST, PUT"),
        ),
        (
            "POST",
            "/v3/mail/draft",
            Offered(405, "method_not_served", "PUT"),
        ),
        (
            "GET",
            "/v3/mail/draft/1",
            Offered(405, "method_not_served", "PUT"),
        ),
    ] {
        at(api, method, path, expected);
    }
    for path in ["/", "/v", "/v2", "/v11", "/x/v1"] {
        at("bare.example.com", "GET", path, Denied(404, "no_route"));
    }
    at("bare.example.com", "OPTIONS", "*", Denied(404, "no_route"));
}

#[test]
fn methods_that_reflect_or_tunnel_are_refused() {
    for method in ["TRACE", "TRACK", "trace", "Track", "tRACE"] {
        for path in ["/", "/v3/mail/send", "/nowhere"] {
            at(
                "api.example.com",
                method,
                path,
                Offered(405, "method_refused", EVERY),
            );
        }
    }
    for target in ["api.example.com:443", "other.test:22"] {
        at(
            "api.example.com",
            "CONNECT",
            target,
            Offered(405, "method_refused", EVERY),
        );
    }
    at(
        "api.example.com",
        "connect",
        "/",
        Offered(405, "method_refused", EVERY),
    );
}

#[test]
fn a_path_with_two_readings_is_refused_where_they_differ() {
    let ambiguous = || Denied(400, "ambiguous_path");
    for path in [
        "/x/../admin",
        "/./admin",
        "/admin/../x",
        "/admin/..",
        "/%61dmin",
        "/%2561dmin",
        "/a%64min/keys",
        "/x/%2e%2e/admin",
        "/x/.%2E/admin",
        "/x%2f..%2fadmin",
        "/%2fadmin",
        "/x/..%5cadmin",
        "//admin",
        "/x//../admin",
        "/admin;a=1",
        "/admin;/../x",
        "/;/admin",
        "/\\admin",
        "/x\\..\\admin",
        "/admin%3fx",
        "/admin%00",
        "/admin%23/..",
    ] {
        at("guarded.example.com", "GET", path, ambiguous());
    }
    // The same tricks change nothing where every reading is one route's.
    for path in [
        "/x/../y",
        "/%61",
        "//x",
        "/x;a=1",
        "/x\\y",
        "/x%2fy",
        "/a%20b",
        "/administrator",
        "/v1/models/gemini:generateContent",
        "/repos/o%2Fr/contents/.github/workflows",
        "/caf%C3%A9",
        "/100%",
    ] {
        at("guarded.example.com", "GET", path, By("guarded-all"));
    }
    // Also where the method makes the difference.
    at("api.example.com", "POST", "/v3//mail", ambiguous());
    at("api.example.com", "DELETE", "/v3/%6dail", ambiguous());
    at("api.example.com", "GET", "/v3/mail/./draft", ambiguous());
    at(
        "api.example.com",
        "GET",
        "/v3/mail/./drafts",
        By("mail-read"),
    );
    // And out of every route.
    at("bare.example.com", "GET", "/v1/..", ambiguous());
    at("bare.example.com", "GET", "/v1/%2e%2e/v2", ambiguous());
    at("bare.example.com", "GET", "/v1/../v1/x", By("bare"));
}

#[test]
fn explicit_addressing_rewrites_the_prefix() {
    for (path, expected) in [
        ("/proxy/gemini", "/v1beta"),
        ("/proxy/gemini/", "/v1beta/"),
        ("/proxy/gemini/models?a=1", "/v1beta/models?a=1"),
        ("/proxy/gemini?a=1", "/v1beta?a=1"),
        ("/proxy/gemini//models", "/v1beta//models"),
    ] {
        check(
            tls("claviger.internal"),
            &[&format!("GET {path} HTTP/1.1"), "Host: claviger.internal"],
            Upstream(&[
                &format!("GET {expected} HTTP/1.1"),
                "Host: gemini.upstream.example",
                "CDN-Loop: clv-5f1e",
                "Authorization: Bearer real-key-of-gemini-0123456789",
            ]),
        );
    }
    for (path, expected, route) in [
        ("/proxy/plain", "/", "plain"),
        ("/proxy/plain/", "/", "plain"),
        ("/proxy/plain/x/", "/x/", "plain"),
        ("https://claviger.internal/proxy/plain", "/", "plain"),
        ("/proxy/slash/", "/api/", "slash"),
        ("/proxy/slash/x", "/api/x", "slash"),
    ] {
        let written = check(
            tls("claviger.internal"),
            &[&format!("GET {path} HTTP/1.1"), "Host: claviger.internal"],
            By(route),
        );
        let line = format!("GET {expected} HTTP/1.1\r\n");
        assert!(written.text.starts_with(&line), "{path}: {}", written.text);
    }
    for path in [
        "/",
        "/proxy",
        "/proxy/",
        "/proxy/geminix",
        "/proxy/gemini-2",
        "/proxy/slash",
    ] {
        at("claviger.internal", "GET", path, Denied(404, "no_route"));
    }
}

#[test]
fn no_path_climbs_out_of_the_upstream_prefix() {
    for path in [
        "/proxy/gemini/..",
        "/proxy/gemini/../x",
        "/proxy/gemini/%2e%2e/plain",
        "/proxy/gemini/..;/..",
        // These come back to the route's own prefix here, but not over there.
        "/proxy/gemini/../gemini/models",
        "/proxy/gemini/x/../../gemini",
        "/proxy/gemini/%2e%2e/%2e%2e/proxy/gemini/models",
        "/proxy/gemini/../../proxy/gemini",
        "/proxy/gemini/..%2fgemini",
        "/proxy/slash/../slash/x",
    ] {
        at(
            "claviger.internal",
            "GET",
            path,
            Denied(400, "ambiguous_path"),
        );
    }
    at(
        "claviger.internal",
        "GET",
        "/proxy/gemini/x/../y",
        By("gemini"),
    );
    at(
        "claviger.internal",
        "GET",
        "/proxy/gemini/x%2f..%2fy",
        By("gemini"),
    );
}
