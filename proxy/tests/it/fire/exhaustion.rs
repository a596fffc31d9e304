//! A machine that runs out: of descriptors, for accepting and for connecting, and of local ports.
//! Each is said once a second at most, with its cure, and counted; what is under way goes on; and it
//! is over when there is room again. (A full disk: `audit.rs`. Refused io_uring: `driver.rs`.)

use std::process::Command;
use std::time::Instant;

use super::{assert_calm, config, count, descriptors, open, patient, site};
use crate::harness::namespace::Namespace;
use crate::harness::process::{self, Process};
use crate::harness::world::HOST;
use crate::harness::{Claviger, Mock, World, eventually};

/// What a core may use of its CPU while it has no descriptor for those who wait, in a build without
/// optimisation: an attempt every 50 ms.
const EXHAUSTED_SHARE_MAX: f64 = 0.10;

/// Sets a process's limit so that it may open `spare` further descriptors: the limit is of their
/// numbers, and what is opened takes the lowest one that is free.
#[track_caller]
fn leave(claviger: &Claviger, spare: usize) {
    // The control plane opens a file now and then. What is open in every look stays.
    let mut open = descriptors(claviger);
    for _ in 0..20 {
        let now = descriptors(claviger);
        open.retain(|number| now.contains(number));
    }
    let limit = (0..)
        .filter(|number| !open.contains(number))
        .nth(spare)
        .expect("there are more numbers than that");
    limit_files(claviger, &limit.to_string());
}

#[track_caller]
fn limit_files(claviger: &Claviger, limit: &str) {
    let done = Command::new("prlimit")
        .arg(format!("--pid={}", claviger.pid()))
        // The soft limit alone: raising the other one again takes privileges.
        .arg(format!("--nofile={limit}:"))
        .status()
        .expect("`prlimit` (Debian: util-linux) can be started");
    assert!(done.success());
}

/// Lines of the log that say this, and the time that they were said in.
fn said(claviger: &Claviger, what: &str) -> usize {
    claviger.log().text().matches(what).count()
}

#[test]
fn no_descriptor_for_another_caller() {
    for driver in ["io_uring", "epoll"] {
        let site = site(
            &format!("driver = {driver:?}\n"),
            "idle_min = 0\nidle_max = 0\n",
        );
        site.get("/ok").expect(200);
        // Ten requests are under way, each with two descriptors.
        let mut busy = open(&site, 10);
        for one in &mut busy {
            one.send(format!("GET /delay/4000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        }
        site.claviger.wait_count("exchanges_open", 10);
        leave(&site.claviger, 6);
        // Whoever is idle makes room for whoever comes, so that all are served.
        let begun = Instant::now();
        let mut idle = Vec::new();
        for _ in 0..20 {
            let mut client = site.connect();
            client.get(HOST, "/ok").expect(200);
            idle.push(client);
        }
        assert!(count(&site.claviger, "connections_evicted") >= 10);
        assert!(count(&site.claviger, "accepts_failed") > 0);
        let line = site.claviger.log().wait_event(0, "accept failed");
        assert!(
            line["message"]
                .as_str()
                .is_some_and(|said| said.contains("LimitNOFILE=")),
            "{line}"
        );
        let (lines, seconds) = (said(&site.claviger, "accept failed"), begun.elapsed());
        assert!(
            lines as f64 <= seconds.as_secs_f64() + 2.0,
            "{lines} lines in {seconds:?}"
        );
        // What was under way has not noticed.
        for mut one in busy {
            one.socket().set_nonblocking(false).expect("a socket");
            one.answer().expect(200);
        }
    }
}

/// Nobody can be closed: whoever comes waits, and is served when there is room again.
#[test]
fn no_descriptor_and_nobody_to_close() {
    for driver in ["io_uring", "epoll"] {
        let site = site(
            &format!("driver = {driver:?}\n"),
            "idle_min = 0\nidle_max = 0\n",
        );
        let mut busy = open(&site, 4);
        for one in &mut busy {
            one.send(format!("GET /delay/4000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        }
        site.claviger.wait_count("exchanges_open", 4);
        leave(&site.claviger, 0);
        // They are connected, as far as the kernel is concerned.
        let waiting: Vec<_> = (0..5)
            .map(|_| std::net::TcpStream::connect(site.claviger.address()).expect("a queue"))
            .collect();
        eventually("accepting to fail", || {
            (count(&site.claviger, "accepts_failed") > 2).then_some(())
        });
        assert_calm(&site.claviger, EXHAUSTED_SHARE_MAX);
        assert!(said(&site.claviger, "accept failed") < 10);
        drop(waiting);
        // What is under way ends well, and frees what the next ones need.
        for mut one in busy {
            one.socket().set_nonblocking(false).expect("a socket");
            one.answer().expect(200);
        }
        site.get("/ok").expect(200);
    }
}

/// The last descriptor is the caller's, and there is none for the upstream: the request is refused, and
/// nothing is held against the upstream.
#[test]
fn no_descriptor_for_the_upstream() {
    for driver in ["io_uring", "epoll"] {
        let site = site(
            &format!("driver = {driver:?}\n"),
            "idle_min = 0\nidle_max = 0\n",
        );
        let mut caller = site.connect();
        site.claviger.wait_count("connections_open", 1);
        leave(&site.claviger, 0);
        for _ in 0..10 {
            let answer = caller.get(HOST, "/none-left");
            answer.expect_own(503, "connections_exhausted");
            assert!(answer.field("retry-after").is_some());
        }
        let status = site.claviger.status();
        assert!(status["upstream_connects_exhausted"].as_u64() >= Some(10));
        assert_eq!(status["upstream_connect_failures"], 0);
        let line = site.claviger.log().wait_event(0, "cannot connect");
        assert_eq!(line["reason"], "connections_exhausted");
        assert!(
            line["message"]
                .as_str()
                .is_some_and(|said| said.contains("LimitNOFILE=")),
            "{line}"
        );
        assert_eq!(
            site.claviger.audit_of("/none-left")["refused_by"],
            "claviger"
        );
        // Ten failures in a row, and the upstream does not count as down.
        leave(&site.claviger, 10);
        caller.get(HOST, "/ok").expect(200);
    }
}

/// A caller that is idle gives its descriptor to a request under way.
#[test]
fn an_idle_caller_makes_room_for_the_upstream() {
    for driver in ["io_uring", "epoll"] {
        let site = site(
            &format!("driver = {driver:?}\n"),
            "idle_min = 0\nidle_max = 0\n",
        );
        let mut idle = site.connect();
        idle.get(HOST, "/ok").expect(200);
        let mut caller = site.connect();
        site.claviger.wait_count("connections_open", 2);
        leave(&site.claviger, 0);
        caller.get(HOST, "/ok").expect(200);
        idle.expect_end();
        assert!(count(&site.claviger, "connections_evicted") >= 1);
    }
}

/// A thousand connections at the limit, and the start says which limit it is.
#[test]
fn few_descriptors_are_told_at_the_start() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--key", &key, "--auth", "bearer"]);
    let mut command = Command::new("prlimit");
    command
        .args(["--nofile=100:200", "--"])
        .arg(process::binary("claviger"))
        .current_dir(world.path("."));
    let claviger = world.start_with(
        &config(&world, &mock.upstream("mock", HOST), &key_file, "", ""),
        command,
        &[],
    );
    let line = claviger
        .log()
        .wait_event(0, "the limit of open files is below");
    // The soft limit was raised to the hard one.
    assert_eq!(line["granted"], 200);
    let held: Vec<_> = (0..300)
        .map(|_| {
            let mut client = claviger.connect(&world);
            client.get(HOST, "/ok").expect(200);
            patient(client)
        })
        .collect();
    assert!(count(&claviger, "connections_evicted") >= 100);
    drop(held);
    claviger.get(&world, "/ok").expect(200);
}

/// No local port is left for a new connection to the API: requests that find an idle connection are
/// served, others are refused, and the log says what to widen.
#[test]
fn no_local_port_for_the_upstream() {
    let namespace = Namespace::new("echo 50000 50003 >/proc/sys/net/ipv4/ip_local_port_range");
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mut command = namespace.command(process::binary("mock-upstream"));
    command.args(["--listen", "127.0.0.1:2443"]);
    let mock = Mock::start_with(
        &world,
        command,
        &[HOST],
        &["--key", &key, "--auth", "bearer"],
    );
    let text = config(
        &world,
        &mock.upstream("mock", HOST),
        &key_file,
        "",
        "idle_min = 0\n",
    )
    // Its own port may not be one of the four.
    .replace("127.0.0.1:0", "127.0.0.1:1443");
    let claviger = world.start_with(&text, namespace.command(process::binary("claviger")), &[]);
    let ask = |path: &str, source: &str| {
        let mut command = namespace.command("/usr/bin/curl");
        command
            .args([
                "--silent",
                "--write-out",
                "%{http_code}",
                "--output",
                "/dev/null",
            ])
            .args(["--max-time", "30", "--interface", source, "--cacert"])
            .arg(world.path("root.pem"))
            .args(["--resolve", &format!("{HOST}:1443:127.0.0.1")])
            .arg(format!("https://{HOST}:1443{path}"));
        Process::start("curl", command)
    };
    // Each caller has an address, and so ports, of its own.
    let busy: Vec<_> = (0..4)
        .map(|number| ask("/delay/5000", &format!("127.0.1.{number}")))
        .collect();
    claviger.wait_count("exchanges_open", 4);
    for _ in 0..6 {
        let refused = ask("/none-left", "127.0.2.1").finish();
        assert_eq!(refused.out_text(), "503");
    }
    assert_eq!(
        claviger.audit_of("/none-left")["reason"],
        "connections_exhausted"
    );
    let line = claviger.log().wait_event(0, "cannot connect");
    assert!(
        line["message"]
            .as_str()
            .is_some_and(|said| said.contains("net.ipv4.ip_local_port_range")),
        "{line}"
    );
    for one in busy {
        assert_eq!(one.finish().out_text(), "200");
    }
    // Four connections are idle now, and the upstream does not count as down.
    let served = ask("/ok", "127.0.2.1").finish();
    assert_eq!(served.out_text(), "200");
    assert!(said(&claviger, "cannot connect") <= 6);
}
