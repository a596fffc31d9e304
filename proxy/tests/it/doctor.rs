//! `claviger doctor`: each thing that can be wrong is set up for real, in a network of its own with
//! a real resolver, a real firewall and a real Claviger, and is named first.

use std::fmt::Write as _;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, GeneralSubtree, IsCa, Issuer, KeyPair, NameConstraints,
};
use serde_json::Value;

use crate::harness::World;
use crate::harness::mock::fingerprint;
use crate::harness::namespace::Namespace;
use crate::harness::pki::TestCa;
use crate::harness::process::{self, Finished, Process};
use crate::harness::world::{Claviger, HOST};

/// Where Claviger is, the resolvers, the API, and a public resolver: all on the namespace's loopback interface.
const CLAVIGER: &str = "10.0.0.5";
const ANOTHER: &str = "10.0.0.6";
const RESOLVER: &str = "10.0.0.2";
const ANOTHER_RESOLVER: &str = "10.0.0.3";
const API: &str = "203.0.113.9";
const PUBLIC_RESOLVER: &str = "8.8.8.8";

/// What listens at Claviger's address, port 443.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listens {
    Claviger,
    Nothing,
    /// The mock API, with a certificate of these dates in days from now, for this name.
    Other {
        from: i64,
        until: i64,
        name: &'static str,
    },
    /// The same, signed by a root that permits other names.
    Constrained,
    /// The mock API in clear text.
    Plain,
    /// The mock API, held still before it accepts.
    Still,
    /// The mock API, which thinks for a minute.
    Slow,
}

/// One way of setting it all up. The default is healthy.
struct Setup {
    /// Options of dnsmasq at [`RESOLVER`]; empty: there is none.
    dns: Vec<String>,
    /// The same at [`ANOTHER_RESOLVER`].
    other_dns: Vec<String>,
    /// The same at [`PUBLIC_RESOLVER`].
    public_dns: Vec<String>,
    hosts: String,
    resolv: String,
    /// A shell script that is run in the network.
    network: &'static str,
    listens: Listens,
    /// Claviger's configuration is changed so.
    config: fn(String) -> String,
    /// Whether Claviger's CA is the machine's.
    trusted: bool,
    environment: Vec<(&'static str, String)>,
    arguments: Vec<String>,
    /// Whether doctor is given the configuration.
    office: bool,
    /// The configuration that doctor is given is changed so: it is not the one that runs.
    office_config: fn(String) -> String,
    /// Whether a Claviger runs.
    runs: bool,
    /// Files under the searched directory, made of a PEM and a DER of an unrelated root.
    stores: fn(&std::path::Path, &str, &[u8]),
}

fn address(ip: &str) -> Vec<String> {
    vec![
        format!("--address=/{HOST}/{ip}"),
        format!("--local=/{HOST}/"),
    ]
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            dns: address(CLAVIGER),
            other_dns: Vec::new(),
            public_dns: Vec::new(),
            hosts: "127.0.0.1 localhost\n".to_owned(),
            resolv: format!("nameserver {RESOLVER}\n"),
            network: "",
            listens: Listens::Claviger,
            config: |config| config,
            trusted: true,
            environment: Vec::new(),
            arguments: vec!["--no-egress".to_owned()],
            office: false,
            office_config: |config| config,
            runs: true,
            stores: |_, _, _| (),
        }
    }
}

/// What doctor has said.
struct Said {
    finished: Finished,
    json: Value,
    text: String,
    key: String,
}

impl Setup {
    #[track_caller]
    fn examine(self) -> Said {
        let world = World::new();
        let hosts = world.write("hosts", &self.hosts);
        let resolv = world.write("resolv.conf", &self.resolv);
        let empty = world.write("environment", "");
        let mut network = String::new();
        for ip in [
            CLAVIGER,
            ANOTHER,
            RESOLVER,
            ANOTHER_RESOLVER,
            API,
            PUBLIC_RESOLVER,
        ] {
            let _ = writeln!(network, "ip address add {ip}/32 dev lo");
        }
        let _ = write!(
            network,
            "mount --bind {hosts:?} /etc/hosts\nmount --bind {resolv:?} /etc/resolv.conf\n\
             [ ! -e /etc/environment ] || mount --bind {empty:?} /etc/environment\n{}\n",
            self.network
        );
        let namespace = Namespace::new(&network);
        let _resolvers: Vec<Process> = [
            (RESOLVER, &self.dns),
            (ANOTHER_RESOLVER, &self.other_dns),
            (PUBLIC_RESOLVER, &self.public_dns),
        ]
        .into_iter()
        .filter(|(_, options)| !options.is_empty())
        .map(|(ip, options)| resolver(&namespace, ip, options))
        .collect();

        let ca = TestCa::new(&world.path(""), "api-ca");
        let (key, key_file) = world.key_file("key");
        let api = {
            let (chain, private) = ca.server_files(&world.subdirectory("api"), &[HOST]);
            mock(
                &namespace,
                API,
                &[
                    "--cert".into(),
                    chain.display().to_string(),
                    "--cert-key".into(),
                    private.display().to_string(),
                    "--auth".into(),
                    "bearer".into(),
                    "--key".into(),
                    key.clone(),
                ],
            )
        };
        let config = (self.config)(format!(
            "{}[dns]\nservers = [\"{PUBLIC_RESOLVER}\"]\nttl_min = \"1s\"\n\
             [[listener]]\nname = \"main\"\naddress = [\"{CLAVIGER}:443\"]\n\
             [upstream.mock]\nhost = {HOST:?}\naddresses = [\"{API}:443\"]\nca_file = {:?}\n\
             [[route]]\nname = \"mock\"\nhost = {HOST:?}\nupstream = \"mock\"\ncredential = \"file://{}\"\ncallers = \"open\"\n",
            world.base_without_listener(),
            ca.file(),
            key_file.display()
        ));
        let office_file = world.write("office.toml", (self.office_config)(config.clone()));
        let mut roots = std::fs::read_to_string(world.path("root.pem")).expect("the root");
        let (_claviger, _other): (Option<Claviger>, Option<Process>) = match self.listens {
            Listens::Claviger if self.runs => {
                let mut command = namespace.command(process::binary("claviger"));
                command.env_clear();
                (Some(world.start_with(&config, command, &[])), None)
            }
            Listens::Claviger | Listens::Nothing => (None, None),
            other => {
                let mut options = vec!["--auth".to_owned(), "none".to_owned()];
                if other == Listens::Plain {
                    options.push("--plain".to_owned());
                } else {
                    let (root, chain, private) = certificates(&world, other);
                    roots.push_str(&root);
                    options.extend(["--cert".to_owned(), chain.display().to_string()]);
                    options.extend(["--cert-key".to_owned(), private.display().to_string()]);
                }
                if other == Listens::Slow {
                    options.extend(["--latency".to_owned(), "fixed:60s".to_owned()]);
                }
                let process = mock(&namespace, CLAVIGER, &options);
                if other == Listens::Still {
                    process.signal(libc::SIGSTOP);
                }
                (None, Some(process))
            }
        };

        let stranger = TestCa::new(&world.path(""), "stranger");
        let stranger = std::fs::read_to_string(stranger.file()).expect("a root");
        let search = world.subdirectory("machine");
        (self.stores)(&search, &stranger, &der(&stranger));
        let store = world.write("store.pem", if self.trusted { &roots } else { &stranger });
        let run = |json: bool| {
            let mut command = namespace.command(process::binary("claviger"));
            command
                .env_clear()
                .env("PATH", search.join("bin"))
                .env("SSL_CERT_FILE", &store)
                .args(["doctor", HOST, "--search"])
                .arg(&search)
                .args(&self.arguments);
            if self.office {
                // Ways to look that belong to a service's machine.
                command.arg("--config").arg(&office_file);
            }
            if json {
                command.arg("--json");
            }
            for (name, value) in &self.environment {
                command.env(name, value);
            }
            let finished = Process::run("doctor", command);
            world.evidence("what doctor says", finished.all());
            finished
        };
        let finished = run(true);
        let text = run(false).out_text();
        drop(api);
        if let Some(process) = &_other
            && self.listens == Listens::Still
        {
            process.signal(libc::SIGCONT);
        }
        let json = serde_json::from_slice(&finished.out).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&finished.all()))
        });
        Said {
            finished,
            json,
            text,
            key,
        }
    }
}

/// Sets it up, and sees that this code is the first thing that is wrong, in both forms.
#[track_caller]
fn check(code: &str, setup: Setup) -> Said {
    let said = setup.examine();
    assert_eq!(said.json["first"], code, "{:#}", said.json);
    assert_eq!(said.json["healthy"], false);
    assert_eq!(said.finished.status.code(), Some(1));
    assert!(
        said.text.contains(&format!("WRONG: {code}: ")),
        "{}",
        said.text
    );
    assert!(said.text.contains("\n  cure: "), "{}", said.text);
    said
}

/// Sets it up, and sees that nothing is wrong but this warning, if there is one.
#[track_caller]
fn check_healthy(warning: Option<&str>, setup: Setup) -> Said {
    let said = setup.examine();
    assert_eq!(said.json["first"], Value::Null, "{:#}", said.json);
    assert_eq!(said.finished.status.code(), Some(0));
    let found: Vec<&str> = said.json["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|finding| finding["code"].as_str())
        .collect();
    assert_eq!(
        found,
        warning.into_iter().collect::<Vec<_>>(),
        "{:#}",
        said.json
    );
    assert!(said.text.contains("nothing is wrong"), "{}", said.text);
    said
}

#[track_caller]
fn resolver(namespace: &Namespace, ip: &str, options: &[String]) -> Process {
    let mut command = namespace.dnsmasq();
    command.arg(format!("--listen-address={ip}")).args(options);
    let resolver = Process::start("dnsmasq", command);
    resolver.err.wait("dnsmasq's start", |line| {
        line.contains("started").then_some(())
    });
    resolver
}

#[track_caller]
fn mock(namespace: &Namespace, ip: &str, options: &[String]) -> Process {
    let mut command = namespace.command(process::binary("mock-upstream"));
    command
        .arg("--listen")
        .arg(format!("{ip}:443"))
        .args(options);
    let process = Process::start("mock-upstream", command);
    process.out.wait("mock-upstream's `ready`", |line| {
        (line == "ready").then_some(())
    });
    process
}

/// A root, and a chain and a key of a server's that it has signed.
fn certificates(world: &World, listens: Listens) -> (String, PathBuf, PathBuf) {
    let (from, until, name) = match listens {
        Listens::Other { from, until, name } => (from, until, name),
        _ => (-1, 300, HOST),
    };
    let root_key = KeyPair::generate().expect("a key");
    let mut root = CertificateParams::new(Vec::new()).expect("no names");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name
        .push(rcgen::DnType::CommonName, "another root");
    if listens == Listens::Constrained {
        root.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("elsewhere.example".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    }
    let pem = root.self_signed(&root_key).expect("a root").pem();
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().expect("a key");
    let mut leaf = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let day = |days: i64| {
        let now = std::time::SystemTime::now();
        let span = std::time::Duration::from_secs(days.unsigned_abs() * 24 * 60 * 60);
        let when = if days < 0 { now - span } else { now + span };
        when.into()
    };
    leaf.not_before = day(from);
    leaf.not_after = day(until);
    let leaf = leaf.signed_by(&key, &issuer).expect("signed").pem();
    (
        pem,
        world.write("other.pem", leaf),
        world.write("other.key", key.serialize_pem()),
    )
}

/// The bytes of the one certificate in a PEM file.
fn der(pem: &str) -> Vec<u8> {
    use base64::Engine;
    let body: String = pem
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    base64::engine::general_purpose::STANDARD
        .decode(body)
        .expect("base64")
}

fn fact<'s>(said: &'s Said, step: &str) -> &'s str {
    said.json["facts"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|fact| fact["step"] == step)
        .and_then(|fact| fact["seen"].as_str())
        .unwrap_or_else(|| panic!("no {step} in {:#}", said.json))
}

fn with(options: &[&str]) -> Vec<String> {
    [&["--no-egress"], options]
        .concat()
        .iter()
        .map(|&option| option.to_owned())
        .collect()
}

#[test]
fn a_healthy_one() {
    let said = check_healthy(
        None,
        Setup {
            arguments: with(&["--call", "/echo"]),
            ..Setup::default()
        },
    );
    assert!(
        fact(&said, "name").contains("10.0.0.5 (resolver 10.0.0.2)"),
        "{:#}",
        said.json
    );
    assert!(fact(&said, "claviger").starts_with("it is Claviger that answers"));
    assert!(
        fact(&said, "call").starts_with("GET /echo: 200 from the API"),
        "{:#}",
        said.json
    );
}

#[test]
fn a_healthy_office() {
    let said = check_healthy(
        None,
        Setup {
            office: true,
            arguments: vec![
                "--from".into(),
                "10.0.3.7".into(),
                "--path".into(),
                "/echo?key=1".into(),
            ],
            ..Setup::default()
        },
    );
    assert!(
        fact(&said, "rule").contains("route mock"),
        "{:#}",
        said.json
    );
    assert!(
        fact(&said, "strips").contains("authorization"),
        "{:#}",
        said.json
    );
    let name = format!("sha256:{}", &fingerprint(&said.key)[..12]);
    assert!(fact(&said, "writes").contains(&name), "{:#}", said.json);
    assert!(
        fact(&said, "listener").contains("Claviger answers at 10.0.0.5:443"),
        "{:#}",
        said.json
    );
    assert!(
        fact(&said, "upstream").contains("verified"),
        "{:#}",
        said.json
    );
}

/// An edge beside the hub that runs: it does not run itself, but its way to the hub is good.
#[test]
fn from_an_edge_to_its_hub() {
    let said = check(
        "listener_refused",
        Setup {
            office: true,
            arguments: Vec::new(),
            office_config: |config| {
                as_edge(with_own_ca(config))
                    .replace("10.0.0.5:443", "10.0.0.6:443")
                    .replace("203.0.113.9:443", "10.0.0.5:443")
            },
            ..Setup::default()
        },
    );
    let hub = fact(&said, "hub");
    assert!(
        hub.contains("10.0.0.5:443: verified, and a Claviger"),
        "{hub}"
    );
}

/// The upstream is a hub, to which a token is shown.
fn as_edge(config: String) -> String {
    let credential = config
        .lines()
        .find(|line| line.starts_with("credential"))
        .expect("a key")
        .to_owned();
    let token = credential.replace("credential", "token");
    config
        .replace(&format!("{credential}\n"), "")
        .replace("[[route]]", &format!("hub = true\n{token}\n[[route]]"))
}

#[test]
fn the_environment_goes_elsewhere() {
    let proxy = |none: &str| Setup {
        environment: vec![
            ("HTTPS_PROXY", "http://user:secret@10.0.0.9:3128".into()),
            ("NO_PROXY", none.into()),
        ],
        ..Setup::default()
    };
    let said = check("proxy_environment", proxy("localhost"));
    assert!(!said.text.contains("secret"), "{}", said.text);
    check_healthy(None, proxy("localhost,.example.com"));
}

#[test]
fn the_hosts_file() {
    check(
        "hosts_public_address",
        Setup {
            hosts: format!("{ANOTHER_RESOLVER} x\n203.0.113.10 {HOST}\n"),
            network: "ip address add 203.0.113.10/32 dev lo",
            ..Setup::default()
        },
    );
    check_healthy(
        Some("hosts_entry"),
        Setup {
            hosts: format!("{CLAVIGER} {HOST}\n"),
            dns: Vec::new(),
            ..Setup::default()
        },
    );
}

#[test]
fn resolvers() {
    check(
        "resolver_none",
        Setup {
            resolv: "search example.com\n".into(),
            ..Setup::default()
        },
    );
    check(
        "resolver_silent",
        Setup {
            dns: Vec::new(),
            ..Setup::default()
        },
    );
    // It knows nobody whom it could ask.
    check(
        "resolver_failed",
        Setup {
            dns: vec!["--address=/other.example/10.0.0.9".into()],
            ..Setup::default()
        },
    );
    check(
        "resolvers_disagree",
        Setup {
            other_dns: address(API),
            resolv: format!("nameserver {RESOLVER}\nnameserver {ANOTHER_RESOLVER}\n"),
            ..Setup::default()
        },
    );
}

#[test]
fn names_that_lead_nowhere() {
    check(
        "dns_no_such_name",
        Setup {
            dns: vec!["--local=/example.com/".into()],
            ..Setup::default()
        },
    );
    check(
        "dns_no_address",
        Setup {
            dns: vec![
                format!("--txt-record={HOST},x"),
                format!("--local=/{HOST}/"),
            ],
            ..Setup::default()
        },
    );
}

#[test]
fn names_that_lead_past() {
    check(
        "dns_public_answer",
        Setup {
            dns: address(API),
            ..Setup::default()
        },
    );
    let mut both = address(CLAVIGER);
    both.push(format!("--address=/{HOST}/2606:2800:220:1::9"));
    check(
        "dns_public_ipv6",
        Setup {
            dns: both,
            ..Setup::default()
        },
    );
    // One record of type 65: priority 1, the name itself, alpn h2.
    let mut https = address(CLAVIGER);
    https.push(format!("--dns-rr={HOST},65,00010000010003026832"));
    check(
        "dns_https_record",
        Setup {
            dns: https,
            ..Setup::default()
        },
    );
}

#[test]
fn the_port() {
    check(
        "connect_refused",
        Setup {
            listens: Listens::Nothing,
            ..Setup::default()
        },
    );
    check(
        "connect_dropped",
        Setup {
            network: "nft 'table inet wall { chain in { type filter hook input priority 0; ip daddr 10.0.0.5 tcp dport 443 drop; }; }'",
            ..Setup::default()
        },
    );
    check(
        "connect_unreachable",
        Setup {
            dns: address("10.0.0.9"),
            network: "ip route add unreachable 10.0.0.9/32",
            ..Setup::default()
        },
    );
    let mut two = address(CLAVIGER);
    two.push(format!("--address=/{HOST}/{ANOTHER}"));
    check_healthy(
        Some("address_fails"),
        Setup {
            dns: two,
            ..Setup::default()
        },
    );
}

#[test]
fn the_handshake() {
    check(
        "tls_not_spoken",
        Setup {
            listens: Listens::Plain,
            ..Setup::default()
        },
    );
    check(
        "tls_silent",
        Setup {
            listens: Listens::Still,
            ..Setup::default()
        },
    );
    check(
        "tls_name_refused",
        Setup {
            config: |config| {
                config.replace(&format!("host = {HOST:?}"), "host = \"other.example.com\"")
            },
            ..Setup::default()
        },
    );
    check(
        "tls_failed",
        Setup {
            config: |config| {
                let ca = config
                    .split("ca_file = ")
                    .nth(1)
                    .and_then(|rest| rest.lines().next())
                    .expect("a file")
                    .to_owned();
                format!("{config}[host.{HOST:?}]\nclient_ca = {ca}\n")
            },
            ..Setup::default()
        },
    );
}

#[test]
fn certificates_that_do_not_fit() {
    let other = |from, until, name| Setup {
        listens: Listens::Other { from, until, name },
        ..Setup::default()
    };
    check("certificate_not_yet_valid", other(1, 300, HOST));
    check("certificate_expired", other(-300, -1, HOST));
    check(
        "certificate_wrong_name",
        other(-1, 300, "other.example.com"),
    );
    let said = check("not_claviger", other(-300, 1, HOST));
    assert!(
        said.text.contains("warning: certificate_expires_soon"),
        "{}",
        said.text
    );
    check(
        "chain_refused",
        Setup {
            listens: Listens::Constrained,
            ..Setup::default()
        },
    );
}

#[test]
fn stores_without_the_ca() {
    check(
        "ca_unknown",
        Setup {
            trusted: false,
            ..Setup::default()
        },
    );
    let said = check(
        "certifi_lacks_ca",
        Setup {
            stores: |machine, pem, _| {
                let directory = machine.join("venv/lib/python3/site-packages/certifi");
                std::fs::create_dir_all(&directory).expect("a directory");
                std::fs::write(directory.join("cacert.pem"), pem).expect("a bundle");
            },
            ..Setup::default()
        },
    );
    assert!(
        said.text.contains("site-packages/certifi/cacert.pem"),
        "{}",
        said.text
    );
    check(
        "java_lacks_ca",
        Setup {
            stores: |machine, _, der| {
                let directory = machine.join("jdk/lib/security");
                std::fs::create_dir_all(&directory).expect("a directory");
                // As keytool writes it: one trusted entry, and a checksum.
                let mut store = vec![
                    0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 1, b'a',
                ];
                store.extend([0; 8]);
                store.extend([0, 5]);
                store.extend(b"X.509");
                store.extend(u32::try_from(der.len()).expect("small").to_be_bytes());
                store.extend(der);
                store.extend([0; 20]);
                std::fs::write(directory.join("cacerts"), store).expect("a keystore");
            },
            ..Setup::default()
        },
    );
}

/// A Node in PATH with its own roots.
fn node(machine: &std::path::Path, _: &str, _: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    let directory = machine.join("bin");
    std::fs::create_dir_all(&directory).expect("a directory");
    std::fs::write(directory.join("node"), "#!/bin/sh\necho false\n").expect("a script");
    std::fs::set_permissions(
        directory.join("node"),
        std::fs::Permissions::from_mode(0o755),
    )
    .expect("its mode");
}

#[test]
fn a_node_that_is_not_told() {
    check(
        "node_lacks_ca",
        Setup {
            stores: node,
            ..Setup::default()
        },
    );
    check_healthy(
        None,
        Setup {
            stores: node,
            environment: vec![("NODE_OPTIONS", "--use-openssl-ca".into())],
            ..Setup::default()
        },
    );
}

#[test]
fn what_answers_is_no_claviger() {
    check(
        "not_claviger",
        Setup {
            listens: Listens::Other {
                from: -1,
                until: 300,
                name: HOST,
            },
            ..Setup::default()
        },
    );
    check(
        "http_silent",
        Setup {
            listens: Listens::Slow,
            ..Setup::default()
        },
    );
}

#[test]
fn calls_that_are_refused() {
    let call = |config: fn(String) -> String| Setup {
        arguments: with(&["--call", "/echo"]),
        config,
        ..Setup::default()
    };
    let said = check(
        "caller_not_allowed",
        call(|config| config.replace("\"open\"", "[\"192.0.2.0/24\"]")),
    );
    assert!(said.text.contains("caller_not_allowed"), "{}", said.text);
    check(
        "call_refused",
        call(|config| config.replace("203.0.113.9:443", "203.0.113.9:444")),
    );
    check(
        "api_refuses_key",
        call(|config| {
            // Another key than the API's.
            let file = config
                .split("file://")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .expect("a file")
                .to_owned();
            let other = format!("{file}-other");
            std::fs::copy(&file, &other).expect("its mode is kept");
            std::fs::write(&other, "an-old-key-0123456789").expect("a file");
            config.replace(&file, &other)
        }),
    );
    // Something in between leads the API's address back.
    check(
        "loop_detected",
        Setup {
            network: "ip address add 203.0.113.20/32 dev lo\n\
                      nft 'table ip back { chain out { type nat hook output priority -100; ip daddr 203.0.113.20 tcp dport 443 dnat to 10.0.0.5:443; }; }'",
            ..call(|config| with_own_ca(config).replace("203.0.113.9:443", "203.0.113.20:443"))
        },
    );
}

/// A configuration whose API has a certificate of Claviger's own CA, it says.
fn with_own_ca(config: String) -> String {
    let value = |name: &str| {
        let line = config
            .lines()
            .find(|line| line.starts_with(name))
            .expect("a line");
        line.split('"').nth(1).expect("a path").to_owned()
    };
    let root = PathBuf::from(value("directory")).with_file_name("root.pem");
    config.replace(&value("ca_file"), &root.display().to_string())
}

#[test]
fn the_way_around() {
    let open = |network| Setup {
        public_dns: address(API),
        arguments: Vec::new(),
        network,
        ..Setup::default()
    };
    check_healthy(Some("egress_open"), open(""));
    let said = check_healthy(
        None,
        open(
            "nft 'table inet wall { chain out { type filter hook output priority 0; ip daddr 203.0.113.9 tcp dport 443 reject with tcp reset; }; }'",
        ),
    );
    assert!(
        fact(&said, "egress").contains("cannot be reached"),
        "{:#}",
        said.json
    );
}

fn office(config: fn(String) -> String) -> Setup {
    Setup {
        office: true,
        runs: false,
        arguments: Vec::new(),
        config,
        ..Setup::default()
    }
}

#[test]
fn the_configuration() {
    let said = check(
        "config_invalid",
        office(|config| config.replace("callers =", "caller =")),
    );
    assert!(said.text.contains("office.toml:"), "{}", said.text);
    check(
        "config_host_unknown",
        office(|config| {
            config.replace(&format!("host = {HOST:?}"), "host = \"other.example.com\"")
        }),
    );
    let said = check(
        "rule_refuses",
        office(|config| config.replace("\"open\"", "[\"192.0.2.0/24\"]")),
    );
    assert!(said.text.contains("caller_not_allowed"), "{}", said.text);
    check("listener_refused", office(|config| config));
}

#[test]
fn the_way_on_from_claviger() {
    let by_name = |config: String| config.replace(&format!("addresses = [\"{API}:443\"]\n"), "");
    let running = |config: fn(String) -> String| Setup {
        runs: true,
        ..office(config)
    };
    check("upstream_dns_failed", running(by_name));
    check(
        "upstream_address_refused",
        Setup {
            public_dns: address(CLAVIGER),
            ..running(by_name)
        },
    );
    check(
        "upstream_unreachable",
        running(|config| config.replace("203.0.113.9:443", "203.0.113.9:444")),
    );
    // Its CA is another one.
    check("upstream_handshake_failed", running(with_own_ca));
    check("hub_is_no_claviger", running(as_edge));
}

/// Every code of docs/doctor.md is set up in here, but for one, which would need another clock.
#[test]
fn every_code_has_a_setup() {
    let source = include_str!("doctor.rs");
    let codes: Vec<&str> = include_str!("../../../docs/doctor.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert!(codes.len() > 40, "{codes:?}");
    let missing: Vec<&&str> = codes
        .iter()
        .filter(|code| **code != "clock_skew" && !source.contains(&format!("{code}\"")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
