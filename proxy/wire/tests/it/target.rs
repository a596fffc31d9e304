//! Readings of paths, parameters, authorities.

use wire::target::{authority_host, params, percent_encode_query, readings};

fn texts(readings: Vec<Vec<u8>>) -> Vec<String> {
    readings
        .iter()
        .map(|reading| String::from_utf8_lossy(reading).into_owned())
        .collect()
}

#[test]
fn ordinary_paths_have_one_reading() {
    for path in [
        "/",
        "/v1/models",
        "/v1/models/",
        "/a.b/c-d_e~f",
        "/v1/x:generate",
        "/a..b/c.",
        "/@me",
        "/a=b&c",
        "*",
        "",
    ] {
        assert!(readings(path.as_bytes()).is_empty(), "{path}");
    }
}

#[test]
fn odd_paths_show_what_an_upstream_may_read() {
    let check = |path: &str, expected: &[&str], unexpected: &[&str]| {
        let readings = texts(readings(path.as_bytes()));
        for reading in expected {
            assert!(
                readings.iter().any(|known| known == reading),
                "{path} may be read as {reading}: {readings:?}"
            );
        }
        for reading in unexpected {
            assert!(
                !readings.iter().any(|known| known == reading),
                "{path} is not {reading}"
            );
        }
        assert!(
            !readings.iter().any(|known| known == path),
            "the raw reading is not another one"
        );
        assert!(readings.len() <= 64);
    };
    check(
        "/public/../v3/api_keys",
        &["/v3/api_keys"],
        &["/public/v3/api_keys"],
    );
    check(
        "/public/%2e%2e/v3/api_keys",
        &["/v3/api_keys", "/public/../v3/api_keys"],
        &[],
    );
    check("/public/.%2E/v3", &["/v3"], &[]);
    check("/public/%252e%252e/v3", &["/v3"], &[]);
    check("/public/..%2fv3", &["/v3"], &[]);
    check("/public%2F..%2Fv3", &["/v3"], &[]);
    check("/v3/api%5Fkeys", &["/v3/api_keys"], &[]);
    check("//v3//api_keys", &["/v3/api_keys"], &[]);
    check("/v3/./api_keys", &["/v3/api_keys"], &[]);
    check("/v3/api_keys/.", &["/v3/api_keys/"], &[]);
    check("/v3/api_keys/x/..", &["/v3/api_keys/"], &[]);
    check("/v3;a=b/api_keys;c", &["/v3/api_keys"], &[]);
    check("/public/..;/v3", &["/v3"], &[]);
    check("/public/..;x=1/v3", &["/v3"], &[]);
    check("/public%3B/v3", &["/public/v3", "/public;/v3"], &[]);
    check("\\v3\\api_keys", &["/v3/api_keys"], &[]);
    check("/public\\..\\v3", &["/v3"], &[]);
    check("/public%5c..%5Cv3", &["/v3"], &[]);
    check("/public/.%5c../v3", &["/v3"], &[]);
    check("/../../v3", &["/v3"], &[]);
    check("/a//../v3", &["/a/v3", "/v3"], &[]);
    check("/v3/api_keys%3fx", &["/v3/api_keys"], &[]);
    check("/v3/api_keys%00.png", &["/v3/api_keys"], &[]);
    check("/v3/api_keys%23x", &["/v3/api_keys"], &[]);
    check("/a%", &[], &["/a"]);
    check("/a%zz", &[], &["/azz"]);
    check("/a%20b", &["/a b"], &[]);
}

#[test]
fn parameters_are_split_at_both_separators() {
    let check = |query: &str, expected: &[(&str, &str)]| {
        let found: Vec<(&str, &str)> = params(query.as_bytes())
            .map(|param| (&query[param.name], &query[param.whole]))
            .collect();
        assert_eq!(found, expected, "{query}");
    };
    check("", &[]);
    check("a", &[("a", "a")]);
    check("a=1", &[("a", "a=1")]);
    check("a=1&b=2;c", &[("a", "a=1"), ("b", "b=2"), ("c", "c")]);
    check("a=b=c", &[("a", "a=b=c")]);
    check("=x", &[("", "=x")]);
    check("&", &[("", ""), ("", "")]);
    check("a&&b&", &[("a", "a"), ("", ""), ("b", "b"), ("", "")]);
    check("a?b=c/d", &[("a?b", "a?b=c/d")]);
}

#[test]
fn authorities() {
    let check = |authority: &str, expected: Option<(&str, Option<u16>)>| {
        let found = authority_host(authority.as_bytes())
            .map(|(host, port)| (std::str::from_utf8(host).expect("ASCII"), port));
        assert_eq!(found, expected, "{authority}");
    };
    check("api.example.com", Some(("api.example.com", None)));
    check("API.example.com:443", Some(("API.example.com", Some(443))));
    check("api.example.com.", Some(("api.example.com.", None)));
    check("my_host:1", Some(("my_host", Some(1))));
    check("127.0.0.1:65535", Some(("127.0.0.1", Some(65535))));
    check("[::1]", Some(("::1", None)));
    check("[2001:db8::1]:8443", Some(("2001:db8::1", Some(8443))));
    for refused in [
        "",
        ":443",
        "a:",
        "a:0",
        "a:65536",
        "a:99999",
        "a:000080",
        "a:8o",
        "a:+80",
        "a:-1",
        "a: 80",
        "a:80:80",
        "user@a",
        "user:pw@a",
        "a/b",
        "a?b",
        "a b",
        "a,b",
        "a%41",
        "a\\b",
        "::1",
        "[::1",
        "[::1]x",
        "[::1]:",
        "[::1]80",
        "[]",
        "[1.2.3.4]",
        "[v1.a]",
        "[fe80::1%25eth0]",
        "[::1]]",
        "ä",
        "*",
        "a\t",
        "\"a\"",
    ] {
        check(refused, None);
    }
    assert!(authority_host("a".repeat(255).as_bytes()).is_some());
    assert!(authority_host("a".repeat(256).as_bytes()).is_none());
}

#[test]
fn encoding_leaves_only_unreserved_bytes() {
    let mut out = b"key=".to_vec();
    percent_encode_query(b"aZ09-._~ +/&=%\xff\0", &mut out);
    assert_eq!(out, b"key=aZ09-._~%20%2B%2F%26%3D%25%FF%00");
}
