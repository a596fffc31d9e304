//! An edge whose link to the hub is cut: packets vanish, and nobody says so.

use std::process::Command;

use serde_json::Value;

use super::{Hub, edge_route};
use crate::harness::namespace::Namespace;
use crate::harness::process::{self, Process};
use crate::harness::world::HOST;
use crate::harness::{World, cannot_run};

/// The hub's address. The edge and the API are on 127.0.0.1.
const HUB: &str = "10.77.0.1";

/// How often the link is cut, each time for another while.
const ROUNDS: usize = 4;

/// The first request after the cut goes out over a kept connection, which counts as dead after 3 s of
/// silence; then a new one is tried for 2 s, unless it was noticed meanwhile that the hub is lost. The
/// rest is for two busy cores.
const FIRST_REFUSAL_MAX_S: f64 = 3.0 + 2.0 + 1.0;

/// What is promised.
const RECOVERY_MAX_S: f64 = 1.0;

#[test]
fn an_edge_that_is_cut_off_says_so_and_is_back_within_a_second() {
    if Command::new("nft").arg("--version").output().is_err() {
        return cannot_run("nft is not installed (Debian: nftables)");
    }
    let namespace = Namespace::new(&format!("ip address add {HUB}/32 dev lo"));
    let inside = |program: &str| namespace.command(process::binary(program));
    let hub = Hub::start_in(World::new(), &format!("{HUB}:0"), &inside, |_| {
        String::new()
    });
    let world = World::new();
    world.secret(&hub.key);
    let table = hub.upstream_showing("hub", &world.path(""));
    let config = format!("{}{table}{}", world.base(), edge_route("\"hub\""));
    let edge = world.start_with(&config, world.clean(inside("claviger")), &[]);
    let mut command = namespace.command("python3");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/edge/cut.py"))
        .arg(HOST)
        .arg(edge.address().ip().to_string())
        .arg(edge.address().port().to_string())
        .arg(world.path("root.pem"))
        .arg(HUB)
        .arg(ROUNDS.to_string());
    let finished = Process::run("cut.py", command).expect_code(0);
    let rounds: Vec<Value> = serde_json::from_slice(&finished.out).expect("it prints JSON");
    assert_eq!(rounds.len(), ROUNDS);
    println!("{}", finished.out_text());
    for round in &rounds {
        let seconds = |value: &Value| value.as_f64().expect("seconds");
        assert_eq!(round["first"][0], 503, "{round}");
        assert_eq!(round["first"][1], "hub_unreachable", "{round}");
        assert!(seconds(&round["first"][2]) < FIRST_REFUSAL_MAX_S, "{round}");
        assert_eq!(round["later_statuses"], serde_json::json!([503]), "{round}");
        assert_eq!(
            round["later_reasons"],
            serde_json::json!(["hub_unreachable"])
        );
        assert!(seconds(&round["later_worst_s"]) < 0.5, "{round}");
        assert!(seconds(&round["recovered_s"]) < RECOVERY_MAX_S, "{round}");
    }
}
