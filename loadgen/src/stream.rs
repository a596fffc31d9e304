//! One connection, in clear or over TLS, with a read that is always under way.
//!
//! The read is armed before a request is sent and again as soon as its bytes were taken, so a
//! server that closes an idle connection is noticed at once, and waiting for an answer costs no
//! further submission. Requests leave by one direct, non-blocking `send`: the time of sending is
//! the time of the call, and no completion wakes the thread for nothing.
//!
//! TLS is rustls's buffered API: plaintext is handed to the caller in place, after each
//! `process_new_packets`, so that it never piles up.

use std::future::{Future, poll_fn};
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use monoio::io::{AsyncReadRent, AsyncWriteRentExt, Splitable};
use monoio::net::TcpStream;
use monoio::net::tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use std::sync::Arc;

use crate::failure::{Failure, Kind};
use crate::slot::Slot;
use crate::sys;

/// A connection. `R` is the type of its read under way, which has no name.
pub struct Stream<R> {
    socket: RawFd,
    /// `None` only while a write that did not fit into the socket holds it.
    write_half: Option<TcpOwnedWriteHalf>,
    start_read: fn(TcpOwnedReadHalf, Vec<u8>) -> R,
    reading: Pin<Box<R>>,
    tls: Option<Box<ClientConnection>>,
    /// Encrypted bytes on their way out; empty between sends.
    out: Vec<u8>,
}

/// What a read gives back: the half and the buffer it borrowed, and the bytes it brought.
pub type ReadDone = (TcpOwnedReadHalf, Vec<u8>, io::Result<usize>);

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
) -> Result<Stream<impl Future<Output = ReadDone> + use<>>, Failure> {
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
    let fd = socket.as_raw_fd();
    let (read_half, write_half) = socket.into_split();
    let start_read: fn(_, _) -> _ = read_once;
    let mut stream = Stream {
        socket: fd,
        write_half: Some(write_half),
        start_read,
        reading: Box::pin(start_read(read_half, Vec::with_capacity(READ_BYTES))),
        tls,
        out: Vec::new(),
    };
    stream.handshake(slot).await?;
    Ok(stream)
}

/// Bytes asked for by one read. Large enough for three full TLS records; memory is touched only as
/// far as bytes arrive.
const READ_BYTES: usize = 64 * 1024;

async fn read_once(mut half: TcpOwnedReadHalf, buffer: Vec<u8>) -> ReadDone {
    let (result, buffer) = half.read(buffer).await;
    (half, buffer, result)
}

impl<R: Future<Output = ReadDone>> Stream<R> {
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

    /// Waits for bytes and gives all plaintext to `take`, piece by piece. `take` returns how much
    /// of a piece it used; the rest of that piece, if any, makes an error of kind protocol.
    ///
    /// # Errors
    /// What `take` returned, or kind tls, reset or timeout.
    pub async fn receive(
        &mut self,
        slot: &Slot,
        mut take: impl FnMut(&[u8]) -> Result<Taken, Failure>,
    ) -> Result<Received, Failure> {
        let (half, buffer, result) = slot.unless_expired(self.reading.as_mut()).await?;
        let outcome = match result {
            Ok(0) => Ok(Received::End {
                clean: self.ended_cleanly(),
            }),
            Ok(_) => self
                .take_bytes(&buffer, &mut take)
                .map(|()| Received::Bytes),
            Err(error) => Err(Failure::io(Kind::Reset, &error)),
        };
        self.reading.set((self.start_read)(half, buffer));
        let received = outcome?;
        if self.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
            self.flush_tls(slot).await?;
        }
        Ok(received)
    }

    /// Polls for bytes without giving up the wait on `Pending`: what an idle connection does. Session
    /// tickets and the like are taken in silently.
    ///
    /// Ready with `false` when the peer closed, sent something unasked, or failed.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            let Poll::Ready((half, buffer, result)) = self.reading.as_mut().poll(cx) else {
                return Poll::Pending;
            };
            let alive = matches!(result, Ok(n) if n > 0)
                && self
                    .take_bytes(&buffer, &mut |_| {
                        Err(Failure::new(Kind::Protocol, "bytes without a request"))
                    })
                    .is_ok()
                && !self.tls.as_ref().is_some_and(|tls| tls.wants_write());
            self.reading.set((self.start_read)(half, buffer));
            if !alive {
                return Poll::Ready(false);
            }
        }
    }

    /// Says goodbye, as far as that goes without waiting.
    pub fn close(mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            self.out.clear();
            while tls.wants_write() && tls.write_tls(&mut self.out).is_ok() {}
            let _ = sys::send_now(self.socket, &self.out);
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
            let received = self
                .receive(slot, |_| {
                    Err(Failure::new(Kind::Protocol, "bytes without a request"))
                })
                .await;
            match received {
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
                let _ = sys::send_now(self.socket, &self.out);
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
        let sent = match sys::send_now(self.socket, bytes) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(Failure::io(Kind::Reset, &error)),
        };
        if sent == bytes.len() {
            return Ok(());
        }
        // The socket is full: the runtime sends the rest as the peer makes room. Rare, and only
        // for large bodies, so the copy does not matter.
        let mut half = self
            .write_half
            .take()
            .ok_or_else(|| Failure::new(Kind::Reset, "an earlier send was abandoned"))?;
        let rest = bytes[sent..].to_vec();
        let (result, _) = slot.unless_expired(half.write_all(rest)).await?;
        self.write_half = Some(half);
        result
            .map(|_| ())
            .map_err(|error| Failure::io(Kind::Reset, &error))
    }
}

/// Waits until `slot` has something to do, while watching an open connection for its end.
///
/// Returns whether the connection is still good.
pub async fn idle<R: Future<Output = ReadDone>>(stream: &mut Stream<R>, slot: &Slot) -> bool {
    poll_fn(|cx| {
        slot.register(cx);
        if let Poll::Ready(alive) = stream.poll_idle(cx) {
            return Poll::Ready(alive);
        }
        if slot.has_work() {
            return Poll::Ready(true);
        }
        Poll::Pending
    })
    .await
}
