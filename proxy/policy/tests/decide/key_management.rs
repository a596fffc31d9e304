//! Endpoints that read or make keys are refused in every spelling: whoever makes
//! a key there has one that Claviger does not watch.

use crate::world::Expected::{By, Denied};
use crate::world::{check, tls};

#[track_caller]
fn refused(host: &'static str, method: &str, path: &str) {
    check(
        tls(host),
        &[
            &format!("{method} {path} HTTP/1.1"),
            &format!("Host: {host}"),
        ],
        Denied(403, "key_management_refused"),
    );
}

#[test]
fn in_every_spelling() {
    for path in [
        "/v3/api_keys",
        "/v3/api_keys/",
        "/v3/api_keys/k1",
        "/v3/api_keys?x=1",
        "/V3/Api_Keys",
        "/v3/%61pi_keys",
        "/v3/%2561pi_keys",
        "/v3%2Fapi_keys",
        "/v3%252fapi_keys",
        "/v3//api_keys",
        "//v3/api_keys",
        "/./v3/./api_keys",
        "/x/../v3/api_keys",
        "/x/%2e%2e/v3/api_keys",
        "/v3/x/..%2fapi_keys",
        "/v3\\api_keys",
        "/v3/api_keys;a=1",
        "/v3;a=1/api_keys",
        "/v3/api_keys%3b",
        // To whoever decodes before splitting, the path ends here.
        "/v3/api_keys%3Fx",
        "/v3/api_keys%23x",
        "/v3/api_keys%00",
        "/v3/api_keys%253fx",
        // Cut, it is the endpoint; not cut, it climbs to nowhere. And the reverse.
        "/v3/api_keys%3f/../../x",
        "/x%3f/../../v3/api_keys",
        "/x;/../../v3/api_keys",
        "https://keys.example.com/v3/api_keys",
    ] {
        for method in ["POST", "GET", "HEAD"] {
            refused("keys.example.com", method, path);
        }
    }
    // Some servers fold a method's case.
    for method in ["post", "Post", "get", "head"] {
        refused("keys.example.com", method, "/v3/api_keys");
    }
    for method in ["GET", "DELETE", "patch", "PROPFIND"] {
        refused("keys.example.com", method, "/v1/org/acme/keys");
        refused("keys.example.com", method, "/v1/org/a%2fb/../keys");
    }
}

#[test]
fn also_behind_a_prefix() {
    for path in [
        "/proxy/mail/v3/api_keys",
        "/proxy/mail//v3/api_keys",
        "/proxy/mail/v3/%61pi_keys",
        "/proxy/mail/x/../v3/api_keys",
        "/proxy/mail/V3/API_KEYS/1",
        // `/v1/org` of the pattern is in the part that is put in.
        "/proxy/orgs/acme/keys",
        "/proxy/orgs//acme/keys",
        "/proxy/orgs/acme/%6beys/1",
        "/proxy/orgs/acme;x/keys",
    ] {
        refused("claviger.internal", "GET", path);
    }
}

#[test]
fn and_nothing_else() {
    for (host, method, path, route) in [
        ("keys.example.com", "PUT", "/v3/api_keys", "keys"),
        ("keys.example.com", "POST", "/v3/api_keys_2", "keys"),
        ("keys.example.com", "POST", "/v3", "keys"),
        ("keys.example.com", "POST", "/v4/v3/api_keys", "keys"),
        ("keys.example.com", "GET", "/v1/org/keys", "keys"),
        ("keys.example.com", "GET", "/?p=/v3/api_keys", "keys"),
        // The prefix is not part of what the upstream sees.
        (
            "claviger.internal",
            "GET",
            "/proxy/gemini/v3/api_keys",
            "gemini",
        ),
        ("claviger.internal", "GET", "/proxy/orgs/keys", "orgs"),
        // A route that allows it has no such list.
        ("api.example.com", "POST", "/v3/api_keys", "root"),
    ] {
        check(
            tls(host),
            &[
                &format!("{method} {path} HTTP/1.1"),
                &format!("Host: {host}"),
            ],
            By(route),
        );
    }
}

/// Whoever may not use the route does not learn what it refuses.
#[test]
fn the_caller_comes_first() {
    check(
        tls("keys.example.com").from("8.8.8.8"),
        &["POST /v3/api_keys HTTP/1.1", "Host: keys.example.com"],
        Denied(403, "caller_not_allowed"),
    );
}
