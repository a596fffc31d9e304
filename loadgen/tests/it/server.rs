//! A blocking HTTP/1.1 server, a thread per connection, in clear or over TLS.
//!
//! It shares nothing with loadgen but rustls. What it answers is up to a function per test.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

/// The name in the server's certificate.
pub const NAME: &str = "api.example.com";

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub line: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
    /// How many came before it on its connection.
    pub earlier: usize,
}

impl Request {
    pub fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or("")
    }
}

/// What becomes of the connection after an answer.
pub enum Then {
    Keep,
    /// Close in order: over TLS with its announcement.
    Close,
    /// Close the TCP connection and nothing else.
    Cut,
}

/// What the server saw.
#[derive(Default)]
pub struct Seen {
    pub connections: AtomicUsize,
    pub resumed: AtomicUsize,
    pub requests: AtomicUsize,
    pub last: Mutex<Option<Request>>,
    /// The certificate that each connection presented.
    pub clients: Mutex<Vec<Vec<u8>>>,
}

type Answer = dyn Fn(&Request, &mut dyn Write) -> io::Result<Then> + Send + Sync;

/// Runs until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
    directory: TempDir,
}

impl Server {
    /// In clear.
    pub fn plain(
        answer: impl Fn(&Request, &mut dyn Write) -> io::Result<Then> + Send + Sync + 'static,
    ) -> Self {
        Self::start(None, tempfile::tempdir().unwrap(), Arc::new(answer))
    }

    /// Over TLS, with a certificate for [`NAME`] from a CA of its own.
    pub fn tls(
        answer: impl Fn(&Request, &mut dyn Write) -> io::Result<Then> + Send + Sync + 'static,
    ) -> Self {
        Self::start_tls(answer, 0)
    }

    /// The same, and it asks for client certificates. `clients` of them lie in `client-N.pem`, their
    /// keys in `client-N.key`.
    pub fn mutual(
        clients: usize,
        answer: impl Fn(&Request, &mut dyn Write) -> io::Result<Then> + Send + Sync + 'static,
    ) -> Self {
        Self::start_tls(answer, clients)
    }

    fn start_tls(
        answer: impl Fn(&Request, &mut dyn Write) -> io::Result<Then> + Send + Sync + 'static,
        clients: usize,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let root = authority.self_signed(&authority_key).unwrap();
        fs::write(directory.path().join("ca.pem"), root.pem()).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let leaf = CertificateParams::new(vec![name.to_owned()])
                .unwrap()
                .signed_by(&key, &issuer)
                .unwrap();
            (leaf, key)
        };
        for number in 0..clients {
            let (leaf, key) = issue(&format!("client-{number}.example.com"));
            let file = |ending| directory.path().join(format!("client-{number}.{ending}"));
            fs::write(file("pem"), leaf.pem()).unwrap();
            fs::write(file("key"), key.serialize_pem()).unwrap();
        }
        let (leaf, key) = issue(NAME);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            0 => builder.with_no_client_auth(),
            _ => {
                let mut roots = RootCertStore::empty();
                roots.add(root.der().clone()).unwrap();
                builder.with_client_cert_verifier(
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .unwrap(),
                )
            }
        };
        let mut config = builder
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self::start(Some(Arc::new(config)), directory, Arc::new(answer))
    }

    /// The CA's certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A file for the test's own use, removed with the server.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub fn last_request(&self) -> Request {
        self.seen.last.lock().unwrap().clone().expect("a request")
    }

    fn start(tls: Option<Arc<ServerConfig>>, directory: TempDir, answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (seen_there, stop_there) = (seen.clone(), stop.clone());
        let accepting = std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                if stop_there.load(Ordering::SeqCst) {
                    return;
                }
                let (tls, seen, answer) = (tls.clone(), seen_there.clone(), answer.clone());
                // Each ends with its connection, that is, with loadgen at the latest.
                std::thread::spawn(move || {
                    let _ = socket.set_nodelay(true);
                    let _ = serve(socket, tls, &seen, &*answer);
                });
            }
        });
        Self {
            address,
            seen,
            stop,
            accepting: Some(accepting),
            directory,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Writes a complete answer.
pub fn ok(out: &mut dyn Write, body: &str) -> io::Result<Then> {
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(Then::Keep)
}

fn serve(
    socket: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    seen: &Seen,
    answer: &Answer,
) -> io::Result<()> {
    let raw = socket.try_clone()?;
    match tls {
        None => {
            seen.connections.fetch_add(1, Ordering::SeqCst);
            converse(socket, seen, answer)?;
        }
        Some(config) => {
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(connection, socket);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            seen.connections.fetch_add(1, Ordering::SeqCst);
            if let Some([client, ..]) = stream.conn.peer_certificates() {
                seen.clients.lock().unwrap().push(client.to_vec());
            }
            if stream.conn.handshake_kind() == Some(HandshakeKind::Resumed) {
                seen.resumed.fetch_add(1, Ordering::SeqCst);
            }
            if let Then::Close = converse(&mut stream, seen, answer)? {
                stream.conn.send_close_notify();
                stream.conn.complete_io(&mut stream.sock)?;
            }
        }
    }
    raw.shutdown(Shutdown::Both)
}

/// Answers requests until one of the two sides has enough.
fn converse(stream: impl Read + Write, seen: &Seen, answer: &Answer) -> io::Result<Then> {
    let mut stream = BufReader::new(stream);
    for earlier in 0.. {
        let Some(request) = read_request(&mut stream, earlier)? else {
            return Ok(Then::Cut);
        };
        seen.requests.fetch_add(1, Ordering::SeqCst);
        *seen.last.lock().unwrap() = Some(request.clone());
        let mut out = Vec::new();
        let then = answer(&request, &mut out)?;
        stream.get_mut().write_all(&out)?;
        stream.get_mut().flush()?;
        if !matches!(then, Then::Keep) {
            return Ok(then);
        }
    }
    Ok(Then::Close)
}

fn read_request(stream: &mut impl BufRead, earlier: usize) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header)?;
        let header = header.trim_end();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').expect("a header with a colon");
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().expect("a decimal length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(Request {
        line: line.trim_end().to_owned(),
        headers,
        body,
        earlier,
    }))
}
