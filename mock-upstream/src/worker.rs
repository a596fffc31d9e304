//! One worker: accepts, serves, counts, and keeps the second hand.
//!
//! Everything here belongs to one thread; other threads see its counters and nothing else.

use std::cell::{Cell, Ref, RefCell};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use monoio::io::AsyncReadRent as _;

use crate::alarm::Alarm;
use crate::connection::Connection;
use crate::faults::greeting::greet;
use crate::http::{Response, date};
use crate::idle::IdleTable;
use crate::keys::KeySet;
use crate::readiness::Readiness;
use crate::settings::Settings;
use crate::stats::WorkerStats;
use crate::steering::Steering;
use crate::stream::{Scratch, Stream, scratch};

/// What all connections of one worker share.
#[derive(Debug)]
pub struct Worker {
    /// What the whole process shares.
    pub settings: Arc<Settings>,
    /// This worker's counters.
    pub stats: Arc<WorkerStats>,
    /// Precise sleep.
    pub alarm: Rc<Alarm>,
    readiness: Rc<Readiness>,
    scratch: Scratch,
    idle: Rc<IdleTable>,
    keys: RefCell<(u64, Arc<KeySet>)>,
    steering: RefCell<(u64, Arc<Steering>)>,
    date: RefCell<String>,
    /// The whole answer to `GET /ok`, rendered once a second for its date.
    ok: RefCell<Vec<u8>>,
    next_number: Cell<u64>,
}

/// Whom a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Clients of the mock API.
    Api,
    /// Tests that steer the mock, in clear text.
    Control,
}

/// A listening socket within this worker's event loop.
pub struct Listener {
    socket: std::net::TcpListener,
    /// A second descriptor of the socket, for the event loop, which knows no listeners but its own.
    watched: monoio::net::UnixStream,
    role: Role,
}

/// What a worker needs of its event loop, besides listeners.
pub struct Core {
    alarm: Rc<Alarm>,
    readiness: Rc<Readiness>,
}

/// A beat per second, until the server stops.
pub struct Pulse(monoio::net::UnixStream);

/// Serves until the pulse ends.
pub async fn run(
    index: usize,
    settings: Arc<Settings>,
    core: Core,
    listeners: Vec<Listener>,
    mut pulse: Pulse,
) {
    let worker = Rc::new(Worker::new(index, settings, core));
    for listener in listeners {
        monoio::spawn(accept(Rc::clone(&worker), listener));
    }
    while pulse.beat().await {
        worker.render();
        for _ in 0..worker.idle.sweep(worker.settings.idle_timeout) {
            worker.stats.idle_closed.increment();
        }
    }
    worker.idle.shut_all();
}

impl Worker {
    fn new(index: usize, settings: Arc<Settings>, core: Core) -> Self {
        let worker = Worker {
            stats: Arc::clone(&settings.stats[index]),
            alarm: core.alarm,
            readiness: core.readiness,
            scratch: scratch(),
            idle: Rc::default(),
            keys: RefCell::new((settings.keys.generation(), settings.keys.current())),
            steering: RefCell::new((settings.steering.generation(), settings.steering.current())),
            date: RefCell::default(),
            ok: RefCell::default(),
            next_number: Cell::new(index as u64 + 1),
            settings,
        };
        worker.render();
        worker
    }

    /// The valid keys, fetched anew if they have been replaced.
    pub fn keys(&self) -> Ref<'_, KeySet> {
        let generation = self.settings.keys.generation();
        if self.keys.borrow().0 != generation {
            *self.keys.borrow_mut() = (generation, self.settings.keys.current());
        }
        Ref::map(self.keys.borrow(), |(_, keys)| &**keys)
    }

    /// Latency, limits and faults, fetched anew if they have been replaced.
    pub fn steering(&self) -> Ref<'_, Arc<Steering>> {
        let generation = self.settings.steering.generation();
        if self.steering.borrow().0 != generation {
            *self.steering.borrow_mut() = (generation, self.settings.steering.current());
        }
        Ref::map(self.steering.borrow(), |(_, steering)| steering)
    }

    /// The current `Date`, right to the second or so.
    pub fn date(&self) -> Ref<'_, str> {
        Ref::map(self.date.borrow(), String::as_str)
    }

    /// The whole answer to `GET /ok`.
    pub fn ok(&self) -> Ref<'_, [u8]> {
        Ref::map(self.ok.borrow(), Vec::as_slice)
    }

    fn render(&self) {
        *self.date.borrow_mut() = date::format(date::unix_seconds());
        let mut ok = self.ok.borrow_mut();
        ok.clear();
        Response::start(&mut ok, 200, &self.date(), false).content("text/plain", OK_CONTENT);
    }

    /// A number that no other connection of this process has.
    fn number(&self) -> u64 {
        let number = self.next_number.get();
        self.next_number
            .set(number + self.settings.stats.len() as u64);
        number
    }
}

async fn accept(worker: Rc<Worker>, listener: Listener) {
    loop {
        // The runtime says when; the socket itself is ours, since its bytes are.
        if listener.watched.readable(false).await.is_err() {
            monoio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        }
        match listener.socket.accept() {
            Ok((socket, peer)) => {
                if worker.idle.len() >= CONNECTIONS_MAX {
                    worker.stats.connections_refused.increment();
                    continue;
                }
                monoio::spawn(guarded(Rc::clone(&worker), socket, peer, listener.role));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Out of descriptors, most likely: some will be freed. Or the listener is closed for
            // the time being (`refuse`).
            Err(_) => monoio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Counts the connection in and out, and survives its panics.
async fn guarded(worker: Rc<Worker>, socket: TcpStream, peer: SocketAddr, role: Role) {
    let stats = Arc::clone(&worker.stats);
    // What asks for the counters is not among what is counted.
    let counted = role == Role::Api;
    if counted {
        stats.connections.increment();
    }
    if CatchPanic(Box::pin(serve(worker, socket, peer, role)))
        .await
        .is_err()
    {
        stats.panics.increment();
    }
    if counted {
        stats.closed.increment();
    }
}

async fn serve(worker: Rc<Worker>, socket: TcpStream, peer: SocketAddr, role: Role) {
    let number = worker.number();
    let guard = worker.idle.enter(number, socket.as_raw_fd());
    let tls = match role {
        Role::Api => worker.settings.tls.as_ref(),
        Role::Control => None,
    };
    let faults = match role {
        Role::Api => worker.steering().faults.clone(),
        Role::Control => None,
    };
    // Where rules have their say, TLS begins later.
    let at_once = tls.filter(|_| faults.is_none());
    let stream = Stream::new(socket, guard, &worker.readiness, &worker.scratch, at_once);
    let Ok(mut stream) = stream else {
        return;
    };
    if let Some(faults) = faults
        && !Box::pin(greet(&worker, &faults, &mut stream, tls)).await
    {
        return;
    }
    let mut facts = None;
    if tls.is_some() {
        match Box::pin(stream.handshake()).await {
            Ok(found) => {
                worker.stats.handshakes.increment();
                if found.resumed {
                    worker.stats.resumed.increment();
                }
                facts = Some(found);
            }
            Err(_) => {
                worker.stats.handshakes_failed.increment();
                return;
            }
        }
    }
    if role == Role::Api && worker.settings.raw.is_some() {
        stream.start_tape();
    }
    let connection = Connection::new(worker, stream, number, peer, facts, role);
    connection.serve().await;
}

/// Turns a panic within a task into an error: monoio would let it end the thread.
struct CatchPanic<F>(Pin<Box<F>>);

impl<F: Future<Output = ()>> Future for CatchPanic<F> {
    type Output = Result<(), ()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Whatever the panic left half done belongs to this connection alone, and is dropped.
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(())),
        }
    }
}

impl Core {
    /// Must be called within the event loop.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Core {
            alarm: Alarm::start()?,
            readiness: Readiness::start()?,
        })
    }
}

impl Listener {
    /// Takes over a bound, non-blocking socket. Must be called within the event loop.
    pub fn new(socket: std::net::TcpListener, role: Role) -> io::Result<Self> {
        let watched = std::os::unix::net::UnixStream::from(OwnedFd::from(socket.try_clone()?));
        Ok(Listener {
            socket,
            watched: monoio::net::UnixStream::from_std(watched)?,
            role,
        })
    }
}

impl Pulse {
    /// Must be called within the event loop. Each byte is a beat.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        monoio::net::UnixStream::from_std(stream).map(Pulse)
    }

    /// Waits for the next beat; false when there will be no more.
    async fn beat(&mut self) -> bool {
        // One byte at a time: after a stall, time passes in the second hand too.
        let (result, _) = self.0.read(vec![0; 1]).await;
        matches!(result, Ok(1..))
    }
}

/// What `/ok` and `/healthz` say.
pub const OK_CONTENT: &[u8] = b"ok\n";

/// Open connections per worker; further ones are closed as soon as they are accepted.
const CONNECTIONS_MAX: usize = 50_000;

/// How long accepting rests after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
