//! Which requests pass, to where, and what the others are told. A refused request
//! never reaches the API: the mock's record says so each time.

use crate::harness::world::{HOST, Site, bearer_route};
use crate::harness::{Client, Mock, World};

/// Sends the request on a connection of its own and expects our own answer.
#[track_caller]
fn refused(site: &Site, request: &str, status: u16, reason: &str) {
    let answer = site.connect().call(request);
    answer.expect_own(status, reason);
    assert_eq!(
        site.mock.received().len(),
        0,
        "a refused request reached the API: {request:?}"
    );
}

#[test]
fn names_must_agree() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    // Two hosts: a request may not come in as one and be treated as the other.
    let other = bearer_route(&key_file)
        .split_once("[[route]]")
        .map(|(_, route)| {
            format!(
                "[[route]]{}",
                route
                    .replace("name = \"mock\"", "name = \"other\"")
                    .replace(HOST, "other.example.com")
            )
        })
        .expect("a route");
    let claviger = world.start(&format!(
        "{}{}{}{other}",
        world.base(),
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    for (sni, request, reason) in [
        (
            HOST,
            "GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
            "misdirected_request",
        ),
        (
            "other.example.com",
            "GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
            "misdirected_request",
        ),
        (
            HOST,
            "GET https://other.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
            "misdirected_request",
        ),
        (
            HOST,
            "GET https://other.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
            "misdirected_request",
        ),
        (
            HOST,
            "GET / HTTP/1.1\r\nHost: unknown.example.com\r\n\r\n",
            "misdirected_request",
        ),
    ] {
        let answer = claviger.connect_as(&world, sni).call(request);
        assert_eq!(answer.status, 421, "{sni} {request:?}: {}", answer.text());
        answer.expect_own(421, reason);
    }
    assert_eq!(mock.received().len(), 0);
    // Case and the port do not make a difference.
    claviger
        .connect(&world)
        .call("GET /echo HTTP/1.1\r\nHost: API.example.com:443\r\n\r\n")
        .expect(200);
}

#[test]
fn methods() {
    let site = Site::with("methods = [\"GET\", \"POST\"]\n", "");
    // Methods are case-sensitive, but some upstreams fold their case.
    for method in ["TRACE", "TRACK", "trace", "Track"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        refused(&site, &request, 405, "method_refused");
    }
    refused(
        &site,
        &format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n"),
        405,
        "method_refused",
    );
    refused(
        &site,
        &format!("DELETE /echo HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        405,
        "method_not_served",
    );
    site.get("/echo").expect(200);
}

#[test]
fn the_longest_path_wins() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let shorter = bearer_route(&key_file) + "path = \"/echo\"\n";
    let longer = "[[route]]\nname = \"longer\"\npath = \"/echo/deep\"\nhost = \"api.example.com\"\nupstream = \"mock\"\ncredential = \"none\"\ncallers = \"open\"\n";
    let claviger = world.start(&format!(
        "{}{}{shorter}{longer}",
        world.base(),
        mock.upstream("mock", HOST)
    ));
    for (path, route, status) in [
        ("/echo", "mock", 200),
        ("/echo/x", "mock", 200),
        // Without the key, the API refuses.
        ("/echo/deep", "longer", 401),
        ("/echo/deep/er", "longer", 401),
        ("/echo/deeper", "mock", 200),
    ] {
        assert_eq!(claviger.get(&world, path).status, status, "{path}");
        assert_eq!(claviger.audit_of(path)["route"], route, "{path}");
    }
    for path in ["/", "/other", "/echoes"] {
        claviger.get(&world, path).expect_own(404, "no_route");
    }
}

/// Two readings of a path that lead to different rules: refused, whichever the API
/// would take.
#[test]
fn ambiguous_paths() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let config = bearer_route(&key_file) + "path = \"/v1/public\"\n";
    let claviger = world.start(&format!(
        "{}{}{config}",
        world.base(),
        mock.upstream("mock", HOST)
    ));
    for path in [
        "/v1/public/../admin",
        "/v1/public/%2e%2e/admin",
        "/v1/public/..%2fadmin",
        "/v1/public/.%2E/.%2e/admin",
        "/v1/public\\..\\..\\admin",
    ] {
        let answer = claviger.get(&world, path);
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        assert!(answer.field("claviger-answer").is_some());
    }
    assert_eq!(mock.received().len(), 0);
}

#[test]
fn callers_are_checked_by_address() {
    let site = Site::build(&[], |world, mock, key_file| {
        let route =
            bearer_route(key_file).replace("callers = \"open\"", "callers = [\"10.0.0.0/8\"]");
        format!("{}{}{route}", world.base(), mock.upstream("mock", HOST))
    });
    refused(
        &site,
        &format!("GET /echo HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        403,
        "caller_not_allowed",
    );
    let record = site.claviger.audit_of("/echo");
    assert_eq!(record["refused_by"], "policy");
    assert_eq!(record["client"], "127.0.0.1");
    // Letting this address in is one reload away.
    let config = std::fs::read_to_string(site.claviger.config()).expect("readable");
    site.claviger
        .reload(&config.replace("10.0.0.0/8", "127.0.0.0/8"));
    site.get("/echo").expect(200);
}

#[test]
fn key_management_is_refused() {
    let config = |world: &World, mock: &Mock, key_file: &std::path::Path| {
        format!(
            "{}[upstream.\"api.sendgrid.com\"]\naddresses = [\"{}\"]\nca_file = {:?}\n[[route]]\npreset = \"sendgrid\"\ncredential = \"file://{}\"\ncallers = \"open\"\n",
            world.base(),
            mock.address(),
            mock.ca_file(),
            key_file.display()
        )
    };
    let world = World::permitting(&["sendgrid.com"]);
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(
        &world,
        &["api.sendgrid.com"],
        &["--auth", "bearer", "--key", &key],
    );
    let claviger = world.start(&config(&world, &mock, &key_file));
    let call = |method: &str, path: &str| {
        claviger
            .connect_as(&world, "api.sendgrid.com")
            .call(format!(
                "{method} {path} HTTP/1.1\r\nHost: api.sendgrid.com\r\nContent-Length: 0\r\n\r\n"
            ))
    };
    for (method, path) in [
        ("POST", "/v3/api_keys"),
        ("GET", "/v3/api_keys"),
        ("GET", "/v3/api_keys/abc"),
        ("POST", "/v3/api%5Fkeys"),
    ] {
        call(method, path).expect_own(403, "key_management_refused");
    }
    for path in [
        "/v3//api_keys",
        "/v3/./api_keys",
        "/v3/x/../api_keys",
        "/v3/%61pi_keys;x=1",
        "//v3/api_keys",
        "/v3/x/%2e%2e/api_keys",
    ] {
        let answer = call("POST", path);
        assert!(
            [400, 403].contains(&answer.status),
            "{path}: {}",
            answer.status
        );
        assert!(answer.field("claviger-answer").is_some(), "{path}");
    }
    assert_eq!(mock.received().len(), 0);
    call("POST", "/v3/mail/send").expect(202);
    claviger.reload(&(config(&world, &mock, &key_file) + "allow_key_management = true\n"));
    claviger
        .connect_as(&world, "api.sendgrid.com")
        .get("api.sendgrid.com", "/v3/api_keys")
        .expect(404);
}

#[test]
fn explicit_mode_rewrites_the_prefix() {
    let world = World::permitting(&["claviger.internal"]);
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let route = bearer_route(&key_file)
        .replace(&format!("host = {HOST:?}"), "host = \"claviger.internal\"");
    let claviger = world.start(&format!(
        "{}{}{route}path = \"/proxy/mock\"\nupstream_path = \"/echo\"\n",
        world.base(),
        mock.upstream("mock", HOST)
    ));
    let mut client: Client = claviger.connect_as(&world, "claviger.internal");
    for (asked, target) in [
        ("/proxy/mock/v1/x?a=1", "/echo/v1/x?a=1"),
        ("/proxy/mock", "/echo"),
        ("/proxy/mock/", "/echo/"),
    ] {
        let answer = client.get("claviger.internal", asked);
        answer.expect(200);
        assert_eq!(answer.json()["target"], target, "{asked}");
        let host = answer.json()["headers"][0].clone();
        assert_eq!(host, serde_json::json!(["Host", HOST]));
    }
    client
        .get("claviger.internal", "/proxy/mocked")
        .expect_own(404, "no_route");
}

/// What comes in carries our own mark: the upstream's name leads back to us.
#[test]
fn a_loop_is_answered() {
    let site = Site::new();
    let received = site.get("/echo").json();
    let token = received["headers"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|field| {
            field[0]
                .as_str()
                .is_some_and(|name| name.eq_ignore_ascii_case("cdn-loop"))
        })
        .and_then(|field| field[1].as_str())
        .expect("one CDN-Loop token goes with every request")
        .to_owned();
    assert!(
        !token.to_lowercase().contains("claviger"),
        "the token tells vendors nothing: {token}"
    );
    for line in [
        format!("CDN-Loop: {token}"),
        format!("cdn-loop: other, {token}; x=1"),
        format!("CDN-Loop: other\r\nCDN-Loop: {token}"),
        format!("Connection: cdn-loop\r\nCDN-Loop: {token}"),
    ] {
        let answer = site.connect().call(format!(
            "GET /looped HTTP/1.1\r\nHost: {HOST}\r\n{line}\r\n\r\n"
        ));
        answer.expect_own(508, "loop_detected");
    }
    assert_eq!(site.mock.received().len(), 1, "the loop ends here");
    // Somebody else's token passes on, and ours joins it.
    let passed = site.connect().call(format!(
        "GET /echo HTTP/1.1\r\nHost: {HOST}\r\nCDN-Loop: elsewhere\r\nConnection: cdn-loop\r\n\r\n"
    ));
    let text = passed.expect(200).json()["headers"].to_string();
    assert!(
        text.contains("elsewhere") && text.contains(&token),
        "{text}"
    );
}

/// Requests that two parsers could read differently. Answered, then the connection
/// ends, since nobody knows where the next one would begin.
#[test]
fn ambiguous_requests() {
    let site = Site::new();
    for (head, status) in [
        ("GET /echo HTTP/1.1\nHost: api.example.com\n\n", 400),
        (
            "\r\n\r\nGET /echo HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
            400,
        ),
        (
            "GET /echo HTTP/1.1\r\nHost: api.example.com\r\nHost: api.example.com\r\n\r\n",
            400,
        ),
        ("GET /echo HTTP/1.1\r\n\r\n", 400),
        ("GET /echo HTTP/2.0\r\nHost: api.example.com\r\n\r\n", 505),
        ("GET /echo HTTP/1.1\r\nHost : api.example.com\r\n\r\n", 400),
        (
            "GET /echo HTTP/1.1\r\nHost: api.example.com\r\n folded\r\n\r\n",
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: +5\r\n\r\nhello",
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: api.example.com\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        (
            "GET /e\x01cho HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
            400,
        ),
    ] {
        let mut client = site.connect();
        let answer = client.call(head);
        assert_eq!(answer.status, status, "{head:?}: {}", answer.text());
        assert!(answer.field("claviger-answer").is_some(), "{head:?}");
        assert_eq!(answer.field("connection"), Some("close"), "{head:?}");
        client.expect_end();
    }
    assert_eq!(site.mock.received().len(), 0);
}

#[test]
fn heads_have_a_size() {
    let site = Site::new();
    let long = "x".repeat(40 * 1024);
    for (head, status) in [
        (
            format!("GET /echo HTTP/1.1\r\nHost: {HOST}\r\nX-Long: {long}\r\n\r\n"),
            431,
        ),
        (format!("GET /{long} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), 414),
        (
            format!(
                "GET /echo HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n",
                "X: 1\r\n".repeat(200)
            ),
            431,
        ),
    ] {
        let mut client = site.connect();
        // The answer may come before the last byte is taken.
        let _ = client.try_send(&head);
        let answer = client.answer();
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.field("claviger-answer").is_some());
    }
    assert_eq!(site.mock.received().len(), 0);
}

/// An upstream cannot speak in our name.
#[test]
fn our_own_answers_cannot_be_forged() {
    let site = Site::new();
    let answer = site.get("/headers?Claviger-Answer=policy%3B+reason%3Dno_route&claviger_answer=x&Claviger-Request-Id=1&Alt-Svc=h3&X-Kept=1&:status=403");
    answer.expect(403);
    for forged in ["claviger-answer", "claviger_answer", "alt-svc"] {
        assert_eq!(answer.field(forged), None);
    }
    assert!(
        answer
            .field("claviger-request-id")
            .is_none_or(|id| id != "1")
    );
    assert_eq!(answer.field("x-kept"), Some("1"));
}
