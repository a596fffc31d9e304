//! Which route a request takes: the longest prefix, then the method, and no path
//! that could be read as another route's.

use policy::{Caller, Route, ServerLimits, Snapshot, Verdict, VirtualHost};

use crate::world::Expected::{By, Denied, Offered, Upstream};
use crate::world::{Expected, check, parse, plain_route, tls};

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

/// The route that a snapshot of these routes takes, by its name.
fn taken(snapshot: &Snapshot, method: &str, path: &str) -> Result<String, &'static str> {
    let head = parse(&format!(
        "{method} {path} HTTP/1.1\r\nHost: a.example\r\n\r\n"
    ));
    let caller = Caller {
        address: "10.0.0.7".parse().expect("an address"),
        server_name: Some("a.example"),
        tls: true,
        identity: None,
    };
    match snapshot.authorize("main", &caller, &head) {
        Verdict::Allow(permit) => Ok(permit.route().name.to_string()),
        Verdict::Deny(denial) => Err(denial.reason),
        Verdict::Greet => panic!("the host is not for edges"),
    }
}

fn snapshot_of(routes: Vec<Route>) -> Snapshot {
    let host = VirtualHost::new("a.example", Vec::new(), None, routes);
    Snapshot::new(1, Vec::new(), vec![host], ServerLimits::default(), "t").expect("one host")
}

fn route(name: &str, path: &str, methods: &[&str]) -> Route {
    Route {
        name: name.into(),
        path: path.as_bytes().into(),
        methods: methods.iter().map(|&method| method.into()).collect(),
        ..plain_route(1, "root")
    }
}

/// Paths of one length must not come between the routes of one of them.
#[test]
fn routes_of_one_path_are_all_tried() {
    let snapshot = snapshot_of(vec![
        route("a-get", "/a", &["GET"]),
        route("b-get", "/b", &["GET"]),
        route("a-any", "/a", &[]),
        route("b-put", "/b", &["PUT"]),
    ]);
    for (method, path, expected) in [
        ("GET", "/a", Ok("a-get")),
        ("DELETE", "/a", Ok("a-any")),
        ("DELETE", "/a/x", Ok("a-any")),
        ("GET", "/b", Ok("b-get")),
        ("PUT", "/b", Ok("b-put")),
        ("DELETE", "/b", Err("method_not_served")),
        ("GET", "/c", Err("no_route")),
    ] {
        let expected = expected.map(str::to_owned);
        assert_eq!(taken(&snapshot, method, path), expected, "{method} {path}");
    }
}

/// The search among sorted paths against looking at each of them.
#[test]
fn the_longest_prefix_is_found_among_many() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) % bound
    };
    // Few letters, so that paths begin alike, and some end in a slash or within a segment.
    let mut path = |segments: u64| -> String {
        let mut path = String::new();
        for _ in 0..below(segments) {
            path.push('/');
            path.push_str(["a", "b", "aa", "ab", "a-", "a0"][below(6) as usize]);
        }
        if path.is_empty() || below(4) == 0 {
            path.push('/');
        }
        path
    };
    for round in 0..60 {
        let mut paths: Vec<String> = (0..1 + round).map(|_| path(5)).collect();
        paths.sort();
        paths.dedup();
        let snapshot = snapshot_of(paths.iter().map(|path| route(path, path, &[])).collect());
        for _ in 0..100 {
            let asked = path(7);
            let covers = |prefix: &&String| {
                asked.strip_prefix(&prefix[..]).is_some_and(|rest| {
                    rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/')
                })
            };
            let expected = paths
                .iter()
                .filter(covers)
                .max_by_key(|prefix| prefix.len())
                .cloned()
                .ok_or("no_route");
            assert_eq!(
                taken(&snapshot, "GET", &asked),
                expected,
                "{asked} in {paths:?}"
            );
        }
    }
}
