//! [`Workers`]: one pinned thread per core, and its life.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use handoff::{Counters, Lane, Lifecycle, Phase, Published, Turns};
use policy::{AddressBook, Snapshot};

use crate::balance::Cores;
use crate::core::Core;
use crate::hubs;
use crate::ledger::Ledger;
use crate::listener::{self, BoundListener, Handed};
use crate::pool;
use crate::rt::{self, Driver, DriverKind, Hatch, Pulse, RuntimeError};
use crate::tick;

/// Everything that the workers are started with. `lanes`, `counters` and `turns`
/// have one entry per worker.
pub struct Plan {
    /// The CPU of each worker; `None` is not pinned. Its length is the number of workers.
    pub cpus: Vec<Option<usize>>,
    /// Which driver is asked for.
    pub driver: Driver,
    /// How long a worker with nothing to do looks for events before it sleeps. Only
    /// the epoll driver does.
    pub busy_poll: Duration,
    /// Sockets that listen.
    pub listeners: Vec<BoundListener>,
    /// Where configurations come from.
    pub snapshots: Arc<Published<Snapshot>>,
    /// Where addresses of upstreams come from.
    pub addresses: Arc<Published<AddressBook>>,
    /// Where audit records go.
    pub lanes: Vec<Lane>,
    /// What is counted.
    pub counters: Vec<Arc<Counters>>,
    /// Where each worker shows that its loop turns.
    pub turns: Vec<Arc<Turns>>,
    /// When to drain and when to stop.
    pub lifecycle: Arc<Lifecycle>,
    /// A random number of this process, for request ids.
    pub instance: u64,
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// Each worker says, as its last act, whether it ended well.
    ended: mpsc::Receiver<bool>,
    kind: DriverKind,
}

/// Why the workers could not be started.
#[derive(Debug)]
pub enum StartError {
    /// The runtime.
    Runtime(RuntimeError),
    /// A thread, or a socket on its way to one.
    Io(std::io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Runtime(error) => error.fmt(f),
            StartError::Io(error) => write!(f, "a worker could not be started: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<std::io::Error> for StartError {
    fn from(error: std::io::Error) -> Self {
        StartError::Io(error)
    }
}

impl Workers {
    /// Starts every worker, and returns when all of them accept.
    ///
    /// # Errors
    /// [`StartError`] when one of them cannot; the others are told to stop.
    pub fn start(plan: Plan) -> Result<Self, StartError> {
        // Decided once: a descriptor that is handed over must suit every driver.
        let kind = rt::choose(plan.driver).map_err(StartError::Runtime)?;
        let mut hatches = Vec::new();
        let mut openings = Vec::new();
        let mut beats = Vec::new();
        let mut hearts = Vec::new();
        for _ in &plan.cpus {
            let (sender, receiver) = rt::pulse()?;
            beats.push(sender);
            hearts.push(receiver);
            let (sender, receiver) = rt::hatch()?;
            hatches.push(sender);
            openings.push(receiver);
        }
        let cores = Cores::new(hatches);
        let names: Arc<[Arc<str>]> = plan
            .listeners
            .iter()
            .map(|listener| Arc::clone(&listener.name))
            .collect();
        let (ready, started) = mpsc::channel::<Result<(), RuntimeError>>();
        let (end, ended) = mpsc::channel();
        let mut threads = Vec::new();
        let parts = plan
            .cpus
            .iter()
            .zip(openings.into_iter().zip(hearts))
            .zip(plan.lanes)
            .zip(plan.counters.iter().zip(&plan.turns));
        for (index, (((cpu, (opening, heart)), lane), (counters, turns))) in parts.enumerate() {
            let mut sockets = Vec::new();
            for listener in &plan.listeners {
                sockets.push(listener.socket.try_clone()?);
            }
            let worker = Worker {
                index,
                sockets,
                opening,
                heart,
                cores: Arc::clone(&cores),
                names: Arc::clone(&names),
                snapshots: Arc::clone(&plan.snapshots),
                addresses: Arc::clone(&plan.addresses),
                lane,
                counters: Arc::clone(counters),
                turns: Arc::clone(turns),
                lifecycle: Arc::clone(&plan.lifecycle),
                instance: plan.instance,
            };
            let cpu = *cpu;
            let busy_poll = plan.busy_poll;
            let ready = ready.clone();
            let ended = end.clone();
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    if let Some(id) = cpu
                        && !core_affinity::set_for_current(core_affinity::CoreId { id })
                    {
                        tracing::warn!(cpu = id, "cannot pin worker {index} to this CPU; it runs unpinned. Check `cpus` against the CPUs that the process may use");
                    }
                    let _gone = Gone {
                        lifecycle: Arc::clone(&worker.lifecycle),
                        turns: Arc::clone(&worker.turns),
                        ended,
                    };
                    let told = ready.clone();
                    let ran = rt::run(kind, busy_poll, worker.live(kind, told));
                    if let Err(error) = ran {
                        let _ = ready.send(Err(error));
                    }
                })?;
            threads.push(thread);
        }
        // Ends by itself, when nobody hears it any more.
        std::thread::Builder::new()
            .name("pulse".to_owned())
            .spawn(move || {
                while beats.iter().filter(|beat| beat.beat()).count() > 0 {
                    std::thread::sleep(tick::PERIOD);
                }
            })?;
        drop(ready);
        for _ in 0..threads.len() {
            match started.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    plan.lifecycle.advance(Phase::Stopping);
                    return Err(StartError::Runtime(error));
                }
                Err(_) => {
                    plan.lifecycle.advance(Phase::Stopping);
                    return Err(StartError::Io(std::io::Error::other(
                        "a worker ended while starting",
                    )));
                }
            }
        }
        Ok(Self {
            threads,
            ended,
            kind,
        })
    }

    /// The driver that runs.
    pub fn driver(&self) -> DriverKind {
        self.kind
    }

    /// Waits until every worker has ended. `false`, at once, if one of them
    /// panicked: the others still run then, and the process must end.
    pub fn join(self) -> bool {
        // Whoever ends first is heard first. A thread that is gone without a word
        // has panicked as well.
        let well = (0..self.threads.len()).all(|_| self.ended.recv() == Ok(true));
        well && self.threads.into_iter().all(|thread| thread.join().is_ok())
    }
}

/// One worker, before it is on its thread.
pub struct Worker {
    pub index: usize,
    pub sockets: Vec<std::net::TcpListener>,
    pub opening: rt::HatchSocket<Handed>,
    pub heart: std::os::unix::net::UnixDatagram,
    pub cores: Arc<Cores>,
    pub names: Arc<[Arc<str>]>,
    pub snapshots: Arc<Published<Snapshot>>,
    pub addresses: Arc<Published<AddressBook>>,
    pub lane: Lane,
    pub counters: Arc<Counters>,
    pub turns: Arc<Turns>,
    pub lifecycle: Arc<Lifecycle>,
    pub instance: u64,
}

impl Worker {
    /// Serves until it has drained, or is told to stop.
    pub async fn live(self, kind: DriverKind, ready: mpsc::Sender<Result<(), RuntimeError>>) {
        let core = Core::new(
            self.index,
            Arc::clone(&self.counters),
            self.snapshots.reader(),
            self.addresses.reader(),
            Ledger::new(self.lane, self.counters),
            self.instance,
        );
        #[cfg(test)]
        crate::simulation::attend(&core);
        let mut stops = Vec::new();
        let accepting = Rc::new(std::cell::Cell::new(self.sockets.len()));
        for (index, socket) in self.sockets.into_iter().enumerate() {
            match rt::Listener::new(socket, kind) {
                Ok(listener) => {
                    stops.push(listener.stop_handle());
                    let (core, cores, names) = (
                        Rc::clone(&core),
                        Arc::clone(&self.cores),
                        Arc::clone(&self.names),
                    );
                    let accepting = Rc::clone(&accepting);
                    let broken = Rc::clone(&core);
                    rt::spawn_vital(
                        async move {
                            listener::accept(core, cores, names, index as u32, listener).await;
                            accepting.set(accepting.get() - 1);
                        },
                        move || broken.broken.set(true),
                    );
                }
                Err(error) => {
                    let _ = ready.send(Err(RuntimeError::Epoll(error)));
                    return;
                }
            }
        }
        let pulse = match Pulse::new(self.heart, kind) {
            Ok(pulse) => pulse,
            Err(error) => {
                let _ = ready.send(Err(RuntimeError::Epoll(error)));
                return;
            }
        };
        let load = Arc::clone(&self.cores);
        match Hatch::new(self.opening, kind) {
            Ok(hatch) => {
                let broken = Rc::clone(&core);
                rt::spawn_vital(
                    listener::take_in(Rc::clone(&core), self.cores, self.names, hatch),
                    move || broken.broken.set(true),
                );
            }
            Err(error) => {
                let _ = ready.send(Err(RuntimeError::Epoll(error)));
                return;
            }
        }
        let _ = ready.send(Ok(()));
        drop(ready);
        loop {
            pulse.next().await;
            assert!(
                !core.broken.get(),
                "a task that accepts connections has panicked"
            );
            self.turns.add_one();
            let phase = self.lifecycle.phase();
            core.on_tick(phase);
            match phase {
                Phase::Serving => {
                    core.burden.on_tick(&load, core.index);
                    pool::keep_warm(&core);
                    hubs::tick(&core);
                }
                Phase::Retiring | Phase::Draining => {
                    for stop in stops.drain(..) {
                        stop.stop();
                    }
                    if accepting.get() == 0 && load.load(core.index) == 0 {
                        break;
                    }
                }
                Phase::Stopping => break,
            }
        }
        core.ledger.stop();
    }
}

/// Says that a worker has ended, whatever way it did.
struct Gone {
    lifecycle: Arc<Lifecycle>,
    turns: Arc<Turns>,
    ended: mpsc::Sender<bool>,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.lifecycle.worker_gone();
        if !std::thread::panicking() {
            self.turns.end();
        }
        let _ = self.ended.send(!std::thread::panicking());
    }
}
