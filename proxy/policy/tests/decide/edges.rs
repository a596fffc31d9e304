//! Edges at a hub's door, and what an edge itself writes towards its hub.

use std::sync::{Arc, LazyLock};

use policy::edge::Ping;
use policy::{
    Caller, Callers, Identity, Injection, Permit, Require, Route, Secret, ServerLimits, Snapshot,
    Upstream, Verdict, VirtualHost,
};
use wire::framing::BodyFraming;
use wire::rewrite::Plan;

use crate::world::{LOOP_TOKEN, REQUEST_ID, named, parse, plain_route, token};

const DOOR: &str = "keys.example.com";

static EDGE: LazyLock<Identity> = LazyLock::new(|| Identity::new(["edge.example.com"], []));

/// A route of a host that edges may use, and which.
fn route(number: u64, name: &str, callers: Callers) -> Route {
    Route {
        callers,
        ..plain_route(number, name)
    }
}

/// A hub with a door for `gcp` (certificate) and `aws` (token, from 203.0.113.0/24), and a door for
/// `loose`, which a check of the configuration would refuse.
static HUB: LazyLock<Snapshot> = LazyLock::new(|| {
    let gcp = named("gcp", &[], &[], &["edge.example.com"], Require::All);
    let aws = named("aws", &["203.0.113.0/24"], &["aws"], &[], Require::All);
    let loose = named("loose", &["10.0.0.0/8"], &["loose"], &[], Require::Any);
    let both = Callers::Named {
        networks: vec!["10.0.0.0/8".parse().expect("a network")],
        callers: vec![Arc::clone(&gcp), Arc::clone(&aws)],
    };
    let only_aws = Callers::Named {
        networks: Vec::new(),
        callers: vec![Arc::clone(&aws)],
    };
    let host = |name: &str, routes| VirtualHost::new(name, Vec::new(), None, routes);
    let hosts = vec![
        host("mail.example.com", vec![route(1, "mail", both)]),
        host("pay.example.com", vec![route(2, "pay", only_aws)]),
        host("near.example.com", vec![route(3, "near", Callers::Open)]),
        host(DOOR, Vec::new()).for_edges(vec![gcp, aws]),
        host("loose.example.com", Vec::new()).for_edges(vec![loose]),
    ];
    Snapshot::new(1, Vec::new(), hosts, ServerLimits::default(), LOOP_TOKEN).expect("once each")
});

fn caller<'a>(address: &str, name: &'a str, identity: Option<&'a Identity>) -> Caller<'a> {
    Caller {
        address: address.parse().expect("an address"),
        server_name: Some(name),
        tls: true,
        identity,
    }
}

/// What becomes of a request for `authority`: the route and who it was, or status and reason.
fn decide(caller: Caller<'_>, fields: &str) -> Result<(String, String), (u16, &'static str)> {
    let door = caller.server_name.expect("these callers name it");
    let head = parse(&format!("GET /x HTTP/1.1\r\nHost: {door}\r\n{fields}\r\n"));
    match HUB.authorize("main", &caller, &head) {
        Verdict::Allow(permit) => {
            let by = permit.admitted().name(&permit.route().callers).to_owned();
            let told = permit.told().expect("an edge has brought it");
            assert_eq!(*told.edge, by);
            Ok((permit.route().name.to_string(), by))
        }
        Verdict::Deny(denial) => Err((denial.status, denial.reason)),
        Verdict::Greet => panic!("nobody has asked"),
    }
}

#[test]
fn the_authority_picks_the_host_and_the_route_names_the_edge() {
    let gcp = |fields: &str| decide(caller("10.0.0.7", DOOR, Some(&EDGE)), fields);
    let is = |route: &str, by: &str| Ok((route.to_owned(), by.to_owned()));
    assert_eq!(
        gcp("Claviger-Authority: mail.example.com\r\n"),
        is("mail", "gcp")
    );
    assert_eq!(
        gcp("CLAVIGER-AUTHORITY: Mail.Example.com\r\n"),
        is("mail", "gcp")
    );
    let not_named = Err((403, "caller_not_allowed"));
    assert_eq!(gcp("Claviger-Authority: pay.example.com\r\n"), not_named);
    // From a private address, which is near enough for others.
    assert_eq!(gcp("Claviger-Authority: near.example.com\r\n"), not_named);
    let unknown = Err((421, "unknown_host"));
    for door in [DOOR, "loose.example.com", "other.example.com"] {
        assert_eq!(gcp(&format!("Claviger-Authority: {door}\r\n")), unknown);
    }
    assert_eq!(gcp(""), Err((400, "edge_authority_missing")));
    let round = format!("Claviger-Authority: mail.example.com\r\nCDN-Loop: {LOOP_TOKEN}\r\n");
    assert_eq!(gcp(&round), Err((508, "loop_detected")));

    let shown = format!(
        "Claviger-Token: {}\r\nClaviger-Authority: pay.example.com\r\n",
        token("aws")
    );
    let aws = |address: &str| decide(caller(address, DOOR, None), &shown);
    assert_eq!(aws("203.0.113.9"), is("pay", "aws"));
    // The right token from elsewhere: its address would have to be another one.
    assert_eq!(aws("198.51.100.9"), Err((401, "caller_not_authenticated")));
}

#[test]
fn nobody_is_an_edge_by_address_or_by_a_key_s_place() {
    let unproven = Err((401, "caller_not_authenticated"));
    let told = "Claviger-Authority: mail.example.com\r\n";
    let malformed = "Claviger-Authority: mail.example.com\r\nClaviger-Authority: x\r\n";
    for fields in [told, malformed] {
        assert_eq!(decide(caller("10.0.0.7", DOOR, None), fields), unproven);
        assert_eq!(
            decide(caller("10.0.0.7", "loose.example.com", None), fields),
            unproven
        );
    }
    let elsewhere = format!("{told}Authorization: Bearer {}\r\n", token("aws"));
    assert_eq!(
        decide(caller("203.0.113.9", DOOR, None), &elsewhere),
        unproven
    );
}

#[test]
fn an_edge_is_greeted_and_nobody_else() {
    let ask = |caller: Caller<'_>, line: &str| {
        let door = caller.server_name.expect("these callers name it");
        let head = parse(&format!("{line} HTTP/1.1\r\nHost: {door}\r\n\r\n"));
        match HUB.authorize("main", &caller, &head) {
            Verdict::Greet => 204,
            Verdict::Deny(denial) => denial.status,
            Verdict::Allow(_) => 200,
        }
    };
    assert_eq!(ask(caller("10.0.0.7", DOOR, Some(&EDGE)), "OPTIONS *"), 204);
    assert_eq!(ask(caller("10.0.0.7", DOOR, None), "OPTIONS *"), 401);
    assert_eq!(ask(caller("10.0.0.7", DOOR, Some(&EDGE)), "OPTIONS /"), 400);
    // Another host's own question goes where its route leads.
    assert_ne!(
        ask(caller("10.0.0.7", "near.example.com", None), "OPTIONS *"),
        204
    );
}

/// What an edge writes for a permit.
fn written(permit: &Permit<'_>, head: &wire::head::RequestHead) -> String {
    let mut plan = Plan::new();
    let outbound = permit.inject(REQUEST_ID, head, BodyFraming::None, None, false, &mut plan);
    let mut slices = Vec::new();
    outbound.slices(permit.pool_key(), &plan, head, &mut slices);
    String::from_utf8(slices.concat()).expect("text")
}

#[test]
fn an_edge_tells_its_hub_and_passes_on_what_was_asked() {
    let mut route = plain_route(1, "hub");
    route.upstream = Arc::new(Upstream {
        is_hub: true,
        ..(*route.upstream).clone()
    });
    let secret = Secret::new(token("hub").into_bytes());
    let injection = Injection::Header {
        name: "Claviger-Token".to_owned(),
        template: "{key}".to_owned(),
    };
    let credential = policy::Credential::new("hub.token", "v1", injection, &secret);
    let id = route.credential.as_ref().expect("it has one").0;
    route.credential = Some((id, Arc::new(credential.expect("a token"))));
    let plain = plain_route(2, "plain");
    let ping = Ping::of(&route, 0).expect("a hub");
    let asked = ping.slices(route.pool_key(0)).concat();
    let asked = String::from_utf8(asked).expect("text");
    assert!(asked.starts_with("OPTIONS * HTTP/1.1\r\nHost: hub.upstream.example\r\n"));
    assert_eq!(asked.matches(&token("hub")).count(), 1);
    // An API's key is never written without a permit.
    assert!(Ping::of(&plain, 0).is_none());
    let hosts = ["a.example.com", "*.example.net"]
        .map(|name| VirtualHost::new(name, Vec::new(), None, vec![route.clone()]));
    let edge = Snapshot::new(
        1,
        Vec::new(),
        hosts.into(),
        ServerLimits::default(),
        LOOP_TOKEN,
    )
    .expect("once each");
    for (host, authority) in [
        ("a.example.com", "a.example.com"),
        ("X.example.net", "x.example.net"),
    ] {
        let head = parse(&format!(
            "GET /p%2F?a=%2f&b HTTP/1.1\r\nHost: {host}\r\nClaviger-Authority: evil.example\r\n\
             claviger_caller: 1.2.3.4\r\nClaviger-Request-Id: x\r\nClaviger-Token: mine\r\n\r\n"
        ));
        let name = host.to_ascii_lowercase();
        let Verdict::Allow(permit) =
            edge.authorize("main", &caller("10.0.0.7", &name, None), &head)
        else {
            panic!("it is open");
        };
        assert!(permit.scrubber().is_none());
        let text = written(&permit, &head);
        assert!(text.starts_with("GET /p%2F?a=%2f&b HTTP/1.1\r\nHost: hub.upstream.example\r\n"));
        let own: Vec<&str> = text
            .lines()
            .filter(|line| line.to_ascii_lowercase().starts_with("claviger"))
            .collect();
        let expected = [
            format!("Claviger-Authority: {authority}"),
            "Claviger-Caller: 10.0.0.7".to_owned(),
            format!("Claviger-Request-Id: {REQUEST_ID}"),
            format!("Claviger-Token: {}", token("hub")),
        ];
        assert_eq!(own, expected);
    }
}
