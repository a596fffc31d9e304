//! What an answer is searched for.

use std::sync::Arc;

use policy::{Caller, Route, ServerLimits, Snapshot, Verdict, VirtualHost};

use crate::world::{key, parse, plain_route};

const HOST: &str = "api.example.com";

/// More keys than are searched for together.
const MANY: u64 = policy::searches::KEYS_SEARCHED_MAX as u64 + 1;

/// The route `/NAME` to the API of this name and port.
fn leading_to(api: &str, number: u64, name: &str) -> Route {
    let mut route = plain_route(number, name);
    route.path = format!("/{name}").into_bytes().into();
    Arc::get_mut(&mut route.upstream).expect("its own").host = api.into();
    route
}

fn without_key(mut route: Route) -> Route {
    route.credential = None;
    route
}

/// Somebody near.
fn caller() -> Caller<'static> {
    Caller {
        address: "10.0.0.7".parse().expect("an address"),
        server_name: Some(HOST),
        tls: true,
        identity: None,
    }
}

/// Whether an answer to the route `of` is searched for the key of the route `wanted`.
#[track_caller]
fn check(snapshot: &Snapshot, of: &str, wanted: &str, expected: bool) {
    let head = parse(&format!("GET /{of} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    let verdict = snapshot.authorize("main", &caller(), &head);
    let Verdict::Allow(permit) = verdict else {
        panic!("{of}: {verdict:?}");
    };
    let found = permit
        .scrubber()
        .is_some_and(|scrubber| scrubber.find(key(wanted).as_bytes()).is_some());
    assert_eq!(found, expected, "the key of {wanted} in an answer to {of}");
}

fn snapshot(routes: Vec<Route>) -> Snapshot {
    let host = VirtualHost::new(HOST, Vec::new(), None, routes);
    Snapshot::new(1, Vec::new(), vec![host], ServerLimits::default(), "t").expect("one host")
}

#[test]
fn an_answer_is_searched_for_every_key_of_its_api() {
    let snapshot = snapshot(vec![
        leading_to("api.vendor.example", 1, "one"),
        leading_to("API.vendor.example", 2, "two"),
        without_key(leading_to("api.vendor.example", 3, "none")),
        leading_to("api.vendor.example:8443", 4, "port"),
        without_key(leading_to("other.vendor.example", 5, "elsewhere")),
    ]);
    for of in ["one", "two", "none"] {
        check(&snapshot, of, "one", true);
        check(&snapshot, of, "two", true);
        check(&snapshot, of, "port", false);
    }
    check(&snapshot, "port", "port", true);
    check(&snapshot, "port", "one", false);
    check(&snapshot, "elsewhere", "one", false);
}

#[test]
fn a_key_that_is_written_to_two_apis_is_searched_for_at_both() {
    let mut second = leading_to("b.vendor.example", 2, "b");
    let first = leading_to("a.vendor.example", 1, "a");
    second.credential.clone_from(&first.credential);
    let snapshot = snapshot(vec![first, second]);
    check(&snapshot, "b", "a", true);
}

#[test]
fn past_so_many_keys_each_route_searches_for_its_own() {
    let routes = |count| {
        (0..count)
            .map(|number| leading_to("api.vendor.example", number, &format!("r{number}")))
            .collect()
    };
    let few = snapshot(routes(MANY - 1));
    check(&few, "r0", "r0", true);
    check(&few, "r0", "r1", true);
    let many = snapshot(routes(MANY));
    check(&many, "r0", "r0", true);
    check(&many, "r0", "r1", false);
}
