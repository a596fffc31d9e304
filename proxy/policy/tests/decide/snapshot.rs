//! What is true of a whole configuration, and that nothing in it shows a key.

use std::sync::Arc;

use policy::upstream::CredentialId;
use policy::{
    AddressBook, Credential, Injection, Secret, ServerLimits, Snapshot, UpstreamId, VirtualHost,
};

use crate::world::{WORLD, assert_silent, key, plain_route, pool_key};

#[test]
fn nothing_shows_a_key() {
    assert_silent(&*WORLD, "the snapshot");
    for host in WORLD.hosts() {
        assert_silent(host, "a virtual host");
        for route in host.routes() {
            assert_silent(route, "a route");
            assert_silent(&route.upstream, "an upstream");
            if let Some((_, credential)) = &route.credential {
                assert_silent(credential, "a credential");
                assert_silent(credential.scrubber(), "a scrubber");
                let described = credential.injection().describe();
                assert!(described.contains("<hidden>") && !described.contains("real-key"));
            }
        }
    }
    assert_silent(&Secret::new(key("root").into_bytes()), "a secret");
    let error = Credential::new(
        "root",
        "v1",
        Injection::Bearer,
        &Secret::new(format!("{}\nx", key("root")).into_bytes()),
    )
    .expect_err("two lines are no key");
    assert_silent(&error, "an error");
    assert!(!error.to_string().contains("real-key"));
}

#[test]
fn a_host_that_is_there_twice_is_an_error() {
    for (one, other) in [
        ("api.example.com", "API.example.com"),
        ("*.example.com", "*.Example.com"),
    ] {
        let host = |name: &str| VirtualHost::new(name, Vec::new(), None, Vec::new());
        let made = Snapshot::new(
            1,
            Vec::new(),
            vec![host(one), host(other)],
            ServerLimits::default(),
            "t",
        );
        assert!(made.expect_err("twice").contains("example.com"));
    }
}

#[test]
fn pools_are_those_of_routes() {
    let root = pool_key("root");
    assert!(WORLD.has_pool(root.upstream, root.credential));
    assert!(!WORLD.has_pool(root.upstream, None));
    assert!(!WORLD.has_pool(root.upstream, pool_key("wild").credential));
    assert!(!WORLD.has_pool(UpstreamId(99), Some(CredentialId(99))));
    let keyless = pool_key("keyless");
    assert!(WORLD.has_pool(keyless.upstream, None));
}

#[test]
fn an_upstream_of_several_routes_is_listed_once() {
    let one = plain_route(1, "root");
    let mut other = plain_route(2, "wild");
    other.upstream = Arc::clone(&one.upstream);
    other.path = b"/other"[..].into();
    let host = VirtualHost::new("api.example.com", Vec::new(), None, vec![one, other]);
    let snapshot =
        Snapshot::new(1, Vec::new(), vec![host], ServerLimits::default(), "t").expect("one host");
    assert_eq!(snapshot.upstreams.len(), 1);
    assert_eq!(&*snapshot.hosts()[0].routes()[0].path, b"/other");
}

#[test]
fn addresses_of_the_file_come_before_those_of_names() {
    let route = plain_route(1, "root");
    let mut upstream = (*route.upstream).clone();
    let (found, fixed) = (
        "192.0.2.1:443".parse().expect("an address"),
        "192.0.2.2:443".parse().expect("an address"),
    );
    let mut book = AddressBook::default();
    assert!(book.addresses(&upstream).is_empty());
    book.addresses.insert(upstream.id, Arc::from([found]));
    assert_eq!(book.addresses(&upstream), [found]);
    upstream.addresses = Arc::from([fixed]);
    assert_eq!(book.addresses(&upstream), [fixed]);
}
