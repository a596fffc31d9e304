//! Privileges are given up before anything is bound, but for the right to bind low
//! ports; and secrets come from where a service manager puts them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::harness::namespace::Namespace;
use crate::harness::process;
use crate::harness::world::{HOST, bearer_route};
use crate::harness::{Mock, World, cannot_run};

/// `nobody`, on every Linux.
const NOBODY: u32 = 65534;

/// Gives a directory tree away.
fn give(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).expect("root may");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("readable") {
            give(&entry.expect("readable").path(), uid);
        }
    }
}

fn status_field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("our own child");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("{name}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn root_becomes_the_service_user_and_keeps_low_ports() {
    if !nix::unistd::Uid::effective().is_root() {
        return cannot_run("only root can become somebody else");
    }
    let world = World::for_everybody();
    let (key, key_file) = world.key_file("key");
    // Port 443 of a network of its own.
    let namespace = Namespace::new("");
    let mut command = namespace.command(process::binary("mock-upstream"));
    command.args(["--listen", "127.0.0.3:443"]);
    let mock = Mock::start_with(
        &world,
        command,
        &[HOST],
        &["--auth", "bearer", "--key", &key],
    );
    let base = world.base().replace("127.0.0.1:0", "127.0.0.2:443");
    let config = format!(
        "{}{}{}",
        base.replace("[audit]", "user = \"nobody\"\n[audit]"),
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    );
    let start = || {
        let mut command = namespace.command(process::binary("claviger"));
        command.env_clear();
        command
    };
    // A key that the service user cannot read again is found out before serving.
    let path = world.write("claviger.toml", &config);
    give(&world.path(""), NOBODY);
    chown(&key_file, Some(0), Some(0)).expect("root may");
    let mut command = start();
    command.args(["run", "--config"]).arg(&path);
    let refused = world.watch("claviger", command).finish();
    assert!(!refused.status.success());
    let told = refused.err_text();
    assert!(
        told.contains(&*key_file.to_string_lossy()) && told.contains("service's group"),
        "{told}"
    );

    give(&world.path(""), NOBODY);
    let claviger = world.start_with(&config, start(), &[]);
    let pid = claviger.pid();
    assert_eq!(status_field(pid, "Uid"), "65534 65534 65534 65534");
    assert!(
        !status_field(pid, "Groups")
            .split(' ')
            .any(|group| group == "0")
    );
    // CAP_NET_BIND_SERVICE is number 10 (capabilities(7)); nothing else is left, in
    // any set, for this process or for what it might start.
    for set in ["CapEff", "CapPrm"] {
        assert_eq!(status_field(pid, set), format!("{:016x}", 1 << 10), "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status_field(pid, set), "0000000000000000", "{set}");
    }
    let mut command = namespace.command("/usr/bin/curl");
    command.env_clear().args([
        "--silent",
        "--fail",
        "--connect-to",
        "::127.0.0.2:443",
        "--cacert",
    ]);
    command
        .arg(world.path("root.pem"))
        .arg(format!("https://{HOST}/echo"));
    let answer = process::Process::run("curl", command).expect_code(0);
    assert!(answer.out_text().contains("\"authorized\":true"));
    // The audit trail belongs to the service user, and is nobody else's to read.
    let audit = fs::metadata(world.path("audit.ndjson")).expect("it is there");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&audit), NOBODY);
    assert_eq!(audit.permissions().mode() & 0o007, 0);
    // A reload reads the key as that user.
    claviger.reload(&(config + "# again\n"));
}

/// `env://` and systemd's `$CREDENTIALS_DIRECTORY`.
#[test]
fn secrets_from_the_service_manager() {
    for (source, variable) in [
        ("credential://api-key", "CREDENTIALS_DIRECTORY"),
        ("env://API_KEY", "API_KEY"),
    ] {
        let world = World::new();
        let (key, key_file) = world.key_file("key");
        let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
        let config = format!(
            "{}{}{}",
            world.base(),
            mock.upstream("mock", HOST),
            bearer_route(&key_file).replace(&format!("file://{}", key_file.display()), source)
        );
        let mut command = world.command();
        if variable == "API_KEY" {
            command.env(variable, &key);
        } else {
            let directory = world.subdirectory("credentials");
            let path = directory.join("api-key");
            fs::write(&path, &key).expect("writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("ours");
            command.env(variable, directory);
        }
        let claviger = world.start_with(&config, command, &[]);
        claviger.get(&world, "/echo").expect(200);
    }
}
