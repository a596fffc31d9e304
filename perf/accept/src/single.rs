//! What accepting one connection costs by itself: monoio's accept, which is
//! submitted anew for each connection, against a raw multishot accept, which
//! monoio 0.2.4 does not offer, and against plain `accept4`.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::{opcode, types};
use monoio::net::TcpListener;

use crate::client::Client;
use crate::clock;
use crate::worker::{self, Sockets};

/// Connections per measurement.
const CONNECTIONS: usize = 500;

/// Time between two connections when they come one by one: longer than a
/// wake-up, so that each finds its accepter asleep.
const GAP: Duration = Duration::from_micros(100);

/// A way of accepting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// `accept4` in a loop, blocking.
    Accept4,
    /// monoio's accept: single-shot.
    Monoio,
    /// `IORING_OP_ACCEPT` with `IORING_ACCEPT_MULTISHOT`, by hand.
    Multishot,
}

impl Way {
    /// All that are compared.
    pub const ALL: [Way; 3] = [Way::Accept4, Way::Monoio, Way::Multishot];

    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Way::Accept4 => "accept4, blocking",
            Way::Monoio => "monoio (single-shot)",
            Way::Multishot => "raw ring, multishot",
        }
    }
}

/// CPU per connection in microseconds, of the accepting thread alone, for a
/// queue that is already full (`one_by_one` false) or for connections that
/// arrive apart. Nothing is read, written or closed within the measurement.
pub fn cost(way: Way, one_by_one: bool) -> io::Result<f64> {
    let listener = worker::listen(SocketAddr::from(([127, 0, 0, 1], 0)), Sockets::Shared)?;
    let addr = listener.local_addr()?;
    // Kept open until the measurement has ended.
    let mut clients = Vec::new();
    if !one_by_one {
        clients = connect(addr, Duration::ZERO)?;
    }
    let thread = std::thread::spawn(move || {
        worker::pin(0);
        match way {
            Way::Accept4 => accept4(&listener),
            Way::Monoio => monoio(listener),
            Way::Multishot => multishot(&listener),
        }
    });
    if one_by_one {
        // Away from the accepter: otherwise each connect would wait for it.
        let client = std::thread::spawn(move || {
            worker::pin(1);
            connect(addr, GAP)
        });
        clients.extend(client.join().expect("a client ends without a panic")?);
    }
    let cpu = thread.join().expect("an accepter ends without a panic")?;
    Ok(cpu.as_secs_f64() * 1e6 / CONNECTIONS as f64)
}

fn connect(addr: SocketAddr, gap: Duration) -> io::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect_now(addr)?);
        if !gap.is_zero() {
            std::thread::sleep(gap);
        }
    }
    Ok(clients)
}

fn accept4(listener: &StdListener) -> io::Result<Duration> {
    let mut streams = Vec::with_capacity(CONNECTIONS);
    let start = clock::own_cpu();
    while streams.len() < CONNECTIONS {
        streams.push(listener.accept()?);
    }
    Ok(clock::own_cpu() - start)
}

fn monoio(listener: StdListener) -> io::Result<Duration> {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .uring_builder(worker::ring_flags())
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let mut streams = Vec::with_capacity(CONNECTIONS);
        let start = clock::own_cpu();
        while streams.len() < CONNECTIONS {
            streams.push(listener.accept().await?);
        }
        Ok(clock::own_cpu() - start)
    })
}

fn multishot(listener: &StdListener) -> io::Result<Duration> {
    let mut ring: io_uring::IoUring = worker::ring_flags().build(1024)?;
    let accept = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).build();
    let mut streams: Vec<OwnedFd> = Vec::with_capacity(CONNECTIONS);
    let mut armed = false;
    let start = clock::own_cpu();
    while streams.len() < CONNECTIONS {
        if !armed {
            // SAFETY: the operation names the listener only, which outlives
            // the ring; it has no buffer.
            unsafe { ring.submission().push(&accept) }.expect("room for one entry");
            armed = true;
        }
        ring.submit_and_wait(1)?;
        for completion in ring.completion() {
            armed &= io_uring::cqueue::more(completion.flags());
            let fd: RawFd = completion.result();
            if fd < 0 {
                return Err(io::Error::from_raw_os_error(-fd));
            }
            // SAFETY: a completed accept gives us a descriptor of our own.
            streams.push(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Ok(clock::own_cpu() - start)
}
