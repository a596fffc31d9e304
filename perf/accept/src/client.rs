//! The calling side: blocking clients on pinned threads of this process, and
//! the workloads they run. Every workload ends by itself, and every read and
//! write has a deadline.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::clock;
use crate::worker::{self, Cluster, Command, MESSAGE_BYTES, PING, QUIT, QUIT_WORK, STALL, WORKERS};

/// A message or a connect that takes longer counts as a timeout.
const PATIENCE: Duration = Duration::from_secs(1);

/// Connections that one flooding thread opens before it reads any answer.
const FLOOD_BATCH: usize = 64;

/// Threads that flood, or connect again and again.
const THREADS: usize = 4;

/// Time between two connections in [`stall`].
const STALL_GAP: Duration = Duration::from_millis(1);

/// A connection that waits longer than this for its answer was held up by the
/// stalled worker: four clock ticks of an ordinary busy machine.
const HELD_UP: Duration = Duration::from_millis(40);

/// One connection.
pub struct Client {
    stream: TcpStream,
}

impl Client {
    /// Connects and waits for it.
    pub fn connect(addr: SocketAddr) -> io::Result<Client> {
        let client = Client::begin(addr)?;
        client.stream.set_nonblocking(false)?;
        Ok(client)
    }

    /// Sends the SYN and does not wait. A later blocking write does.
    fn begin(addr: SocketAddr) -> io::Result<Client> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        match socket.connect(&addr.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
            _ => {}
        }
        Ok(Client {
            stream: socket.into(),
        })
    }

    fn send(&mut self, kind: u8) -> io::Result<()> {
        let mut message = [0u8; MESSAGE_BYTES];
        message[0] = kind;
        self.stream.write_all(&message)
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut message = [0u8; MESSAGE_BYTES];
        self.stream.read_exact(&mut message)?;
        Ok(usize::from(message[1]))
    }

    /// One message there and back; the answer is the core that served it.
    pub fn ping(&mut self, kind: u8) -> io::Result<usize> {
        self.send(kind)?;
        self.receive()
    }

    /// Connects to a socket that nobody accepts on yet: the kernel answers.
    pub fn connect_now(addr: SocketAddr) -> io::Result<Client> {
        Ok(Client {
            stream: TcpStream::connect_timeout(&addr, PATIENCE)?,
        })
    }

    /// Closes after the server has.
    fn close_second(mut self) {
        let _ = self.stream.read(&mut [0u8; 1]);
    }
}

impl Drop for Client {
    /// Closes with a reset: no TIME_WAIT stays behind to fill the port range.
    fn drop(&mut self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

/// How a set of clients arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// Each after the one before has its first answer.
    OneByOne,
    /// All SYNs before any answer.
    AtOnce,
    /// One by one; then those on the first one's core close and as many come
    /// anew, as when a service restarts or idle connections time out.
    Refill,
}

impl Arrival {
    /// All that are compared.
    pub const ALL: [Arrival; 3] = [Arrival::OneByOne, Arrival::AtOnce, Arrival::Refill];

    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Arrival::OneByOne => "one by one",
            Arrival::AtOnce => "at once",
            Arrival::Refill => "refill",
        }
    }
}

/// Where one set of clients went, and how long each waited from its connect to
/// its first answer.
pub struct Spread {
    /// Connections per core.
    pub split: [u32; WORKERS],
    /// Connect to first answer.
    pub first: Vec<Duration>,
}

/// Opens `clients` connections and asks each which core it is on.
pub fn spread(cluster: &Cluster, clients: usize, arrival: Arrival) -> io::Result<Spread> {
    let mut open = Vec::new();
    let mut first = Vec::new();
    match arrival {
        Arrival::AtOnce => open_at_once(cluster, clients, &mut open, &mut first)?,
        Arrival::OneByOne => open_one_by_one(cluster, clients, &mut open, &mut first)?,
        Arrival::Refill => {
            open_one_by_one(cluster, clients, &mut open, &mut first)?;
            let leaving = open[0].0;
            open.retain(|(core, _)| *core != leaving);
            cluster.settle(open.len() as u32);
            open_one_by_one(cluster, clients, &mut open, &mut first)?;
        }
    }
    let mut split = [0; WORKERS];
    for (core, _) in &open {
        split[*core] += 1;
    }
    drop(open);
    cluster.settle(0);
    Ok(Spread { split, first })
}

/// A connection and the core it is on.
type Placed = (usize, Client);

fn open_one_by_one(
    cluster: &Cluster,
    clients: usize,
    open: &mut Vec<Placed>,
    first: &mut Vec<Duration>,
) -> io::Result<()> {
    while open.len() < clients {
        let start = Instant::now();
        let mut client = Client::connect(cluster.addr)?;
        let core = client.ping(PING)?;
        first.push(start.elapsed());
        open.push((core, client));
    }
    Ok(())
}

fn open_at_once(
    cluster: &Cluster,
    clients: usize,
    open: &mut Vec<Placed>,
    first: &mut Vec<Duration>,
) -> io::Result<()> {
    let start = Instant::now();
    let mut opening = Vec::new();
    for _ in 0..clients {
        opening.push(Client::begin(cluster.addr)?);
    }
    for client in &mut opening {
        client.stream.set_nonblocking(false)?;
        client.send(PING)?;
    }
    for mut client in opening {
        let core = client.receive()?;
        first.push(start.elapsed());
        open.push((core, client));
    }
    Ok(())
}

/// What a set of long-lived clients got.
pub struct Throughput {
    /// Connections per core.
    pub split: [u32; WORKERS],
    /// Messages answered per second, all clients together.
    pub per_second: f64,
    /// Of every message.
    pub latencies: Vec<Duration>,
    /// Worker CPU per message, in microseconds.
    pub cpu_us: f64,
}

/// Ping-pong by `clients` long-lived connections, one thread each, for `time`.
/// The n-th thread is pinned to core `n + shift` modulo 2. A client beside its
/// worker runs up to twice as fast as one across from it, and some strategies
/// place clients in a fixed order: give `shift` both values equally often, or
/// what is measured is that accident.
pub fn throughput(
    cluster: &Cluster,
    clients: usize,
    kind: u8,
    shift: usize,
    time: Duration,
) -> io::Result<Throughput> {
    let mut split = [0; WORKERS];
    let mut open = Vec::new();
    for _ in 0..clients {
        let mut client = Client::connect(cluster.addr)?;
        split[client.ping(kind)?] += 1;
        open.push(client);
    }
    let start = Barrier::new(clients + 1);
    let (latencies, elapsed, cpu) = std::thread::scope(|scope| {
        let threads: Vec<_> = open
            .into_iter()
            .enumerate()
            .map(|(index, mut client)| {
                let start = &start;
                scope.spawn(move || {
                    worker::pin(index + shift);
                    let mut latencies = Vec::with_capacity(16 * 1024);
                    start.wait();
                    let end = Instant::now() + time;
                    let mut last = Instant::now();
                    while last < end {
                        client.ping(kind)?;
                        let now = Instant::now();
                        latencies.push(now - last);
                        last = now;
                    }
                    Ok(latencies)
                })
            })
            .collect();
        start.wait();
        let (begun, cpu) = (Instant::now(), cluster.cpu());
        let latencies: io::Result<Vec<_>> = threads
            .into_iter()
            .map(|thread| thread.join().expect("a client ends without a panic"))
            .collect();
        (latencies, begun.elapsed(), cluster.cpu() - cpu)
    });
    cluster.settle(0);
    let latencies = latencies?.concat();
    Ok(Throughput {
        split,
        per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / latencies.len() as f64,
        latencies,
    })
}

/// What connecting again and again cost.
pub struct Churn {
    /// Connections per second, each with one message.
    pub per_second: f64,
    /// Worker CPU per connection, in microseconds.
    pub cpu_us: f64,
    /// CPU of the whole process per connection, in microseconds.
    pub process_us: f64,
    /// Part of the connections that were passed on, 0 to 1.
    pub handed: f64,
    /// Connect to answer.
    pub latencies: Vec<Duration>,
}

/// Four threads connect, ping once and close, over and over, beside `idle`
/// connections that stay open.
pub fn churn(cluster: &Cluster, idle: usize, time: Duration) -> io::Result<Churn> {
    let mut idlers = Vec::new();
    for _ in 0..idle {
        let mut client = Client::connect(cluster.addr)?;
        client.ping(PING)?;
        idlers.push(client);
    }
    let (begun, cpu, process, handed) = (
        Instant::now(),
        cluster.cpu(),
        clock::process_cpu(),
        cluster.handed(),
    );
    let latencies: io::Result<Vec<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|index| {
                scope.spawn(move || {
                    worker::pin(index);
                    let mut latencies = Vec::with_capacity(16 * 1024);
                    while begun.elapsed() < time {
                        let start = Instant::now();
                        let mut client = Client::connect(cluster.addr)?;
                        client.ping(QUIT)?;
                        latencies.push(start.elapsed());
                        client.close_second();
                    }
                    Ok(latencies)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a client ends without a panic"))
            .collect()
    });
    let latencies = latencies?.concat();
    let connections = latencies.len() as f64;
    let churn = Churn {
        per_second: connections / begun.elapsed().as_secs_f64(),
        cpu_us: (cluster.cpu() - cpu).as_secs_f64() * 1e6 / connections,
        process_us: (clock::process_cpu() - process).as_secs_f64() * 1e6 / connections,
        handed: (cluster.handed() - handed) as f64 / connections,
        latencies,
    };
    drop(idlers);
    cluster.settle(0);
    Ok(churn)
}

/// How the connections of a flood ended.
#[derive(Default, Clone, Copy)]
pub struct Flood {
    /// Answered.
    pub answered: u64,
    /// Reset, or closed before an answer.
    pub reset: u64,
    /// Refused.
    pub refused: u64,
    /// Not answered in time.
    pub timed_out: u64,
}

impl Flood {
    /// Adds another flood's counts.
    pub fn add(&mut self, other: Flood) {
        self.answered += other.answered;
        self.reset += other.reset;
        self.refused += other.refused;
        self.timed_out += other.timed_out;
    }

    fn count(&mut self, result: io::Result<usize>) {
        match result {
            Ok(_) => self.answered += 1,
            Err(e) => match e.kind() {
                io::ErrorKind::ConnectionRefused => self.refused += 1,
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.timed_out += 1,
                _ => self.reset += 1,
            },
        }
    }
}

/// Floods the cluster with batches of new connections for `time`; half-way,
/// `command` goes to the last worker.
pub fn flood(cluster: &Cluster, command: Command, time: Duration) -> Flood {
    let begun = Instant::now();
    let mut total = Flood::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|index| {
                scope.spawn(move || {
                    worker::pin(index);
                    let mut flood = Flood::default();
                    while begun.elapsed() < time {
                        flood_batch(cluster.addr, &mut flood);
                    }
                    flood
                })
            })
            .collect();
        std::thread::sleep(time / 2);
        cluster.tell(WORKERS - 1, command);
        for thread in threads {
            total.add(thread.join().expect("a client ends without a panic"));
        }
    });
    cluster.settle(0);
    total
}

fn flood_batch(addr: SocketAddr, flood: &mut Flood) {
    let mut waiting = Vec::with_capacity(FLOOD_BATCH);
    for _ in 0..FLOOD_BATCH {
        match Client::begin(addr) {
            Ok(client) => waiting.push(client),
            Err(e) => flood.count(Err(e)),
        }
    }
    waiting.retain_mut(|client| {
        let sent = client
            .stream
            .set_nonblocking(false)
            .and_then(|()| client.send(QUIT_WORK));
        match sent {
            Ok(()) => true,
            Err(e) => {
                flood.count(Err(e));
                false
            }
        }
    });
    for mut client in waiting {
        flood.count(client.receive());
        client.close_second();
    }
}

/// What callers noticed while one worker slept.
pub struct Stalled {
    /// Connections that waited more than 40 ms from when they were due.
    pub held_up: usize,
    /// Connections that never got an answer.
    pub unanswered: usize,
    /// Connections in all.
    pub connections: usize,
    /// The longest wait.
    pub longest: Duration,
}

/// Opens a connection every millisecond, whatever became of the ones before;
/// the last worker sleeps for [`STALL`] meanwhile.
pub fn stall(cluster: &Cluster) -> io::Result<Stalled> {
    let lead = Duration::from_millis(50);
    let total = ((STALL + 2 * lead).as_nanos() / STALL_GAP.as_nanos()) as usize;
    let begun = Instant::now();
    let mut waits: Vec<Duration> = Vec::new();
    let mut waiting: Vec<(Client, Instant)> = Vec::new();
    let (mut opened, mut told) = (0, false);
    while (opened < total || !waiting.is_empty()) && begun.elapsed() < STALL + 2 * lead + PATIENCE {
        if !told && begun.elapsed() >= lead {
            cluster.tell(WORKERS - 1, Command::Stall);
            told = true;
        }
        while opened < total && begun.elapsed() >= STALL_GAP * opened as u32 {
            let due = begun + STALL_GAP * opened as u32;
            let mut client = Client::begin(cluster.addr)?;
            client.stream.set_nonblocking(false)?;
            client.send(QUIT)?;
            waiting.push((client, due));
            opened += 1;
        }
        let ready = readable(&waiting);
        let mut index = 0;
        waiting.retain_mut(|(client, due)| {
            let keep = !ready[index];
            index += 1;
            if !keep && client.receive().is_ok() {
                waits.push(due.elapsed());
            }
            keep
        });
    }
    cluster.settle(0);
    Ok(Stalled {
        held_up: waits.iter().filter(|wait| **wait > HELD_UP).count(),
        unanswered: opened - waits.len(),
        connections: opened,
        longest: waits.into_iter().max().unwrap_or_default(),
    })
}

/// Which of the connections have something to read, after at most a
/// millisecond.
fn readable(waiting: &[(Client, Instant)]) -> Vec<bool> {
    let mut polls: Vec<libc::pollfd> = waiting
        .iter()
        .map(|(client, _)| libc::pollfd {
            fd: client.stream.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: the pointer and the length are those of one live vector.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, 1) };
    polls.iter().map(|poll| poll.revents != 0).collect()
}
