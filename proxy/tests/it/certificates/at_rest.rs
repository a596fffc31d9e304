//! The internal CA's keys under a passphrase: OpenSSL opens them, Claviger serves with them, and
//! without the passphrase nothing does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::harness::World;
use crate::harness::process::{Finished, Process};
use crate::harness::world::{HOST, Site, bearer_route};

fn openssl(arguments: &[&str]) -> Finished {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(std::process::Stdio::null());
    Process::run("openssl", command)
}

/// The public key in a certificate or, under a passphrase, in a private key.
fn public_key(path: &Path, passphrase: Option<&Path>) -> Option<String> {
    let path = path.display().to_string();
    let finished = match passphrase {
        None => openssl(&["x509", "-in", &path, "-noout", "-pubkey"]),
        Some(file) => {
            let source = format!("file:{}", file.display());
            openssl(&["pkey", "-in", &path, "-passin", &source, "-pubout"])
        }
    };
    (finished.status.code() == Some(0)).then(|| finished.out_text())
}

fn encrypt(world: &World, old: Option<&Path>, new: &Path) -> Finished {
    let ca = world.path("ca").display().to_string();
    let new = format!("file://{}", new.display());
    let old = old.map(|path| format!("file://{}", path.display()));
    let mut arguments = vec!["ca", "encrypt", "--dir", &ca, "--passphrase", &new];
    if let Some(old) = &old {
        arguments.extend(["--old", old]);
    }
    world.cli(&arguments)
}

#[test]
fn keys_lie_encrypted_and_openssl_opens_them() {
    let world = World::new();
    let (one, other) = (world.key_file("one").1, world.key_file("other").1);
    let ca = world.path("ca");
    let dir = ca.display().to_string();
    let plain = fs::read(ca.join("root.key")).expect("readable");
    encrypt(&world, None, &one).expect_code(0);
    for name in ["root", "intermediate"] {
        let key = ca.join(format!("{name}.key"));
        let text = fs::read_to_string(&key).expect("readable");
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
        let mode = fs::metadata(&key).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let of_certificate = public_key(&ca.join(format!("{name}.pem")), None);
        assert!(of_certificate.is_some());
        assert_eq!(public_key(&key, Some(&one)), of_certificate);
        assert_eq!(public_key(&key, Some(&other)), None);
    }
    // Issuing takes the passphrase, and says so.
    let issue = |reference: Option<&Path>| {
        let out = world.subdirectory("issued").display().to_string();
        let reference = reference.map(|path| format!("file://{}", path.display()));
        let mut arguments = vec!["ca", "issue", HOST, "--dir", &dir, "--out", &out];
        if let Some(reference) = &reference {
            arguments.extend(["--passphrase", reference]);
        }
        world.cli(&arguments)
    };
    issue(Some(&one)).expect_code(0);
    let missing = issue(None).expect_code(1).err_text();
    assert!(
        missing.contains("is encrypted, and no passphrase was given")
            && missing.contains("--passphrase"),
        "{missing}"
    );
    let wrong = issue(Some(&other)).expect_code(1).err_text();
    assert!(wrong.contains("with another passphrase"), "{wrong}");
    let absent = issue(Some(Path::new("/nowhere/passphrase")));
    assert!(
        absent
            .expect_code(1)
            .err_text()
            .contains("cannot read /nowhere/passphrase")
    );
    // Another passphrase; a wrong one changes nothing.
    let sealed = fs::read(ca.join("root.key")).expect("readable");
    encrypt(&world, Some(&other), &other).expect_code(1);
    encrypt(&world, None, &other).expect_code(1);
    assert_eq!(fs::read(ca.join("root.key")).expect("readable"), sealed);
    encrypt(&world, Some(&one), &other).expect_code(0);
    issue(Some(&one)).expect_code(1);
    issue(Some(&other)).expect_code(0);
    // What OpenSSL encrypts is opened as well, by both of its functions.
    for functions in [
        ["-scrypt"].as_slice(),
        &["-v2prf", "hmacWithSHA256", "-iter", "10000"],
    ] {
        let (input, key) = (world.write("plain.key", &plain), ca.join("root.key"));
        let (input, key) = (input.display().to_string(), key.display().to_string());
        let source = format!("file:{}", other.display());
        let fixed = [
            "pkcs8",
            "-topk8",
            "-v2",
            "aes-256-cbc",
            "-in",
            &input,
            "-out",
            &key,
        ];
        let arguments = [&fixed[..], &["-passout", &source], functions].concat();
        openssl(&arguments).expect_code(0);
        // A host that the intermediate does not have yet takes the root's key.
        fs::remove_file(ca.join("intermediate.pem")).expect("there");
        issue(Some(&other)).expect_code(0);
    }
    // And back.
    let other = format!("file://{}", other.display());
    world
        .cli(&["ca", "decrypt", "--dir", &dir, "--passphrase", &other])
        .expect_code(0);
    assert_eq!(fs::read(ca.join("root.key")).expect("readable"), plain);
    issue(None).expect_code(0);
}

#[test]
fn it_serves_with_keys_under_a_passphrase() {
    let site = Site::build(&[], |world, mock, key_file| {
        let (_, file) = world.key_file("passphrase");
        encrypt(world, None, &file).expect_code(0);
        let base = world.base().replace(
            "[ca]\n",
            &format!("[ca]\npassphrase = \"file://{}\"\n", file.display()),
        );
        format!(
            "{base}{}{}",
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    site.get("/echo").expect(200);
    // A host outside of the intermediate's makes another one, under the passphrase too.
    let config = fs::read_to_string(site.claviger.config()).expect("readable");
    let ca = site.world.path("ca");
    fs::remove_file(ca.join("intermediate.pem")).expect("there");
    site.claviger.reload(&format!("{config}# again\n"));
    site.get("/echo").expect(200);
    let key = fs::read_to_string(ca.join("intermediate.key")).expect("readable");
    assert!(key.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
    // `check` has nothing to say of them, and does of plain ones.
    let path = site.claviger.config().display().to_string();
    let check = |what: &str| {
        let finished = site.world.cli(&["check", "--config", &path]);
        assert_eq!(finished.status.code(), Some(0), "{what}");
        finished.err_text()
    };
    let said = check("encrypted");
    assert!(!said.contains("not encrypted"), "{said}");
    let dir = ca.display().to_string();
    let file = format!("file://{}", site.world.path("passphrase").display());
    let decrypt = ["ca", "decrypt", "--dir", &dir, "--passphrase", &file];
    site.world.cli(&decrypt).expect_code(0);
    let said = check("plain");
    assert!(
        said.contains("not encrypted") && said.contains("claviger ca encrypt"),
        "{said}"
    );
}

#[test]
fn a_wrong_passphrase_keeps_it_from_starting_and_says_why() {
    let world = World::new();
    let (right, wrong) = (world.key_file("right").1, world.key_file("wrong").1);
    encrypt(&world, None, &right).expect_code(0);
    let start = |passphrase: &str| {
        let base = world
            .base()
            .replace("[ca]\n", &format!("[ca]\n{passphrase}\n"));
        let config = world.write(
            "claviger.toml",
            format!(
                "{base}[[route]]\nhost = \"{HOST}\"\ncredential = \"none\"\ncallers = \"open\"\n"
            ),
        );
        let config = config.display().to_string();
        let finished = world.cli(&["run", "--config", &config]).expect_code(1);
        finished.err_text()
    };
    let said = start("");
    assert!(
        said.contains("is encrypted, and no passphrase was given"),
        "{said}"
    );
    let said = start(&format!("passphrase = \"file://{}\"", wrong.display()));
    assert!(
        said.contains("is encrypted with another passphrase"),
        "{said}"
    );
    let said = start("passphrase = \"credential://ca\"");
    assert!(said.contains("$CREDENTIALS_DIRECTORY is not set"), "{said}");
    // One that was written out is refused and never shown.
    let said = start("passphrase = \"correct horse battery staple\"");
    assert!(
        said.contains("file:///path") && !said.contains("horse"),
        "{said}"
    );
}
