//! The runtime: the only file that names monoio, and the only one with `unsafe`.
//!
//! It gives the rest of the data plane a thread's runtime with the fastest
//! driver that the kernel grants ([`run`]), sockets whose operations own their
//! buffers ([`Receiver`], [`Sender`]), and nothing that could block.
//!
//! What it lacks: deadlines. They belong to [`crate::tick`], which cuts a socket
//! whose time is up with `shutdown(2)`, so that an operation in flight ends by
//! itself and no buffer and no byte is ever left behind in the kernel.

use std::cell::{RefCell, UnsafeCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use monoio::buf::IoBuf;
use monoio::io::{AsyncWriteRent, CancelableAsyncReadRent, Canceller};
use monoio::net::unix::UnixDatagram;
use monoio::net::{TcpListener, TcpStream};

/// Entries of a core's submission queue. When it is full monoio submits what is
/// there and goes on, so this bounds a batch, not the number of connections.
const RING_ENTRIES: u32 = 4096;

/// Which driver is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// io_uring where it works, or else epoll.
    Auto,
    /// io_uring, or an error that says why not.
    IoUring,
    /// epoll.
    Epoll,
}

/// Which driver runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// io_uring with `SINGLE_ISSUER`, `DEFER_TASKRUN` and `COOP_TASKRUN`.
    IoUringDeferred,
    /// io_uring with `COOP_TASKRUN` alone (kernels 5.19 to 6.0).
    IoUringCooperative,
    /// epoll.
    Epoll,
}

impl DriverKind {
    /// The name in the log and the status line.
    pub fn as_str(self) -> &'static str {
        match self {
            DriverKind::IoUringDeferred => "io_uring (single issuer, deferred)",
            DriverKind::IoUringCooperative => "io_uring (cooperative)",
            DriverKind::Epoll => "epoll",
        }
    }
}

/// Why a core's runtime could not be built.
#[derive(Debug)]
pub enum RuntimeError {
    /// No io_uring of any kind, and the operator asked for nothing else.
    IoUring(io::Error),
    /// Not even epoll: descriptors or memory are exhausted.
    Epoll(io::Error),
}

impl std::fmt::Display for RuntimeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RuntimeError::IoUring(error) => {
                write!(
                    f,
                    "io_uring is not available: {error}; {}",
                    io_uring_cure(error)
                )
            }
            RuntimeError::Epoll(error) => write!(
                f,
                "the epoll driver could not be started: {error}; likely cause: the limit of open files, see `ulimit -n` or LimitNOFILE="
            ),
        }
    }
}

impl std::error::Error for RuntimeError {}

/// The likely cause of a refused ring, and its cure.
fn io_uring_cure(error: &io::Error) -> String {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()
        .and_then(|text| text.trim().parse::<u8>().ok())
        .unwrap_or(0);
    let cause = match (error.raw_os_error(), disabled) {
        (_, 1 | 2) => format!(
            "likely cause: kernel.io_uring_disabled={disabled}; try `sysctl -w kernel.io_uring_disabled=0`"
        ),
        (Some(libc::ENOSYS), _) => {
            "likely cause: the kernel is older than 5.19, or a container's seccomp profile hides io_uring; use a newer kernel, or allow io_uring_setup, io_uring_enter and io_uring_register in the profile".to_owned()
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "likely cause: a seccomp profile or a security module forbids io_uring (container engines do by default); allow io_uring_setup, io_uring_enter and io_uring_register in the profile".to_owned()
        }
        (Some(libc::ENOMEM), _) => {
            "likely cause: the limit of locked memory; raise LimitMEMLOCK= in the unit, or `ulimit -l`".to_owned()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            "likely cause: the limit of open files; raise LimitNOFILE= in the unit, or `ulimit -n`".to_owned()
        }
        (Some(libc::EINVAL), _) => {
            "likely cause: the kernel is older than 5.19".to_owned()
        }
        _ => "the cause is not known".to_owned(),
    };
    format!("{cause}; or run with `--driver epoll` (or `auto`)")
}

/// Chooses the best driver of those asked for that the kernel grants.
///
/// All workers run the same one: descriptors are handed between them, and a ring
/// wants blocking sockets where epoll wants the opposite. The rings are tried
/// with the very flags that the workers use, since monoio's own choice probes a
/// plain ring, which costs more than epoll does.
///
/// # Errors
/// [`RuntimeError::IoUring`] when nothing else was asked for.
pub fn choose(driver: Driver) -> Result<DriverKind, RuntimeError> {
    if driver == Driver::Epoll {
        return Ok(DriverKind::Epoll);
    }
    let mut refused = None;
    for kind in [DriverKind::IoUringDeferred, DriverKind::IoUringCooperative] {
        match ring(kind).build(RING_ENTRIES) {
            Ok(_) => return Ok(kind),
            Err(error) => refused = Some(error),
        }
    }
    let refused =
        RuntimeError::IoUring(refused.unwrap_or_else(|| io::ErrorKind::Unsupported.into()));
    if driver == Driver::IoUring {
        return Err(refused);
    }
    tracing::warn!("running on the epoll driver: {refused}");
    Ok(DriverKind::Epoll)
}

fn ring(kind: DriverKind) -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    builder.setup_coop_taskrun();
    if kind == DriverKind::IoUringDeferred {
        builder.setup_single_issuer().setup_defer_taskrun();
    }
    builder
}

/// Runs `main` on this thread until it ends.
///
/// # Errors
/// [`RuntimeError`] before `main` was started.
pub fn run<F: Future>(kind: DriverKind, main: F) -> Result<F::Output, RuntimeError> {
    if kind == DriverKind::Epoll {
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new()
            .enable_timer()
            .build()
            .map_err(RuntimeError::Epoll)?;
        return Ok(runtime.block_on(main));
    }
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .with_entries(RING_ENTRIES)
        .uring_builder(ring(kind))
        .enable_timer()
        .build()
        .map_err(RuntimeError::IoUring)?;
    Ok(runtime.block_on(main))
}

/// Starts a task on this core. It runs to its end by itself. monoio does not catch
/// a task's panic, which would end the whole core: here it ends its task. The hook
/// has printed the place; the payload, which may quote anything, is dropped unseen.
pub fn spawn<F: Future<Output = ()> + 'static>(task: F) {
    let task = std::panic::AssertUnwindSafe(task);
    drop(monoio::spawn(async move {
        let _ = futures_util::FutureExt::catch_unwind(task).await;
    }));
}

/// Starts a task that the core cannot do without. Should it panic, `lost` is
/// called: the process ends then, and its service manager starts it anew.
pub fn spawn_vital<F: Future<Output = ()> + 'static>(task: F, lost: impl FnOnce() + 'static) {
    let task = std::panic::AssertUnwindSafe(task);
    drop(monoio::spawn(async move {
        if futures_util::FutureExt::catch_unwind(task).await.is_err() {
            lost();
        }
    }));
}

/// Lets the core's other tasks run. A loop whose operations complete at once, as
/// they may on epoll, would otherwise keep the core to itself. A task that wakes
/// itself would be the next to run; one that waits for a new task is not.
pub async fn yield_now() {
    monoio::spawn(std::future::ready(())).await;
}

/// The receiving end of a core's heartbeat; see [`pulse`].
pub struct Pulse(UnixDatagram);

/// The sending end of a core's heartbeat.
#[derive(Debug)]
pub struct PulseSender(std::os::unix::net::UnixDatagram);

/// Makes a heartbeat: a thread beats, a core hears. A timer of the core's own would
/// be set and taken back each time that the core goes to sleep, which on a virtual
/// machine is an exit to the hypervisor each time.
///
/// # Errors
/// As `socketpair(2)`.
pub fn pulse() -> io::Result<(PulseSender, std::os::unix::net::UnixDatagram)> {
    let (sender, receiver) = std::os::unix::net::UnixDatagram::pair()?;
    sender.set_nonblocking(true)?;
    Ok((PulseSender(sender), receiver))
}

impl PulseSender {
    /// One beat. A core that has not heard the last ones loses nothing by missing
    /// this one. `false`: the core is gone.
    pub fn beat(&self) -> bool {
        match self.0.send(&[0]) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

impl Pulse {
    /// Takes the receiving end over.
    ///
    /// # Errors
    /// As `fcntl(2)` and the driver's registration.
    pub fn new(socket: std::os::unix::net::UnixDatagram, kind: DriverKind) -> io::Result<Self> {
        socket.set_nonblocking(kind == DriverKind::Epoll)?;
        Ok(Self(UnixDatagram::from_std(socket)?))
    }

    /// Waits for the next beat.
    pub async fn next(&self) {
        let (heard, _) = self.0.recv(Vec::with_capacity(1)).await;
        if heard.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Waits; resolution 1 ms.
pub async fn sleep(duration: Duration) {
    monoio::time::sleep(duration).await;
}

/// Waits for `future`, at most for `limit`. Only for what is given up when the
/// time is over: a connect, a handshake.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    monoio::time::timeout(limit, future).await.ok()
}

/// A connected socket as a plain descriptor, on its way to the core that serves it.
pub type RawSocket = std::os::fd::OwnedFd;

/// A connected socket, split into its two directions.
pub fn adopt(socket: RawSocket) -> io::Result<(Receiver, Sender, RawFd)> {
    let stream = std::net::TcpStream::from(socket);
    let fd = stream.as_raw_fd();
    Ok(split(TcpStream::from_std(stream)?, fd))
}

/// Connects to `address`. Given up by dropping.
pub async fn connect(address: SocketAddr) -> io::Result<(Receiver, Sender, RawFd)> {
    let stream = TcpStream::connect_addr(address).await?;
    // Every message is written whole; waiting for more would cost 40 ms.
    stream.set_nodelay(true)?;
    let fd = stream.as_raw_fd();
    Ok(split(stream, fd))
}

/// A socket in the hands of its two directions. monoio's own split drops its
/// write half with a `shutdown(2)` that we neither need nor want, and lacks
/// readiness; the sharing is the same as there.
#[derive(Clone)]
struct Shared(Rc<UnsafeCell<TcpStream>>);

impl Shared {
    /// The stream, for starting one operation.
    #[allow(clippy::mut_from_ref)]
    fn stream(&self) -> &mut TcpStream {
        // SAFETY: monoio declares `Split` for `TcpStream`, that is, one receive
        // and one send may run at once: each operation takes nothing from the
        // stream but a clone of its descriptor. `Receiver` and `Sender` are not
        // `Clone` and take `&mut self`, so there is at most one of either kind.
        // Nothing here is `Send`.
        unsafe { &mut *self.0.get() }
    }
}

fn split(stream: TcpStream, fd: RawFd) -> (Receiver, Sender, RawFd) {
    let shared = Shared(Rc::new(UnsafeCell::new(stream)));
    let receiver = Receiver {
        shared: shared.clone(),
        stop: Stop::default(),
    };
    (receiver, Sender { shared, fd }, fd)
}

/// The receiving side of a socket.
pub struct Receiver {
    shared: Shared,
    stop: Stop,
}

impl Receiver {
    /// Receives what is there into `buffer`, which must be empty; `Ok(0)` is the
    /// end. The future must be awaited to its end unless the connection closes.
    /// [`Stop::stop`] can end it: then the error is `ECANCELED` (see
    /// [`is_stopped`]), no byte is lost, and the socket is as it was.
    pub async fn recv(&mut self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let handle = self.stop.0.borrow().handle();
        self.shared.stream().cancelable_read(buffer, handle).await
    }

    /// Waits until something can be received, without lending a buffer.
    pub async fn readable(&mut self) -> io::Result<()> {
        self.shared.stream().readable(false).await
    }

    /// Ends receives of this socket.
    pub fn stop_handle(&self) -> Stop {
        self.stop.clone()
    }
}

/// Whether a receive ended because of [`Stop::stop`].
pub fn is_stopped(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// Ends a receive in flight without touching the socket.
#[derive(Clone, Default)]
pub struct Stop(Rc<RefCell<Canceller>>);

impl Stop {
    /// Ends the receive in flight, if there is one.
    pub fn stop(&self) {
        let canceller = std::mem::take(&mut *self.0.borrow_mut());
        *self.0.borrow_mut() = canceller.cancel();
    }
}

/// The sending side of a socket.
pub struct Sender {
    shared: Shared,
    fd: RawFd,
}

impl Sender {
    /// Sends all of `buffer` and gives it back. Says how much the kernel took.
    pub async fn send(&mut self, mut buffer: Vec<u8>) -> (io::Result<()>, usize, Vec<u8>) {
        let total = buffer.len();
        // The socket's buffer nearly always has room: then a plain system call is
        // cheaper than a submission, its completion and the wake-up in between.
        let mut done = send_now(self.fd, &buffer);
        if done == total {
            return (Ok(()), done, buffer);
        }
        while done < total {
            let sent;
            // The second turn is rare: the socket's buffer was full.
            (sent, buffer) = if done == 0 {
                self.shared.stream().write(buffer).await
            } else {
                let (sent, slice) = self.shared.stream().write(buffer.slice(done..)).await;
                (sent, slice.into_inner())
            };
            match sent {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), done, buffer),
                Ok(sent) => done += sent,
                Err(error) => return (Err(error), done, buffer),
            }
        }
        (Ok(()), done, buffer)
    }
}

/// A listening socket on this core's driver.
pub struct Listener {
    listener: TcpListener,
    stop: Stop,
}

impl Listener {
    /// Takes a listening socket over. Several cores may hold the same one.
    ///
    /// # Errors
    /// As `fcntl(2)` and the driver's registration.
    pub fn new(socket: std::net::TcpListener, kind: DriverKind) -> io::Result<Self> {
        // io_uring waits by itself; a non-blocking descriptor would tell it not to.
        socket.set_nonblocking(kind == DriverKind::Epoll)?;
        // Accepted sockets inherit it: every message is written whole, and waiting
        // for more would cost 40 ms.
        set_nodelay(socket.as_raw_fd())?;
        Ok(Self {
            listener: TcpListener::from_std(socket)?,
            stop: Stop::default(),
        })
    }

    /// Ends the accept in flight; see [`is_stopped`].
    pub fn stop_handle(&self) -> Stop {
        self.stop.clone()
    }

    /// The next connection. Must be awaited to its end: a dropped accept would
    /// lose the connection that it has just accepted.
    pub async fn accept(&self) -> io::Result<RawSocket> {
        let handle = self.stop.0.borrow().handle();
        let (stream, _) = self.listener.cancelable_accept(handle).await?;
        let fd = stream.into_raw_fd();
        // SAFETY: `into_raw_fd` has just given up the only ownership of `fd`.
        Ok(unsafe { RawSocket::from_raw_fd(fd) })
    }

    /// A connection that waits already, when nobody accepts any more. The
    /// descriptor's flags stay as they are: other cores and a later process share
    /// them. So an ordinary accept is started, and stopped if it finds nothing.
    pub async fn accept_waiting(&self) -> io::Result<RawSocket> {
        let stop = self.stop.clone();
        spawn(async move {
            sleep(Duration::from_millis(20)).await;
            stop.stop();
        });
        self.accept().await
    }
}

fn set_nodelay(fd: RawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length describe `on`, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The place where other cores hand connections in: descriptors of this process,
/// as numbers. The kernel bounds what may wait (the socket's buffer, some hundreds);
/// when it is full the core that accepted keeps the connection. They are passed on, never closed and reopened.
pub struct Hatch(UnixDatagram);

/// Makes a hatch: the sending end, and a socket that [`Hatch::new`] takes over on
/// the thread that will receive.
///
/// # Errors
/// As `socketpair(2)`.
pub fn hatch() -> io::Result<(HatchSender, std::os::unix::net::UnixDatagram)> {
    let (sender, receiver) = std::os::unix::net::UnixDatagram::pair()?;
    sender.set_nonblocking(true)?;
    Ok((HatchSender(sender), receiver))
}

impl Hatch {
    /// Takes the receiving end over.
    ///
    /// # Errors
    /// As `fcntl(2)` and the driver's registration.
    pub fn new(socket: std::os::unix::net::UnixDatagram, kind: DriverKind) -> io::Result<Self> {
        socket.set_nonblocking(kind == DriverKind::Epoll)?;
        Ok(Self(UnixDatagram::from_std(socket)?))
    }

    /// The next connection that another core hands in.
    pub async fn receive(&self) -> io::Result<Handed> {
        let (received, message) = self.0.recv(Vec::with_capacity(8)).await;
        received?;
        let (Some(fd), Some(listener)) = (
            message.first_chunk::<4>(),
            message.get(4..8).and_then(|bytes| bytes.first_chunk::<4>()),
        ) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        // SAFETY: `HatchSender::hand` is the only writer of this private socket;
        // it gave up its ownership of this number when the message was accepted.
        let socket = unsafe { RawSocket::from_raw_fd(RawFd::from_ne_bytes(*fd)) };
        Ok(Handed {
            socket,
            listener: u32::from_ne_bytes(*listener),
        })
    }
}

/// The end of a [`Hatch`] through which other cores hand connections in.
#[derive(Debug)]
pub struct HatchSender(std::os::unix::net::UnixDatagram);

/// What goes through a [`Hatch`]: a connection and the listener that accepted it.
#[derive(Debug)]
pub struct Handed {
    /// The connection.
    pub socket: RawSocket,
    /// An index into the listeners' list.
    pub listener: u32,
}

impl HatchSender {
    /// Hands a connection over without waiting.
    ///
    /// # Errors
    /// The connection itself when the other core's queue is full.
    pub fn hand(&self, handed: Handed) -> Result<(), Handed> {
        let Handed { socket, listener } = handed;
        let mut message = [0u8; 8];
        message[..4].copy_from_slice(&socket.as_raw_fd().to_ne_bytes());
        message[4..].copy_from_slice(&listener.to_ne_bytes());
        // Given up first: once the message is out the other core owns it.
        let fd = socket.into_raw_fd();
        match self.0.send(&message) {
            Ok(8) => Ok(()),
            _ => Err(Handed {
                // SAFETY: nobody received the number; it was ours a line ago.
                socket: unsafe { RawSocket::from_raw_fd(fd) },
                listener,
            }),
        }
    }
}

/// Cuts a socket in one or both directions: an operation in flight ends at once.
/// Used by [`crate::tick`] for sockets whose time is up.
pub fn cut(fd: RawFd, receiving_only: bool) {
    let how = if receiving_only {
        libc::SHUT_RD
    } else {
        libc::SHUT_RDWR
    };
    // SAFETY: no memory is involved. `fd` is open: whoever registered it with
    // `tick` takes it back before it is closed.
    unsafe { libc::shutdown(fd, how) };
}

/// Sends FIN; what was sent before still arrives.
pub fn finish_sending(fd: RawFd) {
    // SAFETY: no memory is involved; the caller holds the socket open.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Makes closing the socket a reset (RST), so that nobody takes what was sent so
/// far for the whole.
pub fn reset_on_close(fd: RawFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the pointer and the length describe `linger`, which outlives the call.
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
}

/// What an idle socket has to say, without taking anything from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peeked {
    /// Nothing: the connection is as it was.
    Quiet,
    /// Bytes: with TLS perhaps a session ticket.
    Bytes,
    /// The peer has closed it, or it broke.
    Closed,
}

/// Looks at an idle socket. One system call, 0.45 us.
pub fn peek(fd: RawFd) -> Peeked {
    let mut byte = 0u8;
    // SAFETY: one byte is written at most, into `byte`, which outlives the call.
    let received = unsafe {
        libc::recv(
            fd,
            (&raw mut byte).cast(),
            1,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    match received {
        0 => Peeked::Closed,
        1.. => Peeked::Bytes,
        _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Peeked::Quiet,
        _ => Peeked::Closed,
    }
}

/// Finds those of `sockets` whose peer has closed its sending side or is gone, in
/// one system call. Calls `gone` with each one's index.
pub fn find_hung_up(sockets: &[RawFd], mut gone: impl FnMut(usize)) {
    let mut polled: Vec<libc::pollfd> = sockets
        .iter()
        .map(|&fd| libc::pollfd {
            fd,
            events: libc::POLLRDHUP,
            revents: 0,
        })
        .collect();
    // SAFETY: pointer and length describe `polled`; a timeout of 0 never waits.
    let found = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 0) };
    if found <= 0 {
        return;
    }
    for (index, entry) in polled.iter().enumerate() {
        if entry.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0 {
            gone(index);
        }
    }
}

/// The peer's address.
///
/// # Errors
/// As `getpeername(2)`: the peer may be gone already.
pub fn peer_address(socket: &RawSocket) -> io::Result<SocketAddr> {
    // SAFETY: `ManuallyDrop` keeps the borrowed descriptor from being closed.
    let stream = std::mem::ManuallyDrop::new(unsafe {
        std::net::TcpStream::from_raw_fd(socket.as_raw_fd())
    });
    stream.peer_addr()
}

/// Receives what is there into `buffer`, up to its capacity, without waiting.
/// `false` when there was nothing, or the end.
pub fn recv_now(fd: RawFd, buffer: &mut Vec<u8>) -> bool {
    buffer.clear();
    let room = buffer.spare_capacity_mut();
    // SAFETY: pointer and length describe the buffer's spare capacity.
    let received =
        unsafe { libc::recv(fd, room.as_mut_ptr().cast(), room.len(), libc::MSG_DONTWAIT) };
    match usize::try_from(received) {
        Ok(received) if received > 0 => {
            // SAFETY: the kernel has just written that many bytes.
            unsafe { buffer.set_len(received) };
            true
        }
        _ => false,
    }
}

/// Sends what fits into the socket's buffer, without waiting. An error is left to
/// the operation that follows, which meets it again.
fn send_now(fd: RawFd, buffer: &[u8]) -> usize {
    // SAFETY: pointer and length describe `buffer`.
    let sent = unsafe {
        libc::send(
            fd,
            buffer.as_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).unwrap_or(0)
}

#[cfg(test)]
mod tests;
