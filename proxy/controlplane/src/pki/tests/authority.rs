//! `ca init`, `issue` and `export`, and the life of an authority's directory.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Ca, DAY, init_options, run, strings};
use crate::pki::authority::{Authority, Ensured, InitOptions, IssueOptions, KeyType, init, issue};
use crate::pki::export::{ExportFormat, ExportOptions, export};
use crate::pki::{LEAF_LIFE_DEFAULT, LeafStore, PkiError};

#[test]
fn init_writes_private_files_and_never_overwrites_by_chance() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("made/ca");
    let options = init_options(
        &dir,
        &["example.com", "*.example.net", "a.example.com"],
        &["api.example.com"],
    );
    let report = init(&options).unwrap();
    assert_eq!(report.permitted, ["example.com", "example.net"]);
    assert_eq!(report.intermediate_permitted, ["api.example.com"]);
    let text = report.to_string();
    assert!(
        text.contains("permits example.com, example.net and every name under it"),
        "{text}"
    );
    assert!(text.contains(&report.fingerprint), "{text}");

    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
    for (file, mode) in [
        ("root.pem", 0o644),
        ("root.key", 0o600),
        ("intermediate.pem", 0o644),
        ("intermediate.key", 0o600),
        ("state.json", 0o644),
    ] {
        assert_eq!(
            fs::metadata(dir.join(file)).unwrap().mode() & 0o7777,
            mode,
            "{file}"
        );
    }
    assert!(
        !fs::read_to_string(dir.join("state.json"))
            .unwrap()
            .contains("PRIVATE")
    );

    let before = fs::read(dir.join("root.key")).unwrap();
    let error = init(&options).unwrap_err().to_string();
    assert!(
        error.contains("already exists") && error.contains("--force"),
        "{error}"
    );
    assert_eq!(fs::read(dir.join("root.key")).unwrap(), before);

    let forced = init(&InitOptions {
        force: true,
        ..options
    })
    .unwrap();
    let aside = forced.set_aside.unwrap();
    assert_eq!(fs::read(aside.join("root.key")).unwrap(), before);
    assert_ne!(fs::read(dir.join("root.key")).unwrap(), before);
}

#[test]
fn init_refuses_what_would_not_limit_the_root() {
    let dir = tempfile::tempdir().unwrap();
    for (permit, hosts, says) in [
        (&[][..], &[][..], "--permit"),
        (&["com"], &[], "top-level domain"),
        (&["*.com"], &[], "top-level domain"),
        (&["192.0.2.1"], &[], "IP address"),
        (
            &["example.com"],
            &["api.example.net"],
            "outside the permitted domains",
        ),
        (
            &["example.com"],
            &["*.com"],
            "outside the permitted domains",
        ),
        (
            &["api.example.com"],
            &["*.example.com"],
            "outside the permitted domains",
        ),
    ] {
        let error = init(&init_options(dir.path(), permit, hosts))
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    }
    // Nothing was left behind.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    init(&init_options(
        dir.path(),
        &["internal"],
        &["claviger.internal"],
    ))
    .unwrap();
}

#[test]
fn coverage_tells_what_each_host_needs() {
    let ca = Ca::new(&["example.com"], &["api.example.com"]);
    let coverage = ca.authority.coverage(&strings(&[
        "api.example.com",
        "v1.api.example.com",
        "www.example.com",
        "*.example.com",
        "api.example.net",
        "127.0.0.1",
    ]));
    assert_eq!(coverage.outside_root, ["api.example.net"]);
    assert_eq!(
        coverage.outside_intermediate,
        ["www.example.com", "*.example.com"]
    );
    assert_eq!(coverage.invalid[0].0, "127.0.0.1");
    assert!(!coverage.is_complete() && !coverage.is_reachable());
    let text = coverage.to_string();
    for says in [
        "needs a new root: `claviger ca init --force --permit ...`",
        "re-trusting everywhere",
        "re-issues it if root.key is present",
        "IP address",
    ] {
        assert!(text.contains(says), "{text}");
    }
    let coverage = ca.authority.coverage(&strings(&["API.example.com."]));
    assert!(coverage.is_complete() && coverage.to_string().is_empty());
}

#[test]
fn the_intermediate_follows_the_hosts_where_the_root_key_is() {
    let mut ca = Ca::new(&["example.com"], &["api.example.com"]);
    let now = SystemTime::now();
    let api = strings(&["api.example.com"]);
    let both = strings(&["api.example.com", "*.www.example.com"]);
    let before = ca.leaf(&["api.example.com"]);

    assert!(matches!(
        ca.authority.ensure_intermediate(&api, now),
        Ok(Ensured::Kept { .. })
    ));
    assert!(matches!(
        ca.authority
            .ensure_intermediate(&strings(&["example.net"]), now),
        Err(PkiError::OutsideRoot { .. })
    ));

    // The root's key is offline: what is there serves on, what is new is refused with the cure.
    let key = ca.path("root.key");
    let offline = ca.path("elsewhere.key");
    fs::rename(&key, &offline).unwrap();
    assert!(matches!(
        ca.authority.ensure_intermediate(&api, now),
        Ok(Ensured::Kept { .. })
    ));
    let error = ca
        .authority
        .ensure_intermediate(&both, now)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("root.key: the root key is not here"),
        "{error}"
    );
    assert!(
        error.contains("does not permit *.www.example.com"),
        "{error}"
    );
    fs::rename(&offline, &key).unwrap();

    // Another process had loaded the directory before.
    let mut stale = Authority::load(ca.dir.path(), None).unwrap();
    let ensured = ca.authority.ensure_intermediate(&both, now).unwrap();
    assert!(matches!(ensured, Ensured::Reissued { .. }), "{ensured}");
    assert_eq!(
        ca.authority.intermediate_permitted(),
        ["api.example.com", "www.example.com"]
    );
    assert!(matches!(
        stale.ensure_intermediate(&both, now),
        Ok(Ensured::Kept { .. })
    ));
    let reloaded = Authority::load(ca.dir.path(), None).unwrap();
    assert_eq!(
        reloaded.intermediate_permitted(),
        ca.authority.intermediate_permitted()
    );
    // A new key, and no new root.
    assert_ne!(ca.leaf(&["a.www.example.com"]).cert[1], before.cert[1]);
    assert_eq!(reloaded.root_pem(), ca.authority.root_pem());
}

#[test]
fn the_intermediate_is_renewed_in_time() {
    let mut ca = Ca::new(&["example.com"], &["api.example.com"]);
    let hosts = strings(&["api.example.com"]);
    let now = SystemTime::now();
    let ensure =
        |authority: &mut Authority, days| authority.ensure_intermediate(&hosts, now + days * DAY);
    assert!(matches!(
        ensure(&mut ca.authority, 480),
        Ok(Ensured::Kept { .. })
    ));
    let key = ca.path("root.key");
    let offline = ca.path("elsewhere.key");
    fs::rename(&key, &offline).unwrap();
    let due = ensure(&mut ca.authority, 490).unwrap();
    assert!(matches!(due, Ensured::KeptButDue { .. }), "{due}");
    assert!(
        due.to_string().contains("the intermediate is near its end"),
        "{due}"
    );
    let error = ensure(&mut ca.authority, 731).unwrap_err().to_string();
    assert!(error.contains("expired on"), "{error}");
    fs::rename(&offline, &key).unwrap();
    assert!(matches!(
        ensure(&mut ca.authority, 490),
        Ok(Ensured::Reissued { .. })
    ));
    assert!(matches!(
        ensure(&mut ca.authority, 900),
        Ok(Ensured::Kept { .. })
    ));
    // Near the root's own end there is nothing to gain, and behind it nothing to do.
    assert!(matches!(
        ensure(&mut ca.authority, 3_640),
        Ok(Ensured::Reissued { .. })
    ));
    assert_eq!(
        ca.authority.intermediate_not_after(),
        Some(ca.authority.root_not_after())
    );
    assert!(matches!(
        ensure(&mut ca.authority, 3_650),
        Ok(Ensured::Kept { .. })
    ));
    assert!(matches!(
        ensure(&mut ca.authority, 3_653),
        Err(PkiError::Expired { .. })
    ));
}

#[test]
fn a_torn_intermediate_is_made_again() {
    let ca = Ca::new(&["example.com"], &["api.example.com"]);
    let other = Ca::new(&["example.com"], &["api.example.com"]);
    let hosts = strings(&["api.example.com"]);
    let now = SystemTime::now();
    let tear: [(&str, &dyn Fn()); 5] = [
        ("does not belong to intermediate.key", &|| {
            fs::copy(other.path("intermediate.key"), ca.path("intermediate.key")).unwrap();
        }),
        ("has no intermediate.key", &|| {
            fs::remove_file(ca.path("intermediate.key")).unwrap()
        }),
        ("was not issued by root.pem", &|| {
            fs::copy(other.path("intermediate.pem"), ca.path("intermediate.pem")).unwrap();
        }),
        ("cannot be read", &|| {
            fs::remove_file(ca.path("intermediate.pem")).unwrap()
        }),
        ("holds no certificate", &|| {
            fs::write(ca.path("intermediate.pem"), "").unwrap()
        }),
    ];
    for (problem, tear) in tear {
        tear();
        let mut authority = Authority::load(ca.dir.path(), None).unwrap();
        let error = authority.leaf_issuer().unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
        assert_eq!(authority.coverage(&hosts).outside_intermediate, hosts);
        match authority.ensure_intermediate(&hosts, now).unwrap() {
            Ensured::Reissued { reason, .. } => assert!(reason.contains(problem), "{reason}"),
            other => panic!("{other}"),
        }
        authority
            .leaf_issuer()
            .unwrap()
            .issue(&hosts, KeyType::Ecdsa, LEAF_LIFE_DEFAULT, now)
            .unwrap();
    }
}

#[test]
fn many_hosts_do_not_make_a_long_handshake() {
    let ca = Ca::new(&["example.com", "example.net"], &[]);
    let hosts: Vec<String> = (0..10_000).map(|n| format!("api{n}.example.com")).collect();
    let mut authority = ca.authority;
    // Nothing to do: without hosts, the intermediate permits what the root does.
    assert!(matches!(
        authority.ensure_intermediate(&hosts, SystemTime::now()),
        Ok(Ensured::Kept { .. })
    ));
    fs::remove_file(ca.dir.path().join("intermediate.pem")).unwrap();
    let mut authority = Authority::load(ca.dir.path(), None).unwrap();
    authority
        .ensure_intermediate(&hosts, SystemTime::now())
        .unwrap();
    assert_eq!(authority.intermediate_permitted(), ["example.com"]);
}

#[test]
fn load_tells_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let error = Authority::load(dir.path(), None).unwrap_err().to_string();
    assert!(
        error.contains("root.pem") && error.contains("claviger ca init --permit"),
        "{error}"
    );
    let ca = Ca::new(&["example.com"], &[]);
    fs::copy(ca.path("intermediate.pem"), dir.path().join("root.pem")).unwrap();
    // Another machine's root without its key is fine to load, to check names against.
    fs::copy(ca.path("root.pem"), dir.path().join("root.pem")).unwrap();
    let authority = Authority::load(dir.path(), None).unwrap();
    assert!(authority.intermediate_not_after().is_none());
    // An ordinary certificate is no root.
    let key = rcgen::KeyPair::generate().unwrap();
    let plain = rcgen::CertificateParams::new(strings(&["example.com"])).unwrap();
    fs::write(
        dir.path().join("root.pem"),
        plain.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    let error = Authority::load(dir.path(), None).unwrap_err().to_string();
    assert!(
        error.contains("is not a root with permitted domains"),
        "{error}"
    );
}

#[test]
fn issue_writes_a_chain_and_a_private_key() {
    let ca = Ca::new(&["example.com"], &["api.example.com"]);
    let out = tempfile::tempdir().unwrap();
    let options = |hosts: &[&str]| IssueOptions {
        out: Some(out.path().to_owned()),
        ..IssueOptions::new(ca.dir.path().to_owned(), strings(hosts), SystemTime::now())
    };
    let report = issue(&options(&["API.example.com", "v1.api.example.com"])).unwrap();
    assert!(matches!(report.ensured, Ensured::Kept { .. }));
    assert_eq!(report.certificate, out.path().join("api.example.com.pem"));
    assert_eq!(fs::metadata(&report.key).unwrap().mode() & 0o7777, 0o600);
    let text = fs::read_to_string(&report.certificate).unwrap();
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(!text.contains("PRIVATE"));
    assert!(report.to_string().contains("Issued a certificate for"));

    let error = issue(&options(&["api.example.com"]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("--force"), "{error}");
    issue(&IssueOptions {
        force: true,
        ..options(&["api.example.com"])
    })
    .unwrap();

    // A host beyond the intermediate's, and what it permitted before stays permitted.
    let report = issue(&options(&["*.www.example.com"])).unwrap();
    assert_eq!(
        report.certificate,
        out.path().join("wildcard.www.example.com.pem")
    );
    assert!(report.to_string().contains("re-issued"), "{report}");
    let authority = Authority::load(ca.dir.path(), None).unwrap();
    assert_eq!(
        authority.intermediate_permitted(),
        ["api.example.com", "www.example.com"]
    );
    assert!(matches!(
        issue(&options(&["example.net"])),
        Err(PkiError::OutsideRoot { .. })
    ));
    assert!(matches!(issue(&options(&[])), Err(PkiError::Host { .. })));

    // What was issued is valid for as long as it says.
    let years = IssueOptions {
        days: 10_000,
        ..options(&["b.api.example.com"])
    };
    assert_eq!(
        issue(&years).unwrap().not_after,
        authority.intermediate_not_after().unwrap()
    );
}

#[test]
fn export_gives_the_root_alone() {
    let ca = Ca::new(&["example.com"], &[]);
    let out = ca.path("exported");
    let options = ExportOptions {
        dir: ca.dir.path().to_owned(),
        out: None,
        format: ExportFormat::Pem,
        now: SystemTime::now(),
        force: false,
    };
    let pem = export(&options).unwrap();
    assert_eq!(pem.bytes, fs::read(ca.path("root.pem")).unwrap());
    let der = export(&ExportOptions {
        out: Some(out.clone()),
        format: ExportFormat::Der,
        ..options.clone()
    })
    .unwrap();
    assert_eq!(der.bytes, ca.root().as_ref());
    assert_eq!(fs::read(&out).unwrap(), der.bytes);
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o644);
    assert!(matches!(
        export(&ExportOptions {
            out: Some(out.clone()),
            ..options.clone()
        }),
        Err(PkiError::Exists { .. })
    ));
    export(&ExportOptions {
        out: Some(out),
        force: true,
        ..options
    })
    .unwrap();
    let (_, text) = run(
        "openssl",
        &[
            "x509",
            "-noout",
            "-fingerprint",
            "-sha256",
            "-in",
            ca.path("root.pem").to_str().unwrap(),
        ],
    );
    assert!(text.contains(&der.roots[0].fingerprint), "{text}");
}

#[test]
fn leaves_are_kept_renewed_and_forgotten() {
    let ca = Ca::new(&["example.com"], &[]);
    let mut store = LeafStore::new(ca.authority.leaf_issuer().unwrap(), LEAF_LIFE_DEFAULT);
    let now = SystemTime::now();
    let api = strings(&["api.example.com"]);
    assert!(!store.renew_due(now) && store.next_renewal().is_none());
    let leaf = |store: &mut LeafStore, when| store.leaf(&api, KeyType::Ecdsa, when).unwrap();
    let first = leaf(&mut store, now);
    assert_eq!(store.expires_at(), Some(now + 30 * DAY));
    assert_eq!(store.next_renewal(), Some(now + 20 * DAY));
    assert!(Arc::ptr_eq(&first, &leaf(&mut store, now + 19 * DAY)));
    assert!(!store.renew_due(now + 19 * DAY) && store.renew_due(now + 20 * DAY));
    let second = leaf(&mut store, now + 20 * DAY);
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(store.next_renewal(), Some(now + 40 * DAY));
    let rsa = store.leaf(&api, KeyType::Rsa, now).unwrap();
    assert_eq!(rsa.key.algorithm(), rustls::SignatureAlgorithm::RSA);

    // The intermediate ends: its last leaf serves to the end, and is not made anew in a hurry.
    let end = ca.authority.intermediate_not_after().unwrap();
    let last = leaf(&mut store, end - DAY);
    assert!(Arc::ptr_eq(&last, &leaf(&mut store, end - DAY + DAY / 2)));
    assert!(matches!(
        store.leaf(&api, KeyType::Ecdsa, end),
        Err(PkiError::Expired { .. })
    ));

    // The same issuer keeps the leaves, another one does not.
    let mut store = LeafStore::new(ca.authority.leaf_issuer().unwrap(), LEAF_LIFE_DEFAULT);
    let kept = leaf(&mut store, now);
    store.replace_issuer(ca.authority.leaf_issuer().unwrap(), LEAF_LIFE_DEFAULT);
    assert!(Arc::ptr_eq(&kept, &leaf(&mut store, now)));
    let other = Ca::new(&["example.com"], &[]);
    store.replace_issuer(other.authority.leaf_issuer().unwrap(), LEAF_LIFE_DEFAULT);
    assert!(store.next_renewal().is_none());
    assert!(!Arc::ptr_eq(&kept, &leaf(&mut store, now)));
    store.retain(|_| false);
    assert!(store.next_renewal().is_none());
    assert!(matches!(
        store.leaf(&strings(&["example.net"]), KeyType::Ecdsa, now),
        Err(PkiError::OutsideIntermediate { .. })
    ));
}

#[test]
fn serials_are_random_and_debug_shows_no_key() {
    let ca = Ca::new(&["example.com"], &[]);
    let serials: HashSet<Vec<u8>> = (0..50)
        .map(|_| crate::pki::leaf::random_serial().unwrap().to_bytes())
        .inspect(|serial| assert!(serial.len() == 20 && serial[0] & 0x80 == 0 && serial[0] != 0))
        .collect();
    assert_eq!(serials.len(), 50);

    let issuer = ca.authority.leaf_issuer().unwrap();
    let leaf = issuer
        .issue(
            &strings(&["api.example.com"]),
            KeyType::Ecdsa,
            LEAF_LIFE_DEFAULT,
            SystemTime::now(),
        )
        .unwrap();
    let key = fs::read_to_string(ca.path("intermediate.key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    let shown = format!(
        "{issuer:?} {leaf:?} {:?} {:?}",
        ca.authority,
        ca.authority.own_ca()
    );
    assert!(
        !shown.contains(secret) && !shown.contains("PRIVATE"),
        "{shown}"
    );
}
