//! Upstreams that do not answer, or never stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::{IDLE_SHARE_MAX, LIMIT, assert_calm, config, outlast};
use crate::harness::world::{Claviger, HOST, Site};
use crate::harness::{Client, Scripted, World, eventually};

/// Requests under way at once.
const MANY: usize = 30;

/// Claviger in front of a script, and a second route to the same upstream definition's neighbour: its
/// callers must not notice.
#[track_caller]
fn serve(world: &World, upstream: &Scripted, lines: &str) -> Claviger {
    let (_, key_file) = world.key_file("key");
    world.start(&config(
        world,
        &upstream.upstream("mock", HOST),
        &key_file,
        "",
        lines,
    ))
}

#[test]
fn one_that_never_answers() {
    let world = World::new();
    let upstream = Scripted::start(&world, HOST, |peer| while peer.head().is_some() {});
    let claviger = serve(&world, &upstream, "response_head_timeout = \"3s\"\n");
    let mut callers: Vec<_> = (0..MANY).map(|_| claviger.connect(&world)).collect();
    for one in &mut callers {
        one.send(format!("GET /never HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    }
    claviger.wait_count("exchanges_open", MANY as u64);
    assert_calm(&claviger, IDLE_SHARE_MAX);
    for one in &mut callers {
        one.answer().expect_own(504, "upstream_response_timeout");
    }
    claviger.wait_count("exchanges_open", 0);
}

/// Interim answers without end.
#[test]
fn one_that_floods_with_interim_answers() {
    let world = World::new();
    let upstream = Scripted::start(&world, HOST, |peer| {
        if peer.head().is_some() {
            while peer.send("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(100)) {}
            peer.tell("cut off");
        }
    });
    let claviger = serve(&world, &upstream, "");
    let mut client = claviger.connect(&world);
    for _ in 0..3 {
        let answer = client.get(HOST, "/flood");
        answer.expect_own(502, "upstream_answer_malformed");
        assert!(answer.interim.len() <= 17, "{}", answer.interim.len());
        assert_eq!(upstream.told(), "cut off");
    }
}

/// A head that drips is due as a whole.
#[test]
fn one_whose_head_drips() {
    let world = World::new();
    let upstream = Scripted::start(&world, HOST, |peer| {
        if peer.head().is_some() {
            while peer.send("H") {
                std::thread::sleep(std::time::Duration::from_millis(50));
                // Well-formed, as far as it goes.
                if !peer.send("TTP/1.1 200 OK\r\nX: ") {
                    break;
                }
                while peer.send("x") {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
            }
        }
    });
    let claviger = serve(&world, &upstream, "response_head_timeout = \"1s\"\n");
    claviger
        .get(&world, "/drip")
        .expect_own(504, "upstream_response_timeout");
}

/// A head without end is not kept.
#[test]
fn one_whose_head_never_ends() {
    let world = World::new();
    let upstream = Scripted::start(&world, HOST, |peer| {
        if peer.head().is_some() && peer.send("HTTP/1.1 200 OK\r\n") {
            while peer.send(format!("X: {}\r\n", "x".repeat(1000))) {}
            peer.tell("cut off");
        }
    });
    let claviger = serve(&world, &upstream, "");
    claviger
        .get(&world, "/long")
        .expect_own(502, "upstream_answer_malformed");
    assert_eq!(upstream.told(), "cut off");
}

/// An answer that drips goes on as long as its caller wants it, as event streams do, and ends with its
/// caller; one that stops is cut after `read_timeout`.
#[test]
fn one_whose_body_drips_or_stops() {
    let world = World::new();
    let upstream = Scripted::start(&world, HOST, |peer| {
        let Some(head) = peer.head() else { return };
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx");
        if head.starts_with("GET /stops ") {
            peer.wait_end();
        } else {
            while peer.send("x") {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
        peer.tell("left alone");
    });
    let claviger = serve(&world, &upstream, "read_timeout = \"3s\"\n");
    let mut stops = claviger.connect(&world);
    stops.send(format!("GET /stops HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    let mut drips = claviger.connect(&world);
    drips.send(format!("GET /drips HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    stops.socket().set_nonblocking(true).expect("a socket");
    outlast(vec![stops], LIMIT / 2, LIMIT, |_| {});
    assert_eq!(
        claviger.audit_of("/stops")["reason"],
        "upstream_read_timeout"
    );
    assert_eq!(upstream.told(), "left alone");
    // The other one is still served.
    let body = drips.head();
    assert_eq!(body.status, 200);
    drips.read_exact(10);
    drop(drips);
    assert_eq!(upstream.told(), "left alone");
    assert_eq!(claviger.audit_of("/drips")["reason"], "caller_gone");
}

/// Whoever waits for a silent upstream takes nothing from callers of another one: each has
/// connections and a queue of its own.
#[test]
fn a_silent_upstream_starves_nobody_else() {
    let world = World::new();
    let silent = Scripted::start(&world, HOST, |peer| while peer.head().is_some() {});
    let (key, key_file) = world.key_file("key");
    let mock = crate::harness::Mock::start(
        &world,
        &["other.example.com"],
        &["--key", &key, "--auth", "bearer"],
    );
    let other = "[[route]]\nname = \"other\"\nhost = \"other.example.com\"\nupstream = \"other\"\ncredential = \"mock\"\ncallers = \"open\"\n";
    let claviger = world.start(&format!(
        "{}{other}{}",
        config(
            &world,
            &silent.upstream("mock", HOST),
            &key_file,
            "",
            "connections_max = 5\nqueue_max = 5\nqueue_timeout = \"20s\"\n"
        ),
        mock.upstream("other", "other.example.com")
    ));
    let mut callers: Vec<_> = (0..MANY).map(|_| claviger.connect(&world)).collect();
    for one in &mut callers {
        one.send(format!("GET /never HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    }
    // Five wait for an answer, five for a connection, and all others were refused at once.
    for one in &mut callers {
        one.socket().set_nonblocking(true).expect("a socket");
    }
    claviger.wait_count("upstream_queue_refusals", (MANY - 10) as u64);
    for _ in 0..20 {
        claviger
            .connect_as(&world, "other.example.com")
            .get("other.example.com", "/ok")
            .expect(200);
    }
}

/// A caller that floods an upstream waits behind itself: another address has its turn, also where the
/// queue was full when it came.
#[test]
fn a_flood_of_one_caller_starves_no_other() {
    let site = Site::build(&[], |world, mock, key_file| {
        config(
            world,
            &mock.upstream("mock", HOST),
            key_file,
            "",
            "connections_max = 2\nidle_max = 2\nqueue_max = 8\nqueue_timeout = \"20s\"\n",
        )
        .replace("[\"127.0.0.1:0\"]", "[\"127.0.0.1:0\", \"[::1]:0\"]")
    });
    let theirs = site.claviger.addresses_of("main")[1];
    let ended = AtomicBool::new(false);
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..MANY {
            scope.spawn(|| {
                let mut client = Client::tls(
                    theirs,
                    HOST,
                    Arc::new(site.world.client_config()),
                    site.world.transcript(),
                )
                .expect("it listens");
                while !ended.load(Ordering::Acquire) {
                    let answer = client.get(HOST, "/delay/50");
                    if answer.status == 503 {
                        answer.expect_own(503, "upstream_connections_exhausted");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        // Whoever is one too many is refused: the queue is full.
        let is_full = || (refused.load(Ordering::Relaxed) > MANY as u64).then_some(());
        eventually("the queue to be full", is_full);
        let mut client = site.connect();
        let begun = Instant::now();
        let served: Vec<_> = (0..10)
            .map(|_| client.get(HOST, "/delay/50").status)
            .collect();
        let took = begun.elapsed();
        ended.store(true, Ordering::Release);
        assert_eq!(served, [200; 10]);
        println!("ten requests beside a flood took {took:?}");
    });
    assert_eq!(site.claviger.status()["exchanges_panicked"], 0);
}

/// A caller that fills a core's places (`exchanges_max`) with requests that wait leaves some for others.
#[test]
fn a_caller_that_takes_what_places_there_are_leaves_some() {
    /// Places, and what of them one caller gets: seven times what it leaves, but for the last one.
    const PLACES: usize = 16;
    const SHARE: usize = 14;
    let site = Site::build(&[], |world, mock, key_file| {
        config(
            world,
            &mock.upstream("mock", HOST),
            key_file,
            &format!("exchanges_max = {PLACES}\n"),
            "",
        )
        .replace("[\"127.0.0.1:0\"]", "[\"127.0.0.1:0\", \"[::1]:0\"]")
    });
    let theirs = site.claviger.addresses_of("main")[1];
    let mut flood: Vec<_> = (0..MANY)
        .map(|_| {
            let config = Arc::new(site.world.client_config());
            Client::tls(theirs, HOST, config, site.world.transcript()).expect("it listens")
        })
        .collect();
    for one in &mut flood {
        one.send(format!(
            "GET /delay/600000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
        ));
    }
    let status = &site.claviger;
    status.wait_count("exchanges_refused_limit", (MANY - SHARE) as u64);
    status.wait_count("exchanges_open", SHARE as u64);
    let line = status
        .log()
        .wait_event(0, "a request was answered 503: exchanges_max requests");
    assert_eq!(line["held"], SHARE as u64);
    assert_eq!(line["client"], "::1");
    // They go on trying, which changes nothing.
    let mut others: Vec<_> = (0..PLACES - SHARE).map(|_| site.connect()).collect();
    for _ in 0..20 {
        let mut again = Client::tls(
            theirs,
            HOST,
            Arc::new(site.world.client_config()),
            site.world.transcript(),
        )
        .expect("it listens");
        again.get(HOST, "/ok").expect_own(503, "core_overloaded");
        for other in &mut others {
            other.get(HOST, "/ok").expect(200);
        }
    }
    // What they held is free again.
    drop(flood);
    status.wait_count("exchanges_open", 0);
    for one in &mut others {
        one.get(HOST, "/ok").expect(200);
    }
}
