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

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use monoio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

use crate::failure::{Failure, Kind};
use crate::request::{Outgoing, Rest};
use crate::slot::Slot;
use crate::sys;

/// A connection. `W` is the type of its watch, which has no name.
pub struct Stream<W> {
    socket: Rc<TcpStream>,
    start_watch: fn(Rc<TcpStream>) -> W,
    /// Never polled again once it was ready, until it is replaced.
    watch: Pin<Box<W>>,
    tls: Option<Box<ClientConnection>>,
    /// Encrypted bytes on their way out. Invariant: `out_sent <= out.len()`, and equal between sends.
    out: Vec<u8>,
    /// How many of them the kernel has.
    out_sent: usize,
}

/// What a piece of plaintext meant to the one who took it.
pub enum Taken {
    /// More is needed.
    More,
    /// That was all that was asked for.
    Enough,
}

/// How a send ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// All of it is on its way.
    All,
    /// Whoever took the bytes that arrived meanwhile has enough. The send may be taken up again.
    Answered,
    /// The peer has closed.
    Closed {
        /// Whether truncation is ruled out as far as the transport can tell.
        clean: bool,
    },
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
    tls: Option<(&Arc<ClientConfig>, &ServerName<'static>)>,
    slot: &Slot,
) -> Result<Stream<impl Future<Output = io::Result<()>> + use<>>, Failure> {
    let socket = slot
        .unless_expired(TcpStream::connect_addr(address))
        .await?
        .map_err(|error| cannot_connect(&error))?;
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
        out_sent: 0,
    };
    stream.handshake(slot).await?;
    Ok(stream)
}

/// Says what ran out, where it is ours.
fn cannot_connect(error: &io::Error) -> Failure {
    let cure = match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => {
            "no source port is left towards this address; widen net.ipv4.ip_local_port_range, let \
             connections live longer, or spread the load over several addresses of the server"
        }
        Some(libc::EMFILE | libc::ENFILE) => {
            "no descriptor is left; raise the limit on open files (ulimit -n)"
        }
        _ => return Failure::io(Kind::Connect, error),
    };
    Failure::new(Kind::Connect, cure)
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

    /// Protocol version, cipher suite and key exchange group, for the report. `None` in clear text.
    pub fn tls_description(&self) -> Option<String> {
        let tls = self.tls.as_ref()?;
        let (version, suite) = (tls.protocol_version()?, tls.negotiated_cipher_suite()?);
        let mut text = format!("{version:?} {:?}", suite.suite());
        // A session of TLS 1.2 that is resumed exchanges no keys.
        if let Some(group) = tls.negotiated_key_exchange_group() {
            text.push_str(&format!(" {:?}", group.name()));
        }
        Some(text)
    }

    /// Sends `message`, and takes in what arrives while the socket takes no more.
    ///
    /// RFC 9112, 9.5 wants a client to look for an answer while its body is still going out: a
    /// server that refuses it may answer at once, read no more, and close.
    ///
    /// # Errors
    /// What `take` returned; kind reset when the connection is gone, timeout when the slot's
    /// deadline has passed.
    pub async fn send(
        &mut self,
        message: &mut Outgoing<'_>,
        slot: &Slot,
        mut take: impl FnMut(&[u8]) -> Result<Taken, Failure>,
    ) -> Result<Sent, Failure> {
        let answered = Cell::new(false);
        let mut take = |piece: &[u8]| {
            let taken = take(piece)?;
            answered.set(answered.get() || matches!(taken, Taken::Enough));
            Ok(taken)
        };
        loop {
            let pending = match self.fill(message)? {
                true => &self.out[self.out_sent..],
                false => message.piece(),
            };
            if pending.is_empty() {
                return Ok(Sent::All);
            }
            let length = pending.len();
            match sys::send_now(self.descriptor(), pending) {
                Ok(sent) => {
                    self.sent(message, sent);
                    if sent == length {
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // The peer takes no more, but its answer may have come before.
                    let received = self.read(&mut take);
                    return match received {
                        _ if answered.get() => Ok(Sent::Answered),
                        Ok(Received::End { clean }) => Ok(Sent::Closed { clean }),
                        _ => Err(Failure::io(Kind::Reset, &error)),
                    };
                }
            }
            if self.blocked(slot).await? {
                let received = self.read(&mut take);
                self.watch.set((self.start_watch)(self.socket.clone()));
                match received {
                    _ if answered.get() => return Ok(Sent::Answered),
                    Ok(Received::Bytes) => {}
                    Ok(Received::End { clean }) => return Ok(Sent::Closed { clean }),
                    Err(failure) => return Err(failure),
                }
            }
        }
    }

    /// Encrypts more of `message` when all that was encrypted is gone. Returns whether this
    /// connection is encrypted, that is, whether `out` is what has to go next.
    fn fill(&mut self, message: &mut Outgoing<'_>) -> Result<bool, Failure> {
        let Some(tls) = &mut self.tls else {
            return Ok(false);
        };
        if self.out_sent < self.out.len() {
            return Ok(true);
        }
        self.out.clear();
        self.out_sent = 0;
        while !message.piece().is_empty() {
            // Takes as much as rustls buffers (64 KiB by default), which bounds our memory too.
            let taken = tls
                .writer()
                .write(message.piece())
                .map_err(|error| Failure::io(Kind::Tls, &error))?;
            if taken == 0 {
                break;
            }
            message.advance(taken);
        }
        while tls.wants_write() {
            tls.write_tls(&mut self.out)
                .map_err(|error| Failure::io(Kind::Tls, &error))?;
        }
        Ok(true)
    }

    fn sent(&mut self, message: &mut Outgoing<'_>, count: usize) {
        match self.tls.is_some() {
            true => self.out_sent += count,
            false => message.advance(count),
        }
    }

    /// Waits until the socket takes bytes, or has some. Returns whether it has some, or failed.
    async fn blocked(&mut self, slot: &Slot) -> Result<bool, Failure> {
        let socket = self.socket.clone();
        let mut writable = pin!(socket.writable(false));
        let watch = &mut self.watch;
        slot.unless_expired(poll_fn(|cx| {
            if let Poll::Ready(readable) = watch.as_mut().poll(cx) {
                return Poll::Ready(readable.map(|()| true));
            }
            writable
                .as_mut()
                .poll(cx)
                .map(|writable| writable.map(|()| false))
        }))
        .await?
        .map_err(|error| Failure::io(Kind::Reset, &error))
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
            self.out_sent = 0;
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
                self.out_sent = 0;
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

    /// Sends what TLS itself has to say.
    async fn flush_tls(&mut self, slot: &Slot) -> Result<(), Failure> {
        let nothing = Cell::new(0);
        let mut message = Outgoing::new(&[], &Rest::None, &nothing);
        self.fill(&mut message)?;
        while self.out_sent < self.out.len() {
            match sys::send_now(self.descriptor(), &self.out[self.out_sent..]) {
                Ok(sent) => self.out_sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    slot.unless_expired(self.socket.writable(false))
                        .await?
                        .map_err(|error| Failure::io(Kind::Reset, &error))?;
                }
                Err(error) => return Err(Failure::io(Kind::Reset, &error)),
            }
        }
        Ok(())
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
