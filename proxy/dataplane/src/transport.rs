//! [`Transport`]: a socket, clear or TLS, as both sides of an exchange use it.
//!
//! TLS runs over rustls's buffered interface. What is received is decrypted
//! where it lies and looked at there ([`Incoming::chunk`]); what is sent is
//! encrypted from the slices that it consists of ([`Outgoing::write`]), so a
//! message of head, key and body is one pass, one record and one send.
//!
//! The two directions can be used at once ([`Transport::split`]).

use std::cell::RefCell;
use std::io::{self, BufRead, IoSlice, Write};
use std::rc::Rc;
use std::time::Duration;

use rustls::Connection;

use crate::buffer::FreeList;
use crate::rt;
use crate::tick::{Registration, Tick};

/// Encrypted bytes that may wait to be sent before a relay flushes them.
pub const SEND_PENDING_BYTES: usize = 128 * 1024;

/// Messages of at most so many slices are written without an allocation.
const SLICES_ON_STACK: usize = 32;

/// How often an idle connection is looked at while it still has something to say.
/// Past it the connection counts as not idle.
const IDLE_LOOKS_MAX: usize = 4;

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
    tls: Option<Box<Connection>>,
    /// What was received: ciphertext that rustls has not seen yet, or clear text.
    inbox: Vec<u8>,
    /// Invariant: `inbox_at <= inbox.len()`.
    inbox_at: usize,
    /// Clear text to send.
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

    /// From now on the bytes are those of a TLS session.
    pub fn start_tls(&mut self, session: Connection) {
        self.inner.get_mut().start_tls(session);
    }

    /// The TLS session, if there is one.
    pub fn with_tls<R>(&self, look: impl FnOnce(&mut Connection) -> R) -> Option<R> {
        self.inner.borrow_mut().tls.as_deref_mut().map(look)
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

    /// Receives raw bytes for what comes before there is a session. `feed` takes
    /// them until it has what it wants; what it leaves belongs to the session
    /// that follows.
    pub async fn recv_raw<R>(
        &mut self,
        feed: impl FnOnce(&mut &[u8]) -> io::Result<R>,
    ) -> io::Result<R> {
        let filled = self.incoming().recv_once().await?;
        if filled == Filled::End {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let inner = self.inner.get_mut();
        let mut bytes = &inner.inbox[inner.inbox_at..];
        let fed = feed(&mut bytes);
        inner.inbox_at = inner.inbox.len() - bytes.len();
        if fed.is_err() {
            inner.inbox_at = inner.inbox.len();
        }
        fed
    }

    /// Sends raw bytes beside any session: an alert of a handshake that failed.
    pub async fn send_raw(&mut self, bytes: Vec<u8>) {
        let (_, _, buffer) = self.sender.send(bytes).await;
        self.buffers.give_send(buffer);
    }

    /// Completes the TLS handshake of the session that was set.
    ///
    /// # Errors
    /// `InvalidData` wraps a [`rustls::Error`]; `UnexpectedEof` is a peer that left.
    pub async fn handshake(&mut self) -> io::Result<()> {
        loop {
            let (mut incoming, mut outgoing) = self.split();
            if outgoing.wants_send() {
                outgoing.flush_once().await?;
                continue;
            }
            let (handshaking, failed) = {
                let mut inner = incoming.inner.borrow_mut();
                let failed = inner.pump().err();
                (
                    inner.tls.as_ref().is_some_and(|tls| tls.is_handshaking()),
                    failed,
                )
            };
            if let Some(error) = failed {
                // The alert that says why.
                let _ = outgoing.flush_once().await;
                return Err(error);
            }
            if outgoing.wants_send() {
                continue;
            }
            if !handshaking {
                incoming.release();
                return Ok(());
            }
            if !incoming.inner.borrow().has_input() && incoming.recv_once().await? == Filled::End {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Gives the peer's end-of-data sign (close_notify) and forgets the rest.
    pub async fn goodbye(&mut self) {
        {
            let mut inner = self.inner.borrow_mut();
            if let Some(tls) = &mut inner.tls {
                tls.send_close_notify();
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
    /// was anything but what a session says by itself.
    fn take_in(&mut self) -> bool {
        let mut buffer = self.buffers.take_recv();
        let received = rt::recv_now(self.watch.fd(), &mut buffer);
        let inner = self.inner.get_mut();
        let quiet = received && inner.tls.is_some() && {
            std::mem::swap(&mut inner.inbox, &mut buffer);
            inner.inbox_at = 0;
            let pumped = inner.pump();
            let quiet = pumped.is_ok()
                && !inner.ended
                && !inner.has_plaintext()
                && inner.inbox_at == inner.inbox.len();
            std::mem::swap(&mut inner.inbox, &mut buffer);
            // What is back in its place was used up before (`has_input` said
            // so): reading it again would break the session.
            inner.inbox_at = inner.inbox.len();
            quiet
        };
        self.buffers.give_recv(buffer);
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

impl Inner {
    fn start_tls(&mut self, mut session: Connection) {
        // We flush after each message and bound what waits ourselves.
        session.set_buffer_limit(None);
        self.tls = Some(Box::new(session));
    }

    fn has_input(&self) -> bool {
        self.inbox_at < self.inbox.len()
    }

    fn has_plaintext(&mut self) -> bool {
        !self.chunk().is_empty()
    }

    /// Feeds rustls from the inbox until there is clear text to look at, or the
    /// inbox is empty. Without TLS the inbox is the clear text.
    fn pump(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        while self.inbox_at < self.inbox.len() {
            if tls.reader().fill_buf().is_ok_and(|chunk| !chunk.is_empty()) {
                return Ok(());
            }
            let mut input = &self.inbox[self.inbox_at..];
            let taken = tls.read_tls(&mut input)?;
            self.inbox_at += taken;
            let state = tls
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if state.peer_has_closed() {
                self.ended = true;
                self.inbox_at = self.inbox.len();
            }
            if taken == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Clear text that was received and not yet consumed, as far as it is in one piece.
    fn chunk(&mut self) -> &[u8] {
        match &mut self.tls {
            None => &self.inbox[self.inbox_at..],
            // "Would block" is how rustls says that there is nothing; the end is in `ended`.
            Some(tls) => tls.reader().into_first_chunk().unwrap_or(&[]),
        }
    }

    fn consume(&mut self, n: usize) {
        match &mut self.tls {
            None => self.inbox_at += n,
            Some(tls) => tls.reader().consume(n),
        }
    }

    /// Takes one message from its slices; what comes of it is had from [`seal`](Self::seal).
    fn write(&mut self, slices: &[&[u8]]) -> io::Result<()> {
        match &mut self.tls {
            None => {
                for slice in slices {
                    self.outbox.extend_from_slice(slice);
                }
                Ok(())
            }
            Some(tls) => {
                let total: usize = slices.iter().map(|slice| slice.len()).sum();
                // On the stack for any ordinary head.
                let mut few = [IoSlice::new(&[]); SLICES_ON_STACK];
                let many: Vec<IoSlice<'_>>;
                let list = if slices.len() <= SLICES_ON_STACK {
                    for (place, slice) in few.iter_mut().zip(slices) {
                        *place = IoSlice::new(slice);
                    }
                    &few[..slices.len()]
                } else {
                    many = slices.iter().map(|slice| IoSlice::new(slice)).collect();
                    &many[..]
                };
                // No limit is set on the session, so it takes all of it.
                let written = tls.writer().write_vectored(list)?;
                debug_assert_eq!(written, total);
                if written == total {
                    Ok(())
                } else {
                    Err(io::ErrorKind::WriteZero.into())
                }
            }
        }
    }

    /// Moves everything that waits to be sent into `buffer`, which is empty.
    fn seal(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        match &mut self.tls {
            None => std::mem::swap(&mut self.outbox, buffer),
            Some(tls) => {
                while tls.wants_write() {
                    tls.write_tls(buffer)?;
                }
            }
        }
        Ok(())
    }
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
        let filled = self.wait().await;
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
        let filled = self.fill(limit).await;
        self.watch.busy();
        filled
    }

    /// What can be said without waiting: whether there is clear text already.
    pub fn ready(&mut self) -> io::Result<Option<Filled>> {
        let mut inner = self.inner.borrow_mut();
        inner.pump()?;
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

    async fn wait(&mut self) -> io::Result<Filled> {
        loop {
            let received = self.recv_once().await;
            if self.watch.is_recv_late() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            received?;
            if let Some(filled) = self.ready()? {
                return Ok(filled);
            }
        }
    }

    /// One receive into the inbox, which must be used up.
    async fn recv_once(&mut self) -> io::Result<Filled> {
        let mut buffer = {
            let mut inner = self.inner.borrow_mut();
            debug_assert!(!inner.has_input());
            inner.inbox_at = 0;
            std::mem::take(&mut inner.inbox)
        };
        let received = loop {
            if buffer.capacity() == 0 {
                if !self.receiver.lends() {
                    self.receiver.readable().await?;
                }
                buffer = self.buffers.take_recv();
            }
            buffer.clear();
            let received;
            self.watch.waits_with_buffer(true);
            (received, buffer) = self.receiver.recv(buffer).await;
            self.watch.waits_with_buffer(false);
            match received {
                Err(error)
                    if rt::is_stopped(&error) || error.kind() == io::ErrorKind::WouldBlock =>
                {
                    // Cold, or nothing there: wait with nothing in hand.
                    self.buffers.give_recv(std::mem::take(&mut buffer));
                    self.receiver.readable().await?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let mut inner = self.inner.borrow_mut();
        match received {
            Ok(0) => {
                self.buffers.give_recv(buffer);
                if inner.tls.is_some() {
                    inner.cut_short = true;
                } else {
                    inner.ended = true;
                }
                Ok(Filled::End)
            }
            Ok(_) => {
                inner.inbox = buffer;
                Ok(Filled::Data)
            }
            Err(error) => {
                self.buffers.give_recv(buffer);
                Err(error)
            }
        }
    }

    /// Hands the clear text that is there, in one piece, to `look`, which says how
    /// many bytes of it are used up.
    pub fn take<R>(&mut self, look: impl FnOnce(&[u8]) -> (usize, R)) -> R {
        let mut inner = self.inner.borrow_mut();
        let (used, result) = look(inner.chunk());
        inner.consume(used);
        if !inner.has_input() && inner.inbox.capacity() > 0 && (inner.tls.is_some() || used > 0) {
            let empty = std::mem::take(&mut inner.inbox);
            inner.inbox_at = 0;
            self.buffers.give_recv(empty);
        }
        result
    }

    /// Gives a buffer back that is used up.
    fn release(&mut self) {
        let mut inner = self.inner.borrow_mut();
        if !inner.has_input() && inner.inbox.capacity() > 0 {
            inner.inbox_at = 0;
            self.buffers.give_recv(std::mem::take(&mut inner.inbox));
        }
    }

    /// Whether clear text waits that nobody has looked at.
    pub fn has_leftover(&mut self) -> bool {
        let mut inner = self.inner.borrow_mut();
        inner.has_input() || inner.has_plaintext()
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
        self.inner.borrow_mut().write(slices)
    }

    /// Whether something waits to be sent.
    pub fn wants_send(&self) -> bool {
        let inner = self.inner.borrow();
        match &inner.tls {
            None => !inner.outbox.is_empty(),
            Some(tls) => tls.wants_write(),
        }
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
            let mut buffer = self.buffers.take_send();
            self.inner.borrow_mut().seal(&mut buffer)?;
            if buffer.is_empty() {
                self.buffers.give_send(buffer);
                return Ok(());
            }
            if std::mem::replace(&mut self.inner.borrow_mut().sending, true) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
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
