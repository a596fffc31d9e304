//! [`Transport`]: a socket, clear or TLS, as both sides of an exchange use it.
//!
//! What is received is opened where it lies and looked at there
//! ([`Incoming::take`]); what is sent is sealed from the slices that it consists of
//! ([`Outgoing::write`]), in the buffer that it is sent from. So a message of head,
//! key and body is one pass, one record and one send; and a connection that waits
//! holds no buffer.
//!
//! The two directions can be used at once ([`Transport::split`]).

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use rustls::pki_types::CertificateDer;

use crate::buffer::{FreeList, RECV_BYTES, RECV_BYTES_SMALL};
use crate::record;
use crate::rt;
use crate::session::{Handshake, Opened, Progress, Session};
use crate::tick::{Registration, Tick};

/// Encrypted bytes that may wait to be sent before a relay flushes them.
pub const SEND_PENDING_BYTES: usize = 128 * 1024;

/// How often an idle connection is looked at while it still has something to say.
/// Past it the connection counts as not idle.
const IDLE_LOOKS_MAX: usize = 4;

/// A receive that would have less room than this behind what waits for its rest
/// gets another buffer.
const RECV_ROOM_BYTES_MIN: usize = 1024;

/// A connected socket with what was received and not yet used.
pub struct Transport {
    // Dropped first: the sweep must not touch a descriptor that is closed.
    watch: Registration,
    receiver: rt::Receiver,
    sender: rt::Sender,
    inner: RefCell<Inner>,
    buffers: Rc<FreeList>,
}

#[derive(Default)]
struct Inner {
    /// `None` is clear text.
    tls: Option<Box<Session>>,
    /// What was received: with TLS, records, opened where they lie.
    inbox: Vec<u8>,
    /// Where the next record begins, or the clear text that was not yet consumed.
    /// Invariant: `inbox_at <= inbox.len()`.
    inbox_at: usize,
    /// What was opened and not yet consumed. Invariant: it ends at or before
    /// `inbox_at`; without TLS it is empty.
    plain: Range<usize>,
    /// What is to be sent, sealed where there is TLS.
    outbox: Vec<u8>,
    /// The peer said that it is done: close_notify, or FIN on clear text.
    ended: bool,
    /// FIN came without close_notify.
    cut_short: bool,
    /// Bytes that the kernel has taken, of whatever kind.
    bytes_sent: u64,
    /// A send is under way. Left behind by a send that was dropped: nobody knows
    /// how much of it has left, so nothing may follow it.
    sending: bool,
}

/// How a wait for bytes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// There is something in [`Incoming::chunk`].
    Data,
    /// The peer ended cleanly; nothing more will come.
    End,
}

impl Transport {
    /// Takes a socket over as clear text.
    pub fn new(
        (receiver, sender, fd): (rt::Receiver, rt::Sender, std::os::fd::RawFd),
        tick: &Rc<Tick>,
        buffers: &Rc<FreeList>,
    ) -> Self {
        let watch = tick.register(fd, receiver.stop_handle());
        Self {
            watch,
            receiver,
            sender,
            inner: RefCell::default(),
            buffers: Rc::clone(buffers),
        }
    }

    /// Whether there is TLS, and its handshake was short, by a ticket.
    pub fn is_resumed(&self) -> bool {
        let inner = self.inner.borrow();
        inner.tls.as_ref().is_some_and(|tls| tls.is_resumed())
    }

    /// The sweep's view of the socket.
    pub fn watch(&self) -> &Registration {
        &self.watch
    }

    /// The two directions, to be used at once.
    pub fn split(&mut self) -> (Incoming<'_>, Outgoing<'_>) {
        (
            Incoming {
                receiver: &mut self.receiver,
                watch: &self.watch,
                inner: &self.inner,
                buffers: &self.buffers,
            },
            Outgoing {
                sender: &mut self.sender,
                watch: &self.watch,
                inner: &self.inner,
                buffers: &self.buffers,
            },
        )
    }

    /// The receiving direction.
    pub fn incoming(&mut self) -> Incoming<'_> {
        self.split().0
    }

    /// The sending direction.
    pub fn outgoing(&mut self) -> Outgoing<'_> {
        self.split().1
    }

    /// Shows what was received before there is a session, and forgets as much of it as
    /// `look` says.
    pub fn take_raw<R>(&mut self, look: impl FnOnce(&[u8]) -> (usize, R)) -> R {
        let inner = self.inner.get_mut();
        let (used, result) = look(&inner.inbox[inner.inbox_at..]);
        inner.inbox_at += used;
        result
    }

    /// Receives once, before there is a session, and shows what has arrived. The
    /// bytes stay, for the handshake that follows.
    ///
    /// # Errors
    /// `UnexpectedEof` is a peer that left; `InvalidData` one that sends more than the
    /// largest buffer holds.
    pub async fn recv_raw<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> io::Result<R> {
        let inner = self.inner.get_mut();
        let before = inner.inbox.len() - inner.inbox_at;
        if self.incoming().recv_once(Room::Small).await? == Filled::End {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(look(&self.inner.get_mut().inbox[before..]))
    }

    /// Sends raw bytes beside any session: an alert of a handshake that failed.
    pub async fn send_raw(&mut self, bytes: Vec<u8>) {
        let (_, _, buffer) = self.sender.send(bytes).await;
        self.buffers.give_send(buffer);
    }

    /// Makes a TLS handshake; from then on the bytes are those of its session. Returns
    /// the certificate that a caller has shown, if it has.
    ///
    /// # Errors
    /// `InvalidData` wraps a [`rustls::Error`]; `UnexpectedEof` is a peer that left.
    pub async fn handshake(
        &mut self,
        handshake: Handshake,
    ) -> io::Result<Option<CertificateDer<'static>>> {
        // Out of the future: it is large, and short-lived.
        let mut handshake = Box::new(handshake);
        loop {
            let progress = self.inner.get_mut().advance(&mut handshake, &self.buffers);
            let (mut incoming, mut outgoing) = self.split();
            match progress {
                Ok(Progress::Done) => break,
                Ok(Progress::Waits) => {
                    outgoing.flush_once().await?;
                    if incoming.recv_once(Room::Small).await? == Filled::End {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => {
                    // The alert that says why.
                    let _ = outgoing.flush_once().await;
                    return Err(invalid(error));
                }
            }
        }
        let certificate = handshake.client_certificate();
        let session = handshake.into_session().map_err(invalid)?;
        self.inner.get_mut().tls = Some(Box::new(session));
        self.incoming().release();
        // A server's ticket too: it carries the acknowledgement without which a caller
        // that gathers small segments (Nagle) holds its first request back for 40 ms.
        self.outgoing().flush_once().await?;
        Ok(certificate)
    }

    /// Takes over the session that [`dismantle`](Self::dismantle) gave on another core.
    pub fn resume(&mut self, session: Option<Box<Session>>) {
        self.inner.get_mut().tls = session;
    }

    /// The socket and its session, to be served by another core; this end of it must
    /// not be used any more. `None`, and all as it was, where something waits to be
    /// read or sent, or descriptors are exhausted.
    pub fn dismantle(&mut self) -> Option<(rt::RawSocket, Option<Box<Session>>)> {
        let inner = self.inner.get_mut();
        let is_busy =
            inner.has_input() || inner.has_plaintext() || !inner.outbox.is_empty() || inner.sending;
        if is_busy || inner.ended || inner.cut_short || self.watch.is_expired() {
            return None;
        }
        // A duplicate: this core's driver lets go of its own descriptor when it can.
        let socket = rt::duplicate(self.watch.fd()).ok()?;
        Some((socket, inner.tls.take()))
    }

    /// Gives the peer's end-of-data sign (close_notify) and forgets the rest.
    pub async fn goodbye(&mut self) {
        {
            let inner = self.inner.get_mut();
            if let Some(tls) = &mut inner.tls {
                lend_outbox(&mut inner.outbox, &self.buffers);
                tls.close(&mut inner.outbox);
            }
        }
        self.watch.send_within(Duration::from_secs(1));
        let _ = self.outgoing().flush_once().await;
        self.watch.send_done();
    }

    /// Closes our direction: the peer sees the end of what we send.
    pub fn finish_sending(&mut self) {
        rt::finish_sending(self.watch.fd());
    }

    /// Whether it holds a buffer.
    #[cfg(test)]
    pub fn holds_bytes(&self) -> bool {
        let inner = self.inner.borrow();
        inner.inbox.capacity() + inner.outbox.capacity() > 0
    }

    /// Whether an idle connection is as it was left, taking in session tickets.
    /// Does not wait.
    pub fn is_still_idle(&mut self) -> bool {
        if self.watch.is_hung_up() || self.watch.is_expired() {
            return false;
        }
        {
            let inner = self.inner.get_mut();
            if inner.ended || inner.cut_short || inner.has_input() || inner.has_plaintext() {
                return false;
            }
        }
        for _ in 0..IDLE_LOOKS_MAX {
            match rt::peek(self.watch.fd()) {
                rt::Peeked::Quiet => return true,
                rt::Peeked::Closed => return false,
                // Tickets, or the end, or one behind the other: with clear text it can
                // only be wrong.
                rt::Peeked::Bytes if self.take_in() => {}
                rt::Peeked::Bytes => return false,
            }
        }
        false
    }

    /// Feeds what has arrived on an idle connection to the session. `false` if that
    /// was anything but what a session says by itself, whole.
    fn take_in(&mut self) -> bool {
        let inner = self.inner.get_mut();
        if inner.tls.is_none() {
            return false;
        }
        self.buffers.give_recv(std::mem::take(&mut inner.inbox));
        inner.inbox = self.buffers.take_recv(RECV_BYTES_SMALL);
        inner.inbox_at = 0;
        let received = rt::recv_now(self.watch.fd(), &mut inner.inbox);
        let quiet = received && inner.pump(&self.buffers).is_ok() && !inner.ended;
        let quiet = quiet && !inner.has_input() && !inner.has_plaintext();
        self.incoming().release();
        quiet
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        self.buffers.give_recv(std::mem::take(&mut inner.inbox));
        self.buffers.give_send(std::mem::take(&mut inner.outbox));
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Sees to it that there is a buffer to write into.
fn lend_outbox(outbox: &mut Vec<u8>, buffers: &FreeList) {
    if outbox.capacity() == 0 {
        *outbox = buffers.take_send();
    }
}

impl Inner {
    /// Whether bytes wait that were not opened yet, or clear text.
    fn has_input(&self) -> bool {
        self.inbox_at < self.inbox.len()
    }

    fn has_plaintext(&self) -> bool {
        !self.chunk().is_empty()
    }

    /// Opens records until there is clear text to look at, or no whole one is left.
    /// Without TLS the inbox is the clear text.
    fn pump(&mut self, buffers: &FreeList) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        while self.plain.is_empty() && !self.ended {
            let at = self.inbox_at;
            let length = match record::length(&self.inbox[at..]) {
                Ok(Some(length)) if self.inbox.len() - at >= length => length,
                Ok(_) => return Ok(()),
                Err(error) => {
                    lend_outbox(&mut self.outbox, buffers);
                    tls.refuse(&error, &mut self.outbox);
                    return Err(invalid(error));
                }
            };
            let record = &mut self.inbox[at..at + length];
            self.inbox_at += length;
            match tls.open(record, &mut self.outbox).map_err(invalid)? {
                Opened::Data(range) => self.plain = at + range.start..at + range.end,
                Opened::Nothing => {}
                Opened::End => {
                    // RFC 8446, section 6.1: what follows is ignored.
                    self.ended = true;
                    self.inbox_at = self.inbox.len();
                }
            }
        }
        Ok(())
    }

    /// Takes one message from its slices, sealed where there is TLS.
    fn write(&mut self, slices: &[&[u8]], buffers: &FreeList) -> io::Result<()> {
        lend_outbox(&mut self.outbox, buffers);
        match &mut self.tls {
            None => {
                for slice in slices {
                    self.outbox.extend_from_slice(slice);
                }
                Ok(())
            }
            Some(tls) => tls.seal(slices, &mut self.outbox).map_err(io::Error::other),
        }
    }

    /// Goes on with a handshake, as far as what was received allows.
    fn advance(
        &mut self,
        handshake: &mut Handshake,
        buffers: &FreeList,
    ) -> Result<Progress, rustls::Error> {
        lend_outbox(&mut self.outbox, buffers);
        let (used, progress) =
            handshake.advance(&mut self.inbox[self.inbox_at..], &mut self.outbox);
        self.inbox_at += used;
        progress
    }

    /// Clear text that was received and not yet consumed, as far as it is in one piece.
    fn chunk(&self) -> &[u8] {
        match &self.tls {
            None => &self.inbox[self.inbox_at..],
            Some(_) => &self.inbox[self.plain.clone()],
        }
    }

    fn consume(&mut self, n: usize) {
        match &self.tls {
            None => self.inbox_at += n,
            Some(_) => self.plain.start += n,
        }
    }
}

/// How much a receive may bring at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// A request, a handshake message: little, most likely, and perhaps long waited for.
    Small,
    /// Perhaps a body.
    Large,
}

/// The receiving direction of a [`Transport`].
pub struct Incoming<'t> {
    receiver: &'t mut rt::Receiver,
    watch: &'t Registration,
    inner: &'t RefCell<Inner>,
    buffers: &'t FreeList,
}

impl Incoming<'_> {
    /// Waits until there is clear text to look at.
    ///
    /// # Errors
    /// `TimedOut` past `limit`; `UnexpectedEof` when the peer left without
    /// saying so; `InvalidData` for bytes that are not TLS.
    pub async fn fill(&mut self, limit: Duration) -> io::Result<Filled> {
        if let Some(filled) = self.ready()? {
            return Ok(filled);
        }
        self.watch.recv_within(limit);
        let filled = self.wait(Room::Large).await;
        self.watch.recv_done();
        filled
    }

    /// Like [`fill`](Self::fill), for the pause before a request: draining ends it
    /// once `grace` is over.
    pub async fn fill_idle(&mut self, limit: Duration, grace: Duration) -> io::Result<Filled> {
        if let Some(filled) = self.ready()? {
            return Ok(filled);
        }
        self.watch.idle(grace);
        self.watch.recv_within(limit);
        let filled = self.wait(Room::Small).await;
        self.watch.recv_done();
        self.watch.busy();
        filled
    }

    /// The core's clock.
    pub fn now_ms(&self) -> u64 {
        self.watch.now_ms()
    }

    /// The sweep's view of the socket.
    pub fn watch(&self) -> &Registration {
        self.watch
    }

    /// What can be said without waiting: whether there is clear text already.
    pub fn ready(&mut self) -> io::Result<Option<Filled>> {
        let mut inner = self.inner.borrow_mut();
        inner.pump(self.buffers)?;
        if inner.has_plaintext() {
            return Ok(Some(Filled::Data));
        }
        if inner.ended {
            return Ok(Some(Filled::End));
        }
        if inner.cut_short {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(None)
    }

    async fn wait(&mut self, room: Room) -> io::Result<Filled> {
        let mut room = room;
        loop {
            let received = self.recv_once(room).await;
            if self.watch.is_recv_late() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            received?;
            if let Some(filled) = self.ready()? {
                return Ok(filled);
            }
            // Part of a record: the rest of it, and what follows.
            room = Room::Large;
        }
    }

    /// One receive into the inbox, behind the part of a record that may wait there.
    /// All else must be used up.
    async fn recv_once(&mut self, room: Room) -> io::Result<Filled> {
        let lends = self.receiver.lends();
        // A buffer that is taken only when there is something for it may be large.
        let room = if lends { room } else { Room::Large };
        let (received, buffer) = loop {
            if !lends && self.receiver.readable().now_or_never().is_none() {
                self.shrink();
                self.receiver.readable().await?;
            }
            let place = self.buffers.lend();
            if lends && place.is_none() {
                self.shrink();
                self.receiver.readable().await?;
            }
            let buffer = self.make_room(room)?;
            self.watch.waits_with_buffer(true);
            let (received, buffer) = self.receiver.recv(buffer).await;
            self.watch.waits_with_buffer(false);
            drop(place);
            let Err(error) = &received else {
                break (received, buffer);
            };
            let is_cold = rt::is_stopped(error);
            let again = is_cold
                || matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                );
            if !again {
                break (received, buffer);
            }
            self.inner.borrow_mut().inbox = buffer;
            if is_cold {
                // Waits with nothing in hand, or as little as there is.
                self.shrink();
                self.receiver.readable().await?;
            }
        };
        let mut inner = self.inner.borrow_mut();
        inner.inbox = buffer;
        let filled = match received {
            Ok(0) => {
                if inner.tls.is_some() {
                    inner.cut_short = true;
                } else {
                    inner.ended = true;
                }
                Ok(Filled::End)
            }
            Ok(_) => return Ok(Filled::Data),
            Err(error) => Err(error),
        };
        drop(inner);
        self.release();
        filled
    }

    /// Takes the inbox out, with room behind what waits in it.
    fn make_room(&self, room: Room) -> io::Result<Vec<u8>> {
        let mut inner = self.inner.borrow_mut();
        debug_assert!(inner.tls.is_none() || !inner.has_plaintext());
        let mut buffer = std::mem::take(&mut inner.inbox);
        let at = std::mem::take(&mut inner.inbox_at);
        inner.plain = 0..0;
        if at > 0 {
            let waits = buffer.len() - at;
            buffer.copy_within(at.., 0);
            buffer.truncate(waits);
        }
        let wanted = match room {
            Room::Small => RECV_BYTES_SMALL,
            Room::Large => RECV_BYTES,
        };
        if buffer.capacity() >= wanted && buffer.capacity() - buffer.len() >= RECV_ROOM_BYTES_MIN {
            return Ok(buffer);
        }
        let wanted = if buffer.capacity() == 0 {
            wanted
        } else {
            RECV_BYTES
        };
        let mut larger = self.buffers.take_recv(wanted);
        larger.extend_from_slice(&buffer);
        self.buffers.give_recv(buffer);
        if larger.capacity() - larger.len() < RECV_ROOM_BYTES_MIN {
            // No record is that long, and no ClientHello should be.
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(larger)
    }

    /// Keeps no more memory than what waits needs.
    fn shrink(&mut self) {
        self.release();
        let mut inner = self.inner.borrow_mut();
        if inner.inbox.capacity() > RECV_BYTES_SMALL && inner.inbox.len() <= RECV_BYTES_SMALL {
            let mut smaller = self.buffers.take_recv(RECV_BYTES_SMALL);
            // Behind what was used up there may be part of a record.
            smaller.extend_from_slice(&inner.inbox[inner.inbox_at..]);
            inner.inbox_at = 0;
            inner.plain = 0..0;
            self.buffers
                .give_recv(std::mem::replace(&mut inner.inbox, smaller));
        }
    }

    /// Hands the clear text that is there, in one piece, to `look`, which says how
    /// many bytes of it are used up.
    pub fn take<R>(&mut self, look: impl FnOnce(&[u8]) -> (usize, R)) -> R {
        let mut inner = self.inner.borrow_mut();
        let (used, result) = look(inner.chunk());
        inner.consume(used);
        drop(inner);
        self.release();
        result
    }

    /// Gives a buffer back that is used up.
    fn release(&mut self) {
        let mut inner = self.inner.borrow_mut();
        if !inner.has_input() && !inner.has_plaintext() && inner.inbox.capacity() > 0 {
            inner.inbox_at = 0;
            inner.plain = 0..0;
            self.buffers.give_recv(std::mem::take(&mut inner.inbox));
        }
    }

    /// Whether something waits that nobody has looked at, or the connection has
    /// failed. What a session says by itself is taken in.
    pub fn has_leftover(&mut self) -> bool {
        let mut inner = self.inner.borrow_mut();
        let leftover =
            inner.pump(self.buffers).is_err() || inner.has_input() || inner.has_plaintext();
        drop(inner);
        self.release();
        leftover
    }
}

/// The sending direction of a [`Transport`].
pub struct Outgoing<'t> {
    sender: &'t mut rt::Sender,
    watch: &'t Registration,
    inner: &'t RefCell<Inner>,
    buffers: &'t FreeList,
}

impl Outgoing<'_> {
    /// Encrypts one message from its slices. Nothing is sent before
    /// [`flush`](Self::flush).
    ///
    /// # Errors
    /// When the session has already failed.
    pub fn write(&mut self, slices: &[&[u8]]) -> io::Result<()> {
        self.inner.borrow_mut().write(slices, self.buffers)
    }

    /// Whether something waits to be sent.
    #[cfg(test)]
    pub fn wants_send(&self) -> bool {
        !self.inner.borrow().outbox.is_empty()
    }

    /// Sends everything that was written.
    ///
    /// # Errors
    /// `TimedOut` past `limit`, or as `send(2)`.
    pub async fn flush(&mut self, limit: Duration) -> io::Result<()> {
        self.watch.send_within(limit);
        let sent = self.flush_once().await;
        self.watch.send_done();
        if self.watch.is_send_late() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sent
    }

    async fn flush_once(&mut self) -> io::Result<()> {
        loop {
            let buffer = {
                let mut inner = self.inner.borrow_mut();
                let buffer = std::mem::take(&mut inner.outbox);
                if buffer.is_empty() {
                    self.buffers.give_send(buffer);
                    return Ok(());
                }
                if std::mem::replace(&mut inner.sending, true) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                buffer
            };
            let (sent, bytes, buffer) = self.sender.send(buffer).await;
            self.buffers.give_send(buffer);
            let mut inner = self.inner.borrow_mut();
            inner.sending = false;
            inner.bytes_sent += bytes as u64;
            drop(inner);
            sent?;
        }
    }

    /// Bytes that the kernel has taken on this connection so far.
    pub fn bytes_sent(&self) -> u64 {
        self.inner.borrow().bytes_sent
    }

    /// The peer's next bytes are due within `limit`: for a receive that is already
    /// in flight when the time begins to run.
    pub fn peer_must_answer_within(&self, limit: Duration) {
        self.watch.recv_within(limit);
    }

    /// Whether the socket was cut because a send took too long.
    pub fn is_late(&self) -> bool {
        self.watch.is_send_late()
    }

    /// Whether the peer was found to have hung up.
    pub fn peer_is_gone(&self) -> bool {
        self.watch.is_hung_up()
    }

    /// Makes an unfinished message unmistakable: no close_notify, and a reset.
    pub fn reset(&mut self) {
        rt::reset_on_close(self.watch.fd());
    }
}

#[cfg(feature = "bench")]
pub mod in_memory;
#[cfg(test)]
mod tests;
