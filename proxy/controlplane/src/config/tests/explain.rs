//! What `claviger explain` says.

use policy::AddressBook;

use super::*;

const FILE: &str = r#"
[[listener]]
name = "inside"
address = "127.0.0.1:8443"
[[listener]]
name = "clear"
address = "127.0.0.1:8080"
tls = false
[upstream.api]
host = "api.example.com"
addresses = ["192.0.2.7:443"]
[[route]]
name = "v1"
host = ["api.example.com", "proxy.example.com"]
path = "/v1"
methods = ["GET", "POST"]
upstream = "api"
credential = "file://DIR/key"
[[route]]
name = "outside"
host = "api.example.com"
path = "/out"
upstream = "api"
credential = "none"
callers = ["192.0.2.0/24"]
strip_cookies = true
keep_query = ["token"]
body_bytes_max = "1KiB"
"#;

fn ask(method: &str, url: &str, from: &str) -> Explanation {
    let house = House::new(&["example.com"]);
    house.key("key", b"planted-0123456789abcdef");
    let resolved = house
        .resolve(FILE)
        .unwrap_or_else(|report| panic!("{report}"));
    let question = Question {
        method: method.to_owned(),
        url: url.to_owned(),
        from: from.parse().expect("an address"),
    };
    let explanation =
        explain(&resolved.snapshot, &AddressBook::default(), &question).expect("a question");
    for text in [
        explanation.to_string(),
        explanation.to_json().to_string(),
        format!("{explanation:?}"),
    ] {
        assert!(!text.contains("planted"), "the key is shown:\n{text}");
        assert!(
            !text.contains("sekrit"),
            "a query's value is shown:\n{text}"
        );
    }
    explanation
}

#[test]
fn an_allowed_request() {
    let explanation = ask(
        "GET",
        "https://api.example.com/v1/things?q=sekrit&k%65y=sekrit&flag",
        "127.0.0.1",
    );
    let credential = explanation
        .route
        .as_ref()
        .and_then(|route| route.credential.clone())
        .expect("a key");
    let version = &credential.version;
    let fingerprint = credential
        .fingerprint
        .map_or(String::new(), |it| format!(", {it}"));
    let headers = explanation
        .route
        .as_ref()
        .expect("a route")
        .strip_headers
        .join(", ");
    let query = explanation
        .route
        .as_ref()
        .expect("a route")
        .strip_query
        .join(", ");
    let expected = format!(
        "\
GET https://api.example.com/v1/things?q=<hidden>&k%65y=<hidden>&flag from 127.0.0.1
  listener   inside (TLS, 127.0.0.1:8443)
  host       api.example.com
  route      v1 (GET, POST under /v1)
  callers    open (loopback and private peers)
  strips     headers {headers}
             query parameters {query}
  writes     Authorization: Bearer <hidden>
  credential v1 (version {version}{fingerprint})
  upstream   api (Host: api.example.com, certificate of api.example.com)
             addresses: 192.0.2.7:443
  limits     response head 1m, body unlimited, audit best-effort
  stripped   ?key from this URL
  sends      GET /v1/things (with 3 query parameters before stripping)
  verdict    allowed
"
    );
    assert_eq!(explanation.to_string(), expected);
    assert!(explanation.is_allowed());
    let json = explanation.to_json();
    assert_eq!(json["outcome"]["verdict"], "allowed");
    assert_eq!(json["outcome"]["stripped"][0], "?key");
    assert_eq!(json["route"]["upstream"]["addresses"][0], "192.0.2.7:443");
    assert_eq!(json["listener"]["name"], "inside");
}

#[test]
fn refusals() {
    for (method, url, from, status, reason) in [
        (
            "GET",
            "https://api.example.com/v1",
            "8.8.8.8",
            403,
            "caller_not_allowed",
        ),
        (
            "GET",
            "https://api.example.com/out",
            "192.0.2.9",
            0,
            "allowed",
        ),
        (
            "GET",
            "https://api.example.com/out",
            "127.0.0.1",
            403,
            "caller_not_allowed",
        ),
        (
            "GET",
            "https://api.example.com/out",
            "::ffff:192.0.2.9",
            0,
            "allowed",
        ),
        (
            "DELETE",
            "https://api.example.com/v1",
            "127.0.0.1",
            405,
            "method_not_served",
        ),
        (
            "TRACE",
            "https://api.example.com/v1",
            "127.0.0.1",
            405,
            "method_refused",
        ),
        (
            "GET",
            "https://api.example.com/",
            "127.0.0.1",
            404,
            "no_route",
        ),
        (
            "GET",
            "https://api.example.com",
            "127.0.0.1",
            404,
            "no_route",
        ),
        (
            "GET",
            "https://api.example.com/v1/../out",
            "127.0.0.1",
            400,
            "ambiguous_path",
        ),
        (
            "GET",
            "https://other.example.com/v1",
            "127.0.0.1",
            0,
            "unrecognized_name",
        ),
        (
            "GET",
            "https://PROXY.example.com.:8443/v1?x",
            "127.0.0.1",
            0,
            "allowed",
        ),
        (
            "GET",
            "http://api.example.com/v1",
            "127.0.0.1",
            0,
            "allowed",
        ),
        (
            "GET",
            "http://other.example.com/v1",
            "127.0.0.1",
            421,
            "unknown_host",
        ),
    ] {
        let explanation = ask(method, url, from);
        let (got_status, got_reason) = match &explanation.outcome {
            Outcome::Allowed { .. } => (0, "allowed"),
            Outcome::Denied { status, reason, .. } => (*status, &**reason),
        };
        assert_eq!(
            (got_status, got_reason),
            (status, reason),
            "{method} {url} from {from}"
        );
        let listener = explanation.listener.expect("a listener");
        assert_eq!(listener.tls, url.starts_with("https"), "{url}");
    }
    let refused = ask("GET", "https://api.example.com/v1", "8.8.8.8").to_string();
    assert!(
        refused.contains("  route      v1 "),
        "the route that refused:\n{refused}"
    );
    assert!(
        refused.ends_with(
            "  verdict    denied: 403 caller_not_allowed. This caller may not use this route.\n"
        ),
        "{refused}"
    );
}

#[test]
fn what_is_no_question() {
    let house = House::new(&["example.com"]);
    house.key("key", b"planted-0123456789abcdef");
    let resolved = house
        .resolve(FILE)
        .unwrap_or_else(|report| panic!("{report}"));
    for (method, url, error) in [
        ("get", "https://api.example.com/", QuestionError::Method),
        ("", "https://api.example.com/", QuestionError::Method),
        ("GET", "/v1", QuestionError::Url),
        ("GET", "ftp://api.example.com/", QuestionError::Url),
        ("GET", "https:///v1", QuestionError::Url),
        (
            "GET",
            "https://user:pass@api.example.com/",
            QuestionError::Url,
        ),
        ("GET", "https://api.example.com/a b", QuestionError::Url),
    ] {
        let question = Question {
            method: method.to_owned(),
            url: url.to_owned(),
            from: "127.0.0.1".parse().expect("an address"),
        };
        let got = explain(&resolved.snapshot, &AddressBook::default(), &question).expect_err(url);
        assert_eq!(got, error, "{method} {url}");
    }
}
