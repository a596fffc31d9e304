//! The accepting side: pinned workers, one ring each, and the strategies under
//! test. A worker echoes fixed-size messages; it has no TLS and no pool, so
//! what differs between two strategies is how a connection comes to its core.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use monoio::io::{AsyncReadRent, AsyncReadRentExt, AsyncWriteRentExt, CancelHandle, Canceller};
use monoio::net::{TcpListener, TcpStream, UnixStream};
use socket2::{Domain, Protocol, Socket, Type};

use crate::clock;

/// Workers, and cores to pin them to.
pub const WORKERS: usize = 2;

/// Bytes of every message, both ways. The first byte says what to do, the
/// second of the answer says which core did it.
pub const MESSAGE_BYTES: usize = 64;

/// First byte: answer at once.
pub const PING: u8 = b'p';
/// First byte: burn [`WORK`] first, as a real request would.
pub const PING_WORK: u8 = b'w';
/// First byte: burn [`WORK`], answer, close.
pub const QUIT_WORK: u8 = b'Q';
/// First byte: answer, close.
pub const QUIT: u8 = b'q';

/// CPU that one [`PING_WORK`] burns: about what a proxied TLS request costs.
pub const WORK: Duration = Duration::from_micros(20);

/// How long a stalled worker sleeps with its ring unattended.
pub const STALL: Duration = Duration::from_millis(200);

/// Connections that may wait in one socket's queue; the kernel caps it at
/// `net.core.somaxconn`. Beyond it, SYNs are dropped and retried by the caller.
pub const BACKLOG: i32 = 4096;

/// A connection moves when the difference in load is more than this part of
/// our own load: 2 against 1 moves nothing at all, 1 against 0 does, and 500
/// against 480 does not.
const SLACK_DIVISOR: u32 = 8;

/// Most commands read from an inbox at once.
const INBOX_COMMANDS: usize = 64;

/// Which sockets listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sockets {
    /// One `SO_REUSEPORT` socket per core; the kernel picks one by hash.
    PerCore,
    /// One socket; every ring keeps an accept in flight on it.
    Shared,
}

/// What a worker waits on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// io_uring with the data plane's flags.
    Ring,
    /// epoll, the data plane's fall-back.
    Epoll,
}

/// One strategy: which sockets listen, and whether an accepted descriptor may
/// move on to a core with fewer open connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Strategy {
    /// Which sockets listen.
    pub sockets: Sockets,
    /// Whether descriptors are passed on.
    pub hand_out: bool,
}

impl Strategy {
    /// All that are compared, in the order of the tables.
    pub const ALL: [Strategy; 4] = [
        Strategy {
            sockets: Sockets::PerCore,
            hand_out: false,
        },
        Strategy {
            sockets: Sockets::Shared,
            hand_out: false,
        },
        Strategy {
            sockets: Sockets::PerCore,
            hand_out: true,
        },
        Strategy {
            sockets: Sockets::Shared,
            hand_out: true,
        },
    ];

    /// The name in the tables.
    pub fn name(self) -> &'static str {
        match (self.sockets, self.hand_out) {
            (Sockets::PerCore, false) => "reuseport",
            (Sockets::Shared, false) => "shared",
            (Sockets::PerCore, true) => "reuseport + hand-out",
            (Sockets::Shared, true) => "shared + hand-out",
        }
    }
}

/// What a worker is told through its inbox: four bytes, the kind in the
/// lowest, a descriptor in the other three.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// Serve this accepted connection; its load is already counted.
    Connection(RawFd),
    /// Accept on this listening descriptor too.
    Listener(RawFd),
    /// Stop accepting and close our listening descriptor.
    LeaveAndClose,
    /// Stop accepting and give our listening descriptor, with the connections
    /// that wait in it, to the next worker.
    LeaveAndPassOn,
    /// Sleep for [`STALL`], ring and all.
    Stall,
    /// Stop accepting and end the thread.
    Stop,
}

impl Command {
    fn encode(self) -> [u8; 4] {
        let (kind, fd) = match self {
            Command::Connection(fd) => (0u32, fd),
            Command::Listener(fd) => (1, fd),
            Command::LeaveAndClose => (2, 0),
            Command::LeaveAndPassOn => (3, 0),
            Command::Stall => (4, 0),
            Command::Stop => (5, 0),
        };
        (kind | (fd as u32) << 8).to_le_bytes()
    }

    fn decode(bytes: [u8; 4]) -> Command {
        let word = u32::from_le_bytes(bytes);
        let fd = (word >> 8) as RawFd;
        match word & 0xff {
            0 => Command::Connection(fd),
            1 => Command::Listener(fd),
            2 => Command::LeaveAndClose,
            3 => Command::LeaveAndPassOn,
            4 => Command::Stall,
            _ => Command::Stop,
        }
    }
}

/// What the cores know of each other. One cache line per core, written once
/// when a connection comes and once when it goes, never per message.
#[repr(align(128))]
#[derive(Default)]
struct Load {
    open: AtomicU32,
    handed: AtomicU64,
}

/// The running workers of one strategy.
pub struct Cluster {
    /// Where the workers listen.
    pub addr: SocketAddr,
    loads: Arc<[Load]>,
    inboxes: Arc<[StdUnixStream]>,
    threads: Vec<JoinHandle<()>>,
}

impl Cluster {
    /// Binds a free loopback port and starts the workers. Fails where a ring
    /// with the data plane's flags cannot be made.
    pub fn start(strategy: Strategy, driver: Driver) -> io::Result<Cluster> {
        let first = listen(SocketAddr::from(([127, 0, 0, 1], 0)), strategy.sockets)?;
        let addr = first.local_addr()?;
        let mut listeners = vec![first];
        for _ in 1..WORKERS {
            listeners.push(match strategy.sockets {
                Sockets::PerCore => listen(addr, strategy.sockets)?,
                Sockets::Shared => listeners[0].try_clone()?,
            });
        }

        let loads: Arc<[Load]> = (0..WORKERS).map(|_| Load::default()).collect();
        let mut ins = Vec::new();
        let mut outs = Vec::new();
        for _ in 0..WORKERS {
            let (receive, send) = StdUnixStream::pair()?;
            // A full inbox must not block the core that passes a connection on.
            send.set_nonblocking(true)?;
            ins.push(receive);
            outs.push(send);
        }
        let inboxes: Arc<[StdUnixStream]> = outs.into();

        let mut threads = Vec::new();
        for (listener, inbox) in listeners.iter().zip(&ins) {
            // epoll needs a non-blocking socket, io_uring a blocking one (for a
            // listener Linux 6.18 does not mind). The flag belongs to the
            // socket, not to the duplicate or to whoever it is handed to, so
            // sharing and handing out both mean one driver for all cores.
            listener.set_nonblocking(driver == Driver::Epoll)?;
            inbox.set_nonblocking(driver == Driver::Epoll)?;
        }
        for (id, (listener, inbox)) in listeners.into_iter().zip(ins).enumerate() {
            let core = Core {
                id,
                driver,
                strategy,
                loads: loads.clone(),
                inboxes: inboxes.clone(),
            };
            threads.push(std::thread::spawn(move || core.run(listener, inbox)));
        }
        Ok(Cluster {
            addr,
            loads,
            inboxes,
            threads,
        })
    }

    /// Sends one command to one worker.
    pub fn tell(&self, worker: usize, command: Command) {
        (&self.inboxes[worker])
            .write_all(&command.encode())
            .expect("a worker's inbox takes a command");
    }

    /// Open connections per core, as the workers count them.
    pub fn open(&self) -> [u32; WORKERS] {
        std::array::from_fn(|i| self.loads[i].open.load(Relaxed))
    }

    /// Connections passed on so far, by all cores.
    pub fn handed(&self) -> u64 {
        self.loads
            .iter()
            .map(|load| load.handed.load(Relaxed))
            .sum()
    }

    /// CPU time used by the worker threads so far.
    pub fn cpu(&self) -> Duration {
        self.threads
            .iter()
            .map(|thread| clock::thread_cpu(thread.as_pthread_t()))
            .sum()
    }

    /// Waits until the workers have seen every close, at most a second.
    pub fn settle(&self, open: u32) {
        let end = Instant::now() + Duration::from_secs(1);
        while self.open().iter().sum::<u32>() > open && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Ends the workers and waits for them.
    pub fn stop(self) {
        for worker in 0..WORKERS {
            self.tell(worker, Command::Stop);
        }
        for thread in self.threads {
            thread.join().expect("a worker ends without a panic");
        }
    }
}

/// A listening socket on `addr`. TCP_NODELAY set here is inherited by every
/// accepted socket, which saves a system call per connection.
pub fn listen(addr: SocketAddr, sockets: Sockets) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(sockets == Sockets::PerCore)?;
    socket.set_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The data plane's ring: single issuer, deferred and cooperative task work.
pub fn ring_flags() -> io_uring::Builder {
    let mut flags = io_uring::IoUring::builder();
    flags
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun();
    flags
}

/// Pins the calling thread to the n-th core that this process may use.
pub fn pin(n: usize) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(core) = cores.get(n % cores.len().max(1)) {
        core_affinity::set_for_current(*core);
    }
}

struct Core {
    id: usize,
    driver: Driver,
    strategy: Strategy,
    loads: Arc<[Load]>,
    inboxes: Arc<[StdUnixStream]>,
}

impl Core {
    fn run(self, listener: StdListener, inbox: StdUnixStream) {
        pin(self.id);
        match self.driver {
            Driver::Ring => monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
                .uring_builder(ring_flags())
                .build()
                .expect(
                    "an io_uring ring; is kernel.io_uring_disabled 0 and the kernel 6.1 or later?",
                )
                .block_on(Rc::new(self).obey(listener, inbox)),
            Driver::Epoll => monoio::RuntimeBuilder::<monoio::LegacyDriver>::new()
                .build()
                .expect("an epoll instance")
                .block_on(Rc::new(self).obey(listener, inbox)),
        }
    }

    /// The life of a worker: accept in one task per listening descriptor, and
    /// carry out what the inbox says.
    async fn obey(self: Rc<Self>, listener: StdListener, inbox: StdUnixStream) {
        let mut mine = Some(listener);
        let mut acceptors = Vec::new();
        if let Some(listener) = &mine {
            let listener = listener.try_clone().expect("a descriptor to spare");
            acceptors.push(Acceptor::start(self.clone(), listener));
        }
        let mut inbox = UnixStream::from_std(inbox).expect("an inbox on the ring");
        let mut buffer = vec![0u8; 4 * INBOX_COMMANDS];
        loop {
            let (read, filled) = inbox.read(buffer).await;
            buffer = filled;
            // Four bytes go in as one piece and the buffer holds a whole number
            // of them, so no command is ever split.
            for word in buffer[..read.expect("the inbox outlives its worker")].chunks_exact(4) {
                match Command::decode([word[0], word[1], word[2], word[3]]) {
                    Command::Connection(fd) => {
                        // SAFETY: whoever accepted gave up this descriptor when
                        // it wrote the number; we are its only owner.
                        let stream = unsafe { std::net::TcpStream::from_raw_fd(fd) };
                        monoio::spawn(
                            self.clone()
                                .serve(TcpStream::from_std(stream).expect("a stream on the ring")),
                        );
                    }
                    Command::Listener(fd) => {
                        // SAFETY: the worker that left gave up this descriptor
                        // when it wrote the number; we are its only owner.
                        let listener = unsafe { StdListener::from_raw_fd(fd) };
                        acceptors.push(Acceptor::start(self.clone(), listener));
                    }
                    Command::LeaveAndClose => {
                        leave(&mut acceptors).await;
                        mine = None;
                    }
                    Command::LeaveAndPassOn => {
                        leave(&mut acceptors).await;
                        if let Some(listener) = mine.take() {
                            let heir = (self.id + 1) % WORKERS;
                            let command = Command::Listener(listener.into_raw_fd());
                            (&self.inboxes[heir])
                                .write_all(&command.encode())
                                .expect("the heir's inbox takes a command");
                        }
                    }
                    Command::Stall => std::thread::sleep(STALL),
                    Command::Stop => {
                        leave(&mut acceptors).await;
                        return;
                    }
                }
            }
        }
    }

    /// Serves an accepted connection here, or passes its descriptor on.
    fn place(self: Rc<Self>, stream: TcpStream) {
        let target = if self.strategy.hand_out {
            self.least_loaded()
        } else {
            self.id
        };
        self.loads[target].open.fetch_add(1, Relaxed);
        if target == self.id {
            monoio::spawn(self.serve(stream));
            return;
        }
        // First out of our ring, then into the other's: it may be served there
        // before this line ends.
        let fd = stream.into_raw_fd();
        match (&self.inboxes[target]).write_all(&Command::Connection(fd).encode()) {
            Ok(()) => {
                self.loads[self.id].handed.fetch_add(1, Relaxed);
            }
            // Its inbox is full: it is not idle, whatever the count says. Four
            // bytes go in whole or not at all.
            Err(_) => {
                self.loads[target].open.fetch_sub(1, Relaxed);
                self.loads[self.id].open.fetch_add(1, Relaxed);
                // SAFETY: the number was not sent, so we still own it alone.
                let stream = unsafe { std::net::TcpStream::from_raw_fd(fd) };
                monoio::spawn(
                    self.serve(TcpStream::from_std(stream).expect("a stream on the ring")),
                );
            }
        }
    }

    /// Ourselves, unless another core has clearly fewer open connections.
    fn least_loaded(&self) -> usize {
        let mine = self.loads[self.id].open.load(Relaxed);
        let (other, least) = (0..self.loads.len())
            .filter(|&core| core != self.id)
            .map(|core| (core, self.loads[core].open.load(Relaxed)))
            .min_by_key(|&(_, open)| open)
            .unwrap_or((self.id, mine));
        if mine.saturating_sub(least) > mine / SLACK_DIVISOR {
            other
        } else {
            self.id
        }
    }

    async fn serve(self: Rc<Self>, mut stream: TcpStream) {
        let mut buffer = vec![0u8; MESSAGE_BYTES];
        loop {
            let (read, mut message) = stream.read_exact(buffer).await;
            if read.is_err() {
                break;
            }
            let kind = message[0];
            if matches!(kind, PING_WORK | QUIT_WORK) {
                clock::burn(WORK);
            }
            message[1] = self.id as u8;
            let (written, message) = stream.write_all(message).await;
            buffer = message;
            if written.is_err() || matches!(kind, QUIT | QUIT_WORK) {
                break;
            }
        }
        self.loads[self.id].open.fetch_sub(1, Relaxed);
    }
}

/// A task that accepts on one descriptor until it is stopped.
struct Acceptor {
    canceller: Canceller,
    task: monoio::task::JoinHandle<()>,
}

impl Acceptor {
    fn start(core: Rc<Core>, listener: StdListener) -> Acceptor {
        let canceller = Canceller::new();
        let task = monoio::spawn(Acceptor::run(core, listener, canceller.handle()));
        Acceptor { canceller, task }
    }

    async fn run(core: Rc<Core>, listener: StdListener, stop: CancelHandle) {
        let listener = TcpListener::from_std(listener).expect("a listener on the ring");
        // The accept in flight is cancelled and awaited, never dropped: monoio
        // forgets a dropped accept's result, and with it a descriptor nobody
        // closes and a caller nobody answers (50 of 50 when we tried).
        while let Ok((stream, _peer)) = listener.cancelable_accept(stop.clone()).await {
            core.clone().place(stream);
        }
    }
}

/// Stops every acceptor; a connection that wins against the cancel is served.
async fn leave(acceptors: &mut Vec<Acceptor>) {
    for acceptor in acceptors.drain(..) {
        acceptor.canceller.cancel();
        acceptor.task.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_survives_its_four_bytes() {
        let commands = [
            Command::Connection(0),
            Command::Connection(0xff_ffff),
            Command::Listener(300),
            Command::LeaveAndClose,
            Command::LeaveAndPassOn,
            Command::Stall,
            Command::Stop,
        ];
        for command in commands {
            let decoded = Command::decode(command.encode());
            assert_eq!(format!("{decoded:?}"), format!("{command:?}"));
        }
    }
}
