//! `claviger init`: what it writes is accepted by `check` as soon as the files are there, and serves.

use std::path::Path;

use super::{EDGE, Hub};
use crate::harness::world::HOST;
use crate::harness::{World, eventually, pki};

/// Runs `claviger init` with this world's places, and writes its output to `name`.
fn init(world: &World, name: &str, arguments: &[&str]) -> String {
    let directory = world.path("").display().to_string();
    let state = world.path("state").display().to_string();
    let audit = world.path("audit.ndjson").display().to_string();
    let mut all = vec!["init"];
    all.extend(arguments);
    all.extend(["--dir", directory.trim_end_matches('/')]);
    all.extend(["--state-dir", &state, "--audit", &audit]);
    let text = world.cli(&all).expect_code(0).out_text();
    world.write(name, &text);
    text
}

/// `claviger check` has nothing to say but that it is good.
fn check(world: &World, name: &str) {
    let path = world.path(name).display().to_string();
    let checked = world.cli(&["check", "--config", &path]);
    let said = checked.err_text();
    checked.expect_code(0);
    // An expiry or a short key would be this test's own fault.
    assert!(!said.contains("error"), "{said}");
}

/// The internal CA where the configuration has it.
fn ca(world: &World, domains: &[&str]) {
    std::fs::create_dir_all(world.path("state")).expect("writable");
    let directory = world.path("state/ca").display().to_string();
    let mut arguments = vec!["ca", "init", "--dir", &directory];
    for domain in domains {
        arguments.extend(["--permit", domain]);
    }
    world.cli(&arguments).expect_code(0);
}

/// Providers, as the documentation lists them.
fn presets() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("controlplane/src/config/presets");
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .expect("it is there")
        .filter_map(|entry| {
            let name = entry.expect("readable").file_name().into_string().ok()?;
            let name = name.strip_suffix(".toml")?;
            (!name.starts_with('_')).then(|| name.to_owned())
        })
        .collect();
    names.sort_unstable();
    assert!(names.len() > 15, "{names:?}");
    names
}

#[test]
fn every_service_s_file_is_accepted_beside_the_others() {
    let world = World::new();
    let presets = presets();
    std::fs::create_dir_all(world.path("conf.d")).expect("writable");
    std::fs::create_dir_all(world.path("keys")).expect("writable");
    let mut domains = Vec::new();
    for preset in &presets {
        world.write(&format!("keys/{preset}"), format!("user:{}\n", world.key()));
        let arguments = ["service", "--preset", preset];
        let text = init(&world, &format!("conf.d/{preset}.toml"), &arguments);
        assert!(text.contains(&format!("preset = \"{preset}\"")), "{text}");
        let mut edge = vec!["edge", "--hub", "keys.example.com"];
        edge.extend(["--preset", preset]);
        let text = init(&world, &format!("edge-{preset}.toml"), &edge);
        let permits = text.split("--permit ").skip(1);
        domains.extend(permits.map(|rest| rest.split(' ').next().unwrap_or("").to_owned()));
    }
    let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
    ca(&world, &domains);
    world.write(
        "claviger.toml",
        format!(
            "[server]\nstate_dir = {:?}\n[audit]\npath = {:?}\n",
            world.path("state"),
            world.path("audit.ndjson")
        ),
    );
    check(&world, "claviger.toml");
}

#[test]
fn every_edge_and_hub_is_accepted() {
    let world = World::new();
    let edges = pki::TestCa::new(&world.subdirectory("edges"), "edges");
    std::fs::copy(edges.file(), world.path("edges-ca.pem")).expect("writable");
    for file in ["edge.pem", "edge.key"] {
        edges.client_file(&world.path(""), file, EDGE, 1);
    }
    // One file holds both; each name is read for its part.
    std::fs::copy(world.path("edge.pem"), world.path("edge.key")).expect("writable");
    world.key_file("edge.token");
    std::fs::create_dir_all(world.path("keys")).expect("writable");
    let presets = presets();
    let mut domains = vec!["example.com".to_owned()];
    let mut files = Vec::new();
    for preset in presets
        .iter()
        .map(|preset| vec!["--preset", &**preset])
        .chain([Vec::new()])
    {
        let number = files.len();
        for (kind, first) in [
            ("edge", vec!["edge", "--hub", "keys.company.example"]),
            (
                "token",
                vec![
                    "edge",
                    "--hub",
                    "a.example",
                    "--hub",
                    "b.example",
                    "--token",
                ],
            ),
            (
                "hub",
                vec!["hub", "--host", "keys.company.example", "--edge", "gcp"],
            ),
        ] {
            let directory = world.subdirectory(kind);
            let name = format!(
                "{}/claviger.toml",
                directory.file_name().expect("a name").to_string_lossy()
            );
            let text = init(&world, &name, &[&first[..], &preset[..]].concat());
            let permits = text.split("--permit ").skip(1);
            domains.extend(permits.map(|rest| rest.split(' ').next().unwrap_or("").to_owned()));
            files.push(name);
        }
        assert!(files.len() > number);
    }
    for preset in &presets {
        world.write(&format!("keys/{preset}"), format!("user:{}\n", world.key()));
    }
    world.write("keys/example", world.key());
    let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
    ca(&world, &domains);
    for file in &files {
        check(&world, file);
    }
}

#[test]
fn an_edge_that_init_wrote_serves() {
    let hub = Hub::start(|_| String::new());
    let world = World::new();
    world.secret(&hub.key);
    ca(&world, &["example.com"]);
    let text = init(
        &world,
        "draft.toml",
        &["edge", "--hub", super::DOOR, "--host", HOST],
    );
    hub.edges.client_file(&world.path(""), "edge.pem", EDGE, 1);
    std::fs::copy(world.path("edge.pem"), world.path("edge.key")).expect("writable");
    std::fs::copy(hub.root(), world.path("hub-root.pem")).expect("writable");
    // What a test cannot have: port 443, and a hub that is found by DNS.
    let config = text.replace("# ca_file", "ca_file").replace(
        "hub = true\n",
        &format!("hub = true\naddresses = [\"{}\"]\n", hub.claviger.address()),
    );
    let config = format!("{config}[[listener]]\nname = \"main\"\naddress = [\"127.0.0.1:0\"]\n");
    let edge = world.start(&config);
    let root = world.path("root.pem");
    let exported = world.cli(&[
        "ca",
        "export",
        "--dir",
        &world.path("state/ca").display().to_string(),
    ]);
    std::fs::write(root, exported.expect_code(0).out).expect("writable");
    eventually("an answer by way of the hub", || {
        (edge.get(&world, "/echo/x").status == 200).then_some(())
    });
}

#[test]
fn a_file_that_is_there_stays() {
    let world = World::new();
    let out = world
        .write("claviger.toml", "# mine\n")
        .display()
        .to_string();
    let arguments = ["init", "service", "--preset", "stripe", "--out", &out];
    let refused = world.cli(&arguments).expect_code(1);
    assert!(
        refused.err_text().contains("--force"),
        "{}",
        refused.err_text()
    );
    assert_eq!(
        std::fs::read_to_string(&out).expect("it is there"),
        "# mine\n"
    );
    world
        .cli(&[&arguments[..], &["--force"]].concat())
        .expect_code(0);
    let text = std::fs::read_to_string(&out).expect("it is there");
    assert!(text.contains("preset = \"stripe\""), "{text}");
    let wrong = world
        .cli(&["init", "service", "--preset", "strip"])
        .expect_code(1);
    assert!(
        wrong.err_text().contains("`stripe`"),
        "{}",
        wrong.err_text()
    );
}
