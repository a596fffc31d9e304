//! Several cores serve as one: every listener, every session ticket, every reload
//! and the end belong to all of them.

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
