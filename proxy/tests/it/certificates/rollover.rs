//! From one root to the next: at each step clients that trust the old root, the new one, or both
//! verify what is promised, and no call fails on the way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::clients::{Reader, Trust, read_with};
use crate::harness::World;
use crate::harness::eventually;
use crate::harness::world::{HOST, Site};

/// Ends the calls, also when an assertion fails between them.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn ca(world: &World, arguments: &[&str]) -> String {
    let dir = world.path("ca").display().to_string();
    let arguments = [&["ca"], arguments, &["--dir", &dir]].concat();
    world.cli(&arguments).expect_code(0).out_text()
}

/// What `claviger ca export` gives, in a file.
fn exported(world: &World, name: &str) -> PathBuf {
    world.write(name, ca(world, &["export"]))
}

/// Waits until certificates hang on `root` without help, and the other root is among what is sent
/// if `bridged` says so.
fn wait_for_chain(site: &Site, length: usize, root: &Path) {
    eventually("the chain to be served", || {
        let client = site
            .claviger
            .connect_with(HOST, super::clients::trusting(root))
            .ok()?;
        (client.connection().peer_certificates()?.len() == length).then_some(())
    });
}

#[test]
fn a_root_is_replaced_and_nobody_notices() {
    let site = Site::new();
    let world = &site.world;
    let old = exported(world, "old.pem");
    let over = AtomicBool::new(false);
    let with = |file: &Path, verifies: bool| {
        for reader in Reader::all() {
            let outcome = read_with(reader, site.claviger.address(), HOST, Trust::Only(file));
            assert_eq!(
                outcome.is_ok(),
                verifies,
                "{reader:?} with {}: {outcome:?}",
                file.display()
            );
        }
    };
    with(&old, true);
    thread::scope(|scope| {
        let _over = Over(&over);
        // A client that trusts the old root alone, until it is finished.
        let calling = scope.spawn(|| {
            let mut calls = 0;
            while !over.load(Ordering::Relaxed) {
                site.get("/echo").expect(200);
                calls += 1;
            }
            calls
        });
        let said = ca(world, &["rollover", "start"]);
        assert!(said.contains("callers verify with either root"), "{said}");
        // Twice would be a mistake.
        let dir = world.path("ca").display().to_string();
        let again = world
            .cli(&["ca", "rollover", "start", "--dir", &dir])
            .expect_code(1);
        assert!(
            again.err_text().contains("under way"),
            "{}",
            again.err_text()
        );
        let both = exported(world, "both.pem");
        let text = fs::read_to_string(&both).expect("readable");
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(text.starts_with(&fs::read_to_string(&old).expect("readable")));
        let new = world.write("new.pem", &text[text.rfind("-----BEGIN").expect("two")..]);
        // It is taken up by itself: from now on the present root comes along, signed by the next.
        wait_for_chain(&site, 3, &old);
        for trust in [&old, &both, &new] {
            with(trust, true);
        }
        let said = ca(world, &["rollover", "switch"]);
        assert!(
            said.contains("Callers still verify with either root"),
            "{said}"
        );
        let first = fs::read(world.path("ca/root.pem")).expect("readable");
        assert_eq!(first, fs::read(&new).expect("readable"));
        eventually("certificates of the new root", || {
            // Whoever trusts the new root needs nothing but leaf and intermediate.
            let client = site
                .claviger
                .connect_with(HOST, super::clients::trusting(&new))
                .ok()?;
            let chain = client.connection().peer_certificates()?;
            super::clients::hangs_on(&chain[..2], &new).then_some(())
        });
        for trust in [&old, &both, &new] {
            with(trust, true);
        }
        over.store(true, Ordering::Relaxed);
        assert!(calling.join().expect("no call failed") > 10);
        let said = ca(world, &["rollover", "finish"]);
        assert!(said.contains("destroy its key"), "{said}");
        wait_for_chain(&site, 2, &new);
        with(&new, true);
        with(&both, true);
        with(&old, false);
        assert_eq!(
            fs::read(exported(world, "after.pem")).expect("readable"),
            first
        );
    });
    // Names stay what they were, and the old root's key is out of the way.
    assert!(!world.path("ca/former-root.key").exists());
    let said = world.cli(&[
        "ca",
        "rollover",
        "switch",
        "--dir",
        &world.path("ca").display().to_string(),
    ]);
    assert!(said.expect_code(1).err_text().contains("no next root"));
}

#[test]
fn a_roll_over_can_be_given_up_and_can_widen_what_is_permitted() {
    let site = Site::new();
    let world = &site.world;
    let before = fs::read(world.path("ca/root.pem")).expect("readable");
    let dir = world.path("ca").display().to_string();
    // What is served must stay possible.
    let narrower = world
        .cli(&[
            "ca",
            "rollover",
            "start",
            "--dir",
            &dir,
            "--permit",
            "example.net",
        ])
        .expect_code(1);
    assert!(
        narrower.err_text().contains("is served now"),
        "{}",
        narrower.err_text()
    );
    let wider = [
        "rollover",
        "start",
        "--permit",
        "example.com",
        "example.net",
    ];
    ca(world, &wider);
    ca(world, &["rollover", "cancel"]);
    assert_eq!(
        fs::read(world.path("ca/root.pem")).expect("readable"),
        before
    );
    assert!(!world.path("ca/next-root.pem").exists());
    ca(world, &wider);
    ca(world, &["rollover", "switch"]);
    ca(world, &["rollover", "finish"]);
    let out = world.subdirectory("issued").display().to_string();
    world
        .cli(&[
            "ca",
            "issue",
            "api.example.net",
            "--dir",
            &dir,
            "--out",
            &out,
        ])
        .expect_code(0);
    // OpenSSL's word on the whole chain.
    let chain = Path::new(&out).join("api.example.net.pem");
    let mut verify = Command::new("openssl");
    verify
        .args([
            "verify",
            "-x509_strict",
            "-verify_hostname",
            "api.example.net",
            "-CAfile",
        ])
        .arg(world.path("ca/root.pem"))
        .arg("-untrusted")
        .args([&chain, &chain]);
    crate::harness::process::Process::run("openssl", verify).expect_code(0);
}
