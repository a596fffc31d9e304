//! One connection's bytes: TCP with or without TLS, an inbox and an outbox.
//!
//! TLS is rustls's buffered API driven directly. Everything that a response needs is appended to
//! the outbox and leaves in one write; plaintext is drained from rustls right after each record
//! is opened. Buffers belong to the stream and are reused, so that a small request and its answer
//! allocate nothing here.
//!
//! Reads happen when there is something to read ([`Readiness`]), into a buffer that the worker's
//! connections share; one that waits owns no more than what it has not used up. Waiting moves no
//! bytes and may be abandoned.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd as _;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use rustls::server::{Accepted, Acceptor};
use rustls::{HandshakeKind, ServerConfig, ServerConnection};

use crate::alarm::Alarm;
use crate::executor::{before, yield_once};
use crate::faults::wreck::{Effect, Wreck};
use crate::idle::IdleGuard;
use crate::raw::Tape;
use crate::readiness::{Readiness, Watch};
use crate::units::SPAN_MAX;

/// A connection's transport and its buffers.
pub struct Stream {
    // Declared first, hence dropped before the socket closes: see `IdleGuard` and `Watch`.
    guard: IdleGuard,
    watch: Watch,
    io: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// Plaintext that arrived; `inbox[start..]` is unread.
    inbox: Vec<u8>,
    start: usize,
    /// Plaintext to be sent by the next flush.
    outbox: Vec<u8>,
    /// What the kernel reads into: shared by all connections of the worker, empty between reads.
    scratch: Scratch,
    /// What the kernel writes from, with TLS.
    wire: Vec<u8>,
    /// The client's end of file or `close_notify` has been seen.
    ended: bool,
    /// The last read was full: others go first before the next.
    greedy: bool,
    /// What keeps the outbox from leaving as it is; as a rule, nothing.
    bend: Option<Bend>,
    /// A fault has ended the connection: errors are ours, not the client's.
    faulted: bool,
    /// A copy of what is consumed, if it is to be recorded.
    tape: Option<Tape>,
}

/// What becomes of the outbox instead of being sent.
enum Bend {
    /// It is kept, so that the whole answer can be written anew.
    Held,
    /// It is sent as far as the wreck lets it.
    Wrecked(Box<Wreck>, Rc<Alarm>),
}

/// A buffer of [`BULK_BYTES`] for reads, lent to one connection at a time within one poll.
pub type Scratch = Rc<RefCell<Vec<u8>>>;

/// A buffer for [`Stream::new`].
pub fn scratch() -> Scratch {
    Rc::new(RefCell::new(vec![0; BULK_BYTES]))
}

/// What the TLS handshake settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFacts {
    /// `TLSv1_3` or `TLSv1_2`.
    pub version: String,
    /// The cipher suite, as rustls names it.
    pub cipher_suite: String,
    /// The key exchange group, as rustls names it; empty where no keys were exchanged, as in a
    /// session of TLS 1.2 that is resumed.
    pub group: String,
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
        readiness: &Rc<Readiness>,
        scratch: &Scratch,
        tls: Option<&Arc<ServerConfig>>,
    ) -> io::Result<Self> {
        let tls = match tls {
            None => None,
            Some(config) => {
                let session = ServerConnection::new(Arc::clone(config));
                Some(prepared(session.map_err(io::Error::other)?))
            }
        };
        let watch = readiness.watch(&io)?;
        Ok(Stream {
            guard,
            watch,
            io,
            tls,
            inbox: Vec::new(),
            start: 0,
            outbox: Vec::new(),
            scratch: Rc::clone(scratch),
            wire: Vec::new(),
            ended: false,
            greedy: false,
            bend: None,
            faulted: false,
            tape: None,
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
            group: session
                .negotiated_key_exchange_group()
                .map_or_else(String::new, |group| format!("{:?}", group.name())),
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
        if let Some(tape) = &mut self.tape {
            tape.push(&self.inbox[self.start..self.start + bytes]);
        }
        self.start += bytes;
        debug_assert!(self.start <= self.inbox.len());
        if self.start == self.inbox.len() {
            self.start = 0;
            self.inbox.clear();
        }
    }

    /// Begins to copy whatever is consumed.
    pub fn start_tape(&mut self) {
        self.tape = Some(Tape::default());
    }

    /// What has been consumed since the last call, if it is copied.
    pub fn take_tape(&mut self) -> Option<Tape> {
        self.tape.as_mut().map(mem::take)
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

    /// One read from the socket.
    pub async fn receive(&mut self) -> io::Result<Received> {
        if self.ended {
            return Ok(Received::End);
        }
        if self.start > 0 {
            self.inbox.drain(..self.start);
            self.start = 0;
        }
        if self.inbox.is_empty() && self.inbox.capacity() > INBOX_BYTES_KEPT {
            self.inbox = Vec::new();
        }
        loop {
            self.watch.readable().await;
            if mem::take(&mut self.greedy) {
                yield_once().await;
            }
            match self.read_once() {
                Ok(None) => {}
                Ok(Some(received)) => return Ok(received),
                Err(error) => {
                    // Tell the peer why, as far as it still listens.
                    let _ = self.transmit(&[]).await;
                    return Err(error);
                }
            }
        }
    }

    /// One read that does not wait; `None` if it would have had to.
    fn read_once(&mut self) -> io::Result<Option<Received>> {
        let mut scratch = self.scratch.borrow_mut();
        let length = match recv(self.io.as_raw_fd(), &mut scratch, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => length,
            Err(Errno::EAGAIN) => {
                self.watch.empty();
                return Ok(None);
            }
            Err(Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match length < scratch.len() {
            true => self.watch.drained(),
            false => self.greedy = true,
        }
        self.guard.touch();
        if length == 0 {
            self.ended = true;
            return Ok(Some(Received::End));
        }
        let Some(session) = &mut self.tls else {
            self.inbox.extend_from_slice(&scratch[..length]);
            return Ok(Some(Received::Content));
        };
        let before = self.inbox.len();
        self.ended |= open_records(session, &scratch[..length], &mut self.inbox)?;
        Ok(Some(match (self.inbox.len() > before, self.ended) {
            (true, _) => Received::Content,
            (false, false) => Received::Nothing,
            (false, true) => Received::End,
        }))
    }

    /// Sends everything that is pending, in one write.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.flush_with(&[]).await
    }

    /// Sends everything that is pending and then `tail`, in one write.
    pub async fn flush_with(&mut self, tail: &[u8]) -> io::Result<()> {
        match self.bend {
            None => self.transmit(tail).await,
            Some(_) => Box::pin(self.flush_bent(tail)).await,
        }
    }

    /// Seals and sends the outbox and then `tail`, in one write.
    async fn transmit(&mut self, tail: &[u8]) -> io::Result<()> {
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
        let result = self.write(&buffer).await;
        let mut buffer = buffer;
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

    /// Keeps the outbox from now on, for [`Stream::release`].
    pub fn hold(&mut self) {
        self.bend = Some(Bend::Held);
    }

    /// Ends a hold; the outbox has all that was written meanwhile. False if it was too much to
    /// hold, and has left as it was.
    pub fn release(&mut self) -> bool {
        self.bend.take().is_some()
    }

    /// Wrecks the answer that follows.
    pub fn wreck(&mut self, wreck: Wreck, alarm: &Rc<Alarm>) {
        self.bend = Some(Bend::Wrecked(Box::new(wreck), Rc::clone(alarm)));
    }

    /// Whether a fault has ended the connection.
    pub fn is_faulted(&self) -> bool {
        self.faulted
    }

    /// The wrecked answer is complete: what has not happened to it yet happens now.
    pub async fn end_of_answer(&mut self) -> io::Result<()> {
        self.flush().await?;
        match self.bend.take() {
            Some(Bend::Wrecked(wreck, alarm)) => match wreck.effect {
                Some(effect) => Box::pin(self.carry_out(effect, &[], &alarm)).await,
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    async fn flush_bent(&mut self, tail: &[u8]) -> io::Result<()> {
        self.outbox.extend_from_slice(tail);
        let (mut wreck, alarm) = match self.bend.take() {
            Some(Bend::Wrecked(wreck, alarm)) => (wreck, alarm),
            Some(Bend::Held) if self.outbox.len() <= HELD_BYTES_MAX => {
                self.bend = Some(Bend::Held);
                return Ok(());
            }
            _ => return self.transmit(&[]).await,
        };
        let mut bytes = mem::take(&mut self.outbox);
        let (passed, due) = wreck.admit(&bytes);
        let rest = bytes.split_off(passed);
        match wreck.drip {
            None => self.transmit(&bytes).await?,
            Some((piece, pause)) => {
                self.exempt_from_idle(true);
                for piece in bytes.chunks(piece) {
                    self.transmit(piece).await?;
                    alarm.sleep(pause).await;
                }
                self.exempt_from_idle(false);
            }
        }
        match wreck.effect {
            Some(effect) if due => self.carry_out(effect, &rest, &alarm).await,
            _ => {
                self.bend = Some(Bend::Wrecked(wreck, alarm));
                Ok(())
            }
        }
    }

    /// An error means that the connection has ended, and that this was the fault's doing.
    async fn carry_out(
        &mut self,
        effect: Effect,
        rest: &[u8],
        alarm: &Rc<Alarm>,
    ) -> io::Result<()> {
        match effect {
            Effect::Stall(Some(time)) => {
                self.until_gone(alarm, Some(time)).await;
                if !self.ended {
                    return self.transmit(rest).await;
                }
            }
            Effect::Stall(None) => self.until_gone(alarm, None).await,
            Effect::Reset => self.reset(),
            Effect::Close => self.finish().await?,
            Effect::Cut => self.cut()?,
            Effect::Alert(alert) => {
                if let Some(session) = self.tls.take() {
                    let record = alert.seal(*session).map_err(io::Error::other)?;
                    self.write(&record).await?;
                }
                self.cut()?;
            }
            Effect::BadRecord => {
                // Application data whose tag is no tag of any key.
                let record = [&[23, 3, 3, 0, 32][..], &[0x5a; 32]].concat();
                self.write(&record).await?;
                self.cut()?;
            }
        }
        self.faulted = true;
        Err(io::Error::other("a fault has ended the connection"))
    }

    /// Waits until the client has ended its side, or for `time`; what arrives meanwhile is kept,
    /// up to a bound.
    pub async fn until_gone(&mut self, alarm: &Rc<Alarm>, time: Option<Duration>) {
        self.exempt_from_idle(true);
        let mut sleep = pin!(alarm.sleep(time.unwrap_or(SPAN_MAX)));
        loop {
            if self.input().len() >= STALLED_BYTES_MAX {
                sleep.await;
                break;
            }
            if before(sleep.as_mut(), self.watch.readable())
                .await
                .is_none()
            {
                break;
            }
            if !matches!(
                self.receive().await,
                Ok(Received::Content | Received::Nothing)
            ) {
                self.ended = true;
                break;
            }
        }
        self.exempt_from_idle(false);
    }

    /// Makes the connection's end a reset. It happens when the stream is dropped.
    pub fn reset(&mut self) {
        self.faulted = true;
        // It can fail only on a socket that is broken already.
        let _ = socket2::SockRef::from(&self.io).set_linger(Some(Duration::ZERO));
    }

    /// Reads the ClientHello on a stream that was made without TLS; [`Stream::begin_tls`] follows.
    ///
    /// # Errors
    ///
    /// The client went away, or sent something else; it has been told then.
    pub async fn client_hello(&mut self) -> io::Result<Accepted> {
        let mut acceptor = Acceptor::default();
        loop {
            if self.receive().await? == Received::End {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut unread = self.input();
            acceptor.read_tls(&mut unread)?;
            let taken = self.input().len() - unread.len();
            self.consume(taken);
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(accepted),
                Ok(None) => {}
                Err((error, mut alert)) => {
                    alert.write_all(&mut self.outbox)?;
                    self.transmit(&[]).await?;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        }
    }

    /// Goes on with TLS where [`Stream::client_hello`] stopped; [`Stream::handshake`] follows.
    ///
    /// # Errors
    ///
    /// The client offers nothing that this side could accept; it has been told then.
    pub async fn begin_tls(
        &mut self,
        hello: Accepted,
        config: Arc<ServerConfig>,
    ) -> io::Result<()> {
        let mut session = match hello.into_connection(config) {
            Ok(session) => prepared(session),
            Err((error, mut alert)) => {
                alert.write_all(&mut self.outbox)?;
                self.transmit(&[]).await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        };
        // What came behind the ClientHello in the same read is sealed still.
        let sealed = mem::take(&mut self.inbox).split_off(mem::take(&mut self.start));
        open_records(&mut session, &sealed, &mut self.inbox)?;
        self.tls = Some(session);
        Ok(())
    }

    /// Writes all of it: at once if the socket's buffer has room, as it has as a rule.
    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let mut sent = 0;
        while sent < bytes.len() {
            self.watch.full();
            match send(self.io.as_raw_fd(), &bytes[sent..], flags) {
                Ok(length) => sent += length,
                Err(Errno::EAGAIN) => self.watch.writable().await,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.guard.touch();
        }
        if bytes.len() >= BULK_BYTES {
            yield_once().await;
        }
        Ok(())
    }

    /// Waits until a read would not have to wait. May be abandoned at any time.
    pub async fn readable(&self) {
        self.watch.readable().await;
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
        self.io.shutdown(Shutdown::Write)
    }

    /// Ends our side without a `close_notify`, as a crashing server would. Nothing pending is
    /// sent.
    pub fn cut(&mut self) -> io::Result<()> {
        self.io.shutdown(Shutdown::Write)
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

/// A session whose outbox is bounded by its users: rustls must take it whole.
fn prepared(mut session: ServerConnection) -> Box<ServerConnection> {
    session.set_buffer_limit(None);
    Box::new(session)
}

/// One read, and the piece in which large bodies are sent.
pub const BULK_BYTES: usize = 64 * 1024;

/// An inbox that has grown beyond this is given back once it is empty.
const INBOX_BYTES_KEPT: usize = 4 * 1024;

/// An answer that is to be written anew may have so many bytes. A larger one leaves as it is.
const HELD_BYTES_MAX: usize = 1024 * 1024;

/// Bytes accepted from a client that is kept waiting; more stay in the kernel, and its departure
/// goes unnoticed.
const STALLED_BYTES_MAX: usize = 64 * 1024;
