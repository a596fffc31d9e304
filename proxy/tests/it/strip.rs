//! Whatever a caller puts where keys go is removed, in every place and every
//! spelling, and exactly one credential reaches the API: the real one.

use serde_json::Value;

use crate::harness::mock::fingerprint;
use crate::harness::world::{HOST, Site, bearer_route};
use crate::harness::{Mock, World};

/// What the mock says that it received last, after this request. Reads it from
/// the record, which was written before the answer left.
#[track_caller]
fn received(site: &Site, request: &str) -> Value {
    let before = site.mock.received().len();
    site.connect().call(request).expect(200);
    let all = site.mock.received();
    assert_eq!(all.len(), before + 1, "one request makes one request");
    all.into_iter().next_back().expect("one more than before")
}

/// The values of every field of this name, in any spelling that an API may take
/// for the same (`_` for `-`).
fn values<'a>(received: &'a Value, name: &str) -> Vec<&'a str> {
    let fields = received["headers"].as_array().expect("a list");
    fields
        .iter()
        .filter(|field| {
            field[0]
                .as_str()
                .expect("text")
                .replace('_', "-")
                .eq_ignore_ascii_case(name)
        })
        .map(|field| field[1].as_str().expect("text"))
        .collect()
}

/// Asserts that none of the wrong keys that a caller sent has arrived, in any
/// place; the mock shows credentials as fingerprints and the rest as it was.
#[track_caller]
fn assert_clean(site: &Site, received: &Value) {
    let text = received.to_string();
    assert!(
        !text.contains("wrong"),
        "a caller's credential reached the API: {text}"
    );
    let expected = format!("sha256:{}", fingerprint(&format!("Bearer {}", site.key)));
    assert_eq!(values(received, "authorization"), [expected], "{text}");
    // One fingerprint is ours; another one would be a credential of the caller's.
    assert_eq!(text.matches("sha256:").count(), 1, "{text}");
}

/// Each is a line of a caller's head, and the name under which the audit trail
/// shows that it was stripped.
const FIELDS: &[(&str, &str)] = &[
    ("Authorization: Bearer wrong", "authorization"),
    ("authorization:Basic d3Jvbmc6d3Jvbmc=wrong", "authorization"),
    ("AUTHORIZATION: wrong", "authorization"),
    (
        "Authorization: Bearer wrong\r\nAuthorization: Bearer wrong-too",
        "authorization",
    ),
    ("Proxy-Authorization: Basic wrong", "proxy-authorization"),
    ("X-API-Key: wrong", "x-api-key"),
    ("x_api_key: wrong", "x_api_key"),
    ("X-Api_Key: wrong", "x-api_key"),
    ("Api-Key: wrong", "api-key"),
    ("X-Goog-Api-Key: wrong", "x-goog-api-key"),
    (
        "Ocp-Apim-Subscription-Key: wrong",
        "ocp-apim-subscription-key",
    ),
    ("X-Auth-Token: wrong", "x-auth-token"),
    ("Private-Token: wrong", "private-token"),
    ("X-Mine: wrong", "x-mine"),
    ("Claviger-Credential: wrong", "claviger-credential"),
    (
        "Connection: authorization, keep-alive\r\nAuthorization: Bearer wrong",
        "authorization",
    ),
];

#[test]
fn headers() {
    let site = Site::with("strip_headers = [\"X-Mine\"]\n", "");
    for (number, (lines, name)) in FIELDS.iter().enumerate() {
        let path = format!("/echo/{number}");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nX-Kept: 1\r\n{lines}\r\nX-Kept: 2\r\n\r\n"
        );
        let received = received(&site, &request);
        assert_clean(&site, &received);
        assert_eq!(values(&received, "x-kept"), ["1", "2"], "{received}");
        assert_eq!(values(&received, "host"), [HOST]);
        let record = site.claviger.audit_of(&path);
        let stripped = record["stripped"].as_array().expect("a list");
        let known = |wanted: &str| {
            stripped.iter().any(|found| {
                found
                    .as_str()
                    .is_some_and(|found| found.replace('_', "-") == wanted.replace('_', "-"))
            })
        };
        assert!(
            name.starts_with("claviger-") || known(name),
            "{name} is not in {record}"
        );
    }
}

#[test]
fn cookies_by_choice() {
    let request = format!("GET /echo HTTP/1.1\r\nHost: {HOST}\r\nCookie: session=mine\r\n\r\n");
    let kept = Site::new();
    assert_eq!(
        values(&received(&kept, &request), "cookie"),
        [format!("sha256:{}", fingerprint("session=mine"))]
    );
    let stripped = Site::with("strip_cookies = true\n", "");
    assert_eq!(values(&received(&stripped, &request), "cookie"), [""; 0]);
}

/// A caller's query, and what of it reaches the API, byte for byte.
const QUERIES: &[(&str, &str)] = &[
    ("?key=wrong", ""),
    ("?a=1&key=wrong&b=2", "?a=1&b=2"),
    ("?KEY=wrong&a=1", "?a=1"),
    ("?k%65y=wrong&a=1", "?a=1"),
    ("?%6B%65%79=wrong&a=1", "?a=1"),
    (
        "?a=1&api_key=wrong&api_key=wrong&access_token=wrong",
        "?a=1",
    ),
    ("?a=1;key=wrong", "?a=1"),
    ("?key", ""),
    ("?key=&token=wrong", ""),
    ("?monkey=1&keys=2", "?monkey=1&keys=2"),
    // What stays is not decoded and encoded again.
    (
        "?q=%7Ea+b%2f&empty=&flag&q=%C3%A9",
        "?q=%7Ea+b%2f&empty=&flag&q=%C3%A9",
    ),
];

#[test]
fn query_parameters() {
    let site = Site::new();
    for (sent, arrived) in QUERIES {
        let received = received(
            &site,
            &format!("GET /echo{sent} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        );
        assert_clean(&site, &received);
        let target = received["target"].as_str().expect("text");
        assert_eq!(
            target.trim_end_matches('?'),
            format!("/echo{arrived}"),
            "{sent}"
        );
    }
}

#[test]
fn a_parameter_that_means_something_else_may_stay() {
    let site = Site::with("keep_query = [\"key\"]\n", "");
    let received = received(
        &site,
        &format!("GET /echo?key=cache-1&token=wrong HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
    );
    let target = received["target"].as_str().expect("text");
    // The mock takes any `key` for a credential and shows its fingerprint.
    assert_eq!(
        target,
        format!("/echo?key=sha256:{}", fingerprint("cache-1"))
    );
}

#[test]
fn absolute_form_becomes_origin_form() {
    let site = Site::new();
    let received = received(
        &site,
        &format!("GET https://{HOST}/echo?key=wrong&a=1 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
    );
    assert_eq!(received["target"], "/echo?a=1");
    assert_clean(&site, &received);
}

#[test]
fn trailers() {
    let site = Site::new();
    let request = format!(
        "POST /echo HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Authorization\r\n\r\n\
         5\r\nhello\r\n0\r\nAuthorization: Bearer wrong\r\nX-Sum: 42\r\nX-API-Key: wrong\r\nHost: wrong\r\n\r\n"
    );
    let received = received(&site, &request);
    assert_clean(&site, &received);
    assert_eq!(received["trailers"], serde_json::json!([["X-Sum", "42"]]));
}

/// Every way of writing the key: lines of the credential, the mock's `--auth`, the
/// header or parameter in which it arrives, and its whole value there.
#[test]
fn injections() {
    #[allow(clippy::type_complexity)]
    let ways: &[(&str, &str, &str, fn(&str) -> String)] = &[
        ("inject = \"bearer\"", "bearer", "authorization", |key| {
            format!("Bearer {key}")
        }),
        (
            "inject = \"basic\"\nusername = \"api\"",
            "basic",
            "authorization",
            |key| basic(&format!("api:{key}")),
        ),
        (
            "inject = \"header\"\nname = \"X-API-Key\"",
            "header:X-API-Key",
            "x-api-key",
            str::to_owned,
        ),
        (
            "inject = \"header\"\nname = \"Authorization\"\ntemplate = \"Token {key}\"",
            "any",
            "authorization",
            |key| format!("Token {key}"),
        ),
        (
            "inject = \"query\"\nname = \"key\"",
            "query:key",
            "?key",
            percent,
        ),
    ];
    for (credential, auth, slot, value) in ways {
        let world = World::new();
        let (key, key_file) = world.key_file("key");
        let accepted = if *auth == "basic" {
            format!("api:{key}")
        } else {
            key.clone()
        };
        let mock = Mock::start(&world, &[HOST], &["--auth", auth, "--key", &accepted]);
        let route = bearer_route(&key_file).replace("inject = \"bearer\"", credential);
        let claviger = world.start(&format!(
            "{}{}{route}",
            world.base(),
            mock.upstream("mock", HOST)
        ));
        let request = format!(
            "GET /echo?a=1&key=wrong&b=2 HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer wrong\r\nX-API-Key: wrong\r\n\r\n"
        );
        claviger.connect(&world).call(request).expect(200);
        let received = mock.received().pop().expect("one request");
        let text = received.to_string();
        assert!(!text.contains("wrong"), "{credential}: {text}");
        let expected = format!("sha256:{}", fingerprint(&value(&key)));
        assert_eq!(text.matches("sha256:").count(), 1, "{credential}: {text}");
        let target = received["target"].as_str().expect("text");
        match slot.strip_prefix('?') {
            Some(name) => assert_eq!(
                target,
                format!("/echo?{name}={expected}&a=1&b=2"),
                "{credential}"
            ),
            None => {
                assert_eq!(values(&received, slot), [expected], "{credential}: {text}");
                assert_eq!(target, "/echo?a=1&b=2", "{credential}");
            }
        }
    }
}

#[test]
fn without_a_credential_callers_keys_are_still_stripped() {
    let world = World::new();
    let mock = Mock::start(&world, &[HOST], &["--auth", "none"]);
    let claviger = world.start(&format!(
        "{}{}[[route]]\nname = \"none\"\nhost = {HOST:?}\nupstream = \"mock\"\ncredential = \"none\"\ncallers = \"open\"\n",
        world.base(),
        mock.upstream("mock", HOST)
    ));
    claviger
        .connect(&world)
        .call(format!(
            "GET /echo?key=wrong HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer wrong\r\n\r\n"
        ))
        .expect(200);
    let text = mock.received().pop().expect("one request").to_string();
    assert!(
        !text.contains("wrong")
            && !text.contains("sha256:")
            && !text.to_lowercase().contains("authorization\""),
        "{text}"
    );
}

/// The key comes back in `Location` and `Link`, as APIs with keys in the query do
/// it: the caller sees that something was there, and the audit trail counts it.
#[test]
fn a_key_in_the_response_head_is_redacted() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "query:key", "--key", &key]);
    let route = bearer_route(&key_file)
        .replace("inject = \"bearer\"", "inject = \"query\"\nname = \"key\"");
    let claviger = world.start(&format!(
        "{}{}{route}",
        world.base(),
        mock.upstream("mock", HOST)
    ));
    let answer = claviger.get(&world, "/leak");
    answer.expect(302);
    let location = answer.field("location").expect("the API sends one");
    assert!(
        location.starts_with(&format!("https://{HOST}/next?key=")),
        "{location}"
    );
    assert!(location.contains("redacted"), "{location}");
    assert!(
        answer
            .field("link")
            .expect("the API sends one")
            .ends_with("; rel=\"next\"")
    );
    assert_eq!(claviger.audit_of("/leak")["scrubbed"], 2);
}

fn basic(pair: &str) -> String {
    use base64::Engine;
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(pair)
    )
}

fn percent(key: &str) -> String {
    key.replace('+', "%2B").replace('/', "%2F")
}
