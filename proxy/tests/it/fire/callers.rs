//! Callers that take their time, or none at all.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::{
    IDLE_SHARE_MAX, Judge, LIMIT, LIMITS, assert_calm, count, descriptors, open, outlast,
    private_bytes, raise_descriptors, site,
};
use crate::harness::world::HOST;
use crate::harness::{PATIENCE, eventually};

/// Attackers that hold a connection each.
const MANY: usize = 200;

/// Attackers that hold an answer each, and with it an upstream's connection.
const READERS: usize = 40;

/// Private memory that each of [`READERS`] may cost: what waits to be sent to it
/// (`SEND_PENDING_BYTES` and what came along), what was received meanwhile, and the session.
const READER_BYTES_MAX: u64 = 512 * 1024;

/// Private memory that each of [`MANY`] may cost: a desk, and 8 KiB that its next bytes go into.
const HEAD_BYTES_MAX: u64 = 64 * 1024;

/// The allocator's steps, which are of 4 MiB each.
const STEPS_BYTES: u64 = 16 << 20;

#[test]
fn slow_heads() {
    let site = site(LIMITS, "");
    let judge = Judge::start(&site.world, &site.claviger);
    let before = private_bytes(&site.claviger);
    let mut attackers = open(&site, MANY);
    for one in &mut attackers {
        one.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\nX-Slow: "));
    }
    // The first ones were opened long before the last.
    let told = outlast(attackers, Duration::ZERO, LIMIT, |one| {
        let _ = one.try_send("x");
    });
    let grown = private_bytes(&site.claviger).saturating_sub(before);
    for answer in &told {
        let answer = String::from_utf8_lossy(answer);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("reason=request_head_timeout"), "{answer}");
    }
    assert!(
        grown < MANY as u64 * HEAD_BYTES_MAX + STEPS_BYTES,
        "{grown} bytes more for {MANY} slow heads"
    );
    judge.has_noticed_nothing();
}

#[test]
fn slow_bodies() {
    let site = site(&format!("{LIMITS}body_rate_min = 1000000\n"), "");
    let judge = Judge::start(&site.world, &site.claviger);
    let mut attackers = open(&site, READERS);
    for one in &mut attackers {
        one.send(format!(
            "POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\n"
        ));
    }
    let told = outlast(attackers, Duration::ZERO, LIMIT, |one| {
        let _ = one.try_send("x");
    });
    for answer in &told {
        let answer = String::from_utf8_lossy(answer);
        assert!(answer.contains("reason=request_body_timeout"), "{answer}");
    }
    assert_eq!(site.claviger.audit_of("/upload")["refused_by"], "caller");
    judge.has_noticed_nothing();
}

/// A reader that takes next to nothing, and one that takes nothing: what is sent at once has to be
/// taken within `read_timeout`, however it trickles.
#[test]
fn slow_readers_and_those_that_never_read() {
    for takes in [16, 0] {
        let site = site(LIMITS, "");
        let judge = Judge::start(&site.world, &site.claviger);
        let before = private_bytes(&site.claviger);
        let mut attackers = Vec::new();
        for _ in 0..READERS {
            let mut one = site.connect();
            setsockopt(one.socket(), sockopt::RcvBuf, &2048).expect("a socket");
            one.send(format!(
                "GET /bytes/16777216 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
            ));
            one.socket().set_nonblocking(true).expect("a socket");
            attackers.push(one);
        }
        let mut grown = 0;
        eventually("all to be cut off", || {
            for one in &mut attackers {
                // Below TLS: whoever reads so little understands nothing of it.
                let _ = one.socket().read(&mut vec![0; takes]);
            }
            grown = grown.max(private_bytes(&site.claviger).saturating_sub(before));
            let cut = site
                .claviger
                .audit()
                .iter()
                .filter(|record| record["reason"] == "caller_write_timeout")
                .count();
            (cut == READERS).then_some(())
        });
        assert!(
            grown < READERS as u64 * READER_BYTES_MAX + STEPS_BYTES,
            "{grown} bytes more for {READERS} who do not read"
        );
        judge.has_noticed_nothing();
    }
}

/// Connections that never say anything, and those whose ClientHello comes byte by byte.
#[test]
fn slow_handshakes() {
    let site = site(LIMITS, "");
    let judge = Judge::start(&site.world, &site.claviger);
    let mut attackers: Vec<TcpStream> = (0..MANY)
        .map(|_| TcpStream::connect(site.claviger.address()).expect("it listens"))
        .collect();
    for (number, one) in attackers.iter_mut().enumerate() {
        one.set_nonblocking(true).expect("a socket");
        if number % 2 == 0 {
            // A record of 512 bytes is announced.
            one.write_all(&[22, 3, 1, 2, 0]).expect("it fits");
        }
    }
    eventually("all to be cut off", || {
        attackers.retain_mut(|one| {
            let _ = one.write(&[1]);
            matches!(one.read(&mut [0; 64]), Err(err) if err.kind() == std::io::ErrorKind::WouldBlock)
        });
        attackers.is_empty().then_some(())
    });
    eventually("all to be counted", || {
        let status = site.claviger.status();
        let counted = status["handshakes_failed"].as_u64()? >= MANY as u64;
        let late = status["handshakes_timed_out"].as_u64()? >= MANY as u64 / 2;
        (counted && late).then_some(())
    });
    judge.has_noticed_nothing();
}

#[test]
fn handshakes_that_are_given_up_and_garbage() {
    let site = site("", "");
    let judge = Judge::start(&site.world, &site.claviger);
    let before = descriptors(&site.claviger).len();
    let hello = super::oddities::client_hello(&site);
    for number in 0..MANY {
        let mut one = TcpStream::connect(site.claviger.address()).expect("it listens");
        one.set_read_timeout(Some(PATIENCE)).expect("a socket");
        if number % 2 == 0 {
            // The server has had all the work of a handshake now.
            one.write_all(&hello).expect("it fits");
            assert!(one.read(&mut [0; 64]).expect("the server's flight") > 0);
        } else {
            one.write_all(&[b'x'; 512]).expect("it fits");
            // An alert, or the end.
            let _ = one.read(&mut [0; 64]);
        }
    }
    eventually("all to be counted", || {
        (count(&site.claviger, "handshakes_failed") >= MANY as u64).then_some(())
    });
    eventually("all descriptors to be closed", || {
        // The judge's, towards us and from us to the API.
        (descriptors(&site.claviger).len() <= before + 8).then_some(())
    });
    judge.has_noticed_nothing();
}

/// A new connection for each request, and what it leaves behind: nothing.
#[test]
fn churn() {
    let site = site("", "");
    let judge = Judge::start(&site.world, &site.claviger);
    site.get("/ok").expect(200);
    let before = descriptors(&site.claviger).len();
    for _ in 0..MANY {
        site.get("/ok").expect(200);
    }
    eventually("all descriptors to be closed", || {
        (descriptors(&site.claviger).len() <= before + 8).then_some(())
    });
    judge.has_noticed_nothing();
}

#[test]
fn heads_that_are_much_too_large() {
    let site = site("", "");
    let judge = Judge::start(&site.world, &site.claviger);
    let before = private_bytes(&site.claviger);
    let long = format!(
        "GET /bomb HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n",
        "x".repeat(256 * 1024)
    );
    let many = format!(
        "GET /bomb HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n",
        "A: b\r\n".repeat(20_000)
    );
    for (head, reason) in [(long, "head_too_large"), (many, "fields_too_many")] {
        for _ in 0..MANY / 8 {
            let mut one = site.connect();
            // It may stop listening in the middle.
            let _ = one.try_send(&head);
            one.answer().expect_own(431, reason);
        }
    }
    let grown = private_bytes(&site.claviger).saturating_sub(before);
    assert!(grown < STEPS_BYTES, "{grown} bytes more");
    judge.has_noticed_nothing();
}

/// A thousand that do nothing cost nothing.
#[test]
fn those_that_do_nothing_cost_nothing() {
    raise_descriptors();
    let site = site("", "");
    let mut attackers = open(&site, 1000);
    for (number, one) in attackers.iter_mut().enumerate() {
        match number % 3 {
            0 => {}
            1 => one.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n")),
            _ => one.send(format!(
                "POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 16\r\n\r\n"
            )),
        }
    }
    site.claviger.wait_count("connections_open", 1000);
    assert_calm(&site.claviger, IDLE_SHARE_MAX);
}

/// One connection that never pauses does not keep the core to itself: what is answered without asking
/// anybody waits for nothing, so it has to let others run by itself.
#[test]
fn a_caller_that_never_pauses() {
    for driver in ["io_uring", "epoll"] {
        let site = site(&format!("driver = {driver:?}\n"), "");
        let mut one = site.connect();
        let judge = Judge::start(&site.world, &site.claviger);
        let refused = format!("TRACE / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").repeat(2000);
        for _ in 0..5 {
            one.send(&refused);
            for _ in 0..2000 {
                assert_eq!(one.answer().status, 405);
            }
        }
        judge.has_noticed_nothing();
    }
}
