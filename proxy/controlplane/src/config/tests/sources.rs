//! What `resolve` says of keys, certificates and CAs that cannot be used.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// What stands in every key file here, and in no report.
const PLANTED: &str = "planted-0123456789abcdef";

#[track_caller]
fn check_says(house: &House, text: &str, expected: &[&str]) {
    let report = match house.resolve(text) {
        Ok(resolved) => resolved.warnings,
        Err(report) => report,
    };
    let said = report.to_string();
    for part in expected {
        let dir = house.path("").display().to_string();
        let part = part.replace("DIR", dir.trim_end_matches('/'));
        assert!(said.contains(&part), "{part:?} is not in\n{said}");
    }
    assert!(!said.contains("planted"), "the report shows a key:\n{said}");
}

fn house() -> House {
    let house = House::new(&["example.com"]);
    house.key("key", PLANTED.as_bytes());
    house
}

fn route(credential: &str) -> String {
    format!("[[route]]\nhost = \"api.example.com\"\ncredential = \"{credential}\"\n")
}

#[test]
fn keys() {
    let house = house();
    house.key("empty", b"");
    house.key("short", b"abc123");
    house.key("lines", b"planted-01234567\nplanted-89abcdef\n");
    house.key("world", PLANTED.as_bytes());
    std::fs::set_permissions(house.path("world"), std::fs::Permissions::from_mode(0o644))
        .expect("a mode");
    check_says(
        &house,
        &route("file://DIR/none"),
        &[
            "error: the key of `api.example.com` cannot be used: cannot read DIR/none",
            "claviger.toml:5:14",
            "credential = \"<hidden>\"",
        ],
    );
    check_says(
        &house,
        &route("file://DIR/empty"),
        &["is empty", "cure: write the key into it"],
    );
    check_says(
        &house,
        &route("file://DIR/lines"),
        &["cannot be written: the secret contains a control character"],
    );
    check_says(
        &house,
        &route("file://DIR/world"),
        &["may be read by every user", "chmod 640"],
    );
    check_says(
        &house,
        &route("env://CLAVIGER_TEST_NOT_SET"),
        &["CLAVIGER_TEST_NOT_SET is not set"],
    );
    check_says(
        &house,
        &route("file://DIR/short"),
        &[
            "warning: the key of `api.example.com` is shorter than 16 bytes",
            "1 warning",
        ],
    );
    let named = "[credential.c]\nsource = \"file://DIR/world\"\nallow_world_readable = true\n";
    let resolved = house
        .resolve(&format!("{named}{}", route("c")))
        .unwrap_or_else(|report| panic!("{report}"));
    assert!(resolved.warnings.is_empty());
    let basic = "[credential.c]\nsource = \"file://DIR/key\"\ninject = \"basic\"\n";
    check_says(
        &house,
        &format!("{basic}{}", route("c")),
        &["`basic` without `username` needs a secret of the form user:password"],
    );
}

#[test]
fn everything_is_said_at_once() {
    let house = house();
    check_says(
        &house,
        &format!(
            "[upstream.api]\nhost = \"api.example.com\"\nca_file = \"none.pem\"\n[host.\"b.example.org\"]\nclient_ca = \"none.pem\"\n{}\
             [[route]]\nname = \"b\"\nhost = \"b.example.org\"\nupstream = \"api\"\ncredential = \"file://DIR/none\"\n",
            route("file://DIR/empty-too").replace("/empty-too", "/none")
        ),
        &[
            "the key of `api.example.com` cannot be used",
            "the key of `b` cannot be used",
            "`ca_file` of the upstream `api` cannot be used",
            "`client_ca` of `b.example.org` cannot be used",
            "`b.example.org` is outside the domains that the internal CA's root permits (example.com)",
            "make a new root with `claviger ca init --force --permit ...`",
            "5 errors",
        ],
    );
}

#[test]
fn certificates_from_files() {
    let house = house();
    let mut issue = crate::pki::authority::IssueOptions::new(
        house.path("ca"),
        vec!["api.example.com".to_owned()],
        SystemTime::now(),
    );
    issue.out = Some(house.path(""));
    crate::pki::authority::issue(&issue).expect("a certificate");
    let host = "[host.\"NAME\"]\ncertificate = \"file://DIR/api.example.com.pem\"\nprivate_key = \"api.example.com.key\"\n";
    let good = format!(
        "{}{}",
        host.replace("NAME", "api.example.com"),
        route("file://DIR/key")
    );
    let resolved = house
        .resolve(&good)
        .unwrap_or_else(|report| panic!("{report}"));
    assert!(resolved.snapshot.hosts()[0].tls.is_some());
    assert_eq!(resolved.next_renewal, None, "none of the internal CA's");
    for name in ["api.example.com.pem", "api.example.com.key"] {
        assert!(
            resolved.settings.watch_paths.contains(&house.path(name)),
            "{name} is watched"
        );
    }
    let other = format!(
        "{}{}",
        host.replace("NAME", "b.example.com"),
        route("file://DIR/key").replace("api.", "b.")
    );
    check_says(
        &house,
        &other,
        &[
            "error: no certificate is valid for `b.example.com`",
            "not valid for b.example.com",
        ],
    );
    check_says(
        &house,
        &good.replace("api.example.com.key", "none.key"),
        &[
            "the certificate of `api.example.com` cannot be used",
            "none.key",
        ],
    );
    std::fs::set_permissions(
        house.path("api.example.com.key"),
        std::fs::Permissions::from_mode(0o644),
    )
    .expect("a mode");
    check_says(
        &house,
        &good,
        &[
            "the certificate of `api.example.com` cannot be used",
            "api.example.com.key",
        ],
    );
    let allowed = good.replace("private_key", "allow_world_readable = true\nprivate_key");
    house
        .resolve(&allowed)
        .unwrap_or_else(|report| panic!("{report}"));
}

#[test]
fn no_ca() {
    let house = house();
    std::fs::remove_dir_all(house.path("ca")).expect("the CA");
    check_says(
        &house,
        &route("file://DIR/key"),
        &[
            "error: no certificate for `api.example.com`",
            "claviger ca init",
        ],
    );
    // In clear text nobody needs one.
    let clear = format!(
        "[[listener]]\naddress = \"127.0.0.1:8080\"\ntls = false\n{}",
        route("file://DIR/key")
    );
    let resolved = house
        .resolve(&clear)
        .unwrap_or_else(|report| panic!("{report}"));
    assert!(resolved.snapshot.hosts()[0].tls.is_none());
}

#[test]
fn to_look_writes_nothing() {
    let house = house();
    let first = house.path("ca/intermediate.pem");
    let before = std::fs::read(&first).expect("an intermediate");
    // The intermediate permits what the root does, until it is made for hosts.
    let text = route("file://DIR/key");
    house
        .resolve(&text)
        .unwrap_or_else(|report| panic!("{report}"));
    let narrow = std::fs::read(&first).expect("an intermediate");
    let wider = text.replace("api.", "b.");
    let file = house.load(&wider).expect("a file");
    let looked =
        resolve(&file, &mut ResolveContext::to_look()).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(
        std::fs::read(&first).expect("an intermediate"),
        narrow,
        "nothing was written"
    );
    if narrow != before {
        assert!(
            looked
                .warnings
                .to_string()
                .contains("does not permit `b.example.com` yet"),
            "{}",
            looked.warnings
        );
        assert!(looked.snapshot.hosts()[0].tls.is_none());
    }
    let served =
        resolve(&file, &mut ResolveContext::new()).unwrap_or_else(|report| panic!("{report}"));
    assert!(served.snapshot.hosts()[0].tls.is_some());
}

#[test]
fn our_own_addresses_are_refused() {
    let house = house();
    let own = nix::ifaddrs::getifaddrs()
        .expect("interfaces")
        .filter_map(|interface| interface.address?.as_sockaddr_in().map(|v4| v4.ip()))
        .find(|ip| !ip.is_loopback() && !ip.is_link_local());
    // A machine may have no interface but the loopback one.
    let Some(own) = own else { return };
    let text = format!(
        "[upstream.api]\nhost = \"api.example.com\"\naddresses = [\"{own}:443\"]\n{}upstream = \"api\"\n",
        route("file://DIR/key")
    );
    check_says(
        &house,
        &text,
        &["is an address of this machine, and our own listener is there"],
    );
    let other_port = text.replace(":443", ":9443");
    house
        .resolve(&other_port)
        .unwrap_or_else(|report| panic!("{report}"));
}

#[test]
fn the_service_user_must_be_able_to_read_again() {
    let house = house();
    let text = format!(
        "user = \"claviger-no-such-user\"\n{}",
        route("file://DIR/key")
    );
    check_says(
        &house,
        &text,
        &[
            "there is no user `claviger-no-such-user`",
            "claviger.toml:3:8",
        ],
    );
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let text = format!("user = \"nobody\"\n{}", route("file://DIR/key"));
    check_says(
        &house,
        &text,
        &["the key of `api.example.com` could not be read again"],
    );
}
