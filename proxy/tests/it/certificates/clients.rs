//! Clients of other makes, each asked whether it accepts what a server shows: OpenSSL by way of curl
//! and of Python's `ssl`, Python's `requests`, Node's `tls`, Java, and rustls.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::harness::pki;
use crate::harness::process::Process;

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// OpenSSL.
    Curl,
    /// OpenSSL, in Python.
    Requests,
    /// OpenSSL, in Node.
    Node,
    /// Java's own.
    Java,
    /// Ours.
    Rustls,
}

impl Reader {
    /// Those that are here. All of them are, where `scripts/test` has been.
    pub fn all() -> Vec<Reader> {
        use Reader::*;
        vec![Curl, Requests, Node, Java, Rustls]
    }
}

/// What a client trusts.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// The certificates of this file, and no others.
    Only(&'a Path),
}

/// Connects to `address` as if it were `host`. `Err`: what the client had against the certificate.
pub fn read_with(
    reader: Reader,
    address: SocketAddr,
    host: &str,
    trust: Trust<'_>,
) -> Result<(), String> {
    let Trust::Only(file) = trust;
    let (port, ca) = (address.port().to_string(), file.display().to_string());
    let clients = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../it-clients");
    let source = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients");
        path.join(name).display().to_string()
    };
    let mut command = match reader {
        Reader::Rustls => return by_rustls(address, host, file),
        Reader::Curl => {
            let mut command = Command::new("curl");
            command.args(["-sS", "--max-time", "20", "--cacert", &ca, "--resolve"]);
            command.args([&format!("{host}:{port}:127.0.0.1"), "-o", "/dev/null"]);
            command.arg(format!("https://{host}:{port}/"));
            command
        }
        Reader::Requests => {
            let mut command = Command::new(clients.join("venv/bin/python3"));
            command.args(["-BI", &source("verify_with_requests.py"), host, &port, &ca]);
            command
        }
        Reader::Node => {
            let mut command = Command::new("node");
            command.args([&source("verify_with_node.mjs"), host, &port, &ca]);
            command
        }
        Reader::Java => {
            let mut command = Command::new("java");
            // One compiler thread and no just-in-time work: it starts in half the time.
            command.args([
                "-XX:TieredStopAtLevel=1",
                "-XX:+UseSerialGC",
                "-Xshare:auto",
            ]);
            command.args([&source("VerifyWithJava.java"), host, &port, &ca]);
            command
        }
    };
    command
        .env_remove("SSL_CERT_FILE")
        .env_remove("NODE_EXTRA_CA_CERTS");
    let finished = Process::run("client", command);
    let said = format!("{}{}", finished.out_text(), finished.err_text());
    match finished.status.success() {
        true => Ok(()),
        false => {
            // A client that could not even begin has refused nothing.
            let lower = said.to_lowercase();
            assert!(
                ["certificate", "certpath", "pkix"]
                    .iter()
                    .any(|word| lower.contains(word)),
                "{reader:?} failed of something else: {said}"
            );
            Err(said)
        }
    }
}

/// rustls with these roots.
pub fn trusting(file: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for root in certificates(file) {
        roots.add(root).expect("it can be used");
    }
    ClientConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .expect("both versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn by_rustls(address: SocketAddr, host: &str, file: &Path) -> Result<(), String> {
    use std::io::Write;
    let name = host.to_owned().try_into().expect("a DNS name");
    let config = std::sync::Arc::new(trusting(file));
    let mut connection = rustls::ClientConnection::new(config, name).expect("a configuration");
    let mut socket = std::net::TcpStream::connect(address).expect("somebody listens");
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    stream.flush().map_err(|error| error.to_string())
}

/// Whether these, leaf first, lead to a root of `file` without anything else.
pub fn hangs_on(chain: &[CertificateDer<'_>], file: &Path) -> bool {
    let roots = rustls::client::WebPkiServerVerifier::builder_with_provider(
        std::sync::Arc::new({
            let mut roots = RootCertStore::empty();
            for root in certificates(file) {
                roots.add(root).expect("it can be used");
            }
            roots
        }),
        pki::provider(),
    )
    .build()
    .expect("roots");
    use rustls::client::danger::ServerCertVerifier;
    let name = crate::harness::world::HOST.try_into().expect("a DNS name");
    let now = rustls::pki_types::UnixTime::now();
    roots
        .verify_server_cert(&chain[0], &chain[1..], &name, &[], now)
        .is_ok()
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    let text = fs::read(file).expect("readable");
    CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .expect("PEM")
}
