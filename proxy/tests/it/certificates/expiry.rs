//! Until when each certificate serves: in `claviger status`, in its metrics, in the status line,
//! in the log and in `check`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use serde_json::Value;

use crate::harness::World;
use crate::harness::world::{HOST, Site, bearer_route};

const DAY: Duration = Duration::from_secs(86_400);

/// A self-signed certificate that ends in `days`, and its key.
fn ends_in(world: &World, name: &str, host: Option<&str>, days: i32) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().expect("a P-256 key");
    let hosts = host.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let mut params = CertificateParams::new(hosts).expect("DNS names");
    if host.is_none() {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - 300 * DAY).into();
    let away = days.unsigned_abs() * DAY;
    params.not_after = if days < 0 { now - away } else { now + away }.into();
    let certificate = params.self_signed(&key).expect("a certificate");
    (
        world.write(&format!("{name}.pem"), certificate.pem()),
        world.write(&format!("{name}.key"), key.serialize_pem()),
    )
}

#[test]
fn every_certificate_is_told_with_its_end() {
    const OTHER: &str = "other.example.com";
    let site = Site::build(&[], |world, mock, key_file| {
        let (chain, key) = ends_in(world, "soon", Some(OTHER), 10);
        let (client_ca, _) = ends_in(world, "Callers", None, 200);
        let host = format!(
            "[host.\"{OTHER}\"]\ncertificate = {chain:?}\nprivate_key = {key:?}\nclient_ca = {client_ca:?}\nclient_certificate = \"request\"\n"
        );
        let route = format!(
            "[[route]]\nname = \"other\"\nhost = \"{OTHER}\"\nupstream = \"mock\"\ncredential = \"none\"\ncallers = \"open\"\n"
        );
        let (chain, key) = ends_in(world, "edge", Some("edge.example.com"), 100);
        let shown = format!("client_certificate = {chain:?}\nclient_key = {key:?}\n");
        format!(
            "{}{}{shown}{host}{}{route}",
            world.base(),
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    let path = site.claviger.config().display().to_string();
    let ask = |format: &[&str], code: i32| {
        let arguments = [&["status", "--config", &path], format].concat();
        site.world.cli(&arguments).expect_code(code).out_text()
    };
    let status: Value = serde_json::from_str(&ask(&["--json"], 0)).expect("JSON");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let mut known = BTreeMap::new();
    for line in status["certificates"].as_array().expect("a list") {
        let left = line["not_after"].as_u64().expect("a time") - now.as_secs();
        let kind = line["kind"].as_str().expect("a kind");
        known.insert(
            kind.to_owned(),
            (
                left / 86_400,
                line["state"].as_str().expect("a state").to_owned(),
                line["renews_itself"].as_bool().expect("yes or no"),
                line["name"].as_str().expect("a name").to_owned(),
            ),
        );
    }
    let check =
        |kind: &str, days: std::ops::RangeInclusive<u64>, state: &str, renews, name: &str| {
            let (left, is, by_itself, called) = &known[kind];
            assert!(days.contains(left), "{kind}: {left} days left");
            assert_eq!((is.as_str(), *by_itself), (state, renews), "{kind}");
            assert!(called.contains(name), "{kind}: {called}");
        };
    check("ca_root", 3_650..=3_652, "good", false, "Claviger Root CA");
    check(
        "ca_intermediate",
        728..=730,
        "good",
        true,
        "Claviger Intermediate CA",
    );
    check("leaf", 29..=30, "good", true, HOST);
    check("file", 9..=10, "expiring", false, "soon.pem");
    check("client_ca", 199..=200, "good", false, "Callers");
    check("client", 99..=100, "good", false, "edge.pem");
    assert_eq!(known.len(), 6);
    // The next to end comes first.
    assert_eq!(status["certificates"][0]["kind"], "file");
    assert_eq!(status["pid"], site.claviger.pid());
    let page = ask(&[], 0);
    assert!(
        page.contains("expiring  file ") && page.contains("(renewed by itself)"),
        "{page}"
    );
    let metrics = ask(&["--metrics"], 0);
    let leaf = format!("claviger_certificate_not_after_seconds{{kind=\"leaf\",name=\"{HOST}\"}} ");
    for line in [
        leaf.as_str(),
        "claviger_certificates_expiring 1",
        "claviger_certificates 6",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    let line = site.claviger.status();
    assert_eq!(line["certificates_expiring"], 1);
    assert_eq!(line["certificates_expired"], 0);
    let left = line["certificate_expires_s"].as_u64().expect("a number");
    assert!((9 * 86_400..=10 * 86_400).contains(&left), "{left}");
    let event = site
        .claviger
        .log()
        .wait_event(0, "a certificate expires soon");
    let said = event["message"].as_str().expect("text");
    assert!(
        said.contains("soon.pem") && said.contains("put a newer one"),
        "{said}"
    );
    let said = site.world.cli(&["check", "--config", &path]).err_text();
    assert!(
        said.contains("soon.pem") && said.contains("expires on"),
        "{said}"
    );
    // One that is over: the status ends with 1, and the log is louder. The file is read by itself.
    let mark = site.claviger.log().mark();
    ends_in(&site.world, "soon", Some(OTHER), -1);
    let event = site
        .claviger
        .log()
        .wait_event(mark, "a certificate has expired");
    assert_eq!(event["level"], "ERROR");
    assert!(ask(&[], 1).contains("expired   file "));
    let config = std::fs::read_to_string(&path).expect("readable");
    site.claviger.terminate().expect_code(0);
    // Nobody serves any more, and that is said.
    let config = site
        .world
        .write("claviger.toml", config)
        .display()
        .to_string();
    let gone = site
        .world
        .cli(&["status", "--config", &config])
        .expect_code(1);
    assert!(
        gone.err_text().contains("no process serves"),
        "{}",
        gone.err_text()
    );
}
