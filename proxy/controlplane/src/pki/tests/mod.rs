//! The whole module at work: authorities on disk, and real handshakes against what they made.

mod authority;
mod constraints;
mod server;
mod upstream;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use tempfile::TempDir;

use super::authority::{Authority, InitOptions, KeyType, init};
use super::leaf::LEAF_LIFE_DEFAULT;

/// An authority in a directory of its own.
struct Ca {
    dir: TempDir,
    authority: Authority,
}

impl Ca {
    fn new(permit: &[&str], hosts: &[&str]) -> Ca {
        Ca::of(KeyType::Ecdsa, permit, hosts)
    }

    fn of(key_type: KeyType, permit: &[&str], hosts: &[&str]) -> Ca {
        let dir = tempfile::tempdir().unwrap();
        init(&InitOptions {
            key_type,
            ..init_options(dir.path(), permit, hosts)
        })
        .unwrap();
        let authority = Authority::load(dir.path(), None).unwrap();
        Ca { dir, authority }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn root(&self) -> CertificateDer<'static> {
        super::store::read_certificates(&self.path("root.pem"), 10_000)
            .unwrap()
            .remove(0)
    }

    fn leaf(&self, hosts: &[&str]) -> Arc<rustls::sign::CertifiedKey> {
        self.leaf_of(KeyType::Ecdsa, hosts)
    }

    fn leaf_of(&self, key_type: KeyType, hosts: &[&str]) -> Arc<rustls::sign::CertifiedKey> {
        let issuer = self.authority.leaf_issuer().unwrap();
        let now = SystemTime::now();
        issuer
            .issue(&strings(hosts), key_type, LEAF_LIFE_DEFAULT, now)
            .unwrap()
            .certified
    }
}

fn init_options(dir: &Path, permit: &[&str], hosts: &[&str]) -> InitOptions {
    InitOptions {
        dir: dir.to_owned(),
        permit: strings(permit),
        hosts: strings(hosts),
        key_type: KeyType::Ecdsa,
        force: false,
        passphrase: None,
        now: SystemTime::now(),
    }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

const DAY: Duration = Duration::from_secs(86_400);

/// Why a handshake failed, by who noticed.
#[derive(Debug)]
enum Failed {
    Client(rustls::Error),
    Server(rustls::Error),
}

/// Both ends in memory, until the handshake is over and the client has read its tickets.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), Failed> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut down = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut up = ServerConnection::new(Arc::clone(server)).unwrap();
    let mut wire = Vec::new();
    while down.wants_write() || up.wants_write() {
        wire.clear();
        while down.wants_write() {
            down.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            up.read_tls(&mut bytes).unwrap();
            if let Err(err) = up.process_new_packets() {
                // The client sees the alert, as it would on the wire.
                return Err(Failed::Server(err));
            }
        }
        wire.clear();
        while up.wants_write() {
            up.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            down.read_tls(&mut bytes).unwrap();
            down.process_new_packets().map_err(Failed::Client)?;
        }
    }
    assert!(!down.is_handshaking() && !up.is_handshaking());
    Ok((down, up))
}

/// Serves one TLS connection on loopback and answers `ok`; returns its address. Ends by itself,
/// also when nobody comes.
fn serve_once(config: Arc<ServerConfig>) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut tls = ServerConnection::new(config).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        let mut request = [0; 4];
        // A client that refuses us leaves in the middle; then there is nothing to answer.
        if stream.read_exact(&mut request).is_ok() {
            stream.write_all(b"ok").unwrap();
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    (address, serving)
}

/// Runs a program, and tells whether it succeeded and what it printed.
fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|err| panic!("{program}: {err}; run `scripts/test --setup` once"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}
