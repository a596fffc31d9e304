//! The key stays where it belongs. (Every other test searches for it too, when its
//! world ends; here the places are named.)

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::leak::Leak;
use crate::harness::world::{HOST, Site, bearer_route};
use crate::harness::{Mock, World};

/// Whatever goes wrong, in whatever way a caller asks for it, the key is not in it:
/// errors of every kind, both logs, and what the tools print.
#[test]
fn no_output_contains_the_key() {
    let site = Site::build(&[], |world, mock, key_file| {
        let base = world.base().replace(
            "[audit]",
            "head_timeout = \"300ms\"\n[log]\nlevel = \"trace\"\n[audit]",
        );
        format!(
            "{base}{}{}",
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    for request in [
        format!(
            "GET /echo HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {}\r\n\r\n",
            site.key
        ),
        format!(
            "GET /echo?key={} HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
            site.key.replace('+', "%2B")
        ),
        format!("GET /status/500 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET /leak HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET /leak?status=200 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!(
            "GET /echo HTTP/1.1\r\nHost: {HOST}\r\nHost: {}\r\n\r\n",
            "x"
        ),
        format!(
            "GET /echo HTTP/9.9\r\nHost: {HOST}\r\nX: {}\r\n\r\n",
            site.key
        ),
        format!(
            "BAD {} HTTP/1.1\r\nHost: {HOST}\r\nX-API-Key: {}\r\n\r\n",
            "no-slash", site.key
        ),
        format!(
            "GET /echo HTTP/1.1\r\nHost: {HOST}\r\nX-API-Key: {}\n\r\n",
            site.key
        ),
        format!("GET /echo HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n\r\n", site.key),
    ] {
        let mut client = site.connect();
        let _ = client.try_send(&request);
        let _ = client.answer();
    }
    let config = site.claviger.config().display().to_string();
    for arguments in [
        vec!["check", "--config", &config],
        vec![
            "explain",
            "GET",
            "https://api.example.com/echo",
            "--config",
            &config,
        ],
        vec!["schema"],
        vec!["--help"],
    ] {
        site.world.cli(&arguments).expect_code(0);
    }
    site.claviger.status();
    let pid = site.claviger.pid();
    for file in ["cmdline", "environ"] {
        match fs::read(format!("/proc/{pid}/{file}")) {
            Ok(bytes) => site.world.evidence(file, bytes),
            // A process that must not be dumped does not show its environment either.
            Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::PermissionDenied),
        }
    }
    site.world.assert_no_leak();
    // The search would have found it in the one place where it must be.
    assert!(
        Leak::of(&site.key)
            .search(&fs::read(&site.key_file).expect("readable"))
            .is_some()
    );
}

#[test]
fn the_process_leaves_no_core_and_locks_its_memory() {
    let site = Site::new();
    let pid = site.claviger.pid();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("our own child");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .expect("a limit");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // A process that may be dumped belongs to its user; another one's files are root's.
    if !nix::unistd::Uid::effective().is_root() {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(
            fs::metadata(format!("/proc/{pid}/environ"))
                .expect("it is there")
                .uid(),
            0
        );
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("our own child");
    let locked: u64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmLck:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .expect("VmLck");
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max locked memory"))
        .expect("a limit");
    if limit.contains("unlimited") || nix::unistd::Uid::effective().is_root() {
        assert!(locked > 0, "memory is locked where that is permitted");
    }
}

/// Configurations that put a key at risk are refused, with the cure, and the refusal
/// does not repeat the key.
#[test]
fn careless_configurations_are_refused() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let good = format!(
        "{}{}{}",
        world.base(),
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    );
    let path = world.write("check.toml", &good);
    let check = |config: &str, told: &[&str]| {
        fs::write(&path, config).expect("writable");
        let finished = world.cli(&["check", "--config", &path.display().to_string()]);
        let text = String::from_utf8_lossy(&finished.all()).into_owned();
        assert!(!finished.status.success(), "accepted: {config}\n{text}");
        for part in told {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    };
    let source = format!("file://{}", key_file.display());
    // The key itself, where its reference belongs.
    check(&good.replace(&source, &key), &["source"]);
    let literal = "sk-proj-4f0b9d6e2a7c41d8b3e5f60718293a4b";
    world.secret(literal);
    check(&good.replace(&source, literal), &["source"]);
    // A file that everybody may read.
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o644)).expect("ours");
    check(&good, &["allow_world_readable"]);
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("ours");
    // A rule that lets nobody in, or that only looks like one.
    check(
        &good.replace("callers = \"open\"", "callers = []"),
        &["callers"],
    );
    check(
        &good.replace("callers = \"open\"", "callers = \"any\""),
        &["0.0.0.0/0"],
    );
    // Clear text has to be written, and so has the upstream's certificate.
    check(
        &good.replace("callers = \"open\"", "callers = \"open\"\ntls = false"),
        &["tls"],
    );
    fs::write(&path, &good).expect("writable");
    world
        .cli(&["check", "--config", &path.display().to_string()])
        .expect_code(0);
}
