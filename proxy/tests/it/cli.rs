//! The command line: one voice, exit codes that scripts can use.

use crate::harness::World;
use crate::harness::world::{HOST, Site};

#[test]
fn explain_tells_what_would_happen_and_hides_the_key() {
    let site = Site::new();
    let config = site.claviger.config().display().to_string();
    let text = site
        .world
        .cli(&[
            "explain",
            "GET",
            &format!("https://{HOST}/v1/x?key=1"),
            "--config",
            &config,
        ])
        .expect_code(0)
        .out_text();
    for part in [
        "main",
        "mock",
        HOST,
        "authorization",
        &site.mock.address().to_string(),
    ] {
        assert!(
            text.to_lowercase().contains(part),
            "{part:?} is missing in:\n{text}"
        );
    }
    let refused = site.world.cli(&[
        "explain",
        "TRACE",
        &format!("https://{HOST}/"),
        "--config",
        &config,
    ]);
    let text = String::from_utf8_lossy(&refused.all()).into_owned();
    assert!(
        text.contains("405") || text.contains("method_refused"),
        "{text}"
    );
}

#[test]
fn check_shows_every_problem_with_its_place() {
    let site = Site::new();
    let config = std::fs::read_to_string(site.claviger.config()).expect("readable");
    let path = site.world.write(
        "bad.toml",
        config
            .replace("callers =", "caller =")
            .replace("workers = 1", "workers = \"many\""),
    );
    let finished = site
        .world
        .cli(&["check", "--config", &path.display().to_string()]);
    let text = String::from_utf8_lossy(&finished.all()).into_owned();
    assert!(!finished.status.success());
    for part in ["bad.toml:", "caller", "callers", "workers", "^"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "no colour where nobody sees it");
}

#[test]
fn the_schema_is_json() {
    let world = World::new();
    let text = world.cli(&["schema"]).expect_code(0).out;
    let schema: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    assert!(schema["properties"]["route"].is_object(), "{schema}");
}

#[test]
fn the_rest_answers() {
    let world = World::new();
    assert!(
        world
            .cli(&["--version"])
            .expect_code(0)
            .out_text()
            .starts_with("claviger ")
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            world
                .cli(&["completions", shell])
                .expect_code(0)
                .out_text()
                .contains("claviger")
        );
    }
    // A mistake on the command line is told apart from a failure.
    world.cli(&["no-such-command"]).expect_code(2);
    let missing = world.cli(&["check", "--config", "/no/such/claviger.toml"]);
    assert!(!missing.status.success() && missing.err_text().contains("/no/such/claviger.toml"));
}

#[test]
fn a_ca_is_not_overwritten() {
    let world = World::new();
    let ca = world.path("ca").display().to_string();
    let again = world.cli(&["ca", "init", "--permit", "example.com", "--dir", &ca]);
    assert!(!again.status.success());
    let out = world.subdirectory("out").display().to_string();
    let outside = world.cli(&[
        "ca",
        "issue",
        "api.elsewhere.net",
        "--dir",
        &ca,
        "--out",
        &out,
    ]);
    assert!(!outside.status.success());
    assert!(
        outside.err_text().contains("api.elsewhere.net"),
        "{}",
        outside.err_text()
    );
}

/// A route for a host that the authority may not certify: said before it is served,
/// with what it takes.
#[test]
fn check_tells_when_a_host_needs_a_new_root() {
    let site = Site::new();
    let config = std::fs::read_to_string(site.claviger.config()).expect("readable");
    let path = site.world.write(
        "other.toml",
        config.replace(
            &format!("[[route]]\nname = \"mock\"\nhost = {HOST:?}"),
            "[[route]]\nname = \"mock\"\nhost = \"api.elsewhere.net\"",
        ),
    );
    let finished = site
        .world
        .cli(&["check", "--config", &path.display().to_string()]);
    let text = String::from_utf8_lossy(&finished.all()).into_owned();
    assert!(!finished.status.success(), "{text}");
    for part in ["api.elsewhere.net", "example.com", "ca init"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    // The old configuration, which the authority covers, goes on.
    let mark = site.claviger.log().mark();
    std::fs::copy(&path, site.claviger.config()).expect("writable");
    site.claviger.process().signal(libc::SIGHUP);
    site.claviger
        .log()
        .wait_event(mark, "the configuration could not be loaded");
    site.get("/ok").expect(200);
}
