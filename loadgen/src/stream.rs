//! One connection, in clear or over TLS, that is always being watched.
//!
//! The runtime is asked for one thing only: to say when the socket has something to read. That
//! watch is armed before a request is sent and again as soon as bytes were taken, so a server that
//! closes an idle connection is noticed at once. The reading and the sending are direct,
//! non-blocking calls, one right after the other, while the socket is in the processor's cache;
//! they also make the time of sending the time of the call. The plain alternative, a receive that
//! waits in the ring, costs a second attempt per answer, a buffer per idle connection, and
//! separates each connection's receive from its send by those of all others.
//!
//! TLS is rustls's buffered API: plaintext is handed to the caller in place, after each
//! `process_new_packets`, so that it never piles up.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use monoio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

use crate::failure::{Failure, Kind};
use crate::slot::Slot;
use crate::sys;

/// A connection. `W` is the type of its watch, which has no name.
pub struct Stream<W> {
    socket: Rc<TcpStream>,
    start_watch: fn(Rc<TcpStream>) -> W,
    /// Never polled again once it was ready, until it is replaced.
    watch: Pin<Box<W>>,
    tls: Option<Box<ClientConnection>>,
    /// Encrypted bytes on their way out; empty between sends.
    out: Vec<u8>,
}

/// What a piece of plaintext meant to the one who took it.
pub enum Taken {
    /// More is needed.
    More,
    /// That was all that was asked for.
    Enough,
}

/// What a wait for bytes brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes, all of them taken.
    Bytes,
    /// The peer has closed. `clean` says that nothing was cut off: it announced the end (TLS) or
    /// the protocol has no way to (clear text).
    End {
        /// Whether truncation is ruled out as far as the transport can tell.
        clean: bool,
    },
}

/// Connects, and shakes hands if `tls` is given. Obeys the slot's deadline.
///
/// # Errors
/// A [`Failure`] of kind connect, tls or timeout.
pub async fn open(
    address: SocketAddr,
    tls: Option<&(Arc<ClientConfig>, ServerName<'static>)>,
    slot: &Slot,
) -> Result<Stream<impl Future<Output = io::Result<()>> + use<>>, Failure> {
    let socket = slot
        .unless_expired(TcpStream::connect_addr(address))
        .await?
        .map_err(|error| Failure::io(Kind::Connect, &error))?;
    socket
        .set_nodelay(true)
        .map_err(|error| Failure::io(Kind::Connect, &error))?;
    let tls = match tls {
        Some((config, name)) => Some(Box::new(
            ClientConnection::new(config.clone(), name.clone())
                .map_err(|error| Failure::new(Kind::Tls, error.to_string()))?,
        )),
        None => None,
    };
    let socket = Rc::new(socket);
    let start_watch: fn(_) -> _ = readable;
    let mut stream = Stream {
        watch: Box::pin(start_watch(socket.clone())),
        socket,
        start_watch,
        tls,
        out: Vec::new(),
    };
    stream.handshake(slot).await?;
    Ok(stream)
}

async fn readable(socket: Rc<TcpStream>) -> io::Result<()> {
    socket.readable(false).await
}

/// Bytes taken by one read: a few full TLS records.
const READ_BYTES: usize = 64 * 1024;

thread_local! {
    /// Every connection of the thread reads into this, one at a time: it stays in the cache, and
    /// an idle connection needs no memory for reading.
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

impl<W: Future<Output = io::Result<()>>> Stream<W> {
    /// Whether the handshake resumed an earlier session. `None` in clear text.
    pub fn resumed(&self) -> Option<bool> {
        let kind = self.tls.as_ref()?.handshake_kind()?;
        Some(kind == HandshakeKind::Resumed)
    }

    /// Protocol version and cipher suite, for the report. `None` in clear text.
    pub fn tls_description(&self) -> Option<String> {
        let tls = self.tls.as_ref()?;
        let suite = tls.negotiated_cipher_suite()?.suite();
        Some(format!("{:?} {:?}", tls.protocol_version()?, suite))
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// Kind reset when the connection is gone, timeout when the slot's deadline has passed.
    pub async fn send(&mut self, bytes: &[u8], slot: &Slot) -> Result<(), Failure> {
        if self.tls.is_none() {
            return self.send_raw(bytes, slot).await;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            if let Some(tls) = &mut self.tls {
                // Takes as much as rustls buffers (64 KiB by default), which bounds our memory too.
                let taken = tls
                    .writer()
                    .write(rest)
                    .map_err(|error| Failure::io(Kind::Tls, &error))?;
                rest = &rest[taken..];
            }
            self.flush_tls(slot).await?;
        }
        Ok(())
    }

    /// Waits for bytes and gives all plaintext to `take`, piece by piece.
    ///
    /// # Errors
    /// What `take` returned, or kind tls, protocol, reset or timeout.
    pub async fn receive(
        &mut self,
        slot: &Slot,
        mut take: impl FnMut(&[u8]) -> Result<Taken, Failure>,
    ) -> Result<Received, Failure> {
        slot.unless_expired(self.watch.as_mut())
            .await?
            .map_err(|error| Failure::io(Kind::Reset, &error))?;
        let received = self.read(&mut take);
        self.watch.set((self.start_watch)(self.socket.clone()));
        let received = received?;
        if self.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
            self.flush_tls(slot).await?;
        }
        Ok(received)
    }

    /// Watches an idle connection. Session tickets and the like are taken in silently.
    ///
    /// Ready when the peer has closed, sent something unasked, or failed.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(readable) = self.watch.as_mut().poll(cx) {
            let received = readable
                .map_err(|error| Failure::io(Kind::Reset, &error))
                .and_then(|()| self.read(&mut unasked));
            self.watch.set((self.start_watch)(self.socket.clone()));
            let answers = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
            if !matches!(received, Ok(Received::Bytes)) || answers {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Says goodbye, as far as that goes without waiting.
    pub fn close(mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            self.out.clear();
            while tls.wants_write() && tls.write_tls(&mut self.out).is_ok() {}
            let _ = sys::send_now(self.descriptor(), &self.out);
        }
    }

    async fn handshake(&mut self, slot: &Slot) -> Result<(), Failure> {
        loop {
            if self.tls.is_some() {
                self.flush_tls(slot).await?;
            }
            if !self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
                return Ok(());
            }
            match self.receive(slot, unasked).await {
                Ok(Received::Bytes) => {}
                Ok(Received::End { .. }) => {
                    return Err(Failure::new(
                        Kind::Tls,
                        "the server closed during the handshake",
                    ));
                }
                Err(failure) if failure.kind == Kind::Reset => {
                    return Err(Failure::new(
                        Kind::Tls,
                        format!("during the handshake: {}", failure.detail),
                    ));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Takes what the socket holds. An empty socket brings no bytes, which is no end.
    fn read(
        &mut self,
        take: &mut impl FnMut(&[u8]) -> Result<Taken, Failure>,
    ) -> Result<Received, Failure> {
        READ_BUFFER.with_borrow_mut(|buffer| {
            loop {
                match sys::receive_now(self.descriptor(), buffer) {
                    Ok(0) => {
                        return Ok(Received::End {
                            clean: self.ended_cleanly(),
                        });
                    }
                    Ok(n) => {
                        self.take_bytes(&buffer[..n], take)?;
                        if n < buffer.len() {
                            return Ok(Received::Bytes);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Received::Bytes);
                    }
                    Err(error) => return Err(Failure::io(Kind::Reset, &error)),
                }
            }
        })
    }

    fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn ended_cleanly(&mut self) -> bool {
        let Some(tls) = &mut self.tls else {
            return true;
        };
        // rustls answers an end without close_notify with an error of its own.
        let _ = tls.read_tls(&mut io::empty());
        !matches!(tls.reader().fill_buf(), Err(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }

    /// Decrypts what arrived and gives the plaintext to `take`.
    fn take_bytes(
        &mut self,
        bytes: &[u8],
        take: &mut impl FnMut(&[u8]) -> Result<Taken, Failure>,
    ) -> Result<(), Failure> {
        let mut enough = false;
        let mut give = |piece: &[u8]| {
            if enough {
                return Err(Failure::new(Kind::Protocol, "bytes after the response"));
            }
            enough = matches!(take(piece)?, Taken::Enough);
            Ok(())
        };
        let Some(tls) = &mut self.tls else {
            return give(bytes);
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            tls.read_tls(&mut rest)
                .map_err(|error| Failure::io(Kind::Tls, &error))?;
            if let Err(error) = tls.process_new_packets() {
                // The alert that tells the peer why; the connection is lost either way.
                self.out.clear();
                let _ = tls.write_tls(&mut self.out);
                let _ = sys::send_now(self.descriptor(), &self.out);
                return Err(Failure::new(Kind::Tls, error.to_string()));
            }
            loop {
                let mut reader = tls.reader();
                let piece = match reader.fill_buf() {
                    // Nothing now, or the end, which the next read will report.
                    Err(_) | Ok([]) => break,
                    Ok(piece) => piece,
                };
                let length = piece.len();
                give(piece)?;
                reader.consume(length);
            }
        }
        Ok(())
    }

    async fn flush_tls(&mut self, slot: &Slot) -> Result<(), Failure> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        while tls.wants_write() {
            tls.write_tls(&mut out)
                .map_err(|error| Failure::io(Kind::Tls, &error))?;
        }
        let sent = self.send_raw(&out, slot).await;
        self.out = out;
        sent
    }

    async fn send_raw(&mut self, bytes: &[u8], slot: &Slot) -> Result<(), Failure> {
        let mut rest = bytes;
        loop {
            match sys::send_now(self.descriptor(), rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(Failure::io(Kind::Reset, &error)),
            }
            if rest.is_empty() {
                return Ok(());
            }
            slot.unless_expired(self.socket.writable(false))
                .await?
                .map_err(|error| Failure::io(Kind::Reset, &error))?;
        }
    }
}

fn unasked(_: &[u8]) -> Result<Taken, Failure> {
    Err(Failure::new(Kind::Protocol, "bytes without a request"))
}

/// Waits until `slot` has something to do, while watching an open connection for its end.
///
/// Returns whether the connection is still good.
pub async fn idle<W: Future<Output = io::Result<()>>>(stream: &mut Stream<W>, slot: &Slot) -> bool {
    poll_fn(|cx| {
        slot.register(cx);
        if stream.poll_idle(cx).is_ready() {
            return Poll::Ready(false);
        }
        if slot.has_work() {
            return Poll::Ready(true);
        }
        Poll::Pending
    })
    .await
}
