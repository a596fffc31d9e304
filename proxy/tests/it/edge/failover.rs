//! Several hubs: who serves when one is gone, what is sent again, and what never is.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::{DOOR, Edge, Hub, edge_route};
use crate::harness::process::{self, Process};
use crate::harness::world::HOST;
use crate::harness::{Scripted, World, eventually};

/// An edge with two hubs, the first of which is preferred.
fn between(first: &Hub, second: &Hub) -> Edge {
    let world = World::new();
    for hub in [first, second] {
        world.secret(&hub.key);
    }
    let directory = world.path("");
    let upstreams = first.upstream_showing("first", &directory)
        + &second.upstream_showing("second", &directory);
    Edge::with(world, &upstreams, "[\"first\", \"second\"]")
}

/// Load on the edge that ends by itself, or when it is told to.
fn load(edge: &Edge) -> Process {
    let mut command = Command::new(process::binary("loadgen"));
    command
        .args(["--json", "--quiet", "--rps", "100", "--connections", "4"])
        .args(["--duration", "120s", "--warmup", "0ms", "--timeout", "20s"])
        .args(["--expect-status", "200", "--lag-bound", "60s"])
        .arg("--cacert")
        .arg(edge.world.path("root.pem"))
        .args(["--connect", &edge.claviger.address().to_string()])
        .arg(format!("https://{HOST}/ok"));
    let process = Process::start("loadgen", command);
    process.err.wait("loadgen to be ready", |line| {
        line.starts_with("ready:").then_some(())
    });
    process
}

#[test]
fn a_hub_that_is_killed_under_load_fails_nothing_that_can_be_sent_again() {
    let (first, second) = (Hub::start(|_| String::new()), Hub::start(|_| String::new()));
    let edge = between(&first, &second);
    let load = load(&edge);
    let served = |hub: &Hub| hub.mock.received().len();
    eventually("the first hub serves", || {
        (served(&first) > 50).then_some(())
    });
    assert_eq!(served(&second), 0, "the second one only stands by");
    let first = first.killed();
    eventually("the second hub serves", || {
        (served(&second) > 100).then_some(())
    });
    let first = first.again();
    let before = served(&second);
    // Preferred again, as soon as it answers.
    let at_first = served(&first);
    eventually("the first hub serves again", || {
        (served(&first) > at_first + 100).then_some(())
    });
    load.signal(libc::SIGTERM);
    let finished = load.finish();
    let report: Value = serde_json::from_slice(&finished.out).expect("a report");
    let target = &report["targets"][0];
    let failed: Vec<&Value> = edge_failures(target);
    assert!(failed.is_empty(), "{failed:?}");
    assert!(before > 100);
    // Both trails know of each exchange, whoever served it.
    let by = |name: &str| {
        let trail = edge.claviger.audit();
        trail.iter().filter(|one| one["upstream"] == name).count()
    };
    assert!(by("first") > 100 && by("second") > 100);
    let lost = edge.claviger.log().wait_event(0, "the hub is out of reach");
    assert_eq!(lost["upstream"], "first");
    let found = edge
        .claviger
        .log()
        .wait_event(0, "the hub is in reach again");
    assert_eq!(found["upstream"], "first");
}

/// Answers and ends that were not what they should be.
fn edge_failures(target: &Value) -> Vec<&Value> {
    let statuses = target["statuses"].as_object();
    let wrong = statuses.into_iter().flatten();
    let wrong = wrong.filter(|(status, _)| *status != "200");
    let errors = target["errors"].as_object();
    let errors = errors.into_iter().flatten();
    let errors = errors.filter(|(name, count)| **count != 0 && *name != "unsent");
    wrong.chain(errors).map(|(_, count)| count).collect()
}

#[test]
fn what_may_have_arrived_is_not_sent_again() {
    let second = Hub::start(|_| String::new());
    let world = World::new();
    world.secret(&second.key);
    // Takes a request, and says nothing of it; but answers the edge's question.
    let first = Scripted::start(&world, DOOR, |peer| {
        while let Some(head) = peer.head() {
            if head.starts_with("OPTIONS *") {
                peer.send("HTTP/1.1 204 No Content\r\n\r\n");
                continue;
            }
            peer.tell(head.lines().next().unwrap_or_default());
            return;
        }
    });
    let directory = world.path("");
    let second_table = second.upstream_showing("second", &directory);
    let shown = directory.join("second.pem");
    let upstreams = format!(
        "{}hub = true\nclient_certificate = {shown:?}\nclient_key = {shown:?}\n{second_table}",
        first.upstream("first", DOOR)
    );
    let edge = Edge::with(world, &upstreams, "[\"first\", \"second\"]");
    let mut client = edge.connect();
    let ask = |client: &mut crate::harness::Client, method: &str, path: &str| {
        client.call(format!(
            "{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nhi"
        ))
    };
    ask(&mut client, "POST", "/echo/once").expect_own(502, "upstream_closed");
    assert_eq!(first.told(), "POST /echo/once HTTP/1.1");
    ask(&mut client, "PUT", "/echo/again").expect(200);
    assert_eq!(edge.claviger.audit_of("/echo/again")["upstream"], "second");
    let reached: Vec<Value> = second.mock.received();
    assert_eq!(reached.len(), 1, "{reached:?}");
    assert_eq!(reached[0]["target"], "/echo/again");
}

/// A hub that is so busy that it refuses the edge's question serves most requests all the same: to take it
/// for lost would refuse all of them.
#[test]
fn a_busy_hub_is_no_lost_one() {
    let world = World::new();
    let (_, token) = world.key_file("token");
    let hub = Scripted::start(&world, DOOR, |peer| {
        while let Some(head) = peer.head() {
            if head.starts_with("OPTIONS *") {
                peer.tell("asked");
                peer.send("HTTP/1.1 503 Service Unavailable\r\nClaviger-Answer: claviger; reason=core_overloaded\r\nContent-Length: 0\r\n\r\n");
            } else {
                peer.answer("served");
            }
        }
    });
    let table = format!(
        "{}hub = true\ntoken = \"file://{}\"\n",
        hub.upstream("hub", DOOR),
        token.display()
    );
    let edge = Edge::with(world, &table, "\"hub\"");
    for _ in 0..2 {
        assert_eq!(hub.told(), "asked");
    }
    // It was asked a second time, so what it said the first time is known.
    assert_eq!(edge.get("/echo/busy").expect(200).text(), "served");
}

/// What stands in front of a hub that is gone answers too, but not in Claviger's name.
#[test]
fn a_balancer_without_a_hub_behind_it_is_no_hub() {
    let world = World::new();
    let (_, token) = world.key_file("token");
    let balancer = Scripted::start(&world, DOOR, |peer| {
        while let Some(head) = peer.head() {
            peer.tell(head.lines().next().unwrap_or_default());
            peer.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let table = format!(
        "{}hub = true\ntoken = \"file://{}\"\n",
        balancer.upstream("hub", DOOR),
        token.display()
    );
    let edge = Edge::with(world, &table, "\"hub\"");
    edge.claviger.log().wait_event(0, "the hub is out of reach");
    edge.get("/echo/lost").expect_own(503, "hub_unreachable");
    let told = balancer.told_so_far();
    assert!(told.iter().all(|line| line.starts_with("OPTIONS *")));
}

#[test]
fn connections_to_a_hub_are_there_before_they_are_needed() {
    let hub = Hub::start(|_| String::new());
    let edge = Edge::start(&hub);
    // `idle_min` of a hub, without a single request.
    edge.claviger.wait_count("upstream_idle", 2);
    let opened = edge.claviger.status()["upstream_connections"].clone();
    edge.get("/echo/first").expect(200);
    assert!(edge.claviger.status()["upstream_reuses"].as_u64() >= Some(1));
    assert!(opened.as_u64() >= Some(2));
    // The questions leave no record.
    let strange = hub
        .claviger
        .audit()
        .into_iter()
        .find(|one| one["path"] != "/echo/first");
    assert_eq!(strange, None);
    // The hub's end of them is made good.
    let before = edge.claviger.status()["upstream_connections"].clone();
    let hub = hub.killed().again();
    eventually("new connections", || {
        let status = edge.claviger.status();
        let opened = status["upstream_connections"].as_u64() > before.as_u64();
        (opened && status["upstream_idle"] == 2).then_some(())
    });
    edge.get("/echo/second").expect(200);
    assert_eq!(hub.mock.received().len(), 2);
}

#[test]
fn an_edge_is_restarted_while_it_serves() {
    let hub = Hub::start(|_| String::new());
    let edge = Edge::start(&hub);
    let ended = Arc::new(AtomicBool::new(false));
    let address = edge.claviger.address();
    let asking = {
        let ended = Arc::clone(&ended);
        let config = Arc::new(edge.world.client_config());
        let transcript = edge.world.transcript();
        std::thread::spawn(move || {
            // A service tries again when its connection is refused or ends; each answer is good.
            let mut answers = 0;
            while !ended.load(Ordering::Acquire) {
                let client = crate::harness::Client::tls(
                    address,
                    HOST,
                    Arc::clone(&config),
                    Arc::clone(&transcript),
                );
                let Ok(mut client) = client else { continue };
                let sent = client.try_send(format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
                if sent.is_ok() && client.fill().is_ok_and(|read| read > 0) {
                    client.answer().expect(200);
                    answers += 1;
                }
            }
            answers
        })
    };
    eventually("requests arrive", || {
        (hub.mock.received().len() > 20).then_some(())
    });
    let Edge { claviger, world } = edge;
    let config = std::fs::read_to_string(claviger.config()).expect("it serves by this");
    claviger.terminate().expect_code(0);
    let before = hub.mock.received().len();
    let config = config.replace("127.0.0.1:0\"", &format!("{address}\""));
    let _claviger = world.start(&config);
    eventually("requests arrive again", || {
        (hub.mock.received().len() > before + 20).then_some(())
    });
    ended.store(true, Ordering::Release);
    assert!(asking.join().expect("each answer was good") > 40);
}

#[test]
fn a_request_does_not_go_round_between_an_edge_and_its_hub() {
    // The hub's route leads back to the edge, as a resolver with the services' own zone would have it.
    let world = World::new();
    let edge_port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port");
    let root = world.path("root.pem");
    let hub = Hub::start(|_| {
        format!(
            "[upstream.round]\nhost = \"round.example.com\"\naddresses = [\"{edge_port}\"]\nca_file = {root:?}\n\
             [[route]]\nname = \"round\"\nhost = \"round.example.com\"\nupstream = \"round\"\ncredential = \"none\"\ncallers = [\"gcp\"]\n"
        )
    });
    world.secret(&hub.key);
    let table = hub.upstream_showing("hub", &world.path(""));
    let base = world.base().replace("127.0.0.1:0", &edge_port.to_string());
    let route = edge_route("\"hub\"").replace(
        &format!("{HOST:?}"),
        &format!("[{HOST:?}, \"round.example.com\"]"),
    );
    let claviger = world.start(&format!("{base}{table}{route}"));
    let mut client = claviger.connect_as(&world, "round.example.com");
    let answer = client.get("round.example.com", "/round");
    assert_eq!(answer.status, 508, "{}", answer.text());
    assert_eq!(answer.json()["reason"], "loop_detected");
    // Said by the edge, when it came round; passed on by the hub.
    let record = hub.claviger.audit_of("/round");
    assert_eq!(record["status"], 508);
    claviger.wait_audit("the loop", |record| {
        (record["reason"] == "loop_detected").then_some(())
    });
}
