//! [`Caller`]: the callers of the proof. Each request has a connection of its own,
//! whose every byte is kept until the other side closes it: so there is no need to
//! know where an answer ends, and nothing behind an answer is missed.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::PATIENCE;

/// Bytes of one answer that are kept; more is an error, since no script sends that much.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where and as what a caller connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// The listener's address.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// When a caller goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// When the other side has closed.
    AtTheEnd,
    /// Right after its request.
    AtOnce,
    /// When so many bytes of the answer are there.
    After(usize),
}

/// Somebody who calls.
#[derive(Debug)]
pub struct Caller {
    tls: Arc<ClientConfig>,
}

impl Caller {
    /// With this trust and, where a host wants one, this certificate.
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls }
    }

    /// Sends bytes as they are, and returns everything that came, however it ended.
    ///
    /// # Errors
    /// No connection or no handshake, or an answer that does not end within
    /// [`PATIENCE`] and was not left.
    pub fn call(
        &self,
        door: &Door,
        name: &str,
        request: &[u8],
        leave: Leave,
    ) -> io::Result<Vec<u8>> {
        let mut socket = TcpStream::connect(door.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        if !door.tls {
            return converse(&mut socket, request, leave);
        }
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let mut connection =
            ClientConnection::new(Arc::clone(&self.tls), name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        let mut stream = StreamOwned::new(connection, socket);
        let answer = converse(&mut stream, request, leave);
        if leave == Leave::AtTheEnd {
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
        let _ = stream.sock.shutdown(Shutdown::Both);
        answer
    }
}

fn converse(stream: &mut (impl Read + Write), request: &[u8], leave: Leave) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    // Whoever refuses a request closes before it has all been sent; the answer is
    // there all the same.
    let sent = stream.write_all(request).and_then(|()| stream.flush());
    if leave == Leave::AtOnce {
        return Ok(answer);
    }
    let mut chunk = [0; 16 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(read) => answer.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the answer does not end",
                ));
            }
            // Cut short: what came before counts.
            Err(_) => {
                return if answer.is_empty() {
                    sent.map(|()| answer)
                } else {
                    Ok(answer)
                };
            }
        }
        if matches!(leave, Leave::After(bytes) if answer.len() >= bytes) {
            return Ok(answer);
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other(
                "the answer is longer than any that was scripted",
            ));
        }
    }
}
