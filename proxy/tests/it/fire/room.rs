//! At the bound of connections: whoever keeps a core waiting makes room for whoever comes, and
//! what is under way goes on.

use std::net::TcpStream;
use std::time::Duration;

use super::{count, open, site};
use crate::harness::eventually;
use crate::harness::world::{HOST, Site};

/// Connections at once, in the configurations here.
const MAX: usize = 20;

fn small(driver: &str) -> Site {
    site(
        &format!("connections_max = {MAX}\ndriver = {driver:?}\n"),
        "",
    )
}

#[test]
fn idle_connections_make_room() {
    for driver in ["io_uring", "epoll"] {
        let site = small(driver);
        let mut held = Vec::new();
        for _ in 0..MAX * 3 {
            let mut client = site.connect();
            client.get(HOST, "/ok").expect(200);
            held.push(client);
        }
        let status = site.claviger.status();
        assert_eq!(status["connections_refused_limit"], 0);
        assert!(status["connections_evicted"].as_u64() >= Some(MAX as u64));
        // Whoever was closed had been idle for longest, and was told so.
        held[0].expect_end();
        held.last_mut()
            .expect("there are some")
            .get(HOST, "/ok")
            .expect(200);
        let line = site
            .claviger
            .log()
            .wait_event(0, "connections_max is reached on this core");
        assert_eq!(line["connections_max"], MAX as u64);
    }
}

/// The same for heads and handshakes that have been under way for longer than any honest one.
#[test]
fn slow_heads_and_handshakes_make_room() {
    let site = small("auto");
    let mut heads = open(&site, MAX / 2);
    for one in &mut heads {
        one.send("GET /slow HTTP/1.1\r\n");
    }
    let _silent: Vec<TcpStream> = (0..MAX / 2)
        .map(|_| TcpStream::connect(site.claviger.address()).expect("it listens"))
        .collect();
    site.claviger.wait_count("connections_open", MAX as u64);
    // Nobody else gets in before they have become too slow, and then everybody does.
    eventually("a newcomer to be served", || {
        let client = site.claviger.connect_with(HOST, site.world.client_config());
        client
            .ok()
            .map(|mut client| client.get(HOST, "/ok").expect(200).status)
    });
    for _ in 0..MAX / 2 {
        site.get("/ok").expect(200);
    }
    assert!(count(&site.claviger, "connections_evicted") > 0);
}

/// With every connection in the middle of a request, a new one is refused, and no request is lost.
#[test]
fn requests_under_way_do_not() {
    let site = small("auto");
    let mut busy: Vec<_> = (0..MAX).map(|_| site.connect()).collect();
    for one in &mut busy {
        one.send(format!("GET /delay/1500 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    }
    site.claviger.wait_count("exchanges_open", MAX as u64);
    let refused = site.claviger.connect_with(HOST, site.world.client_config());
    assert!(refused.is_err(), "there is no room");
    site.claviger.wait_count("connections_refused_limit", 1);
    for one in &mut busy {
        one.answer().expect(200);
    }
    assert_eq!(count(&site.claviger, "connections_evicted"), 0);
    // Now they keep the core waiting.
    site.get("/ok").expect(200);
}

/// A caller between two requests is not ended while there is room.
#[test]
fn nobody_is_ended_without_need() {
    let site = small("auto");
    let mut held = open(&site, MAX - 1);
    for _ in 0..MAX {
        site.get("/ok").expect(200);
        // Its place has to be free again before the next one comes.
        site.claviger
            .wait_count("connections_open", (MAX - 1) as u64);
    }
    assert_eq!(count(&site.claviger, "connections_evicted"), 0);
    for mut one in held.drain(..) {
        one.socket().set_nonblocking(false).expect("a socket");
        one.socket()
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a socket");
        one.get(HOST, "/ok").expect(200);
    }
}
