//! Readings of paths, parameters, authorities.

use wire::target::{ReadingsTooLong, authority_host, params, percent_encode_query, readings};

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
        assert_eq!(readings(path.as_bytes()), Ok(Vec::new()), "{path}");
    }
}

#[test]
fn odd_paths_show_what_an_upstream_may_read() {
    let check = |path: &str, expected: &[&str], unexpected: &[&str]| {
        let readings = texts(readings(path.as_bytes()).expect("short paths have few"));
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

/// What [`readings`] has to find, step by step and without looking ahead.
fn all_readings(path: &str) -> Vec<String> {
    fn decoded(path: &str) -> String {
        let mut out = String::new();
        let mut rest = path;
        while let Some(first) = rest.chars().next() {
            let digits = |hex: &&str| hex.bytes().all(|byte| byte.is_ascii_hexdigit());
            let hex = rest.get(1..3).filter(digits).filter(|_| first == '%');
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => {
                    out.push(char::from(byte));
                    rest = &rest[3..];
                }
                None => {
                    out.push(first);
                    rest = &rest[first.len_utf8()..];
                }
            }
        }
        out
    }
    fn cut_at_query(path: &str) -> String {
        let end = path.find(['?', '#', '\0']).unwrap_or(path.len());
        path[..end].to_owned()
    }
    fn without_params(path: &str) -> String {
        let plain = |part: &str| part.split(';').next().unwrap_or_default().to_owned();
        path.split_inclusive(['/', '\\'])
            .map(|segment| match segment.char_indices().next_back() {
                Some((at, mark @ ('/' | '\\'))) => format!("{}{mark}", plain(&segment[..at])),
                _ => plain(segment),
            })
            .collect()
    }
    fn with_slashes(path: &str) -> String {
        path.replace('\\', "/")
    }
    fn slashes_merged(path: &str) -> String {
        let mut path = path.to_owned();
        while path.contains("//") {
            path = path.replace("//", "/");
        }
        path
    }
    fn dots_resolved(path: &str) -> String {
        let Some(relative) = path.strip_prefix('/') else {
            return path.to_owned();
        };
        let mut out: Vec<&str> = Vec::new();
        for segment in relative.split('/') {
            match segment {
                "." => {}
                ".." => drop(out.pop()),
                _ => out.push(segment),
            }
        }
        if relative
            .split('/')
            .next_back()
            .is_some_and(|last| last == "." || last == "..")
        {
            out.push("");
        }
        out.iter().map(|segment| format!("/{segment}")).collect()
    }
    let mut all = vec![path.to_owned()];
    for step in [
        decoded,
        decoded,
        cut_at_query,
        without_params,
        with_slashes,
        slashes_merged,
        dots_resolved,
    ] {
        for at in 0..all.len() {
            let reading = step(&all[at]);
            if !all.contains(&reading) {
                all.push(reading);
            }
        }
    }
    all.split_off(1)
}

#[test]
fn readings_are_all_that_the_steps_lead_to() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % bound
    };
    let parts = [
        "/", "/", "//", ".", "..", "/.", "/..", "a", "b", "%", "%2", "%2e", "%2F", "%5c", "%3b",
        "%3f", "%23", "%00", "%25", "%252e", "%252f", ";", ";p=1", "\\", "~",
    ];
    for _ in 0..4_000 {
        let path: String = (0..1 + below(9))
            .map(|_| parts[below(parts.len())])
            .collect();
        let path = format!("/{path}");
        let found: Vec<String> = readings(path.as_bytes())
            .expect("short paths have few")
            .iter()
            .map(|reading| reading.iter().map(|&byte| char::from(byte)).collect())
            .collect();
        assert_eq!(found, all_readings(&path), "{path}");
    }
}

/// The bytes of all readings are bounded, and no path of an ordinary length comes near.
#[test]
fn a_long_path_with_many_readings_is_refused() {
    let dense = "/a;p=1/%252e%252e\\b//./%2e%2e/c%3bq";
    let of_length = |length: usize| dense.repeat(length / dense.len());
    let short = readings(of_length(2048).as_bytes()).expect("2 KiB may have every reading");
    assert!(short.len() > 32, "{}", short.len());
    assert_eq!(
        readings(of_length(32 * 1024).as_bytes()),
        Err(ReadingsTooLong)
    );
    // Long, and with the few readings that encoding alone makes.
    let long = "/a%20b%2520".repeat(2900);
    assert_eq!(readings(long.as_bytes()).expect("two readings").len(), 2);
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
