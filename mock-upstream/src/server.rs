//! Starting and stopping: sockets, threads, event loops.
//!
//! All sockets are bound before any thread starts, so that an address in use is an error of
//! [`start`] and a listening address is final when it returns. Each worker has its own socket on
//! every address (`SO_REUSEPORT`); the kernel spreads connections over them.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use crate::cli::{DriverChoice, Options};
use crate::executor::Executor;
use crate::settings::Settings;
use crate::tls::TlsFiles;
use crate::worker::{self, Core, Listener, Pulse, Role};

/// A server that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    /// The addresses on which the API listens, ports filled in, in the order of the options.
    pub listening: Vec<SocketAddr>,
    /// Whether the API speaks TLS.
    pub tls: bool,
    /// The control port, if asked for.
    pub control: Option<SocketAddr>,
    /// The certificate in use, unless the API is clear text.
    pub files: Option<TlsFiles>,
    /// How the workers wait for I/O: `epoll`.
    pub driver: &'static str,
    /// What chance was seeded with.
    pub seed: u64,
    clock: Option<mpsc::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts the server and returns once it accepts connections on every address.
///
/// If `on_panic` is given, a byte is written to it when a worker dies, which only a bug in this
/// program can cause.
///
/// # Errors
///
/// A file that cannot be read, an address that cannot be bound, an event loop that cannot be
/// made. The text names the option.
pub fn start(options: &Options, on_panic: Option<UnixStream>) -> io::Result<Running> {
    if options.driver == DriverChoice::IoUring {
        let text = "--driver io_uring: this server waits by epoll, which measured cheaper; leave the option out";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    raise_descriptor_limit();
    let (settings, files) = Settings::from_options(options)?;
    let settings = Arc::new(settings);
    let workers = usize::from(options.workers);

    let mut listening = Vec::new();
    let mut per_worker: Vec<Vec<(TcpListener, Role)>> = (0..workers).map(|_| Vec::new()).collect();
    for &address in &options.listen {
        let sockets = bind(address, workers)?;
        listening.push(sockets[0].local_addr()?);
        let mut known = settings
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for socket in &sockets {
            known.push(Socket::from(socket.try_clone()?));
        }
        drop(known);
        for (socket, listeners) in sockets.into_iter().zip(&mut per_worker) {
            listeners.push((socket, Role::Api));
        }
    }
    let faults = settings.steering.current().faults.clone();
    if faults.is_some_and(|faults| faults.refuses()) {
        settings.set_listening(false)?;
    }
    let mut control = None;
    if let Some(address) = options.control {
        let socket = bind(address, 1)?.remove(0);
        control = Some(socket.local_addr()?);
        per_worker[0].push((socket, Role::Control));
    }

    let mut running = Running {
        listening,
        tls: settings.tls.is_some(),
        control,
        files,
        driver: "",
        seed: settings.seed,
        clock: None,
        threads: Vec::new(),
    };
    let mut pulses = Vec::new();
    let (ready, started) = mpsc::channel();
    for (index, listeners) in per_worker.into_iter().enumerate() {
        let (beat, pulse) = UnixStream::pair()?;
        beat.set_nonblocking(true)?;
        pulses.push(beat);
        let cpu = match options.cpus.as_slice() {
            [] => None,
            cpus => Some(cpus[index % cpus.len()]),
        };
        let plan = Plan {
            index,
            cpu,
            settings: Arc::clone(&settings),
            listeners,
            pulse,
            ready: ready.clone(),
        };
        let on_panic = on_panic.as_ref().map(UnixStream::try_clone).transpose()?;
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let _guard = PanicGuard(on_panic);
                plan.run();
            })?;
        running.threads.push(thread);
    }
    drop(ready);
    let (clock, stopped) = mpsc::channel();
    running.clock = Some(clock);
    let ticking = thread::Builder::new()
        .name("clock".to_string())
        .spawn(move || tick(&pulses, &stopped))?;
    running.threads.push(ticking);
    for _ in 0..workers {
        let outcome = started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("a worker died while starting")));
        // On an error, dropping `running` stops the workers that did start.
        running.driver = outcome?;
    }
    Ok(running)
}

impl Running {
    /// Stops all workers: connections are closed, whatever they were doing.
    ///
    /// # Errors
    ///
    /// A worker had died before.
    pub fn stop(mut self) -> io::Result<()> {
        self.stop_workers()
    }

    fn stop_workers(&mut self) -> io::Result<()> {
        self.clock = None;
        let mut outcome = Ok(());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                outcome = Err(io::Error::other("a worker died"));
            }
        }
        outcome
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop_workers();
    }
}

/// Gives every worker a beat per second, until there is nobody left who could ask for a stop; then
/// the workers see the end of their pulse, and stop.
///
/// A timer within each event loop would do as well, but then every wait for I/O would set up and
/// tear down a kernel timer.
fn tick(pulses: &[UnixStream], stopped: &mpsc::Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(Duration::from_secs(1)) {
        for mut pulse in pulses {
            // A worker that is too busy to take a beat has some waiting already.
            let _ = pulse.write(&[0]);
        }
    }
}

struct PanicGuard(Option<UnixStream>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if let (true, Some(stream)) = (thread::panicking(), &mut self.0) {
            let _ = stream.write_all(b"!");
        }
    }
}

/// Tens of thousands of connections need as many descriptors. As many as may be had is all that can
/// be asked for; how many are needed, nobody knows yet.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// `workers` listening sockets that share one address.
fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let one = |address: SocketAddr| -> io::Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        // A mock that is restarted on the same port must not wait for TIME_WAIT.
        socket.set_reuse_address(true)?;
        if workers > 1 {
            socket.set_reuse_port(true)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Linux hands this down to accepted sockets.
        socket.set_nodelay(true)?;
        socket.bind(&address.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        Ok(socket.into())
    };
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("listening on {address}: {error}"));
    if address.port() != 0 {
        return (0..workers).map(|_| one(address).map_err(named)).collect();
    }
    // A port that the kernel chose is lost when its listener is closed for a while (`refuse`); one
    // that was asked for is not. So a free one is found first, and then asked for.
    let mut last = None;
    for _ in 0..PORT_ATTEMPTS_MAX {
        let free = one(address).map_err(named)?.local_addr()?;
        let sockets: io::Result<Vec<TcpListener>> = (0..workers).map(|_| one(free)).collect();
        match sockets {
            Ok(sockets) => return Ok(sockets),
            Err(error) => last = Some(named(error)),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// How often another process may be quicker to take a free port before that is an error.
const PORT_ATTEMPTS_MAX: usize = 16;

/// Everything a worker thread needs.
struct Plan {
    index: usize,
    cpu: Option<usize>,
    settings: Arc<Settings>,
    listeners: Vec<(TcpListener, Role)>,
    pulse: UnixStream,
    ready: mpsc::Sender<io::Result<&'static str>>,
}

impl Plan {
    fn run(self) {
        if let Some(cpu) = self.cpu
            && let Err(error) = pin_to(cpu)
        {
            let error = format!("--cpus: this process may not run on CPU {cpu}: {error}");
            let _ = self.ready.send(Err(io::Error::other(error)));
            return;
        }
        let executor = match Executor::new() {
            Ok(executor) => executor,
            Err(error) => {
                let _ = self.ready.send(Err(error));
                return;
            }
        };
        executor.run(self.serve(executor.clone()));
    }

    async fn serve(self, executor: Executor) {
        let listeners: io::Result<Vec<Listener>> = self
            .listeners
            .into_iter()
            .map(|(socket, role)| Listener::new(&executor, socket, role))
            .collect();
        let parts = listeners.and_then(|listeners| {
            let pulse = Pulse::new(&executor, self.pulse)?;
            Ok((listeners, pulse, Core::new(&executor)?))
        });
        let (listeners, pulse, core) = match parts {
            Ok(parts) => parts,
            Err(error) => {
                let _ = self.ready.send(Err(error));
                return;
            }
        };
        let _ = self.ready.send(Ok("epoll"));
        drop(self.ready);
        worker::run(self.index, self.settings, core, listeners, pulse).await;
    }
}

/// Lets the calling thread run on this CPU only.
fn pin_to(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Connections that wait to be accepted, per socket; more are refused by the kernel. The kernel
/// caps it at `net.core.somaxconn`.
pub const LISTEN_BACKLOG: i32 = 4096;
