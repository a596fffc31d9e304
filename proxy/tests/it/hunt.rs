//! `claviger hunt`: keys are found where services keep them, and none is shown.

use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::harness::World;
use crate::harness::leak::Leak;
use crate::harness::mock::fingerprint;
use crate::harness::process::{Finished, Process};
use crate::harness::world::Site;

/// Nobody's: it only has the shape.
fn stripe_key(world: &World) -> String {
    let random: String = world
        .key()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    format!("sk_live_{}", &random[random.len() - 24..])
}

fn short(key: &str) -> String {
    format!("sha256:{}", &fingerprint(key)[..12])
}

/// Hunts, and sees that the key is in nothing that is said.
fn hunt(world: &World, key: &str, code: i32, arguments: &[&str]) -> Finished {
    let finished = world
        .cli(&[&["hunt"], arguments].concat())
        .expect_code(code);
    Leak::of(key).assert_none("what a hunt says", &finished.all());
    finished
}

fn json(finished: &Finished) -> Value {
    serde_json::from_slice(&finished.out).expect("JSON")
}

#[test]
fn a_key_in_a_file_is_named_and_not_shown() {
    let world = World::new();
    let key = stripe_key(&world);
    let directory = world.subdirectory("service");
    let path = directory.display().to_string();
    hunt(&world, &key, 0, &[&path]);
    std::fs::write(
        directory.join(".env"),
        format!("PORT=1\nSTRIPE_API_KEY={key}\n"),
    )
    .expect("a file");
    std::fs::write(
        directory.join("secret.yaml"),
        format!("data:\n  key: {}\n", STANDARD.encode(&key)),
    )
    .expect("a file");
    let text = hunt(&world, &key, 1, &[&path]).out_text();
    assert!(
        text.contains(&format!(
            "{path}/.env:2:16\n    Stripe key {}\n",
            short(&key)
        )),
        "{text}"
    );
    assert!(
        text.contains("delete this line; once api.stripe.com is led to Claviger"),
        "{text}"
    );
    assert!(
        text.contains(&format!(
            "{path}/secret.yaml:2:8\n    Stripe key {} (in base64)",
            short(&key)
        )),
        "{text}"
    );
    assert!(
        text.contains("1 key in 2 places; 2 files looked at"),
        "{text}"
    );

    let found = json(&hunt(&world, &key, 1, &["--json", &path]));
    let first = &found["findings"][0];
    assert_eq!(first["place"]["kind"], "file");
    assert_eq!(first["place"]["line"], 2);
    assert_eq!(first["presets"][0], "stripe");
    assert_eq!(first["fingerprint"], short(&key));
    assert_eq!(found["looked_at"]["files"], 2);
}

#[test]
fn what_could_not_be_looked_at_is_no_all_clear() {
    let world = World::new();
    let key = stripe_key(&world);
    let absent = world.path("absent").display().to_string();
    let text = hunt(&world, &key, 2, &[&absent]).out_text();
    assert!(text.contains("not looked at"), "{text}");
    hunt(&world, &key, 2, &["--exclude", "a{", "/dev/null"]);
    // Neither a path nor an environment.
    hunt(&world, &key, 2, &[]);
    hunt(&world, &key, 2, &["--config", &absent, &absent]);
}

#[test]
fn a_running_process_shows_what_it_was_started_with() {
    let world = World::new();
    let key = stripe_key(&world);
    // It reads from a pipe into which nobody writes.
    let pipe = world.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "echo ready; read line <$0"])
        .args([pipe.as_os_str(), format!("--key={key}").as_ref()])
        .env("PAYMENTS_KEY", &key);
    let process = Process::start("service", command);
    let pid = process.pid();
    process
        .out
        .wait("it runs", |text| text.contains("ready").then_some(()));
    let found = json(&hunt(&world, &key, 1, &["--environment", "--json"]));
    let places: Vec<&Value> = found["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|finding| &finding["place"])
        .filter(|place| place["pid"] == pid)
        .collect();
    assert_eq!(places.len(), 2, "{places:?}");
    assert_eq!(places[0]["kind"], "environment");
    assert_eq!(places[0]["variable"], "PAYMENTS_KEY");
    assert_eq!(places[0]["program"], "sh");
    assert_eq!(places[1]["kind"], "command_line");
    assert_eq!(places[1]["word"], 4);
    let text = hunt(&world, &key, 1, &["--environment"]).out_text();
    assert!(text.contains(&format!("process {pid} (")), "{text}");
    process.signal(libc::SIGKILL);
    process.finish();
}

fn git(directory: &Path, arguments: &[&str]) {
    let output = Command::new("git")
        .current_dir(directory)
        .args([
            "-c",
            "user.name=A",
            "-c",
            "user.email=a@example.com",
            "-c",
            "commit.gpgSign=false",
        ])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .expect("git runs");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_a_commit_removed_is_found_in_the_history() {
    let world = World::new();
    let key = stripe_key(&world);
    let directory = world.subdirectory("repository");
    let path = directory.display().to_string();
    git(&directory, &["init", "--quiet", "--initial-branch=main"]);
    // What is removed and looks like a header must not lead the search astray.
    let settings = directory.join("settings.py");
    std::fs::write(
        &settings,
        format!("++ b/elsewhere\nDEBUG = 1\nKEY = '{key}'\n"),
    )
    .expect("a file");
    git(&directory, &["add", "."]);
    git(&directory, &["commit", "--quiet", "--message=one"]);
    std::fs::write(&settings, "DEBUG = 1\n").expect("a file");
    git(&directory, &["commit", "--quiet", "--all", "--message=two"]);
    hunt(&world, &key, 0, &[&path]);
    // A repository's settings must not make a hunt run anything.
    let touched = world.path("touched");
    for setting in [
        "core.fsmonitor",
        "diff.external",
        "core.pager",
        "gpg.program",
    ] {
        git(
            &directory,
            &["config", setting, &format!("touch {}", touched.display())],
        );
    }
    git(&directory, &["config", "log.showSignature", "true"]);
    let found = json(&hunt(&world, &key, 1, &["--git-history", "--json", &path]));
    assert!(!touched.exists(), "the repository has run something");
    assert_eq!(found["looked_at"]["commits"], 2);
    let place = &found["findings"][0]["place"];
    assert_eq!(place["kind"], "history");
    assert_eq!(place["path"], "settings.py");
    assert_eq!(place["line"], 3);
    assert_eq!(place["commit"].as_str().map(str::len), Some(40));
    assert_eq!(found["findings"].as_array().map(Vec::len), Some(1));
    let text = hunt(&world, &key, 1, &["--git-history", &path]).out_text();
    assert!(text.contains("replace this key at the provider"), "{text}");
    // No repository, and in none, as the world may be: that is said.
    let plain = tempfile::tempdir().expect("a directory");
    let plain = plain.path().display().to_string();
    hunt(&world, &key, 2, &["--git-history", &plain]);
}

#[test]
fn a_key_of_the_configuration_is_found_whatever_its_shape() {
    let site = Site::new();
    let world = &site.world;
    let config = site.claviger.config().display().to_string();
    let directory = world.subdirectory("service");
    let path = directory.display().to_string();
    // In single quotes, as in a shell: the key has characters that are no word's.
    std::fs::write(
        directory.join("run.sh"),
        format!("export K='{}'\n", site.key),
    )
    .expect("a file");
    hunt(world, &site.key, 0, &[&path]);
    let text = hunt(world, &site.key, 1, &["--config", &config, &path]).out_text();
    assert!(
        text.contains(&format!(
            "key {}, which Claviger writes as credential",
            short(&site.key)
        )),
        "{text}"
    );
    assert!(text.contains("the service needs no key any more"), "{text}");
    // `explain` calls it the same, so that one sees which key a service still has.
    let host = crate::harness::world::HOST;
    let explained = world
        .cli(&[
            "explain",
            "GET",
            &format!("https://{host}/v1/x"),
            "--config",
            &config,
        ])
        .expect_code(0)
        .out_text();
    assert!(explained.contains(&short(&site.key)), "{explained}");
}

/// What docs/migration.md shows is what happens: its commands are taken from it, with a test's paths for its own.
#[test]
fn the_migration_guide_s_commands() {
    let guide = include_str!("../../../docs/migration.md");
    let world = World::new();
    let key = stripe_key(&world);
    let site = Site::new();
    let home = world.subdirectory("srv");
    let repository = home.join("repository");
    std::fs::create_dir(&repository).expect("a directory");
    git(&repository, &["init", "--quiet"]);
    std::fs::write(
        home.join(".env"),
        format!("# of payments\nSTRIPE_API_KEY={key}\n"),
    )
    .expect("a file");
    // Every hunt that the guide shows is a command that is understood.
    let hunts: Vec<&str> = guide
        .lines()
        .filter(|line| line.starts_with("claviger hunt "))
        .collect();
    assert_eq!(hunts.len(), 2, "{hunts:?}");
    for line in &hunts {
        let line = line.split('#').next().unwrap_or_default();
        let arguments: Vec<String> = line
            .split_whitespace()
            .skip(2)
            .map(|word| match word {
                "/srv" | "/etc/systemd" | "/home/deploy" => home.display().to_string(),
                "~/src/*" => repository.display().to_string(),
                option => option.to_owned(),
            })
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let code = if line.contains("--environment") { 1 } else { 0 };
        hunt(&world, &key, code, &arguments);
    }
    // What it says looks as the guide shows it.
    let shown = hunt(&world, &key, 1, &[&home.display().to_string()]).out_text();
    let shown: Vec<&str> = shown.lines().take(3).collect();
    let first = guide
        .split("```text\n")
        .nth(1)
        .expect("an example")
        .lines()
        .take(3)
        .collect::<Vec<_>>()
        .join("\n");
    let expected = first
        .replace(
            "/srv/payments/.env:4:16",
            &format!("{}/.env:2:16", home.display()),
        )
        .replace("sha256:9c8f6a0d31e2", &short(&key));
    assert_eq!(shown.join("\n"), expected);
    // The fingerprint by hand.
    let by_hand = "printf %s \"$KEY\" | sha256sum | cut -c1-12";
    assert!(guide.contains(by_hand));
    let output = Command::new("sh")
        .args(["-c", by_hand])
        .env("KEY", &key)
        .output()
        .expect("a shell");
    assert_eq!(
        format!("sha256:{}", String::from_utf8_lossy(&output.stdout).trim()),
        short(&key)
    );
    // The audit trail, as it is asked in there.
    site.get("/echo/x");
    site.claviger.wait_audit("the call", |record| {
        (record["path"] == "/echo/x").then_some(())
    });
    let filter = guide
        .lines()
        .find_map(|line| line.trim().strip_prefix("jq -c '"))
        .and_then(|rest| rest.split('\'').next())
        .expect("a filter")
        .replace("10.0.3.7", "127.0.0.1");
    let audit = site.world.path("audit.ndjson");
    let output = Command::new("jq")
        .args(["-c", &filter])
        .arg(&audit)
        .output()
        .expect("jq");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let rows: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(rows.len(), 1, "{text}");
    assert_eq!(
        (&rows[0][2], &rows[0][3]),
        (&Value::from(200), &Value::Null),
        "{text}"
    );
}
