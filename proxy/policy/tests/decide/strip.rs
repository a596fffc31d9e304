//! Every place in which a caller may have put a credential is emptied.

use crate::world::Expected::{By, Upstream};
use crate::world::{STRIPPED_FIELDS, STRIPPED_PARAMS, check, tls};

/// Ways to spell a field's name that one server or another takes for the same.
fn spellings(name: &str) -> Vec<String> {
    let title = name
        .split('-')
        .map(|word| {
            let (first, rest) = word.split_at(1);
            format!("{}{rest}", first.to_uppercase())
        })
        .collect::<Vec<_>>()
        .join("-");
    vec![
        name.to_owned(),
        name.to_uppercase(),
        name.replace('-', "_"),
        title.replace('-', "_"),
        title.replacen('-', "_", 1),
        title,
    ]
}

#[test]
fn every_field_in_every_spelling() {
    for name in STRIPPED_FIELDS {
        for spelling in spellings(name) {
            for colon in [": ", ":", ":\t "] {
                let field = format!("{spelling}{colon}caller-secret");
                let written = check(
                    tls("api.example.com"),
                    &[
                        "GET /x HTTP/1.1",
                        "Host: api.example.com",
                        "Accept: */*",
                        &field,
                        "X-Between: 1",
                        // And once more.
                        &field,
                    ],
                    Upstream(&[
                        "GET /x HTTP/1.1",
                        "Host: root.upstream.example",
                        "Accept: */*",
                        "X-Between: 1",
                        "CDN-Loop: clv-5f1e",
                        "Authorization: Bearer real-key-of-root-0123456789",
                    ]),
                );
                assert_eq!(written.stripped.len(), 1, "each name once");
                assert_eq!(written.stripped[0].replace('_', "-"), name);
            }
        }
    }
}

#[test]
fn several_at_once_are_all_named() {
    let written = check(
        tls("api.example.com"),
        &[
            "GET /x?api_key=caller-secret&a=1&TOKEN=caller-secret HTTP/1.1",
            "Host: api.example.com",
            "X_Api_Key: caller-secret",
            "authorization: Basic caller-secret",
            "Proxy-Authorization: Basic caller-secret",
            "Claviger-Answer: caller-secret",
            "CLAVIGER_Request_Id: caller-secret",
            "Claviger: caller-secret",
            "Authorization: Bearer caller-secret",
        ],
        Upstream(&[
            "GET /x?a=1 HTTP/1.1",
            "Host: root.upstream.example",
            "CDN-Loop: clv-5f1e",
            "Authorization: Bearer real-key-of-root-0123456789",
        ]),
    );
    assert_eq!(
        written.stripped,
        [
            "?api_key",
            "?token",
            "x-api-key",
            "authorization",
            "proxy-authorization",
            "claviger-answer",
            "claviger_request_id",
            "claviger",
        ]
    );
}

#[test]
fn names_that_only_look_alike_stay() {
    let fields = [
        "X-Authorization-Hint: 1",
        "Authorization2: 1",
        "X-Api-Keys: 1",
        "Clavigera: 1",
        "X-Claviger: 1",
        "Cookie: session=1",
    ];
    let mut request = vec![
        "GET /?keys=1&monkey=2&api-key=3 HTTP/1.1",
        "Host: api.example.com",
    ];
    request.extend(fields);
    let written = check(tls("api.example.com"), &request, By("root"));
    assert!(
        written
            .text
            .starts_with("GET /?keys=1&monkey=2&api-key=3 HTTP/1.1\r\n")
    );
    for field in fields {
        assert!(written.text.contains(field), "{field} is gone");
    }
    assert!(written.stripped.is_empty());
}

#[test]
fn query_parameters_in_any_encoding() {
    for name in STRIPPED_PARAMS {
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let half = format!("{}%{:02X}{}", &name[..1], name.as_bytes()[1], &name[2..]);
        for spelling in [
            name.to_owned(),
            name.to_uppercase(),
            encoded.to_uppercase().replace("%5F", "_"),
            encoded,
            half,
            format!("+{name}"),
            format!("%20{name}%20"),
        ] {
            let secret = format!("{spelling}=caller-secret");
            for (query, expected) in [
                (format!("?{secret}"), ""),
                (format!("?{secret}&{secret}"), ""),
                (format!("?a=1&{secret}"), "?a=1"),
                (format!("?{secret}&a=1"), "?a=1"),
                (format!("?a=1&{secret}&b=%2B+2"), "?a=1&b=%2B+2"),
                (format!("?a=1;{secret};b"), "?a=1;b"),
                (format!("?{spelling}&a"), "?a"),
            ] {
                let written = check(
                    tls("api.example.com"),
                    &[&format!("GET /x{query} HTTP/1.1"), "Host: api.example.com"],
                    Upstream(&[
                        &format!("GET /x{expected} HTTP/1.1"),
                        "Host: root.upstream.example",
                        "CDN-Loop: clv-5f1e",
                        "Authorization: Bearer real-key-of-root-0123456789",
                    ]),
                );
                assert_eq!(written.stripped, [format!("?{name}")], "{query}");
            }
        }
    }
}

#[test]
fn keep_query_keeps_the_name_and_nothing_else() {
    let written = check(
        tls("keep.example.com"),
        &[
            "GET /actions/caches?key=build&access_token=caller-secret&KEY=2 HTTP/1.1",
            "Host: keep.example.com",
        ],
        Upstream(&[
            "GET /actions/caches?key=build&KEY=2 HTTP/1.1",
            "Host: keep.upstream.example",
            "CDN-Loop: clv-5f1e",
            "Authorization: Bearer real-key-of-keep-0123456789",
        ]),
    );
    assert_eq!(written.stripped, ["?access_token"]);
}

#[test]
fn cookies_by_choice() {
    let kept = check(
        tls("api.example.com"),
        &[
            "GET / HTTP/1.1",
            "Host: api.example.com",
            "Cookie: a=1",
            "COOKIE: b=2",
        ],
        By("root"),
    );
    assert!(kept.text.contains("Cookie: a=1\r\nCOOKIE: b=2\r\n"));
    let stripped = check(
        tls("header.example.com"),
        &[
            "GET / HTTP/1.1",
            "Host: header.example.com",
            "Cookie: a=caller-secret",
            "COOKIE: b=caller-secret",
        ],
        By("header"),
    );
    assert!(!stripped.text.to_ascii_lowercase().contains("cookie"));
    assert_eq!(stripped.stripped, ["cookie"]);
}

#[test]
fn a_route_without_a_key_strips_all_the_same() {
    let written = check(
        tls("keyless.example.com"),
        &[
            "GET /?key=caller-secret HTTP/1.1",
            "Host: keyless.example.com",
            "Authorization: Bearer caller-secret",
        ],
        Upstream(&[
            "GET / HTTP/1.1",
            "Host: keyless.upstream.example",
            "CDN-Loop: clv-5f1e",
        ]),
    );
    assert_eq!(written.stripped, ["?key", "authorization"]);
}
