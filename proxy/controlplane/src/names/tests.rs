//! Against a real `dnsmasq` (package `dnsmasq-base`), and against resolvers that
//! misbehave in ways that no real one can be asked to.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use handoff::Published;
use hickory_resolver::proto::op::{Message, MessageType};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use policy::{AddressBook, ServerLimits, Snapshot, UpstreamId};
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;
use crate::publish::Publisher;
use crate::test_support::LogCapture;

/// Longer than anything here takes; a test that waits for it has failed.
const LONG: Duration = Duration::from_secs(20);

/// A running dnsmasq, which serves what its hosts file says.
struct Dnsmasq {
    child: Child,
    address: SocketAddr,
    hosts: PathBuf,
    _directory: Arc<tempfile::TempDir>,
}

impl Dnsmasq {
    /// `hosts` is in the format of hosts(5); every answer has a TTL of one second.
    fn start(hosts: &str) -> Self {
        let directory = Arc::new(tempfile::tempdir().expect("a directory"));
        let path = directory.path().join("hosts");
        std::fs::write(&path, hosts).expect("writable");
        // The port is free only until somebody takes it; then another one is tried.
        (0..20)
            .find_map(|_| Self::try_start(free_port(), path.clone(), Arc::clone(&directory)))
            .expect("dnsmasq starts; is the package dnsmasq-base installed?")
    }

    fn try_start(
        address: SocketAddr,
        hosts: PathBuf,
        directory: Arc<tempfile::TempDir>,
    ) -> Option<Self> {
        let program = ["/usr/sbin/dnsmasq", "/usr/bin/dnsmasq", "/sbin/dnsmasq"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists())
            .unwrap_or("dnsmasq");
        // It may drop to another user, which has to read the file still.
        use std::os::unix::fs::PermissionsExt;
        for path in [directory.path(), &hosts] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("owner");
        }
        let mut child = Command::new(program)
            .args([
                "--no-daemon",
                "--conf-file=/dev/null",
                "--pid-file=",
                "--no-resolv",
            ])
            .args([
                "--no-hosts",
                "--no-poll",
                "--local-ttl=1",
                "--bind-interfaces",
            ])
            .arg("--local=/test/")
            .arg(format!("--listen-address={}", address.ip()))
            .arg(format!("--port={}", address.port()))
            .arg(format!("--addn-hosts={}", hosts.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dnsmasq is installed (package dnsmasq-base)");
        let started = Instant::now();
        loop {
            if child.try_wait().expect("our child").is_some() {
                return None;
            }
            if TcpStream::connect(address).is_ok() {
                return Some(Self {
                    child,
                    address,
                    hosts,
                    _directory: directory,
                });
            }
            assert!(started.elapsed() < LONG, "dnsmasq does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn set(&self, hosts: &str) {
        std::fs::write(&self.hosts, hosts).expect("writable");
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGHUP).expect("our child");
    }

    /// Ends it; [`try_start`](Self::try_start) may begin another in its place.
    fn stop(mut self) -> (SocketAddr, PathBuf, Arc<tempfile::TempDir>) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
        (
            self.address,
            self.hosts.clone(),
            Arc::clone(&self._directory),
        )
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Free for UDP and TCP just now.
fn free_port() -> SocketAddr {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = tcp.local_addr().expect("bound");
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// A resolver that takes questions and never answers.
fn silent() -> (UdpSocket, TcpListener, SocketAddr) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = tcp.local_addr().expect("bound");
        if let Ok(udp) = UdpSocket::bind(address) {
            return (udp, tcp, address);
        }
    }
}

/// Everything around the resolving tasks.
struct Bench {
    book: Arc<Published<AddressBook>>,
    names: Names,
}

impl Bench {
    fn new() -> Self {
        let snapshot =
            Snapshot::new(1, Vec::new(), Vec::new(), ServerLimits::default(), "t").expect("empty");
        let book = Published::new(Arc::new(AddressBook::default()));
        let publisher = Publisher::new(Published::new(Arc::new(snapshot)), Arc::clone(&book));
        Self {
            book,
            names: Names::new(publisher),
        }
    }

    fn resolving(&self, settings: DnsSettings) -> Resolving {
        Resolving::new(self.names.clone(), settings).expect("good settings")
    }

    /// What the cores would use for this upstream.
    fn addresses(&self, name: &Name) -> BTreeSet<String> {
        let book = self.book.load();
        let addresses = book.addresses.get(&name.upstream);
        let addresses = addresses.into_iter().flat_map(|addresses| addresses.iter());
        addresses.map(ToString::to_string).collect()
    }

    #[track_caller]
    fn assert_addresses(&self, name: &Name, expected: &[&str]) {
        let expected: BTreeSet<_> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(self.addresses(name), expected);
    }

    async fn wait_for(&self, name: &Name, expected: &[&str]) {
        let expected: BTreeSet<_> = expected.iter().map(ToString::to_string).collect();
        let started = Instant::now();
        while self.addresses(name) != expected {
            let now = self.addresses(name);
            assert!(started.elapsed() < LONG, "{now:?} instead of {expected:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn name(number: u64, host: &str) -> Name {
    Name {
        upstream: UpstreamId(number),
        label: format!("upstream-{number}"),
        host: host.to_owned(),
        port: 443,
        allow_private: false,
    }
}

fn settings(servers: &[SocketAddr]) -> DnsSettings {
    let servers = servers.iter().map(|&address| Server {
        address,
        tls_name: None,
    });
    DnsSettings {
        servers: servers.collect(),
        timeout: Duration::from_millis(500),
        attempts: 1,
        ttl_floor: Duration::from_millis(200),
        ..DnsSettings::default()
    }
}

#[tokio::test]
async fn both_kinds_of_addresses_are_found_and_changes_are_followed() {
    let dns = Dnsmasq::start(
        "192.0.2.1 api.test\n192.0.2.2 api.test\n2001:db8::1 api.test\n192.0.2.9 other.test\n",
    );
    let bench = Bench::new();
    let mut resolving = bench.resolving(settings(&[dns.address]));
    let (api, other, nobody) = (
        name(1, "api.test"),
        name(2, "other.test."),
        name(3, "no.test"),
    );
    let all = [api.clone(), other.clone(), nobody.clone()];
    resolving.add(&all, OwnAddresses::default());
    assert!(resolving.first_answers(&all, LONG).await);
    let found = ["192.0.2.1:443", "192.0.2.2:443", "[2001:db8::1]:443"];
    bench.assert_addresses(&api, &found);
    bench.assert_addresses(&other, &["192.0.2.9:443"]);
    bench.assert_addresses(&nobody, &[]);
    // The same answers again are no news.
    let generation = bench.book.generation();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(bench.book.generation(), generation);
    // Other ones are there within the answer's time.
    let changed = Instant::now();
    dns.set("192.0.2.7 api.test\n192.0.2.9 other.test\n");
    bench.wait_for(&api, &["192.0.2.7:443"]).await;
    assert!(
        changed.elapsed() < Duration::from_secs(5),
        "{:?}",
        changed.elapsed()
    );
    // What is no longer asked for is forgotten.
    resolving.keep_only(std::slice::from_ref(&api));
    bench.wait_for(&other, &[]).await;
    bench.assert_addresses(&api, &["192.0.2.7:443"]);
}

#[tokio::test]
async fn the_last_good_answer_outlives_the_resolvers_for_a_while() {
    let dns = Dnsmasq::start("192.0.2.1 api.test\n");
    let bench = Bench::new();
    let api = name(1, "api.test");
    let mut resolving = bench.resolving(DnsSettings {
        stale_max: Duration::from_secs(3),
        ..settings(&[dns.address])
    });
    resolving.add(std::slice::from_ref(&api), OwnAddresses::default());
    bench.wait_for(&api, &["192.0.2.1:443"]).await;
    // A name that is suddenly gone is a resolver's failure like any other.
    dns.set("192.0.2.9 other.test\n");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    bench.assert_addresses(&api, &["192.0.2.1:443"]);
    let (address, hosts, directory) = dns.stop();
    bench.assert_addresses(&api, &["192.0.2.1:443"]);
    let gone = Instant::now();
    bench.wait_for(&api, &[]).await;
    assert!(
        gone.elapsed() > Duration::from_secs(1),
        "it served on for a while"
    );
    // Somebody may sit on the port by now; then there is nothing left to show.
    std::fs::write(&hosts, "192.0.2.5 api.test\n").expect("writable");
    if let Some(_dns) = Dnsmasq::try_start(address, hosts, directory) {
        bench.wait_for(&api, &["192.0.2.5:443"]).await;
    }
}

#[tokio::test]
async fn what_is_known_outlives_the_tasks_that_found_it() {
    let dns = Dnsmasq::start("192.0.2.1 api.test\n");
    let bench = Bench::new();
    let api = [name(1, "api.test")];
    let mut resolving = bench.resolving(settings(&[dns.address]));
    resolving.add(&api, OwnAddresses::default());
    bench.wait_for(&api[0], &["192.0.2.1:443"]).await;
    // As after a panic of the control plane, with resolvers that are gone too.
    let generation = bench.book.generation();
    drop(resolving);
    drop(dns);
    let (_udp, _tcp, dead) = silent();
    let mut resolving = bench.resolving(settings(&[dead]));
    resolving.add(&api, OwnAddresses::default());
    assert!(
        resolving.first_answers(&api, LONG).await,
        "it was asked for long ago"
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.assert_addresses(&api[0], &["192.0.2.1:443"]);
    assert_eq!(
        bench.book.generation(),
        generation,
        "it was never gone in between"
    );
}

#[tokio::test]
async fn resolvers_that_never_answer_hold_nobody_up() {
    let dns = Dnsmasq::start("192.0.2.1 api.test\n");
    let (_udp, _tcp, dead) = silent();
    let api = name(1, "api.test");
    let one = std::slice::from_ref(&api);
    let bench = Bench::new();
    let mut resolving = bench.resolving(settings(&[dead]));
    resolving.add(one, OwnAddresses::default());
    let started = Instant::now();
    assert!(
        !resolving
            .first_answers(one, Duration::from_millis(200))
            .await,
        "there is no answer to wait for"
    );
    assert!(started.elapsed() < Duration::from_secs(2));
    bench.assert_addresses(&api, &[]);
    // With one that works beside it there is an answer.
    resolving
        .set(settings(&[dead, dns.address]))
        .expect("good settings");
    bench.wait_for(&api, &["192.0.2.1:443"]).await;
}

#[tokio::test]
async fn a_start_goes_on_when_every_name_was_asked_for() {
    let (_udp, _tcp, dead) = silent();
    let bench = Bench::new();
    let api = name(1, "api.test");
    bench.names.expect(std::slice::from_ref(&api));
    assert!(!bench.names.wait_for_first(Duration::from_millis(20)));
    let mut resolving = bench.resolving(DnsSettings {
        timeout: Duration::from_millis(50),
        ..settings(&[dead])
    });
    resolving.add(std::slice::from_ref(&api), OwnAddresses::default());
    let names = bench.names.clone();
    let waited = tokio::task::spawn_blocking(move || names.wait_for_first(LONG)).await;
    assert!(
        waited.expect("no panic"),
        "an attempt that failed is an attempt"
    );
}

#[tokio::test]
async fn answers_that_lead_back_or_inside_are_refused_with_the_cure() {
    let dns = Dnsmasq::start(
        "127.0.0.1 loop.test\n169.254.169.254 meta.test\n\
         10.0.0.1 inner.test\n10.0.0.2 inner.test\n10.0.0.3 inner.test\n\
         203.0.113.5 self.test\n203.0.113.5 mixed.test\n192.0.2.1 mixed.test\n",
    );
    let log = LogCapture::start();
    let bench = Bench::new();
    let mut resolving = bench.resolving(settings(&[dns.address]));
    let all: Vec<_> = [
        "loop.test",
        "meta.test",
        "inner.test",
        "self.test",
        "mixed.test",
    ]
    .into_iter()
    .zip(1..)
    .map(|(host, number)| name(number, host))
    .collect();
    let inner_allowed = Name {
        allow_private: true,
        ..name(9, "inner.test")
    };
    let mut names = all.clone();
    names.push(inner_allowed.clone());
    let own = OwnAddresses::of(["203.0.113.5:443".parse().expect("an address")]);
    resolving.add(&names, own);
    assert!(resolving.first_answers(&names, LONG).await);
    for refused in &all[..4] {
        bench.assert_addresses(refused, &[]);
    }
    bench.assert_addresses(&all[4], &["192.0.2.1:443"]);
    let inner = ["10.0.0.1:443", "10.0.0.2:443", "10.0.0.3:443"];
    bench.assert_addresses(&inner_allowed, &inner);
    // Asked for again, the same answer is not told again.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let log = log.text();
    for address in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
        let told = log.lines().filter(|line| line.contains(address)).count();
        assert_eq!(told, 1, "{address} in:\n{log}");
    }
    for (host, cure) in [
        ("loop.test", "`addresses`"),
        ("meta.test", "`addresses`"),
        ("inner.test", "`allow_private = true`"),
        ("self.test", "go round in a circle"),
    ] {
        let found = log
            .lines()
            .any(|line| line.contains(host) && line.contains(cure));
        assert!(found, "no line about {host} with {cure} in:\n{log}");
    }
}

#[tokio::test]
async fn a_listener_that_is_new_takes_an_address_away() {
    let dns = Dnsmasq::start("203.0.113.5 api.test\n192.0.2.1 api.test\n");
    let bench = Bench::new();
    let mut resolving = bench.resolving(settings(&[dns.address]));
    let names = [name(1, "api.test")];
    resolving.add(&names, OwnAddresses::default());
    bench
        .wait_for(&names[0], &["192.0.2.1:443", "203.0.113.5:443"])
        .await;
    let own = OwnAddresses::of(["203.0.113.5:443".parse().expect("an address")]);
    resolving.add(&names, own);
    bench.wait_for(&names[0], &["192.0.2.1:443"]).await;
}

#[tokio::test]
async fn an_answer_too_long_for_udp_comes_over_tcp() {
    let hosts: String = (1..=200)
        .map(|n| format!("192.0.2.{n} many.test\n"))
        .collect();
    let dns = Dnsmasq::start(&hosts);
    let bench = Bench::new();
    let mut resolving = bench.resolving(settings(&[dns.address]));
    let names = [name(1, "many.test")];
    resolving.add(&names, OwnAddresses::default());
    assert!(resolving.first_answers(&names, LONG).await);
    assert_eq!(
        bench.addresses(&names[0]).len(),
        8,
        "some of them, not all 200"
    );
}

#[tokio::test]
async fn questions_for_ipv6_that_vanish_do_not_keep_ipv4_waiting() {
    // Real networks do this. Answers A with 192.0.2.1 and is silent about the rest.
    let (udp, _tcp, address) = silent();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let server = std::thread::spawn(move || {
        udp.set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a socket");
        let mut buffer = [0; 1500];
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let Ok((len, peer)) = udp.recv_from(&mut buffer) else {
                continue;
            };
            let mut message = Message::from_vec(&buffer[..len]).expect("a question");
            let question = message.queries[0].clone();
            if question.query_type() != RecordType::A {
                continue;
            }
            message.metadata.message_type = MessageType::Response;
            let data = RData::A(A::new(192, 0, 2, 1));
            message.add_answer(Record::from_rdata(question.name().clone(), 60, data));
            let answer = message.to_vec().expect("small");
            udp.send_to(&answer, peer).expect("loopback");
        }
    });
    let bench = Bench::new();
    let mut resolving = bench.resolving(DnsSettings {
        timeout: Duration::from_secs(5),
        attempts: 3,
        ..settings(&[address])
    });
    let names = [name(1, "api.test")];
    let started = Instant::now();
    resolving.add(&names, OwnAddresses::default());
    assert!(resolving.first_answers(&names, LONG).await);
    bench.assert_addresses(&names[0], &["192.0.2.1:443"]);
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    server.join().expect("no panic");
}

#[tokio::test]
async fn dns_over_tls_verifies_the_resolver() {
    let dns = Dnsmasq::start("192.0.2.1 api.test\n");
    let key = rcgen::generate_simple_self_signed(["resolver.test".to_owned()]).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![key.cert.der().clone()],
            PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into(),
        )
        .expect("a certificate");
    let address = tls_in_front_of(dns.address, Arc::new(server));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(key.cert.der().clone()).expect("a root");
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // As the configuration's own roots have it: meant for HTTP.
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tls = Some(Arc::new(client));
    let settings = |name: &str| DnsSettings {
        servers: vec![Server {
            address,
            tls_name: Some(name.to_owned()),
        }],
        tls: tls.clone(),
        ..settings(&[])
    };
    let names = [name(1, "api.test")];
    let bench = Bench::new();
    let mut resolving = bench.resolving(settings("resolver.test"));
    resolving.add(&names, OwnAddresses::default());
    assert!(resolving.first_answers(&names, LONG).await);
    bench.assert_addresses(&names[0], &["192.0.2.1:443"]);
    // Somebody else's certificate is no resolver of ours.
    let bench = Bench::new();
    let mut resolving = bench.resolving(settings("other.test"));
    resolving.add(&names, OwnAddresses::default());
    assert!(resolving.first_answers(&names, LONG).await);
    bench.assert_addresses(&names[0], &[]);
}

/// Takes TLS and passes messages on over TCP, one connection after the other.
fn tls_in_front_of(target: SocketAddr, config: Arc<rustls::ServerConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    // Ends with the process: it waits for connections that nobody makes any more.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let config = Arc::clone(&config);
            std::thread::spawn(move || {
                let connection = rustls::ServerConnection::new(config).expect("a config");
                let mut tls = rustls::StreamOwned::new(connection, stream?);
                loop {
                    // RFC 1035, 4.2.2: two bytes of length, then the message.
                    let question = read_message(&mut tls)?;
                    let mut tcp = TcpStream::connect(target)?;
                    tcp.write_all(&question)?;
                    let answer = read_message(&mut tcp)?;
                    tls.write_all(&answer)?;
                    tls.flush()?;
                }
                #[allow(unreachable_code)]
                std::io::Result::Ok(())
            });
        }
    });
    address
}

fn read_message(from: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut len = [0; 2];
    from.read_exact(&mut len)?;
    let mut message = len.to_vec();
    message.resize(2 + usize::from(u16::from_be_bytes(len)), 0);
    from.read_exact(&mut message[2..])?;
    Ok(message)
}
