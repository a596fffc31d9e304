//! One worker: accepts, serves, counts, and keeps the second hand.
//!
//! Everything here belongs to one thread; other threads see its counters and nothing else.

use std::cell::{Cell, Ref, RefCell};
use std::future::Future;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::alarm::Alarm;
use crate::connection::Connection;
use crate::executor::Executor;
use crate::faults::greeting::greet;
use crate::http::{Response, date};
use crate::idle::IdleTable;
use crate::keys::KeySet;
use crate::readiness::Watch;
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
    executor: Executor,
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
    // Declared first, hence dropped before the socket closes.
    watch: Watch,
    socket: TcpListener,
    role: Role,
}

/// What a worker needs of its event loop, besides listeners.
pub struct Core {
    alarm: Rc<Alarm>,
    executor: Executor,
}

/// A beat per second, until the server stops.
pub struct Pulse {
    watch: Watch,
    stream: UnixStream,
}

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
        worker.executor.spawn(accept(Rc::clone(&worker), listener));
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
            executor: core.executor,
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
        listener.watch.readable().await;
        match listener.socket.accept() {
            Ok((socket, peer)) => {
                if worker.idle.len() >= CONNECTIONS_MAX {
                    worker.stats.connections_refused.increment();
                    continue;
                }
                let task = guarded(Rc::clone(&worker), socket, peer, listener.role);
                worker.executor.spawn(task);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => listener.watch.empty(),
            // Out of descriptors, most likely: some will be freed. Or the listener is closed for
            // the time being (`refuse`).
            Err(_) => worker.alarm.sleep(ACCEPT_PAUSE).await,
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
    let stream = Stream::new(
        socket,
        guard,
        worker.executor.readiness(),
        &worker.scratch,
        at_once,
    );
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

/// Turns a panic within a task into an error; otherwise it would end the thread.
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
    /// Starts the alarm.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn new(executor: &Executor) -> io::Result<Self> {
        Ok(Core {
            alarm: Alarm::start(executor)?,
            executor: executor.clone(),
        })
    }
}

impl Listener {
    /// Takes over a bound, non-blocking socket.
    pub fn new(executor: &Executor, socket: TcpListener, role: Role) -> io::Result<Self> {
        Ok(Listener {
            watch: executor.readiness().watch(&socket)?,
            socket,
            role,
        })
    }
}

impl Pulse {
    /// Each byte is a beat.
    pub fn new(executor: &Executor, stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Pulse {
            watch: executor.readiness().watch(&stream)?,
            stream,
        })
    }

    /// Waits for the next beat; false when there will be no more.
    async fn beat(&mut self) -> bool {
        loop {
            self.watch.readable().await;
            // One byte at a time: after a stall, time passes in the second hand too.
            match self.stream.read(&mut [0; 1]) {
                Ok(length) => return length > 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watch.empty(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

/// What `/ok` and `/healthz` say.
pub const OK_CONTENT: &[u8] = b"ok\n";

/// Open connections per worker; further ones are closed as soon as they are accepted.
const CONNECTIONS_MAX: usize = 50_000;

/// How long accepting rests after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
