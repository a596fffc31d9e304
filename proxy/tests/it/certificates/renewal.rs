//! The internal CA's certificates of hosts are made anew while Claviger serves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::harness::eventually;
use crate::harness::world::{HOST, Site, bearer_route};

/// Certificates that live for half a minute, two renewals, and calls all the while: over one
/// connection that stays, and over new ones, each of which must verify.
#[test]
fn leaves_are_renewed_under_load_and_nobody_notices() {
    let site = Site::build(&[], |world, mock, key_file| {
        let base = world
            .base()
            .replace("[ca]\n", "[ca]\nleaf_lifetime = \"30s\"\n");
        format!(
            "{base}{}{}",
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    let certificate = || {
        let client = site.connect();
        let chain = client.connection().peer_certificates();
        chain.expect("a certificate")[0].as_ref().to_vec()
    };
    let first = certificate();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let fresh = scope.spawn(|| {
            let mut calls = 0;
            while !over.load(Ordering::Relaxed) {
                site.get("/echo/fresh").expect(200);
                calls += 1;
            }
            calls
        });
        let kept = scope.spawn(|| {
            let mut client = site.connect();
            let mut calls = 0;
            while !over.load(Ordering::Relaxed) {
                client.get(HOST, "/echo/kept").expect(200);
                calls += 1;
            }
            calls
        });
        let mut seen = vec![first];
        while seen.len() < 3 {
            let next = eventually("another certificate", || {
                let now = certificate();
                (!seen.contains(&now)).then_some(now)
            });
            seen.push(next);
        }
        over.store(true, Ordering::Relaxed);
        for calls in [fresh.join(), kept.join()] {
            assert!(calls.expect("no call failed") > 10);
        }
    });
    let status = site.claviger.status();
    let left = status["certificate_expires_s"].as_u64().expect("a number");
    assert!((1..=30).contains(&left), "{left} s");
    assert_eq!(status["handshakes_failed"], 0);
}
