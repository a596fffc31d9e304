//! Faults that other proxies and libraries have had, below HTTP: each test is named after one. Those of
//! HTTP are rows of the conformance table; `docs/conformance-index.md` lists all of them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, HandshakeKind, NamedGroup, client};

use super::listener::version_config;
use crate::harness::world::{HOST, Site, bearer_route};
use crate::harness::{Mock, PATIENCE, World};

/// Keeps sessions without regard to the name that they were made for, as a client would that wants in
/// by another door.
#[derive(Debug)]
struct OneDrawer(ClientSessionMemoryCache);

impl OneDrawer {
    fn drawer() -> ServerName<'static> {
        ServerName::try_from("drawer").expect("a name")
    }
}

impl ClientSessionStore for OneDrawer {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(Self::drawer(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&Self::drawer())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: client::Tls12ClientSessionValue) {
        self.0.set_tls12_session(Self::drawer(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<client::Tls12ClientSessionValue> {
        self.0.tls12_session(&Self::drawer())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&Self::drawer());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: client::Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(Self::drawer(), value);
    }

    fn take_tls13_ticket(
        &self,
        _: &ServerName<'static>,
    ) -> Option<client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&Self::drawer())
    }
}

/// nginx (and Apache, CVE-2025-23048): a session made under one name was resumed under another, whose
/// rules it had never met.
#[test]
fn cve_2025_23419_no_session_resumes_under_another_name() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let hosts = "host = [\"a.example.com\", \"b.example.com\"]";
    let claviger = world.start(&format!(
        "{}{}{}",
        world.base(),
        mock.upstream("mock", HOST),
        bearer_route(&key_file).replace(&format!("host = {HOST:?}"), hosts)
    ));
    let kind = |name: &str, config: &rustls::ClientConfig| {
        let mut client = claviger
            .connect_with(name, config.clone())
            .expect("a handshake");
        let kind = client.connection().handshake_kind();
        // Takes in the tickets as well.
        client.get(name, "/ok").expect(200);
        kind
    };
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut config = version_config(&world, version);
        config.resumption =
            Resumption::store(Arc::new(OneDrawer(ClientSessionMemoryCache::new(8))));
        assert_eq!(kind("a.example.com", &config), Some(HandshakeKind::Full));
        // The control: the drawer does hold a session that is good under its own name.
        assert_eq!(kind("a.example.com", &config), Some(HandshakeKind::Resumed));
        assert_eq!(kind("b.example.com", &config), Some(HandshakeKind::Full));
    }
}

/// A client's first flight, as it would be sent.
fn hello(site: &Site) -> Vec<u8> {
    let config = Arc::new(site.world.client_config());
    let name = ServerName::try_from(HOST).expect("a name");
    let mut connection = ClientConnection::new(config, name).expect("a configuration");
    let mut flight = Vec::new();
    connection.write_tls(&mut flight).expect("in memory");
    flight
}

/// The same handshake message in records of `size` bytes each.
fn in_records(flight: &[u8], size: usize) -> Vec<u8> {
    let (header, message) = flight.split_at(5);
    message
        .chunks(size)
        .flat_map(|piece| {
            let length = u16::try_from(piece.len()).expect("a short record");
            [&header[..3], &length.to_be_bytes(), piece].concat()
        })
        .collect()
}

fn raw(site: &Site) -> TcpStream {
    let socket = TcpStream::connect(site.claviger.address()).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    socket.set_write_timeout(Some(PATIENCE)).expect("a socket");
    socket
}

/// rustls (RUSTSEC-2024-0399): a hello in several records was a panic for a server that looks at the hello
/// before it chooses a configuration, as we do.
#[test]
fn cve_2024_11738_a_hello_in_many_records() {
    let site = Site::new();
    let flight = hello(&site);
    for size in [1, 5, 7, 64, 200] {
        let mut socket = raw(&site);
        let _ = socket.write_all(&in_records(&flight, size));
        // A handshake record (22) or an alert (21): an answer of TLS, and no end without one.
        let mut first = [0];
        socket.read_exact(&mut first).expect("an answer");
        assert!(matches!(first[0], 21 | 22), "{size}: {}", first[0]);
    }
    // Cut in the middle of a record, and left.
    for cut in [1, 4, 6, 30] {
        let mut socket = raw(&site);
        socket
            .write_all(&in_records(&flight, 50)[..cut])
            .expect("sent");
        socket.shutdown(Shutdown::Write).expect("a socket");
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
    }
    site.get("/ok").expect(200);
    assert_eq!(site.claviger.status()["exchanges_panicked"], 0);
}

/// The unit of `/proc/PID/stat` (proc(5)): 100 wherever Linux runs on x86-64 and on ARM.
const TICKS_PER_SECOND: u64 = 100;

/// Time that the process has spent, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // The name is field 2; utime and stime are 14 and 15 (proc(5)).
    [11, 12]
        .map(|at: usize| fields[at].parse::<u64>().expect("a number"))
        .iter()
        .sum()
}

/// rustls (RUSTSEC-2024-0336): a goodbye right behind the hello made `complete_io` spin for ever.
#[test]
fn cve_2024_32650_a_goodbye_amid_the_handshake() {
    const CONNECTIONS: usize = 20;
    let site = Site::new();
    site.get("/ok").expect(200);
    let flight = hello(&site);
    let goodbye = [21, 3, 3, 0, 2, 1, 0];
    let before = ticks(site.claviger.pid());
    let open: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|number| {
            let mut socket = raw(&site);
            socket
                .write_all(&[&flight[..], &goodbye].concat())
                .expect("sent");
            if number % 2 == 0 {
                socket.shutdown(Shutdown::Write).expect("a socket");
            }
            socket
        })
        .collect();
    // Each of them ends, by our own doing.
    for mut socket in open {
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
    }
    site.get("/ok").expect(200);
    // A spin would burn as long as the connections were open; twenty handshakes cost a few ticks.
    let spent = ticks(site.claviger.pid()) - before;
    assert!(spent < 2 * TICKS_PER_SECOND, "{spent} ticks");
}
