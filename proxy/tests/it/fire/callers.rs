//! Callers that take their time, or none at all.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::{
    IDLE_SHARE_MAX, Judge, LIMIT, LIMITS, assert_calm, config, count, descriptors, open, outlast,
    private_bytes, raise_descriptors, site,
};
use crate::harness::world::{HOST, Site};
use crate::harness::{PATIENCE, eventually};

/// Attackers that hold a connection each.
const MANY: usize = 200;

/// Attackers that hold an answer each, and with it an upstream's connection.
const READERS: usize = 40;

/// Private memory that each of [`READERS`] may cost: what waits to be sent to it
/// (`SEND_PENDING_BYTES` and what came along), what was received meanwhile, and the session.
const READER_BYTES_MAX: u64 = 512 * 1024;

/// Private memory that each of [`MANY`] may cost: a desk, and 56 KiB that its next bytes go into, for
/// as many as are lent at once.
const HEAD_BYTES_MAX: u64 = 128 * 1024;

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
    let mut attackers: Vec<(bool, TcpStream)> = (0..MANY)
        .map(|number| {
            let mut one = TcpStream::connect(site.claviger.address()).expect("it listens");
            one.set_nonblocking(true).expect("a socket");
            let is_silent = number % 2 == 0;
            if !is_silent {
                // A record of 16 KiB is announced: far more bytes than will come in time.
                one.write_all(&[22, 3, 1, 0x40, 0]).expect("it fits");
            }
            (is_silent, one)
        })
        .collect();
    eventually("all to be cut off", || {
        attackers.retain_mut(|(is_silent, one)| {
            let _ = *is_silent || one.write(&[1]).is_ok();
            matches!(one.read(&mut [0; 64]), Err(err) if err.kind() == std::io::ErrorKind::WouldBlock)
        });
        attackers.is_empty().then_some(())
    });
    eventually("all to be counted", || {
        let late = count(&site.claviger, "handshakes_timed_out");
        (late >= MANY as u64).then_some(())
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
        for _ in 0..MANY / 2 {
            let mut one = site.connect();
            // It may stop listening in the middle.
            let _ = one.try_send(&head);
            one.answer().expect_own(431, reason);
        }
    }
    // Kept, all of them would be 38 MB.
    let grown = private_bytes(&site.claviger).saturating_sub(before);
    assert!(grown < 2 * STEPS_BYTES, "{grown} bytes more");
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
/// anybody waits for nothing, so it has to let others run by itself. In the clear, where asking is
/// much cheaper than answering.
#[test]
fn a_caller_that_never_pauses() {
    for driver in ["io_uring", "epoll"] {
        let clear = "[[listener]]\nname = \"clear\"\naddress = \"127.0.0.2:0\"\ntls = false\n";
        let site = Site::build(&[], |world, mock, key_file| {
            let table = format!("{clear}{}", mock.upstream("mock", HOST));
            let server = format!("driver = {driver:?}\n");
            config(world, &table, key_file, &server, "")
        });
        let endless = TcpStream::connect(site.claviger.addresses_of("clear")[0]).expect("open");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let refused = format!("TRACE / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").repeat(1000);
                while (&endless).write_all(refused.as_bytes()).is_ok() {}
            });
            let (begun, is_under_way) = std::sync::mpsc::channel();
            let reader = scope.spawn({
                let endless = &endless;
                move || {
                    let mut piece = vec![0; 1 << 20];
                    let (mut endless, mut read) = (endless, 0);
                    while let Ok(1..) = endless.read(&mut piece).inspect(|bytes| read += bytes) {
                        if read > piece.len() {
                            let _ = begun.send(());
                        }
                    }
                }
            });
            is_under_way.recv().expect("it floods");
            let served: Vec<_> = (0..5).map(|_| site.get("/ok").status).collect();
            endless.shutdown(Shutdown::Both).expect("it is open");
            writer.join().expect("it ends with its socket");
            reader.join().expect("it ends with its socket");
            assert_eq!(served, [200; 5], "{driver}");
        });
    }
}
