//! [`Sessions`]: the two ends of a TLS connection without a socket between them, for
//! benchmarks of what a [`Transport`](super::Transport) does in memory.
//!
//! What crosses is cut into pieces of a receive buffer's size, as a socket would
//! cut it. It lacks the pool of buffers, deadlines and the socket.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

use super::{Inner, invalid};
use crate::buffer::{FreeList, RECV_BYTES};
use crate::session::{Handshake, Progress};

/// A sending and a receiving end whose handshake is over.
pub struct Sessions {
    sender: Inner,
    receiver: Inner,
    /// What the sender has encrypted and the receiver has not seen.
    sealed: Vec<u8>,
    buffers: FreeList,
}

impl Sessions {
    /// Shakes hands. The client will send and the server receive. Both configurations
    /// must let the keys out (`enable_secret_extraction`).
    ///
    /// # Errors
    /// As the handshake: the two do not fit each other.
    pub fn new(
        client: Arc<ClientConfig>,
        name: ServerName<'static>,
        server: Arc<ServerConfig>,
    ) -> io::Result<Self> {
        let buffers = FreeList::default();
        let mut client = Handshake::client(client, name).map_err(invalid)?;
        let mut server = Handshake::server(server).map_err(invalid)?;
        let (mut sender, mut receiver) = (Inner::default(), Inner::default());
        let (mut client_is_done, mut server_is_done) = (false, false);
        while !(client_is_done && server_is_done) {
            if !client_is_done {
                let progress = sender.advance(&mut client, &buffers).map_err(invalid)?;
                client_is_done = matches!(progress, Progress::Done);
                receiver.inbox.append(&mut sender.outbox);
            }
            if !server_is_done {
                let progress = receiver.advance(&mut server, &buffers).map_err(invalid)?;
                server_is_done = matches!(progress, Progress::Done);
                sender.inbox.append(&mut receiver.outbox);
            }
        }
        for (inner, handshake) in [(&mut sender, client), (&mut receiver, server)] {
            inner.tls = Some(Box::new(handshake.into_session().map_err(invalid)?));
        }
        // Tickets.
        sender.pump(&buffers)?;
        Ok(Self {
            sender,
            receiver,
            sealed: Vec::new(),
            buffers,
        })
    }

    /// Encrypts one message from its slices; returns the bytes on the wire.
    ///
    /// # Errors
    /// When the session has failed.
    pub fn encrypt(&mut self, slices: &[&[u8]]) -> io::Result<usize> {
        self.sealed.clear();
        self.sender.write(slices, &self.buffers)?;
        std::mem::swap(&mut self.sealed, &mut self.sender.outbox);
        Ok(self.sealed.len())
    }

    /// Decrypts what was encrypted last, piece by piece, and hands the clear text to
    /// `look`; returns its length.
    ///
    /// # Errors
    /// When a record is not the next one: each message must be decrypted once, in order.
    pub fn decrypt(&mut self, mut look: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut length = 0;
        for piece in self.sealed.chunks(RECV_BYTES) {
            self.receiver.receive(piece, &self.buffers)?;
            loop {
                let chunk = self.receiver.chunk();
                if chunk.is_empty() {
                    break;
                }
                look(chunk);
                let used = chunk.len();
                length += used;
                self.receiver.consume(used);
                self.receiver.pump(&self.buffers)?;
            }
        }
        self.sealed.clear();
        Ok(length)
    }
}

impl Inner {
    /// What a receive into the inbox does; the inbox keeps its memory.
    fn receive(&mut self, bytes: &[u8], buffers: &FreeList) -> io::Result<()> {
        self.inbox.drain(..self.inbox_at);
        self.inbox_at = 0;
        self.plain = 0..0;
        self.inbox.extend_from_slice(bytes);
        self.pump(buffers)
    }
}
