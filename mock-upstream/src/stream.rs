//! One connection's bytes: TCP with or without TLS, an inbox and an outbox.
//!
//! TLS is rustls's buffered API driven directly. Everything that a response needs is appended to
//! the outbox and leaves in one write; plaintext is drained from rustls right after each record
//! is opened. Buffers belong to the stream and are reused, so that a small request and its answer
//! allocate nothing here.
//!
//! Reads are never abandoned and then continued (a dropped read loses bytes); waiting for
//! something else meanwhile is done with [`Stream::readable`], which moves no bytes.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use monoio::buf::IoBuf as _;
use monoio::io::{AsyncReadRent as _, AsyncWriteRent as _, AsyncWriteRentExt as _};
use monoio::net::TcpStream;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use rustls::{HandshakeKind, ServerConfig, ServerConnection};

use crate::idle::IdleGuard;

/// A connection's transport and its buffers.
pub struct Stream {
    // Declared first, hence dropped before the socket closes: see `IdleGuard`.
    guard: IdleGuard,
    io: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// Plaintext that arrived; `inbox[start..]` is unread.
    inbox: Vec<u8>,
    start: usize,
    /// Plaintext to be sent by the next flush.
    outbox: Vec<u8>,
    /// What the kernel reads into.
    receive: Vec<u8>,
    /// What the kernel writes from, with TLS.
    wire: Vec<u8>,
    receive_bytes: usize,
    /// The client's end of file or `close_notify` has been seen.
    ended: bool,
}

/// What the TLS handshake settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFacts {
    /// `TLSv1_3` or `TLSv1_2`.
    pub version: String,
    /// The cipher suite, as rustls names it.
    pub cipher_suite: String,
    /// The name that the client asked for (RFC 6066), if any.
    pub server_name: Option<String>,
    /// The application protocol (RFC 7301), if one was negotiated.
    pub alpn: Option<String>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

impl Stream {
    /// Wraps an accepted socket; with `tls`, [`Stream::handshake`] comes next.
    pub fn new(
        io: TcpStream,
        guard: IdleGuard,
        tls: Option<&Arc<ServerConfig>>,
    ) -> Result<Self, rustls::Error> {
        let tls = match tls {
            None => None,
            Some(config) => {
                let mut session = ServerConnection::new(Arc::clone(config))?;
                // The outbox is bounded by its users; rustls must take it whole.
                session.set_buffer_limit(None);
                Some(Box::new(session))
            }
        };
        Ok(Stream {
            guard,
            io,
            tls,
            inbox: Vec::new(),
            start: 0,
            outbox: Vec::new(),
            receive: Vec::new(),
            wire: Vec::new(),
            receive_bytes: RECEIVE_BYTES,
            ended: false,
        })
    }

    /// Completes the TLS handshake. Session tickets stay queued: they leave with the first
    /// response, or when there is nothing else to do but wait.
    pub async fn handshake(&mut self) -> io::Result<TlsFacts> {
        while self.session()?.is_handshaking() {
            self.flush().await?;
            if self.receive().await? == Received::End {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let session = self.session()?;
        Ok(TlsFacts {
            version: session
                .protocol_version()
                .map_or_else(String::new, |version| format!("{version:?}")),
            cipher_suite: session
                .negotiated_cipher_suite()
                .map_or_else(String::new, |suite| format!("{:?}", suite.suite())),
            server_name: session.server_name().map(str::to_string),
            alpn: session
                .alpn_protocol()
                .map(|name| String::from_utf8_lossy(name).into_owned()),
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
        })
    }

    fn session(&mut self) -> io::Result<&mut ServerConnection> {
        self.tls
            .as_deref_mut()
            .ok_or_else(|| io::Error::other("a clear-text connection has no handshake"))
    }

    /// What has arrived and is not consumed yet.
    #[inline]
    pub fn input(&self) -> &[u8] {
        &self.inbox[self.start..]
    }

    /// Drops the first `bytes` of the input.
    #[inline]
    pub fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        debug_assert!(self.start <= self.inbox.len());
        if self.start == self.inbox.len() {
            self.start = 0;
            self.inbox.clear();
        }
    }

    /// Where responses are written to.
    #[inline]
    pub fn outbox(&mut self) -> &mut Vec<u8> {
        &mut self.outbox
    }

    /// Sends what is pending, then waits for more input. `Ok(false)`: the client has ended its
    /// side.
    pub async fn fill(&mut self) -> io::Result<bool> {
        loop {
            self.flush().await?;
            match self.receive().await? {
                Received::Content => return Ok(true),
                Received::Nothing => {}
                Received::End => return Ok(false),
            }
        }
    }

    /// Sets how much one read may take: large while a body is being read.
    pub fn expect_bulk(&mut self, bulk: bool) {
        self.receive_bytes = if bulk { BULK_BYTES } else { RECEIVE_BYTES };
    }

    /// One read from the socket.
    pub async fn receive(&mut self) -> io::Result<Received> {
        if self.ended {
            return Ok(Received::End);
        }
        if self.start > 0 {
            self.inbox.drain(..self.start);
            self.start = 0;
        }
        let mut buffer = mem::take(&mut self.receive);
        if buffer.capacity() < self.receive_bytes || buffer.capacity() > 2 * self.receive_bytes {
            buffer = Vec::with_capacity(self.receive_bytes);
        }
        let (result, buffer) = self.io.read(buffer).await;
        self.receive = buffer;
        let length = result?;
        self.guard.touch();
        if length == 0 {
            self.ended = true;
            return Ok(Received::End);
        }
        let Some(session) = &mut self.tls else {
            if self.inbox.is_empty() {
                mem::swap(&mut self.inbox, &mut self.receive);
            } else {
                self.inbox.extend_from_slice(&self.receive);
            }
            return Ok(Received::Content);
        };
        let before = self.inbox.len();
        match open_records(session, &self.receive, &mut self.inbox) {
            Ok(closed) => {
                self.ended |= closed;
                Ok(match (self.inbox.len() > before, self.ended) {
                    (true, _) => Received::Content,
                    (false, false) => Received::Nothing,
                    (false, true) => Received::End,
                })
            }
            Err(error) => {
                // Tell the peer why, as far as it still listens.
                let _ = self.flush().await;
                Err(error)
            }
        }
    }

    /// Sends everything that is pending, in one write.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.flush_with(&[]).await
    }

    /// Sends everything that is pending and then `tail`, in one write.
    pub async fn flush_with(&mut self, tail: &[u8]) -> io::Result<()> {
        let buffer = match &mut self.tls {
            None => {
                self.outbox.extend_from_slice(tail);
                mem::take(&mut self.outbox)
            }
            Some(session) => {
                let total = self.outbox.len() + tail.len();
                if total > 0 {
                    let parts = [IoSlice::new(&self.outbox), IoSlice::new(tail)];
                    let written = session.writer().write_vectored(&parts)?;
                    debug_assert_eq!(written, total);
                    self.outbox.clear();
                }
                while session.wants_write() {
                    session.write_tls(&mut self.wire)?;
                }
                mem::take(&mut self.wire)
            }
        };
        let (result, mut buffer) = self.write(buffer).await;
        buffer.clear();
        if buffer.capacity() > 2 * BULK_BYTES {
            buffer = Vec::new();
        }
        match self.tls {
            None => self.outbox = buffer,
            Some(_) => self.wire = buffer,
        }
        result
    }

    /// Writes all of it. The socket's buffer has room as a rule, so that a plain `send` does: it
    /// costs less than a trip through the ring, whose completion would wake this task only for it
    /// to wait again. What does not fit goes through the event loop.
    async fn write(&mut self, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        if buffer.is_empty() {
            return (Ok(()), buffer);
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = match send(self.io.as_raw_fd(), &buffer, flags) {
            Ok(sent) => sent,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(error) => return (Err(error.into()), buffer),
        };
        self.guard.touch();
        if sent == buffer.len() {
            return (Ok(()), buffer);
        }
        let (result, rest) = self.io.write_all(buffer.slice(sent..)).await;
        self.guard.touch();
        (result.map(drop), rest.into_inner())
    }

    /// Waits until a read would not have to wait. May be abandoned at any time.
    pub async fn readable(&self) -> io::Result<()> {
        self.io.readable(false).await
    }

    /// Exempts the connection from the idle timeout while the server keeps it waiting.
    pub fn exempt_from_idle(&self, exempt: bool) {
        self.guard.exempt(exempt);
    }

    /// Says goodbye properly: `close_notify`, then the end of our side. What is pending leaves
    /// first.
    pub async fn finish(&mut self) -> io::Result<()> {
        if let Some(session) = &mut self.tls {
            // Queued behind the outbox, which must therefore be sealed first.
            if !self.outbox.is_empty() {
                session.writer().write_all(&self.outbox)?;
                self.outbox.clear();
            }
            session.send_close_notify();
        }
        self.flush().await?;
        self.io.shutdown().await
    }

    /// Ends our side without a `close_notify`, as a crashing server would. Nothing pending is
    /// sent.
    pub async fn cut(&mut self) -> io::Result<()> {
        self.io.shutdown().await
    }
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes for the input.
    Content,
    /// TLS records without content: a handshake message, a part of a record.
    Nothing,
    /// The client has ended its side.
    End,
}

/// Opens all whole records in `sealed` and appends their content to `inbox`. Returns whether the
/// client has said `close_notify`.
fn open_records(
    session: &mut ServerConnection,
    mut sealed: &[u8],
    inbox: &mut Vec<u8>,
) -> io::Result<bool> {
    while !sealed.is_empty() {
        session.read_tls(&mut sealed)?;
        let state = session
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let waiting = state.plaintext_bytes_to_read();
        if waiting > 0 {
            let mut start = inbox.len();
            inbox.resize(start + waiting, 0);
            while start < inbox.len() {
                start += session.reader().read(&mut inbox[start..])?;
            }
        }
        if state.peer_has_closed() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One read while a request head is awaited. Larger heads take several.
const RECEIVE_BYTES: usize = 8 * 1024;

/// One read while a body is being received, and the piece in which large bodies are sent.
pub const BULK_BYTES: usize = 64 * 1024;
