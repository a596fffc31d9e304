//! `claviger ca export`: what it gives is taken by the tools it is for, and holds no key.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::clients::{Reader, Trust, read_with};
use crate::harness::World;
use crate::harness::process::{Finished, Process};
use crate::harness::world::{HOST, Site};

fn run(program: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program);
    command.args(arguments);
    Process::run(program, command)
}

fn export(world: &World, format: &str, name: &str, more: &[&str]) -> PathBuf {
    let (dir, out) = (world.path("ca").display().to_string(), world.path(name));
    let out_text = out.display().to_string();
    let fixed = [
        "ca", "export", "--dir", &dir, "--format", format, "--out", &out_text, "--force",
    ];
    world.cli(&[&fixed[..], more].concat()).expect_code(0);
    out
}

/// SHA-256 of each certificate of a PEM text, without colons.
fn fingerprints(world: &World, pem: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, part) in pem.split("-----BEGIN CERTIFICATE-----").skip(1).enumerate() {
        let one = format!("-----BEGIN CERTIFICATE-----{part}");
        let path = world
            .write(&format!("one-{index}.pem"), one)
            .display()
            .to_string();
        let said = run(
            "openssl",
            &["x509", "-in", &path, "-noout", "-fingerprint", "-sha256"],
        );
        let said = said.expect_code(0).out_text();
        found.push(
            said.trim()
                .rsplit('=')
                .next()
                .expect("a value")
                .replace(':', ""),
        );
    }
    found
}

#[test]
fn a_trust_store_is_read_by_java_and_openssl() {
    let site = Site::new();
    let world = &site.world;
    for (both, password) in [(false, None), (true, Some("correct horse"))] {
        if both {
            let dir = world.path("ca").display().to_string();
            world
                .cli(&["ca", "rollover", "start", "--dir", &dir])
                .expect_code(0);
        }
        let reference = password.map(|text| {
            let path = world.write("password", format!("{text}\n"));
            format!("file://{}", path.display())
        });
        let more: Vec<&str> = reference
            .iter()
            .flat_map(|it| ["--password", it.as_str()])
            .collect();
        let store = export(world, "pkcs12", "roots.p12", &more);
        let text = store.display().to_string();
        let password = password.unwrap_or("changeit");
        let roots = fs::read_to_string(export(world, "pem", "roots.pem", &[])).expect("readable");
        let roots = fingerprints(world, &roots);
        assert_eq!(roots.len(), if both { 2 } else { 1 });
        // OpenSSL verifies the MAC, and finds certificates and nothing else.
        let pass = format!("pass:{password}");
        let said = run(
            "openssl",
            &["pkcs12", "-in", &text, "-passin", &pass, "-nodes"],
        );
        let said = said.expect_code(0).out_text();
        assert!(!said.contains("PRIVATE KEY"), "{said}");
        assert_eq!(fingerprints(world, &said), roots);
        let wrong = run(
            "openssl",
            &["pkcs12", "-in", &text, "-passin", "pass:wrong", "-nokeys"],
        );
        assert!(wrong.expect_code(1).err_text().contains("Mac verify error"));
        // Java lists each as one that it trusts.
        let listed = run(
            "keytool",
            &[
                "-list",
                "-keystore",
                &text,
                "-storetype",
                "PKCS12",
                "-storepass",
                password,
            ],
        );
        let listed = listed.expect_code(0).out_text();
        assert_eq!(
            listed.matches("trustedCertEntry").count(),
            roots.len(),
            "{listed}"
        );
        for root in &roots {
            assert!(listed.replace(':', "").contains(root), "{root} in {listed}");
        }
        if !both {
            read_with(
                Reader::Java,
                site.claviger.address(),
                HOST,
                Trust::Only(&store),
            )
            .expect("Java trusts what the store says");
        }
        // DER is for one.
        let dir = world.path("ca").display().to_string();
        let der = world.cli(&["ca", "export", "--dir", &dir, "--der"]);
        match both {
            false => assert_eq!(der.expect_code(0).out[0], 0x30),
            true => assert!(der.expect_code(1).err_text().contains("two roots")),
        }
    }
}

#[test]
fn a_debian_package_installs_the_root_and_takes_it_away() {
    let world = World::new();
    let package = export(&world, "deb", "claviger-ca.deb", &[]);
    let text = package.display().to_string();
    // Debian's own tools on what was made without them.
    let said = run("dpkg-deb", &["--info", &text])
        .expect_code(0)
        .out_text();
    assert!(
        said.contains("Package: claviger-ca") && said.contains("Architecture: all"),
        "{said}"
    );
    let listed = run("dpkg-deb", &["--contents", &text])
        .expect_code(0)
        .out_text();
    assert!(
        listed.lines().all(|line| line.contains("root/root")),
        "{listed}"
    );
    assert!(
        listed.contains("./usr/local/share/ca-certificates/claviger-"),
        "{listed}"
    );
    // A root of its own, with dpkg's state in it, and somebody in the place of ca-certificates.
    let root = world.subdirectory("machine");
    for directory in [
        "var/lib/dpkg/info",
        "var/lib/dpkg/updates",
        "var/lib/dpkg/triggers",
        "var/log",
    ] {
        fs::create_dir_all(root.join(directory)).expect("writable");
    }
    for file in ["status", "available", "arch"] {
        fs::write(root.join("var/lib/dpkg").join(file), "").expect("writable");
    }
    let stand_in = world.subdirectory("stand-in");
    fs::create_dir(stand_in.join("DEBIAN")).expect("writable");
    fs::write(
        stand_in.join("DEBIAN/control"),
        "Package: ca-certificates\nVersion: 1\nArchitecture: all\nMaintainer: A test <a@example.com>\nDescription: a stand-in\n",
    )
    .expect("writable");
    // As Debian's own has it.
    fs::write(
        stand_in.join("DEBIAN/triggers"),
        "interest update-ca-certificates\n",
    )
    .expect("writable");
    let note = world.path("triggered").display().to_string();
    // Run by the host's shell: the root has none.
    fs::write(
        stand_in.join("DEBIAN/postinst"),
        format!("#!/bin/sh\necho \"$@\" >>'{note}'\n"),
    )
    .expect("writable");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(stand_in.join("DEBIAN/postinst"), mode).expect("ours");
    let stand_in_deb = world.path("stand-in.deb").display().to_string();
    run(
        "dpkg-deb",
        &["--build", &stand_in.display().to_string(), &stand_in_deb],
    )
    .expect_code(0);
    let dpkg = |arguments: &[&str]| {
        let root = format!("--root={}", root.display());
        let root = root.as_str();
        // Scripts are run in the host's file system: there is nothing else in that root.
        let fixed = [
            root,
            "--force-script-chrootless",
            "--force-not-root",
            "--force-bad-path",
        ];
        run("dpkg", &[&fixed[..], arguments].concat()).expect_code(0)
    };
    dpkg(&["-i", &stand_in_deb]);
    dpkg(&["-i", &text]);
    let installed = |root: &Path| {
        let directory = root.join("usr/local/share/ca-certificates");
        let Ok(entries) = fs::read_dir(&directory) else {
            return Vec::new();
        };
        entries
            .map(|entry| fs::read(entry.expect("readable").path()).expect("readable"))
            .collect::<Vec<_>>()
    };
    let pem = fs::read(world.path("root.pem")).expect("readable");
    assert_eq!(installed(&root), std::slice::from_ref(&pem));
    let triggered = fs::read_to_string(&note).expect("it was triggered");
    assert!(
        triggered.contains("triggered update-ca-certificates"),
        "{triggered}"
    );
    // In a roll-over the newer package brings both.
    let dir = world.path("ca").display().to_string();
    world
        .cli(&["ca", "rollover", "start", "--dir", &dir])
        .expect_code(0);
    let newer = export(&world, "deb", "newer.deb", &[])
        .display()
        .to_string();
    dpkg(&["-i", &newer]);
    let now = installed(&root);
    assert!(now.len() == 2 && now.contains(&pem));
    dpkg(&["--remove", "claviger-ca"]);
    assert_eq!(installed(&root), [] as [Vec<u8>; 0]);
}
