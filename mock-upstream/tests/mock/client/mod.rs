//! A mock process, and a small HTTP/1.1 client over plain sockets and rustls.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// A running mock. Killed when dropped.
pub struct Mock {
    child: Child,
    directory: TempDir,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    control: Option<SocketAddr>,
}

impl Mock {
    /// Starts the binary and waits until it is ready. TLS unless `--plain` is given.
    pub fn start(arguments: &[&str]) -> Mock {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_mock-upstream"));
        command.args(arguments).stdout(Stdio::piped());
        if !arguments.contains(&"--max-seconds") {
            command.args(["--max-seconds", "120"]);
        }
        if !arguments.contains(&"--plain") {
            command.arg("--self-signed").arg(directory.path());
            command.args(["--name", "api.example.com", "--name", "127.0.0.1"]);
        }
        let mut child = command.spawn().expect("starts");
        let (mut addresses, mut control) = (Vec::new(), None);
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut ready = false;
        for line in lines {
            let line = line.expect("a line");
            let mut words = line.split(' ');
            match (words.next(), words.next()) {
                (Some("listening"), Some(address)) => addresses.push(address.parse().unwrap()),
                (Some("control"), Some(address)) => control = Some(address.parse().unwrap()),
                (Some("ready"), None) => {
                    ready = true;
                    break;
                }
                _ => {}
            }
        }
        assert!(ready, "the mock ended before it was ready");
        Mock {
            child,
            directory,
            addresses,
            control,
        }
    }

    /// The CA to trust.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A client configuration that trusts this mock.
    pub fn client_config(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&[u8]],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.ca()).expect("a CA"))
            .expect("a valid CA");
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut config = ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    /// A new TLS connection.
    pub fn connect(&self) -> Client {
        self.connect_to(self.addresses[0]).expect("connects")
    }

    /// A new TLS connection to this address.
    pub fn connect_to(&self, address: SocketAddr) -> io::Result<Client> {
        let config = self.client_config(&[&rustls::version::TLS13], &[b"http/1.1"]);
        connect(address, &config)
    }

    /// A new TLS connection with this configuration, its handshake complete.
    pub fn connect_with(&self, config: &Arc<ClientConfig>) -> io::Result<Client> {
        connect(self.addresses[0], config)
    }

    /// A new clear-text connection.
    pub fn connect_plain(&self, address: SocketAddr) -> Client {
        let socket = TcpStream::connect(address).expect("connects");
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Client::over(Box::new(socket))
    }

    /// One request on the control port.
    pub fn control(&self, method: &str, target: &str, body: &[u8]) -> Response {
        let address = self.control.expect("a control port");
        self.connect_plain(address)
            .request(method, target, "", body)
    }

    /// The counters.
    pub fn stats(&self) -> Value {
        self.control("GET", "/__stats", b"").json()
    }

    /// The counters, as soon as they fulfil the condition.
    pub fn await_stats(&self, condition: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let stats = self.stats();
            if condition(&stats) {
                return stats;
            }
            assert!(started.elapsed() < PATIENCE, "{stats}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal and waits for the exit code.
    pub fn end(mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("runs");
        self.wait()
    }

    /// Waits for the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("ends").code()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Client> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from("api.example.com").expect("a name");
    let mut session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    Ok(Client::over(Box::new(StreamOwned::new(session, socket))))
}

/// What a client reads from and writes to.
pub trait Transport: Read + Write + Send {}
impl<T: Read + Write + Send> Transport for T {}

/// One connection.
pub struct Client {
    /// The bytes, but for those that were read ahead.
    pub stream: Box<dyn Transport>,
    ahead: Vec<u8>,
}

/// A response, or the head of one.
#[derive(Debug, Default)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names and values.
    pub head: Vec<(String, String)>,
    /// The content, decoded.
    pub content: Vec<u8>,
    /// Names in lower case, and values.
    pub trailers: Vec<(String, String)>,
    /// Whether the end was announced: by a length, a last chunk, or `close_notify`.
    pub clean: bool,
}

impl Response {
    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head
            .iter()
            .find(|(candidate, _)| candidate.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// All fields of this name.
    pub fn fields<'r>(&'r self, name: &'r str) -> impl Iterator<Item = &'r str> {
        self.head
            .iter()
            .filter(move |(candidate, _)| candidate.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The content as JSON; the status must be a success.
    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.content);
        assert!((200..300).contains(&self.status), "{} {text}", self.status);
        serde_json::from_str(&text).expect("JSON")
    }
}

impl Client {
    /// A client over this transport.
    pub fn over(stream: Box<dyn Transport>) -> Client {
        Client {
            stream,
            ahead: Vec::new(),
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sends");
        self.stream.flush().expect("sends");
    }

    /// Sends until the other side no longer takes it.
    pub fn send_as_far_as_it_goes(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(16 * 1024) {
            if self.stream.write_all(piece).is_err() {
                break;
            }
        }
        let _ = self.stream.flush();
    }

    /// Sends a request with a length and reads the response.
    pub fn request(&mut self, method: &str, target: &str, fields: &str, body: &[u8]) -> Response {
        let length = match body.is_empty() && method == "GET" {
            true => String::new(),
            false => format!("Content-Length: {}\r\n", body.len()),
        };
        let head =
            format!("{method} {target} HTTP/1.1\r\nHost: api.example.com\r\n{fields}{length}\r\n");
        self.send(&[head.as_bytes(), body].concat());
        self.response()
    }

    /// Reads one response head.
    pub fn head(&mut self) -> Response {
        let mut response = Response::default();
        let line = self.line();
        let mut words = line.splitn(3, ' ');
        assert_eq!(words.next(), Some("HTTP/1.1"), "{line:?}");
        response.status = words.next().unwrap().parse().unwrap();
        loop {
            let line = self.line();
            if line.is_empty() {
                return response;
            }
            let (name, value) = line.split_once(": ").expect("a field");
            response.head.push((name.to_string(), value.to_string()));
        }
    }

    /// Reads one response.
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        let length: Option<usize> = response
            .field("Content-Length")
            .map(|text| text.parse().unwrap());
        response.clean = true;
        if matches!(response.status, 100..=199 | 204 | 304) {
            assert_eq!(length, None);
        } else if response.field("Transfer-Encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk_content() {
                response.content.extend(chunk);
            }
            loop {
                let line = self.line();
                if line.is_empty() {
                    break;
                }
                let (name, value) = line.split_once(": ").expect("a field");
                let name = name.to_ascii_lowercase();
                response.trailers.push((name, value.to_string()));
            }
        } else if let Some(length) = length {
            response.content = self.take(length);
        } else {
            response.content = std::mem::take(&mut self.ahead);
            response.clean = self.stream.read_to_end(&mut response.content).is_ok();
        }
        response
    }

    /// Reads one chunk of a chunked response without trailers; `None` at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let chunk = self.chunk_content();
        if chunk.is_none() {
            assert_eq!(self.line(), "");
        }
        chunk
    }

    fn chunk_content(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line(), 16).expect("a chunk size");
        if size == 0 {
            return None;
        }
        let content = self.take(size);
        assert_eq!(self.line(), "");
        Some(content)
    }

    /// Reads an unmasked WebSocket frame: its first byte and its payload.
    pub fn frame(&mut self) -> (u8, Vec<u8>) {
        let head = self.take(2);
        let length = match head[1] {
            126 => usize::from(u16::from_be_bytes(self.take(2).try_into().unwrap())),
            127 => u64::from_be_bytes(self.take(8).try_into().unwrap()) as usize,
            length => usize::from(length),
        };
        (head[0], self.take(length))
    }

    /// Whether the server ends the connection, and properly, with nothing more to say.
    pub fn at_end(&mut self) -> bool {
        let mut rest = Vec::new();
        let ended = self.stream.read_to_end(&mut rest).is_ok();
        ended && rest.is_empty() && self.ahead.is_empty()
    }

    /// Bytes read ahead of what was asked for.
    pub fn buffered(&self) -> usize {
        self.ahead.len()
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.ahead.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.ahead.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).expect("UTF-8");
            }
            self.more();
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        while self.ahead.len() < length {
            self.more();
        }
        self.ahead.drain(..length).collect()
    }

    fn more(&mut self) {
        let mut buffer = [0; 16 * 1024];
        let length = self.stream.read(&mut buffer).expect("reads");
        assert_ne!(length, 0, "ended early");
        self.ahead.extend_from_slice(&buffer[..length]);
    }
}

/// A WebSocket frame as clients must send it.
pub fn masked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
    frame
}

/// The digest in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);
