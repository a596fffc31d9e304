//! Who is an edge, what an edge may do, and what becomes of the fields that only an edge may write.

use serde_json::Value;

use super::{DOOR, EDGE, Edge, Hub};
use crate::harness::world::HOST;
use crate::harness::{Client, pki};

/// A request at the hub's door with further field lines.
fn at_door(client: &mut Client, path: &str, fields: &str) -> crate::harness::Answer {
    client.call(format!(
        "GET {path} HTTP/1.1\r\nHost: {DOOR}\r\n{fields}\r\n"
    ))
}

#[test]
fn a_service_behind_an_edge_needs_to_know_nothing() {
    let hub = Hub::start(|_| String::new());
    for (edge, by) in [
        (Edge::start(&hub), "certificate"),
        (Edge::with_token(&hub), "token"),
    ] {
        let path = format!("/echo/{by}?key=stays&a=%2F%2f&token=x");
        let mut client = edge.connect();
        let echo = client
            .call(format!(
                "POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer placeholder\r\n\
                 Claviger-Authority: other.example.com\r\nClaviger_Caller: 1.2.3.4\r\nClaviger-Token: 0123456789abcdef\r\n\
                 Content-Length: 5\r\n\r\nhello"
            ))
            .expect(200)
            .json();
        assert_eq!(echo["authorized"], true);
        let path = format!("/echo/{by}");
        let at_edge = edge.claviger.audit_of(&path);
        let at_hub = hub.claviger.audit_of(&path);
        assert_eq!(at_edge["upstream"], "hub");
        assert_eq!(at_edge["status"], 200);
        assert_eq!(at_edge["caller"], "open");
        assert_eq!(at_edge["edge"], Value::Null);
        assert_eq!(at_edge["bytes_in"], 5);
        // The trails join, and each says what it knows.
        assert_eq!(at_hub["edge_request_id"], at_edge["request_id"]);
        assert_ne!(at_hub["request_id"], at_edge["request_id"]);
        assert_eq!(at_hub["edge"], "gcp");
        assert_eq!(at_hub["edge_client"], at_edge["client"]);
        assert_eq!(at_hub["host"], HOST);
        assert_eq!(at_hub["route"], "mock");
        assert_eq!(at_hub["caller"], "gcp");
        assert_eq!(at_hub["identified_by"], by);
        assert_eq!(at_hub["credential"], "mock");
        match by {
            "token" => {
                assert_eq!(at_edge["credential"], "hub.token");
                assert!(at_hub["token_version"].is_string());
            }
            _ => assert_eq!(at_edge["credential"], Value::Null),
        }
    }
    for request in hub.mock.received() {
        let text = request.to_string().to_ascii_lowercase();
        for own in ["claviger-", "claviger_", "placeholder", DOOR, EDGE] {
            assert!(!text.contains(own), "{own}: {text}");
        }
        assert_eq!(
            request["target"]
                .as_str()
                .map(|target| target.contains("a=%2F%2f")),
            Some(true)
        );
    }
}

#[test]
fn nobody_else_is_heard() {
    let hub = Hub::start(|_| String::new());
    let told = format!("Claviger-Authority: {HOST}\r\nClaviger-Caller: 10.0.0.1\r\n");
    let mut stranger = hub.connect();
    at_door(&mut stranger, "/echo/none", &told).expect_own(401, "caller_not_authenticated");
    let guess = format!("{told}Claviger-Token: 0123456789abcdef0123456789abcdef\r\n");
    at_door(&mut stranger, "/echo/guess", &guess).expect_own(401, "caller_not_authenticated");
    // A proof where the API's key could stand is not an edge's.
    let elsewhere = format!("{told}Authorization: Bearer {}\r\n", hub.token());
    at_door(&mut stranger, "/echo/elsewhere", &elsewhere)
        .expect_own(401, "caller_not_authenticated");
    // Whatever it says of it: who is no edge learns nothing of what is served.
    let unknown = "Claviger-Authority: nothing.example.com\r\n";
    at_door(&mut stranger, "/echo/unknown", unknown).expect_own(401, "caller_not_authenticated");
    // At another door the fields mean nothing, and go no further.
    let record = hub.claviger.audit_of("/echo/none");
    assert_eq!(record["caller"], "unknown");
    assert_eq!(record["edge"], Value::Null);
    assert_eq!(record["host"], DOOR);
    let mut direct = hub.claviger.connect_as(&hub.world, HOST);
    direct
        .call(format!(
            "GET /echo/direct HTTP/1.1\r\nHost: {HOST}\r\n{told}Claviger-Token: {}\r\n\r\n",
            hub.token()
        ))
        .expect(200);
    let record = hub.claviger.audit_of("/echo/direct");
    assert_eq!(
        (&record["caller"], &record["edge"]),
        (&"gcp".into(), &Value::Null)
    );
    assert_eq!(record["edge_client"], Value::Null);
    assert!(hub.mock.received().iter().all(|request| {
        let text = request.to_string().to_ascii_lowercase();
        request["target"] == "/echo/direct" && !text.contains("claviger-")
    }));
}

#[test]
fn an_edge_speaks_clearly_or_not_at_all() {
    let hub = Hub::start(|_| String::new());
    let token = format!("Claviger-Token: {}\r\n", hub.token());
    let mut edge = hub.connect();
    for (path, fields, status, reason) in [
        ("/echo/1", String::new(), 400, "edge_authority_missing"),
        (
            "/echo/2",
            format!("Claviger-Authority: {HOST}\r\nClaviger-Authority: {HOST}\r\n"),
            400,
            "edge_fields_malformed",
        ),
        (
            "/echo/3",
            format!("Claviger-Authority: {HOST}:443\r\n"),
            400,
            "edge_fields_malformed",
        ),
        (
            "/echo/4",
            format!("Claviger-Authority: {HOST}\r\nClaviger-Caller: somewhere\r\n"),
            400,
            "edge_fields_malformed",
        ),
        (
            "/echo/5",
            "Claviger-Authority: other.example.com\r\n".to_owned(),
            421,
            "unknown_host",
        ),
        (
            "/echo/6",
            format!("Claviger-Authority: {DOOR}\r\n"),
            421,
            "unknown_host",
        ),
    ] {
        at_door(&mut edge, path, &format!("{token}{fields}")).expect_own(status, reason);
        let record = hub.claviger.audit_of(path);
        assert_eq!(record["credential"], Value::Null);
        assert_eq!(record["edge"] == "gcp", status == 421, "{record}");
    }
    assert_eq!(hub.mock.received().len(), 0);
}

#[test]
fn each_edge_sees_what_is_meant_for_it() {
    let hub = Hub::start(|world| {
        world.key_file("token.aws");
        let (_, key) = world.key_file("key.mail");
        format!(
            "[caller.aws]\ntoken = \"file://{}\"\nnetworks = \"127.0.0.0/8\"\n\
             [caller.far]\ntoken = \"file://{}\"\nnetworks = \"203.0.113.7/32\"\n\
             [host.\"doors.example.com\"]\nedges = [\"aws\", \"far\"]\n\
             [[route]]\nname = \"mail\"\nhost = \"mail.example.com\"\nupstream = \"mock\"\n\
             credential = \"file://{}\"\ncallers = [\"aws\", \"open\", \"far\"]\n\
             [[route]]\nname = \"near\"\nhost = \"near.example.com\"\nupstream = \"mock\"\n\
             credential = \"none\"\ncallers = \"open\"\n",
            world.path("token.aws").display(),
            world.path("token").display(),
            key.display()
        )
    });
    let aws = std::fs::read_to_string(hub.world.path("token.aws")).expect("just written");
    let gcp = hub.token();
    let ask = |door: &str, token: &str, host: &str| {
        let mut client = hub.claviger.connect_as(&hub.world, door);
        client
            .call(format!(
                "GET /echo/x HTTP/1.1\r\nHost: {door}\r\nClaviger-Token: {token}\r\nClaviger-Authority: {host}\r\n\r\n"
            ))
            .status
    };
    let doors = "doors.example.com";
    // The mock wants its own key, which only the route `mock` writes.
    for (door, token, host, expected) in [
        (DOOR, &gcp, HOST, 200),
        (doors, &aws, "mail.example.com", 401),
        (doors, &aws, HOST, 403),
        (DOOR, &gcp, "mail.example.com", 403),
        // Near enough for `open`, but an edge is let in by name alone.
        (doors, &aws, "near.example.com", 403),
        // The right proof at another edge's door, and at the wrong address.
        (DOOR, &aws, "mail.example.com", 401),
        (doors, &gcp, "mail.example.com", 401),
    ] {
        assert_eq!(ask(door, token, host), expected, "{door} {host}");
    }
    let reached = hub.mock.received().len();
    assert_eq!(reached, 2);
}

#[test]
fn a_certificate_that_is_wrong_or_revoked_is_no_edges() {
    let hub = Hub::start(|_| String::new());
    let edge = Edge::start(&hub);
    edge.get("/echo/good").expect(200);
    let directory = edge.world.path("");
    let replace = |issuer: &pki::TestCa, name: &str, serial: u64| {
        let mark = edge.claviger.log().mark();
        issuer.client_file(&directory, "hub.pem", name, serial);
        edge.claviger.wait_reloaded(mark);
    };
    // Of the right CA, with nobody's name: the hub says so.
    replace(&hub.edges, "nobody.example.com", 12);
    assert_eq!(edge.get("/echo/nobody").status, 401);
    // Of another CA: the handshake fails, and the edge says that it has no hub.
    let other = pki::TestCa::new(&edge.world.subdirectory("other"), "other");
    replace(&other, EDGE, 13);
    let refused = edge.get("/echo/other");
    assert!((502..=503).contains(&refused.status), "{}", refused.status);
    // A renewed one works at once.
    replace(&hub.edges, EDGE, 14);
    edge.get("/echo/renewed").expect(200);
    let mark = hub.claviger.log().mark();
    hub.world.write("edges.crl", hub.edges.revoking(&[14]));
    hub.claviger.wait_reloaded(mark);
    replace(&hub.edges, EDGE, 15);
    edge.get("/echo/again").expect(200);
    let paths: Vec<String> = hub
        .mock
        .received()
        .iter()
        .filter_map(|request| request["target"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(paths, ["/echo/good", "/echo/renewed", "/echo/again"]);
}

#[test]
fn a_token_is_replaced_while_it_is_used() {
    let hub = Hub::start(|_| String::new());
    let edge = Edge::with_token(&hub);
    let mut client = edge.connect();
    client.get(HOST, "/echo/1").expect(200);
    let old = hub.token();
    let mark = hub.claviger.log().mark();
    let new = hub.world.key();
    edge.world.secret(&new);
    hub.world.write("token", &new);
    hub.claviger.wait_reloaded(mark);
    // The old one is worth nothing any more, on the same connection too.
    assert_eq!(client.get(HOST, "/echo/2").status, 401);
    let mark = edge.claviger.log().mark();
    edge.world.write("token", &new);
    edge.claviger.wait_reloaded(mark);
    client.get(HOST, "/echo/3").expect(200);
    assert_ne!(old, new);
    let versions: Vec<Value> = ["/echo/1", "/echo/3"]
        .map(|path| edge.claviger.audit_of(path)["credential_version"].clone())
        .into();
    assert_ne!(versions[0], versions[1]);
}
