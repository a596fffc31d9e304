//! The runtime: the only module that names monoio, and the only one with `unsafe`.
//!
//! It gives the rest of the data plane a thread's runtime on the driver that was
//! chosen ([`run`]), sockets that look the same on each ([`Receiver`], [`Sender`]),
//! and nothing that could block. The epoll driver is our own (`epoll`); io_uring is
//! monoio's.
//!
//! What it lacks: deadlines. They belong to [`crate::tick`], which cuts a socket
//! whose time is up with `shutdown(2)`, so that an operation in flight ends by
//! itself and no buffer and no byte is ever left behind in the kernel.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncWriteRent, CancelableAsyncReadRent, Canceller};
use monoio::net::{TcpListener, TcpStream};

use self::datagrams::Datagrams;
use self::epoll::{Loop, Registered, Source};

mod datagrams;
mod epoll;
#[cfg(test)]
pub(crate) mod simulated;

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
    format!("{cause}; or run with `--driver epoll`, which needs none of this")
}

/// Chooses the best driver of those asked for that the kernel grants.
///
/// All workers run the same one: descriptors are handed between them, and a ring
/// wants blocking sockets where epoll wants the opposite. The rings are tried
/// with the very flags that the workers use, since monoio's own choice probes a
/// plain ring, which costs more than epoll does.
///
/// # Errors
/// [`RuntimeError::IoUring`] when nothing else was asked for and it is not granted.
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

/// Runs `main` on this thread until it ends. With nothing to do, the epoll driver
/// looks for events for `busy_poll` before the thread sleeps; io_uring sleeps at once.
///
/// # Errors
/// [`RuntimeError`] before `main` was started.
pub fn run<F: Future>(
    kind: DriverKind,
    busy_poll: Duration,
    main: F,
) -> Result<F::Output, RuntimeError> {
    if kind == DriverKind::Epoll {
        let home = Loop::new(busy_poll).map_err(RuntimeError::Epoll)?;
        return Ok(home.run(main));
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
    start(async move {
        let _ = futures_util::FutureExt::catch_unwind(task).await;
    });
}

/// Starts a task that the core cannot do without. Should it panic, `lost` is
/// called: the process ends then, and its service manager starts it anew.
pub fn spawn_vital<F: Future<Output = ()> + 'static>(task: F, lost: impl FnOnce() + 'static) {
    let task = std::panic::AssertUnwindSafe(task);
    start(async move {
        if futures_util::FutureExt::catch_unwind(task).await.is_err() {
            lost();
        }
    });
}

fn start(task: impl Future<Output = ()> + 'static) {
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        return world.spawn(task);
    }
    match Loop::current() {
        Some(home) => home.spawn(task),
        None => drop(monoio::spawn(task)),
    }
}

/// Lets the core's other tasks run. A loop whose operations complete at once, as
/// they may on epoll, would otherwise keep the core to itself. A task that wakes
/// itself would be the next to run; one that waits for a new task is not.
pub async fn yield_now() {
    #[cfg(test)]
    if simulated::World::current().is_some() {
        return simulated::yield_now().await;
    }
    match Loop::current() {
        Some(_) => epoll::yield_now().await,
        None => monoio::spawn(std::future::ready(())).await,
    }
}

/// The receiving end of a core's heartbeat; see [`pulse`].
pub struct Pulse(Datagrams);

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
        Ok(Self(Datagrams::new(socket, kind)?))
    }

    /// Waits for the next beat.
    pub async fn next(&self) {
        #[cfg(test)]
        if let Some(world) = simulated::World::current() {
            return world.beat().await;
        }
        if self.0.receive::<1>().await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The time, by the clock that everything here waits by.
#[inline]
pub fn now() -> Instant {
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        return world.now();
    }
    Instant::now()
}

/// Waits; resolution 1 ms.
pub async fn sleep(duration: Duration) {
    #[cfg(test)]
    if simulated::World::current().is_some() {
        return simulated::sleep(duration).await;
    }
    match Loop::current() {
        Some(home) => epoll::sleep(home, duration).await,
        None => monoio::time::sleep(duration).await,
    }
}

/// Waits for `future`, at most for `limit`. Only for what is given up when the
/// time is over: a connect, a handshake.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let future = std::pin::pin!(future);
    match select(future, std::pin::pin!(sleep(limit))).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

/// A connected socket as a plain descriptor, on its way to the core that serves it.
pub type RawSocket = std::os::fd::OwnedFd;

/// A connected socket, split into its two directions.
pub fn adopt(socket: RawSocket) -> io::Result<(Receiver, Sender, RawFd)> {
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        let (end, fd) = world.adopt(&socket)?;
        return Ok(split(Socket::Simulated(end), fd));
    }
    let fd = socket.as_raw_fd();
    let stream = std::net::TcpStream::from(socket);
    let socket = match Loop::current() {
        Some(home) => Socket::Ready(Rc::new(Watched::new(&home, stream)?)),
        None => Socket::Ring(Shared(Rc::new(UnsafeCell::new(TcpStream::from_std(
            stream,
        )?)))),
    };
    Ok(split(socket, fd))
}

/// Connects to `address`. Given up by dropping.
pub async fn connect(address: SocketAddr) -> io::Result<(Receiver, Sender, RawFd)> {
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        let (end, fd) = world.connect(address).await?;
        return Ok(split(Socket::Simulated(end), fd));
    }
    if let Some(home) = Loop::current() {
        let watched = Watched::connect(&home, address).await?;
        let fd = watched.stream.as_raw_fd();
        return Ok(split(Socket::Ready(Rc::new(watched)), fd));
    }
    let stream = TcpStream::connect_addr(address).await?;
    // Every message is written whole; waiting for more would cost 40 ms.
    stream.set_nodelay(true)?;
    let fd = stream.as_raw_fd();
    Ok(split(
        Socket::Ring(Shared(Rc::new(UnsafeCell::new(stream)))),
        fd,
    ))
}

/// A connected socket on the driver that runs.
#[derive(Clone)]
enum Socket {
    /// The kernel does what it is asked for, and says when it is done.
    Ring(Shared),
    /// The kernel says when we may do it.
    Ready(Rc<Watched>),
    /// There is no kernel.
    #[cfg(test)]
    Simulated(Rc<simulated::End>),
}

/// A socket on the epoll driver.
struct Watched {
    // Dropped first.
    registered: Registered,
    stream: std::net::TcpStream,
}

impl Watched {
    fn new(home: &Rc<Loop>, stream: std::net::TcpStream) -> io::Result<Self> {
        Ok(Self {
            registered: home.register(stream.as_raw_fd())?,
            stream,
        })
    }

    async fn connect(home: &Rc<Loop>, address: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        )?;
        socket.set_nonblocking(true)?;
        // Every message is written whole; waiting for more would cost 40 ms.
        socket.set_tcp_nodelay(true)?;
        let begun = socket.connect(&address.into());
        let connecting = Self::new(home, socket.into())?;
        match begun {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                connecting.registered.filled();
                loop {
                    connecting.registered.writable().await;
                    if let Some(error) = connecting.stream.take_error()? {
                        return Err(error);
                    }
                    match connecting.stream.peer_addr() {
                        Ok(_) => return Ok(connecting),
                        // It was woken for something else.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                            connecting.registered.filled();
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            begun => begun.map(|()| connecting),
        }
    }
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

fn split(socket: Socket, fd: RawFd) -> (Receiver, Sender, RawFd) {
    let receiver = Receiver {
        socket: socket.clone(),
        stop: Stop::default(),
    };
    (receiver, Sender { socket, fd }, fd)
}

/// The receiving side of a socket.
pub struct Receiver {
    socket: Socket,
    stop: Stop,
}

impl Receiver {
    /// Receives what is there into `buffer`, behind what it holds; `Ok(0)` is the
    /// end. The future must be awaited to its end unless the connection closes.
    /// [`Stop::stop`] can end it: then the error is `ECANCELED` (see
    /// [`is_stopped`]), no byte is lost, and the socket is as it was.
    ///
    /// Where the kernel is [not lent](Self::lends) a buffer nothing is waited for:
    /// `WouldBlock`, when there was nothing after all.
    pub async fn recv(&mut self, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match &self.socket {
            Socket::Ring(shared) => {
                let handle = self.stop.handle();
                let held = buffer.len();
                let room = buffer.slice_mut(held..);
                let (received, room) = shared.stream().cancelable_read(room, handle).await;
                (received, room.into_inner())
            }
            Socket::Ready(watched) => {
                let room = buffer.capacity() - buffer.len();
                let received = recv_into(watched.stream.as_raw_fd(), &mut buffer);
                let is_all = match &received {
                    // Less than there was room for is all that there was.
                    Ok(n) => *n < room,
                    Err(error) => error.kind() == io::ErrorKind::WouldBlock,
                };
                if is_all {
                    watched.registered.drained();
                }
                (received, buffer)
            }
            #[cfg(test)]
            Socket::Simulated(end) => end.recv(buffer, &self.stop.0.simulated).await,
        }
    }

    /// Whether a receive that waits lends its buffer to the kernel. If not, it is
    /// [readiness](Self::readable) that is waited for, with nothing in hand.
    pub fn lends(&self) -> bool {
        #[cfg(test)]
        if let Socket::Simulated(end) = &self.socket {
            return end.lends();
        }
        matches!(self.socket, Socket::Ring(_))
    }

    /// Waits until something can be received, without lending a buffer.
    pub async fn readable(&mut self) -> io::Result<()> {
        match &self.socket {
            Socket::Ring(shared) => shared.stream().readable(false).await,
            Socket::Ready(watched) => {
                watched.registered.readable().await;
                Ok(())
            }
            #[cfg(test)]
            Socket::Simulated(end) => {
                end.readable().await;
                Ok(())
            }
        }
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

/// Ends a receive or an accept in flight without touching the socket.
#[derive(Clone, Default)]
pub struct Stop(Rc<Stops>);

#[derive(Default)]
struct Stops {
    ring: RefCell<Canceller>,
    /// On the epoll driver: an accept waits here. A receive has nothing that would
    /// have to be stopped.
    waiting: RefCell<Option<Rc<Source>>>,
    #[cfg(test)]
    simulated: simulated::Stopper,
}

impl Stop {
    /// Ends what is in flight, if there is something.
    pub fn stop(&self) {
        let canceller = std::mem::take(&mut *self.0.ring.borrow_mut());
        *self.0.ring.borrow_mut() = canceller.cancel();
        if let Some(source) = self.0.waiting.take() {
            source.wake_reader();
        }
        #[cfg(test)]
        self.0.simulated.stop();
    }

    fn handle(&self) -> monoio::io::CancelHandle {
        self.0.ring.borrow().handle()
    }
}

/// The sending side of a socket.
pub struct Sender {
    socket: Socket,
    fd: RawFd,
}

impl Sender {
    /// Sends all of `buffer` and gives it back. Says how much the kernel took.
    pub async fn send(&mut self, mut buffer: Vec<u8>) -> (io::Result<()>, usize, Vec<u8>) {
        #[cfg(test)]
        if let Socket::Simulated(end) = &self.socket {
            return end.send(buffer).await;
        }
        let total = buffer.len();
        // The socket's buffer nearly always has room: then a plain system call is
        // cheaper than a submission, its completion and the wake-up in between.
        let mut done = send_now(self.fd, &buffer);
        if done == total {
            return (Ok(()), done, buffer);
        }
        let shared = match &self.socket {
            Socket::Ring(shared) => shared,
            Socket::Ready(watched) => {
                let sent = watched.send_rest(&buffer, &mut done).await;
                return (sent, done, buffer);
            }
            #[cfg(test)]
            Socket::Simulated(_) => unreachable!("it has sent above"),
        };
        while done < total {
            let sent;
            // The second turn is rare: the socket's buffer was full.
            (sent, buffer) = if done == 0 {
                shared.stream().write(buffer).await
            } else {
                let (sent, slice) = shared.stream().write(buffer.slice(done..)).await;
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

impl Watched {
    /// Sends what is behind the first `done` bytes.
    async fn send_rest(&self, buffer: &[u8], done: &mut usize) -> io::Result<()> {
        while *done < buffer.len() {
            self.registered.writable().await;
            match try_send(self.stream.as_raw_fd(), &buffer[*done..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => *done += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.registered.filled();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A listening socket on this core's driver.
pub struct Listener {
    listener: Listening,
    stop: Stop,
}

enum Listening {
    Ring(TcpListener),
    Ready {
        // Dropped first.
        registered: Registered,
        listener: std::net::TcpListener,
        /// Accepted since other tasks had their turn.
        burst: Cell<u32>,
    },
    #[cfg(test)]
    Simulated(simulated::Door),
}

/// Bytes that the kernel takes from us for a caller before it may send them: a caller's window
/// that is open is filled as ever, and of an answer that nobody reads no more than this is opened,
/// searched, sealed and kept (the kernel would take 2.6 MB for each caller). When there are as many,
/// the relay waits until half of them have left. Less than this costs downloads (ARCHITECTURE.md).
const UNSENT_BYTES_MAX: libc::c_int = 256 * 1024;

/// After so many connections from a full queue, accepting lets other tasks run.
const ACCEPTS_PER_TURN: u32 = 16;

impl Listener {
    /// Takes a listening socket over. Several cores may hold the same one.
    ///
    /// # Errors
    /// As `fcntl(2)` and the driver's registration.
    pub fn new(socket: std::net::TcpListener, kind: DriverKind) -> io::Result<Self> {
        #[cfg(test)]
        if let Some(world) = simulated::World::current() {
            return Ok(Self {
                listener: Listening::Simulated(simulated::Door::open(world)),
                stop: Stop::default(),
            });
        }
        // io_uring waits by itself; a non-blocking descriptor would tell it not to.
        socket.set_nonblocking(kind == DriverKind::Epoll)?;
        // Accepted sockets inherit both. Every message is written whole, and waiting
        // for more would cost 40 ms.
        set_tcp(socket.as_raw_fd(), libc::TCP_NODELAY, 1)?;
        set_tcp(
            socket.as_raw_fd(),
            libc::TCP_NOTSENT_LOWAT,
            UNSENT_BYTES_MAX,
        )?;
        let listener = match Loop::current() {
            Some(home) => Listening::Ready {
                registered: home.register_shared(socket.as_raw_fd())?,
                listener: socket,
                burst: Cell::new(0),
            },
            None => Listening::Ring(TcpListener::from_std(socket)?),
        };
        Ok(Self {
            listener,
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
        match &self.listener {
            Listening::Ring(listener) => {
                let (stream, _) = listener.cancelable_accept(self.stop.handle()).await?;
                let fd = stream.into_raw_fd();
                // SAFETY: `into_raw_fd` has just given up the only ownership of `fd`.
                Ok(unsafe { RawSocket::from_raw_fd(fd) })
            }
            Listening::Ready {
                registered,
                listener,
                burst,
            } => loop {
                if burst.replace(burst.get() + 1) >= ACCEPTS_PER_TURN {
                    burst.set(0);
                    epoll::yield_now().await;
                }
                if !self.or_stopped(registered).await {
                    return Err(io::Error::from_raw_os_error(libc::ECANCELED));
                }
                match accept_now(listener) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        registered.drained();
                        burst.set(0);
                    }
                    accepted => return accepted,
                }
            },
            #[cfg(test)]
            Listening::Simulated(door) => door.accept(&self.stop.0.simulated).await,
        }
    }

    /// Waits until somebody may have connected; `false` if it was stopped instead.
    async fn or_stopped(&self, registered: &Registered) -> bool {
        let waiting = &self.stop.0.waiting;
        *waiting.borrow_mut() = Some(Rc::clone(registered));
        std::future::poll_fn(|context| {
            if waiting.borrow().is_none() {
                return Poll::Ready(false);
            }
            registered.poll_readable(context).map(|()| {
                waiting.take();
                true
            })
        })
        .await
    }

    /// A connection that waits already, when nobody accepts any more. The
    /// descriptor's flags stay as they are: other cores and a later process share
    /// them. So an ordinary accept is started, and stopped if it finds nothing.
    pub async fn accept_waiting(&self) -> io::Result<RawSocket> {
        #[cfg(test)]
        if let Listening::Simulated(door) = &self.listener {
            let nobody = || Err(io::Error::from_raw_os_error(libc::ECANCELED));
            return door.accept_now().unwrap_or_else(nobody);
        }
        if let Listening::Ready { listener, .. } = &self.listener {
            return accept_now(listener).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => io::Error::from_raw_os_error(libc::ECANCELED),
                _ => error,
            });
        }
        let stop = self.stop.clone();
        spawn(async move {
            sleep(Duration::from_millis(20)).await;
            stop.stop();
        });
        self.accept().await
    }
}

/// Accepts without waiting. The new socket does not wait either.
fn accept_now(listener: &std::net::TcpListener) -> io::Result<RawSocket> {
    // SAFETY: the address of the peer is not asked for.
    let accepted = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if accepted < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { RawSocket::from_raw_fd(accepted) })
}

/// Has a connection fail when the peer's machine is silent for so long: what was sent stays
/// unacknowledged, or the kernel's own probes of an idle connection, which begin after two thirds of it.
///
/// # Errors
/// Of the kernel.
pub fn fail_after_silence(fd: RawFd, limit: Duration) -> io::Result<()> {
    let ms = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    let idle = libc::c_int::try_from(limit.as_secs() * 2 / 3)
        .unwrap_or(libc::c_int::MAX)
        .max(1);
    set_tcp(fd, libc::TCP_USER_TIMEOUT, ms)?;
    set_tcp(fd, libc::TCP_KEEPIDLE, idle)?;
    set_tcp(fd, libc::TCP_KEEPINTVL, 1)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)
}

/// Sets an option of TCP that is a number.
fn set_tcp(fd: RawFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, option, value)
}

fn set_option(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The place where other cores hand connections in: boxes of this process, as
/// addresses. The kernel bounds what may wait (the socket's buffer, some hundreds);
/// when it is full the core that has the connection keeps it.
pub struct Hatch<T>(Datagrams, PhantomData<T>);

/// Makes a hatch: the sending end, and a socket that [`Hatch::new`] takes over on
/// the thread that will receive.
///
/// # Errors
/// As `socketpair(2)`.
pub fn hatch<T: Send>() -> io::Result<(HatchSender<T>, HatchSocket<T>)> {
    let (sender, receiver) = std::os::unix::net::UnixDatagram::pair()?;
    sender.set_nonblocking(true)?;
    Ok((
        HatchSender(sender, PhantomData),
        HatchSocket(receiver, PhantomData),
    ))
}

/// The receiving end of a hatch on its way to its thread.
pub struct HatchSocket<T>(std::os::unix::net::UnixDatagram, PhantomData<T>);

impl<T: Send> Hatch<T> {
    /// Takes the receiving end over.
    ///
    /// # Errors
    /// As `fcntl(2)` and the driver's registration.
    pub fn new(socket: HatchSocket<T>, kind: DriverKind) -> io::Result<Self> {
        Ok(Self(Datagrams::new(socket.0, kind)?, PhantomData))
    }

    /// What another core hands in next.
    pub async fn receive(&self) -> io::Result<Box<T>> {
        let address = usize::from_ne_bytes(self.0.receive().await?);
        // SAFETY: `HatchSender::hand` is the only writer of this private socket, and
        // its type says that it writes of `T` only; it gave up its ownership of this
        // box when the message was accepted. A message is received once.
        Ok(unsafe { Box::from_raw(std::ptr::with_exposed_provenance_mut(address)) })
    }
}

/// The end of a [`Hatch`] through which other cores hand connections in.
pub struct HatchSender<T>(std::os::unix::net::UnixDatagram, PhantomData<fn(T)>);

impl<T: Send> HatchSender<T> {
    /// Hands something over without waiting.
    ///
    /// # Errors
    /// The very thing, when the other core's queue is full.
    pub fn hand(&self, handed: Box<T>) -> Result<(), Box<T>> {
        // Given up first: once the message is out the other core owns it.
        let handed = Box::into_raw(handed);
        match self.0.send(&handed.expose_provenance().to_ne_bytes()) {
            Ok(_) => Ok(()),
            // SAFETY: nobody received the address; the box was ours a line ago.
            Err(_) => Err(unsafe { Box::from_raw(handed) }),
        }
    }
}

/// How long this thread has had work: the time for which it ran, and that for which
/// it was ready to and waited for the processor.
pub struct Meter {
    /// `None`: the kernel does not tell how long a thread waits (`CONFIG_SCHED_INFO`),
    /// or /proc is hidden.
    schedstat: Option<std::fs::File>,
}

impl Default for Meter {
    /// Of the calling thread, which alone may ask it.
    fn default() -> Self {
        Self {
            schedstat: std::fs::File::open("/proc/thread-self/schedstat").ok(),
        }
    }
}

impl Meter {
    /// The time so far. Where the kernel does not tell the waiting, without it.
    pub fn so_far(&self) -> Duration {
        self.ran_and_waited().unwrap_or_else(thread_time)
    }

    fn ran_and_waited(&self) -> Option<Duration> {
        let mut text = [0u8; 64];
        let read = self.schedstat.as_ref()?.read_at(&mut text, 0).ok()?;
        // Nanoseconds on the processor, nanoseconds waiting for it, turns
        // (Documentation/scheduler/sched-stats.rst).
        let mut words = std::str::from_utf8(&text[..read]).ok()?.split(' ');
        let mut next = || words.next()?.parse().ok().map(Duration::from_nanos);
        Some(next()? + next()?)
    }
}

/// How long this thread has run.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to `time`, which outlives the call. The clock exists.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

/// A second descriptor of the same socket.
///
/// # Errors
/// As `fcntl(2)`: the limit of open files.
pub fn duplicate(fd: RawFd) -> io::Result<RawSocket> {
    // SAFETY: the caller holds `fd` open for the length of this call.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// Cuts a socket in one or both directions: an operation in flight ends at once.
/// Used by [`crate::tick`] for sockets whose time is up.
pub fn cut(fd: RawFd, receiving_only: bool) {
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        return world.cut(fd, receiving_only);
    }
    let how = if receiving_only {
        libc::SHUT_RD
    } else {
        libc::SHUT_RDWR
    };
    // SAFETY: no memory is involved. `fd` is open: whoever registered it with
    // `tick` takes it back before it is closed.
    unsafe { libc::shutdown(fd, how) };
}

/// Ends a connection with a reset at once, and with it whatever is in flight. The descriptor stays
/// open. A shutdown would send FIN, which whoever reads late could take for an answer's end.
pub fn abort(fd: RawFd) {
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        return world.abort(fd);
    }
    // connect(2): AF_UNSPEC dissolves what the socket is connected with; tcp(7) resets it.
    let nowhere = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: `nowhere` outlives the call and is as long as said; the caller holds the socket open.
    let dissolved = unsafe { libc::connect(fd, &raw const nowhere, length) };
    if dissolved != 0 {
        cut(fd, false);
    }
}

/// Sends FIN; what was sent before still arrives.
pub fn finish_sending(fd: RawFd) {
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        return world.finish_sending(fd);
    }
    // SAFETY: no memory is involved; the caller holds the socket open.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Makes closing the socket a reset (RST), so that nobody takes what was sent so
/// far for the whole.
pub fn reset_on_close(fd: RawFd) {
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        return world.reset_on_close(fd);
    }
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
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        return world.peek(fd);
    }
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
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        let found = (0..sockets.len()).filter(|&at| world.is_hung_up(sockets[at]));
        return found.for_each(gone);
    }
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
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        return world.peer_address(socket.as_raw_fd());
    }
    // SAFETY: `ManuallyDrop` keeps the borrowed descriptor from being closed.
    let stream = std::mem::ManuallyDrop::new(unsafe {
        std::net::TcpStream::from_raw_fd(socket.as_raw_fd())
    });
    stream.peer_addr()
}

/// Receives what is there into `buffer`, behind what it holds, up to its capacity and
/// without waiting.
/// `false` when there was nothing, or the end.
pub fn recv_now(fd: RawFd, buffer: &mut Vec<u8>) -> bool {
    #[cfg(test)]
    if let Some(world) = simulated::World::current() {
        return world.recv_now(fd, buffer);
    }
    recv_into(fd, buffer).is_ok_and(|received| received > 0)
}

/// Receives behind what `buffer` holds, up to its capacity.
fn recv_into(fd: RawFd, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let held = buffer.len();
    let room = buffer.spare_capacity_mut();
    // SAFETY: pointer and length describe the buffer's spare capacity.
    let received =
        unsafe { libc::recv(fd, room.as_mut_ptr().cast(), room.len(), libc::MSG_DONTWAIT) };
    let Ok(received) = usize::try_from(received) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: the kernel has just written that many bytes behind those held.
    unsafe { buffer.set_len(held + received) };
    Ok(received)
}

/// Sends what fits into the socket's buffer, without waiting. An error is left to
/// the operation that follows, which meets it again.
fn send_now(fd: RawFd, buffer: &[u8]) -> usize {
    try_send(fd, buffer).unwrap_or(0)
}

fn try_send(fd: RawFd, buffer: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buffer`.
    let sent = unsafe {
        libc::send(
            fd,
            buffer.as_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests;
