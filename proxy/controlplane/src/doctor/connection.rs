//! [`Connection`]: what is at an address, by TCP, TLS and one harmless request.
//!
//! The handshake takes any certificate and remembers what was shown, since what is wrong with
//! it is the question; signatures of the handshake itself are checked. Over such a connection
//! goes [`Probe::Trace`] alone, which carries nothing: Claviger answers TRACE itself, with 405
//! and a header that nobody else may send, before it looks at who calls, so it costs the API
//! nothing and tells a stranger nothing. No credential is ever sent.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
};

use super::finding::{Code, Finding};
use crate::pki;

/// For a TCP connection: a lost SYN is sent again after one second and after three.
const CONNECT_WAIT: Duration = Duration::from_secs(4);

/// For a handshake, and for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// For the answer to a real call, which an API may think about.
const CALL_WAIT: Duration = Duration::from_secs(30);

/// Bytes of the largest response head that is read.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// A connection on which a handshake has succeeded.
pub struct Connection {
    socket: TcpStream,
    tls: ClientConnection,
    /// What the server showed, its own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// This machine's address, as Claviger sees it where nothing translates it.
    pub local: Option<IpAddr>,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub enum Probe<'p> {
    /// Are you Claviger?
    Trace,
    /// A call without credentials, which may go on to the API.
    Call {
        /// `/v1/models`
        path: &'p str,
    },
}

/// The head of an answer.
#[derive(Debug, Clone)]
pub struct Answered {
    /// Its status.
    pub status: u16,
    /// Who refused, and why: `Claviger-Answer`.
    pub own: Option<(String, String)>,
    /// `Server`, as far as it is harmless.
    pub server: Option<String>,
    /// `Date`, in seconds since 1970.
    pub date: Option<i64>,
}

/// Connects by TCP.
///
/// # Errors
/// The finding.
pub fn connect(address: SocketAddr) -> Result<TcpStream, Finding> {
    TcpStream::connect_timeout(&address, CONNECT_WAIT).map_err(|error| {
        let (code, what) = match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => {
                (Code::ConnectRefused, "the connection is refused".to_owned())
            }
            ErrorKind::TimedOut | ErrorKind::WouldBlock => (
                Code::ConnectDropped,
                format!("no answer within {} s", CONNECT_WAIT.as_secs()),
            ),
            _ => (Code::ConnectUnreachable, error.to_string()),
        };
        Finding::new(code, format!("{address}: {what}"))
    })
}

/// A handshake as a client that takes any certificate.
///
/// # Errors
/// The finding.
pub fn handshake(
    socket: TcpStream,
    address: SocketAddr,
    host: &str,
) -> Result<Connection, Finding> {
    let seen = Arc::new(Recorder::default());
    let config = ClientConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Finding::new(Code::TlsFailed, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let mut connection =
        handshake_with(config, socket, host).map_err(|error| explain(&error, address, host))?;
    connection.chain = seen.0.lock().map(|chain| chain.clone()).unwrap_or_default();
    Ok(connection)
}

/// A handshake with a configuration that decides itself, as an upstream's does.
///
/// # Errors
/// The first that goes wrong.
pub fn handshake_with(
    mut config: ClientConfig,
    socket: TcpStream,
    host: &str,
) -> io::Result<Connection> {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::other("this is no host's name"))?;
    let mut tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut socket = socket;
    let deadline = Instant::now() + ANSWER_WAIT;
    while tls.is_handshaking() {
        limit(&socket, deadline)?;
        let (read, written) = tls.complete_io(&mut socket)?;
        if read == 0 && written == 0 && tls.is_handshaking() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    let chain = tls
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|der| der.clone().into_owned())
        .collect();
    let local = socket
        .local_addr()
        .ok()
        .map(|address| address.ip().to_canonical());
    Ok(Connection {
        socket,
        tls,
        chain,
        local,
    })
}

impl Connection {
    /// Asks, and reads the head of the answer.
    ///
    /// # Errors
    /// The connection's, or `InvalidData` for what is no HTTP.
    pub fn ask(mut self, host: &str, probe: Probe<'_>) -> io::Result<Answered> {
        let (method, path, wait) = match probe {
            Probe::Trace => ("TRACE", "/", ANSWER_WAIT),
            Probe::Call { path } => ("GET", path, CALL_WAIT),
        };
        let mut request = String::new();
        let _ = write!(
            request,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: claviger-doctor/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        );
        let deadline = Instant::now() + wait;
        let mut stream = rustls::Stream::new(&mut self.tls, &mut self.socket);
        limit(stream.sock, deadline)?;
        stream.write_all(request.as_bytes())?;
        let mut head = Vec::new();
        let mut chunk = [0; 4096];
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            limit(stream.sock, deadline)?;
            match stream.read(&mut chunk)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                length => head.extend_from_slice(&chunk[..length]),
            }
            if head.len() > HEAD_BYTES_MAX {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        Answered::parse(&String::from_utf8_lossy(&head))
            .ok_or_else(|| ErrorKind::InvalidData.into())
    }
}

/// What is left of the time is what the socket may wait.
fn limit(socket: &TcpStream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    socket.set_read_timeout(Some(left))?;
    socket.set_write_timeout(Some(left))
}

impl Answered {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.split("\r\n");
        let status = lines
            .next()?
            .strip_prefix("HTTP/1.")?
            .split(' ')
            .nth(1)?
            .parse()
            .ok()?;
        let mut answered = Self {
            status,
            own: None,
            server: None,
            date: None,
        };
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "claviger-answer" => {
                    let (refuser, rest) = value.split_once(';').unwrap_or((value, ""));
                    let reason = rest.trim().strip_prefix("reason=").unwrap_or_default();
                    answered.own = Some((plain(refuser), plain(reason)));
                }
                "server" => answered.server = Some(plain(value)),
                "date" => {
                    let format = time::macros::format_description!(
                        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
                    );
                    answered.date = time::PrimitiveDateTime::parse(value, &format)
                        .ok()
                        .map(|date| date.assume_utc().unix_timestamp());
                }
                _ => {}
            }
        }
        Some(answered)
    }
}

/// What somebody else wrote, cut to what a name needs.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|character| character.is_ascii_alphanumeric() || "-_./ ()".contains(*character))
        .take(60)
        .collect()
}

/// What a failed handshake says.
fn explain(error: &io::Error, address: SocketAddr, host: &str) -> Finding {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (code, what) = match tls {
        Some(rustls::Error::AlertReceived(AlertDescription::UnrecognisedName)) => (
            Code::TlsNameRefused,
            format!("it does not serve {host} (alert unrecognized_name)"),
        ),
        Some(rustls::Error::InvalidMessage(_)) => {
            (Code::TlsNotSpoken, "what it answers is no TLS".to_owned())
        }
        Some(rustls::Error::AlertReceived(alert)) => (
            Code::TlsFailed,
            format!("it ends the handshake with alert {alert:?}"),
        ),
        Some(other) => (Code::TlsFailed, other.to_string()),
        None => match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => (
                Code::TlsSilent,
                format!(
                    "it accepts the connection and says nothing for {} s",
                    ANSWER_WAIT.as_secs()
                ),
            ),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => (
                Code::TlsFailed,
                "it closes the connection in the handshake".to_owned(),
            ),
            _ => (Code::TlsFailed, error.to_string()),
        },
    };
    Finding::new(code, format!("{address}: {what}"))
}

/// Takes any certificate and keeps it. Signatures are checked, so that what is shown is the server's.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<CertificateDer<'static>>>);

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Ok(mut chain) = self.0.lock() {
            *chain = std::iter::once(end_entity)
                .chain(intermediates)
                .map(|der| der.clone().into_owned())
                .collect();
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &pki::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &pki::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        pki::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_who_wrote_it() {
        let text = "HTTP/1.1 405 Method Not Allowed\r\nClaviger-Answer: policy; reason=method_refused\r\nServer: a\u{1b}[31m\r\nDate: Sun, 22 Nov 2026 13:00:00 GMT\r\n\r\n";
        let answered = Answered::parse(text).expect("an answer");
        assert_eq!(
            answered.own,
            Some(("policy".to_owned(), "method_refused".to_owned()))
        );
        assert_eq!(answered.server.as_deref(), Some("a31m"));
        assert_eq!(answered.date, Some(1_795_352_400));
        assert!(Answered::parse("SSH-2.0-x\r\n\r\n").is_none());
    }
}
