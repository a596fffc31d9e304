//! The caller of a row: does its steps over TLS, and tells how each connection ended.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::case::{Step, Words};
use super::upstream::Scene;

/// How the other side ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With close_notify.
    Goodbye,
    /// Without one, or with a reset: nobody takes what came before for the whole.
    Cut,
}

/// A connection to the subject.
pub struct Caller {
    /// `None` once the row has reset it.
    stream: Option<StreamOwned<ClientConnection, TcpStream>>,
    /// All that was received.
    pub received: Vec<u8>,
    /// How the other side ended it, if it has.
    pub ended: Option<Ended>,
    patience: Duration,
}

impl Caller {
    /// Connects and shakes hands.
    pub fn connect(
        address: SocketAddr,
        name: &str,
        config: &Arc<ClientConfig>,
        patience: Duration,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).expect("a DNS name");
        let mut socket = TcpStream::connect_timeout(&address, patience)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        let mut connection =
            ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Self {
            stream: Some(StreamOwned::new(connection, socket)),
            received: Vec::new(),
            ended: None,
            patience,
        })
    }

    /// Does one step; false when what it waits for did not come.
    pub fn step(&mut self, step: &Step, words: &Words, scene: &Scene) -> bool {
        match step {
            Step::Send(text) => {
                // A subject that refuses early may have closed by now; what it said is still read.
                let _ = self.send(&words.bytes(text));
                true
            }
            Step::UntilUpstream(text) => scene.wait_upstream(self.patience, &words.bytes(text)),
            Step::UntilClient(text) => {
                let wanted = words.bytes(text);
                while memmem::find(&self.received, &wanted).is_none() {
                    if !self.fill(Some(scene)) {
                        return false;
                    }
                }
                true
            }
            Step::HalfClose => {
                if let Some(stream) = &mut self.stream {
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                    let _ = stream.sock.shutdown(Shutdown::Write);
                }
                true
            }
            Step::Reset => {
                if let Some(stream) = self.stream.take() {
                    super::reset(&stream.sock);
                }
                self.ended = Some(Ended::Cut);
                true
            }
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let stream = self.stream.as_mut().ok_or_else(gone)?;
        stream.write_all(bytes)?;
        stream.flush()
    }

    /// Reads what comes next; false at the end, and when nothing came in time.
    pub fn fill(&mut self, scene: Option<&Scene>) -> bool {
        let Some(stream) = self.stream.as_mut().filter(|_| self.ended.is_none()) else {
            return false;
        };
        let mut chunk = [0; 16 * 1024];
        match stream.read(&mut chunk) {
            Ok(0) => self.ended = Some(Ended::Goodbye),
            Ok(read) => {
                self.received.extend_from_slice(&chunk[..read]);
                if let Some(scene) = scene {
                    scene.note(|seen| seen.client.extend_from_slice(&chunk[..read]));
                }
                return true;
            }
            Err(err)
                if matches!(
                    err.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(_) => self.ended = Some(Ended::Cut),
        }
        false
    }
}
