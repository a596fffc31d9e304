//! [`Sessions`]: the two ends of a TLS connection without a socket between them, for
//! benchmarks of what a [`Transport`](super::Transport) does in memory.
//!
//! What crosses is cut into pieces of a receive buffer's size, as a socket would
//! cut it. It lacks the pool of buffers, deadlines and the socket.

use std::io;

use rustls::{ClientConnection, ServerConnection};

use super::Inner;
use crate::buffer::RECV_BYTES;

/// A sending and a receiving end whose handshake is over.
pub struct Sessions {
    sender: Inner,
    receiver: Inner,
    /// What the sender has encrypted and the receiver has not seen.
    sealed: Vec<u8>,
}

impl Sessions {
    /// Shakes hands. The client will send and the server receive.
    ///
    /// # Errors
    /// As the handshake: the two do not fit each other.
    pub fn new(client: ClientConnection, server: ServerConnection) -> io::Result<Self> {
        let (mut sender, mut receiver) = (Inner::default(), Inner::default());
        sender.start_tls(client.into());
        receiver.start_tls(server.into());
        let mut sealed = Vec::new();
        loop {
            let mut quiet = true;
            for turned in [false, true] {
                let (from, to) = if turned {
                    (&mut receiver, &mut sender)
                } else {
                    (&mut sender, &mut receiver)
                };
                sealed.clear();
                from.seal(&mut sealed)?;
                quiet &= sealed.is_empty();
                to.receive(&sealed)?;
            }
            if quiet {
                break;
            }
        }
        sealed.clear();
        Ok(Self {
            sender,
            receiver,
            sealed,
        })
    }

    /// Encrypts one message from its slices; returns the bytes on the wire.
    ///
    /// # Errors
    /// When the session has failed.
    pub fn encrypt(&mut self, slices: &[&[u8]]) -> io::Result<usize> {
        self.sealed.clear();
        self.sender.write(slices)?;
        self.sender.seal(&mut self.sealed)?;
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
            self.receiver.receive(piece)?;
            loop {
                let chunk = self.receiver.chunk();
                if chunk.is_empty() {
                    break;
                }
                look(chunk);
                let used = chunk.len();
                length += used;
                self.receiver.consume(used);
                self.receiver.pump()?;
            }
        }
        self.sealed.clear();
        Ok(length)
    }
}

impl Inner {
    /// What a receive into the inbox does; the inbox keeps its memory.
    fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inbox.clear();
        self.inbox_at = 0;
        self.inbox.extend_from_slice(bytes);
        self.pump()
    }
}
