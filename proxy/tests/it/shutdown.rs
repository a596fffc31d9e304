//! SIGTERM: nothing new, what is in flight is finished, exit 0.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::world::{HOST, Site, bearer_route};
use crate::harness::{Scripted, World};

#[test]
fn with_nothing_in_flight_it_ends_at_once() {
    let site = Site::new();
    // A connection that waits for its next request is not in flight.
    let mut idle = site.connect();
    idle.get(HOST, "/ok").expect(200);
    let Site { claviger, .. } = site;
    let began = Instant::now();
    claviger.terminate().expect_code(0);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    idle.expect_end();
}

#[test]
fn what_is_in_flight_is_finished() {
    let world = World::new();
    let (_, key_file) = world.key_file("key");
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let upstream = Scripted::start(&world, HOST, move |peer| {
        while let Some(head) = peer.head() {
            peer.tell(head.split(' ').nth(1).unwrap_or_default());
            let _ = gate.lock().expect("one at a time").recv();
            peer.answer("at last");
        }
    });
    let claviger = world.start(&format!(
        "{}{}{}",
        world.base(),
        upstream.upstream("mock", HOST),
        bearer_route(&key_file)
    ));
    let address = claviger.address();
    let mut client = claviger.connect(&world);
    client.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(upstream.told(), "/slow");
    let mark = claviger.log().mark();
    claviger.process().signal(libc::SIGTERM);
    claviger.log().wait_from(mark, "word of draining", |line| {
        line.contains("drain").then_some(())
    });
    // Nobody is let in any more: refused, or closed before a handshake.
    crate::harness::eventually("the listener to close", || {
        TcpStream::connect(address).is_err().then_some(())
    });
    go.send(()).expect("the script waits");
    let answer = client.answer();
    assert_eq!(answer.expect(200).text(), "at last");
    assert_eq!(
        answer.field("connection"),
        Some("close"),
        "a keep-alive caller is told"
    );
    client.expect_end();
    claviger.finish().expect_code(0);
}

#[test]
fn what_does_not_end_is_cut() {
    let world = World::new();
    let (_, key_file) = world.key_file("key");
    let upstream = Scripted::start(&world, HOST, |peer| {
        if peer.head().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n");
            peer.tell("begun");
            peer.wait_end();
            peer.tell("ended");
        }
    });
    let base = world
        .base()
        .replace("[audit]", "drain_timeout = \"1s\"\n[audit]");
    let claviger = world.start(&format!(
        "{base}{}{}idle_min = 0\n",
        bearer_route(&key_file),
        upstream.upstream("mock", HOST)
    ));
    let mut client = claviger.connect(&world);
    client.send(format!("GET /endless HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(client.head().status, 200);
    assert_eq!(upstream.told(), "begun");
    let began = Instant::now();
    claviger.terminate().expect_code(0);
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert_eq!(upstream.told(), "ended");
    assert!(
        !client.read_to_end().ends_with(b"0\r\n\r\n"),
        "a cut answer must not look whole"
    );
}

/// The audit trail holds the exchange that was in flight.
#[test]
fn the_audit_trail_is_complete() {
    let site = Site::new();
    for number in 0..50 {
        site.get(&format!("/echo/{number}")).expect(200);
    }
    let Site {
        claviger, world, ..
    } = site;
    let audit = world.path("audit.ndjson");
    claviger.terminate().expect_code(0);
    let records = crate::harness::world::read_audit(&audit);
    assert_eq!(records.len(), 50);
}
