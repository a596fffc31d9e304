//! [`Client`]: one connection to Claviger, byte by byte. It knows just enough of
//! HTTP to tell where an answer ends, by code of its own: it shares no parser with
//! what it tests. Every byte that it receives goes into its world's transcript.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;

use super::PATIENCE;

/// Every plaintext byte that clients received, for the leak search.
pub type Transcript = Arc<Mutex<Vec<u8>>>;

/// A connection, in TLS or in the clear.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    /// Received and not yet used.
    ahead: Vec<u8>,
    transcript: Transcript,
}

#[derive(Debug)]
enum Stream {
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Clear(TcpStream),
}

impl Client {
    /// Connects in the clear.
    pub fn clear(address: SocketAddr, transcript: Transcript) -> io::Result<Self> {
        Ok(Self {
            stream: Stream::Clear(connect(address)?),
            ahead: Vec::new(),
            transcript,
        })
    }

    /// The same, from an address of this machine.
    pub fn clear_from(
        source: SocketAddr,
        address: SocketAddr,
        transcript: Transcript,
    ) -> io::Result<Self> {
        Ok(Self {
            stream: Stream::Clear(connect_from(source, address)?),
            ahead: Vec::new(),
            transcript,
        })
    }

    /// Connects from an address of this machine and shakes hands.
    pub fn tls_from(
        source: SocketAddr,
        address: SocketAddr,
        name: &str,
        config: Arc<ClientConfig>,
        transcript: Transcript,
    ) -> io::Result<Self> {
        Self::tls_over(connect_from(source, address)?, name, config, transcript)
    }

    /// Connects and shakes hands.
    pub fn tls(
        address: SocketAddr,
        name: &str,
        config: Arc<ClientConfig>,
        transcript: Transcript,
    ) -> io::Result<Self> {
        Self::tls_over(connect(address)?, name, config, transcript)
    }

    fn tls_over(
        mut socket: TcpStream,
        name: &str,
        config: Arc<ClientConfig>,
        transcript: Transcript,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).expect("a DNS name or an address");
        let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        let stream = Stream::Tls(Box::new(StreamOwned::new(connection, socket)));
        Ok(Self {
            stream,
            ahead: Vec::new(),
            transcript,
        })
    }

    /// The TLS state, for tests of the handshake.
    pub fn connection(&self) -> &ClientConnection {
        match &self.stream {
            Stream::Tls(tls) => &tls.conn,
            Stream::Clear(_) => panic!("this connection is in the clear"),
        }
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Tls(tls) => &tls.sock,
            Stream::Clear(socket) => socket,
        }
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes)
            .expect("the connection takes the bytes");
    }

    /// Sends bytes as they are, unless the connection has gone.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tls(tls) => tls.write_all(bytes.as_ref()).and_then(|()| tls.flush()),
            Stream::Clear(socket) => socket.write_all(bytes.as_ref()),
        }
    }

    /// Sends one request and reads its answer.
    #[track_caller]
    pub fn call(&mut self, request: impl AsRef<[u8]>) -> Answer {
        let head = request.as_ref().starts_with(b"HEAD ");
        self.send(request);
        self.answer_to(head)
    }

    /// `GET path` for `host`, keeping the connection.
    #[track_caller]
    pub fn get(&mut self, host: &str, path: &str) -> Answer {
        self.call(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    /// Reads one answer whole; interim ones (1xx) are collected in it.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        self.answer_to(false)
    }

    #[track_caller]
    fn answer_to(&mut self, head_request: bool) -> Answer {
        let mut interim = Vec::new();
        loop {
            let mut answer = self.head();
            if (100..200).contains(&answer.status) && answer.status != 101 {
                interim.push(answer.status);
                continue;
            }
            answer.interim = interim;
            if !head_request && answer.status != 101 && answer.status != 204 && answer.status != 304
            {
                self.body(&mut answer);
            }
            return answer;
        }
    }

    /// Reads a head only: the body is read by the test.
    #[track_caller]
    pub fn head(&mut self) -> Answer {
        let head = self.read_until(b"\r\n\r\n");
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.split("\r\n");
        let status_line = lines.next().expect("split gives one");
        let mut words = status_line.splitn(3, ' ');
        assert!(
            words
                .next()
                .is_some_and(|version| version.starts_with("HTTP/1.")),
            "no status line: {status_line:?}"
        );
        let status = words
            .next()
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("no status: {status_line:?}"));
        let fields = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let (name, value) = line
                    .split_once(':')
                    .unwrap_or_else(|| panic!("not a field: {line:?}"));
                (name.to_owned(), value.trim().to_owned())
            })
            .collect();
        Answer {
            status,
            fields,
            head,
            body: Vec::new(),
            trailers: Vec::new(),
            interim: Vec::new(),
        }
    }

    #[track_caller]
    fn body(&mut self, answer: &mut Answer) {
        if answer
            .field("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
        {
            loop {
                let (_, data) = self.chunk();
                if data.is_empty() {
                    break;
                }
                answer.body.extend_from_slice(&data);
            }
            loop {
                let line = self.read_until(b"\r\n");
                if line == b"\r\n" {
                    return;
                }
                answer
                    .trailers
                    .push(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        } else if let Some(length) = answer.field("content-length") {
            let length: usize = length.parse().expect("Content-Length is a number");
            answer.body = self.read_exact(length);
        } else {
            answer.body = self.read_to_end();
        }
    }

    /// Reads one chunk; empty means the last one (trailers follow).
    #[track_caller]
    pub fn chunk(&mut self) -> (String, Vec<u8>) {
        let line = String::from_utf8(self.read_until(b"\r\n")).expect("a chunk's size is ASCII");
        let size = usize::from_str_radix(
            line.trim_end().split(';').next().expect("split gives one"),
            16,
        )
        .unwrap_or_else(|_| panic!("not a chunk size: {line:?}"));
        if size == 0 {
            return (line, Vec::new());
        }
        let data = self.read_exact(size);
        assert_eq!(self.read_exact(2), b"\r\n", "a chunk ends with CRLF");
        (line, data)
    }

    /// Reads through the first `needle`.
    #[track_caller]
    pub fn read_until(&mut self, needle: &[u8]) -> Vec<u8> {
        let mut from = 0;
        loop {
            if let Some(at) = memchr::memmem::find(&self.ahead[from..], needle) {
                return self.ahead.drain(..from + at + needle.len()).collect();
            }
            from = self.ahead.len().saturating_sub(needle.len() - 1);
            match self.fill() {
                Ok(0) => panic!(
                    "the connection ended before {:?}; got {:?}",
                    String::from_utf8_lossy(needle),
                    String::from_utf8_lossy(&self.ahead)
                ),
                Ok(_) => {}
                Err(err) => panic!(
                    "{err} before {:?}; got {:?}",
                    String::from_utf8_lossy(needle),
                    String::from_utf8_lossy(&self.ahead)
                ),
            }
        }
    }

    /// Reads exactly `length` bytes.
    #[track_caller]
    pub fn read_exact(&mut self, length: usize) -> Vec<u8> {
        while self.ahead.len() < length {
            let got = self
                .fill()
                .unwrap_or_else(|err| panic!("{err} after {} of {length} bytes", self.ahead.len()));
            assert!(
                got > 0,
                "the connection ended after {} of {length} bytes",
                self.ahead.len()
            );
        }
        self.ahead.drain(..length).collect()
    }

    /// Reads until the other side ends the connection, however it does that.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while let Ok(1..) = self.fill() {}
        std::mem::take(&mut self.ahead)
    }

    /// Asserts that the other side ends the connection, sending nothing more.
    #[track_caller]
    pub fn expect_end(&mut self) {
        assert!(
            self.ahead.is_empty(),
            "unread bytes: {:?}",
            String::from_utf8_lossy(&self.ahead)
        );
        match self.fill() {
            Ok(0) => {}
            Ok(_) => panic!(
                "bytes instead of the end: {:?}",
                String::from_utf8_lossy(&self.ahead)
            ),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                panic!("the connection stays open")
            }
            Err(_) => {}
        }
    }

    /// Reads what is there; 0 means the end. A missing close_notify counts as an
    /// end here; whoever cares looks at the body's framing.
    pub fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let read = match &mut self.stream {
            Stream::Tls(tls) => tls.read(&mut chunk),
            Stream::Clear(socket) => socket.read(&mut chunk),
        };
        let read = match read {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => 0,
            other => other?,
        };
        self.ahead.extend_from_slice(&chunk[..read]);
        self.transcript
            .lock()
            .expect("no panic while held")
            .extend_from_slice(&chunk[..read]);
        Ok(read)
    }

    /// Ends our side of the socket, politely in TLS.
    pub fn close_write(&mut self) {
        if let Stream::Tls(tls) = &mut self.stream {
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
        let _ = self.socket().shutdown(Shutdown::Write);
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    patient(TcpStream::connect_timeout(&address, PATIENCE)?)
}

fn connect_from(source: SocketAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        None,
    )?;
    socket.bind(&source.into())?;
    socket.connect_timeout(&address.into(), PATIENCE)?;
    patient(socket.into())
}

fn patient(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// An answer, as it arrived.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names as sent, values trimmed, in order.
    pub fields: Vec<(String, String)>,
    /// The head's bytes, through the blank line.
    pub head: Vec<u8>,
    /// The body, without its framing.
    pub body: Vec<u8>,
    /// Trailer lines.
    pub trailers: Vec<String>,
    /// Interim answers that came before.
    pub interim: Vec<u16>,
}

impl Answer {
    /// The value of the one field of this name. Panics if there are several.
    #[track_caller]
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values = self
            .fields
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str());
        let first = values.next();
        assert!(
            values.next().is_none(),
            "several {name} fields: {:?}",
            self.fields
        );
        first
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|err| panic!("not JSON ({err}): {} {}", self.status, self.text()))
    }

    /// Asserts that this is one of Claviger's own answers, complete in all its
    /// parts, with this status and reason; returns its body.
    #[track_caller]
    pub fn expect_own(&self, status: u16, reason: &str) -> Value {
        assert_eq!(
            self.status,
            status,
            "{}{}",
            String::from_utf8_lossy(&self.head),
            self.text()
        );
        assert_eq!(self.field("content-type"), Some("application/problem+json"));
        let answer = self
            .field("claviger-answer")
            .expect("our own answers say so");
        assert!(answer.ends_with(&format!("; reason={reason}")), "{answer}");
        let body = self.json();
        assert_eq!(body["status"], status);
        assert_eq!(body["reason"], reason);
        for part in ["type", "title", "detail", "request_id"] {
            assert!(
                body[part].as_str().is_some_and(|text| !text.is_empty()),
                "{part} is missing: {body}"
            );
        }
        body
    }

    /// Asserts that the upstream answered, with this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> &Self {
        assert_eq!(
            self.status,
            status,
            "{}{}",
            String::from_utf8_lossy(&self.head),
            self.text()
        );
        assert_eq!(
            self.field("claviger-answer"),
            None,
            "Claviger answered itself: {}",
            self.text()
        );
        self
    }
}
