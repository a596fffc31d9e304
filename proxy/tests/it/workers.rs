//! Several cores serve as one: every listener, every session ticket, every reload
//! and the end belong to all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::HandshakeKind;
use rustls::client::Resumption;

use crate::harness::world::{HOST, Site, bearer_route};

/// Two workers, whatever the machine: they may share a core.
fn two_workers() -> Site {
    Site::build(&[], |world, mock, key_file| {
        let base = world.base();
        let (before, after) = base.split_once("cpus = ").expect("the base pins");
        let (_, after) = after.split_once('\n').expect("a line");
        let base = format!("{before}{after}").replace("workers = 1", "workers = 2");
        format!(
            "{base}{}{}",
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    })
}

#[test]
fn connections_are_spread() {
    let site = two_workers();
    let mut clients: Vec<_> = (0..8).map(|_| site.connect()).collect();
    for round in 0..5 {
        for (number, client) in clients.iter_mut().enumerate() {
            client
                .get(HOST, &format!("/echo/{round}/{number}"))
                .expect(200);
        }
    }
    site.claviger.wait_count("connections_open", 8);
    site.claviger.wait_count("exchanges", 40);
    // Each core calls the API on connections of its own: both have called.
    let connections: std::collections::BTreeSet<_> = site
        .mock
        .received()
        .iter()
        .map(|request| request["peer"].to_string())
        .collect();
    assert!(connections.len() >= 2, "{connections:?}");
    // Both cores' records are on the one trail.
    site.claviger.audit_of("/echo/4/7");
    crate::harness::eventually("40 records", || {
        (site.claviger.audit().len() == 40).then_some(())
    });
}

/// Callers come and go as they like: those that stay may all be on one core, whatever was
/// done when they came.
#[test]
fn a_busy_core_passes_connections_on() {
    let site = two_workers();
    let mut of_core: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for number in 0..16 {
        let mut client = site.connect();
        let path = format!("/echo/first/{number}");
        client.get(HOST, &path).expect(200);
        of_core
            .entry(core_of(&site, &path))
            .or_default()
            .push(client);
    }
    assert_eq!(of_core.len(), 2, "connections are spread");
    let (busy, staying) = of_core.pop_last().expect("two cores");
    drop(of_core);
    let count = staying.len();
    site.claviger.wait_count("connections_open", count as u64);
    let enough = AtomicBool::new(false);
    let mut staying: Vec<_> = std::thread::scope(|scope| {
        let work = |(number, mut client): (usize, crate::harness::Client)| {
            let enough = &enough;
            scope.spawn(move || {
                let mut round = 0;
                while !enough.load(Ordering::Relaxed) {
                    // Whoever moves gets its own answers, wherever it is served.
                    let path = format!("/echo/{number}/{round}");
                    let echo = client.get(HOST, &path).expect(200).json();
                    assert_eq!(echo["target"], path.as_str());
                    let length = 50_000 + number;
                    let bytes = client.get(HOST, &format!("/bytes/{length}"));
                    assert_eq!(bytes.expect(200).body.len(), length);
                    round += 1;
                }
                client
            })
        };
        let working: Vec<_> = staying.into_iter().enumerate().map(work).collect();
        let moved = || site.claviger.status()["connections_moved"].as_u64();
        crate::harness::eventually("connections that move", || {
            moved().filter(|&moved| moved > 0)
        });
        enough.store(true, Ordering::Relaxed);
        let joined = working.into_iter().map(|thread| thread.join());
        joined
            .map(|client| client.expect("its own answers"))
            .collect()
    });
    let mut cores = BTreeMap::new();
    for (number, client) in staying.iter_mut().enumerate() {
        let path = format!("/echo/last/{number}");
        client.get(HOST, &path).expect(200);
        *cores.entry(core_of(&site, &path)).or_insert(0) += 1;
    }
    let here = cores.get(&busy).copied().unwrap_or_default();
    assert!(0 < here && here < count, "{cores:?} of {count} on {busy}");
    // Nobody has connected anew.
    let status = site.claviger.status();
    assert_eq!(status["connections_accepted"], 16);
    assert_eq!(status["handshakes"], 16);
    assert_eq!(status["connections_open"], count);
    // What moved ends as well as what did not.
    let Site { claviger, .. } = site;
    claviger.terminate().expect_code(0);
    for client in &mut staying {
        client.expect_end();
    }
}

/// The core that served the request for `path`: its number stands in the request's.
fn core_of(site: &Site, path: &str) -> String {
    let record = site.claviger.audit_of(path);
    let id = record["request_id"].as_str().expect("text").to_owned();
    id[16..18].to_owned()
}

#[test]
fn a_session_resumes_on_every_core() {
    let site = two_workers();
    let mut config = site.world.client_config();
    config.resumption = Resumption::in_memory_sessions(64);
    let mut kept = Vec::new();
    for number in 0..12 {
        let mut client = site
            .claviger
            .connect_with(HOST, config.clone())
            .expect("a handshake");
        client.get(HOST, "/ok").expect(200);
        if number > 0 {
            assert_eq!(
                client.connection().handshake_kind(),
                Some(HandshakeKind::Resumed),
                "connection {number}"
            );
        }
        // Kept open, so that the next one goes to the other core.
        kept.push(client);
    }
}

#[test]
fn a_reload_reaches_every_core() {
    let site = two_workers();
    let mut clients: Vec<_> = (0..8).map(|_| site.connect()).collect();
    for client in &mut clients {
        client.get(HOST, "/ok").expect(200);
    }
    let config = std::fs::read_to_string(site.claviger.config()).expect("readable");
    site.claviger.reload(&config.replace(
        "callers = \"open\"\n",
        "callers = \"open\"\nmethods = [\"POST\"]\n",
    ));
    for client in &mut clients {
        crate::harness::eventually("the new rules on this connection", || {
            (client.get(HOST, "/ok").status == 405).then_some(())
        });
    }
}

#[test]
fn the_end_reaches_every_core() {
    let site = two_workers();
    let mut clients: Vec<_> = (0..8).map(|_| site.connect()).collect();
    for client in &mut clients {
        client.get(HOST, "/ok").expect(200);
    }
    let Site { claviger, .. } = site;
    claviger.terminate().expect_code(0);
    for client in &mut clients {
        client.expect_end();
    }
}
