//! The house's own rules, which no compiler checks. Each failure names the path
//! that broke it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `cargo tree -p PACKAGE -i DEPENDENCY`: what brings it in, or nothing.
fn brought_in(package: &str, dependency: &str) -> Option<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args([
            "tree",
            "--locked",
            "--quiet",
            "--edges",
            "normal,build",
            "--package",
            package,
            "--invert",
            dependency,
        ])
        .output()
        .expect("cargo, which runs this test, can be run again");
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() || said.contains("did not match any packages"),
        "{said}"
    );
    (!tree.trim().is_empty()).then_some(tree)
}

#[test]
fn the_planes_have_one_runtime_each() {
    for (package, dependency) in [
        ("dataplane", "tokio"),
        ("controlplane", "monoio"),
        ("dataplane", "controlplane"),
        ("controlplane", "dataplane"),
        ("policy", "tokio"),
        ("policy", "monoio"),
        ("policy", "serde"),
        ("wire", "policy"),
        ("handoff", "policy"),
        ("handoff", "wire"),
        ("mock-upstream", "wire"),
        ("loadgen", "wire"),
        ("claviger", "ring"),
        ("claviger", "openssl-sys"),
    ] {
        if let Some(tree) = brought_in(package, dependency) {
            panic!("`{dependency}` must not be under `{package}`; this brings it in:\n{tree}");
        }
    }
    // The search would have found one.
    assert!(
        brought_in("dataplane", "monoio").is_some()
            && brought_in("controlplane", "tokio").is_some()
    );
}

/// Every Rust file under `directory`, with its text before `mod tests`.
fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        for entry in
            fs::read_dir(&directory).unwrap_or_else(|err| panic!("{}: {err}", directory.display()))
        {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                if path.file_name().is_some_and(is_of_the_product) {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && path.file_stem().is_some_and(is_of_the_product)
            {
                let text = fs::read_to_string(&path).expect("UTF-8");
                let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
                found.push((path, text[..end].to_owned()));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// Tests, and the simulation, which is one, may do what the product may not.
fn is_of_the_product(name: &OsStr) -> bool {
    name != "tests" && name != "simulation"
}

/// Lines of code (comments left out) that contain one of these words.
fn lines_with(directory: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources(directory) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                found.push(format!(
                    "{}:{}: {}",
                    path.strip_prefix(root()).unwrap_or(&path).display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    found
}

/// Where a secret of our own is used, which never goes to an upstream.
const UNLOCKING: [&str; 3] = ["pki/sealed.rs:", "pki/export.rs:", "pki/acme/order.rs:"];

#[test]
fn secrets_are_read_in_policy_only() {
    for directory in [
        "src",
        "wire/src",
        "handoff/src",
        "dataplane/src",
        "controlplane/src",
    ] {
        assert_eq!(
            lines_with(directory, &[".expose("]),
            [] as [String; 0],
            "only `policy` reads a secret's bytes"
        );
    }
    // What opens things of our own: keys under a passphrase.
    let unlocking: Vec<_> = lines_with("controlplane/src", &[".unlock(|"])
        .into_iter()
        .filter(|line| !UNLOCKING.iter().any(|file| line.contains(file)))
        .collect();
    assert_eq!(unlocking, [] as [String; 0]);
    assert!(
        !lines_with("policy/src", &[".expose("]).is_empty(),
        "the search would have found one"
    );
}

#[test]
fn one_file_replaces_a_snapshot() {
    // `self.publish()` is a type's own method of that name, not the door's.
    let publishing = |directory: &str| -> Vec<String> {
        lines_with(directory, &["Published::publish", ".publish("])
            .into_iter()
            .filter(|line| !line.contains("self.publish("))
            .collect()
    };
    for directory in ["src", "dataplane/src", "policy/src", "wire/src"] {
        assert_eq!(
            publishing(directory),
            [] as [String; 0],
            "only `publish.rs` replaces what is published"
        );
    }
    let (allowed, elsewhere): (Vec<_>, Vec<_>) = publishing("controlplane/src")
        .into_iter()
        .partition(|line| line.starts_with("controlplane/src/publish.rs:"));
    assert_eq!(
        elsewhere,
        [] as [String; 0],
        "only `publish.rs` replaces what is published"
    );
    assert!(!allowed.is_empty(), "the search would have found one");
}

/// Time, randomness and the world are arguments there.
#[test]
fn wire_and_policy_decide_and_never_look() {
    let looking = [
        "std::fs",
        "std::process",
        "std::thread",
        "Instant",
        "SystemTime",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "getrandom",
        "thread_rng",
        "ToSocketAddrs",
        "std::env",
        "File::",
        "io::stdin",
        "io::stdout",
        "io::stderr",
    ];
    for directory in ["wire/src", "policy/src"] {
        assert_eq!(
            lines_with(directory, &looking),
            [] as [String; 0],
            "{directory} does no I/O and reads no clock"
        );
    }
}

#[test]
fn the_runtime_has_one_name() {
    let named: Vec<_> = lines_with("dataplane/src", &["monoio::", "use monoio"])
        .into_iter()
        .filter(|line| !line.starts_with("dataplane/src/rt"))
        .collect();
    assert_eq!(
        named,
        [] as [String; 0],
        "only `dataplane/src/rt` names the runtime"
    );
}

/// Sockets without a kernel, and a handshake without a cipher, are for tests alone.
#[test]
fn the_product_has_nothing_of_the_simulation() {
    for (path, text) in sources("dataplane/src") {
        for module in ["mod simulation;", "mod simulated;"] {
            for (at, _) in text.match_indices(module) {
                let before = text[..at]
                    .trim_end_matches("pub ")
                    .trim_end_matches("pub(crate) ");
                assert!(
                    before.ends_with("#[cfg(test)]\n"),
                    "{}: `{module}` is in the product",
                    path.display()
                );
            }
        }
    }
    let binary = fs::read(env!("CARGO_BIN_EXE_claviger")).expect("it is built");
    let binary = String::from_utf8_lossy(&binary);
    let hello = "simulated hello";
    assert!(!binary.contains(hello), "the handshake of the simulation");
    let reason = "upstream_body_cut";
    assert!(binary.contains(reason), "the search would have found it");
}

/// What is published to other people names no host that only some can reach.
#[test]
fn lock_files_name_no_private_registry() {
    for lock in [
        "../Cargo.lock",
        "tests/it/clients/package-lock.json",
        "tests/it/clients/requirements.txt",
    ] {
        let text = fs::read_to_string(root().join(lock)).expect("it is part of the repository");
        for line in text.lines().filter(|line| line.contains("://")) {
            assert!(
                line.contains("https://github.com/rust-lang/crates.io-index")
                    || line.trim_start().starts_with('#'),
                "{lock}: {line}"
            );
        }
    }
}

/// No dump of a process, which may hold its keys, and nothing else that a program left behind, is part of
/// the repository.
#[test]
fn the_repository_holds_what_people_wrote() {
    const BYTES_MAX: u64 = 1 << 20;
    let top = root().parent().expect("the repository");
    let listed = Command::new("git")
        .current_dir(top)
        .args(["ls-files", "-z"])
        .output();
    let Some(listed) = listed.ok().filter(|listed| listed.status.success()) else {
        return crate::harness::cannot_run("this is no clone, or there is no git");
    };
    let names = String::from_utf8(listed.stdout).expect("names are text");
    let names: Vec<&str> = names.split_terminator('\0').collect();
    assert!(names.contains(&"Cargo.toml"), "the files were found");
    for name in names {
        let path = top.join(name);
        // One that is removed and not yet committed so.
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        assert!(
            metadata.len() <= BYTES_MAX,
            "{name}: {} bytes",
            metadata.len()
        );
        if metadata.is_file() {
            let begins = fs::read(&path).expect("readable");
            assert!(
                !begins.starts_with(b"\x7fELF"),
                "{name} is a program or a dump of one"
            );
        }
    }
}
