//! Certificates of a public authority, obtained from pebble, which rejects good nonces now and then
//! and validates for real.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use crate::harness::pki::{self, TestCa};
use crate::harness::process::Process;
use crate::harness::world::{Claviger, bearer_route};
use crate::harness::{Mock, World, eventually};

const HOST: &str = "keys.example.com";

/// A port that nobody has at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

fn curl(arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "-k", "--max-time", "20"])
        .args(arguments);
    Process::run("curl", command).expect_code(0).out_text()
}

/// A public authority.
struct Authority {
    directory: PathBuf,
    ca: TestCa,
    port: u16,
    management: u16,
    dns: Dns,
}

/// What the authority, and the check for propagation, ask for names and records: every name is here.
struct Dns {
    port: u16,
    management: u16,
    _process: Process,
}

impl Dns {
    fn start() -> Self {
        let (port, management) = (free_port(), free_port());
        let mut command = Command::new("pebble-challtestsrv");
        command.args([
            "-dns01",
            &format!("127.0.0.1:{port}"),
            "-management",
            &format!("127.0.0.1:{management}"),
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
            "-defaultIPv4",
            "127.0.0.1",
            "-defaultIPv6",
            "",
        ]);
        let process = Process::start("pebble-challtestsrv", command);
        wait_for_port(management);
        Self {
            port,
            management,
            _process: process,
        }
    }
}

fn wait_for_port(port: u16) {
    eventually("a port to be listened at", || {
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
}

impl Authority {
    fn new(world: &World) -> Self {
        let directory = world.subdirectory("authority");
        Self {
            ca: TestCa::new(&directory, "authority"),
            port: free_port(),
            management: free_port(),
            dns: Dns::start(),
            directory,
        }
    }

    /// Starts pebble. `options` goes into its configuration.
    fn start(&self, options: Value) -> Process {
        let (chain, key) = self.ca.server_files(&self.directory, &["127.0.0.1"]);
        let mut pebble = json!({
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", self.management),
            "certificate": chain,
            "privateKey": key,
            "httpPort": 1,
            "tlsPort": 1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        });
        let fields = pebble.as_object_mut().expect("a table");
        fields.extend(options.as_object().expect("a table").clone());
        let config = self.directory.join("pebble.json");
        fs::write(&config, json!({ "pebble": pebble }).to_string()).expect("writable");
        let mut command = Command::new("pebble");
        command
            .args(["-config".into(), config.display().to_string()])
            .args(["-dnsserver".into(), format!("127.0.0.1:{}", self.dns.port)])
            .arg("-strict")
            .env("PEBBLE_VA_ALWAYS_VALID", "0")
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "15")
            .env("PEBBLE_AUTHZREUSE", "0");
        let process = Process::start("pebble", command);
        wait_for_port(self.management);
        wait_for_port(self.port);
        process
    }

    /// The tables of the configuration.
    fn tables(&self, more: &str) -> String {
        format!(
            "[acme]\nterms_agreed = true\ndirectory = \"https://127.0.0.1:{}/dir\"\nca_file = {:?}\n{more}\n[host.\"{HOST}\"]\ncertificate = \"acme\"\n",
            self.port,
            self.ca.file()
        )
    }

    /// The trust of a client on the Internet.
    fn trust(&self) -> ClientConfig {
        let root = curl(&[&format!("https://127.0.0.1:{}/roots/0", self.management)]);
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(root.as_bytes()).expect("a root");
        roots.add(root).expect("it can be used");
        ClientConfig::builder_with_provider(pki::provider())
            .with_safe_default_protocol_versions()
            .expect("both versions")
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// A hook that tells the name server, and notes how it was called.
    fn hook(&self, world: &World) -> PathBuf {
        let note = self.directory.join("calls").display().to_string();
        let management = self.dns.management;
        let script = format!(
            "#!/bin/sh\nset -e\necho \"$1 $2\" >>'{note}'\nenv | grep -v -e ^PATH= -e ^PWD= -e ^_= -e ^SHLVL= >>'{note}.env' || true\n\
             case $1 in present) d=set-txt; v=\",\\\"value\\\":\\\"$3\\\"\" ;; cleanup) d=clear-txt; v= ;; esac\n\
             curl -sS --max-time 10 -d \"{{\\\"host\\\":\\\"$2.\\\"$v}}\" http://127.0.0.1:{management}/$d\n"
        );
        let path = world.write("hook", script);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("ours");
        path
    }
}

/// A world with an API behind [`HOST`], and the route to it.
fn setting(world: &World) -> (Mock, String) {
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(
        world,
        &["api.example.com"],
        &["--auth", "bearer", "--key", &key],
    );
    let route = bearer_route(&key_file)
        .replace("host = \"api.example.com\"", &format!("host = \"{HOST}\""));
    let tables = format!("{}{route}", mock.upstream("mock", "api.example.com"));
    (mock, tables)
}

/// The certificate that a client on the Internet gets, which has verified it.
fn certificate(claviger: &Claviger, trust: &ClientConfig) -> Option<Vec<u8>> {
    let client = claviger.connect_with(HOST, trust.clone()).ok()?;
    let chain = client.connection().peer_certificates()?;
    Some(chain[0].as_ref().to_vec())
}

fn call(claviger: &Claviger, trust: &ClientConfig) {
    let mut client = claviger
        .connect_with(HOST, trust.clone())
        .expect("verified");
    client.get(HOST, "/echo").expect(200);
}

/// A record in the zone; renewed under load; kept when the authority has gone, also over a restart.
#[test]
fn by_dns_renewed_and_kept() {
    let world = World::new();
    let (_mock, tables) = setting(&world);
    let authority = Authority::new(&world);
    let hook = authority.hook(&world);
    // Longer than one round of obtaining takes on a busy machine.
    let pebble = authority.start(json!({ "certificateValidityPeriod": 40 }));
    let dns = format!(
        "challenge = \"dns-01\"\ncontact = \"mailto:ops@example.com\"\nhook = [{hook:?}]\nresolvers = \"127.0.0.1:{}\"\npropagation_timeout = \"20s\"\n",
        authority.dns.port
    );
    let config = format!("{}{tables}{}", world.base(), authority.tables(&dns));
    let claviger = world.start(&config);
    claviger
        .log()
        .wait_event(0, "a certificate was obtained by ACME");
    let trust = authority.trust();
    let first = eventually("a certificate that verifies", || {
        certificate(&claviger, &trust)
    });
    call(&claviger, &trust);
    // What a thief would want is the service's alone.
    let store = world.path("state/acme");
    let mut files = Vec::new();
    for entry in fs::read_dir(&store).expect("there") {
        let entry = entry.expect("readable");
        let mode = entry.metadata().expect("readable").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{entry:?}");
        files.push(entry.file_name().into_string().expect("UTF-8"));
    }
    files.sort();
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(
        files[0].starts_with("account-") && files[1] == format!("{HOST}.pem"),
        "{files:?}"
    );
    let calls = fs::read_to_string(authority.directory.join("calls")).expect("it was called");
    let name = format!("_acme-challenge.{HOST}");
    assert!(
        calls.starts_with(&format!("present {name}\ncleanup {name}\n")),
        "{calls}"
    );
    let environment = fs::read_to_string(authority.directory.join("calls.env")).expect("written");
    assert_eq!(
        environment, "",
        "nothing of ours is in the hook's environment"
    );
    // Another one takes its place while calls go on.
    let over = AtomicBool::new(false);
    let second = thread::scope(|scope| {
        let calling = scope.spawn(|| {
            let mut calls = 0;
            while !over.load(Ordering::Relaxed) {
                call(&claviger, &trust);
                calls += 1;
            }
            calls
        });
        let mut last = first.clone();
        for _ in 0..60 {
            // A round takes longer than one of `eventually` may.
            let now = certificate(&claviger, &trust).expect("it verifies");
            if now != first {
                last = now;
                break;
            }
            thread::sleep(std::time::Duration::from_millis(500));
        }
        over.store(true, Ordering::Relaxed);
        assert!(calling.join().expect("no call failed") > 10);
        last
    });
    assert_ne!(first, second, "it was not renewed");
    let status = claviger.status();
    assert_eq!(
        (
            &status["acme_hosts"],
            &status["generation"].as_u64().map(|it| it > 1)
        ),
        (&json!(1), &Some(true))
    );
    // The authority goes, and the last good certificate serves on, also after a restart.
    drop(pebble);
    claviger.terminate().expect_code(0);
    let claviger = world.start(&config);
    assert_eq!(
        eventually("it serves", || {
            let client = claviger.connect_with(HOST, without_verifying()).ok()?;
            Some(
                client.connection().peer_certificates()?[0]
                    .as_ref()
                    .to_vec(),
            )
        }),
        second
    );
    let event = claviger
        .log()
        .wait_event(0, "no certificate was obtained by ACME");
    let said = event["message"].as_str().expect("text");
    assert!(said.contains("the last one"), "{said}");
    assert!(event["retry_s"].as_u64().expect("a number") <= 5);
}

/// A client that looks at nothing: short-lived certificates may be over by then.
fn without_verifying() -> ClientConfig {
    #[derive(Debug)]
    struct Anyone;
    impl rustls::client::danger::ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            pki::provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
    ClientConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .expect("both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth()
}

/// An answer over HTTP: first the authority looks at the wrong place, and is asked less and less;
/// then what was wrong is mended.
#[test]
fn by_http_after_a_failed_validation() {
    let world = World::new();
    let (_mock, tables) = setting(&world);
    let authority = Authority::new(&world);
    let port = free_port();
    let http = format!("challenge = \"http-01\"\nhttp_listen = \"127.0.0.1:{port}\"\n");
    let pebble = authority.start(json!({ "httpPort": free_port() }));
    let claviger = world.start(&format!(
        "{}{tables}{}",
        world.base(),
        authority.tables(&http)
    ));
    let event = claviger
        .log()
        .wait_event(0, "no certificate was obtained by ACME");
    let said = event["message"].as_str().expect("text");
    assert!(
        said.contains("connection refused") && said.contains("there is none yet"),
        "{said}"
    );
    assert!(
        (40..=60).contains(&event["retry_s"].as_u64().expect("a number")),
        "{event}"
    );
    // Without a certificate there is no handshake, and that is told.
    assert!(claviger.connect_with(HOST, without_verifying()).is_err());
    let config = claviger.config().display().to_string();
    let status = world
        .cli(&["status", "--config", &config])
        .expect_code(0)
        .out_text();
    assert!(
        status.contains(&format!("no certificate by ACME for {HOST}")),
        "{status}"
    );
    assert_eq!(claviger.status()["acme_hosts_failing"], 1);
    // Nothing else is served there.
    let url = format!("http://127.0.0.1:{port}");
    for path in [
        "/",
        "/.well-known/acme-challenge/",
        "/.well-known/acme-challenge/unknown",
        "/echo",
    ] {
        let code = curl(&[
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-H",
            &format!("Host: {HOST}"),
            &format!("{url}{path}"),
        ]);
        assert_eq!(code, "404", "{path}");
    }
    // The authority, started anew, has forgotten the account as well.
    drop(pebble);
    let _pebble = authority.start(json!({ "httpPort": port }));
    claviger.process().signal(libc::SIGHUP);
    claviger
        .log()
        .wait_event(0, "a certificate was obtained by ACME");
    let trust = authority.trust();
    eventually("a certificate that verifies", || {
        certificate(&claviger, &trust)
    });
    call(&claviger, &trust);
    assert_eq!(claviger.status()["acme_hosts_failing"], 0);
}

/// A handshake with the listener of callers, and an account that is bound to another one.
#[test]
fn by_a_handshake_with_the_listener_itself() {
    let world = World::new();
    let (_mock, tables) = setting(&world);
    let authority = Authority::new(&world);
    const MAC_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    world.secret(MAC_KEY);
    let key = world.write("eab", MAC_KEY);
    let alpn = format!(
        "challenge = \"tls-alpn-01\"\neab_key_id = \"kid-1\"\neab_key = \"file://{}\"\n",
        key.display()
    );
    let claviger = world.start(&format!(
        "{}{tables}{}",
        world.base(),
        authority.tables(&alpn)
    ));
    // Nobody is there yet.
    claviger
        .log()
        .wait_event(0, "no certificate was obtained by ACME");
    let _pebble = authority.start(json!({
        "tlsPort": claviger.address().port(),
        "externalAccountBindingRequired": true,
        "externalAccountMACKeys": { "kid-1": MAC_KEY },
    }));
    claviger.process().signal(libc::SIGHUP);
    claviger
        .log()
        .wait_event(0, "a certificate was obtained by ACME");
    let trust = authority.trust();
    eventually("a certificate that verifies", || {
        certificate(&claviger, &trust)
    });
    call(&claviger, &trust);
    let validated = claviger.status()["handshakes_acme"]
        .as_u64()
        .expect("a number");
    assert!(validated >= 1, "{validated}");
    // While no challenge is under way the protocol leads nowhere, whoever offers it.
    for protocols in [&["acme-tls/1"][..], &["acme-tls/1", "http/1.1"]] {
        let mut config = without_verifying();
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        let connected = claviger.connect_with(HOST, config);
        match protocols.len() {
            1 => assert!(connected.is_err()),
            // An ordinary client that offers it too is an ordinary client.
            _ => {
                let mut client = connected.expect("http/1.1 is spoken");
                client.get(HOST, "/echo").expect(200);
            }
        }
    }
    assert_eq!(claviger.status()["handshakes_acme"], validated);
    let _: SocketAddr = claviger.address();
}
